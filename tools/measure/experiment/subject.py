"""A checkpoint, its data, and how a prediction is counted."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intseg import api, backends, store
from intseg.batch import datasets, metrics
from intseg.images import decode as pictures
from intseg.images.labels import truth
from intseg.progress import shown
from intseg.tools.convert import dataset_of, find_images, model_info, windows
from intseg.tools.evaluate import float_labels
from intseg.tools.measure.experiment.memo import Document, Memo
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES, Recipe
from intseg.tools.twin.segmenter import Segmenter
from intseg.windows import cut_windows

Labels = NDArray[np.integer[Any]]


class Row:
    """Pixels of one way to run a model: by label and prediction, and equal to the float prediction."""

    def __init__(self, n_cls: int) -> None:
        self.confusion = np.zeros((n_cls, n_cls), np.int64)
        self.same = self.pixels = 0

    def add(self, truth: Labels, labels: Labels, reference: Labels) -> None:
        """Count one image; -1 in `truth` is not counted."""
        self.confusion += metrics.confusion(truth, labels, len(self.confusion), ignore=-1)
        self.same += int((labels == reference).sum())
        self.pixels += labels.size

    def as_json(self) -> Document:
        """Exact counts; report.py makes percentages of them."""
        return {"confusion": self.confusion.tolist(), "same_as_float": self.same, "pixels": self.pixels}


class Once:
    """A float model as `float_labels` takes it: with or without L2 norm; equal batches in a row run once.

    shared  another one of the same model: what its encoder gave is not computed again
    """

    def __init__(self, model: Segmenter, cosine: bool = True, shared: Once | None = None) -> None:
        self.config, self._model, self._cosine = model.config, model, cosine
        self._encoder = shared._encoder if shared else _Last(model.encoder)
        self._decoder = _Last(self._decode)

    def _decode(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self._model.decoder(tokens[:, self.config.n_extra :], self._cosine)
        return scores

    def forward_scores(self, x: Tensor) -> Tensor:
        """Scores [B, h, w, C] of normalised windows [B, 3, H, W]."""
        height, width = (size // self.config.patch for size in x.shape[2:])
        return self._decoder(self._encoder(x)).reshape(len(x), height, width, -1)


class _Last:
    """A function that keeps its last argument and value."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._kept is None or not torch.equal(self._kept[0], x):
            self._kept = x, self._function(x)
        return self._kept[1]


class Subject:
    """A checkpoint and the labelled images it is measured on; images, labels and float predictions are kept."""

    memo: Memo
    earlier: Document
    """Results of the same experiment that are there, of the same checkpoint and data."""

    def __init__(self, name: str, path: Path, options: argparse.Namespace) -> None:
        self.name, self.path, self.options = name, path, options
        file = path / "checkpoint.pth" if path.is_dir() else path
        self.model = load_checkpoint(path)
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        self.classes = classes.for_model(self.model.config.n_cls, dataset_of(path), None)
        self.info = self.info_of(RECIPES["intseg"])
        self._training_labels: dict[Path, Labels] = {}
        data, training = (
            datasets.open_dataset(options.layout, options.root, split) for split in (options.split, options.train)
        )
        self.pairs, self.training = data.first(options.limit).pairs, [pair.image for pair in training.pairs]
        self.labelling = data.labelling

    def info_of(self, recipe: Recipe) -> Any:
        """Windows and classes of this checkpoint's integer models."""
        return model_info(self.model.config, recipe, f"{self.name}-{recipe.name}", self.classes)

    @functools.cached_property
    def truths(self) -> list[Labels]:
        """Class indices of every image, -1 where nothing is counted."""
        count = self.model.config.n_cls
        return [
            truth(pair.labels, picture, count, self.labelling, str(pair.image))[0]
            for pair, picture in zip(self.pairs, self.decoded, strict=True)
        ]

    @functools.cached_property
    def decoded(self) -> list[pictures.Picture]:
        """Every image."""
        return [pictures.decode(pair.image, self.info.pad) for pair in self.pairs]

    @functools.cached_property
    def images(self) -> list[NDArray[np.uint8]]:
        """Pixels of every image."""
        return [picture.rgb for picture in self.decoded]

    @property
    def chosen(self) -> list[int]:
        """Indices of the `--images` evenly spaced images that Table 1 is measured on."""
        count = min(self.options.images, len(self.pairs))
        return [i * len(self.pairs) // count for i in range(count)]

    def batch(self, rgb: NDArray[np.uint8]) -> Tensor:
        """All windows of an image, uint8 [B, H, W, 3]."""
        return torch.from_numpy(np.stack([window for _, window in cut_windows(rgb, self.info)]))

    def float_rows(
        self,
        ways: Mapping[str, tuple[Any, str]],
        reference: Mapping[int, Labels] | None,
        keep: dict[int, Labels] | None = None,
        only: Sequence[int] | None = None,
    ) -> dict[str, Row]:
        """Rows of float models: way -> (model, upsampling). Without a reference the first way is it, kept in `keep`.

        only  images that are measured; all by default
        """
        rows = {way: Row(self.model.config.n_cls) for way in ways}
        for i in _bar(range(len(self.pairs)) if only is None else only, ", ".join(ways)):
            rgb = self.images[i]
            batch, size = self.batch(rgb), (rgb.shape[0], rgb.shape[1])
            found = {way: float_labels(model, batch, size, self.info, up) for way, (model, up) in ways.items()}
            against = next(iter(found.values())) if reference is None else reference[i]
            if keep is not None:
                keep[i] = against.astype(np.uint16)
            for way, labels in found.items():
                rows[way].add(self.truths[i], labels, against)
        return rows

    @functools.cached_property
    def _floats(self) -> tuple[dict[str, Row], dict[int, Labels]]:
        kept = Once(self.model)
        dropped = Once(self.model, False, kept)
        ways = {
            "bilinear, L2": (kept, "bilinear"),
            "nearest, L2": (kept, "nearest"),
            "bilinear, no L2": (dropped, "bilinear"),
            "nearest, no L2": (dropped, "nearest"),
        }
        reference: dict[int, Labels] = {}
        return self.float_rows(ways, None, reference), reference

    def floats(self) -> dict[str, Document]:
        """Rows of the float model with bilinear or nearest upsampling, L2 norm kept or dropped."""
        return self.memo("float", lambda: {way: row.as_json() for way, row in self._floats[0].items()})

    @property
    def reference(self) -> dict[int, Labels]:
        """The float prediction (bilinear, L2 norm) of every image."""
        return self._floats[1]

    def engine(self, recipe: Recipe, samples: int = 1, model: Segmenter | None = None) -> api.Model:
        """The integer model from the first calibration images."""
        model, info = model or self.model, self.info_of(recipe)
        twin = FakeQuantSegmenter(model, info.window, recipe)
        calibrate(twin, model, [windows(file, info) for file in find_images(self.training, samples)])
        return self.exported(twin)

    def exported(self, twin: FakeQuantSegmenter) -> api.Model:
        """The engine's model of a calibrated twin."""
        info = self.info_of(twin.recipe)
        data = store.dumps(export(twin, info))
        return api.Model(store.loads(data), hashlib.sha256(data).hexdigest(), Path(f"{info.name}.safetensors"))

    def training_labels(self, file: Path) -> Labels:
        """The float prediction (bilinear, L2 norm) of a training image."""
        if file not in self._training_labels:
            rgb = pictures.decode(file, self.info.pad).rgb
            size = (rgb.shape[0], rgb.shape[1])
            self._training_labels[file] = float_labels(self.model, self.batch(rgb), size, self.info, "bilinear")
        return self._training_labels[file]

    def engine_rows(
        self, model: api.Model, upsamplings: Sequence[str] = (), reference: Mapping[int, Labels] | None = None
    ) -> dict[str, Row]:
        """Rows of an integer model by upsampling, its own unless others are named, on the images of the reference."""
        reference = self.reference if reference is None else reference
        info = model.info
        rows = {up: Row(len(info.classes)) for up in upsamplings or (info.upsample,)}
        backend = backends.resolve(self.options.backend)
        for i in _bar(list(reference), info.name):
            rgb = self.images[i]
            scores = api.run(rgb, model, backend, self.options.threads).scores
            for up, row in rows.items():
                size = rgb.shape[:2]
                labels = backends.labels(
                    scores, dataclasses.replace(info, upsample=up), *size, backend, self.options.threads
                )
                row.add(self.truths[i], labels, reference[i])
        return rows

    def engine_row(self, model: api.Model, reference: Mapping[int, Labels] | None = None) -> Row:
        """The row of an integer model."""
        (row,) = self.engine_rows(model, (), reference).values()
        return row


def _bar(items: Sequence[Any], what: str) -> Iterator[Any]:
    return shown(items, what, len(items), "image")
