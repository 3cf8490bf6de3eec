"""shiftmax: ShiftExp and IntDiv row by row (SPEC 4.7). An exponential per distinct distance to the maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._fast import Attention, Fast
from ._heads import Scores, pack_scores
from ._jit import kernel, optimized
from ._rows import bit_length
from ._tile import biased, tile_rows, viewed
from .attention import Strip, context_strip, fused, pack_values, shape, zero_start

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled


@optimized
def shift_exp(x: int, i0: int, k_inter: int) -> int:
    """2^k_inter i0 e^(x / i0) for x <= 0 with lambda = 1 (SPEC 2.8)."""
    x = max(x + (x >> 1) - (x >> 4), -k_inter * i0)
    q = -x // i0
    r = -x - q * i0
    return (((-r) >> 1) + i0) << (k_inter - q)


@optimized
def int_div(n: Int, reciprocal: Int, shift: Int, normalized: Int) -> Int:
    """n / d by its reciprocal; the normalized kind rounds (SPEC 2.7)."""
    half = (np.int64(1) << (shift - np.int64(1))) if normalized else np.int64(0)
    return (n * reciprocal + half) >> shift


@kernel("void(int16[:, ::1], int64, int64, int64, int64, int16[:, ::1], int32[::1], int64, int64)")
def shiftmax(
    x: Array,
    i0: int,
    k_inter: int,
    normalized: int,
    bits: int,
    out: Array,
    powers: Array,
    start: int,
    stop: int,
) -> None:
    """Rows start to stop - 1 of x int16 [M, N] to `out` int16 [M, N]; powers int32 [N] is scratch; bits is 8 or 16."""
    count = x.shape[1]
    one = (np.int64(1) << (bits - 1)) - 1
    for i in range(start, stop):
        top = np.int64(x[i, 0])
        for j in range(count):
            top = max(top, np.int64(x[i, j]))
        total = np.int64(0)
        for j in range(count):
            e = shift_exp(np.int64(x[i, j]) - top, i0, k_inter)
            powers[j] = e
            total += e
        total = max(total, np.int64(1))
        if normalized:
            length = bit_length(total)
            reciprocal, shift = np.int64(2**46 - 1) // (total << (31 - length)), length + 16 - bits
        else:
            reciprocal, shift = np.int64(2**31 - 1) // total, np.int64(32 - bits)
        for j in range(count):
            out[i, j] = min(int_div(np.int64(powers[j]), reciprocal, shift, normalized), one)


def shiftmax_op(x: Array, *, i0: int, k_inter: int, int_div_kind: str, out: str) -> Array:
    """`intseg.ops.shiftmax`."""
    rows = np.ascontiguousarray(x, np.int16).reshape(-1, x.shape[-1])
    result = np.empty_like(rows)
    powers = np.empty(rows.shape[1], np.int32)
    bits = 8 * np.dtype(out).itemsize
    shiftmax(rows, i0, k_inter, int(int_div_kind == "normalized"), bits, result, powers, 0, rows.shape[0])
    return result.reshape(x.shape).astype(out, copy=False)


@optimized
def _weigh(scratch: Array, strip: Strip, count: int, tokens: int, padded: int, softmax: Any, head: int) -> None:
    """Rows of INT16 logits to probabilities: INT16 in place, or byte planes.

    softmax  IntDiv normalized (1) or paper (0), result of 8 or 16 bits, uint16 [n]: ShiftExp of minus the index, where
             the last entry holds for all beyond
    """
    normalized, bits, powers = softmax
    logits, at, plane_at = viewed(scratch, np.int16), strip[0] // 2, strip[1]
    last = np.int64(powers.shape[0] - 1)
    one = (np.int64(1) << (bits - 1)) - 1
    for r in range(count):
        row = at + r * padded
        top = np.int64(logits[row])
        for j in range(1, tokens):
            top = max(top, np.int64(logits[row + j]))
        total = np.int64(0)
        for j in range(tokens):
            e = powers[min(top - np.int64(logits[row + j]), last)]
            logits[row + j] = np.int16(e)  # as 16 bits: e may be 2^15
            total += np.int64(e)
        if normalized:
            length = bit_length(total)
            reciprocal, shift = np.int64(2**46 - 1) // (total << (31 - length)), length + 16 - bits
            half = np.int64(1) << (shift - 1)
        else:
            reciprocal, shift, half = np.int64(2**31 - 1) // total, np.int64(32 - bits), np.int64(0)
        low, high = plane_at + r * padded, plane_at + (tile_rows() + r) * padded
        for j in range(tokens):
            e64 = np.int64(logits[row + j]) & np.int64(0xFFFF)
            p = min((e64 * reciprocal + half) >> shift, one)
            if biased():
                scratch[low + j] = np.int8(p)
                scratch[high + j] = np.int8(p >> 8)
            else:
                logits[row + j] = np.int16(p)
        if biased():
            for j in range(tokens, padded):
                scratch[low + j] = 0
                scratch[high + j] = 0


def _pack_scores(mult: Array, shift: Array, head_dim: int) -> Scores | None:
    return pack_scores(mult, shift, head_dim, False, True)


def _kind_and_powers(params: Any, attrs: Any) -> tuple[int, int, NDArray[np.uint16]]:
    """With ShiftExp of minus 0, 1, ... up to where its clamp holds."""
    limit, k_inter = attrs["k_inter"] * attrs["i0"], attrs["k_inter"]
    x = -np.arange(limit + 1)
    x = np.maximum(x + (x >> 1) - (x >> 4), -limit)
    q, r = np.divmod(-x, attrs["i0"])
    powers = ((-r >> 1) + attrs["i0"]) << (k_inter - q)
    return int(attrs["int_div_kind"] == "normalized"), 8 * np.dtype(attrs["out"]).itemsize, powers.astype(np.uint16)


OPS = {"shiftmax": Fast(shiftmax_op)}

ATTENTIONS = {
    "shiftmax": Attention(
        "matmul",
        fused(__name__, "Tuple((int64, int64, uint16[::1]))", zero_start, _weigh, context_strip),
        shape,
        _pack_scores,
        pack_values,
        _kind_and_powers,
    )
}
