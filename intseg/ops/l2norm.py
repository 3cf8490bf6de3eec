"""l2norm: L2 normalisation over the last axis: I-LayerNorm without the mean (SPEC 4.12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import MULT, NARROW, SHIFT, Array, Attr, Op, Value, same_shape


def l2norm(m: Machine, x: Any, *, mult: int, shift: int, out: str = "int8") -> Any:
    """out = saturate(RSR(z * mult, shift)), z = (x f) >> 1, f = floor((2^31 - 1) / max(1, isqrt(sum x^2))).

    x       int16 [..., D]
    mult    in [0, 2^31), shift in [1, 62]   real scale of z is 2^-30
    return  int8  [..., D], in the range of `out`; |z| <= 2^30 because |x| <= isqrt(sum x^2)
    """
    return m.requantize(m.normalize(m.widen(x)), mult, shift, out)


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    return same_shape(inputs, "int8")


OPS = {
    "l2norm": Op(
        12, l2norm, (("int16",),), check, attrs={"mult": MULT, "shift": SHIFT, "out": NARROW}, optional=("out",)
    ),
}
