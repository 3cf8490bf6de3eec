"""layernorm: one pass of integer moments, an exact square root, one pass of gamma and beta (SPEC 4.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from . import _isa
from ._fast import Fast, Work
from ._ir import I8, I16, I32, I64, Emit, Value
from ._jit import emitted, helper, kernel
from ._rows import bit_length
from ._tile import address, held, highest

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled


@dataclass(frozen=True)
class Packed:
    """gamma and beta [D] in the layout of the row pass.

    vectors  int64 [ceil(D / lanes) * 2 lanes]: per vector mult even, mult odd, bias even, bias odd (half vectors),
             the bias with 2^(shift-1) added: |bias| < 2^61 + 2^61
    mult, bias  int64 [D]   for the plain path
    high        largest result
    shift, wide  whether the shift is below 32: the register path needs 32
    """

    vectors: NDArray[np.int64]
    mult: NDArray[np.int64]
    bias: NDArray[np.int64]
    high: int
    shift: int
    wide: bool


def pack(mult: Array, bias: Array, shift: int, out: str) -> Packed:
    """Pack for this process' instruction path: mult int32 [D], bias int64 [D], the type of the result."""
    lanes = _isa.select().lanes
    size = -(-len(mult) // lanes) * lanes
    m, b = np.zeros(size, np.int64), np.zeros(size, np.int64)
    m[: len(mult)], b[: len(mult)] = mult, bias + (np.int64(1) << np.int64(shift - 1))
    m2, b2 = m.reshape(-1, lanes), b.reshape(-1, lanes)
    vectors = np.stack([m2[:, ::2], m2[:, 1::2], b2[:, ::2], b2[:, 1::2]], axis=1).reshape(-1)
    return Packed(np.ascontiguousarray(vectors), mult.astype(np.int64), bias, highest(out), shift, shift < 32)


@emitted
def row_sums(typingctx: Any, row: Any, count: Any) -> Any:
    """(sum x, sum x^2) of `count` INT16, a multiple of 2 lanes below 2^16, at address `row`; exact INT64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        address_, count_ = args
        words, sums = ir.VectorType(I16, 2 * e.isa.lanes), ir.VectorType(I32, e.isa.lanes)
        wide = ir.VectorType(I64, e.isa.lanes)
        ones, zero = builder.bitcast(e.const(words, 1), sums), e.const(sums, 0)

        def step(i: Value, carried: list[Value]) -> list[Value]:
            x = builder.bitcast(e.load(builder.add(address_, builder.shl(i, e.i64(1))), words), sums)
            # x0^2 + x1^2 <= 2^31 wraps to INT32 and is right as UINT32. The plain sum stays below 2^31: 2^16 elements.
            squares = builder.zext(e.dot16(zero, x, x), wide)
            return [e.dot16(carried[0], x, ones), builder.add(carried[1], squares)]

        start = [zero, e.const(wide, 0)]
        total, squares = e.loop(e.i64(0), count_, 2 * e.isa.lanes, start, step)
        both = [builder.sext(e.sum_lanes(total), I64), e.sum_lanes(squares)]
        return context.make_tuple(builder, signature.return_type, both)

    pair: Any = types.UniTuple
    return pair(types.int64, 2)(types.int64, types.int64), codegen


@emitted
def row_apply(
    typingctx: Any, row: Any, count: Any, mean: Any, f: Any, vectors: Any, shift: Any, high: Any, size: Any, out: Any
) -> Any:
    """saturate((((x - mean) f >> 1) mult + bias) >> shift), `count` INT16, a multiple of lanes; shift >= 32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        _emit_apply(e, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


def _emit_apply(
    e: Emit,
    row: Value,
    count: Value,
    mean: Value,
    f: Value,
    vectors: Value,
    shift: Value,
    high: Value,
    size: Value,
    out: Value,
) -> None:
    builder, lanes = e.builder, e.isa.lanes
    ints, wide = ir.VectorType(I32, lanes), ir.VectorType(I64, lanes // 2)
    means = e.splat(builder.trunc(mean, I32), lanes)
    factor, shifts = e.splat(f, lanes // 2), e.splat(shift, lanes // 2)
    high_shifts = builder.sub(shifts, e.const(wide, 32))
    low, one = e.const(wide, 32), e.const(wide, 1)
    pick = [i + lanes * (i % 2) for i in range(lanes)]

    def scaled(y: Value, params: Value, part: int, by: Value) -> Value:
        """One half vector: y is INT64 with |y| < 2^17, z = (y f) >> 1 with |z| < 2^30."""
        z = e.signed_low(builder.ashr(builder.mul(y, e.signed_low(factor)), one))
        mult, bias = (e.load(e.offset(params, (2 * i + part) * 4 * lanes), wide) for i in (0, 1))
        return builder.ashr(builder.add(builder.mul(z, e.signed_low(mult)), bias), by)

    def step(i: Value, carried: list[Value]) -> list[Value]:
        x = e.load(builder.add(row, builder.shl(i, e.i64(1))), ir.VectorType(I16, lanes))
        y = builder.bitcast(builder.sub(builder.sext(x, ints), means), wide)
        params = builder.add(vectors, builder.shl(i, e.i64(4)))
        even = scaled(e.signed_low(y), params, 0, shifts)
        odd = scaled(builder.ashr(y, low), params, 1, high_shifts)
        both = e.within(e.shuffle(builder.bitcast(even, ints), builder.bitcast(odd, ints), pick), high)
        to = builder.add(out, builder.mul(i, size))
        with builder.if_else(builder.icmp_signed("==", size, e.i64(1))) as (bytes_, words):
            with bytes_:
                e.store(to, builder.trunc(both, ir.VectorType(I8, lanes)))
            with words:
                e.store(to, builder.trunc(both, ir.VectorType(I16, lanes)))
        return []

    e.loop(e.i64(0), count, lanes, [], step)


@emitted
def lane_count(typingctx: Any) -> Any:
    """INT32 lanes of a vector register."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        return e.i64(e.isa.lanes)

    return types.int64(), codegen


@helper
def isqrt(v: Int) -> Int:
    """floor(sqrt(v)) for 0 <= v < 2^62: Newton's iteration from above, which falls until it is there."""
    if v < 2:
        return v
    root = np.int64(1) << ((bit_length(v) + 1) >> 1)
    while True:
        following = (root + v // root) >> 1
        if following >= root:
            return root
        root = following


@kernel(
    "void(int16[:, ::1], int64[::1], int64[::1], int64[::1], int64, int64, int64, int64, int8[:, ::1], int64, int64)"
)
def layernorm(
    x: Array,
    vectors: Array,
    mult: Array,
    bias: Array,
    high: int,
    shift: int,
    wide: int,
    size: int,
    out: Array,
    start: int,
    stop: int,
) -> None:
    """Rows start to stop - 1: x int16 [M, D]; vectors to wide: see Packed; out int8 [M, D * size], size 1 or 2."""
    if start >= stop:
        return
    mean, f = _factors(x, start)
    for i in range(start, stop):
        following = _factors(x, min(i + 1, stop - 1))  # its divisions run beside the vectors of this row
        count, done = x.shape[1], np.int64(0)
        if not wide:
            done = count // lane_count() * lane_count()
            row, to = address(x) + i * count * 2, address(out) + i * count * size
            row_apply(row, done, mean, f, address(vectors), shift, high, size, to)
        _plain_apply(x, i, done, mean, f, mult, bias, high, shift, size, out)
        mean, f = following


@helper
def _factors(x: Array, i: int) -> tuple[Int, Int]:
    """Mean and factor of row i."""
    count = x.shape[1]
    whole = count // (2 * lane_count()) * (2 * lane_count())
    total, squares = row_sums(address(x) + i * count * 2, whole)
    for j in range(whole, count):
        total += np.int64(x[i, j])
        squares += np.int64(x[i, j]) * np.int64(x[i, j])
    mean = (2 * total + count) // (2 * count)
    variance = squares - 2 * mean * total + count * mean * mean
    return mean, np.int64(2**31 - 1) // max(isqrt(variance), np.int64(1))


@helper
def _plain_apply(
    x: Array,
    i: int,
    first: int,
    mean: int,
    f: int,
    mult: Array,
    bias: Array,
    high: int,
    shift: int,
    size: int,
    out: Array,
) -> None:
    """Elements from `first` on of row i, by the definition."""
    half = np.int64(1) << (shift - np.int64(1))
    for j in range(first, x.shape[1]):
        z = ((np.int64(x[i, j]) - mean) * f) >> 1
        value = min(max((z * mult[j] + bias[j] + half) >> shift, -high - 1), high)
        for b in range(size):
            out[i, j * size + b] = np.int8(value >> (8 * b))


def run(packed: Packed, x: Array, out: Array, start: int, stop: int) -> None:
    """Rows start to stop - 1 of x [M, D] int16 to `out` [M, D], int8 or int16, both contiguous."""
    p = packed
    layernorm(x, p.vectors, p.mult, p.bias, p.high, p.shift, int(p.wide), out.itemsize, out.view(np.int8), start, stop)


def layernorm_op(x: Array, *, mult: Array, bias: Array, shift: int, out: str) -> Array:
    """`intseg.ops.layernorm`."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    result = np.empty(rows.shape, held(out))
    run(pack(mult, bias, shift, out), rows, result, 0, rows.shape[0])
    return result.reshape(x.shape)


def _work(params: Any, attrs: Any) -> Work:
    packed = pack(params["mult"], params["bias"], attrs["shift"], attrs["out"])
    return Work(lambda x, out: lambda start, stop, scratch: run(packed, x[0], out, start, stop))


OPS = {"layernorm": Fast(layernorm_op, _work)}
