"""Out to other people's tools: the graph in standard ONNX integer operators, with the same bits."""
