"""add (SPEC 4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder
from intseg.arith.variant import Variant
from intseg.ops import Call

from ._exam import Branch, Exam, Extremes, Mistake, Operands, equals


def _clamped(x: Any, _: Recorder) -> Any:
    return np.clip(x, -(2**15), 2**15 - 1)


def _rounded_once(_: Any, m: Recorder) -> Any:
    shifts = m.call.attrs["shift_a"], m.call.attrs["shift_b"]
    products = m.kept["product_a"], m.kept["product_b"]
    aligned = sum(x << (max(shifts) - shift) for x, shift in zip(products, shifts, strict=True))
    return m.rsr(aligned, max(shifts))


def _swapped(call: Call) -> Iterator[tuple[str, Variant]]:
    a, b = ({n: call.attrs[f"{n}_{branch}"] for n in ("mult", "shift")} for branch in "ab")
    swapped = tuple((f"{n}_{branch}", side[n]) for branch, side in (("a", b), ("b", a)) for n in ("mult", "shift"))
    yield "scales of the two branches swapped", Variant(attrs=swapped)


def _branches() -> Iterator[Branch]:
    for side in "ab":
        yield Branch(f"{side}-mult-zero", "mult = 0", equals(f"mult_{side}", 0))
        yield Branch(f"{side}-shift-one", "shift = 1", equals(f"shift_{side}", 1))
        yield Branch(f"{side}-shift-62", "shift = 62", equals(f"shift_{side}", 62))
    yield Branch(
        "wide-branch",
        "a branch beyond INT16, the sum inside: no clamp between",
        lambda f: (np.abs(f["branch_a"]) > 2**15) & (f["sum"] < 2**15) & (f["sum"] >= -(2**15)),
    )


def _worst(at: Extremes) -> list[Operands]:
    """All four pairs of ends."""
    a, b = ([[x.low], [x.high]] for x in at.inputs)
    pairs = [(i, j) for i in range(2) for j in range(2)]
    return [([np.array([side[p[n]] for p in pairs], np.int16) for n, side in enumerate((a, b))], {})]


EXAMS = (
    Exam(
        "add",
        "4.4",
        branches=tuple(_branches()),
        mistakes=(
            Mistake("clamp_branches", "branches clamped before the sum", {"branch_a": _clamped, "branch_b": _clamped}),
            Mistake("round_once", "rounded once after the sum instead of each branch", {"sum": _rounded_once}),
        ),
        own=_swapped,
        worst=_worst,
    ),
)
