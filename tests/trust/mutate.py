#!/usr/bin/env python3
"""Mutation score of the golden suite: does it notice every small change of the arithmetic in intseg/arith and ops?

    python tests/trust/mutate.py                    all mutants; survivors and the score
    python tests/trust/mutate.py --file isqrt       only mutants whose file or function contains a word
    python tests/trust/mutate.py --list             name the mutants, run nothing
    python tests/trust/mutate.py --ops pack/ops     judge the op cases of a conformance pack instead of golden/

A mutant is intseg/arith and intseg/ops with one change: a constant one up or down, one operator, comparison, rounding,
dtype or word exchanged. It is compiled in memory, beside the real package, which stays as it is. The suite that has to
kill it is golden/ops (every case) and, for what survives that, golden/traces (every node of every window). An exception
kills.

Mutated are the functions that a graph runs, and the tables of ranges. Not mutated is what only decides whether a graph
is accepted (`check`, `require`, the declarations of ops, claims, bounds) or how mistakes look: no replay of accepted
graphs can judge that.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.machinery
import importlib.util
import inspect
import pickle
import re
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from intseg import store
from intseg.conformance import verify
from intseg.executor import execute
from intseg.graph import Graph
from intseg.images import decode as pictures
from intseg.ops import OPS, RUN, Array, Call
from intseg.windows import cut_windows

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "golden"
PACKAGE = "mutant_of_intseg"
SECONDS = 60
"""A mutant that takes longer is killed."""

CONTEXT = 18
"""Characters on either side of a change in the name of a mutant."""

TABLES = {"INT_RANGE": ("int8", "int16"), "_BITS": ("int8", "int16"), "RECIPROCAL_BITS": ("paper", "normalized")}
"""Dictionaries outside functions that the arithmetic reads, and which of their entries: no op saturates to others."""

VALIDATION = ("check", "require", "same_shape", "int_attr", "probability_row_sum", "weight_sums", "bound_")
WATCHING = ("wrong_", "facts_of_", "logical", "wrap", "_float24", "_newton")
"""Functions whose names begin so take no part in running a graph."""

EXACT = ("machine.py", "rounding.py", "shifting.py", "saturation.py", "sums.py", "division.py", "exponential.py")
EXACT += ("norm.py", "interpolation.py")
"""Files of intseg/arith that the definition needs."""

NOTES: dict[str, tuple[int | str, ...]] = {
    "keep": (0, 2),
    "way": (0, 2),
    "claim": ("low", "high", "why"),
    "sums_to": (1, 2),
    "cases": (0, 1, None),
    "row_sum": ("has", "why"),
    "rsr": (2, 3, "case"),
    "rsr_or_same": (3, 4),
    "int_div": (4,),
    "normalize": ("about_mean_of",),
    "interpolate": (5,),
    "blend": (4,),
}
"""Steps of a machine, and which of their arguments are names and claims, which change no value; None: keywords."""


# ---------------------------------------------------------------------------------------------------------------------
# Mutants
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change: which file and function, the source line's expression before and after, and the whole new module."""

    file: str
    function: str
    line: int
    before: str
    after: str
    make: Callable[[], ast.Module]

    @property
    def tree(self) -> ast.Module:
        """Made when it is asked for: most mutants are only named."""
        return self.make()

    @property
    def key(self) -> str:
        """What `EQUIVALENT` names: the change with a little context, independent of line numbers."""
        old, new = self.before, self.after
        start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        end = 0
        while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
            end += 1
        tail = old[len(old) - end :]
        change = f"[{old[start : len(old) - end]} -> {new[start : len(new) - end]}]"
        return f"{self.file}:{self.function}: {old[max(start - CONTEXT, 0) : start]}{change}{tail[:CONTEXT]}"

    def __str__(self) -> str:
        return f"line {self.line}, {self.key}"


BINARY: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.FloorDiv),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.BitAnd: (ast.BitOr,),
    ast.Pow: (ast.Mult,),
}
COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
NAMES = {
    "maximum": ("minimum",),
    "minimum": ("maximum",),
    "max": ("min",),
    "min": ("max",),
    "argmax": ("argmin",),
    "left_shift": ("right_shift",),
    "right_shift": ("left_shift",),
    "int64": ("int32",),
    "int32": ("int16",),
    "int16": ("int8",),
    "uint8": ("int8",),
    "uint16": ("uint8",),
    "zeros_like": ("ones_like",),
}
WORDS = {
    "int8": ("int16",),
    "int16": ("int8",),
    "int32": ("int16",),
    "paper": ("normalized",),
    "normalized": ("paper",),
}


def changes(item: ast.AST) -> Iterator[ast.expr]:
    """Every replacement of one expression."""
    match item:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Constant(value=str(value)):
            yield from (ast.Constant(word) for word in WORDS.get(value, ()))
        case ast.BinOp():
            yield from _binary(item)
        case ast.Compare(ops=[operator]):
            for other in COMPARE.get(type(operator), ()):
                yield ast.Compare(item.left, [other()], item.comparators)
        case ast.UnaryOp(op=ast.USub()):
            yield item.operand
        case ast.Attribute(attr=name):
            yield from (ast.Attribute(item.value, other, item.ctx) for other in NAMES.get(name, ()))
        case ast.Call():
            yield from _call(item)
        case ast.IfExp():
            yield ast.IfExp(item.test, item.orelse, item.body)


def _binary(item: ast.BinOp) -> Iterator[ast.expr]:
    """Another operator, and for what floors: the ceiling."""
    for other in BINARY.get(type(item.op), ()):
        yield ast.BinOp(item.left, other(), item.right)
    if isinstance(item.op, ast.FloorDiv | ast.RShift):
        negative = ast.BinOp(ast.UnaryOp(ast.USub(), item.left), item.op, item.right)
        yield ast.UnaryOp(ast.USub(), negative)


def _call(item: ast.Call) -> Iterator[ast.expr]:
    """The branches of `where` exchanged, the limits of `clip` dropped."""
    name = item.func.attr if isinstance(item.func, ast.Attribute) else None
    if name == "where" and len(item.args) == 3:
        condition, yes, no = item.args
        yield ast.Call(item.func, [condition, no, yes], item.keywords)
    if name == "clip" and len(item.args) == 3:
        yield item.args[0]


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in source order."""
    tree = ast.parse(source)
    data = pickle.dumps(tree)  # ten times as fast as copy.deepcopy
    for function, root in _parts(tree):
        for path in _expressions(root):
            original = _at(root, path)
            if function in TABLES and not _is_read(root, path, TABLES[function]):
                continue
            for changed in changes(original):
                context = _context(root, path)
                before = _text(context)
                _replace(root, path, changed)
                after = _text(context)
                _replace(root, path, original)
                make = functools.partial(_made, data, function, path, changed)
                yield Mutant(file, function, original.lineno, before, after, make)


def _made(data: bytes, function: str, path: Path_, changed: ast.expr) -> ast.Module:
    """A pickled module with one expression replaced."""
    tree: ast.Module = pickle.loads(data)  # our own bytes
    _replace(next(part for name, part in _parts(tree) if name == function), path, changed)
    return ast.fix_missing_locations(tree)


Path_ = tuple[tuple[str, int | None], ...]
"""How to walk from a node to one below it: field names, with an index where the field is a list."""


def _parts(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """What is mutated in a module: functions that run, tables that they read."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and _runs(statement):
            yield statement.name, statement
        elif isinstance(statement, ast.ClassDef) and statement.name == "Machine":
            yield from ((method.name, method) for method in statement.body if isinstance(method, ast.FunctionDef))
        elif isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in TABLES:
            yield ast.unparse(statement.targets[0]), statement


def _runs(function: ast.FunctionDef) -> bool:
    """Whether a function takes part in running a graph; those that name mistakes do not."""
    named = function.returns is not None and ast.unparse(function.returns) == "Named"
    return not named and not function.name.startswith((*VALIDATION, *WATCHING))


def _is_read(table: Any, path: Path_, keys: Sequence[str]) -> bool:
    """Whether a path leads into one of these entries of a dictionary."""
    return len(path) > 1 and path[1][0] == "values" and table.value.keys[path[1][1]].value in keys


def _expressions(root: ast.AST, path: Path_ = ()) -> Iterator[Path_]:
    """Paths of all expressions below a statement, without annotations and doc strings."""
    for name, value in ast.iter_fields(root):
        if name in ("annotation", "returns", "decorator_list", "ctx"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _is_doc(child) or _is_note(root, name, index):
                continue
            here = (*path, (name, index))
            if isinstance(child, ast.expr):
                yield here
            yield from _expressions(child, here)


def _is_note(call: Any, field: str, index: int | None) -> bool:
    """Whether an argument of a call is a name or a claim."""
    if not isinstance(call, ast.Call) or index is None or not isinstance(call.func, ast.Attribute):
        return False
    notes = NOTES.get(call.func.attr, ())
    return index in notes if field == "args" else call.keywords[index].arg in notes or None in notes


def _is_doc(item: ast.AST) -> bool:
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)


def _at(root: Any, path: Path_) -> Any:
    for name, index in path:
        root = getattr(root, name) if index is None else getattr(root, name)[index]
    return root


def _replace(root: ast.AST, path: Path_, new: ast.expr) -> None:
    parent, (name, index) = _at(root, path[:-1]), path[-1]
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new


def _context(root: ast.AST, path: Path_) -> ast.AST:
    """The statement around an expression."""
    nodes = [_at(root, path[:i]) for i in range(len(path) + 1)]
    return [node for node in nodes if isinstance(node, ast.stmt)][-1]


def _text(item: ast.AST) -> str:
    """One line of source; of a statement with a body only its head."""
    return ast.unparse(item.args if isinstance(item, ast.FunctionDef) else item).splitlines()[0]


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------

Ops = dict[str, Callable[..., Any]]


def load_ops(mutant: Mutant | None) -> Ops:
    """The op table of a copy of intseg/ops in which the mutant's module is replaced. Raises what the code raises."""
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]
    package = types.ModuleType(PACKAGE)
    package.__path__ = []
    sys.modules[PACKAGE] = package
    finder = _Finder(mutant)
    sys.meta_path.insert(0, finder)
    try:
        machine = importlib.import_module(f"{PACKAGE}.arith").EXACT
        ops = importlib.import_module(f"{PACKAGE}.ops").OPS
    finally:
        sys.meta_path.remove(finder)
    return {name: functools.partial(op.define, machine) for name, op in ops.items()}


class _Finder:
    """Finds the modules of the copy: from their files, but one from a mutant."""

    def __init__(self, mutant: Mutant | None) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        if not name.startswith(f"{PACKAGE}."):
            return None
        folder = name.split(".")[1:]
        spec: Any = importlib.util.spec_from_loader(name, self, is_package=len(folder) == 1)  # type: ignore[arg-type]
        if len(folder) == 1:
            spec.submodule_search_locations = [str(ROOT / "intseg" / folder[0])]  # where a package lists its files
        return spec

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        _, folder, *rest = module.__name__.split(".")
        file = f"{folder}/{rest[0] if rest else '__init__'}.py"
        tree = self.mutant.tree if self.mutant is not None and self.mutant.file == file else _parsed(file)
        exec(compile(tree, file, "exec"), module.__dict__)  # our own source


_TREES: dict[str, ast.Module] = {}


def _parsed(file: str) -> ast.Module:
    if file not in _TREES:
        _TREES[file] = ast.parse((ROOT / "intseg" / file).read_text(encoding="utf-8"))
    return _TREES[file]


@dataclass(frozen=True)
class Suite:
    """The golden vectors, read once."""

    cases: list[tuple[str, Call, Array]]
    traces: list[tuple[str, Graph, list[np.ndarray], dict[str, np.ndarray]]]

    def first_difference(self, ops: Ops, first: Sequence[str] = ()) -> str | None:
        """The first vector that an op table fails, None if it passes all. Ops named in `first` are tried first."""
        for name, call, expected in sorted(self.cases, key=lambda case: case[1].op not in first):
            if not _equal(ops[call.op](*call.inputs, **call.params, **call.attrs), expected):
                return name
        for name, graph, windows, nodes in self.traces:
            for i, window in enumerate(windows):
                if node := _first_node(ops, graph, window, i, nodes):
                    return f"{name} window{i}.{node}"
        return None


def _equal(found: Any, expected: np.ndarray) -> bool:
    same = isinstance(found, np.ndarray) and found.dtype == expected.dtype and found.shape == expected.shape
    return same and bool(np.array_equal(found, expected))


class _Different(Exception):
    pass


def _first_node(ops: Ops, graph: Graph, window: np.ndarray, number: int, expected: dict[str, np.ndarray]) -> str | None:
    def compare(node: Any, value: Any) -> None:
        if not _equal(value, expected[f"window{number}.{node.name}"]):
            raise _Different(node.name)

    try:
        execute(graph, window, ops, compare)
    except _Different as difference:
        return str(difference)
    return None


def read_ops(folder: Path) -> Suite:
    """Files of op cases; those of the steps around the graph are left out."""
    found: list[tuple[str, Call, Array]] = []
    for file in sorted(file for file in folder.glob("*.safetensors") if file.stem in RUN):
        cases = verify.read_op_file(file, file.read_bytes())
        found += [(f"ops/{file.stem} case{i} {call.attrs}", call, expected) for i, (call, expected) in enumerate(cases)]
    return Suite(found, [])


def read_suite(golden: Path = GOLDEN) -> Suite:
    """golden/ops and golden/traces."""
    traces = []
    for file in sorted((golden / "traces").glob("*.safetensors")):
        model, picture, _ = file.name.split(".")
        graph = store.load(golden / "models" / f"{model}.safetensors")
        rgb = pictures.decode(golden / "images" / f"{picture}.png", graph.info.pad).rgb
        windows = [window for _, window in cut_windows(rgb, graph.info)]
        traces.append((file.stem, graph, windows, safetensors.numpy.load(file.read_bytes())))
    return Suite(read_ops(golden / "ops").cases, traces)


class _TooLong(Exception):
    pass


def _stop(*_: object) -> None:
    raise _TooLong


def killer(mutant: Mutant | None, suite: Suite) -> str | None:
    """What kills a mutant: the first vector that differs, an exception, or the clock. None: it survives."""
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error", RuntimeWarning)  # as pytest runs the suite
            return suite.first_difference(load_ops(mutant), _users(mutant))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:120]
    finally:
        signal.alarm(0)


def _users(mutant: Mutant | None) -> tuple[str, ...]:
    """Ops worth trying first: those of the file, or whose files call a function of it."""
    if mutant is None:
        return ()
    path = ROOT / "intseg" / mutant.file
    functions = re.findall(r"^ *def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    called = re.compile(rf"\bm\.({'|'.join(functions)})\(")
    files = {op: Path(inspect.getfile(found.define)) for op, found in OPS.items()}
    texts = {file: file.read_text(encoding="utf-8") for file in files.values()}
    return tuple(op for op, file in files.items() if file.name == path.name or called.search(texts[file]))


# ---------------------------------------------------------------------------------------------------------------------
# Equivalent mutants
# ---------------------------------------------------------------------------------------------------------------------

_REASONS: dict[str, tuple[str, ...]] = {
    "a shift count fits any width, and INT64 operands widen it": (
        "arith/rounding.py:rsr: ay(c, dtype=np.int[64 -> 32])",
        "arith/rounding.py:rsr: .left_shift(np.int[64 -> 32](1), c - 1)",
    ),
    "0 <= mult < 2^31 fits INT32, and the INT64 operand widens the product": (
        "arith/machine.py:product: mult, dtype=np.int[64 -> 32])",
    ),
    "a copy has the same values": ("arith/machine.py:accumulate: pe(np.int64, copy=[Fals -> Tru]e)",),
    "NumPy gives 0 beyond 63 bits, and the element at n = 0 is not selected": (
        "arith/machine.py:clip: return [np.clip(x, low, high) -> x]",
        "arith/machine.py:rsr_or_same: ), x, self.rsr(x, [self.clip(n, 1, most) -> n], via, case))",
        "arith/machine.py:rsr_or_same: r(x, self.clip(n, [1 -> 0], most), via, case",
    ),
    "RSR(power, q) is 0 for every q >= 16": (
        "ops/softmax2.py:softmax2: r_same(power, q, 1[7 -> 8], 'e_rounding', 'e",
        "ops/softmax2.py:softmax2: r_same(power, q, 1[7 -> 6], 'e_rounding', 'e",
    ),
    "p is never between -3 and -1, and p = 0 only at x = 0, where x sigma is 0": (
        "arith/machine.py:is_negative: return x <[ -> =] 0",
        "arith/machine.py:is_negative: return x < [0 -> 1]",
        "arith/machine.py:is_negative: return x < [0 -> -1]",
    ),
    "a negative index counts from the end: x - 128 and x + 128 are the same entry of 256": (
        "arith/machine.py:lookup: .astype(np.int16) [- -> +] first if first el",
        "ops/gelu.py:gelu_table: .lookup(table, x, [- -> ]128)",
    ),
    "x fits INT8 where there is a first index, and -128 is 128 modulo 256": (
        "arith/machine.py:lookup:  = x.astype(np.int[16 -> 8]) - first if first",
    ),
    "at n = 0 both branches give x": (
        "arith/shifting.py:shift_left: eturn np.where(n >[= -> ] 0, np.left_shift(",
        "arith/shifting.py:shift_left: urn np.where(n >= [0 -> 1], np.left_shift(x,",
    ),
    "changes only the branch that is not selected": (
        "arith/shifting.py:shift_left: (x, np.maximum(n, [0 -> -1])), np.right_shift",
        "arith/shifting.py:shift_left: um(np.maximum(-n, [0 -> 1]), 62)))",
        "arith/shifting.py:shift_left: um(np.maximum(-n, [0 -> -1]), 62)))",
    ),
    "operands are below 2^46 and never negative: 0 after a shift by 61, 62 or 63": (
        "arith/shifting.py:shift_left: .maximum(-n, 0), 6[2 -> 3])))",
        "arith/shifting.py:shift_left: .maximum(-n, 0), 6[2 -> 1])))",
    ),
    "31 + 16 + 8 + 4 + 2 + 1 + 1 bits are enough for every INT64": (
        "arith/shifting.py:bit_length: for step in (3[2 -> 1], 16, 8, 4, 2, 1):",
    ),
    "2^31 - 1 is prime: differs at d = 1, hidden by the shift, and at d = 2^31 - 1, reached by no op; no divisor of "
    "2^46 - 1 lies in [2^30, 2^31)": ("arith/division.py:int_div:  int=0, less: int=[1 -> 2]",),
    "the operand fits INT16 and the other one, INT32, widens the product": (
        "arith/sums.py:matmul: ', a.astype(np.int[32 -> 16]), b.astype(np.int",
        "arith/sums.py:matmul: ), b.astype(np.int[32 -> 16], order='C'))",
    ),
    "differs at v = 0 only, where every caller takes max(root, 1)": (
        "arith/norm.py:isqrt: root = np.[zero -> one]s_like(v)",
    ),
    "2^62 is above every v": ("arith/norm.py:isqrt: for bit in range(3[0 -> 1], -1, -1):",),
    "the ops' v is below 2^48, so that its root has at most 24 bits": (
        "arith/norm.py:isqrt: for bit in range([30 -> 29], -1, -1):",
    ),
    "positions are below 2^31": ("arith/interpolation.py:taps: stop, dtype=np.int[64 -> 32])",),
    "beyond the last centre both cells are the last one, and their weights always sum to 2 factor": (
        "arith/interpolation.py:taps: + 1 - factor, 0), [2 -> 3] * factor * (size ",
        "arith/interpolation.py:taps:  * factor * (size [- -> +] 1))",
        "arith/interpolation.py:taps:  factor * (size - [1 -> 0]))",
    ),
    "NumPy takes every negative extent for the one to be inferred": (
        "arith/interpolation.py:interpolate: = weight.reshape(-[1 -> 2], *(1,) * (2 - axi",
    ),
    "height and width are multiples of patch": (
        "ops/patchify.py:patchify: pose(m.reshape(x, [height // patch -> -(-height // patch)], patch, width // ",
        "ops/patchify.py:patchify:  // patch, patch, [width // patch -> -(-width // patch)], patch, channels)",
        "ops/patchify.py:patchify: n m.reshape(grid, [height // patch -> -(-height // patch)] * (width // patch",
        "ops/patchify.py:patchify: height // patch * [( -> -(-]width // patch), p",
    ),
    "parts heads divides the width": (
        "ops/tokens.py:split_heads: ns, parts, heads, [width // (parts * heads -> -(-width // (parts * heads)]))",
    ),
    "entries of a table fit INT16": ("arith/machine.py:entry: able.astype(np.int[64 -> 32])[..., None, :], x",),
    "no element is above the row maximum": ("ops/exp_weights.py:exp_weights: (table, m.clip(t, [0 -> -1], 255)), 32)",),
    "2^61 - 1 is prime, and the divisor lies in [2^30, 2^31)": (
        "ops/weighted_mean.py:weighted_mean: ocal', (2 ** 61 - [1 -> 2]) // wide, 64)",
    ),
    "the input has two axes": ("ops/tokens.py:to_grid: t, width, x.shape[[- -> ]1])",),
}

EQUIVALENT = {key: reason for reason, keys in _REASONS.items() for key in keys}
"""Mutants that compute the same for every operand that SPEC.md admits, and why. Everything else counts."""


def all_mutants(word: str = "") -> list[Mutant]:
    """Every mutant of the definition whose file or function contains a word."""
    files = [f"arith/{name}" for name in EXACT]
    files += sorted(f"ops/{path.name}" for path in (ROOT / "intseg/ops").glob("*.py") if path.name != "__init__.py")
    return [m for file in files for m in _mutants_of(file) if word in m.file or word in m.function]


@functools.cache
def _mutants_of(file: str) -> list[Mutant]:
    return list(mutants(file, (ROOT / "intseg" / file).read_text(encoding="utf-8")))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0 when at least 95 % are killed and no equivalent is stale, else 1."""
    parser = argparse.ArgumentParser(prog="mutate.py", description="Mutation score of the golden suite.")
    parser.add_argument("--file", default="", metavar="WORD", help="only mutants whose file or function contains it")
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    parser.add_argument("--verbose", action="store_true", help="say what killed every mutant")
    parser.add_argument("--ops", type=Path, metavar="DIR", help="op files of this folder instead of golden/")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(map(str, all_mutants(args.file))))
        return 0
    suite = read_ops(args.ops) if args.ops else read_suite()
    if not suite.cases:
        print(f"mutate.py: {args.ops}: holds no op files; write a pack with intseg vectors", file=sys.stderr)
        return 2
    if problem := killer(None, suite):
        print(f"mutate.py: the unmutated copy fails: {problem}; run tools/make_golden.py --check", file=sys.stderr)
        return 1
    return _report(all_mutants(args.file), suite, args.verbose, complete=not args.file)


def _report(found: list[Mutant], suite: Suite, verbose: bool, complete: bool) -> int:
    """Run and count. Prints survivors, equivalents, and the score."""
    survivors, equivalents, killed = [], [], 0
    for mutant in found:
        if mutant.key in EQUIVALENT:
            equivalents.append(mutant)
            continue
        reason = killer(mutant, suite)
        killed += reason is not None
        if reason is None:
            survivors.append(mutant)
        if verbose:
            print(f"{'survived' if reason is None else 'killed'}  {mutant}  [{reason}]", flush=True)
    for mutant in survivors:
        print(f"survivor: {mutant}")
    for mutant in equivalents:
        print(f"equivalent: {mutant}: {EQUIVALENT[mutant.key]}")
    stale = sorted(set(EQUIVALENT) - {mutant.key for mutant in found}) if complete else []
    for key in stale:
        print(f"stale entry of EQUIVALENT: {key}")
    counted = killed + len(survivors)
    score = 100 * killed / max(counted, 1)
    print(f"{len(found)} mutants, {len(equivalents)} equivalent, {killed} of {counted} killed: {score:.1f} %")
    return 0 if score >= 95 and not stale else 1


if __name__ == "__main__":
    sys.exit(main())
