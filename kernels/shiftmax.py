"""shiftmax: ShiftExp and IntDiv row by row (SPEC 4.7). An exponential per distinct distance to the maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import helper, kernel
from .softmax2 import bit_length

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled


@helper
def shift_exp(x: int, i0: int, k_inter: int) -> int:
    """2^k_inter i0 e^(x / i0) for x <= 0 with lambda = 1 (SPEC 2.8)."""
    x = max(x + (x >> 1) - (x >> 4), -k_inter * i0)
    q = -x // i0
    r = -x - q * i0
    return (((-r) >> 1) + i0) << (k_inter - q)


@helper
def int_div(n: Int, reciprocal: Int, shift: Int, normalized: Int) -> Int:
    """n / d by its reciprocal; the normalized kind rounds (SPEC 2.7)."""
    half = (np.int64(1) << (shift - np.int64(1))) if normalized else np.int64(0)
    return (n * reciprocal + half) >> shift


@kernel("void(int16[:, ::1], int64, int64, int64, int64, int16[:, ::1], int32[::1], int64, int64)")
def shiftmax(
    x: Array,
    i0: int,
    k_inter: int,
    normalized: int,
    bits: int,
    out: Array,
    powers: Array,
    start: int,
    stop: int,
) -> None:
    """Rows start to stop - 1 of x int16 [M, N] to `out` int16 [M, N]; powers int32 [N] is scratch; bits is 8 or 16."""
    count = x.shape[1]
    one = (np.int64(1) << (bits - 1)) - 1
    for i in range(start, stop):
        top = np.int64(x[i, 0])
        for j in range(count):
            top = max(top, np.int64(x[i, j]))
        total = np.int64(0)
        for j in range(count):
            e = shift_exp(np.int64(x[i, j]) - top, i0, k_inter)
            powers[j] = e
            total += e
        total = max(total, np.int64(1))
        if normalized:
            length = bit_length(total)
            reciprocal, shift = np.int64(2**46 - 1) // (total << (31 - length)), length + 16 - bits
        else:
            reciprocal, shift = np.int64(2**31 - 1) // total, np.int64(32 - bits)
        for j in range(count):
            out[i, j] = min(int_div(np.int64(powers[j]), reciprocal, shift, normalized), one)


def shiftmax_op(x: Array, *, i0: int, k_inter: int, int_div_kind: str, out: str) -> Array:
    """`intseg.ops.shiftmax`."""
    rows = np.ascontiguousarray(x, np.int16).reshape(-1, x.shape[-1])
    result = np.empty_like(rows)
    powers = np.empty(rows.shape[1], np.int32)
    bits = 8 * np.dtype(out).itemsize
    shiftmax(rows, i0, k_inter, int(int_div_kind == "normalized"), bits, result, powers, 0, rows.shape[0])
    return result.reshape(x.shape).astype(out, copy=False)
