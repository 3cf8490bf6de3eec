"""linear: INT8 GEMM, INT32 accumulation, bias, requantization per output channel (SPEC 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intseg.arith import Machine, held

from ._op import (
    MULT,
    OUT,
    SHIFT,
    Array,
    Attr,
    Op,
    Value,
    require,
    require_accumulator,
    require_rank,
    require_shape,
    require_within,
)


def linear(m: Machine, x: Any, *, weight: Any, bias: Any, mult: Any, shift: Any, out: str) -> Any:
    """out[m, n] = saturate(RSR((sum_k x[m, k] weight[n, k] + bias[n]) * mult[n], shift[n])).

    x       int8  [M, K]
    weight  int8  [N, K]
    bias    int32 [N]      128 * sum_k |weight[n, k]| + |bias[n]| < 2^31, checked when the graph is loaded
    mult    int32 [N]      in [0, 2^31)
    shift   int8  [N]      in [1, 62]; real scale = mult * 2^-shift
    return  `out` [M, N]   int16, or int8 in the range of its bits
    """
    dot = m.keep("dot", m.dot(x, weight), 32)
    acc = m.keep("acc", m.accumulate(dot + m.widen(bias)), 32)
    return m.requantize(acc, mult, shift, out)


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 2)
    rows, depth = inputs[0].shape
    weight, bias = params["weight"], params["bias"]
    require(weight.ndim == 2, f"weight has shape {list(weight.shape)}, expected [N, {depth}]")
    width = weight.shape[0]
    require_shape("weight", weight, (width, depth))
    for name in ("bias", "mult", "shift"):
        require_shape(name, params[name], (width,))
    require_within("mult", params["mult"], MULT)
    require_within("shift", params["shift"], SHIFT)
    bound = 128 * np.abs(weight.astype(np.int16)).sum(axis=1, dtype=np.int64) + np.abs(bias.astype(np.int64))
    require_accumulator(int(bound.max(initial=0)))
    return Value(held(str(attrs["out"])), (rows, width))


OPS = {
    "linear": Op(
        3,
        linear,
        (("int8",),),
        check,
        params={"weight": "int8", "bias": "int32", "mult": "int32", "shift": "int8"},
        attrs={"out": OUT},
        multiplies=True,
    ),
}
