"""The report of a comparison as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from intseg.arith import INT_RANGE
from intseg.workbench.diff import Difference, Report


def hexadecimal(value: int, dtype: str) -> str:
    """Two's complement in the digits of the dtype; more digits for a value outside of it."""
    low, high = INT_RANGE[dtype]
    bits = 8 * np.dtype(dtype).itemsize if low <= value <= high else 64
    return f"0x{value & ((1 << bits) - 1):0{bits // 4}x}"


def lines(report: Report) -> Iterator[str]:
    """A report in text."""
    for note in report.notes:
        yield f"note: {note}"
    first = report.first
    if first is None:
        yield f"equal: {report.compared} tensors"
        return
    where = f"window {first.window}, node {first.node}" if first.window >= 0 else first.node
    yield f"first difference: {where}" + (f" ({first.op})" if first.op else "")
    yield f"  {first.dtype} {list(first.shape)}, first index {list(first.index)}"
    for word, value, real in (("expected", first.expected, first.reals[0]), ("found", first.found, first.reals[1])):
        shown = "" if real is None else f"   real {real:.9g}"
        yield f"  {word:9}{value:12d}   {hexadecimal(value, first.dtype)}{shown}"
    yield f"  {first.count} of {first.size} elements differ, by at most {first.largest}; {first.pattern}"
    if first.register:
        name, at, expected, found = first.register
        yield f"  first register that differs: {name} at {list(at)}, expected {expected}, found {found}"
    yield "  found - expected:"
    widest = max(count for _, count in first.histogram)
    for label, count in first.histogram:
        yield f"  {label:>16} {count:9d}  {'#' * max(1, 40 * count // widest)}"
    yield from _explanation_lines(report)
    if report.others:
        one = len(report.others) == 1
        yield f"after it, {len(report.others)} more {'tensor differs' if one else 'tensors differ'}"


def _explanation_lines(report: Report) -> Iterator[str]:
    found = report.explanation
    if found is None:
        return
    if found.matches:
        where = f"the unseen node {found.node}" if found.node else "the node"
        yield f"cause: recomputed from its inputs, {where} equals the other side exactly with"
        for name in found.names():
            yield f"  - {name}"
        return
    searched = "" if found.complete else ", time was up"
    yield f"cause: none of {found.tried} hypotheses and pairs reproduces the other side exactly{searched}"
    for one, share in found.partial:
        yield f"  - {100 * share:.1f} % of the wrong elements: {one.name}"


def as_json(report: Report) -> dict[str, Any]:
    """A report for programs."""
    first, cause = report.first, report.explanation
    return {
        "equal": report.equal,
        "compared": report.compared,
        "notes": list(report.notes),
        "first": None if first is None else _first_json(first),
        "others": [{"tensor": name, "differing": count} for name, count in report.others],
        "cause": None
        if cause is None
        else {
            "node": cause.node or first.node if first and cause.matches else None,
            "exact": [[one.name for one in match] for match in cause.matches],
            "partial": [{"name": one.name, "share": share} for one, share in cause.partial],
            "tried": cause.tried,
            "complete": cause.complete,
        },
    }


def _first_json(first: Difference) -> dict[str, Any]:
    sides = zip(("expected", "found"), (first.expected, first.found), first.reals, strict=True)
    register = first.register
    return {
        "window": first.window if first.window >= 0 else None,
        "node": first.node,
        "op": first.op,
        "dtype": first.dtype,
        "shape": list(first.shape),
        "index": list(first.index),
        **{n: {"decimal": v, "hex": hexadecimal(v, first.dtype), "real": real} for n, v, real in sides},
        "differing": first.count,
        "elements": first.size,
        "largest": first.largest,
        "pattern": first.pattern,
        "histogram": [{"difference": label, "elements": count} for label, count in first.histogram],
        "register": None
        if register is None
        else dict(zip(("name", "index", "expected", "found"), register, strict=True)),
    }
