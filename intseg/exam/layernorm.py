"""layernorm (SPEC 4.5)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from intseg import arith
from intseg.ops import NARROW, Array, Call, Value

from ._draw import Draw, Drawn, call, edge_rows, out_of, size, typical
from ._exam import Branch, Exam, Facts, row_extremes
from ._real import Float, dyadic, unit_rows


def _tie(f: Facts) -> Any:
    """Whether the mean ends in 1/2."""
    count = f["in0"].shape[-1]
    return (2 * f["row_sum"].astype(np.int64) + count) % (2 * count) == 0 if count % 2 == 0 else np.False_


_BRANCHES = (
    Branch("mean-tie", "the mean ends in 1/2: up", _tie),
    Branch("mean-tie-negative", "a negative mean ends in 1/2: up, towards zero",
           lambda f: _tie(f) & (f["row_sum"] < 0)),
    Branch("mean-negative", "a negative mean, rounded",
           lambda f: (f["row_sum"] < 0) & (f["row_sum"] % f["in0"].shape[-1] != 0)),
    Branch("gamma-zero", "mult = 0: beta alone", lambda f: f["mult"] == 0),
    Branch("gamma-negative", "mult < 0", lambda f: f["mult"] < 0),
    Branch("gamma-largest", "|mult| = 2^31 - 1", lambda f: np.abs(f["mult"].astype(np.int64)) == 2**31 - 1),
    Branch("beta-wide", "|bias| beyond 32 bits", lambda f: np.abs(f["bias"]) >= 2**31),
    Branch("beta-largest", "|bias| = 2^61 - 1", lambda f: np.abs(f["bias"]) == 2**61 - 1),
    Branch("beta-negative", "bias < 0", lambda f: f["bias"] < 0),
    Branch("row-single", "a row of one element", lambda f: f["in0"].shape[-1] == 1),
    Branch("variance-wide", "a sum of squares beyond 32 bits", lambda f: f["variance"] >= 2**32),
    Branch("shift-one", "shift = 1", lambda f: f["shift"] == 1),
    Branch("shift-62", "shift = 62", lambda f: f["shift"] == 62),
)  # fmt: skip


def _inputs(numbers: Draw) -> Iterator[Call]:
    for out in ("int8", "int16", *NARROW):
        for shift in (1, 24, 53, 62):
            mult = np.array([0, 1, -1, 2**31 - 1, -(2**31) + 1, 2**24], np.int32)
            bias = np.array([2**61 - 1, 0, -(2**61) + 1, 2**40, -(2**40), 2 ** min(shift - 1, 60)], np.int64)
            yield _call(edge_rows("int16", 6), mult, bias, shift, out)
        yield _call(np.array([[9], [-9]], np.int16), np.array([5], np.int32), np.array([1 << 33], np.int64), 31, out)
        x = np.concatenate([_short_rows(), numbers.array("int16", 3, 4)])
        mult, bias = numbers.array("int32", 4, low=2**20, high=2**21), np.array([3, -3, 0, 1], np.int64) << 42
        yield _call(x, mult, bias, 44, out)
        yield _call(numbers.array("int16", 2, 3, 4, low=-300, high=300), mult, bias, 44, out)
        low, high = arith.limits(out)
        beta = np.array([low, high, low - 1, high + 1, 0, 1, -1, 3, -3], np.int64)
        exact = np.where(np.abs(beta) > 4, beta << 4, beta << 3)
        yield _call(numbers.array("int16", 1, 9), np.zeros(9, np.int32), exact, 4, out)
    yield from _last_bits()


def _call(x: Array, mult: Array, bias: Array, shift: int, out: str) -> Call:
    return call("layernorm", x, mult=mult, bias=bias, shift=shift, out=out)


def _short_rows() -> Array:
    """Rows with sums of squares 0, 4 (exact), 8 (one below 9), 2 ..., means of 1/2 above and below zero."""
    rows = [[0, 0, 0, 0], [1, 1, -1, -1], [2, 0, -2, 0], [1, -1, 0, 0], [3, -3, 1, -1], [0, 0, 1, 1], [-1, -1, 0, 0]]
    return np.array([*rows, [-5, -6, -5, -5], [30000, -30000, 30000, -30000], [2, 2, 2, -6]], np.int16)


def _last_bits() -> Iterator[Call]:
    """Results that are the last bits of z: mult = 2 and bias = -2 z + 2 j at shift 1 give j."""
    for row in ([0, 1], [-1, 0, 0], [3, -5, 7, 100, -2], [1000, -999, 998, -32768, 32767]):
        y = np.array(row, np.int64) - (2 * sum(row) + len(row)) // (2 * len(row))
        z = (y * ((2**31 - 1) // arith.isqrt((y * y).sum()))) >> 1
        bias = 2 * (np.arange(len(row)) - z)
        yield _call(np.array([row], np.int16), np.full(len(row), 2, np.int32), bias, 1, "int16")


def _draw(d: Draw, x: Value | None = None, *, out: str = "") -> Drawn:
    """Gains and offsets that spread the results; now and then those at the ends."""
    x, out = x or Value("int16", (size(d), size(d))), out_of(d, out)
    depth, target = x.shape[-1], typical(out, 8000)
    shift = d.within(1, 62) if d.odd() else d.within(24, 50)
    gain = min(max(target * math.isqrt(depth) * 2**shift >> 30, 1), 2**31 - 1)
    offset = max(min(target << shift, 2**61) // 2 - 1, 1)
    if d.odd():
        gain, offset = d.pick(gain, 1, 2**31 - 1), d.pick(offset, 1, 2**61 - 1)
    mult, bias = d.array("int32", depth, low=-gain, high=gain), d.array("int64", depth, low=-offset, high=offset)
    return Drawn((x,), {"mult": mult, "bias": bias}, {"shift": shift, "out": out})


def _real(x: Float, *, mult: Array, bias: Array, shift: int, out: str) -> Float:
    """z = (x - mean) / |x - mean| in steps of 2^-30, then gamma and beta. No epsilon: the integers have none."""
    z = unit_rows(x - x.mean(axis=-1, keepdims=True))
    return z * dyadic(mult, shift - 30, x) + dyadic(bias, shift, x)


EXAMS = (
    Exam(
        "layernorm",
        digest="5631d293b7227fc0673c808f6a1c13550ad3a6baef7d020ce0a9627bed511e72",
        kind="LayerNorm",
        approximates="integer for exact LayerNorm",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        branches=_BRANCHES,
        worst=row_extremes,
    ),
)
