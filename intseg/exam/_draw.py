"""Where the operands of an op come from: one protocol, `Draw`, and the integers that are the same on every machine.

An exam makes calls with it in two ways: `inputs` reach every case of the op, `draw` is any valid call. Conformance
packs and new golden vectors take `Numbers`, property tests and random graphs have sources of their own.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from intseg.arith import limits
from intseg.ops import NARROW, OPS, Array, Attr, Call, Value

T = TypeVar("T")

LIMITS = {
    name: (int(np.iinfo(name).min), int(np.iinfo(name).max))
    for name in ("int8", "uint8", "int16", "uint16", "int32", "int64")
}
"""Lowest and highest value of every dtype of the ops."""

SCALES = ((0, 1), (1, 1), (1, 3), (3, 7), (2**30, 30), (2**31 - 1, 62), (2**31 - 1, 31), (1, 62), (2**31 - 1, 1))
"""(mult, shift): zero, ties, the identity, both ends."""


class Draw(Protocol):
    """A source of integers."""

    def pick(self, *options: T) -> T:
        """One of the options."""

    def within(self, low: int, high: int) -> int:
        """An integer in [low, high]."""

    def odd(self) -> bool:
        """Whether to leave what models have for whatever loading accepts."""

    def array(self, dtype: str, *shape: int, low: int | None = None, high: int | None = None) -> Array:
        """Integers of a dtype, in narrower limits if given."""


class Numbers:
    """Integers that are the same on every machine: a 64-bit linear congruential generator."""

    MULTIPLIER, STEP = 6364136223846793005, 1442695040888963407

    def __init__(self, seed: int) -> None:
        self.state = seed

    @classmethod
    def named(cls, name: str) -> Numbers:
        """The numbers of a name."""
        return cls(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))

    def below(self, limit: int) -> int:
        """The next integer in [0, limit): of the upper half of a state, or of two states from 2^32 + 1 on."""
        if limit > 2**32:
            return int(self._below(limit, 1)[0])
        self.state = (self.MULTIPLIER * self.state + self.STEP) % 2**64
        return (self.state >> 32) * limit >> 32

    def pick(self, *options: T) -> T:
        return options[self.below(len(options))]

    def within(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def odd(self) -> bool:
        return self.below(4) == 0

    def array(self, dtype: str, *shape: int, low: int | None = None, high: int | None = None) -> Array:
        low, high = LIMITS[dtype][0] if low is None else low, LIMITS[dtype][1] if high is None else high
        found = self._below(high - low + 1, math.prod(shape)) + np.uint64(low % 2**64)  # wraps as int64 does
        return found.astype(np.int64).astype(dtype).reshape(shape)

    def _below(self, limit: int, count: int) -> NDArray[np.uint64]:
        if limit <= 2**32:
            return self._next(count) * np.uint64(limit) >> np.uint64(32)
        pairs = self._next(2 * count).reshape(count, 2)
        both = pairs[:, 0] << np.uint64(32) | pairs[:, 1]
        return both % np.uint64(limit) if limit < 2**64 else both

    def _next(self, count: int) -> NDArray[np.uint64]:
        """The upper halves of the next states."""
        found = np.empty(count, np.uint64)
        factors, steps = _jumps()
        for start in range(0, count, len(factors)):
            states = (factors * np.uint64(self.state) + steps)[: count - start]
            found[start : start + len(states)] = states
            self.state = int(states[-1])
        return found >> np.uint64(32)


@functools.cache
def _jumps() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """a_k, c_k with state k = a_k * state + c_k, modulo 2^64."""
    factors = np.full(512, Numbers.MULTIPLIER, np.uint64).cumprod()
    ones = np.concatenate([np.ones(1, np.uint64), factors[:-1]])
    return factors, ones.cumsum() * np.uint64(Numbers.STEP)


@dataclass(frozen=True)
class Drawn:
    """What a call needs beside the elements of its inputs."""

    inputs: tuple[Value, ...]
    params: Mapping[str, Array] = field(default_factory=dict)
    attrs: Mapping[str, Attr] = field(default_factory=dict)


def call(op: str, /, *inputs: Array, **operands: Array | Attr) -> Call:
    """A call from words: parameters and attributes by the op's names."""
    roles = OPS[op].params if op in OPS else ()
    params: dict[str, Any] = {name: value for name, value in operands.items() if name in roles}
    attrs: dict[str, Any] = {name: value for name, value in operands.items() if name not in roles}
    return Call(op, inputs, params, attrs)


def edge_rows(dtype: str, width: int) -> Array:
    """Lowest, highest, alternating, one-hot, one low, zero, constant, negative, 0 and -1, a ramp, pairs at the top."""
    low, high = LIMITS[dtype]
    rows = np.zeros((11, width), dtype)
    rows[0], rows[1] = low, high
    rows[2, ::2], rows[2, 1::2] = low, high
    rows[3, width // 2], rows[4, 0] = high, low
    rows[6], rows[7] = 5, -3
    rows[8, ::2] = -1
    rows[9] = np.arange(width) - width // 2
    rows[10, :2] = 1
    return rows


def between(a: int) -> dict[str, Attr]:
    """mult and shift that round a and a + 1 to different integers, so that the last bit of an operand shows.

    a  not 0 or -1, |a| at most 2^30
    """
    small = a if a >= 1 else -a - 1
    shift = small.bit_length() + 31
    half = 1 << (shift - 1)
    return {"mult": -(-half // (small + 1)) if a >= 1 else half // small, "shift": shift}


def columns(*pairs: tuple[int, int]) -> dict[str, Array]:
    """(mult, shift) pairs as parameters, one per output column."""
    mult, shift = zip(*pairs, strict=True)
    return {"mult": np.array(mult, np.int32), "shift": np.array(shift, np.int8)}


def size(d: Draw) -> int:
    """The extent of an axis: small and often odd, because an oracle in plain Python is slow."""
    return d.pick(1, 2, 3, 5, 8)


def scale(d: Draw, source: int, target: int) -> tuple[int, int]:
    """(mult, shift) that brings values of about `source` to about `target`, so that results neither all saturate nor
    vanish; now and then any pair."""
    if d.odd():
        return d.within(0, 2**31 - 1), d.within(1, 62)
    bits = d.pick(31, 31, 31, d.within(1, 31))
    shift = min(max(bits + source.bit_length() - target.bit_length(), 1), 62)
    return min((target << shift) // max(source, 1), 2**31 - 1), shift


def scales(d: Draw, shape: tuple[int, ...], source: int, target: int) -> dict[str, Array]:
    """One scale per channel, as parameters: all equal, all different, or all but one equal."""
    count, kind = math.prod(shape), d.pick("equal", "different", "one")
    first = scale(d, source, target)
    pairs = [scale(d, source, target) if kind == "different" else first for _ in range(count)]
    if kind == "one":
        pairs[d.within(0, count - 1)] = scale(d, source, target)
    return {role: array.reshape(shape) for role, array in columns(*pairs).items()}


def out_of(d: Draw, dtype: str = "") -> str:
    """A type of the result that this dtype holds, or any: in one of three draws narrower than INT8."""
    dtype = dtype or d.pick("int8", "int16")
    return d.pick("int8", "int8", d.pick(*NARROW)) if dtype == "int8" else dtype


def narrowed(d: Draw) -> dict[str, Attr]:
    """The attribute of an op whose result is INT8 where it has none."""
    out = out_of(d, "int8")
    return {} if out == "int8" else {"out": out}


def typical(out: str, wide: int) -> int:
    """About a third of the range of a result; `wide` for INT16."""
    return wide if out == "int16" else limits(out)[1] * 40 // 127


def softmax_inputs(numbers: Draw, dtype: str) -> Iterator[Array]:
    """Inputs of a softmax: ends, a single element, steps around powers of two, all negative."""
    low, high = LIMITS[dtype]
    yield edge_rows(dtype, 7)
    yield np.array([[-7]], dtype)
    yield np.array([[0, -1, -2, -15, -16, -17, -31, -32, -33, -100], [high, *[low] * 9]], dtype)
    yield numbers.array(dtype, 2, 3, 17, low=-90, high=-20)
