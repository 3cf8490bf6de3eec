"""Images at another size, a pass along each axis (SPEC 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import kernel

Array = NDArray[Any]

_BITS = 22


@kernel("void(uint8[:, :, ::1], int64[::1], int64[::1], int32[:, ::1], uint8[:, :, ::1], int64, int64)")
def resize_columns(rgb: Array, first: Array, count: Array, weight: Array, result: Array, start: int, stop: int) -> None:
    """Rows start to stop - 1 of rgb [H, W, 3] to result [H, width, 3]; weights as of `intseg.resize.Weights`."""
    for y in range(start, stop):
        for x in range(result.shape[1]):
            red = green = blue = np.int32(1 << _BITS - 1)
            for i in range(count[x]):
                w, at = weight[x, i], first[x] + i
                red += w * np.int32(rgb[y, at, 0])
                green += w * np.int32(rgb[y, at, 1])
                blue += w * np.int32(rgb[y, at, 2])
            result[y, x, 0] = min(red >> _BITS, 255)
            result[y, x, 1] = min(green >> _BITS, 255)
            result[y, x, 2] = min(blue >> _BITS, 255)


@kernel("void(uint8[:, ::1], int64[::1], int64[::1], int32[:, ::1], uint8[:, ::1], int32[::1], int64, int64)")
def resize_rows(
    rgb: Array, first: Array, count: Array, weight: Array, result: Array, total: Array, start: int, stop: int
) -> None:
    """Rows start to stop - 1 of result [height, 3 W] from rgb [H, 3 W]; total int32 [3 W] is scratch."""
    for y in range(start, stop):
        total[:] = 1 << _BITS - 1
        for i in range(count[y]):
            w, row = weight[y, i], rgb[first[y] + i]
            for x in range(total.shape[0]):
                total[x] += w * np.int32(row[x])
        for x in range(total.shape[0]):
            result[y, x] = min(total[x] >> _BITS, 255)
