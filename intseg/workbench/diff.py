"""The first wrong bit and why: a golden trace against what another implementation gave.

Nodes are compared in execution order, window by window. The first one that differs is described, and recomputed from
the golden inputs under hypotheses (intseg/workbench/mistakes.py) until one gives exactly what the other side has.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intseg import api, files
from intseg.arith import INT_RANGE
from intseg.errors import InputError, UsageError
from intseg.graph import IMAGE, Node
from intseg.images.decode import SUFFIXES
from intseg.ops import RUN, Array, Call
from intseg.workbench import trace as traces
from intseg.workbench.dump import MANIFEST, Folder, Options, _decode, _exact, open_folder, read_npy, read_npz
from intseg.workbench.registers import evaluate
from intseg.workbench.search import SECONDS, Explanation, explain, explain_upstream
from intseg.workbench.trace import SEPARATOR, TensorFile, Trace

TEXTS = {".hex": "hex", ".mem": "mem", ".bin": "bin"}
ENDS = ("merged", "labels")
"""What is compared after the nodes where both sides have it."""

_MAX_BARS = 15


# ------------------------------------------------------------------------------------------------------ other side


class Other(Protocol):
    """What the other implementation gave: arrays of any dtype by tensor name."""

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """What the writer said about model and image, None where it said nothing."""

    def __contains__(self, name: object) -> bool: ...

    def read(self, name: str) -> Array:
        """A tensor."""


@dataclass
class _Folder:
    """A dump folder, or a folder of npy files."""

    folder: Folder
    metadata: Mapping[str, Any] | None = field(init=False)

    def __post_init__(self) -> None:
        self.metadata = self.folder.metadata

    def __contains__(self, name: object) -> bool:
        return name in self.folder.tensors

    def read(self, name: str) -> Array:
        return self.folder.read(name)


@dataclass
class _Arrays:
    """Arrays in memory: what a simulator happened to write, seldom every node.

    notes  what was found beside them
    """

    arrays: Mapping[str, Array]
    metadata: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def read(self, name: str) -> Array:
        return self.arrays[name]


@dataclass(frozen=True)
class Words:
    """How numbers lie in hex, mem and bin files without a manifest: one a word.

    width     bits of a word; 0 for those of the golden dtype
    unsigned  whether negative numbers were filled up with zeros, not with their sign
    """

    width: int = 0
    unsigned: bool = False


def open_other(
    path: str | os.PathLike[str], golden: Trace, node: str | None = None, window: int = 0, words: Words | None = None
) -> Other:
    """The other side: a trace, a folder of `intseg dump`, of npy, hex, mem or bin files, an npz, or one tensor.

    node, window  which tensor a single file holds; by default the one of the file's name
    words         of hex, mem and bin files without a manifest
    Raises InputError when it cannot be read, UsageError when it is not known what a file holds.
    """
    source = Path(path)
    if source.is_dir():
        if (source / MANIFEST).exists():
            return _Folder(open_folder(source))
        return _bare_folder(source, golden, words or Words())
    if source.suffix == ".npz":
        return _Arrays(_load_npz(source, golden))
    if source.suffix in (".npy", *TEXTS):
        name = f"window{window}.{node}" if node else _full(source.stem)
        return _Arrays({name: _load_single(source, name, golden, words or Words())})
    return TensorFile(source)


def _bare_folder(folder: Path, golden: Trace, words: Words) -> _Arrays:
    """A folder without a manifest: files that are named like their nodes. Others are left aside, and counted."""
    found = [file for file in sorted(folder.iterdir()) if file.suffix in (".npy", *TEXTS)]
    known = {file: _full(file.stem) for file in found if _full(file.stem) in golden.file}
    if not known:
        hint = f"found {len(found)}, such as {found[0].name}" if found else "found none"
        wanted = f"{golden.nodes[0]}.hex"
        raise InputError(
            f"{folder}: holds neither {MANIFEST} nor npy, hex, mem or bin files named like nodes ({hint}, expected "
            f"such as {wanted})"
        )
    aside = [file.name for file in found if file not in known]
    notes = (f"left aside, not named like a node: {len(aside)}, the first is {aside[0]}",) if aside else ()
    return _Arrays({name: _load_single(file, name, golden, words) for file, name in known.items()}, None, notes)


def _full(name: str) -> str:
    """A node's name stands for its tensor in window 0."""
    return name if name in ENDS or name.startswith("window") else f"window0.{name}"


def _load_npy(path: Path) -> Array:
    data = files.read(path, "", "expected a npy file")
    try:
        return read_npy(data)
    except InputError as error:
        raise InputError(f"{path}: is not a npy file: {error}") from None


def _load_npz(path: Path, golden: Trace) -> dict[str, Array]:
    """The arrays of tensors that the golden side has, by the names of these."""
    limits = {name: 8 * math.prod(golden.file.kind(name)[1]) for name in golden.file.names()}
    short = {name.removeprefix("window0."): limit for name, limit in limits.items()}
    try:
        return {_full(name): array for name, array in read_npz(path, {**short, **limits}).items()}
    except InputError as error:
        raise InputError(f"{path}: is not a npz file: {error}") from None


def _load_single(path: Path, name: str, golden: Trace, words: Words) -> Array:
    """One tensor; without a manifest its text is one element a word, in the dtype and shape of the golden tensor."""
    if name not in golden.file:
        raise UsageError(f"{path}: the golden trace holds no tensor {name!r}; say which node it is with --node")
    if path.suffix == ".npy":
        return _load_npy(path)
    dtype, shape = golden.file.kind(name)
    data = files.read(path, "", "expected one tensor")
    try:
        if not words.width:
            return _decode(data, TEXTS[path.suffix], dtype, shape, Options())
        values = _decode(data, TEXTS[path.suffix], "int64", shape, Options(words.width))
        return _narrowed(values & ((1 << words.width) - 1), dtype) if words.unsigned else _exact(values, dtype)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _narrowed(values: Array, dtype: str) -> Array:
    """Words filled up with zeros, int64 from 0 up, as their low bits say. Raises InputError if others are set."""
    bits = 8 * np.dtype(dtype).itemsize
    if values.size and int(values.max()) >> bits:
        raise InputError(f"value {values.max()} does not fit {dtype}; another --width?")
    return values.astype(f"uint{bits}").view(dtype)


def open_golden(path: str | os.PathLike[str], weights: str | None) -> Trace:
    """The golden side: a trace, or an image that is traced now with the model of `weights` (NumPy, the definition)."""
    if Path(path).suffix.lower() not in SUFFIXES:
        return traces.open_trace(path, weights)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "golden.safetensors"
        model = api.load(weights)
        traced = traces.write(target, path, model)
        file = TensorFile(target)
        held = {name: file.read(name) for name in file.names()}
    golden = Trace(_Held(file, held), model)
    golden.notes = tuple(f"{path}: {note}" for note in traced.notes)
    return golden


class _Held(TensorFile):
    """A tensor file whose tensors are in memory: the file itself may be gone."""

    def __init__(self, file: TensorFile, held: Mapping[str, Array]) -> None:
        self.path, self.metadata, self.entries, self._file = file.path, file.metadata, file.entries, file._file
        self.held = held

    def read(self, name: str) -> Array:
        return self.held[name]


# ------------------------------------------------------------------------------------------------------ comparison


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
        found, note = comparable(name, expected, other.read(name))
        notes += [note] if note and note not in notes else []
        wrong = int(_differs(expected, found, settings.lsb).sum())
        if wrong:
            differing.append((name, wrong))
            first = first or (window, node, expected, found)
    if first is None:
        return Report(len(present), None, (), None, tuple(notes))
    difference = _describe(golden, other, *first, settings.lsb)
    explanation = None
    if difference.op is not None:
        explanation = _cause(golden, other, difference, first[3], settings, notes)
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
    loose = isinstance(other, _Arrays)
    single = isinstance(other, _Arrays) and len(other.arrays) == 1
    ends = [(-1, name, name) for name in ENDS if name in golden.file and name in other]
    present = [entry for entry in wanted if entry[2] in other] + ends
    if not present or (missing and not (partial or loose)):
        hint = "compare what is there with --partial" if present else "names are window0.<node>"
        raise InputError(f"the other side lacks {len(missing)} tensors, the first is {missing[0]!r}; {hint}")
    notes = list(other.notes) if isinstance(other, _Arrays) else []
    if missing and not single:
        notes.append(f"{len(missing)} of {len(wanted)} tensors are missing on the other side, first {missing[0]}")
    return present, notes


def comparable(name: str, expected: Array, found: Array) -> tuple[Array, str]:
    """The other side's tensor as integers of the golden dtype where they fit, and a note if it was converted.

    Raises InputError for another integer dtype, another shape, NaN, infinity, or values that are no integers.
    """
    found = found.astype(found.dtype.newbyteorder("="), copy=False)
    if found.shape != expected.shape:
        raise InputError(f"tensor {name!r} has shape {list(found.shape)}, expected {list(expected.shape)}")
    if found.dtype == expected.dtype:
        return found, ""
    if found.dtype.kind != "f":
        raise InputError(f"tensor {name!r} is {found.dtype}, expected {expected.dtype}; convert it")
    if not np.isfinite(found).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(found))[0])
        raise InputError(f"tensor {name!r} is {found.dtype} and holds {found[at]} at {list(at)}, expected integers")
    whole = np.trunc(found)
    if not np.array_equal(whole, found) or (np.abs(found) >= 2**53).any():
        at = tuple(int(i) for i in np.argwhere((whole != found) | (np.abs(found) >= 2**53))[0])
        raise InputError(
            f"tensor {name!r} is {found.dtype} and holds {found[at]} at {list(at)}, expected integers; "
            "give the quantized values, not the real ones"
        )
    exact = found.astype(np.int64)
    low, high = INT_RANGE[expected.dtype.name]
    fits = not exact.size or (low <= int(exact.min()) and int(exact.max()) <= high)
    note = f"tensors of the other side are {found.dtype}; all values are integers and were converted exactly"
    return (exact.astype(expected.dtype) if fits else exact), note


def _differs(expected: Array, found: Array, lsb: int) -> Array:
    if lsb == 0:
        return np.asarray(expected != found)
    return np.asarray(np.abs(expected.astype(np.int64) - found.astype(np.int64)) > lsb)


def _describe(
    golden: Trace, other: Other, window: int, node: str, expected: Array, found: Array, lsb: int
) -> Difference:
    wrong = _differs(expected, found, lsb)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    delta = found.astype(np.int64)[wrong] - expected.astype(np.int64)[wrong]
    values = int(expected[index]), int(found[index])
    scale = golden.scale(node) if window >= 0 else None
    known = _node(golden, node) if window >= 0 else None
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


def _node(golden: Trace, name: str) -> Node | None:
    if golden.model is None:
        return None
    return next((node for node in golden.model.graph.nodes if node.name == name), None)


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


# ----------------------------------------------------------------------------------------------------------- cause


def call_of(golden: Trace, window: int, node: Node) -> Call | None:
    """The call that a node is in a window, from golden values; None where the trace lacks one of its inputs."""
    assert golden.model is not None
    graph, values = golden.model.graph, {}
    for name in node.inputs:
        if name in graph.tensors:
            continue
        value = golden.value(window, name)
        if value is None:
            return None
        values[name] = value
    inputs, params = graph.arguments(node, values)
    scale = golden.scale(node.inputs[0]) if node.inputs[0] != IMAGE else None
    return Call(node.op, inputs, params, node.attrs, scale)


def _cause(
    golden: Trace, other: Other, first: Difference, found: Array, settings: Settings, notes: list[str]
) -> Explanation | None:
    """Search for the cause of the first difference; None, with a note, where that is not possible."""
    node = _node(golden, first.node)
    assert node is not None
    call = call_of(golden, first.window, node)
    if call is None:
        notes.append(
            f"no cause was searched: the golden trace lacks an input of {node.name} ({', '.join(node.inputs)})"
        )
        return None
    expected = golden.value(first.window, node.name)
    if expected is not None and not np.array_equal(evaluate(call), expected):
        notes.append(
            f"the golden trace does not follow the definition at {node.name}: recomputed from its own inputs the "
            "node comes out differently; no cause was searched"
        )
        return None
    unseen = _unseen(golden, other, first.window, node)
    if not unseen:
        return explain(call, found, settings.seconds)
    names = ", ".join(["..."] * (len(unseen) > 3) + [one.name for one in unseen[-3:]])
    notes.append(
        f"the other side lacks {len(unseen)} nodes directly before {node.name} ({names}): "
        "the first wrong bit may lie in one of them"
    )
    return _cause_with_unseen(golden, first, call, found, unseen, settings.seconds)


def _unseen(golden: Trace, other: Other, window: int, node: Node) -> list[Node]:
    """Nodes before `node`, in execution order, that lead to it through nodes which the other side does not show."""
    assert golden.model is not None
    nodes = {one.name: one for one in golden.model.graph.nodes}
    found: dict[str, Node] = {}
    queue = list(node.inputs)
    while queue:
        name = queue.pop()
        if name in nodes and name not in found and f"window{window}.{name}" not in other:
            found[name] = nodes[name]
            queue += nodes[name].inputs
    return [one for one in golden.model.graph.nodes if one.name in found]


def _cause_with_unseen(
    golden: Trace, first: Difference, call: Call, found: Array, unseen: list[Node], seconds: float
) -> Explanation:
    """One mistake in the node, one in an unseen node before it (the nearest first), two in the node."""
    deadline = time.monotonic() + seconds
    alone = explain(call, found, seconds / 4, pairs=False)
    tried = alone.tried
    if alone.matches:
        return alone
    for node in reversed(unseen):
        left = deadline - time.monotonic()
        upstream = call_of(golden, first.window, node)
        if left <= 0 or upstream is None:
            break
        leads = functools.partial(_leads_to, golden, first.window, node, first.node, found)
        explanation, count = explain_upstream(upstream, node.name, leads, left)
        tried += count
        if explanation is not None:
            return explanation
    rest = explain(call, found, max(deadline - time.monotonic(), 0.0))
    return dataclasses.replace(rest, tried=tried + rest.tried)


def _leads_to(golden: Trace, window: int, node: Node, target: str, found: Array, result: Array) -> bool:
    """Whether `result` at a node leads to `found` at a later one, everything between following the definition."""
    assert golden.model is not None
    graph, values = golden.model.graph, {node.name: result}
    for later in graph.nodes:
        if not values.keys() & set(later.inputs):
            continue
        for name in later.inputs:
            if name not in values and name not in graph.tensors:
                golden_value = golden.value(window, name)
                if golden_value is None:
                    return False
                values[name] = golden_value
        inputs, params = graph.arguments(later, values)
        values[later.name] = RUN[later.op](*inputs, **params, **later.attrs)
        if later.name == target:
            return np.array_equal(values[target], found)
    return False


# ---------------------------------------------------------------------------------------------------------- output


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
        yield f"after it, {len(report.others)} more tensors differ"


def _explanation_lines(report: Report) -> Iterator[str]:
    found = report.explanation
    if found is None:
        return
    if found.matches:
        where = f"the unseen node {found.node}" if found.node else "the node"
        yield f"cause: recomputing {where} from the golden inputs reproduces the other side exactly with"
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
