#!/usr/bin/env python3
"""Hostile files: every kind of file that intseg reads, spoiled; each must be read, or refused with one IntsegError.

    python tests/trust/fuzz.py --count 100000              so many files; the counts by kind and stage, the rate
    python tests/trust/fuzz.py --seconds 600 --jobs 2      as many as the time allows, in two processes
    python tests/trust/fuzz.py --json > counts.json        the counts for programs too
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
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guard import Failure, Guard, Seen, key_of, put, save, smaller
from hostile.cases import KINDS, Case, drawn
from hostile.kind import Files
from hostile.plants import PLANTS

from intseg.errors import IntsegError

STALL = 60
"""Seconds of CPU time without a new file after which a worker counts as hanging in code that no signal reaches."""

ASLEEP = 1800
"""Seconds without a new file after which it counts as waiting for nothing; reading and compiling come before."""

_STARTING = b"\xff" * 8
"""The progress of a worker that has not come to its first file."""


@dataclass
class Read:
    """What became of one file: a line of a worker's journal, which outlives the worker."""

    stage: tuple[str, str, str]
    key: str = ""
    failure: Failure | None = None


@dataclass
class Counts:
    """What happened to files. `stages` counts (kind, outcome, stage), `slowest` has seconds of CPU time by kind."""

    files: int = 0
    cpu: float = 0.0
    slowest: dict[str, float] = field(default_factory=dict)
    same: int = 0
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
        self.memory, self.same = max(self.memory, other.memory), self.same + other.same
        for kind, seconds in other.slowest.items():
            self.slowest[kind] = max(self.slowest.get(kind, 0.0), seconds)
        self.stages += other.stages
        known = {failure.key for failure in self.failures}
        self.failures += [failure for failure in other.failures if failure.key not in known]
        self.repeated += other.repeated + sum(failure.key in known for failure in other.failures)

    def by(self, what: str) -> Counter[str]:
        """Files by "kind", "outcome" or "stage"."""
        found: Counter[str] = Counter()
        for key, n in self.stages.items():
            found[key[("kind", "outcome", "stage").index(what)]] += n
        return found

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints and a worker hands over."""
        stages = [[*key, count] for key, count in sorted(self.stages.items())]
        return {**asdict(self), "stages": stages}

    @staticmethod
    def of_journal(path: Path) -> Counts:
        """What a worker counted before it died."""
        counts = Counts()
        for line in path.read_text(encoding="ascii").splitlines():
            if line == "null":
                counts.same += 1
                continue
            kind, outcome, stage, key, failure = json.loads(line)
            counts.count(Read((kind, outcome, stage), key, Failure(**failure) if failure else None))
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
        for base in range(min(KINDS[name].bases, 50)):  # what is loaded on first use is loaded now
            files = Case(name, base, ()).files()
            put(str(folder / "warm"), files)
            with contextlib.suppress(IntsegError):
                KINDS[name].read(folder / "warm", files)
        shutil.rmtree(folder / "warm", ignore_errors=True)
    for name in job["plants"]:
        PLANTS[name]()
    guard, known, kinds = Guard(folder, job["limit"], job["memory"]), Seen(Path(job["seen"])), tuple(job["kinds"])
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
            case = drawn(job["seed"], index, kinds, job["held"])
            files, error = built(case)
            if error is None and not known.add(case.kind, files):
                counts.same += 1
                journal.write(b"null\n")
                continue
            stage = outcome = ""
            if error is None:
                stage, outcome, error = guard.read(case.kind, files)
            if error is None:
                entry = Read((case.kind, outcome, stage))
            else:
                entry = Read((case.kind, "failed", type(error).__name__), key_of(case.kind, error))
                if entry.key not in seen:
                    seen.add(entry.key)
                    details = "".join(traceback.format_exception(error))[-4000:]
                    what = f"{type(error).__name__}: {error}"[:500]
                    entry.failure = Failure(case.kind, job["seed"], index, what, entry.key, details)
                    reduced = smaller(case, _same(guard, case.kind, entry.key), job["shrink"]) if files else None
                    save(entry.failure, case, files, reduced, Path(job["out"]))
            counts.count(entry)
            failure = asdict(entry.failure) if entry.failure else None
            journal.write(json.dumps([*entry.stage, entry.key, failure]).encode() + b"\n")
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
        return error is not None and key_of(kind, error) == key

    return fails


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
    held: int = 1
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
            "held": settings.held,
            "seen": str(folder.parent / "seen"),
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
    case = drawn(settings.seed, index, settings.kinds, settings.held)
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


def lines(counts: Counts, seconds: float) -> Iterator[str]:
    """A finished campaign in text."""
    width = max((len(stage) for _, _, stage in counts.stages), default=0)
    for kind in KINDS:
        mine = {key[1:]: n for key, n in counts.stages.items() if key[0] == kind}
        if not mine:
            continue
        size = sum(mine.values())
        yield f"{kind}: {size} files, the slowest {counts.slowest.get(kind, 0):.2f} s"
        for (outcome, stage), n in sorted(mine.items(), key=lambda item: (item[0][0], -item[1])):
            yield f"  {outcome:9} {stage:{width}} {n:9}  {n / size:6.1%}"
    yield _rate(counts, seconds)
    for failure in counts.failures:
        yield f"FAILURE {failure.key}: {failure.error}"
        yield f"        {failure.folder}"
    yield f"{len(counts.failures)} different failures" if counts.failures else "no failure"


def _rate(counts: Counts, seconds: float) -> str:
    outcomes = counts.by("outcome")
    return (
        f"{counts.files:,} different files in {seconds:,.0f} s, {counts.files / max(seconds, 0.001):,.0f} a second; "
        f"{counts.cpu:,.0f} s of CPU time, {counts.files / max(counts.cpu, 0.001):,.0f} a second of it; "
        f"accepted {outcomes['accepted']:,}, refused {outcomes['refused']:,}, failed {outcomes['failed']:,}, "
        f"left out as read before {counts.same:,}; memory of a worker grew by {counts.memory / 2**20:.0f} MiB"
    )


def table(counts: Counts, seconds: float) -> Iterator[str]:
    """A finished campaign in Markdown."""
    yield "| kind | files | accepted | refused | failed | slowest |\n|---|---|---|---|---|---|"
    for kind in KINDS:
        n = {what: sum(c for key, c in counts.stages.items() if key[:2] == (kind, what)) for what in OUTCOMES}
        if sum(n.values()):
            row = [f"{sum(n.values()):,}", *(f"{n[what]:,}" for what in OUTCOMES)]
            yield f"| {kind} | {' | '.join(row)} | {counts.slowest.get(kind, 0):.2f} s |"
    yield f"\n{_rate(counts, seconds)}"


OUTCOMES = ("accepted", "refused", "failed")


def summed(paths: Sequence[Path]) -> tuple[Counts, float]:
    """What campaigns counted that were run one after the other, and their seconds; files are different in each."""
    counts, seconds = Counts(), 0.0
    for path in paths:
        document = json.loads(path.read_text(encoding="ascii"))
        seconds += document.pop("seconds")
        counts.add(Counts.of_json(document))
    return counts, seconds


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
    parser.add_argument(
        "--held", type=int, default=1, metavar="N", help="what is read from memory N times as often (1)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="worker processes at a time (1)")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of CPU time for one file (1)")
    parser.add_argument("--memory", type=int, default=1024, help="MiB that a worker may grow by (1024); 0: no limit")
    parser.add_argument("--recycle", type=int, default=20_000, help="files read by one worker process (20000)")
    parser.add_argument("--shrink", type=float, default=10, help="seconds of CPU time to make a failure smaller (10)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="folder of the failures")
    parser.add_argument("--json", action="store_true", help="print one JSON object; the table goes to stderr")
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="FILE", help="the table of counts that --json printed, their sum"
    )
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="read a saved failure again")
    parser.add_argument(
        "--plant", action="append", choices=list(PLANTS), help="break a reader first: the run must fail"
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
    if args.show:
        found, seconds = summed(args.show)
        print("\n".join(table(found, seconds)), file=sys.stderr if args.json else sys.stdout)
        if args.json:
            print(json.dumps({**found.as_json(), "seconds": round(seconds, 1)}))
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
        held=args.held,
        plants=tuple(args.plant or ()),
    )
    start = time.time()
    found = campaign(settings, lambda line: print(line, file=sys.stderr, flush=True))
    seconds = time.time() - start
    print("\n".join(lines(found, seconds)), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({**found.as_json(), "seconds": round(seconds, 1)}))
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
