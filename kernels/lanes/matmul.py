"""matmul: partial sums in any order."""

from collections.abc import Mapping, Sequence
from typing import Any


def lanes(m: Any, inputs: Sequence[Any], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """INT16 probabilities go in as bytes, low and 2^8 times high, neither above the whole; INT8 as in linear."""
    a, b = inputs
    acc = m.kept["acc"]
    if a.row_sum is None or a.high <= 127:
        acc = m.matmul(a.hull(0, -128), b)
    m.lane("acc", "partial", acc.hull(0), "int32")
