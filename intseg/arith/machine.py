"""The machine that an op is written against. This one computes: it is the definition, in NumPy, integers only.

An op is a function of a machine `m`, its inputs, parameters and attributes, and says every step through `m`. What comes
out is the machine's affair: values here; in `recorder` the registers too, with or without a mistake, and the cases that
a call reaches; in `bounds` intervals for every input at once; in `extents` which axes belong together. Between steps
values are added, subtracted, multiplied, shifted and floor-divided as numbers; a step that loses bits of a number of
either sign, that may be done wrong in a known way, or whose bound an interval does not see, is a method.

`keep` names a register. `claim` states a bound that holds although intervals do not show it, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from . import division, exponential, interpolation, norm, rounding, saturation, shifting, sums
from .cases import Case


class Machine:
    """Values: INT64 arrays between widening and saturation."""

    # ------------------------------------------------------------------------------------------- what is known of it

    def keep(self, name: str, x: Any, bits: int) -> Any:
        """x is the register `name` of so many bits: traces, certificate and circuits have it."""
        return x

    def way(self, name: str, x: Any, dtype: str = "int64") -> Any:
        """x is on the way to a register; only the certificate has it."""
        return x

    def claim(self, x: Any, low: int | None = None, high: int | None = None, why: str = "") -> Any:
        """x lies in [low, high], because `why`."""
        return x

    def sums_to(self, x: Any, most: int, why: str) -> Any:
        """A row of x, never negative, sums to at most `most`, because `why`."""
        return x

    def cases(self, family: Sequence[Case], label: str = "", /, **facts: Any) -> None:
        """Facts that tell which cases of a family are reached; their names begin with the label."""

    @property
    def quiet(self) -> Self:
        """The same machine for steps whose registers have no names."""
        return self

    # ------------------------------------------------------------------------------------------------- rows and sums

    def widen(self, x: Any) -> Any:
        """INT64, before arithmetic: NumPy wraps narrow integers silently."""
        return x.astype(np.int64)

    def dot(self, x: Any, weight: Any) -> Any:
        """INT8 [M, K] times the rows of INT8 [N, K], in INT32."""
        return sums.dot(x, weight)

    def matmul(self, a: Any, b: Any) -> Any:
        """[..., M, K] times [..., K, N], in INT32."""
        return sums.matmul(a, b)

    def accumulate(self, x: Any) -> Any:
        """A sum in its accumulator, widened for what follows."""
        return x.astype(np.int64, copy=False)

    def row_sum(self, x: Any, has: int | None = None, why: str = "") -> Any:
        """The sum of every row, one element of which is `has`, because `why`."""
        return x.sum(axis=-1, keepdims=True)

    def row_max(self, x: Any) -> Any:
        """The largest element of every row."""
        return x.max(axis=-1, keepdims=True)

    def row_mean(self, total: Any, count: int) -> Any:
        """total / count, rounded half up."""
        return norm.rounded_mean(total, count)

    def squares(self, x: Any, about_mean_of: Any = None) -> Any:
        """The sum of every row's squares; x is `about_mean_of` without its rounded mean, if that is given."""
        return (x * x).sum(axis=-1, keepdims=True)

    def isqrt(self, v: Any) -> Any:
        """SPEC 2.5."""
        return norm.isqrt(v)

    # ------------------------------------------------------------------------------------------------------- numbers

    def rsr(self, x: Any, c: Any, via: str = "rounding", case: str = "") -> Any:
        """SPEC 2.1. `via` names the sum before the shift, `case` begins the names of its cases.

        Where `case` is a type, a saturation to it follows: only elements inside of it show how they were rounded.
        """
        return rounding.rsr(x, c)

    def rsr_or_same(self, x: Any, n: Any, most: int, via: str, case: str) -> Any:
        """x for n = 0, RSR(x, n) for n >= 1; for n >= most RSR(x, most), which has to be the same."""
        return self.where(self.is_zero(n), x, self.rsr(x, self.clip(n, 1, most), via, case))

    def floor_shift(self, x: Any, n: int) -> Any:
        """x >> n, for x of either sign."""
        return x >> n

    def shift_left(self, x: Any, n: Any) -> Any:
        """SPEC 2.4."""
        return shifting.shift_left(x, n)

    def low_bits(self, x: Any, n: int) -> Any:
        """x mod 2^n, for x >= 0."""
        return x & (2**n - 1)

    def divmod(self, x: Any, divisor: int) -> Any:
        """Quotient and remainder of x >= 0 by a positive integer."""
        quotient = x // divisor
        return quotient, x - quotient * divisor

    def leading(self, d: Any) -> Any:
        """The length of d > 0, and d shifted into [2^30, 2^31)."""
        return division.leading(d)

    def product(self, x: Any, mult: Any) -> Any:
        """The product of a value and a multiplier, before its shift."""
        return x * np.asarray(mult, dtype=np.int64)

    def at_least(self, x: Any, low: int) -> Any:
        """max(x, low)."""
        return np.maximum(x, low)

    def clip(self, x: Any, low: int, high: int) -> Any:
        """min(max(x, low), high)."""
        return np.clip(x, low, high)

    def is_zero(self, x: Any) -> Any:
        """The condition x = 0."""
        return x == 0

    def is_negative(self, x: Any) -> Any:
        """The condition x < 0."""
        return x < 0

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        """One or the other, by a condition."""
        return np.where(condition, yes, no)

    def rising(self, function: Callable[[Any], Any], x: Any) -> Any:
        """function(x), for one that never falls where x rises."""
        return function(x)

    def saturate(self, x: Any, kind: str) -> Any:
        """SPEC 2.2; `kind` is a dtype, or int4 to int7, which INT8 holds."""
        return saturation.saturate(x, kind)

    # -------------------------------------------------------------------------------------------------- other places

    def reshape(self, x: Any, *shape: int) -> Any:
        """The same elements in C order."""
        return x.reshape(shape)

    def transpose(self, x: Any, *axes: int) -> Any:
        """Axes in another order."""
        return x.transpose(axes)

    def rows(self, x: Any, start: int, stop: int) -> Any:
        """Entries start to stop - 1 of the first axis."""
        return x[start:stop]

    def pick(self, x: Any, index: int, axis: int) -> Any:
        """One entry of an axis, which goes."""
        return x.take(index, axis=axis) if axis else x[index]

    def gather(self, x: Any, indices: Any, axis: int) -> Any:
        """Entries of an axis by their indices."""
        return x[indices] if axis == 0 else x[:, indices]

    def repeat(self, x: Any, count: int, axis: int) -> Any:
        """Every entry of an axis so many times."""
        return np.repeat(x, count, axis=axis)

    def concat(self, *parts: Any) -> Any:
        """Along the first axis."""
        return np.concatenate(parts, axis=0)

    def columns(self, x: Any) -> Any:
        """[..., N] as [..., 1, N]: a value for every column of matrices."""
        return x[..., None, :]

    def lookup(self, table: Any, x: Any, first: int) -> Any:
        """table[x - first]; of a table [C, n] the row c for channel c of the last axis."""
        x = x.astype(np.int16) - first if first else x
        return table[x] if table.ndim == 1 else np.stack([table[c][x[..., c]] for c in range(len(table))], axis=-1)

    def entry(self, table: Any, x: Any) -> Any:
        """table[..., x]: x [..., M, N] looks in the table [..., n] of its own leading axes."""
        return np.take_along_axis(table.astype(np.int64)[..., None, :], x, axis=-1)

    def argmax(self, x: Any) -> Any:
        """The lowest index among the largest of a row; uint8 for rows of at most 256 elements, else uint16."""
        return x.argmax(axis=-1).astype(np.uint8 if x.shape[-1] <= 256 else np.uint16)

    def blend(self, a: Any, b: Any, weight: Any, total: int, tap: str) -> Any:
        """a (total - weight) + b weight, for 0 <= weight <= total; `tap` names either product."""
        return interpolation.blend(a, b, weight, total)

    # ------------------------------------------------------------------------------------------ made of these (SPEC 2)

    def requantize(self, x: Any, mult: Any, shift: Any, kind: str) -> Any:
        """saturate(RSR(x mult, shift)): a dyadic rescaling by mult 2^-shift (SPEC 2.3).

        x      int64  |x| < 2^31
        mult   0 <= mult < 2^31
        shift  1 <= shift <= 62
        """
        product = self.keep("product", self.product(x, mult), 64)
        self.cases(sums.SCALE, mult=mult, shift=shift)
        rounded = self.keep("rounded", self.rsr(product, shift, case=kind), 64)
        return self.saturate(rounded, kind)

    def int_div(self, n: Any, d: Any, k_out: int, kind: str, word: str = "quotient") -> Any:
        """n / d in steps of 2^-(k_out - 1) (SPEC 2.7); `word` is what mistakes call the quotients."""
        return division.int_div(self, n, d, k_out, kind)

    def stretch(self, x: Any) -> Any:
        """x times 1.4375, for log2 e: the exponent to base 2 of e^x (SPEC 2.8)."""
        return self.rising(lambda v: exponential.times_1_4375(self, v), x)

    def shift_exp(self, x: Any, i0: int, k: int, lam: int) -> Any:
        """2^k i0 e^(x / i0) for x <= 0 (SPEC 2.8)."""
        return exponential.shift_exp(self, x, i0, k, lam)

    def aligned_exps(self, x: Any, y: Any, i0: int, k: int, lam: int) -> tuple[Any, Any]:
        """shift_exp of x and of y, both times the power of two that brings the larger to k bits (SPEC 2.9)."""
        return exponential.aligned_exps(self, x, y, i0, k, lam)

    def normalize(self, y: Any, about_mean_of: Any = None) -> Any:
        """Rows of length 2^30 (SPEC 4.5, 4.12)."""
        return norm.normalize(self, y, about_mean_of)

    def interpolate(self, x: Any, axis: int, factor: int, start: int, stop: int, tap: str) -> Any:
        """Outputs start to stop - 1 of an axis that grows by `factor`, times 2 factor (SPEC 4.19)."""
        return interpolation.interpolate(self, x, axis, factor, start, stop, tap)


EXACT = Machine()
"""The definition."""
