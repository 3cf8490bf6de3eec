"""quantize_input: uint8 pixels to INT8 through one 256-entry table per channel (SPEC 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import Array, Attr, Op, Value, require, require_rank, require_shape


def quantize_input(m: Machine, x: Any, *, table: Any) -> Any:
    """The table holds mean, standard deviation and scale, folded by the exporter.

    x       uint8 [H, W, C]
    table   int8  [C, 256]
    return  int8  [H, W, C]   table[c, x[..., c]]
    """
    return m.lookup(table, x, 0)


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 3)
    require(inputs[0].shape[2] == 3, f"image has {inputs[0].shape[2]} channels, expected 3")
    require_shape("table", params["table"], (3, 256))
    return Value("int8", inputs[0].shape)


OPS = {
    "quantize_input": Op(1, quantize_input, (("uint8",),), check, params={"table": "int8"}),
}
