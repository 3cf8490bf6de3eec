"""Hard models: the same function, with outliers that are really there."""

import copy
from pathlib import Path

import pytest
import torch
from configs import LINEAR
from configs import SMALL as CONFIG
from torch import Tensor

from intseg.tools.measure import make_hard
from intseg.tools.twin.calibrate import normalise
from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.segmenter import Segmenter, random_segmenter

torch.set_num_threads(1)


def images() -> Tensor:
    return torch.randint(0, 256, (2, 32, 48, 3), generator=torch.Generator().manual_seed(0)).byte()


def scores(model: Segmenter) -> Tensor:
    """In float64: what differs is the function, not the rounding."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        return exact.forward_scores(normalise(images(), model.config).double())


@pytest.mark.parametrize("config", [CONFIG, LINEAR], ids=["mask", "linear"])
def test_outliers_keep_the_function(config: SegmenterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_hard, "STEEP", 0)  # the only part that is not exact
    model = make_hard.deepen(random_segmenter(config, 1), 2, 8)
    before = scores(model)
    make_hard.add_outliers(model, 100.0)
    assert (scores(model) - before).abs().max() < 1e-4 * before.abs().max()


def test_steep_units_bend_only() -> None:
    model = random_segmenter(CONFIG, 1)
    before = scores(model)
    make_hard.add_outliers(model, 100.0)
    change = scores(model) - before
    assert 1e-6 < float(change.pow(2).mean().sqrt() / before.std()) < 0.2


def test_deepened_once_more_with_the_whole_step_in_the_first_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_hard, "FIRST", 1.0)
    model = random_segmenter(CONFIG, 1)
    deep = make_hard.deepen(model, 3, 0)
    assert deep.config.n_layers == 6
    assert torch.allclose(scores(deep), scores(model), atol=1e-9)


def test_spare_units_are_zero_and_stay_so() -> None:
    deep = make_hard.deepen(random_segmenter(CONFIG, 1), 2, 8)
    deep.forward_scores(normalise(images(), CONFIG)).square().sum().backward()
    for block in deep.encoder.blocks:
        unused = block.mlp.fc1.weight.abs().sum(1) == 0
        assert int(unused.sum()) == 8
        assert not block.mlp.fc1.weight.grad[unused].any()
        assert not block.mlp.fc1.bias.grad[unused].any()
        assert not block.mlp.fc2.weight.grad[:, unused].any()


def test_outliers_are_there() -> None:
    model = make_hard.deepen(random_segmenter(CONFIG, 1), 2, 8)
    before = make_hard.spreads(model, images())
    make_hard.add_outliers(model, 100.0)
    after = make_hard.spreads(model, images())
    for tap in ("norm1", "norm2", "attn.qkv", "attn.merge", "mlp.fc1", "mlp.act"):
        assert after[tap][0] > 1.5 * before[tap][0], tap
        assert after[tap][2] > 3 * before[tap][2], tap
    assert after["add2"] == pytest.approx(before["add2"], rel=0.1)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    save_checkpoint(random_segmenter(CONFIG, 1), tmp_path / "plain")
    options = ["--deepen", "2", "--spare", "8", "--outliers", "60"]
    for name in ("a", "b"):
        assert make_hard.main([str(tmp_path / "plain"), "-o", str(tmp_path / name), *options]) == 0
    for file in ("checkpoint.pth", "variant.yml"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert load_checkpoint(tmp_path / "a").config.n_layers == 4


@pytest.mark.parametrize("options", [[], ["--outliers", "5"], ["--deepen", "1"]])
def test_bad_options_are_one_line(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(random_segmenter(CONFIG, 1), tmp_path / "plain")
    assert make_hard.main([str(tmp_path / "plain"), "-o", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
