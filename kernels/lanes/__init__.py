"""The registers that only kernels have, proved with the others: partial sums in any order, lanes of 16 and 32 bits.

A kernel adds in any order, multiplies unsigned bytes (x + 128 in place of x) and pads rows to whole vectors. What it
holds on the way is bounded here from the registers of the definition: the file of an op has `lanes(m, inputs, params,
attrs)`, where m is the machine of `intseg.arith.bounds` that proved the op, and inputs are intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

PAD = 63
"""Columns that a kernel may add to a row to fill its vectors, at most (kernels/_isa.py)."""

_OPS = frozenset(module.name for module in iter_modules(__path__))


def of(op: str) -> Callable[..., None] | None:
    """The lanes of the kernel of an op; none where it has no registers of its own."""
    if op not in _OPS:
        return None
    found: Callable[..., None] = import_module(f"{__name__}.{op}").lanes
    return found
