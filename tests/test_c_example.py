"""The C example compiles without a warning and passes; with a fault in it, it fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "c"
COMPILER = shutil.which("cc")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")

BREAKS = {
    "rounds-down": ("+ ((int64_t)1 << (shift - 1))", "+ 0"),
    "truncates": (
        "return x >= 0 ? (int64_t)((uint64_t)x >> n) : -1 - (int64_t)((uint64_t)(-1 - x) >> n);",
        "return x / ((int64_t)1 << n);",
    ),
    "wraps": ("(rounded < low ? low : rounded > high ? high : rounded)", "(int16_t)rounded + 0 * (low + high)"),
    "no-bias": ("int32_t acc = bias;", "int32_t acc = 0 * bias;"),
}


def build_and_run(folder: Path, flags: list[str]) -> subprocess.CompletedProcess[str]:
    subprocess.run([str(COMPILER), *flags, "-o", "check", "check.c"], cwd=folder, check=True, timeout=600)
    return subprocess.run(["./check"], cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "c"
    shutil.copytree(FOLDER, folder)
    return folder


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_it_passes(copy: Path, level: str):
    done = build_and_run(copy, [*FLAGS, level])
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("PASS ")
    assert int(done.stdout.split()[-1]) > 300


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_example_fails(copy: Path, name: str):
    old, new = BREAKS[name]
    source = (copy / "check.c").read_text()
    assert source.count(old) == 1
    (copy / "check.c").write_text(source.replace(old, new))
    done = build_and_run(copy, ["-std=c99", "-O1"])
    assert done.returncode == 1
    assert "first mismatch: " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("FAIL ")
