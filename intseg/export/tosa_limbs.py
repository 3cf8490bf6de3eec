"""Numbers beyond 32 bits in TOSA 1.0: limbs of 14 bits in INT32, the lowest first, the highest with the sign.

The product of two limbs has 28 bits, so the seven of a column of a schoolbook product add up inside of INT32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from intseg.arith.interval import Interval

from .tosa_block import Block, CannotError, Operand

BITS = 14
MOST = 7

Number = list[Operand]
_ZERO = np.zeros((), np.int32)


def fits(x: Interval) -> bool:
    """Whether every value is an INT32."""
    return x.lowest >= -(2**31) and x.highest < 2**31


def limbs_for(x: Interval) -> int:
    """How many limbs hold an interval and its sign."""
    count = -(-(1 + max(max(x.highest, 0).bit_length(), (~min(x.lowest, -1)).bit_length())) // BITS)
    if count > MOST:
        raise CannotError(f"[{x.lowest}, {x.highest}] takes more than {MOST} limbs of {BITS} bits")
    return count


class Limbs:
    """Writes arithmetic on limbs into a block."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def split(self, x: Any, count: int) -> Number:
        """Limbs of one INT32 tensor, or of a constant of any size."""
        if isinstance(x, np.ndarray):
            high = [x >> (BITS * i) for i in range(count)]
            return [*(np.asarray(part & (2**BITS - 1), np.int32) for part in high[:-1]), np.asarray(high[-1], np.int32)]
        parts = [self.block.down(x, min(BITS * i, 31)) for i in range(count)]
        return [self.block.low(part, BITS) for part in parts[:-1]] + parts[-1:]

    def join(self, x: Sequence[Operand]) -> Operand:
        """One INT32 tensor of limbs whose number fits."""
        found = x[-1]
        for limb in reversed(x[:-1]):
            found = self.block.add(self.block.times(found, 2**BITS), limb)
        return found

    def carry(self, columns: Sequence[Operand], count: int) -> Number:
        """Columns of INT32 as limbs, for a number that so many hold."""
        found: Number = []
        rest: Operand = _ZERO
        for i in range(count):
            column = self.block.add(columns[i], rest) if i < len(columns) else rest
            if i == count - 1:
                return [*found, self._signed(column) if len(columns) > count else column]
            found.append(self.block.low(column, BITS))
            rest = self.block.down(column, BITS)
        return found

    def _signed(self, x: Operand) -> Operand:
        """The low bits as a signed number."""
        half = np.int32(2 ** (BITS - 1))
        turned = self.block.low(self.block.add(x, np.asarray(half)), BITS)
        return self.block.elementwise("SUB", turned, np.asarray(half))

    def fit(self, x: Sequence[Operand], count: int) -> Number:
        """The same number in so many limbs, which hold it."""
        if len(x) > count:
            return [*x[: count - 1], self._signed(x[count - 1])]
        found = list(x)
        while len(found) < count:
            found[-1:] = [self.block.low(found[-1], BITS), self.block.down(found[-1], BITS)]
        return found

    def plus(self, a: Number, b: Number, count: int) -> Number:
        """a + b."""
        return self.carry([self.block.add(x, y) for x, y in zip_longest(a, b, fillvalue=_ZERO)], count)

    def minus(self, a: Number, b: Number, count: int) -> Number:
        """a - b."""
        pairs = zip_longest(a, b, fillvalue=_ZERO)
        return self.carry([self.block.elementwise("SUB", x, y) for x, y in pairs], count)

    def times(self, a: Number, b: Number, count: int) -> Number:
        """a b."""
        columns: Number = [_ZERO] * (len(a) + len(b) - 1)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                columns[i + j] = self.block.add(columns[i + j], self.block.times(x, y))
        return self.carry(columns, count)

    def lowered(self, x: Number, n: int) -> Number:
        """floor(x / 2^n)."""
        whole, rest = divmod(n, BITS)
        kept = x[whole:] or [self.block.down(x[-1], 31)]
        if not rest:
            return kept
        low = [self.block.down(limb, rest) for limb in kept]
        above = [self.block.times(self.block.low(limb, rest), 2 ** (BITS - rest)) for limb in kept[1:]]
        return [self.block.add(limb, more) for limb, more in zip(low, above, strict=False)] + low[-1:]

    def raised(self, x: Number, n: int, count: int) -> Number:
        """x 2^n."""
        whole, rest = divmod(n, BITS)
        high = [self.block.times(limb, 2**rest) for limb in x] if rest else list(x)
        return self.carry([_ZERO] * whole + high, count)

    def lowered_by(self, x: Number, n: Operand, most: int) -> Number:
        """floor(x / 2^n) for a tensor n in [0, most]: a bit of it after another."""
        for bit in range(most.bit_length()):
            moved = self.fit(self.lowered(x, 2**bit), len(x))
            x = self.choose(self._has(n, bit), moved, x)
        return x

    def raised_by(self, x: Number, of: Interval, n: Operand, most: int) -> Number:
        """x 2^n for a tensor n in [0, most], for x in the interval `of`."""
        for bit in range(most.bit_length()):
            count = limbs_for(of << min(2 ** (bit + 1) - 1, most))
            x = self.choose(self._has(n, bit), self.raised(x, 2**bit, count), self.fit(x, count))
        return x

    def _has(self, n: Operand, bit: int) -> Operand:
        return self.block.not_below(self.block.low(self.block.down(n, bit), 1), 1)

    def choose(self, condition: Operand, yes: Number, no: Number) -> Number:
        """One number or the other, of as many limbs."""
        return [self.block.select(condition, a, b) for a, b in zip(yes, no, strict=True)]

    def negative(self, x: Number) -> Operand:
        """The condition x < 0."""
        return self.block.not_below(-1, x[-1])

    def quotient(self, n: int, d: Operand, least: int) -> Operand:
        """n / d for d >= least > 0, a bit of the quotient after another, all in INT32.

        r stays below d; 2 r + b may not fit, so the comparison is of r and d - r - b.
        """
        block, steps = self.block, max(n.bit_length() - least.bit_length() + 1, 0)
        if n // least >= 2**31:
            raise CannotError(f"{n} / {least} is beyond INT32")
        rest: Operand = np.asarray(n >> steps, np.int32)
        found: Operand = _ZERO
        for bit in reversed(range(steps)):
            one = np.asarray(n >> bit & 1, np.int32)
            far = block.elementwise("SUB", block.elementwise("SUB", d, rest), one)
            enough = block.not_below(rest, far)
            more = block.select(enough, block.elementwise("SUB", _ZERO, far), block.add(rest, one))
            rest = block.add(rest, more)
            found = block.add(block.times(found, 2), block.select(enough, 1, 0))
        return found

    def isqrt(self, x: Number, most: int) -> Operand:
        """The square root of x in [0, most], two bits of x after two, all in INT32: r = x - s^2 is at most 2 s."""
        block, half = self.block, BITS // 2
        if most >= 2**56:
            raise CannotError(f"the square root of {most}: its rest is beyond INT32")
        root: Operand = _ZERO
        rest: Operand = _ZERO
        for pair in reversed(range(math.ceil(most.bit_length() / 2))):
            two = block.low(block.down(x[pair // half], 2 * (pair % half)), 2)
            rest = block.add(block.times(rest, 4), two)
            trial = block.add(block.times(root, 4), np.asarray(1, np.int32))
            enough = block.not_below(rest, trial)
            rest = block.elementwise("SUB", rest, block.select(enough, trial, 0))
            root = block.add(block.times(root, 2), block.select(enough, 1, 0))
        return root
