"""The rounding shift right (SPEC 2.1): the only rounding there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, Facts, above, below
from .interval import Interval, corners, plus
from .shifting import logical
from .variant import Named, Variant

Int = NDArray[np.int64]


def rsr(x: Int, c: Int | int) -> Int:
    """Rounding shift right: floor((x + 2^(c-1)) / 2^c), round half up (SPEC 2.1).

    x   int64  |x| < 2^62 + 2^61, so that the sum stays inside int64
    c   1 <= c <= 62
    """
    c = np.asarray(c, dtype=np.int64)
    half = np.left_shift(np.int64(1), c - 1)
    return np.right_shift(x + half, c)


def bound_rsr(x: Interval, c: Any) -> tuple[Interval, Interval]:
    """The sum with the rounding constant, which x alone is at the lower end of, and the result."""
    if isinstance(c, Interval):
        total = Interval(x.low, plus(x.high, 1 << c.high - 1), shape=x.shape)
        return total, corners(lambda value, n: value + (1 << n - 1) >> n, x, c)
    if isinstance(c, np.ndarray):
        c = c.astype(np.int64)
        half = np.left_shift(np.int64(1), c - 1)
    else:
        half = 1 << c - 1
    low, high = plus(x.low, half), plus(x.high, half)
    return Interval(x.low, high, shape=x.shape), Interval(low >> c, high >> c, shape=x.shape)


def wrong_rsr(v: Variant, x: Any, c: Any, case: str) -> Int:
    """The rounding shift as the variant has it.

    case  the prefix of its cases: a mistake may concern only one rounding shift of an op
    """
    x = np.ascontiguousarray(x, dtype=np.int64)
    mode = "floor" if case and v.quirk == f"{case}_floor" else v.rounding
    if v.rounding_shift != "arithmetic":
        c = np.clip(np.asarray(c, np.int64), 1, 62)
        return logical(np.asarray(x + (np.int64(1) << (c - 1))), c, int(v.rounding_shift.removeprefix("logical")))
    if v.first_shift:
        c = np.asarray(c, np.int64)
        first = np.clip(v.first_shift if v.first_shift > 0 else c + v.first_shift, 0, np.maximum(c, 0))
        return wrong_round(wrong_round(x, first, v.first_rounding or mode), c - first, mode)
    return wrong_round(x, c, mode)


def wrong_round(x: Int, c: Int | int, mode: str) -> Int:
    """x / 2^c rounded as `mode` says; c <= 0 shifts to the left, c above 62 counts as 62."""
    c = np.minimum(np.asarray(c, dtype=np.int64), 62)
    right = np.maximum(c, 0)
    floor = x >> right
    rest = x - (floor << right)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), np.int64(1))
    result: Int = (floor + _UP[mode](x, floor, rest, half)) << np.maximum(-c, 0)
    return result


_UP: dict[str, Callable[[Int, Int, Int, Int], Any]] = {
    "half_up": lambda x, floor, rest, half: rest >= half,
    "half_even": lambda x, floor, rest, half: (rest > half) | ((rest == half) & (floor & 1 == 1)),
    "half_away": lambda x, floor, rest, half: (rest > half) | ((rest == half) & (x >= 0)),
    "half_down": lambda x, floor, rest, half: rest > half,
    "toward_zero": lambda x, floor, rest, half: (rest != 0) & (x < 0),
    "floor": lambda x, floor, rest, half: rest < 0,
    "ceil": lambda x, floor, rest, half: rest != 0,
}
"""Where the floor is one too small."""


# ---------------------------------------------------------------------------------------------------------- cases


def facts_of_rsr(x: Any, c: Any) -> Facts:
    """What RSR(x, c) drops: its remainder, half a step."""
    count = np.asarray(c, np.int64)
    rest = x - np.left_shift(np.right_shift(x, count), count)
    return {"value": x, "rest": rest, "half": np.left_shift(np.int64(1), count - 1)}


_POSITIVE, _NEGATIVE = above("value", 0), below("value", 0)

RSR = (
    Case("tie-positive", "2.1", "tie of a positive value",
         lambda f: (f["rest"] == f["half"]) & (f["value"] > 0), _POSITIVE),
    Case("down", "2.1", "rounded down", lambda f: (f["rest"] > 0) & (f["rest"] < f["half"])),
    Case("up", "2.1", "rounded up", lambda f: f["rest"] > f["half"]),
    Case("exact", "2.1", "nothing to round, not zero", lambda f: (f["rest"] == 0) & (f["value"] != 0)),
    Case("tie-negative", "2.1", "tie of a negative value: up, towards zero",
         lambda f: (f["rest"] == f["half"]) & (f["value"] < 0), _NEGATIVE),
    Case("down-negative", "2.1", "a negative value rounded down",
         lambda f: (f["rest"] > 0) & (f["rest"] < f["half"]) & (f["value"] < 0), _NEGATIVE),
    Case("up-negative", "2.1", "a negative value rounded up",
         lambda f: (f["rest"] > f["half"]) & (f["value"] < 0), _NEGATIVE),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------- mistakes

_MODES = {
    "half_even": "round half to even",
    "toward_zero": "round toward zero (truncate)",
    "floor": "round down (floor)",
    "half_away": "round half away from zero",
    "half_down": "round half down",
    "ceil": "round up (ceil)",
}


_MIXED = {
    ("half_up", "half_away"): "half up, then half away from zero, as gemmlowp and TFLite do",
    ("half_up", "half_even"): "half up, then half to even, as a vsmul that does not know its rounding mode",
    ("floor", "half_away"): "floor, as a truncating high multiplication does, then half away from zero",
}
"""Two roundings of different kinds: (the first, the second). Floor, then half up, is half up."""


def roundings() -> Named:
    """Another rounding."""
    for mode, name in _MODES.items():
        yield name, Variant(rounding=mode)


def unsigned_roundings() -> Named:
    """The shift of a rounding done without sign."""
    for bits in (64, 32):
        yield f"rounding shift done unsigned (logical, {bits} bits)", Variant(rounding_shift=f"logical{bits}")


def narrow_results() -> Named:
    """The rounded value in a register that is too narrow for it, before it is saturated."""
    for bits in (16, 32, 24, 31):
        yield f"the rounded value wraps at {bits} bits before it is saturated", Variant(rounded_bits=bits)


def double_roundings() -> Named:
    """Two rounding shifts instead of one: the first removes 31 bits (a high multiplication), 16, all but one, ..."""
    firsts = [31, 30, 32, 16, 15, 8, *range(-1, -17, -1), *range(1, 62)]
    for first in dict.fromkeys(firsts):
        bits = f"{first} bits first" if first > 0 else f"all but {-first} bits first"
        yield f"double rounding ({bits}, then the rest)", Variant(first_shift=first)
    for first in (31, 30, 32, 16, 15):
        name = f"double rounding ({first} bits first, then the rest), half away from zero"
        yield name, Variant(first_shift=first, rounding="half_away")
    for ways, name in _MIXED.items():
        yield f"double rounding (31 bits first: {name})", Variant(*ways[1:], first_shift=31, first_rounding=ways[0])
