"""quantize_input and patchify in one pass (SPEC 4.1, 4.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._fast import Fast
from ._jit import kernel

Array = NDArray[Any]


@kernel("void(uint8[:, :, ::1], int8[:, ::1], int64, int8[:, ::1], int64, int64)")
def patches(image: Array, table: Array, patch: int, out: Array, start: int, stop: int) -> None:
    """Patches start to stop - 1.

    image  uint8 [H, W, C];  table int8 [C, 256];  out int8 [(H / patch) (W / patch), patch * patch * C]
    """
    across, channels = image.shape[1] // patch, image.shape[2]
    for p in range(start, stop):
        top, left = p // across * patch, p % across * patch
        at = 0
        for y in range(patch):
            for x in range(patch):
                for c in range(channels):
                    out[p, at] = table[c, image[top + y, left + x, c]]
                    at += 1


@kernel("void(uint8[:, :, ::1], int8[:, ::1], int8[:, :, ::1])")
def quantize_input(image: Array, table: Array, out: Array) -> None:
    """out[y, x, c] = table[c, image[y, x, c]]."""
    height, width, channels = image.shape
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                out[y, x, c] = table[c, image[y, x, c]]


def quantize_input_op(x: Array, *, table: Array) -> Array:
    """`intseg.ops.quantize_input`."""
    out = np.empty(x.shape, np.int8)
    quantize_input(np.ascontiguousarray(x), np.ascontiguousarray(table), out)
    return out


OPS = {"quantize_input": Fast(quantize_input_op)}
