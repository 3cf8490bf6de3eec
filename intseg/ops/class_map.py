"""From scores on the patch grid to classes of pixels: upsample_nearest, upsample_bilinear, argmax (SPEC 4.18-20)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ._op import MAX_DIM, Array, Attr, Op, Value, int_attr, require, require_rank

_FACTOR = range(1, 65)


def upsample_nearest(x: Array, *, factor: int) -> Array:
    """Every cell becomes factor x factor pixels: src = floor(dst / factor).

    x       any integer dtype [h, w, ...]
    return  dtype of x        [h * factor, w * factor, ...]
    """
    return np.repeat(np.repeat(x, factor, axis=0), factor, axis=1)


def _taps(
    start: int, stop: int, size: int, factor: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Lower cell, upper cell, weight of the upper cell in steps of 1 / 2 factor, for outputs start to stop - 1."""
    index: NDArray[np.int64] = np.arange(start, stop, dtype=np.int64)
    position = np.minimum(np.maximum(2 * index + 1 - factor, 0), 2 * factor * (size - 1))
    lower = position // (2 * factor)
    return lower, np.minimum(lower + 1, size - 1), position % (2 * factor)


def upsample_bilinear(x: Array, *, factor: int, row_start: int, row_stop: int) -> Array:
    """Bilinear interpolation in the geometry of PyTorch's align_corners=False, times (2 factor)^2: exact, no rounding.

    x          int16 or int32 [h, w, C]
    factor     in [1, 64]
    row_start, row_stop   output rows to compute, 0 <= row_start < row_stop <= h * factor
    return     int64 [row_stop - row_start, w * factor, C]   |result| <= max|x| * (2 factor)^2 <= 2^31 * 2^14
    """
    height, width, _ = x.shape
    x = x.astype(np.int64)
    above, below, weight = _taps(row_start, row_stop, height, factor)
    w = weight[:, None, None]
    rows = x[above] * (2 * factor - w) + x[below] * w
    left, right, weight = _taps(0, width * factor, width, factor)
    w = weight[None, :, None]
    result: Array = rows[:, left] * (2 * factor - w) + rows[:, right] * w
    return result


def argmax(x: Array) -> Array:
    """Class of the largest score, the lowest class on a tie.

    x       any integer dtype [..., C], C <= 65536
    return  uint8 [...] for C <= 256, uint16 above
    """
    labels: Array = x.argmax(axis=-1).astype(np.uint8 if x.shape[-1] <= 256 else np.uint16)
    return labels


def check_nearest(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require(len(inputs[0].shape) >= 2, f"input has shape {list(inputs[0].shape)}, expected at least 2 axes")
    height, width, *rest = inputs[0].shape
    factor = int_attr(attrs, "factor")
    return Value(inputs[0].dtype, (height * factor, width * factor, *rest))


def check_bilinear(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 3)
    height, width, classes = inputs[0].shape
    factor, start, stop = (int_attr(attrs, name) for name in ("factor", "row_start", "row_stop"))
    require(start < stop <= height * factor, f"rows {start}:{stop} of {height * factor}, expected 0 <= start < stop")
    return Value("int64", (stop - start, width * factor, classes))


def check_argmax(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    classes = inputs[0].shape[-1]
    return Value("uint8" if classes <= 256 else "uint16", inputs[0].shape[:-1])


_ROWS = range(64 * MAX_DIM + 1)
UPSAMPLE_NEAREST = Op(
    upsample_nearest, (("uint8", "uint16", "int16", "int32"),), check_nearest, attrs={"factor": _FACTOR}
)
UPSAMPLE_BILINEAR = Op(
    upsample_bilinear,
    (("int16", "int32"),),
    check_bilinear,
    attrs={"factor": _FACTOR, "row_start": _ROWS, "row_stop": _ROWS},
)
ARGMAX = Op(argmax, (("int16", "int32", "int64"),), check_argmax)
