"""softmax2 (SPEC 4.8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder
from intseg.ops import OPS, Array, Attr, Call, Value

from ._draw import Draw, Drawn, call, size, softmax_inputs
from ._exam import Branch, Exam, Facts, Known, Mistake, Unit, choices, row_extremes, softmax_rows
from ._real import Float, softmax


def _slope(f: Facts) -> Any:
    return f["a1"] - ((f["a2"] * f["f"]) >> 15)


_BRANCHES = (
    *softmax_rows(),
    *choices("frac_bits", 0, 15, label="bits"),
    Branch("q-zero", "q = 0: no rounding", lambda f: f["q"] == 0),
    Branch("q-one", "q = 1", lambda f: f["q"] == 1),
    Branch("q-fifteen", "q = 15: the last that can give 1", lambda f: f["q"] == 15),
    Branch("q-sixteen", "q = 16: zero", lambda f: f["q"] == 16),
    Branch("q-beyond", "q > 17: zero", lambda f: f["q"] > 17),
    Branch("line", "a2 = 0: the straight line", lambda f: f["a2"] == 0),
    Branch("slope-floor", "the floor of (a2 f) >> 15 matters", lambda f: f["a2"] * f["f"] % 2**15 != 0),
    Branch("area-floor", "the floor of (f slope) >> 15 matters", lambda f: f["f"] * _slope(f) % 2**15 != 0),
    Branch("f-zero", "f = 0 with q > 0", lambda f: (f["f"] == 0) & (f["q"] > 0)),
)


def _one_more(power: Any, _: Recorder) -> Any:
    return power + 1


def _inputs(numbers: Draw) -> Iterator[Call]:
    for a1, a2 in ((21955, 5571), (16384, 0), (16384, 16383)):
        for frac_bits in (0, 4, 8, 15):
            for x in softmax_inputs(numbers, "int16"):
                yield call("softmax2", x, frac_bits=frac_bits, a1=a1, a2=a2)
    sums = np.array([[0, -15], [0, -1], [0, -14]], np.int16)  # 32768, a power of two; others
    lost = np.array([[0, 0, 0, -15]], np.int16)  # 1 of 98302
    for x in (sums, lost):
        yield call("softmax2", x, frac_bits=0, a1=21955, a2=5571)


def _draw(d: Draw, x: Value | None = None) -> Drawn:
    """Usual coefficients are those of the recipes, odd ones any."""
    a1, a2 = d.pick((16384, 0), (21955, 5571), (21955, 5571), (32767, 0), (32767, 16383), (16384, 16383))
    if d.odd():
        a1, a2 = d.within(2**14, 2**15 - 1), d.within(0, 2**14 - 1)
    return Drawn((x or Value("int16", (size(d), size(d))),), {}, {"frac_bits": d.within(0, 15), "a1": a1, "a2": a2})


def _real(x: Float, *, frac_bits: int, a1: int, a2: int) -> Float:
    return softmax(x * (float(np.log(2)) * 2.0**-frac_bits)) * 2**15


def _exp2(**attrs: Attr) -> dict[str, Array]:
    """e by t = max x - x, for every t until it is zero for good."""
    t = np.arange((16 << int(attrs["frac_bits"])) + 1, dtype=np.int64)
    machine = Recorder()
    OPS["softmax2"].define(machine, -t[None], **attrs)
    found = {"t": machine.kept["t"], "power": machine.kept["i_b"].astype(np.int16)}
    found["e"] = machine.kept["exponential"].astype(np.int16)
    return {name: row[0] for name, row in found.items()}


_TABLES: tuple[Known, ...] = (
    ("exp2", {}, "23ab8d827999e47b08dbd003b7136804b8627b494941aabf2e08efec33f9ece9"),
    ("exp2-line", {"a1": 16384, "a2": 0}, "f3d6da23f19a959664168bef0be32d0f9505c589615c1332f154657497a2489f"),
)

EXAMS = (
    Exam(
        "softmax2",
        digest="a3ed2691a3e6a253e7ab32abef993c72f99238f63cd217ef91159febee65ad16",
        kind="softmax",
        approximates="base-2 softmax for softmax",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        branches=_BRANCHES,
        mistakes=(
            Mistake("one_32768", "exponential starts at 32768 instead of 32767", {"i_b": _one_more}),
            Mistake("exp_floor", "exponential shifted without rounding"),
        ),
        worst=row_extremes,
        units=(Unit("exp2", {"frac_bits": 8, "a1": 21955, "a2": 5571}, _exp2, _TABLES),),
    ),
)
