"""layernorm: I-LayerNorm over the last axis with an exact integer square root (SPEC 4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine, held

from ._op import OUT, SHIFT, Array, Attr, Op, Value, require_shape, require_within


def layernorm(m: Machine, x: Any, *, mult: Any, bias: Any, shift: int, out: str) -> Any:
    """Integer mean and standard deviation, one reciprocal per row, then gamma and beta per channel.

    x       int16 [..., D]
    mult    int32 [D]        gamma_j with sqrt(D), 2^-30 and the output scale folded in; signed, |mult| < 2^31
    bias    int64 [D]        beta_j at the scale of z * mult; |bias| < 2^61
    shift   in [1, 62]
    return  `out` [..., D]   int16, or int8 in the range of its bits

    mean = floor((2 sum + D) / 2D), y = x - mean, V = sum y^2 < 2^48, s = max(1, isqrt(V)),
    f = floor((2^31 - 1) / s), z = (y f) >> 1 with |z| <= 2^30 because |y| <= floor(sqrt(V)) = s,
    out = saturate(RSR(z * mult + bias, shift)). A constant row gives z = 0. gamma = 0 and gamma < 0 are ordinary.
    """
    x = m.widen(x)
    total = m.keep("row_sum", m.row_sum(x), 32)
    mean = m.keep("mean", m.row_mean(total, x.shape[-1]), 32)
    z = m.normalize(m.keep("centered", x - mean, 32), about_mean_of=x)
    product = m.keep("product", m.product(z, mult), 64)
    biased = m.keep("biased", product + m.widen(bias), 64)
    rounded = m.keep("rounded", m.rsr(biased, shift), 64)
    return m.saturate(rounded, out)


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    width = inputs[0].shape[-1]
    require_shape("mult", params["mult"], (width,))
    require_shape("bias", params["bias"], (width,))
    require_within("mult", params["mult"], range(-(2**31) + 1, 2**31))
    require_within("bias", params["bias"], range(-(2**61) + 1, 2**61))
    return Value(held(str(attrs["out"])), inputs[0].shape)


OPS = {
    "layernorm": Op(
        5,
        layernorm,
        (("int16",),),
        check,
        params={"mult": "int32", "bias": "int64"},
        attrs={"shift": SHIFT, "out": OUT},
    ),
}
