"""The machine of shrinking: which axes of the operands of a call belong together, and where they go in the result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .machine import Machine


class Extent:
    """An extent of operands that are cut together.

    slots    (operand, axis) pairs that have it
    fixed    whether attributes or other operands say how long it is
    reduced  whether an index of the result needs all of its indices
    """

    def __init__(self, *slots: tuple[str, int]) -> None:
        self.slots = list(slots)
        self.fixed = self.reduced = False
        self._same: Extent | None = None

    @property
    def root(self) -> Extent:
        """The one that stands for all that were found to be the same."""
        return self if self._same is None else self._same.root

    def join(self, other: Extent) -> None:
        """Both are the same."""
        mine, theirs = self.root, other.root
        if mine is not theirs:
            theirs._same = mine
            mine.slots += [slot for slot in theirs.slots if slot not in mine.slots]
            mine.fixed, mine.reduced = mine.fixed or theirs.fixed, mine.reduced or theirs.reduced


class Axes:
    """A tensor by its axes: (length, extent); no extent where an axis is none of an operand's."""

    def __init__(self, axes: tuple[tuple[int, Extent | None], ...]) -> None:
        self.axes = axes
        self.ndim = len(axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths."""
        return tuple(length for length, _ in self.axes)

    @property
    def extents(self) -> Iterator[Extent]:
        """Those that there are."""
        return (extent.root for _, extent in self.axes if extent is not None)

    def meet(self, other: Any) -> Axes:
        """The result of arithmetic of both, broadcast; axes that meet are the same."""
        if not isinstance(other, Axes):
            return self
        rank = max(self.ndim, other.ndim)
        mine, theirs = (((1, None),) * (rank - x.ndim) + x.axes for x in (self, other))
        return Axes(tuple(_meet(a, b) for a, b in zip(mine, theirs, strict=True)))

    def alone(self) -> Axes:
        """The same, of one operand."""
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = meet
    __floordiv__ = __rfloordiv__ = __rshift__ = __lshift__ = meet
    __neg__ = __abs__ = alone
    __array_ufunc__ = None


def _meet(a: tuple[int, Extent | None], b: tuple[int, Extent | None]) -> tuple[int, Extent | None]:
    if a[0] != b[0]:
        return a if b[0] == 1 else b
    if a[1] is not None and b[1] is not None:
        a[1].join(b[1])
    return (a[0], a[1] if a[1] is not None else b[1])


def operand(key: str, shape: tuple[int, ...]) -> Axes:
    """An operand of a call: an input by its number, a parameter by its role."""
    return Axes(tuple((length, Extent((key, axis))) for axis, length in enumerate(shape)))


class Extents(Machine):
    """Axes in place of values."""

    def widen(self, x: Axes) -> Axes:
        return x

    def accumulate(self, x: Axes) -> Axes:
        return x

    def row_mean(self, total: Axes, count: int) -> Axes:
        return total

    def isqrt(self, v: Axes) -> Axes:
        return v

    def rsr(self, x: Axes, c: Any, via: str = "", case: str = "") -> Axes:
        return x.meet(c)

    def shift_left(self, x: Axes, n: Any) -> Axes:
        return x.meet(n)

    def product(self, x: Axes, mult: Any) -> Axes:
        return x.meet(mult)

    def low_bits(self, x: Axes, n: int) -> Axes:
        return x

    def at_least(self, x: Axes, low: int) -> Axes:
        return x

    def clip(self, x: Axes, low: int, high: int) -> Axes:
        return x

    def is_zero(self, x: Axes) -> Axes:
        return x

    def is_negative(self, x: Axes) -> Axes:
        return x

    def saturate(self, x: Axes, kind: str) -> Axes:
        return x

    def divmod(self, x: Axes, divisor: int) -> tuple[Axes, Axes]:
        return x, x

    def leading(self, d: Axes) -> tuple[Axes, Axes]:
        return d, d

    def where(self, condition: Axes, yes: Any, no: Any) -> Axes:
        return condition.meet(yes).meet(no)

    def blend(self, a: Axes, b: Axes, weight: Any, total: int, tap: str) -> Axes:
        return a.meet(b)

    def row_sum(self, x: Axes, has: int | None = None, why: str = "") -> Axes:
        return Axes((*self.argmax(x).axes, (1, None)))

    def row_max(self, x: Axes) -> Axes:
        return self.row_sum(x)

    def squares(self, x: Axes, about_mean_of: Any = None) -> Axes:
        return self.row_sum(x)

    def argmax(self, x: Axes) -> Axes:
        _reduce(x.axes[-1])
        return Axes(x.axes[:-1])

    def dot(self, x: Axes, weight: Axes) -> Axes:
        _reduce(_meet(x.axes[1], weight.axes[1]))
        return Axes((x.axes[0], weight.axes[0]))

    def matmul(self, a: Axes, b: Axes) -> Axes:
        _reduce(_meet(a.axes[-1], b.axes[-2]))
        return Axes((*Axes(a.axes[:-2]).meet(Axes(b.axes[:-2])).axes, a.axes[-2], b.axes[-1]))

    def columns(self, x: Axes) -> Axes:
        return Axes((*x.axes[:-1], (1, None), x.axes[-1]))

    def transpose(self, x: Axes, *axes: int) -> Axes:
        return Axes(tuple(x.axes[axis] for axis in axes))

    def reshape(self, x: Axes, *shape: int) -> Axes:
        """An axis that stays as it is keeps its extent; what is split or joined is fixed by attributes."""
        old, new = list(x.axes), list(shape)
        result: list[tuple[int, Extent | None]] = []
        while old and new:
            parts, lengths = [old.pop(0)], [new.pop(0)]
            while (left := math.prod(length for length, _ in parts)) != (right := math.prod(lengths)):
                if left < right:
                    parts.append(old.pop(0))
                else:
                    lengths.append(new.pop(0))
            whole = len(parts) == len(lengths) == 1
            result += parts if whole else [(length, None) for length in lengths]
            if not whole:
                _fix(Axes(tuple(parts)))
        _fix(Axes(tuple(old)))  # what is left on either side has length 1
        result += [(length, None) for length in new]
        return Axes(tuple(result))

    def rows(self, x: Axes, start: int, stop: int) -> Axes:
        return _replaced(x, 0, stop - start)

    def pick(self, x: Axes, index: int, axis: int) -> Axes:
        cut = _replaced(x, axis, 1).axes
        return Axes(cut[:axis] + cut[axis + 1 :])

    def gather(self, x: Axes, indices: Any, axis: int) -> Axes:
        return _replaced(x, axis, len(indices))

    def repeat(self, x: Axes, count: int, axis: int) -> Axes:
        return _replaced(x, axis, count * x.shape[axis])

    def concat(self, *parts: Axes) -> Axes:
        total = sum(x.shape[0] for x in parts)
        joined = _replaced(parts[0], 0, total)
        for x in parts[1:]:
            joined = joined.meet(_replaced(x, 0, total))
        return joined

    def lookup(self, table: Axes, x: Axes, first: int) -> Axes:
        _fix(table)
        return x if table.ndim == 1 else _replaced(x, x.ndim - 1, x.shape[-1])

    def entry(self, table: Axes, x: Axes) -> Axes:
        _fix(Axes(table.axes[-1:]))
        return x.meet(Axes((*table.axes[:-1], (1, None), (1, None))))


def _reduce(axis: tuple[int, Extent | None]) -> None:
    if axis[1] is not None:
        axis[1].root.reduced = True


def _fix(x: Axes) -> None:
    for extent in x.extents:
        extent.fixed = True


def _replaced(x: Axes, axis: int, length: int) -> Axes:
    """An axis gives way to one of another length, which no operand has."""
    _fix(Axes((x.axes[axis],)))
    return Axes((*x.axes[:axis], (length, None), *x.axes[axis + 1 :]))
