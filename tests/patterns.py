"""Labelled pictures for tests that need some: coarse blocks of classes, each in its colour, with noise."""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = 12
"""Of CamVid: eleven and void, which is the last."""


def pattern(seed: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """uint8 [height, width, 3] and its labels uint8 [height, width], the same for the same seed."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, CLASSES, (-(-height // 8), -(-width // 8)), np.uint8)
    labels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    colours = np.random.default_rng(0).integers(30, 226, (CLASSES, 3))
    rgb = colours[labels] + rng.integers(-30, 30, (height, width, 3))
    return rgb.astype(np.uint8), labels


def write_set(root: Path, split: str, seeds: Iterable[int], height: int, width: int, labels: str = "{}annot") -> None:
    """Patterns as a labelled set in CamVid's layout, or with another name for the folder of labels."""
    for place in (root / split, root / labels.format(split)):
        place.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for place, array in zip((split, labels.format(split)), pattern(seed, height, width), strict=True):
            Image.fromarray(array).save(root / place / f"{seed}.png")


def png_of(width: int, height: int, bits: int, colour_type: int, rows: Iterable[bytes]) -> bytes:
    """A PNG of depths that Pillow does not write, from the bytes of its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
