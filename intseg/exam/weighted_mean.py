"""weighted_mean (SPEC 4.22)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from intseg.arith.recorder import Recorder
from intseg.ops import NARROW, Array, Call, Value
from intseg.ops.weighted_mean import MEAN_SHIFT

from ._draw import Draw, Drawn, call, columns, narrowed, size
from ._exam import Branch, Exam, Extremes, Mistake, Operands
from ._real import Float, dyadic

_BRANCHES = (
    Branch("scale-per-batch", "one scale for all columns", lambda f: f["mult"].shape[-1] < f["result"].shape[-1]),
    Branch("scale-per-column", "a scale per column", lambda f: f["mult"].shape[-1] == f["result"].shape[-1] > 1),
    Branch("batch", "more than one batch entry", lambda f: np.prod(f["in0"].shape[:-2]) > 1),
    Branch("divisor-zero", "a row of zero weights", lambda f: f["row_sum"] == 0),
    Branch("divisor-one", "weights that sum to one", lambda f: f["row_sum"] == 1),
    Branch("divisor-power-of-two", "a sum that is a power of two, the reciprocal's largest value",
           lambda f: (f["row_sum"] & (f["row_sum"] - 1) == 0) & (f["row_sum"] > 1)),
    Branch("weight-high", "a weight of 128 or more", lambda f: f["in0"] >= 128),
    Branch("scale-floor", "the floor of (f mult) >> 31 matters",
           lambda f: f["reciprocal"] * f["mult"][..., None, :].astype(np.int64) % 2**31 != 0),
)  # fmt: skip


def _signed(_: Any, m: Recorder) -> Any:
    return m.matmul(m.call.inputs[0].view(np.int8), m.call.inputs[1]).astype(np.int64)


_SCALES = ((2**30, 30), (2**31 - 1, 31), (2**31 - 1, 1), (1, 39), (0, 5), (2**30 + 3, 29), (3 * 2**28, 29))


def _inputs(numbers: Draw) -> Iterator[Call]:
    b, a = numbers.array("int8", 12, len(_SCALES)), numbers.array("uint8", 11, 12)
    b[:, 2], b[:, 3] = -128, 127
    a[:6] = 0
    a[1, 3], a[2, 4], a[3, :2], a[4], a[5, 5] = 1, 255, (255, 1), 255, 64
    yield call("weighted_mean", a, b, **columns(*_SCALES))
    every = np.arange(-128, 128, dtype=np.int8)[None]  # the scale of weight 1 and mult n + 1 is n: exact, and ties
    scales = ((1, 2**30 + 1, 30), (1, 2**30 + 1, 31), (1, 2**30, 31), (255, 2**30, 29), (128, 2**30, 33))
    for weight, mult, shift in scales:
        yield call("weighted_mean", np.full((1, 1), weight, np.uint8), every, **columns((mult, shift)))
    for out in NARROW:
        yield call("weighted_mean", a, b, **columns(*_SCALES), out=out)
        for weight, mult, shift in scales:
            yield call("weighted_mean", np.full((1, 1), weight, np.uint8), every, **columns((mult, shift)), out=out)
    batched = {"mult": numbers.array("int32", 2, 1, low=2**30), "shift": np.array([[29], [30]], np.int8)}
    yield call("weighted_mean", numbers.array("uint8", 2, 3, 64), numbers.array("int8", 2, 64, 5), **batched)


def _draw(d: Draw, a: Value | None = None, b: Value | None = None, *, columns: int = -1) -> Drawn:
    """Means of about the size of the values, or any.

    columns  whether every column has a scale of its own
    """
    if a is None or b is None:
        batch, depth = (2, 3)[: d.within(0, 2)], size(d)
        a, b = Value("uint8", (*batch, size(d), depth)), Value("int8", (*batch, depth, size(d)))
    width = b.shape[-1] if (d.pick(0, 1) if columns < 0 else columns) else 1
    shape = (*a.shape[:-2], width)
    mult = d.array("int32", *shape, low=0 if d.odd() else 2**30)
    low, high = (MEAN_SHIFT.start, MEAN_SHIFT.stop - 1) if d.odd() else (28, 32)
    return Drawn((a, b), {"mult": mult, "shift": d.array("int8", *shape, low=low, high=high)}, narrowed(d))


def _real(a: Float, b: Float, *, mult: Array, shift: Array, out: str = "int8") -> Float:
    a = a.astype(b.dtype)
    total = a.sum(axis=-1, keepdims=True)
    return (a @ b) / np.where(total > 0, total, 1) * dyadic(mult, shift, b)[..., None, :]


def _worst(at: Extremes) -> list[Operands]:
    """Full and single weights times constant columns, for the channels with the ends."""
    a, b = at.inputs
    depth = a.shape[-1]
    rows = np.array([[a.low] * depth, [a.high] * depth, [a.low] * (depth - 1) + [min(max(a.low, 1), a.high)]], np.uint8)
    right = np.array([[b.low] * depth, [b.high] * depth], np.int8).T
    flat = {role: tensor.reshape(-1) for role, tensor in at.params.items()}
    indices = sorted(set().union(*at.channels.values()) or {0})
    return [([rows, right], {role: x[i : i + 1] for role, x in flat.items()}) for i in indices if i < flat["mult"].size]


EXAMS = (
    Exam(
        "weighted_mean",
        digest="a44d86c7c17191e5ffb5dabf6fabec7b40645a09f664261c090ef9363af1f0eb",
        kind="attention product",
        mistakes=(Mistake("signed_weights", "weights read as signed bytes", {"acc": _signed}),),
        branches=_BRANCHES,
        inputs=_inputs,
        draw=_draw,
        real=_real,
        worst=_worst,
    ),
)
