"""The profile: every node and step is there, times and work add up, the trace file is what the viewers read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import intseg
from intseg import api, backends
from intseg.cli import main as cli
from intseg.errors import MismatchError
from intseg.reports import inspect as inspect_model
from intseg.reports import profile as profiling

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "golden" / "models" / "intseg.safetensors"
Capture = pytest.CaptureFixture[str]
needs_numba = pytest.mark.skipif(not backends.has_numba(), reason="numba is not installed")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 90, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def model() -> api.Model:
    return intseg.load(SMALL)


def test_every_node_is_timed(image: Path, model: api.Model) -> None:
    found = profiling.profile(image, model, "numpy", repeat=2)
    assert [(node.name, node.op) for node in found.nodes] == [(node.name, node.op) for node in model.graph.nodes]
    assert all(node.nanoseconds > 0 for node in found.nodes)
    assert sum(node.macs for node in found.nodes) == inspect_model.totals(model.graph).macs
    assert (found.steps, len(found.wall), len(found.traces)) == ((), 1, 1)
    assert found.wall[0] >= max(node.nanoseconds for node in found.nodes)


@needs_numba
@pytest.mark.parametrize("threads", [1, 2])
def test_every_step_of_the_plan_is_timed(image: Path, model: api.Model, threads: int) -> None:
    found = profiling.profile(image, model, "numba", threads, repeat=2)
    assert found.threads == threads
    assert len(found.steps) < len(found.nodes)
    assert {event.index for event in found.traces[1]} == set(range(len(found.steps)))
    assert len({event.thread for event in found.traces[1]}) <= threads
    assert sum(step.macs for step in found.steps) == sum(node.macs for node in found.nodes)
    assert {"linear", "attention"} <= {step.op for step in found.steps}


@needs_numba
def test_different_scores_are_refused(image: Path, model: api.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = profiling._unfused

    def wrong(*arguments: object) -> object:
        scores, runs = honest(*arguments)  # type: ignore[arg-type]
        return scores + 1, runs

    monkeypatch.setattr(profiling, "_unfused", wrong)
    with pytest.raises(MismatchError, match="fused and unfused"):
        profiling.profile(image, model, "numba", 1, repeat=1)


def test_the_best_run_adds_up_threads() -> None:
    def run(*durations: tuple[int, int]) -> list[profiling.Event]:
        return [profiling.Event(index, 100, 100 + time, thread) for thread, (index, time) in enumerate(durations)]

    assert profiling._best([run((0, 5), (0, 7), (1, 3)), run((0, 6), (0, 1), (1, 9))], 2) == [7, 3]


def test_the_trace_file_holds_every_event(image: Path, model: api.Model) -> None:
    found = profiling.profile(image, model, repeat=1, threads=2)
    document = json.loads(profiling.chrome_trace(found))
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(events) == sum(map(len, found.traces))
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in events)
    assert [event["name"] for event in events if event["pid"] == 0] == [node.name for node in model.graph.nodes]
    named = {event["pid"] for event in document["traceEvents"] if event["name"] == "process_name"}
    assert named == {event["pid"] for event in events}
    assert document["otherData"]["sha256"] == model.sha256


def test_the_command_prints_and_writes(image: Path, tmp_path: Path, capsys: Capture) -> None:
    trace = tmp_path / "trace.json"
    arguments = ["profile", str(image), "-w", str(SMALL), "--threads", "1", "--repeat", "1"]
    assert cli.main([*arguments, "--by", "op", "--trace", str(trace)]) == 0
    out = capsys.readouterr().out
    assert "unfused, one call a node" in out
    assert "GMAC/s" in out
    assert out.endswith(f"wrote {trace}\n")
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wall_ns"]["nodes"] > 0
    assert len(found["nodes"]) == len(intseg.load(SMALL).graph.nodes)


def test_what_goes_wrong_is_one_line(image: Path, tmp_path: Path, capsys: Capture) -> None:
    cases: dict[tuple[str, ...], int] = {
        ("none.png",): 4,
        (str(image), "--trace", str(tmp_path / "no" / "t.json")): 4,
        (str(image), "--repeat", "0"): 2,
    }
    for arguments, code in cases.items():
        assert cli.main(["profile", *arguments, "-w", str(SMALL)]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
