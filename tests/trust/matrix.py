#!/usr/bin/env python3
"""The same bits everywhere: random graphs on every backend, thread count, compile target, optimisation level, version.

    python tests/trust/matrix.py                                        all cells, 300 random and 100 adversarial graphs
    python tests/trust/matrix.py --graphs 10000 --adversarial 1000      a campaign
    python tests/trust/matrix.py --cells host,haswell                   some settings; quick is host and plain IR
    python tests/trust/matrix.py --case "adversarial 0:17"              one graph, to look into a difference

A setting is a process of its own with its own cache of compiled kernels: a compile target, an optimisation level, or
versions of NumPy and Numba in a virtual environment made here. A cell is a mode in a setting: the definition (numpy),
the kernels one op at a time (unfused), the fused plan on 1, 2 or 3 threads. In every cell every value that exists is
compared with the definition in the first setting: all nodes, the scores, the labels. Settings that this machine has not
the instructions for are listed as not run. Exit status 1 on any difference, and when a setting fails.
"""

from __future__ import annotations

import argparse
import configparser
import functools
import gc
import hashlib
import itertools
import json
import os
import pickle
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from random_graphs import Case, cases, parse

from intseg import backends, store
from intseg.executor import execute
from intseg.ops import RUN, Array

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "golden" / "models"
MODES = ("numpy", "unfused", "fused 1", "fused 2", "fused 3")
FEW_MODES = ("fused 2",)
"""Of settings other than the host, without --full; those of other versions add the modes with most of NumPy in them."""

WORD = 8
"""Bytes of the digest of one value."""

# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """How one process runs.

    group        host, target, optimiser or versions
    needs        features of this CPU, as LLVM calls them
    machine      architecture it belongs to, "" for any
    environment  variables for Numba
    forced       instruction path instead of the target's own
    path         instruction path that must be in use, "" for any
    packages     requirements of its virtual environment; none: this interpreter
    """

    name: str
    group: str
    needs: tuple[str, ...] = ()
    machine: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    forced: str = ""
    path: str = ""
    packages: tuple[str, ...] = ()
    modes: tuple[str, ...] = FEW_MODES


def target(name: str, path: str, *needs: str) -> Setting:
    """A compile target of x86-64 by its CPU name."""
    environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
    return Setting(name, "target", needs, "x86_64", environment, path=path)


AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")


def settings() -> list[Setting]:
    """All of them; the first is the one the others are compared with."""
    low = lowest()
    numba, numpy = f"numba=={low['numba']}", f"numpy=={low['numpy']}"
    others = tuple(f"{name}=={low[name]}" for name in ("pillow", "safetensors", "tqdm"))
    newest = ("pillow", "safetensors", "tqdm")
    versions = {
        "numba oldest/NumPy oldest": (numba, numpy, *others),
        "numba oldest/NumPy newest": (numba, "numpy", *newest),
        "numba newest/NumPy oldest": ("numba", numpy, *newest),
        "numba newest/NumPy newest": ("numba", "numpy", *newest),
    }
    return [
        Setting("host", "host", modes=MODES),
        *(
            Setting(name, "versions", packages=packages, modes=("numpy", "unfused", *FEW_MODES))
            for name, packages in versions.items()
        ),
        target("icelake-server", "vnni", *AVX512, "avx512vnni", "avx512vbmi"),
        target("cascadelake", "vnni", *AVX512, "avx512vnni"),
        target("skylake-avx512", "avx512bw", *AVX512),
        target("haswell", "avx2", "avx2"),
        target("x86-64-v2", "sse2", "sse4.2"),
        target("generic", "sse2"),
        Setting("plain IR", "target", forced="generic", path="generic"),
        *(Setting(f"as {name}", "target", machine="x86_64", forced=name, path=name) for name in ("dotprod", "i8mm")),
        *(Setting(f"optimiser {n}", "optimiser", environment={"NUMBA_OPT": str(n)}) for n in range(3)),
        Setting("no loop vectors", "optimiser", environment={"NUMBA_LOOP_VECTORIZE": "0"}),
        Setting("SLP vectors", "optimiser", environment={"NUMBA_SLP_VECTORIZE": "1"}),
    ]


def lowest() -> dict[str, str]:
    """Oldest supported version by package: constraints/lowest.txt where it is there, the bounds of setup.cfg if not."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    found = dict(re.findall(r"^([\w-]+)\s*>=\s*([\w.]+)", config["options"]["install_requires"].strip(), re.M))
    pinned = ROOT / "constraints" / "lowest.txt"
    if pinned.exists():
        pins = dict(re.findall(r"^([\w-]+)\s*==\s*([\w.]+)", pinned.read_text(), re.M))
        found |= {name: pins[name] for name in found if name in pins}
    return found


def chosen(words: str) -> list[Setting]:
    """Settings by names and groups, `all` or `quick`; the first one always."""
    known, wanted = settings(), [word.strip() for word in words.split(",")]
    names = {word for s in known for word in (s.name, s.group)} | {"all", "quick"}
    unknown = [word for word in wanted if word not in names]
    if unknown:
        raise SystemExit(f"matrix: unknown cells {unknown[0]!r}, expected {', '.join(sorted(names))}")
    if "all" in wanted:
        return known
    wanted += ["plain IR"] if "quick" in wanted else []
    return [s for i, s in enumerate(known) if i == 0 or s.name in wanted or s.group in wanted]


def missing(setting: Setting) -> str:
    """Why this machine cannot run a setting, "" if it can."""
    from llvmlite import binding

    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if setting.machine not in ("", machine):
        return f"needs {setting.machine}, this is {machine}"
    have = binding.get_host_cpu_features()
    lacking = [name for name in setting.needs if not have.get(name)]
    return f"this CPU lacks {', '.join(lacking)}" if lacking else ""


# ---------------------------------------------------------------------------------------------------------------------
# One process
# ---------------------------------------------------------------------------------------------------------------------


def digest(value: Array) -> bytes:
    """Of dtype, shape and every element."""
    head = f"{value.dtype.name} {value.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).digest()[:WORD]


@dataclass
class Cell:
    """What one mode of a setting gave.

    values       compared with the definition
    results      digest of the scores and labels of every case: equal in all cells
    nodes        digest of all nodes as well, where the mode has them all
    differences  values that differ, `first` says where and how
    """

    mode: str
    cases: int = 0
    values: int = 0
    results: str = ""
    nodes: str = ""
    differences: int = 0
    first: str = ""


class Observer:
    """Compares the values of one mode with what is expected, and sums them up."""

    def __init__(self, mode: str) -> None:
        self.cell = Cell(mode)
        self._results, self._nodes = hashlib.sha256(), hashlib.sha256()
        self._complete = True

    def begin(self, case: Case, expected: Mapping[str, bytes]) -> None:
        self._case, self._expected, self._seen = case, expected, dict[str, bytes]()

    def see(self, name: str, value: Array) -> None:
        """A value; names that the definition does not have (packed operands) are passed over."""
        if name not in self._expected:
            return
        self._seen[name] = digest(value)
        if self._seen[name] != self._expected[name]:
            self.cell.differences += 1
            self.cell.first = self.cell.first or f"{self._case.name}, {name}{explain(self._case, name, value)}"

    def end(self) -> None:
        """Scores and labels are in every mode."""
        cell, seen, output = self.cell, self._seen, self._case.graph.output
        cell.cases += 1
        cell.values += len(seen)
        self._results.update(self._case.name.encode() + self._expected["graph"] + seen[output] + seen["labels"])
        self._complete &= len(seen) == len(self._expected) - 1
        self._nodes.update(b"".join(seen.values()))
        cell.results = self._results.hexdigest()
        cell.nodes = self._nodes.hexdigest() if self._complete else ""


def explain(case: Case, name: str, value: Array) -> str:
    """The first element that differs from the definition, computed here."""
    expected: dict[str, Array] = {}
    scores = execute(case.graph, case.image, RUN, lambda node, v: expected.update({node.name: v}))
    expected["labels"] = labels(case, scores, "numpy", 1)
    right = expected[name]
    op = "" if name == "labels" else f" ({case.graph.node(name).op})"
    if (right.dtype, right.shape) != (value.dtype, value.shape):
        return f"{op}: {value.dtype} {list(value.shape)}, expected {right.dtype} {list(right.shape)}"
    wrong = np.argwhere(right != value)
    if not len(wrong):
        return f"{op}: the definition itself gives another digest here"
    at = tuple(int(i) for i in wrong[0])
    return f"{op}, {list(at)}: {value[at]}, expected {right[at]}; {len(wrong)} of {value.size} differ"


def labels(case: Case, scores: Array, backend: str, threads: int) -> Array:
    info = case.graph.info
    if info.classifies:
        return backends.labels(scores[None, None], info, 1, 1, backend, threads)
    return backends.class_map(scores.astype(np.int32), info.upsample, info.patch, *case.size, backend, threads)


def run_mode(case: Case, mode: str, see: Callable[[str, Array], None], plan: Any) -> None:
    """Show every value of a case in a mode; `plan` is the compiled graph, its threads are set here."""
    graph, image = case.graph, case.image
    if not mode.startswith("fused"):
        backend = "numpy" if mode == "numpy" else "numba"
        scores = execute(graph, image, backends.table(backend), lambda node, value: see(node.name, value))
        see("labels", labels(case, scores, backend, 1))
        return
    plan.threads = int(mode.split()[1])
    scores = plan(image, lambda name, value: see(name, value) if name != graph.output else None)
    see(graph.output, scores)
    see("labels", labels(case, scores, "numba", plan.threads))


Known = tuple[Case, Mapping[str, bytes]]
"""A case, and what the definition gives: digests by node, of the labels, and of the graph itself."""


def defined(case: Case) -> Known:
    """Run the definition."""
    graph = case.graph
    itself = [store.tensors_sha256(graph.tensors), repr((graph.nodes, graph.output, graph.info, case.size))]
    parts = [*(text.encode() for text in itself), case.image.tobytes(), case.other.tobytes()]
    expected = {"graph": hashlib.sha256(b"".join(parts)).digest()[:WORD]}
    run_mode(case, "numpy", lambda name, value: expected.update({name: digest(value)}), None)
    return case, expected


def run_modes(source: Iterator[Known], modes: Sequence[str]) -> list[Cell]:
    """Run cases in modes and compare with what is known."""
    from intseg.plan.plan import Plan

    observers = [Observer(mode) for mode in modes]
    for case, expected in source:
        plan = Plan(case.graph, 3) if any(mode.startswith("fused") for mode in modes) else None
        if plan is not None:
            plan(case.other)  # makes the workspace, for 3 threads, and uses it: what it held must not matter
        for observer in observers:
            observer.begin(case, expected)
            run_mode(case, observer.cell.mode, observer.see, plan)
            observer.end()
    return [observer.cell for observer in observers]


def golden() -> Iterator[Case]:
    """The golden models on noise."""
    for path in sorted(MODELS.glob("*.safetensors")):
        graph, noise = store.load(path), random.Random(path.stem)
        shape = (*graph.info.window, 3)
        pixels = [bytearray(noise.randbytes(int(np.prod(shape)))) for _ in range(2)]
        images = [np.frombuffer(p, np.uint8).reshape(shape) for p in pixels]
        yield Case(f"golden {path.stem}", graph, images[0], images[1], graph.info.window)


def everything(graphs: int, adversarial: int, seed: int) -> Iterator[Case]:
    """The golden models, then random, then adversarial graphs."""
    return itertools.chain(golden(), cases(graphs, adversarial, seed))


def kept(source: Iterator[Known], path: Path) -> Iterator[Known]:
    """Pass on, and keep for other processes: making graphs takes longer than running them."""
    with path.open("wb") as file:
        for known in source:
            pickle.dump(known, file)
            yield known


def read_kept(path: Path) -> Iterator[Known]:
    """What `kept` wrote."""
    with path.open("rb") as file:
        while file.peek(1):
            yield pickle.load(file)


FLOAT = re.compile(
    r"\b(half|bfloat|float|double|x86_fp80|fp128|fadd|fmul|fdiv|fsub|fcmp|fptosi|sitofp|uitofp|fptoui)\b"
)
WORDS = ("vpdpbusd", "vpdpwssd", "vpmaddwd", "pmaddwd", "zmm", "ymm", "vpermi2b")


def float_lines(ir: str) -> list[str]:
    """Lines of instructions that mention a floating-point type or instruction; names and metadata do not count."""
    bodies = re.findall(r"^define [^\n]*\n(.*?)^}", ir, re.M | re.S)
    lines = (line.split(", !")[0] for body in bodies for line in body.splitlines())
    return [line for line in lines if FLOAT.search(re.sub(r'[@%]"[^"]*"|[@%][\w.$-]+', "", line))]


def code() -> dict[str, Any]:
    """Of the compiled kernels: floats of all, words and intrinsics of those with products and norms."""
    from intseg.kernels import _jit

    kernels = [k for name, k in _jit.REGISTRY.items() if name.endswith((".linear", ".attention", ".layernorm"))]
    text = "\n".join(kernel.assembly() for kernel in kernels)
    called = re.compile(r"llvm\.x86\.(?!atomic)[a-z0-9]+\.[a-z0-9.]+")
    return {
        "assembly": {word: len(re.findall(rf"\b{word}|%{word}", text)) for word in WORDS},
        "intrinsics": sorted({name for kernel in kernels for name in called.findall(kernel.llvm())}),
        "floats": {name: float_lines(kernel.llvm())[:3] for name, kernel in _jit.REGISTRY.items() if kernel._compiled},
    }


def work(order: Mapping[str, Any]) -> None:
    """A setting's process: runs its modes, writes a report."""
    import llvmlite
    import numba

    from intseg.kernels import _isa

    if order["forced"]:
        forced = {isa.name: isa for isa in (_isa._GENERIC, _isa._DOTPROD, _isa._I8MM)}[order["forced"]]
        _isa.choose = lambda target: forced
        _isa.select.cache_clear()
    started = time.perf_counter()
    gc.disable()  # what compiling leaves behind is not searched: it lives as long as this process
    backends.warmup()
    gc.freeze()
    gc.enable()
    compiled = time.perf_counter()
    known = Path(order["known"])
    if order["group"] == "host":
        made = everything(order["graphs"], order["adversarial"], order["seed"])
        source = kept(map(defined, made), known)
    else:
        source = read_kept(known)
    cells = run_modes(source, order["modes"])
    report = {
        "order": order,
        "path": _isa.select().name + ("+vbmi" if _isa.select().vbmi else ""),
        "target": _isa.current_target()[1],
        "versions": {
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            "numba": numba.__version__,
            "llvmlite": llvmlite.__version__,
        },
        "compile_s": round(compiled - started, 1),
        "run_s": round(time.perf_counter() - compiled, 1),
        "cpu_s": round(time.process_time(), 1),
        "cells": [asdict(cell) for cell in cells],
        **(code() if order["code"] else {}),
    }
    Path(order["report"]).write_text(json.dumps(report), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# All processes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Of one setting: a report, or why there is none."""

    setting: Setting
    report: dict[str, Any] = field(default_factory=dict)
    not_run: str = ""
    failed: str = ""

    @property
    def differences(self) -> int:
        return sum(cell["differences"] for cell in self.report.get("cells", []))


def make_environment(setting: Setting, folder: Path) -> Path:
    """A virtual environment with the packages of a setting; its interpreter."""
    home = folder / re.sub(r"\W+", "-", setting.name)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (home / "complete").exists():
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--only-binary", ":all:"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)],
            [*pip, *setting.packages],
        ):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"cannot install {' '.join(setting.packages)}: {done.stderr.strip()[-400:]}")
        (home / "complete").touch()
    return python


@functools.cache
def sources() -> str:
    """Digest of the code under test and of this tool."""
    files = [p for folder in ("intseg", "kernels", "tests/trust") for p in sorted((ROOT / folder).rglob("*.py"))]
    own = [p for p in files if p.parent.name != "trust" or p.name in ("matrix.py", "random_graphs.py")]
    return hashlib.sha256(b"".join(p.read_bytes() for p in own)).hexdigest()


def run_setting(setting: Setting, options: argparse.Namespace, folder: Path) -> Outcome:
    """Run one setting in its process."""
    reason = missing(setting)
    if reason:
        return Outcome(setting, not_run=reason)
    try:
        python = make_environment(setting, folder) if setting.packages else Path(sys.executable)
    except OSError as error:
        return Outcome(setting, failed=str(error))
    name = re.sub(r"\W+", "-", setting.name)
    report, known = folder / f"{name}.json", folder / "known"
    order = asdict(setting) | vars(options) | {"known": str(known), "report": str(report), "sources": sources()}
    if report.exists() and known.exists():  # from an earlier run with --keep
        earlier = json.loads(report.read_text())
        if earlier["order"] == json.loads(json.dumps(order)):
            return Outcome(setting, earlier)
        report.unlink()
    cache = tempfile.mkdtemp(prefix=f"cache-{name}-", dir=folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "INTSEG_"))}
    environment |= {"PYTHONPATH": str(ROOT), "INTSEG_CACHE_DIR": cache, "OMP_NUM_THREADS": "1", **setting.environment}
    command = [str(python), str(Path(__file__).resolve()), "--work", json.dumps(order)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    shutil.rmtree(cache)
    if done.returncode:
        return Outcome(setting, failed=done.stderr.strip()[-1000:] or f"exit status {done.returncode}")
    outcome = Outcome(setting, json.loads(report.read_text()))
    if setting.path and outcome.report["path"].partition("+")[0] != setting.path:
        outcome.failed = f"ran on the path {outcome.report['path']}, expected {setting.path}"
    return outcome


def run_all(
    wanted: Sequence[Setting], options: argparse.Namespace, folder: Path, jobs: int, show: Callable[[Outcome], None]
) -> list[Outcome]:
    """The first setting, whose definition is the reference, then the others."""
    outcomes = [run_setting(wanted[0], options, folder)]
    show(outcomes[0])
    if outcomes[0].failed:
        return outcomes
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(lambda s: run_setting(s, options, folder), wanted[1:]):
            show(outcome)
            outcomes.append(outcome)
    return outcomes


HEAD = (
    f"{'setting':27} {'path':10} {'NumPy':6} {'numba':7} {'modes':23} {'cells':>5} {'values compared':>15}"
    f" {'differ':>6} {'CPU s':>6}"
)


def row(outcome: Outcome) -> str:
    name, report = outcome.setting.name, outcome.report
    if outcome.not_run:
        return f"{name:27} not run: {outcome.not_run}"
    if outcome.failed:
        return f"{name:27} FAILED: {outcome.failed}"
    cells, versions = report["cells"], report["versions"]
    threads = ", ".join(c["mode"].split()[1] for c in cells if c["mode"].startswith("fused"))
    modes = " ".join([*(c["mode"] for c in cells if not c["mode"].startswith("fused")), f"fused {threads}"])
    values = sum(c["values"] for c in cells)
    return (
        f"{name:27} {report['path']:10} {versions['NumPy']:6} {versions['numba']:7} {modes:23} {len(cells):5}"
        f" {values:15,} {outcome.differences:6} {report['cpu_s']:6.0f}"
    )


def summary(outcomes: Sequence[Outcome], options: argparse.Namespace) -> tuple[list[str], bool]:
    """Closing lines, and whether all is well."""
    ran = [o for o in outcomes if o.report]
    cells = [cell for o in ran for cell in o.report["cells"]]
    lines = []
    for o in outcomes:
        lines += [f"DIFFERS: {o.setting.name}, {c['mode']}: {c['first']} ({c['differences']} values in all)"
                  for c in o.report.get("cells", []) if c["differences"]]  # fmt: skip
    results, nodes = ({c[key] for c in cells if c[key]} for key in ("results", "nodes"))
    well = len(results) == 1 and len(nodes) == 1 and not lines and not any(o.failed for o in outcomes)
    count = len(list(MODELS.glob("*.safetensors")))
    lines += [
        f"{options.graphs:,} random and {options.adversarial:,} adversarial graphs (seed {options.seed}),"
        f" {count} golden models",
        f"{len(cells)} cells in {len(ran)} settings, {sum(c['values'] for c in cells):,} values compared,"
        f" {sum(c['differences'] for c in cells)} differ; {sum(bool(o.not_run) for o in outcomes)} settings not run",
        f"digest of scores and labels, {len(cells)} cells: {' '.join(sorted(results))}",
        f"digest of every node, {sum(bool(c['nodes']) for c in cells)} cells: {' '.join(sorted(nodes))}",
        f"CPU time {sum(o.report['cpu_s'] for o in ran) / 60:.1f} min; Python {platform.python_version()},"
        f" {platform.system()} {platform.machine()}, target {ran[0].report['target'] if ran else '?'}",
    ]
    return lines, well


def one_case(name: str) -> int:
    """Describe a graph and run it here in every mode."""
    case = next((c for c in golden() if c.name == name), None) or parse(name)
    for node in case.graph.nodes:
        result = f"{node.dtype} {list(node.shape)}"
        print(f"{node.name:22} {node.op:17} {result:22} {' '.join(node.inputs)}  {dict(node.attrs)}")
    cells = run_modes(iter([defined(case)]), MODES)
    for cell in cells:
        print(f"{cell.mode}: {cell.values} values, {cell.differences} differ {cell.first}")
    return int(any(cell.differences for cell in cells))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=300, metavar="N", help="random graphs (300)")
    parser.add_argument("--adversarial", type=int, default=100, metavar="M", help="adversarial graphs (100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells", default="all", help="all, quick, or groups and names of settings, with commas")
    parser.add_argument("--full", action="store_true", help="every mode in every setting")
    parser.add_argument("--jobs", type=int, default=1, help="settings at a time (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports there")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep environments and reports there for another run"
    )
    parser.add_argument("--case", metavar="NAME", help="describe and run one graph in this process, by its name")
    parser.add_argument("--code", action="store_true", help="look into the compiled kernels too")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(json.loads(options.work))
        return 0
    if options.case:
        return one_case(options.case)
    wanted, file, keep = chosen(options.cells), options.json, options.keep
    jobs = options.jobs
    if options.full:
        wanted = [replace(s, modes=MODES) for s in wanted]
    for name in ("json", "keep", "cells", "full", "jobs", "case", "work"):
        delattr(options, name)
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="intseg-matrix-") as scratch:
        folder = keep.resolve() if keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = run_all(wanted, options, folder, jobs, lambda outcome: print(row(outcome), flush=True))
    lines, well = summary(outcomes, options)
    print("\n".join(["", *lines]))
    if file:
        file.write_text(json.dumps({"lines": lines, "settings": [asdict(o) for o in outcomes]}, indent=1) + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
