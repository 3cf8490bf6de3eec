"""shiftmax: softmax over the last axis from ShiftExp and IntDiv (I-ViT; SPEC 4.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import Array, Attr, Op, Value, int_attr, require

_BITS = {"int8": 8, "int16": 16}


def shiftmax(m: Machine, x: Any, *, i0: int, k_inter: int, int_div_kind: str, out: str) -> Any:
    """e = ShiftExp(x - max x) with lambda = 1; p = IntDiv(e, sum e), saturated.

    x       int8 or int16 [..., N]   real logit = x / i0
    i0      in [1, 2^15]
    k_inter i0 * 2^k_inter <= 2^15, so that e fits 16 bits and the row sum of up to 65,535 tokens 32 (numerics D7)
    return  `out` [..., N]           int8 (scale 2^-7) or int16 (scale 2^-15), never negative
    """
    x = m.widen(x)
    top = m.keep("row_max", m.row_max(x), 32)
    e = m.shift_exp(m.claim(x - top, high=0, why="top is the largest x of the row"), i0, k_inter, 1)
    total = m.keep("row_sum", m.row_sum(e, has=i0 << k_inter, why="the largest x has the full power"), 64)
    p = m.keep("quotient", m.int_div(e, total, _BITS[out], int_div_kind, "Shiftmax"), 64)
    return m.sums_to(m.saturate(p, out), probability_row_sum(x.shape[-1], out), ROUNDED_ONE)


ROUNDED_ONE = "unrounded the probabilities sum to at most one, rounding adds at most a half"


def probability_row_sum(count: int, out: str) -> int:
    """Bound on the sum of `count` probabilities."""
    one: int = 2 ** (_BITS[out] - 1)
    return one + (count + 1) // 2


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    i0, k_inter = int_attr(attrs, "i0"), int_attr(attrs, "k_inter")
    require(i0 << k_inter <= 2**15, f"i0 * 2^k_inter is {i0 << k_inter}, expected at most {2**15}")
    shape, out = inputs[0].shape, str(attrs["out"])
    return Value(out, shape, row_sum=probability_row_sum(shape[-1], out))


OPS = {
    "shiftmax": Op(
        7,
        shiftmax,
        (("int8", "int16"),),
        check,
        attrs={
            "i0": range(1, 2**15 + 1),
            "k_inter": range(16),
            "int_div_kind": ("paper", "normalized"),
            "out": ("int8", "int16"),
        },
    ),
}
