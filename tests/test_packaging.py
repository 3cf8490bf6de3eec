"""The sdist builds a working wheel, and both hold what they must and nothing else, whoever builds them."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
ROOT = Path(__file__).resolve().parents[1]
LEAVE_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*_labels.png", "*_overlay.png")


def build(kind: str, source: Path, output: Path, mask: int) -> Path:
    """The file that setuptools builds of a folder, with the time of SOURCE_DATE_EPOCH, without network."""
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(output)!r}))"
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=source, env=environment, capture_output=True, text=True, umask=mask,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output / done.stdout.splitlines()[-1]


Built = list[tuple[Path, Path]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The unpacked sdist of the checkout and the wheel made of it, from two folders of other times and permissions."""
    pytest.importorskip("setuptools")
    made = []
    for i, (mode, mask) in enumerate(((0o644, 0o022), (0o600, 0o077))):
        work = tmp_path_factory.mktemp(f"packaging{i}")
        checkout = work / "checkout"
        shutil.copytree(ROOT, checkout, symlinks=True, ignore=LEAVE_OUT)
        for path in checkout.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(mode | (0o100 if os.access(path, os.X_OK) else 0))
                os.utime(path, (1e9 + i * 1e6, 1e9 + i * 1e6))
        with tarfile.open(build("sdist", checkout, work, mask)) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 has it first
            archive.extractall(work / "unpacked")
        (folder,) = (work / "unpacked").iterdir()
        made.append((folder, build("wheel", folder, work, mask)))
    return made


def modules(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.py")}


def test_the_sdist_is_the_checkout(built: Built) -> None:
    folder, _ = built[0]
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


def test_the_sdist_holds_the_same_from_any_folder(built: Built) -> None:
    """Names and contents; tar entries have the times and permissions of the files, which setuptools keeps."""
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder, _ in built
    )
    assert one == other


def test_the_wheel_is_the_same_from_any_folder(built: Built) -> None:
    names = [zipfile.ZipFile(wheel).namelist() for _, wheel in built]
    assert names[0] == names[1]
    assert built[0][1].read_bytes() == built[1][1].read_bytes()


def test_the_wheel_holds_exactly_the_package(built: Built) -> None:
    with zipfile.ZipFile(built[0][1]) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    places = dict(line.split(" = ") for line in config["options"]["package_dir"].strip().splitlines())
    data = {"intseg": ["py.typed"], "intseg.models": ["*.safetensors", "*.json"], "intseg.palettes": ["*.txt"]}
    wanted = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in listed
        for pattern in ("*.py", *data.get(package, ()))
        for path in (ROOT / places.get(package, package.replace(".", "/"))).glob(pattern)
    }
    folders = {path.parent for path in (ROOT / "intseg").rglob("__init__.py")}  # of sub-packages, links included
    names = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert names - {"intseg.tools.measure"} <= set(listed)
    info = next(name.split("/")[0] for name in found if name.endswith("/WHEEL"))
    wanted |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "entry_points.txt")}
    assert found == wanted | {f"{info}/licenses/LICENSE"}


def test_the_index_page_has_no_link_into_the_repository(built: Built) -> None:
    """Relative links lead nowhere there: they are absolute, or text."""
    with zipfile.ZipFile(built[0][1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        head, _, page = wheel.read(name).decode().partition("\n\n")
    assert "# intseg" in page
    assert "WORKBENCH" in page
    assert [target for target in re.findall(r"\]\(([^)]*)\)", page) if not target.startswith("https://")] == []
    for field in ("Author", "License(-Expression)?", "Platform", "Description-Content-Type"):
        assert re.search(f"^{field}: .", head, re.MULTILINE), field


def test_the_wheel_works_away_from_the_checkout(built: Built, tmp_path: Path) -> None:
    with zipfile.ZipFile(built[0][1]) as wheel:
        wheel.extractall(tmp_path / "site")
    shutil.copy(ROOT / "golden" / "images" / "odd.png", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    script = (
        "import sys; sys.path.insert(0, 'site'); import intseg; from intseg.cli import main as cli; "
        "print(intseg.__file__); "
        "sys.exit(cli.main(['infer', 'odd.png', '--backend', 'numpy']))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
    assert (tmp_path / "odd_labels.png").is_file()
