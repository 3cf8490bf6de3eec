"""concat, slice, split_heads, merge_heads, to_grid (SPEC 4.13 to 4.17)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder
from intseg.ops import RUN, Call, Value

from ._draw import Draw, Drawn, call, size
from ._exam import Branch, Exam, Mistake, choices, dtypes

_DTYPES = "int8", "int16"
_BOTH = tuple(dtypes(*_DTYPES))


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


def _concat(numbers: Draw) -> Iterator[Call]:
    for dtype in _DTYPES:
        yield call("concat", numbers.array(dtype, 1, 5), numbers.array(dtype, 4, 5))


def _slice(numbers: Draw) -> Iterator[Call]:
    for dtype in _DTYPES:
        for start, stop in ((0, 7), (6, 7), (2, 5)):
            yield call("slice", numbers.array(dtype, 7, 3), start=start, stop=stop)


def _split_heads(numbers: Draw) -> Iterator[Call]:
    for dtype in _DTYPES:
        for heads, part, parts in ((1, 0, 1), (2, 0, 3), (2, 1, 3), (3, 2, 3), (4, 1, 2)):
            yield call("split_heads", numbers.array(dtype, 5, heads * parts * 3), heads=heads, part=part, parts=parts)


def _merge_heads(numbers: Draw) -> Iterator[Call]:
    for dtype in _DTYPES:
        for shape in ((1, 4, 3), (3, 5, 2)):
            yield call("merge_heads", numbers.array(dtype, *shape))


def _to_grid(numbers: Draw) -> Iterator[Call]:
    for dtype in _DTYPES:
        for height, width in ((3, 4), (1, 5)):
            yield call("to_grid", numbers.array(dtype, height * width, 3), height=height, width=width)


def _any_concat(d: Draw) -> Drawn:
    dtype, width = d.pick(*_DTYPES), size(d)
    return Drawn((Value(dtype, (size(d), width)), Value(dtype, (size(d), width))))


def _any_slice(d: Draw) -> Drawn:
    rows = size(d)
    start = d.within(0, rows - 1)
    attrs = {"start": start, "stop": d.within(start + 1, rows)}
    return Drawn((Value(d.pick(*_DTYPES), (rows, size(d))),), {}, attrs)


def _any_split_heads(d: Draw) -> Drawn:
    heads, parts = size(d), d.within(1, 3)
    x = Value(d.pick(*_DTYPES), (size(d), parts * heads * size(d)))
    return Drawn((x,), {}, {"heads": heads, "part": d.within(0, parts - 1), "parts": parts})


def _any_merge_heads(d: Draw) -> Drawn:
    return Drawn((Value(d.pick(*_DTYPES), (size(d), size(d), size(d))),))


def _any_to_grid(d: Draw) -> Drawn:
    height, width = size(d), size(d)
    return Drawn((Value(d.pick(*_DTYPES), (height * width, size(d))),), {}, {"height": height, "width": width})


EXAMS = (
    Exam(
        "concat",
        digest="368564d96b6b5a1fb0caca9c51d7c44b3f59f0282eacf9fa9a6c01dbb243113a",
        inputs=_concat,
        draw=_any_concat,
        real=RUN["concat"],
        branches=(*_BOTH, Branch("unequal", "different lengths", lambda f: f["in0"].shape[0] != f["in1"].shape[0])),
        mistakes=(Mistake("swapped", "inputs concatenated in the other order", {"result": _swapped}),),
    ),
    Exam(
        "slice",
        digest="6f2b61e72663bdf9a42ebf1814b1f60cfc6cd770c8d0ee7f46514eb6f0f3a671",
        inputs=_slice,
        draw=_any_slice,
        real=RUN["slice"],
        branches=(*_BOTH, *_SLICE),
    ),
    Exam(
        "split_heads",
        digest="597bc68dbd376ca5fa80a57433254b14a6a7fc20a8286c056ec24e5800bc8cc5",
        inputs=_split_heads,
        draw=_any_split_heads,
        real=RUN["split_heads"],
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
                "interleaved",
                "columns in the order (element, head) instead of (head, element)",
                {"result": _interleaved},
            ),
        ),
    ),
    Exam(
        "merge_heads",
        digest="e4bae2d5e77c78b1b93fcb402005304fdda688c247f7058e384a1f31cd380cfc",
        inputs=_merge_heads,
        draw=_any_merge_heads,
        real=RUN["merge_heads"],
        branches=(*_BOTH, Branch("heads", "several heads", lambda f: f["in0"].shape[0] > 1)),
        mistakes=(Mistake("merge_by_reshape", "heads merged without transposition", {"result": _untransposed}),),
    ),
    Exam(
        "to_grid",
        digest="143803f6fffde400fffcc50f97d62eddd66e8805751c26101c31f5c3622c7ea6",
        inputs=_to_grid,
        draw=_any_to_grid,
        real=RUN["to_grid"],
        branches=(*_BOTH, Branch("oblong", "height and width differ", lambda f: 1 < f["height"] != f["width"] > 1)),
    ),
)
