"""Faulty arithmetic, written here again, and where it is put: what `intseg diff` has to find and to name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from intseg.ops import RUN, Array

LIMIT = {"int8": (-128, 127), "int16": (-(2**15), 2**15 - 1)}


def wide(x: Any) -> Array:
    return np.asarray(x).astype(np.int64)


def half_up(x: Array, c: Any) -> Array:
    return (x + (1 << (wide(c) - 1))) >> wide(c)


def half_even(x: Array, c: Any) -> Array:
    low, up = x >> wide(c), half_up(x, c)
    tie = (x & ((1 << wide(c)) - 1)) == 1 << (wide(c) - 1)
    return np.where(tie & (up % 2 != 0), low, up)


def toward_zero(x: Array, c: Any) -> Array:
    return np.sign(x) * (np.abs(x) >> wide(c))


def floor(x: Array, c: Any) -> Array:
    return x >> wide(c)


def ceil(x: Array, c: Any) -> Array:
    return -(-x >> wide(c))


def half_away(x: Array, c: Any) -> Array:
    return np.sign(x) * half_up(np.abs(x), c)


def twice(first: int) -> Callable[[Array, Any], Array]:
    return lambda x, c: half_up(half_up(x, first), wide(c) - first)


def unsigned64(x: Array, c: Any) -> Array:
    return (np.ascontiguousarray(x + (1 << (wide(c) - 1))).view(np.uint64) >> wide(c).astype(np.uint64)).astype(
        np.int64
    )


def gemmlowp(x: Array, c: Any) -> Array:
    """The high half of twice the product, rounded half up; then a shift, rounded half away from zero."""
    return half_away(half_up(x, 31), wide(c) - 31)


def vsmul(x: Array, c: Any) -> Array:
    """The high half of twice the product, rounded half up; then a shift, rounded half to even."""
    return half_even(half_up(x, 31), wide(c) - 31)


def high_by_floor(x: Array, c: Any) -> Array:
    return half_away(x >> 31, wide(c) - 31)


def saturate(x: Array, out: str) -> Array:
    return np.clip(x, *LIMIT[out]).astype(out)


def wrap(x: Array, out: str) -> Array:
    return x.astype(out)


def symmetric(x: Array, out: str) -> Array:
    return np.clip(x, -LIMIT[out][1], LIMIT[out][1]).astype(out)


def relu(x: Array, out: str) -> Array:
    return np.clip(x, 0, LIMIT[out][1]).astype(out)


def unsigned_end(x: Array, out: str) -> Array:
    return np.clip(x, LIMIT[out][0], 2 * LIMIT[out][1] + 1).astype(out)


def wrapped_before(x: Array, out: str) -> Array:
    return saturate(x.astype(np.int16), out)


def pairs(x: Array, weight: Array) -> Array:
    """pmaddubsw: x + 128 without sign, two products in INT16 that saturates."""
    u, w = wide(x) + 128, wide(weight)
    two = [np.clip(u[:, k : k + 2] @ w[:, k : k + 2].T, -(2**15), 2**15 - 1) for k in range(0, u.shape[1], 2)]
    return sum(two) - 128 * w.sum(1)


def term_by_term(x: Array, weight: Array) -> Array:
    total = np.zeros((len(x), len(weight)), np.int64)
    for k in range(x.shape[1]):
        total = np.clip(total + np.outer(x[:, k].astype(int), weight[:, k].astype(int)), -(2**15), 2**15 - 1)
    return total


def clamp16(total: Array) -> Array:
    return np.clip(total, -(2**15), 2**15 - 1)


def not_cleared(x: Array, weight: Array) -> Array:
    found = wide(x) @ wide(weight).T
    for row in range(1, len(found)):
        found[row] += found[row - 1]
    return found


def last_slice(size: int) -> Callable[[Array, Array], Array]:
    """The accumulator is cleared before every slice of the sum."""

    def dot(x: Array, weight: Array) -> Array:
        start = (x.shape[1] - 1) // size * size
        return wide(x[:, start:]) @ wide(weight[:, start:]).T

    return dot


def whole_tiles(size: int) -> Callable[[Array, Array], Array]:
    """What is over after whole tiles is forgotten."""

    def dot(x: Array, weight: Array) -> Array:
        stop = x.shape[1] // size * size
        return wide(x[:, :stop]) @ wide(weight[:, :stop]).T

    return dot


def packed(axis: int, upper: int, once: bool) -> Callable[[Array, Array], Array]:
    """A DSP with two neighbours of an axis of the result in one port, that of index `upper` above the other, taken
    apart without the carry: at every product, or once a sum.
    """

    def dot(x: Array, weight: Array) -> Array:
        if axis == -1:
            return packed(-2, upper, once)(weight, x).T
        found = wide(x) @ wide(weight).T
        for m in range(0, len(x) - 1, 2):
            products = ((wide(x[m + upper]) << 40) + wide(x[m + 1 - upper])) * wide(weight)
            found[m + upper] = products.sum(1) >> 40 if once else (products >> 40).sum(1)
        return found

    return dot


def booth(x: Array, weight: Array, lowest: int = 0) -> Array:
    products = wide(x)[:, None] * wide(weight)
    return np.where(products == 2**14, lowest, products).sum(2)


def in_float32(x: Array, *, weight: Array, bias: Array, mult: Array, shift: Array, out: str) -> Array:
    product = (wide(x) @ wide(weight).T + bias).astype(np.float32) * mult.astype(np.float32)
    return saturate(np.floor(product.astype(np.float64) / 2.0 ** wide(shift) + 0.5), out)


def first_slice(x: Array, weight: Array) -> Array:
    return wide(x[:, :16]) @ wide(weight[:, :16]).T


def micro_tiles(x: Array) -> Array:
    """Rows and columns cut into tiles of 8 x 8, one after the other."""
    tiles = [x[i : i + 8, j : j + 8] for i in range(0, x.shape[0], 8) for j in range(0, x.shape[1], 8)]
    return np.concatenate([tile.ravel() for tile in tiles]).reshape(x.shape)


def q32(mult: Array) -> Array:
    """Twice the multiplier in INT32, half of that again."""
    return wide((2 * wide(mult)).astype(np.int32)) // 2


def one_pass(x: Array) -> Array:
    count = x.shape[-1]
    mean = (2 * wide(x).sum(-1, keepdims=True) + count) // (2 * count)
    return (wide(x) ** 2).sum(-1, keepdims=True) - count * mean**2


def columns_base2(x: Array, **attrs: Any) -> Array:
    """The softmax of the columns."""
    return np.swapaxes(base2(np.swapaxes(x, -1, -2), **attrs), -1, -2)


def linear(
    x: Array,
    *,
    weight: Array,
    bias: Array,
    mult: Array,
    shift: Array,
    out: str,
    rounding: Callable[..., Array] = half_up,
    narrow: Callable[..., Array] = saturate,
    acc: Callable[[Array], Array] = lambda x: x,
    bias_factor: int = 1,
    shift_step: int = 0,
    mult_step: int = 0,
    product: Callable[[Array], Array] = lambda x: x,
    dot: Callable[[Array, Array], Array] = lambda x, weight: wide(x) @ wide(weight).T,
) -> Array:
    total = acc(dot(x, weight) + bias_factor * wide(bias))
    return narrow(rounding(product(total * (wide(mult) + mult_step)), wide(shift) + shift_step), out)


def matmul(
    a: Array,
    b: Array,
    *,
    mult: Array,
    shift: Array,
    transpose_b: int,
    out: str,
    rounding: Callable[..., Array] = half_up,
) -> Array:
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    return saturate(rounding(wide(a) @ wide(b) * wide(mult)[..., None, :], shift[..., None, :]), out)


def layernorm(
    x: Array,
    *,
    mult: Array,
    bias: Array,
    shift: int,
    out: str,
    mean: Callable[[Array, int], Array] = lambda t, n: (2 * t + n) // (2 * n),
    root: Callable[[Array], Array] = lambda v: np.array([[math.isqrt(max(int(n), 0))] for n in v[:, 0]]),
    variance: Callable[[Array], Array] = lambda v: v,
    top: int = 2**31 - 1,
    halve: Callable[[Array], Array] = lambda z: z >> 1,
    bias_factor: int = 1,
) -> Array:
    x = wide(x)
    y = x - mean(x.sum(-1, keepdims=True), x.shape[-1])
    s = np.maximum(root(variance((y * y).sum(-1, keepdims=True))), 1)
    z = halve(y * (top // s))
    return saturate(half_up(z * wide(mult) + bias_factor * bias, shift), out)


def add(a: Array, b: Array, *, mult_a: int, shift_a: int, mult_b: int, shift_b: int, clamp: bool = False) -> Array:
    one, two = half_up(wide(a) * mult_a, shift_a), half_up(wide(b) * mult_b, shift_b)
    if clamp:
        one, two = np.clip(one, *LIMIT["int16"]), np.clip(two, *LIMIT["int16"])
    return saturate(one + two, "int16")


def shift_exp(
    x: Array, i0: int, k: int, lam: int, shr: Callable[[Array, int], Array] = floor, base_2: bool = False
) -> Array:
    x = np.maximum(x if base_2 else x + shr(x, 1) - shr(x, 4), -lam * k * i0)
    q = -x // i0
    value = shr(-(-x - q * i0), 1) + i0
    return np.where(k >= q, value << np.maximum(k - q, 0), value >> np.clip(q - k, 0, 62))


def shiftmax(
    x: Array,
    *,
    i0: int,
    k_inter: int,
    int_div_kind: str,
    out: str,
    step: int = 0,
    eight: int | None = None,
    top: int = 2**31 - 1,
    extra: int = 0,
    shr: Callable[[Array, int], Array] = floor,
    base_2: bool = False,
) -> Array:
    x = wide(x)
    e = shift_exp(x - x.max(-1, keepdims=True), i0 + step, k_inter, 1, shr, base_2)
    total = e.sum(-1, keepdims=True)
    assert int_div_kind == "paper"
    if eight is not None:
        return (np.minimum((top // total) * e >> 24, 127) << eight).astype(out)
    return saturate((top // total) * e >> (16 + extra), out)


def base2(
    x: Array,
    *,
    frac_bits: int,
    a1: int,
    a2: int,
    bits: int = 16,
    one: int = 32767,
    less: int = 1,
    largest: Callable[[Array], Array] = lambda x: x.max(-1, keepdims=True),
    lower: Callable[..., Array] = half_up,
    rounding: Callable[..., Array] = half_up,
) -> Array:
    x = wide(x)
    t = largest(x) - x
    q, f = t >> frac_bits, (t & (2**frac_bits - 1)) << (15 - frac_bits)
    power = one - ((f * (a1 - ((a2 * f) >> 15))) >> 15)
    e = np.where(q == 0, power, lower(power, np.clip(q, 1, 17)))
    d = e.sum(-1, keepdims=True)
    length = np.array([int(n).bit_length() for n in d.ravel()]).reshape(d.shape)
    reciprocal = (2 ** (30 + bits) - less) // (d << (31 - length))
    return saturate(rounding(e * reciprocal, length + bits - 16), "int16")


def gelu(
    x: Array,
    *,
    i0: int,
    k_inter: int,
    lam: int,
    int_div_kind: str,
    k_out: int,
    mult: int,
    shift: int,
    by_row: bool,
    lowest: int = 0,
    factor: Callable[[Array], Array] = lambda x: x + (x >> 1) + (x >> 3) + (x >> 4),
) -> Array:
    """ShiftGELU with its row maximum, or the one of each element alone."""
    assert int_div_kind == "paper"
    x = wide(x)
    p = factor(x)
    if by_row:
        top = np.maximum(p.max(-1, keepdims=True), lowest)
        n = shift_exp(p - top, i0, k_inter, lam)
        d = np.maximum(n + shift_exp(-top, i0, k_inter, lam), 1)
    else:
        e, one = shift_exp(-abs(p), i0, k_inter, lam), i0 << k_inter
        n, d = np.where(p < 0, e, one), one + e
    return saturate(half_up(x * ((2**31 - 1) // d * n >> (32 - k_out)) * mult, shift), "int8")


def weighted_mean(a: Array, b: Array, *, mult: Array, shift: Array) -> Array:
    """The weights read as signed bytes in the products."""
    total = np.maximum(wide(a).sum(-1, keepdims=True), 1)
    length = np.array([[int(n).bit_length()] for n in total[:, 0]])
    scale = ((2**61 - 1) // (total << (31 - length)) * mult) >> 31
    return saturate(half_up(wide(a.view(np.int8)) @ wide(b) * scale, shift + length - 1), "int8")


def op(name: str, **changes: Any) -> Callable[..., Array]:
    """The definition of an op with some attributes changed."""
    return lambda *inputs, **kwargs: RUN[name](*inputs, **{**kwargs, **{k: f(kwargs[k]) for k, f in changes.items()}})


def after(name: str, change: Callable[[Array], Array]) -> Callable[..., Array]:
    """The definition of an op, its result then changed."""
    return lambda *inputs, **kwargs: np.ascontiguousarray(change(RUN[name](*inputs, **kwargs)))


def before(name: str, change: Callable[[Array], Array]) -> Callable[..., Array]:
    """The definition of an op on a changed first input."""
    return lambda x, *inputs, **kwargs: RUN[name](change(x), *inputs, **kwargs)


def int16(x: Array) -> Array:
    return x.astype(np.int16).astype(np.int64)


def int32(x: Array) -> Array:
    return x.astype(np.int32).astype(np.int64)


def logical32(x: Array) -> Array:
    return (x & 0xFFFFFFFF) >> 1


def heads_first(x: Array, *, heads: int, part: int, parts: int) -> Array:
    return x.reshape(len(x), heads, parts, -1)[:, :, part].transpose(1, 0, 2)


def channels_first(x: Array, *, patch: int) -> Array:
    rows = RUN["patchify"](x, patch=patch)
    return rows.reshape(len(rows), -1, x.shape[2]).transpose(0, 2, 1).reshape(rows.shape)


part = functools.partial


@dataclass(frozen=True)
class Fault:
    """A faulty function for one node of a model, and a piece of the name of its cause."""

    model: str
    node: str
    run: Callable[..., Array]
    cause: str


B0, B1 = "encoder.blocks.0.", "encoder.blocks.1."
FAULTS = {
    "round half to even": Fault("tiny", "patch_embed", part(linear, rounding=half_even), "half to even"),
    "round half away": Fault("tiny", "scores", part(matmul, rounding=half_away), "half away"),
    "round half down": Fault("tiny", "patch_embed", part(linear, rounding=lambda x, c: -half_up(-x, c)), "half down"),
    "round toward zero": Fault("tiny", "scores", part(matmul, rounding=toward_zero), "toward zero"),
    "floor": Fault("tiny", "proj", part(linear, rounding=floor), "round down (floor)"),
    "double rounding": Fault("tiny", "patch_embed", part(linear, rounding=twice(3)), "double rounding"),
    "double rounding, high product": Fault(
        "intseg", f"{B0}mlp.fc2", part(linear, rounding=twice(31)), "double rounding (31 bits first"
    ),
    "wrap": Fault("tiny", "qkv", part(linear, narrow=wrap), "wraps instead of saturating"),
    "symmetric clamp": Fault("tiny", "qkv", part(linear, narrow=symmetric), "symmetric range"),
    "16-bit reciprocal, LayerNorm": Fault(
        "intseg", f"{B0}norm1", part(layernorm, top=2**16 - 1, halve=lambda z: z << 14), "16-bit reciprocal"
    ),
    "32-bit reciprocal, Shiftmax": Fault(
        "i-vit", "decoder.blocks.0.attn.softmax", part(shiftmax, top=2**32 - 1, extra=1), "32-bit reciprocal"
    ),
    "31-bit reciprocal, base-2 softmax": Fault(
        "intseg", f"{B1}attn.softmax", part(base2, bits=31), "31-bit reciprocal"
    ),
    "8-bit Shiftmax": Fault("i-vit", f"{B1}attn.softmax", part(shiftmax, eight=8), "8-bit Shiftmax"),
    "I_0 by floor": Fault("i-vit", f"{B0}mlp.act", op("shift_gelu", i0=lambda v: v - 1), "I_0 by floor"),
    "I_0 by ceil": Fault("i-vit", f"{B0}attn.softmax", part(shiftmax, step=1), "I_0 by ceil"),
    "unsigned shift, LayerNorm": Fault("intseg", f"{B0}norm2", part(layernorm, halve=logical32), "unsigned"),
    "unsigned rounding shift": Fault("tiny", "qkv", part(linear, rounding=unsigned64), "unsigned"),
    "I_0 by round": Fault("i0", "gelu", op("sigmoid_gelu", i0=lambda v: 11), "I_0 by ceil or round"),
    "truncating shift, Shiftmax": Fault(
        "i-vit", f"{B1}attn.softmax", part(shiftmax, shr=toward_zero), "truncate toward zero"
    ),
    "transposed result": Fault("tiny", "proj", after("linear", lambda y: y.T.reshape(y.shape)), "transposed"),
    "permuted result": Fault(
        "intseg", f"{B0}attn.context", after("matmul", lambda y: y.transpose(1, 0, 2).reshape(y.shape)), "(1,0,2)"
    ),
    "permuted heads": Fault("intseg", f"{B0}attn.q", heads_first, "(head, part)"),
    "channels first": Fault("tiny", "patchify", channels_first, "channels first"),
    "swapped endianness": Fault("tiny", "patch_embed", after("linear", lambda y: y.byteswap()), "endianness"),
    "swapped endianness of an input": Fault("tiny", "norm1", before("layernorm", lambda x: x.byteswap()), "endianness"),
    "missing bias": Fault("tiny", "head", part(linear, bias_factor=0), "bias missing"),
    "missing bias, LayerNorm": Fault("intseg", "encoder.norm", part(layernorm, bias_factor=0), "bias missing"),
    "shift one more": Fault("tiny", "qkv", part(linear, shift_step=1), "shift off by one (+1)"),
    "shift one less": Fault("intseg", f"{B0}attn.proj", part(linear, shift_step=-1), "shift off by one (-1)"),
    "mult one more": Fault("tiny", "patch_embed", part(linear, mult_step=1), "mult off by one (+1)"),
    "shift of one branch": Fault("tiny", "add_attn", op("add", shift_b=lambda v: v + 1), "shift_b off by one"),
    "int16 accumulator": Fault("tiny", "patch_embed", part(linear, acc=int16), "INT16 accumulator that wraps"),
    "int32 variance": Fault("clamp", "norm2", part(layernorm, variance=int32), "INT32 accumulator"),
    "INT32 product": Fault("i-vit", f"{B0}mlp.fc1", part(linear, product=int32), "wraps at 32 bits"),
    "activation without sign": Fault("tiny", "proj", before("linear", lambda x: x.view(np.uint8)), "without sign"),
    "mean rounded down": Fault("intseg", f"{B0}norm2", part(layernorm, mean=lambda t, n: t // n), "mean rounded down"),
    "clamped branches": Fault("clamp", "add_attn", part(add, clamp=True), "branches clamped"),
    "exponential from 32768": Fault("intseg", f"{B0}attn.softmax", part(base2, one=32768), "32768"),
    "other int_div": Fault(
        "i-vit", f"{B1}mlp.act", op("shift_gelu", int_div_kind=lambda v: "normalized"), "int_div of the kind"
    ),
    "table without offset": Fault("intseg", f"{B0}mlp.act", lambda x, *, table: table[x.view(np.uint8)], "bits of x"),
    "class token last": Fault("intseg", "encoder.tokens", lambda a, b: np.concatenate([b, a]), "other order"),
    # What issues of other projects blame
    "two roundings of two kinds": Fault(
        "intseg", f"{B0}mlp.fc2", part(linear, rounding=gemmlowp), "as gemmlowp and TFLite"
    ),
    "one scale for all channels": Fault(
        "intseg",
        f"{B0}attn.qkv",
        op("linear", mult=lambda m: m[0] + 0 * m, shift=lambda s: s[0] + 0 * s),
        "scale of channel 0",
    ),
    "shift of five bits": Fault("intseg", f"{B0}attn.proj", op("linear", shift=lambda s: s % 32), "modulo 32"),
    "pairs that saturate": Fault("intseg", f"{B0}mlp.fc1", part(linear, dot=pairs), "in pairs that saturate at INT16"),
    "accumulator not cleared": Fault("tiny", "qkv", part(linear, dot=not_cleared), "not cleared between rows"),
    "accumulator cleared in the loop": Fault(
        "intseg", f"{B0}mlp.fc2", part(linear, dot=last_slice(16)), "only the last 16"
    ),
    "sum taken twice": Fault("tiny", "proj", part(linear, dot=lambda x, w: 2 * (wide(x) @ wide(w).T)), "added twice"),
    "fused ReLU": Fault("tiny", "qkv", part(linear, narrow=relu), "fused ReLU"),
    "two products in one multiplier": Fault(
        "intseg",
        f"{B0}attn.proj",
        part(linear, dot=packed(-1, 0, False)),
        "borrows from the even one kept, at every product",
    ),
    "two sums in one multiplier": Fault(
        "tiny",
        "patch_embed",
        part(linear, dot=packed(-2, 1, True)),
        "two rows in one multiplier (DSP packing)",
    ),
    "lowest times lowest": Fault("tiny", "patch_embed", part(linear, dot=booth), "-128 times -128 is 0"),
    "first slice of a sum": Fault("intseg", f"{B0}mlp.fc2", part(linear, dot=first_slice), "only the first 16 terms"),
    "scales of the first tile": Fault(
        "intseg",
        f"{B0}attn.qkv",
        op("linear", mult=lambda m: np.resize(m[:16], m.shape), shift=lambda s: np.resize(s[:16], s.shape)),
        "scales of the first 16 channels again",
    ),
    "tiles not undone": Fault("intseg", f"{B0}mlp.fc1", op("linear", weight=micro_tiles), "stored as tiles of 8 x 8"),
    "size instead of zero": Fault(
        "tiny", "qkv", part(linear, narrow=lambda x, out: saturate(abs(x), out)), "lose their"
    ),
    "multiplier in Q32": Fault("intseg", f"{B0}mlp.fc2", op("linear", mult=q32), "doubled and read with sign"),
    "softmax of the columns": Fault("intseg", f"{B1}attn.softmax", columns_base2, "over the other axis"),
    "two faults": Fault("tiny", "qkv", part(linear, rounding=half_even, bias_factor=0), "bias missing"),
    "two other faults": Fault("tiny", "proj", part(linear, narrow=wrap, shift_step=-1), "shift off by one (-1)"),
}
