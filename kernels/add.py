"""add: residual addition (SPEC 4.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import kernel

Array = NDArray[Any]


@kernel("void(int16[:, ::1], int16[:, ::1], int64, int64, int64, int64, int16[:, ::1], int64, int64)")
def add(
    a: Array, b: Array, mult_a: int, shift_a: int, mult_b: int, shift_b: int, out: Array, start: int, stop: int
) -> None:
    """Rows start to stop - 1 of int16 [M, D]; `out` may be a or b."""
    width = a.shape[1]
    one = np.int64(2**30)
    if mult_a == one and shift_a == 30 and mult_b == one and shift_b == 30:  # the identity: a saturating addition
        for i in range(start, stop):
            for j in range(width):
                total = np.int32(a[i, j]) + np.int32(b[i, j])
                out[i, j] = min(max(np.int32(total), np.int32(-32768)), np.int32(32767))
        return
    half_a, half_b = np.int64(1) << (shift_a - 1), np.int64(1) << (shift_b - 1)
    for i in range(start, stop):
        for j in range(width):
            left = (np.int64(a[i, j]) * mult_a + half_a) >> shift_a
            right = (np.int64(b[i, j]) * mult_b + half_b) >> shift_b
            out[i, j] = min(max(left + right, np.int64(-32768)), np.int64(32767))


def add_op(a: Array, b: Array, *, mult_a: int, shift_a: int, mult_b: int, shift_b: int) -> Array:
    """`intseg.ops.add`."""
    width = a.shape[-1]
    rows_a, rows_b = (np.ascontiguousarray(v).reshape(-1, width) for v in (a, b))
    out = np.empty_like(rows_a)
    add(rows_a, rows_b, mult_a, shift_a, mult_b, shift_b, out, 0, rows_a.shape[0])
    return out.reshape(a.shape)
