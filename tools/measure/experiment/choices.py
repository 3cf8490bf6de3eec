"""Table 2, what each simplification costs, and what calibration chooses."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from intseg import api, backends
from intseg.errors import InputError, UsageError
from intseg.images import decode as pictures
from intseg.tools.convert import recipe_for, windows
from intseg.tools.measure.experiment.activations import _twin, apply_gelu, apply_softmax, blocks, gelus, softmaxes
from intseg.tools.measure.experiment.memo import Document
from intseg.tools.measure.experiment.subject import Once, Subject, _bar
from intseg.tools.twin.calibrate import WIDEN_FEW, Estimator, calibrate, estimators, extremes
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES, Recipe
from intseg.tools.twin.segmenter import Segmenter


def upsampling(subject: Subject) -> Document:
    """Table 2: interpolation and L2 norm, float and in integers."""
    found = {"float": subject.floats()}
    for name in ("intseg", "paper"):
        kept, dropped = (
            subject.memo(f"{name}, {cosine}", functools.partial(_both_upsamplings, subject, name, cosine))
            for cosine in ("keep", "drop")
        )
        found[name] = {f"{up}, L2": row for up, row in kept.items()}
        found[name] |= {f"{up}, no L2": row for up, row in dropped.items()}
    return {"rows": found}


def _both_upsamplings(subject: Subject, recipe: str, cosine: str) -> Document:
    rows = subject.engine_rows(subject.engine(recipe_for(recipe, None, cosine)), ("bilinear", "nearest"))
    return {up: row.as_json() for up, row in rows.items()}


STEPS: Mapping[str, Mapping[str, Any]] = {
    "nearest upsampling": {"upsample": "nearest"},
    "no L2 norm": {"cosine": False},
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
