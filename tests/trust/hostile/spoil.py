"""Changes of bytes, of JSON and of safetensors files."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from intseg import store
from intseg.ops import Array

INTEGERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 62, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 32767, 32768)
INTEGERS += (65534, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
INTEGERS += (-1, -2, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63), -(2**63) - 1, 10**30)
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
        value = r.choice(INTEGERS) % 2 ** (8 * width)
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
    return data[:start] + str(r.choice(INTEGERS)).encode() + data[stop:]


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

VALUES: tuple[Any, ...] = (None, True, False, "", "x", "x" * 300, "\0", "\ud800", "a\nb", "\x1b[2J", "../../x")
VALUES += ("/etc/passwd", "a/../b", ".", "..", "con", "NaN", [], {}, [[]], [0], ["x"], {"a": 0}, 0.5, math.nan, -0.0)
VALUES += (*_MARKS,)


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
        holder.insert(r.randrange(len(holder) + 1), copied(here))
    elif kind == 2 and isinstance(holder, dict):
        holder[r.choice((*words, "x", "", "__class__"))] = copied(here)
    elif kind == 2:
        other = r.randrange(len(holder))
        holder[key], holder[other] = holder[other], here
    else:
        holder[key] = _other_value(here, r, words)
    return document


def copied(value: Any) -> Any:
    """A deep copy; None for what is nested too deeply."""
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return None


def _other_value(value: Any, r: Random, words: Sequence[str]) -> Any:
    """Another value: mostly of the same type."""
    if r.random() < 0.3:
        return copied(r.choice(VALUES))
    if isinstance(value, bool) or value is None:
        return r.choice((None, True, False, 0, 1))
    if isinstance(value, int):
        return r.choice((value + 1, value - 1, -value, 2 * value, value // 2, r.choice(INTEGERS), r.choice(INTEGERS)))
    if isinstance(value, str):
        return r.choice((*words, *words, value + "x", value[:-1], value.upper(), value * 2))
    if isinstance(value, list):
        return r.choice((value[:-1], value * 2, value[::-1], [value], value * 40))
    return copied(r.choice(VALUES))


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


def spoil_npy(data: bytes, r: Random) -> bytes:
    """Another header of a npy file: shapes that lie, dtypes that are none."""
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


BY_CODE = {code: dtype for dtype, code in _CODES.items()}
