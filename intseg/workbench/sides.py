"""Both sides of a comparison: the golden trace, and what another implementation gave, in whatever files."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intseg import api, files
from intseg.errors import InputError, UsageError
from intseg.images.decode import SUFFIXES
from intseg.ops import Array
from intseg.workbench import trace as traces
from intseg.workbench.dump import MANIFEST, Folder, Options, _decode, _exact, open_folder, read_npy, read_npz
from intseg.workbench.trace import TensorFile, Trace

TEXTS = {".hex": "hex", ".mem": "mem", ".bin": "bin", ".coe": "coe", ".mif": "mif"}
"""Files of one tensor without a manifest, by ending; a .hex that begins with a colon is Intel HEX."""

ENDS = ("merged", "labels")
"""What is compared after the nodes where both sides have it."""


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
class Arrays:
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
    """How numbers lie in hex, mem, bin, coe and mif files without a manifest: one a word.

    width     bits of a word; 0 for those of the golden dtype
    unsigned  whether negative numbers were filled up with zeros, not with their sign
    """

    width: int = 0
    unsigned: bool = False


def open_other(
    path: str | os.PathLike[str], golden: Trace, node: str | None = None, window: int = 0, words: Words | None = None
) -> Other:
    """The other side: a trace, a folder of `intseg dump`, of files of one tensor each, an npz, or one tensor.

    node, window  which tensor a single file holds; by default the one of the file's name
    words         of hex, mem, bin, coe and mif files without a manifest
    Raises InputError when it cannot be read, UsageError when it is not known what a file holds.
    """
    source = Path(path)
    if source.is_dir():
        if (source / MANIFEST).exists():
            return _Folder(open_folder(source))
        return _bare_folder(source, golden, words or Words())
    if source.suffix == ".npz":
        return Arrays(_load_npz(source, golden))
    if source.suffix in (".npy", *TEXTS):
        name = f"window{window}.{node}" if node else _full(source.stem)
        return Arrays({name: _load_single(source, name, golden, words or Words())})
    return TensorFile(source)


def _bare_folder(folder: Path, golden: Trace, words: Words) -> Arrays:
    """A folder without a manifest: files that are named like their nodes. Others are left aside, and counted."""
    found = [file for file in sorted(folder.iterdir()) if file.suffix in (".npy", *TEXTS)]
    known = {file: _full(file.stem) for file in found if _full(file.stem) in golden.file}
    if not known:
        hint = f"found {len(found)}, such as {found[0].name}" if found else "found none"
        wanted = f"{golden.nodes[0]}.hex"
        raise InputError(
            f"{folder}: holds neither {MANIFEST} nor npy, hex, mem, bin, coe or mif files named like nodes ({hint}, "
            f"expected such as {wanted})"
        )
    aside = [file.name for file in found if file not in known]
    notes = (f"left aside, not named like a node: {len(aside)}, the first is {aside[0]}",) if aside else ()
    return Arrays({name: _load_single(file, name, golden, words) for file, name in known.items()}, None, notes)


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
    kind = "ihex" if path.suffix == ".hex" and data.lstrip().startswith(b":") else TEXTS[path.suffix]
    try:
        if not words.width:
            return _decode(data, kind, dtype, shape, Options())
        values = _decode(data, kind, "int64", shape, Options(words.width))
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
        file.close()
    golden = Trace(_Held(file, held), model)
    golden.notes = tuple(f"{path}: {note}" for note in traced.notes)
    return golden


class _Held(TensorFile):
    """A tensor file whose tensors are in memory: the file itself may be gone."""

    held: Mapping[str, Array]

    def __init__(self, file: TensorFile, held: Mapping[str, Array]) -> None:
        vars(self).update(vars(file), held=held)

    def read(self, name: str) -> Array:
        return self.held[name]
