"""What every fused attention shares: sizes, packed keys and values, and the scores of a strip of queries.

A strip is a few rows, as many as a register tile has, against all keys: its scores, weights and sums stay in the L1 and
L2 cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from . import _isa
from ._ir import I8, I16, I32, Emit, Value
from ._jit import emitted, helper, inlined, kernel
from ._tile import (
    BLOCKED,
    INT16,
    LEAST_SHIFT,
    SHIFTED,
    SHIFTED_BLOCKED,
    address,
    biased,
    ceil_div,
    group_size,
    has_zmm,
    lane_order,
    narrow_columns,
    register_bytes,
    step_size,
    tile_columns,
    tile_narrow,
    tile_rows,
    tile_words,
    unstaged,
    viewed,
)
from .linear import pack_quant, raise_shifts, stage, stage_whole

Array = NDArray[Any]

Head = tuple[int, int, int, int]
"""Addresses of a head's keys, starts and requantization of scores; kind of the latter, see Scores."""

_PAD = -(2**30)
"""Accumulator of a padded key column, after the shift of `Scores`: below that of any key, and RSR keeps the order."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention, and of its packed keys and values for this process' instruction path.

    value_group  keys that one instruction sums in the product with the values: 4 or 8 bytes, or 2 INT16
    """

    tokens: int
    heads: int
    head_dim: int
    value_group: int

    @property
    def padded(self) -> int:
        """Keys in whole panels."""
        columns = _isa.select().columns
        return -(-self.tokens // columns) * columns

    @property
    def panels(self) -> int:
        """Panels of values of one head."""
        return -(-self.head_dim // _isa.select().columns)

    @property
    def key_bytes(self) -> int:
        """Packed keys of one head."""
        isa = _isa.select()
        return self.padded * -(-self.head_dim // isa.group) * isa.step

    @property
    def value_bytes(self) -> int:
        """Packed values of one head."""
        steps = -(-self.tokens // self.value_group)
        return self.panels * steps * _isa.select().columns * _isa.step_bytes(self.value_group)

    @property
    def scratch_bytes(self) -> int:
        """Scratch of one thread, see `offsets`."""
        isa = _isa.select()
        query = isa.rows * -(-self.head_dim // isa.group) * isa.step + 64
        return query + isa.rows * (self.padded * 4 + 192) + (isa.rows + 1) * self.panels * isa.columns * 4


@helper
def offsets(dim: int, padded: int) -> tuple[int, int, int, int, int]:
    """Where scratch has its parts, in bytes, each a multiple of 64: INT16 logits, weights (two bytes each, or one of
    two strips), three vectors a row of sums and maxima, a tile for every panel of values, starts of their accumulators.
    Staged queries come first."""
    rows, columns = tile_rows(), tile_columns()
    logits = (rows * ceil_div(dim, group_size()) * step_size() + 63) // 64 * 64
    weights = logits + rows * padded * 2
    totals = weights + rows * padded * 2
    tile_at = totals + rows * 192
    return logits, weights, totals, tile_at, tile_at + 4 * rows * columns * ceil_div(dim, columns)


@dataclass(frozen=True)
class Scores:
    """Requantization of QK^T, one scale per head.

    quant  int64 [heads, columns * 2]   see `_tile`
    kinds  int64 [heads]                how a tile stores, see `_tile`; a scale of 1/4 or more needs a shift to the left
    starts int64 [2, heads]             what accumulators start with: those of keys, half of the rounding where a tile
                                        only shifts; those of padded keys
    """

    quant: NDArray[np.int64]
    kinds: NDArray[np.int64]
    starts: NDArray[np.int64]


def pack_scores(mult: Array, shift: Array, head_dim: int, blocked: bool, pads_saturate: bool) -> Scores | None:
    """For this process' instruction path; None where the fused kernel cannot do it.

    mult  int32 [heads, 1];  shift  int8 [heads, 1]
    blocked        logits in block order
    pads_saturate  whether padded keys have to become -32768
    """
    isa = _isa.select()
    quants, kinds, starts = [], [], []
    for m, s in zip(mult.reshape(-1).tolist(), shift.reshape(-1).tolist(), strict=True):
        halvings = s - m.bit_length() + 1
        if m & (m - 1) == 0 < m and 1 <= halvings <= 30:  # a power of two, as the exporter prefers
            m64, s64, left, limit, half = 1, halvings, 0, 2**30, 1 << (halvings - 1)
            kind = (SHIFTED_BLOCKED if blocked else SHIFTED) + 256 * halvings
        else:
            (raised,), (count,), wide = raise_shifts(np.array([m]), np.array([s]))
            m64, s64, left = (m, LEAST_SHIFT, LEAST_SHIFT - s) if wide else (int(raised), int(count), 0)
            limit, half = 2**31, 0
            kind = (BLOCKED if blocked else INT16) + 256 * left
        if (2**14 * head_dim) << left >= limit or (pads_saturate and (_PAD * m64 + (1 << (s64 - 1))) >> s64 > -(2**15)):
            return None
        ones = np.ones(isa.columns, np.int64)
        quants.append(pack_quant(m64 * ones, max(s64, LEAST_SHIFT) * ones, isa))
        kinds.append(kind)
        starts.append((half, (_PAD >> left) + half))
    return Scores(np.stack(quants), np.array(kinds, np.int64), np.array(starts, np.int64).T.copy())


def pack_values(mult: Array, shift: Array, head_dim: int) -> NDArray[np.int64]:
    """Requantization of weights times values, per head or per column of a head: int64 [heads, panels * columns * 2]."""
    isa = _isa.select()
    panels = -(-head_dim // isa.columns)
    columns = (np.arange(panels)[:, None] * isa.columns + lane_order(isa)).reshape(-1)
    heads = []
    for m, s in zip(mult, shift, strict=True):
        scale, count = np.zeros(panels * isa.columns, np.int64), np.full(panels * isa.columns, LEAST_SHIFT, np.int64)
        scale[:head_dim], count[:head_dim] = m, s
        heads.append(pack_quant(scale[columns], count[columns], isa))
    return np.stack(heads)


# ---- packing keys and values --------------------------------------------------------------------------------------


@emitted
def copy_group(typingctx: Any, target: Any, source: Any) -> Any:
    """Copy the bytes of a group between addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        e.store(args[0], e.load(args[1], ir.IntType(8 * e.isa.step)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


step_bytes = helper(_isa.step_bytes)


def _make_init(paths: tuple[str, ...], factor: int) -> Any:
    """What makes up for operands that an instruction path takes 128 too large, or too small."""

    def panel(typingctx: Any, panel: Any, steps: Any, first: Any, init: Any) -> Any:
        """Starts of accumulators: `first`, plus a factor times the column sums of a packed panel on some paths."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emit(context, builder)
            isa, (panel_, steps_, first_, init_) = e.isa, args
            kind = ir.VectorType(I32, isa.lanes)
            width, zero = 4 * isa.lanes, e.const(kind, 0)
            ones = e.const(kind, 0x01010101)
            pairs = isa.name == "i8mm"  # twice two columns in a register
            product = e.pairs8 if pairs else e.dot8

            def step(k: Value, sums: list[Value]) -> list[Value]:
                here = builder.add(panel_, builder.mul(k, e.i64(isa.columns * isa.step)))
                return [product(s, ones, e.load(e.offset(here, j * width), kind)) for j, s in enumerate(sums)]

            sums = [zero] * (isa.columns * isa.step // width)
            if isa.name in paths:
                sums = e.loop(e.i64(0), steps_, 1, sums, step)
            if pairs:
                sums = [e.shuffle(sums[j], sums[j + 1], [0, 1, 4, 5]) for j in range(0, len(sums), 2)]
            first = e.splat(builder.trunc(first_, I32), isa.lanes)
            for j, value in enumerate(sums):
                e.store(e.offset(init_, j * width), builder.add(builder.mul(value, e.const(kind, factor)), first))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return emitted(panel)


key_init = _make_init(("vnni",), -128)
"""Queries are bytes xor 128 there."""

value_init = _make_init(("dotprod", "i8mm"), 128)
"""Weights of `weighted_mean` are bytes xor 128 there: sdot and smmla take signed bytes only."""


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

        for upper in (0, 1):
            first, second = (builder.bitcast(e.interleave(rows[i], rows[i + 1], upper), words) for i in (0, 2))
            for part in (0, 1):
                e.store(e.offset(target_, 64 * (2 * upper + part)), e.interleave(first, second, part))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@emitted
def pack_key_block(typingctx: Any, source: Any, stride: Any, target: Any) -> Any:
    """64 bytes of each of the 16 keys of a vector of a panel to 16 steps of that vector (vnni only).

    source  address of the first of these keys, a row every `stride` bytes;  target  of the vector in the first step
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        source_, stride_, target_ = args
        if e.isa.name != "vnni":
            return context.get_dummy_value()
        columns = lane_order(e.isa)[:16].tolist()
        kind = ir.VectorType(I32, 16)
        rows = [e.load(builder.add(source_, builder.mul(stride_, e.i64(n))), kind) for n in columns]
        picks = [[i // 2 + 16 * (i % 2) + 8 * half for i in range(16)] for half in (0, 1)]
        for _ in range(4):  # a perfect shuffle of 256 elements, four times: rows and columns change places
            rows = [e.shuffle(rows[i], rows[i + 8], pick) for i in range(8) for pick in picks]
        for k, row in enumerate(rows):
            e.store(e.offset(target_, k * e.isa.columns * 4), row)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@helper
def _pack_keys(
    qkv: Array,
    column: int,
    dim: int,
    keys: Array,
    init: Array,
    first: int,
    pad: int,
    order: Array,
    start: int,
    stop: int,
) -> None:
    """Panels start / columns to ceil(stop / columns) of one head's keys [T, dim], columns of qkv from `column`."""
    tokens, columns, group, size = qkv.shape[0], tile_columns(), group_size(), step_size()
    steps = ceil_div(dim, group)
    words = viewed(keys, np.int16)
    for jp in range(start // columns, ceil_div(stop, columns)):
        panel, whole = jp * steps * columns * size, (jp + 1) * columns <= tokens
        blocks = whole and biased() and dim % 64 == 0
        if not whole:
            keys[panel : panel + steps * columns * size] = 0
        for n in range(4 * (dim // 64) * blocks):  # of each vector, whose keys begin 4 rows behind those of the last
            source = address(qkv) + (jp * columns + 4 * (n % 4)) * qkv.shape[1] + column + n // 4 * 64
            pack_key_block(source, qkv.shape[1], address(keys) + panel + n // 4 * 64 * columns + n % 4 * 64)
        for lane in range(0 if blocks else columns):
            n = jp * columns + order[lane]
            at = panel + lane * size
            if n >= tokens:
                continue
            if group != 2 and dim % group == 0:
                source = address(qkv) + n * qkv.shape[1] + column
                for k in range(steps):
                    copy_group(address(keys) + at + k * columns * size, source + size * k)
            else:
                for k in range(steps * group):
                    value = qkv[n, column + k] if k < dim else np.int8(0)
                    spot = at + k // group * columns * size
                    if group != 2:
                        keys[spot + k % group] = value
                    else:
                        words[spot // 2 + k % group] = value
        key_init(address(keys) + panel, steps, first, address(init) + jp * columns * 4)
        for lane in range(0 if whole else columns):
            if jp * columns + order[lane] >= tokens:
                init[jp * columns + lane] = pad


@helper
def _pack_values(
    qkv: Array, column: int, dim: int, values: Array, order: Array, group: int, start: int, stop: int
) -> None:
    """Steps of one head's values [T, dim] whose keys lie in [start, stop); start is a multiple of the group."""
    tokens, columns, size = qkv.shape[0], tile_columns(), step_bytes(group)
    steps = ceil_div(tokens, group)
    words = viewed(values, np.int16)
    for jv in range(ceil_div(dim, columns)):
        for k in range(start // group, ceil_div(stop, group)):
            at = (jv * steps + k) * columns * size
            if has_zmm() and group == 4 and (jv + 1) * columns <= dim and (k + 1) * 4 <= tokens:
                source = address(qkv) + k * 4 * qkv.shape[1] + column + jv * columns
                pack_value_group(source, qkv.shape[1], address(values) + at)
                continue
            for lane in range(columns):
                c = jv * columns + order[lane]
                for g in range(group):
                    n = k * group + g
                    value = qkv[n, column + c] if n < tokens and c < dim else np.int8(0)
                    if group != 2:
                        values[at + lane * size + g] = value
                    else:
                        words[at // 2 + lane * 2 + g] = value


@kernel(
    "void(int8[:, ::1], int64, int64, int64, int64, int64, int8[:, ::1], int32[:, ::1], int8[:, ::1],"
    " int64[:, ::1], int64[::1], int64, int64, int64)"
)
def pack_keys_values(
    qkv: Array,
    key_column: int,
    value_column: int,
    heads: int,
    dim: int,
    value_dim: int,
    keys: Array,
    init: Array,
    values: Array,
    starts: Array,
    order: Array,
    group: int,
    start: int,
    stop: int,
) -> None:
    """Keys and values of tokens start to stop - 1, all heads; start is a multiple of `columns`, which groups divide.

    qkv     int8 [T, W]; head h has its keys in columns key_column + h dim, its values in value_column + h value_dim
    keys    int8 [heads, key_bytes];  init int32 [heads, padded];  values int8 [heads, value_bytes]
    starts  int64 [2, heads]: see Scores;  order int64 [columns]: `lane_order`;  group: see Shape
    """
    for h in range(heads):
        _pack_keys(qkv, key_column + h * dim, dim, keys[h], init[h], starts[0, h], starts[1, h], order, start, stop)
        _pack_values(qkv, value_column + h * value_dim, value_dim, values[h], order, group, start, stop)


# ---- one strip ----------------------------------------------------------------------------------------------------


@helper
def queries(qkv: Array, row: int, count: int, column: int, dim: int, scratch: Array) -> tuple[int, int]:
    """Address of `count` rows of one head's queries, and from row to row; staged at the start of scratch if need be."""
    steps = ceil_div(dim, group_size())
    source, to, stride = address(qkv) + row * qkv.shape[1] + column, address(scratch), steps * step_size()
    if unstaged(dim):
        return source, qkv.shape[1]
    if dim % register_bytes() == 0:
        for r in range(count):
            stage_whole(source + r * qkv.shape[1], dim, to + r * stride)
        return to, stride
    words = viewed(scratch, np.int16)
    for r in range(count):
        stage(qkv, row + r, column, dim, steps, scratch, words, r * stride)
    return to, stride


@helper
def head_operands(keys: Array, init: Array, quant: Array, kinds: Array, head: int) -> Head:
    """What `score_panel` takes of a head."""
    key_at, init_at = address(keys) + head * keys.shape[1], address(init) + head * init.shape[1] * 4
    return key_at, init_at, address(quant) + head * quant.shape[1] * 8, kinds[head]


@inlined
def score_panel(
    query: int, width: int, steps: int, count: int, head: Head, jp: int, scores: int, padded: int, tokens: int
) -> None:
    """INT16 logits of `count` queries, each `width` bytes behind the other, against the keys of one panel.

    query and scores are addresses.

    A class token beside a square of patches leaves the last panel with one key, or a few.
    """
    (keys, init, quant, kind), columns, stride = head, tile_columns(), steps * step_size()
    panel, start, to = keys + jp * stride * columns, init + jp * columns * 4, scores + jp * columns * 2
    if tokens - jp * columns <= narrow_columns():
        tile_narrow(query, width, count - 1, panel, steps, start, quant, kind, to, padded * 2)
    else:
        tile_words(query, width, count - 1, panel, steps, start, quant, kind, to, padded * 2)


@emitted
def copy_bytes(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy `count` bytes between addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        target_, source_, count_ = args

        def step(i: Value, carried: list[Value]) -> list[Value]:
            e.store(builder.add(target_, i), e.load(builder.add(source_, i), I8))
            return []

        e.loop(e.i64(0), count_, 1, [], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@helper
def copy_columns(scratch: Array, at: int, count: int, valid: int, out: Array, row: int, first: int) -> None:
    """The valid columns of a tile of int8 in scratch to the output."""
    for r in range(count):
        for c in range(valid):
            out[row + r, first + c] = scratch[at + r * tile_columns() * 4 + c]
