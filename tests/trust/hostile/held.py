"""What is read from memory: readers of bytes and text without a file around them, thousands a second."""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from hostile.images import Spoiled, checked, encoded, image_bases
from hostile.kind import Disagreement, Files, Kind
from hostile.spoil import joined, packed, spoil, spoil_header, spoil_json, spoil_npy, text
from intseg import store
from intseg.arith import INT_RANGE
from intseg.batch import journal
from intseg.errors import number
from intseg.images import decode as pictures
from intseg.images import labels as label_images
from intseg.ops import Array
from intseg.workbench import dump
from intseg.workbench import trace as traces


class _Held(Kind):
    held, bases = True, 3000


def _array(r: Random, dtype: str, bits: int = 0) -> Array:
    """A few elements of up to so many bits, among them the ends of the range."""
    low, high = INT_RANGE[dtype]
    if bits:
        low, high = max(low, -(1 << bits - 1) if low else 0), min(high, (1 << bits - bool(low)) - 1)
    shape = [r.randrange(5) if r.random() < 0.1 else r.randrange(1, 5) for _ in range(r.randrange(4))]
    return np.array([r.choice((low, high, 0, r.randint(low, high))) for _ in range(math.prod(shape))], dtype).reshape(
        shape
    )


_PLACES = ("bin", "hex", "mem", "coe", "mif", "ihex", "c", "json")


@functools.cache
def _word_base(base: int) -> tuple[bytes, bytes]:
    """A tensor's file in one of the formats of a dump, and what a manifest says of it."""
    r = Random(base)
    kind, dtype = r.choice(_PLACES), r.choice(list(INT_RANGE))
    width = r.choice((0, 0, 3, 8, 12, 31, 64, 65)) if kind in dump.PACKED else 0
    array = _array(r, dtype, width)
    how: dict[str, Any] = {"width": width, "per_word": 1, "endian": "little", "order": "C", "tile": None}
    if kind in dump.PACKED:
        axes = list(range(array.ndim))
        r.shuffle(axes)
        order = r.choice(("C", "C", "F", ",".join(map(str, axes)) or "C"))
        tile = r.choice((None, None, [2, 2], [1, 3], [4, 1]))
        how |= {"per_word": r.choice((1, 1, 2, 3, 8)), "order": order, "endian": r.choice(("little", "big"))}
        how |= {"tile": tile}
        if kind == "c" and (width or dump.word_bits(dtype, dump.Options(**how)) > 64):
            how |= {"width": 0, "per_word": 1}  # C has no longer constants
    options = dump._manifest_options(how)
    data = dump._encode("t", array, kind, options)
    said = {"kind": kind, "dtype": dtype, "shape": list(array.shape), "options": how}
    return data, json.dumps(said).encode()


class Words(_Held):
    """The file of one tensor in a format of a dump, with what the manifest says of it: dtype, shape, words, order."""

    name, weight = "words", 42

    def build(self, base: int, steps: Sequence[int]) -> Files:
        data, said = _word_base(base)
        for seed in steps:
            r = Random(seed)
            if r.random() < 0.15:
                said = _spoil_said(json.loads(said), r)
            else:
                data = spoil(data, r, 128)
        return {"said": said, "data": data}

    def read(self, folder: Path, files: Files) -> str:
        said = json.loads(files["said"])
        options = dump._manifest_options(said["options"])
        dump.check_options(said["kind"], options)
        found = dump._decode(files["data"], said["kind"], said["dtype"], said["shape"], options)
        if [found.dtype.name, list(found.shape)] != [said["dtype"], said["shape"]]:
            raise Disagreement(f"{said['kind']} read as {found.dtype} {found.shape}")
        return f"read, {said['kind']}"


def _spoil_said(said: dict[str, Any], r: Random) -> bytes:
    """Another entry that a manifest may hold: one that is none is refused before the tensor is read."""
    shape, options = said["shape"], said["options"]
    kind = r.randrange(4)
    if kind == 0 and shape:
        shape = list(shape)
        shape[r.randrange(len(shape))] = r.choice((0, 1, 2, 3, 7, 64, 1000))
        said["shape"] = shape
    elif kind == 1:
        said["dtype"] = r.choice(list(INT_RANGE))
    elif kind == 2 and said["kind"] in dump.PACKED:
        options["width"], options["per_word"] = r.choice((0, 1, 7, 8, 64, 1024)), r.choice((1, 2, 5, 1024))
    elif said["kind"] in dump.PACKED:
        options["endian"], options["tile"] = r.choice(("little", "big")), r.choice((None, [1, 1], [3, 2], [65535, 1]))
    return json.dumps(said).encode()


class Arrays(_Held):
    """npy files: header, order, dtype, bytes."""

    name, weight = "array", 12

    def build(self, base: int, steps: Sequence[int]) -> Files:
        data = _npy(base)
        for seed in steps:
            r = Random(seed)
            data = spoil_npy(data, r) if r.random() < 0.3 else spoil(data, r, 128)
        return {"a.npy": data}

    def read(self, folder: Path, files: Files) -> str:
        found = dump.read_npy(files["a.npy"])
        if found.dtype.kind not in "iufb":
            raise Disagreement(f"read as {found.dtype} {found.shape}")
        return "read"


@functools.cache
def _npy(base: int) -> bytes:
    r = Random(base)
    array = _array(r, r.choice(("int8", "int16", "int32")))
    array = np.asarray(array.astype(r.choice(("<i1", ">i2", "<i4", "<i8", "<f4", ">f8", "|b1", "<u2"))))
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asfortranarray(array) if r.random() < 0.3 else array, r.choice(((1, 0), (2, 0))))
    return file.getvalue()


class Headers(_Held):
    """Headers of safetensors files of any origin, as weights and as traces."""

    name, weight = "header", 20
    stages = (("_check_header", "header"), ("_parse_header", "header"), ("loads", "metadata"))

    def build(self, base: int, steps: Sequence[int]) -> Files:
        written, body = _safetensors(base)
        data: bytes | None = None
        header: Any = json.loads(written)
        for seed in steps:
            r = Random(seed)
            if data is None and isinstance(header, dict) and r.random() < 0.6:
                header = spoil_header(header, r)
            else:
                data = spoil(joined(header, body) if data is None else data, r, 300)
        return {"header": joined(header, body) if data is None else data}

    def read(self, folder: Path, files: Files) -> str:
        data = files["header"]
        if len(data) % 2:
            store.loads(data)
            return "a model"
        size = int.from_bytes(data[:8], "little")
        traces._parse_header(Path("header"), data[8 : 8 + size], len(data) - 8 - size)
        return "as a trace"


@functools.cache
def _safetensors(base: int) -> tuple[bytes, bytes]:
    r = Random(base)
    names = r.sample(("a", "b", "window0.head", "scale.a", "head.weight", "merged", "z-1"), r.randrange(1, 5))
    tensors = {name: _array(r, r.choice(("int8", "uint8", "int16", "int32", "int64"))) for name in names}
    said = ({"kind": "trace", "format": 1}, {"format": 4, "nodes": []}, {"op": "add"}, {"packed": {"a": {"bits": 3}}})
    metadata = r.choice((None, *(json.dumps(document) for document in said)))
    header, body = packed(tensors, metadata)
    return json.dumps(header).encode(), body


class Records(_Held):
    """Lines of the journals that `--resume` continues from: which lines count, under which header."""

    name, weight = "record", 10
    stages = (("lines_of", "settings"),)

    def build(self, base: int, steps: Sequence[int]) -> Files:
        header, lines = _journal(base)
        documents: list[Any] = [json.loads(line) for line in lines]
        late = []
        for seed in steps:
            r = Random(seed)
            i = r.randrange(len(documents))
            if r.random() < 0.6 and isinstance(documents[i], (dict, list)):
                documents[i] = spoil_json(documents[i], r, ("of", "item", "record", "written"))
            else:
                late.append(r)
        data = "".join(text(document) + "\n" for document in documents).encode("utf-8", "surrogatepass")
        for r in late:
            data = spoil(data, r)
        return {"header": header, "lines": data}

    def read(self, folder: Path, files: Files) -> str:
        header = json.loads(files["header"])
        found = journal.lines_of(files["lines"], Path("journal"), header, "begin again")
        if any(not isinstance(item, str) or not isinstance(line, dict) for item, line in found.items()):
            raise Disagreement("a line that is no object")
        return f"{min(len(found), 4)} lines"


@functools.cache
def _journal(base: int) -> tuple[bytes, tuple[str, ...]]:
    r = Random(base)
    kind = r.choice(("batch", "eval"))
    header = {f"intseg {kind}": journal.FORMAT, "model": f"{r.getrandbits(64):x}", "classes": r.randrange(200)}
    record: dict[str, Any] = {"width": r.randrange(2000), "classes": {"road": r.randrange(10**6)}, "notes": ["a"]}
    if kind == "eval":
        record = {"counts": [[r.randrange(9), r.randrange(10**6)]], "labels": f"{r.getrandbits(256):x}"}
    mark = journal._mark(header)
    lines = [{"of": mark, "item": f"{r.randrange(99)}.png", "record": record} for _ in range(r.randrange(4))]
    return json.dumps(header).encode(), tuple(json.dumps(line) for line in (header, *lines))


class Names(_Held):
    """Label maps as text: which value is stored for which class."""

    name, weight = "names", 5

    def build(self, base: int, steps: Sequence[int]) -> Files:
        r = Random(base)
        classes = [r.choice(("road", "sky", "ä", "a b", "x=y", "*", "c")) + str(i) for i in range(r.randrange(1, 6))]
        pairs = [f"{name}={r.choice((0, 1, 255, 65535, 65536, r.randrange(10**6)))}" for name in (*classes, "*")]
        data = ",".join(pairs).encode()
        for seed in steps:
            data = spoil(data, Random(seed), 128)
        if b"=" not in data:
            data += b"=1"  # else it is the name of a file
        return {"classes": json.dumps(classes).encode(), "map": data}

    def read(self, folder: Path, files: Files) -> str:
        mapping = files["map"].decode("utf-8", "surrogateescape")
        found = label_images.stored_values(json.loads(files["classes"]), mapping=mapping)
        if found.dtype != np.uint16:
            raise Disagreement(f"stored as {found.dtype}")
        return "stored"


class Numbers(_Held):
    """Whole numbers as text, each with its range."""

    name, weight = "number", 3

    def build(self, base: int, steps: Sequence[int]) -> Files:
        r = Random(base * 2**32 + sum(steps))
        digits = str(r.getrandbits(r.choice((4, 16, 31, 32, 62, 63, 64, 70)))) * r.choice((1, 1, 1, 1, 1, 300))
        data = (r.choice(("", "", "-", "+", " ", "0x", "٣", "1_")) + digits).encode()
        for seed in steps[1:]:
            data = spoil(data, Random(seed), 128)
        return {"range": json.dumps([r.choice((-(2**31), 0, 1)), 2 ** r.randrange(1, 63)]).encode(), "number": data}

    def read(self, folder: Path, files: Files) -> str:
        low, high = json.loads(files["range"])
        value = number(files["number"].decode("utf-8", "surrogateescape"), low, high)
        if not low <= value <= high:
            raise Disagreement(f"{value} is outside of {low} to {high}")
        return "a number"


class Pictures(Spoiled):
    """Pictures of a few pixels in every format and mode, as images and as label images."""

    name, weight, bases, held = "picture", 8, 600, True

    def base(self, base: int) -> tuple[str, bytes]:
        return _picture(base)

    def read(self, folder: Path, files: Files) -> str:
        (data,) = files.values()
        if len(data) % 3:
            checked(pictures.decode(data, (1, 2, 3)).rgb)
            return "decoded"
        label_images._stored(data, "labels.png")
        return "decoded as labels"


_MODES = {
    "PNG": ("RGB", "L", "P", "1", "LA", "RGBA", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "BMP": ("RGB", "L", "P", "1", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("RGB", "L", "P", "1", "CMYK", "RGBA", "I;16"),
    "PPM": ("RGB", "L", "1", "I;16"),
    "GIF": ("P", "L"),
}


@functools.cache
def _picture(base: int) -> tuple[str, bytes]:
    """A format in small letters, and a file of up to 12 x 12 pixels."""
    if base < 43:
        return image_bases()[base]
    r = Random(base)
    kind = r.choice(list(_MODES))
    mode = r.choice(_MODES[kind])
    size = r.randrange(1, 13), r.randrange(1, 13)
    pixels = np.frombuffer(r.randbytes(size[0] * size[1] * 3), np.uint8).reshape(size[1], size[0], 3)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(pixels).convert(mode)
    options = {"TIFF": {"compression": r.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))}}.get(kind, {})
    return kind.lower(), encoded(image, kind, **options)
