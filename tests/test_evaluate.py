"""Confusion, metrics, data set layouts, and `intseg eval`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_model import tiny_graph

import intseg
from intseg import cli, evaluate, store
from intseg.errors import InputError, UsageError

Capture = pytest.CaptureFixture[str]
SIZES = ((24, 32), (30, 41), (8, 8))


def write_image(path: Path, seed: int) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = SIZES[seed % len(SIZES)]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_labels(path: Path, labels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def labels_for(seed: int, high: int) -> Any:
    return np.random.default_rng(100 + seed).integers(0, high, SIZES[seed % len(SIZES)])


def write_weights(path: Path, n_cls: int) -> Path:
    store.save(tiny_graph(n_cls=n_cls), path)
    return path


# -------------------------------------------------------------------------------------------------------- metrics


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=50))
def test_confusion_counts_every_pixel(pixels: list[tuple[int, int]]) -> None:
    labels = np.array([label for label, _ in pixels], np.uint8)
    guess = np.array([guess for _, guess in pixels], np.uint8)
    matrix = evaluate.confusion(labels, guess, 4, ignore=4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[pixels.count((i, j)) for j in range(4)] for i in range(4)]


def test_metrics_by_hand() -> None:
    found = evaluate.metrics(np.array([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]) + np.diag([0, 0, 0, 0]))
    assert found.iou == (50.0, pytest.approx(400 / 7), None, None)
    assert found.acc == (75.0, pytest.approx(200 / 3), None, None)
    assert found.miou == pytest.approx((50 + 400 / 7) / 2)
    assert found.aacc == 70.0


def test_a_class_only_predicted_counts_as_zero_in_miou_but_not_in_macc() -> None:
    found = evaluate.metrics(np.array([[1, 1], [0, 0]]))
    assert found.iou == (50.0, 0.0)
    assert found.miou == 25.0
    assert found.acc == (50.0, None)
    assert found.macc == 50.0


def test_nothing_counted_is_nan() -> None:
    found = evaluate.metrics(np.zeros((3, 3), np.int64))
    assert math.isnan(found.miou)
    assert math.isnan(found.aacc)


def test_confusion_refuses_wrong_values_and_shapes() -> None:
    zeros = np.zeros((2, 2), np.uint8)
    with pytest.raises(InputError, match="label 7 in 4 pixels"):
        evaluate.confusion(zeros + 7, zeros, 3)
    with pytest.raises(InputError, match="predicted class 3"):
        evaluate.confusion(zeros, zeros + 3, 3)
    with pytest.raises(InputError, match="2 x 2"):
        evaluate.confusion(zeros, zeros[:1], 3)


# -------------------------------------------------------------------------------------------------------- layouts


def camvid(root: Path) -> tuple[list[str], int, list[Any]]:
    labels = [labels_for(i, 12) for i in range(3)]
    for i, array in enumerate(labels):
        write_image(root / "val" / f"{i}.png", i)
        write_labels(root / "valannot" / f"{i}.png", array)
    return ["--root", str(root)], 11, [np.where(array == 11, -1, array) for array in labels]


def ade20k(root: Path) -> tuple[list[str], int, list[Any]]:
    top = root / "ADEChallengeData2016"
    labels = [labels_for(i, 151) for i in range(2)]
    for i, array in enumerate(labels):
        write_image(top / "images" / "validation" / f"{i}.jpg", i)
        write_labels(top / "annotations" / "validation" / f"{i}.png", array)
    return ["--root", str(root), "--layout", "ade20k"], 150, [array - 1 for array in labels]


def cityscapes(root: Path) -> tuple[list[str], int, list[Any]]:
    labels = [np.where((array := labels_for(i, 20)) == 19, 255, array) for i in range(2)]
    for i, array in enumerate(labels):
        write_image(root / "leftImg8bit" / "val" / f"town{i}" / f"x_{i}_leftImg8bit.png", i)
        write_labels(root / "gtFine" / "val" / f"town{i}" / f"x_{i}_gtFine_labelTrainIds.png", array)
        write_labels(root / "gtFine" / "val" / f"town{i}" / f"x_{i}_gtFine_labelIds.png", array)
    return ["--root", str(root), "--layout", "cityscapes"], 19, [np.where(a == 255, -1, a) for a in labels]


def plain_pairs(root: Path) -> tuple[list[str], int, list[Any]]:
    labels = [labels_for(i, 5) for i in range(2)]
    for i, array in enumerate(labels):
        write_image(root / "photos" / f"{i}.bmp", i)
        write_labels(root / "truth" / f"{i}.png", array)
    (root / "photos" / "._0.bmp").write_bytes(b"left by a file manager")
    (root / "photos" / "README.txt").write_text("not an image")
    return ["--images", str(root / "photos"), "--labels", str(root / "truth")], 5, labels


@pytest.mark.parametrize("layout", [camvid, ade20k, cityscapes, plain_pairs])
def test_eval_counts_what_an_independent_loop_counts(tmp_path: Path, capsys: Capture, layout: Any) -> None:
    arguments, n_cls, truths = layout(tmp_path / "data")
    weights = write_weights(tmp_path / "w.safetensors", n_cls)
    images = sorted(file for file in tmp_path.rglob("*") if file.suffix in (".png", ".jpg", ".bmp"))
    images = [file for file in images if not {"valannot", "annotations", "gtFine", "truth"} & set(file.parts)]
    images = [file for file in images if not file.name.startswith(".")]
    counts = np.zeros((n_cls, n_cls), int)
    for file, truth in zip(images, truths, strict=True):
        guess = intseg.run(file, weights, "numpy").labels
        for label, found in zip(truth.ravel(), guess.ravel(), strict=True):
            if label >= 0:
                counts[label, found] += 1
    assert cli.main(["eval", *arguments, "-w", str(weights), "--backend", "numpy", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["confusion"] == counts.tolist()
    assert printed["images"] == len(truths)
    assert printed["mIoU"] == pytest.approx(evaluate.metrics(counts).miou)
    assert len(printed["IoU"]) == len(printed["classes"]) == n_cls


def test_jobs_change_nothing(tmp_path: Path) -> None:
    camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", 11)
    pairs = evaluate.find_pairs(tmp_path / "val", tmp_path / "valannot")
    one, two = (evaluate.evaluate(pairs, weights, backend="numpy", jobs=jobs, ignore=11) for jobs in (1, 2))
    assert np.array_equal(one.confusion, two.confusion)
    assert one.images == two.images == 3


def test_an_error_in_a_worker_is_the_same_error(tmp_path: Path) -> None:
    camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", 11)
    pairs = evaluate.find_pairs(tmp_path / "val", tmp_path / "valannot")
    with pytest.raises(InputError, match="label 11"):
        evaluate.evaluate(pairs, weights, backend="numpy", jobs=2)


def test_eval_table(tmp_path: Path, capsys: Capture) -> None:
    arguments, n_cls, _ = camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", n_cls)
    assert cli.main(["eval", *arguments, "-w", str(weights), "--backend", "numpy", "--limit", "1"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 1 + n_cls + 2
    assert len({len(line) for line in lines[: 1 + n_cls]}) == 1
    assert lines[-2].startswith("mIoU ")
    assert lines[-1].startswith("1 images")
    assert captured.err == ""


# ----------------------------------------------------------------------------------------------------- bad input


def spoil_nothing_left(root: Path) -> None:
    for file in (root / "val").iterdir():
        file.unlink()


BAD = {
    "image alone": (lambda root: (root / "valannot" / "1.png").unlink(), 4, "val/1.png"),
    "labels alone": (lambda root: (root / "val" / "1.png").unlink(), 4, "valannot/1.png"),
    "empty": (spoil_nothing_left, 4, "no image in it"),
    "no folder": (lambda root: (root / "val").rename(root / "elsewhere"), 4, "no such folder"),
    "size": (lambda root: write_labels(root / "valannot" / "1.png", np.zeros((3, 4))), 4, "labels are 4 x 3"),
    "value": (lambda root: write_labels(root / "valannot" / "1.png", labels_for(1, 1) + 77), 4, "label 77"),
    "colour": (lambda root: write_image(root / "valannot" / "1.png", 1), 4, "mode RGB"),
    "damaged": (lambda root: (root / "val" / "1.png").write_bytes(b"oops"), 4, "not an image"),
    "twice": (lambda root: write_image(root / "val" / "1.jpg", 1), 4, "same name"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_sets(tmp_path: Path, capsys: Capture, name: str) -> None:
    spoil, code, words = BAD[name]
    arguments, n_cls, _ = camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", n_cls)
    spoil(tmp_path)
    assert cli.main(["eval", *arguments, "-w", str(weights), "--backend", "numpy"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err
    assert str(tmp_path) in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--root"),
        (["--root", "{}", "--images", "{}"], "--labels"),
        (["--layout", "pairs", "--root", "{}"], "--images"),
        (["--layout", "camvid", "--root", "{}", "--images", "{}"], "neither"),
        (["--root", "{}", "--jobs", "0"], "from 1 up"),
        (["--root", "{}"], "needs 11"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: Capture, arguments: list[str], words: str) -> None:
    camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", 5)
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert cli.main(["eval", *arguments, "-w", str(weights), "--backend", "numpy"]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err


def test_jobs_from_python_are_checked() -> None:
    with pytest.raises(UsageError, match="jobs"):
        evaluate.evaluate([], jobs=0)
