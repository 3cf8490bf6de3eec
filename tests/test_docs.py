"""The commands of docs/TUTORIAL.md and docs/FAQ.md work, in their order, as written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE_DATA = """\
import sys; sys.path.insert(0, "tools")
import make_scenes, segmenter
from pathlib import Path
from PIL import Image
config = segmenter.SegmenterConfig(
    image_size=(32, 48), patch=8, d_model=32, n_layers=2, n_heads=2, mlp_dim=64, n_cls=11, window=(32, 48),
    stride=(24, 40), d_decoder=32, dec_layers=1, dec_heads=2, dec_mlp_dim=64)
segmenter.save_checkpoint(segmenter.random_segmenter(config, 3), Path("checkpoint"))
for i in range(3):
    for folder, array in zip(("photos", "truth"), make_scenes.scene(i, 40, 60)):
        Path(folder).mkdir(exist_ok=True)
        Image.fromarray(array).save(f"{folder}/{i}.png")
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell(script: str, folder: Path) -> None:
    """Run a script where `python` and `intseg` are those of this interpreter; every command must succeed."""
    programs = folder / ".programs"
    if not programs.exists():
        programs.mkdir()
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "intseg").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m intseg.cli "$@"\n')
        for program in programs.iterdir():
            program.chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "INTSEG_DEBUG": ""}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def test_the_commands_of_the_faq(tmp_path: Path) -> None:
    shutil.copy(ROOT / "golden" / "images" / "street.png", tmp_path)
    found = blocks("FAQ.md", "sh")
    assert len(found) == 5
    for script in found:
        shell(script, tmp_path)
    for name in ("labels.png", "coloured_overlay.png", "results/street_labels.png", "results/street_overlay.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert (tmp_path / "records.jsonl").read_text().count("\n") == 1
    assert (tmp_path / "piped.png").read_bytes() == (tmp_path / "results" / "street_labels.png").read_bytes()


def test_the_commands_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    subprocess.run([sys.executable, "-c", MAKE_DATA], cwd=tmp_path, check=True)
    found = blocks("TUTORIAL.md", "sh")
    assert len(found) == 9
    shell("".join(found), tmp_path)
    assert len(list((tmp_path / "results").glob("*_labels.png"))) == 3
    assert not (tmp_path / "results" / "errors.jsonl").exists()
    monkeypatch.chdir(tmp_path)
    for block in blocks("TUTORIAL.md", "python"):
        exec(compile(block, "TUTORIAL.md", "exec"), {})
    assert (tmp_path / "labels.png").is_file()


@pytest.mark.parametrize("page", ["TUTORIAL.md", "FAQ.md"])
def test_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:docs|tools)/[\w./]+\.(?:md|py)", text):
        assert (ROOT / name).is_file(), name
