"""Integer division by a reciprocal (paper eq. 13; SPEC 2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .cases import Case, above
from .interval import Interval
from .shifting import bit_length, shift_left
from .variant import Named, Variant

if TYPE_CHECKING:
    from .machine import Machine

RECIPROCAL_BITS = {"paper": 31, "normalized": 16}


def int_div(m: Machine, n: Any, d: Any, k_out: int, kind: str, bits: int = 0, less: int = 1) -> Any:
    """n / d in steps of 2^-(k_out - 1), for 0 <= n <= d.

    n      int64  n < 2^46
    d      int64  zero counts as one
    k_out  8 or 16
    kind   "paper": floor((2^31-1) / d) * n >> (32 - k_out), as printed
           "normalized": d is shifted into [2^30, 2^31) first, so the reciprocal keeps 16 significant bits, and
           the result is rounded
    bits   of the reciprocal, 0 for those; it is taken of a power of two, `less` this
    """
    d = m.at_least(d, 1)
    bits = bits or RECIPROCAL_BITS[kind]
    if kind == "paper":
        reciprocal = m.keep("reciprocal", (2**bits - less) // d, 64)
        scaled = m.keep("scaled", m.claim(reciprocal * n, high=2**31 - 1, why="n <= d"), 64)
        quotient = m.floor_shift(scaled, bits + 1 - k_out)
    else:
        length, wide = m.leading(d)
        reciprocal = m.keep("reciprocal", (2 ** (30 + bits) - less) // wide, 64)
        scaled = m.keep("scaled", n * reciprocal, 64)
        quotient = m.rsr(scaled, length + (bits - k_out), "scaled_rounding", "div")
        quotient = m.claim(quotient, high=2 ** (k_out - 1), why="n <= d")
    m.cases(QUOTIENT, f"{kind}-{k_out}", n=n, quotient=quotient, full=2 ** (k_out - 1))
    m.cases(DIVISOR[kind], kind, d=d)
    return quotient


def leading(d: Any) -> tuple[Any, Any]:
    """The length of d and d shifted so that its highest bit is bit 30."""
    length = bit_length(d)
    return length, shift_left(d, 31 - length)


def bound_leading(d: Interval) -> tuple[Interval, Interval]:
    """Whatever d is, it is shifted into [2^30, 2^31)."""
    length = Interval(d.lowest.bit_length(), d.highest.bit_length(), shape=d.shape)
    return length, Interval(2**30, 2**31 - 1, shape=d.shape)


def wrong_int_div(m: Machine, v: Variant, n: Any, d: Any, k_out: int, kind: str) -> Any:
    """The quotient as the variant has it: another reciprocal, 8 bits where 16 are wanted."""
    bits = v.k_out or k_out
    quotient = int_div(m, n, d, bits, kind, v.reciprocal_bits, 0 if v.reciprocal_power else 1)
    if bits < k_out:
        quotient = np.minimum(quotient, 2 ** (bits - 1) - 1) << (k_out - bits if v.k_out_scaled else 0)
    return quotient


QUOTIENT = (
    Case("zero", "2.7", "n > 0, the quotient is 0", lambda f: (f["n"] > 0) & (f["quotient"] == 0),
         lambda f: f["quotient"].lowest <= 0),
    Case("between", "2.7", "a quotient between", lambda f: (f["quotient"] > 0) & (f["quotient"] < f["full"])),
    Case("full", "2.7", "the quotient is 2^(k_out-1)", lambda f: f["quotient"] == f["full"],
         lambda f: f["quotient"].highest >= f["full"]),
)  # fmt: skip

DIVISOR = {
    "paper": (
        Case("divisor-32-bits", "2.7", "d >= 2^31: the reciprocal is 0",
             lambda f: f["d"] >= 2**31, above("d", 2**31 - 1)),
    ),
    "normalized": (
        Case("divisor-32-bits", "2.7", "d >= 2^31: d shifted right", lambda f: f["d"] >= 2**31, above("d", 2**31 - 1)),
        Case("divisor-31-bits", "2.7", "2^30 <= d < 2^31: d not shifted",
             lambda f: (f["d"] >= 2**30) & (f["d"] < 2**31), above("d", 2**30 - 1)),
        Case("divisor-power-of-two", "2.7", "d a power of two, the reciprocal's largest value",
             lambda f: f["d"] & (f["d"] - 1) == 0),
        Case("divisor-one", "2.6", "a divisor of one bit", lambda f: f["d"] == 1, lambda f: f["d"].lowest <= 1),
    ),
}  # fmt: skip


def reciprocals(word: str) -> Named:
    """Reciprocals of other widths, quotients of 8 bits.

    word  what the quotients are
    """
    for bits in (31, 32, 16, 15, 17, 30, 24, 33):
        for power in (False, True):
            numerator = "2^n" if power else "2^n - 1"
            yield f"{bits}-bit reciprocal ({numerator})", Variant(reciprocal_bits=bits, reciprocal_power=power)
    yield "reciprocal of 2^n instead of 2^n - 1", Variant(reciprocal_power=True)
    yield f"8-bit {word}, brought to the scale of the node", Variant(k_out=8)
    yield f"8-bit {word}, not brought to the scale of the node", Variant(k_out=8, k_out_scaled=False)


def quotient_shifts() -> Named:
    """The quotient's shift alone."""
    yield "quotient shifted without rounding", Variant(quirk="div_floor")
