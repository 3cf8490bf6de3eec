"""exp_weights (SPEC 4.21)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder
from intseg.ops import Array, Call, Value
from intseg.ops.exp_weights import DITHER, ONE

from ._draw import Draw, Drawn, call, size, softmax_inputs
from ._exam import Branch, Exam, Extremes, Mistake, Operands, equal_rows, shapes_of
from ._real import Float

_BRANCHES = (
    *equal_rows(),
    Branch("t-zero", "the row maximum: 255", lambda f: f["t"] == 0),
    Branch("t-between", "a distance inside the table", lambda f: (f["t"] > 0) & (f["t"] < 255)),
    Branch("t-last", "the table's last entry", lambda f: f["t"] == 255),
    Branch("t-beyond", "beyond the table", lambda f: f["t"] > 255),
    Branch("dither-up", "the dither makes the weight one larger", lambda f: f["dithered"] >> 7 > f["power"] >> 7),
    Branch("dither-down", "cut off in spite of the dither",
           lambda f: (f["power"] % 128 > 0) & (f["dithered"] >> 7 == f["power"] >> 7)),
    Branch("vanishes", "a power above zero, a weight of zero", lambda f: (f["power"] > 0) & (f["result"] == 0)),
    Branch("long", "more elements than the dither has", lambda f: f["in0"].shape[-1] > 8),
    Branch("batch", "more than one batch entry", lambda f: np.prod(f["in0"].shape[:-2]) > 1),
)  # fmt: skip


def _nearest(_: Any, m: Recorder) -> Any:
    return m.kept["power"].astype(np.int64) + 64


def _in_order(_: Any, m: Recorder) -> Any:
    power = m.kept["power"].astype(np.int64)
    return power + np.resize(np.sort(DITHER), power.shape[-1])


def _wrapping(t: Any, _: Recorder) -> Any:
    return t % 256


def _even(t: Any, _: Recorder) -> Any:
    return np.minimum(t, 255) & ~1


def _falling(step: int) -> Array:
    """A table of a power of two every `step` entries, in stairs."""
    return np.array([ONE >> t // step for t in range(256)], np.int16)


def _inputs(numbers: Draw) -> Iterator[Call]:
    falling, every = _falling(11), numbers.array("int16", 256, low=0, high=ONE)
    every[0] = ONE
    for table in (falling, every, np.full(256, ONE, np.int16)):
        for x in softmax_inputs(numbers, "int16"):
            yield call("exp_weights", x, table=np.broadcast_to(table, (*x.shape[:-2], 256)).copy())
        yield call("exp_weights", -np.arange(300, dtype=np.int16)[None], table=table)
    yield call("exp_weights", numbers.array("int16", 2, 2, 9, low=-300, high=0), table=np.stack([falling, every]))


def _draw(d: Draw, x: Value | None = None) -> Drawn:
    """Usual tables fall, odd ones are any."""
    x = x or Value("int16", (*(2, 3)[: d.within(0, 2)], size(d), size(d)))
    batch = x.shape[:-2]
    table = np.stack([_falling(d.within(5, 21)) for _ in range(int(np.prod(batch)))]).reshape(*batch, 256)
    if d.odd():
        table = d.array("int16", *batch, 256, low=0, high=ONE)
        table[..., 0] = ONE
    return Drawn((x,), {"table": table})


def _real(x: Float, *, table: Array) -> Float:
    """Straight lines between the entries: of an exponential of 10 steps an octave or more within 0.06 %."""
    t = x.max(axis=-1, keepdims=True) - x
    flat, tables = t.reshape(-1, *t.shape[-2:]), table.reshape(-1, 256)
    rows = [np.interp(part, np.arange(256), own / 2**7) for part, own in zip(flat, tables, strict=True)]
    return np.stack(rows).reshape(x.shape).astype(x.dtype)


def _worst(at: Extremes) -> list[Operands]:
    """Rows of the interval through every table."""
    rows = shapes_of(at.inputs[0], at.inputs[0].shape[-1], np.int16)
    tables = at.params["table"].reshape(-1, 256)
    return [([np.stack([rows] * len(tables))], {"table": tables})]


EXAMS = (
    Exam(
        "exp_weights",
        digest="24d34c74b1caeb6718c75be0f32a823030555fdfecc2ab78eb7dd41fbf96f646",
        kind="softmax",
        approximates="table for exponentials",
        mistakes=(
            Mistake("nearest", "weights rounded to nearest instead of dithered", {"dithered": _nearest}),
            Mistake("dither_in_order", "the dither's steps in rising order", {"dithered": _in_order}),
            Mistake("table_wraps", "distances beyond the table's end wrap to its beginning", {"t": _wrapping}),
            Mistake("table_half", "a table of every second entry (its address without the lowest bit)", {"t": _even}),
        ),
        branches=_BRANCHES,
        inputs=_inputs,
        draw=_draw,
        real=_real,
        worst=_worst,
    ),
)
