"""Means, sums of squares, exact square roots and rows of length one (SPEC 2.5, 4.5, 4.12)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, below
from .interval import Interval
from .variant import Named, Variant

if TYPE_CHECKING:
    from .machine import Machine

Int = NDArray[np.int64]


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


def bound_isqrt(v: Interval) -> Interval:
    """It rises with v."""
    return Interval(math.isqrt(max(v.lowest, 0)), math.isqrt(v.highest), shape=v.shape)


def wrong_isqrt(v: Variant, x: Int) -> Int:
    """The square root as the variant takes it."""
    x = np.maximum(x, 0)
    root = isqrt(x) if v.root != "newton10" else _newton(x)
    if v.root == "ceil":
        root = root + (root * root < x)
    elif v.root == "nearest":
        root = root + (x - root * root > root)
    return root


def _newton(x: Int) -> Int:
    root = np.full_like(x, 2**16)
    for _ in range(10):
        root = (root + x // np.maximum(root, 1)) >> 1
    return root


def rounded_mean(total: Any, count: int) -> Any:
    """total / count, rounded half up: floor((2 total + count) / (2 count))."""
    return (2 * total + count) // (2 * count)


def wrong_mean(v: Variant, total: Int, count: int) -> Int:
    """total / count rounded as the variant says."""
    floor, rest = total // count, total % count
    up = {
        "half_up": 2 * rest >= count,
        "floor": rest < 0,
        "toward_zero": (rest != 0) & (total < 0),
        "half_even": (2 * rest > count) | ((2 * rest == count) & (floor & 1 == 1)),
    }[v.row_mean]
    return np.zeros_like(total) if v.quirk == "no_mean" else floor + up


def wrong_variance(x: Int, centered: Int) -> Int:
    """sum x^2 - D mean^2: that of E[x^2] - E[x]^2 for a mean that was rounded."""
    mean = (x - centered)[..., :1]
    squares: Int = (x * x).sum(axis=-1, keepdims=True)
    variance: Int = np.maximum(squares - x.shape[-1] * mean * mean, 0)
    return variance


def bound_squares(x: Interval, about_mean_of: Interval | None) -> Interval:
    """The sum of a row's squares. About the mean it is largest where half of the row is at either end.

    Then every element is (h - l) / 2 from the middle, and sum (x - c)^2 is least at the mean; rounding the mean adds
    1/4 an element at most.
    """
    count = x.shape[-1]
    most = count * max(x.low * x.low, x.high * x.high)
    if about_mean_of is not None:
        most = min(most, count * ((about_mean_of.high - about_mean_of.low) ** 2 + 1) // 4)
    return Interval(0, most, shape=(*x.shape[:-1], 1))


def normalize(m: Machine, y: Any, about_mean_of: Any = None, bits: int = 31, less: int = 1) -> Any:
    """z = (y f) >> 1 with f = floor((2^31 - 1) / S), S = max(1, isqrt(sum y^2)): rows of length 2^30.

    about_mean_of  what y is without its mean, if it is
    bits, less     f is taken of 2^bits - less
    """
    v = m.keep("variance", m.squares(y, about_mean_of), 64)
    root = m.keep("isqrt", m.at_least(m.isqrt(v), 1), 32)
    f = m.keep("reciprocal", (2**bits - less) // root, 32)
    scaled = m.claim(y * f, low=-(2**31) + 1, high=2**31 - 1, why="|y| <= isqrt(V), since y^2 is a term of V")
    m.way("scaled", scaled)
    m.cases(ROOT, v=v, root=root, scaled=scaled)
    return m.keep("normalized", m.floor_shift(scaled, bits - 30), 32)


ROOT = (
    Case("root-zero", "2.5", "a sum of squares of 0: the root counts as 1", lambda f: f["v"] == 0),
    Case("root-exact", "2.5", "a perfect square", lambda f: (f["v"] > 0) & (f["root"] ** 2 == f["v"])),
    Case("root-below", "2.5", "one below a perfect square",
         lambda f: (f["v"] > 0) & ((f["root"] + 1) ** 2 == f["v"] + 1)),
    Case("root-between", "2.5", "between perfect squares",
         lambda f: (f["root"] ** 2 < f["v"]) & (f["v"] + 1 < (f["root"] + 1) ** 2)),
    Case("z-floor-negative", "4.5", "a negative odd product: the floor of (y f) >> 1",
         lambda f: (f["scaled"] < 0) & (f["scaled"] % 2 == 1), below("scaled", 0)),
)  # fmt: skip


def roots() -> Named:
    """Reciprocals of other widths, roots that are not exact."""
    for bits in (32, 30, 33, 24, 16):
        yield f"{bits}-bit reciprocal (2^n - 1)", Variant(reciprocal_bits=bits)
        yield f"{bits}-bit reciprocal (2^n)", Variant(reciprocal_bits=bits, reciprocal_power=True)
    yield "31-bit reciprocal of 2^31 instead of 2^31 - 1", Variant(reciprocal_power=True)
    yield "square root rounded up", Variant(root="ceil")
    yield "square root rounded to nearest", Variant(root="nearest")
    yield "square root by ten Newton steps", Variant(root="newton10")
    yield _OTHER_AXIS


_OTHER_AXIS = ("maximum, mean and sums over the other axis instead of the row", Variant(quirk="other_axis"))


def maxima() -> Named:
    """Maxima of something else than the row."""
    yield "maximum of the whole tensor instead of the row", Variant(quirk="global_max")
    yield _OTHER_AXIS


def means() -> Named:
    """Means rounded otherwise, or not taken."""
    yield "mean rounded down", Variant(row_mean="floor")
    yield "mean rounded toward zero", Variant(row_mean="toward_zero")
    yield "mean rounded half to even", Variant(row_mean="half_even")
    yield "mean not subtracted", Variant(quirk="no_mean")
    yield "variance as sum x^2 - D mean^2, of the rounded mean", Variant(quirk="one_pass")
