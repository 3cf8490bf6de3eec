"""tools/convert.py and tools/evaluate.py as a user runs them, on a small random checkpoint."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import CAMVID
from patterns import write_set
from PIL import Image

import intseg
from intseg import palettes
from intseg.images import overlay as overlays
from intseg.tools import convert, evaluate
from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.segmenter import random_segmenter

CONFIG = dataclasses.replace(CAMVID, image_size=(32, 48), window=(32, 48), stride=(24, 40))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder, calibration images, and a labelled set in CamVid's layout."""
    root = tmp_path_factory.mktemp("data")
    save_checkpoint(random_segmenter(CONFIG, 3), root / "checkpoint")
    write_set(root, "val", range(3), 40, 60)
    shutil.copytree(root / "val", root / "photos")
    return root


def run(data: Path, output: Path, *options: str, calibrate: str = "photos") -> int:
    """convert.py on the fixture."""
    return convert.main([str(data / "checkpoint"), "-o", str(output), "--calibrate", str(data / calibrate), *options])


@pytest.mark.parametrize("recipe", ["i-vit", "paper", "intseg"])
def test_every_recipe_converts_and_runs(
    data: Path, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.safetensors"
    assert run(data, output, "--recipe", recipe) == 0
    printed = capsys.readouterr().out
    assert "encoder.blocks.0.attn.qkv" in printed
    assert "SQNR" in printed
    assert f"recipe {recipe}" in printed
    model = intseg.load(output)
    assert (model.info.window, model.info.stride, model.info.recipe) == ((32, 48), (24, 40), recipe)
    result = intseg.run(data / "photos" / "0.png", model, backend="numpy")
    assert result.labels.shape == (40, 60)


def test_two_conversions_are_the_same_bytes(data: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run(data, a, "-q", "--name", "x") == run(data, b, "-q", "--name", "x") == 0
    assert a.read_bytes() == b.read_bytes()


def test_options_reach_the_model(data: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {i}\t{i} {2 * i} 255\n" for i in range(11)))
    output, twin = tmp_path / "m.safetensors", tmp_path / "twin.pth"
    options = ["--upsample", "nearest", "--l2norm", "drop", "--window", "45", "64", "--stride", "32", "64"]
    options += ["--classes", str(names), "--samples", "2", "--save-twin", str(twin)]
    assert run(data, output, *options) == 0
    info = intseg.load(output).info
    assert (info.upsample, info.window, info.stride) == ("nearest", (48, 64), (32, 64))
    assert info.classes[3] == "thing 3"
    assert info.palette[3] == (3, 6, 255)
    ops = {node.op for node in intseg.load(output).graph.nodes}
    assert "l2norm" not in ops
    assert set(torch.load(twin, weights_only=True)) == {"recipe", "window", "model"}


def test_what_is_otherwise_than_in_the_published_inference_is_said() -> None:
    """A stride of less than half the window, a window of no whole patches, as many patches in another shape."""
    config = dataclasses.replace(CONFIG, image_size=(32, 128), window=(72, 64), stride=(20, 64), patch=16)
    assert config.grid == (2, 8)

    def said(window: tuple[int, int] | None) -> list[str]:
        info = convert.model_info(config, convert.recipe_for("intseg"), "m", evaluate.classes.numbered(11), window)
        return list(convert.differences(config, info, window, None))

    whole = "window = 72 x 64: here 80 x 64, whole patches of real pixels in place of zeros"
    assert said(None) == [whole, "window_stride = 20 x 64: here 40 x 64, at least half the window"]
    (line,) = said((64, 64))
    assert line.startswith("the position embedding of 2 x 8 patches is resized to 4 x 4; published code")
    assert said((32, 128)) == []


def test_the_table_is_of_an_image_that_did_not_calibrate(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gray, held = tmp_path / "gray.png", data / "val" / "0.png"
    Image.new("RGB", (48, 32), (90, 90, 90)).save(gray)
    command = [str(data / "checkpoint"), "-o", str(tmp_path / "m.safetensors"), "--calibrate", str(gray)]
    tables = []
    for options, where in (
        ([], f"{gray}, calibrated on: --check IMAGE shows another"),
        (["--check", str(gray)], str(gray)),
        (["--check", str(held)], str(held)),
    ):
        assert convert.main([*command, "--recipe", "paper", *options]) == 0
        table, said = capsys.readouterr().out.split("saturated, SQNR: on ")
        assert said.splitlines()[0] == where
        tables.append(table)
    assert tables[0] == tables[1] != tables[2]


def broken_checkpoint(data: Path, folder: Path, change: str) -> Path:
    """A copy of the checkpoint with one fault."""
    shutil.copytree(data / "checkpoint", folder)
    file = folder / "checkpoint.pth"
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
        return folder
    state = torch.load(file, weights_only=True)
    if change == "missing":
        del state["model"]["encoder.blocks.1.norm1.weight"]
    elif change == "extra":
        state["model"]["encoder.surprise"] = torch.zeros(2)
    elif change == "nan":
        state["model"]["encoder.norm.bias"][0] = float("nan")
    torch.save(state, file)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("truncated", ["checkpoint.pth"]),
        ("missing", ["encoder.blocks.1.norm1.weight"]),
        ("extra", ["encoder.surprise"]),
        ("nan", ["encoder.norm.bias"]),
    ],
)
def test_a_bad_checkpoint_is_one_line(
    data: Path, tmp_path: Path, change: str, words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken_checkpoint(data, tmp_path / "checkpoint", change)
    output = tmp_path / "m.safetensors"
    assert convert.main([str(folder), "-o", str(output), "--calibrate", str(data / "photos")]) == 3
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "calibrate", "code", "word"),
    [
        ([], "nowhere", 4, "nowhere"),
        ([], "empty", 4, "no image in"),
        (["--samples", "0"], "photos", 2, "--samples"),
        (["--classes", "cityscapes"], "photos", 2, "19"),
        (["--stride", "7", "7"], "photos", 2, "--stride is 7, expected"),
        (["--window", "32768", "32768"], "photos", 2, "choose a smaller --window"),
        (["--classes", "no-such-file"], "photos", 4, "no-such-file"),
    ],
)
def test_bad_arguments_are_one_line(
    data: Path,
    tmp_path: Path,
    options: list[str],
    calibrate: str,
    code: int,
    word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (data / "empty").mkdir(exist_ok=True)
    output = tmp_path / "m.safetensors"
    assert run(data, output, *options, calibrate=calibrate) == code
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert word in error
    assert not list(tmp_path.iterdir())


def test_classes_come_from_options_the_checkpoint_or_the_data_set() -> None:
    counts = {"camvid": 11, "cityscapes": 19, "ade20k": 150, "voc": 21, "idd_lite": 7, "imagenet": 1000}
    assert {name: len(convert.classes.named(name)) for name in palettes.files()} == counts
    stated = {f"s{i}": (i, i, i) for i in range(19)}
    for given, known, first in ((None, stated, "s0"), (None, None, "road"), ("cityscapes", stated, "road")):
        assert next(iter(convert.classes.for_model(19, "cityscapes", given, known))) == first
    assert next(iter(convert.classes.for_model(3, "cityscapes", None))) == "class 0"
    colours = convert.classes.named("voc").values()
    assert list(colours) == [overlays.PALETTES["voc"](i, 21) for i in range(21)]


def test_a_missing_output_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, tmp_path / "no" / "m.safetensors") == 4
    assert "no folder" in capsys.readouterr().err


def test_evaluate_finds_twin_and_engine_equal(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(data / "checkpoint"), "--root", str(data), "--calibrate", str(data / "photos" / "0.png")]
    assert evaluate.main([*arguments, "--recipe", "paper", "intseg"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["-", "-", "paper", "paper", "intseg", "intseg"]
    assert [row[-1] for row in rows if row[1] == "engine"] == ["0", "0"]


def test_evaluate_knows_what_a_layout_stores(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels counted from 1, as ADE20K's, gave 0 % in every row."""
    for folder, place in (("val", "images/validation"), ("valannot", "annotations/validation")):
        (tmp_path / place).mkdir(parents=True)
        pixels = np.asarray(Image.open(data / folder / "0.png"))
        stored = pixels if folder == "val" else np.where(pixels == 11, 0, pixels + 1).astype(np.uint8)
        Image.fromarray(stored).save(tmp_path / place / "0.png")
    arguments = [str(data / "checkpoint"), "--calibrate", str(data / "photos" / "0.png"), "--limit", "1", "--json"]
    assert evaluate.main([*arguments, "--root", str(tmp_path), "--layout", "ade20k"]) == 1
    assert "150 classes, the checkpoint has 11" in capsys.readouterr().err
    layout = dataclasses.replace(evaluate.datasets.LAYOUTS["ade20k"], n_cls=11)
    monkeypatch.setitem(evaluate.datasets.LAYOUTS, "ade20k", layout)
    assert evaluate.main([*arguments, "--root", str(tmp_path), "--layout", "ade20k"]) == 0
    from_one = json.loads(capsys.readouterr().out)
    assert evaluate.main([*arguments, "--root", str(data)]) == 0
    assert from_one == json.loads(capsys.readouterr().out)
    assert evaluate.main([*arguments, "--root", str(data), "--limit", "0"]) == 2


def test_float_labels_of_one_window_are_the_models_own(data: Path) -> None:
    model = load_checkpoint(data / "checkpoint")
    info = convert.model_info(CONFIG, convert.recipe_for("intseg"), "m", evaluate.classes.numbered(11))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8))
    found = evaluate.float_labels(model, images, (32, 48), info, "bilinear")
    with torch.no_grad():
        expected = model(evaluate.normalise(images, CONFIG))[0].argmax(0).numpy()
    assert (found == expected).mean() > 0.999  # the tool averages in float64


def test_bits_by_budget_by_file_and_the_same_file_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ("--budget-mb", "0.012", "--budget-bitops", "0.03", "--score", "mix-qsam", "--beta", "0.01")
    assert run(data, tmp_path / "a.safetensors", *budget, "--save-bits", str(tmp_path / "bits.json")) == 0
    said = capsys.readouterr().out
    assert "MB of 0.012" in said
    assert "5 % more size: " in said
    assert run(data, tmp_path / "b.safetensors", "--bits", str(tmp_path / "bits.json"), "--name", "a") == 0
    models = [intseg.load(tmp_path / f"{name}.safetensors").graph for name in "ab"]
    found = json.loads((tmp_path / "bits.json").read_text())["layers"]
    for name, bits in found.items():
        first, second = (model.tensors[f"{name}.weight"] for model in models)
        assert np.array_equal(first, second)
        assert int(first.max()) < 2 ** (bits - 1)
        assert int(first.min()) >= -(2 ** (bits - 1))
    assert len(set(found.values())) > 1


def test_an_allocation_that_does_not_fit_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another model, with an unknown layer, with bits that no layer has; two bits for weights that are all zero."""
    empty = random_segmenter(CONFIG, 3)
    torch.nn.init.zeros_(empty.get_parameter("encoder.blocks.1.mlp.fc2.weight"))
    save_checkpoint(empty, tmp_path / "empty")
    assert (
        run(data, tmp_path / "a.safetensors", "--uniform", "w4a8", "--save-bits", str(tmp_path / "a.json"), "-q") == 0
    )
    right = json.loads((tmp_path / "a.json").read_text())
    for i, (layers, words) in enumerate(
        (
            ({"encoder.patch_embed": 4}, "it was made for another model"),
            (right["layers"] | {"encoder.blocks.0.mlp.fc3": 4}, "no layer 'encoder.blocks.0.mlp.fc3' in this model"),
            (right["layers"] | {"encoder.patch_embed": 9}, "encoder.patch_embed has 9 bits, expected a whole number"),
        )
    ):
        (tmp_path / f"{i}.json").write_text(json.dumps(right | {"layers": layers}))
        capsys.readouterr()
        assert run(data, tmp_path / "m.safetensors", "--bits", str(tmp_path / f"{i}.json")) in (1, 2)
        assert words in capsys.readouterr().err.splitlines()[-1]
    zero = [str(tmp_path / "empty"), "-o", str(tmp_path / "m.safetensors"), "--calibrate", str(data / "photos")]
    assert convert.main([*zero, "--uniform", "w2a8"]) == 2
    assert "encoder.blocks.1.mlp.fc2: its weights are all zero" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--budget-mb", "0.001"], 2, "below the least"),
        (["--budget-bitops", "1e-6"], 2, "GBitOps is below the least"),
        (["--budget-mb", "0"], 2, "not a number above 0"),
        (["--budget-mb", "nan"], 2, "not a number"),
        (["--bits", "nowhere.json"], 4, "nowhere.json"),
        (["--budget-mb", "1", "--bits", "nowhere.json"], 2, "leave all but one out"),
        (["--budget-mb", "1", "--bit-range", "5", "3"], 2, "the lower one first"),
    ],
)
def test_bad_bits_are_one_line(
    data: Path, tmp_path: Path, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path / "m.safetensors", *options, "--save-bits", str(tmp_path / "bits.json")) == code
    *before, error = capsys.readouterr().err.splitlines()
    assert words in error
    assert [line for line in before if not line.startswith(("assumed: ", "warning: ", "intseg: "))] == []
    assert not list(tmp_path.iterdir())
