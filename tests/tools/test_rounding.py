"""Weights rounded to few bits: within their range, better than each by itself, and the engine's bits are the twin's."""

import pytest
import torch
from configs import SMALL
from torch import Tensor
from twins import calibrated, info_of, smooth

from intseg.executor import execute
from intseg.graph import validate
from intseg.ops import RUN
from intseg.tools.bits import rounding as rd
from intseg.tools.twin import calibrate as cal
from intseg.tools.twin import model as fq
from intseg.tools.twin.act import Act
from intseg.tools.twin.export import export
from intseg.tools.twin.layers import QLinear
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.segmenter import Segmenter


def twin_and_model(bits: int, ways: rd.Ways) -> tuple[fq.FakeQuantSegmenter, Segmenter]:
    batches = [smooth(2)]
    twin, model = calibrated(RECIPES["intseg"], batches)
    rd.round_weights(twin, model, batches, dict.fromkeys(twin.linears(), bits), ways)
    return twin.eval(), model


def layer_of(bits: int, rows: int = 24, columns: int = 40) -> tuple[QLinear, Tensor]:
    """A layer, and inputs whose columns depend on one another."""
    generator = torch.Generator().manual_seed(bits)
    x = Act(columns, 8)
    x.set(torch.rand(columns, generator=generator).double() + 0.1)
    layer = QLinear(torch.randn(rows, columns, generator=generator), None, x, Act(1, 16))
    layer.bits.fill_(bits)
    mixed = torch.randn(500, 10, generator=generator) @ torch.randn(10, columns, generator=generator)
    return layer, (mixed * 12 + torch.randn(500, columns, generator=generator) * 3 + 5).round().clamp(-128, 127).long()


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_means_lowers_the_error_and_keeps_the_range(bits: int) -> None:
    errors = []
    for ways in (rd.Ways(fit_ranges=False, compensate=False), rd.Ways(compensate=False), rd.Ways()):
        layer, x = layer_of(bits)
        layer.fit_weight_scale()
        wanted = layer.folded().detach()
        with torch.no_grad():
            rd.round_layer(layer, x, ways)
        q = layer.integers()["weight"]
        low, high = layer.limits()
        assert low == (-127 if bits == 8 else -(2 ** (bits - 1)))
        assert int(q.min()) >= low
        assert int(q.max()) <= high == 2 ** (bits - 1) - 1
        lost = (q * layer.weight_scale[:, None] - wanted) @ (x - x.double().mean(0)).T
        assert torch.allclose(layer.folded(), q * layer.weight_scale[:, None], rtol=1e-6)
        errors.append(float((lost**2).sum()))
    assert errors[0] >= errors[1] > errors[2] * 1.5


def test_views_are_the_same_each_time_and_all_differ() -> None:
    image = smooth(2)
    first, second = rd.with_views(image, 3), rd.with_views(image, 3)
    assert torch.equal(first, second)
    assert first.shape == (8, *image.shape[1:])
    assert torch.equal(first[:2], image)
    assert len({view.numpy().tobytes() for view in first}) == 8


def test_columns_that_are_never_seen_round_to_nearest() -> None:
    layer, x = layer_of(4)
    x[:, :5] = 7
    scale = layer.folded().detach().abs().amax(1) / 7
    q = rd.compensated(layer.folded().detach(), scale, rd.second_moments(x), layer.limits())
    nearest = torch.floor(layer.folded() / scale[:, None] + 0.5).clamp(-8, 7)
    assert (q[:, :5] - nearest[:, :5]).abs().max() <= 1  # the last columns of the order: they take what is left over
    assert torch.isfinite(q).all()


def test_a_row_of_zeros_and_one_column() -> None:
    weight = torch.zeros(2, 1, dtype=torch.float64)
    scale = rd.fit_scale(weight, torch.ones(1, dtype=torch.float64), (-2, 1))
    assert (scale > 0).all()
    assert rd.compensated(weight, scale, torch.eye(1, dtype=torch.float64), (-2, 1)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("ways", [rd.Ways(), rd.Ways(False, False, False, False), rd.Ways(views=1)])
def test_the_engine_has_the_bits_of_the_twin(ways: rd.Ways) -> None:
    twin, _ = twin_and_model(3, ways)
    image = smooth(1, 5)
    with torch.no_grad():
        expected = twin(image).q[0]
    graph = export(twin, info_of(twin))
    validate(graph)
    assert execute(graph, image[0].numpy(), RUN).tolist() == expected.tolist()


def test_means_lower_the_error_of_the_scores() -> None:
    errors = []
    image = smooth(4, 7)
    for ways in (rd.Ways(False, False, False, False), rd.Ways()):
        twin, model = twin_and_model(3, ways)
        with torch.no_grad():
            real = model.forward_scores(cal.normalise(image, SMALL))
            errors.append(float(((twin(image).real - real) ** 2).mean()))
    assert errors[1] < errors[0]


def test_norms_are_clipped_only_before_few_bits() -> None:
    batches = [smooth(2)]
    twin, model = calibrated(RECIPES["intseg"], batches)
    before = {node: act.scale.clone() for node, act in twin.acts().items()}
    bits = dict.fromkeys(twin.linears(), 8) | {"encoder.blocks.1.mlp.fc1": 2}
    chosen = rd.round_weights(twin, model, batches, bits)
    assert list(chosen) == ["encoder.blocks.1.norm2"]
    changed = [node for node, act in twin.acts().items() if not torch.equal(act.scale, before[node])]
    assert set(changed) <= {"encoder.blocks.1.norm2"}
