"""The integer primitives every op is made of (SPEC.md, section 2). Floor shifts, one rounding rule, no float.

All functions take and return int64 arrays (or Python ints) unless stated; callers keep operands inside the
documented ranges, which SPEC.md proves for every op, so int64 never wraps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

INT_RANGE = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


def rsr(x: Int, c: Int | int) -> Int:
    """Rounding shift right: floor((x + 2^(c-1)) / 2^c), round half up (SPEC 2.1).

    x   int64  |x| < 2^62 + 2^61, so that the sum stays inside int64
    c   1 <= c <= 62
    """
    c = np.asarray(c, dtype=np.int64)
    half = np.left_shift(np.int64(1), c - 1)
    return np.right_shift(x + half, c)


def saturate(x: Int, dtype: str) -> NDArray[np.signedinteger]:
    """Clamp to the range of `dtype` and convert to it (SPEC 2.2)."""
    low, high = INT_RANGE[dtype]
    return np.clip(x, low, high).astype(dtype)


def requantize(x: Int, mult: Int | int, shift: Int | int, dtype: str) -> NDArray[np.signedinteger]:
    """saturate(RSR(x * mult, shift)): a dyadic rescaling by mult * 2^-shift (SPEC 2.3).

    x      int64  |x| < 2^31
    mult   0 <= mult < 2^31
    shift  1 <= shift <= 62
    """
    return saturate(rsr(x * np.asarray(mult, dtype=np.int64), shift), dtype)


def shift_left(x: Int, n: Int) -> Int:
    """x * 2^n for n >= 0, floor(x / 2^-n) for n < 0; shift counts below -62 act as -62 (SPEC 2.4)."""
    return np.where(n >= 0, np.left_shift(x, np.maximum(n, 0)), np.right_shift(x, np.minimum(np.maximum(-n, 0), 62)))


def isqrt(v: Int) -> Int:
    """floor(sqrt(v)) exactly, one result bit at a time from the top (SPEC 2.5).

    v   int64  0 <= v < 2^62
    """
    v = np.asarray(v, dtype=np.int64)
    root = np.zeros_like(v)
    for bit in range(30, -1, -1):
        trial = root + (1 << bit)
        root = np.where(trial * trial <= v, trial, root)
    return root


def bit_length(v: Int) -> Int:
    """Number of bits of v: 0 for 0, otherwise floor(log2 v) + 1, as Python's int.bit_length (SPEC 2.6).

    v   int64  v >= 0
    """
    v = np.asarray(v, dtype=np.int64)
    length: Int = np.zeros_like(v)
    for step in (32, 16, 8, 4, 2, 1):
        above = (v >> step) > 0
        length = length + above * step
        v = np.where(above, v >> step, v)
    total: Int = length + v
    return total


def int_div(n: Int, d: Int, k_out: int, kind: str) -> Int:
    """Integer division n / d with result scale 2^-(k_out - 1) (paper eq. 13; SPEC 2.7).

    n      int64  0 <= n <= d, n < 2^46
    d      int64  d >= 0; zero counts as one
    k_out  8 or 16
    kind   "paper": floor((2^31-1) / d) * n >> (32 - k_out), as printed
           "normalized": d is shifted into [2^30, 2^31) first, so the reciprocal keeps 16 significant bits, and
           the result is rounded
    """
    d = np.maximum(d, 1)
    if kind == "paper":
        quotient: Int = ((2**31 - 1) // d) * n >> (32 - k_out)
        return quotient
    length = bit_length(d)
    reciprocal = (2**46 - 1) // shift_left(d, 31 - length)
    return rsr(n * reciprocal, length + 16 - k_out)


def shift_exp(x: Int, i0: int, k_inter: int, lam: int) -> Int:
    """2^k_inter * i0 * e^(x / i0) by shifts and adds, for x <= 0 (paper eq. 9-12; SPEC 2.8).

    x        int64  -2^40 < x <= 0
    i0       1 <= i0 <= 2^15: the integer that stands for 1.0
    k_inter  0 <= k_inter <= 31
    lam      1 <= lam <= 64: the clamp of eq. 11 is -lam * k_inter * i0
    """
    x = x + (x >> 1) - (x >> 4)
    x = np.maximum(x, -lam * k_inter * i0)
    q = -x // i0
    r = -x - q * i0
    return shift_left(((-r) >> 1) + i0, k_inter - q)
