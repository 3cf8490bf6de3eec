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
from ._heads import Head, Scores, copy_bytes, head_operands, offsets, queries, score_panel, value_init
from ._jit import helper, inlined, kernel
from ._tile import (
    RAW,
    address,
    biased,
    ceil_div,
    group_size,
    has_zmm,
    load_word,
    quant_bytes,
    step_size,
    tile_bytes,
    tile_columns,
    tile_rows,
    viewed,
)
from ._woven import CHUNK, weave, weaves
from .attention import Strip, signature
from .exp_weights import pack_table, plain_weights, raise_tops, spread_tops, strip_weights
from .weighted_mean import LEAST_SHIFT, mean_row, reciprocal

Array = NDArray[Any]

Done = tuple[int, int, int]
"""A strip whose products are in scratch: address of its output, its rows, where in scratch the sums of weights are."""


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
    weights: int,
    totals: int,
    first: int,
    tokens: int,
    padded: int,
    tables: Array,
    head: int,
) -> None:
    """Weights and their sums of `count` rows of logits, in the operand format of the tile, from key `first` on.

    weights, totals  where in scratch the weights go if they are bytes, and their sums
    """
    logits, base = strip[0], address(scratch)
    if has_zmm():
        at, out, tops = base + logits, base + (weights if biased() else logits), base + strip[2] + 64 * tile_rows()
        table_at = address(tables) + head * tables.shape[1]
        strip_weights(at, padded, first, tokens, tops, table_at, out, base + totals)
        return
    words, sums, table = viewed(scratch, np.int16), viewed(scratch, np.int64), viewed(tables, np.int16)[head]
    for r in range(count):
        at = logits // 2 + r * padded
        sums[totals // 8 + r] = plain_weights(words, at, tokens, table, 0, words, at)
        for j in range(tokens, padded):
            words[at + j] = 0
        if group_size() != 2:
            for j in range(padded):
                scratch[weights + r * padded + j] = words[at + j] ^ 128


@helper
def _products(
    base: int,
    strip: Strip,
    count: int,
    weights: int,
    ahead: int,
    tokens: int,
    padded: int,
    values: int,
    panels: int,
    table: int,
) -> None:
    """`count` rows of one head's weights, in scratch, times its values, to the tiles in scratch.

    ahead   where the weights of the rows go whose logits are in scratch, woven into the first product; or -1
    values  address of the head's packed values, so many panels;  table  address of its `pack_table`
    """
    columns, rows, steps = tile_columns(), tile_rows(), ceil_div(tokens, group_size())
    logits, _, totals, tile_at, starts = strip
    a, stride = (base + logits, 2 * padded) if group_size() == 2 else (base + weights, padded)
    for jv in range(panels):
        panel, to = values + jv * steps * columns * step_size(), base + tile_at + jv * rows * columns * 4
        if ahead >= 0 and jv == 0:
            tops = base + totals + 64 * rows
            weave(a, padded, panel, steps, to, base + logits, tokens // CHUNK, tops, table, base + ahead)
        else:
            init = base + starts + jv * columns * 4
            tile_bytes(a, stride, count - 1, panel, steps, init, init, RAW, to, 4 * columns)


@inlined
def _divide(tiles: int, r: int, total: int, quant: int, high: int, out: int, dim: int) -> None:
    """Row r of the products in scratch divided by the sum of its weights, to address `out`.

    tiles  address of the products;  total  of the sum;  quant  of the head's requantization
    """
    factor, more = reciprocal(load_word(total))
    columns = tile_columns()
    for jv in range(ceil_div(dim, columns)):
        acc, valid = tiles + (jv * tile_rows() + r) * columns * 4, min(columns, dim - jv * columns)
        to = out + jv * columns
        mean_row(acc, quant + jv * columns * quant_bytes(), factor, more, high, to if valid == columns else acc)
        if valid < columns:
            copy_bytes(to, acc, valid)


@helper
def _scores(
    base: int,
    strip: Strip,
    query: tuple[int, int],
    steps: int,
    count: int,
    keys: Head,
    tokens: int,
    padded: int,
    done: Done,
    quant: int,
    high: int,
    width: int,
    dim: int,
) -> None:
    """Logits and maxima of `count` queries; between their panels the divisions of the strip `done`.

    base  address of scratch;  query  of `queries`;  quant  of the head's requantization;  width  of a row of the output
    """
    rows, panels = tile_rows(), padded // tile_columns() if count > 0 else 0
    logits, tops = base + strip[0], base + strip[2] + 64 * rows
    out, divisions, totals = done
    for n in range(max(panels + 1, divisions)):
        if n < panels:
            score_panel(query[0], query[1], steps, count, keys, n, logits, padded, tokens)
        if has_zmm() and 0 < n <= panels:  # a panel late, when its logits have reached the cache
            raise_tops(logits + (n - 1) * 128, 2 * padded, tops, np.int64(n == 1))
        if n < divisions:
            _divide(base + strip[3], n, base + totals + 8 * n, quant, high, out + n * width, dim)
    spread_tops(tops)


@kernel(signature("int8[:, ::1]"))
def attention(
    qkv: Array,
    query_column: int,
    keys: Array,
    init: Array,
    values: Array,
    kinds: Array,
    score_quant: Array,
    value_quant: Array,
    high: int,
    tables: Array,
    out: Array,
    start: int,
    stop: int,
    scratch: Array,
) -> None:
    """See `attention.fused`; `tables` of `pack_table`. What leaves the units of dot products idle stands between them:
    divisions between the panels of the next scores, and lookups of weights in the product of the strip before."""
    heads, padded, rows, tokens = keys.shape[0], init.shape[1], tile_rows(), qkv.shape[0]
    dim, base, width = out.shape[1] // heads, address(scratch), out.shape[1]
    steps, panels, strip = ceil_div(dim, group_size()), ceil_div(dim, tile_columns()), offsets(dim, padded)
    for h in range(heads):
        operands, table = head_operands(keys, init, score_quant, kinds, h), address(tables) + h * tables.shape[1]
        column, value = query_column + h * dim, address(values) + h * values.shape[1]
        quant, to = address(value_quant) + h * value_quant.shape[1] * 8, address(out) + h * dim
        _begin(scratch, strip, values, h, tokens, dim)
        done, known = (to, np.int64(0), strip[2]), np.int64(0)  # a strip of products; rows of the weights before i
        for i in range(start, stop + 2 * rows, rows):
            count, side = min(rows, stop - i), (i - start) // rows & 1
            query = queries(qkv, i, count, column, dim, scratch)
            _scores(base, strip, query, steps, count, operands, tokens, padded, done, quant, high, width, dim)
            weights, totals = strip[1] + side * rows * padded, strip[2] + side * rows * 32
            done, first = (to, np.int64(0), totals), np.int64(0)
            if weaves() and known > 0:
                before, ahead = strip[1] + (1 - side) * rows * padded, weights if count > 0 else np.int64(-1)
                _products(base, strip, known, before, ahead, tokens, padded, value, panels, table)
                done = (to + (i - rows) * width, known, strip[2] + (1 - side) * rows * 32)
                first = tokens // CHUNK * CHUNK
            if count > 0:
                _weigh(scratch, strip, count, weights, totals, first, tokens, padded, tables, h)
                if not weaves():
                    _products(base, strip, count, weights, np.int64(-1), tokens, padded, value, panels, table)
                    done = (to + i * width, count, totals)
            known = count


@helper
def _begin(scratch: Array, strip: Strip, values: Array, head: int, tokens: int, dim: int) -> None:
    """Starts of the accumulators of every panel of a head's values."""
    columns, steps = tile_columns(), ceil_div(tokens, group_size())
    for jv in range(ceil_div(dim, columns)):
        panel = address(values) + head * values.shape[1] + jv * steps * columns * step_size()
        value_init(panel, steps, np.int64(0), address(scratch) + strip[4] + jv * columns * 4)


def _table(params: Any, attrs: Any) -> NDArray[np.int8]:
    """int8 [heads, 512 or 640]"""
    return pack_table(params["table"])


ATTENTIONS = {
    "exp_weights": Attention(
        "weighted_mean",
        attention,
        shape,
        pack_scores,
        pack_values,
        _table,
    )
}
