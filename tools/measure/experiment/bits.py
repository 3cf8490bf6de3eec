"""Weights of fewer bits: uniform and mixed by every score, what each means against rounding wins."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from intseg.tools.bits import choice, scores
from intseg.tools.bits.allocation import BITS, Budget, LayerCost, allocate
from intseg.tools.bits.rounding import Ways, round_weights
from intseg.tools.convert import find_images, windows
from intseg.tools.measure.experiment.memo import Document
from intseg.tools.measure.experiment.subject import Subject
from intseg.tools.measure.tables.bits import BETAS, SWEPT, SWEPT_MEAN, problem_of
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.model import FakeQuant, FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.segmenter import Segmenter

SAMPLES = 32
"""Calibration images."""

UNIFORM = (4, 3, 2, 6, 8)
MIXED = {3.0: scores.SCORES, 2.5: scores.SCORES, 4.0: scores.SCORES}
"""Scores by bits a weight on average, at most."""

NARROW = ((4, 6), (4, 5), (4, 4))
"""Bits of weights and of activations."""

FEW_IMAGES, FROM_ONE = 1, (4, 3)
ABLATED = (3, 4)
MEANS = {
    "each weight to its nearest": Ways(clip_norms=False, fit_ranges=False, compensate=False),
    "errors not handed on": Ways(compensate=False),
    "full ranges of weights": Ways(fit_ranges=False),
    "ranges of LayerNorms as they are": Ways(clip_norms=False),
    "biases as they are": Ways(correct=False),
}
"""What is left out."""

PARTS = ("uniform", *scores.SCORES, "activations", "images", "means", "beta")
"""Groups of rows; the first part of their names."""


@dataclass(frozen=True)
class Asked:
    """A row: its name "part, what", bits of every layer, and how it is made."""

    name: str
    bits: tuple[int, ...]
    samples: int = SAMPLES
    activations: int = 8
    ways: Ways = Ways()  # noqa: RUF009


class Rounding:
    """Calibrated twins of a model, their weights rounded as asked.

    twin      makes one that is not calibrated
    batches   uint8 windows [B, H, W, 3] of so many calibration images
    count     what a twin with rounded weights gives
    """

    def __init__(
        self,
        model: Segmenter | Classifier,
        twin: Callable[[], FakeQuant],
        batches: Callable[[int], list[Tensor]],
        count: Callable[[FakeQuant], Document],
    ) -> None:
        self.model, self._twin, self._count = model, twin, count
        self.batches = functools.cache(batches)
        self._calibrated: dict[tuple[int, int], FakeQuant] = {}

    def calibrated(self, samples: int, activations: int) -> FakeQuant:
        """A twin as `intseg convert` calibrates it before it rounds weights; kept."""
        key = samples, activations
        if key not in self._calibrated:
            twin = self._twin()
            twin.set_bits(twin.uniform_bits(8, activations))
            calibrate(twin, self.model, self.batches(samples), correct=False)
            self._calibrated[key] = twin
        return self._calibrated[key]

    def counting(self, count: Callable[[FakeQuant], Document]) -> Rounding:
        """The same calibrated twins, of which something else is counted."""
        found = copy.copy(self)
        found._count = count
        return found

    def row(self, costs: Sequence[LayerCost], asked: Asked) -> Document:
        """Accuracy and costs of an allocation."""
        twin = copy.deepcopy(self.calibrated(asked.samples, asked.activations))
        chosen = dict(zip(twin.linears(), asked.bits, strict=True))
        round_weights(twin, self.model, self.batches(asked.samples), chosen, asked.ways)
        size = sum(layer.weights * b for layer, b in zip(costs, asked.bits, strict=True))
        work = sum(layer.macs * b * asked.activations for layer, b in zip(costs, asked.bits, strict=True))
        return {"bits": list(asked.bits), "size": size, "bitops": work, **self._count(twin.eval())}

    def measured(self) -> Document:
        """Costs of the layers, importances by every score, KL of every layer at every number of bits, synergy."""
        batches = self.batches(SAMPLES)
        names = list(self._twin().linears())
        costs = choice.layer_costs(self.model, batches[0][:1], names)
        probe = scores.Probe(self.model, choice.spread(batches), names)
        zeroed = scores.normalised(probe.zeroed())
        return {
            "layers": [[layer.name, layer.weights, layer.macs] for layer in costs],
            "lrp": scores.normalised(probe.relevance()).mean(0).tolist(),
            "mix-qsam": zeroed.mean(0).tolist(),
            "synergy": scores.synergy(zeroed).tolist(),
            "sensitivity": np.maximum(probe.rounded(BITS).mean(0), 0).tolist(),
        }

    def rows(self, memo: Callable[[str, Callable[[], Document]], Document], parts: Sequence[str]) -> Document:
        """`scores`, and `rows` by name, of some of PARTS."""
        found = memo("scores", self.measured)
        costs = [LayerCost(*layer) for layer in found["layers"]]
        rows, made = dict[str, Document](), dict[Asked, str]()
        for asked in plan(costs, found):
            if asked.name.split(",")[0] in parts:  # what was measured under another name is not measured again
                name = made.setdefault(replace(asked, name=""), asked.name)
                rows[asked.name] = memo(name, functools.partial(self.row, costs, asked))
        return {"samples": SAMPLES, "scores": found, "rows": rows}


def bits(subject: Subject) -> Document:
    """The Pareto front of uniform and mixed bits, importances beside sensitivities, ablation, beta."""
    recipe = RECIPES["intseg"]
    rounding = Rounding(
        subject.model,
        lambda: FakeQuantSegmenter(subject.model, subject.info_of(recipe).window, recipe),
        lambda samples: [windows(file, subject.info) for file in find_images(subject.training, samples)],
        lambda twin: subject.engine_row(subject.exported(twin)).as_json(),
    )
    return {"float": subject.floats(), **rounding.rows(subject.memo, subject.options.parts)}


def plan(costs: Sequence[LayerCost], found: Document) -> Iterator[Asked]:
    """Every row."""
    every, total = len(costs), sum(layer.weights for layer in costs)

    def best(score: str, mean: float, beta: float) -> tuple[int, ...]:
        return allocate(problem_of(found, score, beta), Budget(size=int(mean * total))).bits

    yield from (Asked(f"uniform, {b}", (b,) * every) for b in UNIFORM)
    yield from (Asked(f"{score}, {mean:g}", best(score, mean, 0.0)) for mean, by in MIXED.items() for score in by)
    yield from (Asked(f"activations, W{w}A{a}", (w,) * every, activations=a) for w, a in NARROW)
    yield from (Asked(f"images, W{b}", (b,) * every, samples=FEW_IMAGES) for b in FROM_ONE)
    for b in ABLATED:
        for what, ways in MEANS.items():
            yield Asked(f"means, W{b}: {what}", (b,) * every, ways=ways)
    yield from (Asked(f"beta, {score} {beta:g}", best(score, SWEPT_MEAN, beta)) for score in SWEPT for beta in BETAS)
