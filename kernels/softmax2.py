"""softmax2: the base-2 softmax in 16-bit lanes, and its plain form (SPEC 4.8).

With e2 = 2 e and the 16-bit reciprocal f of IntDiv: (e2 f) >> 16 = (e f) >> 15, and RSR(e f, c) is
(((e f) >> 15 >> (c - 16)) + 1) >> 1 for c >= 16. RSR(p, q) = ((2 p >> q) + 1) >> 1 holds for q = 0 too. The row maximum
contributes e = 32767, so c >= 15; c = 15 means that all others are zero, and the saturated result 32767 is what
f = 65535, c = 16 gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from . import _isa
from ._fast import Attention, Fast
from ._heads import Scores, pack_scores
from ._ir import I16, I32, I64, Emit, Value
from ._jit import emitted, helper, kernel
from ._rows import bit_length, row_max
from ._tile import address, biased, tile_rows, viewed
from .attention import Strip, context_strip, fused, pack_values, shape, zero_start

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled


def _words(e: Emit) -> Value:
    return ir.VectorType(I16, 2 * e.isa.lanes)


def _high_product(e: Emit, a: Value, b: Value) -> Value:
    """(a b) >> 16 of unsigned 16-bit lanes; LLVM selects pmulhuw."""
    if e.isa.zmm:
        return e.call("llvm.x86.avx512.pmulhu.w.512", a.type, [a, b])
    wide = ir.VectorType(I32, a.type.count)
    product = e.builder.mul(e.builder.zext(a, wide), e.builder.zext(b, wide))
    return e.builder.trunc(e.builder.lshr(product, e.const(wide, 16)), a.type)


def _shift_right(e: Emit, a: Value, q: Value) -> Value:
    """a >> q of unsigned 16-bit lanes, zero from q = 16 on."""
    if e.isa.zmm:
        return e.call("llvm.x86.avx512.psrlv.w.512", a.type, [a, q])
    small = e.builder.lshr(a, e.same("umin", q, e.const(q.type, 15)))
    return e.builder.select(e.builder.icmp_unsigned("<", q, e.const(q.type, 16)), small, e.const(a.type, 0))


def _half_up(e: Emit, a: Value) -> Value:
    """(a + 1) >> 1, for a < 2^16 - 1."""
    return e.builder.lshr(e.builder.add(a, e.const(a.type, 1)), e.const(a.type, 1))


@emitted
def row_powers(typingctx: Any, row: Any, count: Any, top: Any, frac_bits: Any, a1: Any, a2: Any) -> Any:
    """Replace INT16 logits by e in place; returns the sum of all e (unsigned 32 bits, count <= 2^17)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        address, count_, top_, frac, a1_, a2_ = args
        kind = _words(e)

        def splat(value: Value) -> Value:
            return e.splat(builder.trunc(value, I16), kind.count)

        maximum, q_shift, c1, c2 = splat(top_), splat(frac), splat(a1_), splat(a2_)
        f_shift = splat(builder.sub(e.i64(15), frac))
        ones = e.const(kind, 1)
        sums = ir.VectorType(I32, e.isa.lanes)

        def step(i: Value, carried: list[Value]) -> list[Value]:
            at = builder.add(address, builder.shl(i, e.i64(1)))
            t = builder.sub(maximum, e.load(at, kind))  # 0..65535 in 16 bits
            q = builder.lshr(t, q_shift)
            f2 = builder.shl(builder.shl(t, f_shift), ones)  # 2 f: higher bits of t fall out
            slope = builder.sub(c1, _high_product(e, f2, c2))
            drop = _high_product(e, f2, slope)
            twice = builder.sub(e.const(kind, -2), builder.add(drop, drop))  # 2 (32767 - drop)
            power = _half_up(e, _shift_right(e, twice, q))
            e.store(at, power)
            return [e.dot16(carried[0], builder.bitcast(power, sums), builder.bitcast(ones, sums))]

        total = e.loop(e.i64(0), count_, kind.count, [e.const(sums, 0)], step)[0]
        return builder.zext(e.sum_lanes(total), I64)

    return types.int64(*[types.int64] * 6), codegen


@emitted
def row_scale(typingctx: Any, row: Any, count: Any, reciprocal: Any, shift: Any, out: Any) -> Any:
    """p = IntDiv(e, sum) of INT16 e, to INT16 at `out` (may be `row`)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        address, count_, reciprocal_, shift_, out_ = args
        scale = _Scale(e, reciprocal_, shift_)

        def step(i: Value, carried: list[Value]) -> list[Value]:
            at = builder.shl(i, e.i64(1))
            e.store(builder.add(out_, at), scale(builder.add(address, at)))
            return []

        e.loop(e.i64(0), count_, scale.kind.count, [], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@emitted
def row_scale_split(typingctx: Any, row: Any, count: Any, reciprocal: Any, shift: Any, low: Any, high: Any) -> Any:
    """As row_scale on a row in block order (zmm only), to a plane of low bytes and one of high bytes, in order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        address, count_, reciprocal_, shift_, low_, high_ = args
        scale = _Scale(e, reciprocal_, shift_)
        if not e.isa.zmm:
            return context.get_dummy_value()
        bytes_ = ir.VectorType(ir.IntType(8), 64)

        def pack(a: Value, b: Value) -> Value:
            return e.call("llvm.x86.avx512.packuswb.512", bytes_, [a, b])

        def step(i: Value, carried: list[Value]) -> list[Value]:
            at = builder.add(address, builder.shl(i, e.i64(1)))
            a, b = scale(at), scale(e.offset(at, 64))
            mask, eight = e.const(a.type, 255), e.const(a.type, 8)
            e.store(builder.add(low_, i), pack(builder.and_(a, mask), builder.and_(b, mask)))
            e.store(builder.add(high_, i), pack(builder.lshr(a, eight), builder.lshr(b, eight)))
            return []

        e.loop(e.i64(0), count_, 64, [], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


class _Scale:
    """Emits p = ((((2 e) f >> 16) >> (c - 16)) + 1) >> 1 for the vector of e at an address."""

    def __init__(self, e: Emit, reciprocal: Value, shift: Value) -> None:
        self.e, self.kind = e, _words(e)
        self.reciprocal = e.splat(e.builder.trunc(reciprocal, I16), self.kind.count)
        self.shift = e.splat(e.builder.trunc(shift, I16), self.kind.count)

    def __call__(self, address: Value) -> Value:
        e, value = self.e, self.e.load(address, self.kind)
        product = _high_product(e, e.builder.add(value, value), self.reciprocal)
        return _half_up(e, e.builder.lshr(product, self.shift))


@helper
def divisor(total: Int) -> tuple[Int, Int]:
    """(f, c - 16) of IntDiv by a row sum of at least 32767, for 16-bit lanes."""
    length = bit_length(total)
    if length == 15:
        return np.int64(65535), np.int64(0)
    return np.int64(2**46 - 1) // (total << (31 - length)), length - 16


@helper
def plain_row(x: Array, out: Array, row: int, frac_bits: int, a1: int, a2: int) -> None:
    """One row by the definition, element by element: the fallback and the oracle of the vector form."""
    count = x.shape[1]
    top = np.int64(x[row, 0])
    for j in range(1, count):
        top = max(top, np.int64(x[row, j]))
    total = np.int64(0)
    for j in range(count):
        t = top - np.int64(x[row, j])
        q = t >> frac_bits
        f = (t & ((np.int64(1) << frac_bits) - 1)) << (15 - frac_bits)
        power = np.int64(32767) - ((f * (a1 - ((a2 * f) >> 15))) >> 15)
        q = min(q, np.int64(17))
        e = power if q == 0 else (power + (np.int64(1) << (q - 1))) >> q
        out[row, j] = e
        total += e
    length = bit_length(total)
    reciprocal = np.int64(2**46 - 1) // (total << (31 - length))
    half = np.int64(1) << (length - 1)
    for j in range(count):
        out[row, j] = min((np.int64(out[row, j]) * reciprocal + half) >> length, np.int64(32767))


@kernel("void(int16[:, ::1], int16[:, ::1], int64, int64, int64)")
def softmax2(x: Array, out: Array, frac_bits: int, a1: int, a2: int) -> None:
    """x, out  int16 [M, N]; rows of any length, element by element."""
    for row in range(x.shape[0]):
        plain_row(x, out, row, frac_bits, a1, a2)


def softmax2_op(x: Array, *, frac_bits: int, a1: int, a2: int) -> Array:
    """`intseg.ops.softmax2`."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    softmax2(rows, out, frac_bits, a1, a2)
    return out.reshape(x.shape)


@helper
def _weigh(scratch: Array, strip: Strip, count: int, tokens: int, padded: int, softmax: Array, head: int) -> None:
    """Rows of INT16 logits to probabilities: INT16 in place, or byte planes.

    softmax  int64 [3]: frac_bits, a1, a2
    """
    logits, at, plane_at = viewed(scratch, np.int16), strip[0] // 2, strip[1]
    scores, low = address(scratch) + strip[0], address(scratch) + strip[1]
    for r in range(count):
        row = scores + r * padded * 2
        top = row_max(row, padded)
        total = row_powers(row, padded, top, softmax[0], softmax[1], softmax[2])
        pad_power = np.int64(logits[at + (r + 1) * padded - 1]) if padded > tokens else np.int64(0)
        total -= pad_power * (padded - tokens)
        reciprocal, shift = divisor(total)
        if biased():
            plane = low + r * padded
            high = plane + tile_rows() * padded
            row_scale_split(row, padded, reciprocal, shift, plane, high)
            if pad_power > 0:  # rare: the high plane must not lead to values beyond the last token
                for n in range(tokens, padded):
                    scratch[plane_at + (tile_rows() + r) * padded + n] = 0
        else:
            row_scale(row, padded, reciprocal, shift, row)


def _pack_scores(mult: Array, shift: Array, head_dim: int) -> Scores | None:
    """See `_heads`: the power of a padded key is read off, so it has to saturate."""
    return pack_scores(mult, shift, head_dim, _isa.select().name == "vnni", True)


def _coefficients(params: Any, attrs: Any) -> NDArray[np.int64]:
    return np.array([attrs[name] for name in ("frac_bits", "a1", "a2")], np.int64)


OPS = {"softmax2": Fast(softmax2_op)}

ATTENTIONS = {
    "softmax2": Attention(
        "matmul",
        fused(__name__, "int64[::1]", zero_start, _weigh, context_strip),
        shape,
        _pack_scores,
        pack_values,
        _coefficients,
    )
}
