"""What kernels of rows share: the largest element of a row, and the bits of a number."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from ._ir import I16, I64, Emit, Value
from ._jit import emitted


@emitted
def row_max(typingctx: Any, row: Any, count: Any) -> Any:
    """Largest of `count` INT16 (a multiple of 2 lanes) from address `row`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        address, count_ = args
        kind = ir.VectorType(I16, 2 * e.isa.lanes)

        def step(i: Value, carried: list[Value]) -> list[Value]:
            return [e.same("smax", carried[0], e.load(builder.add(address, builder.shl(i, e.i64(1))), kind))]

        top = e.loop(e.i64(0), count_, kind.count, [e.const(kind, -(2**15))], step)[0]
        return builder.sext(e.max_lanes(top), I64)

    return types.int64(types.int64, types.int64), codegen


@emitted
def bit_length(typingctx: Any, value: Any) -> Any:
    """Number of bits of a non-negative INT64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sub(ir.Constant(I64, 64), builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0)))

    return types.int64(types.int64), codegen
