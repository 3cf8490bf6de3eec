"""Give a fake-quant twin its ranges and weight scales from float activations on calibration images.

Two ways, chosen by `Recipe.ranges`:

ema   as the paper: symmetric per-tensor ranges, exponential moving average of minimum and maximum over the images
      (momentum 0.05; one image is its own average), weights by their largest value.
fit   affine ranges fitted to samples. Where a scale per channel costs nothing (after a LayerNorm, in q, k, v and the
      context) every channel has its own, folded into the weights that read it. Which estimator gives these ranges
      (extremes, percentiles, least squared error) is chosen for every node by what it loses on samples it was not
      fitted to. Then the biases of linear layers take up the mean error of their outputs.

Both round weights to the nearest step. Handing rounding errors on from input to input (GPTQ) was tried with `fit` on
one image and changed nothing: 99.43 % of pixels equal to the float model with it, 99.45 % without.

Everything is deterministic: samples are evenly strided rows, not random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intseg.progress import Progress, shown
from intseg.tools.twin.act import Quantized
from intseg.tools.twin.attention import QAttention, QSoftmax
from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.fit import fit_gelu, fit_max, fit_range
from intseg.tools.twin.layers import QLinear
from intseg.tools.twin.memory import give_back
from intseg.tools.twin.model import FakeQuant, FakeQuantClassifier, QBlock, QMaskTransformer
from intseg.tools.twin.primitives import LOG2_E
from intseg.tools.twin.samples import Stats, augment, collect, node_of, normalise, tapped, windows_at_once
from intseg.tools.twin.segmenter import Segmenter

MARGIN = 1.5
"""INT16 tensors have bits to spare: their range is this much wider than anything seen."""

LOGIT_ROOM = 4.0
"""The logits of a classifier are this many times as wide: saturated, two classes would be tied. Two bits of 16 cost
nothing, whatever the ranges of a recipe are otherwise."""

FEW = 8
"""Up to this many calibration images are varied by `augment`."""

WIDEN_FEW, WIDEN_MANY = 1.6, 1.25
"""Per-channel ranges are this much wider than what few, or many, calibration images reach.

Measured as pixels equal to the float prediction on some CamVid val images. From one image: 97.4 % with 1.0, 99.2 with
1.2, 99.4 with 1.4 to 1.7, 99.3 with 2.0. From 32 images: 99.1 % with 1.0, 99.4 with 1.25, 99.3 with 1.6.
"""

FOLDS, FIT_ROWS, JUDGE_ROWS = 7, 1000, 256
"""Estimators are fitted to all folds of the samples but one, and judged by that one; rows that either sees, about."""

CORRECTED_VIEWS = (0, 2, 6)
"""Views of `augment` that biases are corrected on: as it is, darker, nearer."""

UNUSUAL = 4.0
"""Outputs of a token this many times as large as the median's count less for a bias."""

CORRECTED_ROWS = 12
"""Outputs of a linear layer, of all windows, from which its bias is corrected."""

CORRECTED_WINDOWS, CORRECTED_LOGITS = 32, 2**26
"""Biases are corrected on so many windows at most, and on so many that a block has no more logits than this."""


def calibrate(
    twin: FakeQuant,
    model: Segmenter | Classifier,
    batches: Sequence[Tensor],
    candidates: Sequence[Estimator] | None = None,
    correct: bool = True,
) -> dict[str, str]:
    """Set every range, weight scale and bias of the twin, in place. Returns what was chosen, by node.

    model       the float model the twin was built from
    batches     uint8 windows [B, H, W, 3], one batch per calibration image, in a fixed order
    candidates  for fitted ranges per channel; those of `estimators` by default
    correct     whether biases take up mean errors, where ranges are fitted
    """
    few, views = len(batches) <= FEW, batches
    if twin.recipe.ranges == "fit" and few:
        views = [view for images in batches for view in augment(images)]
    stats = collect(model, views, twin.recipe.cosine, sampled_nodes(twin))
    chosen: dict[str, str] = {}
    with torch.no_grad():
        _restore_biases(twin, model)
        if twin.recipe.ranges == "ema":
            _ema(twin, stats)
        else:
            chosen = _fit(twin, stats, few, candidates or estimators(few))
        if isinstance(twin, FakeQuantClassifier):
            twin.logit_act.set_max(LOGIT_ROOM * max(stats[head].largest for head, _ in twin.heads().values()))
        for layer in twin.linears().values():
            layer.fit_weight_scale()
        del stats
        give_back()
        if twin.recipe.ranges == "fit" and correct:
            correct_biases(twin, model, some_windows(twin, batches, CORRECTED_VIEWS))
    return chosen


def sampled_nodes(twin: FakeQuant) -> dict[str, int]:
    """Channels of the nodes whose samples something is fitted to."""
    fitted, decoder = twin.recipe.ranges == "fit", twin.decoder
    found = {node: layers[0].weight.shape[1] for node, layers in readers(twin).items()} if fitted else {}
    for name, block in _blocks(twin):
        if isinstance(block.attn.softmax, QSoftmax) and block.attn.softmax.op == "shiftmax":
            found[f"{name}.attn.scores"] = 1
        if fitted:
            width, hidden = block.attn.width, block.fc1.weight.shape[0]
            found |= {f"{name}.attn.qkv": 3 * width, f"{name}.attn.merge": width, f"{name}.mlp.fc1": hidden}
            found |= {f"{name}.add2": width}
    if fitted and isinstance(decoder, QMaskTransformer):
        found |= dict.fromkeys(mask_ends(decoder), decoder.proj_patch.weight.shape[0])
    return found


def mask_ends(decoder: QMaskTransformer) -> tuple[str, str]:
    """The nodes whose product the masks are."""
    ends = ("l2_patch", "l2_classes") if decoder.cosine else ("proj_patch", "proj_classes")
    return f"decoder.{ends[0]}", f"decoder.{ends[1]}"


def share_weights(twin: FakeQuant, model: Segmenter | Classifier) -> None:
    """Let linear layers read the float model's weights in place of copies: of a large network, half the memory.

    Calibration and rounding give a layer weights of its own where they change them. Training writes to weights as they
    are: the twin that it trains has copies.
    """
    modules = _by_node(model)
    for node, layer in twin.linears().items():
        weight = getattr(modules[node], "weight", None)
        if weight is not None and weight.shape == layer.weight.shape:  # others lie in another order
            layer.weight.data = weight.detach()


def _by_node(model: Segmenter | Classifier) -> dict[str, Any]:
    """Modules of the float model by the engine's node."""
    return {node: module for name, module in model.named_modules() if (node := node_of(name)) is not None}


def _restore_biases(twin: FakeQuant, model: Segmenter | Classifier) -> None:
    """Those of the float model, and its units: an earlier calibration may have corrected or divided them."""
    modules = _by_node(model)
    for node, layer in twin.linears().items():
        bias = getattr(modules[node], "bias", None)
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
        divided = layer.units is not None or node.endswith(".mlp.fc2")
        if divided and not torch.equal(layer.weight, modules[node].weight):
            layer.weight.data = modules[node].weight.detach().clone()
        layer.units = None


# ---------------------------------------------------------------------------------------------------------------------
# ema: the paper
# ---------------------------------------------------------------------------------------------------------------------


def _ema(twin: FakeQuant, stats: dict[str, Stats]) -> None:
    for node, act in twin.acts().items():
        if node in stats:
            act.set_max(max(-stats[node].low, stats[node].high))
    encoder = twin.encoder
    pixels = (torch.tensor([[0.0], [1.0]], dtype=torch.float64) - encoder.mean) / encoder.std
    for act in (encoder.input_act, encoder.patch_act):
        act.set_max(pixels.abs().max())
    _constants(twin, 1.0)
    for name, block in _blocks(twin):
        _fit_softmax(block.attn, stats[f"{name}.attn.scores"])
        for act, table in ((block.fc1_act, block.gelu.table_x), (block.gelu_act, block.gelu.table_y)):
            table.set(act.scale[:1])


def _constants(twin: FakeQuant, margin: float) -> None:
    """Learned tokens share the range of what they are joined with; the position embedding has its own."""
    encoder, decoder = twin.encoder, twin.decoder
    encoder.pos_act.set_max(encoder.pos_embed.value.abs().max())
    joined = [(encoder.embed_act, encoder.cls_token)]
    if isinstance(decoder, QMaskTransformer):
        joined.append((decoder.dec_act, decoder.cls_emb))
    for act, constant in joined:
        seen = act.scale * (2.0 ** (act.bits - 1) - 1)
        act.set_max(torch.maximum(seen, constant.value.abs().max().double() * margin))


def _blocks(twin: FakeQuant) -> Iterator[tuple[str, QBlock]]:
    return ((name, module) for name, module in twin.named_modules() if isinstance(module, QBlock))


def _fit_softmax(attn: QAttention, stats: Stats) -> None:
    """What a step of the logits stands for: as fine as leaves them room, or what Shiftmax makes the best of."""
    if not isinstance(attn.softmax, QSoftmax):
        return None  # its table follows from the scales of q and k
    if attn.softmax.op == "shiftmax":
        return _shiftmax(attn, stats)
    largest = stats.largest * LOG2_E * MARGIN
    attn.softmax.frac_bits.fill_(max(0, min(12, int(torch.tensor(32767 / largest).log2().floor()))))


def _shiftmax(attn: QAttention, stats: Stats) -> None:
    """The i0 = 2^j with k_inter = 15 - j (numerics D7) whose probabilities come closest to the float softmax."""
    logits = stats.sampled()
    errors = []
    for j in range(2, 12):
        attn.softmax.i0.fill_(2**j)
        attn.softmax.k_inter.fill_(15 - j)
        x = torch.floor(logits * 2**j + 0.5).clamp(-(2**15), 2**15 - 1).long()
        errors.append(float(((attn.softmax.exact(x) * 2.0**-15 - logits.softmax(-1)) ** 2).sum()))
    best = 2 + errors.index(min(errors))
    attn.softmax.i0.fill_(2**best)
    attn.softmax.k_inter.fill_(15 - best)


# ---------------------------------------------------------------------------------------------------------------------
# fit: affine ranges from samples
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimator:
    """[low, high] for every channel of x [rows, channels] in `bits`, `widen` times as wide as what `find` says."""

    name: str
    find: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    widen: float

    def __str__(self) -> str:
        return f"{self.name} x {self.widen:g}"

    def __call__(self, x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
        return widened(*self.find(x, bits), self.widen)


def extremes(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """The least and the largest value of every channel."""
    return x.amin(0), x.amax(0)


def percentiles(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Without the 0.1 % of a channel's values at either end, one of them at least."""
    kept = min(1 - (-len(x) // 1000), (len(x) + 1) // 2)
    return x.topk(kept, 0, largest=False).values[-1], x.topk(kept, 0).values[-1]


def widened(low: Tensor, high: Tensor, widen: float) -> tuple[Tensor, Tensor]:
    """A range so many times as wide around the same centre."""
    centre, half = (low + high) / 2, ((high - low) / 2).clamp(min=1e-9) * widen
    return centre - half, centre + half


def estimators(few: bool) -> tuple[Estimator, ...]:
    """Candidates for the per-channel ranges of a node.

    All have about equal room for what was not seen. Views of one image are too much alike to tell how much is needed
    (docs/RESULTS.md, "What calibration chooses"), and choosing it from many images won nothing.
    """
    rooms = (WIDEN_FEW, 1.8, 2.0) if few else (WIDEN_MANY, 1.4, 1.6)
    ways = (("extremes", extremes), ("least squares", fit_range), ("99.9 %", percentiles))
    return tuple(Estimator(name, find, room) for (name, find), room in zip(ways, rooms, strict=True))


def choose(samples: Sequence[Tensor], readers: Tensor, candidates: Sequence[Estimator], bits: int = 8) -> Estimator:
    """The candidate that loses least, as those who read the node see it; the first of several that lose as little.

    samples  [rows, channels], one tensor for each batch. Each of up to FOLDS groups of them in turn is quantized by the
             ranges that the rest gives.
    readers  weights [outputs, channels] that the channels meet next: an error counts after them
    bits     of the integers
    """
    folds = [torch.cat(list(samples[i::FOLDS])) for i in range(min(FOLDS, len(samples)))]
    share = FIT_ROWS // max(1, len(folds) - 1)
    fitted = [x[:: max(1, len(x) // share)].double() for x in folds]
    errors = [0.0] * len(candidates)
    for i, judge in enumerate(x[:: max(1, len(x) // JUDGE_ROWS)].double() for x in folds):
        rest = torch.cat(fitted[:i] + fitted[i + 1 :]) if len(folds) > 1 else fitted[0]
        found = {find: find(rest, bits) for find in dict.fromkeys(candidate.find for candidate in candidates)}
        for k, candidate in enumerate(candidates):
            low, high = widened(*found[candidate.find], candidate.widen)
            step = (high - low) / (2**bits - 1)
            rounded = torch.floor((judge - low) / step + 0.5).clamp(0, 2**bits - 1) * step + low
            errors[k] += float((((rounded - judge) @ readers.T) ** 2).mean())
    return candidates[errors.index(min(errors))]


def readers(twin: FakeQuant) -> dict[str, tuple[QLinear, ...]]:
    """The layers that read each INT8 LayerNorm."""
    decoder = twin.decoder
    layers: dict[str, tuple[QLinear, ...]] = {"encoder.norm": twin.token_readers()}
    for name, block in _blocks(twin):
        layers |= {f"{name}.norm1": (block.attn.qkv,), f"{name}.norm2": (block.fc1,)}
    if isinstance(decoder, QMaskTransformer):
        layers["decoder.decoder_norm"] = (decoder.proj_patch, decoder.proj_classes)
    return layers


def _fit(twin: FakeQuant, stats: dict[str, Stats], few: bool, candidates: Sequence[Estimator]) -> dict[str, str]:
    """Every range; what was chosen, by node."""
    widen, acts = WIDEN_FEW if few else WIDEN_MANY, twin.acts()
    chosen: dict[str, str] = {}
    read = readers(twin)
    for node, layers in shown(read.items(), "fitting ranges", len(read), "node"):
        weights, bits = torch.cat([layer.weight for layer in layers]).double(), acts[node].bits
        best = choose(stats[node].samples, weights, candidates, bits)
        acts[node].set_range(*best(stats[node].sampled(), bits))
        chosen[node] = str(best)
        stats[node].samples.clear()  # nothing else is fitted to them, and samples are the most of what is in memory
    for node, act in acts.items():
        if node in stats and act.bits == 16:
            act.set_max(stats[node].largest * MARGIN)
    encoder = twin.encoder
    # Every pixel value has an integer of its own: the input loses nothing.
    black, white = -encoder.mean / encoder.std, (1 - encoder.mean) / encoder.std
    encoder.input_act.set_range(black, white)
    patches = len(encoder.patch_act.scale) // 3
    encoder.patch_act.set(encoder.input_act.scale.repeat(patches), encoder.input_act.mid.repeat(patches))
    _constants(twin, MARGIN)
    blocks = list(_blocks(twin))
    for name, block in shown(blocks, "fitting blocks", len(blocks), "block"):
        chosen[f"{name}.attn.qkv"] = _fit_attention(block.attn, stats, f"{name}.attn", widen, candidates)
        chosen[f"{name}.mlp.act"] = fit_gelu(
            block, *(stats[f"{name}.{part}"].sampled() for part in ("mlp.fc1", "add2"))
        )
        for part in ("attn.qkv", "attn.merge", "attn.scores", "mlp.fc1", "add2"):
            stats[f"{name}.{part}"].samples.clear()
    if isinstance(twin.decoder, QMaskTransformer):
        for node in mask_ends(twin.decoder):
            acts[node].set_max(fit_max(stats[node].sampled().flatten()[:, None], acts[node].bits))
    return chosen


def _fit_attention(
    attn: QAttention, stats: dict[str, Stats], name: str, widen: float, candidates: Sequence[Estimator]
) -> str:
    """Scales of q and k with one product per head, ranges of v and of the context per channel, bits of the logits.

    Returns how the ranges of v were chosen.

    A logit's error is sum_d (scale_q^2 k_d^2 + scale_k^2 q_d^2) / 12: with scale_q scale_k = c it is least where
    scale_q^2 / scale_k^2 = mean q^2 / mean k^2, as far as both ranges still fit.
    """
    q, k, v = stats[f"{name}.qkv"].sampled().chunk(3, dim=-1)
    k_mid = (k.amax(0) + k.amin(0)) / 2
    k = k - k_mid
    most = 2 ** (attn.qkv_act.bits - 1) - 1
    q_need, k_need = (t.abs().amax(0).clamp(min=1e-6) * widen / most for t in (q, k))
    c = attn._heads(q_need * k_need).amax(-1, keepdim=True).expand(-1, attn.head_dim).flatten()
    balance = ((q**2).mean(0).clamp(min=1e-12) / (k**2).mean(0).clamp(min=1e-12)) ** 0.25
    q_scale = torch.minimum(torch.maximum(c.sqrt() * balance, q_need), c / k_need)
    values = [sample.chunk(3, dim=-1)[2] for sample in stats[f"{name}.qkv"].samples]
    best = choose(values, attn.proj.weight.double(), candidates, attn.qkv_act.bits)
    v_low, v_high = best(v, attn.qkv_act.bits)
    v_scale = (v_high - v_low) / (2 * most + 1)
    v_mid = v_low + (most + 1) * v_scale
    zero = torch.zeros_like(q_scale)
    attn.qkv_act.set(torch.cat([q_scale, c / q_scale, v_scale]), torch.cat([zero, k_mid, v_mid]))
    attn.context_act.set_max(_context_range(attn, stats[f"{name}.merge"].sampled() - v_mid, v) * widen)
    attn.context_act.mid.copy_(v_mid)
    _fit_softmax(attn, stats[f"{name}.scores"])
    return f"v: {best}"


def _context_range(attn: QAttention, context: Tensor, v: Tensor) -> Tensor:
    """Symmetric range of the context per channel, [D].

    Flat attention averages an image away: on one image a channel of the context can be nearly constant, and far from
    there on the next. What carries over is how far a head's context strays in units of its values' spread.
    """
    spread = v.std(0).clamp(min=1e-9)
    own = context.abs().amax(0)
    typical = attn._heads(own / spread).quantile(0.75, dim=-1, keepdim=True).expand(-1, attn.head_dim).flatten()
    return torch.maximum(own, typical * spread)


# ---------------------------------------------------------------------------------------------------------------------
# fit: biases
# ---------------------------------------------------------------------------------------------------------------------


def correct_biases(
    twin: FakeQuant,
    model: Segmenter | Classifier,
    images: Tensor,
    prepare: Callable[[QLinear, Quantized], bool] = lambda layer, x: True,
    stage: str = "correcting biases",
) -> None:
    """Take the mean error of every linear layer's outputs from its bias, one layer after the other, in place.

    Each is corrected with all before it corrected. Of a channel's mean error over the windows only what exceeds its
    uncertainty counts: m (1 - s^2 / m^2), not below 0, with the variance s^2 of the mean. A token whose output is many
    times as large as usual counts little: what is cut off there must not move all others. A head that reads one token
    of a window keeps its bias where there are few windows.

    images   uint8 [B, H, W, 3]
    prepare  called before a layer is corrected, with what it reads; where it says False the bias stays
    stage    what is shown of it
    """
    layers = twin.linears()

    def correct(node: str, layer: QLinear, x: Quantized) -> None:
        if not prepare(layer, x) or x.q.shape[0] * x.q.shape[1] < CORRECTED_ROWS:
            return
        p, mean = layer.integers(), (weights[node] * x.q).sum(1)
        found = (mean @ p["weight"].double().T + p["bias"]) * layer.weight_scale + layer.y.mid
        error = found - expected[node]
        uncertainty = error.var(0) / len(error) if len(error) > 1 else torch.zeros_like(error[0])
        certain = (1 - uncertainty / (error.mean(0) ** 2).clamp(min=1e-30)).clamp(min=0)
        layer.bias.sub_((error.mean(0) * certain).to(layer.bias.dtype))

    def before(node: str) -> Callable[[QLinear, tuple[Quantized]], None]:
        return lambda layer, inputs: correct(node, layer, inputs[0])

    training = twin.training
    twin.eval()
    with torch.no_grad():
        expected, weights = _exact_means(twin, layers, model, images)
        with Progress(stage, len(layers), "layer") as progress:
            handles = [layer.register_forward_pre_hook(before(node)) for node, layer in layers.items()]
            handles += [layer.register_forward_hook(lambda *_: progress.update()) for layer in layers.values()]
            try:
                twin(images)
            finally:
                for handle in handles:
                    handle.remove()
    twin.train(training)


def _exact_means(
    twin: FakeQuant, layers: dict[str, QLinear], model: Segmenter | Classifier, images: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of each linear layer, by node: the float model's mean output of a window, [B, D], and the tokens' weights in it.

    The weights [B, L, 1] sum to 1 over a window's tokens.
    """

    def receive(node: str, value: Tensor) -> None:
        if node in layers:
            value = value if layers[node].units is None else value[..., layers[node].units]
            size = value.norm(dim=-1, keepdim=True).double()
            usual = size.median(dim=1, keepdim=True).values
            weight = (UNUSUAL * usual / size.clamp(min=1e-30)).clamp(max=1) ** 2
            weight /= weight.sum(1, keepdim=True)
            found.setdefault(node, []).append((weight, (weight * value).sum(1)))

    config, found = model.config, dict[str, list[tuple[Tensor, Tensor]]]()
    with tapped(model, receive):
        for part in images.split(windows_at_once(images, config)):
            model.forward_scores(normalise(part, config), twin.recipe.cosine)
    weights, expected = (
        {node: torch.cat([each[k] for each in parts]) for node, parts in found.items()} for k in (0, 1)
    )
    return expected, weights


def some_windows(twin: FakeQuant, batches: Sequence[Tensor], views: Sequence[int]) -> Tensor:
    """Windows [B, H, W, 3] for `correct_biases`, evenly from all batches, as many as its limits allow.

    batches  one of each calibration image; few of them are looked at in these `views` of `augment`
    """
    if len(batches) <= FEW:
        batches = [view for images in batches for i, view in enumerate(augment(images)) if i in views]
    config = twin.config
    tokens = (twin.window[0] // config.patch) * (twin.window[1] // config.patch) + config.n_extra
    most = max(2, min(CORRECTED_WINDOWS, CORRECTED_LOGITS // (config.n_heads * tokens**2)))
    places = [(i, j) for i, batch in enumerate(batches) for j in range(len(batch))]
    if len(places) > most:
        places = [places[k * len(places) // most] for k in range(most)]
    return torch.stack([batches[i][j] for i, j in places])
