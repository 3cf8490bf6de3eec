"""One file read under the clock, the memory limit and the audit hook of this process; failures, and smaller ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from hostile.cases import KINDS, Case, cache_folder
from hostile.kind import Files
from hostile.traces import home

from intseg.errors import MAX_MESSAGE, IntsegError

ROOT = Path(__file__).resolve().parents[2]

_EVENTS = {"open": 0, "os.listdir": 0, "os.scandir": 0, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}
_EVENTS |= {"os.chmod": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "glob.glob": 0, "shutil.rmtree": 0}
"""Audit events with a path, and which is the last of their arguments that is one."""

_RELATIVE = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}

_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
_FORBIDDEN += ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "os.putenv", "os.kill")


class Hang(BaseException):
    """A file took too long. No Exception: a reader that catches everything must not catch it."""


class Forbidden(BaseException):
    """A file made its reader touch what it must not."""


class BadMessage(Exception):
    """A refusal whose message is no single printable line."""

    def __init__(self, text: str, site: str) -> None:
        super().__init__(text)
        self.site = site


@dataclass
class Failure:
    """What went wrong with a case. `key` is the same for the same cause."""

    kind: str
    seed: int
    index: int
    error: str
    key: str
    details: str = ""
    folder: str = ""


def put(place: str, files: Files) -> None:
    """Write the files of a case in place of those of the one before."""
    try:
        with os.scandir(place) as entries:
            keep = all(entry.name in files for entry in entries)
    except OSError:
        keep = False
    if not keep or any("/" in name for name in files):
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        for parent in {os.path.dirname(name) for name in files} - {""}:
            os.makedirs(f"{place}/{parent}", exist_ok=True)
    for name, data in files.items():
        with open(f"{place}/{name}", "wb", buffering=0) as file:
            file.write(data)


class Seen:
    """The contents that were read before, as bits of a file that all workers share: a repeated one counts for nothing.

    Two contents have the same bit once in 2^32: then one that was not read is taken for a repeated one.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def add(self, kind: str, files: Files) -> bool:
        """Whether it is new; it is not the next time."""
        digest = hashlib.blake2b(kind.encode(), digest_size=4)
        for name, data in files.items():
            digest.update(f"{name} {len(data)} ".encode() + data)
        place, bit = divmod(int.from_bytes(digest.digest(), "little"), 8)
        found = os.pread(self._file, 1, place) or b"\0"
        if found[0] >> bit & 1:
            return False
        os.pwrite(self._file, bytes([found[0] | 1 << bit]), place)
        return True


class Guard:
    """Reads files under the clock, the memory limit and the audit hook of this process."""

    def __init__(self, folder: Path, limit: float, memory: int) -> None:
        self.folder, self.limit = folder, limit
        self.watching = self.reading = False
        self.offences: list[str] = []
        self.case: tuple[str, Files] = ("", {})
        self.slowest: dict[str, float] = {}
        self._places = {name: folder / "case" / name for name in KINDS}
        paths = sysconfig.get_paths()
        allowed = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        allowed += [str(ROOT / "intseg"), str(ROOT / "kernels"), str(folder), str(home())]
        if sys.pycache_prefix:
            allowed.append(sys.pycache_prefix)  # bytecode of the installation, where ./check keeps it
        with contextlib.suppress(TypeError):
            allowed.append(str(cache_folder()))
        self.allowed = tuple(os.path.realpath(path) + os.sep for path in allowed)
        self._read_at_start = {os.devnull}
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._too_long)
        if memory:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limit_bytes = pages * resource.getpagesize() + memory * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def read(self, kind: str, files: Files) -> tuple[str, str, BaseException | None]:
        """(stage, outcome, error) of a case: outcome "accepted", "refused", or "" for a failure."""
        place = self._places[kind]
        if not KINDS[kind].held:
            put(str(place), files)
        self.offences.clear()
        self.case = kind, files
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self.limit)
        self.watching = self.reading = True
        error: BaseException | None = None
        stage = ""
        try:
            stage = KINDS[kind].read(place, files)
        except (Exception, Hang, Forbidden) as caught:
            error = caught
        except BaseException as caught:  # a panic of a Rust extension is no Exception
            if isinstance(caught, KeyboardInterrupt):
                raise
            error = caught
        finally:
            self.watching = self.reading = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), time.process_time() - start)
        if self.offences:
            return "", "", error if isinstance(error, Forbidden) else Forbidden(self.offences[0])
        if error is None:
            return stage, "accepted", None
        if not isinstance(error, IntsegError):
            return "", "", error
        message = str(error)
        if len(message) > MAX_MESSAGE or not message.isprintable():
            return "", "", BadMessage(f"message of {len(message)} characters: {message!r:.300}", _site(error))
        stage = _stage(kind, error)
        del error  # its traceback holds this frame, which holds it: what was decoded would stay until a collection
        return stage, "refused", None

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event in _FORBIDDEN:
            self._offend(f"{event} {args!r:.200}")
        if event in _EVENTS and len(args) > _EVENTS[event]:
            if event in _RELATIVE and args[_RELATIVE[event]] not in (None, -1):
                return  # relative to an open folder, and opening it was audited
            for path in args[: _EVENTS[event] + 1]:
                if isinstance(path, (str, bytes, os.PathLike)) and not self._is_allowed(os.fsdecode(path)):
                    self._offend(f"{event} {path!r:.200}")

    def _is_allowed(self, path: str) -> bool:
        if path in self._read_at_start:
            return True
        if path.startswith(self.allowed) and "/.." not in path:
            return True  # no case has links
        self.watching = False  # realpath asks the file system
        try:
            return (os.path.realpath(path) + os.sep).startswith(self.allowed)
        except ValueError:
            return True  # a null byte: nothing can be opened
        finally:
            self.watching = self.reading

    def _offend(self, what: str) -> None:
        self.offences.append(what)
        raise Forbidden(what)

    def _too_long(self, number: int, frame: FrameType | None) -> None:
        if not self.watching:  # inside the audit hook: again in a moment
            if self.reading:
                signal.setitimer(signal.ITIMER_PROF, 0.001)
            return
        self.watching = False
        kind, files = self.case
        self.case = "", {}
        more = self.limit * (KINDS[kind].patience(files) - 1) if kind else 0
        self.watching = True
        if more <= 0:
            raise Hang(f"more than {self.limit} s of CPU time")
        signal.setitimer(signal.ITIMER_PROF, more)


def _frames(error: BaseException) -> Iterator[tuple[str, str, int]]:
    """(file, function, line) of the stack, that of the error behind it included: messages get a file's name later."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        yield code.co_filename, code.co_name, trace.tb_lineno
        trace = trace.tb_next
    if error.__context__ is not None:
        yield from _frames(error.__context__)


def _stage(kind: str, error: BaseException) -> str:
    """Which check refused: the first of the kind's functions that is on the stack, else where it was raised."""
    names = [function for _, function, _ in _frames(error)]
    for function, stage in KINDS[kind].stages:
        if function in names:
            return stage
    return names[-1]


def _site(error: BaseException) -> str:
    """The last place in intseg on the stack."""
    roots = (str(ROOT / "intseg"), str(ROOT / "kernels"))
    places = [(Path(file).name, function, line) for file, function, line in _frames(error) if file.startswith(roots)]
    return ":".join(map(str, places[-1])) if places else "outside intseg"


def key_of(kind: str, error: BaseException) -> str:
    """The same for the same cause."""
    if isinstance(error, BadMessage):
        return f"{kind} message {error.site}"
    return f"{kind} {type(error).__name__} {_site(error)}"


def smaller(case: Case, fails: Callable[[Files], bool], seconds: float) -> Files:
    """Files that fail the same way: fewer mutations, then fewer bytes, as far as the CPU time allows."""
    end = time.process_time() + seconds
    steps = list(case.steps)
    for step in case.steps:
        shorter = replace(case, steps=tuple(s for s in steps if s != step))
        if time.process_time() < end and len(steps) > 1 and fails(shorter.files()):
            steps.remove(step)
    files = replace(case, steps=tuple(steps)).files()
    whole = case.files()
    if not fails(files) or sum(map(len, files.values())) > sum(map(len, whole.values())):
        files = whole  # mutations depend on each other, and some remove bytes
    for name in sorted(files, key=lambda name: len(files[name])):
        size = len(files[name]) // 2
        while size and time.process_time() < end:
            at = 0
            while at < len(files[name]) and time.process_time() < end:
                tried = {**files, name: files[name][:at] + files[name][at + size :]}
                if fails(tried):
                    files = tried
                else:
                    at += size
            size //= 2
    return files


def save(failure: Failure, case: Case, files: Files, reduced: Files | None, out: Path) -> None:
    """Write a failure: its files, the smaller ones, and what happened."""
    folder = out / f"{failure.kind}-{failure.seed}-{failure.index}"
    folder.mkdir(parents=True, exist_ok=True)
    for place, content in (("files", files), ("smaller", reduced)):
        for name, data in (content or {}).items():
            (folder / place / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / place / name).write_bytes(data)
    failure.folder = str(folder)
    document = {**asdict(failure), "case": asdict(case)}
    (folder / "failure.json").write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")
