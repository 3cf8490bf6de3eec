"""upsample_bilinear and argmax in one pass, without scores at pixel resolution (SPEC 4.19, 4.20)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from ._ir import I1, I32, Emit, Value
from ._jit import emitted, helper, inlined, kernel
from ._tile import address

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled


WIDEST = 2**28
"""|score| factor^2 is below this: sums and their differences stay in 32 bits."""


@helper
def _candidates(a: Array, b: Array, c: Array, d: Array, top: Array, found: Array) -> Int:
    """Classes that can win somewhere between four cells, ascending, to `found`; returns their number.

    A bilinear value lies between the least and the greatest of its corners. A class whose greatest corner is below
    some other's least corner never wins; equal ones stay, for ties.
    """
    classes, floor = a.shape[0], np.int32(-(2**31))
    for k in range(classes):
        floor = max(floor, min(min(a[k], b[k]), min(c[k], d[k])))
        top[k] = max(max(a[k], b[k]), max(c[k], d[k]))
    count: Int = 0
    for k in range(classes):
        found[count] = k
        count += np.int64(top[k] >= floor)
    return count


@emitted
def raise_block(
    typingctx: Any,
    best: Any,
    winner: Any,
    lines: Any,
    count: Any,
    pitch: Any,
    value: Any,
    down: Any,
    right: Any,
    both: Any,
    label: Any,
    first: Any,
) -> Any:
    """best = max(best, value + y down + x right + x y both) for y < lines, x < count, `winner` the label that has it.

    It is that of the `first` one in any case.

    best, winner  addresses of int32 [lines, pitch], pitch a multiple of the lanes of a register, at least count
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        best_, winner_, lines_, count_, pitch_ = args[:5]
        lanes = e.isa.lanes
        kind = ir.VectorType(I32, lanes)
        value, down, right, both, label_ = (e.splat(builder.trunc(v, I32), lanes) for v in args[5:10])
        places, always = e.const(kind, list(range(lanes))), e.splat(builder.trunc(args[10], I1), lanes)

        def columns(i: Value, carried: list[Value]) -> list[Value]:
            x = builder.add(e.splat(builder.trunc(i, I32), lanes), places)
            step = builder.add(down, builder.mul(x, both))

            def line(y: Value, carried: list[Value]) -> list[Value]:
                at = builder.shl(builder.add(builder.mul(y, pitch_), i), e.i64(2))
                here = carried[0]
                before, known = (e.load(builder.add(where, at), kind) for where in (best_, winner_))
                better = builder.or_(builder.icmp_signed(">", here, before), always)
                e.store(builder.add(best_, at), builder.select(better, here, before))
                e.store(builder.add(winner_, at), builder.select(better, label_, known))
                return [builder.add(here, step)]

            e.loop(e.i64(0), lines_, 1, [builder.add(value, builder.mul(x, right))], line)
            return []

        e.loop(e.i64(0), count_, lanes, [], columns)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), codegen


@inlined
def _plane(
    four: tuple[Int, Int, Int, Int], factor: int, u: int, v: int, right: int, down: int
) -> tuple[Int, Int, Int, Int]:
    """Of a class with these scores in four cells: its value at weights u and v, the gain a line, the gain a column, the
    gain of the latter a line.

    right, down  gain of u a column, of v a line
    """
    a, b, c, d = four
    near, far = a * (2 * factor - v) + c * np.int64(v), b * (2 * factor - v) + d * np.int64(v)
    lower, farther = down * (c - a), down * (d - b)  # of near and far, a line
    value, more = 2 * factor * near + (far - near) * u, 2 * factor * lower + (farther - lower) * u
    return value, more, right * (far - near), right * (farther - lower)


@kernel("void(int32[:, :, ::1], int64, uint16[:, ::1], int32[::1], int32[::1], int32[::1], int32[::1], int64, int64)")
def bilinear_argmax(
    scores: Array,
    factor: int,
    labels: Array,
    top: Array,
    found: Array,
    best: Array,
    winner: Array,
    start: int,
    stop: int,
) -> None:
    """Pixels in bands start to stop - 1; band r lies between the centres of cell rows r - 1 and r.

    scores  int32 [h, w, C], see WIDEST;  labels uint16 [height, width], at most h * factor x w * factor
    top, found  int32 [C + 1], scratch;  best, winner  int32 [factor * (factor + 16)], scratch
    """
    height, width = scores.shape[0], scores.shape[1]
    high, wide = labels.shape
    pitch, at = (factor + 15) // 16 * 16, (address(best), address(winner))
    # Output i lies at position 2 i + 1 - factor in steps of 1 / (2 factor) cells: lower cell p // 2f, weight p % 2f.
    for r in range(start, stop):
        above, below = max(r - 1, 0), min(r, height - 1)
        y0, y1 = _span(r, height, factor, high)
        for s in range(width + 1):
            left, right = max(s - 1, 0), min(s, width - 1)
            x0, x1 = _span(s, width, factor, wide)
            if y0 >= y1 or x0 >= x1:
                continue
            corners = scores[above, left], scores[above, right], scores[below, left], scores[below, right]
            count = _candidates(corners[0], corners[1], corners[2], corners[3], top, found)
            if count == 1:
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        labels[y, x] = found[0]
                continue
            down, right = np.int64(2 * (0 < r < height)), np.int64(2 * (0 < s < width))
            v = (2 * y0 + 1 - factor) - 2 * factor * (r - 1) if down else 0
            u = (2 * x0 + 1 - factor) - 2 * factor * (s - 1) if right else 0
            for k in range(count):
                n = np.int64(found[k])
                four = corners[0][n], corners[1][n], corners[2][n], corners[3][n]
                value, more, step, steps = _plane(four, factor, u, v, right, down)
                raise_block(at[0], at[1], y1 - y0, x1 - x0, pitch, value, more, step, steps, n, np.int64(k == 0))
            for y in range(y0, y1):
                for x in range(x0, x1):
                    labels[y, x] = winner[(y - y0) * pitch + x - x0]


@helper
def _span(cell: int, cells: int, factor: int, limit: int) -> tuple[int, int]:
    """Pixels [first, past) whose lower cell is cell - 1, those before the first and after the last centre included."""
    first = 0 if cell == 0 else (2 * factor * (cell - 1) + factor) // 2
    past = cells * factor if cell == cells else (2 * factor * cell + factor) // 2
    return first, min(past, limit)
