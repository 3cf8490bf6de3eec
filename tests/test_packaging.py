"""The sdist builds a working wheel, and both hold what they must and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEAVE_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*_labels.png", "*_overlay.png")


def build(kind: str, source: Path, output: Path) -> Path:
    """The file that setuptools builds of a folder, without network."""
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(output)!r}))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The unpacked sdist of the checkout, and the wheel made of it."""
    pytest.importorskip("setuptools")
    work: Path = tmp_path_factory.mktemp("packaging")
    checkout = work / "checkout"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=LEAVE_OUT)
    with tarfile.open(build("sdist", checkout, work)) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (folder,) = (work / "unpacked").iterdir()
    return folder, build("wheel", folder, work)


def modules(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.py")}


def test_the_sdist_is_the_checkout(built: tuple[Path, Path]) -> None:
    folder, _ = built
    for name in (
        "LICENSE",
        "README.md",
        "SPEC.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "MANIFEST.in",
        "CITATION.cff",
        "check",
    ):
        assert (folder / name).is_file(), name
    assert os.access(folder / "check", os.X_OK)
    folders = ("intseg", "intseg/ops", "intseg/cli", "kernels", "tests", "tests/tools", "tests/trust")
    for name in (*folders, "tools", "tools/twin", "tools/measure"):
        assert modules(folder / name) == modules(ROOT / name), name
    assert {file.name for file in (folder / "docs").iterdir()} == {file.name for file in (ROOT / "docs").iterdir()}
    assert not (folder / "intseg" / "kernels").exists()
    assert not (folder / "intseg" / "tools").exists()
    assert not list(folder.rglob("__pycache__"))


def test_the_wheel_holds_the_package_only(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    info = next(name.split("/")[0] for name in names if name.endswith("/WHEEL"))
    assert {name.split("/")[0] for name in names} == {"intseg", info}
    data = {
        "intseg/py.typed",
        "intseg/models/camvid-tiny.safetensors",
        "intseg/models/camvid-tiny.json",
        "intseg/palettes/ade20k.txt",
    }
    assert data | {f"{info}/licenses/LICENSE"} <= names
    for folder, package in ((ROOT / "intseg", "intseg"), (ROOT / "kernels", "intseg/kernels")):
        assert {f"{package}/{name}" for name in modules(folder)} <= names


def test_the_index_page_has_no_link_into_the_repository(built: tuple[Path, Path]) -> None:
    """Relative links lead nowhere there: they are absolute, or text."""
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        head, _, page = wheel.read(name).decode().partition("\n\n")
    assert "# intseg" in page
    assert "WORKBENCH" in page
    assert [target for target in re.findall(r"\]\(([^)]*)\)", page) if not target.startswith("https://")] == []
    for field in ("Author", "License(-Expression)?", "Platform", "Description-Content-Type"):
        assert re.search(f"^{field}: .", head, re.MULTILINE), field


def test_the_wheel_works_away_from_the_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(tmp_path / "site")
    shutil.copy(ROOT / "golden" / "images" / "small.png", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    script = (
        "import sys; sys.path.insert(0, 'site'); import intseg; from intseg.cli import main as cli; "
        "print(intseg.__file__); "
        "sys.exit(cli.main(['infer', 'small.png', '--backend', 'numpy']))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
    assert (tmp_path / "small_labels.png").is_file()
