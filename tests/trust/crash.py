"""Kill commands at any moment, resume them, and compare with an unbroken run; fill the disk; take away permissions.

Four parts, each on small inputs that are generated here:

  kills     SIGKILL to the whole process group at random moments of the measured duration, 1 to 3 times, then the same
            command to its end. The results must be those of an unbroken run, byte for byte. JSON lines, the journals
            among them, are compared without "ms", the only measured time in them. Entries of the kernel cache are
            compared by name and must be whole: Numba's bytes for the same code differ from process to process.
  points    the same with the process killed right before its first, second, ... last file operation
  full      every file operation fails once with "No space left on device"; files that may not grow beyond a few sizes;
            where it may be mounted, a file system of a few pages. One error line, nothing half-written, and the same
            command with space goes on to the same results
  readonly  a folder that cannot be written: one error line, nothing written

usage: python tests/trust/crash.py [--runs 200] [--seed 0] [--parts kills,points,full,readonly]
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from tiny_model import tiny_graph  # noqa: E402

from intseg import store  # noqa: E402

PARTS = ("kills", "points", "full", "readonly")
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.part|\.[a-z0-9_]{8}\.tmp", re.DOTALL)
"""Names of what a killed process may leave: intseg/files.py, and of kernels/_jit.py."""

MAGIC = b"intseg-kernel-1\n"
"""Beginning of a cache entry, before the sha256 of the rest."""

# ------------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Command:
    """A command line that is begun, killed and given again.

    arguments  of the interpreter; the working folder is the run's own, the inputs lie in ../../inputs
    share      of the runs, relative to the other commands
    kills      times a run is killed, at least and at most
    alone      kill the first process only, not its workers, and do not wait for these
    cold       with a kernel cache that is empty at the beginning
    finished   file or folder whose existence means that there is nothing to resume: the command refuses to replace it
    """

    name: str
    arguments: tuple[str, ...]
    share: int
    kills: tuple[int, int] = (1, 3)
    alone: bool = False
    cold: bool = False
    finished: str | None = None


def intseg(*arguments: str) -> tuple[str, ...]:
    """The command line of intseg with the generated weights."""
    return ("-m", "intseg.cli", *arguments)


_INFER = intseg(
    "infer", "../../inputs/images", "-w", "../../inputs/w.safetensors", "-o", "out", "--overlay", "overlays",
    "--jsonl", "out/all.jsonl", "--resume", "--quiet", "--backend", "numpy",
)  # fmt: skip
_EVAL = intseg(
    "eval", "--images", "../../inputs/images", "--labels", "../../inputs/labels", "-w", "../../inputs/w.safetensors",
    "--backend", "numpy", "--resume", "journal.jsonl", "--json",
)  # fmt: skip
_ONE = ("../../inputs/images/0.png", "-w", "../../inputs/w.safetensors")

COMMANDS = (
    Command("infer --jobs 1", _INFER, 40),
    Command("infer --jobs 2", (*_INFER, "--jobs", "2"), 35),
    Command("infer --jobs 2, parent alone", (*_INFER, "--jobs", "2"), 20, alone=True),
    Command("eval --jobs 1", _EVAL, 30),
    Command("eval --jobs 2", (*_EVAL, "--jobs", "2"), 20),
    Command("trace", intseg("trace", *_ONE, "--backend", "numpy", "--registers", "-o", "trace.safetensors"), 20),
    Command("dump", intseg("dump", "../../inputs/w.safetensors", "-o", "dump", "--format", "mem"), 10, finished="dump"),
    Command("card", intseg("card", "../../inputs/w.safetensors", "-o", "card"), 10, finished="card"),
    Command("truth-table", intseg("truth-table", "isqrt", "--low", "0", "--high", "3000", "-o", "t.hex"), 5),
    Command("infer, empty cache", intseg("infer", *_ONE, "-o", "0.png", "--quiet"), 5, (3, 6), cold=True),
    Command("warmup, empty cache", intseg("warmup"), 5, (3, 6), cold=True),
)


def make_inputs(folder: Path, images: int = 8, height: int = 200, width: int = 240) -> None:
    """Weights, images and labels of random numbers."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    store.save(tiny_graph(), folder / "w.safetensors")
    for i in range(images):
        numbers = np.random.default_rng(i)
        Image.fromarray(numbers.integers(0, 256, (height + i, width, 3), np.uint8)).save(folder / f"images/{i}.png")
        Image.fromarray(numbers.integers(0, 5, (height + i, width), np.uint8)).save(folder / f"labels/{i}.png")


# ---------------------------------------------------------------------------------------------------- what is there


def contents(work: Path) -> dict[str, Any]:
    """Results in a folder by name, in a form that is equal for equal results; without what killed processes left."""
    found: dict[str, Any] = {}
    for place, folders, files in os.walk(work):
        folders[:] = [name for name in folders if not LEFTOVER.fullmatch(name)]
        for name in files:
            path = Path(place) / name
            if not LEFTOVER.fullmatch(name):
                found[path.relative_to(work).as_posix()] = canonical(path)
    return found


def canonical(path: Path) -> Any:
    """The bytes of a file; JSON lines without their times; of a cache entry, whether it is whole."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in data.splitlines()]
    if path.suffix == ".bin":
        payload = data[len(MAGIC) + 32 :]
        return data.startswith(MAGIC) and hashlib.sha256(payload).digest() == data[len(MAGIC) :][:32]
    return data


def timeless(value: Any) -> Any:
    """A JSON value without measured times."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key != "ms"}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def leftovers(work: Path) -> list[Path]:
    """Temporary files and folders."""
    return [path for path in work.rglob("*") if LEFTOVER.fullmatch(path.name)]


def half_written(work: Path, expected: Mapping[str, Any]) -> list[str]:
    """Files after an error that are not as in an unbroken run; a journal may have fewer lines, and a torn last one."""
    wrong = [str(path.relative_to(work)) for path in leftovers(work)]
    for path in work.rglob("*"):
        name = path.relative_to(work).as_posix()
        if path.is_dir() or LEFTOVER.fullmatch(path.name):
            continue
        if path.name.endswith("journal.jsonl"):
            lines = [timeless(json.loads(line)) for line in path.read_bytes().split(b"\n")[:-1]]
            if lines != expected[name][: len(lines)]:
                wrong.append(name)
        elif canonical(path) != expected.get(name):
            wrong.append(name)
    return wrong


# ------------------------------------------------------------------------------------------------------------ running

_WATCH = '''
"""Found by every interpreter that is started: counts file operations, and ends or fails the one that is asked for."""
import os, signal, sys
_folder, _at, _errno = os.environ["CRASH_FOLDER"], int(os.environ["CRASH_AT"]), int(os.environ["CRASH_ERRNO"])
_log = os.open(os.environ["CRASH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
_steps = 0

def _step(what):
    global _steps
    _steps += 1
    os.write(_log, f"{os.getpid()} {what}\\n".encode())
    if _steps == _at:
        if _errno:
            raise OSError(_errno, os.strerror(_errno))
        os.killpg(0, signal.SIGKILL)

def _watch(event, arguments):
    if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    if _errno and event in ("os.remove", "os.rmdir"):
        return
    path = arguments[0]
    if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(_folder):
        _step(event)

def _fsync(descriptor, fsync=os.fsync):
    _step("fsync")
    fsync(descriptor)

os.fsync = _fsync
sys.addaudithook(_watch)
'''


@dataclass
class Lab:
    """A folder with the inputs, a warm kernel cache, and a folder for every run."""

    base: Path
    count: int = 0

    def __post_init__(self) -> None:
        make_inputs(self.base / "inputs")
        (self.base / "watch").mkdir()
        (self.base / "watch" / "sitecustomize.py").write_text(_WATCH)

    def new(self) -> Path:
        """An empty folder for a run."""
        self.count += 1
        work = self.base / "runs" / str(self.count)
        work.mkdir(parents=True)
        return work

    def environment(self, command: Command, work: Path, **more: str) -> dict[str, str]:
        """Of the child processes; `more` begins the watch."""
        cache = work / "cache" if command.cold else self.base / "cache"
        paths = [*([str(self.base / "watch")] if more else []), str(ROOT)]
        return {
            **os.environ,
            "INTSEG_CACHE_DIR": str(cache),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def start(self, command: Command, work: Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command as the first process of a new group."""
        options.setdefault("env", self.environment(command, work))
        arguments = [sys.executable, *command.arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            arguments, cwd=work, text=True, stdout=pipe, stderr=pipe, start_new_session=True, **options
        )

    def finish(self, command: Command, work: Path) -> dict[str, Any]:
        """Run a command to its end; what is there then, with what it printed."""
        if command.finished and (work / command.finished).exists():
            return contents(work)
        process = self.start(command, work)
        out, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"crash.py: {command.name} ended with {process.returncode}: {err}")
        return contents(work) | ({"standard output": out} if command.arguments[2] == "eval" else {})


@dataclass
class Tally:
    """What became of the runs of one command. `moments` are tenths of the duration; `seen` is what was there."""

    runs: int = 0
    kills: int = 0
    ended: int = 0
    different: int = 0
    left: int = 0
    moments: Counter[int] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Sum of both."""
        for name in ("runs", "kills", "ended", "different", "left"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.moments += other.moments
        self.seen += other.seen


# --------------------------------------------------------------------------------------------------------------- kills


def killed(lab: Lab, command: Command, work: Path, after: float) -> bool:
    """Start a command and kill it after some seconds; False when it ended before."""
    process = lab.start(command, work)
    try:
        process.communicate(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL) if command.alone else os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        return True


def kill_run(lab: Lab, command: Command, expected: Mapping[str, Any], duration: float, numbers: random.Random) -> Tally:
    """One run: begun, killed, resumed to the end, compared."""
    tally, work = Tally(runs=1), lab.new()
    for _ in range(numbers.randint(*command.kills)):
        after = numbers.uniform(0, duration)
        if not killed(lab, command, work, after):
            tally.ended += 1
            continue
        tally.kills += 1
        tally.moments[int(10 * after / duration)] += 1
        tally.seen[progress(work, expected)] += 1
    found = lab.finish(command, work)
    tally.left += len(leftovers(work))
    if not same(command, found, expected):
        tally.different += 1
        for name in sorted({*found, *expected}):
            if found.get(name) != expected.get(name):
                print(f"  {command.name}: {name} differs in {work}")
    else:
        shutil.rmtree(work)
    return tally


def progress(work: Path, expected: Mapping[str, Any]) -> str:
    """How much of the results is there: "none", "some" or "all"."""
    try:
        found = contents(work)
    except ValueError:  # the last line of a journal is torn
        return "some"
    return "none" if not found else "all" if found == without_output(expected) else "some"


def same(command: Command, found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Equal, where nothing was printed because nothing was left to do: equal files."""
    return found == (expected if "standard output" in found else without_output(expected))


def without_output(expected: Mapping[str, Any]) -> dict[str, Any]:
    """Files only."""
    return {name: value for name, value in expected.items() if name != "standard output"}


def unbroken(lab: Lab, command: Command) -> tuple[dict[str, Any], float]:
    """Results and seconds of an unbroken run; a second one has to give the same results."""
    first, start = lab.finish(command, lab.new()), time.perf_counter()
    second = lab.finish(command, lab.new())
    duration = time.perf_counter() - start
    if first != second:
        raise SystemExit(f"crash.py: {command.name}: two unbroken runs differ")
    return first, duration


def kills(lab: Lab, commands: Sequence[Command], runs: int, numbers: random.Random) -> int:
    """The first part; returns the number of runs that ended differently."""
    print(f"{'killed at random moments':30} runs kills ended  kills by tenth of the duration     results when killed")
    print(f"{'':30}            before                                    none some  all    left  identical different")
    total, shares = Tally(), sum(command.share for command in commands)
    for command in commands:
        expected, duration = unbroken(lab, command)
        tally = Tally()
        for _ in range(max(1, round(runs * command.share / shares))):
            tally.add(kill_run(lab, command, expected, duration, numbers))
        print_tally(command.name, tally)
        total.add(tally)
    print_tally("all", total)
    return total.different


def print_tally(name: str, tally: Tally) -> None:
    """One line."""
    moments = " ".join(f"{tally.moments[i]:3}" for i in range(10))
    seen = " ".join(f"{tally.seen[what]:4}" for what in ("none", "some", "all"))
    print(
        f"{name:30} {tally.runs:4} {tally.kills:5} {tally.ended:6}  {moments}  {seen}   {tally.left:5} "
        f"{tally.runs - tally.different:10} {tally.different:9}",
        flush=True,
    )


# -------------------------------------------------------------------------------------------------------------- points


def watched(lab: Lab, command: Command, work: Path, at: int, error: int = 0) -> tuple[int, str, list[str]]:
    """Run a command that is killed, or fails with `error`, at its file operation `at`; 0 for none.

    Returns the exit code, standard error, and the operations in their order as "process operation".
    """
    log = work.parent / f"{work.name}.log"
    more = {"CRASH_AT": str(at), "CRASH_FOLDER": str(work), "CRASH_ERRNO": str(error), "CRASH_LOG": str(log)}
    process = lab.start(command, work, env=lab.environment(command, work, **more))
    _, err = process.communicate()
    return process.returncode, err, log.read_text().splitlines() if log.exists() else []


def operations(lab: Lab, command: Command) -> int:
    """File operations of the busiest process of a command."""
    code, err, log = watched(lab, command, lab.new(), 0)
    if code:
        raise SystemExit(f"crash.py: {command.name} ended with {code}: {err}")
    return max(Counter(line.split()[0] for line in log).values())


def points(lab: Lab, commands: Sequence[Command]) -> int:
    """The second part; returns the number of runs that ended differently."""
    print("\nkilled before each file operation   runs killed  left  identical different")
    wrong = 0
    for command in commands:
        if command.cold or command.alone:
            continue
        expected, _ = unbroken(lab, command)
        runs = different = hit = left = 0
        for at in range(1, operations(lab, command) + 1):
            work = lab.new()
            hit += watched(lab, command, work, at)[0] == -signal.SIGKILL
            runs += 1
            different += not same(command, lab.finish(command, work), expected)
            left += len(leftovers(work))
            shutil.rmtree(work)
        print(f"{command.name:35} {runs:4} {hit:6} {left:5} {runs - different:10} {different:9}", flush=True)
        wrong += different
    return wrong


# ---------------------------------------------------------------------------------------------------------- full disk


def full(lab: Lab, commands: Sequence[Command]) -> int:
    """The third part; returns the number of wrong runs."""
    print("\nno space                            how               runs failed  wrong")
    wrong = 0
    for command in commands:
        if command.alone or command.cold:
            continue
        expected, _ = unbroken(lab, command)
        for how, failures in (
            ("each operation", refused(lab, command)),
            ("file size", limited(lab, command)),
            ("small tmpfs", crowded(lab, command)),
        ):
            results = [judge(lab, command, expected, *failure) for failure in failures]
            if results:
                failed, bad = sum(code != 0 for code, _ in results), sum(not good for _, good in results)
                print(f"{command.name:35} {how:16} {len(results):5} {failed:6} {bad:6}", flush=True)
                wrong += bad
    return wrong


Failure = tuple[Path, int, str, Callable[[], None]]
"""Where a command ran, its exit code, what it said, and what gives it space again."""


def nothing() -> None:
    """There is space already."""


def judge(
    lab: Lab, command: Command, expected: Mapping[str, Any], work: Path, code: int, err: str, more: Callable[[], None]
) -> tuple[int, bool]:
    """The exit code, and whether all is as promised: one line, nothing half-written, the same results with space."""
    one_line = code == 0 or (code == 4 and err.startswith("intseg: ") and err.count("\n") == 1)
    partial = half_written(work, expected)
    more()
    good = one_line and not partial and same(command, lab.finish(command, work), expected)
    if not good:
        print(f"  {command.name}: exit code {code}, {partial or 'nothing'} half-written, said {err!r}")
    if os.path.ismount(work):
        subprocess.run(["umount", str(work)], check=True)
    shutil.rmtree(work)
    return code, good


def refused(lab: Lab, command: Command) -> Iterator[Failure]:
    """One file operation after the other fails."""
    work = lab.new()
    log = watched(lab, command, work, 0, errno.ENOSPC)[2]
    for at in range(1, max(Counter(line.split()[0] for line in log).values()) + 1):
        work = lab.new()
        code, err, _ = watched(lab, command, work, at, errno.ENOSPC)
        yield work, code, err, nothing


def limited(lab: Lab, command: Command) -> Iterator[Failure]:
    """Files that may not become larger than so many bytes."""
    for size in (0, 1, 100, 1000, 3000, 10_000, 100_000):

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        work = lab.new()
        process = lab.start(command, work, preexec_fn=limit)
        err = process.communicate()[1]
        yield work, process.returncode, err, nothing


def crowded(lab: Lab, command: Command) -> Iterator[Failure]:
    """A file system of a few pages, where one may be mounted."""
    for pages in (1, 2, 4, 8, 16, 32):
        work = lab.new()
        size = f"size={pages * 4096}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(work)], capture_output=True)
        if done.returncode:
            work.rmdir()
            return
        process = lab.start(command, work)
        err = process.communicate()[1]

        def grow(work: Path = work) -> None:
            subprocess.run(["mount", "-o", "remount,size=100m", str(work)], check=True)

        yield work, process.returncode, err, grow


# ----------------------------------------------------------------------------------------------------------- read-only

_UNPRIVILEGED = """
import os, sys
from intseg.cli import main as cli
arguments, other = sys.argv[2:], sys.argv[1]
work = os.getcwd()
os.chdir(other)
code = cli.main(arguments)  # loads every module while it may be read
if code: sys.exit(f"first run: {code}")
os.chdir(work)
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.stdout = open(os.devnull, "w")
sys.exit(cli.main(arguments))
"""


def readonly(lab: Lab, commands: Sequence[Command]) -> int:
    """The fourth part; returns the number of wrong commands."""
    print("\nread-only folder                    wrong")
    wrong = 0
    for path in (lab.base, *lab.base.glob("inputs/**/*")):
        path.chmod(path.stat().st_mode | 0o755)
    for command in commands:
        if command.alone or "2" in command.arguments or "warmup" in command.arguments:
            continue
        work, other = lab.new(), lab.new()
        work.chmod(0o555)
        arguments = [sys.executable, "-c", _UNPRIVILEGED, str(other), *command.arguments[2:]]
        done = subprocess.run(arguments, cwd=work, env=lab.environment(command, other), text=True, capture_output=True)
        one_line = done.returncode == 4 and done.stderr.startswith("intseg: ") and done.stderr.count("\n") == 1
        good = one_line and not any(work.iterdir())
        print(f"{command.name:35} {'' if good else done.stderr or done.returncode}{int(not good):5}", flush=True)
        wrong += not good
    return wrong


# ---------------------------------------------------------------------------------------------------------------- main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; returns 1 where anything was not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of the kills, over all commands (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"joined by commas ({','.join(PARTS)})")
    parser.add_argument("--commands", default="", metavar="WORD", help="only commands whose names begin with this")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}; expected {', '.join(PARTS)}")
    commands = [command for command in COMMANDS if command.name.startswith(args.commands)]
    if not commands:
        parser.error(f"no command begins with {args.commands!r}: {', '.join(c.name for c in COMMANDS)}")
    base = Path(tempfile.mkdtemp(prefix="crash-"))
    lab, wrong = Lab(base), 0
    print(f"python tests/trust/crash.py --runs {args.runs} --seed {args.seed} --parts {args.parts}")
    if "kills" in parts:
        wrong += kills(lab, commands, args.runs, random.Random(args.seed))
    if "points" in parts:
        wrong += points(lab, commands)
    if "full" in parts:
        wrong += full(lab, commands)
    if "readonly" in parts:
        wrong += readonly(lab, commands)
    print(f"\n{'nothing wrong' if not wrong else f'{wrong} WRONG, see {base}'}")
    if not wrong:
        shutil.rmtree(base)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
