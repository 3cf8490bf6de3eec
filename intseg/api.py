"""From Python: `load` a model, `run` it on an image of any size, `trace` every intermediate of it.

A second run with the same weights is fast: models are remembered by the sha256 of their file, and what a backend
made of a model with the model.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, overload

from numpy.typing import NDArray

from intseg import backends, files
from intseg.errors import InputError, IntsegError
from intseg.graph import Node
from intseg.images import decode as pictures
from intseg.model import Carried as Carried
from intseg.model import Model as Model
from intseg.model import load as load
from intseg.ops import Run
from intseg.results import ClassResult as ClassResult
from intseg.results import Ranked as Ranked
from intseg.results import Result as Result
from intseg.results import image_format as image_format
from intseg.windows import cut_windows, merge_scores, require_narrow, size_note, tile

Array = NDArray[Any]
ImageLike = pictures.ImageLike


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
    """Segment an image, or several; classify them where the model is a classifier: a `ClassResult` each.

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
    made = ClassResult if info.classifies else Result
    return made(labels, scores, rgb, model, backend, (*picture.notes, *size_note(info, height, width)))


def _trace(
    picture: pictures.Picture, model: Model, forward: backends.OwnOps
) -> Iterator[tuple[tuple[int, int], dict[str, Array]]]:
    for corner, window in cut_windows(picture.rgb, model.info):
        outputs: dict[str, Array] = {}

        def keep(node: Node, value: Array, outputs: dict[str, Array] = outputs) -> None:
            outputs[node.name] = value

        forward(window, keep)
        yield corner, outputs
