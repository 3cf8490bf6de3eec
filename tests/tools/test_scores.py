"""Scores of layers: every rule of relevance conserves it, and a probe changes what it says and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from configs import LINEAR, NO_DECODER, SMALL
from torch import Tensor

from intseg.tools.bits import choice, lrp, rounding, scores
from intseg.tools.twin.calibrate import calibrate, normalise
from intseg.tools.twin.classifier import random_classifier
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.model import FakeQuantClassifier, FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.segmenter import Segmenter, random_segmenter

torch.set_num_threads(1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sums_are_equal(a: Tensor, b: Tensor) -> None:
    assert a.tolist() == pytest.approx(b.tolist(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_linear_rule_conserves_and_is_the_formula(alpha: float) -> None:
    x, weight, r = drawn(2, 3, 5), drawn(4, 5, seed=1), drawn(2, 3, 4, seed=2)
    found = lrp.linear_rule(x, weight, r, alpha)
    sums_are_equal(found.flatten(1).sum(1), r.flatten(1).sum(1))
    parts = x[..., None, :] * weight  # [2, 3, 4, 5]
    good, bad = parts.clamp(min=0), parts.clamp(max=0)
    has = [side.sum(-1, keepdim=True) != 0 for side in (good, bad)]
    shares = [
        torch.where(mine, side / side.sum(-1, keepdim=True), 0) for side, mine in zip((good, bad), has, strict=True)
    ]
    factor = torch.where(has[1], alpha, 1.0), torch.where(has[0], 1 - alpha, 1.0)
    expected = ((shares[0] * factor[0] + shares[1] * factor[1]) * r[..., None]).sum(-2)
    assert torch.allclose(found, expected)


def test_one_sign_takes_all_the_relevance() -> None:
    x = torch.tensor([[1.0, 2.0]])
    for weight in ([[1.0, 1.0]], [[-1.0, -1.0]]):
        found = lrp.linear_rule(x, torch.tensor(weight), torch.ones(1, 1), 2.0)
        assert found.tolist() == [[pytest.approx(1 / 3), pytest.approx(2 / 3)]]


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_product_rule_gives_each_factor_half(alpha: float) -> None:
    a, b, r = drawn(2, 3, 4, 5), drawn(2, 3, 5, 6, seed=1), drawn(2, 3, 4, 6, seed=2)
    left, right = lrp.product_rule(a, b, r, alpha)
    assert (left.shape, right.shape) == (a.shape, b.shape)
    for part in (left, right):
        sums_are_equal(part.flatten(1).sum(1), r.flatten(1).sum(1) / 2)


def test_add_rule_goes_by_absolute_sums() -> None:
    a, b, r = drawn(2, 3, 4), 3 * drawn(1, 3, 4).abs(), drawn(2, 3, 4, seed=2)
    left, right = lrp.add_rule(a, b, r)
    assert torch.allclose(left + right, r)
    share = a[1].abs().sum() / (a[1].abs().sum() + b.abs().sum())
    assert torch.allclose(left[1], r[1] * share)


def model_and_probe(config: SegmenterConfig) -> tuple[Segmenter, scores.Probe]:
    model = random_segmenter(config, 1).double()
    images = torch.randint(256, (2, *config.window, 3), generator=torch.Generator().manual_seed(3)).byte()
    names = FakeQuantSegmenter(model.float(), config.window, RECIPES["intseg"]).linears()
    return model, scores.Probe(model, images, list(names))


def test_relevance_is_conserved_through_the_model() -> None:
    model, probe = model_and_probe(SMALL)
    model.double()
    walk = lrp.Relevance(model, probe.x.double())
    found, start = walk.found, walk.start.flatten(1).sum(1)
    assert list(probe.names) == [name for name in probe.names if name in found]
    assert len(found) == len(probe.names)
    sums_are_equal(found["decoder.proj_patch"], start / 2)
    sums_are_equal(found["decoder.proj_classes"], start / 2)
    for block in ("decoder.blocks.0", "encoder.blocks.1", "encoder.blocks.0"):
        sums_are_equal(found[f"{block}.mlp.fc1"], found[f"{block}.mlp.fc2"])  # the GELU is between them
        sums_are_equal(found[f"{block}.attn.qkv"], found[f"{block}.attn.proj"])  # softmax and two products
        assert (found[f"{block}.attn.qkv"].abs() > 0).all()


def test_relevance_starts_at_the_predicted_class_of_every_pixel() -> None:
    model, probe = model_and_probe(LINEAR)
    x = normalise(torch.zeros(1, *LINEAR.window, 3, dtype=torch.uint8), LINEAR)
    walk = lrp.Relevance(model.float(), x)
    with torch.no_grad():
        upsampled = model.upsample(model.forward_scores(x))
    sums_are_equal(walk.start.sum().reshape(1), upsampled.amax(1).sum().reshape(1).double())
    sums_are_equal(walk.found["decoder.head"], walk.start.flatten(1).sum(1))
    assert set(walk.found) == set(probe.names)


@pytest.mark.parametrize("config", [SMALL, LINEAR])
def test_a_probe_gives_what_the_whole_model_gives(config: SegmenterConfig) -> None:
    model, probe = model_and_probe(config)
    for name, module in probe.modules.items():
        handle = module.register_forward_hook(lambda m, x, y: torch.zeros_like(y))
        with torch.no_grad():
            out = model.forward_scores(probe.x).double().nan_to_num(0).flatten(1, 2).log_softmax(-1)
        handle.remove()
        expected = (probe.clean.exp() * (probe.clean - out)).sum(-1).mean(-1)
        found = probe.changed(name, lambda m, x, y: torch.zeros_like(y))
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-9)
    assert not any("forward" in vars(module) for module in model.modules())
    assert np.abs(probe.changed(probe.names[3], lambda m, x, y: y)).max() < 1e-12


def test_rounding_one_layer_is_rounding_its_weights() -> None:
    model, probe = model_and_probe(SMALL)
    for name in ("encoder.patch_embed", "decoder.blocks.0.mlp.fc1", "decoder.proj_patch"):
        hook = probe._rounding(name, 8)
        module, kept = probe.modules[name], {}
        module_hook = module.register_forward_hook(lambda m, x, y, kept=kept: kept.update(x=x, y=y))
        with torch.no_grad():
            model.forward_scores(probe.x)
        module_hook.remove()
        changed = hook(module, kept["x"], kept["y"])
        assert changed is not None
        assert 0 < float((changed - kept["y"]).abs().max()) < 0.1 * float(kept["y"].abs().max())


def test_fewer_bits_cost_more() -> None:
    _, probe = model_and_probe(SMALL)
    cost = probe.rounded((2, 4, 8)).mean(0)
    assert cost.shape == (len(probe.names), 3)
    assert (cost[:, 0] > cost[:, 2]).all()
    assert cost[:, 1].sum() < cost[:, 0].sum() / 4


@pytest.mark.parametrize("kind", scores.SCORES)
def test_every_score_is_an_objective(kind: str) -> None:
    _, probe = model_and_probe(SMALL)
    found = scores.measure(probe, kind, (3, 4), 0.1)
    assert found.gain.shape == (len(probe.names), 2)
    assert float((found.gain[:, 1] - found.gain[:, 0]).sum()) == pytest.approx(1)
    assert (found.synergy > 0).all()
    assert not scores.measure(probe, "lrp", (3, 4), 0.0).synergy.any()


def test_synergy_is_its_formula() -> None:
    importance = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    first = np.log(1 + (1 / (0.2 + 1e-3) + 1 / 1e-3) / 2)
    assert scores.synergy(importance).tolist() == pytest.approx([first, np.log(1 + (1 / 0.101 + 1 / 0.701) / 2)])


def test_a_classifier_of_two_heads_has_relevance_and_bits() -> None:
    config = dataclasses.replace(SMALL, decoder="linear", distilled=True, normalization="deit", **NO_DECODER)
    model, batches = (
        random_classifier(config, 1),
        [torch.randint(256, (4, *config.window, 3), generator=torch.Generator().manual_seed(0)).byte()],
    )
    twin = FakeQuantClassifier(model, config.window, RECIPES["intseg"])
    calibrate(twin, model, batches)
    names = list(twin.linears())
    probe = scores.Probe(model, batches[0], names)
    walk = lrp.Relevance(model, probe.x)
    assert list(walk.start.count_nonzero(1)) == [1] * 4
    for name in ("head", "head_dist"):
        assert walk.found[name].tolist() == pytest.approx((walk.start.sum(1) / 2).tolist(), rel=1e-5)
    assert set(walk.found) == set(names)
    costs = choice.layer_costs(model, batches[0][:1], names)
    assert {cost.name: cost.macs // cost.weights for cost in costs}["head_dist"] == 1
    before = {name: layer.integers()["weight"] for name, layer in twin.linears().items()}
    rounding.round_weights(twin, model, batches, dict.fromkeys(names, 3))
    assert all(int(layer.integers()["weight"].abs().max()) <= 4 for layer in twin.linears().values())
    assert all(int(weight.abs().max()) == 127 for weight in before.values())
