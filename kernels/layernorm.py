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
from ._ir import I1, I8, I16, I32, I64, Emit, Value
from ._jit import emitted, helper, kernel
from ._rows import bit_length
from ._tile import address, held, highest, narrow_int8, upper_halves, viewed
from .add import add_rows

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled

GROUP, SCRATCH = 16, 256
"""Rows whose square roots are taken at once, and bytes of scratch for their roots and means."""


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
        wide = ir.VectorType(I64, e.isa.lanes // 2)
        ones, zero = builder.bitcast(e.const(words, 1), sums), e.const(sums, 0)

        def step(i: Value, carried: list[Value]) -> list[Value]:
            x = builder.bitcast(e.load(builder.add(address_, builder.shl(i, e.i64(1))), words), sums)
            # x0^2 + x1^2 <= 2^31 wraps to INT32 and is right as UINT32. The plain sum stays below 2^31: 2^16 elements.
            squares = builder.bitcast(e.dot16(zero, x, x), wide)
            even, odd = builder.and_(squares, e.const(wide, 2**32 - 1)), builder.lshr(squares, e.const(wide, 32))
            return [e.dot16(carried[0], x, ones), builder.add(carried[1], even), builder.add(carried[2], odd)]

        start = [zero, e.const(wide, 0), e.const(wide, 0)]
        total, even, odd = e.loop(e.i64(0), count_, 2 * e.isa.lanes, start, step)
        both = [builder.sext(e.sum_lanes(total), I64), e.sum_lanes(builder.add(even, odd))]
        return context.make_tuple(builder, signature.return_type, both)

    pair: Any = types.UniTuple
    return pair(types.int64, 2)(types.int64, types.int64), codegen


@emitted
def square_roots(typingctx: Any, values: Any) -> Any:
    """GROUP INT64 at an address, from 0 to 2^62 - 1, to the floors of their square roots, two bits at a time."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        kind = ir.VectorType(I64, GROUP)
        left = e.load(args[0], kind)
        # The largest has 2 n - 1 or 2 n bits: n steps, the first of which tries 4^(n-1).
        zeros = builder.ctlz(e.max_lanes(left), ir.Constant(I1, 0))
        many = builder.lshr(builder.sub(e.i64(65), zeros), e.i64(1))
        first = builder.shl(e.i64(1), builder.and_(builder.sub(builder.shl(many, e.i64(1)), e.i64(2)), e.i64(62)))

        def step(i: Value, carried: list[Value]) -> list[Value]:
            left, root, bit = carried
            trial = builder.add(root, bit)
            rest = builder.sub(left, trial)
            below = builder.ashr(rest, e.const(kind, 63))
            left = builder.add(rest, builder.and_(trial, below))
            root = builder.add(builder.lshr(root, e.const(kind, 1)), builder.and_(bit, builder.not_(below)))
            return [left, root, builder.lshr(bit, e.const(kind, 2))]

        roots = e.loop(e.i64(0), many, 1, [left, e.const(kind, 0), e.splat(first, GROUP)], step)[1]
        e.store(args[0], roots)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


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
    builder, lanes, columns = e.builder, e.isa.lanes, e.isa.columns
    ints, wide = ir.VectorType(I32, lanes), ir.VectorType(I64, lanes // 2)
    means, factor = (e.splat(builder.trunc(v, I32), lanes) for v in (mean, f))
    by, low = e.splat(builder.trunc(builder.sub(shift, e.i64(32)), I32), lanes), e.const(wide, 32)

    def scaled(i: Value) -> Value:
        """INT32 results of the columns from i on. |y f| < 2^31, since |y| is at most the root; the shift drops no more
        than the lower halves of sums, 32 bits."""
        x = e.load(builder.add(row, builder.shl(i, e.i64(1))), ir.VectorType(I16, lanes))
        y = builder.sub(builder.sext(x, ints), means)
        pairs = builder.bitcast(builder.ashr(builder.mul(y, factor), e.const(ints, 1)), wide)
        params, sums = builder.add(vectors, builder.shl(i, e.i64(4))), []
        for part, z in enumerate((e.signed_low(pairs), builder.ashr(pairs, low))):
            mult, bias = (e.load(e.offset(params, (2 * n + part) * 4 * lanes), wide) for n in (0, 1))
            sums.append(builder.bitcast(builder.add(builder.mul(z, e.signed_low(mult)), bias), ints))
        return builder.ashr(upper_halves(e, *sums), by)

    def panel(i: Value, carried: list[Value]) -> list[Value]:
        found = narrow_int8(e, [scaled(e.offset(i, n * lanes)) for n in range(e.isa.vectors)], high)
        if e.isa.zmm:  # packs work inside 128-bit blocks, see `lane_order`
            order = [4 * (n % 4) + n // 4 for n in range(16)]
            found = builder.bitcast(found, ints)
            found = e.shuffle(found, found, order)
        e.store(builder.add(out, i), found)
        return []

    def vector(i: Value, carried: list[Value]) -> list[Value]:
        found, to = e.within(scaled(i), high), builder.add(out, builder.mul(i, size))
        with builder.if_else(builder.icmp_signed("==", size, e.i64(1))) as (bytes_, words):
            with bytes_:
                e.store(to, builder.trunc(found, ir.VectorType(I8, lanes)))
            with words:
                e.store(to, builder.trunc(found, ir.VectorType(I16, lanes)))
        return []

    whole = builder.and_(count, builder.select(builder.icmp_signed("==", size, e.i64(1)), e.i64(-columns), e.i64(0)))
    e.loop(e.i64(0), whole, columns, [], panel)
    e.loop(whole, count, lanes, [], vector)


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
    "void(int16[:, ::1], int16[:, ::1], int64[::1], int16[:, ::1], int64[::1], int64[::1], int64[::1], int64, int64,"
    " int64, int64, int8[:, ::1], int64, int64, int8[::1])"
)
def layernorm(
    a: Array,
    b: Array,
    scales: Array,
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
    scratch: Array,
) -> None:
    """Rows start to stop - 1 of x int16 [M, D], which first become the sums of those of a and b, if there are `scales`.

    scales   of `add.pack`, or none;  x  may be a or b;  vectors to wide: see Packed
    out      int8 [M, D * size], size 1 or 2
    scratch  int8 [SCRATCH]
    """
    count, kept = x.shape[1], viewed(scratch, np.int64)
    done = np.int64(0) if wide else count // lane_count() * lane_count()
    for first in range(start, stop, GROUP):
        rows = min(GROUP, stop - first)
        kept[:GROUP] = 0
        if scales.shape[0] > 0:
            add_rows(a, b, scales, x, first, first + rows)
        for r in range(rows):
            kept[GROUP + r], kept[r] = _moments(x, first + r)
        square_roots(address(scratch))
        for r in range(rows):
            i, mean, f = first + r, kept[GROUP + r], np.int64(2**31 - 1) // max(kept[r], np.int64(1))
            row, to = address(x) + i * count * 2, address(out) + i * count * size
            row_apply(row, done, mean, f, address(vectors), shift, high, size, to)
            _plain_apply(x, i, done, mean, f, mult, bias, high, shift, size, out)


@helper
def _moments(x: Array, i: int) -> tuple[Int, Int]:
    """Mean and variance (times D) of row i."""
    count = x.shape[1]
    whole = count // (2 * lane_count()) * (2 * lane_count())
    total, squares = row_sums(address(x) + i * count * 2, whole)
    for j in range(whole, count):
        total += np.int64(x[i, j])
        squares += np.int64(x[i, j]) * np.int64(x[i, j])
    mean = (2 * total + count) // (2 * count)
    return mean, squares - 2 * mean * total + count * mean * mean


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


_NONE = np.zeros(0, np.int64)


def run(packed: Packed, x: Array, out: Array, start: int, stop: int, scratch: Array, *of: Array) -> None:
    """Rows start to stop - 1 of x [M, D] int16 to `out` [M, D], int8 or int16, all contiguous.

    of  where x is still to be made: both operands of `add` and its scales
    """
    p = packed
    rest = p.vectors, p.mult, p.bias, p.high, p.shift, int(p.wide), out.itemsize, out.view(np.int8)
    layernorm(*(of or (x, x, _NONE)), x, *rest, start, stop, scratch)


def layernorm_op(x: Array, *, mult: Array, bias: Array, shift: int, out: str) -> Array:
    """`intseg.ops.layernorm`."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    result = np.empty(rows.shape, held(out))
    run(pack(mult, bias, shift, out), rows, result, 0, rows.shape[0], np.empty(SCRATCH, np.int8))
    return result.reshape(x.shape)


def _work(params: Any, attrs: Any) -> Work:
    packed = pack(params["mult"], params["bias"], attrs["shift"], attrs["out"])
    return Work(lambda x, out: lambda start, stop, scratch: run(packed, x[0], out, start, stop, scratch), SCRATCH)


OPS = {"layernorm": Fast(layernorm_op, _work)}
