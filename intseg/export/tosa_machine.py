"""The machine that writes an op down in TOSA 1.0: one INT32 tensor where the certificate places a value in 32 bits,
limbs where it does not (`tosa_limbs`). Its intervals are those of the machine of the certificate, which runs beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from intseg.arith import Machine
from intseg.arith.bounds import Bounds
from intseg.arith.interval import Interval, interval
from intseg.arith.saturation import held, limits

from .tosa_block import NAN, Block, CannotError, Operand
from .tosa_limbs import BITS, Limbs, Number, fits, limbs_for

Make = Callable[[Interval], Operand | Number]
"""Writes a value of which an interval is known: one tensor, or limbs."""


class Tensor:
    """A value; its operators are written when it is first used, by then a claim may have placed it in 32 bits.

    dtype    of the node's result or input; int32 for what is between, of any size
    factors  of a product with constants, which RESCALE takes whole
    """

    __array_ufunc__ = None  # so that an array on the left leaves the operation to this class

    def __init__(self, machine: TosaMachine, dtype: str, shape: Sequence[int], known: Interval, make: Make) -> None:
        self.machine, self.dtype, self.shape = machine, dtype, tuple(shape)
        self.interval, self.make = known, make
        self.factors: tuple[Tensor, Any] | None = None
        self._cell: Operand | None = None
        self._limbs: Number | None = None

    def _write(self) -> None:
        if self._cell is None and self._limbs is None:
            made = self.make(self.interval)
            if isinstance(made, list):
                self._limbs = made
            else:
                self._cell = made

    @property
    def wide(self) -> bool:
        """Whether it may be beyond INT32."""
        return not fits(self.interval)

    @property
    def cell(self) -> Operand:
        """It as one tensor."""
        self._write()
        if self._cell is None:
            if self.wide or self._limbs is None:
                raise CannotError(f"[{self.interval.lowest}, {self.interval.highest}] is wanted in 32 bits")
            self._cell = self.machine.limbs.join(self._limbs)
        return self._cell

    @property
    def number(self) -> Number:
        """It as limbs."""
        self._write()
        if self._limbs is None:
            self._limbs = self.machine.limbs.split(self._cell, limbs_for(self.interval))
        return self._limbs

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __add__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("ADD", self, other, self.interval + _known(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("SUB", self, other, self.interval - _known(other))

    def __rsub__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("SUB", other, self, _known(other) - self.interval)

    def __mul__(self, other: Any) -> Tensor:
        return self.machine.arithmetic("MUL", self, other, self.interval * _known(other))

    __rmul__ = __mul__

    def __neg__(self) -> Tensor:
        return self.machine.arithmetic("SUB", 0, self, -self.interval)

    def __abs__(self) -> Tensor:
        block, negative = self.machine.block, -self
        return self.machine.value(self.shape, abs(self.interval), lambda _: block.at_least(self.cell, negative.cell))

    def __lshift__(self, n: int) -> Tensor:
        return self * (1 << n)

    def __rshift__(self, n: int) -> Tensor:
        """The floor of x / 2^n."""

        def make(known: Interval) -> Operand | Number:
            if not self.wide:
                return self.machine.block.down(self.cell, min(n, 31))
            return self.machine.limbs.fit(self.machine.limbs.lowered(self.number, n), limbs_for(known))

        return self.machine.value(self.shape, self.interval >> n, make)

    def __floordiv__(self, divisor: int) -> Tensor:
        """The floor of x / divisor; INTDIV truncates, so a number of either sign is made positive first."""
        up = max(-(self.interval.lowest // divisor), 0)
        above = self + up * divisor

        def make(_: Interval) -> Operand:
            block = self.machine.block
            found = block.elementwise("INTDIV", above.cell, np.asarray(divisor, np.int32))
            return block.add(found, np.asarray(-up, np.int32))

        return self.machine.value(self.shape, self.interval // divisor, make)

    def __rfloordiv__(self, dividend: int) -> Tensor:
        """A constant divided by positive numbers; by those beyond INT32 one of INT32 is 0."""
        machine, most = self.machine, 2**31 - 1
        if self.wide and dividend <= most:
            beyond = machine.is_negative(most - self)
            small = machine.claim(machine.where(beyond, 1, self), low=1, high=most)
            return machine.known(machine.where(beyond, 0, dividend // small), dividend // self.interval)

        def make(_: Interval) -> Operand:
            if dividend <= most:
                return self.machine.block.elementwise("INTDIV", np.asarray(dividend, np.int32), self.cell)
            return self.machine.limbs.quotient(dividend, self.cell, self.interval.lowest)

        return self.machine.value(self.shape, dividend // self.interval, make)


def _known(x: Any) -> Any:
    return x.interval if isinstance(x, Tensor) else interval(x)


class TosaMachine(Machine):
    """Writes the steps of one node into a block; `bounds` finds the intervals."""

    def __init__(self, block: Block, bounds: Bounds) -> None:
        self.block, self.bounds, self.limbs = block, bounds, Limbs(block)

    def value(self, shape: Sequence[int], known: Interval, make: Make, dtype: str = "int32") -> Tensor:
        """A value to be written."""
        return Tensor(self, dtype, shape, known, make)

    def given(self, x: Operand, dtype: str, known: Interval) -> Tensor:
        """An input."""
        return self.value(x.shape, known, lambda _: x, dtype)

    def tensor(self, x: Any) -> Tensor:
        """A value, or a constant as one."""
        if isinstance(x, Tensor):
            return x
        array, known = np.asarray(x, np.int64), interval(x)

        def make(_: Interval) -> Operand | Number:
            return array.astype(np.int32) if fits(known) else self.limbs.split(array, limbs_for(known))

        return self.value(array.shape, known, make)

    def arithmetic(self, op: str, a: Any, b: Any, known: Interval) -> Tensor:
        """ADD, SUB or MUL."""
        left, right = self.tensor(self.widen(a)), self.tensor(self.widen(b))
        step = {"ADD": self.limbs.plus, "SUB": self.limbs.minus, "MUL": self.limbs.times}[op]

        def make(found: Interval) -> Operand | Number:
            if fits(found) and not left.wide and not right.wide:
                return self.block.elementwise(op, left.cell, right.cell)
            return step(left.number, right.number, limbs_for(found))

        return self.value(np.broadcast_shapes(left.shape, right.shape), known, make)

    # ------------------------------------------------------------------------------------------- what is known of it

    def claim(self, x: Tensor, low: int | None = None, high: int | None = None, why: str = "") -> Tensor:
        return self.known(x, self.bounds.claim(x.interval, low, high, why))

    def sums_to(self, x: Tensor, most: int, why: str) -> Tensor:
        return self.known(x, self.bounds.sums_to(x.interval, most, why))

    def known(self, x: Tensor, known: Interval) -> Tensor:
        """The same value, of which more is known."""
        return self.value(x.shape, known, x.make, x.dtype)

    @property
    def quiet(self) -> Self:
        return self

    # ------------------------------------------------------------------------------------------------- rows and sums

    def widen(self, x: Any) -> Any:
        """Bytes without sign are less 128 in TOSA."""
        if not isinstance(x, Tensor):
            return np.asarray(x, np.int64)
        if x.dtype == "int32":
            return x

        def make(_: Interval) -> Operand:
            cast = self._cast(x.cell, "int32")
            return self.block.add(cast, np.asarray(128, np.int32)) if x.dtype == "uint8" else cast

        return self.value(x.shape, self.bounds.widen(x.interval), make)

    def _cast(self, x: Operand, dtype: str) -> Operand:
        return self.block.operator("CAST", [x], dtype, x.shape)

    def dot(self, x: Tensor, weight: Any) -> Tensor:
        known = self.bounds.dot(x.interval, weight)
        columns = self._constant(np.ascontiguousarray(weight.T), "int8")
        return self.known(self.matmul(x, columns), known)

    def _constant(self, x: Any, dtype: str) -> Tensor:
        known = Interval(int(x.min()), int(x.max()), shape=x.shape)
        return self.value(x.shape, known, lambda _: x.astype(dtype), dtype)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """By products of INT8: a of other types is 256 u + 128 + v with u and v in INT8, u = 0 for bytes."""
        known = self.bounds.matmul(a.interval, b.interval)
        if a.dtype == "int8":
            return self._matmul8(a, b, known)
        low = (self.low_bits(self.widen(a), 8) if a.dtype == "int16" else self.widen(a)) - 128
        ones = self._constant(np.ones((*a.shape[:-2], 1, a.shape[-1]), np.int8), "int8")
        found = self._matmul8(self._narrow(low), b) + 128 * self._matmul8(ones, b)
        if a.dtype == "int16":
            found = found + 256 * self._matmul8(self._narrow(self.widen(a) >> 8), b)
        return self.known(found, known)

    def _narrow(self, x: Tensor) -> Tensor:
        return self.value(x.shape, x.interval, lambda _: self._cast(x.cell, "int8"), "int8")

    def _matmul8(self, a: Tensor, b: Tensor, known: Interval | None = None) -> Tensor:
        *batch, rows, depth = a.shape
        count, columns = math.prod(batch), b.shape[-1]

        def make(_: Interval) -> Operand:
            left = self.block.reshape(a.cell, (count, rows, depth))
            right = self.block.reshape(b.cell, (count, depth, columns))
            zeros = [np.zeros(1, np.int8)] * 2
            found = self.block.operator("MATMUL", [left, right, *zeros], "int32", (count, rows, columns))
            return self.block.reshape(found, (*batch, rows, columns))

        return self.value((*batch, rows, columns), known or self.bounds.matmul(a.interval, b.interval), make)

    def accumulate(self, x: Any) -> Any:
        return x

    def row_sum(self, x: Tensor, has: int | None = None, why: str = "") -> Tensor:
        return self._summed(x, self.bounds.row_sum(x.interval, has, why))

    def _summed(self, x: Tensor, known: Interval) -> Tensor:
        """The partial sums of a row are of either sign at most the row's length times the largest size."""
        shape = (*x.shape[:-1], 1)

        def total(cell: Operand) -> Operand:
            return self.block.operator("REDUCE_SUM", [cell], "int32", shape, axis=x.ndim - 1)

        def make(found: Interval) -> Operand | Number:
            if x.shape[-1] * x.interval.size < 2**31:
                return total(x.cell)
            if x.shape[-1] > 2**16:
                raise CannotError(f"the sum of {x.shape[-1]} limbs")
            return self.limbs.carry([total(limb) for limb in x.number], limbs_for(found))

        return self.value(shape, known, make)

    def row_max(self, x: Tensor) -> Tensor:
        shape, axis = (*x.shape[:-1], 1), x.ndim - 1

        def make(_: Interval) -> Operand:
            return self.block.operator("REDUCE_MAX", [x.cell], "int32", shape, axis=axis, **NAN)

        return self.value(shape, self.bounds.row_max(x.interval), make)

    def row_mean(self, total: Tensor, count: int) -> Tensor:
        return self.known(super().row_mean(total, count), self.bounds.row_mean(total.interval, count))

    def squares(self, x: Tensor, about_mean_of: Tensor | None = None) -> Tensor:
        about = None if about_mean_of is None else about_mean_of.interval
        return self._summed(self.claim(x * x, low=0), self.bounds.squares(x.interval, about))

    def isqrt(self, v: Tensor) -> Tensor:
        known = self.bounds.isqrt(v.interval)
        return self.value(v.shape, known, lambda _: self.limbs.isqrt(v.number, v.interval.highest))

    # ------------------------------------------------------------------------------------------------------- numbers

    def product(self, x: Any, mult: Any) -> Any:
        found = self.widen(x) * mult
        if isinstance(found, Tensor) and not isinstance(mult, Tensor) and np.min(mult) >= 0:
            found.factors = self.widen(x), mult
        return found

    def rsr(self, x: Tensor, c: Any, via: str = "rounding", case: str = "") -> Tensor:
        known = self.bounds.rsr(x.interval, c.interval if isinstance(c, Tensor) else c, via, case)
        if x.factors is not None and fits(known):
            factor, mult = x.factors
            scale = self._scale(factor, mult, c)
            if scale is not None:
                return self.value(x.shape, known, lambda _: self._rescale(factor.cell, *scale, "int32"))
        count = self.tensor(c)

        def make(found: Interval) -> Operand | Number:
            return self._rounded(x, count) if not x.wide else self._rounded_limbs(x, count, limbs_for(found))

        return self.value(np.broadcast_shapes(x.shape, count.shape), known, make)

    def _rounded(self, x: Tensor, count: Tensor) -> Operand:
        """ARITHMETIC_RIGHT_SHIFT with round is RSR; it takes 31 at most, beyond it an INT32 rounds to zero."""
        by = self.block.at_most(count.cell, 31)
        found = self.block.elementwise("ARITHMETIC_RIGHT_SHIFT", x.cell, by, round=True)
        if count.interval.highest < 32:
            return found
        return self.block.select(self.block.not_below(count.cell, 32), 0, found)

    def _rounded_limbs(self, x: Tensor, count: Tensor, limbs: int) -> Number:
        """RSR(x, c) is floor((floor(x / 2^(c - 1)) + 1) / 2)."""
        least, most = count.interval.lowest - 1, count.interval.highest - 1
        found = self.limbs.lowered(x.number, least)
        if most > least:
            found = self.limbs.lowered_by(found, (count - (least + 1)).cell, most - least)
        found = self.limbs.carry([self.block.add(found[0], np.asarray(1, np.int32)), *found[1:]], len(found) + 1)
        return self.limbs.fit(self.limbs.lowered(found, 1), limbs)

    def _scale(self, x: Tensor, mult: Any, shift: Any) -> tuple[Any, Any] | None:
        """Multipliers and shifts of a RESCALE, where it takes them: |x| below 2^(shift - 1), shifts from 2."""
        if isinstance(shift, Tensor) or x.wide:
            return None
        mult, shift = (np.atleast_1d(np.asarray(v, np.int64)) for v in (mult, shift))
        again = (shift == 1) & (mult < 2**30)
        mult, shift = np.where(again, 2 * mult, mult), np.where(again, 2, shift)
        worst = int(shift.min())
        if worst < 2 or x.interval.lowest < -(2 ** (worst - 1)) or x.interval.highest >= 2 ** (worst - 1):
            return None
        return mult, shift

    def _rescale(self, x: Operand, mult: Any, shift: Any, dtype: str) -> Operand:
        """One scale, or one for each entry of the last axis."""
        zeros = np.zeros(1, str(x.dtype)), np.zeros(1, dtype)
        flags = {"scale32": True, "rounding_mode": "SINGLE_ROUND", "per_channel": mult.size > 1}
        flags |= {"input_unsigned": False, "output_unsigned": False}
        operands = [x, mult.astype(np.int32), shift.astype(np.int8), *zeros]
        return self.block.operator("RESCALE", operands, dtype, x.shape, **flags)

    def requantize(self, x: Tensor, mult: Any, shift: Any, kind: str) -> Tensor:
        """RESCALE where the certificate lets it; the scales of a batch come to the last axis, matrices side by side."""
        scale = self._scale(x, mult, shift)
        if scale is None:
            found: Tensor = super().requantize(x, mult, shift, kind)
            return found
        known = self.bounds.requantize(x.interval, mult, shift, kind)
        return self.value(x.shape, known, lambda _: self._scaled(x, *scale, kind), held(kind))

    def _scaled(self, x: Tensor, mult: Any, shift: Any, kind: str) -> Operand:
        block, to = self.block, held(kind)
        if mult.size == 1 or x.ndim == 2:
            found = self._rescale(x.cell, mult.reshape(-1), shift.reshape(-1), to)
        else:
            *batch, rows, columns = x.shape
            count = math.prod(batch)
            mult, shift = (np.broadcast_to(v, (*batch, 1, columns)).reshape(-1) for v in (mult, shift))
            side = block.transpose(block.reshape(x.cell, (count, rows, columns)), (1, 0, 2))
            flat = self._rescale(block.reshape(side, (rows, count * columns)), mult, shift, to)
            turned = block.transpose(block.reshape(flat, (rows, count, columns)), (1, 0, 2))
            found = block.reshape(turned, x.shape)
        if to == kind:
            return found
        low, high = ([end % 256] for end in limits(kind))
        return block.operator("CLAMP", [found], to, x.shape, min_val=low, max_val=high, **NAN)

    def shift_left(self, x: Tensor, n: Any) -> Tensor:
        """To the right of all of its bits x >= 0 is 0, so that counts end there."""
        count = self.tensor(n)
        least = max(count.interval.lowest, -x.interval.highest.bit_length())
        most = max(count.interval.highest, least)
        if x.interval.lowest < 0:
            raise CannotError("a shift to the left of a negative number")

        def make(found: Interval) -> Operand | Number:
            if fits(found) and not x.wide and most < 32:
                return self._shifted(x.cell, count.cell, least, most)
            by = self.block.at_most(self.block.at_least((count - least).cell, 0), most - least)
            number = self.limbs.raised_by(x.number, x.interval, by, most - least)
            size = limbs_for(found)
            moved = self.limbs.lowered(number, -least) if least < 0 else self.limbs.raised(number, least, size)
            return self.limbs.fit(moved, size)

        shape = np.broadcast_shapes(x.shape, count.shape)
        return self.value(shape, self.bounds.shift_left(x.interval, count.interval), make)

    def _shifted(self, x: Operand, n: Operand, least: int, most: int) -> Operand:
        block = self.block
        left = block.elementwise("LOGICAL_LEFT_SHIFT", x, block.at_most(block.at_least(n, 0), 31)) if most > 0 else x
        if least >= 0:
            return left
        back = block.elementwise("SUB", np.zeros((), np.int32), n)
        right = block.down(x, block.at_most(block.at_least(back, 0), min(-least, 31)))
        return block.select(block.not_below(n, 0), left, right)

    def low_bits(self, x: Tensor, n: int) -> Tensor:
        return self.value(x.shape, Interval(0, 2**n - 1, shape=x.shape), lambda _: self.block.low(x.cell, n))

    def divmod(self, x: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
        quotient, rest = super().divmod(x, divisor)
        return quotient, self.known(rest, self.bounds.divmod(x.interval, divisor)[1])

    def leading(self, d: Tensor) -> tuple[Tensor, Tensor]:
        known, whole = self.bounds.leading(d.interval)

        def bits(x: Operand, first: int) -> Operand:
            zeros = self.block.operator("CLZ", [x], "int32", x.shape)
            return self.block.elementwise("SUB", np.asarray(first + 32, np.int32), zeros)

        def make(_: Interval) -> Operand:
            if not d.wide:
                return bits(d.cell, 0)
            found = bits(d.number[0], 0)
            for i, limb in enumerate(d.number[1:], 1):  # a limb that is not 0 counts more than all below it
                above = self.block.not_below(limb, 1)
                found = self.block.select(above, bits(limb, BITS * i), found)
            return found

        length = self.value(d.shape, known, make)
        return length, self.known(self.shift_left(d, 31 - length), whole)

    def at_least(self, x: Tensor, low: int) -> Tensor:
        known = self.bounds.at_least(_hull(x), low)
        if not x.wide:
            return self.value(x.shape, known, lambda _: self.block.at_least(x.cell, low))
        return self.known(self.where(self.is_negative(x - low), low, x), known)

    def clip(self, x: Tensor, low: int, high: int) -> Tensor:
        """In limbs: x - low where that is in [0, high - low]."""
        known = self.bounds.clip(_hull(x), low, high)
        if not x.wide:
            return self.value(x.shape, known, lambda _: self.block.at_most(self.block.at_least(x.cell, low), high))
        if high - low >= 2**28:
            raise CannotError(f"a wide value clipped to [{low}, {high}]")
        above, below = x - low, high - x

        def make(_: Interval) -> Operand:
            inside = self.limbs.join(above.number[:2])
            inside = self.block.select(self.limbs.negative(below.number), high - low, inside)
            inside = self.block.select(self.limbs.negative(above.number), 0, inside)
            return self.block.add(inside, np.asarray(low, np.int32))

        return self.value(x.shape, known, make)

    def is_zero(self, x: Tensor) -> Tensor:
        zero = np.zeros((), np.int32)
        return self._condition(x, lambda: self.block.elementwise("EQUAL", x.cell, zero, dtype="bool"))

    def is_negative(self, x: Tensor) -> Tensor:
        return self._condition(x, lambda: self.limbs.negative(x.number) if x.wide else self.block.not_below(-1, x.cell))

    def _condition(self, x: Tensor, make: Callable[[], Operand]) -> Tensor:
        return self.value(x.shape, Interval(0, 1), lambda _: make(), "bool")

    def where(self, condition: Tensor, yes: Any, no: Any) -> Tensor:
        a, b = self.tensor(self.widen(yes)), self.tensor(self.widen(no))

        def make(found: Interval) -> Operand | Number:
            if not a.wide and not b.wide:
                return self.block.select(condition.cell, a.cell, b.cell)
            size = limbs_for(found)
            return self.limbs.choose(condition.cell, *(self.limbs.fit(x.number, size) for x in (a, b)))

        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        return self.value(shape, self.bounds.where(None, _hull(a), _hull(b)), make)

    def rising(self, function: Callable[[Any], Any], x: Tensor) -> Tensor:
        return self.known(function(x), self.bounds.rising(function, x.interval))

    def saturate(self, x: Tensor, kind: str) -> Tensor:
        """Bytes without sign are kept less 128."""
        known, to = self.bounds.saturate(x.interval, kind), held(kind)
        if kind == "int32":
            return x
        low, high = limits(kind)
        inside = self.clip(x, low, high) - (128 if kind == "uint8" else 0)
        return self.value(x.shape, known, lambda _: self._cast(inside.cell, "int8" if to == "uint8" else to), to)

    # -------------------------------------------------------------------------------------------------- other places

    def _moved(self, x: Any, known: Any, move: Callable[[Operand], Operand]) -> Tensor:
        def make(_: Interval) -> Operand | Number:
            return [move(limb) for limb in x.number] if x.wide else move(x.cell)

        return self.value(known.shape, known, make, x.dtype)

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        return self._moved(x, self.bounds.reshape(_hull(x), *shape), lambda cell: self.block.reshape(cell, shape))

    def transpose(self, x: Tensor, *axes: int) -> Tensor:
        known = self.bounds.transpose(_hull(x), *axes)
        return self._moved(x, known, lambda cell: self.block.transpose(cell, axes))

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        known = self.bounds.rows(_hull(x), start, stop)
        return self._moved(x, known, lambda cell: self.block.part(cell, 0, start, stop))

    def pick(self, x: Tensor, index: int, axis: int) -> Tensor:
        known = self.bounds.pick(_hull(x), index, axis)

        def move(cell: Operand) -> Operand:
            return self.block.reshape(self.block.part(cell, axis, index, index + 1), known.shape)

        return self._moved(x, known, move)

    def gather(self, x: Tensor, indices: Any, axis: int) -> Tensor:
        """Rows, or columns after a turn."""
        known = self.bounds.gather(_hull(x), indices, axis)
        order = (axis, *(i for i in range(x.ndim) if i != axis))

        def move(cell: Operand) -> Operand:
            turned = self.block.transpose(cell, order) if axis else cell
            count, rest = turned.shape[0], turned.shape[1:]
            flat = self.block.reshape(turned, (1, count, math.prod(rest)))
            places = np.asarray(indices, np.int32)[None, :]
            found = self.block.operator("GATHER", [flat, places], str(cell.dtype), (1, len(indices), math.prod(rest)))
            back = self.block.reshape(found, (len(indices), *rest))
            return self.block.transpose(back, [int(i) for i in np.argsort(order)]) if axis else back

        return self._moved(x, known, move)

    def repeat(self, x: Tensor, count: int, axis: int) -> Tensor:
        return self.gather(x, np.repeat(np.arange(x.shape[axis]), count), axis)

    def concat(self, *parts: Tensor) -> Tensor:
        known = self.bounds.concat(*map(_hull, parts))
        dtype = parts[0].dtype
        return self.value(known.shape, known, lambda _: self.block.join([x.cell for x in parts], 0), dtype)

    def columns(self, x: Any) -> Any:
        return self.reshape(x, *x.shape[:-1], 1, x.shape[-1]) if isinstance(x, Tensor) else super().columns(x)

    def lookup(self, table: Any, x: Tensor, first: int) -> Tensor:
        """TABLE; of pixels, whose bits it reads with a sign, channel by channel."""
        known = self.bounds.lookup(table, x.interval, first)
        if (table.dtype.name, first, table.ndim, x.dtype) == ("int8", -128, 1, "int8"):
            return self._moved(x, known, lambda cell: self.block.operator("TABLE", [cell, table], "int8", x.shape))
        if (table.dtype.name, table.ndim, x.dtype) != ("int8", 2, "uint8"):
            raise CannotError(f"TABLE of {x.dtype} to {table.dtype}")
        axis, turned = x.ndim - 1, np.roll(table, 128, axis=-1)

        def make(_: Interval) -> Operand:
            parts = [self.block.part(x.cell, axis, c, c + 1) for c in range(len(table))]
            tables = zip(parts, turned, strict=True)
            return self.block.join([self.block.operator("TABLE", [v, t], "int8", v.shape) for v, t in tables], axis)

        return self.value(x.shape, known, make, "int8")

    def entry(self, table: Any, x: Tensor) -> Tensor:
        *batch, size = table.shape
        count, inner = math.prod(batch), math.prod(x.shape[len(batch) :])
        values = np.ascontiguousarray(table).reshape(count, size, 1)

        def make(_: Interval) -> Operand:
            index = self.block.reshape(x.cell, (count, inner))
            found = self.block.operator("GATHER", [values, index], table.dtype.name, (count, inner, 1))
            return self._cast(self.block.reshape(found, x.shape), "int32")

        return self.value(x.shape, self.bounds.entry(table, x.interval), make)

    def argmax(self, x: Tensor) -> Tensor:
        """ARGMAX; of INT32, which it does not take, the least index of those that equal the row's maximum."""
        axis, shape = x.ndim - 1, x.shape[:-1]

        def make(_: Interval) -> Operand:
            if x.dtype != "int32":
                return self.block.operator("ARGMAX", [x.cell], "int32", shape, axis=axis, **NAN)
            largest = self.block.elementwise("EQUAL", x.cell, self.row_max(x).cell, dtype="bool")
            index = self.block.select(largest, np.arange(x.shape[-1]), x.shape[-1])
            found = self.block.operator("REDUCE_MIN", [index], "int32", (*shape, 1), axis=axis, **NAN)
            return self.block.reshape(found, shape)

        return self.value(shape, self.bounds.argmax(_hull(x)), make)


def _hull(x: Tensor) -> Interval:
    """One interval for all channels, with the whole shape: arithmetic on intervals keeps the last axis alone."""
    return Interval(x.interval.lowest, x.interval.highest, shape=x.shape, moved=x.interval.moved)
