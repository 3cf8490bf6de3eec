"""Narrowing: the ranges of the dtypes and the saturation of a result (SPEC 2.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, Facts
from .interval import Interval
from .sums import wrap
from .variant import Named, Variant

INT_RANGE = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


NARROW = {f"int{bits}": bits for bits in range(4, 8)}
"""Types of an activation of fewer bits than INT8, which holds it."""


def held(kind: str) -> str:
    """The dtype that holds values of a type: INT8 for the narrow ones."""
    return "int8" if kind in NARROW else kind


def limits(kind: str) -> tuple[int, int]:
    """The range of a dtype or of a narrow type."""
    if kind in NARROW:
        return -(2 ** (NARROW[kind] - 1)), 2 ** (NARROW[kind] - 1) - 1
    return INT_RANGE[kind]


def saturate(x: Any, kind: str) -> NDArray[np.signedinteger]:
    """Clamp to the range of `kind` and convert to the dtype that holds it (SPEC 2.2)."""
    narrow: NDArray[np.signedinteger] = np.clip(x, *limits(kind)).astype(held(kind))
    return narrow


def bound_saturate(x: Interval, kind: str) -> Interval:
    """Both ends clamped; a row that only loses by it keeps its sum."""
    low, high = limits(kind)
    return Interval(min(max(x.lowest, low), high), min(max(x.highest, low), high), x.row_sum, shape=x.shape)


def wrong_saturate(v: Variant, x: Any, kind: str) -> NDArray[Any]:
    """The result in its dtype as the variant has it."""
    low, high = limits(held(kind) if v.overflow == "whole" else kind)
    if v.overflow == "wrap":
        return wrap(np.asarray(x), NARROW.get(kind, 64)).astype(held(kind))
    if v.overflow == "none":
        return np.asarray(x)
    if v.overflow == "size":
        x = np.abs(x)
    low = {"symmetric": -high, "relu": 0}.get(v.overflow, low)
    high = 2 * high + 1 if v.overflow == "unsigned" else high
    narrow: NDArray[Any] = np.clip(x, low, high).astype(held(kind))
    return narrow


def facts_of_saturate(x: Any, kind: str) -> Facts:
    """The value and the limits."""
    low, high = limits(kind)
    return {"x": x, "low": low, "high": high}


SATURATE = (
    Case("saturates-high", "2.2", "above the highest value",
         lambda f: f["x"] > f["high"], lambda f: f["x"].highest > f["high"]),
    Case("saturates-low", "2.2", "below the lowest value",
         lambda f: f["x"] < f["low"], lambda f: f["x"].lowest < f["low"]),
    Case("highest", "2.2", "the highest value, not saturated",
         lambda f: f["x"] == f["high"], lambda f: f["x"].highest >= f["high"]),
    Case("lowest", "2.2", "the lowest value, not saturated",
         lambda f: f["x"] == f["low"], lambda f: f["x"].lowest <= f["low"]),
)  # fmt: skip


def overflows(kind: str) -> Named:
    """A result that does not fit."""
    if kind in NARROW:
        yield f"saturated at the 8 bits of INT8 instead of {NARROW[kind]}", Variant(overflow="whole")
    yield "the result wraps instead of saturating", Variant(overflow="wrap")
    yield "the result is clamped to a symmetric range (lowest value never used)", Variant(overflow="symmetric")
    yield "no saturation: the result is kept wider", Variant(overflow="none")
    yield "the result is clamped to the upper end of the type without sign, then wraps", Variant(overflow="unsigned")
    yield "negative results are clamped to zero (a fused ReLU)", Variant(overflow="relu")
    yield "negative results lose their sign", Variant(overflow="size")
