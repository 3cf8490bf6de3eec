"""Fused attention with weights of a byte: QK^T, requantize, exp_weights, weights times values, one division, by strips.

Both products run at the full INT8 rate. Weights are divided by their sum after the product: once per output element,
not once per key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _heads, _isa
from ._fast import Attention
from ._heads import Scores, copy_columns, value_init
from ._jit import helper
from ._rows import row_max
from ._tile import RAW, address, biased, ceil_div, group_size, has_zmm, quant_bytes, step_size, tile, tile_columns
from .attention import Place, Strip, fused
from .exp_weights import pack_table, plain_weights, row_weights
from .weighted_mean import LEAST_SHIFT, mean_row, reciprocal

Array = NDArray[Any]


def shape(tokens: int, heads: int, head_dim: int) -> _heads.Shape:
    """Sizes: weights have the operand format of the tile."""
    return _heads.Shape(tokens, heads, head_dim, _isa.select().group)


def pack_scores(mult: Array, shift: Array, head_dim: int) -> Scores | None:
    """See `_heads`: padded keys get no weight, whatever their logit."""
    return _heads.pack_scores(mult, shift, head_dim, _isa.select().name == "vnni", False)


def pack_values(mult: Array, shift: Array, head_dim: int) -> NDArray[np.int64] | None:
    """Requantization of the means; None where a shift is below LEAST_SHIFT.

    It cannot be raised: (f mult) >> 31 loses bits that a larger mult would keep, and the definition keeps none of them.

    mult  int32 [heads, 1 or dim];  shift  int8 [heads, 1 or dim]
    """
    if ((shift < LEAST_SHIFT) & (mult > 0)).any():
        return None
    return _heads.pack_values(mult.astype(np.int64), np.maximum(shift, LEAST_SHIFT).astype(np.int64), head_dim)


@helper
def _weigh(
    scratch: Array,
    strip: Strip,
    count: int,
    tokens: int,
    padded: int,
    tables: Array,
    head: int,
) -> None:
    """Weights and their sums of `count` rows of logits, in the operand format of the tile."""
    logits, weights, totals, _, _ = strip
    words, sums = scratch.view(np.int16), scratch.view(np.int64)
    table = tables.view(np.int16)[head]
    for r in range(count):
        row = logits + r * padded * 2
        if has_zmm():
            at, to = address(scratch) + row, weights + r * padded if biased() else row
            top = row_max(at, padded)
            table_at = address(tables) + head * tables.shape[1]
            sums[totals // 8 + r] = row_weights(at, tokens, padded, top, table_at, address(scratch) + to)
            continue
        first = row // 2
        sums[totals // 8 + r] = plain_weights(words, first, tokens, table, 0, words, first)
        for j in range(tokens, padded):
            words[first + j] = 0
        if group_size() != 2:
            for j in range(padded):
                scratch[weights + r * padded + j] = words[first + j] ^ 128


@helper
def _means(
    scratch: Array, strip: Strip, padded: int, values: Array, quant: Array, high: int, out: Array, place: Place
) -> None:
    """`count` rows of one head's weights, in scratch, times its values, divided, to `out`."""
    row, count, head, dim = place
    columns, steps = tile_columns(), ceil_div(out.shape[0], group_size())
    logits, weights, totals, tile_at, starts = strip
    base, sums = address(scratch), scratch.view(np.int64)
    a, stride = (logits, 2 * padded) if group_size() == 2 else (weights, padded)
    for jv in range(ceil_div(dim, columns)):
        panel = address(values) + head * values.shape[1] + jv * steps * columns * step_size()
        panel_quant = address(quant) + head * quant.shape[1] * 8 + jv * columns * quant_bytes()
        init = base + starts + jv * columns * 4
        tile(base + a, stride, count - 1, panel, steps, init, panel_quant, RAW, base + tile_at, 4 * columns)
        first, valid = head * dim + jv * columns, min(columns, dim - jv * columns)
        for r in range(count):
            acc = base + tile_at + r * columns * 4
            factor, more = reciprocal(sums[totals // 8 + r])
            to = address(out) + (row + r) * out.shape[1] + first if valid == columns else acc
            mean_row(acc, panel_quant, factor, more, high, to)
        if valid < columns:
            copy_columns(scratch, tile_at, count, valid, out, row, first)


@helper
def _begin(scratch: Array, strip: Strip, values: Array, head: int, tokens: int, dim: int) -> None:
    """Starts of the accumulators of every panel of a head's values."""
    columns, steps = tile_columns(), ceil_div(tokens, group_size())
    for jv in range(ceil_div(dim, columns)):
        panel = address(values) + head * values.shape[1] + jv * steps * columns * step_size()
        value_init(panel, steps, address(scratch) + strip[4] + jv * columns * 4)


def _table(params: Any, attrs: Any) -> NDArray[np.int8]:
    """int8 [heads, 512]"""
    return pack_table(params["table"])


ATTENTIONS = {
    "exp_weights": Attention(
        "weighted_mean",
        fused(__name__, "int8[:, ::1]", _begin, _weigh, _means),
        shape,
        pack_scores,
        pack_values,
        _table,
    )
}
