"""weighted_mean: means of INT8 rows by UINT8 weights, divided by the sum of the weights at the end (SPEC 4.22)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import MULT, NARROW, Array, Attr, Op, Value, require, require_shape, require_within

MEAN_SHIFT = range(1, 40)
"""The bit length of a sum of weights, at most 24, adds to it: RSR shifts by 62 at most."""


def weighted_mean(m: Machine, a: Any, b: Any, *, mult: Any, shift: Any, out: str = "int8") -> Any:
    """out = saturate((sum_k a b) / (sum_k a) * mult 2^-shift), rounded once; zero for a row of zero weights.

    a       uint8 [..., M, K]
    b       int8 [..., K, N]
    mult    int32 [..., 1 or N]    in [0, 2^31); one per batch entry, or one per column of it
    shift   int8, shape of mult    in [1, 39]
    return  int8 [..., M, N]       in the range of `out`
    acc     INT32: |acc| <= 128 sum a <= 128 * 255 * 65,535 < 2^31

    d = max(1, sum a), L = bit_length(d), f = floor((2^61 - 1) / (d 2^(31 - L))), in [2^30, 2^31),
    c = (f mult) >> 31, out = saturate(RSR(acc c, shift + L - 1)).
    """
    acc = m.keep("acc", m.accumulate(m.matmul(a, b)), 32)
    total = m.keep("row_sum", m.row_sum(m.widen(a)), 32)
    length, wide = m.leading(m.at_least(total, 1))
    reciprocal = m.keep("reciprocal", (2**61 - 1) // wide, 64)
    scale = m.keep("scale", m.product(reciprocal, m.columns(mult)) >> 31, 64)
    product = m.keep("product", m.product(acc, scale), 64)
    count = m.columns(shift) + (length - 1)
    return m.saturate(m.keep("rounded", m.rsr(product, count, case=out), 64), out)


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    a, b = inputs
    require(
        len(a.shape) == len(b.shape) >= 2 and a.shape[:-2] == b.shape[:-2],
        f"inputs have shapes {list(a.shape)} and {list(b.shape)}, expected equal batch axes",
    )
    require(a.shape[-1] == b.shape[-2], f"inner sizes {a.shape[-1]} and {b.shape[-2]} differ")
    batch, width = a.shape[:-2], b.shape[-1]
    mult, shift = params["mult"], params["shift"]
    require(
        mult.shape in ((*batch, 1), (*batch, width)),
        f"mult has shape {list(mult.shape)}, expected {[*batch, 1]} or {[*batch, width]}",
    )
    require_shape("shift", shift, mult.shape)
    require_within("mult", mult, MULT)
    require_within("shift", shift, MEAN_SHIFT)
    return Value("int8", (*a.shape[:-1], width))


OPS = {
    "weighted_mean": Op(
        22,
        weighted_mean,
        (("uint8",), ("int8",)),
        check,
        params={"mult": "int32", "shift": "int8"},
        attrs={"out": NARROW},
        optional=("out",),
        multiplies=True,
    ),
}
