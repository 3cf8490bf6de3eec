"""Calibration: deterministic, complete, and what it says it computes."""

import copy
import dataclasses
import math

import pytest
import torch
import twins
from configs import LINEAR
from configs import SMALL as CONFIG
from graphs import SOFTMAX
from torch import Tensor
from twins import integers, smooth

from intseg import progress
from intseg.ops import MOVERS
from intseg.tools.bits.rounding import round_weights
from intseg.tools.twin import calibrate as cal
from intseg.tools.twin import recipe
from intseg.tools.twin.act import Act
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.segmenter import Segmenter, random_segmenter

CONFIGS = {
    "mask": CONFIG,
    "linear": LINEAR,
    "distilled": dataclasses.replace(CONFIG, distilled=True, normalization="deit"),
}
RECIPES = {
    **recipe.RECIPES,
    "paper-kept": dataclasses.replace(recipe.RECIPES["paper"], cosine=True),
    "sigmoid": dataclasses.replace(recipe.RECIPES["intseg"], gelu="sigmoid_gelu", lam=6, k_inter=23),
}


def calibrated(
    recipe: str, batches: list[Tensor], config: SegmenterConfig = CONFIG
) -> tuple[FakeQuantSegmenter, Segmenter]:
    return twins.calibrated(RECIPES[recipe], batches, config)


def float_nodes(model: Segmenter, images: Tensor, cosine: bool) -> dict[str, Tensor]:
    """What the float model's taps report."""
    found: dict[str, Tensor] = {}
    with torch.no_grad(), cal.tapped(model, found.__setitem__):
        model.forward_scores(cal.normalise(images, model.config), cosine)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Determinism
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_calibrations_are_the_same_bytes(recipe: str) -> None:
    batches = [smooth(2, 1), smooth(1, 2)]
    first, second = (twins.calibrated(RECIPES[recipe], batches, again=i > 0)[0].state_dict() for i in range(2))
    assert list(first) == list(second)
    for name, value in first.items():
        assert value.numpy().tobytes() == second[name].numpy().tobytes(), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_calibrating_again_forgets_the_first_time(recipe: str) -> None:
    twin, model = calibrated(recipe, [smooth(1, 3) // 8])
    cal.calibrate(twin, model, [smooth(2, 1)])
    fresh, _ = calibrated(recipe, [smooth(2, 1)])
    for name, value in fresh.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


@pytest.mark.parametrize("recipe", ["paper", "intseg"])
def test_neither_model_nor_images_change(recipe: str) -> None:
    model, images = random_segmenter(CONFIG, 1), smooth(2, 1)
    state, kept = copy.deepcopy(model.state_dict()), images.clone()
    cal.calibrate(FakeQuantSegmenter(model, CONFIG.window, RECIPES[recipe]), model, [images])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(images, kept)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("bits", [8, 3])
def test_shared_weights_give_the_same_integers_and_stay_the_float_models(bits: int) -> None:
    model, batches = random_segmenter(CONFIG, 1), [smooth(2, 1)]
    state, found = copy.deepcopy(model.state_dict()), []
    for share in (False, True):
        twin = FakeQuantSegmenter(model, CONFIG.window, RECIPES["intseg"])
        if share:
            cal.share_weights(twin, model)
            assert twin.encoder.blocks[0].fc2.weight.data_ptr() == model.encoder.blocks[0].mlp.fc2.weight.data_ptr()
        cal.calibrate(twin, model, batches)
        if bits < 8:
            round_weights(twin, model, batches, dict.fromkeys(twin.linears(), bits))
        found.append(twin.state_dict())
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_every_stage_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    model = random_segmenter(CONFIG, 1)
    twin = FakeQuantSegmenter(model, CONFIG.window, RECIPES["intseg"])
    cal.calibrate(twin, model, [smooth(1, i) for i in range(2)])
    said = capsys.readouterr().err
    last = {"calibrating": "view 14 of 14", "fitting ranges": "node", "fitting blocks": "block 3 of 3"}
    layers = len(twin.linears())
    for stage, step in (last | {"correcting biases": f"layer {layers} of {layers}"}).items():
        assert f"intseg: {stage}: {step}" in said
    with progress.quietly(True):
        cal.calibrate(twin, model, [smooth(1, 0)])
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------------------------------------
# Moving averages
# ---------------------------------------------------------------------------------------------------------------------


def test_moving_average_by_hand() -> None:
    stats = cal.Stats()
    for low, high in ((-1.0, 2.0), (-3.0, 1.0), (-2.0, 6.0)):
        stats.update(torch.tensor([[low, 0.0, high]]), rows=0)
    # 0.95 * (0.95 * -1 + 0.05 * -3) + 0.05 * -2, and the same for the maxima
    assert stats.low == pytest.approx(-1.145, abs=1e-12)
    assert stats.high == pytest.approx(0.95 * (0.95 * 2 + 0.05 * 1) + 0.05 * 6, abs=1e-12)
    assert (stats.seen, stats.largest) == (3, 6.0)


def test_one_image_is_its_own_average() -> None:
    stats = cal.Stats()
    stats.update(torch.tensor([[-4.0, 1.0]]), rows=0)
    assert (stats.low, stats.high, stats.largest) == (-4.0, 1.0, 4.0)


@pytest.mark.parametrize("recipe", ["i-vit", "paper"])
def test_ema_ranges_of_a_model_by_hand(recipe: str) -> None:
    """Every node's scale from the taps and the formula alone."""
    batches = [smooth(2, 1), smooth(1, 2), smooth(3, 3)]
    twin, model = calibrated(recipe, batches)
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for images in batches:
        for node, value in float_nodes(model, images, False).items():
            bottom, top = float(value.min()), float(value.max())
            low[node] = 0.95 * low.get(node, bottom) + 0.05 * bottom
            high[node] = 0.95 * high.get(node, top) + 0.05 * top
    shared = {"encoder.patch_embed", "encoder.tokens", "decoder.proj_dec", "decoder.tokens"}
    compared = 0
    for node, act in twin.acts().items():
        assert torch.count_nonzero(act.mid) == 0, node
        if node in low and node not in shared:
            limit = max(-low[node], high[node])
            assert act.scale.tolist() == pytest.approx([limit / (2 ** (act.bits - 1) - 1)] * len(act.scale)), node
            compared += 1
    assert compared == 3 * 10 + 7  # of three blocks, and seven outside of blocks
    for act, value, node in (
        (twin.encoder.embed_act, model.encoder.cls_token, "encoder.patch_embed"),
        (twin.decoder.dec_act, model.decoder.cls_emb, "decoder.proj_dec"),
    ):
        limit = max(-low[node], high[node], float(value.detach().abs().max()))
        assert float(act.scale) == pytest.approx(limit / 32767)
    position = float(model.encoder.pos_embed.detach().abs().max())
    assert float(twin.encoder.pos_act.scale) == pytest.approx(position / 32767)


def test_a_gelu_table_of_moving_averages_is_the_gelu() -> None:
    images = smooth(2, 1)
    model = random_segmenter(CONFIG, 1)
    twin = FakeQuantSegmenter(model, CONFIG.window, dataclasses.replace(RECIPES["intseg"], ranges="ema"))
    cal.calibrate(twin, model, [images])
    x = torch.arange(-128, 128)
    for block in twin.encoder.blocks:
        found = block.gelu_act.scale[0] * block.gelu.integers()["table"]
        error = found - torch.nn.functional.gelu(x * block.fc1_act.scale[0])
        assert float(error[1:].abs().max()) <= 0.5001 * float(block.gelu_act.scale[0])


@pytest.mark.parametrize("ranges", ["ema", "fit"])
def test_logits_of_softmax2_have_room(ranges: str) -> None:
    """Large logits: the default of 10 fraction bits would saturate them."""
    model, images = random_segmenter(CONFIG, 1), smooth(2, 1)
    model.encoder.blocks[0].attn.qkv.weight.data *= 20
    twin = FakeQuantSegmenter(
        model, CONFIG.window, dataclasses.replace(RECIPES["intseg"], softmax=SOFTMAX, ranges=ranges)
    )
    cal.calibrate(twin, model, [images])
    largest = float(float_nodes(model, images, True)["encoder.blocks.0.attn.scores"].abs().max())
    assert largest > 32
    bits = int(twin.encoder.blocks[0].attn.softmax.frac_bits)
    assert 2**12 <= largest * math.log2(math.e) * 2**bits <= 2**15  # views of the image may reach further


@pytest.mark.parametrize("recipe", RECIPES)
def test_weight_scales_use_all_127_steps(recipe: str) -> None:
    twin, _ = calibrated(recipe, [smooth(2, 1)])
    for layer in twin.linears().values():
        weight = layer.integers()["weight"]
        assert torch.equal(weight.abs().amax(dim=1), torch.full((len(weight),), 127))


# ---------------------------------------------------------------------------------------------------------------------
# Samples and variations
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rows", "kept"), [(10, 3, 3), (10, 10, 10), (10, 100, 10), (1, 5, 1), (7, 2, 2)])
def test_samples_are_evenly_strided_rows(count: int, rows: int, kept: int) -> None:
    stats = cal.Stats()
    value = torch.arange(count * 2.0).reshape(1, count, 2)
    stats.update(value, rows)
    sampled = stats.sampled()
    assert sampled.shape == (kept, 2)
    assert sampled.dtype == torch.float64
    steps = sampled[1:, 0] - sampled[:-1, 0]
    assert torch.equal(sampled[0], torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert len(set(steps.tolist())) <= 1


def test_augment() -> None:
    images = smooth(2, 1)
    kept = images.clone()
    views, again = cal.augment(images), cal.augment(images)
    assert torch.equal(images, kept)
    assert len(views) == 7
    for view, other in zip(views, again, strict=True):
        assert view.shape == images.shape
        assert view.dtype == torch.uint8
        assert torch.equal(view, other)
    assert torch.equal(views[0], images)
    assert torch.equal(views[1], images.flip(2))
    assert len({view.contiguous().numpy().tobytes() for view in views}) == len(views)
    dark, bright = views[2].double().mean(), views[3].double().mean()
    assert dark < images.double().mean() < bright


@pytest.mark.parametrize("size", [(16, 16), (8, 40), (33, 17)])
def test_augment_of_small_smooth(size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (1, *size, 3), generator=torch.Generator().manual_seed(0)).byte()
    assert {view.shape for view in cal.augment(images)} == {images.shape}


@pytest.mark.parametrize(("batches", "expected"), [(1, 7), (8, 56), (9, 9)])
def test_only_few_images_are_varied(
    batches: int, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    model = random_segmenter(CONFIG, 1)
    twin = FakeQuantSegmenter(model, CONFIG.window, RECIPES["intseg"])
    cal.calibrate(twin, model, [smooth(1, i) for i in range(batches)])
    assert f"calibrating: view {expected} of {expected}," in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Ranges
# ---------------------------------------------------------------------------------------------------------------------


def test_channel_range_covers_its_samples() -> None:
    x = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3 + 5
    for widen in (1.0, 1.25, 1.6):
        low, high = cal.Estimator("extremes", cal.extremes, widen)(x)
        assert (low <= x.amin(0) + 1e-12).all()
        assert (high >= x.amax(0) - 1e-12).all()
        assert torch.allclose(high - low, (x.amax(0) - x.amin(0)) * widen)


def test_estimators_by_hand() -> None:
    x = torch.arange(2001.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, -2.0])
    assert [t.tolist() for t in cal.extremes(x)] == [[0, -4000], [2000, 0]]
    assert [t.tolist() for t in cal.percentiles(x)] == [[3, -3994], [1997, -6]]  # 3 of 2,001 at either end
    assert [t.tolist() for t in cal.percentiles(x[:600])] == [[1, -1196], [598, -2]]
    assert [t.tolist() for t in cal.percentiles(x[:1])] == [[0, 0], [0, 0]]
    low, high = cal.Estimator("some", cal.extremes, 1.5)(x)
    assert (low.tolist(), high.tolist()) == ([-500, -5000], [2500, 1000])
    assert str(cal.Estimator("some", cal.extremes, 1.5)) == "some x 1.5"


def test_the_estimator_is_chosen_on_samples_that_it_was_not_fitted_to() -> None:
    even = torch.rand(8, 500, 4, generator=torch.Generator().manual_seed(0))
    extremes, wide, robust = (
        cal.Estimator("extremes", cal.extremes, 1.0),
        cal.Estimator("extremes", cal.extremes, 3.0),
        cal.Estimator("99.9 %", cal.percentiles, 1.05),
    )
    readers = torch.eye(4, dtype=torch.float64)
    assert cal.choose(list(even), readers, (wide, extremes)) is extremes
    assert cal.choose([even[0]], readers, (wide, extremes)) is extremes
    once = even.clone()
    once[0, 0] = 100  # takes the levels of the rest, and does not come again
    assert cal.choose(list(once), readers, (extremes, wide, robust)) is robust
    growing = [even[i] * (i + 1) for i in range(8)]  # the next one always reaches further
    assert cal.choose(growing, readers, (extremes, wide)) is wide


def test_only_what_is_read_counts_for_the_choice() -> None:
    """A channel that no weight reads may be as bad as it likes."""
    x = torch.randn(8, 500, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0, 1] = torch.tensor([1e6, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    extremes, robust = cal.Estimator("extremes", cal.extremes, 1.1), cal.Estimator("99.9 %", cal.percentiles, 0.5)
    assert cal.choose(list(x), torch.tensor([[1.0, 0.0]]).double(), (robust, extremes)) is extremes


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("config", CONFIGS)
def test_what_was_chosen_is_told(config: str, count: int) -> None:
    model = random_segmenter(CONFIGS[config], 1)
    twin = FakeQuantSegmenter(model, CONFIG.window, RECIPES["intseg"])
    chosen = cal.calibrate(twin, model, [smooth(1, i, CONFIGS[config]) for i in range(count)])
    ends = ("norm1", "norm2", "encoder.norm", "decoder_norm", "attn.qkv", "mlp.act")
    assert {node for node in chosen if not node.endswith(ends)} == set()
    assert set(chosen) == {node for node in twin.acts() if node.endswith(ends)}
    names = {str(candidate) for candidate in cal.estimators(count <= cal.FEW)}
    assert {chosen[node].removeprefix("v: ") for node in chosen if not node.endswith("act")} <= names
    with_ema = FakeQuantSegmenter(model, CONFIG.window, RECIPES["paper"])
    assert cal.calibrate(with_ema, model, [smooth(1, 0, CONFIGS[config])]) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Biases
# ---------------------------------------------------------------------------------------------------------------------


def mean_errors(twin: FakeQuantSegmenter, model: Segmenter, images: Tensor) -> dict[str, float]:
    """Squared mean error per channel of the linear layers' outputs, added up, by node."""
    floats, q = float_nodes(model, images, twin.recipe.cosine), integers(twin, images)
    found = {}
    for node, layer in twin.linears().items():
        error = layer.y.dequantize(q[node]) - floats[node].double()
        found[node] = float((error.flatten(0, -2).mean(0) ** 2).sum())
    return found


@pytest.mark.parametrize("config", CONFIGS)
def test_biases_take_up_mean_errors(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth(8, 1, CONFIGS[config])
    twin, model = calibrated("intseg", [images], CONFIGS[config])
    with monkeypatch.context() as patch:
        patch.setattr(cal, "correct_biases", lambda *arguments: None)
        plain, _ = twins.calibrated(RECIPES["intseg"], [images], CONFIGS[config], again=True)
    for seed in (1, 2):  # the calibration images, and others
        before, after = (mean_errors(which, model, smooth(8, seed, CONFIGS[config])) for which in (plain, twin))
        assert sum(after.values()) < 0.8 * sum(before.values()), seed


def test_a_bias_takes_up_what_is_certain_of_an_error() -> None:
    """m (1 - s^2 / m^2) of the windows' mean errors, by hand, for the first layer: its input has no error."""
    images = smooth(3, 1)
    twin, model = calibrated("intseg", [images])
    layer, node = twin.encoder.patch_embed, "encoder.patch_embed"
    layer.bias.data += torch.linspace(-0.01, 0.01, len(layer.bias))
    start, pixels = layer.bias.detach().clone(), integers(twin, images)["patchify"].double()
    real = pixels @ (layer.integers()["weight"].double() * layer.weight_scale[:, None]).T
    real += layer.integers()["bias"] * layer.weight_scale
    error = (real - float_nodes(model, images, True)[node].double()).mean(1)
    mean, squared = error.mean(0), error.var(0) / 3
    expected = start - mean * (1 - squared / mean**2).clamp(min=0)
    cal.correct_biases(twin, model, images)
    assert torch.allclose(layer.bias.detach(), expected.float(), atol=1e-7)
    assert not any(module._forward_pre_hooks for module in twin.modules())


def test_fitted_ranges_are_the_best_tried() -> None:
    """Against the quantization error of Act itself, for every factor."""
    x = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) ** 3
    largest = x.abs().amax(0)
    found = cal.fit_max(x)
    for channel in range(3):
        errors = {}
        for factor in (1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.7):
            act = Act(1, 8)
            act.set_max(largest[channel] * factor)
            column = x[:, channel]
            errors[float(largest[channel] * factor)] = float(
                ((act.dequantize(act.quantize(column)) - column) ** 2).sum()
            )
        assert float(found[channel]) in errors
        assert errors[float(found[channel])] <= 1.05 * min(errors.values())


@pytest.mark.parametrize("config", CONFIGS)
def test_ranges_cover_the_calibration_image(config: str) -> None:
    """`intseg`: no INT16 node saturates on what it was calibrated on, and of INT8 nodes a few values at most."""
    images = smooth(2, 4, CONFIGS[config])
    twin, _ = calibrated("intseg", [images], CONFIGS[config])
    found, acts = integers(twin, images), twin.acts()
    for node, act in acts.items():
        limit = 2 ** (act.bits - 1)
        saturated = float(((found[node] == -limit) | (found[node] == limit - 1)).double().mean())
        # The lowest level of a GELU is its flat minimum, where many values lie.
        allowed = 0 if act.bits == 16 else 0.2 if node.endswith(".mlp.act") else 0.05
        assert saturated <= allowed, node


@pytest.mark.parametrize("recipe", RECIPES)
def test_calibration_leaves_no_range_at_its_default(recipe: str) -> None:
    twin, _ = calibrated(recipe, [smooth(2, 1)])
    for node, act in twin.acts().items():
        assert not torch.equal(act.scale, torch.ones_like(act.scale)), node
        assert (act.scale > 0).all(), node
        assert act.scale.isfinite().all(), node
        assert act.mid.isfinite().all(), node


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_node_with_a_meaning_has_a_tap(recipe: str, config: str) -> None:
    """Except those that only move integers, and the input, whose range follows from the pixels."""
    twin, model = calibrated(recipe, [smooth(1, 1, CONFIGS[config])], CONFIGS[config])
    floats = float_nodes(model, smooth(1, 1, CONFIGS[config]), RECIPES[recipe].cosine)
    found, ops = (
        integers(twin, smooth(1, 1, CONFIGS[config])),
        {node.name: node.op for node in export(twin, twins.info_of(twin)).nodes},
    )
    moved = {node for node, op in ops.items() if op in (*MOVERS, "quantize_input")}
    merged = {node for node in moved if node.endswith(".attn.merge")}  # the float model has its context merged only
    assert set(twin.acts()) - moved <= set(floats)
    assert merged <= set(floats)
    for node, value in floats.items():
        if node in ops:
            assert value.shape == found[node].shape, node


@pytest.mark.parametrize(("recipe", "floor"), [("intseg", 20.0), ("paper", 3.0)])
@pytest.mark.parametrize("config", CONFIGS)
def test_integers_follow_the_float_model(config: str, recipe: str, floor: float) -> None:
    """Signal to quantization noise of every node, in decibels, on an image that calibration did not see."""
    twin, model = calibrated(recipe, [smooth(2, 1, CONFIGS[config])], CONFIGS[config])
    images = smooth(2, 8, CONFIGS[config])
    floats, found = float_nodes(model, images, RECIPES[recipe].cosine), integers(twin, images)
    for node, act in twin.acts().items():
        if node in floats:
            real = floats[node].double()
            noise = float(((act.dequantize(found[node]) - real) ** 2).sum())
            assert 10 * math.log10(float((real**2).sum()) / noise) > floor, node


@pytest.mark.parametrize("config", CONFIGS)
def test_labels_follow_the_float_model(config: str) -> None:
    twin, model = calibrated("intseg", [smooth(2, 1, CONFIGS[config])], CONFIGS[config])
    images = smooth(2, 8, CONFIGS[config])
    with torch.no_grad():
        scores = model.forward_scores(cal.normalise(images, model.config), True)
        same = (twin(images).q.argmax(-1) == scores.argmax(-1)).double().mean()
    assert float(same) >= 0.9


@pytest.mark.parametrize("config", CONFIGS)
def test_as_published_means_and_deviations(config: str) -> None:
    """The input table stands for (pixel / 255 - mean) / std to within half a step."""
    twin, _ = calibrated("intseg", [smooth(1, 1, CONFIGS[config])], CONFIGS[config])
    act, c = twin.encoder.input_act, CONFIGS[config]
    pixels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    real = (pixels - torch.tensor(c.mean, dtype=torch.float64)) / torch.tensor(c.std, dtype=torch.float64)
    assert ((act.dequantize(twin.encoder.table().T) - real).abs() <= 0.5001 * act.scale).all()
    for channel in twin.encoder.table():
        assert channel.tolist() == list(range(-128, 128))
