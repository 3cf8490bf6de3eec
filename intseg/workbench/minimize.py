"""From a differing image to the smallest call of one op that still differs.

First the call is restricted to what the first wrong element needs: its row, its output channel, its head. That needs
nothing but the data of both sides. Then, if a cause is known, its variant stands for the other implementation and the
call shrinks further, axis by axis and value by value, as long as both still differ.

The result is a golden op case (the format of golden/ops): tensors `case0.in{j}`, `case0.param.{role}`,
`case0.expected`, and the metadata key "intseg" with canonical JSON {"attrs": [...], "op", "seed", and about the origin
"node", "window", "cause", "found"}.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intseg.errors import ModelError, UsageError
from intseg.ops import OPS, Array, Value
from intseg.workbench.diff import Other, Report, Settings, case_of, comparable, compare
from intseg.workbench.hypotheses import Case, combine
from intseg.workbench.registers import Variant
from intseg.workbench.trace import Trace, Writer

SECONDS = 10.0
"""Time for shrinking unless another is given."""


@dataclass(frozen=True)
class Dim:
    """An extent that can be cut: the axes of the operands that have it, and that of the result (None: summed over)."""

    slots: tuple[tuple[str, int], ...]
    out: int | None
    alone: bool = True
    """Whether an index of the result needs only the same index of the operands."""


@dataclass(frozen=True)
class Minimal:
    """A small call that differs.

    case      the call
    expected  what the definition gives
    found     what the other side has there; by the variant of `cause` where the call was shrunk beyond the data
    cause     name of the hypothesis, None where none fits
    shrunk    whether `found` is computed by the variant
    """

    case: Case
    expected: Array
    found: Array
    window: int
    node: str
    cause: str | None
    shrunk: bool


# ------------------------------------------------------------------------------------------------------------- axes


def dims(case: Case) -> list[Dim]:
    """The extents of a call that can be cut without changing its attributes, the outermost first."""
    if case.op in _DIMS:
        return _DIMS[case.op](case)
    rank = case.inputs[0].ndim
    if case.op in ("add", "gelu_table", "sigmoid_gelu"):
        count = len(case.inputs)
        return [Dim(tuple((str(i), axis) for i in range(count)), axis) for axis in range(rank)]
    if case.op in ("shiftmax", "softmax2", "shift_gelu", "l2norm", "layernorm", "argmax"):
        roles = tuple((role, 0) for role in case.params)
        rows = [Dim((("0", axis),), axis) for axis in range(rank - 1)]
        last = None if case.op == "argmax" else rank - 1
        return [*rows, Dim((("0", rank - 1), *roles), last, alone=False)]
    return []


def _linear_dims(case: Case) -> list[Dim]:
    width = tuple((role, 0) for role in ("weight", "bias", "mult", "shift"))
    return [Dim((("0", 0),), 0), Dim(width, 1), Dim((("0", 1), ("weight", 1)), None, alone=False)]


def _matmul_dims(case: Case) -> list[Dim]:
    rank = case.inputs[0].ndim
    inner, wide = (rank - 1, rank - 2) if case.attrs["transpose_b"] else (rank - 2, rank - 1)
    batch = [Dim(tuple((key, axis) for key in ("0", "1", "mult", "shift")), axis) for axis in range(rank - 2)]
    scales = (("mult", rank - 2), ("shift", rank - 2)) if case.params["mult"].shape[-1] > 1 else ()
    columns = Dim((("1", wide), *scales), rank - 1)
    return [*batch, Dim((("0", rank - 2),), rank - 2), columns, Dim((("0", rank - 1), ("1", inner)), None, alone=False)]


_DIMS: dict[str, Callable[[Case], list[Dim]]] = {
    "linear": _linear_dims,
    "matmul": _matmul_dims,
    "quantize_input": lambda case: [Dim((("0", 0),), 0), Dim((("0", 1),), 1)],
    "patchify": lambda case: [],
    "concat": lambda case: [Dim((("0", 1), ("1", 1)), 1)],
    "slice": lambda case: [Dim((("0", 1),), 1)],
    "split_heads": lambda case: [Dim((("0", 0),), 1)],
    "merge_heads": lambda case: [Dim((("0", 1),), 0)],
    "to_grid": lambda case: [Dim((("0", 1),), 2)],
}


def take(case: Case, dim: Dim, indices: Sequence[int]) -> Case:
    """The call with only some indices of an extent."""
    axes = dict(dim.slots)
    inputs = [_taken(x, axes.get(str(i)), indices) for i, x in enumerate(case.inputs)]
    params = {role: _taken(p, axes.get(role), indices) for role, p in case.params.items()}
    return dataclasses.replace(case, inputs=inputs, params=params)


def _taken(x: Array, axis: int | None, indices: Sequence[int]) -> Array:
    return x if axis is None else np.ascontiguousarray(x.take(list(indices), axis=axis))


def is_valid(case: Case) -> bool:
    """Whether a graph could hold this call."""
    try:
        OPS[case.op].check([Value(x.dtype.name, x.shape) for x in case.inputs], case.params, case.attrs)
    except (ModelError, ValueError, IndexError):
        return False
    return True


# -------------------------------------------------------------------------------------------------------- shrinking


def restrict(case: Case, found: Array, index: Sequence[int]) -> tuple[Case, Array]:
    """The call with only what one element of the result needs, and the other side's values there."""
    for dim in dims(case):
        if dim.out is not None and dim.alone:
            at = [index[dim.out]]
            case, found = take(case, dim, at), np.ascontiguousarray(found.take(at, axis=dim.out))
    return case, found


def shrink(case: Case, variant: Variant, deadline: float) -> Case:
    """The call, smaller, such that the variant still differs from the definition."""

    def differs(candidate: Case) -> bool:
        try:
            with np.errstate(all="ignore"):
                return is_valid(candidate) and not np.array_equal(candidate.run(), candidate.run(variant))
        except (ValueError, IndexError, OverflowError, TypeError):
            return False

    smaller = True
    while smaller and time.monotonic() < deadline:
        before = _size(case)
        for dim in dims(case):
            case = _shrink_dim(case, dim, differs, deadline)
        smaller = _size(case) < before
    return _shrink_values(case, differs, deadline)


def _size(case: Case) -> int:
    return sum(x.size for x in (*case.inputs, *case.params.values()))


def _shrink_dim(case: Case, dim: Dim, differs: Callable[[Case], bool], deadline: float) -> Case:
    """Remove halves, quarters, ... of an extent as long as the difference stays."""
    key, axis = dim.slots[0]
    operand = case.inputs[int(key)] if key.isdecimal() else case.params[key]
    kept = list(range(operand.shape[axis]))
    part = len(kept) // 2
    while part >= 1 and time.monotonic() < deadline:
        removed = False
        for start in range(0, len(kept), part):
            rest = kept[:start] + kept[start + part :]
            if rest and differs(take(case, dim, rest)):
                kept, removed = rest, True
                break
        part = min(part, len(kept) // 2) if removed else part // 2
    return take(case, dim, kept)


def _shrink_values(case: Case, differs: Callable[[Case], bool], deadline: float) -> Case:
    """Set inputs, weights and biases to zero, whole and one by one, as long as the difference stays."""
    for case_with in _zeroings(case):
        if time.monotonic() > deadline:
            break
        candidate = case_with(case)
        if candidate is not None and differs(candidate):
            case = candidate
    return case


def _zeroings(case: Case) -> Iterator[Callable[[Case], Case | None]]:
    keys = [str(i) for i in range(len(case.inputs))] + [role for role in ("bias", "weight") if role in case.params]
    for key in keys:
        yield functools.partial(_zeroed, key=key, at=None)
    for key in keys:
        size = (case.inputs[int(key)] if key.isdecimal() else case.params[key]).size
        for at in range(min(size, 256)):
            yield functools.partial(_zeroed, key=key, at=at)


def _zeroed(case: Case, key: str, at: int | None) -> Case | None:
    """The call with an operand, or one of its elements, zero; None where it is already."""
    operand = case.inputs[int(key)] if key.isdecimal() else case.params[key]
    changed = np.zeros_like(operand) if at is None else operand.copy()
    if at is not None:
        changed.flat[at] = 0
    if np.array_equal(changed, operand):
        return None
    if key.isdecimal():
        return dataclasses.replace(case, inputs=[changed if str(i) == key else x for i, x in enumerate(case.inputs)])
    return dataclasses.replace(case, params={**case.params, key: changed})


# ----------------------------------------------------------------------------------------------------- the command


def minimize(
    golden: Trace, other: Other, settings: Settings | None = None, seconds: float = SECONDS
) -> tuple[Report, Minimal | None]:
    """Compare, and make the smallest call for the first difference; None where both sides are equal.

    Raises what `compare` raises, UsageError where the golden trace does not hold what the node needs.
    """
    report = compare(golden, other, settings)
    first = report.first
    if first is None:
        return report, None
    if first.op is None or golden.model is None:
        raise UsageError(f"{first.node} differs, but its op is not known; give the model with -w")
    node = (report.explanation.node if report.explanation else None) or first.node
    case = case_of(golden, first.window, golden.model.graph.node(node))
    if case is None:
        raise UsageError(f"the golden trace lacks an input of {node}; trace all nodes")
    found, index = _found(golden, other, report, case)
    minimal = _smallest(case, found, index, report, time.monotonic() + seconds)
    return report, dataclasses.replace(minimal, window=first.window, node=node)


def _found(golden: Trace, other: Other, report: Report, case: Case) -> tuple[Array, tuple[int, ...]]:
    """What the other side has at the node to blame, and the first index that differs; unseen nodes by their cause."""
    first = report.first
    assert first is not None
    if report.explanation is None or report.explanation.node is None:
        name = f"window{first.window}.{first.node}"
        return comparable(name, golden.file.read(name), other.read(name))[0], first.index
    variant = combine(report.explanation.matches[0])
    assert variant is not None
    with np.errstate(all="ignore"):
        found = case.run(variant)
    return found, tuple(int(i) for i in np.argwhere(found != case.run())[0])


def _smallest(case: Case, found: Array, index: Sequence[int], report: Report, deadline: float) -> Minimal:
    small, small_found = restrict(case, found, index)
    matches = report.explanation.matches if report.explanation else ()
    if not matches:
        return Minimal(small, small.run(), small_found, 0, "", None, False)
    variant = combine(matches[0])
    assert variant is not None
    assert report.explanation is not None
    with np.errstate(all="ignore"):
        stands = np.array_equal(small.run(variant), small_found)
    least = shrink(small if stands else case, variant, deadline)
    with np.errstate(all="ignore"):
        return Minimal(least, least.run(), least.run(variant), 0, "", report.explanation.names()[0], True)


def save(minimal: Minimal, path: str | os.PathLike[str]) -> None:
    """Write the call as a golden op case. Raises InputError when it cannot be written."""
    case = minimal.case
    tensors = {f"case0.in{j}": x for j, x in enumerate(case.inputs)}
    tensors |= {f"case0.param.{role}": p for role, p in case.params.items()}
    tensors["case0.expected"] = minimal.expected
    metadata: dict[str, Any] = {
        "attrs": [dict(case.attrs)],
        "op": case.op,
        "seed": 0,
        "node": minimal.node,
        "window": minimal.window,
        "cause": minimal.cause,
        "found": {
            "shape": list(minimal.found.shape),
            "values": minimal.found.reshape(-1).tolist(),
            "computed": minimal.shrunk,
        },
    }
    with Writer(Path(path), metadata, list(tensors)) as writer:
        for name in sorted(tensors):
            writer.put(name, tensors[name])


def lines(minimal: Minimal) -> Iterator[str]:
    """A small call in text."""
    case = minimal.case
    yield f"{case.op} of node {minimal.node}, window {minimal.window}"
    for j, x in enumerate(case.inputs):
        yield f"  input {j:<8} {x.dtype.name} {list(x.shape)} {_values(x)}"
    for role, p in case.params.items():
        yield f"  {role:<14} {p.dtype.name} {list(p.shape)} {_values(p)}"
    for name, attr in case.attrs.items():
        yield f"  {name:<14} {attr}"
    yield f"  expected       {_values(minimal.expected)}"
    source = "with the cause" if minimal.shrunk else "other side"
    yield f"  found          {_values(minimal.found)} ({source})"
    yield f"  cause          {minimal.cause or 'not known'}"


def _values(x: Array) -> str:
    flat = x.reshape(-1)
    return " ".join(str(int(v)) for v in flat[:16]) + (" ..." if flat.size > 16 else "")
