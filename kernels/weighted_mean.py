"""weighted_mean: sums of INT8 by UINT8 weights, divided by the sum of the weights in one rounding (SPEC 4.22)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from ._fast import Fast
from ._ir import I32, I64, Emit, Value
from ._jit import emitted, helper, kernel
from ._rows import bit_length
from ._tile import QUANT_BYTES, highest, narrow_int8, upper_halves
from .linear import requantize_one

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled

LEAST_SHIFT = 26
"""With a sum of at least 255, 8 bits, the whole shift is at least 33, which the registers need."""


@helper
def reciprocal(total: Int) -> tuple[Int, Int]:
    """(f, L - 1) of a sum of weights of at least 1."""
    length = bit_length(total)
    return np.int64(2**61 - 1) // (total << (31 - length)), length - 1


@emitted
def mean_row(typingctx: Any, acc: Any, quant: Any, factor: Any, more: Any, high: Any, out: Any) -> Any:
    """One panel of one row: accumulators INT32 in lane order at `acc` to int8 in column order at `out`.

    quant   address of mult, rounding and shift as `_tile` has them, shifts of LEAST_SHIFT or more in steps of `more`
    high    largest result
    factor, more  f and L - 1 of `reciprocal`
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        acc_, quant_, factor_, more_, high_, out_ = args
        lanes, vector = e.isa.lanes, ir.VectorType(I32, e.isa.lanes)
        factors, mores = e.splat(factor_, lanes // 2), e.splat(builder.trunc(more_, I32), lanes)
        means = []
        for j in range(e.isa.vectors):
            value = e.load(e.offset(acc_, 4 * lanes * j), vector)
            means.append(_mean(e, value, e.offset(quant_, QUANT_BYTES * lanes * j), factors, mores))
        e.store(out_, narrow_int8(e, means, high_))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


def _mean(e: Emit, acc: Value, quant: Value, factor: Value, more: Value) -> Value:
    """RSR(acc ((f mult) >> 31), shift + more) in INT32 lanes, as `_tile.requantize`."""
    builder, lanes = e.builder, acc.type.count
    wide = ir.VectorType(I64, lanes // 2)
    low = e.const(wide, 32)

    pairs = builder.bitcast(acc, wide)
    halves = []
    for j, part in enumerate((e.signed_low(pairs), builder.ashr(pairs, low))):
        mult = e.load(e.offset(quant, 4 * lanes * j), wide)
        scale = builder.lshr(builder.mul(e.signed_low(factor), e.signed_low(mult)), e.const(wide, 31))
        halves.append(builder.bitcast(builder.mul(part, e.signed_low(scale)), acc.type))
    upper = upper_halves(e, *halves)
    shift = builder.add(e.load(e.offset(quant, 12 * lanes), acc.type), more)
    half = builder.shl(e.const(acc.type, 1), builder.sub(shift, e.const(acc.type, 1)))
    return builder.ashr(builder.add(upper, half), shift)


@kernel("void(uint8[:, ::1], int8[:, ::1], int64[::1], int64[::1], int64, int8[:, ::1], int64[::1])")
def weighted_mean(a: Array, b: Array, mult: Array, shift: Array, high: int, out: Array, acc: Array) -> None:
    """In plain loops: a uint8 [M, K];  b int8 [K, N];  mult, shift int64 [N];  out int8 [M, N], the largest result
    `high`;  acc int64 [N]."""
    depth, width = b.shape
    for i in range(a.shape[0]):
        acc[:] = 0
        total = np.int64(0)
        for k in range(depth):
            weight = np.int64(a[i, k])
            total += weight
            if weight != 0:
                for n in range(width):
                    acc[n] += weight * np.int64(b[k, n])
        factor, more = reciprocal(max(total, np.int64(1)))
        for n in range(width):
            scale = (factor * mult[n]) >> 31
            out[i, n] = requantize_one(acc[n], scale, shift[n] + more, -high - 1, high)


def weighted_mean_op(a: Array, b: Array, *, mult: Array, shift: Array, out: str = "int8") -> Array:
    """`intseg.ops.weighted_mean`."""
    batch, width = a.shape[:-2], b.shape[-1]
    result = np.empty((*a.shape[:-1], width), np.int8)
    scales = [np.broadcast_to(v.astype(np.int64), (*batch, width)) for v in (mult, shift)]
    for index in np.ndindex(*batch):
        m, s = (v[index].copy() for v in scales)
        left, right = (np.ascontiguousarray(v[index]) for v in (a, b))
        weighted_mean(left, right, m, s, highest(out), result[index], np.empty(width, np.int64))
    return result


OPS = {"weighted_mean": Fast(weighted_mean_op)}
