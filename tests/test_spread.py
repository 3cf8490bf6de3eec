"""Runs that share a folder, are continued, or are spread over machines: locks, journals, shards, executors."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_graph

from intseg import store
from intseg.batch import claims, executors, shards
from intseg.batch import infer as batch
from intseg.cli import main as cli
from intseg.errors import UsageError

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parent.parent
RUN = ["-w", "w.safetensors", "--backend", "numpy"]
NAMES = [f"{folder}{i}" for folder in ("", "day/", "night/") for i in range(4)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: weights w.safetensors, a dozen images in val, their labels in valannot."""
    monkeypatch.chdir(tmp_path)
    store.save(tiny_graph(n_cls=11), "w.safetensors")
    for i, name in enumerate(NAMES):
        random = np.random.default_rng(i)
        for place, pixels in (
            ("val", random.integers(0, 256, (20, 24 + i, 3))),
            ("valannot", random.integers(0, 12, (20, 24 + i))),
        ):
            Path(place, name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(f"{place}/{name}.png")
    return tmp_path


def infer(*arguments: str) -> int:
    return cli.main(["infer", "val", "-r", *RUN, *arguments])


def evaluated(capsys: Capture, *arguments: str) -> Any:
    capsys.readouterr()
    assert cli.main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def contents(where: str) -> dict[str, bytes]:
    """Files of a folder but what is of one shard; records without their times."""
    files = [file for file in Path(where).rglob("*") if file.is_file() and "-of-" not in file.name]
    found = {str(file.relative_to(where)): file.read_bytes() for file in files}
    for name in found:
        if name == "all.jsonl":
            records = [{**json.loads(line), "ms": 0} for line in found[name].splitlines()]
            found[name] = json.dumps(records).encode()
    return found


# ------------------------------------------------------------------------------------------------- two at one place


def _hold(place: str, shared: bool, ready: Any, done: Any) -> None:
    from intseg.batch.claims import claimed

    with claimed(Path(place), shared):
        ready.set()
        done.wait(600)


def _stop(item: str) -> None:
    """A worker that does not notice that its run was killed."""
    Path(item).write_text(str(os.getpid()), encoding="utf-8")
    os.kill(os.getpid(), signal.SIGSTOP)


def _worker() -> Any:
    return _stop


def _run_stopped(place: str) -> None:
    from intseg.batch.claims import claimed

    with claimed(Path(place)):
        list(executors.Pool(2).run(executors.Task(_worker), [f"{place}.worker"]))


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_a_worker_that_outlives_its_run_keeps_the_next_one_out(capsys: Capture, monkeypatch: Any) -> None:
    """It could give its file to a name that the next run has written."""
    monkeypatch.setattr(claims, "_PATIENCE", 0.3)
    os.mkdir("out")
    process = multiprocessing.get_context("spawn").Process(target=_run_stopped, args=("out",))
    process.start()
    while not (Path("out.worker").exists() and Path("out.worker").stat().st_size):
        assert process.is_alive()
        time.sleep(0.05)
    worker = int(Path("out.worker").read_text(encoding="utf-8"))
    process.kill()
    process.join()
    try:
        assert infer("-o", "out", "--force") == 4
        assert "out: another run is at work here" in capsys.readouterr().err
    finally:
        os.kill(worker, signal.SIGKILL)
    monkeypatch.setattr(claims, "_PATIENCE", 30)
    assert infer("-o", "out", "--force") == 0


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_a_folder_where_a_run_is_at_work(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_PATIENCE", 0)
    os.mkdir("out")
    spawn = multiprocessing.get_context("spawn")
    for shared, more in ((False, ["--shard", "1/2"]), (False, []), (True, [])):
        ready, done = spawn.Event(), spawn.Event()
        process = spawn.Process(target=_hold, args=("out", shared, ready, done))
        process.start()
        assert ready.wait(600)
        for earlier in ([], ["--force"], ["--resume"]):
            assert infer("-o", "out", *earlier, *more) == 4
            assert "out: another run is at work here" in capsys.readouterr().err
        assert os.listdir("out") == []
        process.kill()  # what it held is free: no lock is ever stale
        process.join()
    assert infer("-o", "out") == 0
    assert not claims._claims  # what ended is handed to no later worker


def test_lines_of_another_model_are_not_taken_over() -> None:
    """As two runs at once with --force left them: a header of one model, lines of both."""
    store.save(tiny_graph(seed=3, n_cls=11), "other.safetensors")
    assert infer("-o", "other", "-w", "other.safetensors", "--resume") == 0
    assert infer("-o", "out", "--resume") == 0
    whole = contents("out")
    lines = [Path(place, batch.JOURNAL).read_bytes().splitlines(keepends=True) for place in ("out", "other")]
    Path("out", batch.JOURNAL).write_bytes(b"".join([*lines[0][:3], *lines[1][3:]]))
    for name in NAMES:
        os.replace(f"other/{name}_labels.png", f"out/{name}_labels.png")
    assert infer("-o", "out", "--resume") == 0
    found = contents("out")
    assert {name: found[name] for name in found if name.endswith(".png")} == {
        name: whole[name] for name in whole if name.endswith(".png")
    }


def test_another_image_of_equal_size_and_time_is_done_again() -> None:
    picture = np.asarray(Image.open("val/0.png"))
    Image.fromarray(picture).save("val/0.png", compress_level=0)
    assert infer("-o", "out", "--resume") == 0
    before = os.stat("val/0.png")
    Image.fromarray(np.ascontiguousarray(picture[::-1])).save("val/0.png", compress_level=0)
    assert os.stat("val/0.png").st_size == before.st_size
    os.utime("val/0.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    labels = Path("out/0_labels.png").read_bytes()
    assert infer("-o", "out", "--resume") == 0
    assert Path("out/0_labels.png").read_bytes() != labels


def test_a_planted_link_is_not_followed(capsys: Capture) -> None:
    Path("victim").write_text("precious", encoding="utf-8")
    os.mkdir("out")
    os.symlink("../victim", f"out/{batch.JOURNAL}")
    for earlier in ([], ["--force"], ["--resume"]):
        assert infer("-o", "out", *earlier) != 0
        assert "symbolic link" in capsys.readouterr().err or earlier == ["--resume"]
        assert Path("victim").read_text(encoding="utf-8") == "precious"


def test_counts_beyond_any_image_are_not_believed(capsys: Capture) -> None:
    arguments = ["--root", ".", *RUN, "--resume", "j.jsonl"]
    whole = evaluated(capsys, *arguments)
    lines = Path("j.jsonl").read_text(encoding="utf-8").splitlines()
    line = json.loads(lines[1])
    line["counts"] = [[0, 2**63 - 1], [1, 9]]
    Path("j.jsonl").write_text("\n".join([lines[0], json.dumps(line), *lines[2:], ""]), encoding="utf-8")
    assert evaluated(capsys, *arguments) == whole


# -------------------------------------------------------------------------------------------- errors of one image


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_name_too_long_is_the_error_of_its_image(jobs: str, capsys: Capture) -> None:
    long = "字" * 82 + ".png"
    os.rename("val/1.png", f"val/{long}")
    Path("out").mkdir()
    Path("out/day").write_text("in the way", encoding="utf-8")
    for earlier in ([], ["--resume"]):
        assert infer("-o", "out", "--jobs", jobs, *earlier) == 4
        errors = [json.loads(line) for line in Path("out/errors.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [error["file"] for error in errors] == [*(f"val/day/{i}.png" for i in range(4)), f"val/{long}"]
        assert "File name too long" in errors[-1]["error"]
        assert len(list(Path("out").rglob("*_labels.png"))) == 7
    assert "5 failed" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want names in Unicode")
def test_names_that_are_not_text_are_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    os.rename(b"val/1.png", b"val/\xff1.png")
    assert infer("-o", "out", "--resume") == 0
    worked: list[str] = []
    process = batch.process
    monkeypatch.setattr(batch, "process", lambda item, **rest: worked.append(item.source.file) or process(item, **rest))
    assert infer("-o", "out", "--resume") == 0
    assert worked == []


# --------------------------------------------------------------------------------------------------- journal bytes


def test_the_journal_does_not_depend_on_processes_or_interruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert infer("-o", "one", "--resume") == 0
    assert infer("-o", "two", "--jobs", "2", "--resume") == 0
    journal = Path("one", batch.JOURNAL).read_bytes()
    assert Path("two", batch.JOURNAL).read_bytes() == journal
    for cut in (0, 10, 400, len(journal) - 5):
        Path("two", batch.JOURNAL).write_bytes(journal[:cut])
        assert infer("-o", "two", "--resume") == 0
        assert Path("two", batch.JOURNAL).read_bytes() == journal


# --------------------------------------------------------------------------------------------------------- shards


def test_every_name_is_of_one_shard() -> None:
    parts = [shards.Shard(k, 7) for k in range(1, 8)]
    names = [f"day/{i}" for i in range(700)] + ["\udcff"]
    held = [[part.has(name) for part in parts].count(True) for name in names]
    assert set(held) == {1}
    assert min(sum(part.has(name) for name in names) for part in parts) > 60
    assert shards.Shard(2, 8).has("street") == shards.parse("2/8").has("street")
    for text in ("0/2", "3/2", "1", "a/b", "1/65537", "-1/2"):
        with pytest.raises(UsageError, match="K/N"):
            shards.parse(text)


def test_shards_together_are_the_whole(capsys: Capture) -> None:
    Path("val/bad.png").write_text("no image", encoding="utf-8")
    options = ["--overlay", "--jsonl"]
    assert infer("-o", "whole", *options, "whole/all.jsonl") == 4
    for k in (3, 1, 2):
        assert infer("-o", "out", *options, f"out/{k}-of-3.jsonl", "--shard", f"{k}/3") in (0, 4)
    assert infer("-o", "out", *options, "out/all.jsonl", "--resume") == 4
    assert contents("out") == contents("whole")
    done = [len(Path("out", f"{k}-of-3.jsonl").read_text(encoding="utf-8").splitlines()) for k in (1, 2, 3)]
    assert sum(done) == len(NAMES)
    assert max(done) < len(NAMES)


def test_merged_evaluations_are_the_whole(capsys: Capture) -> None:
    arguments = ["--root", ".", *RUN]
    whole = evaluated(capsys, *arguments)
    journals = [f"{k}.jsonl" for k in (1, 2, 3)]
    for k, journal in enumerate(journals, 1):
        if k == 2:
            continue
        evaluated(capsys, *arguments, "--shard", f"{k}/3", "--resume", journal)
    assert cli.main(["eval", "--merge", journals[0], journals[2]]) == 4
    assert "of 12 images; finish every shard" in capsys.readouterr().err
    evaluated(capsys, *arguments, "--shard", "2/3", "--resume", journals[1], "--jobs", "2")
    assert evaluated(capsys, "--merge", *journals, journals[0]) == whole
    evaluated(capsys, *arguments, "--limit", "5", "--shard", "1/1", "--resume", "other.jsonl")
    assert cli.main(["eval", "--merge", journals[0], "other.jsonl"]) == 2
    assert "another data set" in capsys.readouterr().err
    assert cli.main(["eval", *arguments, "--shard", "1/3"]) == 2
    assert cli.main(["eval", *arguments, "--shard", "2/3", "--resume", journals[0]]) == 2
    assert "another shard" in capsys.readouterr().err


def recipe(start: str) -> str:
    """The commands of docs/CLUSTER.md that begin with a line."""
    text = (ROOT / "docs" / "CLUSTER.md").read_text()
    (block,) = (block for block in text.split("```sh\n")[1:] if block.startswith(start))
    return block.split("```")[0]


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("start", ["seq 1 4 | xargs", "#!/bin/sh"])
def test_recipes_for_clusters(start: str, capsys: Capture) -> None:
    """The xargs line as it stands; the array job of SLURM with its variable set, a local process a task."""
    os.rename("w.safetensors", "model.safetensors")
    for old, new in (("val", "photos"), ("valannot", "labels")):
        os.rename(old, new)
    python = f"{shlex.quote(sys.executable)} -m intseg.cli"
    script = recipe(start).replace("intseg ", f"{python} ")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if start.startswith("#!"):
        tasks = [
            subprocess.Popen(
                ["sh", "-c", script], env=environment | {"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_TASK_COUNT": "4"}
            )
            for k in range(1, 5)
        ]
        assert [task.wait(900) for task in tasks] == [0] * 4
    else:
        subprocess.run(["sh", "-c", script], env=environment, check=True, timeout=900)
    run = ["-w", "model.safetensors"]
    if start.startswith("#!"):
        merged = evaluated(capsys, "--merge", *(f"counts/{k}.jsonl" for k in range(1, 5)))
        assert merged == evaluated(capsys, "--images", "photos", "--labels", "labels", "--ignore", "11", *run)
    else:
        assert cli.main(["infer", "photos", "-r", "-o", "whole", "--resume", *run]) == 0
        assert contents("out") == contents("whole")


# ------------------------------------------------------------------------------------------------------ executors


def _square(base: int) -> Any:
    return lambda item: base + item * item


@pytest.mark.parametrize("executor", [executors.InProcess(), executors.Pool(2)])
def test_executors_give_results_in_order(executor: executors.Executor) -> None:
    drawn: list[int] = []

    def items() -> Any:
        for i in range(20):
            drawn.append(i)
            yield i

    task: executors.Task[int, int] = executors.Task(_square, 5)
    for i, found in enumerate(executor.run(task, items())):
        assert found == 5 + i * i
        assert len(drawn) <= i + 1 + executors.AHEAD * 2


def test_so_many_items_are_under_way() -> None:
    begun: list[int] = []

    def submit(item: int) -> Any:
        begun.append(item)
        return lambda: item

    results = executors.in_order(submit, range(5), 3)
    assert (next(results), begun) == (0, [0, 1, 2])
    assert (next(results), begun) == (1, [0, 1, 2, 3])
    assert list(results) == [2, 3, 4]
