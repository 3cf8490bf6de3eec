"""What the real-number twins of the ops are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.ops import Array

Float = NDArray[np.floating[Any]]

ERF_ERROR = 1.5e-7
"""Largest |erf(x) - math.erf(x)| in float64 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26)."""

_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def erf(x: Float) -> Float:
    """The error function, elementwise, dtype of x; |error| <= ERF_ERROR plus the rounding of the dtype."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = np.zeros_like(x)
    for coefficient in reversed(_ERF):
        poly = (poly + coefficient) * t
    result: Float = np.copysign(1 - poly * np.exp(-x * x), x)
    return result


def _by_name(function: Callable[[Float], Float]) -> Callable[[Float], Float]:
    """A function that whatever stands for numbers may have in its own way: as a method of this name."""

    @functools.wraps(function)
    def call(x: Any) -> Any:
        own = getattr(x, function.__name__, None)
        return function(x) if own is None else own()

    return call


@_by_name
def gelu(x: Float) -> Float:
    """x Phi(x) with the normal distribution's Phi; |error| <= |x| ERF_ERROR / 2."""
    result: Float = x * (1 + erf(x * 0.5**0.5)) / 2
    return result


def dyadic(mult: Array | int, shift: Array | int, like: Float) -> Float:
    """mult * 2^-shift in the dtype of `like`."""
    return np.asarray(np.ldexp(np.asarray(mult, np.float64), -np.asarray(shift, np.int64)), like.dtype)


@_by_name
def unit_rows(x: Float) -> Float:
    """Rows of length one; a zero row stays zero, as the integer ops have it."""
    root = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    return x / np.where(root > 0, root, 1)


@_by_name
def softmax(x: Float) -> Float:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Float = e / e.sum(axis=-1, keepdims=True)
    return result


def taps(size: int, factor: int) -> Float:
    """float64 [size * factor, size]: weights of the cells in every pixel of an axis (align_corners = False)."""
    position = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
    weights: Float = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size)))
    return weights
