"""Table 1: the integer GELUs and softmaxes on real activations."""

from __future__ import annotations

import copy
import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor

from intseg import backends
from intseg.tools.convert import windows
from intseg.tools.measure.experiment.memo import Document
from intseg.tools.measure.experiment.subject import Labels, Once, Subject, _bar
from intseg.tools.twin.attention import QExpWeights, QSoftmax
from intseg.tools.twin.calibrate import calibrate, normalise, tapped
from intseg.tools.twin.gelu import QGelu
from intseg.tools.twin.model import FakeQuantSegmenter, QBlock
from intseg.tools.twin.recipe import RECIPES, Recipe
from intseg.tools.twin.segmenter import Segmenter

TAIL_EVERY = 96
"""The long-tailed networks of --tails: every 96th input of a GELU (8 of 768) is so many times larger."""


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
        "aligned": RECIPES["paper-aligned"],
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
