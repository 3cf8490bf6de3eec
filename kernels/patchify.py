"""quantize_input and patchify in one pass (SPEC 4.1, 4.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from ._fast import Fast
from ._ir import I8, I64, Emit, Value
from ._jit import emitted, kernel
from ._tile import address

Array = NDArray[Any]


@kernel("void(uint8[:, :, ::1], int8[:, ::1], int64, int8[:, ::1], int64, int64)")
def patches(image: Array, table: Array, patch: int, out: Array, start: int, stop: int) -> None:
    """Patches start to stop - 1.

    image  uint8 [H, W, C];  table int8 [C, 256];  out int8 [(H / patch) (W / patch), patch * patch * C]
    """
    across, channels = image.shape[1] // patch, image.shape[2]
    row, line = image.shape[1] * channels, patch * channels
    for p in range(start, stop):
        source = address(image) + p // across * patch * row + p % across * line
        for y in range(patch):
            look_up(address(table), source + y * row, line, channels, address(out) + p * out.shape[1] + y * line)


@emitted
def look_up(typingctx: Any, table: Any, source: Any, count: Any, channels: Any, target: Any) -> Any:
    """`count` bytes of pixels from address to address, each by its channel's row of int8 [channels, 256]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        table_, source_, count_, channels_, target_ = args

        def entry(at: Value, row: Value) -> None:
            value = builder.zext(e.load(builder.add(source_, at), I8), I64)
            e.store(builder.add(target_, at), e.load(builder.add(row, value), I8))

        def colours(i: Value, carried: list[Value]) -> list[Value]:
            for c in range(3):
                entry(e.offset(i, c), e.offset(table_, 256 * c))
            return []

        def channel(c: Value, carried: list[Value]) -> list[Value]:
            row = builder.add(table_, builder.shl(c, e.i64(8)))

            def pixel(i: Value, carried: list[Value]) -> list[Value]:
                entry(builder.add(builder.mul(i, channels_), c), row)
                return []

            e.loop(e.i64(0), builder.sdiv(count_, channels_), 1, [], pixel)
            return []

        with builder.if_else(builder.icmp_signed("==", channels_, e.i64(3))) as (three, other):
            with three:
                e.loop(e.i64(0), count_, 3, [], colours)
            with other:
                e.loop(e.i64(0), channels_, 1, [], channel)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@kernel("void(uint8[:, :, ::1], int8[:, ::1], int8[:, :, ::1])")
def quantize_input(image: Array, table: Array, out: Array) -> None:
    """out[y, x, c] = table[c, image[y, x, c]]."""
    height, width, channels = image.shape
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                out[y, x, c] = table[c, image[y, x, c]]


def quantize_input_op(x: Array, *, table: Array) -> Array:
    """`intseg.ops.quantize_input`."""
    out = np.empty(x.shape, np.int8)
    quantize_input(np.ascontiguousarray(x), np.ascontiguousarray(table), out)
    return out


OPS = {"quantize_input": Fast(quantize_input_op)}
