"""softmax2 (SPEC 4.8)."""

from __future__ import annotations

from typing import Any

from intseg.arith.recorder import Recorder

from ._exam import Branch, Exam, Facts, Mistake, choices, row_extremes, softmax_rows


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


EXAMS = (
    Exam(
        "softmax2",
        "4.8",
        branches=_BRANCHES,
        mistakes=(
            Mistake("one_32768", "exponential starts at 32768 instead of 32767", {"i_b": _one_more}),
            Mistake("exp_floor", "exponential shifted without rounding"),
        ),
        worst=row_extremes,
    ),
)
