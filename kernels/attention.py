"""Fused attention: QK^T, requantize, weights, weights x V, strip by strip; and the product of INT16 probabilities.

On the vnni path a probability is split in two bytes. The low bytes go through one dense product at the full INT8 rate.
The high byte is non-zero only where p >= 2^8, and a row sums to about 2^15: at most some 130 of its entries. So the
high plane is skipped group by group (4 keys) where it is zero; the result is exact either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from . import _heads, _isa
from ._heads import copy_columns, head_operands, offsets, queries, score_panel
from ._ir import I32, I64, Emit, Value
from ._jit import Kernel, emitted, helper, kernel
from ._tile import (
    INT8,
    QUANT_BYTES,
    RAW,
    address,
    biased,
    ceil_div,
    group_size,
    narrow_int8,
    quant_bytes,
    requantize,
    tile16,
    tile_bytes,
    tile_columns,
    tile_rows,
)
from .linear import raise_shifts

Array = NDArray[Any]
Strip = tuple[int, int, int, int, int]
"""See `_heads.offsets`."""

Place = tuple[int, int, int, int]
"""First row, rows, head, and columns of a head."""


def fused(module: str, kind: str, begin: Any, weigh: Any, multiply: Any) -> Kernel:
    """The kernel of an attention.

    kind      type of its argument `softmax`
    begin     helper (scratch, strip, values, head, tokens, dim): what a head needs once
    weigh     helper (scratch, strip, count, tokens, padded, softmax, head): rows of logits to weights, in scratch
    multiply  helper (scratch, strip, padded, values, quant, high, out, place): weights times values, at most high
    """

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
        softmax: Any,
        out: Array,
        start: int,
        stop: int,
        scratch: Array,
    ) -> None:
        """Rows start to stop - 1, all heads.

        qkv   int8 [T, W];  keys, init, values, kinds, score_quant, value_quant: see `_heads`;  high: largest result
        out   int8 [T, heads * dim];  scratch int8 [Shape.scratch_bytes]
        """
        heads, padded, rows, tokens = keys.shape[0], init.shape[1], tile_rows(), qkv.shape[0]
        dim, base = out.shape[1] // heads, address(scratch)
        steps, strip = ceil_div(dim, group_size()), offsets(dim, padded)
        for h in range(heads):
            head = head_operands(keys, init, score_quant, kinds, h)
            begin(scratch, strip, values, h, tokens, dim)
            column = query_column + h * dim
            for i in range(start, stop, rows):
                count = min(rows, stop - i)
                query, width = queries(qkv, i, count, column, dim, scratch)
                for jp in range(padded // tile_columns()):
                    score_panel(query, width, steps, count, head, jp, base + strip[0], padded, tokens)
                weigh(scratch, strip, count, tokens, padded, softmax, h)
                multiply(scratch, strip, padded, values, value_quant, high, out, (i, count, h, dim))

    attention.__module__ = module
    return kernel(signature(kind))(attention)


def signature(kind: str) -> str:
    """Of the kernel of an attention; `kind` is the type of its argument `softmax`."""
    common = "int8[:, ::1], int64, int8[:, ::1], int32[:, ::1], int8[:, ::1], int64[::1], int64[:, ::1], int64[:, ::1]"
    return f"void({common}, int64, {kind}, int8[:, ::1], int64, int64, int8[::1])"


@helper
def zero_start(scratch: Array, strip: Strip, values: Array, head: int, tokens: int, dim: int) -> None:
    """Accumulators of the product with the values start at zero."""
    scratch[strip[4] : strip[4] + 4 * tile_columns()] = 0


def shape(tokens: int, heads: int, head_dim: int) -> _heads.Shape:
    """Sizes: probabilities are bytes on the vnni path, INT16 elsewhere."""
    return _heads.Shape(tokens, heads, head_dim, 4 if _isa.select().name == "vnni" else 2)


def pack_values(mult: Array, shift: Array, head_dim: int) -> NDArray[np.int64] | None:
    """Requantization of P x V; None where a shift is below LEAST_SHIFT and cannot be raised."""
    raised, shifts, wide = raise_shifts(mult, shift)
    return None if wide else _heads.pack_values(raised, shifts, head_dim)


@emitted
def finish_row(
    typingctx: Any, high: Any, groups: Any, values: Any, acc: Any, quant: Any, highest: Any, out: Any
) -> Any:
    """out = requantize(acc + 2^8 * high . values) for one row and one panel of 64 columns (vnni path only).

    high    address of the plane of high bytes, groups of 4 keys padded to 16 groups
    values  address of the packed panel;  acc  of int32 [64] in lane order;  highest  result;  out  of int8 [64]
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        if e.isa.name == "vnni":
            _emit_finish_row(e, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


def _emit_finish_row(
    e: Emit, high: Value, groups: Value, values: Value, acc: Value, quant: Value, highest: Value, out: Value
) -> None:
    builder = e.builder
    vector, mask_type = ir.VectorType(I32, 16), ir.IntType(16)
    zero = e.const(vector, 0)

    def block(i: Value, sums: list[Value]) -> list[Value]:
        """16 groups of 4 keys: visit those with a non-zero byte."""
        at = builder.add(high, builder.shl(i, e.i64(2)))
        found = builder.icmp_unsigned("!=", e.load(at, vector), zero)
        mask = builder.zext(builder.bitcast(found, mask_type), I32)
        before, head, after = builder.block, builder.append_basic_block("next"), builder.append_basic_block("empty")
        some = builder.icmp_unsigned("!=", mask, e.const(I32, 0))
        builder.cbranch(some, head, after)
        builder.position_at_end(head)
        left = builder.phi(I32)
        left.add_incoming(mask, before)
        phis = [builder.phi(vector) for _ in sums]
        position = builder.zext(builder.cttz(left, ir.Constant(ir.IntType(1), 1)), I64)
        group = e.splat(e.load(builder.add(at, builder.shl(position, e.i64(2))), I32), 16)
        row = builder.add(values, builder.shl(builder.add(i, position), e.i64(8)))
        summed = [e.dot8(p, group, e.load(e.offset(row, 64 * j), vector)) for j, p in enumerate(phis)]
        rest = builder.and_(left, builder.sub(left, e.const(I32, 1)))
        left.add_incoming(rest, head)
        for phi, start, result in zip(phis, sums, summed, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(result, head)
        builder.cbranch(builder.icmp_unsigned("!=", rest, e.const(I32, 0)), head, after)
        builder.position_at_end(after)
        merged = []
        for start, result in zip(sums, summed, strict=True):
            phi = builder.phi(vector)
            phi.add_incoming(start, before)
            phi.add_incoming(result, head)
            merged.append(phi)
        return merged

    sums = e.loop(e.i64(0), groups, 16, [zero] * 4, block)
    scaled = []
    for j, value in enumerate(sums):
        total = builder.add(builder.shl(value, e.const(vector, 8)), e.load(e.offset(acc, 64 * j), vector))
        scaled.append(requantize(e, total, e.offset(quant, j * 16 * QUANT_BYTES)))
    e.store(out, narrow_int8(e, scaled, highest))


@helper
def _context_panel(
    words: int,
    low: int,
    padded: int,
    count: int,
    panel: int,
    steps: int,
    quant: int,
    highest: int,
    zero: int,
    acc: int,
    out: int,
    out_stride: int,
) -> None:
    """P x V of `count` rows for one panel of columns, to int8 at `out`, or to the tile `acc` where `out` is 0.

    words  address of INT16 probabilities (no byte planes);  low  address of the planes, that of high bytes behind
    """
    stride = out_stride if out else tile_columns() * 4
    to = out if out else acc
    if not biased():
        tile16(words, padded * 2, count - 1, panel, steps, zero, quant, INT8 + 65536 * highest, to, stride)
        return
    tile_bytes(low, padded, count - 1, panel, steps, zero, quant, RAW, acc, tile_columns() * 4)
    for r in range(count):
        high = low + (tile_rows() + r) * padded
        finish_row(high, steps, panel, acc + r * tile_columns() * 4, quant, highest, to + r * stride)


@helper
def context_strip(
    scratch: Array, strip: Strip, padded: int, values: Array, quant: Array, high: int, out: Array, place: Place
) -> None:
    """`count` rows of one head's probabilities, in scratch, times its values, to `out`."""
    (row, count, head, dim), columns = place, tile_columns()
    steps = ceil_div(out.shape[0], 4 if biased() else 2)
    base = address(scratch)
    logits, weights, _, tile_at, zero = strip
    for jv in range(ceil_div(dim, columns)):
        panel = address(values) + head * values.shape[1] + jv * steps * columns * 4
        panel_quant = address(quant) + head * quant.shape[1] * 8 + jv * columns * quant_bytes()
        first, valid = head * dim + jv * columns, min(columns, dim - jv * columns)
        to = address(out) + row * out.shape[1] + first if valid == columns else np.int64(0)
        _context_panel(
            base + logits,
            base + weights,
            padded,
            count,
            panel,
            steps,
            panel_quant,
            high,
            base + zero,
            base + tile_at,
            to,
            out.shape[1],
        )
        if valid < columns:
            copy_columns(scratch, tile_at, count, valid, out, row, first)
