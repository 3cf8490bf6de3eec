"""The register tile of every matrix product: rows x columns INT32 accumulators over one loop, requantized in place.

Operands (see `_isa.Isa` for rows, columns, group):
    a       rows of bytes (group 4 or 8) or INT16 (group 2), K padded to the group. The vnni path multiplies uint8: of
            int8 it takes x xor 0x80 as it loads them
    panel   [K / group][columns][group], columns in `lane_order`
    init    int32 [columns] in lane order: bias, minus 128 times the column sum on the vnni path
    quant   per vector: mult of even lanes, of odd ones, INT64; rounding >> 32, shift - 32, INT32 (`linear.pack_quant`)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import impl_ret_borrowed
from numpy.typing import NDArray

from . import _isa
from ._ir import I8, I16, I32, I64, Emit, Value
from ._jit import emitted, helper

INT8, INT16, RAW, BLOCKED, SHIFTED, SHIFTED_BLOCKED = range(6)
"""What a tile stores: int8 or int16 in column order, int32 accumulators in lane order, int16 in block order.

Plus 2^8 n: accumulators are shifted left by n first, which must not overflow. It makes up for shifts below LEAST_SHIFT.
The last two are INT16 and BLOCKED of acc >> n, 1 <= n <= 30, without a multiplier: `init` has half of 2^n for RSR. INT8
plus 2^16 times the largest result, 127 or 2^(b-1) - 1.
"""

QUANT_BYTES = 16
"""Bytes of requantization parameters per column."""

LEAST_SHIFT = 33
"""Least shift of `requantize`."""

_PREFETCH_STEPS = 8

Dot = Callable[[Value, Value, Value], Value]


def lane_order(isa: _isa.Isa) -> NDArray[np.int64]:
    """Column of a panel that each lane holds, lane by lane.

    With 512-bit registers packs work inside 128-bit blocks: vector j, lane 4 b + i holds column 16 b + 4 j + i, so that
    packing 4 vectors to bytes gives columns in order. Elsewhere lanes are in order already.
    """
    lane = np.arange(isa.columns)
    if not isa.zmm:
        return lane
    vector, block, inner = lane // 16, lane % 16 // 4, lane % 4
    order: NDArray[np.int64] = 16 * block + 4 * vector + inner
    return order


def requantize(e: Emit, acc: Value, quant: Value) -> Value:
    """RSR(acc * mult, shift) in INT32 lanes for 33 <= shift <= 62: products of even and of odd lanes as INT64.

    Half of 2^shift has no bits below 2^32, so the upper halves of the products are all that the rounding sees; with
    |acc * mult| < 2^62 the sum of the two stays below 2^31.
    """
    builder, lanes = e.builder, acc.type.count
    wide = ir.VectorType(I64, lanes // 2)
    by = e.const(wide, 32)

    pairs = builder.bitcast(acc, wide)
    parts = [e.signed_low(pairs), builder.ashr(pairs, by)]
    mults = [e.load(e.offset(quant, 4 * lanes * j), wide) for j in (0, 1)]
    even, odd = (
        builder.bitcast(builder.mul(part, e.signed_low(mult)), acc.type)
        for part, mult in zip(parts, mults, strict=True)
    )
    upper = upper_halves(e, even, odd)
    rounding, shift = (e.load(e.offset(quant, 4 * lanes * j), acc.type) for j in (2, 3))
    return builder.ashr(builder.add(upper, rounding), shift)


def upper_halves(e: Emit, even: Value, odd: Value) -> Value:
    """Bits 32 to 63 of the products of even and of odd lanes, given as pairs of INT32, in lane order."""
    lanes = even.type.count
    return e.shuffle(even, odd, [2 * (i // 2) + 1 + lanes * (i % 2) for i in range(lanes)])


def _pack(e: Emit, name: str, a: Value, b: Value, element: Value) -> Value:
    kind = ir.VectorType(element, 2 * a.type.count)
    return e.call(f"llvm.x86.avx512.{name}.512", kind, [a, b])


def store_int16(e: Emit, address: Value, vectors: list[Value], blocked: bool) -> None:
    """Saturate the columns of one row to INT16 and store them; `blocked` leaves packs as they come (zmm only)."""
    if not e.isa.zmm:
        narrow = [e.builder.trunc(e.clamp(v, -(2**15), 2**15 - 1), ir.VectorType(I16, v.type.count)) for v in vectors]
        e.store(address, e.concat(narrow))
        return
    first, second = (_pack(e, "packssdw", vectors[i], vectors[i + 1], I16) for i in (0, 2))
    if not blocked:
        quads = [e.builder.bitcast(v, ir.VectorType(I64, 8)) for v in (first, second)]
        order = [0, 1, 8, 9, 2, 3, 10, 11]
        first, second = (e.shuffle(quads[0], quads[1], [i + start for i in order]) for start in (0, 4))
    e.store(address, first)
    e.store(e.offset(address, 64), second)


def highest(out: str) -> int:
    """The largest result of a type: "int4" to "int8", "int16"."""
    return (1 << (int(out.removeprefix("int")) - 1)) - 1


def held(out: str) -> str:
    """The dtype that holds results of a type."""
    return "int16" if out == "int16" else "int8"


def narrow_int8(e: Emit, vectors: list[Value], high: Value) -> Value:
    """Saturate the columns of one row to [-high - 1, high], high an INT64 of at most 127: INT8, in column order."""
    if not e.isa.zmm:
        parts = [e.clamp(v, -(2**7), 2**7 - 1) for v in vectors]
        found = e.concat([e.builder.trunc(v, ir.VectorType(I8, v.type.count)) for v in parts])
    else:
        words = [_pack(e, "packssdw", vectors[i], vectors[i + 1], I16) for i in (0, 2)]
        found = _pack(e, "packsswb", words[0], words[1], I8)
    return e.within(found, high)


def _make_tile(dot: str, stores: str, narrow: bool = False, signed: bool = True) -> Any:
    """The tile over one of the two dot products; a narrow one computes only the first vector of columns.

    stores  the kinds that it knows: "all", "raw" or "words"; what is not there need not be compiled
    """

    def product(
        typingctx: Any,
        a: Any,
        stride: Any,
        last: Any,
        panel: Any,
        steps: Any,
        init: Any,
        quant: Any,
        kind: Any,
        out: Any,
        out_stride: Any,
    ) -> Any:
        """One register tile: addresses and byte strides as INT64; rows beyond `last` repeat row `last`."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emit(context, builder)
            used = 1 if narrow else e.isa.vectors
            _emit_tile(e, e.dot8 if dot == "dot8" else e.dot16, used, *args, signed=signed, stores=stores)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), codegen

    return emitted(product)


tile = _make_tile("dot8", "all")
"""Over INT8 (or, for group 2, INT16)."""

tile_words = _make_tile("dot8", "words")
"""As `tile`, for results of INT16."""

tile_bytes = _make_tile("dot8", "raw", signed=False)
"""Sums over the bytes that the instruction of the path takes, uint8 on the vnni path (or, for group 2, INT16)."""

tile16 = _make_tile("dot16", "all", signed=False)
"""Over INT16 on every path."""

tile_narrow = _make_tile("dot8", "words", narrow=True)
"""As `tile_words`, for panels with at most `narrow_columns` columns in use; the others have their results in init."""


def _emit_tile(
    e: Emit,
    dot: Dot,
    used: int,
    a: Value,
    stride: Value,
    last: Value,
    panel: Value,
    steps: Value,
    init: Value,
    quant: Value,
    kind: Value,
    out: Value,
    out_stride: Value,
    *,
    signed: bool = True,
    stores: str = "all",
) -> None:
    isa, builder = e.isa, e.builder
    width = 4 * isa.lanes
    rows, outs = [], []
    for r in range(isa.rows):
        row = e.same("smin", e.i64(r), last)
        rows.append(builder.add(a, builder.mul(row, stride)))
        outs.append(builder.add(out, builder.mul(row, out_stride)))
    start = [e.load(e.offset(init, j * width), ir.VectorType(I32, isa.lanes)) for j in range(isa.vectors)]
    if isa.name == "i8mm" and dot == e.dot8:
        tile_rows = _pair_sums(e, dot, used, rows, panel, steps, start)
    else:
        flip = _hidden_splat(e, 0x80808080) if signed and isa.name == "vnni" else None
        tile_rows = _lane_sums(e, dot, used, rows, panel, steps, start, flip)
    if stores == "raw":
        _store_raw(e, tile_rows, outs)
    elif stores == "words":
        _store_results(e, tile_rows, quant, kind, outs, words_only=True)
    else:
        with builder.if_else(builder.icmp_signed("==", kind, e.i64(RAW))) as (raw, scaled):
            with raw:
                _store_raw(e, tile_rows, outs)
            with scaled:
                _store_results(e, tile_rows, quant, kind, outs, words_only=False)


def _store_raw(e: Emit, tile_rows: list[list[Value]], outs: list[Value]) -> None:
    for row_out, values in zip(outs, tile_rows, strict=True):
        for j, value in enumerate(values):
            e.store(e.offset(row_out, 4 * j * e.isa.lanes), value)


def _store_results(
    e: Emit, tile_rows: list[list[Value]], quant: Value, kind: Value, outs: list[Value], words_only: bool
) -> None:
    """All kinds but RAW; without INT8 if that is known."""
    builder = e.builder
    high, amount = builder.lshr(kind, e.i64(16)), builder.and_(builder.lshr(kind, e.i64(8)), e.i64(255))
    kind = builder.and_(kind, e.i64(255))
    with builder.if_else(builder.icmp_signed("<", kind, e.i64(SHIFTED))) as (multiplied, halved):
        with multiplied:
            scaled = _scaled(e, _shifted(e, tile_rows, amount), quant)
            if words_only:
                _store_words(e, scaled, kind, INT16, outs)
            else:
                _store_scaled(e, scaled, kind, high, outs)
        with halved:
            _store_words(e, _halved(e, tile_rows, amount), kind, SHIFTED, outs)


def _hidden_splat(e: Emit, value: int) -> Value:
    """A constant in all lanes that LLVM does not see: it would do what is done with it before a broadcast, where the
    broadcast, a load, costs nothing (512-bit only)."""
    kind = ir.FunctionType(ir.VectorType(I32, 16), [I32])
    return e.builder.call(ir.InlineAsm(kind, "vpbroadcastd $1, $0", "=v,r"), [e.const(I32, value)])


def _lane_sums(
    e: Emit,
    dot: Dot,
    used: int,
    rows: list[Value],
    panel: Value,
    steps: Value,
    start: list[Value],
    flip: Value | None,
) -> list[list[Value]]:
    """Accumulators of every row: a column in every lane, a group of a row, xor `flip`, against as many of a column."""
    isa, builder = e.isa, e.builder
    vector, width = ir.VectorType(I32, isa.lanes), 4 * isa.lanes

    def step(k: Value, accs: list[Value]) -> list[Value]:
        here = builder.add(panel, builder.mul(k, e.i64(isa.vectors * width)))
        for j in range(max(1, used * width // 64)):
            e.prefetch(e.offset(here, _PREFETCH_STEPS * isa.vectors * width + 64 * j))
        columns = [e.load(e.offset(here, j * width), vector) for j in range(used)]
        result = []
        for r, row in enumerate(rows):
            group = e.splat(e.load(builder.add(row, builder.shl(k, e.i64(2))), I32), isa.lanes)
            group = builder.xor(group, flip) if flip is not None else group
            result += [dot(accs[r * used + j], group, columns[j]) for j in range(used)]
        return result

    accs = e.loop(e.i64(0), steps, 1, start[:used] * isa.rows, step)
    return [accs[r * used : (r + 1) * used] + start[used:] for r in range(isa.rows)]


def _pair_sums(
    e: Emit, dot: Dot, used: int, rows: list[Value], panel: Value, steps: Value, start: list[Value]
) -> list[list[Value]]:
    """As `_lane_sums` with i8mm: a register holds 2 rows x 2 columns while summing, and rows are picked at the end."""
    isa, builder = e.isa, e.builder
    bytes_, wide = ir.VectorType(I8, 16), ir.VectorType(I64, 2)
    twice = [e.shuffle(v, v, lanes) for v in start[:used] for lanes in ([0, 1, 0, 1], [2, 3, 2, 3])]
    many = isa.rows // 2

    def step(k: Value, accs: list[Value]) -> list[Value]:
        here = builder.add(panel, builder.mul(k, e.i64(isa.columns * 8)))
        for at in range(0, max(64, used * 32), 64):
            e.prefetch(e.offset(here, _PREFETCH_STEPS * isa.columns * 8 + at))
        pairs = []
        for r in range(0, isa.rows, 2):
            pair = ir.Constant(wide, ir.Undefined)
            for i in (0, 1):
                group = e.load(builder.add(rows[r + i], builder.shl(k, e.i64(3))), I64)
                pair = builder.insert_element(pair, group, e.const(I32, i))
            pairs.append(builder.bitcast(pair, bytes_))
        result = []
        for j in range(2 * used):
            column = e.load(e.offset(here, 16 * j), bytes_)
            result += [e.pairs8(acc, pair, column) for acc, pair in zip(accs[many * j :][:many], pairs, strict=True)]
        return result

    accs = e.loop(e.i64(0), steps, 1, [value for value in twice for _ in range(many)], step)
    found = []
    for r in range(isa.rows):
        pairs = accs[r // 2 :: many]
        pick = [4 * half + 2 * (r % 2) + i for half in (0, 1) for i in (0, 1)]
        found.append([e.shuffle(pairs[2 * j], pairs[2 * j + 1], pick) for j in range(used)] + start[used:])
    return found


def _shifted(e: Emit, tile_rows: list[list[Value]], by: Value) -> list[list[Value]]:
    """Accumulators shifted left by a scalar, behind a branch because it is nearly always zero."""
    builder, lanes = e.builder, e.isa.lanes
    before, inside, after = builder.block, *(builder.append_basic_block(name) for name in ("shift", "shifted"))
    builder.cbranch(builder.icmp_signed("==", by, e.i64(0)), after, inside)
    builder.position_at_end(inside)
    amount = e.splat(builder.trunc(by, I32), lanes)
    moved = [[builder.shl(value, amount) for value in row] for row in tile_rows]
    builder.branch(after)
    builder.position_at_end(after)
    return [
        [e.merge((value, before), (result, inside)) for value, result in zip(*pair, strict=True)]
        for pair in zip(tile_rows, moved, strict=True)
    ]


def _halved(e: Emit, tile_rows: list[list[Value]], by: Value) -> list[list[Value]]:
    """Accumulators shifted right by a scalar."""
    amount = e.splat(e.builder.trunc(by, I32), e.isa.lanes)
    return [[e.builder.ashr(value, amount) for value in row] for row in tile_rows]


def _scaled(e: Emit, tile_rows: list[list[Value]], quant: Value) -> list[list[Value]]:
    """Accumulators requantized."""
    width, scaled = QUANT_BYTES * e.isa.lanes, [list[Value]() for _ in tile_rows]
    for j in range(e.isa.vectors):
        for values, row in zip(tile_rows, scaled, strict=True):
            row.append(requantize(e, values[j], e.offset(quant, j * width)))
    return scaled


def _store_scaled(e: Emit, scaled: list[list[Value]], kind: Value, high: Value, outs: list[Value]) -> None:
    with e.builder.if_else(e.builder.icmp_signed("==", kind, e.i64(INT8))) as (bytes_, words):
        with bytes_:
            for out, row in zip(outs, scaled, strict=True):
                e.store(out, narrow_int8(e, row, high))
        with words:
            _store_words(e, scaled, kind, INT16, outs)


def _store_words(e: Emit, rows: list[list[Value]], kind: Value, ordered_kind: int, outs: list[Value]) -> None:
    """Rows of INT32 to INT16, in column order where `kind` is `ordered_kind`, otherwise in block order."""
    with e.builder.if_else(e.builder.icmp_signed("==", kind, e.i64(ordered_kind))) as (ordered, blocked):
        for branch, in_blocks in ((ordered, False), (blocked, True)):
            with branch:
                for out, row in zip(outs, rows, strict=True):
                    store_int16(e, out, row, in_blocks)


def _constant(pick: Any) -> Any:
    """An intrinsic without arguments that is a property of the instruction path, folded during code generation."""

    def constant(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emit(context, builder)
            return e.i64(int(pick(e.isa)))

        return types.int64(), codegen

    return emitted(constant)


tile_rows = _constant(lambda isa: isa.rows)
tile_columns = _constant(lambda isa: isa.columns)
narrow_columns = _constant(lambda isa: 4 if isa.zmm else isa.lanes)
register_bytes = _constant(lambda isa: isa.lanes * isa.group)
quant_bytes = _constant(lambda isa: QUANT_BYTES)
group_size = _constant(lambda isa: isa.group)
step_size = _constant(lambda isa: isa.step)
biased = _constant(lambda isa: isa.name == "vnni")
has_zmm = _constant(lambda isa: isa.zmm)


@emitted
def address(typingctx: Any, array: Any) -> Any:
    """Address of the first element of an array. The caller keeps the array alive: pass arrays as arguments only."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, I64)

    return types.int64(array), codegen


@emitted
def viewed(typingctx: Any, array: Any, kind: Any) -> Any:
    """`array.view(kind)` of INT8 in C order, whose compilation takes Numba a tenth of a second each; never copies."""
    result = array.copy(dtype=kind.dtype)
    size = kind.dtype.bitwidth // 8
    unpacked: Any = cgutils.unpack_tuple
    packed: Any = cgutils.pack_array

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        seen = context.make_array(array)(context, builder, args[0])
        out = context.make_array(result)(context, builder)
        shape, strides = ([*unpacked(builder, part)] for part in (seen.shape, seen.strides))
        shape[-1], strides[-1] = builder.sdiv(shape[-1], I64(size)), I64(size)
        out.shape, out.strides = (packed(builder, part) for part in (shape, strides))
        out.data = builder.bitcast(seen.data, out.data.type)
        out.itemsize, out.nitems = I64(size), builder.sdiv(seen.nitems, I64(size))
        out.meminfo, out.parent = seen.meminfo, seen.parent
        borrowed: Any = impl_ret_borrowed
        return borrowed(context, builder, result, out._getvalue())

    return result(array, kind), codegen


@emitted
def load_word(typingctx: Any, at: Any) -> Any:
    """The INT64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Emit(context, builder).load(args[0], I64)

    return types.int64(types.int64), codegen


@helper
def unstaged(depth: int) -> bool:
    """Whether a tile takes rows of `depth` INT8 as they are; otherwise they are staged: widened, or padded."""
    whole: bool = group_size() != 2 and depth % step_size() == 0
    return whole


@helper
def ceil_div(a: int, b: int) -> int:
    """ceil(a / b) for a >= 0, b > 0."""
    return (a + b - 1) // b
