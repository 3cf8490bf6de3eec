"""A model as one flat file of integers: fixed records and aligned tensors, for firmware that maps it into memory.

golden/reader/README.md describes every byte, golden/reader/reader.c reads it. The form is written, never read, here:
the file to keep is the safetensors file. Scale tensors are left out, since they take part in no arithmetic.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from intseg import api, files, store
from intseg.errors import ModelError
from intseg.graph import IMAGE, Graph
from intseg.ops import OPS, Attr
from intseg.packing import pack

MAGIC = b"INTSEGFL"
VERSION = 1
ALIGN = 64
HEADER, NODE, TENSOR = 192, 96, 32
"""Bytes of the header and of a record."""

SEALED = 48
"""The SHA-256 in the header covers every byte from here on."""

MAX_FILE = 2**32 - 1
NONE = 2**32 - 1
IS_TENSOR = 2**31
DTYPES = {"int8": 1, "uint8": 2, "int16": 3, "uint16": 4, "int32": 5, "int64": 6}
WORDS = {f"int{bits}": 16 * bits + 1 for bits in range(4, 8)} | {"int8": 1, "int16": 3}
WORDS |= {"paper": 0, "normalized": 1, "aligned": 2, "nearest": 0, "bilinear": 1}
WORDS |= {"grid": 0, "pixel": 1, "segmentation": 0, "classification": 1}
"""Numbers that stand for string attributes and for `upsample`, `merge` and `task`; an attribute that is absent is 0."""

_MAX_AXES, _MAX_INPUTS, _MAX_PARAMS, _MAX_ATTRS = 4, 2, 4, 8


def write(weights: str | os.PathLike[str] | api.Model, path: str | os.PathLike[str]) -> int:
    """Write the flat form of a model; the file appears whole or not at all.

    weights  as of `api.load`
    return   size in bytes
    Raises InputError when a file cannot be read or written, ModelError for what is no model or too large.
    """
    model = api.load(weights)
    data = flatten(model.graph, bytes.fromhex(model.sha256))
    files.write_atomically(Path(path), data)
    return len(data)


def flatten(graph: Graph, source_sha256: bytes = bytes(32)) -> bytes:
    """The flat form of a validated graph: equal graphs give equal bytes.

    source_sha256  32 bytes, of the weights file
    Raises ModelError when it would take 2^32 bytes or more.
    """
    info = graph.info
    strings = _Strings()
    names = sorted(
        {name for node in graph.nodes for name in (*node.inputs, *node.params.values())} & set(graph.tensors)
    )
    body = _Body()
    nodes = body.add(_nodes(graph, names, strings))
    packed = graph.packed
    stored = [pack(graph.tensors[name], packed[name]) if name in packed else graph.tensors[name] for name in names]
    places = [body.add([store.little(array).tobytes()]) for array in stored]
    tensors = body.add(
        struct.pack("<I", strings.add(name))
        + _kind(DTYPES[array.dtype.name] + 16 * packed.get(name, 0), array.shape)
        + struct.pack("<I", place)
        for name, array, place in zip(names, (graph.tensors[name] for name in names), places, strict=True)
    )
    classes = body.add(struct.pack("<I", strings.add(name)) for name in info.classes)
    palette = body.add(bytes((*colour, 0)) for colour in info.palette)
    title, recipe = strings.add(info.name), strings.add(info.recipe)
    text = body.add([bytes(strings.data)])
    output = next(i for i, node in enumerate(graph.nodes) if node.name == graph.output)
    body.pad()
    fields = struct.pack(
        "<17I3Bx2I32s4I16x",
        *(len(graph.nodes), len(names), output, 0),
        *(nodes, tensors, text, len(strings.data), classes, palette),
        *(*info.window, *info.stride, info.patch, len(info.classes), WORDS[info.upsample], *info.pad),
        *(title, recipe, source_sha256, WORDS[info.merge], *(info.working_size or (0, 0)), WORDS[info.task]),
    )
    sealed = fields + body.data
    start = MAGIC + struct.pack("<2I", VERSION, SEALED + len(sealed))
    return start + hashlib.sha256(sealed).digest() + sealed


class _Strings:
    """Zero-terminated UTF-8, each text once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._offsets: dict[str, int] = {}

    def add(self, text: str) -> int:
        """Offset of a text from the start of the strings."""
        if text not in self._offsets:
            self._offsets[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self._offsets[text]


class _Body:
    """What follows the header, each part at a multiple of ALIGN."""

    def __init__(self) -> None:
        self.data = bytearray()

    def pad(self) -> None:
        self.data += bytes(-(HEADER + len(self.data)) % ALIGN)
        if HEADER + len(self.data) > MAX_FILE:
            raise ModelError(f"the flat form takes {HEADER + len(self.data)} bytes, expected at most {MAX_FILE}")

    def add(self, pieces: Iterable[bytes]) -> int:
        """Append a part. Returns its offset in the file."""
        self.pad()
        offset = HEADER + len(self.data)
        for piece in pieces:
            self.data += piece
        return offset


def _kind(dtype: int, shape: tuple[int, ...]) -> bytes:
    return struct.pack("<6I", dtype, len(shape), *_filled(shape, _MAX_AXES, 0))


def _filled(values: Iterable[int], count: int, value: int) -> list[int]:
    found = list(values)
    return found + [value] * (count - len(found))


def _nodes(graph: Graph, tensors: Sequence[str], strings: _Strings) -> Iterator[bytes]:
    tensor = {name: i for i, name in enumerate(tensors)}
    reference = {name: IS_TENSOR + i for name, i in tensor.items()} | {IMAGE: 0}
    for number, node in enumerate(graph.nodes, 1):
        op = OPS[node.op]
        inputs = [reference[name] for name in node.inputs]
        params = [tensor[node.params[role]] for role in op.params]
        attrs = [_number(node.attrs.get(name, 0)) for name in op.attrs]
        yield (
            struct.pack("<2I", OPS[node.op].number, strings.add(node.name))
            + _kind(DTYPES[node.dtype], node.shape)
            + struct.pack("<6I", *_filled(inputs, _MAX_INPUTS, NONE), *_filled(params, _MAX_PARAMS, NONE))
            + struct.pack("<8i8x", *_filled(attrs, _MAX_ATTRS, 0))
        )
        reference[node.name] = number


def _number(value: Attr) -> int:
    return WORDS[value] if isinstance(value, str) else value
