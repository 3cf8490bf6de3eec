"""Tensors for other tools and back: npy, npz, JSON, raw binary, and memories as text (memory_files.py).

A dump is a folder: one file a tensor (one for all with npz) and `manifest.json`, which says for every tensor its file,
dtype, shape, scale, sha256, and how its elements lie in the file. `read_folder` gives back the tensors exactly.

Elements are put in order (axes permuted, then cut into tiles), brought to `width` bits in two's complement, and
`per_word` of them make a word. With endian little the first element lies in the lowest bits and the lowest byte comes
first in raw binary; with big the first element lies in the highest bits and the highest byte comes first.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import files, store
from intseg.arith import INT_RANGE
from intseg.errors import InputError, UsageError
from intseg.ops import Array
from intseg.store import NAME
from intseg.workbench import memory_files
from intseg.workbench.trace import SEPARATOR, TensorFile, Writer

MANIFEST = "manifest.json"
FORMAT = 1
FORMATS = ("npy", "npz", "bin", "hex", "mem", "coe", "mif", "ihex", "c", "json")
PACKED = ("bin", "hex", "mem", "coe", "mif", "ihex", "c")
"""Formats made of words; the others hold whole elements and take no width, words, endianness, order or tile."""

_ENDINGS = {"c": "h", "ihex": "hex"}
_DTYPES = tuple(INT_RANGE)
_CHUNK = 1 << 16
_MAX_ELEMENTS = 2**32
_MAX_RANK = 8
_CHUNK_BITS = 1 << 22
_NPY_HEADER = 11_000
"""Bytes of a npy header at most."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """How elements lie in a file.

    width     bits per element; 0 for those of the dtype, or those that a packed tensor has in its file
    per_word  elements per word
    endian    little or big
    order     "C", "F" (axes reversed) or axes joined by commas: the last one is then the fastest
    tile      (rows, columns) over the last two axes of that order: tiles row by row, filled up with zeros
    """

    width: int = 0
    per_word: int = 1
    endian: str = "little"
    order: str = "C"
    tile: tuple[int, int] | None = None


# ---------------------------------------------------------------------------------------------------- element order


def _axes(order: str, rank: int) -> tuple[int, ...]:
    """The axes in the order of storage. Raises UsageError when `order` does not fit the rank."""
    if order == "C":
        return tuple(range(rank))
    if order == "F":
        return tuple(range(rank))[::-1]
    axes = tuple(int(part) if re.fullmatch("[0-9]{1,3}", part) else -1 for part in map(str.strip, order.split(",")))
    if sorted(axes) != list(range(rank)):
        raise UsageError(f"order {order!r} is not C, F or a permutation of the {rank} axes; use --tensors to choose")
    return axes


def _tiles(shape: Sequence[int], tile: tuple[int, int]) -> tuple[int, int, int]:
    """Matrices, tile rows and tile columns of a tensor seen as [..., rows, columns]."""
    rows, columns = ([1, 1, *shape])[-2:]
    return math.prod(shape[:-2]), -(-rows // tile[0]), -(-columns // tile[1])


def arrange(array: Array, options: Options) -> Array:
    """The elements in the order of storage, one axis."""
    ordered = np.ascontiguousarray(array.transpose(_axes(options.order, array.ndim)))
    if options.tile is None or not ordered.size:
        return ordered.reshape(-1)
    (high, wide), (count, down, across) = options.tile, _tiles(ordered.shape, options.tile)
    rows, columns = ([1, 1, *ordered.shape])[-2:]
    padded = np.zeros((count, down * high, across * wide), array.dtype)
    padded[:, :rows, :columns] = ordered.reshape(count, rows, columns)
    return padded.reshape(count, down, high, across, wide).transpose(0, 1, 3, 2, 4).reshape(-1)


def stored_count(shape: Sequence[int], options: Options) -> int:
    """Elements in a file, tiles filled up."""
    size = math.prod(shape)
    if options.tile is None or not size:
        return size
    ordered = [shape[i] for i in _axes(options.order, len(shape))]
    return math.prod(_tiles(ordered, options.tile)) * options.tile[0] * options.tile[1]


def restore(flat: Array, shape: Sequence[int], options: Options) -> Array:
    """The inverse of `arrange`."""
    axes = _axes(options.order, len(shape))
    ordered = [shape[i] for i in axes]
    if options.tile is not None and flat.size:
        (high, wide), (count, down, across) = options.tile, _tiles(ordered, options.tile)
        rows, columns = ([1, 1, *ordered])[-2:]
        tiles = flat.reshape(count, down, across, high, wide).transpose(0, 1, 3, 2, 4)
        flat = tiles.reshape(count, down * high, across * wide)[:, :rows, :columns]
    natural = flat.reshape(ordered).transpose([axes.index(i) for i in range(len(axes))])
    return np.ascontiguousarray(natural).reshape(tuple(shape))


# ------------------------------------------------------------------------------------------------------------ words


def word_bits(dtype: str, options: Options) -> int:
    """Bits of a word."""
    return (options.width or 8 * np.dtype(dtype).itemsize) * options.per_word


def pack(flat: Array, options: Options) -> Iterator[Bytes]:
    """Words of a tensor in order, uint8 [some, bytes of a word], the lowest byte first, whatever `endian` is."""
    width = options.width or 8 * flat.dtype.itemsize
    step = _CHUNK // options.per_word * options.per_word or options.per_word
    for start in range(0, flat.size, step):
        part = flat[start : start + step].astype(np.int64)
        part = np.pad(part, (0, -part.size % options.per_word))
        bits = (part[:, None] >> np.arange(width).clip(max=63)) & 1  # beyond 64 bits the sign
        words = bits.astype(np.uint8).reshape(-1, options.per_word, width)
        if options.endian == "big":
            words = words[:, ::-1]
        yield np.packbits(words.reshape(len(words), -1), axis=1, bitorder="little")


def unpack(words: Bytes, dtype: str, count: int, options: Options) -> Array:
    """The inverse of `pack`: the first `count` elements. Raises InputError when the rest is not zero."""
    step = max(1, _CHUNK_BITS // word_bits(dtype, options))
    parts = [_unpack(words[i : i + step], dtype, options) for i in range(0, len(words), step)]
    values = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    if values[count:].any():
        raise InputError("elements after the last one are not zero; was it written with another word width?")
    return _exact(values[:count], dtype)


def _unpack(words: Bytes, dtype: str, options: Options) -> Array:
    """Elements of some words, int64."""
    width = options.width or 8 * np.dtype(dtype).itemsize
    bits = np.unpackbits(words, axis=1, bitorder="little")
    total = width * options.per_word
    if bits[:, total:].any():
        raise InputError(f"a word has bits above its {total} bits; was it written with another word width?")
    bits = bits[:, :total].reshape(-1, options.per_word, width)
    if options.endian == "big":
        bits = bits[:, ::-1]
    elements = bits.reshape(-1, width)
    used = elements[:, : min(width, 64)].astype(np.int64)
    values: Array = (used << np.arange(used.shape[1])).sum(axis=1)
    if dtype.startswith("int") and width < 64:
        values -= used[:, -1] << width
    return values


def _exact(values: Array, dtype: str) -> Array:
    low, high = INT_RANGE[dtype]
    if values.size and (int(values.min()) < low or int(values.max()) > high):
        raise InputError(f"values in [{values.min()}, {values.max()}] do not fit {dtype}; another word width?")
    return values.astype(dtype)


def _require_width(name: str, array: Array, options: Options) -> None:
    """Every value fits the width. Raises UsageError naming the width that is needed."""
    if not options.width or not array.size:
        return
    low, high = int(array.min()), int(array.max())
    signed = array.dtype.kind == "i"
    needed = max(1, high.bit_length() + signed, (~low).bit_length() + 1 if low < 0 else 1)
    if options.width < needed:
        raise UsageError(
            f"tensor {name!r} has values in [{low}, {high}], which need {needed} bits, found --width {options.width}; "
            "give a larger one, or choose tensors with --tensors"
        )


# ---------------------------------------------------------------------------------------------------- file contents


def _encode(name: str, array: Array, kind: str, options: Options) -> bytes:
    """The content of a tensor's file."""
    if kind == "npy":
        buffer = io.BytesIO()
        np.save(buffer, store.little(array), allow_pickle=False)
        return buffer.getvalue()
    if kind == "json":
        document = {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.reshape(-1).tolist()}
        return (json.dumps(document, separators=(",", ":")) + "\n").encode()
    chunks, bits = pack(arrange(array, options), options), word_bits(array.dtype.name, options)
    if kind == "bin":
        return b"".join((c[:, ::-1] if options.endian == "big" else c).tobytes() for c in chunks)
    lines = memory_files.lines(chunks, bits, "b" if kind == "mem" else "x")
    if kind == "coe":
        text = memory_files.coe(lines)
    elif kind == "mif":
        text = memory_files.mif(lines, -(-stored_count(array.shape, options) // options.per_word), bits)
    elif kind == "ihex":
        text = memory_files.ihex(lines, bits)
    elif kind == "c":
        whole = options.per_word == 1 and bits == 8 * array.dtype.itemsize
        text = memory_files.c_header(name, array.dtype, array.shape, lines, bits, whole)
    else:
        text = "".join(f"{line}\n" for line in lines)
    return text.encode()


def _decode(data: bytes, kind: str, dtype: str, shape: Sequence[int], options: Options) -> Array:
    """The tensor of a file's content. Raises InputError for whatever is not one."""
    if kind == "npy":
        return read_npy(data)
    if kind == "json":
        return _decode_json(data, dtype, shape)
    count, bits = stored_count(shape, options), word_bits(dtype, options)
    words = -(-count // options.per_word)
    size = -(-bits // 8)
    if kind == "bin":
        if len(data) != words * size:
            raise InputError(
                f"{len(data)} bytes, expected {words * size} ({words} words of {bits} bits): "
                "truncated, or another word width"
            )
        raw = np.frombuffer(data, np.uint8).reshape(words, size)
        raw = raw[:, ::-1] if options.endian == "big" else raw
    else:
        raw = memory_files.parse(data, kind, words, bits)
    return restore(unpack(raw, dtype, count, options), shape, options)


def read_npy(data: bytes) -> Array:
    """The array of a npy file. Raises InputError for whatever is not one of plain numbers.

    np.load allocates what the header claims, and its parser raises whatever Python's does.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:
        raise InputError(f"not a npy file ({type(error).__name__}: {error!s:.100})") from None
    size = math.prod(shape) * dtype.itemsize
    if (
        version not in ((1, 0), (2, 0))
        or dtype.kind not in "iufb"
        or len(shape) > _MAX_RANK
        or min(shape, default=0) < 0
    ):
        raise InputError(f"a npy file of version {version} with {dtype} {list(shape)}, expected an array of numbers")
    if size != len(data) - file.tell():
        raise InputError(f"{len(data) - file.tell()} bytes, expected {size} for {dtype} {list(shape)}: truncated")
    if not size:
        return np.zeros(0, dtype).reshape([min(n, 2**40) for n in shape])
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def read_npz(path: str | os.PathLike[str], limits: Mapping[str, int]) -> dict[str, Array]:
    """Arrays of a npz file by name, of those that `limits` names. Raises InputError.

    limits  bytes of the elements at most: a packed file of a megabyte may hold a gigabyte
    """
    found: dict[str, Array] = {}
    try:
        with files.opened(path) as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name not in limits:
                    continue
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise InputError("packed in an unknown way, expected np.savez or np.savez_compressed")
                if member.file_size > limits[name] + _NPY_HEADER:
                    raise InputError(f"array {name!r} has {member.file_size} bytes, expected at most {limits[name]}")
                if member.compress_size > size:  # zipfile would allocate what the directory claims
                    raise InputError(f"array {name!r} has {member.compress_size} packed bytes, more than the file")
                found[name] = read_npy(archive.read(member))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # zipfile raises many types for a damaged file
        raise InputError(f"cannot be read ({type(error).__name__}: {error!s:.100})") from None
    return found


def _decode_json(data: bytes, dtype: str, shape: Sequence[int]) -> Array:
    try:
        values = files.parse_json(data)["data"]
        if any(type(v) is not int for v in values) or len(values) != math.prod(shape):
            raise ValueError(f"{len(values)} values, expected {math.prod(shape)} integers")
        array = np.array(values, dtype=dtype).reshape(shape)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"not a tensor in JSON ({error})") from None
    return array


# ---------------------------------------------------------------------------------------------------------- writing


def sha256(array: Array) -> str:
    """sha256 of the elements in C order, little-endian."""
    return hashlib.sha256(store.little(array).tobytes()).hexdigest()


def check_options(kind: str, options: Options) -> None:
    """Raise UsageError for options that do not fit the format."""
    if kind not in FORMATS:
        raise UsageError(f"format {kind!r} is unknown, expected one of {', '.join(FORMATS)}")
    if kind not in PACKED and options != Options():
        raise UsageError(
            f"format {kind} holds whole elements: --width, --per-word, --endian, --order, --tile do not apply"
        )
    if not 0 <= options.width <= 1024 or not 1 <= options.per_word <= 1024:
        raise UsageError(f"width {options.width} and {options.per_word} elements per word, expected 1 to 1024 of each")
    if options.endian not in ("little", "big"):
        raise UsageError(f"endian is {options.endian!r}, expected little or big")
    if options.tile is not None and min(options.tile) < 1:
        raise UsageError(f"tile {options.tile[0]}x{options.tile[1]}, expected positive numbers such as 16x16")


def write_folder(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    kind: str,
    options: Options | None = None,
    pattern: str = "*",
) -> int:
    """Dump the tensors of a trace or a model file. Returns how many.

    folder   is created; it must not hold anything
    pattern  names of tensors as fnmatch patterns, joined by commas
    Raises UsageError for options, InputError for files; nothing is left then.
    """
    options = options or Options()
    check_options(kind, options)
    file = TensorFile(source)
    names = [n for n in file.names() if any(fnmatch.fnmatchcase(n, p) for p in pattern.split(","))]
    if not names:
        raise UsageError(
            f"{source}: no tensor matches {pattern!r}, expected names such as {next(iter(file.names()), '')!r}"
        )
    for name in names:
        _require_dumpable(name, file, kind, options)
    with files.new_folder(Path(folder)) as target:
        _write_tensors(file, names, target, kind, options)
    return len(names)


def _options_of(name: str, file: TensorFile, kind: str, options: Options) -> Options:
    """The options with the width of a packed tensor, unless they have one."""
    if kind not in PACKED or options.width or name not in file.packed:
        return options
    return replace(options, width=file.packed[name][0])


def _require_dumpable(name: str, file: TensorFile, kind: str, options: Options) -> None:
    dtype, shape = file.kind(name)
    options = _options_of(name, file, kind, options)
    if dtype not in _DTYPES:
        raise UsageError(f"tensor {name!r} is {dtype}, expected one of {', '.join(_DTYPES)}")
    if kind == "c" and word_bits(dtype, options) > 64:
        raise UsageError(f"words of {word_bits(dtype, options)} bits, expected at most 64 in C; lower --per-word")
    if kind == "ihex" and word_bits(dtype, options) > memory_files.MAX_IHEX_BITS:
        raise UsageError(
            f"words of {word_bits(dtype, options)} bits, expected at most {memory_files.MAX_IHEX_BITS} in Intel HEX; "
            "lower --per-word"
        )
    _axes(options.order, len(shape))


def _write_tensors(file: TensorFile, names: Sequence[str], target: Path, kind: str, common: Options) -> None:
    tensors: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for name in names:
        array, options = file.read(name), _options_of(name, file, kind, common)
        _require_width(name, array, options)
        path = "tensors.npz" if kind == "npz" else f"{name}.{_ENDINGS.get(kind, kind)}"
        tensors[name] = {
            "file": path,
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "scale": _scale(file, name),
            "sha256": sha256(array),
        }
        if kind in PACKED:
            bits = word_bits(array.dtype.name, options)
            count = -(-stored_count(array.shape, options) // options.per_word)
            tensors[name] |= {"width": bits // options.per_word, "word_bits": bits, "words": count}
        if kind == "npz":
            arrays[name] = store.little(array)
        else:
            with files.create(target / path) as out:
                out.write(_encode(name, array, kind, options))
    if kind == "npz":
        with files.create(target / "tensors.npz") as out:
            np.savez(out, allow_pickle=False, **arrays)
    document = {"format": FORMAT, "kind": kind, "options": asdict(common), "source": file.metadata, "tensors": tensors}
    with files.create(target / MANIFEST) as out:
        out.write((json.dumps(document, indent=1, sort_keys=False) + "\n").encode("ascii"))


def _scale(file: TensorFile, name: str) -> Any:
    """mult, offset, shift of a traced node as nested lists, None where the file does not know."""
    node = name.split(".", 1)[1] if name.startswith("window") and "." in name else ""
    if SEPARATOR in name or f"scale.{node}" not in file:
        return None
    planes = file.read(f"scale.{node}")
    if planes.ndim == 0 or len(planes) != 3 or planes.dtype != np.int32:
        raise InputError(f"{file.path}: tensor 'scale.{node}' is no scale; write the file again")
    return dict(zip(("mult", "offset", "shift"), planes.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Folder:
    """A dump opened for reading, tensors on demand.

    path      of the folder
    metadata  of the trace or model it was made from, None without
    tensors   name -> entry of the manifest
    """

    path: Path
    kind: str
    options: Options
    metadata: dict[str, Any] | None
    tensors: Mapping[str, Mapping[str, Any]]

    def read(self, name: str, check: bool = False) -> Array:
        """A tensor as it is in the folder; npy and npz may hold another dtype than the manifest says.

        check   also refuse what differs from the manifest: dtype, shape, sha256
        Raises InputError naming the file.
        """
        entry = self.tensors[name]
        path = self.path / entry["file"]
        try:
            if self.kind == "npz":
                limit = math.prod(entry["shape"]) * 8
                array = read_npz(path, {name: limit}).get(name, np.zeros(0))
                if array.dtype.kind == "f" and not array.size:
                    raise InputError("is not in the file")
            else:
                array = _decode(files.read(path), self.kind, entry["dtype"], entry["shape"], self._options_of(entry))
        except InputError as error:
            raise InputError(f"{path}: tensor {name!r}: {error}; dump it again") from None
        if check:
            self._check(path, name, array)
        return array

    def _options_of(self, entry: Mapping[str, Any]) -> Options:
        """With the width that the tensor itself has."""
        return replace(self.options, width=self.options.width or entry.get("width", 0))

    def _check(self, path: Path, name: str, array: Array) -> None:
        entry = self.tensors[name]
        if (array.dtype.name, list(array.shape)) != (entry["dtype"], entry["shape"]):
            raise InputError(
                f"{path}: tensor {name!r} is {array.dtype} {list(array.shape)}, "
                f"expected {entry['dtype']} {entry['shape']} by the manifest"
            )
        if sha256(array) != entry["sha256"]:
            raise InputError(f"{path}: tensor {name!r} does not have the sha256 of the manifest: it was changed")


def open_folder(path: str | os.PathLike[str]) -> Folder:
    """A folder with a manifest. Raises InputError when there is none or it is malformed."""
    folder = Path(path)
    try:
        document = files.parse_json(files.read_text(folder / MANIFEST, "", "give a folder of intseg dump"))
        if document["format"] != FORMAT:
            raise InputError(f"{folder / MANIFEST}: format {document['format']!r}, expected {FORMAT}; dump it again")
        options = _manifest_options(document["options"])
        check_options(document["kind"], options)
        tensors = {name: _manifest_entry(name, entry) for name, entry in document["tensors"].items()}
        for entry in tensors.values():
            _axes(options.order, len(entry["shape"]))
        metadata = document["source"]
        if metadata is not None and not isinstance(metadata, dict):
            raise ValueError("source is not an object")
        return Folder(folder, document["kind"], options, metadata, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise InputError(f"{folder / MANIFEST}: is not a manifest of intseg dump ({error}); dump it again") from None


def _manifest_options(found: Mapping[str, Any]) -> Options:
    """The options, every one of its exact type."""
    kinds = {"width": int, "per_word": int, "endian": str, "order": str, "tile": (list, type(None))}
    if set(found) != set(kinds) or any(type(v) is bool or not isinstance(v, kinds[k]) for k, v in found.items()):  # type: ignore[arg-type]
        raise ValueError(f"options are {found!r:.80}")
    tile = found["tile"]
    if tile is not None and (len(tile) != 2 or any(type(n) is not int or not 0 < n < 2**16 for n in tile)):
        raise ValueError(f"tile is {tile!r:.80}")
    return Options(**{**found, "tile": None if tile is None else (tile[0], tile[1])})


def _manifest_entry(name: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    shape, file = entry["shape"], entry["file"]
    if not NAME.fullmatch(name):
        raise ValueError(f"tensor name {name[:80]!r}")
    if (
        type(shape) is not list
        or len(shape) > _MAX_RANK
        or any(type(n) is not int or not 0 <= n < 2**40 for n in shape)
    ):
        raise ValueError(f"tensor {name!r} has shape {shape!r:.80}")
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"tensor {name!r} has shape {shape!r:.80}")
    if entry["dtype"] not in _DTYPES or file in (".", "..") or not re.fullmatch(r"[A-Za-z0-9_.-]{1,250}", file):
        raise ValueError(f"tensor {name!r} is {entry['dtype']!r:.40} in {file!r:.80}")
    width = entry.get("width", 1)
    if type(width) is not int or not 1 <= width < 2**16:
        raise ValueError(f"tensor {name!r} has words of {width!r:.40} bits")
    if not isinstance(entry["sha256"], str):
        raise ValueError(f"tensor {name!r} has no sha256")
    return entry


def read_folder(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> int:
    """Write the tensors of a dump to one safetensors file, each as the manifest says. Returns how many.

    Raises InputError for a folder that is not whole; nothing is written then.
    """
    folder = open_folder(path)
    with Writer(Path(output), folder.metadata, list(folder.tensors)) as writer:
        for name in folder.tensors:
            writer.put(name, folder.read(name, check=True))
    return len(folder.tensors)
