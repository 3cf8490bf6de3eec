"""The fake-quant twin by itself: its integer primitives, its gradients, its state (test_export.py: the engine)."""

import copy
import dataclasses
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from configs import NO_DECODER, SMALL
from torch import Tensor
from twins import calibrated, integers, noisy

from intseg import arith
from intseg.errors import UsageError
from intseg.tools.twin import recipe
from intseg.tools.twin.act import Act
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.primitives import bit_length, clamp_bits, dyadic, int_div, isqrt, product, rsr, shift_exp
from intseg.tools.twin.segmenter import Segmenter, random_segmenter

CONFIG = dataclasses.replace(SMALL, image_size=(16, 24), window=(16, 24), stride=(8, 16))
LINEAR = dataclasses.replace(CONFIG, decoder="linear", **NO_DECODER)
RECIPES = {
    **recipe.RECIPES,
    "sigmoid": dataclasses.replace(recipe.RECIPES["intseg"], gelu="sigmoid_gelu", lam=6, k_inter=23),
    "shift": dataclasses.replace(
        recipe.RECIPES["intseg"], gelu=recipe.RECIPES["i-vit"].gelu, softmax="shiftmax", lam=6, k_inter=23
    ),
}


def build(recipe: str, config: SegmenterConfig = CONFIG, seed: int = 0) -> FakeQuantSegmenter:
    """A calibrated twin of a random model, in evaluation mode."""
    return calibrated(RECIPES[recipe], [noisy(2, seed, config)], config, seed)[0]


def windows(count: int, seed: int = 0, config: SegmenterConfig = CONFIG) -> Tensor:
    return noisy(count, seed, config)


def same_integers(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------------------------------
# Primitives: against Python's integers and the engine's
# ---------------------------------------------------------------------------------------------------------------------


def around(*values: int) -> list[int]:
    return sorted({v + d for v in values for d in (-2, -1, 0, 1, 2)})


POWERS = around(*(2**k for k in range(2, 61)))


@pytest.mark.parametrize("c", range(1, 63))
def test_rsr(c: int) -> None:
    x = [*POWERS, *(-v for v in POWERS), 0, 2**62, -(2**62), 2 ** (c - 1), -(2 ** (c - 1)), 3 * 2 ** min(c - 1, 60)]
    expected = [(v + (1 << (c - 1))) >> c for v in x]
    assert rsr(torch.tensor(x), c).tolist() == expected
    assert rsr(torch.tensor(x), torch.full((len(x),), c)).tolist() == expected
    assert arith.rsr(np.array(x), c).tolist() == expected


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_clamp_bits(bits: int) -> None:
    x = around(0, 2 ** (bits - 1), -(2 ** (bits - 1)), 2**40, -(2**40))
    expected = [min(max(v, -(1 << (bits - 1))), (1 << (bits - 1)) - 1) for v in x]
    assert clamp_bits(torch.tensor(x), bits).tolist() == expected


def test_isqrt_around_every_kind_of_square() -> None:
    roots = [*range(300), *around(*(2**k for k in range(9, 26))), 2**26 - 1, 46341, 3037000, 2**25 + 12345]
    v = sorted({n for r in roots for n in (r * r - 1, r * r, r * r + 1) if 0 <= n < 2**52} | {2**52 - 1})
    expected = [math.isqrt(n) for n in v]
    assert isqrt(torch.tensor(v)).tolist() == expected
    assert arith.isqrt(np.array(v)).tolist() == expected


def test_bit_length() -> None:
    v = [n for n in [0, 1, 2, 3, *around(*(2**k for k in range(2, 53)))] if 0 <= n < 2**53]
    expected = [n.bit_length() for n in v]
    assert bit_length(torch.tensor(v)).tolist() == expected
    assert arith.bit_length(np.array(v)).tolist() == expected


def python_int_div(n: int, d: int, k_out: int, kind: str) -> int:
    d = max(d, 1)
    if kind == "paper":
        return ((2**31 - 1) // d * n) >> (32 - k_out)
    length = d.bit_length()
    shifted = d << (31 - length) if length <= 31 else d >> (length - 31)
    return ((2**46 - 1) // shifted * n + (1 << (length + 15 - k_out))) >> (length + 16 - k_out)


@pytest.mark.parametrize("k_out", [8, 16])
@pytest.mark.parametrize("kind", ["paper", "normalized"])
def test_int_div(kind: str, k_out: int) -> None:
    divisors = [d for d in [0, 1, 2, 3, *around(*(2**k for k in range(2, 46))), 12345678901] if d < 2**46]
    pairs = [(n, d) for d in divisors for n in {0, min(1, d), d // 3, d // 2, max(d - 1, 0), d}]
    n, d = (list(column) for column in zip(*pairs, strict=True))
    expected = [python_int_div(a, b, k_out, kind) for a, b in pairs]
    assert int_div(torch.tensor(n), torch.tensor(d), k_out, kind).tolist() == expected
    assert arith.int_div(np.array(n), np.array(d), k_out, kind).tolist() == expected


def python_shift_exp(x: int, i0: int, k_inter: int, lam: int) -> int:
    x = max(x + (x >> 1) - (x >> 4), -lam * k_inter * i0)
    q, r = divmod(-x, i0)
    base, up = ((-r) >> 1) + i0, k_inter - q
    return base << up if up >= 0 else base >> -up


@pytest.mark.parametrize("lam", [1, 6, 64])
@pytest.mark.parametrize(("i0", "k_inter"), [(1, 0), (1, 15), (7, 23), (16, 11), (37, 31), (1000, 5), (32768, 0)])
def test_shift_exp(i0: int, k_inter: int, lam: int) -> None:
    edge = 16 * max(k_inter, 1) * i0 * lam // 23
    x = sorted({*range(-600, 1), *(-v for v in POWERS if v < 2**40), *(-v for v in around(edge) if v > 0)})
    expected = [python_shift_exp(v, i0, k_inter, lam) for v in x]
    assert shift_exp(torch.tensor(x), i0, k_inter, lam).tolist() == expected
    assert arith.shift_exp(np.array(x), i0, k_inter, lam).tolist() == expected


def test_dyadic_is_the_nearest_multiplier() -> None:
    reals = [2.0**e * m for e in range(-32, 30) for m in (1.0, 1.25, 1.9999999, 1 + 2.0**-31, 2 - 2.0**-30)]
    mult, shift = dyadic(torch.tensor(reals, dtype=torch.float64))
    for real, m, s in zip(reals, mult.tolist(), shift.tolist(), strict=True):
        assert 2**30 <= m < 2**31, real
        assert 1 <= s <= 62, real
        assert abs(Fraction(m) - Fraction(real) * 2**s) <= Fraction(1, 2), real


def test_dyadic_carries_into_the_next_power() -> None:
    mult, shift = dyadic(torch.tensor([1 - 2.0**-40], dtype=torch.float64))
    assert (mult.item(), shift.item()) == (2**30, 30)


@pytest.mark.parametrize("exponent", range(-62, -32))
def test_dyadic_of_small_scales_keeps_shift_62(exponent: int) -> None:
    for real in (2.0**exponent, 1.7 * 2.0**exponent):
        mult, shift = dyadic(torch.tensor([real], dtype=torch.float64))
        assert 0 <= mult.item() < 2**31
        assert shift.item() <= 62
        assert abs(Fraction(mult.item()) - Fraction(real) * 2 ** shift.item()) <= Fraction(3, 4)  # rounded twice


def test_dyadic_of_nothing() -> None:
    mult, shift = dyadic(torch.zeros(1, dtype=torch.float64))
    assert (mult.item(), shift.item()) == (0, 31)


@pytest.mark.parametrize("real", [2.0**-70, 2.0**-100, 2.0**-200])
def test_dyadic_of_tiny_scales_stays_in_range(real: float) -> None:
    mult, shift = dyadic(torch.tensor([real], dtype=torch.float64))
    assert mult.item() == 0
    assert 1 <= shift.item() <= 62


def test_dyadic_refuses_what_is_too_large() -> None:
    with pytest.raises(ValueError, match="too large"):
        dyadic(torch.tensor([2.0**30], dtype=torch.float64))


def test_product_is_exact_where_float32_is_not() -> None:
    a = torch.full((1, 4096), 32767)
    assert product(a, a.T).item() == 4096 * 32767**2


def test_act_rounds_half_up_and_saturates() -> None:
    act = Act(1, 8)
    act.set(0.5, 1.0)
    real = torch.tensor([1.0, 1.25, 0.75, 1.24, -63.0, -100.0, 64.5, 100.0], dtype=torch.float64)
    assert act.quantize(real).tolist() == [0, 1, 0, 0, -128, -128, 127, 127]
    assert act.quantize(act.dequantize(torch.arange(-128, 128))).tolist() == list(range(-128, 128))


@pytest.mark.parametrize("bits", [8, 16])
def test_ranges_meet_their_ends(bits: int) -> None:
    act, limit = Act(1, bits), 2 ** (bits - 1)
    act.set_range(torch.tensor(-1.0), torch.tensor(3.0))
    assert act.dequantize(torch.tensor([-limit, limit - 1])).tolist() == pytest.approx([-1.0, 3.0])
    act.set_max(2.5)
    assert act.dequantize(torch.tensor([1 - limit, 0, limit - 1])).tolist() == pytest.approx([-2.5, 0.0, 2.5])


# ---------------------------------------------------------------------------------------------------------------------
# The whole twin
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_windows_do_not_influence_each_other(recipe: str) -> None:
    twin, images = build(recipe), windows(3, 5)
    together = integers(twin, images)
    for i in range(3):
        alone = integers(twin, images[i : i + 1])
        assert same_integers({name: value[i : i + 1] for name, value in together.items()}, alone)


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_change_no_integer(recipe: str) -> None:
    """Training mode, evaluation mode, with and without gradients: the same integers."""
    twin, images = build(recipe), windows(2, 6)
    expected = integers(twin, images)
    found: dict[str, Tensor] = {}
    twin.train()(images, found.__setitem__)
    assert same_integers(found, expected)


@pytest.mark.parametrize("config", [CONFIG, LINEAR], ids=["mask", "linear"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_reals_are_the_dequantized_integers(recipe: str, config: SegmenterConfig) -> None:
    twin, images = build(recipe, config), windows(2, 7, config)
    act = twin.acts()["scores"]
    out = twin.train()(images)
    expected = act.dequantize(out.q)
    assert torch.equal(act.quantize(out.real.detach()), out.q)
    assert float((out.real.detach() - expected).abs().max()) <= 2.0**-20 * float(expected.abs().max())
    with torch.no_grad():
        quiet = twin.eval()(images)
    assert torch.equal(quiet.q, out.q)
    assert torch.equal(quiet.real, expected)


def loss_of(twin: FakeQuantSegmenter, images: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the scores against classes [B, h, w]."""
    real = twin(images).real
    return torch.nn.functional.cross_entropy(real.flatten(0, 2), target.flatten())


def toy(config: SegmenterConfig) -> tuple[Tensor, Tensor]:
    """Windows and a class per patch that depends on its brightness."""
    images = windows(4, 8, config)
    size = config.patch
    mean = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).double(), size).mean(1)
    return images, (mean / 256 * config.n_cls).long()


@pytest.mark.parametrize("config", [CONFIG, LINEAR], ids=["mask", "linear"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_parameter_has_a_gradient(recipe: str, config: SegmenterConfig) -> None:
    twin = build(recipe, config).train()
    loss_of(twin, *toy(config)).backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_are_close_to_the_float_models(recipe: str) -> None:
    """The straight-through gradient points where the float model's does."""
    twin = build(recipe).train()
    model = random_segmenter(CONFIG, 0)
    images, target = toy(CONFIG)
    loss_of(twin, images, target).backward()
    mean, std = torch.tensor(CONFIG.mean), torch.tensor(CONFIG.std)
    pixels = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    scores = model.forward_scores(pixels, RECIPES[recipe].cosine)
    torch.nn.functional.cross_entropy(scores.flatten(0, 2), target.flatten()).backward()
    pairs = [
        (twin.decoder.mask_norm.bias, model.decoder.mask_norm.bias),
        (twin.decoder.blocks[0].fc2.weight, model.decoder.blocks[0].mlp.fc2.weight),
        (twin.encoder.blocks[1].attn.qkv.bias, model.encoder.blocks[1].attn.qkv.bias),
        (twin.encoder.blocks[0].norm1.weight, model.encoder.blocks[0].norm1.weight),
    ]
    for ours, reference in pairs:
        a, b = ours.grad.flatten().double(), reference.grad.flatten().double()
        assert float(torch.dot(a, b) / (a.norm() * b.norm())) > 0.5


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_reduces_a_loss(recipe: str) -> None:
    twin = build(recipe).train()
    images, target = toy(CONFIG)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.02)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_of(twin, images, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------------------------------------------------------------
# State
# ---------------------------------------------------------------------------------------------------------------------


def test_state_is_all_there_is() -> None:
    """Every buffer and parameter matters to the integers or follows from another that does; none is lost in a copy."""
    twin = build("intseg")
    state = twin.state_dict()
    copied: dict[str, Any] = {name: value.clone() for name, value in state.items()}
    first = build("intseg", seed=5)
    for other in (copy.deepcopy(first), first):
        assert not same_integers(integers(other, windows(1)), integers(twin, windows(1)))
        other.load_state_dict(copied)
        assert same_integers(integers(other, windows(1)), integers(twin, windows(1)))


def test_loading_refuses_another_recipe() -> None:
    with pytest.raises(RuntimeError, match="l2_patch"):
        build("paper").load_state_dict(build("intseg").state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# Fewer bits
# ---------------------------------------------------------------------------------------------------------------------


def uncalibrated(config: SegmenterConfig = CONFIG) -> tuple[FakeQuantSegmenter, Segmenter]:
    model = random_segmenter(config, 0)
    return FakeQuantSegmenter(model, config.window, RECIPES["intseg"]), model


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_row_without_weights_keeps_its_bias(bits: int) -> None:
    """Its range is zero: steps follow from the bias then."""
    twin, model = uncalibrated()
    with torch.no_grad():
        fc1 = model.encoder.blocks[0].mlp.fc1
        fc1.weight[3], fc1.bias[3] = 0, 1.5
        twin.encoder.blocks[0].fc1.weight[3] = 0
    twin.set_bits({"encoder.blocks.0.mlp.fc1": {"weight": bits}})
    calibrate(twin, model, [windows(2)], correct=False)
    layer = twin.eval().encoder.blocks[0].fc1
    p = layer.integers()
    real = p["bias"][3] * layer.weight_scale[3] + layer.y.mid.expand(len(p["bias"]))[3]
    assert not p["weight"][3].any()
    assert abs(float(real) - 1.5) < 1e-6


BAD_BITS: dict[str, tuple[dict[str, Any], str]] = {
    "layer": ({"encoder.blocks.0.mlp.fc3": {"weight": 4}}, "did you mean encoder.blocks.0.mlp.fc"),
    "low": ({"encoder.patch_embed": {"weight": 1}}, "weight is 1, expected 2 to 8 bits"),
    "high": ({"encoder.patch_embed": {"weight": 9}}, "weight is 9, expected 2 to 8 bits"),
    "activation": ({"encoder.patch_embed": {"activation": 3}}, "activation is 3, expected 4 to 8 bits"),
    "product": ({"decoder.masks": {"weight": 4}}, "decoder.masks: weight is 4, expected nothing of that name"),
    "zeros": ({"encoder.blocks.1.mlp.fc2": {"weight": 2}}, "all zero, no range for fewer bits"),
    "shared": (
        {f"decoder.proj_{name}": {"activation": n} for name, n in (("patch", 4), ("classes", 5))},
        "decoder.proj_patch and decoder.proj_classes read one activation: 4 and 5 bits",
    ),
}


@pytest.mark.parametrize("name", BAD_BITS)
def test_bad_bits_change_nothing(name: str) -> None:
    twin, _ = uncalibrated()
    with torch.no_grad():
        twin.encoder.blocks[1].fc2.weight.zero_()
    bits, words = BAD_BITS[name]
    before = {key: value.clone() for key, value in twin.state_dict().items()}
    with pytest.raises(UsageError, match=re.escape(words)) as error:
        twin.set_bits({"encoder.blocks.0.attn.qkv": {"weight": 3, "activation": 6}, **bits})
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in twin.state_dict().items())


def test_bits_are_saved_with_the_state() -> None:
    twin, model = uncalibrated()
    twin.set_bits(twin.uniform_bits(3, 5))
    calibrate(twin, model, [windows(2)])
    other, _ = uncalibrated()
    other.load_state_dict(twin.state_dict())
    assert same_integers(integers(other.eval(), windows(2, 1)), integers(twin.eval(), windows(2, 1)))
    assert {int(layer.bits) for layer in other.linears().values()} == {3}
    assert {act.bits for acts in other.readers().values() for act in acts} == {5}
