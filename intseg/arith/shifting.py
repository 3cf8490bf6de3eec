"""Shifts that floor, shifts to either side, and the length of a number (SPEC 1, 2.4, 2.6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .interval import Interval, corners, interval
from .variant import Named, Variant

Int = NDArray[np.int64]


def shift_left(x: Int, n: Int) -> Int:
    """x * 2^n for n >= 0, floor(x / 2^-n) for n < 0; shift counts below -62 act as -62 (SPEC 2.4)."""
    return np.where(n >= 0, np.left_shift(x, np.maximum(n, 0)), np.right_shift(x, np.minimum(np.maximum(-n, 0), 62)))


def bound_shift_left(x: Interval, n: Any) -> Interval:
    """The extremes are at the ends."""
    return corners(lambda value, count: value << count if count >= 0 else value >> -count, x, interval(n))


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


def wrong_floor_shift(v: Variant, x: Any, n: int) -> Int:
    """x >> n as the variant has it; to the left where n is negative."""
    x, n = x << max(-n, 0), max(n, 0)
    if v.shift == "truncate":
        truncated: Int = np.sign(x) * (np.abs(x) >> n)
        return truncated
    if v.shift.startswith("logical"):
        return logical(np.ascontiguousarray(x, dtype=np.int64), n, int(v.shift.removeprefix("logical")))
    shifted: Int = x >> n
    return shifted


def logical(x: Int, c: Int | int, bits: int) -> Int:
    """The low `bits` bits, shifted right as an unsigned number."""
    unsigned = x.view(np.uint64) if bits == 64 else x.view(np.uint64) & np.uint64((1 << bits) - 1)
    return (unsigned >> np.asarray(c).astype(np.uint64)).astype(np.int64)


def unsigned_shifts() -> Named:
    """Floor shifts of negative numbers done otherwise."""
    for bits in (32, 64, 16):
        name = f"floor shifts of negative numbers done unsigned (logical, {bits} bits)"
        yield name, Variant(shift=f"logical{bits}")
    yield "floor shifts of negative numbers truncate toward zero", Variant(shift="truncate")
