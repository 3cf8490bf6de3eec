"""From Python: `load` a model, `run` it on an image of any size, `trace` every intermediate of it.

A second run with the same weights is fast: models are remembered by the sha256 of their file, and what a backend
made of a model with the model.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from intseg import backends, files, models, store
from intseg.errors import (
    MAX_THREADS,
    InputError,
    IntsegError,
    MismatchError,
    ModelError,
    UsageError,
    clip,
    printable,
    suggest,
)
from intseg.graph import Graph, ModelInfo, Node, validate
from intseg.images import decode as pictures
from intseg.images import labels as label_images
from intseg.images import overlay as overlays
from intseg.ops import Run
from intseg.windows import at_scale, cut_windows, merge_scores, require_narrow, size_note, tile

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]
ImageLike = pictures.ImageLike

_REMEMBERED = 4
_IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
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


@dataclass(frozen=True, eq=False)
class Result:
    """What `run` found.

    labels   uint8 [H, W], uint16 above 256 classes: the class index of every pixel
    scores   int32 [h, w, C]: integer scores on the patch grid of the padded image; where the model merges in pixels,
             int16 [windows, h, w, C]: those of the windows (SPEC.md, section 7)
    image    uint8 [H, W, 3]: the decoded image
    model    what was run
    backend  "numpy" or "numba": the labels do not depend on it
    notes    what was done to decode the image, and to its size, one sentence each
    """

    labels: Array
    scores: Array
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
        from PIL import Image

        classes = len(self.classes)
        if self.labels.dtype == np.uint8:  # three times as fast as bincount, which widens every label first
            counts = np.array(Image.fromarray(self.labels).histogram()[:classes])
        else:
            counts = np.bincount(self.labels.ravel(), minlength=classes)
        order = np.argsort(-counts, kind="stable")
        return {self.classes[i]: int(counts[i]) for i in order if counts[i]}

    def shares(self) -> dict[str, float]:
        """Part of the pixels per class, from 0 to 1, of the classes found, the largest first."""
        return {name: count / self.labels.size for name, count in self.counts().items()}

    def overlay(
        self, opacity: float = 0.5, legend: bool = False, palette: Sequence[pictures.Colour] | None = None
    ) -> Image.Image:
        """The image under its class colours, with a legend below it if asked for.

        palette  other colours than the model's, one per class
        Raises UsageError for the opacity.
        """
        from PIL import Image

        palette = palette or self.palette
        picture = Image.fromarray(overlays.overlay(self.image, self.labels, palette, opacity))
        return overlays.add_legend(picture, self._legend(palette)) if legend else picture

    def png(self, palette: Sequence[pictures.Colour] | None = None, values: Array | None = None) -> bytes:
        """The labels as the bytes of a PNG file: indexed, with the palette; 16-bit grayscale for values above 255.

        palette  other colours than the model's, one per class
        values   uint16 [C]: stored in place of the class indices (`intseg.images.labels.stored_values`)
        """
        labels, colours = self.labels, tuple(palette or self.palette)
        if values is not None:
            labels, colours = label_images.store_as(labels, colours, values)
        return label_images.labels_png(labels, colours)

    def save(
        self,
        path: str | os.PathLike[str],
        palette: Sequence[pictures.Colour] | None = None,
        values: Array | None = None,
    ) -> None:
        """Write the labels as PNG, as `png` gives them.

        Raises UsageError unless the name ends in .png, InputError when it cannot be written; nothing is left then.
        """
        if image_format(path) != "PNG":
            raise UsageError(f"{os.fspath(path)}: labels are written without loss; give a name that ends in .png")
        store.write_atomically(Path(path), self.png(palette, values))

    def save_overlay(
        self,
        path: str | os.PathLike[str],
        opacity: float = 0.5,
        legend: bool = True,
        palette: Sequence[pictures.Colour] | None = None,
    ) -> None:
        """Write the overlay, with its legend unless that is not wanted, as .png or .jpg. Raises as `save`."""
        kind = image_format(path)
        store.write_atomically(Path(path), overlays.encode(self.overlay(opacity, legend, palette), kind))

    def to_pil(self) -> Image.Image:
        """The labels as a Pillow image: mode "P" with the palette, "I;16" for more than 256 classes."""
        return label_images.labels_image(self.labels, self.palette)

    def to_hf(self) -> list[dict[str, Any]]:
        """What the Hugging Face pipeline "image-segmentation" returns for semantic segmentation.

        return  per class found, in the order of the classes: {"score": None, "label": its name,
                "mask": Pillow image of mode "L", 255 where the class is, else 0}
        """
        return [
            {"score": None, "label": self.classes[i], "mask": label_images.mask(self.labels, i)}
            for i in np.unique(self.labels).tolist()
        ]

    def _repr_png_(self) -> bytes:
        """The overlay with its legend, for notebooks."""
        return overlays.encode(self.overlay(legend=True), "PNG")

    def _repr_html_(self) -> str:
        """The overlay with its legend and a caption, for notebooks; nothing is loaded from elsewhere."""
        data = base64.b64encode(self._repr_png_()).decode()
        text = html.escape(repr(self)[1:-1])
        return (
            f'<figure style="margin:0"><img alt="{text}" src="data:image/png;base64,{data}" style="max-width:100%">'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def _legend(self, palette: Sequence[pictures.Colour]) -> list[overlays.LegendEntry]:
        colours = dict(zip(self.classes, palette, strict=True))
        shares = self.shares().items()
        return [
            overlays.LegendEntry(colours[name], f"{clip(name, 32)} {overlays.percent(share)}") for name, share in shares
        ]

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{name} {share:.0%}" for name, share in list(self.shares().items())[:3])
        return printable(f"<intseg.Result {width} x {height} by {self.model.info.name} ({self.backend}): {found}>")


def image_format(path: str | os.PathLike[str]) -> str:
    """By the ending of a file name: "PNG" or "JPEG". Raises UsageError for another ending."""
    try:
        return _IMAGE_FORMATS[Path(path).suffix.lower()]
    except KeyError:
        raise UsageError(f"{os.fspath(path)}: pictures are written as {', '.join(_IMAGE_FORMATS)}; rename it") from None


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


@overload
def run(  # type: ignore[overload-overlap]
    image: ImageLike | BinaryIO,
    weights: str | os.PathLike[str] | Model | None = None,
    backend: str = "auto",
    threads: int | None = None,
    ops: Mapping[str, Run] | None = None,
) -> Result: ...


@overload
def run(
    image: list[ImageLike] | tuple[ImageLike, ...] | Iterator[ImageLike],
    weights: str | os.PathLike[str] | Model | None = None,
    backend: str = "auto",
    threads: int | None = None,
    ops: Mapping[str, Run] | None = None,
) -> Iterator[Result]: ...


def run(
    image: ImageLike | BinaryIO | list[ImageLike] | tuple[ImageLike, ...] | Iterator[ImageLike],
    weights: str | os.PathLike[str] | Model | None = None,
    backend: str = "auto",
    threads: int | None = None,
    ops: Mapping[str, Run] | None = None,
) -> Result | Iterator[Result]:
    """Segment an image, or several.

    image    a path, the bytes of an image file, a file opened for reading bytes, a Pillow image, or an array uint8
             [H, W, 3] (red, green, blue); any size from 1 x 1 up. A list, a tuple, a generator of these: the results
             follow one by one, each image is taken when its result is asked for
    weights  the name of a bundled model, a path, a `Model`, or None for the bundled default
    backend  "auto", "numpy" or "numba": the same bits
    threads  of the numba backend; None is every core
    ops      functions of your own in place of ops, by the name of an op or of a node (docs/OPS.md); the graph then runs
             node by node
    Raises InputError for the image, ModelError for the weights, UsageError for the backend and for what your own ops
    give; ModelError and UsageError for the backend at once.
    """
    model, backend = load(weights), backends.resolve(backend)
    if ops:
        model = replace(model)
        model._compiled[backend, threads] = backends.OwnOps(model.graph, backend, ops)
    if isinstance(image, (list, tuple, Iterator)) and not hasattr(image, "read"):  # an open file gives its lines
        model.compiled(backend, threads)
        return _run_each(iter(image), model, backend, threads)
    return run_picture(_decode(image, model), model, backend, threads)


def _run_each(images: Iterator[ImageLike], model: Model, backend: str, threads: int | None) -> Iterator[Result]:
    for i, image in enumerate(images):
        try:
            picture = _decode(image, model)
        except IntsegError as error:
            raise type(error)(f"image {i}: {error}") from None
        yield run_picture(picture, model, backend, threads)


def trace(
    image: ImageLike,
    weights: str | os.PathLike[str] | Model | None = None,
    backend: str = "numpy",
    ops: Mapping[str, Run] | None = None,
) -> Iterator[tuple[tuple[int, int], dict[str, Array]]]:
    """((top, left), outputs by node name in execution order) for every window of an image, row by row.

    Arguments and errors as of `run`. Nodes are never fused here, on no backend.
    """
    model = load(weights)
    own = backends.OwnOps(model.graph, backend, ops or {})
    return _trace(_decode(image, model), model, own)


def _decode(source: Any, model: Model) -> pictures.Picture:
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "image"))
        if isinstance(source, io.TextIOBase):
            raise InputError(f"{name}: opened as text, expected bytes; open it with mode 'rb'")
        return pictures.decode(files.read_stream(source, name), model.info.pad, name)
    return pictures.decode(source, model.info.pad)


def run_picture(picture: pictures.Picture, model: Model, backend: str = "auto", threads: int | None = None) -> Result:
    """`run` for an image that is decoded already."""
    backend = backends.resolve(backend)
    rgb, info, forward = picture.rgb, model.info, model.compiled(backend, threads)
    height, width, _ = rgb.shape
    require_narrow(info, height, width)
    resized = functools.partial(backends.resize, backend=backend, threads=threads)
    windows = [forward(window) for _, window in cut_windows(rgb, info, resized)]
    scores = merge_scores(windows, tile(info, height, width), info)
    labels = backends.labels(scores, info, height, width, backend, threads)
    return Result(labels, scores, rgb, model, backend, (*picture.notes, *size_note(info, height, width)))


def _trace(
    picture: pictures.Picture, model: Model, forward: backends.OwnOps
) -> Iterator[tuple[tuple[int, int], dict[str, Array]]]:
    for corner, window in cut_windows(picture.rgb, model.info):
        outputs: dict[str, Array] = {}

        def keep(node: Node, value: Array, outputs: dict[str, Array] = outputs) -> None:
            outputs[node.name] = value

        forward(window, keep)
        yield corner, outputs
