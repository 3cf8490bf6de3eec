"""Machines that watch: the registers of a call, as the definition or a mistake has them, and the cases it reaches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from . import division, exponential, norm, rounding, saturation, shifting, sums
from .cases import Case, Facts
from .machine import Machine
from .variant import DEFINITION, Named, Variant

Change = Callable[[Any, "Recorder"], Any]
"""What a mistake of one op has in a register, given the right value and the machine."""


class Recorder(Machine):
    """Values of a call with a mistake, or with none, and its registers by name in the order of computation.

    variant  what is done how instead
    changes  registers that a mistake of this op alone changes
    call     inputs, params and attrs, for the changes to look at
    """

    def __init__(
        self, variant: Variant = DEFINITION, changes: Mapping[str, Change] | None = None, call: Any = None
    ) -> None:
        self.variant, self.changes, self.call = variant, changes or {}, call
        self.kept: dict[str, Any] = {}
        self.used: dict[str, str] = {}
        """Primitives that ran, and a word for what they gave."""

    def keep(self, name: str, x: Any, bits: int) -> Any:
        if name in self.changes:
            x = self.changes[name](x, self)
        self.kept[name] = np.asarray(x).astype(f"int{bits}", copy=False)
        return x

    @property
    def quiet(self) -> Self:
        other = copy.copy(self)
        other.kept = {}
        return other

    def accumulate(self, x: Any) -> Any:
        self.used["accumulate"] = ""
        return sums.wrong_sum(self.variant, x)

    def dot(self, x: Any, weight: Any) -> Any:
        return self.matmul(x, weight.T)

    def matmul(self, a: Any, b: Any) -> Any:
        self.used["matmul"] = ""
        return self.accumulate(sums.wrong_matmul(self.variant, a, b))

    @property
    def _axis(self) -> int:
        """Of a row."""
        return -2 if self.variant.quirk == "other_axis" else -1

    def row_sum(self, x: Any, has: int | None = None, why: str = "") -> Any:
        return self.accumulate(x.sum(axis=self._axis, keepdims=True))

    def squares(self, x: Any, about_mean_of: Any = None) -> Any:
        if self.variant.quirk == "one_pass" and about_mean_of is not None:
            return self.accumulate(norm.wrong_variance(about_mean_of, x))
        return self.accumulate((x * x).sum(axis=self._axis, keepdims=True))

    def row_max(self, x: Any) -> Any:
        self.used["row_max"] = ""
        return x.max(axis=None if self.variant.quirk == "global_max" else self._axis, keepdims=True)

    def row_mean(self, total: Any, count: int) -> Any:
        self.used["mean"] = ""
        return norm.wrong_mean(self.variant, total, count if self._axis == -1 else self.call.inputs[0].shape[-2])

    def isqrt(self, v: Any) -> Any:
        self.used["isqrt"] = ""
        return norm.wrong_isqrt(self.variant, v)

    def rsr(self, x: Any, c: Any, via: str = "rounding", case: str = "") -> Any:
        self.used["rsr"] = ""
        rounded = rounding.wrong_rsr(self.variant, x, c, case)
        return sums.wrap(rounded, self.variant.rounded_bits) if self.variant.rounded_bits else rounded

    def floor_shift(self, x: Any, n: int) -> Any:
        self.used["floor_shift"] = ""
        return shifting.wrong_floor_shift(self.variant, x, n)

    def product(self, x: Any, mult: Any) -> Any:
        self.used["product"] = ""
        return sums.wrong_product(self.variant, x, mult)

    def saturate(self, x: Any, kind: str) -> Any:
        self.used["saturate"] = kind
        return saturation.wrong_saturate(self.variant, x, kind)

    def int_div(self, n: Any, d: Any, k_out: int, kind: str, word: str = "quotient") -> Any:
        self.used |= {"int_div": word, "rsr": ""}  # the other kind of division rounds
        return division.wrong_int_div(self, self.variant, n, d, k_out, kind)

    def stretch(self, x: Any) -> Any:
        self.used["stretch"] = ""
        return x if self.variant.quirk == "e_not_2" else super().stretch(x)

    def normalize(self, y: Any, about_mean_of: Any = None) -> Any:
        less = 0 if self.variant.reciprocal_power else 1
        return norm.normalize(self, y, about_mean_of, self.variant.reciprocal_bits or 31, less)


def usual_mistakes(used: Mapping[str, str], own: Named) -> Named:
    """The mistakes of the primitives that a call used, the likeliest first.

    own  those of the op alone
    """
    sources: tuple[tuple[str, Callable[[], Named]], ...] = (
        ("rsr", rounding.roundings),
        ("saturate", lambda: saturation.overflows(used["saturate"])),
        ("accumulate", sums.accumulators),
        ("matmul", sums.partial_sums),
        ("floor_shift", shifting.unsigned_shifts),
        ("rsr", rounding.unsigned_roundings),
        ("int_div", lambda: division.reciprocals(used["int_div"])),
        ("isqrt", norm.roots),
        ("mean", norm.means),
        ("int_div", division.quotient_shifts),
        ("row_max", norm.maxima),
        ("stretch", exponential.exponents),
        ("", lambda: own),
        ("product", sums.products),
        ("rsr", rounding.double_roundings),
        ("rsr", rounding.narrow_results),
    )
    for primitive, source in sources:
        if not primitive or primitive in used:
            yield from source()


Seen = list[tuple[str, Sequence[Case], Facts]]
"""What a call showed of its primitives: label, family, facts."""


class Watcher(Recorder):
    """Values, registers, and the facts of every primitive."""

    def __init__(self, call: Any = None) -> None:
        super().__init__(call=call)
        self.seen: Seen = []

    @property
    def quiet(self) -> Self:
        other = super().quiet
        other.seen = []
        return other

    def cases(self, family: Sequence[Case], label: str = "", /, **facts: Any) -> None:
        self.seen.append((label, family, facts))

    def rsr(self, x: Any, c: Any, via: str = "rounding", case: str = "") -> Any:
        result, facts = super().rsr(x, c, via, case), rounding.facts_of_rsr(x, c)
        if saturation.held(case) in saturation.INT_RANGE:
            low, high = saturation.limits(case)
            facts = _where((result >= low) & (result <= high), facts)
        self.cases(rounding.RSR, case, **facts)
        return result

    def rsr_or_same(self, x: Any, n: Any, most: int, via: str, case: str) -> Any:
        result = super().rsr_or_same(x, n, most, via, case)
        label, family, facts = self.seen.pop()
        self.cases(family, label, **_where(n > 0, facts))
        return result

    def saturate(self, x: Any, kind: str) -> Any:
        self.cases(saturation.SATURATE, kind, **saturation.facts_of_saturate(x, kind))
        return super().saturate(x, kind)


def _where(elements: Any, facts: Facts) -> Facts:
    """The facts of some elements."""
    return {name: np.broadcast_to(fact, elements.shape)[elements] for name, fact in facts.items()}


def cases_of(seen: Seen, possible: Seen) -> Iterator[tuple[str, Case, bool]]:
    """(label, case, whether it was reached) for every case that some input may reach.

    seen      facts of a call
    possible  facts of the same call by intervals of its inputs
    """
    for (label, family, facts), (_, _, intervals) in zip(seen, possible, strict=True):
        for case in family:
            if case.possible(intervals):
                yield label, case, bool(np.any(case.reached(facts)))
