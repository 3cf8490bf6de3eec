"""add: 32 bits of a sum."""

from collections.abc import Mapping, Sequence
from typing import Any


def lanes(m: Any, inputs: Sequence[Any], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Kernels keep the low 32 bits of branches and sum."""
    m.lane("sum", "lane_sum", m.kept["sum"], "int32")
