"""The hardware example: generated vectors, a bench that passes, and broken modules that it catches."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from intseg import arith
from intseg.ops import RUN

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "rtl"
SIMULATORS = [name for name in ("iverilog", "verilator") if shutil.which(name)]
needs_simulator = pytest.mark.skipif(not SIMULATORS, reason="no simulator: neither iverilog nor verilator is installed")
SOURCES = ("requantize.sv", "gemm_tile.sv", "bench.sv")

BREAKS = {
    "rounds-down": ("requantize.sv", "(product + half) >>> shift", "product >>> shift"),
    "logical-shift": ("requantize.sv", "(product + half) >>> shift", "(product + half) >> shift"),
    "half-away-from-zero": ("requantize.sv", "(product + half)", "(product + half - 64'(product < 0))"),
    "wraps": ("requantize.sv", "rounded < low ? low : rounded > high ? high : rounded", "rounded"),
    "symmetric": ("requantize.sv", "-64'sd128;", "-64'sd127;"),
    "unsigned-x": ("gemm_tile.sv", "32'(x) * 32'(w)", "32'({1'b0, x}) * 32'(w)"),
    "no-bias": ("gemm_tile.sv", "acc <= bias[32*n+:32]", "acc <= 0"),
}
"""What an implementation may get wrong: file, text, what takes its place."""


def generator() -> ModuleType:
    """golden/rtl/make_vectors.py, which is no package."""
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(name: str, dtype: str) -> np.ndarray:
    """A .mem file as integers."""
    text = (FOLDER / "vectors" / f"{name}.mem").read_text().split()
    return np.array([int(word, 16) for word in text], np.uint64).astype(dtype.replace("int", "uint")).astype(dtype)


def simulate(folder: Path, simulator: str) -> str:
    """Compile and run the bench; its standard output."""
    if simulator == "iverilog":
        build = ["iverilog", "-g2012", "-Ivectors", "-o", "bench", *SOURCES]
        run = ["vvp", "-n", "bench"]
    else:
        flags = ["--binary", "--timing", "-Wno-fatal", "-Ivectors", "--top-module", "bench", "-Mdir", "obj"]
        build, run = ["verilator", *flags, *SOURCES], ["obj/Vbench"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True, timeout=900)
    return subprocess.run(run, cwd=folder, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the example that may be broken."""
    folder = tmp_path / "rtl"
    shutil.copytree(FOLDER, folder)
    return folder


def usable(simulator: str) -> bool:
    """Verilator runs benches with delays from version 5 on."""
    if simulator == "iverilog":
        return True
    version = subprocess.run(["verilator", "--version"], capture_output=True, text=True, timeout=600, check=True).stdout
    return int(version.split()[1].split(".")[0]) >= 5


@needs_simulator
@pytest.mark.parametrize("simulator", SIMULATORS)
def test_the_bench_passes(copy: Path, simulator: str):
    if not usable(simulator):
        pytest.skip("verilator before version 5 cannot run a bench with delays")
    count = len(words("requantize_acc", "int32")) + len(words("tile_expected", "int16"))
    lines = simulate(copy, simulator).splitlines()
    assert f"PASS {count}" in lines
    assert not any("mismatch" in line or "FAIL" in line for line in lines)


@pytest.mark.skipif("iverilog" not in SIMULATORS, reason="no simulator: iverilog is not installed")
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_module_fails(copy: Path, name: str):
    file, old, new = BREAKS[name]
    source = (copy / file).read_text()
    assert source.count(old) == 1
    (copy / file).write_text(source.replace(old, new))
    *_, mismatch, last = simulate(copy, "iverilog").splitlines()
    assert last.startswith("FAIL ")
    assert mismatch.startswith("first mismatch: ")


@pytest.mark.skipif("iverilog" not in SIMULATORS, reason="no simulator: iverilog is not installed")
def test_a_changed_vector_fails(copy: Path):
    path = copy / "vectors" / "tile_expected.mem"
    lines = path.read_text().split()
    path.write_text("\n".join([*lines[:3], f"{int(lines[3], 16) ^ 1:04x}", *lines[4:]]) + "\n")
    assert "first mismatch: tile[3]" in simulate(copy, "iverilog")


def test_the_generator_gives_these_files():
    files = generator().files()
    for path, text in files.items():
        assert (FOLDER.parent / path).read_text(encoding="utf-8") == text, path
    assert {f"rtl/vectors/{path.name}" for path in (FOLDER / "vectors").iterdir()} <= set(files)


def test_manifest():
    files = json.loads((FOLDER / "manifest.json").read_text())["files"]
    for name, entry in files.items():
        data = (FOLDER.parent / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
        if name.endswith(".mem"):
            assert len(data.split()) == np.prod(entry["shape"])


def test_expected_values_are_those_of_the_definition():
    """The vectors come from plain integers; the definition agrees with them."""
    column = {name: words(f"requantize_{name}", "int64") for name in ("mult", "shift", "wide")}
    acc, expected = words("requantize_acc", "int32").astype(np.int64), words("requantize_expected", "int16")
    for wide, out in enumerate(("int8", "int16")):
        rows = column["wide"] == wide
        found = arith.requantize(acc[rows], column["mult"][rows], column["shift"][rows], out)
        assert (found == expected[rows]).all()
    depth = 24
    found = RUN["linear"](
        words("tile_x", "int8").reshape(-1, depth),
        weight=words("tile_weight", "int8").reshape(-1, depth),
        bias=words("tile_bias", "int32"),
        mult=words("tile_mult", "int32"),
        shift=words("tile_shift", "int8"),
        out="int8",
    )
    assert (found.ravel() == words("tile_expected", "int16")).all()


def test_the_vectors_reach_ties_and_saturations():
    acc, mult, shift = (words(f"requantize_{name}", "int64") for name in ("acc", "mult", "shift"))
    acc = words("requantize_acc", "int32").astype(np.int64)
    product, half = acc * mult, 1 << (shift - 1)
    ties = (product & (2 * half - 1)) == half
    assert (ties & (product > 0)).any()
    assert (ties & (product < 0)).any()
    expected, wide = words("requantize_expected", "int16"), words("requantize_wide", "int8")
    for low, high, kind in ((-128, 127, 0), (-32768, 32767, 1)):
        assert {low, high} <= set(expected[wide == kind].tolist())
