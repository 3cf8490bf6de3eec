"""add (SPEC 4.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder
from intseg.arith.variant import Variant
from intseg.ops import Attr, Call, Value

from ._draw import Draw, Drawn, call, edge_rows, scale, size
from ._exam import Branch, Exam, Extremes, Mistake, Operands, equals
from ._real import Float, dyadic


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


def _inputs(numbers: Draw) -> Iterator[Call]:
    scales = ((1, 1), (3, 2), (2**30, 30), (0, 62), (2**31 - 1, 62), (2**15 - 1, 1), (2**31 - 1, 18), (1, 4))
    for i, first in enumerate(scales):
        attrs = _attrs(first, scales[(i * 3 + 1) % len(scales)])
        yield call("add", edge_rows("int16", 6), edge_rows("int16", 6)[::-1].copy(), **attrs)
        yield call("add", numbers.array("int16", 2, 9), numbers.array("int16", 2, 9), **attrs)
    a = np.array([[32767, -32768, 16384, -16384, 16383]], np.int16)
    b = np.array([[-32768, 32767, 0, 0, 0]], np.int16)
    yield call("add", a, b, **_attrs((2**30, 29), (2**30, 29)))
    a, b = np.array([[32766, -32767]], np.int16), np.array([[1, -1]], np.int16)
    yield call("add", a, b, **_attrs((2**30, 30), (2**30, 30)))


def _attrs(a: tuple[int, int], b: tuple[int, int]) -> dict[str, Attr]:
    return {"mult_a": a[0], "shift_a": a[1], "mult_b": b[0], "shift_b": b[1]}


def _draw(d: Draw, a: Value | None = None, b: Value | None = None) -> Drawn:
    """Either branch the identity, a matched scale, or the largest that loading accepts."""
    a = a or Value("int16", (size(d), size(d)))
    sides = []
    for _ in "ab":
        mult, shift = d.pick((2**30, 30), scale(d, 4, d.pick(1, 2, 4, 4, 9)))
        most = min(2 ** (shift + 14), 2**31) - 1
        sides.append((most if d.odd() else min(mult, most), shift))
    return Drawn((a, b or a), {}, _attrs(*sides))


def _real(a: Float, b: Float, *, mult_a: int, shift_a: int, mult_b: int, shift_b: int) -> Float:
    return a * dyadic(mult_a, shift_a, a) + b * dyadic(mult_b, shift_b, a)


def _factors(attrs: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    for i, branch in enumerate("ab"):
        yield f"branch {branch}", math.ldexp(attrs[f"mult_{branch}"], -attrs[f"shift_{branch}"]), i


EXAMS = (
    Exam(
        "add",
        digest="eb1e794c7af45157904201d747c56964165cb9f0ed74319e28df30f8f2ef2005",
        kind="residual add",
        approximates="rounding branches before sums",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        branches=tuple(_branches()),
        mistakes=(
            Mistake("clamp_branches", "branches clamped before the sum", {"branch_a": _clamped, "branch_b": _clamped}),
            Mistake("round_once", "rounded once after the sum instead of each branch", {"sum": _rounded_once}),
        ),
        own=_swapped,
        worst=_worst,
        factors=_factors,
    ),
)
