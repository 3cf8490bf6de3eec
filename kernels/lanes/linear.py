"""linear: partial sums in any order."""

from collections.abc import Mapping, Sequence
from typing import Any


def lanes(m: Any, inputs: Sequence[Any], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """A term that is not added yet counts as x = 0, or as x = -128 where a kernel starts at bias - 128 sum w."""
    (x,) = inputs
    m.lane("acc", "partial", m.dot(x.hull(0, -128), params["weight"]) + m.widen(params["bias"]), "int32")
