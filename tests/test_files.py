"""intseg.files: what is not a regular file, who may replace what, text of any system."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from intseg import errors, files
from intseg.errors import InputError, UsageError

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices as POSIX has them")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test waits for a pipe as long as people may."""
    monkeypatch.setattr(files, "NO_WRITER", 0.05)
    monkeypatch.setattr(files, "SILENCE", 0.2)
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 300


# --------------------------------------------------------------------------------------------------------- reading


def pipe(path: Path) -> None:
    os.mkfifo(path)


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "is a folder, expected a file"),
    "pipe": (pipe, "is a pipe, expected a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a file"),
    "nothing": (lambda path: None, "No such file or directory"),
    "loop": (lambda path: path.symlink_to(path), "symbolic links"),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("reader", [files.read, files.read_text, files.opened, files.sha256])
def test_only_regular_files_are_read_and_nothing_is_waited_for(
    tmp_path: Path, name: str, reader: Callable[..., object]
) -> None:
    make, reason = STRANGE[name]
    make(tmp_path / "a")
    with pytest.raises(InputError) as caught:
        reader(tmp_path / "a", "the thing", "look there")
    assert str(caught.value).startswith(f"{tmp_path / 'a'}: cannot read the thing: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; look there")


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    assert files.read(tmp_path / "a", limit=100) == bytes(100)
    with pytest.raises(InputError, match="100 bytes, expected at most 99"):
        files.read(tmp_path / "a", limit=99)
    with pytest.raises(InputError, match="device"):
        files.read("/dev/zero", pipes=True)
    with pytest.raises(InputError, match="more bytes, expected at most 10"):
        files.read("/proc/self/status", limit=10)  # has no size before it is read
    with pytest.raises(InputError, match="no file can have this name"):
        files.read("a\0b")


def written_to(path: Path, parts: list[bytes], pause: float) -> threading.Thread:
    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            for part in parts:
                file.write(part)
                time.sleep(pause)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_a_pipe_is_read_where_a_stream_makes_sense(tmp_path: Path) -> None:
    path = tmp_path / "a"
    pipe(path)
    thread = written_to(path, [b"1" * 100_000, b"2"], 0.05)
    assert files.read(path, pipes=True) == b"1" * 100_000 + b"2"
    thread.join()
    thread = written_to(path, [b"1" * 100], 0)
    with pytest.raises(InputError, match="expected at most 99"):
        files.read(path, limit=99, pipes=True)
    thread.join()


def test_a_pipe_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "a"
    pipe(path)
    assert files.read(path, pipes=True) == b""  # nobody came
    holder = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(InputError, match=r"is a pipe that gave nothing for"):
            files.read(path, pipes=True)
    finally:
        os.close(holder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_every_system(tmp_path: Path, encoding: str, end: str) -> None:
    text = f"road{end}Fußgänger{end}{end}"
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "a").write_bytes((mark + text).encode(encoding))
    assert files.read_text(tmp_path / "a") == "road\nFußgänger\n\n"


@pytest.mark.parametrize("data", [b"\xff", b"a\0b", "a".encode("utf-16-le"), b"\xff\xfea", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match="cannot read the list: not a text file; give one"):
        files.read_text(tmp_path / "a", "the list", "give one")


# --------------------------------------------------------------------------------------------------------- writing


def append(path: Path) -> None:
    file = files.Growing(path)
    try:
        file.append(b"new")
    finally:
        file.close()


WRITERS = {"file": lambda path: files.write_atomically(path, b"new"), "journal": append}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("target", ["victim", "nothing", "/dev/null"])
def test_links_are_not_written_through(tmp_path: Path, writer: str, target: str) -> None:
    (tmp_path / "victim").write_bytes(b"old")
    link = tmp_path / "a"
    link.symlink_to(target)
    with pytest.raises(InputError, match=f"is a symbolic link to {target}, and links are not written through"):
        WRITERS[writer](link)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "victim"]
    assert (tmp_path / "victim").read_bytes() == b"old"


@pytest.mark.parametrize("writer", WRITERS)
def test_pipes_devices_and_folders_are_not_replaced(tmp_path: Path, writer: str) -> None:
    pipe(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (Path("/dev/null"), "device"), (tmp_path, "folder")):
        before = os.lstat(path)
        with pytest.raises(InputError, match=f"is a {kind}"):
            WRITERS[writer](path)
        assert (os.lstat(path).st_ino, os.lstat(path).st_rdev) == (before.st_ino, before.st_rdev)


def test_what_takes_the_name_while_it_is_written_is_not_replaced(tmp_path: Path) -> None:
    def link_comes_late() -> None:
        with files.Replacement(tmp_path / "a") as file:
            file.write(b"new")
            (tmp_path / "a").symlink_to("victim")

    with pytest.raises(InputError, match="symbolic link"):
        link_comes_late()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    files.write_atomically(tmp_path / "a", b"new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "posix" and os.getuid() != 0, reason="only root gives files away")
def test_a_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    os.chown(tmp_path / "a", 12345, 23456)
    files.write_atomically(tmp_path / "a", b"new")
    found = (tmp_path / "a").stat()
    assert (found.st_uid, found.st_gid) == (12345, 23456)


def test_what_a_group_was_allowed_is_not_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    old = os.stat_result((stat.S_IFREG | 0o664, 1, 1, 1, 12345, 23456, 0, 0, 0, 0))
    monkeypatch.setattr(os, "fchown", refuse)
    with files.create(tmp_path / "a") as file:
        files._take_over(file.fileno(), old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604


def test_another_name_of_the_file_keeps_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"old")
    os.link(tmp_path / "victim", tmp_path / "a")
    with pytest.raises(InputError, match="no file of its own"):
        append(tmp_path / "a")
    files.write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "victim").read_bytes() == b"old"


def test_a_leftover_goes_once_nobody_holds_it(tmp_path: Path) -> None:
    """Files and folders, of this name only, in every folder that is named."""
    (tmp_path / "other").mkdir()
    (tmp_path / ".a.00000000.part").write_bytes(b"half")
    (tmp_path / "other" / ".a.00000001.part").mkdir()
    (tmp_path / "other" / ".a.00000001.part" / "b").write_bytes(b"half")
    (tmp_path / "other" / ".c.00000002.part").mkdir()
    held = os.open(tmp_path / ".a.00000003.part", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    files.remove_leftovers([tmp_path / "a", tmp_path / "other" / "a", tmp_path / "none" / "a"])
    os.close(held)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        ".a.00000003.part",
        "other",
        "other/.c.00000002.part",
    ]


def test_leftovers_that_are_planted_stay_what_they_are(tmp_path: Path) -> None:
    """A link to a folder, a pipe, a device: nothing is followed, opened for long, or removed."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "kept").write_bytes(b"old")
    (tmp_path / ".a.00000000.part").symlink_to("victim")
    (tmp_path / ".a.00000001.part").symlink_to("victim/kept")
    pipe(tmp_path / ".a.00000002.part")
    before = sorted(path.name for path in tmp_path.iterdir())
    files.remove_leftovers([tmp_path / "a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "victim" / "kept").read_bytes() == b"old"


def test_a_new_folder_is_filled_with_new_files(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "a") as folder:
        (folder / "link").symlink_to(tmp_path / "victim")
        with pytest.raises(FileExistsError):
            files.create(folder / "link")
        (folder / "link").unlink()
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(InputError, match="not an empty folder"), files.new_folder(tmp_path / "link"):
        pass


def test_a_journal_belongs_to_one_process(tmp_path: Path) -> None:
    journal = files.Growing(tmp_path / "a")
    journal.append(b"1\n2\n")
    with pytest.raises(InputError, match="another run is at work here"):
        files.Growing(tmp_path / "a")
    journal.truncate(2)
    journal.append(b"3\n")
    assert journal.read() == b"1\n3\n"
    with pytest.raises(InputError, match="4 bytes, expected at most 3"):
        journal.read(3)
    journal.close()
    files.Growing(tmp_path / "a").close()  # its owner is gone


# --------------------------------------------------------------------------- whole or not at all, and what is left


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


_DIE = """
import os, signal, sys
from pathlib import Path
from intseg import files
if sys.argv[2] == "file":
    with files.Replacement(Path(sys.argv[1])) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
with files.new_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_leaves_goes_with_the_next_write(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", _DIE, str(target), kind], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
        (left,) = names(tmp_path)
        assert files._LEFTOVER.fullmatch(left)
    (tmp_path / ".b.01234567.part").write_bytes(b"of another name")
    if kind == "file":
        files.write_atomically(target, b"whole")
    else:
        with files.new_folder(target) as folder:
            (folder / "a").write_bytes(b"whole")
    assert names(tmp_path) == [".b.01234567.part", "a"]


def test_what_a_living_writer_works_on_stays(tmp_path: Path) -> None:
    with files.Replacement(tmp_path / "a") as first, files.Replacement(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
        assert len(names(tmp_path)) == 2
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]
    with files.new_folder(tmp_path / "b") as folder:
        files.remove_leftovers([tmp_path / "b"])
        (folder / "c").write_bytes(b"")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, InputError])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def half_a_file() -> None:
        with files.Replacement(tmp_path / "a") as file:
            file.write(b"half")
            raise error

    def half_a_folder() -> None:
        with files.new_folder(tmp_path / "a") as folder:
            (folder / "b").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        half_a_file()
    with pytest.raises((error, InputError)):
        half_a_folder()
    assert names(tmp_path) == []


def test_names_as_long_as_the_file_system_takes_them(tmp_path: Path) -> None:
    longest = tmp_path / ("\N{SNOWMAN}" * 85)
    files.write_atomically(longest, b"1")
    assert longest.read_bytes() == b"1"


def test_a_new_folder_replaces_an_empty_one_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with files.new_folder(tmp_path / "a") as folder:
        (folder / "b").mkdir()
    with pytest.raises(InputError, match="not an empty folder"), files.new_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~mask


@pytest.mark.skipif(sys.platform != "linux", reason="counts system calls as Linux makes them")
def test_file_and_folder_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    files.write_atomically(tmp_path / "a", b"1")
    assert [Path(name).parent if ".part" in name else name for name in flushed] == [tmp_path, str(tmp_path)]
    flushed.clear()
    with files.new_folder(tmp_path / "b") as folder:
        (folder / "c").write_bytes(b"")
    assert flushed == [f"{folder}/c", str(folder), str(tmp_path)]


# ------------------------------------------------------------------------------------------------------------ JSON

DEEP = "[" * 990 + "]" * 990


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"a":' * 3000,
        "NaN",
        "[1e999]",
        "9" * 5000,
        "[" * 33 + "]" * 33,
        "{",
        b"\xff",
        "",
        r'"\ud800"',
        '"\ud800"',
        rb'{"\udfff": 1}',
    ],
    ids=lambda t: "text",
)
def test_json_that_is_none(text: str | bytes):
    with pytest.raises(ValueError):  # noqa: PT011  any
        files.parse_json(text)
    assert files.parse_json("[" * 32 + "]" * 32) == files.parse_json(b"[" * 32 + b"]" * 32)
    assert files.parse_json(r'{"\ud83d\ude00": [1, 2.5, "\u00e9"]}') == {"\U0001f600": [1, 2.5, "é"]}


# ----------------------------------------------------------------------------------------------------- before work


@pytest.mark.parametrize("how", ["same", "link", "hard link", "through a folder", "in a folder"])
def test_no_output_is_an_input(tmp_path: Path, how: str) -> None:
    (tmp_path / "in.npy").write_bytes(b"old")
    (tmp_path / "there").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to("in.npy")
    os.link(tmp_path / "in.npy", tmp_path / "hard")
    names = {"link": "link", "hard link": "hard", "through a folder": "there/in.npy"}
    read = tmp_path / ("in.npy" if how != "in a folder" else "")
    with pytest.raises(UsageError, match="which is read"):
        files.require_apart([tmp_path / "other", tmp_path / names.get(how, "in.npy")], [tmp_path, *files.held(read)])
    files.require_apart([tmp_path / "there" / "in.npy"], [tmp_path])  # a folder of pictures may hold results


def test_no_two_outputs_are_one(tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to(tmp_path)
    (tmp_path / "page.html").write_bytes(b"old")
    for one, other in (("a", "a"), ("a", "there/a"), ("none/a", "none/../none/a")):
        with pytest.raises(UsageError, match="which is written too"):
            files.require_apart([tmp_path / one, tmp_path / other], [])
    files.require_apart([tmp_path / "a", tmp_path / "b", tmp_path / "page.html"], [tmp_path, tmp_path / "c"])


def test_an_output_that_is_not_there_yet_is_an_input_all_the_same(tmp_path: Path) -> None:
    """A race with what makes the input: names are compared where there is no file."""
    with pytest.raises(UsageError, match="which is read"):
        files.require_apart([tmp_path / "a"], [tmp_path / "." / "a"])


# -------------------------------------------------------------------------------------------------- numbers and text


@pytest.mark.parametrize("text", ["0", "11", "-1", "1.0", "", "¹", "٣", "9" * 5000, "1_0", " 1", "+1"])
def test_a_number_has_a_range_that_the_message_states(text: str) -> None:
    with pytest.raises(UsageError, match="is not a whole number from 1 to 10") as caught:
        errors.number(text, 1, 10)
    assert len(str(caught.value)) < 100
    assert errors.number("10", 1, 10) == 10
    assert errors.number("-3", -5, 10) == -3


@pytest.mark.parametrize(("text", "clipped"), [("abc", "abc"), ("abcd", "ab…"), ("a\nb", r"a\…"), ("ab", "ab")])
def test_text_is_clipped_to_a_length(text: str, clipped: str) -> None:
    assert errors.clip(text, 3) == clipped


def test_closed_streams_say_so(tmp_path: Path) -> None:
    """`>&-` and `<&-`: one line and a code, not a traceback or silence."""
    for closed, code in (("0", 4), ("1", 4)):
        script = f"exec {closed}{'<' if closed == '0' else '>'}&-; exec {sys.executable} -m intseg.cli "
        script += "infer - -o a.png" if closed == "0" else "models --json"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert "closed" in done.stderr
