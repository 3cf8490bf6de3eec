"""softmax2: base-2 softmax over the last axis, no division by i0, a quadratic for 2^-f (SPEC 4.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import Array, Attr, Op, Value
from .shiftmax import ROUNDED_ONE, probability_row_sum


def softmax2(m: Machine, x: Any, *, frac_bits: int, a1: int, a2: int) -> Any:
    """p_j = 2^x_j / sum 2^x in steps of 2^-15, where x counts in steps of 2^-frac_bits.

    x          int16 [..., N]   base-2 logits; the requantization before folds log2 e in
    frac_bits  in [0, 15]
    a1, a2     2^-f ~ 1 - f (a1 - a2 f) on [0, 1), both in steps of 2^-15; a1 - a2 = 2^14 makes it continuous.
               (16384, 0) is the paper's straight line, (21955, 5571) the quadratic within 0.3 % of 2^-f
    return     int16 [..., N]   never negative

    t = max x - x, q = t >> frac_bits, f = (t mod 2^frac_bits) << (15 - frac_bits),
    e = RSR(32767 - ((f * (a1 - ((a2 f) >> 15))) >> 15), q), where RSR(., 0) is the identity; zero from q = 16 on,
    p = IntDiv normalized (e, sum e, 16), saturated.
    """
    x = m.widen(x)
    top = m.keep("row_max", m.row_max(x), 32)
    t = m.keep("t", m.claim(top - x, low=0, why="top is the largest x of the row"), 32)
    q = m.keep("q", t >> frac_bits, 32)
    f = m.keep("f", m.low_bits(t, frac_bits) << (15 - frac_bits), 32)
    power = m.keep("i_b", 32767 - ((f * (a1 - ((a2 * f) >> 15))) >> 15), 32)
    e = m.keep("exponential", m.rsr_or_same(power, q, 17, "e_rounding", "exp"), 32)
    total = m.keep("row_sum", m.row_sum(e, has=32767, why="the largest x has the full power"), 32)
    p = m.keep("quotient", m.int_div(e, total, 16, "normalized", "Shiftmax"), 64)
    return m.sums_to(m.saturate(p, "int16"), probability_row_sum(x.shape[-1], "int16"), ROUNDED_ONE)


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    shape = inputs[0].shape
    return Value("int16", shape, row_sum=probability_row_sum(shape[-1], "int16"))


OPS = {
    "softmax2": Op(
        8,
        softmax2,
        (("int16",),),
        check,
        attrs={"frac_bits": range(16), "a1": range(2**14, 2**15), "a2": range(2**14)},
    ),
}
