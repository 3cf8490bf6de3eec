"""Classification (SPEC.md, 7.4): the window in the middle, logits, ties, and every command on a classifier."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import naive
import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_classifier, tiny_graph

import intseg
from intseg import api, store
from intseg.batch import classified
from intseg.batch.shards import parse
from intseg.cli import main as cli
from intseg.conformance import flat, vectors
from intseg.errors import InputError, ModelError, UsageError
from intseg.graph import Graph, validate
from intseg.windows import at_scale, cut_windows, tile, working_size

sys.path.insert(0, str(Path(__file__).parent / "trust"))
import commands
import compare_reader

Capture = pytest.CaptureFixture[str]


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def model(folder: Path, **options: object) -> api.Model:
    store.save(tiny_classifier(**options), folder / "w.safetensors")  # type: ignore[arg-type]
    return api.load(folder / "w.safetensors")


def tied() -> Graph:
    """Every logit is 0."""
    graph = tiny_classifier()
    zero = {f"head0.{role}": np.zeros_like(graph.tensors[f"head0.{role}"]) for role in ("weight", "bias")}
    return replace(graph, tensors={**graph.tensors, **zero})


@pytest.mark.parametrize("size", [(24, 32), (25, 33), (27, 35), (30, 40), (3, 5), (24, 31), (1, 100), (100, 1)])
def test_the_window_is_in_the_middle(size: tuple[int, int]) -> None:
    info = tiny_classifier().info
    rgb = image(*size)
    start, wanted = naive.center_crop(rgb.tolist(), info.window, info.pad)
    ((corner, window),) = cut_windows(rgb, info)
    assert (list(corner), window.tolist()) == (start, wanted)
    assert len(tile(info, *size).corners()) == 1


@pytest.mark.parametrize("size", [(30, 40), (227, 227), (375, 500), (500, 333), (20, 9), (1, 3000), (3000, 1)])
def test_the_working_size_is_that_of_published_evaluations(size: tuple[int, int]) -> None:
    info = at_scale(tiny_classifier().info, 41)
    found = working_size(info, *size)
    assert list(found) == naive.working_size(*size, 41, 16384, classify=True)
    if max(size) <= 400 * min(size):
        short, long = sorted(size)
        assert sorted(found) == [41, 41 * long // short]
    assert max(found) <= 16384


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_result_has_label_top_and_logits(tmp_path: Path, heads: int, backend: str) -> None:
    found = intseg.run(image(40, 50), model(tmp_path, heads=heads, working_size=(36, 500)), backend, 1)
    trace = dict(next(iter(intseg.trace(image(40, 50), found.model)))[1])
    rows = [trace[f"head{i}"][0].astype(np.int64) for i in range(heads)]
    assert found.logits.dtype == np.int32
    assert np.array_equal(found.logits, sum(rows))
    order = sorted(range(7), key=lambda i: (-int(found.logits[i]), i))
    assert [best.index for best in found.top(7)] == order
    assert len(found.top()) == 5
    assert found.label == found.classes[order[0]] == found.top()[0].name
    assert found.notes == ("classified by 32 x 24 pixels in the middle of 45 x 36",)
    assert found.to_hf()[0]["label"] == found.label
    assert "tiny classifier" in repr(found)


def test_ties_go_to_the_lower_class(tmp_path: Path) -> None:
    store.save(tied(), tmp_path / "w.safetensors")
    found = intseg.run(image(24, 32), tmp_path / "w.safetensors", "numpy")
    assert [best.index for best in found.top(4)] == [0, 1, 2, 3]
    assert found.labels.tolist() == [[0]]


def test_what_does_not_apply_is_refused_with_a_word(tmp_path: Path) -> None:
    found = intseg.run(image(24, 32), model(tmp_path), "numpy")
    for call in (found.shares, found.overlay, found.to_pil, lambda: found.save("a.png"), lambda: found.top(0)):
        with pytest.raises(UsageError, match=r"for classification: it gives no|expected at least 1"):
            call()
    store.save(tiny_graph(), tmp_path / "s.safetensors")
    pixels = intseg.run(image(24, 32), tmp_path / "s.safetensors", "numpy")
    for call in (pixels.top, lambda: pixels.label, lambda: pixels.logits):
        with pytest.raises(UsageError, match="for segmentation: it gives no"):
            call()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "detection"}, "task is 'detection'"),
        ({"stride": (16, 24)}, "a classifier has stride"),
        ({"upsample": "bilinear"}, "it labels no pixels"),
        ({"task": "segmentation"}, "int32 .7., expected int8 or int16 .3, 4, 7. for segmentation"),
    ],
)
def test_information_that_a_classifier_cannot_have(changes: dict[str, object], words: str) -> None:
    graph = tiny_classifier()
    with pytest.raises(ModelError, match=words):
        validate(replace(graph, info=replace(graph.info, **changes)))  # type: ignore[arg-type]


def test_absence_of_a_task_is_segmentation() -> None:
    assert b'"task' not in store.dumps(tiny_graph()).replace(b"\\", b"")
    assert store.loads(store.dumps(tiny_classifier())).info.task == "classification"


@pytest.mark.skipif(compare_reader.compiler() is None, reason="no C compiler is installed")
@pytest.mark.parametrize("heads", [1, 2])
def test_the_c_reader_gives_the_same(tmp_path: Path, heads: int) -> None:
    program = compare_reader.build(tmp_path)
    used = model(tmp_path, heads=heads, n_cls=300, working_size=(36, 90))
    flat.write(used, tmp_path / "w.flat")
    for seed, size in enumerate(((40, 51), (3, 5), (36, 47), (200, 20))):
        rgb = image(*size, seed)
        (tmp_path / "a.ppm").write_bytes(b"P6\n%d %d\n255\n" % size[::-1] + rgb.tobytes())
        done = subprocess.run([program, "w.flat", "a.ppm"], cwd=tmp_path, capture_output=True, text=True, check=True)
        found = intseg.run(rgb, used, "numpy")
        best = [line.split(" ", 3)[1:] for line in done.stdout.splitlines() if line.startswith("class ")]
        assert best == [[str(b.index), str(b.logit), b.name] for b in found.top()]
        said = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if not line.startswith("class "))
        import hashlib

        assert said["merged"] == hashlib.sha256(found.logits.astype("<i4").tobytes()).hexdigest()
        assert said["labels"] == hashlib.sha256(found.labels.astype("<u2").tobytes()).hexdigest()


def test_a_pack_of_a_classifier_reaches_the_crop(tmp_path: Path) -> None:
    found = vectors.run_image(model(tmp_path, working_size=(30, 90)), image(40, 50), "numpy", with_coverage=True)
    assert {"resize", "center_crop"} <= {name for name, _ in found.reached}
    assert found.tensors["merged"].shape == (1, 1, 7)
    assert found.tensors["labels"].shape == (1, 1)


# ------------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model(tmp_path, working_size=(36, 500))
    for i in range(3):
        Image.fromarray(image(40, 50, i)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_infer_prints_and_writes_classes(folder: Path, capsys: Capture) -> None:
    assert cli.main(["infer", "0.png", "-w", "w.safetensors", "-o", "a.json"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["infer", "0.png", "-w", "w.safetensors", "--json"]) == 0
    printed, written = json.loads(capsys.readouterr().out), json.loads((folder / "a.json").read_text())
    found = intseg.run("0.png", "w.safetensors")
    assert printed["logits"] == written["logits"] == found.logits.tolist()
    assert printed["label"] == found.label
    assert found.label in text
    assert str(found.top()[0].logit) in text
    assert not list(folder.glob("*_labels.png"))
    (folder / "there").mkdir()
    assert cli.main(["infer", "0.png", "-w", "w.safetensors", "-o", "there"]) == 0
    assert json.loads((folder / "there" / "0_classes.json").read_text())["label"] == found.label


@pytest.mark.parametrize("option", ["--overlay x.png", "--palette voc", "--label-offset 1", "--no-overlay"])
def test_infer_refuses_what_is_about_pixels(folder: Path, capsys: Capture, option: str) -> None:
    assert cli.main(f"infer 0.png -w w.safetensors {option}".split()) == 2
    assert f"{option.split()[0]} is about pixels" in capsys.readouterr().err


def test_a_batch_is_resumed(folder: Path, capsys: Capture) -> None:
    line = "infer 0.png 1.png 2.png -w w.safetensors -o out --jsonl out/all.jsonl -q --resume"
    assert cli.main(line.split()) == 0
    whole = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    records = [json.loads(entry) for entry in whole["all.jsonl"].splitlines()]
    assert records[1]["top"][0]["name"] == intseg.run("1.png", "w.safetensors").label
    assert set(whole) >= {"0_classes.json", "1_classes.json", "2_classes.json"}
    (folder / "out" / "1_classes.json").unlink()
    assert cli.main(line.split()) == 0
    again = [json.loads(entry) for entry in (folder / "out" / "all.jsonl").read_text().splitlines()]
    assert [entry | {"ms": 0} for entry in again] == [entry | {"ms": 0} for entry in records]
    assert (folder / "out" / "1_classes.json").read_bytes() == whole["1_classes.json"]


def labelled(folder: Path) -> list[int]:
    """A list in which image 0 has its class, image 1 its second, image 2 its last."""
    tops = [intseg.run(f"{i}.png", "w.safetensors").top(7) for i in range(3)]
    truth = [tops[0][0].index, tops[1][1].index, tops[2][6].index]
    (folder / "list.txt").write_text("".join(f"{i}.png {label}\n" for i, label in enumerate(truth)))
    return truth


def test_eval_on_a_list(folder: Path, capsys: Capture) -> None:
    labelled(folder)
    line = "eval --layout imagenet --root . --labels list.txt -w w.safetensors"
    assert cli.main([*line.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["right"], found["right in 5"]) == (3, 1, 2)
    assert cli.main(line.split()) == 0
    assert "top-1 33.33 %   top-5 66.67 %" in capsys.readouterr().out
    for k in (1, 2):
        assert cli.main([*line.split(), "--resume", f"{k}.journal", "--shard", f"{k}/2"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", "--layout", "imagenet", "--merge", "1.journal", "2.journal", "--json"]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert merged == {key: value for key, value in found.items() if key != "left out"}


def test_an_evaluation_beside_an_earlier_one(folder: Path, capsys: Capture) -> None:
    labelled(folder)
    store.save(tiny_classifier(seed=9, working_size=(36, 500)), folder / "other.safetensors")
    line = "eval --layout imagenet --root . --labels list.txt -w"
    assert cli.main([*line.split(), "other.safetensors", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    (folder / "before.json").write_text(json.dumps(before))
    ours, theirs = ([intseg.run(f"{i}.png", f"{w}.safetensors") for i in range(3)] for w in ("w", "other"))
    same = sum(a.label == b.label for a, b in zip(ours, theirs, strict=True))
    assert cli.main([*line.split(), "w.safetensors", "--compare-with", "before.json", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compared"] == {
        "with": "tiny classifier",
        "top1": found["top1"] - before["top1"],
        "top5": found["top5"] - before["top5"],
        "same first": same,
        "equal logits": 0,
    }
    assert cli.main([*line.split(), "other.safetensors", "--compare-with", "before.json"]) == 0
    assert "the same class first in 3, all logits equal in 3 of 3 images" in capsys.readouterr().out
    for change, words in (
        ({"each": dict(list(before["each"].items())[1:])}, "has no '0.png', this evaluation has it"),
        ({"each": {name: [6 - one[0], *one[1:]] for name, one in before["each"].items()}}, "expected the same; run"),
        ({"each": [1]}, "is not what intseg eval --json prints"),
    ):
        (folder / "bad.json").write_text(json.dumps(before | change))
        assert cli.main([*line.split(), "w.safetensors", "--compare-with", "bad.json"]) in (2, 4)
        assert words in capsys.readouterr().err


def test_a_changed_image_is_counted_again(folder: Path) -> None:
    truth = labelled(folder)
    used, book = api.load("w.safetensors"), folder / "book"
    examples = classified.open_imagenet(folder, "val", used.info.classes, folder / "list.txt")[0]
    classified.evaluate(examples, used, journal=book, shard=parse("1/1"))
    Image.fromarray(image(40, 50, 9)).save(folder / "0.png")
    seen: list[int] = []
    classified.evaluate(examples, used, journal=book, shard=parse("1/1"), each=lambda e, f: seen.append(f.rank))
    order = [best.index for best in intseg.run("0.png", used).top(7)]
    assert seen == [1 + order.index(truth[0]), 2, 7]


def test_eval_on_folders(folder: Path, capsys: Capture) -> None:
    for i in range(3):
        place = folder / "data" / "val" / intseg.run(f"{i}.png", "w.safetensors").label
        place.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").rename(place / f"{i}.png")
    assert cli.main(["eval", "--layout", "imagenet", "--root", "data", "-w", "w.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == 100.0
    (folder / "data" / "val" / "stranger").mkdir()
    (next((folder / "data" / "val").glob("class*")) / "0.png").rename(folder / "data" / "val" / "stranger" / "x.png")
    with pytest.raises(InputError, match="stranger: is no class of the model"):
        classified.open_imagenet(folder / "data", "val", api.load("w.safetensors").info.classes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eval --root . -w w.safetensors", "use --layout imagenet"),
        ("eval --layout imagenet --root . -w s.safetensors --labels list.txt", "needs a classifier"),
        ("eval --layout imagenet --root . -w w.safetensors --ignore 3", "has no label images"),
        ("eval --layout imagenet --root . -w w.safetensors --labels bad.txt", "is no image and class"),
        ("eval --layout imagenet --root . -w w.safetensors --labels twice.txt", "has '0.png' twice"),
        ("quant-report w.safetensors 0.png --labels 0.png", "it has no pixels to label"),
        ("infer 0.png -w w.safetensors -o a.png", "this file is written as .json"),
    ],
)
def test_what_cannot_be_meant(folder: Path, capsys: Capture, line: str, words: str) -> None:
    labelled(folder)
    (folder / "bad.txt").write_text("0.png 7\n")
    (folder / "twice.txt").write_text("0.png 1\n0.png 2\n")
    store.save(tiny_graph(), folder / "s.safetensors")
    for name in ("val", "valannot"):
        (folder / name).mkdir()
        Image.fromarray(image(24, 32)[..., 0] % 2).save(folder / name / "a.png")
    assert cli.main(line.split()) in (2, 3, 4)
    assert words in capsys.readouterr().err


def test_the_workbench(folder: Path, capsys: Capture) -> None:
    shutil.copy("0.png", "a.png")
    pixels = (
        "eval",
        "infer",
        "truth-table",
        "export",
        "verify --onnx",
    )  # tested above, or no table of this op, or ONNX
    for line in commands.LINES:
        if not line.startswith(pixels):
            assert cli.main(line.replace("NODE", "logits").split()) == 0, line + capsys.readouterr().err
    label = intseg.run("0.png", "w.safetensors").label
    assert label in (folder / "r.html").read_text(encoding="utf-8")
    assert "pipeline_tag: image-classification" in (folder / "card" / "README.md").read_text(encoding="utf-8")
    assert "of the images differ" in capsys.readouterr().out


@pytest.mark.parametrize("heads", [1, 2])
def test_onnx_has_the_class_too(tmp_path: Path, heads: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    from onnx.reference import ReferenceEvaluator

    monkeypatch.chdir(tmp_path)
    used = model(tmp_path, heads=heads, n_cls=300)
    assert cli.main(["export", "w.safetensors", "-o", "m.onnx", "--labels"]) == 0
    assert cli.main(["verify", "--onnx", "m.onnx", "-w", "w.safetensors"]) == 0
    assert "ok: all equal" in capsys.readouterr().out
    rgb = image(24, 32)
    found = ReferenceEvaluator(onnx.load("m.onnx")).run(None, {"image": rgb})
    result = intseg.run(rgb, used, "numpy")
    assert np.array_equal(found[0], result.logits)
    assert found[1].tolist() == [result.top()[0].index]
