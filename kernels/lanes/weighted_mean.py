"""weighted_mean: partial sums in any order."""

from collections.abc import Mapping, Sequence
from typing import Any


def lanes(m: Any, inputs: Sequence[Any], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Where bytes must have a sign, of (a - 128) b, from 128 times the sum of b on."""
    most = 2**15 * inputs[0].shape[-1]
    m.lane("acc", "partial", (-most, most), "int32")
