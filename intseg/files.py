"""Every file that intseg opens is opened here.

    to read       `read` (bytes), `read_text` (any text file that people make), `opened` (to seek in), `sha256`
    to write      `write_atomically` (bytes), `Replacement` (piece by piece), `new_folder` with `create` inside of it
    to append     `Growing`: a journal, which belongs to one process at a time
    before work   `require_apart`: no output is an input or another output
    JSON          `parse_json`: whatever is wrong is one ValueError

What is read is opened once, without waiting, and looked at before a byte is taken: a regular file, or a pipe where the
caller says so. Devices, sockets and folders are refused, and no more than a limit is read. A pipe has a second for its
writer to come and a minute between two bytes.

What is written appears whole or not at all, whatever happens: an error, a full disk, a killed process. It is written
under a hidden name beside its own, ".NAME.xxxxxxxx.part", flushed to disk and renamed; at last the folder is flushed,
so that the new name survives a power failure. What a killed process leaves is a file or folder of such a name: no
command reads it, and the next write of the same name removes it.

Only a regular file is replaced; it keeps its permission bits, and its owner and group where the system lets it. A name
that is a symbolic link, a device, a pipe or a socket is refused: writing through a link is what whoever can write to
the folder would plant it for, and replacing the link is not what its owner made it for. Of a file with several names
(hard links) the others keep the old content. Nothing is appended to a file with several names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import select
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

from intseg.errors import InputError, UsageError

try:
    import fcntl
except ImportError:  # not POSIX: there an open file cannot be removed, which says as much as a lock
    fcntl = None  # type: ignore[assignment]

MAX_DATA = 2**32
"""Bytes that are read of a file of tensors at most."""

MAX_PICTURE = 2**30
"""Of an image file: 16 bits a channel of the largest picture that Pillow opens, uncompressed, are half of that."""

MAX_TEXT = 2**28
"""Of a text or a JSON file."""

MAX_DEPTH = 32
"""Lists and objects inside each other in JSON; intseg writes at most 6."""

NO_WRITER, SILENCE = 1.0, 60.0
"""Seconds that a pipe without a writer is waited for, and between two bytes of a pipe."""

_OPEN = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_CHUNK = 2**16
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part", re.DOTALL)
_KEPT = 50
"""Characters of a name that its temporary name begins with: at four bytes each the whole fits into 255."""

# --------------------------------------------------------------------------------------------------------- reading


def read(
    path: str | os.PathLike[str],
    what: str = "",
    hint: str = "check the path",
    *,
    limit: int = MAX_DATA,
    pipes: bool = False,
) -> bytes:
    """All bytes of a file.

    what, hint  for the error: "PATH: cannot read WHAT: reason; HINT"
    limit       of bytes; more are an error
    pipes       whether it may be a pipe, such as /dev/stdin and what a shell makes of <(command)
    Raises InputError.
    """
    with _reading(path, what, hint):
        descriptor, kind = _open_to_read(path, pipes)
        try:
            return _stream(descriptor, limit) if kind == "pipe" else _regular(descriptor, limit)
        finally:
            os.close(descriptor)


def opened(path: str | os.PathLike[str], what: str = "", hint: str = "check the path") -> BinaryIO:
    """A regular file to seek in. Raises InputError."""
    with _reading(path, what, hint):
        return open(_open_to_read(path, False)[0], "rb")


def read_text(
    path: str | os.PathLike[str],
    what: str = "",
    hint: str = "give a text file in UTF-8",
    *,
    limit: int = MAX_TEXT,
    pipes: bool = False,
) -> str:
    """A text file of any system: UTF-8, or UTF-16 with a byte-order mark; line ends become "\\n". As `read`."""
    return text_of(read(path, what, hint, limit=limit, pipes=pipes), path, what, hint)


def text_of(data: bytes, path: str | os.PathLike[str], what: str = "", hint: str = "give a text file in UTF-8") -> str:
    """The text of a file's bytes, as `read_text`. Raises InputError."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
        if "\0" in text:
            raise ValueError
    except ValueError:
        raise InputError(f"{os.fspath(path)}: cannot read{_called(what)}: not a text file; {hint}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_stream(stream: BinaryIO, name: str, limit: int = MAX_PICTURE) -> bytes:
    """All that a stream gives, such as standard input. Raises InputError for more than `limit` bytes."""
    parts: list[bytes] = []
    got = 0
    with _reading(name, "", "check what it comes from"):
        while got <= limit and (part := stream.read(_CHUNK)):
            parts.append(part)
            got += len(part)
        return _within(parts, limit, 0)


def sha256(path: str | os.PathLike[str], what: str = "", hint: str = "check the path") -> str:
    """Digest of a regular file in hexadecimal. Raises InputError."""
    with _reading(path, what, hint), open(_open_to_read(path, False)[0], "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_to_read(path: str | os.PathLike[str], pipes: bool) -> tuple[int, str]:
    """The descriptor of a file, and what it is. Raises OSError and InputError without a path."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _OPEN)
    except ValueError:  # a null byte, or what the file system's encoding lacks
        raise InputError("no file can have this name") from None
    try:
        kind = _kind(os.fstat(descriptor).st_mode)
        if kind != "file" and not (pipes and kind == "pipe"):
            raise InputError(f"is a {kind}, expected a file" + " or a pipe" * pipes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, kind


def _kind(mode: int) -> str:
    """What a file is, in a word: "file" for a regular one."""
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFLNK: "symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "socket" if stat.S_ISSOCK(mode) else "device")


def _regular(descriptor: int, limit: int) -> bytes:
    """What a regular file holds. It may grow, and some of /proc have no size, or wait: nothing is waited for."""
    size = os.fstat(descriptor).st_size
    parts: list[bytes] = []
    got = 0
    while got <= limit and size <= limit and (part := os.read(descriptor, _next(size, got, limit))):
        parts.append(part)
        got += len(part)
    return _within(parts, limit, size)


def _next(size: int, got: int, limit: int) -> int:
    """How many bytes to ask for: Python makes room for all of them."""
    return min(size + 1 - got if got <= size else _CHUNK, limit + 1 - got, 2**30)


def _stream(descriptor: int, limit: int) -> bytes:
    """What a pipe gives until its last writer is gone."""
    parts: list[bytes] = []
    left, last = limit + 1, time.monotonic()
    while left > 0:
        silent = time.monotonic() - last
        try:
            part: bytes | None = os.read(descriptor, min(_CHUNK, left))
        except BlockingIOError:  # a writer that says nothing
            part = None
        if part:
            parts.append(part)
            left, last = left - len(part), time.monotonic()
            continue
        if part is not None and (parts or silent > NO_WRITER):
            break
        if silent > SILENCE:
            raise InputError(f"is a pipe that gave nothing for {SILENCE:.0f} s")
        select.select([descriptor], [], [], 0.02)
    return _within(parts, limit, 0)


def _within(parts: list[bytes], limit: int, size: int) -> bytes:
    if max(size, sum(map(len, parts))) > limit:
        raise InputError(f"{size or 'more'} bytes, expected at most {limit}")
    return b"".join(parts)


@contextlib.contextmanager
def _reading(path: str | os.PathLike[str], what: str, hint: str) -> Iterator[None]:
    """Every failure becomes one InputError that names the file."""
    try:
        yield
    except InputError as error:
        reason: object = error
    except OSError as error:
        reason = error.strerror or error
    else:
        return
    raise InputError(f"{os.fspath(path)}: cannot read{_called(what)}: {reason}; {hint}") from None


def _called(what: str) -> str:
    return f" {what}" if what else ""


# ------------------------------------------------------------------------------------------------------------ JSON


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document of unknown origin, with finite numbers only.

    Raises ValueError, and nothing else, for what is not one: also for NaN, for numbers beyond a double or of more than
    4,300 digits, for half a surrogate pair in a text, which nothing can write, and for more than MAX_DEPTH levels,
    which exhaust the stack of whatever walks over them.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("lists or objects nested too deeply") from None
    require_shallow(value)
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if not data.isascii() or b"\\u" in data:
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def require_shallow(value: object) -> None:
    """Raise ValueError for a document of more than MAX_DEPTH levels."""
    level, depth = [value], 0
    while level := [v for v in level if type(v) is dict or type(v) is list]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels of lists and objects")
        level = [v for part in level for v in (part.values() if isinstance(part, dict) else part)]


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


# ----------------------------------------------------------------------------------------------------- before work

_HELD = (".safetensors", ".json", ".npy", ".npz", ".hex", ".mem", ".bin", ".coe", ".mif", ".h", ".pth", ".pt", ".yml")
"""Endings of what intseg reads of the folder of a model, a checkpoint, or a dump."""


def require_apart(outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse, before any work, outputs that would replace what the command reads, or each other.

    inputs  files and folders; of what is read in a folder, each file: see `held`
    Equal are names of one file: links are followed, device and inode compared. Raises UsageError that names both.
    """
    read: dict[object, Path] = {}
    for path in map(Path, inputs):
        read.setdefault(_identity(path), path)
    written: dict[object, Path] = {}
    for path in map(Path, outputs):
        known = _identity(path)
        if known in read:
            raise UsageError(f"{path}: is {read[known]}, which is read; choose another name for the output")
        if known in written:
            raise UsageError(f"{path}: is {written[known]}, which is written too; choose different names")
        written[known] = path


def held(path: str | os.PathLike[str]) -> list[Path]:
    """What is read where the folder of a model, a checkpoint or a dump is named: its files; else the path itself."""
    folder = Path(path)
    try:
        return [folder, *(file for file in folder.iterdir() if file.suffix.lower() in _HELD)]
    except OSError:
        return [folder]


def _identity(path: Path) -> object:
    """The same for two names of one file, whether it is there or not."""
    real = os.path.realpath(path)
    for place, rest in ((real, ""), os.path.split(real)):
        with contextlib.suppress(OSError, ValueError):
            found = os.stat(place)
            return found.st_dev, found.st_ino, os.path.normcase(rest)
    return os.path.normcase(real)


# --------------------------------------------------------------------------------------------------------- writing


def write_atomically(path: Path, data: bytes, *, tidy: bool = True) -> None:
    """Write a file: it holds all of `data` or is as before. Raises InputError, leaving nothing.

    tidy  as of `Replacement`
    """
    with Replacement(path, tidy=tidy) as file:
        file.write(data)


class Replacement:
    """A file written piece by piece; it takes its name at the end of the `with` block, unless that raises.

    tidy  remove what killed writers of this file left, and flush the folder; for thousands of files in one folder
          call `remove_leftovers` before them and `flush_folder` after them instead
    Its methods raise InputError when the file cannot be written.
    """

    def __init__(self, path: Path, *, tidy: bool = True) -> None:
        self.path, self.tidy = path, tidy
        self._temporary: Path
        self._file: BinaryIO

    def __enter__(self) -> Self:
        with _one_error(self.path):
            require_replaceable(self.path)
            if self.tidy:
                remove_leftovers([self.path])
            while True:
                self._temporary = _beside(self.path)
                self._file = create(self._temporary)
                if _lock(self._file.fileno(), wait=True) and self._temporary.exists():
                    return self
                self._file.close()  # taken for a leftover in the moment before it was locked

    def write(self, data: bytes) -> None:
        """Append bytes, or overwrite after `seek`."""
        with _one_error(self.path):
            self._file.write(data)

    def seek(self, position: int) -> None:
        """Go to a byte; a gap that is left behind reads as zeros."""
        with _one_error(self.path):
            self._file.seek(position)

    def flush(self) -> None:
        """Flush what was written to disk: it fits."""
        with _one_error(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Called at the end of a block that did not raise: a subclass writes what is known only then."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.finish()
                self.flush()
                with _one_error(self.path):
                    _take_over(self._file.fileno(), require_replaceable(self.path))
                    if fcntl is None:
                        self._file.close()  # Windows does not rename an open file
                    os.replace(self._temporary, self.path)
                if self.tidy:
                    flush_folder(self.path.parent)
        finally:
            with contextlib.suppress(OSError):  # closing flushes what the full disk refused before
                self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)


def require_replaceable(path: Path) -> os.stat_result | None:
    """The file that a write to `path` replaces, None where there is none. Raises InputError for what may not be."""
    try:
        found = os.lstat(path)
    except OSError:  # nothing there, or no way to it: making the temporary says which
        return None
    except ValueError:
        raise InputError(f"{path}: cannot write: no file can have this name; choose another") from None
    kind = _kind(found.st_mode)
    if kind == "symbolic link":
        raise InputError(
            f"{path}: cannot write: is a symbolic link to {os.readlink(path)}, and links are not written through; "
            "name that file itself, or remove the link"
        )
    if kind != "file":
        raise InputError(f"{path}: cannot write: is a {kind}; choose another name")
    return found


def is_inside(name: str) -> bool:
    """Whether a name that a file holds, with "/" between folders, stays in its folder, on any system."""
    return not re.search(r"[\\:\0]", name) and not {"", ".", ".."} & set(name.split("/"))


def require_inside(folder: Path, root: Path) -> None:
    """Refuse a folder below a root that a symbolic link on the way leads out of it. Raises InputError."""
    inside, real = os.path.realpath(root), os.path.realpath(folder)
    if os.path.commonpath([inside, real]) != inside:
        raise InputError(f"{folder}: leads out of {root} through a symbolic link; remove the link")


def _take_over(descriptor: int, old: os.stat_result | None) -> None:
    """Give a new file owner, group and permission bits of the one that it replaces, as far as the system lets it."""
    if old is None or fcntl is None:
        return
    mode, made = old.st_mode & 0o777, os.fstat(descriptor)
    with contextlib.suppress(OSError):
        if made.st_gid != old.st_gid:
            os.fchown(descriptor, -1, old.st_gid)
        if made.st_uid != old.st_uid:
            os.fchown(descriptor, old.st_uid, -1)
    if os.fstat(descriptor).st_gid != old.st_gid:
        mode &= 0o707  # what one group was allowed is not for another
    os.fchmod(descriptor, mode)


def create(path: str | os.PathLike[str]) -> BinaryIO:
    """A new file; where the name exists, be it as a link, FileExistsError. For a temporary or inside `new_folder`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _OPEN
    return open(os.open(path, flags, 0o666), "w+b")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill inside the `with` block by `create`, which takes the name `path` at its end, unless it raises.

    Raises InputError when `path` is there and not an empty folder, and for every OSError inside the block.
    """
    with _one_error(path):
        remove_leftovers([path])
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path}: exists and is not an empty folder; choose another, or remove it")
        temporary, lock = _locked_folder(path)
        try:
            yield temporary
            for place, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    _flush(os.path.join(place, name), os.O_RDWR)
                flush_folder(Path(place))
            if path.is_dir():
                path.rmdir()
            os.replace(temporary, path)
        finally:
            if lock is not None:
                os.close(lock)
            shutil.rmtree(temporary, ignore_errors=True)
        flush_folder(path.parent)


class Growing:
    """A file that grows by whole lines, such as a journal, and belongs to one process at a time.

    path  is created where it is not there; a link, a device, a pipe or a file with several names is refused
    Its methods raise InputError when the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _one_error(path):
            require_replaceable(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINK | _OPEN
            self._file = io.FileIO(os.open(path, flags, 0o666), "r+b")
        try:
            with _one_error(path):
                self._require_ours()
        except BaseException:
            self._file.close()
            raise

    def _require_ours(self) -> None:
        found = os.fstat(self._file.fileno())
        if _kind(found.st_mode) != "file" or found.st_nlink > 1:
            raise InputError(f"{self.path}: cannot write: is no file of its own (a device, or a hard link); remove it")
        if is_locked(self._file.fileno()):
            raise InputError(f"{self.path}: another run is at work here; wait for its end, or choose another place")

    def read(self, limit: int = MAX_TEXT) -> bytes:
        """All that it holds. Raises InputError for more than `limit` bytes."""
        with _reading(self.path, "", "remove it"):
            os.lseek(self._file.fileno(), 0, os.SEEK_SET)
            return _regular(self._file.fileno(), limit)

    def truncate(self, size: int) -> None:
        """Cut off what follows the first `size` bytes."""
        with _one_error(self.path):
            self._file.truncate(size)

    def append(self, data: bytes) -> None:
        """Add bytes in one piece, whole or an error; they are not flushed to disk."""
        with _one_error(self.path):
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove the temporary files and folders that killed writers of these paths left; those in use stay."""
    by_folder: dict[Path, set[str]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, set()).add(path.name[:_KEPT])
    for folder, names in by_folder.items():
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                match = _LEFTOVER.fullmatch(entry.name)
                if match and match["name"] in names:
                    _remove_abandoned(entry.path)


def flush_folder(folder: Path) -> None:
    """Make renames in a folder survive a power failure, where the system can: not every file system is able to."""
    with contextlib.suppress(OSError):
        _flush(folder, os.O_RDONLY)


def _flush(path: str | os.PathLike[str], mode: int) -> None:
    descriptor = os.open(path, mode | _OPEN)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name[:_KEPT]}.{secrets.token_hex(4)}.part"


def _locked_folder(path: Path) -> tuple[Path, int | None]:
    """A new temporary folder, and the descriptor that holds its lock."""
    while True:
        temporary = _beside(path)
        temporary.mkdir()
        if fcntl is None:
            return temporary, None
        lock = os.open(temporary, os.O_RDONLY | _NO_LINK | _OPEN)
        if _lock(lock, wait=True) and temporary.exists():
            return temporary, lock
        os.close(lock)


def _lock(descriptor: int, wait: bool) -> bool:
    """Take the lock that ends with the process. True when it is ours; where there are no locks, to one that waits."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return wait
    return True


def lockable(folder: Path) -> int | None:
    """A descriptor of a folder to take its lock by; None where there are no locks. Raises InputError."""
    with _one_error(folder):
        return None if fcntl is None else os.open(folder, os.O_RDONLY | _OPEN)


def is_locked(descriptor: int, shared: bool = False) -> bool:
    """Take the lock; True when another process has it, False where there are no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
    return False


def _remove_abandoned(path: str) -> None:
    """Remove a temporary file or folder whose writer is gone: nobody holds its lock. Nothing else is touched."""
    with contextlib.suppress(OSError):
        if fcntl is None:
            os.remove(path)
            return
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK | _OPEN)
        try:
            kind = _kind(os.fstat(descriptor).st_mode)
            if kind in ("file", "folder") and _lock(descriptor, wait=False):
                if kind == "folder":
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    os.unlink(path)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _one_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = _REMEDIES.get(error.errno or 0, "choose a folder that exists and is writable")
        raise InputError(f"{path}: cannot write: {error.strerror}; {hint}") from None


_REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)), "free space or choose another folder"
    ),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EILSEQ: "choose a name of other letters",
}
"""What to do where a file cannot be written for another reason than its folder."""
