"""Intervals of integers, for one value or for one a channel, in arithmetic that never wraps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(slots=True)
class Interval:
    """Every element of a tensor lies in [low, high]; a row of a non-negative one sums to at most row_sum.

    low, high  integers, or arrays of them that broadcast over the tensor: an interval a channel
    shape      of the tensor; of results of arithmetic only the last axis is exact
    moved      whether its elements are those of an input, in other places
    attained   whether both ends are values of the tensor for some input
    """

    low: Any
    high: Any
    row_sum: int | None = None
    shape: tuple[int, ...] = field(default=(), compare=False, repr=False)
    moved: bool = field(default=False, compare=False, repr=False)
    attained: bool = field(default=False, compare=False, repr=False)

    __array_ufunc__ = None  # arrays leave the arithmetic to the methods below

    def hull(self, *others: int) -> Interval:
        """The smallest interval with these values in it as well."""
        return Interval(min(self.low, *others), max(self.high, *others), shape=self.shape)

    @property
    def lowest(self) -> int:
        """The lower end over all channels."""
        return int(self.low.min()) if isinstance(self.low, np.ndarray) else int(self.low)

    @property
    def highest(self) -> int:
        """The upper end over all channels."""
        return int(self.high.max()) if isinstance(self.high, np.ndarray) else int(self.high)

    @property
    def size(self) -> int:
        """The largest absolute value."""
        return max(abs(self.lowest), abs(self.highest))

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low, shape=self.shape)

    def __abs__(self) -> Interval:
        low, high = _least(abs(self.low), abs(self.high)), _most(abs(self.low), abs(self.high))
        over_zero = (self.low < 0) & (self.high > 0)
        return Interval(low * (1 - over_zero), high, shape=self.shape)

    def __add__(self, other: Any) -> Interval:
        low, high, shape = _ends(self, other)
        return Interval(plus(self.low, low), plus(self.high, high), shape=shape)

    def __sub__(self, other: Any) -> Interval:
        low, high, shape = _ends(self, other)
        return Interval(plus(self.low, -high), plus(self.high, -low), shape=shape)

    def __rsub__(self, other: Any) -> Interval:
        return (-self).__add__(other)

    def __mul__(self, other: Any) -> Interval:
        low, high, shape = _ends(self, other)
        factors = (low,) if low is high else (low, high)
        ends = [times(end, factor) for factor in factors for end in (self.low, self.high)]
        return Interval(_least(*ends), _most(*ends), shape=shape)

    __radd__ = __add__
    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Interval:
        """By a positive integer."""
        return Interval(self.low // divisor, self.high // divisor, shape=self.shape)

    def __rfloordiv__(self, dividend: int) -> Interval:
        """A positive integer by positive values."""
        return Interval(dividend // self.high, dividend // self.low, shape=self.shape)

    def __rshift__(self, count: int) -> Interval:
        return Interval(self.low >> count, self.high >> count, shape=self.shape)

    def __lshift__(self, count: int) -> Interval:
        return Interval(self.low << count, self.high << count, shape=self.shape)


def interval(x: Any) -> Interval:
    """A constant as an interval: an integer, or an array with an element a channel."""
    if isinstance(x, Interval):
        return x
    return Interval(x, x, shape=np.shape(x)) if isinstance(x, np.ndarray) else Interval(int(x), int(x))


def _ends(x: Interval, other: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Both ends of the other operand, and the shape of a result: that of the longer rows."""
    if isinstance(other, Interval):
        return other.low, other.high, longer(x, other)
    if isinstance(other, np.ndarray) and other.ndim:
        return other, other, x.shape
    return (end := int(other)), end, x.shape


def longer(*operands: Interval) -> tuple[int, ...]:
    """The shape with the longest rows: where a value of a row meets the row, the row's."""
    return max((x.shape for x in operands), key=lambda shape: (shape[-1:], len(shape)))


def corners(function: Callable[..., Any], *operands: Interval) -> Interval:
    """A function that rises or falls with each of its operands: its extremes are at the ends."""
    ends: list[tuple[Any, ...]] = [()]
    for x in operands:
        ends = [(*start, end) for start in ends for end in ((x.low,) if x.low is x.high else (x.low, x.high))]
    values = [function(*end) for end in ends]
    return Interval(_least(*values), _most(*values), shape=longer(*operands))


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray)


def _least(*values: Any) -> Any:
    return functools.reduce(np.minimum, values) if any(map(_is_array, values)) else min(values)


def _most(*values: Any) -> Any:
    return functools.reduce(np.maximum, values) if any(map(_is_array, values)) else max(values)


def _size(x: Any) -> int:
    return max(-int(x.min()), int(x.max())) if isinstance(x, np.ndarray) else abs(int(x))


def _exact(a: Any, b: Any, limit: int) -> tuple[Any, Any]:
    """Operands as INT64 if a result of this size fits, else as Python integers."""
    kind: Any = np.int64 if limit < 2**63 else object
    return np.asarray(a).astype(kind), np.asarray(b).astype(kind)


def plus(a: Any, b: Any) -> Any:
    """a + b of integers or arrays, without wrapping."""
    if not (_is_array(a) or _is_array(b)):
        return int(a) + int(b)
    left, right = _exact(a, b, _size(a) + _size(b))
    return left + right


def times(a: Any, b: Any) -> Any:
    """a * b of integers or arrays, without wrapping."""
    if not (_is_array(a) or _is_array(b)):
        return int(a) * int(b)
    left, right = _exact(a, b, _size(a) * _size(b))
    return left * right
