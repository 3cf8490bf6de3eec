"""Bilinear interpolation along an axis in exact multiples (SPEC 4.19)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case
from .interval import Interval

if TYPE_CHECKING:
    from .machine import Machine

Int = NDArray[np.int64]


def interpolate(m: Machine, x: Any, axis: int, factor: int, start: int, stop: int, tap: str) -> Any:
    """Outputs start to stop - 1 of an axis that grows by `factor`, times 2 factor: the weights of a pixel sum to it.

    axis  0 or 1 of x [h, w, C]
    tap   name of a cell times its weight
    """
    size = x.shape[axis]
    lower, upper, weight = taps(start, stop, size, factor)
    weight = weight.reshape(-1, *(1,) * (2 - axis))
    m.cases(
        AXIS,
        ("row", "column")[axis],
        free=2 * np.arange(start, stop) + 1 - factor,
        last=2 * factor * (size - 1),
        size=size,
    )
    return m.blend(m.gather(x, lower, axis), m.gather(x, upper, axis), weight, 2 * factor, tap)


def taps(start: int, stop: int, size: int, factor: int) -> tuple[Int, Int, Int]:
    """Lower cell, upper cell, weight of the upper cell in steps of 1 / 2 factor, for outputs start to stop - 1."""
    index: Int = np.arange(start, stop, dtype=np.int64)
    position = np.minimum(np.maximum(2 * index + 1 - factor, 0), 2 * factor * (size - 1))
    lower = position // (2 * factor)
    return lower, np.minimum(lower + 1, size - 1), position % (2 * factor)


def blend(a: Any, b: Any, weight: Any, total: int) -> Any:
    """a (total - weight) + b weight."""
    return a * (total - weight) + b * weight


def bound_blend(a: Interval, b: Interval, total: int) -> tuple[Interval, Interval]:
    """Either product, and the sum, for weights that sum to `total`."""
    low, high = min(a.low, b.low), max(a.high, b.high)
    return Interval(total * min(low, 0), total * max(high, 0)), Interval(total * low, total * high, shape=a.shape)


AXIS = (
    Case("before", "4.19", "before the first centre", lambda f: f["free"] < 0),
    Case("after", "4.19", "beyond the last centre", lambda f: (f["free"] > f["last"]) & (f["last"] > 0)),
    Case("between", "4.19", "between two centres", lambda f: (f["free"] > 0) & (f["free"] < f["last"])),
    Case("single", "4.19", "one cell", lambda f: f["size"] == 1),
)
