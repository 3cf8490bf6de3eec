"""The command line: what it prints, what it writes, and one line with an exit code for everything that can go wrong."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_graph

import intseg
from intseg import backends, models, store
from intseg.batch import datasets
from intseg.cli import main as cli
from intseg.cli import parser, printing
from intseg.cli.infer import _lines_file
from intseg.reports import doctor

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"INTSEG_DEBUG": ""}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image, street.png, and weights, w.safetensors."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    store.save(tiny_graph(), tmp_path / "w.safetensors")
    return tmp_path


def infer(folder: Path, *arguments: str, image: str = "street.png") -> int:
    weights = () if "-w" in arguments else ("-w", str(folder / "w.safetensors"))
    return cli.main(["infer", str(folder / image), *weights, "--backend", "numpy", *arguments])


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")} - {"street.png", "w.safetensors"}


def run_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "intseg.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600, **options)


def assert_one_line_error(capsys: Capture, *words: str) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("intseg: ")
    assert "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0]


# ---------------------------------------------------------------------------------------------------------- infer


def test_infer_writes_both_pictures_beside_the_image_and_prints_the_classes(folder: Path, capsys: Capture) -> None:
    assert infer(folder) == 0
    assert names(folder) == {"street_labels.png", "street_overlay.png"}
    result = intseg.run(folder / "street.png", folder / "w.safetensors", "numpy")
    with Image.open(folder / "street_labels.png") as labels:
        assert labels.mode == "P"
        assert np.array_equal(np.asarray(labels), result.labels)
        assert np.array_equal(np.asarray(labels.convert("RGB")), np.array(result.palette, np.uint8)[result.labels])
    with Image.open(folder / "street_overlay.png") as overlay:
        assert np.array_equal(np.asarray(overlay)[:40, :57], np.asarray(result.overlay()))
        assert overlay.height > 40
    captured = capsys.readouterr()
    assert captured.err == ""
    first, *table, labels_line, overlay_line = captured.out.splitlines()
    assert "57 x 40" in first
    assert [line.strip().rsplit(maxsplit=1)[0].strip() for line in table] == list(result.shares())
    assert len({len(line) for line in table}) == 1
    assert labels_line.endswith("street_labels.png")
    assert overlay_line.endswith("street_overlay.png")
    before = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert infer(folder) == 0
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == before


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["-o", "{}/out.png"], {"out.png", "street_overlay.png"}),
        (["-o", "{}/sub"], {"sub", "sub/street_labels.png", "sub/street_overlay.png"}),
        (["-o", "{}/sub/"], {"sub", "sub/street_labels.png", "sub/street_overlay.png"}),
        (["-o", "{}/out.png", "--no-overlay"], {"out.png"}),
        (["--overlay", "{}/o.jpg"], {"street_labels.png", "o.jpg"}),
        (["--opacity", "1"], {"street_labels.png", "street_overlay.png"}),
    ],
)
def test_infer_options(folder: Path, arguments: list[str], written: set[str]) -> None:
    if "sub" in written:
        (folder / "sub").mkdir()
    assert infer(folder, *(argument.format(folder) for argument in arguments)) == 0
    assert names(folder) == written


def test_infer_in_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["infer", "street.png", "-w", "w.safetensors", "--backend", "numpy", "-o", "out.png"]) == 0
    assert names(folder) == {"out.png", "street_overlay.png"}
    assert "wrote out.png" in capsys.readouterr().out


def test_infer_json(folder: Path, capsys: Capture) -> None:
    assert infer(folder, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    result = intseg.run(folder / "street.png", folder / "w.safetensors", "numpy")
    assert printed["labels_sha256"] == hashlib.sha256(result.labels.tobytes()).hexdigest()
    assert printed["model"]["sha256"] == hashlib.sha256((folder / "w.safetensors").read_bytes()).hexdigest()
    assert (printed["width"], printed["height"], printed["backend"]) == (57, 40, "numpy")
    assert {entry["name"]: entry["pixels"] for entry in printed["classes"]} == result.counts()
    assert all(result.classes[entry["index"]] == entry["name"] for entry in printed["classes"])
    assert printed["written"]["labels"] == str(folder / "street_labels.png")
    assert infer(folder, "--json", "--no-overlay") == 0
    assert json.loads(capsys.readouterr().out)["written"]["overlay"] is None


def test_infer_says_what_it_did_to_an_image(folder: Path, capsys: Capture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (20, 10), (255, 0, 0, 100)).save(folder / "odd.png", exif=exif)
    assert infer(folder, image="odd.png") == 0
    captured = capsys.readouterr()
    assert "10 x 20" in captured.out
    notes = captured.err.splitlines()
    assert len(notes) == 2
    assert all(note.startswith("note: ") for note in notes)
    assert "orientation 6" in notes[0]
    assert "transparency" in notes[1]
    assert infer(folder, "-q", image="odd.png") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "RGBA", "1"])
def test_infer_works_on_every_kind_of_image(folder: Path, mode: str, capsys: Capture) -> None:
    image = Image.new(mode, (9, 9)) if mode == "I;16" else Image.open(folder / "street.png").convert(mode)
    image.save(folder / "kind.tiff")
    assert infer(folder, image="kind.tiff") == 0
    assert capsys.readouterr().err.startswith("note: ")


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "0 bytes"),
        (b"some text", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (None, "No such file"),
        (-2000, "truncated"),
    ],
)
def test_bad_images(folder: Path, data: bytes | int | None, word: str, capsys: Capture) -> None:
    """An int: the street but its last bytes."""
    if data is not None:
        found = (folder / "street.png").read_bytes()[:data] if isinstance(data, int) else data
        (folder / "bad.png").write_bytes(found)
    assert infer(folder, image="bad.png") == 4
    assert_one_line_error(capsys, word, "bad.png")
    assert names(folder) <= {"bad.png"}


def test_image_over_pillows_limit(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert infer(folder) == 4
    assert_one_line_error(capsys, "exceeds limit", "street.png")
    assert names(folder) == set()


def test_image_is_a_folder(folder: Path, capsys: Capture) -> None:
    (folder / "sub.png").mkdir()
    assert infer(folder, "-o", str(folder / "out"), image="sub.png") == 4
    assert_one_line_error(capsys, "no image in this folder")
    assert infer(folder, image="sub.png") == 2
    assert_one_line_error(capsys, "need -o DIR")
    assert names(folder) == {"sub.png"}


def float_weights() -> bytes:
    import safetensors.numpy

    data: bytes = safetensors.numpy.save({"encoder.norm.weight": np.ones(3, np.float32)})
    return data


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda data: data[:-10], 3, "truncated"),
        (lambda data: data[:100], 3, "truncated"),
        (lambda data: b"", 3, "0 bytes"),
        (lambda data: float_weights(), 3, "intseg convert"),
        (lambda data: data.replace(b'\\"format\\":1', b'\\"format\\":9'), 3, "format version 9"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), 3, "sha256"),
        (None, 4, "cannot read weights"),
    ],
    ids=["cut", "cut-header", "empty", "float", "future", "flipped-bit", "missing"],
)
def test_bad_weights(folder: Path, change: Any, code: int, word: str, capsys: Capture) -> None:
    bad = folder / "bad.safetensors"
    if change:
        bad.write_bytes(change((folder / "w.safetensors").read_bytes()))
    assert infer(folder, "-w", str(bad)) == code
    assert_one_line_error(capsys, word, "bad.safetensors")
    assert names(folder) <= {"bad.safetensors"}


def test_no_bundled_model(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(models, "_folder", lambda: folder / "none")
    assert cli.main(["infer", str(folder / "street.png")]) == 3
    assert_one_line_error(capsys, "camvid-tiny")
    assert cli.main(["models"]) == 3
    assert_one_line_error(capsys, "install intseg again")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["-o", "{}/none/out.png"], 4, "no folder"),
        (["-o", "{}/none/"], 4, "no folder"),
        (["--overlay", "{}/none/out.png"], 4, "no folder"),
        (["--overlay", "{}/sub.png"], 4, "is a folder"),
        (["-o", "{}/out.jpg"], 2, "without loss"),
        (["-o", "{}/out"], 2, ".png"),
        (["--overlay", "{}/out.txt"], 2, ".png"),
        (["-o", "{}/street.png"], 2, "choose "),
        (["--overlay", "{}/./street.png"], 2, "choose "),
        (["-o", "{}/a.png", "--overlay", "{}/a.png"], 2, "choose "),
        (["--opacity", "2"], 2, "from 0 to 1"),
        (["--opacity", "nan"], 2, "from 0 to 1"),
        (["--threads", "0"], 2, "from 1 to 1024"),
        (["--threads", "many"], 2, "from 1 to 1024"),
        (["--backend", "cuda"], 2, "numpy"),
        (["--overlay", "a.png", "--no-overlay"], 2, "not allowed"),
        (["more.png"], 2, "need -o DIR"),
        (["--palette", "grey"], 2, "did you mean gray?"),
        (["--palette", "{}/none.txt"], 4, "cannot read the palette"),
        (["--label-map", "class1=3,*=0"], 2, "did you mean class 1?"),
    ],
)
def test_bad_arguments(folder: Path, arguments: list[str], code: int, word: str, capsys: Capture) -> None:
    (folder / "sub.png").mkdir()
    before = (folder / "street.png").read_bytes()
    assert infer(folder, *(argument.format(folder) for argument in arguments)) == code
    assert_one_line_error(capsys, word)
    assert names(folder) == {"sub.png"}
    assert (folder / "street.png").read_bytes() == before


def test_read_only_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert infer(folder) == 4
    assert_one_line_error(capsys, "read-only", "-o")
    assert names(folder) == set()


def test_disk_full_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert infer(folder) == 4
    assert_one_line_error(capsys, "No space left")
    assert names(folder) == set()


@pytest.mark.parametrize("arguments", [["--frob"], ["frob"], ["infer"], ["eval", "--layout", "none"]])
def test_usage_errors_are_one_line(arguments: list[str], capsys: Capture) -> None:
    assert cli.main(arguments) == 2
    assert_one_line_error(capsys, "--help")


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (ValueError("two\nlines"), 5, "please report"),
        (MemoryError(), 4, "memory"),
        (KeyboardInterrupt(), 130, "interr"),
    ],
)
def test_anything_else_is_one_line_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: BaseException, code: int, word: str
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(backends, "class_map", fail)
    monkeypatch.delenv("INTSEG_DEBUG", raising=False)
    assert infer(folder) == code
    assert_one_line_error(capsys, word)
    assert names(folder) == set()


def test_a_traceback_only_when_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("INTSEG_DEBUG", "1")
    assert infer(folder, image="none.png") == 4
    assert "Traceback" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ other commands


def test_models(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (folder / "camvid-tiny.safetensors").write_bytes((folder / "w.safetensors").read_bytes())
    monkeypatch.setattr(models, "_folder", lambda: folder)
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["name", "camvid-tiny", "w"]
    assert cli.main(["models", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["camvid-tiny", "w"]


def test_warmup(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    called: list[bool] = []
    monkeypatch.setattr(backends, "warmup", lambda: called.append(True))
    monkeypatch.setattr(doctor, "examine", lambda threads: iter([doctor.Finding("versions", "intseg", "1")]))
    monkeypatch.setattr(backends, "has_numba", lambda: True)
    for arguments in (["doctor", "--warm"], ["warmup"]):
        assert cli.main(arguments) == 0
        assert "versions" in capsys.readouterr().out
    assert called == [True, True]
    monkeypatch.setattr(backends, "has_numba", lambda: False)
    assert cli.main(["warmup"]) == 2
    assert_one_line_error(capsys, "pip install numba")


def test_other_names(folder: Path, capsys: Capture) -> None:
    assert cli.main(["-q", "predict", str(folder / "street.png"), "-w", str(folder / "w.safetensors")]) == 0
    assert {"street_labels.png", "street_overlay.png"} <= names(folder)
    assert cli.main(["flatten", str(folder / "w.safetensors"), "-o", str(folder / "w.flat"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == (folder / "w.flat").stat().st_size
    assert not set(cli.ALIASES) & {command.name for command in cli.COMMANDS}


def test_no_command_shows_the_commands_by_task(capsys: Capture) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert list(cli.GROUPS) == [line for line in out.splitlines() if line in cli.GROUPS]
    assert all(f"  {command.name:14}" in out for command in cli.COMMANDS)
    assert cli.main(["-q"]) == 0
    assert capsys.readouterr().out == ""


def test_conversion_without_pytorch_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("intseg.tools.")]:
        monkeypatch.delitem(sys.modules, name)
        if name.count(".") == 2:  # the package keeps what was imported once
            monkeypatch.delattr(name, raising=False)
    assert cli.main(["convert", "c.pth", "-o", "m.safetensors", "--calibrate", "a.png"]) == 2
    assert_one_line_error(capsys, "torch", "intseg[tools]")
    assert cli.main(["train", "--root", "x", "-o", "y"]) == 2
    assert_one_line_error(capsys, "intseg[tools]")


@pytest.mark.parametrize("command", [(), *((command.name,) for command in cli.COMMANDS)])
def test_help_fits_a_screen(command: tuple[str, ...], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for line in (["help", *command], [*command, "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(line)
        assert stop.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 60
        assert max(map(len, lines)) <= 80


# ------------------------------------------------------------------------------------------------- real processes


def test_process(folder: Path) -> None:
    options = ["-w", "w.safetensors", "--backend", "numpy"]
    done = run_process("infer", "street.png", *options, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(folder) == {"street_labels.png", "street_overlay.png"}
    done = run_process("infer", "none.png", *options, cwd=folder)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (4, "", 1)
    assert run_process("--version").stdout.strip() == f"intseg {intseg.__version__}"


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/full and pipes")
def test_process_with_a_closed_or_full_standard_output(folder: Path) -> None:
    command = [sys.executable, "-m", "intseg.cli", "infer", "street.png", "-w", "w.safetensors", "--backend", "numpy"]
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=folder, env=ENVIRONMENT)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (141, "")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=folder, env=ENVIRONMENT)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_process_in_a_read_only_folder(folder: Path) -> None:
    folder.chmod(0o555)
    try:
        done = run_process("infer", "street.png", "-w", "w.safetensors", "--backend", "numpy", cwd=folder)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 4
    assert "read-only" in done.stderr


# ------------------------------------------------------------------------------- standard input, shells, first steps


class Standard:
    """Standard input with some bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_an_image_on_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert infer(folder) == 0
    capsysbinary.readouterr()
    data, weights = (folder / "street.png").read_bytes(), ["-w", str(folder / "w.safetensors"), "--backend", "numpy"]
    monkeypatch.setattr(sys, "stdin", Standard(data))
    assert cli.main(["infer", "-", *weights]) == 0
    captured = capsysbinary.readouterr()
    assert captured.out == (folder / "street_labels.png").read_bytes()
    assert captured.err == b""
    monkeypatch.setattr(sys, "stdin", Standard(data))
    written = ["-o", str(folder / "l.png"), "--overlay", str(folder / "o.png")]
    assert cli.main(["infer", "-", *weights, *written]) == 0
    assert (folder / "o.png").read_bytes() == (folder / "street_overlay.png").read_bytes()
    assert b"wrote" in capsysbinary.readouterr().out


@pytest.mark.parametrize(
    ("data", "arguments", "code", "word"),
    [
        (b"", [], 4, "standard input: 0 bytes"),
        (b"text", [], 4, "standard input: not an image"),
        (b"", ["-o", "out.jpg"], 2, "-o FILE.png"),
        (b"", ["--json"], 2, "redirect"),
        (b"", ["-o", "out.png", "--jsonl", "a.jsonl"], 2, "--jsonl"),
    ],
)
def test_bad_standard_input(
    folder: Path, data: bytes, arguments: list[str], code: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", Standard(data))
    assert cli.main(["infer", "-", "-w", "w.safetensors", "--backend", "numpy", *arguments]) == code
    assert_one_line_error(capsys, word)
    assert names(folder) == set()


SUGGESTIONS = {
    "infr x.png": "infer", "predct x.png": "predict", "segment x.png": "infer", "segmnt x": "infer", "x.PNG": "infer",
    "benchmark": "profile", "quantize x.pth": "convert", "infer x.png --jobz 3": "--jobs",
    "infer x.png --opacty=1": "--opacity", "infer x.png --backend numpi": "numpy",
    "infer x.png -w camvid-tny": "camvid-tiny", "eval --layout camvd": "camvid",
}  # fmt: skip
"""Command lines with a word that is mistyped or another program's, and the word that is suggested."""


@pytest.mark.parametrize("line", SUGGESTIONS)
def test_a_wrong_word_gets_a_suggestion(line: str, capsys: Capture) -> None:
    assert cli.main(line.split()) in (2, 4)
    assert_one_line_error(capsys, f"(did you mean {SUGGESTIONS[line]}?)")


def test_images_may_stand_between_options(folder: Path) -> None:
    (folder / "b.png").write_bytes((folder / "street.png").read_bytes())
    assert infer(folder, "-o", str(folder / "out"), str(folder / "b.png")) == 0
    assert {"out/b_labels.png", "out/street_labels.png"} <= names(folder)


def test_peak_memory_is_in_mib(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    kib = {"own": 300 * 1024, "children": 2**20}
    usage = SimpleNamespace(getrusage=lambda who: SimpleNamespace(ru_maxrss=kib[who]), RUSAGE_SELF="own")
    usage.RUSAGE_CHILDREN = "children"
    monkeypatch.setattr(printing, "resource", usage)
    printing.Clock().report()
    assert "300.0 MiB, the largest process of --jobs 1024.0\n" in capsys.readouterr().err


def test_names_that_are_known_without_numpy() -> None:
    assert ("auto", *backends.names()) == parser.BACKENDS
    assert tuple(datasets.LAYOUTS) == parser.LAYOUTS


@pytest.mark.parametrize(
    ("start", "most"),
    [
        ("import intseg", 2),
        ("from intseg.cli import main as cli; cli.main(['--help'])", 30),
        ("from intseg.cli import main as cli; cli.main(['infer', '--help'])", 60),
    ],
)
def test_first_steps_are_quick(start: str, most: int) -> None:
    """What is not imported takes no time: no NumPy, and few modules of intseg."""
    script = f"import sys\ntry:\n    {start}\nfinally:\n    print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    loaded = done.stdout.splitlines()[-1].split()
    assert not {"numpy", "PIL", "numba", "tqdm", "torch"} & set(loaded)
    assert 1 <= sum(name.split(".")[0] == "intseg" for name in loaded) <= most


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command(shell: str, capsys: Capture) -> None:
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in cli.COMMANDS)
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=text, text=True, capture_output=True).stderr == ""


def test_completion_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert_one_line_error(capsys, "intseg[completion]")


def test_nothing_is_coloured(folder: Path) -> None:
    environment = ENVIRONMENT | {"NO_COLOR": "1", "TERM": "xterm-256color"}
    for arguments in (["--help"], ["models"], ["infer", "street.png", "-w", "w.safetensors", "--backend", "numpy"]):
        command = [sys.executable, "-m", "intseg.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        assert "\x1b" not in done.stdout + done.stderr


# ----------------------------------------------------------------------------------------------- inputs and outputs

FILES = {"FILE", "DIR", "FOLDER", "IMAGE", "SRC", "W", "OUT", "GOLDEN", "OTHER", "CHECKPOINT", "JSON", "M", "P"}
"""Names of arguments that are files or folders."""


def made(kind: object, by: str) -> bool:
    return getattr(kind, "__qualname__", "").startswith(f"{by}.")


def test_every_argument_says_whether_it_is_read_or_written_and_every_number_has_a_range() -> None:
    """The guard of outputs and the ranges of numbers are in the types of arguments: none may lack one.

    And every command takes --json and -q."""
    (subparsers,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert {command.name for command in cli.COMMANDS} <= set(subparsers.choices)
    for name, sub in subparsers.choices.items():
        assert {"--json", "-q", "--quiet"} <= set(sub._option_string_actions), name
        for action in sub._actions:
            kind, where = action.type, f"{name} {action.option_strings or action.dest}"
            if action.metavar in FILES and action.dest != "overlay":
                path = isinstance(kind, type) and issubclass(kind, parser.Read | parser.Written)
                assert path or kind is _lines_file or made(kind, "written"), where
            elif action.metavar in ("N", "I", "S", "BITS"):
                assert made(kind, "whole"), where
            else:
                assert kind is not int, where


def test_every_default_is_what_the_help_says() -> None:
    """In brackets at its end; `*` is "all"."""
    (subparsers,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    told = 0
    for name, sub in subparsers.choices.items():
        for action in sub._actions:
            default = action.default
            known = default in (None, False, argparse.SUPPRESS, []) or default == "model"  # a palette: the first named
            if known or not action.option_strings:
                continue
            words = default if isinstance(default, list | tuple) else [default]
            said = " ".join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)
            said = re.escape("all" if said == "*" else said)
            assert re.search(rf"\(([^()]*, )?{said}([,;:][^()]*)?\)|default:? {said}", action.help or ""), (
                name,
                action,
            )
            told += 1
    assert told > 30


@pytest.mark.parametrize(
    "arguments",
    [
        ["trace", "a.safetensors", "-o", "link.safetensors"],
        ["flatten", "a.flat", "-o", "a.flat"],
        ["minimize", "b", "a.safetensors", "-o", "hard.safetensors"],
        ["diff", "a.html", "b", "--html", "a.html"],
        ["inspect", "a.svg", "--svg", "there/a.svg"],
        ["inspect", "b", "--svg", "new.svg", "--dot", "new.svg"],
        ["profile", "a.json", "--trace", "a.json"],
        ["report", "b", "a.html", "-o", "a.html"],
        ["dump", "--read", ".", "-o", "a.safetensors"],
        ["card", ".", "-o", "there"],
        ["truth-table", "gelu_table", "-w", "a.npz", "-o", "a.npz"],
        ["infer", "b", "-o", "b"],
        ["infer", "b", "-w", "a.png", "-o", "a.png"],
        ["infer", "b", "--palette", "a.png", "--overlay", "a.png"],
        ["infer", "b", "-o", "c.png", "--overlay", "there/c.png"],
        ["infer", "b", "--label-map", "a.json", "--jsonl", "a.json"],
        ["flatten", "b", "-o", "a.safetensors"],
        ["trace", "b", "-o", "a.png"],
    ],
)  # fmt: skip
def test_no_output_replaces_an_input_or_is_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for ending in (".safetensors", ".flat", ".html", ".svg", ".json", ".npz", ".png"):
        (tmp_path / f"a{ending}").write_bytes(b"kept")
    (tmp_path / "b").write_bytes(b"kept")
    (tmp_path / "there").symlink_to(tmp_path)
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    os.link("a.safetensors", "hard.safetensors")
    before = sorted(tmp_path.iterdir())
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert {path.read_bytes() for path in before if path.is_file()} == {b"kept"}


def test_only_one_module_prints() -> None:
    """What is printed passes the escaping of intseg/cli/printing.py; a name in a file must not move a cursor."""
    sources = [p for p in (ROOT / "intseg").rglob("*.py") if not {"kernels", "tools"} & set(p.parts)]
    for path in sources:
        if path.name != "printing.py":
            assert not re.search(r"(?<![\w.])print\(|sys\.stdout\.(write|buffer)", path.read_text(encoding="utf-8")), (
                path
            )
