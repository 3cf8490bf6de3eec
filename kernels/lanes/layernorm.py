"""layernorm: moments in one pass."""

from collections.abc import Mapping, Sequence
from typing import Any


def lanes(m: Any, inputs: Sequence[Any], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Kernels sum squares, pairs of them in 32 bits without sign, correct by the mean, and keep y f in 32 bits."""
    (x,) = inputs
    total, count, square = m.kept["row_sum"], x.shape[-1], max(x.low * x.low, x.high * x.high)
    m.lane("row_sum", "partial", total.hull(0), "int32")
    m.lane("centered", "pair", (0, 2 * square), "uint32")
    m.lane("centered", "squares", (0, count * square), "int64")
    cross = 2 * m.kept["mean"].size * total.size
    m.lane("centered", "moments", (-cross, count * square + cross), "int64")
    most = 2**31 - 1  # as the register of 64 bits: |y| <= isqrt(V)
    m.lane("scaled", "scaled_lane", (-most, most), "int32")
