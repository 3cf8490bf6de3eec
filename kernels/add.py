"""add: residual addition (SPEC 4.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from ._fast import Fast, Work
from ._ir import I16, I32, I64, Emit, Value
from ._jit import emitted, inlined, kernel
from ._tile import address, has_zmm

Array = NDArray[Any]


@emitted
def row_add(
    typingctx: Any, a: Any, b: Any, count: Any, mult_a: Any, shift_a: Any, mult_b: Any, shift_b: Any, out: Any
) -> Any:
    """The first of `count` INT16 at addresses a and b, a register at a time, to `out`; returns how many."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _emit_row_add(Emit(context, builder), *args)

    return types.int64(*[types.int64] * 8), codegen


def _emit_row_add(
    e: Emit,
    a: Value,
    b: Value,
    count: Value,
    mult_a: Value,
    shift_a: Value,
    mult_b: Value,
    shift_b: Value,
    out: Value,
) -> Value:
    builder, lanes = e.builder, e.isa.lanes
    ints, wide = ir.VectorType(I32, lanes), ir.VectorType(I64, lanes // 2)
    low = e.const(wide, 32)

    branches = []
    for source, mult, shift in ((a, mult_a, shift_a), (b, mult_b, shift_b)):
        half = builder.shl(e.i64(1), builder.sub(shift, e.i64(1)))
        branches.append((source, *(e.splat(v, lanes // 2) for v in (mult, half, shift))))
    pick = [i + lanes * (i % 2) for i in range(lanes)]

    def step(i: Value, carried: list[Value]) -> list[Value]:
        at = builder.shl(i, e.i64(1))
        even, odd = e.const(wide, 0), e.const(wide, 0)
        for source, mult, half, shift in branches:
            x = builder.sext(e.load(builder.add(source, at), ir.VectorType(I16, lanes)), ints)
            pairs = builder.bitcast(x, wide)
            parts = [
                builder.ashr(builder.add(builder.mul(v, e.signed_low(mult)), half), shift)
                for v in (e.signed_low(pairs), builder.ashr(pairs, low))
            ]
            even, odd = builder.add(even, parts[0]), builder.add(odd, parts[1])
        # Branches stay below 2^29: the low 32 bits of a sum are all of it.
        both = e.shuffle(builder.bitcast(even, ints), builder.bitcast(builder.shl(odd, low), ints), pick)
        e.store(builder.add(out, at), builder.trunc(e.clamp(both, -(2**15), 2**15 - 1), ir.VectorType(I16, lanes)))
        return []

    whole = builder.and_(count, e.i64(-lanes))
    e.loop(e.i64(0), whole, lanes, [], step)
    return whole


@emitted
def row_add_words(
    typingctx: Any, a: Any, b: Any, count: Any, pair_a: Any, shift_a: Any, pair_b: Any, shift_b: Any, out: Any
) -> Any:
    """As `row_add` in 16-bit lanes, for branches that `splits`; `pair` is `_pair` of the multiplier. 512-bit only.

    With m = h 2^16 + l and c = x l >> 16, floor(x m / 2^16) = x h + c, one dot product of (x, c) and (h, 1); a shift of
    17 or more cannot see what the floor drops.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        return _emit_words(e, *args) if e.isa.zmm else e.i64(0)

    return types.int64(*[types.int64] * 8), codegen


def _emit_words(
    e: Emit,
    a: Value,
    b: Value,
    count: Value,
    pair_a: Value,
    shift_a: Value,
    pair_b: Value,
    shift_b: Value,
    out: Value,
) -> Value:
    builder, words, ints = e.builder, ir.VectorType(I16, 32), ir.VectorType(I32, 16)
    branches = []
    for source, pair, shift in ((a, pair_a, shift_a), (b, pair_b, shift_b)):
        low = e.splat(builder.trunc(builder.lshr(pair, e.i64(32)), I16), 32)
        half = builder.trunc(builder.shl(e.i64(1), builder.sub(shift, e.i64(17))), I32)
        by = builder.trunc(builder.sub(shift, e.i64(16)), I32)
        branches.append((source, low, e.splat(builder.trunc(pair, I32), 16), e.splat(half, 16), e.splat(by, 16)))

    def step(i: Value, carried: list[Value]) -> list[Value]:
        at = builder.shl(i, e.i64(1))
        sums = []
        for source, low, pair, half, by in branches:
            x = e.load(builder.add(source, at), words)
            c = e.call("llvm.x86.avx512.pmulh.w.512", words, [x, low])
            both = [builder.bitcast(e.interleave(x, c, upper), ints) for upper in (0, 1)]
            sums.append([builder.ashr(e.dot16(half, v, pair), by) for v in both])
        totals = [builder.add(left, right) for left, right in zip(*sums, strict=True)]
        e.store(builder.add(out, at), e.call("llvm.x86.avx512.packssdw.512", words, totals))
        return []

    whole = builder.and_(count, e.i64(-32))
    e.loop(e.i64(0), whole, 32, [], step)
    return whole


def pack(mult_a: int, shift_a: int, mult_b: int, shift_b: int) -> NDArray[np.int64]:
    """What `add_rows` takes, int64 [7]: multiplier, shift and `_pair` of a, of b, whether both fit 16-bit lanes."""
    both = (mult_a, shift_a), (mult_b, shift_b)
    words = all(_splits(*scale) for scale in both)
    return np.array([v for m, s in both for v in (m, s, _pair(m))] + [words], np.int64)


def _splits(mult: int, shift: int) -> bool:
    """Whether a branch fits 16-bit lanes: h below 2^15, and |x h + c| + half below 2^31."""
    return mult < 2**31 - 2**15 and 17 <= shift <= 46


def _pair(mult: int) -> int:
    """(h, 1) as two INT16 from bit 0 on, and l from bit 32 on; l lies in [-2^15, 2^15)."""
    high = (mult + 2**15) >> 16
    return high + (1 << 16) + ((mult - (high << 16)) << 32)


@inlined
def add_rows(a: Array, b: Array, scales: Array, out: Array, start: int, stop: int) -> None:
    """Rows start to stop - 1 of int16 [M, D]; scales of `pack`; `out` may be a or b."""
    width = a.shape[1]
    count, at = (stop - start) * width, start * width * 2
    x, y, to = address(a) + at, address(b) + at, address(out) + at
    mult_a, shift_a, pair_a, mult_b = scales[0], scales[1], scales[2], scales[3]
    shift_b, pair_b, words = scales[4], scales[5], scales[6]
    if has_zmm() and words > 0:
        done = row_add_words(x, y, count, pair_a, shift_a, pair_b, shift_b, to)
    else:
        done = row_add(x, y, count, mult_a, shift_a, mult_b, shift_b, to)
    half_a, half_b = np.int64(1) << (shift_a - 1), np.int64(1) << (shift_b - 1)
    for n in range(done, count):
        i, j = start + n // width, n % width
        left = (np.int64(a[i, j]) * mult_a + half_a) >> shift_a
        right = (np.int64(b[i, j]) * mult_b + half_b) >> shift_b
        out[i, j] = min(max(left + right, np.int64(-32768)), np.int64(32767))


@kernel("void(int16[:, ::1], int16[:, ::1], int64[::1], int16[:, ::1], int64, int64)")
def add(a: Array, b: Array, scales: Array, out: Array, start: int, stop: int) -> None:
    """See `add_rows`."""
    add_rows(a, b, scales, out, start, stop)


def add_op(a: Array, b: Array, *, mult_a: int, shift_a: int, mult_b: int, shift_b: int) -> Array:
    """`intseg.ops.add`."""
    width = a.shape[-1]
    rows_a, rows_b = (np.ascontiguousarray(v).reshape(-1, width) for v in (a, b))
    out = np.empty_like(rows_a)
    add(rows_a, rows_b, pack(mult_a, shift_a, mult_b, shift_b), out, 0, rows_a.shape[0])
    return out.reshape(a.shape)


def _work(params: Any, attrs: Any) -> Work:
    scales = pack(**attrs)
    return Work(lambda x, out: lambda start, stop, scratch: add(*x, scales, out, start, stop))


OPS = {"add": Fast(add_op, _work, in_place=True)}
