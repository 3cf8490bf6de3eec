"""Graph <-> one safetensors file with integers only (SPEC.md, section 6).

The file holds every tensor and, under the metadata key "intseg", the graph as canonical JSON (sorted keys, no spaces,
ASCII): two exports of the same model are the same bytes. The header is checked before anything is allocated: the
safetensors format itself admits duplicate keys, odd names and sizes of 2^62.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from intseg import files
from intseg.errors import ModelError
from intseg.files import write_atomically as write_atomically  # store.write_atomically is what others call
from intseg.graph import MAX_NODES, Graph, ModelInfo, Node, validate
from intseg.packing import pack, unpack
from intseg.prove import prove

FORMAT = 1
KEY = "intseg"
_LATER: dict[str, Any] = {"merge": "grid", "working_size": None, "task": "segmentation"}
"""Fields of info that came after the first files: not written where they have this value, which absence means."""

MAX_HEADER = 16 * 2**20
MAX_FILE = 4 * 2**30
MAX_RANK = 4
MAX_TENSORS = 2**15
DTYPES = {"I8": 1, "U8": 1, "I16": 2, "I32": 4, "I64": 8}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


def save(graph: Graph, path: str | os.PathLike[str]) -> bytes:
    """Validate and write a graph; the file appears whole or not at all. Returns the bytes written.

    Raises ModelError for an invalid graph, InputError when the path cannot be written.
    """
    data = dumps(graph)
    write_atomically(Path(path), data)
    return data


def load(path: str | os.PathLike[str]) -> Graph:
    """Read and validate a graph.

    Raises InputError when the file cannot be read, ModelError when it is not a valid model.
    """
    return parse(Path(path), read(Path(path)))


def read(path: Path) -> bytes:
    """The bytes of a weights file. Raises InputError when it cannot be read or is too large."""
    hint = "give a file written by intseg convert, or a bundled model's name (intseg inspect --list)"
    return files.read(path, "weights", hint, limit=MAX_FILE, pipes=True)


def parse(path: Path, data: bytes) -> Graph:
    """`loads`, with the file's name in front of its errors."""
    try:
        return loads(data)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def dumps(graph: Graph) -> bytes:
    """The file as bytes, canonical: equal graphs give equal bytes. Raises ModelError for what `loads` would refuse."""
    validate(graph)
    tensors = {
        name: little(pack(array, graph.packed[name]) if name in graph.packed else array)
        for name, array in sorted(graph.tensors.items())
    }
    document = {
        "format": FORMAT,
        "info": _info_to_json(graph.info),
        "nodes": [_node_to_json(node) for node in graph.nodes],
        "output": graph.output,
        "tensors_sha256": tensors_sha256(tensors),
    }
    if graph.packed:
        document["packed"] = {
            name: {"bits": bits, "shape": list(graph.tensors[name].shape)} for name, bits in graph.packed.items()
        }
    document["graph_sha256"] = _document_sha256(document)
    text = _canonical(document)
    data: bytes = safetensors.numpy.save(tensors, metadata={KEY: text})
    loads(data)
    return data


def loads(data: bytes) -> Graph:
    """A validated graph from the bytes of a file. Raises ModelError."""
    document = _parse_json(_check_header(data), "metadata")
    if not isinstance(document, dict):
        raise ModelError("metadata is not a JSON object; export the model again with intseg convert")
    other = "a trace" if document.get("kind") == "trace" else "an op case" if "op" in document else ""
    if other:
        raise ModelError(f"is {other}, expected the weights of a model; give the file that it was made with")
    found = document.get("format")
    if type(found) is not int or found != FORMAT:
        newer = type(found) is int and found > FORMAT
        raise ModelError(
            f"format version {found!r}, expected {FORMAT}: " + ("update intseg" if newer else "export the model again")
        )
    try:
        tensors = from_file(safetensors.numpy.load(data))
    except Exception as error:  # safetensors raises several types for a malformed body
        raise ModelError(f"not a safetensors file ({error}); export the model again") from None
    if document.get("tensors_sha256") != tensors_sha256(tensors):
        raise ModelError("tensors do not match their sha256: the file is damaged; download or export it again")
    if document.pop("graph_sha256", None) != _document_sha256(document):
        raise ModelError("graph does not match its sha256: the file is damaged; download or export it again")
    graph = _graph_from_json(document, tensors)
    validate(graph)
    prove(graph)
    return graph


def from_file(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays as the safetensors library reads them, in this machine's byte order (SPEC 6: files are little-endian).

    The library gives the bytes of the file under native dtypes, which is wrong on a big-endian machine. Copies, since
    its arrays are read-only views that compiled kernels with writable signatures refuse.
    """
    return {
        name: np.frombuffer(array.tobytes(), array.dtype.newbyteorder("<")).astype(array.dtype).reshape(array.shape)
        for name, array in tensors.items()
    }


def little(array: NDArray[Any]) -> NDArray[Any]:
    """The same array in C order and little-endian, as files and digests have the bytes of every array (SPEC 6)."""
    return np.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder("<"), copy=False)


def tensors_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over name, dtype, shape and little-endian bytes of every tensor, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(little(array).tobytes())
    return digest.hexdigest()


def _document_sha256(document: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of everything but the digest itself."""
    return hashlib.sha256(_canonical(document).encode()).hexdigest()


def _canonical(document: Mapping[str, Any]) -> str:
    """JSON with sorted keys, no spaces, ASCII only: equal documents are equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _check_header(data: bytes) -> str:
    """Every check that needs no tensor memory. Returns the text under the metadata key."""
    if len(data) < 8:
        raise ModelError(f"file of {len(data)} bytes, expected a safetensors file of intseg; it may be truncated")
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER or size > len(data) - 8:
        raise ModelError(f"header of {size} bytes in a file of {len(data)}: not a safetensors file, or truncated")
    header = _parse_json(data[8 : 8 + size], "header")
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or set(metadata) != {KEY} or not isinstance(metadata[KEY], str):
        raise ModelError(
            f"no {KEY!r} metadata: float weights or another program's file; convert it with intseg convert"
        )
    if len(header) > MAX_TENSORS:
        raise ModelError(f"{len(header)} tensors, expected at most {MAX_TENSORS}; export the model again")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _offset(item[1])):
        end = _check_entry(name, entry, end)
    if end != len(data) - 8 - size:
        raise ModelError(f"tensors take {end} bytes, the file holds {len(data) - 8 - size}: truncated or damaged")
    text: str = metadata[KEY]
    return text


def _offset(entry: object) -> int:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return offsets[0] if isinstance(offsets, list) and offsets and type(offsets[0]) is int else -1


def _check_entry(name: str, entry: object, start: int) -> int:
    """Check one tensor's header entry; it must begin at `start`. Returns its end."""
    if not NAME.fullmatch(name):
        raise ModelError(f"tensor name {name[:80]!r}, expected letters, digits, '_', '.', '-'")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"tensor {name!r} has a malformed header entry")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelError(f"tensor {name!r} is {dtype!r:.80}, expected integers only ({', '.join(DTYPES)})")
    if not _naturals(shape) or len(shape) > MAX_RANK or not _naturals(offsets) or len(offsets) != 2:
        raise ModelError(
            f"tensor {name!r} has shape {shape!r:.80} at {offsets!r:.80}, expected at most {MAX_RANK} axes "
            "of sizes below 2^40, and two offsets"
        )
    size = math.prod(shape) * DTYPES[dtype]
    if offsets != [start, start + size]:
        raise ModelError(f"tensor {name!r} lies at {offsets}, expected [{start}, {start + size}] for {dtype} {shape}")
    return start + size


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**40 for n in value)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ModelError(f"JSON key {key[:80]!r} appears twice")
        result[key] = value
    return result


def _refuse_float(text: str) -> Any:
    raise ModelError(f"metadata holds the number {text[:40]}, expected integers only")


def _short_integer(text: str) -> int:
    if len(text) > 20:
        raise ModelError(f"metadata holds the number {text[:40]}..., expected integers of at most 64 bits")
    return int(text)


def _parse_json(text: str | bytes, what: str) -> Any:
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_short_integer,
            parse_float=_refuse_float,
            parse_constant=_refuse_float,
        )
        files.require_shallow(value)
    except (ValueError, RecursionError):
        raise ModelError(f"{what} is not JSON: not an intseg model, or damaged") from None
    return value


def _info_to_json(info: ModelInfo) -> dict[str, Any]:
    return {name: value for name, value in vars(info).items() if name not in _LATER or value != _LATER[name]}


def _node_to_json(node: Node) -> dict[str, Any]:
    return {name: getattr(node, name) for name in Node.__dataclass_fields__} | {
        "params": dict(node.params),
        "attrs": dict(node.attrs),
    }


def _graph_from_json(document: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Graph:
    expected = {"format", "info", "nodes", "output", "tensors_sha256"}
    document = _with_keys(document, {*expected, "packed"}, "metadata", {"packed": {}})
    tensors, packed = _unpacked(document["packed"], tensors)
    if not isinstance(document["nodes"], list):
        raise ModelError("metadata: nodes is not a list")
    if len(document["nodes"]) > MAX_NODES:
        raise ModelError(f"{len(document['nodes'])} nodes, expected at most {MAX_NODES}; export the model again")
    nodes = tuple(_node_from_json(entry) for entry in document["nodes"])
    return Graph(nodes, tensors, _typed(document, "output", str, "metadata"), _info_from_json(document["info"]), packed)


def packed_entries(entries: object) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Bits and shapes that a document's `packed` states, by tensor. Raises ModelError."""
    found = {}
    for name, entry in _typed({"packed": entries}, "packed", dict, "metadata").items():
        where = f"metadata: packed tensor {name!r:.80}"
        entry = _with_keys(entry, ("bits", "shape"), where)
        bits, shape = _typed(entry, "bits", int, where), _list_of(entry, "shape", int, where)
        if len(shape) > MAX_RANK or not all(0 <= n < 2**40 for n in shape):
            raise ModelError(f"{where} has shape {list(shape)!r:.80}, expected at most {MAX_RANK} axes below 2^40")
        found[name] = bits, shape
    return found


def _unpacked(entries: object, tensors: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """The tensors as a graph has them, and the bits of those that were packed (SPEC 6.1). Raises ModelError."""
    found, packed = dict(tensors), packed_entries(entries)
    for name, (bits, shape) in packed.items():
        if name not in tensors:
            raise ModelError(f"metadata: packed tensor {name!r:.80} is not in the file; export the model again")
        try:
            found[name] = unpack(tensors[name], shape, bits)
        except ValueError as error:
            raise ModelError(f"metadata: packed tensor {name!r:.80}: {error}; export the model again") from None
    return found, {name: bits for name, (bits, _) in packed.items()}


def _with_keys(
    entry: object, expected: Iterable[str], where: str, otherwise: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An object of exactly these keys, those of `otherwise` where they lack. Raises ModelError."""
    if not isinstance(entry, dict):
        raise ModelError(f"{where} is {entry!r:.80}, expected an object with keys {', '.join(expected)}")
    entry = {**(otherwise or {}), **entry}
    wrong = [f"lacks {', '.join(missing)}"] if (missing := sorted(set(expected) - set(entry))) else []
    wrong += [f"has the unknown {', '.join(more)[:200]}"] if (more := sorted(set(entry) - set(expected))) else []
    if wrong:
        raise ModelError(f"{where} {' and '.join(wrong)}, expected keys {', '.join(sorted(expected))}")
    return entry


def _typed(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = entry.get(key)
    if type(value) is not kind:
        raise ModelError(f"{where}: {key} is {value!r:.80}, expected {kind.__name__}")
    return value


def _list_of(entry: dict[str, Any], key: str, kind: type, where: str, count: int | None = None) -> tuple[Any, ...]:
    value = _typed(entry, key, list, where)
    if count not in (None, len(value)):
        raise ModelError(f"{where}: {key} is {value!r:.80}, expected a list of {count} of {kind.__name__}")
    for i, item in enumerate(value):
        if type(item) is not kind:
            raise ModelError(f"{where}: {key}[{i}] is {item!r:.80}, expected {kind.__name__}")
    return tuple(value)


def _dict_of(entry: dict[str, Any], key: str, kinds: tuple[type, ...], where: str) -> dict[str, Any]:
    value: dict[str, Any] = _typed(entry, key, dict, where)
    for name, item in value.items():
        if type(item) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ModelError(f"{where}: {key}[{name!r:.80}] is {item!r:.80}, expected {expected}")
    return value


def _node_from_json(entry: object) -> Node:
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"node {name!r:.80}" if name is not None else f"node {entry!r:.80}"
    entry = _with_keys(entry, Node.__dataclass_fields__, f"metadata: {where}")
    if entry["scale"] is not None:
        _typed(entry, "scale", str, where)
    name = _typed(entry, "name", str, where)
    if not NAME.fullmatch(name):
        raise ModelError(f"{where}: expected letters, digits, '_', '.', '-'")
    return Node(
        name=name,
        op=_typed(entry, "op", str, where),
        inputs=_list_of(entry, "inputs", str, where),
        params=_dict_of(entry, "params", (str,), where),
        attrs=_dict_of(entry, "attrs", (int, str), where),
        dtype=_typed(entry, "dtype", str, where),
        shape=_list_of(entry, "shape", int, where),
        scale=entry["scale"],
    )


def _info_from_json(entry: object) -> ModelInfo:
    where = "metadata: info"
    entry = _with_keys(entry, ModelInfo.__dataclass_fields__, where, _LATER)
    palette = enumerate(_typed(entry, "palette", list, where))
    return ModelInfo(
        name=_typed(entry, "name", str, where),
        recipe=_typed(entry, "recipe", str, where),
        classes=_list_of(entry, "classes", str, where),
        palette=tuple(_list_of({f"palette[{i}]": c}, f"palette[{i}]", int, where, 3) for i, c in palette),
        window=_list_of(entry, "window", int, where, 2),
        stride=_list_of(entry, "stride", int, where, 2),
        patch=_typed(entry, "patch", int, where),
        pad=_list_of(entry, "pad", int, where, 3),
        upsample=_typed(entry, "upsample", str, where),
        source=_typed(entry, "source", str, where),
        merge=_typed(entry, "merge", str, where),
        working_size=None if entry["working_size"] is None else _list_of(entry, "working_size", int, where, 2),
        task=_typed(entry, "task", str, where),
    )
