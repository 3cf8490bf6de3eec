"""Weights of fewer bits: uniform and mixed by every score, what each means against rounding wins."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from intseg.tools.bits import choice, scores
from intseg.tools.bits.allocation import BITS, Budget, LayerCost, allocate
from intseg.tools.bits.rounding import Ways, round_weights
from intseg.tools.convert import find_images, windows
from intseg.tools.measure.experiment.memo import Document
from intseg.tools.measure.experiment.subject import Subject
from intseg.tools.measure.tables.bits import problem_of
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES

SAMPLES = 32
"""Calibration images."""

UNIFORM = (8, 4, 3)
MIXED = {3.0: scores.SCORES}
"""Scores by bits a weight on average, at most."""

NEAREST = Ways(clip_norms=False, fit_ranges=False, compensate=False)
"""Each weight rounded by itself, full ranges; biases corrected."""

ABLATED = (4, 3)


class Rounded:
    """A calibrated twin, and what the engine gives with its weights rounded in some way."""

    def __init__(self, subject: Subject, samples: int) -> None:
        self.subject, self.samples = subject, samples

    @functools.cached_property
    def _calibrated(self) -> FakeQuantSegmenter:
        recipe = RECIPES["intseg"]
        twin = FakeQuantSegmenter(self.subject.model, self.subject.info_of(recipe).window, recipe)
        calibrate(twin, self.subject.model, self.batches)
        return twin

    @functools.cached_property
    def batches(self) -> list[object]:
        """Windows of every calibration image."""
        files = find_images(self.subject.training, self.samples)
        return [windows(file, self.subject.info) for file in files]

    def row(self, costs: Sequence[LayerCost], bits: Sequence[int], ways: Ways = Ways()) -> Document:  # noqa: B008
        """Accuracy and costs of an allocation."""
        twin = copy.deepcopy(self._calibrated)
        round_weights(twin, self.subject.model, self.batches, dict(zip(twin.linears(), bits, strict=True)), ways)
        size = sum(layer.weights * b for layer, b in zip(costs, bits, strict=True))
        work = sum(layer.macs * b * 8 for layer, b in zip(costs, bits, strict=True))
        counted = self.subject.engine_row(self.subject.exported(twin.eval())).as_json()
        return {"bits": list(bits), "size": size, "bitops": work, **counted}


def bits(subject: Subject) -> Document:
    """The Pareto front of uniform and mixed bits, importances beside sensitivities, ablation, beta."""
    many = Rounded(subject, SAMPLES)
    found = subject.memo("scores", lambda: measured(many))
    costs = [LayerCost(*layer) for layer in found["layers"]]
    rows = {}
    for name, rounded, chosen, ways in _plan(many, costs, found):
        rows[name] = subject.memo(name, functools.partial(rounded.row, costs, chosen, ways))
    return {"float": subject.floats(), "samples": SAMPLES, "scores": found, "rows": rows}


def measured(rounded: Rounded) -> Document:
    """Costs of the layers, importances by every score, KL of every layer at every number of bits, synergy."""
    subject = rounded.subject
    names = list(rounded._calibrated.linears())
    costs = choice.layer_costs(subject.model, rounded.batches[0][:1], names)
    probe = scores.Probe(subject.model, choice.spread(rounded.batches), names)
    zeroed = scores.normalised(probe.zeroed())
    return {
        "layers": [[layer.name, layer.weights, layer.macs] for layer in costs],
        "lrp": scores.normalised(probe.relevance()).mean(0).tolist(),
        "mix-qsam": zeroed.mean(0).tolist(),
        "synergy": scores.synergy(zeroed).tolist(),
        "sensitivity": np.maximum(probe.rounded(BITS).mean(0), 0).tolist(),
    }


def _plan(
    many: Rounded, costs: Sequence[LayerCost], found: Document
) -> Iterator[tuple[str, Rounded, Sequence[int], Ways]]:
    """(name, calibration, bits of every layer, means) of every row."""
    every, total = len(costs), sum(layer.weights for layer in costs)
    for b in UNIFORM:
        yield f"uniform W{b}", many, [b] * every, Ways()
    for mean, by in MIXED.items():
        for score in by:
            best = allocate(problem_of(found, score, 0.0), Budget(size=int(mean * total)))
            yield f"{score}, {mean:g} bits", many, best.bits, Ways()
    for b in ABLATED:
        yield f"W{b}, each weight to its nearest", many, [b] * every, NEAREST
