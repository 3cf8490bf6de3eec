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

from intseg.arith.variant import Variant
from intseg.errors import UsageError
from intseg.ops import Array, Call
from intseg.workbench.axes import Dim, dims, is_valid, take
from intseg.workbench.cause import call_of
from intseg.workbench.diff import Report, Settings, comparable, compare
from intseg.workbench.mistakes import combine
from intseg.workbench.registers import evaluate
from intseg.workbench.sides import Other
from intseg.workbench.trace import Trace, Writer

SECONDS = 10.0
"""Time for shrinking unless another is given."""


@dataclass(frozen=True)
class Minimal:
    """A small call that differs.

    call      the call
    expected  what the definition gives
    found     what the other side has there; by the variant of `cause` where the call was shrunk beyond the data
    cause     name of the hypothesis, None where none fits
    shrunk    whether `found` is computed by the variant
    """

    call: Call
    expected: Array
    found: Array
    window: int
    node: str
    cause: str | None
    shrunk: bool


# -------------------------------------------------------------------------------------------------------- shrinking


def restrict(call: Call, found: Array, index: Sequence[int]) -> tuple[Call, Array]:
    """The call with only what one element of the result needs, and the other side's values there."""
    for dim in dims(call):
        if dim.out is not None and dim.alone:
            at = [index[dim.out]]
            call, found = take(call, dim, at), np.ascontiguousarray(found.take(at, axis=dim.out))
    return call, found


def shrink(call: Call, variant: Variant, deadline: float) -> Call:
    """The call, smaller, such that the variant still differs from the definition."""

    def differs(candidate: Call) -> bool:
        try:
            with np.errstate(all="ignore"):
                return is_valid(candidate) and not np.array_equal(evaluate(candidate), evaluate(candidate, variant))
        except (ValueError, IndexError, OverflowError, TypeError):
            return False

    smaller = True
    while smaller and time.thread_time() < deadline:
        before = _size(call)
        for dim in dims(call):
            call = _shrink_dim(call, dim, differs, deadline)
        smaller = _size(call) < before
    return _shrink_values(call, differs, deadline)


def _size(call: Call) -> int:
    return sum(x.size for x in (*call.inputs, *call.params.values()))


def _shrink_dim(call: Call, dim: Dim, differs: Callable[[Call], bool], deadline: float) -> Call:
    """Remove halves, quarters, ... of an extent as long as the difference stays."""
    key, axis = dim.slots[0]
    operand = call.inputs[int(key)] if key.isdecimal() else call.params[key]
    kept = list(range(operand.shape[axis]))
    part = len(kept) // 2
    while part >= 1 and time.thread_time() < deadline:
        removed = False
        for start in range(0, len(kept), part):
            rest = kept[:start] + kept[start + part :]
            if rest and differs(take(call, dim, rest)):
                kept, removed = rest, True
                break
        part = min(part, len(kept) // 2) if removed else part // 2
    return take(call, dim, kept)


def _shrink_values(call: Call, differs: Callable[[Call], bool], deadline: float) -> Call:
    """Set inputs, weights and biases to zero, whole and one by one, as long as the difference stays."""
    for case_with in _zeroings(call):
        if time.thread_time() > deadline:
            break
        candidate = case_with(call)
        if candidate is not None and differs(candidate):
            call = candidate
    return call


def _zeroings(call: Call) -> Iterator[Callable[[Call], Call | None]]:
    keys = [str(i) for i in range(len(call.inputs))] + [role for role in ("bias", "weight") if role in call.params]
    for key in keys:
        yield functools.partial(_zeroed, key=key, at=None)
    for key in keys:
        size = (call.inputs[int(key)] if key.isdecimal() else call.params[key]).size
        for at in range(min(size, 256)):
            yield functools.partial(_zeroed, key=key, at=at)


def _zeroed(call: Call, key: str, at: int | None) -> Call | None:
    """The call with an operand, or one of its elements, zero; None where it is already."""
    operand = call.inputs[int(key)] if key.isdecimal() else call.params[key]
    changed = np.zeros_like(operand) if at is None else operand.copy()
    if at is not None:
        changed.flat[at] = 0
    if np.array_equal(changed, operand):
        return None
    if key.isdecimal():
        return dataclasses.replace(call, inputs=[changed if str(i) == key else x for i, x in enumerate(call.inputs)])
    return dataclasses.replace(call, params={**call.params, key: changed})


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
    call = call_of(golden, first.window, golden.model.graph.node(node))
    if call is None:
        raise UsageError(f"the golden trace lacks an input of {node}; trace all nodes")
    found, index = _found(golden, other, report, call)
    minimal = _smallest(call, found, index, report, time.thread_time() + seconds)
    return report, dataclasses.replace(minimal, window=first.window, node=node)


def _found(golden: Trace, other: Other, report: Report, call: Call) -> tuple[Array, tuple[int, ...]]:
    """What the other side has at the node to blame, and the first index that differs; unseen nodes by their cause."""
    first = report.first
    assert first is not None
    if report.explanation is None or report.explanation.node is None:
        name = f"window{first.window}.{first.node}"
        return comparable(name, golden.file.read(name), other.read(name))[0], first.index
    variant = combine(report.explanation.matches[0])
    assert variant is not None
    with np.errstate(all="ignore"):
        found = evaluate(call, variant)
    return found, tuple(int(i) for i in np.argwhere(found != evaluate(call))[0])


def _smallest(call: Call, found: Array, index: Sequence[int], report: Report, deadline: float) -> Minimal:
    small, small_found = restrict(call, found, index)
    matches = report.explanation.matches if report.explanation else ()
    if not matches:
        return Minimal(small, evaluate(small), small_found, 0, "", None, False)
    variant = combine(matches[0])
    assert variant is not None
    assert report.explanation is not None
    with np.errstate(all="ignore"):
        stands = np.array_equal(evaluate(small, variant), small_found)
    least = shrink(small if stands else call, variant, deadline)
    with np.errstate(all="ignore"):
        return Minimal(least, evaluate(least), evaluate(least, variant), 0, "", report.explanation.names()[0], True)


def save(minimal: Minimal, path: str | os.PathLike[str]) -> None:
    """Write the call as a golden op case. Raises InputError when it cannot be written."""
    call = minimal.call
    tensors = {f"case0.in{j}": x for j, x in enumerate(call.inputs)}
    tensors |= {f"case0.param.{role}": p for role, p in call.params.items()}
    tensors["case0.expected"] = minimal.expected
    metadata: dict[str, Any] = {
        "attrs": [dict(call.attrs)],
        "op": call.op,
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
    call = minimal.call
    yield f"{call.op} of node {minimal.node}, window {minimal.window}"
    for j, x in enumerate(call.inputs):
        yield f"  input {j:<8} {x.dtype.name} {list(x.shape)} {_values(x)}"
    for role, p in call.params.items():
        yield f"  {role:<14} {p.dtype.name} {list(p.shape)} {_values(p)}"
    for name, attr in call.attrs.items():
        yield f"  {name:<14} {attr}"
    yield f"  expected       {_values(minimal.expected)}"
    source = "with the cause" if minimal.shrunk else "other side"
    yield f"  found          {_values(minimal.found)} ({source})"
    yield f"  cause          {minimal.cause or 'not known'}"


def _values(x: Array) -> str:
    flat = x.reshape(-1)
    return " ".join(str(int(v)) for v in flat[:16]) + (" ..." if flat.size > 16 else "")
