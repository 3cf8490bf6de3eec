"""Calls cut along their axes: what may be cut follows from how the definition of the op joins and reduces them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intseg.arith.extents import Extent, Extents, operand
from intseg.errors import ModelError
from intseg.ops import OPS, Array, Call, Value


@dataclass(frozen=True)
class Dim:
    """An extent that can be cut: the axes of the operands that have it, and that of the result (None: summed over)."""

    slots: tuple[tuple[str, int], ...]
    out: int | None
    alone: bool = True
    """Whether an index of the result needs only the same index of the operands."""


def dims(call: Call) -> list[Dim]:
    """The extents of a call that can be cut without changing its attributes, the outermost first."""
    inputs = [operand(str(i), x.shape) for i, x in enumerate(call.inputs)]
    params = {role: operand(role, p.shape) for role, p in call.params.items()}
    result = OPS[call.op].define(Extents(), *inputs, **params, **call.attrs)
    where: dict[Extent, int | None] = {}
    for axis, (_, extent) in enumerate(result.axes):
        if extent is not None:
            where.setdefault(extent.root, axis)
    for x in (*inputs, *params.values()):
        for extent in x.extents:
            if extent.reduced:
                where.setdefault(extent, None)
    found = [Dim(tuple(e.slots), axis, not e.reduced) for e, axis in where.items() if not e.fixed]
    return [dim for dim in found if is_valid(take(call, dim, [0]))]


def take(call: Call, dim: Dim, indices: Sequence[int]) -> Call:
    """The call with only some indices of an extent."""
    axes = dict(dim.slots)
    inputs = [_taken(x, axes.get(str(i)), indices) for i, x in enumerate(call.inputs)]
    params = {role: _taken(p, axes.get(role), indices) for role, p in call.params.items()}
    return dataclasses.replace(call, inputs=inputs, params=params)


def _taken(x: Array, axis: int | None, indices: Sequence[int]) -> Array:
    return x if axis is None else np.ascontiguousarray(x.take(list(indices), axis=axis))


def is_valid(call: Call) -> bool:
    """Whether a graph could hold this call."""
    try:
        OPS[call.op].check([Value(x.dtype.name, x.shape) for x in call.inputs], call.params, call.attrs)
    except (ModelError, ValueError, IndexError):
        return False
    return True
