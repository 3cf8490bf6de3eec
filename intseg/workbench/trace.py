"""Trace files: every intermediate of an image, and the inside of the ops, in one safetensors file of integers.

    image                     uint8 [H, W, 3]     the decoded pixels
    corners                   int32 [windows, 2]  (top, left) of the windows
    window{i}.image           uint8 [h, w, 3]     what the graph was run on
    window{i}.{node}          output of a node
    window{i}.{node}--{name}  a register of it (intseg/workbench/registers.py)
    scale.{node}              int32 [3, ...]      mult, offset, shift: real = (q * mult + offset) * 2^-shift
    merged, labels            scores of the whole image (SPEC.md, section 7), class of every pixel

The metadata key "intseg" holds canonical JSON: format, kind, model, image, windows, nodes in execution order and
registers. The file is written as the values come, so a trace of any size needs the memory of one node.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from intseg import api, backends, files, models, store
from intseg.arith import INT_RANGE
from intseg.errors import InputError, IntsegError, MismatchError, ModelError, UsageError
from intseg.executor import execute
from intseg.graph import IMAGE, Graph, Node
from intseg.images import decode as pictures
from intseg.ops import MOVERS, RUN, Array, Call
from intseg.packing import pack, unpack
from intseg.prove import prove
from intseg.store import KEY, MAX_FILE, NAME
from intseg.windows import cut_windows, merge_scores, tile
from intseg.workbench.registers import steps

FORMAT = 1
SEPARATOR = "--"
"""Between the name of a node and that of a register."""

_CODES = {
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_MAX_HEADER = 100 * 2**20
_MAX_RANK = 8
_ENTRY = 120
"""Bytes of a header entry beside its name, at most: dtype, four extents, two offsets below 2^40, punctuation."""


# ---------------------------------------------------------------------------------------------------------- files


class Writer(files.Replacement):
    """A safetensors file written tensor by tensor; it appears whole at the end of the `with` block, or not at all.

    Raises InputError when it cannot be written.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any] | None, names: Sequence[str]) -> None:
        """`names` are all tensors that will be put, at least: their header entries have to fit the space left."""
        super().__init__(path)
        self.metadata = metadata
        self.packed = store.packed_entries((metadata or {}).get("packed", {}))
        self.entries: dict[str, dict[str, Any]] = {}
        self.end = 0
        text = 0 if metadata is None else 2 * len(_canonical(metadata))
        self.reserved = -(-(text + 100 + sum(len(name) + _ENTRY for name in names)) // 8) * 8

    def __enter__(self) -> Self:
        super().__enter__()
        self.seek(8 + self.reserved)
        return self

    def put(self, name: str, array: Array) -> None:
        """Append a tensor, packed where the metadata says so."""
        data = store.little(pack(array, self.packed[name][0]) if name in self.packed else array)
        if self.end + data.nbytes > MAX_FILE:
            raise UsageError(f"{self.path}: larger than {MAX_FILE} bytes; trace fewer nodes with --nodes")
        self.write(data.tobytes())
        offsets = [self.end, self.end + data.nbytes]
        code = _CODES[data.dtype.name]
        self.entries[name] = {"dtype": code, "shape": list(data.shape), "data_offsets": offsets}
        self.end = offsets[1]

    def finish(self) -> None:
        """Write the header into the space that was left for it."""
        header: dict[str, Any] = {} if self.metadata is None else {"__metadata__": {KEY: _canonical(self.metadata)}}
        data = json.dumps(header | self.entries, separators=(",", ":"), ensure_ascii=True).encode()
        self.seek(0)
        self.write(self.reserved.to_bytes(8, "little") + data.ljust(self.reserved))


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    offset: int


class TensorFile:
    """A safetensors file of any origin, read one tensor at a time. Floats are read too: `intseg diff` has to name them.

    Raises InputError when it cannot be read or is not such a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = files.opened(path, "", "give a file written by intseg trace")
        try:
            size = os.fstat(self._file.fileno()).st_size
            length = int.from_bytes(self._file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                bad = _whose(self._file.read(_BEGINNING))
                raise bad(f"{path}: not a safetensors file, or truncated; write it again")
            self.metadata, self.entries = _parse_header(self.path, self._bytes(8, length), size - 8 - length)
        except BaseException:
            self._file.close()
            raise
        self._start = 8 + length
        try:
            self.packed = store.packed_entries((self.metadata or {}).get("packed", {}))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None

    def close(self) -> None:
        """Let the file be replaced or removed where an open one cannot be."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    def _bytes(self, start: int, count: int) -> bytes:
        """A part of the file that was opened, whatever has its name now."""
        try:
            self._file.seek(start)
            data = self._file.read(count)
        except OSError as error:
            raise InputError(f"{self.path}: cannot read: {error.strerror}; write it again") from None
        if len(data) != count:
            raise InputError(f"{self.path}: was truncated while it was read; write it again, then compare")
        return data

    def names(self) -> list[str]:
        """Names of the tensors, in file order."""
        return list(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape of a tensor, without reading it; of a packed one those that it is unpacked to (SPEC 6.1)."""
        if name in self.packed:
            return "int8", self.packed[name][1]
        return self.entries[name].dtype, self.entries[name].shape

    def read(self, name: str) -> Array:
        """A tensor."""
        entry = self.entries[name]
        dtype, count = np.dtype(entry.dtype), math.prod(entry.shape)
        data = self._bytes(self._start + entry.offset, count * dtype.itemsize)
        found = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(entry.shape)
        if name not in self.packed:
            return found
        bits, shape = self.packed[name]
        try:
            return unpack(found, shape, bits)
        except ValueError as error:
            raise ModelError(f"{self.path}: packed tensor {name!r}: {error}; export the model again") from None


_BEGINNING = 200
"""Bytes of a header in which a model's says that it is one: its keys are sorted."""


def _whose(beginning: bytes) -> type[IntsegError]:
    """The error of a file that cannot be read to its end: a model's, or that of any other file."""
    return ModelError if b"graph_sha256" in beginning else InputError


def _parse_header(path: Path, header: bytes, size: int) -> tuple[dict[str, Any] | None, dict[str, _Entry]]:
    """Metadata under the key "intseg" (None without one) and the entries by name, checked against the file's size."""
    try:
        document = json.loads(header, object_pairs_hook=_no_duplicates)
        text = document.pop("__metadata__", {}).get(KEY)
        metadata = None if text is None else files.parse_json(text)
        entries = {name: _entry(name, value) for name, value in document.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        bad = _whose(header[:_BEGINNING])
        raise bad(f"{path}: not a safetensors file of intseg ({error}); write it again") from None
    bad = ModelError if isinstance(metadata, dict) and "info" in metadata else InputError  # whose file it is
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.offset):
        if entry.offset != end:
            raise bad(f"{path}: tensors overlap or leave gaps at byte {entry.offset}; write it again")
        end += math.prod(entry.shape) * np.dtype(entry.dtype).itemsize
    if end != size:
        raise bad(f"{path}: tensors take {end} bytes, the file holds {size}: truncated; write it again")
    if metadata is not None and not isinstance(metadata, dict):
        raise InputError(f"{path}: metadata is not a JSON object; write it again")
    return metadata, entries


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _entry(name: str, value: Any) -> _Entry:
    shape, (start, stop) = tuple(value["shape"]), value["data_offsets"]
    if not NAME.fullmatch(name):
        raise ValueError(f"tensor name {name[:80]!r}, expected letters, digits, '_', '.', '-'")
    if value["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {name!r} is {value['dtype']}, expected one of {', '.join(_DTYPES)}")
    if len(shape) > _MAX_RANK or any(type(n) is not int or not 0 <= n < 2**40 for n in (*shape, start, stop)):
        raise ValueError(f"tensor {name!r} has shape {list(shape)}")
    if stop - start != math.prod(shape) * np.dtype(_DTYPES[value["dtype"]]).itemsize:
        raise ValueError(f"tensor {name!r} has {stop - start} bytes for {value['dtype']} {list(shape)}")
    return _Entry(_DTYPES[value["dtype"]], shape, start)


# --------------------------------------------------------------------------------------------------------- scales


def scales(graph: Graph) -> dict[str, Array]:
    """node -> int32 [3, ...] (mult, offset, shift) that broadcasts over its output, for every node where it is known.

    Nodes that only move values mean what their inputs mean: their scales are moved the same way.
    """
    found: dict[str, Array] = {}
    for node in graph.nodes:
        if node.scale is not None:
            found[node.name] = graph.tensors[node.scale]
        elif node.op in MOVERS and (moved := _moved_scale(graph, node, found)) is not None:
            found[node.name] = moved
    return found


def _moved_scale(graph: Graph, node: Node, found: Mapping[str, Array]) -> Array | None:
    known = [found[name] for name in node.inputs if name in found]
    if not known:
        return None
    shapes = {n.name: n.shape for n in graph.nodes} | {name: t.shape for name, t in graph.tensors.items()}
    try:
        planes = [
            [np.broadcast_to(found.get(name, known[0])[i], shapes[name]) for name in node.inputs] for i in range(3)
        ]
    except ValueError:  # a constant without scale beside an input whose scale varies by row
        return None
    return _compressed(np.stack([RUN[node.op](*inputs, **node.attrs) for inputs in planes]))


def _compressed(scale: Array) -> Array:
    """Axes along which a scale is constant, but the first, reduced to one element."""
    for axis in range(1, scale.ndim):
        first = scale.take([0], axis=axis)
        if (scale == first).all():
            scale = first
    return np.ascontiguousarray(scale)


def real(scale: Array | None, index: tuple[int, ...], q: int) -> float | None:
    """The real number q stands for at an index of its tensor: (q * mult + offset) * 2^-shift, None if too large."""
    if scale is None:
        return None
    mult, offset, shift = (int(np.asarray(plane)[_clamped(index, plane.shape)]) for plane in scale)
    try:
        return math.ldexp(q * mult + offset, -shift)
    except OverflowError:
        return None


def _clamped(index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(i, n - 1) for i, n in zip(index, shape, strict=True))


# --------------------------------------------------------------------------------------------------------- tracing


@dataclass(frozen=True)
class Traced:
    """What `write` wrote: windows, tensors, bytes of the file, notes on the decoding of the image."""

    windows: int
    tensors: int
    size: int
    notes: tuple[str, ...]


def write(
    path: str | os.PathLike[str],
    image: str | os.PathLike[str] | Array,
    model: api.Model,
    pattern: str = "*",
    with_registers: bool = False,
    backend: str = "numpy",
) -> Traced:
    """Run an image and write a trace file.

    image           as `intseg.run` takes it
    pattern         names of nodes as fnmatch patterns, joined by commas
    with_registers  also the registers of every traced node; they are recomputed step by step and must end in its output
    Raises InputError for the image or the file, UsageError when no node matches, MismatchError (a bug of intseg) when
    the steps and the backend disagree. Nothing is written then.
    """
    picture = pictures.decode(image, model.info.pad)
    nodes = [node for node in model.graph.nodes if any(fnmatch.fnmatchcase(node.name, p) for p in pattern.split(","))]
    if not nodes:
        raise UsageError(f"no node matches {pattern!r}, expected names such as {model.graph.nodes[-1].name!r}")
    windows = list(cut_windows(picture.rgb, model.info))
    names = {proof.name: proof.kept for proof in prove(model.graph)} if with_registers else {}
    kept = {node.name: names.get(node.name, ()) for node in nodes}
    metadata = _metadata(model, picture.rgb, [corner for corner, _ in windows], kept)
    with Writer(Path(path), metadata, _names(kept, len(windows))) as writer:
        writer.put("image", picture.rgb)
        writer.put("corners", np.array([corner for corner, _ in windows], np.int32))
        known = scales(model.graph)
        for name in kept:
            if name in known:
                writer.put(f"scale.{name}", known[name])
        scores = [_trace_window(writer, i, window, model, kept, backend) for i, (_, window) in enumerate(windows)]
        merged = merge_scores(scores, tile(model.info, *picture.rgb.shape[:2]), model.info)
        writer.put("merged", merged)
        height, width, _ = picture.rgb.shape
        writer.put("labels", backends.labels(merged, model.info, height, width, backend, 1))
    return Traced(len(windows), len(writer.entries), Path(path).stat().st_size, picture.notes)


def _names(kept: Mapping[str, tuple[str, ...]], windows: int) -> list[str]:
    """The tensors of a trace."""
    names = ["image", "corners", "merged", "labels", *(f"scale.{node}" for node in kept)]
    for i in range(windows):
        names.append(f"window{i}.{IMAGE}")
        for node, inside in kept.items():
            names += [f"window{i}.{node}{SEPARATOR}{name}" for name in inside] + [f"window{i}.{node}"]
    return names


def _metadata(
    model: api.Model, rgb: Array, corners: Sequence[tuple[int, int]], kept: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": "trace",
        "model": {"name": model.info.name, "sha256": model.sha256},
        "image": {"shape": list(rgb.shape), "sha256": hashlib.sha256(np.ascontiguousarray(rgb).tobytes()).hexdigest()},
        "windows": [list(corner) for corner in corners],
        "nodes": list(kept),
        "registers": {node: list(names) for node, names in kept.items() if names},
    }


def _trace_window(
    writer: Writer, i: int, window: Array, model: api.Model, kept: Mapping[str, tuple[str, ...]], backend: str
) -> Array:
    """Run one window and put what is kept. Returns the scores."""
    graph, values = model.graph, {IMAGE: window}
    position = {node.name: k for k, node in enumerate(graph.nodes)}

    def on_node(node: Node, value: Array) -> None:
        values[node.name] = value
        if node.name in kept:
            if kept[node.name]:
                _put_registers(writer, f"window{i}.{node.name}", graph, node, values)
            writer.put(f"window{i}.{node.name}", value)
        for name in (*node.inputs, node.name):
            if graph.last_use[name] <= position[node.name]:
                values.pop(name, None)

    writer.put(f"window{i}.{IMAGE}", window)
    return execute(graph, window, backends.table(backend), on_node)


def _put_registers(writer: Writer, prefix: str, graph: Graph, node: Node, values: Mapping[str, Array]) -> None:
    inputs, params = graph.arguments(node, values)
    found = steps(Call(node.op, inputs, params, node.attrs))
    result = found.pop("result")
    if result.dtype != values[node.name].dtype or not np.array_equal(result, values[node.name]):
        raise MismatchError(f"node {node.name!r} ({node.op}): registers and backend disagree; please report it")
    for name, value in found.items():
        writer.put(f"{prefix}{SEPARATOR}{name}", value)


# --------------------------------------------------------------------------------------------------------- reading


class Trace:
    """A trace for comparison: a trace file of intseg, or one without metadata beside a model that gives the order.

    file    the tensors
    model   the model, None when it is not known
    nodes   traced nodes in execution order
    notes   what was done to decode an image that was traced for this
    """

    def __init__(self, file: TensorFile, model: api.Model | None) -> None:
        self.file, self.model = file, model
        self.notes: tuple[str, ...] = ()
        self.windows = sorted({int(n[6:].split(".")[0]) for n in file.names() if _is_window(n)})
        if not self.windows:
            raise InputError(f"{file.path}: holds no tensor named window0.<node>; give a file written by intseg trace")
        metadata = file.metadata or {}
        if metadata.get("kind", "trace") != "trace" or type(metadata.get("nodes", [])) is not list:
            raise InputError(f"{file.path}: is not a trace; give a file written by intseg trace")
        found = metadata.get("format", FORMAT)
        if found != FORMAT:
            raise InputError(f"{file.path}: trace format {found!r}, expected {FORMAT}; write it with this intseg")
        self.image_sha256 = _text(metadata, "image", "sha256")
        self.model_sha256 = _text(metadata, "model", "sha256")
        order = metadata.get("nodes") or ([n.name for n in model.graph.nodes] if model else None)
        if order is None:
            raise UsageError(f"{file.path}: says nothing about its model; give the model with -w")
        present = set(file.names())
        self.nodes = [str(name) for name in order if any(f"window{i}.{name}" in present for i in self.windows)]
        self._scales = scales(model.graph) if model else {}
        self._check_tensors()

    def _check_tensors(self) -> None:
        """Refuse tensors that cannot be what their names say: whatever uses a trace relies on it."""
        known = {} if self.model is None else {n.name: (n.dtype, n.shape) for n in self.model.graph.nodes}
        if self.model is not None:
            known[IMAGE] = "uint8", (*self.model.info.window, 3)
        ends = [(name, None) for name in ("image", "merged", "labels")]
        for key, node in ends + [(f"window{i}.{name}", name) for i in self.windows for name in (IMAGE, *self.nodes)]:
            if key not in self.file:
                continue
            dtype, shape = self.file.kind(key)
            expected = known.get(node) if node else None
            if dtype not in INT_RANGE or expected not in (None, (dtype, shape)):
                wanted = f"{expected[0]} {list(expected[1])}" if expected else "integers"
                raise InputError(f"{self.file.path}: tensor {key!r} is {dtype} {list(shape)}, expected {wanted}")
        for name in self.nodes:
            key = f"scale.{name}"
            if key in self.file and not self._is_scale(key, name):
                raise InputError(f"{self.file.path}: tensor {key!r} is no scale of its node; write it again")

    def _is_scale(self, key: str, name: str) -> bool:
        dtype, shape = self.file.kind(key)
        nodes = [self.file.kind(f"window{i}.{name}")[1] for i in self.windows if f"window{i}.{name}" in self.file]
        return dtype == "int32" and all(
            len(shape) == len(node) + 1
            and shape[0] == 3
            and all(a in (1, b) for a, b in zip(shape[1:], node, strict=True))
            for node in nodes
        )

    def value(self, window: int, name: str) -> Array | None:
        """A node's output (or "image"), None where the trace does not hold it."""
        key = f"window{window}.{name}"
        return self.file.read(key) if key in self.file else None

    def registers(self, name: str) -> list[str]:
        """Names of a node's registers in the order of computation; the trace need not hold all."""
        listed = (self.file.metadata or {}).get("registers")
        names = listed.get(name) if isinstance(listed, dict) else None
        return [str(register) for register in names] if isinstance(names, list) else []

    def scale(self, name: str) -> Array | None:
        """The scale tensor of a node."""
        if name in self._scales:
            return self._scales[name]
        return self.file.read(f"scale.{name}") if f"scale.{name}" in self.file else None


def _is_window(name: str) -> bool:
    head, _, rest = name.partition(".")
    return head.startswith("window") and head[6:].isdecimal() and bool(rest)


def _text(metadata: Mapping[str, Any], part: str, key: str) -> str | None:
    value = metadata.get(part)
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def open_trace(path: str | os.PathLike[str], weights: str | None) -> Trace:
    """A trace and, if it can be found, its model: the one of `weights`, or the bundled one of the same sha256.

    Raises InputError for the file, ModelError for the weights, UsageError when they do not belong together.
    """
    file = TensorFile(path)
    wanted = _text(file.metadata or {}, "model", "sha256")
    if weights is not None:
        model = api.load(weights)
        if wanted not in (None, model.sha256):
            raise UsageError(
                f"{path}: is a trace of the model with sha256 {str(wanted)[:12]}, {weights} has {model.sha256[:12]}; "
                "give the model it was made with"
            )
        return Trace(file, model)
    return Trace(file, None if wanted is None else _bundled(wanted))


def _bundled(sha256: str) -> api.Model | None:
    for name in models.names():
        try:
            model = api.load(name)
        except IntsegError:
            continue
        if model.sha256 == sha256:
            return model
    return None
