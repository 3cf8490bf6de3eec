"""Integer-only inference for vision-transformer segmentation, bit-exact on every machine."""
