"""The two small Segmenters that the tests of tools/ are about."""

import dataclasses

from intseg.tools.twin.config import SegmenterConfig

SMALL = SegmenterConfig(
    image_size=(32, 48),
    patch=8,
    d_model=32,
    n_layers=2,
    n_heads=2,
    mlp_dim=48,
    n_cls=5,
    window=(32, 48),
    stride=(16, 32),
    d_decoder=48,
    dec_layers=1,
    dec_heads=3,
    dec_mlp_dim=40,
)
"""Sizes that differ wherever they may, so that none is taken for another."""

NO_DECODER = {"d_decoder": 0, "dec_layers": 0, "dec_heads": 0, "dec_mlp_dim": 0}

LINEAR = dataclasses.replace(SMALL, decoder="linear", **NO_DECODER)

CAMVID = dataclasses.replace(
    SMALL,
    image_size=(32, 32),
    window=(32, 32),
    stride=(24, 24),
    mlp_dim=64,
    n_cls=11,
    d_decoder=32,
    dec_heads=2,
    dec_mlp_dim=64,
)
"""With the classes of CamVid, for labelled scenes."""
