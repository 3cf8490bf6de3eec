"""Other systems without having them: big-endian arrays through every writer, and what Windows lacks taken away.

There a file that is open is not renamed, replaced or removed either: the commands run where that is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from tiny_model import tiny_graph

from intseg import files, store
from intseg.batch import executors, journal
from intseg.cli import main
from intseg.conformance import flat, truth_table, vectors
from intseg.workbench import dump, trace

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "golden"
MODEL = str(GOLDEN / "models" / "weights.safetensors")

# --------------------------------------------------------------------------------------------------- big-endian


def other(array: Any) -> Any:
    """The same numbers as this machine's bytes the other way round: what arrays are where integers begin high."""
    return array.astype(array.dtype.newbyteorder("S"))


ARRAYS = {
    "a": np.arange(-60, 60, dtype=np.int32).reshape(4, 30) * 1_000_003,
    "b": np.arange(24, dtype=np.int16).reshape(2, 3, 4) * 1234 - 9999,
    "c": np.array(-5_000_000_000, dtype=np.int64),
    "d": np.arange(6, dtype=np.uint16).reshape(2, 3)[:, ::-1] * 10_000,
}


def test_files_and_digests_have_the_little_end_first() -> None:
    for array in ARRAYS.values():
        found = store.little(other(array))
        assert found.dtype.byteorder in "<=|"
        assert found.shape == array.shape
        assert found.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
        assert vectors.array_sha256(other(array)) == vectors.array_sha256(array)
        assert dump.sha256(other(array)) == dump.sha256(array)
    assert store.tensors_sha256({n: other(a) for n, a in ARRAYS.items()}) == store.tensors_sha256(ARRAYS)


@pytest.mark.parametrize("kind", sorted(set(dump.FORMATS) - {"npz"}))
@pytest.mark.parametrize("endian", ["little", "big"])
def test_a_dump_is_the_same_bytes(kind: str, endian: str) -> None:
    options = dump.Options(endian=endian) if kind in dump.PACKED else dump.Options()
    for name, array in ARRAYS.items():
        if array.dtype == np.int64 and kind not in ("npy", "json"):
            continue
        assert dump._encode(name, other(array), kind, options) == dump._encode(name, array, kind, options), name


def test_traces_and_tables_are_the_same_bytes(tmp_path: Path) -> None:
    for folder, change in (("here", lambda a: a), ("there", other)):
        place = tmp_path / folder
        place.mkdir()
        with trace.Writer(place / "t.safetensors", None, list(ARRAYS)) as file:
            for name, array in ARRAYS.items():
                file.put(name, change(array))
    one, there = ((tmp_path / name / "t.safetensors").read_bytes() for name in ("here", "there"))
    assert one == there
    read = trace.TensorFile(tmp_path / "here" / "t.safetensors")
    for name, array in ARRAYS.items():
        assert np.array_equal(read.read(name), array)
    table = truth_table.Table("unit", {}, {n: a.reshape(-1)[:6] for n, a in ARRAYS.items() if n != "c"})
    swapped = truth_table.Table("unit", {}, {n: other(a) for n, a in table.columns.items()})
    for kind in truth_table.FORMATS:
        assert truth_table.encode(table, kind) == truth_table.encode(swapped, kind), kind
    assert table.sha256 == swapped.sha256


def test_a_npz_is_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump.write_folder(MODEL, tmp_path / "here", "npz")
    read = trace.TensorFile.read
    monkeypatch.setattr(trace.TensorFile, "read", lambda file, name: other(read(file, name)))
    dump.write_folder(MODEL, tmp_path / "there", "npz")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_weights_are_the_same_bytes_and_read_as_a_big_endian_machine_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tiny_graph()
    data = store.dumps(graph)
    for name in graph.tensors:
        graph.tensors[name] = other(graph.tensors[name])  # type: ignore[index]
    assert store.dumps(graph) == data
    assert flat.flatten(graph) == flat.flatten(store.loads(data))

    def load(content: bytes) -> dict[str, Any]:
        """The library there: the bytes of the file under the machine's own dtypes."""
        return {name: array.view(array.dtype.newbyteorder("S")) for name, array in read(content).items()}

    read = safetensors.numpy.load
    monkeypatch.setattr(safetensors.numpy, "load", load)
    for name, array in store.loads(data).tensors.items():
        assert np.array_equal(array, graph.tensors[name]), name


# ------------------------------------------------------------------------------------------- without what POSIX has

WITHOUT = """
import json, os, sys

MODULES = {"fcntl", "resource", "pwd", "grp", "termios"}
NAMES = (
    "fork register_at_fork getuid geteuid getgid getegid fchmod fchown chown lchown getgroups setsid killpg sysconf "
    "sched_getaffinity mkfifo nice statvfs O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_NOCTTY O_DIRECTORY"
)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def refused(*names, **options):
    raise OSError(22, "A required privilege is not held by the client")

def in_use(path):
    # by this process; of a folder, whether a file inside is
    place = os.path.realpath(path)
    files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return any(file == place or file.startswith(place + os.sep) for file in files)

def not_in_use(work):
    def guarded(*paths, **options):
        for path in paths:
            if isinstance(path, (str, os.PathLike)) and options.get("dir_fd") is None and in_use(path):
                raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
        return work(*paths, **options)
    return guarded

opened = os.open
os.fsync = os.fstat  # power does not fail here

def elsewhere(path, *arguments, **options):
    if os.fspath(path) != os.devnull and os.fspath(path).startswith(("/dev/", "/proc/")):
        raise FileNotFoundError(2, "The system cannot find the path specified", path)
    return opened(path, *arguments, **options)

if sys.argv[1] == "without":
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Absent())
    for name in NAMES.split():
        if hasattr(os, name):
            delattr(os, name)
    os.symlink = os.link = refused
    for name in ("replace", "rename", "remove", "unlink", "rmdir"):
        setattr(os, name, not_in_use(getattr(os, name)))
    os.open = elsewhere

from intseg.cli import main

for words in json.loads(sys.argv[2]):
    if code := main.main(words):
        sys.exit(f"{words}: exit code {code}")
"""


def run(*words: str, cwd: Path, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False
    )


def run_bare(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """With the modules of cwd and those that are installed, but no hook that an editable install has put among them."""
    return run("-S", *words, cwd=cwd, path=os.pathsep.join([str(cwd), *filter(None, sys.path)]))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_commands_run_without_what_windows_lacks_and_write_the_same(tmp_path: Path) -> None:
    model = ("-w", MODEL, "--backend", "numpy")
    commands = [
        ["infer", "img/small.png", *model, "-o", "one.png", "--time"],
        ["infer", "img", *model, "-o", "out", "--jsonl", "out/all.jsonl", "--resume"],
        ["infer", "img", *model, "-o", "out", "--jsonl", "out/all.jsonl", "--resume"],
        ["eval", "--images", "img", "--labels", "truth", *model, "--resume", "journal.jsonl"],
        ["eval", "--images", "img", "--labels", "truth", *model, "--resume", "journal.jsonl"],
        ["trace", "img/small.png", *model, "-o", "trace.safetensors"],
        ["dump", "trace.safetensors", "-o", "dumped"],
        ["dump", "trace.safetensors", "--format", "npz", "-o", "packed"],
        ["vectors", *model, "-o", "pack", "-q"],
        ["verify", "pack", "--backend", "numpy"],
        ["diff", "img/small.png", "dumped", "-w", MODEL],
        ["dump", "--read", "dumped", "-o", "trace.safetensors"],
        ["dump", "img/small.png", "-w", MODEL, "--node", "scores", "--case", "case"],
        ["dump", MODEL, "--format", "flat", "-o", "w.flat"],
        ["export", MODEL, "-o", "tosa", "--form", "tosa"],
        ["card", MODEL, "-o", "card", "--force", "-q"],
        ["infer", "img", *model, "-o", "out", "--force"],
    ]
    for how in ("with", "without"):
        place = tmp_path / how
        for folder in ("img", "truth"):
            (place / folder).mkdir(parents=True)
        for name in ("small.png", "odd.png"):
            shutil.copy(GOLDEN / "images" / name, place / "img" / name)
            with Image.open(place / "img" / name) as image:
                Image.new("L", image.size).save(place / "truth" / name)
        done = run("-c", WITHOUT, how, json.dumps(commands), cwd=place)
        assert done.returncode == 0, done.stderr[-2000:]
    expected = contents(tmp_path / "with")
    assert contents(tmp_path / "without") == expected
    assert {"one.png", "out/all.jsonl", "journal.jsonl", "trace.safetensors", "pack/runner.json"} <= set(expected)


def test_a_checkout_without_symbolic_links_says_what_to_do(tmp_path: Path) -> None:
    """What git makes of links where core.symlinks is false: text files that hold where the links lead."""
    left_out = shutil.ignore_patterns("__pycache__", "*.safetensors", "kernels", "tools")
    shutil.copytree(ROOT / "intseg", tmp_path / "intseg", ignore=left_out)
    for name in ("kernels", "tools"):
        (tmp_path / "intseg" / name).write_text(f"../{name}", encoding="utf-8")
    image = str(GOLDEN / "images" / "small.png")
    for words in (("infer", image, "-w", MODEL, "-o", "labels.png"), ("train", "--root", ".", "-o", "runs")):
        done = run_bare("-m", "intseg.cli", *words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert (
            " is a file, expected a link: git made this checkout without symbolic links; run pip install ."
            in done.stderr
        )
        assert done.stderr.count("\n") == 1
    done = run_bare("-c", "import intseg; intseg.run", cwd=tmp_path)
    assert done.stderr.splitlines()[-1].startswith("ImportError: intseg/kernels is a file, expected a link")
    assert run_bare("-m", "intseg.cli", "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", ["C:\\x", "C:x", "..\\x", "a/../../x", "/x", "a//x", "./x", "", "a\0b"])
def test_no_name_of_any_system_leads_out_of_a_folder(name: str) -> None:
    assert not files.is_inside(name)
    assert files.is_inside("ops/linear.safetensors")


def test_journals_of_windows_name_images_as_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert journal.item_of("a\\b.png") == "a\\b.png"
    monkeypatch.setattr(journal.os, "sep", "\\")
    assert journal.item_of("C:\\data\\day/x.png") == "C:/data/day/x.png"


def test_as_many_processes_as_windows_can_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors.sys, "platform", "win32")  # where the pool of Python refuses more
    with executors._pool(256, int) as pool:
        assert pool._max_workers == 61


def test_messages_keep_drive_letters_and_back_slashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["inspect", "C:\\new\\table.safetensors"]) == 4
    assert "C:\\new\\table.safetensors: cannot read" in capsys.readouterr().err
