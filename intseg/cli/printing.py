"""What the command line prints. Every line passes through here: names in files may hold what moves a cursor."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

from intseg.errors import InputError, IntsegError, printable
from intseg.progress import is_quiet


@dataclass(frozen=True)
class Answer:
    """What a command gives.

    lines     for people; the work may happen while they are read
    document  for programs, printed in place of the lines where --json asks for it; None where all has been printed
    code      the exit code
    failure   what is wrong with what was printed: raised after it
    """

    lines: Iterable[str]
    document: object = None
    code: int = 0
    failure: IntsegError | None = None


def wrote(path: str | os.PathLike[str], about: str = "", **facts: object) -> Answer:
    """The answer of a command whose result is a file or a folder."""
    return Answer([f"wrote {path}{f': {about}' if about else ''}"], {"written": str(path), **facts})


def count(number: int, noun: str, plural: str = "") -> str:
    """ "1 image", "2 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size(number: int) -> str:
    """Bytes: "7.2 MB", "12.3 kB"."""
    return f"{number / 1e6:.1f} MB" if number >= 10**5 else f"{number / 1e3:.1f} kB"


def give(answer: Answer, as_json: bool) -> int:
    """Print an answer; its exit code. Raises its failure."""
    if as_json:
        if answer.document is not None:
            show_json(answer.document)
    else:
        for line in answer.lines:
            show(line)
    if answer.failure is not None:
        flush()
        raise answer.failure
    return answer.code


def show(line: str) -> None:
    """One line on standard output."""
    if not is_quiet():
        _print(printable(line))


def show_json(value: object) -> None:
    """One JSON value on one line of standard output."""
    _print(json.dumps(value, allow_nan=False))


def show_bytes(data: bytes) -> None:
    """A file on standard output."""
    with _standard_output():
        sys.stdout.buffer.write(data)


def flush() -> None:
    """Hand what was printed to the system. Raises InputError when that does not take it."""
    with _standard_output():
        sys.stdout.flush()


def _print(line: str) -> None:
    with _standard_output():
        print(line)


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise InputError(f"standard output: {error.strerror}; free space, or send it elsewhere") from None


def say(line: str) -> None:
    """One line on standard error that is not an error."""
    if not is_quiet():
        complain(line)


def complain(line: str) -> None:
    """One line on standard error."""
    print(printable(line), file=sys.stderr)


def complain_above_the_bar(line: str) -> None:
    """The same while a progress bar is shown."""
    from tqdm import tqdm

    tqdm.write(printable(f"intseg: {line}"), file=sys.stderr)


def say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In place of `warnings.showwarning`."""
    say(f"note: {str(message).partition(os.linesep)[0]}")  # some libraries put a traceback below


class _Closed(io.TextIOBase):
    """A standard stream that whoever started the process has closed."""

    def __init__(self, name: str, needed: bool) -> None:
        self.name, self.needed = name, needed

    @property
    def buffer(self) -> _Closed:
        return self

    def read(self, size: int | None = -1) -> str:
        raise InputError(f"{self.name} is closed, expected something to read there; redirect it")

    def write(self, text: str | bytes) -> int:
        if self.needed:
            raise InputError(f"{self.name} is closed, expected a place to print to; redirect it, or use --quiet")
        return len(text)


def open_streams() -> None:
    """Standard streams that are closed say so when they are used, and no file that is opened takes their number.

    Where standard error is closed there is nobody to tell.
    """
    if sys.stdin is None:
        sys.stdin = _Closed("standard input", True)
    if sys.stdout is None:
        sys.stdout = _Closed("standard output", True)
    if sys.stderr is None:
        sys.stderr = _Closed("standard error", False)
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be valid text


def discard_stdout() -> None:
    """Standard output is gone: keep the interpreter from complaining when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):  # not a real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Clock:
    """Times of the stages of a command, and the peak memory of the process."""

    def __init__(self) -> None:
        self.laps: list[tuple[str, float]] = []
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.laps.append((stage, now - self.last))
        self.last = now

    def report(self) -> None:
        """One line a stage, on standard error."""
        for stage, seconds in self.laps:
            complain(f"time: {stage:16} {seconds * 1000:9.1f} ms")
        if resource is None:  # Windows
            return
        unit = (1 if sys.platform == "darwin" else 1024) / 2**20  # ru_maxrss is in KiB, on macOS in bytes
        own, children = (
            resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        largest = f", the largest process of --jobs {children:.1f}" if children > own else ""
        complain(f"peak memory:      {own:9.1f} MiB{largest}")
