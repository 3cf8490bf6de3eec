"""Hazards of a cache of compiled code, one test each."""

from __future__ import annotations

import gc
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from intseg.kernels import _jit

ROOT = Path(__file__).resolve().parent.parent

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty private cache folder, in use."""
    private = tmp_path / "cache"
    monkeypatch.setenv("INTSEG_CACHE_DIR", str(private))
    _jit.cache_folder.cache_clear()
    yield private
    _jit.cache_folder.cache_clear()


def add_one(x: int) -> int:
    return x + 1


def fresh() -> _jit.Kernel:
    """A kernel that this process has not compiled yet."""
    return _jit.Kernel(add_one, "int64(int64)")


def hits(kernel: _jit.Kernel) -> int:
    return sum(kernel.compile().stats.cache_hits.values())


def entry(folder: Path) -> Path:
    (found,) = folder.glob("*.bin")
    return found


def test_a_second_process_loads_what_the_first_compiled(folder: Path) -> None:
    first, second = fresh(), fresh()
    assert first(1) == 2
    assert hits(first) == 0
    assert second(1) == 2
    assert hits(second) == 1


@pytest.mark.parametrize("size", [0, 1, 20, 100, -1])
def test_a_truncated_entry_is_compiled_again(folder: Path, size: int) -> None:
    fresh()(1)
    whole = entry(folder).read_bytes()
    entry(folder).write_bytes(whole[:size])
    again = fresh()
    assert again(1) == 2
    assert hits(again) == 0
    assert len(entry(folder).read_bytes()) > 100
    assert hits(fresh()) == 1


def test_a_changed_byte_is_noticed_before_anything_is_unpickled(folder: Path) -> None:
    fresh()(1)
    data = bytearray(entry(folder).read_bytes())
    data[-10] ^= 1
    entry(folder).write_bytes(data)
    again = fresh()
    assert again(1) == 2
    assert hits(again) == 0


@posix
def test_a_folder_others_can_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.warns(UserWarning, match="can be written by other users"):
        assert fresh()(1) == 2
    assert list(folder.iterdir()) == []


@posix
def test_a_link_is_not_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="not kept"):
        assert fresh()(1) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


@posix
def test_an_entry_others_can_write_to_is_not_read(folder: Path) -> None:
    fresh()(1)
    entry(folder).chmod(0o666)
    assert hits(fresh()) == 0


@posix
def test_the_folder_is_private(folder: Path) -> None:
    fresh()(1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_costs_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTSEG_CACHE_DIR", str(tmp_path / "file" / "cache"))
    _jit.cache_folder.cache_clear()
    with pytest.warns(UserWarning, match="INTSEG_CACHE_DIR"):
        assert fresh()(1) == 2
    _jit.cache_folder.cache_clear()


def test_a_failing_write_costs_the_cache_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert fresh()(1) == 2
    assert list(folder.iterdir()) == []


@_jit.helper
def root(x: int) -> int:
    if x < 0:
        raise ValueError("no root")
    return int(np.sqrt(x))


def root_of(x: int) -> int:
    return root(x)


def test_a_helper_raises_in_a_kernel_that_was_compiled_or_loaded(folder: Path) -> None:
    for count in (0, 1):
        kernel = _jit.Kernel(root_of, "int64(int64)")
        assert kernel(9) == 3
        assert hits(kernel) == count
        with pytest.raises(ValueError, match="no root"):
            kernel(-1)
    assert gc.isenabled()


PROGRAM = """
import numpy as np
from intseg.kernels import _jit, l2norm
assert "{copy}" in l2norm.__file__, l2norm.__file__
x = np.array([[3, 4]], np.int16)
print(l2norm.l2norm_op(x, mult=2**30, shift=54), sum(l2norm.l2norm.compile().stats.cache_hits.values()))
"""


def run_copy(copy: Path, **environment: str) -> str:
    """Output of the program on a copy of the package."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(copy=copy)],
        env=kept | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        capture_output=True,
        text=True,
        cwd=copy,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, somewhere else."""
    target = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__", "kernels", "*.safetensors")
    shutil.copytree(ROOT / "intseg", target / "intseg", ignore=ignore)
    shutil.copytree(ROOT / "kernels", target / "intseg" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return target


def test_an_edit_in_another_file_is_seen(copy: Path, tmp_path: Path) -> None:
    cache = {"INTSEG_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": ""}
    assert run_copy(copy, **cache) == "[[38 51]] 0"
    assert run_copy(copy, **cache) == "[[38 51]] 1"
    path = copy / "intseg" / "kernels" / "layernorm.py"  # isqrt lives here, l2norm calls it
    source = path.read_text()
    assert "            return root\n" in source
    path.write_text(source.replace("            return root\n", "            return root + 1\n"))
    assert run_copy(copy, **cache) == "[[32 43]] 0"


@posix
def test_a_read_only_install_without_home_runs(copy: Path, tmp_path: Path) -> None:
    for path in sorted(copy.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    nowhere = {"TMPDIR": str(temporary), "HOME": str(tmp_path / "missing")}
    assert run_copy(copy, **nowhere) == "[[38 51]] 0"
    assert run_copy(copy, **nowhere) == "[[38 51]] 1"
    assert len(list(temporary.rglob("*.bin"))) == 1
    for path in copy.rglob("*"):
        path.chmod(0o755)
