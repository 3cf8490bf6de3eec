"""softmax2: 16-bit lanes with products of 32 bits."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import PAD


def lanes(m: Any, inputs: Sequence[Any], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Rows are padded with the largest exponential."""
    f, a1, a2 = m.kept["f"].high, attrs["a1"], attrs["a2"]
    m.lane("t", "t_lane", m.kept["t"], "uint16")
    m.lane("f", "a2_f", (0, a2 * f), "uint32")
    m.lane("f", "slope", (a1 - (a2 * f >> 15), a1), "uint16")
    m.lane("f", "f_slope", (0, f * a1), "uint32")
    m.lane("i_b", "twice", (0, 2 * 32767), "uint16")
    m.lane("row_sum", "padded_sum", (0, (inputs[0].shape[-1] + PAD) * 32767), "uint32")
