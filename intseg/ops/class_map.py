"""From scores on the patch grid to classes of pixels: upsample_nearest, upsample_bilinear, argmax (SPEC 4.18-20)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import MAX_DIM, Array, Attr, Op, Value, int_attr, require, require_rank

_FACTOR = range(1, 65)


def upsample_nearest(m: Machine, x: Any, *, factor: int) -> Any:
    """Every cell becomes factor x factor pixels: src = floor(dst / factor).

    x       any integer dtype [h, w, ...]
    return  dtype of x        [h * factor, w * factor, ...]
    """
    return m.repeat(m.repeat(x, factor, 0), factor, 1)


def upsample_bilinear(m: Machine, x: Any, *, factor: int, row_start: int, row_stop: int) -> Any:
    """Bilinear interpolation in the geometry of PyTorch's align_corners=False, times (2 factor)^2: exact, no rounding.

    x          int16 or int32 [h, w, C]
    factor     in [1, 64]
    row_start, row_stop   output rows to compute, 0 <= row_start < row_stop <= h * factor
    return     int64 [row_stop - row_start, w * factor, C]   |result| <= max|x| * (2 factor)^2 <= 2^31 * 2^14
    """
    rows = m.way("rows", m.interpolate(m.widen(x), 0, factor, row_start, row_stop, "tap"))
    return m.interpolate(rows, 1, factor, 0, x.shape[1] * factor, "column_tap")


def argmax(m: Machine, x: Any) -> Any:
    """Class of the largest score, the lowest class on a tie.

    x       any integer dtype [..., C], C <= 65536
    return  uint8 [...] for C <= 256, uint16 above
    """
    return m.argmax(x)


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
OPS = {
    "upsample_nearest": Op(
        18,
        upsample_nearest,
        (("uint8", "uint16", "int16", "int32"),),
        check_nearest,
        attrs={"factor": _FACTOR},
        moves=True,
    ),
    "upsample_bilinear": Op(
        19,
        upsample_bilinear,
        (("int16", "int32"),),
        check_bilinear,
        attrs={"factor": _FACTOR, "row_start": _ROWS, "row_stop": _ROWS},
    ),
    "argmax": Op(20, argmax, (("int16", "int32", "int64"),), check_argmax),
}
