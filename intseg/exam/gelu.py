"""shift_gelu, sigmoid_gelu, gelu_table (SPEC 4.9 to 4.11)."""

from __future__ import annotations

from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder

from ._exam import Branch, Exam, Extremes, Mistake, Operands, equals


def _p_1_625(p: Any, m: Recorder) -> Any:
    return p - m.floor_shift(m.widen(m.call.inputs[0]), 4)


def _unclamped(_: Any, m: Recorder) -> Any:
    return m.widen(m.row_max(m.kept["p"]))


def _unsigned_index(_: Any, m: Recorder) -> Any:
    return m.call.params["table"][m.call.inputs[0].view(np.uint8)]


_BRANCHES = (
    Branch("lam-one", "lam = 1", lambda f: f["lam"] == 1),
    Branch("lam-above", "lam > 1", lambda f: f["lam"] > 1),
    Branch("negative", "x < 0", lambda f: f["in0"] < 0),
    Branch("zero", "x = 0", lambda f: f["in0"] == 0),
    Branch("positive", "x > 0", lambda f: f["in0"] > 0),
    Branch("half-floor", "odd x: the floor of x / 2 in p matters", lambda f: f["in0"] % 2 == 1),
    Branch("eighth-floor", "negative x, the floor of x / 8 in p matters",
           lambda f: (f["in0"] < 0) & (f["in0"] % 8 != 0)),
    Branch("sixteenth-floor", "negative x, the floor of x / 16 in p",
           lambda f: (f["in0"] < 0) & (f["in0"] % 16 != 0)),
)  # fmt: skip

_ROWS = (
    Branch("row-negative", "an all-negative row: top = 0", lambda f: f["p"].max(axis=-1) < 0),
    Branch("row-zero", "the row's largest p is 0", lambda f: f["p"].max(axis=-1) == 0),
    Branch("row-positive", "the row's largest p is above 0", lambda f: f["p"].max(axis=-1) > 0),
    Branch("divisor-zero", "both exponentials vanish: 0 / 1", lambda f: f["divisor"] == 0),
)

_P_1_625 = Mistake("p_1_625", "1.625 x instead of 1.6875 x", {"p": _p_1_625})


def _every(at: Extremes) -> Any:
    (x,) = at.inputs
    return np.arange(x.low, x.high + 1, dtype=np.int8 if x.low >= -128 else np.int16)


def _alone(at: Extremes) -> list[Operands]:
    """Every value."""
    return [([_every(at)[:, None]], {})]


def _pairs(at: Extremes) -> list[Operands]:
    """Every value beside every other, or alone in rows of one element."""
    if at.inputs[0].shape[-1] == 1:
        return _alone(at)
    return [([np.stack(np.meshgrid(_every(at), _every(at)), axis=-1).reshape(-1, 2)], {})]


EXAMS = (
    Exam(
        "shift_gelu",
        "4.9",
        branches=(*_BRANCHES, *_ROWS),
        mistakes=(
            Mistake("top_may_be_negative", "row maximum not clamped to zero", {"row_max": _unclamped}),
            _P_1_625,
        ),
        worst=_pairs,
    ),
    Exam("sigmoid_gelu", "4.10", branches=_BRANCHES, mistakes=(_P_1_625,), worst=_alone),
    Exam(
        "gelu_table",
        "4.11",
        branches=tuple(
            Branch(name, f"x = {value}", equals("in0", value))
            for value, name in ((-128, "lowest"), (0, "zero"), (127, "highest"))
        ),
        mistakes=(
            Mistake("unsigned_index", "table indexed by the bits of x instead of x + 128", {"result": _unsigned_index}),
        ),
    ),
)
