"""README.md tells the truth: its code runs, its picture is what the command draws, its files exist."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import intseg
from intseg.tools import readme
from intseg.tools.measure.tables import speed
from intseg.tools.measure.tables.results import Results, latencies

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, and the diff after it, make the transcript below."""
    street = tmp_path / "golden" / "images" / "street.png"
    street.parent.mkdir(parents=True)
    shutil.copy(ROOT / "golden" / "images" / "street.png", street)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    exec(compile(blocks[1], "README.md", "exec"), names)
    result = names["result"]
    assert isinstance(result, intseg.Result)
    assert (result.labels.shape, result.scores.shape) == ((360, 480), (4, 16, 16, 11))
    said = re.findall(r'"(\w+)": (0\.\d\d)', blocks[1])
    assert said
    assert {name: f"{result.shares()[name]:.2f}" for name, _ in said} == dict(said)
    for name in ("labels.png", "overlay.png"):
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/PERFORMANCE.md"])
def test_the_measured_parts_are_what_is_measured(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert readme.filled(text) == text


def test_speed_takes_whatever_peers_were_measured() -> None:
    """The fastest is named, a peer that is faster too; a peer that one model lacks is a dash."""
    machine = {"cpu": "CPU", "target": "t", "path": "p", "cores": 2, "python": "3", "openvino": "1"}
    measured = {"intseg_ms": 50.0, "peers_ms": {"torch fp32 sdpa": 90.0}, "peak_gmacs": 1.0, "ops": []}
    other = {**measured, "peers_ms": {"torch fp32 sdpa": 90.0, "openvino int8": 40.0}}
    results = Results(ROOT / "none")
    results.bench = {
        "machine": machine,
        "results": {"tiny": {"1": measured, "peak_memory_mb": 1.0}, "small": {"1": other}},
    }
    said = speed.sentence(results)
    first = "Tiny 50 ms, 1.8 times as fast as PyTorch FP32, the fastest of the others; "
    assert f"{first}Small 50 ms (OpenVINO INT8 (NNCF) takes 40)." in said
    assert said.endswith("The others: PyTorch FP32; OpenVINO INT8 (NNCF).")
    results.bench["results"]["small"] = {"1": measured}
    assert f"{first}Small 50 ms, 1.8 times." in speed.sentence(results)
    results.bench["results"]["small"] = {"1": other}
    assert speed.side_by_side(results).splitlines()[2:] == [
        "| milliseconds | Tiny, 1 | Small, 1 |",
        "|---|---|---|",
        "| PyTorch FP32 | 90.0 | 90.0 |",
        "| OpenVINO INT8 (NNCF) | - | 40.0 |",
        "| **intseg** | **50.0** | **50.0** |",
        "| the fastest other / intseg | 1.80 | 0.80 |",
        "| peak GMAC/s | 1 | 1 |",
    ]
    assert "OpenVINO 1" in speed.side_by_side(results)
    pytest.importorskip("matplotlib")
    from intseg.tools.measure.figures import speed as chart

    assert chart("x", latencies(results)).count(">OpenVINO INT8 (NNCF)<") == 1


def test_the_picture_is_what_the_command_draws() -> None:
    shown = np.asarray(Image.open(ROOT / "docs" / "leuven.png").convert("RGB"))[:360]
    assert np.array_equal(np.asarray(readme.picture())[:360], shown)  # the legend is text: of Pillow's font


def test_the_bundled_model_finds_most_of_the_street() -> None:
    result = intseg.run(ROOT / "golden" / "images" / "street.png")
    truth = np.asarray(Image.open(ROOT / "golden" / "images" / "street_truth.png"))
    known = truth < len(result.classes)
    assert (result.labels == truth)[known].mean() > 0.85


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert {target for target in targets if target.startswith("docs/")} >= {"docs/leuven.png", "docs/WORKBENCH.md"}
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
