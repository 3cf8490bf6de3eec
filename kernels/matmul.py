"""matmul: activation times activation, batch by batch (SPEC 4.6). INT8 operands go through the linear kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import linear as _linear
from ._fast import Fast
from ._jit import kernel
from ._tile import held, highest
from .linear import requantize_one

Array = NDArray[Any]


@kernel(
    "void(int16[:, ::1], int8[:, ::1], int64[::1], int64[::1], int64, int64, int8[:, ::1], int32[::1], int64, int64)"
)
def matmul_words(
    a: Array, b: Array, mult: Array, shift: Array, high: int, size: int, out: Array, acc: Array, start: int, stop: int
) -> None:
    """Rows start to stop - 1: a int16 [M, K] times b int8 [K, N], proved to fit INT32, in plain loops.

    mult, shift  int64 [N];  high  largest result;  out int8 [M, N * size];  acc int32 [N], scratch
    """
    depth, width = b.shape
    for i in range(start, stop):
        for n in range(width):
            acc[n] = 0
        for k in range(depth):
            factor = np.int32(a[i, k])
            if factor != 0:
                for n in range(width):
                    acc[n] += np.int32(factor * np.int32(b[k, n]))
        for n in range(width):
            value = requantize_one(np.int64(acc[n]), mult[n], shift[n], -high - 1, high)
            for byte in range(size):
                out[i, n * size + byte] = np.int8(value >> (8 * byte))


def matmul_op(a: Array, b: Array, *, mult: Array, shift: Array, transpose_b: int, out: str) -> Array:
    """`intseg.ops.matmul`."""
    batch = a.shape[:-2]
    right = b if transpose_b else np.swapaxes(b, -1, -2)  # [..., N, K]
    width = right.shape[-2]
    result = np.empty((*a.shape[:-1], width), held(out))
    scales = [np.broadcast_to(v, (*batch, width)) for v in (mult, shift)]
    for index in np.ndindex(*batch):
        _one(a[index], right[index], scales[0][index], scales[1][index], out, result[index])
    return result


def _one(a: Array, b: Array, mult: Array, shift: Array, kind: str, out: Array) -> None:
    """One batch entry: a [M, K] times b [N, K] transposed, to `out` [M, N] in the range of `kind`."""
    rows, width = out.shape
    a = np.ascontiguousarray(a)
    if a.dtype == np.int8:
        packed = _linear.pack(b, np.zeros(width, np.int32), mult, shift, kind)
        scratch = np.empty(_linear.scratch_bytes(a.shape[1]), np.int8)
        _linear.bind(packed, a, out)(0, rows, scratch)
        return
    m, s = mult.astype(np.int64), shift.astype(np.int64)
    acc = np.empty(width, np.int32)
    matmul_words(a, np.ascontiguousarray(b.T), m, s, highest(kind), out.itemsize, out.view(np.int8), acc, 0, rows)


OPS = {"matmul": Fast(matmul_op)}
