"""A loaded model: found by name, file or folder, read and validated once, remembered by the sha256 of its file."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from intseg import backends, files, models, store
from intseg.errors import MAX_THREADS, InputError, MismatchError, ModelError, UsageError, printable, suggest
from intseg.graph import Graph, ModelInfo, validate
from intseg.windows import at_scale

_REMEMBERED = 4
_MAX_CONFIG = 16 * 2**20
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_lock = threading.RLock()


def _forget_lock() -> None:
    """A forked child has none of the threads that might hold it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)

_models: dict[tuple[Path, str, tuple[str, ...] | None], Model] = {}


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded, validated model. It may be used from several threads at once, and pickled.

    graph   nodes, tensors and what is known about them
    sha256  of the bytes of its file
    path    of its file

    scale   what `at_scale` was given; None: the file says at which size images are segmented

    Pickled as path, sha256, class names and scale: unpickling reads the file, and raises MismatchError if that changed.
    """

    graph: Graph = field(repr=False)
    sha256: str
    path: Path
    scale: int | str | None = None
    _compiled: dict[tuple[str, int | None], backends.Forward] = field(default_factory=dict, init=False, repr=False)

    @property
    def info(self) -> ModelInfo:
        """Name, classes, palette, window, patch and the rest that the arithmetic does not need."""
        return self.graph.info

    def compiled(self, backend: str = "auto", threads: int | None = None) -> backends.Forward:
        """A function from one window uint8 [window height, window width, 3] to its scores; built once, then kept."""
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"threads is {threads}, expected 1 to {MAX_THREADS}, or None for every core")
        key = (backends.resolve(backend), threads)
        with _lock:
            if key not in self._compiled:
                self._compiled[key] = backends.compile(self.graph, *key)
            return self._compiled[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (str(self.path.absolute()), self.sha256, self.info.classes, self.scale)

    def at_scale(self, scale: int | str | None) -> Model:
        """The model with another size at which images are segmented (SPEC.md, section 7).

        scale  pixels of the short side, at least the window; "native": images as they are; None: this model
        Raises UsageError.
        """
        if scale is None:
            return self
        other = replace(self, graph=replace(self.graph, info=at_scale(self.info, scale)), scale=scale)
        other._compiled.update(self._compiled)
        return other

    @property
    def identity(self) -> str:
        """sha256, and the scale if it is not the file's own: what results depend on."""
        return self.sha256 if self.scale is None else f"{self.sha256} at scale {self.scale}"

    def __repr__(self) -> str:
        info = self.info
        return printable(
            f"<intseg.Model {info.name}: {len(info.classes)} classes, window {info.window[0]} x {info.window[1]}, "
            f"recipe {info.recipe}, {len(self.graph.nodes)} nodes, sha256 {self.sha256[:12]}>"
        )


def load(weights: str | os.PathLike[str] | Model | None = None) -> Model:
    """A model from its file or its folder.

    weights  the name of a bundled model (`intseg.models.names()`), a file, a folder as on the Hugging Face hub, or
             None for the bundled default. A bundled name wins over a file of that name in the working folder;
             "./name" is always a path. Of a folder, model.safetensors is read (or the only .safetensors file), and the
             class names from id2label of config.json where it is there
    Raises InputError when the file cannot be read, ModelError when it is not a valid model.
    """
    if isinstance(weights, Model):
        return weights
    if weights is None or (isinstance(weights, str) and weights in models.names()):
        return _load(models.path(weights or models.DEFAULT), None)
    path = Path(weights)
    if path.is_dir():
        return _load(_weights_in(path), _configured_names(path / _CONFIG))
    hint = suggest(str(weights), models.names())
    if hint and not path.exists():
        raise InputError(f"{path}: no such weights file or bundled model{hint}; intseg inspect --list has these")
    return _load(path, None)


def _load(path: Path, names: tuple[str, ...] | None) -> Model:
    """The model of a file, remembered; with other class names if given."""
    data = store.read(path)
    key = (path.absolute(), hashlib.sha256(data).hexdigest(), names)
    with _lock:
        if key not in _models:
            model = Model(_renamed(store.parse(path, data), names, path), key[1], path)
            while len(_models) >= _REMEMBERED:
                del _models[next(iter(_models))]
            _models[key] = model
        return _models[key]


def _renamed(graph: Graph, names: tuple[str, ...] | None, path: Path) -> Graph:
    if names is None or names == graph.info.classes:
        return graph
    if len(names) != len(graph.info.classes):
        raise ModelError(
            f"{path.parent / _CONFIG}: id2label names {len(names)} classes, {path.name} has "
            f"{len(graph.info.classes)}; correct it, or remove it to use the names in the weights"
        )
    renamed = replace(graph, info=replace(graph.info, classes=names))
    try:
        validate(renamed)
    except ModelError as error:
        raise ModelError(f"{path.parent / _CONFIG}: {error}") from None
    return renamed


def _weights_in(folder: Path) -> Path:
    """The weights file of a model folder. Raises InputError unless there is one."""
    if (folder / _WEIGHTS).is_file():
        return folder / _WEIGHTS
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise InputError(
            f"{folder}: cannot read weights: {len(found)} .safetensors files in this folder, expected {_WEIGHTS}; "
            "give the folder or the file that intseg convert wrote"
        )
    return found[0]


def _configured_names(path: Path) -> tuple[str, ...] | None:
    """Class names from id2label of a config.json; None where there is no such file or entry. Raises ModelError."""
    if not os.path.lexists(path):
        return None
    text = files.read_text(path, "", "correct it, or remove it to use the names in the weights", limit=_MAX_CONFIG)
    try:
        config = files.parse_json(text)
    except ValueError:
        raise ModelError(f"{path}: is not JSON; correct it, or remove it to use the names in the weights") from None
    found = config.get("id2label") if isinstance(config, dict) else None
    if found is None:
        return None
    numbers = [str(i) for i in range(len(found))] if isinstance(found, dict) else []
    if not numbers or set(found) != set(numbers) or not all(isinstance(name, str) for name in found.values()):
        raise ModelError(f'{path}: id2label is {found!r:.60}, expected {{"0": name, "1": name, ...}}; correct it')
    return tuple(found[number] for number in numbers)


def _restore(path: str, sha256: str, names: tuple[str, ...], scale: int | str | None) -> Model:
    """Unpickle a model. Raises InputError when its file is gone, MismatchError when it changed."""
    model = _load(Path(path), None)
    if model.sha256 != sha256:
        raise MismatchError(f"{path}: sha256 is {model.sha256[:12]}, expected {sha256[:12]}: the file changed; load it")
    return (model if model.info.classes == names else _load(Path(path), names)).at_scale(scale)


class Carried:
    """A model that travels with its file: unpickled it is the `Model`, where that file cannot be read too.

    Raises InputError when the file is gone, MismatchError when it changed.
    """

    def __init__(self, model: Model) -> None:
        self.data = store.read(model.path)
        found = hashlib.sha256(self.data).hexdigest()
        if found != model.sha256:
            raise MismatchError(
                f"{model.path}: sha256 is {found[:12]}, expected {model.sha256[:12]}: the file changed; load it"
            )
        self.about = str(model.path.absolute()), model.info.classes, model.scale

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.data, *self.about)


def _unpacked(data: bytes, path: str, names: tuple[str, ...], scale: int | str | None) -> Model:
    graph = _renamed(store.parse(Path(path), data), names, Path(path))
    return Model(graph, hashlib.sha256(data).hexdigest(), Path(path)).at_scale(scale)
