#!/usr/bin/env python3
"""Hostile files: every kind of file that intseg reads, spoiled; each must be read, or refused with one IntsegError.

    python tests/trust/fuzz.py --count 100000              so many files; the counts by kind and stage, the rate
    python tests/trust/fuzz.py --seconds 600 --jobs 2      as many as the time allows
    python tests/trust/fuzz.py --kind weights --seed 7     one kind; a seed is always the same files
    python tests/trust/fuzz.py --replay fuzz-failures/weights-0-1234     read a saved failure again

A failure is, for one file:

    an exception that is not an IntsegError, or a message of more than one line, of unprintable characters, or longer
    than 10,000 characters;  more than --limit seconds of CPU time (for an image above four million pixels: that for
    every four million);  an allocation beyond --memory MiB above the start;  a crash;  a path opened outside of the
    folder of the file and of the installation, a process started, a class looked up by pickle;  different bits from
    the two backends for a graph that was accepted.

Files are read in worker processes, which are replaced after --recycle files. Failures are saved under --out with a
smaller version that fails the same way. Exit code 0 without failures, 1 with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import hostile
from hostile import KINDS, Case, Files

from intseg.errors import MAX_MESSAGE, IntsegError

ROOT = Path(__file__).resolve().parents[2]
STALL = 60
"""Seconds of CPU time without a new file after which a worker counts as hanging in code that no signal reaches."""

ASLEEP = 1800
"""Seconds without a new file after which it counts as waiting for nothing; reading and compiling come before."""

_STARTING = b"\xff" * 8
"""The progress of a worker that has not come to its first file."""

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


# ---------------------------------------------------------------------------------------------------------------------
# One file
# ---------------------------------------------------------------------------------------------------------------------


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


class Guard:
    """Reads files under the clock, the memory limit and the audit hook of this process."""

    def __init__(self, folder: Path, limit: float, memory: int) -> None:
        self.folder, self.limit = folder, limit
        self.watching = self.reading = False
        self.offences: list[str] = []
        self.case: tuple[str, Files] = ("", {})
        self.slowest = 0.0
        self._present: set[str] = set()
        paths = sysconfig.get_paths()
        allowed = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        allowed += [str(ROOT / "intseg"), str(ROOT / "kernels"), str(folder), str(hostile.home())]
        with contextlib.suppress(TypeError):
            allowed.append(str(hostile.cache_folder()))
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
        self._put(files)
        self.offences.clear()
        self.case = kind, files
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self.limit)
        self.watching = self.reading = True
        error: BaseException | None = None
        stage = ""
        try:
            stage = KINDS[kind].read(self.folder / "case", files)
        except (Exception, Hang, Forbidden) as caught:
            error = caught
        except BaseException as caught:  # a panic of a Rust extension is no Exception
            if isinstance(caught, KeyboardInterrupt):
                raise
            error = caught
        finally:
            self.watching = self.reading = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.slowest = max(self.slowest, time.process_time() - start)
        if self.offences:
            return "", "", error if isinstance(error, Forbidden) else Forbidden(self.offences[0])
        if error is None:
            return stage, "accepted", None
        if not isinstance(error, IntsegError):
            return "", "", error
        message = str(error)
        if len(message) > MAX_MESSAGE or not message.isprintable():
            return "", "", BadMessage(f"message of {len(message)} characters: {message!r:.300}", _site(error))
        return _stage(kind, error), "refused", None

    def _put(self, files: Files) -> None:
        """Write the files of a case, removing those of the one before."""
        case = self.folder / "case"
        if self._present != {*files} or len(files) > 1 or not case.exists() or len(os.listdir(case)) != len(files):
            shutil.rmtree(case, ignore_errors=True)
            for parent in {(case / name).parent for name in files}:
                parent.mkdir(parents=True, exist_ok=True)
            self._present = {*files}
        for name, data in files.items():
            with open(case / name, "wb") as file:
                file.write(data)

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


def _key(kind: str, error: BaseException) -> str:
    """The same for the same cause."""
    if isinstance(error, BadMessage):
        return f"{kind} message {error.site}"
    return f"{kind} {type(error).__name__} {_site(error)}"


# ---------------------------------------------------------------------------------------------------------------------
# Smaller failures
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Worker
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Read:
    """What became of one file: a line of a worker's journal, which outlives the worker."""

    stage: tuple[str, str, str]
    key: str = ""
    failure: Failure | None = None


@dataclass
class Counts:
    """What happened to files. `stages` counts (kind, outcome, stage)."""

    files: int = 0
    cpu: float = 0.0
    slowest: float = 0.0
    memory: int = 0
    stages: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    repeated: int = 0

    def count(self, entry: Read) -> None:
        """Count one more file."""
        self.files += 1
        self.stages[entry.stage] += 1
        if entry.failure is not None:
            self.failures.append(entry.failure)
        else:
            self.repeated += bool(entry.key)

    def add(self, other: Counts) -> None:
        """Count what another worker did."""
        self.files += other.files
        self.cpu += other.cpu
        self.slowest, self.memory = max(self.slowest, other.slowest), max(self.memory, other.memory)
        self.stages += other.stages
        known = {failure.key for failure in self.failures}
        self.failures += [failure for failure in other.failures if failure.key not in known]
        self.repeated += other.repeated + sum(failure.key in known for failure in other.failures)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints and a worker hands over."""
        stages = [[*key, count] for key, count in sorted(self.stages.items())]
        return {**asdict(self), "stages": stages}

    @staticmethod
    def of_journal(path: Path) -> Counts:
        """What a worker counted before it died."""
        counts = Counts()
        for line in path.read_text(encoding="ascii").splitlines():
            entry = json.loads(line)
            failure = Failure(**entry["failure"]) if entry["failure"] else None
            counts.count(Read(tuple(entry["stage"]), entry["key"], failure))
        return counts

    @staticmethod
    def of_json(document: dict[str, Any]) -> Counts:
        """The inverse of `as_json`."""
        stages = Counter({(kind, outcome, stage): n for kind, outcome, stage, n in document["stages"]})
        failures = [Failure(**failure) for failure in document["failures"]]
        return Counts(**{**document, "stages": stages, "failures": failures})


def work(job: dict[str, Any]) -> Counts:
    """Read the cases first, first + 1, ... of a job in this process."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", RuntimeWarning)  # a wrap inside the definition
    folder = Path(job["folder"])
    tempfile.tempdir = str(folder)
    for name in job["kinds"]:
        for base in range(KINDS[name].bases):  # what is loaded on first use is loaded now
            files = Case(name, base, ()).files()
            place = folder / "warm"
            for path, data in files.items():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(data)
            with contextlib.suppress(IntsegError):
                KINDS[name].read(place, files)
            shutil.rmtree(place, ignore_errors=True)
    for name in job["plants"]:
        hostile.PLANTS[name]()
    guard = Guard(folder, job["limit"], job["memory"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, start = Counts(), time.process_time()
    seen = set(job["known"])
    with (
        open(folder / "progress", "r+b") as file,
        mmap.mmap(file.fileno(), 8) as progress,
        open(folder / "journal", "wb", buffering=0) as journal,
    ):
        for index in range(job["first"], job["first"] + job["count"]):
            if time.time() > job["deadline"]:
                break
            progress[:] = index.to_bytes(8, "little")
            case = hostile.case(job["seed"], index, tuple(job["kinds"]))
            files, error = built(case)
            stage = outcome = ""
            if error is None:
                stage, outcome, error = guard.read(case.kind, files)
            if error is None:
                entry = Read((case.kind, outcome, stage))
            else:
                entry = Read((case.kind, "failed", type(error).__name__), _key(case.kind, error))
                if entry.key not in seen:
                    seen.add(entry.key)
                    details = "".join(traceback.format_exception(error))[-4000:]
                    what = f"{type(error).__name__}: {error}"[:500]
                    entry.failure = Failure(case.kind, job["seed"], index, what, entry.key, details)
                    reduced = smaller(case, _same(guard, case.kind, entry.key), job["shrink"]) if files else None
                    save(entry.failure, case, files, reduced, Path(job["out"]))
            counts.count(entry)
            journal.write(json.dumps(asdict(entry)).encode() + b"\n")
    counts.cpu, counts.slowest = time.process_time() - start, guard.slowest
    counts.memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return counts


def built(case: Case) -> tuple[Files, BaseException | None]:
    """The files of a case; none, and why, where this program cannot make them: a failure too, and no end of the run."""
    try:
        return case.files(), None
    except Exception as error:
        return {}, error


def _same(guard: Guard, kind: str, key: str) -> Callable[[Files], bool]:
    def fails(files: Files) -> bool:
        error = guard.read(kind, files)[2]
        return error is not None and _key(kind, error) == key

    return fails


# ---------------------------------------------------------------------------------------------------------------------
# All workers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What a campaign is: see the options."""

    seed: int
    count: int | None
    seconds: float | None
    kinds: tuple[str, ...]
    jobs: int
    limit: float
    memory: int
    recycle: int
    shrink: float
    out: Path
    plants: tuple[str, ...] = ()


def campaign(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Counts:
    """Read all files in workers of `settings.recycle` files each."""
    total, start = Counts(), time.time()
    deadline = start + (settings.seconds if settings.seconds is not None else 10**9)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz.", dir=place) as folder, ThreadPoolExecutor(settings.jobs) as pool:

        def run(number: int, first: int, count: int) -> Counts:
            return _run_worker(settings, Path(folder) / str(number), first, count, deadline, total)

        for found in pool.map(lambda chunk: run(*chunk), _chunks(settings, deadline)):
            total.add(found)
            rate = total.files / (time.time() - start)
            say(f"{total.files} files, {rate:.0f} a second, {len(total.failures)} failures")
    return total


def _chunks(settings: Settings, deadline: float) -> Iterator[tuple[int, int, int]]:
    """(number, first case, cases) of every worker. Without a count, as many as a job per core takes at a time."""
    left = settings.count if settings.count is not None else 10**9
    number = first = 0
    while left > 0 and (time.time() < deadline or not number):
        size = min(left, settings.recycle)
        yield number, first, size
        number, first, left = number + 1, first + size, left - size
        if settings.count is None and number * settings.recycle > 10**7:
            return


def _run_worker(settings: Settings, folder: Path, first: int, count: int, deadline: float, total: Counts) -> Counts:
    """One worker, and the next after a crash, until all its cases are done."""
    counts = Counts()
    while count > 0 and time.time() < deadline:
        folder.mkdir()
        (folder / "progress").write_bytes(_STARTING)
        job = {
            "seed": settings.seed,
            "first": first,
            "count": count,
            "kinds": list(settings.kinds),
            "limit": settings.limit,
            "memory": settings.memory,
            "shrink": settings.shrink,
            "out": str(settings.out.absolute()),
            "plants": list(settings.plants),
            "deadline": deadline,
            "folder": str(folder),
            "known": [failure.key for failure in (*total.failures, *counts.failures)],
        }
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(job)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            output, errors = _watch(process, folder / "progress")
        progress = (folder / "progress").read_bytes()
        if process.returncode == 0:
            shutil.rmtree(folder, ignore_errors=True)
            counts.add(Counts.of_json(json.loads(output)))
            break
        if progress == _STARTING:
            what = f"code {process.returncode}, {errors.decode(errors='replace')[-3000:]}"
            raise RuntimeError(f"the worker itself failed before its first file: {what}")
        reached = int.from_bytes(progress, "little")
        counts.add(Counts.of_journal(folder / "journal"))
        shutil.rmtree(folder, ignore_errors=True)
        _add_crash(counts, settings, reached, process.returncode, errors)
        count, first = count - (reached + 1 - first), reached + 1
    return counts


def _watch(process: subprocess.Popen[bytes], progress: Path) -> tuple[bytes, bytes]:
    """Wait for a worker; kill it where it reads one file for too long."""
    last, since, before = b"", time.monotonic(), 0.0
    while True:
        try:
            return process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            now, cpu = progress.read_bytes(), _cpu_time(process.pid)
            if now != last:
                last, since, before = now, time.monotonic(), cpu
            elif (now != _STARTING and cpu - before > STALL) or time.monotonic() - since > ASLEEP:
                process.kill()


def _cpu_time(pid: int) -> float:
    """Seconds of CPU time of a child that has not been waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _add_crash(counts: Counts, settings: Settings, index: int, code: int, errors: bytes) -> None:
    """A worker that died: the case it was reading is the failure."""
    case = hostile.case(settings.seed, index, settings.kinds)
    what = "killed: too long in one file" if code == -signal.SIGKILL else f"the process ended with {code}"
    details = errors.decode("utf-8", "replace")[-4000:]
    failure = Failure(case.kind, settings.seed, index, what, f"{case.kind} crash {code}", details)
    if failure.key in {known.key for known in counts.failures}:
        counts.repeated += 1
    else:
        save(failure, case, built(case)[0], None, settings.out)
        counts.failures.append(failure)
    counts.files += 1
    counts.stages[case.kind, "failed", "crash"] += 1


# ---------------------------------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------------------------------


def lines(counts: Counts, seconds: float) -> Iterator[str]:
    """A finished campaign in text."""
    width = max((len(stage) for _, _, stage in counts.stages), default=0)
    for kind in KINDS:
        mine = {key[1:]: n for key, n in counts.stages.items() if key[0] == kind}
        if not mine:
            continue
        size = sum(mine.values())
        yield f"{kind}: {size} files"
        for (outcome, stage), n in sorted(mine.items(), key=lambda item: (item[0][0], -item[1])):
            yield f"  {outcome:9} {stage:{width}} {n:9}  {n / size:6.1%}"
    outcomes: Counter[str] = Counter()
    for (_, outcome, _), n in counts.stages.items():
        outcomes[outcome] += n
    yield (
        f"{counts.files} files in {seconds:.0f} s, {counts.files / max(seconds, 0.001):.0f} a second; "
        f"{counts.cpu:.0f} s of CPU time, {counts.files / max(counts.cpu, 0.001):.0f} a second of it"
    )
    yield (
        f"accepted {outcomes['accepted']}, refused {outcomes['refused']}, failed {outcomes['failed']}; "
        f"slowest file {counts.slowest:.2f} s of CPU time, memory of a worker grew by {counts.memory / 2**20:.0f} MiB"
    )
    for failure in counts.failures:
        yield f"FAILURE {failure.key}: {failure.error}"
        yield f"        {failure.folder}"
    yield f"{len(counts.failures)} different failures" if counts.failures else "no failure"


def replay(folder: Path, limit: float, memory: int) -> int:
    """Read a saved failure again, in this process. Returns 0 when it is gone."""
    document = json.loads((folder / "failure.json").read_text(encoding="ascii"))
    place = folder / "smaller" if (folder / "smaller").is_dir() else folder / "files"
    files = {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}
    with tempfile.TemporaryDirectory(prefix="fuzz.") as work_folder:
        stage, outcome, error = Guard(Path(work_folder), limit, memory).read(document["kind"], files)
    if error is None:
        print(f"{outcome}: {stage}")
        return 0
    traceback.print_exception(error)
    return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="files (20000 without --seconds)")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other files (0)")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes at a time (1)")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of CPU time for one file (1)")
    parser.add_argument("--memory", type=int, default=1024, help="MiB that a worker may grow by (1024); 0: no limit")
    parser.add_argument("--recycle", type=int, default=20_000, help="files read by one worker process (20000)")
    parser.add_argument("--shrink", type=float, default=10, help="seconds of CPU time to make a failure smaller (10)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="folder of the failures")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="read a saved failure again")
    parser.add_argument(
        "--plant", action="append", choices=list(hostile.PLANTS), help="break a reader first: the run must fail"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign; 0 without failures, 1 with."""
    args = _parse(argv)
    if args.worker:
        found = work(json.loads(args.worker))
        print(json.dumps(found.as_json()))
        return 0
    if args.replay:
        return replay(args.replay, args.limit, args.memory)
    count = args.count if args.count or args.seconds else 20_000
    settings = Settings(
        seed=args.seed,
        count=count,
        seconds=args.seconds,
        kinds=tuple(args.kind or KINDS),
        jobs=args.jobs,
        limit=args.limit,
        memory=args.memory,
        recycle=args.recycle,
        shrink=args.shrink,
        out=args.out,
        plants=tuple(args.plant or ()),
    )
    start = time.time()
    found = campaign(settings, lambda line: print(line, file=sys.stderr, flush=True))
    if args.json:
        print(json.dumps({**found.as_json(), "seconds": time.time() - start}))
    else:
        print("\n".join(lines(found, time.time() - start)))
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
