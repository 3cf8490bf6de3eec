"""upsample_nearest, upsample_bilinear, argmax (SPEC 4.18-20)."""

from __future__ import annotations

from typing import Any

from intseg.arith.recorder import Recorder

from ._exam import Branch, Exam, Mistake, dtypes

_NEAREST = (
    *dtypes("uint8", "uint16", "int16", "int32"),
    Branch("same", "factor = 1", lambda f: f["factor"] == 1),
    Branch("larger", "factor > 1", lambda f: f["factor"] > 1),
    Branch("channels", "more than two axes", lambda f: f["in0"].ndim > 2),
)

_BILINEAR = (
    *dtypes("int16", "int32"),
    Branch("same", "factor = 1", lambda f: f["factor"] == 1),
    Branch("largest", "factor = 64", lambda f: f["factor"] == 64),
    Branch("odd-factor", "an odd factor above 1", lambda f: f["factor"] > 1 == f["factor"] % 2),
    Branch("even-factor", "an even factor", lambda f: f["factor"] % 2 == 0),
    Branch("later-rows", "row_start > 0", lambda f: f["row_start"] > 0),
    Branch("part", "not all rows", lambda f: f["row_stop"] - f["row_start"] < f["in0"].shape[0] * f["factor"]),
)


def _ties(x: Any) -> Any:
    return (x == x.max(axis=-1, keepdims=True)).sum(axis=-1)


ARGMAX = (
    Branch("tie", "a tie: the lowest class", lambda f: _ties(f["in0"]) > 1),
    Branch("clear", "no tie", lambda f: _ties(f["in0"]) == 1),
    Branch("first", "class 0", lambda f: f["in0"].argmax(axis=-1) == 0),
    Branch("last", "the last class", lambda f: f["in0"].argmax(axis=-1) == max(f["in0"].shape[-1] - 1, 1)),
    Branch("negative", "all scores negative", lambda f: (f["in0"] < 0).all(axis=-1)),
    Branch("classes-256", "256 classes: uint8", lambda f: f["in0"].shape[-1] == 256),
    Branch("classes-above", "more than 256 classes: uint16", lambda f: f["in0"].shape[-1] > 256),
)
"""Of every choice of the largest score."""


def _last_tie(found: Any, m: Recorder) -> Any:
    x = m.call.inputs[0]
    return (x.shape[-1] - 1 - x[..., ::-1].argmax(axis=-1)).astype(found.dtype)


EXAMS = (
    Exam("upsample_nearest", "4.18", branches=_NEAREST),
    Exam("upsample_bilinear", "4.19", branches=_BILINEAR),
    Exam(
        "argmax",
        "4.20",
        branches=(*ARGMAX, *dtypes("int16", "int32", "int64")),
        mistakes=(Mistake("last_tie", "the highest index on a tie", {"result": _last_tie}),),
    ),
)
