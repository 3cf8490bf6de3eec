"""README.md tells the truth: its code runs, its picture is what the command draws, its files exist."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import intseg

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    street = tmp_path / "golden" / "images" / "street.png"
    street.parent.mkdir(parents=True)
    street.write_bytes((ROOT / "golden" / "images" / "street.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    result = names["result"]
    assert isinstance(result, intseg.Result)
    assert (result.labels.shape, result.scores.shape) == ((360, 480), (23, 30, 11))
    assert (tmp_path / "labels.png").is_file()
    assert (tmp_path / "overlay.png").is_file()
    outputs = names["outputs"]
    assert isinstance(outputs, dict)
    assert outputs["encoder.blocks.0.attn.softmax"].shape == (3, 257, 257)


def test_the_picture_is_what_the_command_draws() -> None:
    result = intseg.run(ROOT / "golden" / "images" / "street.png")
    drawn = np.asarray(result.overlay(legend=True).convert("RGB"))[: result.labels.shape[0]]
    shown = np.asarray(Image.open(ROOT / "docs" / "street_overlay.png").convert("RGB"))[: result.labels.shape[0]]
    assert np.array_equal(drawn, shown)  # the legend below is text: its pixels change with Pillow's font


def test_the_bundled_model_finds_most_of_the_street() -> None:
    result = intseg.run(ROOT / "golden" / "images" / "street.png")
    truth = np.asarray(Image.open(ROOT / "golden" / "images" / "street_truth.png"))
    known = truth < len(result.classes)
    assert (result.labels == truth)[known].mean() > 0.85


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
