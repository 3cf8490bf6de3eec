"""The first wrong bit and why: a golden trace against what another implementation gave.

Nodes are compared in execution order, window by window. The first one that differs is described, and recomputed from
the golden inputs under hypotheses (intseg/workbench/mistakes.py) until one gives exactly what the other side has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intseg import api
from intseg.arith import INT_RANGE
from intseg.errors import InputError, UsageError
from intseg.ops import Array
from intseg.workbench import trace as traces
from intseg.workbench.cause import cause, node_of
from intseg.workbench.search import SECONDS, Explanation
from intseg.workbench.sides import ENDS, Arrays, Other
from intseg.workbench.trace import SEPARATOR, Trace

_MAX_BARS = 15


@dataclass(frozen=True)
class Difference:
    """The first node that differs.

    window, node, op  where; op is None for what is not a node
    index             of the first differing element
    expected, found   there
    reals             the same as real numbers, None where the scale is not known
    count, size       differing elements, all elements
    histogram         (found - expected, elements), most frequent first; the last entry is ("other", elements) if any
    largest           largest |found - expected|
    pattern           where differences lie, in words
    register          (name, index, expected, found) of the first register that differs, where both sides have them
    """

    window: int
    node: str
    op: str | None
    dtype: str
    shape: tuple[int, ...]
    index: tuple[int, ...]
    expected: int
    found: int
    reals: tuple[float | None, float | None]
    count: int
    size: int
    histogram: tuple[tuple[str, int], ...]
    largest: int
    pattern: str
    register: tuple[str, tuple[int, ...], int, int] | None = None


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    compared     tensors compared
    first        the first difference, None when all are equal
    others       further differing tensors after the first: (name, differing elements)
    explanation  of the first difference, None where no cause was searched
    notes        one sentence each
    """

    compared: int
    first: Difference | None
    others: tuple[tuple[str, int], ...]
    explanation: Explanation | None
    notes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs beyond the tolerance."""
        return self.first is None


@dataclass(frozen=True)
class Settings:
    """lsb: tolerated |difference|; seconds: for the search; partial: tensors may be missing on the other side."""

    lsb: int = 0
    seconds: float = SECONDS
    partial: bool = False


def compare(golden: Trace, other: Other, settings: Settings | None = None) -> Report:
    """Compare everything, describe and explain the first difference.

    Raises InputError for missing tensors (unless partial), other dtypes and shapes, values that are no integers;
    UsageError for traces of different models or images.
    """
    settings = settings or Settings()
    _require_same_origin(golden, other)
    present, notes = _present(golden, other, settings.partial)
    notes = [*golden.notes, *notes]
    differing: list[tuple[str, int]] = []
    first: tuple[int, str, Array, Array] | None = None
    for window, node, name in present:
        expected = golden.file.read(name)
        found, said = comparable(name, expected, other.read(name))
        notes += [note for note in said if note not in notes]
        wrong = int(differs(expected, found, settings.lsb).sum())
        if wrong:
            differing.append((name, wrong))
            first = first or (window, node, expected, found)
    if first is None:
        return Report(len(present), None, (), None, tuple(notes))
    difference = _describe(golden, other, *first, settings.lsb)
    explanation = None
    if difference.op is not None:
        explanation = cause(golden, other, difference.window, difference.node, first[3], settings.seconds, notes)
    elif difference.window < 0:
        notes.append(f"{difference.node} differs although the nodes do not: look at SPEC.md, section 7")
    elif golden.model is None:
        notes.append("no cause was searched: the model is not known; give it with -w")
    return Report(len(present), difference, tuple(differing[1:]), explanation, tuple(notes))


def _require_same_origin(golden: Trace, other: Other) -> None:
    metadata = other.metadata or {}
    for part, ours in (("model", golden.model_sha256 or _sha256(golden.model)), ("image", golden.image_sha256)):
        value = metadata.get(part)
        theirs = value.get("sha256") if isinstance(value, dict) else None
        if ours and theirs and ours != theirs:
            raise UsageError(
                f"the other side is a trace of another {part}: sha256 {str(theirs)[:12]}, expected {ours[:12]}; "
                f"trace the same {part} on both sides"
            )
    found = metadata.get("format", traces.FORMAT)
    if metadata.get("kind") == "trace" and found != traces.FORMAT:
        raise UsageError(f"the other side has trace format {found!r}, expected {traces.FORMAT}; write it again")


def _sha256(model: api.Model | None) -> str | None:
    return model.sha256 if model else None


def _present(golden: Trace, other: Other, partial: bool) -> tuple[list[tuple[int, str, str]], list[str]]:
    """(window, node, tensor name) of what is compared, in execution order, and notes about what is missing."""
    wanted = [(w, node, f"window{w}.{node}") for w in golden.windows for node in golden.nodes]
    wanted = [entry for entry in wanted if entry[2] in golden.file]
    missing = [name for _, _, name in wanted if name not in other]
    loose = isinstance(other, Arrays)
    single = isinstance(other, Arrays) and len(other.arrays) == 1
    ends = [(-1, name, name) for name in ENDS if name in golden.file and name in other]
    present = [entry for entry in wanted if entry[2] in other] + ends
    if not present or (missing and not (partial or loose)):
        hint = "compare what is there with --partial" if present else "names are window0.<node>"
        raise InputError(
            f"the other side lacks {len(missing)} tensor{'s' * (len(missing) > 1)}, the first is {missing[0]!r}; {hint}"
        )
    notes = list(other.notes) if isinstance(other, Arrays) else []
    if missing and not single:
        notes.append(f"{len(missing)} of {len(wanted)} tensors are missing on the other side, first {missing[0]}")
    return present, notes


def comparable(name: str, expected: Array, found: Array) -> tuple[Array, list[str]]:
    """The other side's tensor as integers of the golden dtype where they fit, and notes on how it was converted.

    Numbers of another dtype count by value; an axis of 1 in front is a batch of one.
    Raises InputError for another shape, NaN, infinity, values that are no integers, bytes without their sign.
    """
    found, notes = found.astype(found.dtype.newbyteorder("="), copy=False), []
    if found.shape == (1, *expected.shape):
        found = found[0]
        notes.append("tensors of the other side have a batch axis of 1 in front, which was left out")
    if found.shape != expected.shape:
        raise InputError(f"tensor {name!r} has shape {list(found.shape)}, expected {list(expected.shape)}")
    if found.dtype == expected.dtype:
        return found, notes
    exact = _whole(name, found) if found.dtype.kind == "f" else found
    low, high = INT_RANGE[expected.dtype.name]
    ends = (int(exact.min()), int(exact.max())) if exact.size else (0, 0)
    fits = low <= ends[0] and ends[1] <= high
    if not fits and (ends[1] >= 2**63 or (exact.dtype.kind == "u" and exact.itemsize == expected.itemsize)):
        raise InputError(
            f"tensor {name!r} is {found.dtype} with values to {ends[1]}, expected {expected.dtype}: give them signs"
        )
    notes.append(f"tensors of the other side are {found.dtype}; all values are integers and were converted exactly")
    return exact.astype(expected.dtype if fits else np.int64), notes


def _whole(name: str, found: Array) -> Array:
    """Floats as the integers that they are. Raises InputError."""
    bad = ~np.isfinite(found)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"tensor {name!r} is {found.dtype} and holds {found[at]} at {list(at)}, expected integers")
    bad = (np.trunc(found) != found) | (np.abs(found) >= 2**53)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"tensor {name!r} is {found.dtype} and holds {found[at]} at {list(at)}, expected integers; "
            "give the quantized values, not the real ones"
        )
    return found.astype(np.int64)


def differs(expected: Array, found: Array, lsb: int) -> Array:
    """bool, where |found - expected| is above `lsb`."""
    if lsb == 0:
        return np.asarray(expected != found)
    return np.asarray(np.abs(expected.astype(np.int64) - found.astype(np.int64)) > lsb)


def _describe(
    golden: Trace, other: Other, window: int, node: str, expected: Array, found: Array, lsb: int
) -> Difference:
    wrong = differs(expected, found, lsb)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    delta = found.astype(np.int64)[wrong] - expected.astype(np.int64)[wrong]
    values = int(expected[index]), int(found[index])
    scale = golden.scale(node) if window >= 0 else None
    known = node_of(golden, node) if window >= 0 else None
    return Difference(
        window=window,
        node=node,
        op=known.op if known else None,
        dtype=expected.dtype.name,
        shape=expected.shape,
        index=index,
        expected=values[0],
        found=values[1],
        reals=(traces.real(scale, index, values[0]), traces.real(scale, index, values[1])),
        count=len(delta),
        size=expected.size,
        histogram=_histogram(delta),
        largest=int(np.abs(delta).max()),
        pattern=pattern(wrong),
        register=_register(golden, other, window, node) if window >= 0 else None,
    )


def _histogram(delta: Array) -> tuple[tuple[str, int], ...]:
    """Single values where they are few, else ranges of powers of two."""
    values, counts = np.unique(delta, return_counts=True)
    if len(values) <= _MAX_BARS:
        order = np.argsort(-counts, kind="stable")
        return tuple((f"{int(values[i]):+d}", int(counts[i])) for i in order)
    bars: dict[str, int] = {}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        top = abs(value).bit_length()
        low, high = (1 << (top - 1)), (1 << top) - 1
        label = f"{'+' if value > 0 else '-'}{low}" + (f"..{high}" if high > low else "")
        bars[label] = bars.get(label, 0) + count
    return tuple(bars.items())


def pattern(wrong: Array) -> str:
    """Where the differing elements lie: all, one index of an axis, some rows, multiples."""
    if wrong.all():
        return "every element"
    words = []
    for axis, size in enumerate(wrong.shape):
        other_axes = tuple(i for i in range(wrong.ndim) if i != axis)
        hit = np.flatnonzero(wrong.any(axis=other_axes))
        if size > 1 and len(hit) < size and (found := _indices(hit, size)):
            words.append(f"axis {axis} {found}")
    return ", ".join(words) or "spread over all axes"


def _indices(hit: Array, size: int) -> str:
    """The indices in words, "" where there is nothing to see in them."""
    if len(hit) == 1:
        return f"only at {hit[0]} of 0..{size - 1}"
    step = np.diff(hit)
    if (step == 1).all():
        return f"only {hit[0]}..{hit[-1]} of 0..{size - 1}"
    if (step == step[0]).all():
        return f"only {hit[0]}, {hit[1]}, ..., {hit[-1]} (every {step[0]}) of 0..{size - 1}"
    return f"{len(hit)} of {size} indices" if 2 * len(hit) <= size else ""


def _register(golden: Trace, other: Other, window: int, node: str) -> tuple[str, tuple[int, ...], int, int] | None:
    """The first register of a node that differs, where both sides hold it in the same form."""
    for name in golden.registers(node):
        key = f"window{window}.{node}{SEPARATOR}{name}"
        if key not in golden.file or key not in other:
            continue
        expected, found = golden.file.read(key), other.read(key)
        if expected.shape == found.shape and (expected != found).any():
            at = tuple(int(i) for i in np.unravel_index(int(np.argmax(expected != found)), expected.shape))
            return name, at, int(expected[at]), int(found[at])
    return None
