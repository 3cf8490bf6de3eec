"""What is told about a model: inspection, profile, certificate, card, quantization, pages to look at."""
