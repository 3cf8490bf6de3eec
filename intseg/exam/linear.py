"""linear (SPEC 4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from intseg.arith import limits
from intseg.arith.recorder import Recorder
from intseg.ops import NARROW, Array, Call, Value

from ._draw import SCALES, Draw, Drawn, call, columns, edge_rows, out_of, scales, size, typical
from ._exam import Branch, Exam, Extremes, Mistake, Operands
from ._real import Float, dyadic

_BRANCHES = (
    Branch("bias-only", "the products sum to 0", lambda f: f["dot"] == 0),
    Branch("acc-wide", "an accumulator beyond 24 bits", lambda f: np.abs(f["acc"].astype(np.int64)) >= 2**24),
)


def _bias_after(_: Any, m: Recorder) -> Any:
    p = m.call.params
    dot, bias = (np.asarray(x).astype(np.int64) * p["mult"] for x in (m.kept["dot"], p["bias"]))
    return m.rsr(dot, p["shift"]) + m.rsr(bias, p["shift"])


def _worst(at: Extremes) -> list[Operands]:
    """For the worst channels, every input at the end of its interval that the sign of its weight asks for."""
    (x,) = at.inputs
    channels = sorted(set.union(*(at.channels[name] for name in ("dot", "acc", "product", "rounded"))))
    params = {role: tensor[channels] for role, tensor in at.params.items()}
    up = np.where(params["weight"] > 0, x.high, x.low)
    down = np.where(params["weight"] > 0, x.low, x.high)
    return [([np.concatenate([up, down]).astype(np.int8)], params)]


def _inputs(numbers: Draw) -> Iterator[Call]:
    every, count, scale = np.arange(-128, 128, dtype=np.int8)[:, None], len(SCALES), columns(*SCALES)
    for out in ("int8", "int16", *NARROW):
        free = 2**31 - 1 - 128 * 128 * 12
        bias = np.array([0, 1, -1, 2**20, -(2**20), free, -free, 7, 0], np.int32)
        x = edge_rows("int8", 12)
        yield call("linear", x, weight=x[:count], bias=bias, **scale, out=out)
        weight, none = np.ones((count, 1), np.int8), np.zeros(count, np.int32)
        yield call("linear", every, weight=weight, bias=none, **scale, out=out)
        low, high = limits(out)
        weight, ends = np.zeros((4, 1), np.int8), np.array([low, high, low - 1, high + 1], np.int32)
        yield call("linear", every[:2], weight=weight, bias=ends, **columns(*[(2**30, 30)] * 4), out=out)
        weight, some = numbers.array("int8", 9, 33), numbers.array("int32", 9, low=-5000, high=5000)
        mult, shift = numbers.array("int32", 9, low=2**30), np.full(9, 41, np.int8)
        x = numbers.array("int8", 7, 33)
        yield call("linear", x, weight=weight, bias=some, mult=mult, shift=shift, out=out)


def _draw(d: Draw, x: Value | None = None, *, width: int = 0, out: str = "") -> Drawn:
    """Weights and inputs of about 40; now and then biases up to what the proof of INT32 leaves."""
    x = x or Value("int8", (size(d), size(d)))
    depth, width, out = x.shape[-1], width or size(d), out_of(d, out)
    weight = d.array("int8", width, depth)
    room = 2**31 - 1 - 128 * np.abs(weight.astype(np.int64)).sum(axis=1)
    usual = 40 * 40 * (math.isqrt(depth) + 1)
    reach = int(room.max()) if d.odd() else usual
    bias = np.clip(d.array("int32", width, low=-reach, high=reach), -room, room).astype(np.int32)
    params = {"weight": weight, "bias": bias, **scales(d, (width,), usual, typical(out, 4000))}
    return Drawn((x,), params, {"out": out})


def _real(x: Float, *, weight: Array, bias: Array, mult: Array, shift: Array, out: str) -> Float:
    """(x W^T + b) mult 2^-shift."""
    return (x @ weight.T.astype(x.dtype) + bias.astype(x.dtype)) * dyadic(mult, shift, x)


EXAMS = (
    Exam(
        "linear",
        digest="7adc0f5ddb348e0f9cd77546d4ff9aa6867c795740bd835a7fcff3feaca7a2aa",
        kind="linear",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        branches=_BRANCHES,
        mistakes=(Mistake("bias_after", "bias rounded apart, added after the shift", {"rounded": _bias_after}),),
        worst=_worst,
    ),
)
