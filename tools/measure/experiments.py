"""Measure the paper's tables on a labelled data set: one JSON file per experiment and checkpoint, for report.py.

    python tools/measure/experiments.py all --root CamVid --checkpoint tiny=segmenter_tiny_camvid -o docs/results
    python tools/measure/experiments.py ptq --root CamVid --checkpoint tiny=DIR --checkpoint tiny24=DIR
    python tools/measure/experiments.py qat --root CamVid --checkpoint tiny=DIR --qat tiny:paper=model.safetensors

activations      Table 1: errors of the integer GELUs and softmaxes, per block
upsampling       Table 2: nearest or bilinear, L2 norm kept or dropped
ptq              Tables 3 to 5: post-training quantization from few and many images, its time and memory
qat              Tables 3 and 4: models that tools/qat.py wrote
simplifications  what each difference between the recipes intseg and paper costs
calibration      what the choices of calibration win, on training images that it does not see
sizes            Tables 6 and 7: size and memory traffic of the four published sizes; needs no data

What was measured before with the same checkpoint and options is kept, also of an experiment that was ended early. The
engine's integers are those of the fake-quant model bit for bit (tests/tools), so that only the engine runs here. No
file holds a path of the machine.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from intseg import api, backends, store
from intseg.batch import datasets, metrics
from intseg.errors import InputError, IntsegError, UsageError
from intseg.graph import Graph, validate
from intseg.images import decode as pictures
from intseg.images.labels import truth
from intseg.plan.plan import Plan
from intseg.reports import inspect as inspect_model
from intseg.tools.convert import dataset_of, find_images, model_info, recipe_for, windows
from intseg.tools.evaluate import float_labels
from intseg.tools.measure import bench
from intseg.tools.twin import classes
from intseg.tools.twin.attention import QExpWeights, QSoftmax
from intseg.tools.twin.calibrate import WIDEN_FEW, Estimator, calibrate, estimators, extremes, normalise, tapped
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.config import CheckpointError, config_for
from intseg.tools.twin.export import export
from intseg.tools.twin.gelu import QGelu
from intseg.tools.twin.model import FakeQuantSegmenter, QBlock
from intseg.tools.twin.recipe import RECIPES, Recipe
from intseg.tools.twin.segmenter import Segmenter
from intseg.windows import cut_windows

Labels = NDArray[np.integer[Any]]
Document = dict[str, Any]

TOOLS = Path(__file__).resolve().parents[1]
FORMAT = 1
"""Of the files; a file of another format is measured again."""

TAIL_EVERY = 96
"""The long-tailed networks of --tails: every 96th input of a GELU (8 of 768) is so many times larger."""

# ---------------------------------------------------------------------------------------------------------------------
# A checkpoint, its data, and how a prediction is counted
# ---------------------------------------------------------------------------------------------------------------------


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

    def __init__(self, model: Segmenter, l2norm: bool = True, shared: Once | None = None) -> None:
        self.config, self._model, self._l2norm = model.config, model, l2norm
        self._encoder = shared._encoder if shared else _Last(model.encoder)
        self._decoder = _Last(self._decode)

    def _decode(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self._model.decoder(tokens[:, self.config.n_extra :], self._l2norm)
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


class Memo:
    """Parts of an unfinished experiment, in a hidden file beside the result: what was measured once is not again."""

    def __init__(self, path: Path, inputs: Document, fresh: bool) -> None:
        self.path = path.with_name(f".{path.name}.unfinished")
        self.inputs = {name: value for name, value in inputs.items() if name not in PARTS_NAME}
        self.parts: Document = {}
        if self.path.exists() and not fresh:
            found = read_json(self.path)
            self.parts = found["parts"] if found.get("inputs") == plain(self.inputs) else {}

    def __call__(self, key: str, work: Callable[[], Document]) -> Document:
        """The part of this name, measured now unless it is there."""
        if key not in self.parts:
            self.parts[key] = plain(work())
            write({"inputs": self.inputs, "parts": self.parts}, self.path)
            print(f"  {key}", flush=True)
        found: Document = self.parts[key]
        return found

    def end(self) -> None:
        """The result is written: the parts are not needed any more."""
        self.path.unlink(missing_ok=True)


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
    return iter(tqdm(items, desc=what, unit="image", leave=False, disable=not sys.stderr.isatty()))


# ---------------------------------------------------------------------------------------------------------------------
# Table 1: approximations on real activations
# ---------------------------------------------------------------------------------------------------------------------


def apply_gelu(layer: QGelu, q: Tensor, backend: str) -> Tensor:
    """The reals of an integer GELU, by the engine's kernel."""
    table = {name: value.numpy().astype(np.int8) for name, value in layer.integers().items()}
    out = backends.table(backend)[layer.op](q.numpy(), **table, **layer.attrs())
    return layer.y.dequantize(torch.from_numpy(out))


Softmax = QSoftmax | QExpWeights


def apply_softmax(layer: Softmax, logits: Tensor, backend: str) -> Tensor:
    """The probabilities of an integer softmax of float logits [..., heads, T, T], by the engine's kernel."""
    unit = torch.as_tensor(layer.unit()).reshape(-1, 1, 1)
    q = torch.floor(logits / unit + 0.5).clamp(-(2**15), 2**15 - 1).to(torch.int16).reshape(-1, *logits.shape[-3:])
    params = {role: value.numpy().astype(np.int16) for role, value in layer.integers().items()}
    run = backends.table(backend)[layer.op]
    out = np.stack([run(x, **params, **layer.attrs()) for x in q.numpy()])
    return layer.shares(torch.from_numpy(out).double()).reshape(logits.shape).float()


def blocks(twin: FakeQuantSegmenter) -> dict[str, QBlock]:
    """The transformer blocks by name."""
    return {name: module for name, module in twin.named_modules() if isinstance(module, QBlock)}


def gelus(paper: QBlock, fitted: QBlock) -> dict[str, QGelu]:
    """The integer GELUs of Table 1: all but the last on the ranges of the recipe paper."""
    recipe = RECIPES["paper"]
    variants = {
        "ShiftGELU": dataclasses.replace(recipe, lam=1),
        "lambda-ShiftGELU": recipe,
        "sigmoid GELU": dataclasses.replace(recipe, gelu="sigmoid_gelu", int_div="normalized"),
        "table": dataclasses.replace(recipe, gelu="gelu_table"),
    }
    found = {name: QGelu(variant, paper.fc1_act, paper.gelu_act) for name, variant in variants.items()}
    return found | {"table, fitted ranges": fitted.gelu}


def softmaxes(paper: QBlock, fitted: QBlock) -> dict[str, Softmax]:
    """The integer softmaxes of Table 1."""
    other = copy.deepcopy(paper.attn.softmax)
    other.kind = "normalized"
    found = {"Shiftmax": paper.attn.softmax, "Shiftmax, normalized division": other}
    base_two = QSoftmax(dataclasses.replace(RECIPES["intseg"], softmax="softmax2"))
    return found | {"softmax2": base_two, "exp_weights": fitted.attn.softmax}


class Errors:
    """Sums over the elements of a block: squared errors by variant, and the largest input."""

    def __init__(self) -> None:
        self.squares: dict[str, float] = {}
        self.row_sums: dict[str, float] = {}
        self.elements = self.rows = 0
        self.largest = 0.0

    def add(self, variant: str, found: Tensor, expected: Tensor) -> None:
        """Take in the outputs of a variant."""
        error = float(((found - expected).double() ** 2).sum())
        self.squares[variant] = self.squares.get(variant, 0.0) + error

    def as_json(self) -> Document:
        """Root mean squares."""
        document = {
            "rmse": {name: (value / self.elements) ** 0.5 for name, value in self.squares.items()},
            "elements": self.elements,
            "largest_input": self.largest,
        }
        if self.rows:
            document["row_sum"] = {name: value / self.rows for name, value in self.row_sums.items()}
        return document


def activation_errors(subject: Subject, model: Segmenter) -> Document:
    """Table 1 for a float model: the integer operators on its own activations, on the chosen images."""
    paper, fitted = (_twin(subject, model, RECIPES[name]) for name in ("paper", "intseg"))
    ours, theirs = blocks(fitted), blocks(paper)
    kinds = {name: (gelus(theirs[name], ours[name]), softmaxes(theirs[name], ours[name])) for name in ours}
    backend = backends.resolve(subject.options.backend)
    gelu = {name: Errors() for name in kinds}
    softmax = {name: Errors() for name in kinds}
    inputs: dict[str, Tensor] = {}

    def on_gelu(name: str, x: Tensor, expected: Tensor) -> None:
        errors, quantized = gelu[name], dict[int, Tensor]()
        errors.elements += x.numel()
        errors.largest = max(errors.largest, float(x.abs().max()))
        for variant, layer in kinds[name][0].items():
            if id(layer.x) not in quantized:
                quantized[id(layer.x)] = layer.x.quantize(x).to(torch.int8)
            errors.add(variant, apply_gelu(layer, quantized[id(layer.x)], backend), expected)

    def on_scores(name: str, x: Tensor) -> None:
        errors, expected = softmax[name], x.softmax(-1)
        errors.elements += x.numel()
        errors.rows += x.numel() // x.shape[-1]
        errors.largest = max(errors.largest, float(x.abs().max()))
        for variant, layer in kinds[name][1].items():
            found = apply_softmax(layer, x, backend)
            errors.add(variant, found, expected)
            errors.row_sums[variant] = errors.row_sums.get(variant, 0.0) + float(found.double().sum())

    def receive(node: str, value: Tensor) -> None:
        if node.endswith(".mlp.fc1"):
            inputs[node] = value
        elif node.endswith(".mlp.act"):
            name = node.removesuffix(".mlp.act")
            on_gelu(name, inputs.pop(f"{name}.mlp.fc1"), value)
        elif node.endswith(".attn.scores"):
            on_scores(node.removesuffix(".attn.scores"), value)

    with torch.no_grad(), tapped(model, receive):
        for i in _bar(subject.chosen, "activations"):
            model.forward_scores(normalise(subject.batch(subject.images[i]), model.config))
    return {
        "images": len(subject.chosen),
        "gelu": {name: errors.as_json() for name, errors in gelu.items()},
        "softmax": {name: errors.as_json() for name, errors in softmax.items()},
    }


def _twin(subject: Subject, model: Segmenter, recipe: Recipe) -> FakeQuantSegmenter:
    """Calibrated with the first training image."""
    info = subject.info_of(recipe)
    twin = FakeQuantSegmenter(model, info.window, recipe)
    calibrate(twin, model, [windows(subject.training[0], info)])
    return twin.eval()


def long_tailed(model: Segmenter, factor: float) -> Segmenter:
    """The model with long-tailed GELU inputs, and almost the same function: GELU(c x) is almost c GELU(x) for large x.

    In every block some outputs of fc1 are `factor` times larger, the weights of fc2 that read them as much smaller.
    """
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in changed.named_modules():
            if name.endswith(".mlp"):
                module.fc1.weight[::TAIL_EVERY] *= factor
                module.fc1.bias[::TAIL_EVERY] *= factor
                module.fc2.weight[:, ::TAIL_EVERY] /= factor
    return changed


def activations(subject: Subject) -> Document:
    """Table 1, on the checkpoint and on its long-tailed forms; what the latter do to accuracy."""
    found = subject.memo("checkpoint", lambda: activation_errors(subject, subject.model))
    tails = {}
    for factor in subject.options.tails:
        tailed = long_tailed(subject.model, factor)
        part = functools.partial(activation_errors, subject, tailed)
        rows = functools.partial(_tailed_rows, subject, tailed)
        tails[str(factor)] = {**subject.memo(f"tail x {factor}", part), "rows": subject.memo(f"rows x {factor}", rows)}
    return {"checkpoint": found, "long-tailed": tails, "every": TAIL_EVERY}


def _tailed_rows(subject: Subject, tailed: Segmenter) -> Document:
    """Accuracy of a long-tailed network, float and quantized; the float one is the reference."""
    reference: dict[int, Labels] = {}
    rows = subject.float_rows({"float": (Once(tailed), "bilinear")}, None, reference, subject.chosen)
    for name in RECIPES:
        rows[name] = subject.engine_row(subject.engine(RECIPES[name], model=tailed), reference)
    return {name: row.as_json() for name, row in rows.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Table 2, and what each simplification costs
# ---------------------------------------------------------------------------------------------------------------------


def upsampling(subject: Subject) -> Document:
    """Table 2: interpolation and L2 norm, float and in integers."""
    found = {"float": subject.floats()}
    for name in ("intseg", "paper"):
        kept, dropped = (
            subject.memo(f"{name}, {l2norm}", functools.partial(_both_upsamplings, subject, name, l2norm))
            for l2norm in ("keep", "drop")
        )
        found[name] = {f"{up}, L2": row for up, row in kept.items()}
        found[name] |= {f"{up}, no L2": row for up, row in dropped.items()}
    return {"rows": found}


def _both_upsamplings(subject: Subject, recipe: str, l2norm: str) -> Document:
    rows = subject.engine_rows(subject.engine(recipe_for(recipe, None, l2norm)), ("bilinear", "nearest"))
    return {up: row.as_json() for up, row in rows.items()}


STEPS: Mapping[str, Mapping[str, Any]] = {
    "nearest upsampling": {"upsample": "nearest"},
    "no L2 norm": {"l2norm": False},
    "Shiftmax": {"softmax": "shiftmax", "int_div": "paper"},
    "lambda-ShiftGELU": {"gelu": RECIPES["paper"].gelu, "int_div": "paper", "lam": 6, "k_inter": 23},
    "EMA min/max ranges": {"ranges": "ema"},
}
"""What makes the recipe `paper` of the recipe `intseg`, in this order."""


@contextmanager
def replaced(model: Segmenter, suffix: str, function: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """While open, modules of the float model whose name ends in `suffix` give function(block, input) instead."""
    handles = []
    for name, module in model.named_modules():
        if name.endswith(suffix):
            handles.append(module.register_forward_hook(_replacing(name.removesuffix(suffix), function)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replacing(block: str, function: Callable[[str, Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, inputs, output: function(block, inputs[0]).to(output.dtype)


IN_FLOAT = ("lambda-ShiftGELU", "ShiftGELU", "table, fitted ranges", "Shiftmax", RECIPES["intseg"].softmax)
"""Operators that are put into the float model, one at a time."""


def in_float(subject: Subject) -> dict[str, Document]:
    """The float model with one operator replaced by an integer one, everything else in floating point."""
    paper, fitted = (blocks(_twin(subject, subject.model, RECIPES[name])) for name in ("paper", "intseg"))
    backend = backends.resolve(subject.options.backend)
    kinds = {name: (gelus(paper[name], fitted[name]), softmaxes(paper[name], fitted[name])) for name in paper}

    def gelu(variant: str) -> Callable[[str, Tensor], Tensor]:
        def run(block: str, x: Tensor) -> Tensor:
            layer = kinds[block][0][variant]
            return apply_gelu(layer, layer.x.quantize(x).to(torch.int8), backend)

        return run

    def softmax(variant: str) -> Callable[[str, Tensor], Tensor]:
        return lambda block, x: apply_softmax(kinds[block][1][variant], x, backend)

    def measure(variant: str) -> Document:
        is_gelu = variant in next(iter(kinds.values()))[0]
        suffix, function = (".mlp.act", gelu(variant)) if is_gelu else (".attn.softmax", softmax(variant))
        reference = subject.reference
        with replaced(subject.model, suffix, function):
            (row,) = subject.float_rows({variant: (Once(subject.model), "bilinear")}, reference).values()
        return row.as_json()

    floats = subject.floats()
    found = {"nearest upsampling": floats["nearest, L2"], "no L2 norm": floats["bilinear, no L2"]}
    return found | {v: subject.memo(f"float, {v}", functools.partial(measure, v)) for v in IN_FLOAT}


def simplifications(subject: Subject) -> Document:
    """One change at a time in the float model; one at a time, and one after the other, in the integer model."""
    start = recipe = RECIPES["intseg"]

    def measure(changed: Recipe) -> Document:
        return subject.engine_row(subject.engine(changed)).as_json()

    alone, together = {"intseg": subject.memo("intseg", lambda: measure(start))}, dict[str, Document]()
    for name, change in STEPS.items():
        recipe = dataclasses.replace(recipe, **change)
        only = functools.partial(measure, dataclasses.replace(start, **change))
        alone[name] = subject.memo(name, only)
        to_here = functools.partial(measure, recipe)
        together[name] = subject.memo(f"to {name}", to_here) if together else alone[name]
    if dataclasses.replace(recipe, name="paper") != RECIPES["paper"]:
        raise UsageError(f"STEPS end at {recipe}, expected the recipe paper; complete them")
    rows = {"in float": in_float(subject), "alone": alone, "together": together}
    return {"float": subject.floats()["bilinear, L2"], **rows}


# ---------------------------------------------------------------------------------------------------------------------
# What calibration chooses
# ---------------------------------------------------------------------------------------------------------------------


FIXED = Estimator("extremes", extremes, WIDEN_FEW)
ROOMS = tuple(
    dataclasses.replace(estimator, widen=room) for estimator in estimators(True) for room in (1.0, 1.2, 1.4, 1.6)
)
CALIBRATIONS: Mapping[str, Mapping[str, Any]] = {
    "one estimator for all nodes, biases as they are": {"candidates": (FIXED,), "correct": False},
    "one estimator for all nodes, biases corrected": {"candidates": (FIXED,), "correct": True},
    "estimator chosen per node, biases as they are": {"correct": False},
    "estimator chosen per node, biases corrected": {},
    "estimator and room chosen per node, biases corrected": {"candidates": ROOMS},
}
"""Ways to calibrate from one image."""


def calibration(subject: Subject) -> Document:
    """Pixels equal to float on training images, for three calibration images and every way to use them."""
    total = len(subject.training)
    if total < 2:
        raise InputError(
            f"{subject.options.root}: 1 training image, expected one to calibrate with and others to judge"
        )
    calibrating = min(3, total // 2)
    starts = [i * total // calibrating for i in range(calibrating)]
    others = [i for i in range(total) if i not in starts]
    count = min(subject.options.images, len(others))
    judged = [others[i * len(others) // count] for i in range(count)]
    found: Document = {"images": len(judged), "ways": {}, "chosen": []}
    for way, options in CALIBRATIONS.items():
        parts = [
            subject.memo(f"{way}, {start}", functools.partial(_calibrated, subject, start, judged, options))
            for start in starts
        ]
        found["ways"][way] = [part["equal"] for part in parts]
        if not options:
            found["chosen"] = [part["chosen"] for part in parts]
    return found


def _calibrated(subject: Subject, start: int, judged: Sequence[int], options: Mapping[str, Any]) -> Document:
    info, files = subject.info, [subject.training[i] for i in judged]
    twin = FakeQuantSegmenter(subject.model, info.window, RECIPES["intseg"])
    chosen = calibrate(twin, subject.model, [windows(subject.training[start], info)], **options)
    engine = subject.exported(twin)
    backend = backends.resolve(subject.options.backend)
    same = pixels = 0
    for i in _bar(range(len(files)), f"calibrated with image {start}"):
        rgb = pictures.decode(files[i], info.pad).rgb
        labels = api.run(rgb, engine, backend, subject.options.threads).labels
        reference = subject.training_labels(files[i])
        same, pixels = same + int((labels == reference).sum()), pixels + labels.size
    counts = Counter(name for node, name in chosen.items())
    return {"equal": {"same": same, "pixels": pixels}, "chosen": dict(sorted(counts.items()))}


# ---------------------------------------------------------------------------------------------------------------------
# Tables 3 to 5: post-training quantization, and its cost
# ---------------------------------------------------------------------------------------------------------------------


_LAUNCH = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""
"""Between this process and the one that is measured: a new process counts the memory of the one it comes from."""


def measured(command: Sequence[str | Path]) -> Document:
    """Run a command of tools/ on one thread; its seconds (elapsed, and of the processor) and peak memory."""
    start = time.perf_counter()
    launch = [sys.executable, "-c", _LAUNCH, sys.executable, *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    code, seconds, peak = done.stdout.split() if done.returncode == 0 else (str(done.returncode), "0", "0")
    if int(code):
        raise UsageError(f"{Path(command[0]).name}: {' '.join(done.stderr.split())[-300:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(float(seconds), 2),
        "peak_bytes": int(peak) * unit,
    }


def ptq(subject: Subject) -> Document:
    """Tables 3 to 5: tools/convert.py for every recipe and number of images, then the engine on what it wrote."""
    options = subject.options
    found = []
    for samples in options.samples:
        count = len(subject.training) if samples == "all" else int(samples)
        for recipe in options.recipes:
            work = functools.partial(_converted, subject, recipe, count)
            found.append(subject.memo(f"{recipe}, {count} images", work))
    training = (
        subject.memo(f"{options.qat_steps} QAT steps", lambda: _training_cost(subject)) if options.qat_steps else None
    )
    size = 4 * sum(p.numel() for p in subject.model.parameters())
    return {
        "float": subject.floats(),
        "float_bytes": size,
        "rows": found,
        "training": training,
        "machine": bench.machine(),
    }


def _converted(subject: Subject, recipe: str, count: int) -> Document:
    """One model: its conversion as a process of its own, and its accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{recipe}.safetensors"
        command = [TOOLS / "convert.py", subject.path, "-o", file, "--recipe", recipe, "-q"]
        cost = measured([*command, "--calibrate", *find_images(subject.training, count)])
        row = subject.engine_row(api.load(file)).as_json()
        return {"recipe": recipe, "images": count, "bytes": file.stat().st_size, "cost": cost, **row}


def _training_cost(subject: Subject) -> Document:
    """Processor seconds of a step of tools/qat.py, from a run of one step and one of a few more."""
    options = subject.options
    command = [TOOLS / "qat.py", subject.path, "--root", options.root, "--layout", options.layout]
    command += ["--split", options.train, "--val", "", "--calibrate", subject.training[0], "--batch", "8"]
    with tempfile.TemporaryDirectory() as folder:
        counts = (1, 1 + options.qat_steps)
        runs = [measured([*command, "--steps", str(n), "-o", Path(folder) / str(n)]) for n in counts]
    step = (runs[1]["cpu_seconds"] - runs[0]["cpu_seconds"]) / options.qat_steps
    return {"batch": 8, "cpu_seconds_per_step": round(step, 2), "peak_bytes": runs[1]["peak_bytes"]}


def qat(subject: Subject) -> Document:
    """Tables 3 and 4: models that tools/qat.py exported. Rows of recipes that are not named now stay."""
    rows = dict(subject.earlier.get("rows", {}))
    for recipe, file in subject.options.qat.get(subject.name, {}).items():
        model = api.load(file)
        if model.info.recipe != recipe:
            raise UsageError(f"{file}: recipe is {model.info.recipe}, expected {recipe}; change --qat")
        row = subject.engine_row(model).as_json()
        rows[recipe] = {"model_sha256": model.sha256, "bytes": file.stat().st_size, **row}
    return {"rows": rows}


# ---------------------------------------------------------------------------------------------------------------------
# Tables 6 and 7: sizes and memory traffic
# ---------------------------------------------------------------------------------------------------------------------

PAPER_BITS = {"fp32": 80, "int8 linear": 20, "int8 attention": 50}
"""Bits per multiply-accumulate, without any reuse, that give the paper's Table 7."""


def mac_counts(shape: bench.Shape) -> tuple[int, int]:
    """Multiply-accumulates of the linear layers and of the products of two activations, for one window."""
    patches = (shape.image // shape.patch) ** 2
    encoder, decoder, width = patches + 1, patches + shape.classes, shape.width
    linear = patches * 3 * shape.patch**2 * width + 12 * width**2 * encoder * shape.layers
    linear += (2 * patches + shape.classes) * width**2 + 12 * width**2 * decoder * shape.decoder_layers
    products = 2 * width * (encoder**2 * shape.layers + decoder**2 * shape.decoder_layers)
    return linear, products + patches * shape.classes * width


def traffic(graph: Graph) -> Document:
    """Bytes that the fused plan of a graph moves for one window: every weight once, every buffer read and written.

    Intermediates that a step keeps to itself (a strip of attention) do not count: they fit the scratch of a thread.
    """
    compiled = Plan(graph, 1)
    sizes = {name: array.nbytes for name, array in graph.tensors.items()}
    steps = [step for segment in compiled.segments for step in segment.steps]
    sizes |= {buffer.name: buffer.nbytes for step in steps for buffer in step.outputs}
    views = {node.name: np.dtype(node.dtype).itemsize * int(np.prod(node.shape)) for node in graph.nodes}
    read = sum(sizes.get(name) or views[name] for step in steps for name in (*step.local, *step.whole))
    totals = inspect_model.totals(graph)
    return {
        "weights": totals.parameter_bytes,
        "read": read,
        "written": sum(buffer.nbytes for step in steps for buffer in step.outputs),
        "workspace": compiled.workspace_bytes,
        "scratch": max(step.scratch for step in steps),
        "node_by_node": _node_by_node(graph) + totals.parameter_bytes,
        "macs": totals.macs,
    }


def _node_by_node(graph: Graph) -> int:
    """Bytes of activations that the definition moves: every node reads its inputs and writes its output."""
    total = 0
    sizes = {node.name: np.dtype(node.dtype).itemsize * int(np.prod(node.shape)) for node in graph.nodes}
    sizes["image"] = int(np.prod(graph.info.window)) * 3
    for node in graph.nodes:
        total += sizes[node.name] + sum(sizes[name] for name in node.inputs if name in sizes)
    return total


def sizes(names: Sequence[str]) -> Document:
    """Parameters, file sizes and traffic of the published sizes at 512 x 512 with 150 classes."""
    found = {}
    for name in names:
        shape = dataclasses.replace(bench.SHAPES[name], image=512, l2norm=True)
        with torch.device("meta"):
            model = Segmenter(config_for(name, n_cls=shape.classes, image_size=(shape.image, shape.image)))
        graph = bench.RandomGraph(shape).build()
        validate(graph)
        linear, products = mac_counts(shape)
        found[name] = {
            "float_bytes": 4 * sum(p.numel() for p in model.parameters()),
            "integer_bytes": inspect_model.totals(graph).parameter_bytes,
            "linear_macs": linear,
            "product_macs": products,
            "traffic": traffic(graph),
        }
        print(f"  {name}: {(linear + products) / 1e9:.2f} GMAC", flush=True)
    return {"image": 512, "classes": 150, "bits_per_mac": PAPER_BITS, "sizes": found}


# ---------------------------------------------------------------------------------------------------------------------
# Files and the command line
# ---------------------------------------------------------------------------------------------------------------------

PER_CHECKPOINT: Mapping[str, Callable[[Subject], Document]] = {
    "upsampling": upsampling,
    "activations": activations,
    "simplifications": simplifications,
    "calibration": calibration,
    "ptq": ptq,
    "qat": qat,
}
"""Experiments whose file is EXPERIMENT_CHECKPOINT.json."""

OPTIONS = {
    "upsampling": ("split", "limit"),
    "activations": ("split", "limit", "images", "tails"),
    "simplifications": ("split", "limit"),
    "calibration": ("split", "limit", "train", "images"),
    "ptq": ("split", "limit", "train", "samples", "recipes", "qat_steps"),
    "qat": ("split", "limit"),
}
"""Options that decide a result."""

PARTS_NAME = ("samples", "recipes", "qat_steps", "tails")
"""Options that the names of an experiment's parts tell: with others, parts that are there still hold."""


def inputs_of(experiment: str, subject: Subject) -> Document:
    """What a result depends on; equal inputs are not measured again."""
    options = {name: getattr(subject.options, name) for name in OPTIONS[experiment]}
    names = hashlib.sha256("\n".join(pair.image.name for pair in subject.pairs).encode()).hexdigest()
    found = {"format": FORMAT, "checkpoint_sha256": subject.sha256, "data": names, **options}
    if experiment == "qat":
        files = subject.options.qat.get(subject.name, {})
        found["models"] = {recipe: hashlib.sha256(store.read(file)).hexdigest() for recipe, file in files.items()}
    return found


def header(experiment: str, subject: Subject) -> Document:
    """What a file says about itself."""
    config = subject.model.config
    options = subject.options
    command = f"python tools/measure/experiments.py {experiment} --root {options.layout_name} "
    command += f"--checkpoint {subject.name}={subject.path.name}"
    if experiment == "qat":
        kept = dict.fromkeys(subject.earlier.get("rows", {}), Path("model.safetensors"))
        files = {**kept, **options.qat.get(subject.name, {})}
        command += "".join(f" --qat {subject.name}:{recipe}={file.name}" for recipe, file in files.items())
    return {
        "experiment": experiment,
        "command": command,
        "checkpoint": {
            "name": subject.name,
            "blocks": config.n_layers,
            "width": config.d_model,
            "decoder_blocks": config.dec_layers,
            "window": list(config.window),
        },
        "classes": list(subject.classes),
        "images": len(subject.pairs),
        "training_images": len(subject.training),
    }


def write(document: Document, path: Path) -> None:
    """One key a line at the top, whole or not at all."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
    store.write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_json(path: Path) -> Document:
    """A file that `write` wrote. Raises InputError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read ({type(error).__name__}); delete it to measure again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: is not a JSON object; delete it to measure again")
    return found


def plain(value: Document) -> Document:
    """A document as it comes back from a file."""
    found: Document = json.loads(json.dumps(value))
    return found


def up_to_date(path: Path, inputs: Document) -> bool:
    """Whether a file holds the result of these inputs."""
    return path.exists() and read_json(path).get("inputs") == plain(inputs)


def _earlier(path: Path, inputs: Document) -> Document:
    """The results in a file if they are of the same checkpoint and data, else nothing."""
    found = read_json(path) if path.exists() else {}
    same = all(found.get("inputs", {}).get(key) == inputs[key] for key in ("format", "checkpoint_sha256", "data"))
    results: Document = found["results"] if same else {}
    return results


def run(options: argparse.Namespace) -> None:
    """All that is asked for, one file after the other."""
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = [*PER_CHECKPOINT, "sizes"] if "all" in options.experiments else options.experiments
    for name, path in options.checkpoint.items():
        chosen = [e for e in wanted if e in PER_CHECKPOINT and (e != "qat" or options.qat.get(name))]
        subject = Subject(name, path, options) if chosen else None
        for experiment in chosen:
            assert subject is not None
            file, inputs = options.output / f"{experiment}_{name}.json", inputs_of(experiment, subject)
            if not options.force and up_to_date(file, inputs):
                print(f"{file}: up to date")
                continue
            subject.earlier = _earlier(file, inputs)
            subject.memo = Memo(file, inputs, options.force)
            _measure(file, inputs, header(experiment, subject), functools.partial(PER_CHECKPOINT[experiment], subject))
            subject.memo.end()
    if "sizes" in wanted:
        file, names = options.output / "sizes.json", list(options.sizes)
        inputs = {"format": FORMAT, "sizes": names}
        if not options.force and up_to_date(file, inputs):
            print(f"{file}: up to date")
            return
        command = "python tools/measure/experiments.py sizes"
        command += "" if names == list(bench.SHAPES) else f" --sizes {' '.join(names)}"
        about = {"experiment": "sizes", "command": command}
        _measure(file, inputs, about, lambda: sizes(names))


def _measure(file: Path, inputs: Document, about: Document, work: Callable[[], Document]) -> None:
    start, processor = time.perf_counter(), time.process_time()
    result = work()
    write({**about, "inputs": inputs, "results": result}, file)
    elapsed = f"{time.perf_counter() - start:.0f} s, {time.process_time() - processor:.0f} of this process"
    print(f"{file}: {elapsed}", flush=True)


def _named(values: Sequence[str], option: str) -> dict[str, Path]:
    """NAME=PATH, several."""
    found = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name.isidentifier() and equals and path):
            raise UsageError(f"{option} {value}: expected NAME=PATH, the name of letters and digits")
        if not Path(path).exists():
            raise InputError(f"{option} {value}: no such file or folder")
        found[name] = Path(path)
    return found


def _qat_files(values: Sequence[str], checkpoints: Sequence[str]) -> dict[str, dict[str, Path]]:
    """[NAME:]RECIPE=FILE, several; the name may be left out where there is one checkpoint."""
    found: dict[str, dict[str, Path]] = {}
    for value in values:
        left, _, file = value.partition("=")
        name, _, recipe = left.rpartition(":")
        name = name or (checkpoints[0] if len(checkpoints) == 1 else "")
        if name not in checkpoints or recipe not in RECIPES or not file:
            raise UsageError(f"--qat {value}: expected NAME:RECIPE=FILE, a checkpoint and one of {', '.join(RECIPES)}")
        if not Path(file).is_file():
            raise InputError(f"--qat {value}: no such file")
        found.setdefault(name, {})[recipe] = Path(file)
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="experiments.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("experiments", nargs="+", choices=["all", *PER_CHECKPOINT, "sizes"], metavar="EXPERIMENT")
    p.add_argument("--root", type=Path, help="folder of the data set")
    p.add_argument("--layout", choices=sorted(set(datasets.LAYOUTS) - {"pairs"}), default="camvid")
    p.add_argument("--split", default="val", help="part of the data set that is measured (val)")
    p.add_argument("--train", default="train", help="part that calibration takes images from (train)")
    p.add_argument("--checkpoint", action="append", default=[], metavar="NAME=PATH", help="several are allowed")
    p.add_argument("--qat", action="append", default=[], metavar="[NAME:]RECIPE=FILE", help="of tools/qat.py, several")
    p.add_argument("-o", "--output", type=Path, default=Path("docs/results"), help="folder of the files (docs/results)")
    p.add_argument("--samples", nargs="+", default=["1", "all", "32"], help="calibration images of ptq (1 all 32)")
    p.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=sorted(RECIPES), help="of ptq (all)")
    p.add_argument("--images", type=int, default=26, help="of activations and calibration, evenly spaced (26)")
    p.add_argument("--tails", type=int, nargs="*", default=[8, 16], help="factors of Table 1's long tails (8 16)")
    p.add_argument("--qat-steps", type=int, default=3, help="training steps that are timed by ptq; 0 for none (3)")
    p.add_argument("--sizes", nargs="+", choices=list(bench.SHAPES), default=list(bench.SHAPES), help="of sizes (all)")
    p.add_argument("--limit", type=int, help="first images only")
    p.add_argument("--backend", default="auto", help="of the engine (auto)")
    p.add_argument("--threads", type=int, default=1, help="of the engine (1)")
    p.add_argument("--force", action="store_true", help="measure again what is there")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(argv)
    options.layout_name = {"camvid": "CamVid", "ade20k": "ADE20K", "cityscapes": "Cityscapes"}[options.layout]
    try:
        options.checkpoint = _named(options.checkpoint, "--checkpoint")
        options.qat = _qat_files(options.qat, list(options.checkpoint))
        if set(options.experiments) != {"sizes"} and not (options.root and options.checkpoint):
            raise UsageError("needs --root DIR and --checkpoint NAME=PATH; see --help")
        run(options)
    except CheckpointError as error:
        print(f"experiments.py: {error}", file=sys.stderr)
        return 3
    except IntsegError as error:
        print(f"experiments.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
