"""concat, slice, split_heads, merge_heads, to_grid (SPEC 4.13 to 4.17)."""

from __future__ import annotations

from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder

from ._exam import Branch, Exam, Mistake, choices, dtypes

_BOTH = tuple(dtypes("int8", "int16"))


def _swapped(_: Any, m: Recorder) -> Any:
    return np.concatenate([m.call.inputs[1], m.call.inputs[0]], axis=0)


def _heads_first(_: Any, m: Recorder) -> Any:
    x, attrs = m.call.inputs[0], m.call.attrs
    return x.reshape(len(x), attrs["heads"], attrs["parts"], -1)[:, :, attrs["part"]].transpose(1, 0, 2)


def _interleaved(_: Any, m: Recorder) -> Any:
    x, attrs = m.call.inputs[0], m.call.attrs
    return x.reshape(len(x), attrs["parts"], -1, attrs["heads"])[:, attrs["part"]].transpose(2, 0, 1)


def _untransposed(found: Any, m: Recorder) -> Any:
    return np.ascontiguousarray(m.call.inputs[0]).reshape(found.shape)


_SLICE = (
    Branch("from-start", "start = 0", lambda f: f["start"] == 0),
    Branch("later", "start > 0", lambda f: f["start"] > 0),
    Branch("to-end", "stop = M", lambda f: f["stop"] == f["in0"].shape[0]),
    Branch("earlier", "stop < M", lambda f: f["stop"] < f["in0"].shape[0]),
)

EXAMS = (
    Exam(
        "concat",
        "4.13",
        branches=(*_BOTH, Branch("unequal", "different lengths", lambda f: f["in0"].shape[0] != f["in1"].shape[0])),
        mistakes=(Mistake("swapped", "inputs concatenated in the other order", {"result": _swapped}),),
    ),
    Exam("slice", "4.14", branches=(*_BOTH, *_SLICE)),
    Exam(
        "split_heads",
        "4.15",
        branches=(
            *_BOTH,
            *choices("parts", 1, 2, 3),
            *choices("part", 0, 1, 2),
            Branch("heads", "several heads", lambda f: f["heads"] > 1),
        ),
        mistakes=(
            Mistake(
                "heads_first", "columns in the order (head, part) instead of (part, head)", {"result": _heads_first}
            ),
            Mistake(
                "interleaved", "columns in the order (element, head) instead of (head, element)",
                {"result": _interleaved},
            ),
        ),
    ),
    Exam(
        "merge_heads",
        "4.16",
        branches=(*_BOTH, Branch("heads", "several heads", lambda f: f["in0"].shape[0] > 1)),
        mistakes=(Mistake("merge_by_reshape", "heads merged without transposition", {"result": _untransposed}),),
    ),
    Exam(
        "to_grid",
        "4.17",
        branches=(*_BOTH, Branch("oblong", "height and width differ", lambda f: 1 < f["height"] != f["width"] > 1)),
    ),
)  # fmt: skip
