"""matmul: activation times activation, requantized per batch or per column (SPEC 4.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine, held

from ._op import MULT, OUT, SHIFT, Array, Attr, Op, Value, require, require_accumulator, require_within


def matmul(m: Machine, a: Any, b: Any, *, mult: Any, shift: Any, transpose_b: int, out: str) -> Any:
    """out = saturate(RSR((a @ b) * mult, shift)); batch axes in front are equal.

    a       int8 or int16 [..., M, K]   int16 only with a proved row sum (softmax) or a short K
    b       int8 [..., K, N], or [..., N, K] when transpose_b is 1
    mult    int32 [..., 1 or N]         in [0, 2^31); one per batch entry, or one per column of it
    shift   int8, shape of mult         in [1, 62]
    return  `out` [..., M, N]           int16, or int8 in the range of its bits
    acc     INT32: 128 * min(K * max|a|, row sum of a) < 2^31, proved when the graph is loaded
    """
    *batch, row, column = range(len(b.shape))
    b = m.transpose(b, *batch, column, row) if transpose_b else b
    acc = m.keep("acc", m.accumulate(m.matmul(a, b)), 32)
    return m.requantize(acc, m.columns(mult), m.columns(shift), out)


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    a, b = inputs
    require(
        len(a.shape) == len(b.shape) >= 2 and a.shape[:-2] == b.shape[:-2],
        f"inputs have shapes {list(a.shape)} and {list(b.shape)}, expected equal batch axes",
    )
    depth_b, width = (b.shape[-1], b.shape[-2]) if attrs["transpose_b"] else (b.shape[-2], b.shape[-1])
    depth = a.shape[-1]
    require(depth == depth_b, f"inner sizes {depth} and {depth_b} differ")
    batch = a.shape[:-2]
    mult, shift = params["mult"], params["shift"]
    require(
        mult.shape in ((*batch, 1), (*batch, width)),
        f"mult has shape {list(mult.shape)}, expected {[*batch, 1]} or {[*batch, width]}",
    )
    require(shift.shape == mult.shape, f"shift has shape {list(shift.shape)}, expected that of mult {list(mult.shape)}")
    require_within("mult", mult, MULT)
    require_within("shift", shift, SHIFT)
    row_sum = depth * (2**7 if a.dtype == "int8" else 2**15)
    require_accumulator(128 * min(row_sum, a.row_sum or row_sum))
    return Value(held(str(attrs["out"])), (*a.shape[:-1], width))


OPS = {
    "matmul": Op(
        6,
        matmul,
        (("int8", "int16"), ("int8",)),
        check,
        params={"mult": "int32", "shift": "int8"},
        attrs={"transpose_b": range(2), "out": OUT},
        multiplies=True,
    ),
}
