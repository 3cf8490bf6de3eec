"""exp_weights: exponentials in UINT8 by a table of 256 entries of 15 bits (SPEC 4.21)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from . import _isa
from ._fast import Fast
from ._ir import I8, I16, I32, I64, Emit, Value
from ._jit import emitted, helper, kernel

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled

DITHER = (8, 72, 40, 104, 24, 88, 56, 120)


def pack_table(table: Array) -> NDArray[np.int8]:
    """Entries int16 [heads, 256] as the kernels read them.

    Where a byte permute exists, int8 [heads, 640]: a plane of the bits from 7 up, one of the seven below, the largest
    of these that carry nothing, ones. Otherwise the words themselves, int8 [heads, 512].
    """
    if not _isa.select().vbmi:
        return np.ascontiguousarray(table.astype(np.int16)).view(np.int8)
    constants = np.tile([127 - d for d in DITHER] * 8 + [1] * 64, (len(table), 1))
    return np.concatenate([table >> 7, table & 127, constants], axis=1).astype(np.uint8).view(np.int8)


class _Lookup:
    """Emits e from 64 (bytes) or 32 (words) distances to the row maximum, clamped to [0, 255]."""

    def __init__(self, e: Emit, table: Value) -> None:
        self.e = e
        self.bytes_, self.words = ir.VectorType(I8, 64), ir.VectorType(I16, 32)
        kind = self.bytes_ if e.isa.vbmi else self.words
        self.parts = [e.load(e.offset(table, 64 * i), kind) for i in range(8)]
        self.dither = e.const(kind, list(DITHER) * (kind.count // 8))
        self.threshold = e.const(kind, [127 - d for d in DITHER] * (kind.count // 8))

    def from_bytes(self, t: Value) -> Value:
        """uint8 [64] of t uint8 [64], by two permutes a plane."""
        e, builder = self.e, self.e.builder
        upper = builder.icmp_signed("<", t, e.const(self.bytes_, 0))
        whole, rest = (self._pick(upper, t, self.parts[i : i + 4], "qi") for i in (0, 4))
        carry = builder.icmp_unsigned(">", rest, self.threshold)
        return builder.select(carry, builder.add(whole, e.const(self.bytes_, 1)), whole)

    def from_words(self, t: Value) -> Value:
        """int16 [32] of t int16 [32], by four permutes."""
        e, builder = self.e, self.e.builder
        quarters = builder.shl(t, e.const(self.words, 8))  # bit 7 of t is the sign
        upper = builder.icmp_signed("<", quarters, e.const(self.words, 0))
        odd = builder.icmp_signed("<", builder.shl(t, e.const(self.words, 9)), e.const(self.words, 0))
        low, high = (self._pick(odd, t, self.parts[i : i + 4], "hi") for i in (0, 4))
        value = builder.select(upper, high, low)
        return builder.lshr(builder.add(value, self.dither), e.const(self.words, 7))

    def _pick(self, upper: Value, t: Value, parts: list[Value], kind: str) -> Value:
        name = f"llvm.x86.avx512.vpermi2var.{kind}.512"
        low, high = (self.e.call(name, t.type, [parts[i], t, parts[i + 1]]) for i in (0, 2))
        return self.e.builder.select(upper, high, low)


@emitted
def raise_tops(typingctx: Any, logits: Any, stride: Any, tops: Any, first: Any) -> Any:
    """The largest of 64 more logits of every row of a tile, lane by lane (512-bit registers only).

    logits  address of int16 [rows, 64], a row every `stride` bytes;  first  whether there are none before (1)
    tops    address of int16 [rows, 32]
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        logits_, stride_, tops_, first_ = args
        kind, fresh = ir.VectorType(I16, 32), builder.trunc(first_, ir.IntType(1))
        for r in range(e.isa.rows if e.isa.zmm else 0):
            at, top = builder.add(logits_, builder.mul(stride_, e.i64(r))), e.offset(tops_, 64 * r)
            before = builder.select(fresh, e.const(kind, -(2**15)), e.load(top, kind))
            found = e.same("smax", e.load(at, kind), e.load(e.offset(at, 64), kind))
            e.store(top, e.same("smax", before, found))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@emitted
def spread_tops(typingctx: Any, tops: Any) -> Any:
    """Row maxima int16 [rows, 32] at an address to the maximum in all lanes; behind them int32 [rows, 16], sums: zero
    (512-bit registers only)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        rows = e.isa.rows if e.isa.zmm else 0
        found = [e.max_lanes(e.load(e.offset(args[0], 64 * r), ir.VectorType(I16, 32))) for r in range(rows)]
        for r, top in enumerate(found):
            e.store(e.offset(args[0], 64 * r), e.splat(top, 32))
            e.store(e.offset(args[0], 64 * (rows + r)), e.const(ir.VectorType(I32, 16), 0))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@emitted
def strip_weights(
    typingctx: Any,
    logits: Any,
    padded: Any,
    first: Any,
    tokens: Any,
    tops: Any,
    table: Any,
    out: Any,
    totals: Any,
) -> Any:
    """Weights of all rows of a tile from key `first` on, zero from `tokens` to `padded`; their sums (512-bit only).

    logits  address of int16 [rows, padded], in block order (`_tile`) on the vnni path;  padded, first  multiples of 64
    tops    of `spread_tops`: maxima, and what the sums start from;  table  address of a head's `pack_table`
    out     address of uint8 [rows, padded] on the vnni path, elsewhere of int16 [rows, padded] (may be `logits`)
    totals  address of int64 [rows]
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        if e.isa.zmm:
            _emit_strip(e, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), codegen


def _emit_strip(
    e: Emit,
    logits: Value,
    padded: Value,
    first: Value,
    tokens: Value,
    tops: Value,
    table: Value,
    out: Value,
    totals: Value,
) -> None:
    builder, sums, rows = e.builder, ir.VectorType(I32, 16), range(e.isa.rows)
    look = _Lookup(e, table)
    bytes_out = e.isa.name == "vnni"
    kind = look.bytes_ if bytes_out else look.words
    ones = e.const(sums, 0x01010101 if bytes_out else 0x00010001)

    def weights(i: Value, r: int) -> Value:
        row = builder.add(logits, builder.shl(builder.add(builder.mul(padded, e.i64(r)), i), e.i64(1)))
        return _weights(e, look, kind, e.load(e.offset(tops, 64 * r), look.words), row)

    def step(i: Value, carried: list[Value], keep: Value | None = None) -> list[Value]:
        found = []
        for r in rows:
            value = weights(i, r)
            if keep is not None:
                value = builder.select(keep, value, e.const(kind, 0))
            at = builder.add(builder.mul(padded, e.i64(r)), i)
            e.store(builder.add(out, at if bytes_out else builder.shl(at, e.i64(1))), value)
            value = builder.bitcast(value, sums)
            found.append(e.dot8(carried[r], value, ones) if bytes_out else e.dot16(carried[r], value, ones))
        return found

    def last(i: Value, carried: list[Value]) -> list[Value]:
        places = e.const(kind, list(range(kind.count)))
        valid = e.same("smax", e.same("smin", builder.sub(tokens, i), e.i64(kind.count)), e.i64(0))
        limit = e.splat(builder.trunc(valid, kind.element), kind.count)
        return step(i, carried, builder.icmp_signed("<", places, limit))

    whole = builder.and_(tokens, e.i64(-kind.count))
    start = [e.load(e.offset(tops, 64 * (len(rows) + r)), sums) for r in rows]
    if not e.isa.vbmi:  # elsewhere most weights are woven into a product, and one loop is half the compilation
        start = e.loop(first, whole, kind.count, start, step)
        first = e.same("smax", first, whole)
    total = e.loop(first, padded, kind.count, start, last)
    for r in rows:
        e.store(e.offset(totals, 8 * r), builder.zext(e.sum_lanes(total[r]), I64))


def _weights(e: Emit, look: _Lookup, kind: Value, top: Value, row: Value) -> Value:
    """A register of `kind`: the weights of INT16 logits from address `row` on, `top` their row's maximum."""
    # At most 32767: above 255 they are all alike.
    t = [e.same("ssub.sat", top, e.load(e.offset(row, 64 * n), look.words)) for n in range(kind.count // 32)]
    if e.isa.vbmi:
        return look.from_bytes(_packed(e, t, look.bytes_))
    words = [look.from_words(e.same("smin", v, e.const(look.words, 255))) for v in t]
    return _packed(e, words, look.bytes_) if kind == look.bytes_ else words[0]


def _packed(e: Emit, words: list[Value], kind: Value) -> Value:
    return e.call("llvm.x86.avx512.packuswb.512", kind, words)


@helper
def plain_weights(logits: Array, at: int, tokens: int, table: Array, first: int, out: Array, to: int) -> Int:
    """One row by the definition, element by element; returns the sum.

    logits int16, from index `at`;  table int16, from index `first`;  out  uint8 or int16, from index `to`
    """
    dither = (8, 72, 40, 104, 24, 88, 56, 120)
    top = np.int64(logits[at])
    for j in range(1, tokens):
        top = max(top, np.int64(logits[at + j]))
    total = np.int64(0)
    for j in range(tokens):
        t = min(top - np.int64(logits[at + j]), np.int64(255))
        value = (np.int64(table[first + t]) + dither[j & 7]) >> 7
        out[to + j] = value
        total += value
    return total


@kernel("void(int16[::1], int64, int16[::1], int64, uint8[::1])")
def exp_weights(x: Array, count: int, tables: Array, rows: int, out: Array) -> None:
    """x, out  [batch * rows * count], flat;  tables [batch * 256]; rows of any length, element by element."""
    for i in range(x.shape[0] // count):
        plain_weights(x, i * count, count, tables, i // rows * 256, out, i * count)


def exp_weights_op(x: Array, *, table: Array) -> Array:
    """`intseg.ops.exp_weights`."""
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty(flat.shape, np.uint8)
    exp_weights(flat, x.shape[-1], np.ascontiguousarray(table).reshape(-1), x.shape[-2], out)
    return out.reshape(x.shape)


OPS = {"exp_weights": Fast(exp_weights_op)}
