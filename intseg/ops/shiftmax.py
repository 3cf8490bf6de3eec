"""shiftmax: softmax over the last axis from ShiftExp and IntDiv (I-ViT; SPEC 4.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ._arith import int_div, saturate, shift_exp
from ._op import Array, Attr, Op, Value, as_int64, int_attr, require

_BITS = {"int8": 8, "int16": 16}


def shiftmax(x: Array, *, i0: int, k_inter: int, int_div_kind: str, out: str) -> Array:
    """e = ShiftExp(x - max x) with lambda = 1; p = IntDiv(e, sum e), saturated.

    x       int8 or int16 [..., N]   real logit = x / i0
    i0      in [1, 2^15]
    k_inter i0 * 2^k_inter <= 2^15, so that e fits 16 bits and the row sum of up to 65,535 tokens 32 (numerics D7)
    return  `out` [..., N]           int8 (scale 2^-7) or int16 (scale 2^-15), never negative
    """
    x = as_int64(x)
    e = shift_exp(x - x.max(axis=-1, keepdims=True), i0, k_inter, 1)
    return saturate(int_div(e, e.sum(axis=-1, keepdims=True), _BITS[out], int_div_kind), out)


def probability_row_sum(count: int, out: str) -> int:
    """Bound on the sum of `count` probabilities: unrounded they sum to at most one, rounding adds at most a half."""
    one: int = 2 ** (_BITS[out] - 1)
    return one + (count + 1) // 2


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    i0, k_inter = int_attr(attrs, "i0"), int_attr(attrs, "k_inter")
    require(i0 << k_inter <= 2**15, f"i0 * 2^k_inter is {i0 << k_inter}, expected at most {2**15}")
    shape, out = inputs[0].shape, str(attrs["out"])
    return Value(out, shape, row_sum=probability_row_sum(shape[-1], out))


OP = Op(
    shiftmax,
    (("int8", "int16"),),
    check,
    attrs={
        "i0": range(1, 2**15 + 1),
        "k_inter": range(16),
        "int_div_kind": ("paper", "normalized"),
        "out": ("int8", "int16"),
    },
)
