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
    """Entries int16 [heads, 256] as the row kernel reads them, int8 [heads, 512]: a plane of the bits from 7 up and one
    of the seven below where a byte permute exists, otherwise the words themselves."""
    if not _isa.select().vbmi:
        return np.ascontiguousarray(table.astype(np.int16)).view(np.int8)
    return np.concatenate([table >> 7, table & 127], axis=1).astype(np.uint8).view(np.int8)


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
def row_weights(typingctx: Any, row: Any, tokens: Any, padded: Any, top: Any, table: Any, out: Any) -> Any:
    """Weights of one row of INT16 logits, zero from `tokens` to `padded`; returns their sum (512-bit registers only).

    row     address of int16 [padded], in block order (`_tile`) on the vnni path; padded a multiple of 64
    top     the row maximum;  table  address of a head's `pack_table`
    out     address of uint8 [padded] on the vnni path, elsewhere of int16 [padded] (may be `row`)
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        return _emit_row(e, *args) if e.isa.zmm else e.i64(0)

    return types.int64(*[types.int64] * 6), codegen


def _emit_row(e: Emit, row: Value, tokens: Value, padded: Value, top: Value, table: Value, out: Value) -> Value:
    builder, sums = e.builder, ir.VectorType(I32, 16)
    look = _Lookup(e, table)
    maximum = e.splat(builder.trunc(top, I16), 32)
    bytes_out = e.isa.name == "vnni"
    kind = look.bytes_ if bytes_out else look.words
    ones = e.const(sums, 0x01010101 if bytes_out else 0x00010001)

    def distance(at: Value) -> Value:
        return e.same("ssub.sat", maximum, e.load(at, look.words))  # at most 32767: above 255 they are all alike

    def pack(a: Value, b: Value) -> Value:
        return e.call("llvm.x86.avx512.packuswb.512", look.bytes_, [a, b])

    def weights(i: Value) -> Value:
        at = builder.add(row, builder.shl(i, e.i64(1)))
        if e.isa.vbmi:
            return look.from_bytes(pack(distance(at), distance(e.offset(at, 64))))
        limit = e.const(look.words, 255)
        count = 2 if bytes_out else 1
        words = [look.from_words(e.same("smin", distance(e.offset(at, 64 * n)), limit)) for n in range(count)]
        return pack(*words) if bytes_out else words[0]

    def step(i: Value, carried: list[Value], keep: Value | None = None) -> list[Value]:
        value = weights(i)
        if keep is not None:
            value = builder.select(keep, value, e.const(kind, 0))
        e.store(builder.add(out, i if bytes_out else builder.shl(i, e.i64(1))), value)
        value = builder.bitcast(value, sums)
        return [e.dot8(carried[0], value, ones) if bytes_out else e.dot16(carried[0], value, ones)]

    def last(i: Value, carried: list[Value]) -> list[Value]:
        places = e.const(kind, list(range(kind.count)))
        valid = e.same("smax", e.same("smin", builder.sub(tokens, i), e.i64(kind.count)), e.i64(0))
        limit = e.splat(builder.trunc(valid, kind.element), kind.count)
        return step(i, carried, builder.icmp_signed("<", places, limit))

    whole = builder.and_(tokens, e.i64(-kind.count))
    total = e.loop(e.i64(0), whole, kind.count, [e.const(sums, 0)], step)
    total = e.loop(whole, padded, kind.count, total, last)
    return builder.zext(e.sum_lanes(total[0]), I64)


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
