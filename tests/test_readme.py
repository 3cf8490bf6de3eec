"""README.md tells the truth: its code runs, its picture is what the command draws, its files exist."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import intseg
from intseg.tools import readme

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    street = tmp_path / "golden" / "images" / "street.png"
    street.parent.mkdir(parents=True)
    shutil.copy(ROOT / "golden" / "images" / "street.png", street)
    shutil.copy(ROOT / "golden" / "images" / "small.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    result = names["result"]
    assert isinstance(result, intseg.Result)
    assert (result.labels.shape, result.scores.shape) == ((360, 480), (4, 16, 16, 11))
    said = re.findall(r'"(\w+)": (0\.\d\d)', blocks[1])
    assert said
    assert {name: f"{result.shares()[name]:.2f}" for name, _ in said} == dict(said)
    for name in ("labels.png", "overlay.png", "mine.npz"):
        assert (tmp_path / name).is_file()


def test_the_measured_parts_are_what_is_measured() -> None:
    assert readme.filled(TEXT) == TEXT


def test_the_picture_is_what_the_command_draws() -> None:
    shown = np.asarray(Image.open(ROOT / "docs" / "street.png").convert("RGB"))[:360]
    assert np.array_equal(np.asarray(readme.picture())[:360], shown)  # the legend is text: of Pillow's font


def test_the_bundled_model_finds_most_of_the_street() -> None:
    result = intseg.run(ROOT / "golden" / "images" / "street.png")
    truth = np.asarray(Image.open(ROOT / "golden" / "images" / "street_truth.png"))
    known = truth < len(result.classes)
    assert (result.labels == truth)[known].mean() > 0.85


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert {target for target in targets if target.startswith("docs/")} >= {"docs/street.png", "docs/WORKBENCH.md"}
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
