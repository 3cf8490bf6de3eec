"""What a killed process, a full disk and a read-only folder leave; tests/trust/crash.py does the same at length."""

from __future__ import annotations

import ast
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash as tool
import pytest

from intseg.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]

posix = pytest.mark.skipif(os.name != "posix", reason="kills process groups, locks files")


# ------------------------------------------------------------------------------------------ nobody writes in place

ALLOWED = {
    ("intseg/workbench/dump.py", "_write_tensors", "np.savez(out, allow_pickle=False, **arrays)"): "to files.create",
    (
        "intseg/workbench/dump.py",
        "_encode",
        "np.save(buffer, store.little(array), allow_pickle=False)",
    ): ("to memory"),
    (
        "intseg/conformance/truth_table.py",
        "encode",
        "np.savez(buffer, allow_pickle=False, "
        "**{name: store.little(column) for name, column in table.columns.items()})",
    ): "to memory",
    (
        "intseg/images/overlay.py",
        "encode",
        "image.save(file, kind, **{'quality': 92} if kind == 'JPEG' else {'compress_level': level})",
    ): ("to memory"),
    ("intseg/workbench/sides.py", "open_golden", "tempfile.TemporaryDirectory()"): "removed at the end, nobody else's",
    ("intseg/workbench/case.py", "write_case", "tempfile.TemporaryDirectory()"): "removed at the end, nobody else's",
    ("intseg/export/onnx_check.py", "explained", "tempfile.TemporaryDirectory()"): "removed at the end, nobody else's",
    (
        "intseg/export/onnx_check.py",
        "explained",
        "save_file({f'window0.{name}': np.ascontiguousarray(x) for name, x in expected.items()}, path)",
    ): "see above",
    ("intseg/cli/infer.py", "_infer_one", "result.save(labels_path, palette, values)"): "Result.save of intseg/api.py",
    ("intseg/cli/printing.py", "open_streams", "os.open(os.devnull, os.O_RDWR)"): "not a file",
    ("intseg/cli/printing.py", "discard_stdout", "os.open(os.devnull, os.O_WRONLY)"): "not a file",
    ("kernels/_jit.py", "_write_atomically", "tempfile.mkstemp(dir=path.parent, prefix='.', suffix='.tmp')"): (
        "kernels import nothing of intseg; renamed, and checked by digest instead of flushed"
    ),
    ("kernels/_jit.py", "_write_atomically", "os.fdopen(descriptor, 'wb')"): "see above",
    ("kernels/_jit.py", "_write_atomically", "os.replace(temporary, path)"): "see above",
}
"""File, function and call of everything that writes another way than by intseg.files, and why it may."""

NAMES = {
    "write_text",
    "write_bytes",
    "savez",
    "savez_compressed",
    "save_file",
    "tofile",
    "savetxt",
    "mkstemp",
    "mkdtemp",
}
NAMES |= {"NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile", "TemporaryDirectory", "copyfileobj"}
OF_MODULE = {
    "os": {"replace", "rename", "renames", "truncate", "ftruncate", "link", "symlink", "open"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move"},
    "np": {"save"},
    "torch": {"save"},
}
MAY_WRITE = NAMES.union(*OF_MODULE.values(), ("open", "fdopen", "save", "replace", "rename"))
OURS = {"store", "minimize"}
"""Modules and results whose `save` goes through intseg.files."""


READERS = {"read_text", "read_bytes", "open", "fdopen", "fromfile", "loadtxt", "genfromtxt", "memmap", "load_file"}
READERS |= {"safe_open", "ZipFile", "open_memmap", "file_digest"}


def reads(call: ast.Call) -> bool:
    """Whether a call may open a file to read, judged by its name."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name != "load" and name not in READERS:
        return False
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name == "load":
        return owner in ("np", "numpy", "torch", "json", "pickle", "yaml", "toml", "tomllib")
    return name in READERS and owner != "files"


def mode_writes(call: ast.Call, place: int) -> bool:
    """Whether the mode of an open may write; one that is not written out may."""
    given = [k.value for k in call.keywords if k.arg == "mode"] + call.args[place : place + 1]
    if not given:
        return False
    return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in given)


def writes(call: ast.Call) -> bool:
    """Whether a call may change a file, judged by its name."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in MAY_WRITE:
        return False
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name in NAMES or name in OF_MODULE.get(owner, ()):
        return not (owner == "os" and name == "open" and "O_RDONLY" in ast.unparse(call))
    if name in ("open", "fdopen"):
        if owner == "Image" or owner == "zipfile":
            return False
        return mode_writes(call, 1 if owner in ("", "os", "io") else 0)
    if name == "save":
        return owner not in OURS and not owner.endswith("safetensors.numpy") and bool(call.args)
    if name in ("replace", "rename") and owner not in ("os", "dataclasses"):
        return name == "rename" or (len(call.args) == 1 and not call.keywords and owner != "")
    return False


def found_writes(file: str, source: str, kind: Callable[[ast.Call], bool] = writes) -> Iterator[tuple[str, str, str]]:
    """File, function and text of every call that writes, or is of another kind."""

    def visit(node: ast.AST, where: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = (*where, node.name)
        if isinstance(node, ast.Call) and kind(node):
            yield file, ".".join(where), ast.unparse(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, where)

    yield from visit(ast.parse(source), ())


def test_everything_is_written_by_intseg_files() -> None:
    own = [p for p in (ROOT / "intseg").rglob("*.py") if not {"kernels", "tools"} & set(p.parts)]
    sources = [*own, *(ROOT / "kernels").glob("*.py")]
    paths = {path.relative_to(ROOT).as_posix(): path for path in sources}
    found = {call for name, path in paths.items() for call in found_writes(name, path.read_text(encoding="utf-8"))}
    assert {call for call in found if call[0] != "intseg/files.py"} == set(ALLOWED)
    assert len(found) > len(ALLOWED)


READ = {
    ("intseg/images/decode.py", "opened", "Image.open(io.BytesIO(data), formats=FORMATS)"): "from memory",
    ("intseg/workbench/dump.py", "read_npz", "zipfile.ZipFile(file)"): "of a file that files.opened gave",
}
"""File, function and call of everything that opens a file to read another way than by intseg.files, and why."""


def test_everything_is_read_by_intseg_files() -> None:
    """Kernels import nothing of intseg: the entries of their cache are read as tests/test_jit.py says."""
    found = {
        call
        for path in (ROOT / "intseg").rglob("*.py")
        if not {"kernels", "tools"} & set(path.parts) and path != ROOT / "intseg" / "files.py"
        for call in found_writes(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"), reads)
    }
    assert {call for call in found if call not in ALLOWED} == set(READ)


BY_HAND = {
    "bench.py": "inputs in a temporary folder",
    "bench_batch.py": "inputs in a temporary folder",
    "commands.py": "models in a temporary folder",
    "compare_reader.py": "works in a temporary folder",
    "crash.py": "works in a temporary folder",
    "published.py": "checkpoints in a temporary folder",
    "quantized.py": "works in a temporary folder",
    "guard.py": "files in a temporary folder; a failing case is copied out, and made again by its seed",
    "fuzz.py": "workers in a temporary folder",
    "neighbours.py": "works in a temporary folder",
    "nodes.py": "images and drivers in a temporary folder",
    "machine_run.py": "works in a temporary folder",
    "machines.py": "fetches into a cache folder; its results are made again by the same command",
    "mutate_package.py": "a copy of the checkout in a temporary folder",
    "matrix.py": "workers in a temporary folder; its table is made again by the same command",
}
"""Tools that may write otherwise, and why."""

TO_MEMORY = {("convert.py", "torch.save"), ("checkpoint.py", "torch.save"), ("training.py", "torch.save")}
TO_MEMORY |= {("make_golden.py", "tempfile.TemporaryDirectory"), ("readme.py", "tempfile.TemporaryDirectory")}
TO_MEMORY |= {("readme.py", "picture"), ("bench_bits.py", "tempfile.TemporaryDirectory")}
TO_MEMORY |= {("memory.py", "tempfile.TemporaryDirectory")}
TO_MEMORY |= {("compare_tosa.py", "np.save"), ("compare_tosa.py", "tempfile.TemporaryDirectory")}
"""Of tools that write results: to a buffer, a folder that --check compares with or where README's commands run."""


def test_tools_that_write_results_write_by_intseg_files() -> None:
    found = {
        (name, call.split("(", 1)[0] if "fromarray" not in call else "Image.fromarray(pixels).save")
        for path in [*(ROOT / "tools").rglob("*.py"), *(ROOT / "tests" / "trust").glob("*.py")]
        for name, _, call in found_writes(path.name, path.read_text(encoding="utf-8"))
        if path.name not in BY_HAND
    }
    assert found == TO_MEMORY


@pytest.mark.parametrize(
    "code",
    [
        "open(p, 'w')", "open(p, mode='a')", "open(p, m)", "p.open('wb')", "p.open('r+b')", "p.write_text(t)",
        "p.write_bytes(b)", "os.replace(a, b)", "p.replace(q)", "p.rename(q)", "os.open(p, os.O_WRONLY)",
        "np.save(p, a)", "image.save(p)", "torch.save(x, p)", "safetensors.numpy.save_file(t, p)", "shutil.copy(a, b)",
        "os.fdopen(d, 'wb')", "tempfile.mkstemp()", "array.tofile(p)",
    ],
)  # fmt: skip
def test_the_check_finds_writers(code: str) -> None:
    assert list(found_writes("x.py", f"def f():\n    {code}")) == [("x.py", "f", ast.unparse(ast.parse(code)))]


@pytest.mark.parametrize(
    "code",
    ["open(p)", "open(p, 'rb')", "p.open('rb')", "Image.open(p, 'r')", "text.replace('a', 'b')", "store.save(g, p)"],
)
def test_the_check_passes_readers(code: str) -> None:
    assert not list(found_writes("x.py", code))


@pytest.mark.parametrize(
    "code",
    ["open(p)", "p.open('rb')", "p.read_bytes()", "p.read_text()", "Image.open(p)", "np.load(p)", "np.fromfile(p)"],
)
def test_the_check_finds_readers(code: str) -> None:
    assert list(found_writes("x.py", f"def f():\n    {code}", reads))


# ---------------------------------------------------------------------------------------------------------- journals


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: weights, three images and labels."""
    monkeypatch.chdir(tmp_path)
    tool.make_inputs(tmp_path / "inputs", 3, 20, 30)
    return tmp_path


INFER = ["infer", "inputs/images", "-w", "inputs/w.safetensors", "-o", "out", "--resume", "--backend", "numpy", "-q"]
EVAL = ["eval", "--images", "inputs/images", "--labels", "inputs/labels", "-w", "inputs/w.safetensors"]
EVAL += ["--backend", "numpy", "--resume", "journal.jsonl", "--json"]


@pytest.mark.parametrize(("command", "journal"), [(INFER, "out/.intseg-journal.jsonl"), (EVAL, "journal.jsonl")])
@pytest.mark.parametrize("tail", [b"", b"\0" * 40])
def test_a_journal_cut_anywhere_gives_the_same(
    small: Path, command: list[str], journal: str, tail: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """A power failure may cut it at any byte, or leave zeros where a line was to be."""
    assert cli.main(command) == 0
    path, printed = small / journal, capsys.readouterr().out
    whole, expected = path.read_bytes(), tool.contents(small)
    cuts = [*random.Random(0).sample(range(len(whole)), 12), len(whole)]
    for cut in cuts:
        if tail and b"\n" not in whole[:cut]:
            continue  # intseg eval takes zeros alone for another program's file, and says so
        path.write_bytes(whole[:cut] + tail)
        assert cli.main(command) == 0
        assert capsys.readouterr().out == printed
        assert tool.contents(small) == expected


# ------------------------------------------------------------------------------------------- killed and without space


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of tests/trust/crash.py with inputs of three images."""
    crash = tool
    make = crash.make_inputs
    crash.make_inputs = lambda folder: make(folder, 3, 50, 60)
    try:
        return crash.Lab(tmp_path_factory.mktemp("crash"))
    finally:
        crash.make_inputs = make


def command(name: str) -> Any:
    return next(command for command in tool.COMMANDS if command.name == name)


@posix
@pytest.mark.parametrize("name", ["infer --jobs 2, parent alone", "trace"])
def test_a_killed_run_goes_on_to_the_same_results(lab: Any, name: str) -> None:
    expected, duration = tool.unbroken(lab, command(name))
    tally = tool.kill_run(lab, command(name), expected, duration, random.Random(name))
    assert (tally.runs, tally.different) == (1, 0)


@posix
@pytest.mark.parametrize("name", ["infer --jobs 1", "eval --jobs 1"])
def test_a_run_killed_before_a_file_operation_goes_on(lab: Any, name: str) -> None:
    crash, run = tool, command(name)
    expected, steps = crash.unbroken(lab, run)[0], crash.operations(lab, run)
    for at in {steps, random.Random(0).randint(1, steps)}:
        work = lab.new()
        assert crash.watched(lab, run, work, at)[0] == -signal.SIGKILL
        assert crash.same(run, lab.finish(run, work), expected)


@posix
def test_a_full_disk_is_one_error_and_nothing_half_written(lab: Any) -> None:
    crash, run = tool, command("infer --jobs 1")
    expected = crash.unbroken(lab, run)[0]
    work = lab.new()
    code, err, _ = crash.watched(lab, run, work, 4, 28)
    assert code == 4
    assert "No space left on device; free space" in err
    assert crash.judge(lab, run, expected, work, code, err, crash.nothing) == (4, True)


@posix
def test_a_read_only_folder_is_one_error(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.readonly(lab, [command("trace")]) == 0


@posix
def test_the_comparison_catches_a_writer_in_place(lab: Any) -> None:
    """The canary: results that are kept when they are there, written where they will be."""
    code = (
        "import os\n"
        "if not os.path.exists('a.txt'):\n"
        "    print('first half', file=open('a.txt', 'w'))\n"
        "    print('second half', file=open('a.txt', 'a'))\n"
    )
    crash = tool
    canary = crash.Command("canary", ("-W", "ignore", "-c", code), 1)
    expected, _ = crash.unbroken(lab, canary)
    same = []
    for at in range(1, crash.operations(lab, canary) + 1):
        work = lab.new()
        assert crash.watched(lab, canary, work, at)[0] == -signal.SIGKILL
        same.append(crash.same(canary, lab.finish(canary, work), expected))
    assert same == [True, False]
