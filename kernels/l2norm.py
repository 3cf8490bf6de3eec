"""l2norm: I-LayerNorm without the mean (SPEC 4.12)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._fast import Fast, Work
from ._jit import kernel
from ._tile import highest
from .layernorm import isqrt
from .linear import requantize_one

Array = NDArray[Any]


@kernel("void(int16[:, ::1], int64, int64, int64, int8[:, ::1], int64, int64)")
def l2norm(x: Array, mult: int, shift: int, high: int, out: Array, start: int, stop: int) -> None:
    """Rows start to stop - 1: x int16 [M, D], high the largest result, out int8 [M, D]."""
    for i in range(start, stop):
        squares = np.int64(0)
        for j in range(x.shape[1]):
            squares += np.int64(x[i, j]) * np.int64(x[i, j])
        f = np.int64(2**31 - 1) // max(isqrt(squares), np.int64(1))
        for j in range(x.shape[1]):
            out[i, j] = requantize_one((np.int64(x[i, j]) * f) >> 1, mult, shift, -high - 1, high)


def l2norm_op(x: Array, *, mult: int, shift: int, out: str = "int8") -> Array:
    """`intseg.ops.l2norm`."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    result = np.empty(rows.shape, np.int8)
    l2norm(rows, mult, shift, highest(out), result, 0, rows.shape[0])
    return result.reshape(x.shape)


def _work(params: Any, attrs: Any) -> Work:
    scale = attrs["mult"], attrs["shift"], highest(attrs.get("out", "int8"))
    return Work(lambda x, out: lambda start, stop, scratch: l2norm(x[0], *scale, out, start, stop))


OPS = {"l2norm": Fast(l2norm_op, _work)}
