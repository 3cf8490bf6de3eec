"""Round the weights of a calibrated twin to few bits, one layer after the other, each seeing what those before it lost.

For every layer with less than 8 bits, with H the second moments of the integers that it reads (about their mean, which
its bias can take up):

ranges         per output channel, the scale whose rounding error e has the least e^T diag(H) e; the largest weights may
               saturate
compensation   column by column, what rounding a column loses is made good by those not rounded yet (Frantar et al.,
               GPTQ): with U the upper Cholesky factor of H^-1, error e of column j adds -e U[j, k] / U[j, j] to k.
               Columns go by falling H[j, j]: what counts most is rounded while the most can still be mended.
refit          the scale that is best for the integers found
biases         then `correct_biases`, as with 8 bits

Before all that, the per-channel ranges after a LayerNorm are clipped where it helps (`clip_norms`). They are folded
into the weights, where one wide channel makes a column that all rows have to reach, and one narrow channel a column
that vanishes. Ranges further than a factor from their geometric mean are brought to it; wider channels then saturate,
narrower ones have coarser steps. The factors are those with the least error after the layers that read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from intseg.progress import shown
from intseg.tools.twin.act import Act, Quantized
from intseg.tools.twin.calibrate import correct_biases, normalise, readers, some_windows, tapped
from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.layers import QLinear
from intseg.tools.twin.model import FakeQuant
from intseg.tools.twin.segmenter import Segmenter
from intseg.tools.twin.training import Settings, augmented

VIEWS = range(7)
"""All views of `augment`: second moments want many rows."""

CLIPS = tuple(1.0 - 0.05 * i for i in range(15))
"""Parts of a row's largest weight that are tried as its range."""

DAMPING = 0.01
"""Of the mean of H's diagonal, added to all of it."""

BLOCK = 64
"""Columns rounded before the rest is brought up to date."""

LIMITS = tuple((low, high) for low in (0.0, 0.5, 1.0, 2.0) for high in (1.0, 2.0, math.inf) if low <= high)
"""Least and largest channel of a LayerNorm that are tried, in parts of the geometric mean."""

NEAREST = 1.6
"""Random views are magnified up to so much."""

NORM_ROWS = 512
"""Rows that clipping a LayerNorm is judged by."""


@dataclass(frozen=True)
class Ways:
    """Which of the means against rounding errors are used; all of them unless an ablation asks otherwise.

    keep_rest   layers remember how far their weights were from the integers: for training
    views       random views of every window that are seen besides it, where second moments are taken
    """

    clip_norms: bool = True
    fit_ranges: bool = True
    compensate: bool = True
    correct: bool = True
    keep_rest: bool = False
    views: int = 0


def round_weights(
    twin: FakeQuant,
    model: Segmenter | Classifier,
    batches: Sequence[Tensor],
    bits: Mapping[str, int],
    ways: Ways = Ways(),
) -> dict[str, str]:
    """Give every linear layer of a twin that `calibrate` has calibrated its bits, in place. Returns what was chosen.

    model, batches   as `calibrate` had them
    bits             by node, 2 to 8
    """
    images = with_views(some_windows(twin, batches, VIEWS), ways.views)
    chosen: dict[str, str] = {}
    with torch.no_grad():
        for node, layer in twin.linears().items():
            layer.bits.fill_(bits[node])
            layer.clip.fill_(1.0)
        if ways.clip_norms:
            chosen = clip_norms(twin, model, images)
        for layer in twin.linears().values():
            layer.fit_weight_scale()

        def prepare(layer: QLinear, x: Quantized) -> bool:
            if int(layer.bits) < 8:
                round_layer(layer, x.q, ways)
            return ways.correct

        correct_biases(twin, model, images, prepare, "rounding weights")
    return chosen


def with_views(images: Tensor, count: int, seed: int = 0) -> Tensor:
    """Windows uint8 [B, H, W, 3] followed by so many views of each: nearer, mirrored, recoloured at random, by seed.

    Second moments of 32 windows are those of a few thousand rows; layers read 768 columns.
    """
    height, width = images.shape[1:3]
    settings = Settings(steps=1, crop=(height, width), scale=(1.0, NEAREST))
    blank, found = Image.new("L", (width, height)), [images]
    for view in range(count):
        drawn = (np.random.default_rng([seed, view, i]) for i in range(len(images)))
        pairs = zip(images.numpy(), drawn, strict=True)
        crops = [augmented(Image.fromarray(rgb), blank, settings, rng)[0] for rgb, rng in pairs]
        found.append(torch.from_numpy(np.stack(crops)))
    return torch.cat(found)


def round_layer(layer: QLinear, x: Tensor, ways: Ways = Ways()) -> None:
    """Replace the weights of a layer by ones that its integers hold. x int64 [..., K]: what it reads."""
    folded = layer.folded()
    q, scale = round_matrix(folded, second_moments(x), layer.limits(), ways)
    if ways.keep_rest:
        layer.rest = (folded / scale[:, None] - q).half()
    layer.weight.data = (q * scale[:, None] / layer.x.scale).to(layer.weight.dtype)
    layer.use_weight_scale(scale)


def round_matrix(
    weight: Tensor,
    moments: Tensor,
    limits: tuple[int, int],
    ways: Ways = Ways(),
) -> tuple[Tensor, Tensor]:
    """Integers (float64) and scale [N] that stand for weight [N, K], whose inputs have such second moments [K, K]."""
    scale = weight.abs().amax(1).clamp(min=1e-12) / limits[1]
    if ways.fit_ranges:
        scale = fit_scale(weight, moments.diagonal(), limits)
    q = compensated(weight, scale, moments, limits) if ways.compensate else _rounded(weight, scale[:, None], limits)
    return q, _refit(weight, q, moments, scale) if ways.fit_ranges else scale


def second_moments(x: Tensor) -> Tensor:
    """Of integers [..., K] about their mean, float64 [K, K], damped so that it can be inverted."""
    rows = x.flatten(0, -2).double()
    rows = rows - rows.mean(0)
    found = rows.T @ rows / len(rows)
    if len(rows) < len(found):  # most directions were not seen: nothing may be handed on in trust of them
        part = len(rows) / (len(rows) + len(found))
        found = part * found + (1 - part) * torch.diag(found.diagonal())
    return found + torch.eye(len(found), dtype=torch.float64) * (DAMPING * found.diagonal().mean()).clamp(min=1e-6)


def _rounded(weight: Tensor, scale: Tensor, limits: tuple[int, int]) -> Tensor:
    """Integers as float64."""
    return torch.floor(weight / scale + 0.5).clamp(*limits)


def fit_scale(weight: Tensor, importance: Tensor, limits: tuple[int, int]) -> Tensor:
    """Scale [N] of every row of weight [N, K] with the least squared error, each column as important as said [K]."""
    full = weight.abs().amax(1).clamp(min=1e-12) / limits[1]
    errors = []
    for part in CLIPS:
        scale = (full * part)[:, None]
        errors.append((((_rounded(weight, scale, limits) * scale - weight) ** 2) * importance).sum(1))
    best = torch.stack(errors).argmin(0)
    return full * torch.tensor(CLIPS, dtype=torch.float64)[best]


def compensated(weight: Tensor, scale: Tensor, moments: Tensor, limits: tuple[int, int]) -> Tensor:
    """Integers (float64) of weight [N, K] with scale [N], rounding errors handed on within each row."""
    order = moments.diagonal().argsort(descending=True)
    rest = weight[:, order].clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    q = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        end = min(start + BLOCK, rest.shape[1])
        errors = torch.empty_like(rest[:, start:end])
        for j in range(start, end):
            q[:, j] = _rounded(rest[:, j], scale, limits)
            error = (rest[:, j] - q[:, j] * scale) / upper[j, j]
            rest[:, j:end] -= error[:, None] * upper[j, j:end]
            errors[:, j - start] = error
        rest[:, end:] -= errors @ upper[start:end, end:]
    return q[:, order.argsort()]


def _refit(weight: Tensor, q: Tensor, moments: Tensor, scale: Tensor) -> Tensor:
    """The scale [N] with which the integers q come closest to the weight in the sense of H; as it was for zeros."""
    seen = q @ moments
    power = (seen * q).sum(1)
    best = (seen * weight).sum(1) / power.clamp(min=1e-12)
    return torch.where((power > 1e-12) & (best > scale / 2), best, scale)


# ---------------------------------------------------------------------------------------------------------------------
# Clipped channel-wise ranges
# ---------------------------------------------------------------------------------------------------------------------


def clip_norms(twin: FakeQuant, model: Segmenter | Classifier, images: Tensor) -> dict[str, str]:
    """Clip the ranges of every LayerNorm read by layers of less than 8 bits where that loses less; what was chosen."""
    read, acts = readers(twin), twin.acts()
    samples: dict[str, Tensor] = {}

    def receive(node: str, value: Tensor) -> None:
        if node in read:
            rows = value.flatten(0, -2)
            samples[node] = rows[:: max(1, len(rows) // NORM_ROWS)].double()

    with tapped(model, receive):
        model.forward_scores(normalise(images, model.config), twin.recipe.cosine)
    chosen = {}
    for node, layers in shown(read.items(), "clipping ranges", len(read), "node"):
        if min(int(layer.bits) for layer in layers) < 8:
            chosen[node] = _clip_norm(acts[node], layers, samples[node])
    return chosen


def _clip_norm(act: Act, layers: Sequence[QLinear], x: Tensor) -> str:
    """Set the range of one LayerNorm with outputs x [rows, channels]; what was chosen."""
    scale, mid = act.scale.clone(), act.mid.clone()
    middle = scale.log().mean().exp()
    errors = {}
    for low, high in LIMITS:
        act.set(scale.clamp(low * middle, high * middle), mid)
        q = act.quantize(x)
        errors[low, high] = sum(_error(layer, q, x) for layer in layers)
    low, high = min(errors, key=errors.__getitem__)
    act.set(scale.clamp(low * middle, high * middle), mid)
    return "as they are" if (low, high) == (0.0, math.inf) else f"channels from {low:g} to {high:g} of the mean"


def _error(layer: QLinear, q: Tensor, x: Tensor) -> float:
    """Squared error of a layer's outputs for integers q [rows, K] that stand for x, each weight rounded by itself."""
    folded = layer.folded()
    importance = q.double().var(0)
    scale = fit_scale(folded, importance, layer.limits())[:, None]
    weight = _rounded(folded, scale, layer.limits()) * scale
    error = q.double() @ weight.T + layer.x.mid @ layer.weight.double().T - x @ layer.weight.double().T
    return float(((error - error.mean(0)) ** 2).sum())
