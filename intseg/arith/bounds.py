"""The machine of the certificate: intervals in place of values, every register proved to hold its own (SPEC 10)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from intseg.errors import ModelError

from . import division, interpolation, norm, rounding, saturation, shifting, sums
from .cases import Case, Facts
from .interval import Interval, corners, interval, longer
from .machine import Machine

_RANGE = saturation.INT_RANGE | {"uint32": (0, 2**32 - 1)}


@dataclass(frozen=True)
class Register:
    """A proved bound: low <= value <= high, in a register of this dtype.

    extra    not a register of a trace: a sum on the way to one, or one that only kernels hold
    witness  the value of largest size that a constructed input gives; None where none was run
    """

    name: str
    low: int
    high: int
    dtype: str
    extra: bool = False
    witness: int | None = None

    @property
    def bound(self) -> int:
        """The end of larger size."""
        return self.high if self.high >= -self.low else self.low

    @property
    def width(self) -> int:
        """Bits of the register."""
        return int(self.dtype.lstrip("uint"))

    @property
    def bits(self) -> int:
        """Bits that hold the whole interval."""
        if self.dtype.startswith("u"):
            return self.high.bit_length()
        return max(max(self.high, 0).bit_length(), (~min(self.low, -1)).bit_length()) + 1

    @property
    def headroom(self) -> int:
        """Bits to spare."""
        return self.width - self.bits


class Bounds(Machine):
    """Intervals, for every input at once; raises ModelError where a register may not hold its values.

    node, op   of the call, for messages
    registers  proved so far, in the order of computation
    kept       the intervals of those that have a name in traces
    worst      for registers with an interval a channel, the channels with the lowest and the highest end
    seen       facts of the primitives, as `recorder.Watcher` has them of values
    """

    def __init__(self, node: str, op: str) -> None:
        self.node, self.op = node, op
        self.registers: list[Register] = []
        self.kept: dict[str, Interval] = {}
        self.worst: dict[str, set[int]] = {}
        self.seen: list[tuple[str, Sequence[Case], Facts]] = []
        self._lanes: set[str] = set()
        self._weight_sums: dict[int, tuple[Any, Any]] = {}

    def prove(self, name: str, x: Interval, dtype: str, extra: bool = False) -> None:
        """One register. Raises ModelError."""
        low, high = x.low, x.high
        if isinstance(high, np.ndarray):
            ends = int(low.argmin()), int(high.argmax())
            low, high = int(low.flat[ends[0]]), int(high.flat[ends[1]])
            if not extra:
                self.worst[name] = {*ends}
        self.registers.append(self._proved(name, int(low), int(high), dtype, extra))

    def _proved(self, name: str, low: int, high: int, dtype: str, extra: bool) -> Register:
        lowest, highest = _RANGE[dtype]
        for value in (low, high):
            if not lowest <= value <= highest:
                raise ModelError(
                    f"node {self.node!r} ({self.op}): register {name} may reach {value}, expected {dtype}, "
                    f"[{lowest}, {highest}]: requantize the weights"
                )
        return Register(name, low, high, dtype, extra)

    def lane(self, after: str, name: str, x: Interval | tuple[int, int], dtype: str) -> None:
        """A register that only kernels hold, which follows one of the op. Raises ModelError."""
        x = Interval(*x) if isinstance(x, tuple) else x
        place = next(i for i in range(len(self.registers), 0, -1) if self.registers[i - 1].name == after)
        while place < len(self.registers) and self.registers[place].name in self._lanes:
            place += 1
        self._lanes.add(name)
        self.registers.insert(place, self._proved(name, x.lowest, x.highest, dtype, True))

    def result(self, x: Interval, dtype: str) -> Interval:
        """The output of the call: a register too, unless its elements are only moved."""
        if not x.moved:
            self.prove("result", x, dtype)
            if x.attained:
                self.registers[-1] = replace(self.registers[-1], witness=self.registers[-1].bound)
        return x

    # ------------------------------------------------------------------------------------------- what is known of it

    def keep(self, name: str, x: Interval, bits: int) -> Interval:
        self.kept[name] = x
        self.prove(name, x, f"int{bits}")
        return x

    def way(self, name: str, x: Interval, dtype: str = "int64") -> Interval:
        self.prove(name, x, dtype, extra=True)
        return x

    def claim(self, x: Interval, low: int | None = None, high: int | None = None, why: str = "") -> Interval:
        least = x.low if low is None else np.maximum(x.low, low) if isinstance(x.low, np.ndarray) else max(x.low, low)
        most = x.high if high is None else min(x.high, high)
        return Interval(least, most, shape=x.shape)

    def sums_to(self, x: Interval, most: int, why: str) -> Interval:
        return Interval(x.low, x.high, most, x.shape)

    def cases(self, family: Sequence[Case], label: str = "", /, **facts: Any) -> None:
        self.seen.append((label, family, facts))

    @property
    def quiet(self) -> Self:
        other = copy.copy(self)
        other.registers, other.kept, other.worst, other.seen = [], {}, {}, []
        return other

    # ------------------------------------------------------------------------------------------------- rows and sums

    def widen(self, x: Any) -> Interval:
        return Interval(x.low, x.high, shape=x.shape) if isinstance(x, Interval) else interval(x.astype(np.int64))

    def dot(self, x: Interval, weight: Any) -> Interval:
        if id(weight) not in self._weight_sums:
            self._weight_sums[id(weight)] = sums.weight_sums(weight)
        return sums.bound_dot(x, self._weight_sums[id(weight)])

    def matmul(self, a: Interval, b: Interval) -> Interval:
        return sums.bound_matmul(a, b)

    def accumulate(self, x: Interval) -> Interval:
        return x

    def row_sum(self, x: Interval, has: int | None = None, why: str = "") -> Interval:
        return sums.bound_row_sum(x, has)

    def row_max(self, x: Interval) -> Interval:
        return Interval(x.low, x.high, shape=(*x.shape[:-1], 1))

    def row_mean(self, total: Interval, count: int) -> Interval:
        self.way("row_sum_rounding", 2 * total + count)
        return corners(lambda value: norm.rounded_mean(value, count), total)

    def squares(self, x: Interval, about_mean_of: Interval | None = None) -> Interval:
        return norm.bound_squares(x, about_mean_of)

    def isqrt(self, v: Interval) -> Interval:
        return norm.bound_isqrt(v)

    # ------------------------------------------------------------------------------------------------------- numbers

    def rsr(self, x: Interval, c: Any, via: str = "rounding", case: str = "") -> Interval:
        self.cases(rounding.RSR, case, value=x)
        total, result = rounding.bound_rsr(x, c)
        self.way(via, total)
        return result

    def product(self, x: Interval, mult: Any) -> Interval:
        return x * mult if isinstance(mult, Interval) else super().product(x, mult)

    def shift_left(self, x: Interval, n: Any) -> Interval:
        return shifting.bound_shift_left(x, n)

    def low_bits(self, x: Interval, n: int) -> Interval:
        return Interval(0, min(x.high, 2**n - 1), shape=x.shape)

    def divmod(self, x: Interval, divisor: int) -> tuple[Interval, Interval]:
        return x // divisor, Interval(0, min(divisor - 1, x.high), shape=x.shape)

    def leading(self, d: Interval) -> tuple[Interval, Interval]:
        return division.bound_leading(d)

    def at_least(self, x: Interval, low: int) -> Interval:
        return corners(lambda value: max(value, low), x)

    def clip(self, x: Interval, low: int, high: int) -> Interval:
        return corners(lambda value: min(max(value, low), high), x)

    def is_zero(self, x: Interval) -> None:
        """Either may be."""

    def is_negative(self, x: Interval) -> None:
        """Either may be."""

    def where(self, condition: None, yes: Any, no: Any) -> Interval:
        yes, no = interval(yes), interval(no)
        return Interval(min(yes.low, no.low), max(yes.high, no.high), shape=longer(yes, no))

    def rising(self, function: Callable[[Any], Any], x: Interval) -> Interval:
        low, high = (function(Interval(end, end, shape=x.shape)) for end in (x.low, x.high))
        return Interval(low.low, high.high, shape=x.shape)

    def saturate(self, x: Interval, kind: str) -> Interval:
        self.cases(saturation.SATURATE, kind, **saturation.facts_of_saturate(x, kind))
        return saturation.bound_saturate(x, kind)

    # -------------------------------------------------------------------------------------------------- other places

    def reshape(self, x: Interval, *shape: int) -> Interval:
        return _elsewhere(x, shape)

    def transpose(self, x: Interval, *axes: int) -> Interval:
        return _elsewhere(x, tuple(x.shape[axis] for axis in axes))

    def rows(self, x: Interval, start: int, stop: int) -> Interval:
        return _elsewhere(x, (stop - start, *x.shape[1:]))

    def pick(self, x: Interval, index: int, axis: int) -> Interval:
        return _elsewhere(x, x.shape[:axis] + x.shape[axis + 1 :])

    def gather(self, x: Interval, indices: Any, axis: int) -> Interval:
        return _elsewhere(x, (*x.shape[:axis], len(indices), *x.shape[axis + 1 :]))

    def repeat(self, x: Interval, count: int, axis: int) -> Interval:
        return _elsewhere(x, (*x.shape[:axis], count * x.shape[axis], *x.shape[axis + 1 :]))

    def concat(self, *parts: Interval) -> Interval:
        low, high = min(x.low for x in parts), max(x.high for x in parts)
        shape = (sum(x.shape[0] for x in parts), *parts[0].shape[1:])
        return Interval(low, high, shape=shape, moved=all(x.moved for x in parts))

    def columns(self, x: Any) -> Any:
        return _elsewhere(x, (*x.shape[:-1], 1, x.shape[-1])) if isinstance(x, Interval) else super().columns(x)

    def lookup(self, table: Any, x: Interval, first: int) -> Interval:
        used = table[..., x.low - first : x.high - first + 1]
        return Interval(int(used.min()), int(used.max()), shape=x.shape, attained=True)

    def entry(self, table: Any, x: Interval) -> Interval:
        return self.lookup(table, x, 0)

    def argmax(self, x: Interval) -> Interval:
        return Interval(0, x.shape[-1] - 1, shape=x.shape[:-1])

    def blend(self, a: Interval, b: Interval, weight: Any, total: int, tap: str) -> Interval:
        product, result = interpolation.bound_blend(a, b, total)
        self.way(tap, product)
        return result


def _elsewhere(x: Interval, shape: tuple[int, ...]) -> Interval:
    """The elements of x in other places; the sums of its rows are lost."""
    return Interval(x.low, x.high, shape=shape, moved=x.moved)
