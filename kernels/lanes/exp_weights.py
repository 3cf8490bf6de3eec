"""exp_weights: a sum in 16 bits, or its low part in 8."""

from collections.abc import Mapping, Sequence
from typing import Any


def lanes(m: Any, inputs: Sequence[Any], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Entries and dither in 16-bit lanes; where a byte permute exists, seven bits of an entry and the dither in 8."""
    m.lane("dithered", "dithered_lane", m.kept["dithered"], "int16")
    m.lane("dithered", "rest", (0, 127 + 120), "uint8")
