"""The fake-quant twin of the integer graph, what calibrates and exports it, and the float models it is made from."""
