"""The model folder: what hubs read, the same bytes, a digest that holds, and nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_model import tiny_graph

import intseg
from intseg import api, backends, models, store
from intseg.cli import main as cli
from intseg.reports import card, doctor

Capture = pytest.CaptureFixture[str]
HOSTILE = ("a|b", "<script>", "`x` --- license: none", '"quoted"', "[link](x)")


@pytest.fixture
def model(tmp_path: Path) -> api.Model:
    """A small model whose names are markup."""
    graph = tiny_graph(3)
    info = dataclasses.replace(graph.info, name="x --- # y", classes=HOSTILE)
    store.save(dataclasses.replace(graph, info=info), tmp_path / "w.safetensors")
    return intseg.load(tmp_path / "w.safetensors")


@pytest.fixture
def metrics(tmp_path: Path, model: api.Model) -> Path:
    """A file as intseg eval --json prints it."""
    found = {
        "mIoU": 43.312,
        "mAcc": 51.0,
        "aAcc": 81.911,
        "images": 101,
        "model": {"name": "x", "sha256": model.sha256},
    }
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def read(folder: Path) -> dict[str, Any]:
    return {
        name: json.loads((folder / name).read_text(encoding="utf-8")) for name in card.FILES if name.endswith("json")
    }


def front_matter(folder: Path) -> dict[str, Any]:
    """The lines between the first two '---', which are all `key: value` with a JSON value or a plain word."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    head = text.split("---\n")[1]
    found = dict(line.split(": ", 1) for line in head.splitlines())
    return {key: json.loads(value) if value[0] in '["{' else value for key, value in found.items()}


def test_the_folder_holds_the_model_and_what_hubs_read(model: api.Model, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "out"
    assert cli.main(["card", str(model.path), "-o", str(folder), "--license", "apache-2.0"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"wrote {folder / name}" for name in card.FILES]
    assert {file.name for file in folder.iterdir()} == set(card.FILES)
    assert (folder / "model.safetensors").read_bytes() == model.path.read_bytes()
    config = read(folder)["config.json"]
    assert config["model_type"] == "intseg"
    assert config["id2label"] == {str(i): name for i, name in enumerate(HOSTILE)}
    assert config["label2id"] == {name: i for i, name in enumerate(HOSTILE)}
    assert config["sha256"] == model.sha256
    processor = read(folder)["preprocessor_config.json"]
    assert (processor["do_normalize"], processor["pad_value"]) == (False, list(model.info.pad))
    assert front_matter(folder)["license"] == "apache-2.0"
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_the_check_of_the_card_runs(model: api.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = {path.parent for path in card.write(model, tmp_path / "out")}
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    with pytest.raises(AssertionError):
        exec(compile(code.replace('== "', '== "0'), "README.md", "exec"), {})


def test_metrics_are_in_the_text_and_in_the_front_matter(model: api.Model, metrics: Path, tmp_path: Path) -> None:
    card.write(model, tmp_path / "out", card.Facts(str(metrics), data="Cam|Vid"))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| 43.31 | 51.00 | 81.91 |" in text
    assert "101 images of Cam\\|Vid" in text
    (entry,) = front_matter(tmp_path / "out")["model-index"]
    (result,) = entry["results"]
    assert [metric["value"] for metric in result["metrics"]] == [43.31, 51.0, 81.91]


def test_names_stay_text(model: api.Model, tmp_path: Path) -> None:
    card.write(model, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert text.count("\n---\n") == 1
    assert "<script>" not in text
    assert "\nlicense:" not in text
    rows = [line for line in text.splitlines() if re.match(r"\| \d \|", line)]
    assert len(rows) == len(HOSTILE)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "lacks mIoU"),
        ("{}", "lacks mIoU"),
        ('{"model": {"sha256": "1"}, "mIoU": null, "mAcc": 1, "aAcc": 1, "images": 1}', "lacks mIoU"),
        ('{"model": {"sha256": "1"}, "mIoU": 1, "mAcc": 1, "aAcc": 1, "images": 1}', "metrics of the model"),
    ],
)
def test_bad_metrics_are_refused(model: api.Model, tmp_path: Path, capsys: Capture, text: str, words: str) -> None:
    (tmp_path / "m.json").write_text(text, encoding="utf-8")
    arguments = ["card", str(model.path), "-o", str(tmp_path / "out"), "--metrics", str(tmp_path / "m.json")]
    assert cli.main(arguments) == 4
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_kept(model: api.Model, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    card.write(model, folder)  # empty: fine
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "config.json").write_text("old", encoding="utf-8")
    assert cli.main(["card", str(model.path), "-o", str(folder)]) == 4
    assert "not empty" in capsys.readouterr().err
    assert (folder / "config.json").read_text(encoding="utf-8") == "old"
    assert cli.main(["card", str(model.path), "-o", str(folder), "--force"]) == 0
    assert read(folder)["config.json"]["model_type"] == "intseg"
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_place_that_cannot_be_written_is_one_line(model: api.Model, tmp_path: Path, capsys: Capture) -> None:
    for target in (tmp_path / "no" / "out", model.path, model.path / "out"):
        assert cli.main(["card", str(model.path), "-o", str(target)]) == (2 if target == model.path else 4)
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_bundled_model_says_what_it_was_measured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new model needs a new measurement: metrics of another sha256 are refused."""
    monkeypatch.setattr(doctor, "installed_backends", lambda: (backends.resolve("auto"),))
    for name in models.names():
        model = intseg.load(name)
        found = json.loads(model.path.with_suffix(".json").read_text())
        text = card.make(model, card.Facts())["README.md"].decode()
        assert f"| {found['mIoU']:.2f} | {found['mAcc']:.2f} | {found['aAcc']:.2f} |" in text
        assert f"101 images of {models.MEASURED}" in text
        for label, value in zip(found["classes"], found["IoU"], strict=True):
            assert re.search(rf"\| {label} \| #\w+ \| {value:.2f} \|", text)
        weak = [label for label, value in zip(found["classes"], found["IoU"], strict=True) if value < card.WEAK]
        assert re.findall(r"hardly finds \(IoU %\): ([a-z]+)", text) == weak == ["pole"]


def test_the_digest_of_a_bundled_model_is_the_doctor_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_backends", lambda: (backends.resolve("auto"),))  # the other is slow
    model = intseg.load()
    assert card.golden_digest(model) == doctor.DIGESTS[model.info.name]
