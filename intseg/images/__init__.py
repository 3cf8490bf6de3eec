"""Pictures in and out: decoding, label images and palettes, overlays."""
