"""shiftmax: exponentials in 16 bits."""

from collections.abc import Mapping, Sequence
from typing import Any


def lanes(m: Any, inputs: Sequence[Any], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """As the fused attention keeps them in place of the logits."""
    m.lane("exponential", "power", m.kept["exponential"], "uint16")
