#!/usr/bin/env python3
"""The same bits on other machines: other processors under qemu, other versions of Python, each from a cold start.

    ./check machines                                  all of them, about half an hour of one core
    ./check machines s390x neoverse-v1                some
    ./check machines --short                          golden folder and street only, a third of the time
    ./check machines --cache DIR --json FILE          keep what is fetched; write the results, beside those of FILE
    ./check machines --table docs/machines.json     the table of docs/TRUST.md

A machine is an interpreter with its packages, run by qemu-user in place of the processor. Every one replays the golden
folder, writes traces, dumps and weights, writes and replays a conformance pack, and segments the street with both
bundled models (machine_run.py), with its own empty cache of kernels; all digests are compared with those of this
machine, and the instruction path and the instructions found in the compiled kernels with those that it should get.

What it needs is fetched: qemu and interpreters are packages of Debian, from the mirror that apt is set up with (or
--mirror), other Python packages are wheels from where pip is set up to look. Nothing is installed: packages are
unpacked into the cache folder, a temporary one unless named. A machine that cannot be had is listed with the reason; it
is a failure only where it was asked for by name. Exit status 1 for a failure or a difference.
"""

from __future__ import annotations

import argparse
import configparser
import functools
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
RUN = Path(__file__).with_name("machine_run.py")
EMULATOR_SUITE = "trixie"
"""Its qemu 10 shows the emulated processor in /proc/cpuinfo; version 7 shows this machine's."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

UNPACK = (
    'deb=$1; folder=$2; shift 2; dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$folder" --keep-directory-symlink "$@"'
)

TRIPLETS = {"amd64": "x86_64", "arm64": "aarch64", "s390x": "s390x", "riscv64": "riscv64"}
"""Debian's architectures -> what uname, qemu and wheels call them."""

GLIBC = ("2_17", "2_27", "2_28", "2_31", "2_34", "2_35", "2_39")
"""Of manylinux tags that the interpreters of Debian's suites can load."""

DEBIAN_PACKAGES = tuple(f"python3-{name}" for name in ("numpy", "pil", "safetensors", "tqdm", "threadpoolctl"))
"""For a processor that wheels are not made for."""


@dataclass(frozen=True)
class Machine:
    """One machine.

    arch     Debian's name of its architecture
    cpu      of qemu; "" to run on this processor
    suite    of Debian that its interpreter comes from; "" for the interpreter that runs this
    python   version of that interpreter
    wheels   whether its packages are wheels, Numba among them, or Debian's, without Numba
    isa      the instruction path that it has to choose, "" for any
    short    NumPy replays the golden folder and the kernels segment the street, nothing more: what `./check matrix` and
             another machine of the same path run in full
    """

    name: str
    arch: str
    cpu: str = ""
    suite: str = ""
    python: str = ""
    wheels: bool = True
    isa: str = ""
    short: bool = False

    @property
    def root(self) -> str:
        """Name of the folder of its interpreter."""
        return f"{self.arch}-{self.suite}-{self.python}"


MACHINES = (
    Machine("here", ""),
    Machine("nehalem", "amd64", "Nehalem", isa="sse2", short=True),
    Machine("sandybridge", "amd64", "SandyBridge", isa="sse2", short=True),
    Machine("haswell", "amd64", "Haswell", isa="avx2", short=True),
    Machine("epyc-genoa", "amd64", "EPYC-Genoa", isa="avx2", short=True),  # promises AVX-512, which qemu has not
    Machine("aarch64", "arm64", "max", "trixie", "3.13", isa="generic"),
    Machine("cortex-a53", "arm64", "cortex-a53", "trixie", "3.13", isa="generic", short=True),
    Machine("neoverse-n1", "arm64", "neoverse-n1", "trixie", "3.13", isa="dotprod"),
    Machine("neoverse-v1", "arm64", "neoverse-v1", "trixie", "3.13", isa="i8mm"),
    Machine("s390x", "s390x", "max", "sid", "3.14", wheels=False),
    Machine("riscv64", "riscv64", "max", "trixie", "3.13", wheels=False),
    Machine("python3.12", "amd64", "", "trixie", "3.12"),
    Machine("python3.13", "amd64", "", "trixie", "3.13"),
    Machine("python3.14", "amd64", "", "sid", "3.14"),
)

INSTRUCTION = {"vnni": "vpdpbusd", "avx512bw": "vpmaddwd", "avx2": "vpmaddwd", "dotprod": "sdot", "i8mm": "smmla"}
"""What the compiled matrix products of a path must hold; in sse2, pmaddwd or its AVX form."""


class Missing(Exception):
    """A machine cannot be had: what could not be fetched, or is not there."""


# ---------------------------------------------------------------------------------------------------------------------
# Fetching
# ---------------------------------------------------------------------------------------------------------------------


def call(words: Sequence[str], what: str, limit: float = 900) -> str:
    """The output of a program. Raises Missing with its last line where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{what}: {words[0]}: {error}") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "ERROR:"))] or lines[-1:] or ["no reason given"]
        raise Missing(f"{what}: {errors[0]}")
    return done.stdout


class Store:
    """What was fetched, in one folder: kept for the next time where the user named it."""

    def __init__(self, folder: Path, mirror: str, say: Callable[[str], None]) -> None:
        self.folder, self._mirror, self._say = folder, mirror, say
        self._problems: dict[str, str] = {}

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder made whole or not at all; a failure is not tried again."""
        path, part = self.folder / name, self.folder / f"{name}.part"
        if name in self._problems:
            raise Missing(self._problems[name])
        if not path.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            try:
                make(part)
            except Missing as error:
                self._problems[name] = str(error)
                raise
            part.rename(path)
        return path

    def _source(self) -> str:
        """Debian's mirror as apt has it. Raises Missing."""
        if self._mirror:
            return self._mirror
        for uri in call(["apt-get", "indextargets", "--format", "$(REPO_URI)"], "Debian's packages").split():
            if uri.rstrip("/").endswith("/debian"):
                return uri
        raise Missing("Debian's packages: apt has no source that ends with /debian; give --mirror URL")

    def _apt(self, arch: str, suite: str) -> list[str]:
        """apt-get for an architecture and a suite, with lists and status of its own."""
        name = f"apt-{arch}-{suite}"

        def options(folder: Path) -> list[str]:
            settings = {
                "APT::Architecture": arch,
                "APT::Architectures": arch,
                "APT::Install-Recommends": "false",
                "APT::Sandbox::User": "",
                "Acquire::Languages": "none",
                "Acquire::Retries": "2",
                "Dir::State": folder,
                "Dir::State::status": folder / "status",
                "Dir::Cache": folder,
                "Dir::Etc::sourcelist": folder / "sources.list",
                "Dir::Etc::sourceparts": "/dev/null",
            }
            return ["apt-get", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]

        def make(folder: Path) -> None:
            self._say(f"lists of Debian {suite} {arch}")
            source = f"deb [signed-by={KEYRING}] {self._source()} {suite} main\n"
            for part in ("lists/partial", "archives/partial"):
                (folder / part).mkdir(parents=True)
            (folder / "status").touch()
            (folder / "sources.list").write_text(source, encoding="utf-8")
            call([*options(folder), "update", "-o", "APT::Update::Error-Mode=any"], f"lists of Debian {suite} {arch}")

        return options(self._once(name, make))

    def emulator(self, arch: str) -> Path:
        """qemu-user for an architecture. Raises Missing."""
        machine = TRIPLETS[arch]

        def make(folder: Path) -> None:
            host = call(["dpkg", "--print-architecture"], "the architecture of this machine").strip()
            apt = self._apt(host, EMULATOR_SUITE)
            self._say("qemu-user")
            with tempfile.TemporaryDirectory(dir=self.folder) as work:
                where = f'cd {work!r} && exec "$@"'
                call(["sh", "-c", where, "sh", *apt, "download", "qemu-user"], f"qemu-user of Debian {EMULATOR_SUITE}")
                (deb,) = Path(work).glob("*.deb")
                names = [f"./usr/bin/qemu-{name}" for name in TRIPLETS.values()]
                call(["sh", "-c", UNPACK, "sh", str(deb), str(folder), *names], "qemu-user")

        return self._once(f"qemu-{EMULATOR_SUITE}", make) / "usr" / "bin" / f"qemu-{machine}"

    def root(self, machine: Machine) -> Path:
        """A file system with the interpreter of a machine. Raises Missing."""
        packages = [f"python{machine.python}", "libgomp1", "libstdc++6"]
        packages += [] if machine.wheels else ["python3", *DEBIAN_PACKAGES]
        what = f"{packages[0]} of Debian {machine.suite} {machine.arch}"

        def make(folder: Path) -> None:
            apt = self._apt(machine.arch, machine.suite)
            self._say(what)
            lists = self.folder / f"apt-{machine.arch}-{machine.suite}"
            archives = lists / "archives"
            try:
                call([*apt, "install", "-y", "--download-only", *packages], what)
            except Missing:
                shutil.rmtree(lists)  # they may be old ones of a kept folder: fetched again the next time
                raise
            for name in ("bin", "lib", "lib64", "sbin"):  # as base-files and dpkg make them
                (folder / "usr" / name).mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(f"usr/{name}")
            for deb in sorted(archives.glob("*.deb")):
                call(["sh", "-c", UNPACK, "sh", str(deb), str(folder)], what)
                deb.unlink()

        return self._once(machine.root, make)

    def wheels(self, machine: Machine) -> Path:
        """The packages that setup.cfg requires, for the interpreter of a machine. Raises Missing."""
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg", encoding="utf-8")
        wanted = config["options"]["install_requires"].split()
        name = f"{machine.arch}-wheels-{machine.python}"

        def make(folder: Path) -> None:
            self._say(f"wheels for Python {machine.python} on {machine.arch}")
            tags = [f"--platform=manylinux_{glibc}_{TRIPLETS[machine.arch]}" for glibc in GLIBC]
            tags += [f"--platform=manylinux2014_{TRIPLETS[machine.arch]}"]
            how = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--target", str(folder)]
            call([*how, "--python-version", machine.python, "--implementation", "cp", *tags, *wanted], name)

        return self._once(name, make)


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a machine gave.

    state     ok, differs, failed or not to be had
    problem   why it is not ok
    emulator  and its version; "" for this processor
    facts     of machine_run.py: interpreter, packages, target, path
    digests   by the name of the result
    seconds   of processor time
    tree      the commit, with -dirty where files differ from it
    """

    name: str
    cpu: str = ""
    emulator: str = ""
    state: str = "ok"
    problem: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    instructions: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    tree: str = ""


@functools.cache
def tree() -> str:
    """The commit that runs, as it was found: results written into it since do not count; "" where git knows none."""
    try:
        return call(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"], "the commit").strip()
    except Missing:
        return ""


def prepare(machine: Machine, store: Store) -> tuple[list[str], dict[str, str], str]:
    """The command of a machine's interpreter, its environment, the emulator's version. Raises Missing."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OPENBLAS_", "NUMBA_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    command, version = [sys.executable], ""
    if machine.arch and TRIPLETS[machine.arch] != platform.machine() and not machine.suite:
        raise Missing(f"runs this interpreter, which is for {platform.machine()}, not {TRIPLETS[machine.arch]}")
    if not machine.cpu and machine.arch and TRIPLETS[machine.arch] != platform.machine():
        raise Missing(f"runs on an {TRIPLETS[machine.arch]}, this is {platform.machine()}")
    if machine.suite:
        command, paths, libraries = interpreter(machine, store)
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        if machine.cpu:
            environment["QEMU_SET_ENV"] = f"LD_LIBRARY_PATH={libraries}"
    if machine.cpu:
        qemu = store.emulator(machine.arch)
        version = call([str(qemu), "--version"], "qemu").split("\n")[0].split("(")[0].replace("version ", "").strip()
        root = ["-L", str(store.root(machine))] if machine.suite else []
        command = [str(qemu), "-cpu", machine.cpu, *root, *command]
    return command, environment, version


def interpreter(machine: Machine, store: Store) -> tuple[list[str], list[str], str]:
    """Of an unpacked root: the command, the folders of packages, the folders of shared libraries."""
    root = store.root(machine)
    libraries = root / "usr" / "lib" / f"{TRIPLETS[machine.arch]}-linux-gnu"
    found = ":".join(str(path) for path in (libraries, libraries / "blas", libraries / "lapack"))
    command = [str(root / "usr" / "bin" / f"python{machine.python}")]
    if not machine.cpu:
        (loader,) = (root / "usr" / "lib64").glob("ld-linux-*.so.2")
        command = [str(loader), "--library-path", found, *command]
    packages = store.wheels(machine) if machine.wheels else root / "usr" / "lib" / "python3" / "dist-packages"
    return command, [str(packages)], found


def run(machine: Machine, store: Store, limit: float, say: Callable[[str], None]) -> Result:
    """Run machine_run.py on a machine, killed with all it started after `limit` seconds."""
    result = Result(machine.name, machine.cpu, tree=tree())
    try:
        command, environment, result.emulator = prepare(machine, store)
    except Missing as error:
        result.state, result.problem = "not to be had", str(error)
        return result
    street = "numpy" if not machine.wheels else "numba" if machine.cpu else "numpy,numba"  # NumPy takes minutes in qemu
    backends = "numpy,numba" if machine.wheels and not machine.short else "numpy"
    words = [*command, str(RUN), backends, street, *["short"] * machine.short]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        problem = follow(words, environment | {"INTSEG_CACHE_DIR": cache}, errors, limit, result, say)
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no reason given"])[-1]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result.seconds = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
    if problem:
        result.state, result.problem = "failed", problem if problem.startswith("not") else f"{problem}: {last[:300]}"
    return result


def follow(
    words: list[str],
    environment: dict[str, str],
    errors: IO[str],
    limit: float,
    result: Result,
    say: Callable[[str], None],
) -> str:
    """Run a program and read what it says into a result; what is wrong with its end, "" if nothing."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    with subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        timer = threading.Timer(limit, end)
        timer.start()
        try:
            ended = read(process, result, say)
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
    if late.is_set():
        return f"not done after {limit:.0f} s"
    return "" if ended and not code else f"exit code {code}"


def read(process: subprocess.Popen[str], result: Result, say: Callable[[str], None]) -> bool:
    """Lines of machine_run.py into a result; whether the last one came."""
    assert process.stdout is not None
    ended = False
    for text in process.stdout:
        if not text.startswith('{"name"'):
            continue
        line = json.loads(text)
        name, seconds = line.pop("name"), line.pop("seconds")
        say(f"{result.name}: {name} ({seconds:.1f} s)")
        if name == "end":
            ended = True
        elif name == "facts":
            result.facts = line
        elif name == "assembly":
            result.instructions = line["instructions"]
        else:
            result.digests[name] = line["digest"]
            if line.get("wrong"):
                result.state, result.problem = "differs", f"{name}: {line['wrong']}"
    return ended


def judge(result: Result, machine: Machine, expected: Mapping[str, str]) -> None:
    """Set the state of a result by the digests of this machine and the path it had to take."""
    if result.state != "ok":
        return
    wrong = [name for name, digest in result.digests.items() if expected.get(of_what(name)) != digest]
    if not machine.short:
        wrong += sorted(set(expected) - {of_what(name) for name in result.digests})
    isa = result.facts.get("isa", "")
    found = set(result.instructions)
    if wrong:
        result.state, result.problem = "differs", f"{wrong[0]}, {len(wrong)} in all"
    elif machine.isa and isa != machine.isa:
        result.state, result.problem = "differs", f"takes the path {isa}, expected {machine.isa}"
    elif isa in INSTRUCTION and INSTRUCTION[isa] not in found:
        result.state, result.problem = "differs", f"path {isa} without {INSTRUCTION[isa]}"
    elif isa == "generic" and found & set(INSTRUCTION.values()):
        result.state, result.problem = "differs", f"path generic with {', '.join(sorted(found))}"


def of_what(name: str) -> str:
    """The name of a result without its backend."""
    return name.removesuffix(" numpy").removesuffix(" numba")


def reference(result: Result) -> dict[str, str]:
    """The digests that every machine has to give: those of NumPy here."""
    return {of_what(name): digest for name, digest in result.digests.items() if not name.endswith(" numba")}


# ---------------------------------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------------------------------


def table(results: Sequence[Mapping[str, object]]) -> str:
    """The table of docs/TRUST.md."""
    titles = (
        "machine",
        "emulator",
        "Python, NumPy, Numba",
        "path, instructions",
        "digests, golden",
        "result",
        "CPU time",
    )
    rows = [f"| {' | '.join((*titles, 'tree'))} |", "|---" * 8 + "|"]
    for entry in results:
        result = Result(**entry)  # type: ignore[arg-type]
        facts = result.facts
        versions = ", ".join(str(facts.get(key, "none")) for key in ("python", "numpy", "numba")) if facts else ""
        found = ", ".join(f"{count} {word}" for word, count in result.instructions.items())
        path = f"{facts.get('isa', 'NumPy only')}{f': {found}' if found else ''}" if facts else ""
        cpu = f"{result.name} ({facts['machine']}, {facts['byteorder']}-endian)" if facts else result.name
        emulator = f"{result.emulator} -cpu {result.cpu}" if result.emulator else "none"
        golden = result.digests.get("golden numpy", "")[:12]
        digest = f"{len(result.digests)}, `{golden}`" if result.digests else ""
        state = result.state if not result.problem else f"{result.state}: {result.problem}"
        seconds = f"{result.seconds:.0f} s" if result.seconds else ""
        rows.append(f"| {cpu} | {emulator} | {versions} | {path} | {digest} | {state} | {seconds} | {result.tree} |")
    return "\n".join(rows) + "\n"


def chosen(names: Sequence[str], short: bool = False) -> list[Machine]:
    """Machines by name, all without one; this one always comes first, to be compared with, and is never short."""
    known = {machine.name: machine for machine in MACHINES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"machines: unknown machine {unknown[0]!r}, expected {', '.join(known)}")
    found = [machine for machine in MACHINES if not names or machine.name in ("here", *names)]
    return [replace(machine, short=machine.short or (short and machine.name != "here")) for machine in found]


def beside(results: Sequence[Result], earlier: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Rows of a file: what was run, and of the other machines what it held, as long as the digests are today's."""
    expected = reference(results[0])
    rows = {str(entry["name"]): entry for entry in earlier if agrees(Result(**entry), expected)}  # type: ignore[arg-type]
    rows |= {result.name: asdict(result) for result in results}
    return [rows[machine.name] for machine in MACHINES if machine.name in rows]


def agrees(result: Result, expected: Mapping[str, str]) -> bool:
    """Whether no digest of a result differs from those to reach."""
    return all(expected.get(of_what(name), digest) == digest for name, digest in result.digests.items())


def campaign(
    machines: Sequence[Machine],
    store: Store,
    limit: float,
    say: Callable[[str], None],
    keep: Callable[[Sequence[Result]], None] = len,
) -> list[Result]:
    """Results of the machines, in order; only this machine's, where it fails itself.

    keep  is given what there is after every machine
    """
    results: list[Result] = []
    for machine in machines:
        result = run(machine, store, limit, say)
        judge(result, machine, reference(results[0] if results else result))
        results.append(result)
        keep(results)
        say(f"{machine.name}: {result.state}{f': {result.problem}' if result.problem else ''}")
        if machine.name == "here" and result.state != "ok":
            break
    return results


def failures(results: Sequence[Result], names: Sequence[str]) -> int:
    """How many are wrong: what could not be had only where it was asked for by name."""
    return sum(r.state not in ("ok", "not to be had") or (r.state != "ok" and r.name in names) for r in results)


def write(path: Path | None, results: Sequence[Result]) -> None:
    """Results into a file, if one is wanted."""
    if path is not None:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        path.write_text(json.dumps(beside(results, earlier), indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(machine.name for machine in MACHINES))
    parser.add_argument("--cache", type=Path, help="folder that keeps what is fetched (a temporary one)")
    parser.add_argument("--mirror", default="", metavar="URL", help="of Debian (that of apt)")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="of one machine (1800)")
    parser.add_argument("--short", action="store_true", help="every machine in short: golden folder, street")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results after every machine; rows of others stay"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of such a file instead")
    args = parser.parse_args(argv)
    if args.table:
        print(table(json.loads(args.table.read_text(encoding="utf-8"))), end="")
        return 0
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = (args.cache or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        store, machines = Store(folder, args.mirror, say), chosen(args.names, args.short)
        results = campaign(machines, store, args.limit, say, lambda results: write(args.json, results))
    print(table([asdict(result) for result in results]), end="")
    wrong, missing = failures(results, args.names), sum(r.state == "not to be had" for r in results)
    print(
        f"machines: {sum(r.state == 'ok' for r in results)} with the same bits, {missing} not to be had, {wrong} wrong"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
