"""softmax2: base-2 softmax over the last axis, no division by i0, a quadratic for 2^-f (SPEC 4.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ._arith import int_div, rsr, saturate
from ._op import Array, Attr, Op, Value, as_int64
from .shiftmax import probability_row_sum


def softmax2(x: Array, *, frac_bits: int, a1: int, a2: int) -> Array:
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
    x = as_int64(x)
    t = x.max(axis=-1, keepdims=True) - x
    q = t >> frac_bits
    f = (t & (2**frac_bits - 1)) << (15 - frac_bits)
    power = 32767 - ((f * (a1 - ((a2 * f) >> 15))) >> 15)
    e = np.where(q == 0, power, rsr(power, np.clip(q, 1, 17)))
    return saturate(int_div(e, e.sum(axis=-1, keepdims=True), 16, "normalized"), "int16")


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    shape = inputs[0].shape
    return Value("int16", shape, row_sum=probability_row_sum(shape[-1], "int16"))


OP = Op(
    softmax2,
    (("int16",),),
    check,
    attrs={"frac_bits": range(16), "a1": range(2**14, 2**15), "a2": range(2**14)},
)
