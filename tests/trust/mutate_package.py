#!/usr/bin/env python3
"""Mutation score of the tests over everything around the arithmetic: files, loader, images, batches, reports, kernels.

    python tests/trust/mutate_package.py --sample 100 --seed 1      so many mutants of all modules; survivors, the score
    python tests/trust/mutate_package.py --module files --sample 0  all of the modules whose name holds a word
    python tests/trust/mutate_package.py --list --sample 100        name them, run nothing
    python tests/trust/mutate_package.py --sample 400 --journal j.jsonl     again: goes on after what is in the journal
    python tests/trust/mutate_package.py --sample 400 --part 1/2    a half of them; the other half in another process
    python tests/trust/mutate_package.py --again j.jsonl            those that survived, judged by the tests of today
    python tests/trust/mutate_package.py --show docs/mutants.jsonl  the table of what is in a journal

A mutant is the package with one change: those of mutate.py, and a condition negated, `and` for `or`, a raise or a call
left out. It is written into a copy of the checkout, so that processes which tests start have it too. The tests that
judge it are those that call its function, found by running the test files of its module once under a profile; its own
and the fastest come first, --most seconds of them, and the first that fails kills. What is compiled calls no Python: a
kernel is judged by all tests of its files. A mutant that takes ten times the CPU time of its tests, and half a minute
more, is killed by the clock. Before the first mutant its tests must pass without it.

Mutants remove wrong files: nothing outside of a temporary folder can be changed by them (cage.py).

Not mutated: the text of messages, annotations, doc strings, and what mutate.py mutates (intseg/ops, intseg/arith).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cage
from mutate import Mutant, changes

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("intseg", "kernels", "tools", "tests")
"""Folders that are copied; of everything else in the checkout the copy has links."""

_BROKEN = 70
"""The status of a run that ended before its tests."""

LONGEST, PATIENCE = 10.0, 30.0
"""A mutant may take so many times what its tests take, and so many seconds more, of CPU time."""

ASLEEP = 8
"""The time on the clock in which it must have got that, for mutants that wait for nothing: so many times as long."""

TESTS: dict[str, tuple[str, ...]] = {
    "intseg/files.py": ("test_files", "test_guards", "test_store"),
    "intseg/errors.py": ("test_files", "test_report", "test_cli"),
    "intseg/store.py": ("test_store", "test_guards"),
    "intseg/graph.py": ("test_graph", "test_store"),
    "intseg/api.py": ("test_api", "test_guards"),
    "intseg/windows.py": ("test_windows", "test_image", "test_api", "test_vectors"),
    "intseg/backends.py": ("test_api", "test_cli"),
    "intseg/images": ("test_image", "test_labels", "test_guards"),
    "intseg/batch/classified.py": ("test_classify",),
    "intseg/batch/cluster.py": ("test_ray",),
    "intseg/batch": ("test_batch", "test_evaluate", "test_labels", "test_spread", "test_guards"),
    "intseg/plan": ("test_kernels",),
    "intseg/export/tosa.py": ("test_tosa",),
    "intseg/export/tosa_block.py": ("test_tosa",),
    "intseg/export/tosa_limbs.py": ("test_tosa",),
    "intseg/export/tosa_machine.py": ("test_tosa",),
    "intseg/export": ("test_onnx",),
    "intseg/workbench/diff.py": ("test_diff", "test_guards"),
    "intseg/workbench/sides.py": ("test_diff", "test_bare_files", "test_guards"),
    "intseg/workbench/cause.py": ("test_diff",),
    "intseg/workbench/dump.py": ("test_dump", "test_guards"),
    "intseg/workbench/memory_files.py": ("test_dump",),
    "intseg/workbench/trace.py": ("test_trace", "test_guards"),
    "intseg/cli/classify.py": ("test_classify",),
    "intseg/cli/conformance.py": ("test_cli", "test_vectors", "test_truth_table"),
    "intseg/cli/evaluate.py": ("test_cli", "test_evaluate"),
    "intseg/cli/exchange.py": ("test_onnx", "test_tosa"),
    "intseg/cli/reports.py": ("test_cli", "test_report", "test_card", "test_inspect", "test_prove"),
    "intseg/cli/spread.py": ("test_cli", "test_spread"),
    "intseg/cli/workbench.py": ("test_cli", "test_diff", "test_dump", "test_trace"),
    "intseg/cli": ("test_cli", "test_batch"),
    "kernels/resize.py": ("test_windows",),
    "kernels/pixel_map.py": ("test_windows",),
    "kernels/class_map.py": ("test_windows", "test_kernels"),
    "kernels": ("test_kernels",),
}
"""Module or folder -> the test files that judge it."""

EQUIVALENT: dict[str, str] = {
    "intseg/errors.py:suggest: ches(word, meant, [1 -> 2])": "the first of them is told",
    "intseg/files.py:_take_over: if old is None[ or fcntl is None -> ]:": "for systems without locks",
    "intseg/files.py:_remove_abandoned: [os.remove(path) -> pass]": "for systems without locks",
    "intseg/files.py:_next: return min([size + 1 - got if got <= size else _CHUNK -> _CHUNK if got <= size else size + "
    "1 - got], limit + 1 - got,": "how many bytes are asked for at a time, not how many are read",
    "intseg/batch/claims.py:_stays_locked: [time.sleep(0.05) -> pass]": "it waits in a loop that never rests",
    "intseg/batch/cluster.py:Ray.run: mit, items, AHEAD [* -> +] self.jobs)": "how many images are under way at a time",
    "intseg/cli/convert.py:_convert_arguments: ', type=whole(1, 1[0 -> 1] ** 9), metavar='N": "any end will do",
    "intseg/cli/exchange.py:_noise: andom.default_rng([0 -> 1])": "other random images",
    "intseg/cli/printing.py:_Closed.read: size: int | None=-[1 -> 2])": "nothing is read anyway",
    "intseg/images/labels.py:_scaling: op, shown = (rest[[0 -> -1]], 255 if image.mo": "there is only one",
    "intseg/export/tosa_block.py:Block.join:  parts, str(parts[[0 -> 1]].dtype), shape, a": "all have the same type",
    "intseg/files.py:new_folder: pa[th.rmdir() -> ss]": "POSIX renames over an empty folder, Windows does not",
}
"""Mutants that no test can kill, by their key, and why."""


# ---------------------------------------------------------------------------------------------------------------------
# Mutants
# ---------------------------------------------------------------------------------------------------------------------

Path_ = tuple[tuple[str, int | None], ...]
"""How to walk from a node to one below it."""


@dataclass(frozen=True)
class Change:
    """A mutant that is not made yet: in which function of a file (its number, name and tree), where, and to what."""

    file: str
    number: int
    function: str
    root: ast.FunctionDef
    path: Path_
    new: ast.AST

    def mutant(self) -> Mutant:
        """The whole module with the change."""
        function, old = self.root, _at(self.root, self.path)
        before = _line(function, self.path)
        _put(function, self.path, self.new)
        after = _line(function, self.path)
        _put(function, self.path, old)
        return Mutant(self.file, self.function, old.lineno, before, after, self._tree)

    def _tree(self) -> ast.Module:
        tree = ast.parse((ROOT / self.file).read_text(encoding="utf-8"))
        _put(list(_functions(tree, ""))[self.number][1], self.path, self.new)
        return ast.fix_missing_locations(tree)


def changes_of(file: str) -> Iterator[Change]:
    """Every mutant of a module, in source order."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for number, (name, function) in enumerate(_functions(tree, "")):
        for path, node in _places(function):
            for new in [*changes(node), *_guards(node)] if isinstance(node, ast.expr) else _dropped(node):
                yield Change(file, number, name, function, path, new)


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods with their qualified names; a nested function belongs to the one around it."""
    for item in ast.iter_child_nodes(tree):
        if isinstance(item, ast.ClassDef):
            yield from _functions(item, f"{prefix}{item.name}.")
        elif isinstance(item, ast.FunctionDef):
            yield prefix + item.name, item
        elif isinstance(item, ast.If | ast.Try):
            yield from _functions(item, prefix)


def _places(root: ast.AST, path: Path_ = ()) -> Iterator[tuple[Path_, ast.expr | ast.stmt]]:
    """What may change below a node: no text of messages, no annotations, no doc strings, no decorators."""
    for name, value in ast.iter_fields(root):
        if name in ("annotation", "returns", "decorator_list", "ctx", "type_comment"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr) or _is_told(child):
                continue
            here = (*path, (name, index))
            if isinstance(child, ast.expr | ast.stmt):
                yield here, child
            if not isinstance(child, ast.Raise):
                yield from _places(child, here)


def _is_told(item: ast.AST) -> bool:
    """A doc string, or strict=True of zip: what is said about code that is right."""
    doc = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
    return doc or (isinstance(item, ast.keyword) and item.arg == "strict")


def _guards(item: ast.expr) -> Iterator[ast.expr]:
    """Changes of conditions."""
    if isinstance(item, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(item.op, ast.And) else ast.And(), item.values)
        yield from item.values if len(item.values) == 2 else ()
    elif isinstance(item, ast.UnaryOp) and isinstance(item.op, ast.Not):
        yield item.operand
    elif isinstance(item, ast.Compare) and len(item.ops) == 1 and isinstance(item.ops[0], ast.In | ast.NotIn):
        other = ast.NotIn() if isinstance(item.ops[0], ast.In) else ast.In()
        yield ast.Compare(item.left, [other], item.comparators)


def _dropped(item: ast.stmt) -> Iterator[ast.stmt]:
    """A raise or a call left out, a condition negated."""
    if isinstance(item, ast.Raise) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Call)):
        yield ast.Pass()
    elif isinstance(item, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), item.test), item.body, item.orelse)


def _at(root: Any, path: Path_) -> Any:
    for name, index in path:
        root = getattr(root, name) if index is None else getattr(root, name)[index]
    return root


def _put(root: Any, path: Path_, new: ast.AST) -> None:
    root = _at(root, path[:-1])
    name, index = path[-1]
    if index is None:
        setattr(root, name, new)
    else:
        getattr(root, name)[index] = new


def _line(root: Any, path: Path_) -> str:
    """The innermost statement on the way, as one line."""
    found = root
    for name, index in path:
        root = getattr(root, name) if index is None else getattr(root, name)[index]
        found = root if isinstance(root, ast.stmt) else found
    return f"({ast.unparse(found.args)})" if isinstance(found, ast.FunctionDef) else ast.unparse(found).splitlines()[0]


def all_changes(word: str) -> list[Change]:
    """Every mutant of the modules of TESTS whose path holds a word."""
    files = sorted({path for place in TESTS for path in _sources(place) if word in path})
    return [change for file in files for change in changes_of(file)]


def _sources(place: str) -> Iterator[str]:
    path = ROOT / place
    for file in [path] if path.is_file() else sorted(path.glob("*.py")):
        yield file.relative_to(ROOT).as_posix()


def tests_of(file: str) -> tuple[str, ...]:
    """The test files that judge a module."""
    names = TESTS.get(file) or next(tests for place, tests in TESTS.items() if Path(place) in Path(file).parents)
    return tuple(f"tests/{name}.py" for name in names)


def drawn(found: list[Change], sample: int, seed: int) -> list[Change]:
    """So many mutants, each module in turn, so that small modules are not lost among large ones; 0 for all."""
    if not sample or sample >= len(found):
        return found
    by_file: dict[str, list[Change]] = defaultdict(list)
    for change in found:
        by_file[change.file].append(change)
    r = random.Random(seed)
    for rest in by_file.values():
        r.shuffle(rest)
    order = sorted(by_file)
    r.shuffle(order)
    chosen: list[Change] = []
    while len(chosen) < sample:
        chosen += [by_file[file].pop() for file in order if by_file[file]]
    return chosen[:sample]


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    """A test that calls a function, and the seconds that it takes."""

    name: str
    seconds: float


class Callers:
    """A pytest plugin: which functions of the package every test calls, and the tests that fail anyway."""

    def __init__(self, root: Path) -> None:
        self.root = str(root) + os.sep
        self.calls: dict[str, dict[str, float]] = {}
        self.failed: list[str] = []
        self._seen: set[Any] = set()

    def pytest_runtest_protocol(self, item: Any, nextitem: object) -> None:
        """Begin a test: its fixtures count too."""
        self._seen = set()
        self._start, self._name = time.monotonic(), item.nodeid
        sys.setprofile(self._profile)

    def pytest_runtest_logfinish(self, nodeid: str, location: object) -> None:
        """End it."""
        sys.setprofile(None)
        seconds = time.monotonic() - self._start
        for code in self._seen:
            file = code.co_filename
            if file.startswith(self.root):
                key = f"{os.path.relpath(file, self.root)}:{code.co_qualname.split('.<locals>')[0]}"
                self.calls.setdefault(key, {})[nodeid] = seconds

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a failure."""
        if report.failed:
            self.failed.append(report.nodeid)

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self._seen.add(frame.f_code)


class Workshop:
    """A copy of the checkout in which one file at a time is mutated, and a process that forks for every run."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.root.mkdir()
        for item in ROOT.iterdir():
            if item.name in COPIED:
                leave_out = shutil.ignore_patterns("__pycache__", "*.safetensors" if item.name == "intseg" else "")
                shutil.copytree(item, self.root / item.name, symlinks=True, ignore=leave_out)
            elif not item.name.startswith((".git", ".hypothesis", ".pytest", ".mypy", ".ruff")):
                (self.root / item.name).symlink_to(item)
        for model in (ROOT / "intseg" / "models").glob("*.safetensors"):
            (self.root / "intseg" / "models" / model.name).symlink_to(model)
        shutil.copy(cage.__file__, self.root / "sitecustomize.py")
        self.temporary = folder / "tmp"
        self.cache = self.temporary / "cache"
        self._empty()
        self.calls: dict[str, dict[str, float]] = {}
        self.failed: set[str] = set()

    def look(self, files: Sequence[str]) -> None:
        """Run test files once: who calls what."""
        out = self.temporary / "calls.json"
        code = self._fork([*files, "-q"], None, out)
        document = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        if code not in (0, 1) or not document:
            raise SystemExit(f"mutate_package.py: the tests do not run unmutated (status {code}): {' '.join(files)}")
        self.calls, self.failed = document["calls"], set(document["failed"])
        self._empty()

    def _empty(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.cache.mkdir(0o700, parents=True)

    def judges(self, mutant: Mutant, most: float) -> list[Test]:
        """The tests of a mutant, those of its module first, then the fastest, so many seconds.

        Of a kernel all that call anything of its file.
        """
        found: dict[str, float] = {}
        for key, tests in self.calls.items():
            file, _, function = key.partition(":")
            if file == mutant.file and (function == mutant.function or file.startswith("kernels")):
                found |= tests
        if mutant.file.startswith("kernels") and not found:
            files = tests_of(mutant.file)
            found = {n: s for tests in self.calls.values() for n, s in tests.items() if n.partition("::")[0] in files}
        own = tests_of(mutant.file)
        usable = (Test(name, seconds) for name, seconds in found.items() if name not in self.failed)
        order = sorted(usable, key=lambda test: (test.name.partition("::")[0] not in own, test.seconds))
        total = [sum(test.seconds for test in order[:i]) for i in range(len(order))]
        return [test for test, before in zip(order, total, strict=True) if before <= most]

    def survives(self, mutant: Mutant, tests: Sequence[Test]) -> bool:
        """Whether every test passes with the change."""
        place = self.root / mutant.file
        original = place.read_bytes()
        place.write_text(ast.unparse(mutant.tree) + "\n", encoding="utf-8")
        try:
            return self.passes(tests, PATIENCE + LONGEST * sum(test.seconds for test in tests))
        finally:
            place.write_bytes(original)

    def passes(self, tests: Sequence[Test], limit: float | None = None) -> bool:
        """Whether every one of some tests passes, in time. Raises SystemExit when they could not even be started."""
        code = self._fork([*(test.name for test in tests), "-x", "-q"], limit, None)
        if code == _BROKEN:
            raise SystemExit("mutate_package.py: pytest could not be started; MUTATE_LOG=FILE shows why")
        return code == 0

    def _fork(self, arguments: Sequence[str], limit: float | None, out: Path | None) -> int | None:
        """The exit status of pytest in a child; None when the clock ended it."""
        child = os.fork()
        if not child:
            try:
                os.setsid()
                if limit is not None:
                    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), resource.RLIM_INFINITY))
                os._exit(self._run(list(arguments), out))
            except BaseException:
                traceback.print_exc()
            finally:  # whatever is raised: nothing of the parent's is cleaned up here
                os._exit(_BROKEN)
        end = math.inf if limit is None else time.monotonic() + ASLEEP * limit
        while not (found := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
            time.sleep(0.05)
        return os.waitstatus_to_exitcode(found[1])

    def _run(self, arguments: list[str], out: Path | None) -> int:
        import pytest

        os.chdir(self.root)
        sys.path[:] = [str(self.root), *(p for p in sys.path if not p.startswith(str(ROOT)) and p not in ("", "."))]
        os.environ |= {"PYTHONPATH": str(self.root), "INTSEG_CACHE_DIR": str(self.cache), "CAGE": str(self.temporary)}
        os.environ |= {"TMPDIR": str(self.temporary), "HOME": str(self.temporary)}
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(self.temporary / "hypothesis")
        tempfile.tempdir = None
        for name in [name for name in sys.modules if name.split(".")[0] in ("intseg", "mutate", "tests")]:
            del sys.modules[name]
        quiet = os.open(os.environ.get("MUTATE_LOG", os.devnull), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for descriptor in range(3):
            os.dup2(quiet, descriptor)
        cage.enter(str(self.temporary))
        callers = Callers(self.root)
        plugins: list[object] = [callers] if out is not None else []
        code = int(pytest.main([*arguments, "-p", "no:cacheprovider", "-p", "no:randomly"], plugins))
        if out is not None:
            out.write_text(json.dumps({"calls": callers.calls, "failed": callers.failed}), encoding="utf-8")
        return code


def preload() -> None:
    """What every run imports: once, before the forks."""
    import numba.core.registry
    import numpy
    import PIL.Image
    import pytest
    import safetensors.numpy

    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    assert all((numba, numpy, PIL.Image, pytest, safetensors.numpy))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0 when at least 95 % are killed or argued, else 1."""
    parser = argparse.ArgumentParser(prog="mutate_package.py", description="Mutation score of the tests.")
    parser.add_argument("--module", default="", metavar="WORD", help="only modules whose path holds it")
    parser.add_argument("--sample", type=int, default=100, metavar="N", help="so many mutants (100); 0 for all")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample (0)")
    parser.add_argument("--seconds", type=float, default=10**9, metavar="S", help="begin no mutant after so long")
    parser.add_argument("--most", type=float, default=60.0, metavar="S", help="seconds of tests for a mutant (60)")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th of them, from the I-th on")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="keep what is found there, and go on from it")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only mutants that survived in this journal")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a journal and stop")
    parser.add_argument("--tests", nargs="+", default=(), metavar="TEST", help="judge by these, whatever they call")
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    args = parser.parse_args(argv)
    if args.show:
        return _show([line for line in _lines(args.show) if "key" in line])
    found = all_changes(args.module)
    part, parts = map(int, args.part.split("/"))
    chosen = survivors(args.again) if args.again else drawn(found, args.sample, args.seed)[part - 1 :: parts]
    if args.list:
        print("\n".join(str(change.mutant()) for change in chosen))
        return 0
    if not chosen:
        print(
            f"mutate_package.py: no module holds {args.module!r}, expected one of {', '.join(TESTS)}", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as folder, Journal(args.journal) as journal:
        return _score(chosen, len(found), Path(folder), journal, args)


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def survivors(path: Path) -> list[Change]:
    """The mutants that survived in a journal, as far as their code is still there."""
    lines = [line for line in _lines(path) if line.get("what") == "survived"]
    return named({line["key"] for line in lines})


def named(keys: Collection[str]) -> list[Change]:
    """The mutants with these keys."""
    places = {tuple(key.split(":")[:2]) for key in keys}
    near = (c for file in sorted({file for file, _ in places}) for c in changes_of(file))
    return [c for c in near if (c.file, c.function) in places and c.mutant().key in keys]


class Journal:
    """What is known of mutants, by key, and who calls what: of this very tree. Without a path it forgets."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []

    def __enter__(self) -> Journal:
        """Read it. Raises SystemExit for a journal of another tree."""
        tree = hashlib.sha256()
        for place in COPIED:
            for file in sorted((ROOT / place).rglob("*.py")):
                tree.update(file.read_bytes())
        self.lines = _lines(self.path) if self.path else []
        if self.lines and self.lines[0] != {"tree": tree.hexdigest()}:
            raise SystemExit(f"mutate_package.py: {self.path}: is of other sources or tests; choose another file")
        if not self.lines:
            self.add({"tree": tree.hexdigest()})
        return self

    def __exit__(self, *_: object) -> None:
        """Every line is written already."""

    def add(self, line: dict[str, Any]) -> None:
        """One more line."""
        self.lines.append(line)
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """What became of mutants, by key."""
        return {line["key"]: line for line in self.lines if "key" in line}


def _looked(workshop: Workshop, journal: Journal, files: list[str]) -> None:
    """Who calls what: run the tests once, unless the journal knows it."""
    start = time.monotonic()
    known = next((line for line in journal.lines if line.get("files") == files), None)
    if known is None:
        workshop.look(files)
        journal.add({"files": files, "calls": workshop.calls, "failed": sorted(workshop.failed)})
    else:
        workshop.calls, workshop.failed = known["calls"], set(known["failed"])
    print(f"unmutated: {time.monotonic() - start:.0f} s, {len(workshop.failed)} tests fail, left out", flush=True)


def _score(chosen: list[Change], everything: int, folder: Path, journal: Journal, args: argparse.Namespace) -> int:
    preload()
    workshop, start = Workshop(folder), time.monotonic()
    if not args.tests:
        _looked(workshop, journal, sorted({file for change in chosen for file in tests_of(change.file)}))
    given = [Test(name, args.most) for name in args.tests]
    known = journal.outcomes()
    found: list[dict[str, Any]] = []
    order = sorted(chosen, key=lambda change: change.file.startswith("kernels"))  # what is compiled takes longest
    _require_sound(workshop, order, given)
    for mutant in (change.mutant() for change in order):
        if mutant.key not in known:
            if time.monotonic() - start > args.seconds:
                break
            known[mutant.key] = _judged(workshop, mutant, given or workshop.judges(mutant, args.most))
            journal.add(known[mutant.key])
        found.append(known[mutant.key])
        if found[-1]["what"] == "survived":
            print(f"survivor{'' if found[-1]['tests'] else ' (no test calls it)'}: {mutant}", flush=True)
    return _print_score(found, everything, time.monotonic() - start)


def _require_sound(workshop: Workshop, chosen: Sequence[Change], given: Sequence[Test]) -> None:
    """The given tests, or those of the first mutant that has some, pass unmutated: else everything would be killed."""
    for mutant in (change.mutant() for change in chosen):
        if tests := given or workshop.judges(mutant, 1.0):
            if not workshop.passes(tests):
                raise SystemExit(f"mutate_package.py: tests fail without a mutant: {', '.join(t.name for t in tests)}")
            return


def _judged(workshop: Workshop, mutant: Mutant, tests: Sequence[Test]) -> dict[str, Any]:
    """What becomes of a mutant: argued, killed or survived."""
    start = time.monotonic()
    if mutant.key in EQUIVALENT:
        what = "argued"
    else:
        what = "survived" if not tests or workshop.survives(mutant, tests) else "killed"
    seconds = round(time.monotonic() - start, 2)
    return {"key": mutant.key, "file": mutant.file, "what": what, "tests": len(tests), "seconds": seconds}


def _show(found: list[dict[str, Any]]) -> int:
    """The outcomes by part of the package, in Markdown; the status is that of `_print_score`."""
    by_part: dict[str, Counter[str]] = defaultdict(Counter)
    for line in found:
        place = Path(line["file"])
        part = str(place.parent) if str(place.parent) != "intseg" else str(place)
        by_part[part][line["what"]] += 1
        by_part["all"][line["what"]] += 1
    print("| part | mutants | killed | argued | survived |\n|---|---|---|---|---|")
    for part in (*sorted(by_part.keys() - {"all"}), "all"):
        n = by_part[part]
        print(f"| `{part}` | {n.total()} | {n['killed']} | {n['argued']} | {n['survived']} |")
    good = by_part["all"]["killed"] + by_part["all"]["argued"]
    print(f"\n{100 * good / max(by_part['all'].total(), 1):.1f} % killed or argued")
    return 0 if good >= 0.95 * by_part["all"].total() else 1


def _print_score(found: list[dict[str, Any]], everything: int, seconds: float) -> int:
    """The table, the rate, the memory, and all of it as JSON; 0 when at least 95 % are killed or argued."""
    by_file = {file: Counter(line["what"] for line in found if line["file"] == file) for file in
               sorted({line["file"] for line in found})}  # fmt: skip
    for file, counts in by_file.items():
        counted = counts["killed"] + counts["survived"]
        print(f"{file:36} {counts['killed']:4} of {counted:4} killed, {counts['argued']} argued")
    total = Counter(line["what"] for line in found)
    counted = total["killed"] + total["survived"]
    score = 100 * total["killed"] / max(counted, 1)
    each = sum(line["seconds"] for line in found) / max(len(found), 1)
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(
        f"{len(found)} of {everything} mutants in {seconds:.0f} s, {each:.1f} s each, {memory:.0f} MiB: "
        f"{total['argued']} argued, {total['killed']} of {counted} killed: {score:.1f} %"
    )
    print(json.dumps({"mutants": len(found), "of": everything, "seconds": round(seconds), "score": score, **total}))
    return 0 if score >= 95 else 1


if __name__ == "__main__":
    sys.exit(main())
