"""From Python: `load` a model, `run` it on an image of any size, `trace` every intermediate of it.

A second run with the same weights is fast: models are remembered by the sha256 of their file, and what a backend
made of a model with the model.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intseg import backends, models, store
from intseg import image as pictures
from intseg.errors import UsageError
from intseg.executor import execute
from intseg.graph import Graph, ModelInfo, Node

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]

_REMEMBERED = 4
_IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_lock = threading.RLock()
_models: dict[tuple[Path, str], Model] = {}


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded, validated model.

    graph   nodes, tensors and what is known about them
    sha256  of the bytes of its file
    path    of its file
    """

    graph: Graph = field(repr=False)
    sha256: str
    path: Path
    _compiled: dict[tuple[str, int | None], backends.Forward] = field(default_factory=dict, init=False, repr=False)

    @property
    def info(self) -> ModelInfo:
        """Name, classes, palette, window, patch and the rest that the arithmetic does not need."""
        return self.graph.info

    def compiled(self, backend: str = "auto", threads: int | None = None) -> backends.Forward:
        """A function from one window uint8 [window height, window width, 3] to its scores; built once, then kept."""
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}, expected at least 1, or None for every core")
        key = (backends.resolve(backend), threads)
        with _lock:
            if key not in self._compiled:
                self._compiled[key] = backends.compile(self.graph, *key)
            return self._compiled[key]

    def __repr__(self) -> str:
        info = self.info
        return (
            f"<intseg.Model {info.name}: {len(info.classes)} classes, window {info.window[0]} x {info.window[1]}, "
            f"recipe {info.recipe}, {len(self.graph.nodes)} nodes, sha256 {self.sha256[:12]}>"
        )


@dataclass(frozen=True, eq=False)
class Result:
    """What `run` found.

    labels   uint8 [H, W], uint16 above 256 classes: the class index of every pixel
    scores   int32 [h, w, C]: integer scores on the patch grid of the padded image (SPEC.md, section 7)
    image    uint8 [H, W, 3]: the decoded image
    model    what was run
    backend  "numpy" or "numba": the labels do not depend on it
    notes    what was done to decode the image, one sentence each
    """

    labels: Array
    scores: NDArray[np.int32]
    image: NDArray[np.uint8]
    model: Model
    backend: str
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the labels index them."""
        return self.model.info.classes

    @property
    def palette(self) -> tuple[pictures.Colour, ...]:
        """(red, green, blue) of every class."""
        return self.model.info.palette

    def counts(self) -> dict[str, int]:
        """Pixels per class, of the classes found, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return {self.classes[i]: int(counts[i]) for i in order if counts[i]}

    def shares(self) -> dict[str, float]:
        """Part of the pixels per class, from 0 to 1, of the classes found, the largest first."""
        return {name: count / self.labels.size for name, count in self.counts().items()}

    def overlay(self, opacity: float = 0.5, legend: bool = False) -> Image.Image:
        """The image under its class colours, with a legend below it if asked for. Raises UsageError for the opacity."""
        from PIL import Image

        picture = Image.fromarray(pictures.overlay(self.image, self.labels, self.palette, opacity))
        return pictures.add_legend(picture, self._legend()) if legend else picture

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the labels as PNG: indexed, with the palette; 16-bit grayscale for more than 256 classes.

        Raises UsageError unless the name ends in .png, InputError when it cannot be written; nothing is left then.
        """
        if image_format(path) != "PNG":
            raise UsageError(f"{os.fspath(path)}: labels are written without loss; give a name that ends in .png")
        store.write_atomically(Path(path), pictures.labels_png(self.labels, self.palette))

    def save_overlay(self, path: str | os.PathLike[str], opacity: float = 0.5) -> None:
        """Write the overlay with its legend as .png or .jpg. Raises as `save`."""
        kind = image_format(path)
        store.write_atomically(Path(path), pictures.encode(self.overlay(opacity, legend=True), kind))

    def _legend(self) -> list[pictures.LegendEntry]:
        colours = dict(zip(self.classes, self.palette, strict=True))
        shares = self.shares().items()
        return [pictures.LegendEntry(colours[name], f"{name} {pictures.percent(share)}") for name, share in shares]

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{name} {share:.0%}" for name, share in list(self.shares().items())[:3])
        return f"<intseg.Result {width} x {height} by {self.model.info.name} ({self.backend}): {found}>"


def image_format(path: str | os.PathLike[str]) -> str:
    """By the ending of a file name: "PNG" or "JPEG". Raises UsageError for another ending."""
    try:
        return _IMAGE_FORMATS[Path(path).suffix.lower()]
    except KeyError:
        raise UsageError(f"{os.fspath(path)}: pictures are written as {', '.join(_IMAGE_FORMATS)}; rename it") from None


def load(weights: str | os.PathLike[str] | Model | None = None) -> Model:
    """A model from its file.

    weights  the name of a bundled model (`intseg.models.names()`), a path, or None for the bundled default. A bundled
             name wins over a file of that name in the working folder; "./name" is always a path
    Raises InputError when the file cannot be read, ModelError when it is not a valid model.
    """
    if isinstance(weights, Model):
        return weights
    if weights is None or (isinstance(weights, str) and weights in models.names()):
        path = models.path(weights or models.DEFAULT)
    else:
        path = Path(weights)
    data = store.read(path)
    key = (path.absolute(), hashlib.sha256(data).hexdigest())
    with _lock:
        if key not in _models:
            model = Model(store.parse(path, data), key[1], path)
            while len(_models) >= _REMEMBERED:
                del _models[next(iter(_models))]
            _models[key] = model
        return _models[key]


def run(
    image: str | os.PathLike[str] | Image.Image | Array,
    weights: str | os.PathLike[str] | Model | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> Result:
    """Segment an image.

    image    a path, a Pillow image, or an array uint8 [H, W, 3] (red, green, blue); any size from 1 x 1 up
    weights  the name of a bundled model, a path, a `Model`, or None for the bundled default
    backend  "auto", "numpy" or "numba": the same bits
    threads  of the numba backend; None is every core
    Raises InputError for the image, ModelError for the weights, UsageError for the backend.
    """
    model = load(weights)
    return _run(_decode(image, model), model, backends.resolve(backend), threads)


def trace(
    image: str | os.PathLike[str] | Image.Image | Array,
    weights: str | os.PathLike[str] | Model | None = None,
    backend: str = "numpy",
) -> Iterator[tuple[tuple[int, int], dict[str, Array]]]:
    """((top, left), outputs by node name in execution order) for every window of an image, row by row.

    Arguments and errors as of `run`. Nodes are never fused here, on no backend.
    """
    model = load(weights)
    return _trace(_decode(image, model), model, backend)


def _decode(source: str | os.PathLike[str] | Image.Image | Array, model: Model) -> pictures.Picture:
    return pictures.decode(source, model.info.pad)


def _run(picture: pictures.Picture, model: Model, backend: str, threads: int | None) -> Result:
    scores = _scores(picture.rgb, model.info, model.compiled(backend, threads))
    height, width, _ = picture.rgb.shape
    labels = backends.class_map(scores, model.info.upsample, model.info.patch, height, width, backend, threads)
    return Result(labels, scores, picture.rgb, model, backend, picture.notes)


def _scores(rgb: NDArray[np.uint8], info: ModelInfo, forward: Callable[[Array], Array]) -> NDArray[np.int32]:
    """Merged scores of an image uint8 [H, W, 3]."""
    windows = [forward(window) for _, window in pictures.cut_windows(rgb, info)]
    return pictures.merge_scores(windows, pictures.tile(info, *rgb.shape[:2]), info)


def _trace(picture: pictures.Picture, model: Model, backend: str) -> Iterator[tuple[tuple[int, int], dict[str, Array]]]:
    ops = backends.table(backend)
    for corner, window in pictures.cut_windows(picture.rgb, model.info):
        outputs: dict[str, Array] = {}

        def keep(node: Node, value: Array, outputs: dict[str, Array] = outputs) -> None:
            outputs[node.name] = value

        execute(model.graph, window, ops, keep)
        yield corner, outputs
