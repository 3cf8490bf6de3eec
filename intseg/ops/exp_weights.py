"""exp_weights: exponentials of a row in UINT8 by table, 255 at the row's maximum; weighted_mean divides (SPEC 4.21)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intseg.arith import Machine

from ._op import Array, Attr, Op, Value, require, require_shape, require_within

ONE = 255 * 2**7
"""The table's entry for the row maximum: 255 in steps of 2^-7."""

DITHER = (8, 72, 40, 104, 24, 88, 56, 120)
"""Added before the last seven bits are cut, by the element's place modulo 8: of eight equal neighbours some round up
and some down, so that a row keeps the weight of its many small elements."""


def exp_weights(m: Machine, x: Any, *, table: Any) -> Any:
    """e_j = (table[min(max x - x_j, 255)] + DITHER[j mod 8]) >> 7.

    x       int16 [..., M, N]
    table   int16 [..., 256]   255 * 2^7 times the exponential of minus the index, in steps of x; one per batch entry
    return  uint8 [..., M, N]  255 where x_j is the row maximum
    """
    x = m.widen(x)
    top = m.keep("row_max", m.row_max(x), 32)
    t = m.keep("t", m.claim(top - x, low=0, why="top is the largest x of the row"), 32)
    power = m.keep("power", m.entry(table, m.clip(t, 0, 255)), 32)
    dithered = m.keep("dithered", power + np.resize(np.array(DITHER), x.shape[-1]), 32)
    return m.saturate(dithered >> 7, "uint8")


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    shape, table = inputs[0].shape, params["table"]
    require(len(shape) >= 2, f"input has shape {list(shape)}, expected two axes or more")
    require_shape("table", table, (*shape[:-2], 256))
    require_within("table", table, range(ONE + 1))
    first = table[..., 0]
    require(bool((first == ONE).all()), f"table begins with {int(first.min())}, expected {ONE}: 255 at the row maximum")
    return Value("uint8", shape)


OPS = {"exp_weights": Op(21, exp_weights, (("int16",),), check, params={"table": "int16"})}
