"""The registers that only kernels have, proved with the others: partial sums in any order, lanes of 16 and 32 bits.

A kernel adds in any order, multiplies unsigned bytes (x + 128 in place of x) and pads rows to whole vectors. What it
holds on the way is bounded here from the registers of the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from intseg.arith.bounds import Bounds
from intseg.arith.interval import Interval
from intseg.arith.sums import bound_matmul

PAD = 63
"""Columns that a kernel may add to a row to fill its vectors, at most (kernels/_isa.py)."""

Operands = tuple[Sequence[Interval], Mapping[str, Any], Mapping[str, Any]]
"""Inputs, params, attrs."""


def prove_lanes(m: Bounds, inputs: Sequence[Interval], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Add the lanes of the kernel of an op, if it has one, to its registers. Raises ModelError."""
    if m.op in _LANES:
        _LANES[m.op](m, (inputs, params, attrs))


def _linear(m: Bounds, operands: Operands) -> None:
    """A term that is not added yet counts as x = 0, or as x = -128 where a kernel starts at bias - 128 sum w."""
    (x,), params, _ = operands
    partial = m.dot(x.hull(0, -128), params["weight"]) + m.widen(params["bias"])
    m.lane("acc", "partial", partial, "int32")


def _matmul(m: Bounds, operands: Operands) -> None:
    """As in linear. INT16 probabilities go in as bytes, low and 2^8 times high, neither above the whole."""
    (a, b), _, _ = operands
    acc = m.kept["acc"]
    if a.row_sum is None or a.high <= 127:
        wider = Interval(min(a.low, -128), max(a.high, 0), shape=a.shape)
        acc = bound_matmul(wider, b)
    m.lane("acc", "partial", acc.hull(0), "int32")


def _exp_weights(m: Bounds, _: Operands) -> None:
    """Entries and dither in 16-bit lanes; where a byte permute exists, seven bits of an entry and the dither in 8."""
    m.lane("dithered", "dithered_lane", m.kept["dithered"], "int16")
    m.lane("dithered", "rest", Interval(0, 127 + 120), "uint8")


def _weighted_mean(m: Bounds, operands: Operands) -> None:
    """Partial sums; where bytes must have a sign, of (a - 128) b, from 128 times the sum of b on."""
    (a, _), _, _ = operands
    most = 2**15 * a.shape[-1]
    m.lane("acc", "partial", Interval(-most, most), "int32")


def _add(m: Bounds, _: Operands) -> None:
    """Kernels keep the low 32 bits of branches and sum."""
    m.lane("sum", "lane_sum", m.kept["sum"], "int32")


def _layernorm(m: Bounds, operands: Operands) -> None:
    """Kernels sum squares, pairs of them in 32 bits without sign, and correct by the mean."""
    (x,), _, _ = operands
    total, count, square = m.kept["row_sum"], x.shape[-1], max(x.low * x.low, x.high * x.high)
    m.lane("row_sum", "partial", total.hull(0), "int32")
    m.lane("centered", "pair", Interval(0, 2 * square), "uint32")
    m.lane("centered", "squares", Interval(0, count * square), "int64")
    cross = 2 * m.kept["mean"].size * total.size
    m.lane("centered", "moments", Interval(-cross, count * square + cross), "int64")


def _shiftmax(m: Bounds, _: Operands) -> None:
    m.lane("exponential", "power", m.kept["exponential"], "uint16")


def _softmax2(m: Bounds, operands: Operands) -> None:
    """16-bit lanes with products of 32 bits; rows are padded with the largest exponential."""
    (x,), _, attrs = operands
    f, a1, a2 = m.kept["f"].high, attrs["a1"], attrs["a2"]
    m.lane("t", "t_lane", m.kept["t"], "uint16")
    m.lane("f", "a2_f", Interval(0, a2 * f), "uint32")
    m.lane("f", "slope", Interval(a1 - (a2 * f >> 15), a1), "uint16")
    m.lane("f", "f_slope", Interval(0, f * a1), "uint32")
    m.lane("i_b", "twice", Interval(0, 2 * 32767), "uint16")
    m.lane("row_sum", "padded_sum", Interval(0, (x.shape[-1] + PAD) * 32767), "uint32")


def walk(merged: Interval, factor: int) -> Interval:
    """The kernel of pixel labels walks along a row: 2 f near + (far - near) u + 2 i (far - near).

    u < 2 f, i < f and |near| <= 2 f S, where S is the largest merged score.
    """
    most = 20 * factor**2 * merged.size
    return Interval(-most, most)


_LANES: dict[str, Callable[[Bounds, Operands], None]] = {
    "linear": _linear,
    "matmul": _matmul,
    "exp_weights": _exp_weights,
    "weighted_mean": _weighted_mean,
    "add": _add,
    "layernorm": _layernorm,
    "shiftmax": _shiftmax,
    "softmax2": _softmax2,
}
