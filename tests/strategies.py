"""Hypothesis strategies of integers, arrays and, by the exams, of calls of every op.

Arrays draw from edge values as often as from the whole range. Sizes are small and often odd: the oracle is slow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from intseg.exam import EXAMS
from intseg.ops import OPS, Call

Strategy = st.SearchStrategy


LARGE = 128
"""From so many elements on, an array is drawn as a whole: one draw an element takes most of the time of a test."""


def edges(low: int, high: int) -> list[int]:
    """The ends of [low, high], and powers of two +-2 in it."""
    found = {low, low + 1, high - 1, high, 0}
    for exponent in range(high.bit_length() + 1):
        found.update(sign * 2**exponent + step for sign in (-1, 1) for step in (-2, -1, 0, 1, 2))
    return sorted(v for v in found if low <= v <= high)


def integers(low: int, high: int) -> Strategy[int]:
    """Integers in [low, high]: the ends, powers of two +-2, or any."""
    return st.sampled_from(edges(low, high)) | st.integers(low, high)


def whole(dtype: str, shape: tuple[int, ...], low: int, high: int, edgy: bool = False) -> Strategy[np.ndarray]:
    """Arrays of any values in [low, high], edge values in place of half of them if so asked, drawn by one seed."""

    def drawn(seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        values = random.integers(low, high, shape, dtype, endpoint=True)
        if edgy:
            values = np.where(
                random.random(shape) < 0.5, random.choice(np.array(edges(low, high), dtype), shape), values
            )
        return values

    return st.integers(0, 2**32 - 1).map(drawn)


def arrays(dtype: str, *shape: int, low: int | None = None, high: int | None = None) -> Strategy[np.ndarray]:
    """Arrays of a dtype, in narrower limits if given: edges, any, small, constant, alternating extremes, one-hot."""
    low = int(np.iinfo(dtype).min) if low is None else low
    high = int(np.iinfo(dtype).max) if high is None else high

    def elements(low: int, high: int, edgy: bool = False) -> Strategy[np.ndarray]:
        if math.prod(shape) >= LARGE:
            return whole(dtype, shape, low, high, edgy)
        values = integers(low, high) if edgy else st.integers(low, high)
        return hnp.arrays(dtype, shape, elements=values, fill=st.nothing())

    def small(bits: int) -> Strategy[np.ndarray]:
        near = min(max(0, low), high)
        return elements(max(low, near - 2**bits), min(high, near + 2**bits))

    def full(value: int) -> np.ndarray:
        return np.full(shape, value, dtype)

    def alternating(first: int) -> np.ndarray:
        result = full(low)
        result.reshape(-1)[first::2] = high
        return result

    def one_hot(position: int) -> np.ndarray:
        result = full(min(max(0, low), high))
        result.reshape(-1)[position % max(result.size, 1)] = high
        return result

    return (
        elements(low, high, edgy=True)
        | elements(low, high)
        | st.integers(0, max(high.bit_length() - 2, 0)).flatmap(small)
        | integers(low, high).map(full)
        | st.sampled_from([0, 1]).map(alternating)
        | st.integers(0, 1000).map(one_hot)
    )


class Data:
    """Hypothesis as a source of an exam (`intseg.exam.Draw`)."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def within(self, low: int, high: int) -> int:
        return self.draw(integers(low, high))

    def odd(self) -> bool:
        return self.draw(st.integers(0, 3)) == 3

    def array(self, dtype: str, *shape: int, low: int | None = None, high: int | None = None) -> np.ndarray:
        return self.draw(arrays(dtype, *shape, low=low, high=high))


@st.composite
def calls(draw: st.DrawFn, op: str) -> Call:
    """Valid calls of an op."""
    return EXAMS[op].any_call(Data(draw))


CASES: dict[str, Strategy[Call]] = {op: calls(op) for op in OPS}
"""Op name -> strategy of valid calls."""
