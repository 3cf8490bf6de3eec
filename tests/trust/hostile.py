"""Every kind of file that intseg reads, ways to spoil it, and the functions that read it: what fuzz.py runs.

A case is a kind, the number of a base (a small valid file or folder) and seeds of mutations; the same case is always
the same bytes. Mutations know the structure: digests, checksums of PNG chunks and lists of files are made right again
afterwards, most of the time, so that a mutation reaches the checks behind them.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import math
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from intseg import api, backends, errors, store
from intseg.batch import compare, evaluate, journal, metrics, sources
from intseg.batch import infer as batch
from intseg.build import GraphBuilder
from intseg.conformance import vectors, verify
from intseg.executor import execute
from intseg.graph import IMAGE, Graph, ModelInfo, Node
from intseg.images import decode as pictures
from intseg.images import labels as label_images
from intseg.images import overlay as overlays
from intseg.images.labels import decode_labels
from intseg.kernels import _jit
from intseg.ops import OPS, Array, Value
from intseg.reports import card, diff_text
from intseg.workbench import diff, dump, sides
from intseg.workbench import trace as traces

Files = dict[str, bytes]
"""Content by path inside a folder, with "/"."""

MODEL = "model.safetensors"
RUN_ELEMENTS = 2**20
"""Accepted graphs with more elements or products than this in one window are not run: they may take minutes."""


class Disagreement(Exception):
    """Two backends give different bits."""


# ---------------------------------------------------------------------------------------------------------------------
# Graphs to begin with
# ---------------------------------------------------------------------------------------------------------------------


class _Builder(GraphBuilder):
    """With random weights."""

    def __init__(self, info: ModelInfo, seed: int) -> None:
        super().__init__(info)
        self.random = np.random.default_rng(seed)

    def linear(self, name: str, x: str, width: int, out: str, shift: int, **more: Any) -> None:
        params = {
            "weight": self.random.integers(-128, 128, (width, self.shape(x)[-1])).astype(np.int8),
            "bias": self.random.integers(-1000, 1000, width).astype(np.int32),
            "mult": np.full(width, 2**30, np.int32),
            "shift": np.full(width, shift, np.int8),
        }
        self.node(name, "linear", x, **params, out=out, **more)


def _info(upsample: str, classes: int = 3) -> ModelInfo:
    return ModelInfo(
        name="tiny",
        recipe="intseg",
        classes=("road", "sky", "ä", "car")[:classes],
        palette=((1, 2, 3), (0, 0, 0), (255, 255, 255), (9, 9, 9))[:classes],
        window=(8, 8),
        stride=(4, 8),
        patch=4,
        pad=(124, 116, 104),
        upsample=upsample,
        source="by hand",
    )


@functools.cache
def linear_graph() -> Graph:
    """The smallest graph with weights: one linear layer."""
    b = _Builder(_info("bilinear"), 1)
    b.node("input", "quantize_input", IMAGE, table=np.tile(np.arange(-128, 128), (3, 1)).astype(np.int8))
    b.node("patches", "patchify", "input", patch=4)
    scale = b.tensor("scale", np.array([1, 0, 7], np.int32).reshape(3, 1, 1))
    b.linear("head", "patches", 3, "int16", 36, scale=scale)
    b.node("scores", "to_grid", "head", height=2, width=2)
    return b.graph("scores")


@functools.cache
def block_graph(softmax: str, gelu: str, out: str) -> Graph:
    """A class token, attention of two heads, an MLP, and ends that nothing reads: every op in four of these."""
    b = _Builder(_info("nearest"), 2)
    r = b.random
    b.node("input", "quantize_input", IMAGE, table=r.integers(-128, 128, (3, 256)).astype(np.int8))
    b.node("patches", "patchify", "input", patch=4)
    b.linear("embed", "patches", 4, "int16", 36)
    b.node("tokens", "concat", b.tensor("cls", np.array([[1, -2, 300, -32768]], np.int16)), "embed")
    position = b.tensor("pos", r.integers(-100, 100, (5, 4)).astype(np.int16))
    b.node("placed", "add", "tokens", position, mult_a=2**30, shift_a=30, mult_b=2**30, shift_b=29)
    norm = {
        "mult": np.array([2**20, -(2**20), 0, 2**21], np.int32),
        "bias": np.array([0, 2**40, -(2**45), 5], np.int64),
    }
    b.node("norm", "layernorm", "placed", **norm, shift=45, out="int8")
    b.linear("qkv", "norm", 12, "int8", 36)
    for part, name in enumerate("qkv"):
        b.node(name, "split_heads", "qkv", heads=2, part=part, parts=3)
    one = np.full((2, 1), 2**30, np.int32)
    scale = {"mult": one, "shift": np.full((2, 1), 31, np.int8)}
    b.node("qk", "matmul", "q", "k", **scale, transpose_b=1, out="int16")
    soft: dict[str, Any] = {"frac_bits": 8, "a1": 21955, "a2": 5571}
    if softmax == "shiftmax":
        soft = {"i0": 64, "k_inter": 9, "int_div_kind": "normalized", "out": out}
    if softmax == "exp_weights":
        b.node("attn", softmax, "qk", table=np.array([[255 * 2**7 >> t // 16 for t in range(256)]] * 2, np.int16))
        b.node("av", "weighted_mean", "attn", "v", **scale)
    else:
        b.node("attn", softmax, "qk", **soft)
        later = {**scale, "shift": np.full((2, 1), 40, np.int8)}
        b.node("av", "matmul", "attn", "v", **later, transpose_b=0, out="int8")
    b.node("merged", "merge_heads", "av")
    b.linear("fc1", "merged", 6, "int8", 37)
    if gelu == "gelu_table":
        b.node("gelu", gelu, "fc1", table=r.integers(-128, 128, 256).astype(np.int8))
    else:
        kind = {"i0": 16, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8, "mult": 2**30, "shift": 38}
        b.node("gelu", gelu, "fc1", **kind)
    b.linear("fc2", "gelu", 4, "int16", 36)
    b.node("sum", "add", "placed", "fc2", mult_a=1, shift_a=1, mult_b=2**30, shift_b=30)
    b.node("unit", "l2norm", "sum", mult=2**30, shift=53)
    b.node("spatial", "slice", "unit", start=1, stop=5)
    b.linear("head", "spatial", 3, "int16", 34)
    b.node("scores", "to_grid", "head", height=2, width=2)
    b.node("wide", "upsample_nearest", "scores", factor=2)
    b.node("smooth", "upsample_bilinear", "scores", factor=4, row_start=1, row_stop=7)
    b.node("best", "argmax", "smooth")
    return b.graph("scores")


@functools.cache
def graphs() -> tuple[Graph, ...]:
    """The bases of weights; the small one comes up most."""
    blocks = (
        ("softmax2", "gelu_table", "int16"),
        ("shiftmax", "shift_gelu", "int16"),
        ("shiftmax", "sigmoid_gelu", "int8"),
        ("exp_weights", "gelu_table", "int16"),
    )
    return (*(linear_graph() for _ in range(9)), *(block_graph(*block) for block in blocks))


# ---------------------------------------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------------------------------------

_INTEGERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 62, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 32767, 32768)
_INTEGERS += (65534, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_INTEGERS += (-1, -2, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63), -(2**63) - 1, 10**30)
_WORDS = (b"\x00", b"\xff\xff\xff\xff", b"\n", b"\r\n", b" " * 40, b"{}", b"[]", b"null", b"NaN", b"1e999", b"-", b'"')
_WORDS += (b"../", b"/etc/passwd", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x1b[2J", b"9" * 30, b"0x", b"@0", b"//", b"/*")


def spoil(data: bytes, r: Random, front: int = 64) -> bytes:
    """One change of some bytes: half of them among the first `front`, where headers are."""
    size = len(data)
    at = r.randrange(min(front, size) if r.random() < 0.5 else size) if size else 0
    kind = r.randrange(11)
    if kind < 3 and size:
        changed = data[at] ^ 1 << r.randrange(8) if kind else r.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, 10, 32, 48, 57))
        return data[:at] + bytes([changed]) + data[at + 1 :]
    if kind == 3:
        return data[:at] + data[at + r.choice((1, 1, 2, 4, 8, 64, size)) :]
    if kind == 4:
        return data[: size - r.choice((1, 1, 2, 3, 4, 8, 16, size // 2))]
    if kind == 5:
        length = r.choice((1, 2, 4, 8, 16))
        width = r.choice((1, 2, 4, 8))
        value = r.choice(_INTEGERS) % 2 ** (8 * width)
        return (
            data[:at] + value.to_bytes(width, r.choice(("little", "big"))) + data[at + (width if length > 1 else 0) :]
        )
    if kind == 6:
        return data[:at] + r.choice(_WORDS) + data[at + r.choice((0, 0, 1, 4)) :]
    if kind == 7:
        part = data[at : at + r.choice((1, 4, 16, 64))]
        other = r.randrange(size) if size else 0
        return data[:other] + part * r.choice((1, 1, 2, 20)) + data[other + r.choice((0, len(part))) :]
    if kind == 8:
        return data[:at] + r.randbytes(r.choice((1, 2, 4, 16))) + data[at + r.choice((0, 4)) :]
    if kind == 9:
        return data + r.choice((b"\0", b"\n", data[:40], r.randbytes(9)))
    return _other_number(data, r)


def _other_number(data: bytes, r: Random) -> bytes:
    """Another number in place of a decimal one."""
    digits = [i for i, c in enumerate(data[:100_000]) if 48 <= c <= 57]
    if not digits:
        return data
    start = stop = r.choice(digits)
    while start and 48 <= data[start - 1] <= 57:
        start -= 1
    while stop < len(data) and 48 <= data[stop] <= 57:
        stop += 1
    return data[:start] + str(r.choice(_INTEGERS)).encode() + data[stop:]


# ---------------------------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------------------------

_MARKS = {
    "@1e999@": "1e999",
    "@1.5@": "1.5",
    "@digits@": "9" * 5000,
    "@deep20@": "[" * 20 + "]" * 20,
    "@deep200@": "[" * 200 + "]" * 200,
    "@deep990@": "[" * 990 + "]" * 990,
    "@deep@": '{"a":' * 3000 + "0" + "}" * 3000,
    **{f"@deep9{n}@": "[" * (900 + n) + "]" * (900 + n) for n in range(40, 85, 5)},
}
"""Strings that `text` replaces by what json.dumps does not write."""

_VALUES: tuple[Any, ...] = (None, True, False, "", "x", "x" * 300, "\0", "\ud800", "a\nb", "\x1b[2J", "../../x")
_VALUES += ("/etc/passwd", "a/../b", ".", "..", "con", "NaN", [], {}, [[]], [0], ["x"], {"a": 0}, 0.5, math.nan, -0.0)
_VALUES += (*_MARKS,)


def text(document: object, compact: bool = False) -> str:
    """JSON with the marks replaced; canonical if compact."""
    separators = (",", ":") if compact else None
    try:
        written = json.dumps(document, sort_keys=compact, separators=separators)
    except RecursionError:
        written = '"@deep@"'
    if "@" in written:
        for mark, found in _MARKS.items():
            written = written.replace(f'"{mark}"', found)
    return written


def spoil_json(document: Any, r: Random, words: Sequence[str] = ()) -> Any:
    """One change somewhere in a JSON document, which is changed in place; returns what is now its root."""
    holder, key, here = None, None, document
    while isinstance(here, (dict, list)) and here and (holder is None or r.random() < 0.85):
        holder, key = here, r.choice(list(here)) if isinstance(here, dict) else r.randrange(len(here))
        here = holder[key]
    if holder is None:
        return _other_value(document, r, words)
    kind = r.randrange(10)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[r.choice((*words, *holder, "", "x", "\0", "../x", "\ud800"))] = holder.pop(key)
    elif kind == 1:
        holder.insert(r.randrange(len(holder) + 1), _copied(here))
    elif kind == 2 and isinstance(holder, dict):
        holder[r.choice((*words, "x", "", "__class__"))] = _copied(here)
    elif kind == 2:
        other = r.randrange(len(holder))
        holder[key], holder[other] = holder[other], here
    else:
        holder[key] = _other_value(here, r, words)
    return document


def _copied(value: Any) -> Any:
    """A deep copy; None for what is nested too deeply."""
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return None


def _other_value(value: Any, r: Random, words: Sequence[str]) -> Any:
    """Another value: mostly of the same type."""
    if r.random() < 0.3:
        return _copied(r.choice(_VALUES))
    if isinstance(value, bool) or value is None:
        return r.choice((None, True, False, 0, 1))
    if isinstance(value, int):
        return r.choice((value + 1, value - 1, -value, 2 * value, value // 2, r.choice(_INTEGERS), r.choice(_INTEGERS)))
    if isinstance(value, str):
        return r.choice((*words, *words, value + "x", value[:-1], value.upper(), value * 2))
    if isinstance(value, list):
        return r.choice((value[:-1], value * 2, value[::-1], [value], value * 40))
    return _copied(r.choice(_VALUES))


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors
# ---------------------------------------------------------------------------------------------------------------------

_CODES = {"int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32", "int64": "I64"}
_CODES |= {"uint64": "U64", "float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL"}
_DTYPES = ("int8", "uint8", "int16", "int32", "int64", "uint16", "float32", "float64", "bool", "uint64")


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: object, body: bytes) -> bytes:
    """A safetensors file."""
    written = header if isinstance(header, bytes) else text(header).encode("utf-8", "surrogatepass")
    return len(written).to_bytes(8, "little") + written + body


def packed(tensors: Mapping[str, Array], metadata: str | None) -> tuple[dict[str, Any], bytes]:
    """Header and body of a file with these tensors."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": {store.KEY: metadata}}
    body, end = [], 0
    for name, array in tensors.items():
        part = array.tobytes()
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + len(part)],
        }
        body.append(part)
        end += len(part)
    return header, b"".join(body)


def sealed(document: dict[str, Any], tensors: Mapping[str, Array], r: Random) -> tuple[dict[str, Any], bytes]:
    """Header and body of a weights file with right digests, most of the time."""
    document = {key: value for key, value in document.items() if key != "graph_sha256"}
    if r.random() < 0.97:
        document["tensors_sha256"] = store.tensors_sha256(tensors)
    written = text(document, compact=True)
    digest = hashlib.sha256(written.encode()).hexdigest() if r.random() < 0.97 else "0" * 64
    return packed(tensors, f'{{"graph_sha256":"{digest}",{written[1:]}')


def spoil_tensor(array: Array, r: Random) -> Array:
    """Other values, another dtype or another shape."""
    kind = r.randrange(8)
    flat = array.reshape(-1).copy()
    limits = np.iinfo(array.dtype) if array.dtype.kind in "iu" else np.iinfo(np.int8)
    if kind < 4 and flat.size:
        for _ in range(r.choice((1, 1, 3, flat.size))):
            near = (limits.min, limits.max, 0, 1, -1, 62, 63, int(flat[0]) + 1)
            flat[r.randrange(flat.size)] = min(max(r.choice(near), limits.min), limits.max)
        return flat.reshape(array.shape)
    if kind == 4:
        with np.errstate(invalid="ignore"):  # NaN to an integer gives some integer
            return array.astype(r.choice(_DTYPES))
    shape = list(array.shape)
    if kind == 5:
        return flat.reshape(r.choice((shape[::-1], [1, *shape], [*shape, 1], [flat.size], [1] * 5 + shape)))
    if kind == 6 and shape:
        return np.repeat(array, r.choice((0, 2, 3)), axis=r.randrange(len(shape)))
    return array[:-1] if shape else flat


def spoil_header(header: dict[str, Any], r: Random) -> object:
    """One change of the header of a safetensors file, its offsets kept right or not."""
    names = [name for name in header if name != "__metadata__"]
    if r.random() < 0.4 or not names:
        return spoil_json(header, r, ("dtype", "shape", "data_offsets", "__metadata__", "I8", "F32", "BF16", "F8_E4M3"))
    entry = header[r.choice(names)]
    if not isinstance(entry, dict):  # spoiled before
        return header
    kind = r.randrange(6)
    if kind == 0:
        entry["shape"] = r.choice(([2**40], [0, 2**39], [2**20] * 4, [1] * 70, [-1], [1.0], [True], [2**63], []))
    elif kind == 1:
        entry["dtype"] = r.choice((*_CODES.values(), "BF16", "F8_E4M3", "i8", "", None, 3))
    elif kind == 2:
        entry["data_offsets"] = r.choice(
            ([0, 0], [0, 2**62], [5, 1], [-1, 3], [0], [0, 1, 2], None, [2**70, 2**70 + 4])
        )
    elif kind == 3:
        header[r.choice(("x" * 300, "a b", "..", "ä", "\0", "__metadata__x"))] = header.pop(r.choice(names))
    elif kind == 4:
        written = text(header)
        return (written[:-1] + "," + written[1:]).encode("utf-8", "surrogatepass")
    else:
        return (text(header) + r.choice((" " * 7, "\n", "x", "}", "\0"))).encode("utf-8", "surrogatepass")
    return header


# ---------------------------------------------------------------------------------------------------------------------
# Kinds
# ---------------------------------------------------------------------------------------------------------------------


class Kind:
    """One kind of file. `read` returns how far an accepted file came; everything else it does is to raise."""

    name: str
    weight: int
    """How often it comes up."""

    stages: tuple[tuple[str, str], ...] = ()
    """(function, stage): the stage that refused, by the first of these that is on the stack."""

    bases: int

    def build(self, base: int, steps: Sequence[int]) -> Files:
        """The files of a case: base number `base` with one mutation for every seed in `steps`."""
        raise NotImplementedError

    def read(self, folder: Path, files: Files) -> str:
        """Read the files, which lie in `folder`, with everything that reads this kind."""
        raise NotImplementedError

    def patience(self, files: Files) -> float:
        """How many times the time limit these files may take."""
        return 1.0


class Weights(Kind):
    """Weights: header bytes, header, metadata, graph, tensors. What is accepted is run on two backends."""

    name, weight, bases = "weights", 36, 12
    stages = (("validate", "graph validation"), ("_check_header", "header"), ("loads", "metadata"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        document, tensors = _document(base)
        header, body = None, b""
        late: list[Random] = []
        for seed in steps:
            r = Random(seed)
            kind = r.random()
            if kind < 0.30:
                _spoil_node(document, r)
            elif kind < 0.42:
                document = spoil_json(document, r, _NAMES)
                if not isinstance(document, dict):
                    return {MODEL: joined({"__metadata__": {store.KEY: text(document)}}, b"")}
            elif kind < 0.50:
                _spoil_info(document, r)
            elif kind < 0.75:
                name = r.choice(list(tensors))
                tensors[name] = spoil_tensor(tensors[name], r)
            elif kind < 0.78:
                _rename_tensors(tensors, r)
            else:
                late.append(r)
        r = Random(steps[0] if steps else 0)
        if steps and r.random() < 0.6:
            _declare(document, tensors)
        header, body = sealed(document, tensors, r)
        data: bytes | None = None
        for r in late:
            if data is None and r.random() < 0.4:
                changed = spoil_header(header, r)
                header, data = header, joined(changed, body) if not isinstance(changed, dict) else None
            else:
                data = spoil(joined(header, body) if data is None else data, r, 16)
        return {MODEL: joined(header, body) if data is None else data}

    def read(self, folder: Path, files: Files) -> str:
        graph = store.load(folder / MODEL)
        return run_everywhere(graph, len(files[MODEL]))


_NAMES = ("image", "scores", "head", "input", "patches", "cls", "pos", "int8", "int16", "int64", "uint8", *OPS)


def _document(base: int) -> tuple[dict[str, Any], dict[str, Array]]:
    written, tensors = _documents()[base]
    return json.loads(written), dict(tensors)


@functools.cache
def _documents() -> list[tuple[str, dict[str, Array]]]:
    found = []
    for graph in graphs():
        header, _ = split(store.dumps(graph))
        found.append((header["__metadata__"][store.KEY], dict(sorted(graph.tensors.items()))))
    return found


def _spoil_node(document: dict[str, Any], r: Random) -> None:
    """One change of a node that keeps it nearly right."""
    nodes = document.get("nodes")
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, dict) for node in nodes):
        return
    i = r.randrange(len(nodes))
    node = nodes[i]
    names = [str(other.get("name")) for other in nodes]
    kind = r.randrange(10)
    if kind < 4 and isinstance(node.get("attrs"), dict) and node["attrs"]:
        name = r.choice(list(node["attrs"]))
        op = OPS.get(str(node.get("op")))  # by now it may be anything
        choice = op.attrs.get(name, range(2)) if op else range(2)
        node["attrs"][name] = _near(choice, r)
    elif kind == 4 and isinstance(node.get("inputs"), list) and node["inputs"]:
        node["inputs"][r.randrange(len(node["inputs"]))] = r.choice((*names, IMAGE, names[i], names[-1], "cls", "none"))
    elif kind == 5:
        node["name"] = r.choice((*names, IMAGE, "cls", "x" * 200, "x" * 201, "", "..", "a--b"))
    elif kind == 6:
        node["op"] = r.choice((*OPS, "conv", "", "a\nb"))
    elif kind == 7 and isinstance(node.get("shape"), list) and node["shape"]:
        node["shape"][r.randrange(len(node["shape"]))] = r.choice(_INTEGERS)
    elif kind == 8:
        nodes.insert(r.randrange(len(nodes) + 1), _copied(node) | {"name": r.choice((node.get("name"), f"n{i}"))})
    else:
        nodes[i], nodes[r.randrange(len(nodes))] = nodes[r.randrange(len(nodes))], node


def _near(choice: range | tuple[str, ...], r: Random) -> int | str:
    """A value inside a range, at its ends, or just outside."""
    if isinstance(choice, tuple):
        return r.choice((*choice, "none"))
    ends = (choice[0], choice[-1], choice[0] - 1, choice[-1] + 1)
    return r.choice((*ends, r.choice(choice), r.choice(choice[:64]), r.choice(choice[:8])))


def _spoil_info(document: dict[str, Any], r: Random) -> None:
    info = document.get("info")
    if not isinstance(info, dict):
        return
    sizes = (0, 1, 2, 3, 4, 8, 12, 16, 64, 1024, 65535, 65536, 2**31, -4)
    patch = r.choice((1, 2, 4, 8, 64, 65))
    info |= r.choice(
        (
            {"window": [r.choice(sizes), r.choice(sizes)]},
            {"stride": [r.choice(sizes), r.choice(sizes)]},
            {"patch": patch},
            {"patch": patch, "window": [2 * patch] * 2, "stride": [patch] * 2},
            {"upsample": r.choice(("nearest", "bilinear", "cubic", ""))},
            {"classes": ["a"] * 3},
            {"classes": [f"c{i}" for i in range(70_000)] if r.random() < 0.02 else ["a\nb", "\x1b[2J", "x" * 2000]},
            {"palette": [[0, 0, 256]] * 3},
            {"pad": [-1, 0, 0]},
            {"name": r.choice(("\0", "\ud800", "x" * 5000, ""))},
        )
    )


def _rename_tensors(tensors: dict[str, Array], r: Random) -> None:
    """Delete, rename, add, exchange."""
    name, other = r.choice(list(tensors)), r.choice(list(tensors))
    kind = r.randrange(4)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[r.choice(("x", "a b", "image", "scores", "x" * 201))] = tensors.pop(name)
    elif kind == 2:
        tensors[name], tensors[other] = tensors[other], tensors[name]
    else:
        tensors["spare"] = np.zeros(r.choice((0, 1, 5)), np.int8)


def _declare(document: dict[str, Any], tensors: Mapping[str, Array]) -> None:
    """Write what the ops give as dtypes and shapes of the nodes, as far as they can run: a change then goes deeper."""
    try:
        values = {IMAGE: Value("uint8", (*document["info"]["window"], 3))}
        for node in document["nodes"]:
            inputs = [values.get(n) or Value(tensors[n].dtype.name, tensors[n].shape) for n in node["inputs"]]
            params = {role: tensors[name] for role, name in node["params"].items()}
            value = OPS[node["op"]].check(inputs, params, node["attrs"])
            values[node["name"]] = value
            node["dtype"], node["shape"] = value.dtype, list(value.shape)
    except Exception:  # this is a mutation of what may be spoiled already: as far as it goes
        return


def work(graph: Graph) -> int:
    """Elements of all intermediates of a window, each counted as often as it is multiplied."""
    total = 0
    for node in graph.nodes:
        depth = 1
        if node.op in ("linear", "matmul"):
            shape = next((n.shape for n in graph.nodes if n.name == node.inputs[0]), None)
            depth = (shape if shape is not None else graph.tensors[node.inputs[0]].shape)[-1]
        total += math.prod(node.shape) * depth
    height, width = graph.info.window
    return total + height * width * (3 + len(graph.info.classes))


def run_everywhere(graph: Graph, seed: int) -> str:
    """Run an accepted graph on the NumPy and the numba backend, the compiled one too. Raises Disagreement."""
    if work(graph) > RUN_ELEMENTS:
        return "accepted, too large to run here"
    image = np.random.default_rng(seed).integers(0, 256, (*graph.info.window, 3), dtype=np.uint8)
    outputs: dict[str, list[Array]] = {}
    for name in ("numpy", "numba"):
        outputs[name] = []
        execute(graph, image, backends.table(name), lambda _, value, found=outputs[name]: found.append(value))
    for node, left, right in zip(graph.nodes, outputs["numpy"], outputs["numba"], strict=True):
        _require_equal(f"node {node.name} ({node.op})", left, right)
        if (left.dtype.name, left.shape) != (node.dtype, node.shape):
            raise Disagreement(f"node {node.name} gives {left.dtype} {left.shape}, declared {node.dtype} {node.shape}")
    scores = next(v for n, v in zip(graph.nodes, outputs["numpy"], strict=True) if n.name == graph.output)
    _require_equal("compiled graph", scores, np.asarray(backends.compile(graph, "numba", 1)(image)))
    merged = scores.astype(np.int32)
    info, (height, width) = graph.info, graph.info.window
    labels = [backends.class_map(merged, info.upsample, info.patch, height, width, n, 1) for n in ("numpy", "numba")]
    _require_equal("class map", *labels)
    return "accepted and run"


def _require_equal(what: str, left: Array, right: Array) -> None:
    if left.dtype != right.dtype or left.shape != right.shape or not np.array_equal(left, right):
        raise Disagreement(f"{what}: numpy and numba differ")


# -------------------------------------------------------------------------------------------------------------- images


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def _png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in chunks:
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


_SIZES = (0, 1, 2, 7, 9, 100, 5000, 16384, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


@functools.cache
def _bombs() -> tuple[bytes, ...]:
    """Compressed data that grows: ten million zeros."""
    zeros = zlib.compress(bytes(10_000_000), 9)
    return zeros, b"icc\0\0" + zeros, b"text\0\0" + zeros, b"text\0\1\0\0\0" + zeros


def _spoil_png(data: bytes, r: Random) -> bytes:
    """One change of chunks, with right checksums."""
    chunks = _png_chunks(data)
    if not chunks:
        return spoil(data, r)
    i = r.randrange(len(chunks))
    name, body = chunks[i]
    kind = r.randrange(8)
    if kind < 2:
        width, height, rest = *struct.unpack(">II", chunks[0][1][:8].ljust(8, b"\0")), chunks[0][1][8:]
        changed = (r.choice(_SIZES), height) if r.random() < 0.5 else (width, r.choice(_SIZES))
        chunks[0] = (chunks[0][0], struct.pack(">II", *changed) + rest)
    elif kind == 2:
        head = bytearray(chunks[0][1].ljust(13, b"\0"))
        head[8:13] = bytes(
            r.choice(((1, 2, 4, 8, 16, 3), (0, 2, 3, 4, 6, 1), (0, 1), (0, 1), (0, 1, 2))[k]) for k in range(5)
        )
        chunks[0] = (chunks[0][0], bytes(head))
    elif kind == 3:
        del chunks[i]
    elif kind == 4:
        chunks.insert(r.randrange(len(chunks) + 1), (name, body))
    elif kind == 5:
        known = (
            b"iCCP",
            b"eXIf",
            b"tEXt",
            b"zTXt",
            b"iTXt",
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"PLTE",
            b"tRNS",
            b"gAMA",
            b"cHRM",
        )
        extra = r.choice(_bombs()) if r.random() < 0.01 else r.randbytes(r.choice((0, 1, 4, 8, 26, 768)))
        chunks.insert(r.randrange(1, len(chunks) + 1), (r.choice(known), extra))
    else:
        chunks[i] = (name, spoil(body, r))
    return _png(chunks)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "text"
    return exif.tobytes()


@functools.cache
def image_bases() -> tuple[tuple[str, bytes], ...]:
    """(kind, bytes) of small images in every format and mode that is decoded."""
    r = np.random.default_rng(5)
    rgb = Image.fromarray(r.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    gray, alpha = rgb.convert("L"), rgb.convert("RGBA")
    alpha.putalpha(gray)
    indexed = rgb.quantize(5)
    deep = Image.fromarray(r.integers(0, 65536, (5, 7), dtype=np.uint16))
    found = [
        ("png", _encoded(i, "PNG")) for i in (rgb, gray, alpha, indexed, rgb.convert("1"), rgb.convert("LA"), deep)
    ]
    raw = b"".join(b"\0" + r.bytes(7 * 6) for _ in range(5))
    head = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    found.append(("png", _png([(b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])))
    seven = b"".join(b"\0" + r.bytes(3 * ((n + 1) // 2)) for n in range(9))
    head = struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 1)
    found.append(("png", _png([(b"IHDR", head), (b"IDAT", zlib.compress(seven * 3)), (b"IEND", b"")])))
    found.append(("png", _encoded(indexed, "PNG", transparency=0)))
    found.append(("png", _encoded(rgb, "PNG", exif=_exif(6), icc_profile=bytes(200))))
    found.append(("png", _encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)], duration=10)))
    found += [("jpeg", _encoded(i, "JPEG")) for i in (rgb, gray, rgb.convert("CMYK"))]
    found.append(("jpeg", _encoded(rgb, "JPEG", exif=_exif(8), icc_profile=bytes(200), progressive=True)))
    found += [("bmp", _encoded(i, "BMP")) for i in (rgb, gray, indexed, rgb.convert("1"))]
    found += [("webp", _encoded(rgb, "WEBP")), ("webp", _encoded(alpha, "WEBP", lossless=True, exif=_exif(3)))]
    found.append(("webp", _encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)])))
    for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        found.append(("tiff", _encoded(rgb, "TIFF", compression=kind)))
    found += [("tiff", _encoded(i, "TIFF")) for i in (deep, alpha, indexed, rgb.convert("CMYK"))]
    found.append(("tiff", _encoded(rgb.convert("1"), "TIFF", compression="group4")))
    found.append(("tiff", _encoded(rgb, "TIFF", save_all=True, append_images=[gray])))
    found += [("ppm", _encoded(i, "PPM")) for i in (rgb, gray, rgb.convert("1"), deep)]
    found += [("ppm", b"P3 2 2 255\n1 2 3 4 5 6 7 8 9 10 11 12\n"), ("ppm", b"P1\n# c\n2 2\n1 0 0 1\n")]
    found += [("ppm", b"P6 2 1 65535\n" + bytes(range(12))), ("ppm", b"PF 1 1 -1.0\n" + bytes(12))]
    found += [("gif", _encoded(indexed, "GIF")), ("gif", _encoded(gray, "GIF", interlace=1))]
    found.append(("gif", _encoded(indexed, "GIF", save_all=True, append_images=[indexed.rotate(180)])))
    return tuple(found)


class Images(Kind):
    """Images in every format of the list, as images and as labels."""

    name, weight, bases = "image", 18, 43
    stages = (("opened", "not opened"), ("_convert", "not decoded"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        kind, data = image_bases()[base]
        for seed in steps:
            r = Random(seed)
            data = _spoil_png(data, r) if kind == "png" and r.random() < 0.7 else spoil(data, r)
        return {"image.png": data}

    def read(self, folder: Path, files: Files) -> str:
        path, data = folder / "image.png", files["image.png"]
        source = path if len(data) % 2 else data
        rgb = pictures.decode(source, (1, 2, 3)).rgb
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            raise Disagreement(f"decoded to {rgb.dtype} {rgb.shape}")
        return "decoded"

    def patience(self, files: Files) -> float:
        return _patience(files["image.png"])


def _patience(data: bytes) -> float:
    """A large image takes its time, and a small file may hold one: the limit is for every four million pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=pictures.FORMATS) as image:
            return math.ceil(image.width * image.height / 2**22)
    return 1.0


class Labels(Kind):
    """Label images, read and counted."""

    name, weight, bases = "labels", 6, 6
    stages = (("opened", "not opened"), ("decode_labels", "not decoded"), ("confusion", "labels out of range"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        chosen = [image_bases()[i] for i in (1, 3, 4, 6, 27, 35)]
        kind, data = chosen[base]
        for seed in steps:
            r = Random(seed)
            data = _spoil_png(data, r) if kind == "png" and r.random() < 0.7 else spoil(data, r)
        return {"labels.png": data}

    def read(self, folder: Path, files: Files) -> str:
        labels = decode_labels(folder / "labels.png")
        if labels.dtype not in (np.uint8, np.uint16) or labels.ndim != 2 or not labels.size:
            raise Disagreement(f"decoded to {labels.dtype} {labels.shape}")
        metrics.confusion(labels, np.zeros(labels.shape, np.uint8), 8, 255)
        return "counted"

    def patience(self, files: Files) -> float:
        return _patience(files["labels.png"])


# ------------------------------------------------------------------------------------------------------- traces, dumps


@functools.cache
def home() -> Path:
    """A folder with the valid files that readers compare with; it lives as long as the process."""
    global _home
    _home = tempfile.TemporaryDirectory(prefix="bases.")
    folder = Path(_home.name)
    for i, graph in enumerate((linear_graph(), block_graph("softmax2", "gelu_table", "int16"))):
        model = folder / f"model{i}.safetensors"
        store.save(graph, model)
        rgb = np.random.default_rng(i).integers(0, 256, (9, 5, 3), dtype=np.uint8)
        traces.write(folder / f"trace{i}.safetensors", rgb, api.load(model), with_registers=i == 0)
    return folder


_home: tempfile.TemporaryDirectory[str] | None = None


@functools.cache
def _golden(i: int) -> traces.Trace:
    """A valid trace with its tensors in memory."""
    path = home() / f"trace{i}.safetensors"
    file = traces.TensorFile(path)
    held = {name: file.read(name) for name in file.names()}
    return traces.Trace(sides._Held(file, held), api.load(home() / f"model{i}.safetensors"))


@functools.cache
def _trace_parts(i: int) -> tuple[str, dict[str, Array]]:
    golden = _golden(i)
    metadata = json.dumps(golden.file.metadata)
    return metadata, {name: golden.file.read(name) for name in golden.file.names()}


class Traces(Kind):
    """Trace files, on both sides of a comparison, with and without their model, and dumped."""

    name, weight, bases = "trace", 5, 3
    stages = (
        ("_parse_header", "header"),
        ("__init__", "header"),
        ("_require_same_origin", "metadata"),
        ("compare", "comparison"),
        ("write_folder", "dump"),
    )

    def build(self, base: int, steps: Sequence[int]) -> Files:
        metadata, held = _trace_parts(base % 2)
        document, tensors = json.loads(metadata), dict(held)
        late = []
        for seed in steps:
            r = Random(seed)
            kind = r.random()
            if kind < 0.3:
                document = spoil_json(document, r, ("kind", "nodes", "head", "registers", "format"))
            elif kind < 0.7:
                scales = [name for name in tensors if name.startswith("scale.")]
                name = r.choice(scales if scales and r.random() < 0.4 else list(tensors))
                tensors[name] = spoil_tensor(tensors[name], r)
            elif kind < 0.8:
                _rename_tensors(tensors, r)
            else:
                late.append(r)
        header, body = packed(tensors, text(document))
        if base == 2 and isinstance(header.get("__metadata__"), dict):
            del header["__metadata__"]
        data = None
        for r in late:
            changed = spoil_header(header, r) if data is None and r.random() < 0.5 else header
            data = joined(changed, body) if changed is not header else spoil(data or joined(header, body), r, 16)
        return {"trace.safetensors": data or joined(header, body)}

    def read(self, folder: Path, files: Files) -> str:
        path, size = folder / "trace.safetensors", len(files["trace.safetensors"])
        settings = diff.Settings(seconds=0.0, partial=bool(size % 2))
        which = size % 5
        if which == 0:
            dump.write_folder(path, folder / "out", ("npy", "hex", "c", "json", "npz")[size % 3])
            return "dumped"
        if which < 3:
            golden = _golden(1 if size > 9000 else 0)
            report = diff.compare(golden, sides.open_other(path, golden), settings)
        else:
            weights = str(home() / f"model{1 if size > 9000 else 0}.safetensors")
            trace = traces.open_trace(path, weights)
            for name in trace.nodes:
                trace.registers(name)
                trace.scale(name)
            report = diff.compare(trace, _golden(1 if size > 9000 else 0).file, settings)
        return "equal" if not list(diff_text.lines(report)) or report.equal else "different"


@functools.cache
def dump_bases() -> tuple[Files, ...]:
    """Folders of `intseg dump` in every format, and some with odd words, tiles and orders."""
    r = np.random.default_rng(3)
    found = []
    plain = dump.Options()
    odd = dump.Options(width=12, per_word=3, endian="big", order="1,0", tile=(2, 2))
    kinds = [(kind, plain) for kind in dump.FORMATS] + [("hex", odd), ("bin", odd), ("mem", odd)]
    with tempfile.TemporaryDirectory() as place:
        for i, (kind, options) in enumerate(kinds):
            with traces.Writer(Path(place) / "t", {"format": 1}, ["a", "window0.b", "scale.b"]) as writer:
                writer.put("a", r.integers(-128, 128, (3, 4)).astype(np.int8))
                writer.put(
                    "window0.b", r.integers(-2048, 2048, (2, 5)).astype(np.int64 if options is odd else np.int16)
                )
            dump.write_folder(Path(place) / "t", Path(place) / str(i), kind, options)
            found.append({file.name: file.read_bytes() for file in sorted((Path(place) / str(i)).iterdir())})
    return tuple(found)


class Dumps(Kind):
    """Folders of `intseg dump`: manifest and data, read back and compared."""

    name, weight, bases = "dump", 10, 11
    stages = (("open_folder", "manifest"), ("_check", "digest"), ("read", "data"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        files = dict(dump_bases()[base])
        for seed in steps:
            r = Random(seed)
            name = dump.MANIFEST if r.random() < 0.5 else r.choice(list(files))
            if name == dump.MANIFEST and r.random() < 0.8:
                try:
                    document = json.loads(files[name])
                except (ValueError, RecursionError):
                    continue
                _spoil_manifest(document, r, list(files))
                files[name] = text(document).encode("utf-8", "surrogatepass")
            else:
                files[name] = spoil(files[name], r)
        return files

    def read(self, folder: Path, files: Files) -> str:
        opened = dump.open_folder(folder)
        for name in opened.tensors:
            opened.read(name)
        dump.read_folder(folder, folder / "back.safetensors")
        return "read back"


def _spoil_manifest(document: Any, r: Random, names: Sequence[str]) -> None:
    """One change of the manifest of a dump."""
    tensors = document.get("tensors") if isinstance(document, dict) else None
    entries = [entry for entry in tensors.values() if isinstance(entry, dict)] if isinstance(tensors, dict) else []
    if not entries or r.random() < 0.5:
        spoil_json(document, r, (*names, "little", "big", "F", "0,1", "1,0", "hex", "npy", "int64"))
        return
    entry = r.choice(entries)
    shape = r.choice(([2**32], [2**31, 2], [0, 2**70], [1] * 70, [3, 4], {}, "34", [True], [0], [4, 3], [12], [-1]))
    options: dict[str, Any] = document.get("options") if isinstance(document.get("options"), dict) else {}
    entry |= r.choice(
        (
            {"shape": shape},
            {"dtype": r.choice(("int64", "uint8", "float32", [], None, "object"))},
            {"file": r.choice(("..", ".", "a\0b", "\ud800", "x" * 300, "/etc/passwd", "../x", 5, None, *names))},
        )
    )
    if r.random() < 0.5 and options:
        options |= r.choice(
            (
                {"width": r.choice((1, 8.0, 1024, True, "8", 65, 64))},
                {"per_word": r.choice((2, 1024, 1.0, 0))},
                {"order": r.choice(("F", "1,0", "0,0", "9" * 5000, 5, None, "C", "٣"))},
                {"tile": r.choice(([2**40, 2**40], [1, 2], [1], [0, 1], "12", [1.5, 2], [2**31, 1]))},
            )
        )


@functools.cache
def table_bases() -> tuple[tuple[str, bytes], ...]:
    """Single tensors as other tools write them: (file name, bytes)."""
    head = _trace_parts(0)[1]["window0.head"]
    plain = io.BytesIO()
    np.save(plain, head)
    real = io.BytesIO()
    np.save(real, head.astype(np.float32))
    column = io.BytesIO()
    np.save(column, np.asfortranarray(head))
    many, small = io.BytesIO(), io.BytesIO()
    np.savez(many, head=head, scores=head)
    np.savez_compressed(small, **{"window0.head": head})
    found = [("head.npy", plain.getvalue()), ("head.npy", real.getvalue()), ("head.npy", column.getvalue())]
    found += [("head.npz", many.getvalue()), ("head.npz", small.getvalue())]
    for ending in ("hex", "mem", "bin"):
        found.append((f"head.{ending}", dump._encode("head", head, ending, dump.Options())))
    return tuple(found)


class Tables(Kind):
    """npy, npz, hex, mem and bin files, as the other side of a comparison."""

    name, weight, bases = "table", 5, 8
    stages = (("open_other", "reading"), ("compare", "comparison"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        name, data = table_bases()[base]
        for seed in steps:
            r = Random(seed)
            lie = name == "head.npy" and r.random() < 0.4
            data = _spoil_npy(data, r) if lie else spoil(data, r, 128)
        return {name: data}

    def read(self, folder: Path, files: Files) -> str:
        (name,) = files
        golden = _golden(0)
        path = folder if len(files[name]) % 3 == 0 and name.endswith("npy") else folder / name
        report = diff.compare(golden, sides.open_other(path, golden), diff.Settings(seconds=0.0, partial=True))
        return "equal" if report.equal else "different"


def _spoil_npy(data: bytes, r: Random) -> bytes:
    """Another header: shapes that lie, dtypes that are none."""
    start = data.find(b"{")
    stop = data.find(b"\n", start)
    if start < 0 or stop < 0:
        return data
    shape = r.choice(
        ("(2**40,)", "(1099511627776,)", "(4, 3)", "(12,)", "()", "(-1,)", "(4,)", "[4, 3]", "(0, 9)", "(4, 3, 1)")
    )
    dtype = r.choice(
        ("'<i2'", "'>i2'", "'<i8'", "'O'", "'<f4'", "'<U9'", "[('a', '<i2')]", "'|V2'", "('<i2', (9999999,))", "'x'")
    )
    order = r.choice(("False", "True", "None"))
    head = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    if r.random() < 0.1:
        head = r.choice((b"(" * 5000, b"{'a': " * 100, b"__import__('os')", b"9" * 9000, b"'\\ud800'"))
    size = (len(head) + 1).to_bytes(2, "little")
    return data[:8] + size + head + b"\n" + data[stop + 1 :]


# ------------------------------------------------------------------------------------------------------ vectors, golden


@functools.cache
def pack_bases() -> tuple[Files, ...]:
    """Conformance packs with one op, or one image, each."""
    graph = linear_graph()
    model = api.load(home() / "model0.safetensors")
    weights = (home() / "model0.safetensors").read_bytes()
    found = []
    for op, calls in vectors.op_cases().items():
        few = sorted(calls, key=lambda call: sum(x.nbytes for x in (*call.inputs, *call.params.values())))[:2]
        digest = vectors.Digest()
        files = {MODEL: weights, f"ops/{op}.safetensors": vectors._op_file(op, few, vectors.table("numpy"), digest)}
        files["runner.json"] = json.dumps(vectors._runner(model, files, {op: few}, [], str(digest))).encode()
        found.append(files)
    rgb = np.random.default_rng(1).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    result, digest = vectors.run_image(model, rgb, "numpy", with_coverage=False), vectors.Digest()
    vectors.add_image(digest, "x", result)
    header, body = packed(result.tensors, None)
    files = {MODEL: weights, "images/x.safetensors": joined(header, body)}
    images = [{"name": "x", "file": "images/x.safetensors", "nodes": result.nodes}]
    files["runner.json"] = json.dumps(vectors._runner(model, files, {}, images, str(digest))).encode()
    return (*found, files, _golden_base(graph, rgb))


def _golden_base(graph: Graph, rgb: Array) -> Files:
    """A golden folder with the smallest case of every op and one trace."""
    files: Files = {}
    for op, calls in vectors.op_cases().items():
        if op in OPS:
            few = sorted(calls, key=lambda call: sum(x.nbytes for x in call.inputs))[:1]
            files[f"ops/{op}.safetensors"] = vectors._op_file(op, few, vectors.table("numpy"), vectors.Digest())
    files["models/m.safetensors"] = store.dumps(graph)
    files["images/i.png"] = _encoded(Image.fromarray(rgb), "PNG")
    tensors = {name: array for name, array in _trace_parts(0)[1].items() if traces.SEPARATOR not in name}
    files["traces/m.i.safetensors"] = joined(*packed(tensors, None))
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return {**files, "MANIFEST.json": json.dumps({"files": listed}).encode()}


class Packs(Kind):
    """Conformance packs and the golden folder: list, op cases, images; the list is made right again, mostly."""

    name, weight, bases = "pack", 3, 25
    stages = (("_read_json", "list"), ("__init__", "list"), ("read_op_file", "op file"), ("_tensors", "tensors"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        files = dict(pack_bases()[base])
        manifest = "runner.json" if "runner.json" in files else "MANIFEST.json"
        for seed in steps:
            r = Random(seed)
            name = manifest if r.random() < 0.4 else r.choice([n for n in files if n != manifest])
            if name == manifest:
                _spoil_list(files, name, r)
                continue
            files[name] = _spoil_op_file(files[name], r) if name.startswith("ops/") else spoil(files[name], r)
            if r.random() < 0.9:
                _list_again(files, manifest, name)
        return files

    def read(self, folder: Path, files: Files) -> str:
        both = sum(map(len, files.values())) % 2
        report = verify.verify(folder, ("numpy", "numba") if both else ("numba",))
        return "all equal" if report.ok else "mismatch reported"


def _spoil_list(files: Files, name: str, r: Random) -> None:
    try:
        document = json.loads(files[name])
    except (ValueError, RecursionError):
        return
    inner = document.get(r.choice(("ops", "images", "files", "model"))) if isinstance(document, dict) else None
    words = (*files, "..", "../x", "linear", "ops", "op", "file", "traces/foo", "traces/a.b.c", "sha256")
    if inner and r.random() < 0.6:
        spoil_json(inner, r, words)
    else:
        document = spoil_json(document, r, words)
    files[name] = text(document).encode("utf-8", "surrogatepass")


def _list_again(files: Files, manifest: str, name: str) -> None:
    """State the sha256 that a file has now."""
    try:
        document = json.loads(files[manifest])
        digest = hashlib.sha256(files[name]).hexdigest()
        document["files"][name] = digest if manifest == "runner.json" else {"sha256": digest}
        files[manifest] = json.dumps(document).encode()
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return


def _spoil_op_file(data: bytes, r: Random) -> bytes:
    """One change of attributes, tensors, header or bytes of an op file."""
    try:
        header, body = split(data)
        document = json.loads(header["__metadata__"][store.KEY])
        kind = r.random()
        if kind < 0.45:
            attrs = document["attrs"]
            chosen = r.choice(attrs) if isinstance(attrs, list) and attrs else None
            if isinstance(chosen, dict) and chosen and r.random() < 0.7:
                name = r.choice(list(chosen))
                allowed = OPS[document["op"]].attrs.get(name) if document["op"] in OPS else None
                chosen[name] = (
                    _near(allowed, r) if allowed and r.random() < 0.7 else _copied(r.choice((*_INTEGERS, *_VALUES)))
                )
            else:
                document = spoil_json(document, r, ("op", "attrs", *OPS))
            header["__metadata__"][store.KEY] = text(document)
            return joined(header, body)
        if kind < 0.8:
            tensors = {
                name: np.frombuffer(body[slice(*entry["data_offsets"])], _BY_CODE[entry["dtype"]]).reshape(
                    entry["shape"]
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
            name = r.choice(list(tensors))
            tensors[name] = spoil_tensor(tensors[name], r)
            return joined(*packed(tensors, header["__metadata__"][store.KEY]))
        return joined(spoil_header(header, r), body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return spoil(data, r)


_BY_CODE = {code: dtype for dtype, code in _CODES.items()}


# ----------------------------------------------------------------------------------------------------- journals, JSON


class Journals(Kind):
    """The journal that `intseg batch --resume` continues from."""

    name, weight, bases = "journal", 3, 1
    stages = (("read", "settings"),)

    def build(self, base: int, steps: Sequence[int]) -> Files:
        model = api.load(home() / "model0.safetensors")
        header = {"intseg batch": journal.FORMAT, "model": model.sha256, **batch.Options().settings()}
        record = {
            "width": 1,
            "height": 1,
            "pixels_sha256": "0",
            "labels_sha256": "1",
            "classes": {"road": 1},
            "notes": [],
        }
        line = {
            "of": journal._mark(header),
            "item": "a.png",
            "input": hashlib.sha256(b"a").hexdigest(),
            "written": {},
            "record": record,
        }
        journal_lines = _spoil_lines([header, line, line | {"item": "b.png"}], steps)
        return {batch.JOURNAL: journal_lines, "a.png": b"a", "b.png": b"a"}

    def read(self, folder: Path, files: Files) -> str:
        model = api.load(home() / "model0.safetensors")
        with journal.Journal(
            folder / batch.JOURNAL, "batch", {"model": model.sha256} | batch.Options().settings()
        ) as book:
            lines = book.lines
        found = 0
        for name in ("a.png", "b.png"):
            source = sources.Source(str(folder / name), name)
            outcome = batch._restored(lines.get(name, {}), source, model, batch.Options())
            if outcome is not None:
                found += 1
                batch._json_line(outcome.record)
        return f"{found} of 2 images taken over"


def _spoil_lines(lines: list[Any], steps: Sequence[int]) -> bytes:
    """JSON lines with changes of a line's document or of bytes."""
    lines = _copied(lines)
    late = []
    for seed in steps:
        r = Random(seed)
        i = r.randrange(len(lines))
        if r.random() < 0.7 and isinstance(lines[i], (dict, list)):
            lines[i] = spoil_json(lines[i], r)
        else:
            late.append(r)
    data = "".join(text(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")
    for r in late:
        data = spoil(data, r)
    return data


class Evaluations(Kind):
    """What `intseg eval` writes and reads: its JSON, compared with and put on a card, and its journal."""

    name, weight, bases = "evaluation", 3, 2
    stages = (
        ("read_earlier", "reading"),
        ("_read_metrics", "metrics"),
        ("merge", "journal"),
        ("compare", "comparison"),
    )

    def build(self, base: int, steps: Sequence[int]) -> Files:
        model = api.load(home() / "model0.safetensors")
        if base == 0:
            matrix = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]], np.int64)
            document: Any = evaluate.Evaluation(matrix, 1, evaluate._measured(model)).as_json()
            late = []
            for seed in steps:
                r = Random(seed)
                if r.random() < 0.8 and isinstance(document, (dict, list)):
                    document = spoil_json(document, r, ("confusion", "classes", "model", "road"))
                else:
                    late.append(r)
            data = text(document).encode("utf-8", "surrogatepass")
            for r in late:
                data = spoil(data, r)
            return {"eval.json": data}
        header = {"intseg eval": journal.FORMAT, "model": "0", "model name": "m", "classes": list("abc"), "images": 2}
        line = {
            "of": journal._mark(header),
            "image": "0" * 64,
            "labels": "1" * 64,
            "counts": [[0, 5], [8, 1]],
            "notes": [],
        }
        return {"journal": _spoil_lines([header, line | {"item": "a"}, line | {"item": "b"}], steps)}

    def read(self, folder: Path, files: Files) -> str:
        model = api.load(home() / "model0.safetensors")
        if "journal" in files:
            return f"{evaluate.merge([folder / 'journal']).images} images merged"
        path = folder / "eval.json"
        if len(files["eval.json"]) % 2:
            card._accuracy(model, card.Facts(), card._read_metrics(model, str(path)))
            return "on a card"
        earlier = compare.read_earlier(path, model.info.classes)
        compare.compare(evaluate.Evaluation(earlier.confusion, 1, evaluate._measured(model)), earlier).as_json()
        return "compared"


# ---------------------------------------------------------------------------------------------------- texts and folders

_PALETTE = "// colours\nroad #010203\nsky 0 0 255\n\nä\t#ffffff\n".encode()
_LIST = b"# images\na.png\n\nday/b.png\n"
_MAP = b'{"road": 1, "sky": 65535, "*": 0}'


class Texts(Kind):
    """Palettes, label maps and lists of images."""

    name, weight, bases = "text", 6, 3
    stages = (
        ("palette", "palette"),
        ("stored_values", "label map"),
        ("find_sources", "list"),
        ("check_targets", "list"),
    )

    def build(self, base: int, steps: Sequence[int]) -> Files:
        name, data = (("palette.txt", _PALETTE), ("map.json", _MAP), ("list.txt", _LIST))[base]
        for seed in steps:
            r = Random(seed)
            if base == 1 and r.random() < 0.6:
                try:
                    data = text(spoil_json(json.loads(data), r, ("road", "sky", "ä", "*"))).encode(
                        "utf-8", "surrogatepass"
                    )
                except (ValueError, RecursionError):
                    data = spoil(data, r)
            elif r.random() < 0.02:
                gap = r.choice((b" ", b"\t", b"#", b"0 ", b"a #", "\u2003".encode())) * r.choice((3000, 30_000))
                at = r.randrange(len(data) + 1)
                data = data[:at] + gap + data[at:]
            else:
                data = spoil(data, r)
        return {name: data}

    def read(self, folder: Path, files: Files) -> str:
        (name,) = files
        path, classes = str(folder / name), ("road", "sky", "ä")
        if name == "palette.txt":
            overlays.palette(path, classes, ((0, 0, 0),) * 3)
        elif name == "map.json":
            label_images.stored_values(classes, mapping=path)
        else:
            # A list names files and folders of its user's choice; chance must not make it leave the folder of the case.
            if any(os.path.isabs(line) or ".." in line for line in sources.lines(Path(path))):
                return "accepted"
            with contextlib.chdir(folder):
                images = sources.find_sources([f"@{path}"])
                batch.check_targets(images, batch.Options(output=folder / "out"))
        return "accepted"


class Folders(Kind):
    """A model folder with config.json."""

    name, weight, bases = "folder", 2, 1
    stages = (("_configured_names", "config.json"), ("_renamed", "class names"), ("_weights_in", "folder"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        document: Any = {"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 3}
        late = []
        for seed in steps:
            r = Random(seed)
            if r.random() < 0.85 and isinstance(document, (dict, list)):
                document = spoil_json(document, r, ("id2label", "0", "1", "2", "3", "a"))
            else:
                late.append(r)
        data = text(document).encode("utf-8", "surrogatepass")
        for r in late:
            data = spoil(data, r)
        return {MODEL: (home() / "model0.safetensors").read_bytes(), "config.json": data}

    def read(self, folder: Path, files: Files) -> str:
        api._models.clear()
        model = api.load(folder)
        return "other names" if model.info.classes != linear_graph().info.classes else "own names"


class CacheEntries(Kind):
    """Entries of the cache of compiled kernels: what is not whole is never unpickled."""

    name, weight, bases = "cache", 3, 2

    def build(self, base: int, steps: Sequence[int]) -> Files:
        payload = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
        data = _jit._MAGIC + hashlib.sha256(payload).digest() + payload
        for seed in steps:
            data = spoil(data, Random(seed), 64)
        whole = len(data) > 48 and hashlib.sha256(data[48:]).digest() == data[16:48]
        return {"entry.bin": data[:-1] if whole else data}  # a whole entry is trusted: it is one of this user's

    def read(self, folder: Path, files: Files) -> str:
        cache = _jit.Cache(folder, "entry")
        cache._path = lambda signature: folder / "entry.bin"  # type: ignore[method-assign]
        if cache.load_overload(None, _Context()) is not None:
            raise Disagreement("a damaged entry was loaded")
        return "compiled again"


class _Context:
    """In place of Numba's target context: a damaged entry must not come so far."""

    def refresh(self) -> None:
        """Nothing to do."""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Weights(),
        Images(),
        Labels(),
        Traces(),
        Dumps(),
        Tables(),
        Packs(),
        Journals(),
        Evaluations(),
        Texts(),
        Folders(),
        CacheEntries(),
    )
}


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What decides the bytes: a kind, the number of a base, a seed for every mutation."""

    kind: str
    base: int
    steps: tuple[int, ...]

    def files(self) -> Files:
        """The files of the case."""
        return KINDS[self.kind].build(self.base, self.steps)


@functools.cache
def _population(kinds: tuple[str, ...]) -> tuple[list[str], list[int]]:
    return list(kinds), [KINDS[name].weight for name in kinds]


def case(seed: int, index: int, kinds: tuple[str, ...]) -> Case:
    """Case number `index` of a seed among some kinds."""
    r = Random((seed << 40) + index)
    names, weights = _population(kinds)
    (kind,) = r.choices(names, weights)
    count = r.choice((1, 1, 1, 2, 2, 3, 6))
    return Case(kind, r.randrange(KINDS[kind].bases), tuple(r.getrandbits(32) for _ in range(count)))


def cache_folder() -> Path | None:
    """Where compiled kernels are kept."""
    return _jit.cache_folder()


# ---------------------------------------------------------------------------------------------------------------------
# Bugs to find: the proof that a failure would be noticed
# ---------------------------------------------------------------------------------------------------------------------


def _plant_exception() -> None:
    real = store._node_from_json

    def planted(entry: Any) -> Node:
        if isinstance(entry, dict) and type(entry.get("shape")) is list and 0 in entry["shape"]:
            raise KeyError("shape")
        return real(entry)

    store._node_from_json = planted


def _plant_message() -> None:
    real = dump.read_npy

    def planted(data: bytes) -> Array:
        try:
            return real(data)
        except errors.InputError as error:
            raise errors.InputError(f"{error}: {data[:100].decode('latin-1')}") from None

    errors.one_line = lambda text: text
    dump.read_npy = planted


def _plant_hang() -> None:
    real = overlays._colour_lines

    def planted(path: Path) -> Iterator[Any]:
        while b"sky" not in path.read_bytes():
            pass
        return real(path)

    overlays._colour_lines = planted


def _plant_memory() -> None:
    real = dump._decode_json

    def planted(data: bytes, dtype: str, shape: Sequence[int]) -> Array:
        np.empty(math.prod(shape) * 2**28, np.int64)
        return real(data, dtype, shape)

    dump._decode_json = planted


def _plant_path() -> None:
    real = api._configured_names

    def planted(path: Path) -> tuple[str, ...] | None:
        names = real(path)
        if names and len("".join(names)) > 3:
            Path("/etc/passwd").read_bytes()
        return names

    api._configured_names = planted


def _plant_pickle() -> None:
    _jit._unwrap = lambda data: data[48:]


def _plant_bits() -> None:
    real = backends.compile

    def planted(graph: Graph, backend: str, threads: int | None = None) -> backends.Forward:
        forward = real(graph, backend, threads)
        return lambda image: forward(image) + np.int16(graph.tensors["head.bias"][0] == 0)

    backends.compile = planted


def _plant_crash() -> None:
    real = traces._entry

    def planted(name: str, value: Any) -> Any:
        if len(value["shape"]) > 4:
            os.abort()
        return real(name, value)

    traces._entry = planted


def _plant_unbuilt() -> None:
    kind = KINDS["folder"]
    real = kind.build

    def planted(base: int, steps: Sequence[int]) -> Files:
        if steps and steps[0] % 10 == 0:
            raise ZeroDivisionError("a mutation that cannot be made")
        return real(base, steps)

    kind.build = planted  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    name.removeprefix("_plant_"): function for name, function in globals().items() if name.startswith("_plant_")
}
"""Functions that break a reader of this process."""
