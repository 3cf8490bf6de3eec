"""Fused attention: QK^T, requantize, softmax, P x V, requantize, in strips of a few rows that stay in the L1/L2 cache.

On the vnni path a probability is split in two bytes. The low bytes go through one dense product at the full INT8 rate.
The high byte is non-zero only where p >= 2^8, and a row sums to about 2^15: at most some 130 of its entries. So the
high plane is skipped group by group (4 keys) where it is zero; the result is exact either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from . import _isa
from ._ir import I8, I16, I32, I64, Emit, Value
from ._jit import emitted, helper, kernel
from ._tile import (
    BLOCKED,
    INT8,
    INT16,
    RAW,
    address,
    biased,
    ceil_div,
    group_size,
    lane_order,
    narrow_int8,
    requantize,
    tile,
    tile16,
    tile_columns,
    tile_rows,
)
from .linear import pack_quant, raise_shifts, stage
from .softmax2 import bit_length, divisor, row_max, row_powers, row_scale, row_scale_split

Array = NDArray[Any]

_PAD = -(2**30)
"""Accumulator of a padded key column, after the shift of `Scores`: requantizes to -32768 (checked by `pack_scores`), so
that it never is the maximum unless all are, and its power is known."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention, and of its packed keys and values for this process' instruction path."""

    tokens: int
    heads: int
    head_dim: int

    @property
    def padded(self) -> int:
        """Keys in whole panels."""
        columns = _isa.select().columns
        return -(-self.tokens // columns) * columns

    @property
    def key_bytes(self) -> int:
        """Packed keys of one head."""
        return self.padded * -(-self.head_dim // _isa.select().group) * 4

    @property
    def value_group(self) -> int:
        """Keys that one INT32 lane sums in P x V: 4 bytes, or 2 INT16."""
        return 4 if _isa.select().name == "vnni" else 2

    @property
    def value_bytes(self) -> int:
        """Packed values of one head."""
        isa = _isa.select()
        panels = -(-self.head_dim // isa.columns)
        return panels * -(-self.tokens // self.value_group) * isa.columns * 4

    @property
    def scratch_bytes(self) -> int:
        """Scratch of one thread: staged queries, logits, probabilities, one tile."""
        isa = _isa.select()
        query = isa.rows * -(-self.head_dim // isa.group) * 4
        return query + isa.rows * self.padded * 4 + (isa.rows + 1) * isa.columns * 4 + 128


@dataclass(frozen=True)
class Scores:
    """Requantization of QK^T, one scale per head.

    quant  int64 [heads, columns * 3]   see `_tile`
    left   int64 [heads]                shift of the accumulators to the left: a scale of 1/2 or more needs one
    """

    quant: NDArray[np.int64]
    left: NDArray[np.int64]


def pack_scores(mult: Array, shift: Array, head_dim: int) -> Scores | None:
    """For this process' instruction path; None where the fused kernel cannot do it: INT32 would overflow, or padded
    keys would not saturate.

    mult  int32 [heads, 1];  shift  int8 [heads, 1]
    """
    isa = _isa.select()
    quants, lefts = [], []
    for m, s in zip(mult.reshape(-1), shift.reshape(-1), strict=True):
        (m64,), (s64,), wide = raise_shifts(m[None], s[None])
        left = 32 - int(s) if wide else 0
        if wide:
            m64, s64 = np.int64(m), np.int64(32)
        fits = (2**14 * head_dim) << left < 2**31
        if not fits or (_PAD * int(m64) + (1 << (int(s64) - 1))) >> int(s64) > -(2**15):
            return None
        ones = np.ones(isa.columns, np.int64)
        quants.append(pack_quant(m64 * ones, s64 * ones, isa))
        lefts.append(left)
    return Scores(np.stack(quants), np.array(lefts, np.int64))


def pack_values(mult: Array, shift: Array, head_dim: int) -> NDArray[np.int64]:
    """Requantization of P x V, per head or per column of a head: int64 [heads, panels * columns * 3]."""
    isa = _isa.select()
    raised, shifts, _ = raise_shifts(mult, shift)
    panels = -(-head_dim // isa.columns)
    columns = (np.arange(panels)[:, None] * isa.columns + lane_order(isa)).reshape(-1)
    heads = []
    for m, s in zip(raised, shifts, strict=True):
        scale, count = np.zeros(panels * isa.columns, np.int64), np.full(panels * isa.columns, 32, np.int64)
        scale[:head_dim], count[:head_dim] = m, s
        heads.append(pack_quant(scale[columns], count[columns], isa))
    return np.stack(heads)


# ---- packing keys and values --------------------------------------------------------------------------------------


@emitted
def copy4(typingctx: Any, target: Any, source: Any) -> Any:
    """Copy four bytes between addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        e.store(args[0], e.load(args[1], I32))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@emitted
def panel_init(typingctx: Any, panel: Any, steps: Any, init: Any) -> Any:
    """init = -128 times the column sums of a packed panel on the vnni path, zero elsewhere."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        isa, (panel_, steps_, init_) = e.isa, args
        kind = ir.VectorType(I32, isa.lanes)
        width, zero = 4 * isa.lanes, e.const(kind, 0)
        ones = e.const(kind, 0x01010101)

        def step(k: Value, sums: list[Value]) -> list[Value]:
            here = builder.add(panel_, builder.mul(k, e.i64(isa.vectors * width)))
            return [e.dot8(s, ones, e.load(e.offset(here, j * width), kind)) for j, s in enumerate(sums)]

        start = [zero] * isa.vectors
        sums = e.loop(e.i64(0), steps_, 1, start, step) if isa.name == "vnni" else start
        for j, value in enumerate(sums):
            e.store(e.offset(init_, j * width), builder.mul(value, e.const(kind, -128)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@emitted
def pack_value_group(typingctx: Any, source: Any, stride: Any, target: Any) -> Any:
    """Four rows of 64 int8 to one step of a panel: byte r of a lane is row r (zmm only; columns of `lane_order`)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        source_, stride_, target_ = args
        if not e.isa.zmm:
            return context.get_dummy_value()
        bytes_, words = ir.VectorType(I8, 64), ir.VectorType(I16, 32)
        rows = [e.load(builder.add(source_, builder.mul(stride_, e.i64(r))), bytes_) for r in range(4)]

        def interleave(a: Value, b: Value, upper: int) -> Value:
            """Lower or upper halves of all 128-bit blocks, alternating: punpckl / punpckh."""
            block = 128 // a.type.element.width
            picks = [blk + upper * block // 2 + i for blk in range(0, a.type.count, block) for i in range(block // 2)]
            return e.shuffle(a, b, [n for p in picks for n in (p, p + a.type.count)])

        for upper in (0, 1):
            first, second = (builder.bitcast(interleave(rows[i], rows[i + 1], upper), words) for i in (0, 2))
            for part in (0, 1):
                e.store(e.offset(target_, 64 * (2 * upper + part)), interleave(first, second, part))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@helper
def _pack_keys(
    qkv: Array, column: int, dim: int, keys: Array, init: Array, pad: int, order: Array, start: int, stop: int
) -> None:
    """Panels start / columns to ceil(stop / columns) of one head's keys [T, dim], columns of qkv from `column`."""
    tokens, columns, group = qkv.shape[0], tile_columns(), group_size()
    steps = ceil_div(dim, group)
    words = keys.view(np.int16)
    for jp in range(start // columns, ceil_div(stop, columns)):
        panel = jp * steps * columns * 4
        for lane in range(columns):
            n = jp * columns + order[lane]
            at = panel + lane * 4
            if n < tokens and group == 4 and dim % 4 == 0:
                source = address(qkv) + n * qkv.shape[1] + column
                for k in range(steps):
                    copy4(address(keys) + at + k * columns * 4, source + 4 * k)
            else:
                for k in range(steps * group):
                    value = qkv[n, column + k] if n < tokens and k < dim else np.int8(0)
                    spot = at + k // group * columns * 4
                    if group == 4:
                        keys[spot + k % group] = value
                    else:
                        words[spot // 2 + k % group] = value
        panel_init(address(keys) + panel, steps, address(init) + jp * columns * 4)
        for lane in range(columns):
            if jp * columns + order[lane] >= tokens:
                init[jp * columns + lane] = pad


@helper
def _pack_values(qkv: Array, column: int, dim: int, values: Array, order: Array, start: int, stop: int) -> None:
    """Steps of one head's values [T, dim] whose keys lie in [start, stop); start is a multiple of 4."""
    tokens, columns = qkv.shape[0], tile_columns()
    group = 4 if biased() else 2
    steps = ceil_div(tokens, group)
    words = values.view(np.int16)
    for jv in range(ceil_div(dim, columns)):
        for k in range(start // group, ceil_div(stop, group)):
            at = (jv * steps + k) * columns * 4
            if group == 4 and (jv + 1) * columns <= dim and (k + 1) * 4 <= tokens:
                source = address(qkv) + k * 4 * qkv.shape[1] + column + jv * columns
                pack_value_group(source, qkv.shape[1], address(values) + at)
                continue
            for lane in range(columns):
                c = jv * columns + order[lane]
                for g in range(group):
                    n = k * group + g
                    value = qkv[n, column + c] if n < tokens and c < dim else np.int8(0)
                    if group == 4:
                        values[at + lane * 4 + g] = value
                    else:
                        words[at // 2 + lane * 2 + g] = value


@kernel(
    "void(int8[:, ::1], int64, int64, int64, int64, int8[:, ::1], int32[:, ::1], int8[:, ::1], int64[::1],"
    " int64[::1], int64, int64)"
)
def pack_keys_values(
    qkv: Array,
    key_column: int,
    value_column: int,
    heads: int,
    dim: int,
    keys: Array,
    init: Array,
    values: Array,
    left: Array,
    order: Array,
    start: int,
    stop: int,
) -> None:
    """Keys and values of tokens start to stop - 1, all heads; start is a multiple of `columns` and of 4.

    qkv     int8 [T, W]; head h has its keys in columns key_column + h dim, its values from value_column on
    keys    int8 [heads, key_bytes];  init int32 [heads, padded];  values int8 [heads, value_bytes]
    left    int64 [heads]: see Scores
    """
    for h in range(heads):
        pad = np.int64(_PAD) >> left[h]
        _pack_keys(qkv, key_column + h * dim, dim, keys[h], init[h], pad, order, start, stop)
        _pack_values(qkv, value_column + h * dim, dim, values[h], order, start, stop)


# ---- one strip ----------------------------------------------------------------------------------------------------


@emitted
def finish_row(typingctx: Any, high: Any, groups: Any, values: Any, acc: Any, quant: Any, out: Any) -> Any:
    """out = requantize(acc + 2^8 * high . values) for one row and one panel of 64 columns (vnni path only).

    high    address of the plane of high bytes, groups of 4 keys padded to 16 groups
    values  address of the packed panel;  acc  of int32 [64] in lane order;  out  of int8 [64]
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        if e.isa.name == "vnni":
            _emit_finish_row(e, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


def _emit_finish_row(e: Emit, high: Value, groups: Value, values: Value, acc: Value, quant: Value, out: Value) -> None:
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
        scaled.append(requantize(e, total, e.offset(quant, j * 16 * 24)))
    e.store(out, narrow_int8(e, scaled))


@helper
def _softmax_rows(
    scores: int,
    padded: int,
    rows: int,
    tokens: int,
    frac_bits: int,
    a1: int,
    a2: int,
    low: int,
    logits: Array,
    at: int,
    bytes_: Array,
    plane_at: int,
) -> None:
    """Rows of INT16 logits at address `scores` to probabilities: INT16 in place, or byte planes at address `low`.

    logits, at        the same logits as an array, and the index of the first: to read a padded key's power
    bytes_, plane_at  the same planes as an array, and the index of the first byte
    """
    for r in range(rows):
        row = scores + r * padded * 2
        top = row_max(row, padded)
        total = row_powers(row, padded, top, frac_bits, a1, a2)
        pad_power = np.int64(logits[at + (r + 1) * padded - 1]) if padded > tokens else np.int64(0)
        total -= pad_power * (padded - tokens)
        reciprocal, shift = divisor(total)
        if biased():
            plane = low + r * padded
            high = plane + tile_rows() * padded
            row_scale_split(row, padded, reciprocal, shift, plane, high)
            if pad_power > 0:  # rare: the high plane must not lead to values beyond the last token
                for n in range(tokens, padded):
                    bytes_[plane_at + (tile_rows() + r) * padded + n] = 0
        else:
            row_scale(row, padded, reciprocal, shift, row)


@helper
def _shiftmax_rows(
    logits: Array,
    at: int,
    padded: int,
    rows: int,
    tokens: int,
    powers: Array,
    normalized: int,
    bits: int,
    planes: Array,
    plane_at: int,
) -> None:
    """Rows of INT16 logits from index `at` on to probabilities: INT16 in place, or byte planes from `plane_at` on.

    powers  uint16: ShiftExp of minus the index; the last entry holds for all beyond
    """
    last = np.int64(powers.shape[0] - 1)
    one = (np.int64(1) << (bits - 1)) - 1
    for r in range(rows):
        row = at + r * padded
        top = np.int64(logits[row])
        for j in range(1, tokens):
            top = max(top, np.int64(logits[row + j]))
        total = np.int64(0)
        for j in range(tokens):
            e = powers[min(top - np.int64(logits[row + j]), last)]
            logits[row + j] = np.int16(e)  # as 16 bits: e may be 2^15
            total += np.int64(e)
        if normalized:
            length = bit_length(total)
            reciprocal, shift = np.int64(2**46 - 1) // (total << (31 - length)), length + 16 - bits
            half = np.int64(1) << (shift - 1)
        else:
            reciprocal, shift, half = np.int64(2**31 - 1) // total, np.int64(32 - bits), np.int64(0)
        low, high = plane_at + r * padded, plane_at + (tile_rows() + r) * padded
        for j in range(tokens):
            e64 = np.int64(logits[row + j]) & np.int64(0xFFFF)
            p = min((e64 * reciprocal + half) >> shift, one)
            if biased():
                planes[low + j] = np.int8(p)
                planes[high + j] = np.int8(p >> 8)
            else:
                logits[row + j] = np.int16(p)
        if biased():
            for j in range(tokens, padded):
                planes[low + j] = 0
                planes[high + j] = 0


@helper
def _score_strip(
    query: int, steps: int, count: int, keys: int, init: int, quant: int, kind: int, scores: int, padded: int
) -> None:
    """INT16 logits of `count` staged queries against all keys of one head; all but counts are addresses."""
    columns = tile_columns()
    for jp in range(padded // columns):
        panel = keys + jp * steps * columns * 4
        to = scores + jp * columns * 2
        tile(query, steps * 4, count - 1, panel, steps, init + jp * columns * 4, quant, kind, to, padded * 2)


@helper
def _context_panel(
    words: int,
    low: int,
    padded: int,
    count: int,
    panel: int,
    steps: int,
    quant: int,
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
        tile16(words, padded * 2, count - 1, panel, steps, zero, quant, INT8, to, stride)
        return
    tile(low, padded, count - 1, panel, steps, zero, quant, RAW, acc, tile_columns() * 4)
    for r in range(count):
        high = low + (tile_rows() + r) * padded
        finish_row(high, steps, panel, acc + r * tile_columns() * 4, quant, to + r * stride)


@kernel(
    "void(int8[:, ::1], int64, int64, int64, int8[:, ::1], int32[:, ::1], int8[:, ::1], int64[:, ::1], int64[::1],"
    " int64[:, ::1], int64[::1], uint16[::1], int8[:, ::1], int64, int64, int8[::1])"
)
def attention(
    qkv: Array,
    query_column: int,
    heads: int,
    dim: int,
    keys: Array,
    init: Array,
    values: Array,
    score_quant: Array,
    left: Array,
    value_quant: Array,
    softmax: Array,
    powers: Array,
    out: Array,
    start: int,
    stop: int,
    scratch: Array,
) -> None:
    """Rows start to stop - 1 of merge_heads(softmax(QK^T) V), all heads.

    qkv   int8 [T, W];  keys, init, values: `pack_keys_values`;  score_quant, left: Scores;  value_quant: `pack_values`
    softmax, powers  int64 [3] and uint16 [n]: frac_bits, a1, a2 with n = 0 is softmax2; normalized (1) or paper (0),
          bits (8 or 16), 0 with ShiftExp by distance to the maximum is shiftmax
    out   int8 [T, heads * dim];  scratch int8 [Shape.scratch_bytes]
    """
    tokens, columns, rows = qkv.shape[0], tile_columns(), tile_rows()
    padded = init.shape[1]
    query_steps, value_group = ceil_div(dim, group_size()), 4 if biased() else 2
    value_steps = ceil_div(tokens, value_group)
    words = scratch.view(np.int16)
    query = address(scratch)
    # Offsets in bytes, each a multiple of 64: queries, logits, planes, one tile whose last 256 bytes stay zero.
    score_at = (rows * query_steps * 4 + 63) // 64 * 64
    plane_at = score_at + rows * padded * 2
    tile_at = plane_at + rows * padded * 2
    zero_at = tile_at + 4 * rows * columns
    for i in range(zero_at, zero_at + 4 * columns):
        scratch[i] = 0
    base_two, s0, s1, s2 = powers.shape[0] == 0, softmax[0], softmax[1], softmax[2]
    scores, low, acc, zero = query + score_at, query + plane_at, query + tile_at, query + zero_at
    for h in range(heads):
        key_base, value_base = address(keys) + h * keys.shape[1], address(values) + h * values.shape[1]
        init_base, score_base = address(init) + h * padded * 4, address(score_quant) + h * columns * 24
        kind = (BLOCKED if biased() and base_two else INT16) + 256 * left[h]
        for i in range(start, stop, rows):
            count = min(rows, stop - i)
            for r in range(count):
                at = r * query_steps * 4
                stage(qkv, i + r, query_column + h * dim, dim, query_steps, scratch, words, at)
            _score_strip(query, query_steps, count, key_base, init_base, score_base, kind, scores, padded)
            if base_two:
                _softmax_rows(scores, padded, count, tokens, s0, s1, s2, low, words, score_at // 2, scratch, plane_at)
            else:
                _shiftmax_rows(words, score_at // 2, padded, count, tokens, powers, s0, s1, scratch, plane_at)
            for jv in range(ceil_div(dim, columns)):
                panel = value_base + jv * value_steps * columns * 4
                quant = address(value_quant) + h * value_quant.shape[1] * 8 + jv * columns * 24
                first = h * dim + jv * columns
                valid = min(columns, dim - jv * columns)
                whole = address(out) + i * out.shape[1] + first if valid == columns else np.int64(0)
                _context_panel(scores, low, padded, count, panel, value_steps, quant, zero, acc, whole, out.shape[1])
                if valid < columns:
                    for r in range(count):
                        for c in range(valid):
                            out[i + r, first + c] = scratch[tile_at + r * columns * 4 + c]
