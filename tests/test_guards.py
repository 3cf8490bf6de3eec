"""Guards whose loss no other test would notice: each was changed by hand once, and everything passed."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_graph

from intseg import api, model, store
from intseg.cli import main as cli
from intseg.errors import InputError
from intseg.images import decode as pictures
from intseg.workbench import diff, dump, sides

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: w.safetensors, three images in `in`, their labels in `truth`, `there` a link to `in`."""
    monkeypatch.chdir(tmp_path)
    store.save(tiny_graph(), tmp_path / "w.safetensors")
    for folder in ("in", "truth"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            pixels = np.random.default_rng(ord(name)).integers(0, 3, (24, 32), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "there").symlink_to("in")
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main([*arguments, "-w", "w.safetensors", "--backend", "numpy", "-q"])


@pytest.mark.parametrize(("word", "fits"), [("007f", True), ("ff80", True), ("0080", False), ("ff7f", False)])
def test_a_word_that_the_dtype_cannot_hold_does_not_wrap(word: str, fits: bool) -> None:
    options = dump.Options(width=16)
    if fits:
        assert dump._decode(word.encode(), "hex", "int8", [1], options).dtype == np.int8
    else:
        with pytest.raises(InputError, match="do not fit int8"):
            dump._decode(word.encode(), "hex", "int8", [1], options)


def test_integers_that_a_double_may_have_rounded_are_refused() -> None:
    expected = np.zeros(1, np.int64)
    for value in (2.0**53 - 1, 1 - 2.0**53):
        assert diff.comparable("x", expected, np.array([value]))[0].tolist() == [int(value)]
    for value in (2.0**53, -(2.0**53), 2.0**53 + 2):
        with pytest.raises(InputError, match="expected integers"):
            diff.comparable("x", expected, np.array([value]))


def test_no_more_models_are_remembered_than_it_says(tmp_path: Path) -> None:
    graph = tiny_graph()
    for i in range(model._REMEMBERED + 2):
        info = dataclasses.replace(graph.info, name=f"model {i}")
        store.save(dataclasses.replace(graph, info=info), tmp_path / f"{i}.safetensors")
        api.load(tmp_path / f"{i}.safetensors")
    assert len(model._models) == model._REMEMBERED


def webp(width: int) -> bytes:
    """An animation of one pixel on a canvas of one row."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (1, 1), (i, i, i)) for i in (0, 200)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    data = bytearray(file.getvalue())
    at = data.index(b"VP8X") + 12
    data[at : at + 3] = (width - 1).to_bytes(3, "little")
    return bytes(data)


def test_a_webp_canvas_is_no_wider_than_a_frame_can_be() -> None:
    assert pictures.decode(webp(16_383), (0, 0, 0)).rgb.shape == (1, 16_383, 3)
    with pytest.raises(InputError, match="canvas of 16384"):
        pictures.decode(webp(16_384), (0, 0, 0))


def test_threads_that_decode_leave_the_warning_filters_alone() -> None:
    """They are global to the process: the one that restores them last must be the one that saved them first."""
    first, second, done = threading.Event(), threading.Event(), threading.Event()
    before = warnings.filters[:]

    def one() -> None:
        pictures.guarded("one", lambda: (first.set(), second.wait(0.3)))
        done.set()

    def other() -> None:
        first.wait()
        pictures.guarded("other", lambda: (second.set(), done.wait(0.3)))

    threads = [threading.Thread(target=work) for work in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters[:] == before


def test_an_image_is_not_replaced_through_the_link_of_a_folder(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small / "in" / "a.png").rename(small / "in" / "b_labels.png")
    assert run("infer", "in/b.png", "in/b_labels.png", "-o", "there") == 2
    assert "would replace" in capsys.readouterr().err


def test_a_link_in_the_output_folder_leads_nowhere(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever can write to the output folder must not choose where else files appear, or which are cut or removed."""
    (small / "victims").mkdir()
    (small / "victims" / "victim").write_bytes(b"not yours")
    (small / "in" / "sub").mkdir()
    (small / "in" / "a.png").rename(small / "in" / "sub" / "a.png")
    (small / "out").mkdir()
    (small / "out" / "sub").symlink_to(small / "victims")
    assert run("infer", "in", "-r", "-o", "out") == 4
    assert "leads out of out through a symbolic link" in (small / "out" / "errors.jsonl").read_text()
    for name in (".intseg-journal.jsonl", "errors.jsonl"):
        (small / "out" / name).unlink(missing_ok=True)
        (small / "out" / name).symlink_to(small / "victims" / "victim")
        assert run("infer", "in", "-r", "-o", "out", "--force") == 4
        assert "symbolic link" in capsys.readouterr().err
        assert (small / "out" / name).is_symlink()
        (small / "out" / name).unlink()
    (small / "out" / "b.png").symlink_to(small / "victims")
    assert run("infer", "in/b.png", "-o", "out/b.png") == 4
    assert [path.name for path in (small / "victims").iterdir()] == ["victim"]
    assert (small / "victims" / "victim").read_bytes() == b"not yours"


def test_the_folder_of_a_batch_is_flushed_at_its_end(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert run("infer", "in", "-o", "out") == 0
    last = max(i for i, path in enumerate(flushed) if path.name.endswith(".part"))
    assert small / "out" in flushed[last:]


def test_a_journal_of_another_label_offset_is_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "--images", "in", "--labels", "truth", "--resume", "journal.jsonl"]
    assert run(*arguments) == 0
    assert run(*arguments) == 0
    capsys.readouterr()
    assert run(*arguments, "--label-offset", "1", "--ignore", "0") == 2
    assert "another meaning of labels" in capsys.readouterr().err


def test_too_many_open_files_are_not_blamed_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(api, "load", full)
    assert cli.main(["inspect"]) == 4
    assert capsys.readouterr().err == (
        "intseg: Too many open files; raise the limit of open files (ulimit -n), or use fewer --jobs\n"
    )


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_sigterm_ends_in_order(small: Path, jobs: str) -> None:
    """One line, no temporary, no process left, and the next run goes on."""
    for i in range(60):
        shutil.copy(small / "in" / "a.png", small / "in" / f"{i:03}.png")
    argv = [sys.executable, str(Path(__file__).with_name("slow.py")), "infer", "in", "-o", "out", "-w", "w.safetensors"]
    argv += ["--backend", "numpy", "-q", "--jobs", jobs]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    while process.poll() is None and not list(small.glob("out/*_labels.png")):
        time.sleep(0.01)
    process.terminate()
    assert (process.communicate(timeout=600)[1], process.returncode) == ("intseg: ended by SIGTERM\n", 143)
    assert not list(small.glob("out/.*.part"))
    end = time.monotonic() + 600  # multiprocessing's tracker ends after its parent
    while is_alive(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(process.pid)
    assert run("infer", "in", "-o", "out", "--resume") == 0


def test_a_trace_cut_after_it_was_opened(small: Path) -> None:
    assert run("trace", "in/a.png", "-o", "t.safetensors") == 0
    trace = sides.open_golden("t.safetensors", "w.safetensors")
    os.truncate("t.safetensors", 5000)
    with pytest.raises(InputError, match=r"t\.safetensors: was truncated while it was read"):
        [trace.file.read(name) for name in trace.file.names()]


def test_a_model_whose_tail_is_missing_is_a_bad_model_for_dump_too(small: Path) -> None:
    data = (small / "w.safetensors").read_bytes()
    for cut in (data[:-100], data[:1000], data[:500] + b"\0" + data[501:]):
        (small / "cut.safetensors").write_bytes(cut)
        for arguments in (["dump", "cut.safetensors", "-o", "d"], ["inspect", "cut.safetensors"]):
            assert cli.main(arguments) == 3


def test_a_picture_whose_name_begins_like_a_list(small: Path) -> None:
    (small / "@at.png").write_bytes((small / "in" / "a.png").read_bytes())
    assert run("infer", "@at.png") == 0
    assert (small / "@at_labels.png").exists()
