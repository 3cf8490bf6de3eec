"""l2norm: I-LayerNorm without the mean (SPEC 4.12)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._fast import Fast, Work
from ._jit import kernel
from .layernorm import isqrt
from .linear import requantize_one

Array = NDArray[Any]


@kernel("void(int16[:, ::1], int64, int64, int8[:, ::1], int64, int64)")
def l2norm(x: Array, mult: int, shift: int, out: Array, start: int, stop: int) -> None:
    """Rows start to stop - 1: x int16 [M, D], out int8 [M, D]."""
    for i in range(start, stop):
        squares = np.int64(0)
        for j in range(x.shape[1]):
            squares += np.int64(x[i, j]) * np.int64(x[i, j])
        f = np.int64(2**31 - 1) // max(isqrt(squares), np.int64(1))
        for j in range(x.shape[1]):
            out[i, j] = requantize_one((np.int64(x[i, j]) * f) >> 1, mult, shift, -128, 127)


def l2norm_op(x: Array, *, mult: int, shift: int) -> Array:
    """`intseg.ops.l2norm`."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty(rows.shape, np.int8)
    l2norm(rows, mult, shift, out, 0, rows.shape[0])
    return out.reshape(x.shape)


def _work(params: Any, attrs: Any) -> Work:
    mult, shift = attrs["mult"], attrs["shift"]
    return Work(lambda x, out: lambda start, stop, scratch: l2norm(x[0], mult, shift, out, start, stop))


OPS = {"l2norm": Fast(l2norm_op, _work)}
