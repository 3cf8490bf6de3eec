"""upsample_nearest, upsample_bilinear, argmax (SPEC 4.18-20)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder
from intseg.ops import RUN, Call, Value

from ._draw import Draw, Drawn, call, edge_rows, size
from ._exam import Branch, Exam, Mistake, dtypes
from ._real import Float, taps

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


def _rounded_index(found: Any, m: Recorder) -> Any:
    """The nearest cell of i / factor, not of the centre of a pixel."""
    x, factor = m.call.inputs[0], m.call.attrs["factor"]
    rows, columns = (np.minimum((2 * np.arange(n * factor) + factor) // (2 * factor), n - 1) for n in x.shape[:2])
    return x[rows][:, columns]


def _interpolated(m: Recorder, place: Callable[[Any, int, int], Any]) -> Any:
    """Bilinear with other places of the pixels; place(i, n, factor) in steps of 1 / 2 factor."""
    x, attrs = m.call.inputs[0].astype(np.int64), m.call.attrs
    factor, start, stop = attrs["factor"], attrs["row_start"], attrs["row_stop"]
    for axis, (first, last) in enumerate(((start, stop), (0, x.shape[1] * factor))):
        count = x.shape[axis]
        position = np.clip(place(np.arange(first, last), count, factor), 0, 2 * factor * (count - 1))
        lower, weight = position // (2 * factor), position % (2 * factor)
        weight = weight.reshape(-1, *(1,) * (2 - axis))
        upper = np.minimum(lower + 1, count - 1)
        x = x.take(lower, axis) * (2 * factor - weight) + x.take(upper, axis) * weight
    return x


def _asymmetric(found: Any, m: Recorder) -> Any:
    return _interpolated(m, lambda i, n, factor: 2 * i)


def _aligned(found: Any, m: Recorder) -> Any:
    return _interpolated(m, lambda i, n, factor: 2 * factor * i * (n - 1) // max(n * factor - 1, 1))


def _nearest(numbers: Draw) -> Iterator[Call]:
    for dtype in ("uint8", "uint16", "int16", "int32"):
        yield call("upsample_nearest", numbers.array(dtype, 2, 3), factor=4)
        yield call("upsample_nearest", numbers.array(dtype, 3, 1, 2), factor=1)


def _bilinear(numbers: Draw) -> Iterator[Call]:
    for dtype in ("int16", "int32"):
        for height, width, factor in ((1, 1, 64), (1, 3, 4), (3, 1, 3), (3, 2, 5), (2, 2, 1)):
            x = numbers.array(dtype, height, width, 2)
            rows = height * factor
            for start, stop in ((0, rows), (rows - 1, rows)):
                yield call("upsample_bilinear", x, factor=factor, row_start=start, row_stop=stop)


def _argmax(numbers: Draw) -> Iterator[Call]:
    for dtype in ("int16", "int32", "int64"):
        yield call("argmax", edge_rows(dtype, 7))
        yield call("argmax", numbers.array(dtype, 3, 19, low=-9, high=-1))
        for classes in (1, 256, 257, 1000):
            yield call("argmax", numbers.array(dtype, 3, classes, low=0, high=60))
        yield call("argmax", numbers.array(dtype, 1, 257, 2, low=0, high=60))


def _any_nearest(d: Draw) -> Drawn:
    shape = (size(d), size(d), size(d))[: d.pick(2, 3)]
    return Drawn((Value(d.pick("uint8", "uint16", "int16", "int32"), shape),), {}, {"factor": d.within(1, 5)})


def _any_bilinear(d: Draw) -> Drawn:
    height, width = size(d), size(d)
    factor = d.pick(1, 2, 3, 4, 64) if height * width == 1 else d.within(1, 4)
    start = d.within(0, height * factor - 1)
    attrs = {"factor": factor, "row_start": start, "row_stop": d.within(start + 1, height * factor)}
    return Drawn((Value(d.pick("int16", "int32"), (height, width, d.within(1, 3))),), {}, attrs)


def _any_argmax(d: Draw) -> Drawn:
    return Drawn((Value(d.pick("int16", "int32", "int64"), (size(d), d.pick(1, 2, 3, 19))),))


def _real_bilinear(x: Float, *, factor: int, row_start: int, row_stop: int) -> Float:
    rows = taps(x.shape[0], factor).astype(x.dtype)[row_start:row_stop]
    columns = taps(x.shape[1], factor).astype(x.dtype)
    result: Float = np.einsum("yi,xj,ijc->yxc", rows, columns, x, optimize=True) * (2 * factor) ** 2
    return result


EXAMS = (
    Exam(
        "upsample_nearest",
        digest="be4f7729d18ccb461c97886b616e58325ec74fd2d1ae3eeb12da8334705a0501",
        inputs=_nearest,
        draw=_any_nearest,
        real=RUN["upsample_nearest"],
        branches=_NEAREST,
        mistakes=(Mistake("rounded_index", "nearest by i / factor, rounded", {"result": _rounded_index}),),
    ),
    Exam(
        "upsample_bilinear",
        digest="fe1643f0be34dcf732905d31cd98d980cf5c1fb49aa2b7fc083b6d835923fdaa",
        inputs=_bilinear,
        draw=_any_bilinear,
        real=_real_bilinear,
        branches=_BILINEAR,
        mistakes=(
            Mistake("asymmetric", "pixels at i / factor, without half a pixel", {"result": _asymmetric}),
            Mistake("aligned", "corners aligned (align_corners = True)", {"result": _aligned}),
        ),
    ),
    Exam(
        "argmax",
        digest="2152cc80a220175a5621abb3ea303d0b1bc354b6b09ea44b6db921b6440300d1",
        inputs=_argmax,
        draw=_any_argmax,
        real=RUN["argmax"],
        branches=(*ARGMAX, *dtypes("int16", "int32", "int64")),
        mistakes=(Mistake("last_tie", "the highest index on a tie", {"result": _last_tie}),),
    ),
)
