"""The cases of a primitive that an implementation may get wrong by itself: ties, saturations, divisors of zero.

A primitive shows its facts to the machine that runs it, once as arrays and once as intervals. A case is reached where
the arrays have it in at least one element; it has to be reached where the intervals say that it can be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .interval import Interval

Facts = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A case of SPEC.md.

    name      unique among those of a primitive
    section   of SPEC.md
    text      what happens there
    reached   from the facts as arrays: the elements, or whether any
    possible  from the facts as intervals: whether some input may reach it
    """

    name: str
    section: str
    text: str
    reached: Callable[[Facts], Any]
    possible: Callable[[Facts], bool] = lambda facts: True


def below(name: str, limit: int) -> Callable[[Facts], bool]:
    """Whether the fact may be below the limit."""
    return lambda facts: _interval(facts[name]).lowest < limit


def above(name: str, limit: int) -> Callable[[Facts], bool]:
    """Whether the fact may be above the limit."""
    return lambda facts: _interval(facts[name]).highest > limit


def _interval(x: Any) -> Interval:
    return x if isinstance(x, Interval) else Interval(np.min(x), np.max(x))
