"""Every command on models that the random graphs are: it works, or says in one line why not. Never a traceback."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import random_graphs
from PIL import Image

from intseg import store
from intseg.cli import main as cli

CASES = ("random 5:0", "random 5:1", "adversarial 5:0", "adversarial 7:7")
ENDINGS = (0, 3, 4)
"""Done, a model that is refused, an input that is. The others would be this program's fault."""

LINES = (
    "inspect w.safetensors",
    "inspect w.safetensors --by op --json --svg g.svg --dot g.dot",
    "prove w.safetensors",
    "prove w.safetensors --by node --json",
    "infer a.png -w w.safetensors -o labels.png",
    "infer a.png b.png -w w.safetensors -o out --json --force",
    "eval --images photos --labels truth -w w.safetensors --json",
    "report a.png -w w.safetensors -o r.html",
    "quant-report w.safetensors a.png",
    "quant-report w.safetensors a.png --json",
    "card w.safetensors -o card --force",
    "trace a.png -w w.safetensors --registers -o t.safetensors",
    "diff t.safetensors t.safetensors -w w.safetensors --json",
    "diff a.png t.safetensors -w w.safetensors --html d.html --minimize m.safetensors",
    "dump t.safetensors --format hex -o hex",
    "dump w.safetensors --format npz -o npz",
    "dump w.safetensors --format flat -o w.flat",
    "dump a.png -w w.safetensors --node NODE --case case --format mem",
    "profile a.png -w w.safetensors --repeat 1 --trace p.json",
    "truth-table gelu_table -w w.safetensors -o table.csv",
    "vectors -w w.safetensors -o pack",
    "verify pack --backend numpy",
    "doctor --json",
    "completion bash",
)


def write(case: random_graphs.Case, folder: Path) -> None:
    """The model, an image of a window, a smaller one, and labels."""
    store.save(case.graph, folder / "w.safetensors")
    for name in ("photos", "truth"):
        (folder / name).mkdir()
    Image.fromarray(case.image).save(folder / "a.png")
    Image.fromarray(case.image[: case.size[0], : case.size[1]]).save(folder / "b.png")
    Image.fromarray(case.image).save(folder / "photos" / "a.png")
    Image.fromarray(np.zeros(case.image.shape[:2], np.uint8)).save(folder / "truth" / "a.png")


def endings(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[int, str]]:
    """Command line -> exit code and the last line of standard error, of those that end otherwise than they may."""
    case = random_graphs.parse(name)
    write(case, folder)
    wrong = {}
    for line in LINES:
        code = cli.main(line.replace("NODE", case.graph.nodes[-1].name).split())
        errors = capsys.readouterr().err.splitlines()
        needs_gelu = line.startswith("truth-table") and code == 2  # a model without the op that the table is of
        if code not in ENDINGS and not needs_gelu:
            wrong[line] = code, errors[-1] if errors else ""
    return wrong


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_every_command_on_every_graph(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("intseg.reports.doctor.examine", lambda threads: iter(()))  # of the bundled models: long
    assert endings(name, tmp_path, capsys) == {}


def test_every_command_is_tried() -> None:
    (subparsers,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    elsewhere = {"convert", "train", "qat", "compare-float", "export"}  # of checkpoints, and tests of their own
    assert {line.split()[0] for line in LINES} == set(subparsers.choices) - elsewhere
