"""tools/train.py and tools/qat.py: the same steps for the same seed, resume as if unbroken, engine equal to twin."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from configs import CAMVID as CONFIG
from patterns import pattern, write_set
from PIL import Image

import intseg
from intseg.batch import datasets
from intseg.cli.main import INTERRUPTED
from intseg.errors import InputError
from intseg.tools import convert, qat, train
from intseg.tools.twin import calibrate, pretrained, training
from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.config import CheckpointError
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.segmenter import random_segmenter, resize_pos_embed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set in CamVid's layout, a checkpoint and an encoder."""
    root = tmp_path_factory.mktemp("data")
    save_encoder(root / "encoder")
    save_checkpoint(random_segmenter(CONFIG, 3), root / "checkpoint")
    write_set(root, "train", range(5), 48, 64)
    write_set(root, "val", range(5, 7), 48, 64)
    return root


def run_train(data: Path, output: Path, *options: str) -> int:
    """train.py on the fixture, from its encoder unless `options` name a size: a Tiny's states are 90 MB each."""
    size = [] if "--patch" in options else ["--encoder", str(data / "encoder" / "vit.safetensors")]
    common = ["--root", str(data), "-o", str(output), *size, "--window", "64", "64", "--batch", "2"]
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
    with interrupted(monkeypatch, 3):
        assert run_train(data, broken, "--steps", "4", "--limit", "1") == INTERRUPTED
    assert state(broken)["step"] == 2
    assert run_train(data, broken, "--steps", "4", "--limit", "1", "--resume") == 0
    assert_same_state(state(whole), state(broken))
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert 0 <= lines[-1]["mIoU"] <= 100
    with Image.open(whole / "curves.png") as picture:
        assert picture.size == (900, 360)
    saved = load_checkpoint(whole)
    variant = yaml.safe_load((whole / "variant.yml").read_text())
    assert variant["inference_kwargs"] == {"im_size": 48, "window_size": 64, "window_stride": 48}
    average = state(whole)["average"]
    assert isinstance(average, dict)
    assert torch.equal(dict(saved.named_parameters())["encoder.norm.bias"].detach(), average["encoder.norm.bias"])


@pytest.mark.parametrize(("recipe", "bits"), [("intseg", ""), ("paper", ""), ("intseg", "w3a6")])
def test_qat_resumes_and_exports_the_twin(
    data: Path, tmp_path: Path, recipe: str, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "run", tmp_path / "broken" / "run"
    options = ["--recipe", recipe, "--steps", "4", "--freeze", "3", "--lr", "1e-3"]
    options += ["--uniform", bits, "--distill", "0.5"] if bits else []
    assert run_qat(data, whole, *options) == 0
    with interrupted(monkeypatch, 3):
        assert run_qat(data, broken, *options) == INTERRUPTED
    assert run_qat(data, broken, *options, "--resume") == 0
    assert_same_state(state(whole), state(broken))
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()

    saved = torch.load(whole / "twin.pth", weights_only=True)
    twin = FakeQuantSegmenter(random_segmenter(CONFIG, 0), (32, 32), RECIPES[recipe])
    twin.load_state_dict(saved["model"])
    twin.eval()
    image = pattern(9, 32, 32)[0]
    nodes: dict[str, np.ndarray] = {}
    with torch.no_grad():
        twin(torch.from_numpy(image)[None], lambda name, value: nodes.__setitem__(name, value[0].numpy()))
    ((_, outputs),) = intseg.trace(image, whole / "model.safetensors")
    assert set(outputs) == set(nodes)
    assert [name for name in outputs if not np.array_equal(outputs[name], nodes[name])] == []


def test_qat_changes_the_integers(data: Path, tmp_path: Path) -> None:
    assert run_qat(data, tmp_path / "run", "--steps", "2", "--lr", "1e-2", "--val=", "--ema", "0") == 0
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()  # nothing was measured; it is no JSON
    before = tmp_path / "before.safetensors"
    calibrate = ["--calibrate", str(data / "train" / "0.png"), "-q"]
    assert convert.main([str(data / "checkpoint"), "-o", str(before), *calibrate]) == 0
    old, new = (intseg.load(path).graph.tensors for path in (before, tmp_path / "run" / "model.safetensors"))
    changed = [name for name in old if name.endswith(".weight") and not np.array_equal(old[name], new[name])]
    assert len(changed) == sum(name.endswith(".weight") for name in old)


def test_qat_of_few_bits_starts_at_what_convert_writes(data: Path, tmp_path: Path) -> None:
    """A rate that moves nothing gives convert's integers, biases to their last unit; a larger one moves all layers."""
    bits, before = tmp_path / "bits.json", tmp_path / "before.safetensors"
    common = ["--calibrate", str(data / "train" / "0.png")]
    mixed = ["--budget-mb", "0.012", "--score", "lrp", "--save-bits", str(bits), "-q"]
    assert convert.main([str(data / "checkpoint"), "-o", str(before), *common, *mixed]) == 0
    for name, rate in (("still", "1e-8"), ("moved", "1e-2")):
        options = ["--bits", str(bits), "--steps", "2", "--lr", rate, "--warmup", "0", "--val", "", "--ema", "0"]
        assert run_qat(data, tmp_path / name, *options) == 0
    files = (before, *(tmp_path / name / "model.safetensors" for name in ("still", "moved")))
    old, still, moved = (intseg.load(file).graph for file in files)
    allocated = json.loads(bits.read_text())["layers"]
    assert {8} < set(allocated.values())
    for graph in (old, still, moved):
        assert graph.packed == {f"{name}.weight": b for name, b in allocated.items() if b < 8}
    for name in allocated:
        weights, biases = ([g.tensors[f"{name}.{part}"] for g in (old, still, moved)] for part in ("weight", "bias"))
        assert np.array_equal(weights[0], weights[1])
        assert np.abs(biases[0].astype(np.int64) - biases[1]).max() <= 1
        assert 0 < np.mean(weights[0] != weights[2]) < 0.9
        assert not np.array_equal(biases[0], biases[2])


def test_qat_of_few_bits_comes_closer_to_the_float_model(data: Path, tmp_path: Path) -> None:
    """Without a label: the calibration image teaches."""
    common = [str(data / "checkpoint"), "--calibrate", str(data / "train" / "0.png"), "--uniform", "w2a8"]
    options = [*common, "--steps", "24", "--lr", "1e-2", "--batch", "4", "--warmup", "2", "--every", "12"]
    assert qat.main([*options, "-o", str(tmp_path / "run")]) == 0
    first, last = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert last["loss"] < 0.9 * first["loss"]
    assert "mIoU" not in last


def test_the_average_nearest_to_float_on_held_out_images_is_kept(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ruinous rate: the model of step 0 is kept, which is what convert writes from the images that are left."""
    run, options = tmp_path / "run", ["--uniform", "w3a8", "--views", "1"]
    common = [str(data / "checkpoint"), "--calibrate", *(str(data / "train" / f"{i}.png") for i in range(4))]
    ruin = ["--steps", "4", "--lr", "10", "--warmup", "0", "--ema", "0", "--batch", "2", "--every", "2"]
    assert qat.main([*common, *options, *ruin, "--hold-out", "2", "-o", str(run)]) == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [0, 2, 4]
    assert min(log, key=lambda entry: entry["KL"])["step"] == 0
    before = tmp_path / "before.safetensors"
    left = ["--calibrate", *(str(data / "train" / f"{i}.png") for i in (0, 2)), "-q"]
    assert convert.main([str(data / "checkpoint"), "-o", str(before), *left, *options]) == 0
    old, new = (intseg.load(path).graph.tensors for path in (before, run / "model.safetensors"))
    assert all(np.array_equal(old[name], new[name]) for name in old if name.endswith(".weight"))
    capsys.readouterr()
    assert qat.main([*common, *options, "--hold-out", "9", "-o", str(run)]) == 2
    assert "--hold-out 9 leaves 4 images to train on and 0 to judge by" in capsys.readouterr().err
    assert convert.main([str(data / "checkpoint"), "-o", str(before), *left, "--views", "1"]) == 2
    assert "--views is about rounding to fewer bits" in capsys.readouterr().err


def test_images_that_judge_are_no_calibration_images(data: Path) -> None:
    split = datasets.open_dataset("camvid", data, "train")
    files = [split.pairs[1].image]
    kept, left, judging = qat.held_out(2, files, split)
    assert left is not None
    assert (kept, judging) == (files, [split.pairs[3].image])
    assert left.pairs == tuple(pair for i, pair in enumerate(split.pairs) if i != 3)


def test_resuming_with_other_bits_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, options = tmp_path / "run", ["--steps", "1", "--val", ""]
    assert run_qat(data, run, *options, "--uniform", "w3a8") == 0
    before = (run / "model.safetensors").read_bytes()
    for other in (["--uniform", "w4a8"], ["--uniform", "w3a7"], ["--distill", "1"]):
        assert run_qat(data, run, *options, *other, "--resume") == 1
        assert "state.pth: model was intseg, weights of 3 to 3 bits" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before
    without = [str(data / "checkpoint"), "--calibrate", str(data / "train" / "0.png"), "-o", str(run)]
    assert qat.main([*without, "--distill", "0.5"]) == 2
    assert "without --root there are no labels" in capsys.readouterr().err


def test_ranges_follow_only_until_frozen(data: Path) -> None:
    model = load_checkpoint(data / "checkpoint")
    twin = FakeQuantSegmenter(model, (32, 32), RECIPES["paper"])
    images = torch.from_numpy(pattern(1, 32, 32)[0])[None]
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
    found = training.examples(datasets.open_dataset("camvid", data, "train"), 11)
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
    found = training.examples(datasets.open_dataset("camvid", data, "train"), 11)
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
        lambda self, scores, images, labels: (
            loss(self, scores, images, labels) * (float("nan") if self.step == 3 else 1)
        ),
    )
    assert run_train(data, tmp_path / "run", "--patch", "32", "--steps", "6", "--val", "") == 1
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
    found = training.examples(datasets.open_dataset("camvid", tmp_path, "train"), 11)
    with pytest.raises(InputError, match=r"a\.png: label 12 in 64 pixels, expected 0 to 10"):
        found.load(0)


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_schedules_warm_up_and_end_near_zero(schedule: str) -> None:
    settings = training.Settings(steps=100, lr=1.0, warmup=10, schedule=schedule)
    rates = [training.rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.03


def save_encoder(folder: Path, stats: float = 0.5) -> Path:
    """A ViT in timm's names with a 1000-class head, 2 blocks of 32 channels, 4 x 4 patches; and its config.json."""
    config = dataclasses.replace(CONFIG, image_size=(64, 64), patch=16)
    whole = random_segmenter(config, 5).state_dict()
    state = {name.removeprefix("encoder."): value for name, value in whole.items() if name.startswith("encoder.")}
    state["head.weight"], state["head.bias"] = torch.zeros(1000, config.d_model), torch.zeros(1000)
    folder.mkdir()
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, folder / "vit.safetensors")
    cfg = {"pretrained_cfg": {"mean": [stats] * 3, "std": [0.5] * 3}}
    (folder / "config.json").write_text(json.dumps(cfg))
    return folder / "vit.safetensors"


def test_a_pretrained_encoder_is_taken_whole(tmp_path: Path) -> None:
    file = save_encoder(tmp_path / "vit")
    model = pretrained.segmenter_from(file, 7, window=(64, 96), stride=(48, 80))
    c = model.config
    assert (c.image_size, c.window, c.stride, c.n_cls) == ((64, 96), (64, 96), (48, 80), 7)
    assert (c.normalization, c.dec_layers, c.d_decoder) == ("vit", 2, c.d_model)
    assert set(model.info.ignored) == {"encoder.head.weight", "encoder.head.bias"}
    theirs, ours = safetensors.torch.load_file(file), model.encoder.state_dict()
    assert [name for name in ours if name != "pos_embed" and not torch.equal(ours[name], theirs[name])] == []
    assert torch.equal(ours["pos_embed"], resize_pos_embed(theirs["pos_embed"], (4, 4), (4, 6), 1))
    square = pretrained.segmenter_from(file, 7)
    assert torch.equal(square.encoder.pos_embed, theirs["pos_embed"])
    other = pretrained.segmenter_from(file, 7, seed=1)
    assert not torch.equal(square.decoder.get_parameter("cls_emb"), other.decoder.get_parameter("cls_emb"))
    assert torch.equal(square.decoder.get_parameter("blocks.0.norm1.weight").detach(), torch.ones(32))


def test_the_encoders_own_normalization_or_a_word(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"mean and std are \(\(0.25, 0.25, 0.25\)"):
        pretrained.segmenter_from(save_encoder(tmp_path / "odd", 0.25), 7)
    file = save_encoder(tmp_path / "vit")
    (file.parent / "config.json").unlink()
    assert any("normalization = vit" in note for note in pretrained.segmenter_from(file, 7).info.notes)
    assert pretrained.segmenter_from(file, 7, normalization="deit").config.normalization == "deit"
    torch.save({"model": {"blocks": torch.ones(1)}}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: holds blocks, expected a ViT"):
        pretrained.segmenter_from(tmp_path / "odd.pth", 7)


def test_another_segmenters_encoder(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, normalization="deit")
    first = random_segmenter(config, 3)
    save_checkpoint(first, tmp_path)
    model = pretrained.segmenter_from(tmp_path / "checkpoint.pth", 7)
    assert (model.config.n_cls, model.config.normalization, model.config.n_heads) == (7, "deit", config.n_heads)
    assert torch.equal(model.encoder.pos_embed, first.encoder.pos_embed)


def test_blocks_learn_slower_towards_the_image(tmp_path: Path) -> None:
    model = pretrained.segmenter_from(save_encoder(tmp_path / "vit"), 7)
    groups = training._groups(model, training.Settings(steps=1, layer_decay=0.5))
    share = {id(p): group["share"] for group in groups for p in group["params"]}
    assert len(share) == len(list(model.parameters()))
    at = {name: share[id(p)] for name, p in model.named_parameters()}
    layers = model.config.n_layers
    assert at["encoder.pos_embed"] == at["encoder.patch_embed.proj.weight"] == 0.5 ** (layers + 1)
    assert [at[f"encoder.blocks.{i}.mlp.fc1.weight"] for i in range(layers)] == [
        0.5 ** (layers - i) for i in range(layers)
    ]
    assert {at["encoder.norm.bias"], at["decoder.cls_emb"], at["decoder.blocks.0.attn.qkv.weight"]} == {1.0}


def test_the_best_average_is_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([30.0, 50.0, 40.0])
    monkeypatch.setattr(train, "val_miou", lambda *args: next(scores))
    average: dict[int, torch.Tensor] = {}
    save = training.Trainer.save

    def saving(self: training.Trainer) -> None:
        average[self.step] = self.average["encoder.norm.bias"].clone()
        save(self)

    monkeypatch.setattr(training.Trainer, "save", saving)
    assert run_train(data, tmp_path / "run", "--steps", "6") == 0
    kept = load_checkpoint(tmp_path / "run").encoder.norm.bias
    assert [step for step in average if torch.equal(kept, average[step])] == [4]


def test_idd_lite_and_pairs_train(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_encoder(tmp_path / "vit")
    for split, drives in (("train", "ab"), ("val", "a")):
        for drive in drives:
            for folder, ending, side in (("leftImg8bit", "_image.jpg", 3), ("gtFine", "_label.png", 1)):
                (tmp_path / folder / split / drive).mkdir(parents=True)
                pixels = np.full((48, 64, side), 6, np.uint8).squeeze()
                Image.fromarray(pixels).save(tmp_path / folder / split / drive / f"1{ending}")
    window = ["--window", "32", "32", "--steps", "2", "--batch", "2", "--every", "2", "--encoder", str(file)]
    assert train.main(["--root", str(tmp_path), "--layout", "idd_lite", "-o", str(tmp_path / "idd"), *window]) == 0
    assert "2 images" in (plan := capsys.readouterr().err)
    assert "times 1 a block" in plan
    saved = load_checkpoint(tmp_path / "idd")
    assert (saved.config.n_cls, convert.dataset_of(tmp_path / "idd")) == (7, "idd_lite")
    pairs = ["--root", str(data), "--layout", "pairs", "-o", str(tmp_path / "pairs"), *window]
    assert train.main(pairs) == 2
    assert "needs --classes" in capsys.readouterr().err
    assert train.main([*pairs, "--classes", "camvid", "--ignore", "11", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["written"] == str(tmp_path / "pairs" / "checkpoint.pth")
    assert err == ""
    assert convert.dataset_of(tmp_path / "pairs") == "camvid"


def test_a_folder_whose_checkpoint_is_read_is_not_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Before any work, however the folder is named."""
    before = {file: file.read_bytes() for file in (data / "checkpoint").iterdir()}
    (tmp_path / "link").symlink_to(data / "checkpoint")
    for output in (data / "checkpoint", tmp_path / "link"):
        assert run_train(data, output, "--from", str(data / "checkpoint" / "checkpoint.pth"), "--steps", "1") == 2
        assert run_qat(data, output, "--steps", "1") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all("which is read; choose another name" in line for line in lines)
    assert {file: file.read_bytes() for file in (data / "checkpoint").iterdir()} == before
