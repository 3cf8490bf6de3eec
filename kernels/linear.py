"""linear: INT8 matrix product against weights packed once, requantized in registers (SPEC 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from . import _isa
from ._fast import Fast, Work
from ._ir import I8, I16, Emit, Value
from ._jit import emitted, helper, kernel
from ._tile import (
    INT8,
    INT16,
    LEAST_SHIFT,
    RAW,
    address,
    ceil_div,
    group_size,
    held,
    highest,
    lane_order,
    quant_bytes,
    step_size,
    tile,
    tile_columns,
    tile_rows,
    unstaged,
    viewed,
)

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled

ROW_BLOCK = 96
"""Rows staged at once, a multiple of the rows of a tile: the block and one panel stay in the L2 cache."""


@dataclass(frozen=True)
class Packed:
    """Weights [N, K] and requantization in the layout of the instruction path (`_tile`), N padded to whole panels.

    panels  int8 [panels * steps * columns * step]  steps = ceil(K / group)
    init    int32 [panels * columns]                start of the accumulators, in lane order
    quant   int64 [panels * columns * 2]            for the register path, see `pack_quant`
    left    accumulators are shifted left by this first, to make up for small shifts
    mult, shift  int64 [N]                          for the plain path
    wide    whether that could overflow: the plain path requantizes
    high    largest result
    """

    panels: NDArray[np.int8]
    init: NDArray[np.int32]
    quant: NDArray[np.int64]
    mult: NDArray[np.int64]
    shift: NDArray[np.int64]
    left: int
    wide: bool
    high: int
    width: int
    depth: int


def raise_shifts(
    mult: Array, shift: Array, least: int = LEAST_SHIFT
) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Equal scales with shifts of at least `least`, and whether some channel has none: mult << n stays below 2^31."""
    mult, shift = mult.astype(np.int64), shift.astype(np.int64)
    missing = np.maximum(least - shift, 0)
    raised = mult << missing
    wide = bool((raised >= 2**31).any())
    return raised, shift + missing, wide


def pack_quant(mult: NDArray[np.int64], shift: NDArray[np.int64], isa: _isa.Isa) -> NDArray[np.int64]:
    """Per vector of columns in lane order: mult even, mult odd int64; 2^(shift - 33), shift - 32 int32."""
    mult, shift = mult.reshape(-1, isa.lanes), shift.reshape(-1, isa.lanes)
    words = [np.left_shift(1, np.maximum(shift - 33, 0)), shift - 32]
    halves = [np.ascontiguousarray(w.astype(np.int32)).view(np.int64) for w in words]
    return np.ascontiguousarray(np.concatenate([mult[:, ::2], mult[:, 1::2], *halves], axis=1)).reshape(-1)


def _lift(mult: Array, shift: Array, most: int) -> tuple[int | None, NDArray[np.int64], NDArray[np.int64]]:
    """By how much accumulators of at most `most` are shifted left, None where that overflows; mult and shift raised."""
    for left in range(31):
        raised, shifts, wide = raise_shifts(mult, shift, LEAST_SHIFT - left)
        if not wide:
            fits = most << left < 2**31 and int(shifts.max(initial=0)) + left <= 62
            return left if fits else None, raised, shifts
    return None, raised, shifts


def pack(weight: Array, bias: Array, mult: Array, shift: Array, out: str, most: int = 0) -> Packed:
    """Pack for this process' instruction path.

    weight  int8 [N, K], any strides;  bias int32 [N];  mult int32 [N];  shift int8 [N];  out  type of the result
    most    accumulators are at most that, if that is more than what the weights say
    """
    isa = _isa.select()
    width, depth = weight.shape
    order = lane_order(isa)
    panels, steps = -(-width // isa.columns), -(-depth // isa.group)
    columns = (np.arange(panels)[:, None] * isa.columns + order).reshape(-1)

    padded = np.zeros((panels * isa.columns, steps * isa.group), np.int16 if isa.group == 2 else np.int8)
    padded[:width, :depth] = weight
    packed = padded.reshape(panels, isa.columns, steps, isa.group)[:, order].transpose(0, 2, 1, 3)

    init = np.zeros(panels * isa.columns, np.int64)
    init[:width] = bias
    if isa.name == "vnni":
        init[:width] -= 128 * weight.sum(axis=1, dtype=np.int64)  # stays in INT32: |128 sum w| + |bias| < 2^31
    own = int((128 * np.abs(weight.astype(np.int64)).sum(axis=1) + np.abs(bias.astype(np.int64))).max(initial=0))
    most = max(most, own)
    left, raised, shifts = _lift(mult, shift, most)
    wide = left is None
    scale, count = np.zeros_like(init), np.full_like(init, LEAST_SHIFT)
    if left is not None:
        scale[:width], count[:width] = raised, shifts + left
    return Packed(
        np.ascontiguousarray(packed).reshape(-1).view(np.int8),
        init[columns].astype(np.int32),
        pack_quant(scale[columns], count[columns], isa),
        mult.astype(np.int64),
        shift.astype(np.int64),
        left or 0,
        wide,
        highest(out),
        width,
        depth,
    )


def scratch_bytes(depth: int) -> int:
    """Scratch of one thread for a product of this depth."""
    isa = _isa.select()
    return ROW_BLOCK * -(-depth // isa.group) * isa.step + 4 * isa.rows * isa.columns + 64


@emitted
def stage_whole(typingctx: Any, source: Any, count: Any, target: Any) -> Any:
    """The first bytes of a row of int8 in the operand format of the tile, a register at a time; returns how many."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        source_, count_, target_ = args
        size = 2 * e.isa.lanes if e.isa.group == 2 else 4 * e.isa.lanes
        bytes_, words = ir.VectorType(I8, size), ir.VectorType(I16, size)

        def step(i: Value, carried: list[Value]) -> list[Value]:
            x = e.load(builder.add(source_, i), bytes_)
            if e.isa.group == 2:
                e.store(builder.add(target_, builder.shl(i, e.i64(1))), builder.sext(x, words))
            else:
                e.store(builder.add(target_, i), x)
            return []

        whole = builder.and_(count_, e.i64(-size))
        e.loop(e.i64(0), whole, size, [], step)
        return whole

    return types.int64(*[types.int64] * 3), codegen


@helper
def stage(x: Array, row: int, column: int, depth: int, steps: int, scratch: Array, words: Array, at: int) -> None:
    """`depth` int8 of a row to the operand format, zero padded; `words` is `scratch` as INT16, `at` counts bytes."""
    done = stage_whole(address(x) + row * x.shape[1] + column, depth, address(scratch) + at)
    if group_size() != 2:
        for k in range(done, depth):
            scratch[at + k] = x[row, column + k]
        for k in range(depth, step_size() * steps):
            scratch[at + k] = 0
    else:
        at //= 2
        for k in range(done, depth):
            words[at + k] = x[row, column + k]
        for k in range(depth, 2 * steps):
            words[at + k] = 0


@helper
def requantize_one(acc: Int, mult: Int, shift: Int, low: Int, high: Int) -> Int:
    """The definition, for one element."""
    value = (np.int64(acc) * mult + (np.int64(1) << (shift - np.int64(1)))) >> shift
    return min(max(value, np.int64(low)), np.int64(high))


@kernel(
    "void(int8[:, ::1], int8[::1], int32[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64, int64,"
    " int64, int8[:, ::1], int64, int64, int8[::1])"
)
def linear(
    x: Array,
    panels: Array,
    init: Array,
    quant: Array,
    mult: Array,
    shift: Array,
    order: Array,
    kind: int,
    high: int,
    size: int,
    out: Array,
    start: int,
    stop: int,
    scratch: Array,
) -> None:
    """Rows start to stop - 1 of the product.

    x      int8 [M, K];  panels to high: see Packed;  order int64 [columns]: `lane_order`
    kind   what a tile stores: RAW where the plain path requantizes, otherwise by size
    size   bytes of an output element: 1 or 2
    out    int8 [M, N * size]: the output as bytes;  scratch  int8 [scratch_bytes(K)]
    """
    depth, width, columns, rows = x.shape[1], mult.shape[0], tile_columns(), tile_rows()
    steps = ceil_div(depth, group_size())
    stride, words, wide = steps * step_size(), viewed(scratch, np.int16), kind == RAW
    base, tile_at = address(scratch), ROW_BLOCK * stride
    for block in range(start, stop, ROW_BLOCK):
        count = min(ROW_BLOCK, stop - block)
        source = address(x) + block * depth
        if not unstaged(depth):
            source = base
            for r in range(count):
                stage(x, block + r, np.int64(0), depth, steps, scratch, words, r * stride)
        for jp in range(ceil_div(width, columns)):
            panel = address(panels) + jp * stride * columns
            panel_init = address(init) + jp * columns * 4
            panel_quant = address(quant) + jp * columns * quant_bytes()
            valid = min(columns, width - jp * columns)
            direct = valid == columns and not wide
            for i in range(0, count, rows):
                last = min(rows, count - i) - 1
                to, to_stride = base + tile_at, columns * 4
                if direct:
                    to, to_stride = address(out) + ((block + i) * width + jp * columns) * size, width * size
                tile(source + i * stride, stride, last, panel, steps, panel_init, panel_quant, kind, to, to_stride)
                if not direct:
                    _copy_out(
                        scratch, tile_at, last + 1, valid, wide, high, size, order, mult, shift, out, block + i, jp
                    )


@helper
def _copy_out(
    scratch: Array,
    at: int,
    rows: int,
    valid: int,
    wide: int,
    high: int,
    size: int,
    order: Array,
    mult: Array,
    shift: Array,
    out: Array,
    row: int,
    panel: int,
) -> None:
    """The valid columns of a tile in scratch to the output; requantizes accumulators where the tile could not."""
    columns = tile_columns()
    first = panel * columns
    if not wide:
        for r in range(rows):
            for c in range(valid * size):
                out[row + r, first * size + c] = scratch[at + r * columns * 4 + c]
        return
    acc, first_at = viewed(scratch, np.int32), at // 4
    for r in range(rows):
        for lane in range(columns):
            c = order[lane]
            if c < valid:
                n = first + c
                value = requantize_one(np.int64(acc[first_at + r * columns + lane]), mult[n], shift[n], -high - 1, high)
                for b in range(size):
                    out[row + r, n * size + b] = np.int8(value >> (8 * b))


def bind(packed: Packed, x: Array, out: Array) -> Callable[[int, int, Array], None]:
    """A function (start, stop, scratch) for rows of x [M, K] int8 to `out` [M, N], int8 or int16, both contiguous."""
    p, order, view, size = packed, lane_order(_isa.select()), out.view(np.int8), out.itemsize
    kind = RAW if p.wide else (INT8 + 2**16 * p.high if size == 1 else INT16) + 2**8 * p.left
    fixed = (x, p.panels, p.init, p.quant, p.mult, p.shift, order, kind, p.high, size, view)
    return lambda start, stop, scratch: linear(*fixed, start, stop, scratch)


def linear_op(x: Array, *, weight: Array, bias: Array, mult: Array, shift: Array, out: str) -> Array:
    """`intseg.ops.linear`, packing on every call."""
    packed = pack(weight, bias, mult, shift, out)
    result = np.empty((x.shape[0], packed.width), held(out))
    scratch = np.empty(scratch_bytes(packed.depth), np.int8)
    bind(packed, np.ascontiguousarray(x), result)(0, x.shape[0], scratch)
    return result


def _work(params: Any, attrs: Any) -> Work:
    weight, bias, mult, shift = (params[role] for role in ("weight", "bias", "mult", "shift"))
    packed = pack(weight, bias, mult, shift, attrs["out"])
    return Work(lambda x, out: bind(packed, x[0], out), scratch_bytes(packed.depth), packed.depth)


OPS = {"linear": Fast(linear_op, _work)}
