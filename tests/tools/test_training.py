"""tools/train.py and tools/qat.py: the same steps for the same seed, resume as if unbroken, engine equal to twin."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import calibrate
import convert
import fakequant
import make_scenes
import numpy as np
import pytest
import qat
import segmenter
import torch
import train
import training
from configs import CAMVID as CONFIG
from PIL import Image

import intseg
from intseg.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set in CamVid's layout and a checkpoint."""
    root = tmp_path_factory.mktemp("data")
    segmenter.save_checkpoint(segmenter.random_segmenter(CONFIG, 3), root / "checkpoint")
    for split, seeds in (("train", range(5)), ("val", range(5, 7))):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir()
        for seed in seeds:
            rgb, labels = make_scenes.scene(seed, 48, 64)
            Image.fromarray(rgb).save(root / split / f"{seed}.png")
            Image.fromarray(labels).save(root / f"{split}annot" / f"{seed}.png")
    return root


def run_train(data: Path, output: Path, *options: str) -> int:
    """train.py from the fixture's checkpoint would need a named size: start a patch-32 Tiny on small windows."""
    common = ["--root", str(data), "-o", str(output), "--patch", "32", "--window", "64", "64", "--batch", "2"]
    return train.main([*common, "--warmup", "2", "--every", "2", *options])


def run_qat(data: Path, output: Path, *options: str) -> int:
    """qat.py on the fixture."""
    calibrate = ["--calibrate", str(data / "train" / "0.png")]
    common = [str(data / "checkpoint"), "--root", str(data), "-o", str(output), "--batch", "2", "--warmup", "1"]
    return qat.main([*common, *calibrate, "--every", "2", *options])


def state(folder: Path) -> dict[str, object]:
    """state.pth of a run."""
    loaded: dict[str, object] = torch.load(folder / "state.pth", weights_only=True)
    return loaded


def assert_same_state(a: object, b: object) -> None:
    """Equal to the bit, through nested containers."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()  # type: ignore[attr-defined]
        for key in a:
            assert_same_state(a[key], b[key])  # type: ignore[index]
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)  # type: ignore[arg-type]
        for x, y in zip(a, b, strict=True):  # type: ignore[call-overload]
            assert_same_state(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)  # type: ignore[arg-type]
    else:
        assert a == b or (a != a and b != b)


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """While open, runs die when they want to take step `after`."""
    take_step = training.Trainer.take_step

    def dying(self: training.Trainer, images: torch.Tensor, labels: torch.Tensor) -> float:
        if self.step == after:
            raise KeyboardInterrupt
        return take_step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "take_step", dying)
        yield


def test_training_resumes_as_if_unbroken(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_train(data, whole, "--steps", "4", "--limit", "1") == 0
    with interrupted(monkeypatch, 3), pytest.raises(KeyboardInterrupt):
        run_train(data, broken, "--steps", "4", "--limit", "1")
    assert state(broken)["step"] == 2
    assert run_train(data, broken, "--steps", "4", "--limit", "1", "--resume") == 0
    assert_same_state(state(whole), state(broken))
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert 0 <= lines[-1]["mIoU"] <= 100
    with Image.open(whole / "curves.png") as picture:
        assert picture.size == (900, 360)
    saved = segmenter.load_checkpoint(whole)
    average = state(whole)["average"]
    assert isinstance(average, dict)
    assert torch.equal(dict(saved.named_parameters())["encoder.norm.bias"].detach(), average["encoder.norm.bias"])


@pytest.mark.parametrize("recipe", ["intseg", "paper"])
def test_qat_resumes_and_exports_the_twin(
    data: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "run", tmp_path / "broken" / "run"
    options = ["--recipe", recipe, "--steps", "4", "--freeze", "3", "--lr", "1e-3"]
    assert run_qat(data, whole, *options) == 0
    with interrupted(monkeypatch, 3), pytest.raises(KeyboardInterrupt):
        run_qat(data, broken, *options)
    assert run_qat(data, broken, *options, "--resume") == 0
    assert_same_state(state(whole), state(broken))
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()

    saved = torch.load(whole / "twin.pth", weights_only=True)
    twin = fakequant.FakeQuantSegmenter(segmenter.random_segmenter(CONFIG, 0), (32, 32), fakequant.RECIPES[recipe])
    twin.load_state_dict(saved["model"])
    twin.eval()
    image = make_scenes.scene(9, 32, 32)[0]
    nodes: dict[str, np.ndarray] = {}
    with torch.no_grad():
        twin(torch.from_numpy(image)[None], lambda name, value: nodes.__setitem__(name, value[0].numpy()))
    ((_, outputs),) = intseg.trace(image, whole / "model.safetensors")
    assert set(outputs) == set(nodes)
    assert [name for name in outputs if not np.array_equal(outputs[name], nodes[name])] == []


def test_qat_changes_the_integers(data: Path, tmp_path: Path) -> None:
    assert run_qat(data, tmp_path / "run", "--steps", "2", "--lr", "1e-2", "--val", "", "--ema", "0") == 0
    before = tmp_path / "before.safetensors"
    calibrate = ["--calibrate", str(data / "train" / "0.png"), "-q"]
    assert convert.main([str(data / "checkpoint"), "-o", str(before), *calibrate]) == 0
    old, new = (intseg.load(path).graph.tensors for path in (before, tmp_path / "run" / "model.safetensors"))
    changed = [name for name in old if name.endswith(".weight") and not np.array_equal(old[name], new[name])]
    assert len(changed) == sum(name.endswith(".weight") for name in old)


def test_ranges_follow_only_until_frozen(data: Path) -> None:
    model = segmenter.load_checkpoint(data / "checkpoint")
    twin = fakequant.FakeQuantSegmenter(model, (32, 32), fakequant.RECIPES["paper"])
    images = torch.from_numpy(make_scenes.scene(1, 32, 32)[0])[None]
    calibrate.calibrate(twin, model, [images])
    act = twin.acts()["encoder.norm"]
    act.set_max(1.0)
    twin.follow_ranges(0.5)
    twin.train()
    twin(images)
    moved = float(act.scale[0])
    assert moved > 1 / 127
    twin.follow_ranges(0.0)
    twin(images)
    assert float(act.scale[0]) == moved


def test_a_batch_depends_on_seed_and_step_only(data: Path) -> None:
    found = training.examples(data, "train", "camvid", 11)
    settings = training.Settings(steps=10, batch=3, crop=(40, 56))
    a, b, c = (training.batch(found, settings, step) for step in (4, 4, 5))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], c[0])
    assert a[0].shape == (3, 40, 56, 3)
    assert a[1].shape == (3, 40, 56)
    seen = set(a[1].unique().tolist())
    assert seen <= {*range(11), training.IGNORE}


def test_every_image_is_used_once_an_epoch(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = training.examples(data, "train", "camvid", 11)
    used: list[int] = []
    load = training.Examples.load
    monkeypatch.setattr(training.Examples, "load", lambda self, i: used.append(i) or load(self, i))
    for step in range(5):
        training.batch(found, training.Settings(steps=10, batch=2, crop=(32, 32)), step)
    assert sorted(used[:5]) == sorted(used[5:]) == [0, 1, 2, 3, 4]


def test_a_loss_that_is_not_a_number_stops_with_the_last_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = training.Trainer._loss
    monkeypatch.setattr(
        training.Trainer,
        "_loss",
        lambda self, scores, labels: loss(self, scores, labels) * (float("nan") if self.step == 3 else 1),
    )
    assert run_train(data, tmp_path / "run", "--steps", "6", "--val", "") == 1
    error = capsys.readouterr().err
    assert "loss is nan at step 3" in error
    assert state(tmp_path / "run")["step"] == 2


def test_resume_under_other_settings_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert run_train(data, run, "--steps", "2", "--val", "") == 0
    assert run_train(data, run, "--steps", "2", "--val", "", "--lr", "0.5", "--resume") == 1
    assert "lr was 0.001, now 0.5" in capsys.readouterr().err
    (run / "state.pth").write_bytes(b"no")
    assert run_train(data, run, "--steps", "2", "--val", "", "--resume") == 4
    assert "not a training state" in capsys.readouterr().err


def test_a_label_outside_the_classes_names_the_file(data: Path, tmp_path: Path) -> None:
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "train" / "a.png")
    Image.fromarray(np.full((8, 8), 12, np.uint8)).save(tmp_path / "trainannot" / "a.png")
    found = training.examples(tmp_path, "train", "camvid", 11)
    with pytest.raises(InputError, match=r"a\.png: label 12, expected 0 to 10"):
        found.load(0)


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_schedules_warm_up_and_end_near_zero(schedule: str) -> None:
    settings = training.Settings(steps=100, lr=1.0, warmup=10, schedule=schedule)
    rates = [training.rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.03
