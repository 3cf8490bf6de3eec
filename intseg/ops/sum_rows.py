"""sum_rows: the logits of a classifier from one row for every head (SPEC 4.23)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import Array, Attr, Op, Value, require_rank


def sum_rows(m: Machine, x: Any) -> Any:
    """The sum of all rows, in INT32.

    x       int8 or int16 [M, C], M <= 65535
    return  int32 [C]        |result| <= 65535 * 2^15 < 2^31
    """
    total = m.keep("sum", m.accumulate(m.row_sum(m.widen(m.transpose(x, 1, 0)))), 32)
    return m.saturate(m.reshape(total, x.shape[1]), "int32")


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 2)
    return Value("int32", (inputs[0].shape[1],))


OPS = {"sum_rows": Op(23, sum_rows, (("int8", "int16"),), check)}
