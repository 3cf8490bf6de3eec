"""How much each linear layer matters: three importances, what fewer bits cost, and how alike neighbours are.

lrp           relevance of the predicted class at each layer (lrp.py)
mix-qsam      KL(P || P with the layer's output zeroed)
sensitivity   KL(P || P with the layer alone at b bits), rounded as `rounding` rounds
mix-qvit      lrp times sensitivity

P are the float model's class probabilities per patch. Importances are normalised over the layers of an image and then
averaged over images. Everything runs on the float model: no integer is needed to ask these questions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from intseg.progress import shown
from intseg.tools.bits.allocation import gain_of
from intseg.tools.bits.lrp import Relevance
from intseg.tools.bits.rounding import round_matrix, second_moments
from intseg.tools.twin.calibrate import node_of, normalise
from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.segmenter import Block, Segmenter

Reals = NDArray[np.float64]
Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]

SCORES = ("sensitivity", "mix-qvit", "lrp", "mix-qsam")

EPS = 1e-3
"""Added to differences of importances (which sum to one over the layers) before they divide."""

WINDOWS = 8
"""Windows of the calibration images that scores are measured on, evenly spaced, one image each."""

MEASURED = 5
"""Most bits that sensitivity is measured at. A bit more halves the error, and a KL divergence goes by its square: it
is a quarter of what it was, and soon below what few windows can tell."""


@dataclass(frozen=True)
class Scores:
    """What is known of the layers of a model, in the order of the graph.

    gain      [L, len(bits)] what the allocation maximises: Omega_l b, or minus what b bits cost
    synergy   [L - 1] of neighbours
    """

    gain: Reals
    synergy: Reals


class Probe:
    """The float model with one layer changed at a time.

    images   uint8 windows [B, H, W, 3]; each is an image of the averages
    names    the nodes of the linear layers, in the order of the graph
    """

    def __init__(
        self, model: Segmenter | Classifier, images: Tensor, names: Sequence[str], cosine: bool = True
    ) -> None:
        self.model, self.names, self.cosine = model, tuple(names), cosine
        self.x = normalise(images, model.config)
        found = {node_of(name): module for name, module in model.named_modules()}
        self.modules = {name: found[name] for name in names}
        self._blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, Block)]
        self._outputs: dict[str, Tensor] = {}
        inputs: dict[str, Tensor] = {}
        hooks: dict[nn.Module, Hook] = {block: partial(self._keep, name) for name, block in self._blocks}
        hooks |= {module: partial(_keep_input, inputs, name) for name, module in self.modules.items()}
        with torch.no_grad(), _hooked(hooks):
            self.clean = self._log_shares()
        self._moments = {name: (second_moments(x), x.flatten(0, -2).mean(0)) for name, x in inputs.items()}

    def _keep(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._outputs[name] = output

    def _log_shares(self) -> Tensor:
        """log P, float64 [B, cells, C]; the L2 norm of zeros, which is none, counts as zeros."""
        scores = self.model.forward_scores(self.x, self.cosine).double().nan_to_num(0.0)
        return scores.reshape(len(scores), -1, scores.shape[-1]).log_softmax(-1)

    def changed(self, name: str, hook: Hook) -> Reals:
        """KL(P || P of the model with a hook on one layer), the mean over the cells of each image; [B]."""
        with torch.no_grad(), _skipped(self._before(name), self._outputs), _hooked({self.modules[name]: hook}):
            found = self._log_shares()
        divergence: Reals = (self.clean.exp() * (self.clean - found)).sum(-1).mean(-1).numpy()
        return divergence

    def _before(self, name: str) -> list[tuple[str, nn.Module]]:
        """The blocks whose outputs a change of this layer leaves as they are."""
        for i, (block, _) in enumerate(self._blocks):
            if name.startswith(block + "."):
                return self._blocks[:i]
        first = {"encoder.patch_embed": 0, "decoder.proj_dec": sum(b.startswith("encoder.") for b, _ in self._blocks)}
        return self._blocks[: first.get(name, len(self._blocks))]

    def zeroed(self) -> Reals:
        """KL of every layer's output zeroed, [B, L]."""
        names = shown(self.names, "leaving out layers", len(self.names), "layer")
        return np.stack([self.changed(name, lambda m, x, y: torch.zeros_like(y)) for name in names], 1)

    def rounded(self, bits: Sequence[int]) -> Reals:
        """KL of every layer alone at so many bits, [B, L, len(bits)]; beyond MEASURED by the rule of quarters."""
        asked = sorted({min(b, MEASURED) for b in bits})
        cases = [(b, name) for b in asked for name in self.names]
        shown_cases = shown(cases, "rounding layers alone", len(cases), "case")
        each = [self.changed(name, self._rounding(name, b)) for b, name in shown_cases]
        found = {b: np.stack(each[i * len(self.names) :][: len(self.names)], 1) for i, b in enumerate(asked)}
        return np.stack([found[min(b, MEASURED)] * 0.25 ** max(0, b - MEASURED) for b in bits], 2)

    def _rounding(self, name: str, bits: int) -> Hook:
        """Adds to a layer's output what its rounded weights change, with the mean taken up by the bias."""
        weight, (moments, mean) = matrix_of(self.model, name), self._moments[name]
        top = 2 ** (bits - 1) - 1
        q, scale = round_matrix(weight.double(), moments, (-top if bits == 8 else -top - 1, top))
        change = (q * scale[:, None] - weight.double()).to(weight.dtype)
        shift = -(change @ mean)

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if isinstance(module, nn.Conv2d):
                return output + F.conv2d(inputs[0], change.reshape(module.weight.shape), shift, module.stride)
            return output + F.linear(inputs[0], change, shift)

        return add

    def relevance(self) -> Reals:
        """LRP of every layer, [B, L]."""
        found = Relevance(self.model, self.x, self.cosine).found
        return torch.stack([found[name] for name in self.names], 1).double().numpy()


def matrix_of(model: Segmenter | Classifier, node: str) -> Tensor:
    """Weights [N, K] of a linear layer of the float model; of a convolution its kernels [N, 3 P P]."""
    module = next(module for name, module in model.named_modules() if node_of(name) == node)
    if isinstance(module, nn.Linear | nn.Conv2d):
        return module.weight.detach().flatten(1)
    found: Tensor = getattr(model.decoder, node.removeprefix("decoder.")).detach().T
    return found


def _keep_input(
    kept: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    x = inputs[0]
    if isinstance(module, nn.Conv2d):
        x = F.unfold(x, module.kernel_size, stride=module.stride).transpose(1, 2)
    kept[name] = x


@contextlib.contextmanager
def _hooked(hooks: Mapping[nn.Module, Hook]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _skipped(blocks: Sequence[tuple[str, nn.Module]], outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, these blocks give known outputs without computing them."""
    for name, block in blocks:
        block.forward = lambda x, known=outputs[name]: known
    try:
        yield
    finally:
        for _, block in blocks:
            del block.forward


# ---------------------------------------------------------------------------------------------------------------------
# From measurements to an objective
# ---------------------------------------------------------------------------------------------------------------------


def normalised(values: Reals) -> Reals:
    """[B, L] not negative -> importances that sum to one over the layers of each image."""
    values = np.maximum(values, 0)
    found: Reals = values / np.maximum(values.sum(1, keepdims=True), 1e-300)
    return found


def synergy(importance: Reals, eps: float = EPS) -> Reals:
    """S = log(1 + mean over images of 1 / (|I_l - I_(l+1)| + eps)), [L - 1], of importances [B, L]."""
    found: Reals = np.log1p((1 / (np.abs(np.diff(importance, axis=1)) + eps)).mean(0))
    return found


def measure(probe: Probe, kind: str, bits: Sequence[int], beta: float) -> Scores:
    """One of SCORES as an objective: what it needs is measured, synergy only where `beta` asks for it."""
    none = np.zeros((len(probe.names), 1))
    zeroed = normalised(probe.zeroed()) if kind == "mix-qsam" or beta else none.T
    lrp = normalised(probe.relevance()).mean(0) if kind in ("lrp", "mix-qvit") else none[:, 0]
    cost = np.maximum(probe.rounded(bits).mean(0), 0) if kind in ("sensitivity", "mix-qvit") else none
    return Scores(gain_of(kind, bits, lrp, zeroed.mean(0), cost), synergy(zeroed) if beta else none[1:, 0])
