"""Sums: accumulators, dot products, row sums, and products before a shift (SPEC 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case
from .interval import Interval
from .rounding import wrong_round
from .shifting import bit_length
from .variant import Named, Variant

Int = NDArray[np.int64]


def dot(x: Any, weight: Any) -> NDArray[np.int32]:
    """INT8 [M, K] times the rows of INT8 [N, K], in INT32."""
    return matmul(x, weight.T)


def matmul(a: Any, b: Any) -> NDArray[np.int32]:
    """[..., M, K] times [..., K, N], in INT32."""
    # As `a @ b`, which is a plain loop for integers; this one has vectors, along rows of b that are contiguous.
    result: NDArray[np.int32] = np.einsum("...mk,...kn->...mn", a.astype(np.int32), b.astype(np.int32, order="C"))
    return result


def weight_sums(weight: NDArray[Any]) -> tuple[Int, Int]:
    """Per output channel the sums of the positive and of the negative weights: int64 [N] each, for int8 [N, K]."""
    size = np.abs(weight.astype(np.int16)).sum(axis=1, dtype=np.int32).astype(np.int64)  # at most 2^16 * 2^7
    total = weight.sum(axis=1, dtype=np.int32).astype(np.int64)
    return (total + size) // 2, (total - size) // 2


def bound_dot(x: Interval, sums: tuple[Int, Int]) -> Interval:
    """From the weights' sums. Exact: the high end where the weight is positive, the low end elsewhere attain it."""
    positive, negative = sums
    low, high = positive * x.low + negative * x.high, positive * x.high + negative * x.low
    return Interval(low, high, shape=(*x.shape[:-1], len(positive)))


def bound_matmul(a: Interval, b: Interval) -> Interval:
    """K times the hull of the products; rows of a that sum to R at most give R times the ends of b and 0."""
    ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    low, high = a.shape[-1] * min(ends), a.shape[-1] * max(ends)
    if a.row_sum is not None:
        low, high = max(low, a.row_sum * min(b.low, 0)), min(high, a.row_sum * max(b.high, 0))
    return Interval(low, high, shape=(*a.shape[:-1], b.shape[-1]))


def bound_row_sum(x: Interval, has: int | None) -> Interval:
    """The sum of a row, one of whose elements is `has` if that is known."""
    low, count = x.lowest, x.shape[-1]
    least = count * low if has is None else has + (count - 1) * low
    return Interval(least, count * x.highest, shape=(*x.shape[:-1], 1))


def wrong_sum(v: Variant, x: Any) -> Int:
    """An accumulator or a sum in the variant's width."""
    x = x.astype(np.int64)
    if not v.acc_bits:
        return np.asarray(x)
    if v.acc_overflow != "wrap":
        return wrong_clamp(x, v.acc_bits)
    return wrap(x, v.acc_bits)


def wrong_clamp(x: Int, bits: int) -> Int:
    """The nearest of the numbers of so many bits."""
    return np.asarray(np.clip(x, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def wrong_matmul(v: Variant, a: Any, b: Any) -> Int:
    """[..., M, K] times [..., K, N] as the variant adds it up."""
    if v.products:
        how, *rest = v.products.split(":")
        return _PRODUCTS[how](a, b, *rest)
    if v.acc_bits and v.acc_overflow == "steps":
        a, b = a.astype(np.int64), b.astype(np.int64)
        total = np.zeros((*a.shape[:-1], b.shape[-1]), np.int64)
        for k in range(a.shape[-1]):
            total = wrong_clamp(total + a[..., k : k + 1] * b[..., k : k + 1, :], v.acc_bits)
        return total
    whole = matmul(a, b).astype(np.int64)
    return np.cumsum(whole, axis=-2) if v.quirk == "stale_rows" else whole


def wrong_pairs(a: Any, b: Any) -> Int:
    """Bytes of a without sign (x + 128 where they have one), two products added in INT16 that saturates."""
    offset = 128 if a.dtype.kind == "i" else 0
    a, b = a.astype(np.int64) + offset, b.astype(np.int64)
    total = -offset * np.broadcast_to(b.sum(axis=-2, keepdims=True), (*a.shape[:-1], b.shape[-1]))
    for k in range(0, a.shape[-1], 2):
        total = total + wrong_clamp(a[..., k : k + 2] @ b[..., k : k + 2, :], 16)
    return total


def wrong_packed(a: Any, b: Any, axis: str, upper: str, when: str) -> Int:
    """(u 2^18 + l) c in one multiplier is u c above l c: where l c is negative, the upper half is one too small."""
    total = np.moveaxis(matmul(a, b).astype(np.int64), int(axis), 0)
    if when == "sum":
        borrowed: Int = (total < 0).astype(np.int64)
    else:
        negative = matmul(a < 0, b > 0) + matmul(a > 0, b < 0)
        borrowed = np.moveaxis(negative.astype(np.int64), int(axis), 0)
    pairs, first = len(total) // 2 * 2, int(upper)
    total[first:pairs:2] -= borrowed[1 - first : pairs : 2]
    return np.moveaxis(total, 0, int(axis))


def wrong_lowest(a: Any, b: Any, product: str) -> Int:
    """The one product of INT8 that has no counterpart, as a multiplier without the bit for it gives it."""
    return matmul(a, b) + (int(product) - 2**14) * matmul(a == -128, b == -128).astype(np.int64)


_PRODUCTS: dict[str, Callable[..., Int]] = {"pairs": wrong_pairs, "packed": wrong_packed, "lowest": wrong_lowest}


def wrap(x: Int, bits: int) -> Int:
    """The low `bits` bits as a signed number."""
    if bits >= 64:
        return x
    half = 1 << (bits - 1)
    return ((x + half) & ((1 << bits) - 1)) - half


def wrong_product(v: Variant, x: Any, mult: Any) -> Int:
    """The product before a shift as the variant has it."""
    left, right = x.astype(np.int64), np.asarray(mult, dtype=np.int64)
    if v.as_float:
        return _float24(_float24(left) * _float24(right))
    product: Int = left * right
    return wrap(product, v.product_bits) if v.product_bits else product


def _float24(x: Int) -> Int:
    """Integers as a float32 holds them: 24 significant bits, half to even."""
    drop = np.maximum(bit_length(np.abs(x)) - 24, 0)
    return wrong_round(x, drop, "half_even") << drop


SCALE = (
    Case("mult-zero", "2.3", "mult = 0", lambda f: np.equal(f["mult"], 0)),
    Case("mult-largest", "2.3", "mult = 2^31 - 1", lambda f: np.equal(f["mult"], 2**31 - 1)),
    Case("shift-one", "2.3", "shift = 1", lambda f: np.equal(f["shift"], 1)),
    Case("shift-62", "2.3", "shift = 62", lambda f: np.equal(f["shift"], 62)),
)
"""Of a dyadic scale."""


def accumulators() -> Named:
    """Accumulators that are too narrow."""
    for bits in (16, 32, 24, 20, 48):
        yield f"INT{bits} accumulator that wraps", Variant(acc_bits=bits)
        yield f"INT{bits} accumulator that saturates", Variant(acc_bits=bits, acc_overflow="saturate")


def partial_sums() -> Named:
    """Products that are added up otherwise."""
    yield "products of unsigned bytes are added in pairs that saturate at INT16 (pmaddubsw)", Variant(products="pairs")
    for bits in (16, 24, 20, 32):
        name = f"INT{bits} accumulator that saturates at every term"
        yield name, Variant(acc_bits=bits, acc_overflow="steps")
    yield "accumulators not cleared between rows", Variant(quirk="stale_rows")
    for axis, words in ((-1, "columns"), (-2, "rows")):
        for upper, which in enumerate(("even", "odd")):
            name = f"two {words} in one multiplier (DSP packing), what the lower one borrows from the {which} one kept"
            yield f"{name}, at every product", Variant(products=f"packed:{axis}:{upper}:product")
            yield f"{name}, once a sum", Variant(products=f"packed:{axis}:{upper}:sum")
    yield "-128 times -128 is 0 (Booth's multiplier without its extra bit)", Variant(products="lowest:0")
    yield "-128 times -128 is -16384 (a product of 15 bits)", Variant(products="lowest:-16384")


def products() -> Named:
    """Products before a shift that lose bits."""
    for bits in (32, 31, 48, 40):
        yield f"the product before the shift wraps at {bits} bits", Variant(product_bits=bits)
    yield "float32 requantization", Variant(as_float=True)
    yield "float32 requantization, rounded half to even", Variant(as_float=True, rounding="half_even")
