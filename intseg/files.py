"""Files and folders that appear whole or not at all, whatever happens: an error, a full disk, a killed process.

Everything is written under a hidden name beside its own, ".NAME.xxxxxxxx.part", flushed to disk and renamed; at last
the folder is flushed, so that the new name survives a power failure. What a killed process leaves is a file or folder
of such a name: no command reads it, and the next write of the same name removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from intseg.errors import InputError

try:
    import fcntl
except ImportError:  # not POSIX: there an open file cannot be removed, which says as much as a lock
    fcntl = None  # type: ignore[assignment]

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part", re.DOTALL)
_KEPT = 50
"""Characters of a name that its temporary name begins with: at four bytes each the whole fits into 255."""


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
            if self.tidy:
                remove_leftovers([self.path])
            while True:
                self._temporary = _beside(self.path)
                self._file = open(self._temporary, "xb")
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


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill inside the `with` block, which takes the name `path` at its end, unless the block raises.

    Raises InputError when `path` is there and not an empty folder, and for every OSError inside the block.
    """
    with _one_error(path):
        remove_leftovers([path])
        if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path}: exists and is not an empty folder; choose another, or remove it")
        temporary, lock = _locked_folder(path)
        try:
            yield temporary
            for place, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    with open(os.path.join(place, name), "rb+") as file:
                        os.fsync(file.fileno())
                flush_folder(Path(place))
            if path.is_dir():
                path.rmdir()
            os.replace(temporary, path)
        finally:
            if lock is not None:
                os.close(lock)
            shutil.rmtree(temporary, ignore_errors=True)
        flush_folder(path.parent)


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
                    _remove_abandoned(entry)


def flush_folder(folder: Path) -> None:
    """Make renames in a folder survive a power failure, where the system can: not every file system is able to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
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
        lock = os.open(temporary, os.O_RDONLY)
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


def _remove_abandoned(entry: os.DirEntry[str]) -> None:
    """Remove a temporary file or folder whose writer is gone: nobody holds its lock."""
    with contextlib.suppress(OSError):
        if entry.is_symlink():
            return
        if fcntl is None:
            os.unlink(entry.path)
            return
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if _lock(descriptor, wait=False):
                if entry.is_dir():
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _one_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
        hint = "free space or choose another folder" if full else "choose a folder that exists and is writable"
        raise InputError(f"{path}: cannot write: {error.strerror}; {hint}") from None
