"""Confusion, metrics, data set layouts, and `intseg eval`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_model import tiny_graph

import intseg
from intseg import store
from intseg.batch import compare, datasets, evaluate, executors, metrics
from intseg.cli import main as cli
from intseg.errors import InputError, UsageError
from intseg.images.labels import Labelling

Capture = pytest.CaptureFixture[str]
VOID = Labelling((11,))
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
    matrix = metrics.confusion(labels, guess, 4, ignore=4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[pixels.count((i, j)) for j in range(4)] for i in range(4)]


def test_confusion_of_many_chunks_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, guess = np.random.default_rng(0).integers(0, 4, (2, 11, 7))
    expected = metrics.confusion(labels, guess, 4, ignore=3)
    monkeypatch.setattr(metrics, "_CHUNK", 10)
    assert np.array_equal(metrics.confusion(labels, guess, 4, ignore=3), expected)
    with pytest.raises(InputError, match=f"label 3 in {(labels == 3).sum()} pixels"):
        metrics.confusion(labels, guess, 3)


def test_metrics_by_hand() -> None:
    found = metrics.metrics(np.array([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]) + np.diag([0, 0, 0, 0]))
    assert found.iou == (50.0, pytest.approx(400 / 7), None, None)
    assert found.acc == (75.0, pytest.approx(200 / 3), None, None)
    assert found.miou == pytest.approx((50 + 400 / 7) / 2)
    assert found.aacc == 70.0


def test_a_class_only_predicted_counts_as_zero_in_miou_but_not_in_macc() -> None:
    found = metrics.metrics(np.array([[1, 1], [0, 0]]))
    assert found.iou == (50.0, 0.0)
    assert found.miou == 25.0
    assert found.acc == (50.0, None)
    assert found.macc == 50.0


def test_nothing_counted_is_nan() -> None:
    found = metrics.metrics(np.zeros((3, 3), np.int64))
    assert math.isnan(found.miou)
    assert math.isnan(found.aacc)


def test_confusion_refuses_wrong_values_and_shapes() -> None:
    zeros = np.zeros((2, 2), np.uint8)
    with pytest.raises(InputError, match="label 7 in 4 pixels"):
        metrics.confusion(zeros + 7, zeros, 3)
    with pytest.raises(InputError, match="predicted class 3"):
        metrics.confusion(zeros, zeros + 3, 3)
    with pytest.raises(InputError, match="2 x 2"):
        metrics.confusion(zeros, zeros[:1], 3)


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


def idd_lite(root: Path) -> tuple[list[str], int, list[Any]]:
    labels = [np.where((array := labels_for(i, 8)) == 7, 255, array) for i in range(2)]
    for i, array in enumerate(labels):  # the same number in every drive
        write_image(root / "leftImg8bit" / "val" / f"drive{i}" / "7_image.jpg", i)
        write_labels(root / "gtFine" / "val" / f"drive{i}" / "7_label.png", array)
        write_labels(root / "gtFine" / "val" / f"drive{i}" / "7_inst_labelIds.png", array)
    return ["--root", str(root), "--layout", "idd_lite"], 7, [np.where(a == 255, -1, a) for a in labels]


def davis(root: Path) -> tuple[list[str], int, list[Any]]:
    """Frames of equal names in every clip; a clip of another split has no labels."""
    labels = [np.where((array := labels_for(i, 4)) == 3, 255, array) for i in range(2)]
    for i, array in enumerate(labels):
        write_image(root / "JPEGImages" / "480p" / f"clip{i}" / "00000.jpg", i)
        write_labels(root / "Annotations" / "480p" / f"clip{i}" / "00000.png", array)
    write_image(root / "JPEGImages" / "480p" / "hidden" / "00000.jpg", 7)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("clip0\r\nclip1\r\n\r\n")
    return ["--root", str(root), "--layout", "davis"], 3, [np.where(a == 255, -1, a) for a in labels]


def vspw(root: Path) -> tuple[list[str], int, list[Any]]:
    labels = [labels_for(i, 125) for i in range(2)]
    for i, array in enumerate(labels):
        write_image(root / "data" / f"clip{i}" / "origin" / "00000001.jpg", i)
        write_labels(root / "data" / f"clip{i}" / "mask" / "00000001.png", array)
    write_image(root / "data" / "hidden" / "origin" / "00000001.jpg", 7)
    (root / "val.txt").write_text("clip0\nclip1\n")
    return ["--root", str(root), "--layout", "vspw"], 124, [array - 1 for array in labels]


def plain_pairs(root: Path) -> tuple[list[str], int, list[Any]]:
    labels = [labels_for(i, 5) for i in range(2)]
    for i, array in enumerate(labels):
        write_image(root / "photos" / f"{i}.bmp", i)
        write_labels(root / "truth" / f"{i}.png", array)
    (root / "photos" / "._0.bmp").write_bytes(b"left by a file manager")
    (root / "photos" / "README.txt").write_text("not an image")
    return ["--images", str(root / "photos"), "--labels", str(root / "truth")], 5, labels


LABELS = {"valannot", "annotations", "gtFine", "truth", "Annotations", "mask"}


@pytest.mark.parametrize("layout", [camvid, ade20k, cityscapes, idd_lite, davis, vspw, plain_pairs])
def test_eval_counts_what_an_independent_loop_counts(tmp_path: Path, capsys: Capture, layout: Any) -> None:
    arguments, n_cls, truths = layout(tmp_path / "data")
    weights = write_weights(tmp_path / "w.safetensors", n_cls)
    images = sorted(file for file in tmp_path.rglob("*") if file.suffix in (".png", ".jpg", ".bmp"))
    images = [file for file in images if not {*LABELS, "hidden"} & set(file.parts)]
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
    assert printed["mIoU"] == pytest.approx(metrics.metrics(counts).miou)
    assert len(printed["IoU"]) == len(printed["classes"]) == n_cls


def test_jobs_change_nothing(tmp_path: Path) -> None:
    camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", 11)
    pairs = datasets.find_pairs(tmp_path / "val", tmp_path / "valannot")
    one, two = (evaluate.evaluate(pairs, weights, backend="numpy", jobs=jobs, labelling=VOID) for jobs in (1, 2))
    assert np.array_equal(one.confusion, two.confusion)
    assert one.images == two.images == 3


def test_an_error_in_a_worker_is_the_same_error(tmp_path: Path) -> None:
    camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", 11)
    pairs = datasets.find_pairs(tmp_path / "val", tmp_path / "valannot")
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
    assert lines[-1].startswith("1 image,")
    assert captured.err == ""


# -------------------------------------------------------------------------------------------------------- resuming


def run_eval(capsys: Capture, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, printed JSON or None, standard error."""
    code = cli.main(["eval", *arguments, "--backend", "numpy", "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err


@pytest.fixture
def set_up(tmp_path: Path) -> tuple[list[str], Path]:
    """Arguments of `intseg eval` on a small CamVid with a model, a journal's path among them, and that path."""
    arguments, n_cls, _ = camvid(tmp_path)
    journal = tmp_path / "journal.jsonl"
    weights = write_weights(tmp_path / "w.safetensors", n_cls)
    return [*arguments, "-w", str(weights), "--resume", str(journal)], journal


def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[str]:
    """Names of the images that are run from now on; the one with number `fail_at` dies."""
    names: list[str] = []
    count = evaluate.count

    def watched(item: evaluate.Item, **others: Any) -> Any:
        if len(names) == fail_at:
            raise KeyboardInterrupt
        names.append(item.pair.image.name)
        return count(item, **others)

    monkeypatch.setattr(evaluate, "count", watched)
    return names


def test_an_interrupted_evaluation_continues(
    set_up: tuple[list[str], Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, journal = set_up
    _, whole, _ = run_eval(capsys, *arguments[:-2])
    with monkeypatch.context() as patch:
        assert counted(patch, fail_at=2) == []
        assert cli.main(["eval", *arguments, "--backend", "numpy"]) == 130
        capsys.readouterr()
    assert journal.read_text().count("\n") == 3
    names = counted(monkeypatch)
    code, found, _ = run_eval(capsys, *arguments)
    assert (code, found, names) == (0, whole, ["2.png"])
    names.clear()
    assert run_eval(capsys, *arguments)[1] == whole
    assert names == []


@pytest.mark.parametrize("left", [0.0, 0.3, 0.5, 0.99])
def test_a_last_line_that_was_cut_off_is_dropped(
    set_up: tuple[list[str], Path], capsys: Capture, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, journal = set_up
    _, whole, _ = run_eval(capsys, *arguments)
    lines = journal.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        journal.write_bytes(b"".join(lines[:kept]) + lines[kept][: int(left * len(lines[kept]))])
        with monkeypatch.context() as patch:
            names = counted(patch)
            assert run_eval(capsys, *arguments)[1] == whole
        assert len(names) == min(3, 4 - kept)
        assert journal.read_bytes().splitlines(keepends=True) == lines


DAMAGES = [
    b"[]",
    b'{"counts": 3}',
    b'{"counts": [[-1, 2]]}',
    b'{"counts": [[0, 1.5]]}',
    b'{"counts": [[121, 1]]}',
    b"{",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_line_without_sense_is_measured_again(
    set_up: tuple[list[str], Path], capsys: Capture, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, journal = set_up
    _, whole, _ = run_eval(capsys, *arguments)
    lines = journal.read_bytes().splitlines()
    if b"counts" in damage:
        damage = json.dumps(json.loads(lines[2]) | json.loads(damage)).encode()
    journal.write_bytes(b"\n".join([*lines[:2], damage, lines[3], b""]))
    names = counted(monkeypatch)
    assert run_eval(capsys, *arguments)[1] == whole
    assert names == ["1.png"]


@pytest.mark.parametrize("folder", ["val", "valannot"])
def test_a_file_that_changed_is_counted_again(set_up: tuple[list[str], Path], capsys: Capture, folder: str) -> None:
    arguments, journal = set_up
    _, before, _ = run_eval(capsys, *arguments)
    other = journal.parent / folder / "1.png"
    write_image(other, 4) if folder == "val" else write_labels(other, (labels_for(1, 12) + 1) % 12)
    _, fresh, _ = run_eval(capsys, *arguments[:-2])
    _, found, _ = run_eval(capsys, *arguments)
    assert found == fresh
    assert found["confusion"] != before["confusion"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--limit", "2"], "data set"),
        (["--ignore", "3"], "meaning of labels"),
        (["-w", "{}/other.safetensors"], "model"),
    ],
)
def test_a_journal_of_another_evaluation_is_refused(
    set_up: tuple[list[str], Path], capsys: Capture, change: list[str], words: str
) -> None:
    arguments, journal = set_up
    assert run_eval(capsys, *arguments)[0] == 0
    kept = journal.read_bytes()
    store.save(tiny_graph(seed=1, n_cls=11), journal.parent / "other.safetensors")
    code, printed, error = run_eval(capsys, *arguments, *(word.format(journal.parent) for word in change))
    assert (code, printed) == (2, None)
    assert f"another {words}" in error
    assert len(error.splitlines()) == 1
    assert journal.read_bytes() == kept


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b'{"intseg batch": 1}\n', b"\x89PNG\r\n\n"])
def test_a_file_that_is_no_journal_is_left_alone(
    set_up: tuple[list[str], Path], capsys: Capture, content: bytes
) -> None:
    arguments, journal = set_up
    journal.write_bytes(content)
    code, _, error = run_eval(capsys, *arguments)
    assert code == 2
    assert "is not a journal" in error
    assert journal.read_bytes() == content


def test_a_journal_that_cannot_be_written(set_up: tuple[list[str], Path], capsys: Capture) -> None:
    arguments, journal = set_up
    journal.mkdir()
    code, _, error = run_eval(capsys, *arguments)
    assert code == 4
    assert "is a folder" in error


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_evaluation_continues(tmp_path: Path, capsys: Capture) -> None:
    """SIGKILL while two processes work: they end too, and going on gives what an unbroken run gives."""
    for i in range(40):
        write_image(tmp_path / "val" / f"{i}.png", i)
        write_labels(tmp_path / "valannot" / f"{i}.png", labels_for(i, 12))
    weights, journal = write_weights(tmp_path / "w.safetensors", 11), tmp_path / "journal.jsonl"
    arguments = ["--root", str(tmp_path), "-w", str(weights)]
    command = [sys.executable, str(Path(__file__).with_name("slow.py")), "eval", *arguments, "--resume", str(journal)]
    with subprocess.Popen([*command, "--backend", "numpy", "--jobs", "2"], stdout=subprocess.DEVNULL) as process:
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 2) and process.poll() is None:
            time.sleep(0.02)
        workers = _children(process.pid)
        process.kill()
    assert 2 < journal.read_bytes().count(b"\n") < 41
    deadline = time.monotonic() + 600
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    _, whole, _ = run_eval(capsys, *arguments)
    assert run_eval(capsys, *arguments, "--resume", str(journal))[1] == whole


def _children(pid: int) -> list[str]:
    """Processes started by a process, where the system tells."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return []


def _runs(pid: str) -> bool:
    """Whether a process is there and has not ended; one that nobody waits for stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class BrokenPool:
    """A pool whose processes end at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None: ...

    def __enter__(self) -> BrokenPool:
        return self

    def __exit__(self, *error: object) -> None: ...

    def submit(self, *arguments: Any) -> Any:
        raise BrokenProcessPool

    def shutdown(self, cancel_futures: bool) -> None: ...


def test_a_process_that_ends_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", 11)
    pairs = datasets.find_pairs(tmp_path / "val", tmp_path / "valannot")
    monkeypatch.setattr(executors, "ProcessPoolExecutor", BrokenPool)
    with pytest.raises(InputError, match="fewer --jobs"):
        evaluate.evaluate(pairs, weights, backend="numpy", jobs=2, labelling=VOID)


# ------------------------------------------------------------------------------------------------------ comparison


def test_compare_with_an_earlier_evaluation(tmp_path: Path, capsys: Capture) -> None:
    arguments, n_cls, _ = camvid(tmp_path)
    old, new = write_weights(tmp_path / "old.safetensors", n_cls), tmp_path / "new.safetensors"
    store.save(tiny_graph(seed=3, n_cls=n_cls), new)
    _, before, _ = run_eval(capsys, *arguments, "-w", str(old))
    file = tmp_path / "before.json"
    file.write_text(json.dumps(before))
    _, plain, _ = run_eval(capsys, *arguments, "-w", str(new))
    _, found, _ = run_eval(capsys, *arguments, "-w", str(new), "--compare-with", str(file))
    compared = found.pop("compared")
    assert found == plain
    assert found["confusion"] != before["confusion"]
    assert compared.pop("with") == "tiny"
    for key, value in compared.items():
        for delta, a, b in zip(
            *(x if isinstance(x, list) else [x] for x in (value, found[key], before[key])), strict=True
        ):
            assert delta == (None if a is None or b is None else a - b)
    assert any(delta for delta in compared["IoU"])
    capsys.readouterr()
    command = ["eval", *arguments, "-w", str(new), "--backend", "numpy", "--compare-with", str(file)]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", "IoU", "%", "change", "acc", "%", "change", "pixels"]
    for line, delta in zip(lines[1:], compared["IoU"], strict=False):
        assert ("-" if delta is None else f"{delta:+.2f}") in line.split()
    assert f"({compared['mIoU']:+.2f})" in lines[n_cls + 1]


def test_a_class_that_occurs_in_one_evaluation_only_has_no_change() -> None:
    first, second = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 0]]), np.array([[4, 0, 0], [0, 3, 1], [0, 0, 0]])
    model = evaluate.Measured("x", "", intseg.load().info.classes)
    earlier = compare.Earlier(Path("x"), "x", first)
    found = compare.compare(evaluate.Evaluation(second, 1, model), earlier)
    assert found.iou == (0.0, -25.0, None)
    assert found.acc == (0.0, -25.0, None)


SPOILED = {
    "missing": (None, 4, "cannot read"),
    "no json": ("{", 4, "is not what intseg eval --json prints"),
    "no object": ("[1, 2]", 4, "is not what intseg eval --json prints"),
    "too small": (lambda found: found | {"confusion": [[1, 2], [3, 4]]}, 4, "is not what intseg eval --json prints"),
    "negative": (lambda found: found | {"confusion": [[-1] * 11] * 11}, 4, "expected 0 to 2^62"),
    "classes": (lambda found: found | {"classes": ["other"] * 11}, 2, "expected equal ones"),
    "pixels": (lambda found: found | {"confusion": [[1] * 11] * 11}, 2, "expected the same images and labels"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_comparisons_that_make_no_sense(tmp_path: Path, capsys: Capture, name: str) -> None:
    content, expected, words = SPOILED[name]
    arguments, n_cls, _ = camvid(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", n_cls)
    _, found, _ = run_eval(capsys, *arguments, "-w", str(weights))
    file = tmp_path / "before.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content(found)))
    code, printed, error = run_eval(capsys, *arguments, "-w", str(weights), "--compare-with", str(file))
    assert (code, printed) == (expected, None)
    assert words in error
    assert str(file) in error
    assert len(error.splitlines()) == 1


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
        (["--layout", "pairs"], "--images"),
        (["--root", "{}", "--ignore", "65536"], "0 to 65535"),
        (["--root", "{}", "--label-map", "clas 0=0"], "did you mean class 0"),
        (["--layout", "camvid", "--root", "{}", "--images", "{}"], "neither"),
        (["--root", "{}", "--jobs", "0"], "from 1 to"),
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


@pytest.mark.parametrize("layout", [camvid, ade20k, cityscapes, idd_lite, davis, vspw, plain_pairs])
@pytest.mark.parametrize("spoiled", ["label", "size", "missing"])
def test_every_layout_names_what_is_wrong(tmp_path: Path, capsys: Capture, layout: Any, spoiled: str) -> None:
    arguments, n_cls, _ = layout(tmp_path)
    weights = write_weights(tmp_path / "w.safetensors", n_cls)
    folders = LABELS
    files = [file for file in tmp_path.rglob("*.png") if folders & set(file.parts) and "labelIds" not in file.name]
    file = sorted(files)[-1]
    found = np.asarray(Image.open(file))
    if spoiled == "label":
        write_labels(file, np.full_like(found, 177))
    elif spoiled == "size":
        write_labels(file, found[:-1])
    else:
        file.unlink()
    code, printed, error = run_eval(capsys, *arguments, "-w", str(weights))
    assert (code, printed) == (4, None)
    assert len(error.splitlines()) == 1
    words = {"label": ("label 17", file.name), "size": ("expected equal sizes", file.name), "missing": ("no label",)}
    assert all(word in error for word in words[spoiled])


def test_jobs_from_python_are_checked() -> None:
    with pytest.raises(UsageError, match="jobs"):
        evaluate.evaluate([], jobs=0)
