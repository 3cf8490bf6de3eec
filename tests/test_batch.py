"""Many images: sources, collisions, processes, bad images, the journal."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_graph

import intseg
from intseg import store
from intseg.batch import executors, sources
from intseg.batch import infer as batch
from intseg.cli import infer as cli_infer
from intseg.cli import main as cli
from intseg.errors import InputError, MismatchError, UsageError

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: weights w.safetensors, images in/a.png, in/b.png, in/c.jpg, in/sub/d.png, a text file."""
    monkeypatch.chdir(tmp_path)
    store.save(tiny_graph(), "w.safetensors")
    Path("in/sub").mkdir(parents=True)
    for i, name in enumerate(["in/a.png", "in/b.png", "in/c.jpg", "in/sub/d.png"]):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20 + i, 40, 3), np.uint8)).save(name)
    Path("in/notes.txt").write_text("no image", encoding="utf-8")
    Path("in/.hidden.png").write_text("no image", encoding="utf-8")
    return tmp_path


def infer(*arguments: str) -> int:
    return cli.main(["infer", *arguments, "-w", "w.safetensors", "--backend", "numpy"])


def names(where: str = ".") -> list[str]:
    return sorted(str(file.relative_to(where)) for file in Path(where).rglob("*") if file.is_file())


def contents(where: str) -> dict[str, Any]:
    """What is in a folder; records without their times, the journal left out."""
    found: dict[str, Any] = {name: (Path(where) / name).read_bytes() for name in names(where)}
    found.pop(batch.JOURNAL, None)
    return {name: timeless(data) if name.endswith(".jsonl") else data for name, data in found.items()}


def timeless(data: bytes) -> list[dict[str, Any]]:
    return [{key: value for key, value in json.loads(line).items() if key != "ms"} for line in data.splitlines()]


# -------------------------------------------------------------------------------------------------------- sources


def found(*arguments: str, recursive: bool = False, output: str | None = None) -> list[tuple[str, str]]:
    found = sources.find_sources(arguments, recursive, Path(output) if output else None)
    return [(source.file, source.name) for source in found]


def test_sources() -> None:
    direct = [("in/a.png", "a"), ("in/b.png", "b"), ("in/c.jpg", "c")]
    assert found("in") == direct
    assert found("in/") == direct
    assert found("in", recursive=True) == [*direct, ("in/sub/d.png", "sub/d")]
    assert found("in/*.png") == direct[:2]
    assert found("**/*.png") == [*direct[:2], ("in/sub/d.png", "d")]
    assert found("in/b.png", "in/a.png", "none.png") == [direct[1], direct[0], ("none.png", "none")]
    Path("list.txt").write_text("# two\n\nin/b.png\r\n  in/sub\n", encoding="utf-8")
    assert found("@list.txt") == [direct[1], ("in/sub/d.png", "d")]


def test_sources_do_not_include_the_output_folder() -> None:
    Path("in/out").mkdir()
    Image.new("RGB", (9, 9)).save("in/out/a_labels.png")
    assert len(found("in", recursive=True)) == 5
    assert len(found("in", recursive=True, output="in/out")) == 4
    with pytest.raises(UsageError, match="output folder"):
        found("in", output="in/../in")


def test_a_file_may_be_named_like_a_pattern_or_a_list() -> None:
    for name in ("a[1].png", "@b.png"):
        Path(name).write_bytes(Path("in/a.png").read_bytes())
        assert found(name) == [(name, name.removesuffix(".png"))]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_has_a_file_a_line_whatever_else_is_in_the_names(end: str) -> None:
    Path("l.txt").write_bytes(end.join(["\ufeffa\x0bb.png", "", "c\u2028d.png ", "# no", "e\x85f.png"]).encode())
    assert [source for source, _ in found("@l.txt")] == ["a\x0bb.png", "c\u2028d.png", "e\x85f.png"]


@pytest.mark.parametrize(
    ("argument", "word"),
    [("*.bmp", "no file matches"), ("@none.txt", "No such file"), ("@empty.txt", "is empty"), ("empty", "-r looks")],
)
def test_sources_without_an_image(argument: str, word: str, capsys: Capture) -> None:
    Path("empty.txt").write_text("# nothing\n", encoding="utf-8")
    Path("empty").mkdir()
    assert infer(argument, "-o", "out") == 4
    assert word in capsys.readouterr().err
    assert not Path("out").exists()


def test_which_arguments_are_one_image() -> None:
    assert sources.is_one_image(["in/a.png"])
    assert sources.is_one_image(["none.png"])
    for several in (["in"], ["in/*.png"], ["@list.txt"], ["-"], ["in/a.png", "in/b.png"]):
        assert not sources.is_one_image(several)


# -------------------------------------------------------------------------------------------------------- outputs


def test_a_batch_writes_what_single_runs_write(capsys: Capture) -> None:
    assert infer("in", "-r", "-o", "out", "--overlay", "--legend", "--jsonl", "all.jsonl") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("4 images in")
    pictures = [f"{name}_{kind}.png" for name in ("a", "b", "c", "sub/d") for kind in ("labels", "overlay")]
    assert names("out") == pictures  # nothing is left to continue: no journal
    assert infer("in/sub/d.png", "-o", "one.png", "--overlay", "over.png") == 0
    assert Path("one.png").read_bytes() == Path("out/sub/d_labels.png").read_bytes()
    assert Path("over.png").read_bytes() == Path("out/sub/d_overlay.png").read_bytes()


def test_records() -> None:
    assert infer("in", "-r", "-o", "out", "--jsonl", "all.jsonl", "-q") == 0
    lines = [json.loads(line) for line in Path("all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["file"] for line in lines] == ["in/a.png", "in/b.png", "in/c.jpg", "in/sub/d.png"]
    for line in lines:
        result = intseg.run(line["file"], "w.safetensors", "numpy")
        assert line["pixels_sha256"] == hashlib.sha256(result.image.tobytes()).hexdigest()
        assert line["labels_sha256"] == hashlib.sha256(result.labels.tobytes()).hexdigest()
        assert line["model_sha256"] == result.model.sha256
        assert (line["height"], line["width"]) == result.labels.shape
        assert line["classes"] == result.counts()
        assert line["ms"] > 0
        assert (Path("out") / line["written"]["labels"]).is_file()


def test_the_number_of_processes_changes_nothing() -> None:
    Path("in/bad.png").write_text("bad", encoding="utf-8")
    for jobs in ("1", "2"):
        out = f"out{jobs}"
        options = ["--overlay", "--jsonl", f"{out}/all.jsonl", "--jobs", jobs, "-q"]
        assert infer("in", "-r", "-o", out, *options) == 4
    assert contents("out1") == contents("out2")


def test_records_without_pictures(capsys: Capture) -> None:
    assert infer("in/*", "--jsonl", "all.jsonl") == 4  # notes.txt is no image
    assert len(Path("all.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert "notes.txt" in Path("errors.jsonl").read_text(encoding="utf-8")
    capsys.readouterr()
    assert infer("in", "--json") == 0
    assert timeless(capsys.readouterr().out.encode()) == timeless(Path("all.jsonl").read_bytes())
    assert infer("in/a.png", "--jsonl", "-") == 0
    assert json.loads(capsys.readouterr().out)["file"] == "in/a.png"


def test_palette_values_and_overlay_folder() -> None:
    options = ["--palette", "voc", "--label-offset", "1", "--overlay", "over", "--opacity", "1"]
    assert infer("in", "-o", "out", *options) == 0
    result = intseg.run("in/a.png", "w.safetensors", "numpy")
    with Image.open("out/a_labels.png") as labels:
        assert np.array_equal(np.asarray(labels), result.labels + 1)
        shown = np.asarray(labels.convert("RGB"))
    assert np.array_equal(np.asarray(Image.open("over/a_overlay.png")), shown)


def test_a_mapping_above_255_is_written_with_16_bits() -> None:
    assert infer("in", "-o", "out", "--label-map", "class 1=1000,*=7") == 0
    result = intseg.run("in/a.png", "w.safetensors", "numpy")
    with Image.open("out/a_labels.png") as labels:
        assert labels.mode == "I;16"
        assert np.array_equal(np.asarray(labels), np.where(result.labels == 1, 1000, 7))


# ------------------------------------------------------------------------------------------------------ bad input


def test_a_bad_image_does_not_stop_the_others(capsys: Capture) -> None:
    Path("in/aa.png").write_bytes(Path("in/a.png").read_bytes()[:300])
    assert infer("in", "gone.png", "-o", "out", "--jsonl", "out/all.jsonl") == 4
    errors = [json.loads(line) for line in Path("out/errors.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [error["file"] for error in errors] == ["in/aa.png", "gone.png"]
    assert "No such file" in errors[1]["error"]
    assert len(Path("out/all.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("intseg: ") for line in lines] == [True, True, False]
    assert "2 failed (out/errors.jsonl)" in lines[2]
    assert not Path("out/aa_labels.png").exists()
    Path("in/aa.png").write_bytes(Path("in/b.png").read_bytes())
    assert infer("in", "-o", "out", "--jsonl", "out/all.jsonl", "--resume") == 0
    assert not Path("out/errors.jsonl").exists()
    assert len(Path("out/all.jsonl").read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_fail_fast(jobs: str, capsys: Capture) -> None:
    Path("in/aa.png").write_text("bad", encoding="utf-8")
    assert infer("in", "-o", "out", "--jsonl", "all.jsonl", "--fail-fast", "--jobs", jobs) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("all.jsonl").exists()
    assert len(Path("out/errors.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert Path("out/a_labels.png").exists()
    assert not [name for name in names() if name.endswith(".part")]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["in", "in/sub/../a.png", "-o", "out"], 2, "written for in/a.png and for in/sub/../a.png"),
        (["in", "in", "-o", "out"], 2, "written for in/a.png"),
        (["in/a.png", "a_labels.png", "-o", "."], 2, "would replace the image a_labels.png"),
        (["in", "-o", "in"], 2, "which is read"),
        (["in"], 2, "need -o DIR"),
        (["in", "--no-overlay"], 2, "need -o DIR"),
        (["in", "-o", "a_labels.png"], 2, "is a file"),
        (["in", "-o", "out", "--overlay", "w.safetensors"], 2, "which is read"),
        (["in", "-o", "out", "--jsonl", "in/a.png"], 2, "is written as .jsonl"),
        (["in", "-o", "out", "--jsonl", "out/errors.jsonl"], 2, "another option"),
        (["in", "-o", "w.safetensors/out"], 4, "cannot create the folder"),
        (["in", "--jsonl", "none/all.jsonl"], 4, "no folder none"),
        (["in", "-", "-o", "out"], 2, "standard input"),
        (["in", "--json", "--resume"], 2, "--resume needs"),
        (["in", "-o", "out", "--resume", "--force"], 2, "not allowed"),
        (["in", "-o", "out", "--palette", "vocc"], 2, "did you mean voc?"),
        (["in", "-o", "out", "--label-map", "clas 1=3,*=0"], 2, "did you mean class 1?"),
        (["in", "-o", "out", "--label-map", "class 1=3"], 2, "add '*'"),
        (["in", "-o", "out", "--label-map", "none.json"], 4, "label map"),
        (["in", "-o", "out", "--label-offset", "65535"], 2, "65536"),
        (["in", "-o", "out", "--label-offset", "1", "--label-map", "*=1"], 2, "not allowed"),
        (["--overlay", "in/a.png", "in/b.png"], 2, "put --overlay after"),
    ],
)
def test_refused_before_any_work(arguments: list[str], code: int, word: str, capsys: Capture) -> None:
    Path("a_labels.png").write_bytes(Path("in/a.png").read_bytes())
    before = names()
    assert infer(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert word in captured.err
    assert [name for name in names() if name not in before and not name.endswith(batch.JOURNAL)] == []


def test_disk_full_stops_the_batch(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert infer("in", "-o", "out") == 4
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "No space left" in captured.err
    assert names("out") == [batch.JOURNAL]


def test_out_of_memory_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def huge(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(batch.api, "run_picture", huge)
    outcome = batch.process(batch.Item(sources.Source("in/a.png", "a")), intseg.load("w.safetensors"), batch.Options())
    assert "memory" in str(outcome.error)


@pytest.mark.parametrize("place", ["overlay", "labels_sha256"])
def test_a_batch_goes_on_where_one_image_has_no_memory(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Wherever it ends: while a legend is drawn, while the record is made."""
    real, calls = getattr(batch.api.Result if place == "overlay" else batch, place), []

    def second_fails(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(batch.api.Result if place == "overlay" else batch, place, second_fails)
    assert infer("in", "-o", "out", "--overlay", "--legend") == 4
    (line,) = Path("out/errors.jsonl").read_text(encoding="utf-8").splitlines()
    assert "out of memory" in json.loads(line)["error"]
    assert len(calls) == len(sources.find_sources(["in"]))


def test_weights_that_change_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    model = intseg.load("w.safetensors")
    store.save(tiny_graph(seed=5), "w.safetensors")
    images = sources.find_sources(["in"])
    with pytest.raises(MismatchError, match="changed"):
        list(batch.outcomes(images, model, batch.Options(backend="numpy"), executors.Pool(2)))


def test_a_dead_process_is_one_error() -> None:
    class Dies(sources.Source):
        def __reduce__(self) -> Any:
            return os._exit, (1,)

    images = [sources.Source("in/a.png", "a"), Dies("in/b.png", "b")]
    with pytest.raises(InputError, match="--resume"):
        list(batch.outcomes(images, intseg.load("w.safetensors"), batch.Options(backend="numpy"), executors.Pool(2)))


# --------------------------------------------------------------------------------------------------------- resume


def test_existing_outputs_are_kept_unless_forced(capsys: Capture) -> None:
    assert infer("in", "-o", "out") == 0
    before = contents("out")
    Path("out/a_labels.png").write_text("mine", encoding="utf-8")
    assert infer("in", "-o", "out") == 2
    assert "exists already (3 such)" in capsys.readouterr().err
    assert Path("out/a_labels.png").read_text(encoding="utf-8") == "mine"
    assert infer("in", "-o", "out", "--force") == 0
    assert contents("out") == before


@pytest.mark.parametrize("stop", [0, 1, 2])
@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupted_and_resumed_is_the_same(stop: int, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["in", "-r", "--overlay", "--jobs", str(jobs), "-q"]
    assert infer(*options, "-o", "whole", "--jsonl", "whole/all.jsonl") == 0

    def interrupt(outcomes: Iterator[batch.Outcome], total: int) -> Iterable[batch.Outcome]:
        for i, outcome in enumerate(outcomes):
            if i == stop:
                raise KeyboardInterrupt
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(cli_infer, "_bar", interrupt)
        assert infer(*options, "-o", "out", "--jsonl", "out/all.jsonl") == 130
    assert "all.jsonl" not in names("out")
    with Path("out", batch.JOURNAL).open("ab") as journal:
        journal.write(b'{"file": "in/c.j')  # as a killed process may leave it
    assert infer(*options, "-o", "out", "--jsonl", "out/all.jsonl", "--resume") == 0
    assert contents("out") == contents("whole")
    assert infer(*options, "-o", "out", "--jsonl", "out/all.jsonl", "--resume") == 0
    assert contents("out") == contents("whole")


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_and_resumed_is_the_same() -> None:
    for i in range(60):
        Path(f"in/{i:03}.png").write_bytes(Path("in/a.png").read_bytes())
    options = ["in", "-r", "--jobs", "2", "-q"]
    slow = str(Path(__file__).with_name("slow.py"))
    command = [sys.executable, slow, "infer", *options, "-w", "w.safetensors", "--backend", "numpy"]
    process = subprocess.Popen([*command, "-o", "out", "--jsonl", "out/all.jsonl"])
    while not list(Path("out").glob("00*_labels.png")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "all.jsonl" not in names("out")
    assert infer(*options, "-o", "out", "--jsonl", "out/all.jsonl", "--resume") == 0
    assert infer(*options, "-o", "whole", "--jsonl", "whole/all.jsonl") == 0
    assert contents("out") == contents("whole")


def test_what_changed_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert infer("in", "-o", "out", "--resume") == 0
    before = contents("out")
    Path("out/a_labels.png").write_text("damaged", encoding="utf-8")
    Path("out/b_labels.png").unlink()
    worked: list[str] = []
    process = batch.process
    monkeypatch.setattr(batch, "process", lambda item, **rest: worked.append(item.source.file) or process(item, **rest))
    assert infer("in", "-o", "out", "--resume") == 0
    assert worked == ["in/a.png", "in/b.png"]
    assert contents("out") == before
    Image.new("RGB", (9, 9)).save("in/c.jpg")
    worked.clear()
    assert infer("in", "-o", "out", "--resume") == 0
    assert worked == ["in/c.jpg"]


@pytest.mark.parametrize("change", [["--palette", "voc"], ["--overlay"], ["--label-offset", "2"]])
def test_resuming_with_other_settings_is_refused(change: list[str], capsys: Capture) -> None:
    assert infer("in", "-o", "out", "--resume") == 0
    before = contents("out")
    assert infer("in", "-o", "out", "--resume", *change) == 2
    assert "--force" in capsys.readouterr().err
    assert contents("out") == before


def test_resuming_with_another_model_or_without_a_journal_is_refused(capsys: Capture) -> None:
    assert infer("in", "-o", "out", "--resume") == 0
    weights = Path("w.safetensors").read_bytes()
    store.save(tiny_graph(seed=9), "w.safetensors")
    assert infer("in", "-o", "out", "--resume") == 2
    assert "another model" in capsys.readouterr().err
    Path("w.safetensors").write_bytes(weights)
    assert infer("in", "-o", "out", "--force") == 0
    assert not Path("out", batch.JOURNAL).exists()
    assert infer("in", "-o", "out", "--resume") == 2
    assert "finished without --resume leaves none" in capsys.readouterr().err


def test_resuming_nothing_is_a_start() -> None:
    assert infer("in", "-o", "out", "--resume") == 0
    assert len(names("out")) == 4


# ------------------------------------------------------------------------------------------------- bar and threads


def test_the_bar_is_for_terminals_only(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert infer("in", "-o", "out") == 0
    assert "it/s" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert infer("in", "-o", "out", "--force") == 0
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "image" in shown
    assert "\x1b[3" not in shown  # no colour, so NO_COLOR has nothing to switch off
    assert infer("in", "-o", "out", "--force", "-q") == 0
    assert capsys.readouterr().err == ""


def test_threads_share_the_cores() -> None:
    assert executors.InProcess().threads is None
    assert executors.threads_for(10**6) == 1


def test_at_most_a_few_images_are_in_work() -> None:
    started: list[int] = []

    def submit(item: int) -> Any:
        started.append(item)
        return lambda: item

    for i, result in enumerate(executors.in_order(submit, range(100), 6)):
        assert result == i
        assert len(started) - i <= 6
