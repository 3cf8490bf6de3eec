"""A tracer under which a float anywhere in the definition is an error: `python tests/no_float.py` runs it and counts.

The functions of the modules below get new code in which every expression goes through a check, so that no value is too
short-lived to be seen: `int(a / b)` is caught although only an integer is kept. Arrays go on as `Guarded` views, whose
ufuncs and NumPy functions check what they take and give, inside of NumPy as well. Frames of Python code that they call
have their variables checked line by line. What remains unseen are C loops that take and give integers.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import pkgutil
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

import intseg.ops
from intseg import api
from intseg.graph import Graph
from intseg.ops import OPS, RUN

ROOT = Path(__file__).parent.parent
MODULES = [
    *(f"intseg.ops.{entry.name}" for entry in pkgutil.iter_modules(intseg.ops.__path__)),
    *(f"intseg.arith.{name}" for name in ("machine", "rounding", "shifting", "saturation", "sums", "division")),
    *(f"intseg.arith.{name}" for name in ("exponential", "norm", "interpolation")),
    *(f"intseg.{name}" for name in ("executor", "graph", "resize", "windows", "images.decode", "backends", "api")),
]
"""Where the definition is, from uint8 pixels to labels."""

NOT_RUN = ("check", "require", "validate", "probability_row_sum", "int_attr", "same_shape")
"""Functions of intseg/ops that look at a graph, not at values."""


class FloatFound(AssertionError):
    """A float where there must be none."""


def is_float(value: Any) -> bool:
    """A floating-point or complex scalar, array, type or dtype."""
    if type(value) in _NO_FLOAT:
        return False
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind not in "iub"
    if isinstance(value, type):
        return issubclass(value, float | complex | np.inexact)
    return isinstance(value, float | complex) or (isinstance(value, np.dtype) and value.kind in "fc")


_NO_FLOAT = {int, bool, str, type(None), types.FunctionType, types.BuiltinFunctionType, types.MethodType}
_NO_FLOAT |= {types.ModuleType, np.ufunc}
"""Types of values that need no look."""


class Guarded(np.ndarray):
    """An integer array that raises FloatFound as soon as it takes part in anything with floats."""

    def __array_finalize__(self, obj: object) -> None:
        if is_float(self):
            raise FloatFound(f"an array of {self.dtype}")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        used = [*inputs, *(out or ()), *kwargs.values()]
        if any(map(is_float, used)):
            raise FloatFound(f"{ufunc.__name__} of {[getattr(v, 'dtype', v) for v in used]}")
        plain = [plain_view(v) for v in inputs]
        if out is not None:
            kwargs["out"] = tuple(map(plain_view, out))
        result = getattr(ufunc, method)(*plain, **{name: plain_view(v) for name, v in kwargs.items()})
        for value in result if isinstance(result, tuple) else (result,):
            if is_float(value):
                raise FloatFound(f"{ufunc.__name__} gives {value.dtype}")
        return out[0] if out is not None else guarded(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        if is_float(result):
            raise FloatFound(f"{func.__name__} gives a float")
        return result

    def view(self, *args: Any, **kwargs: Any) -> Any:
        """NumPy sets the dtype of a view after __array_finalize__."""
        result = super().view(*args, **kwargs)
        if is_float(result):
            raise FloatFound(f"a view as {result.dtype}")
        return result


_INTEGRAL = {*_NO_FLOAT, Guarded}
"""A Guarded cannot be made with a float in it."""


def plain_view(value: Any) -> Any:
    """Without the guard."""
    return value.view(np.ndarray) if isinstance(value, Guarded) else value


def guarded(value: Any) -> Any:
    """With the guard, where it is an array."""
    return value.view(Guarded) if isinstance(value, np.ndarray) and not isinstance(value, Guarded) else value


class Tracer:
    """While `running`, a float raises FloatFound.

    values    checked so far
    functions that ran, as "module:qualified name"
    """

    def __init__(self) -> None:
        self.values = 0
        self.functions: set[str] = set()
        self.armed = False
        self._seen: dict[int, object] = {}

    def check(self, value: Any) -> Any:
        """The value, guarded if it is an array."""
        if not self.armed:
            return value
        self.values += 1
        if type(value) in _INTEGRAL or id(value) in self._seen:
            return value
        if isinstance(value, Graph):  # each of its tensors is looked at here, and again where it is read
            self._seen |= {id(part): part for part in (value, value.tensors, value.last_use)}
            for part in (*value.tensors.values(), *value.last_use.values()):
                self.check(part)
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
        for part in (value, *parts):
            if is_float(part):
                raise FloatFound(f"{part!r:.80} of {getattr(part, 'dtype', type(part))}")
        return guarded(value)

    def enter(self, name: str) -> None:
        """A function began."""
        if self.armed:
            self.functions.add(name)

    def frame(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        """Trace function: variables of the frames that instrumented code calls into."""
        if frame.f_code.co_filename == __file__ or "numpy" not in frame.f_code.co_filename:
            return None
        for name, value in frame.f_locals.items():
            if isinstance(value, np.ndarray | np.generic | float | complex) and is_float(value):
                raise FloatFound(f"{name} is {value!r:.80} in {frame.f_code.co_qualname}, line {frame.f_lineno}")
        return self.frame

    @contextlib.contextmanager
    def running(self, changes: Mapping[str, tuple[str, str]] | None = None) -> Iterator[Tracer]:
        """The definition instrumented.

        changes  module -> (text, replacement): the module runs as if its source read so; the text must occur once
        """
        before: list[tuple[types.FunctionType, types.CodeType]] = []
        outer = sys.gettrace()
        try:
            for name in MODULES:
                before += self._instrument(importlib.import_module(name), (changes or {}).get(name))
            self.armed = True
            sys.settrace(self.frame)
            yield self
        finally:
            sys.settrace(outer)
            self.armed = False
            for function, code in before:
                function.__code__ = code

    def _instrument(
        self, module: types.ModuleType, change: tuple[str, str] | None
    ) -> list[tuple[types.FunctionType, types.CodeType]]:
        codes = _instrumented(module.__name__, str(module.__file__), change)
        vars(module).update({CHECK: self.check, ENTER: self.enter})
        done = []
        for function in functions_of(module):
            done.append((function, function.__code__))
            function.__code__ = codes[function.__qualname__]
        return done


CHECK, ENTER = "no_float_check", "no_float_enter"


@functools.cache
def _instrumented(module: str, file: str, change: tuple[str, str] | None) -> dict[str, types.CodeType]:
    """The code of a module's functions by qualified name, instrumented."""
    source = Path(file).read_text(encoding="utf-8")
    if change is not None:
        assert source.count(change[0]) == 1, f"{change[0]!r} occurs {source.count(change[0])} times"
        source = source.replace(*change)
    tree = ast.fix_missing_locations(Instrument(module).visit(ast.parse(source)))
    return {code.co_qualname: code for code in code_objects(compile(tree, file, "exec"))}


class Instrument(ast.NodeTransformer):
    """Puts every expression that is read into a call of CHECK, and ENTER at the start of every function."""

    def __init__(self, module: str) -> None:
        self.path = [module]

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.expr):
            return super().visit(node)
        if isinstance(node, ast.Constant) and not isinstance(node.value, float | complex):
            return node
        reads = isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
        whole = reads and not isinstance(node, ast.Starred | ast.Slice | ast.JoinedStr | ast.FormattedValue)
        changed = super().visit(node)
        return self.call(CHECK, changed) if whole else changed

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """`x[a:b, c]`: the tuple with slices in it is no expression of its own."""
        index = node.slice
        sliced = isinstance(index, ast.Tuple) and any(isinstance(e, ast.Slice | ast.Starred) for e in index.elts)
        node.value = self.visit(node.value)
        node.slice = self.generic_visit(index) if sliced else self.visit(index)  # type: ignore[assignment]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Annotations, defaults and decorators ran when the module was imported."""
        self.path.append(node.name)
        body = [self.visit(statement) for statement in node.body]
        start = ast.Expr(self.call(ENTER, ast.Constant(f"{self.path[0]}:{'.'.join(self.path[1:])}")))
        node.body = [start, *body]
        self.path.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.path.append(node.name)
        node.body = [self.visit(statement) for statement in node.body]
        self.path.pop()
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.value = self.visit(node.value) if node.value else None
        return node

    @staticmethod
    def call(name: str, argument: ast.expr) -> ast.Call:
        return ast.Call(ast.Name(name, ast.Load()), [argument], [])


def code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code and all inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)


def functions_of(module: types.ModuleType) -> Iterator[types.FunctionType]:
    """The functions and methods a module's text defines."""
    for value in [*vars(module).values()]:
        members = (
            [*vars(value).values()] if isinstance(value, type) and value.__module__ == module.__name__ else [value]
        )
        for member in members:
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            function = inspect.unwrap(member) if callable(member) else member
            if isinstance(function, types.FunctionType) and function.__code__.co_filename == module.__file__:
                yield function


# ------------------------------------------------------------------------------------------------- what is run


def golden_calls(op: str) -> Iterator[tuple[list[np.ndarray], dict[str, np.ndarray], dict[str, Any], np.ndarray]]:
    """(inputs, params, attrs, expected) of every golden case of an op."""
    with safetensors.safe_open(ROOT / "golden" / "ops" / f"{op}.safetensors", "np") as file:
        attrs = json.loads(file.metadata()["intseg"])["attrs"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for i, values in enumerate(attrs):
        inputs = [tensors[f"case{i}.in{j}"] for j in range(len(OPS[op].inputs))]
        params = {role: tensors[f"case{i}.param.{role}"] for role in OPS[op].params}
        yield inputs, params, values, tensors[f"case{i}.expected"]


def golden_models() -> list[Path]:
    """Every recipe."""
    return sorted((ROOT / "golden" / "models").glob("*.safetensors"))


def by_pixel(model: api.Model, scale: int | str) -> api.Model:
    """The model with windows merged in pixels, of images at another size: the least, or their own."""
    info = dataclasses.replace(model.info, merge="pixel")
    return dataclasses.replace(model, graph=dataclasses.replace(model.graph, info=info)).at_scale(scale)


def picture(graph: Graph) -> np.ndarray:
    """Random pixels, larger than a window and no multiple of it."""
    height, width = graph.info.window
    shape = (height + graph.info.stride[0] // 2 + 1, width + 3, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def labels(model: api.Model, pixels: np.ndarray) -> np.ndarray:
    """Pixels to labels by the definition."""
    result = api.run(pixels, model, "numpy")
    assert isinstance(result, api.Result)
    return np.asarray(result.labels)


def run_ops(op: str) -> int:
    """Every golden case of an op, with guarded operands; how many."""
    count = 0
    for inputs, params, attrs, expected in golden_calls(op):
        guarded_params = {role: guarded(p) for role, p in params.items()}
        found = RUN[op](*map(guarded, inputs), **guarded_params, **attrs)
        assert np.array_equal(plain_view(found), expected)
        count += 1
    return count


def definition_functions() -> set[str]:
    """Names of all functions of intseg/ops that work on values, and of the methods of the machine that they call."""
    found = set()
    for name in MODULES:
        if name.startswith("intseg.ops.") or name == "intseg.arith.machine":
            for function in functions_of(importlib.import_module(name)):
                if not function.__qualname__.startswith(NOT_RUN):
                    found.add(f"{name}:{function.__qualname__}")
    return found


@functools.cache
def whole_run() -> tuple[Tracer, int, int]:
    """Every golden op case and every recipe's model under the tracer; (tracer, cases, pixels).

    Windows are merged in pixels for one model of either way to upsample: what does so knows nothing of recipes.
    """
    tracer, cases, pixels = Tracer(), 0, 0
    loaded = [api.load(path) for path in golden_models()]
    ways = {model.info.upsample: model for model in loaded}
    loaded += [by_pixel(model, scale) for model in ways.values() for scale in ("native", 1)]
    expected = [labels(model, picture(model.graph)) for model in loaded]
    with tracer.running():
        for op in OPS:
            cases += run_ops(op)
        for model, want in zip(loaded, expected, strict=True):
            found = labels(model, picture(model.graph))
            assert np.array_equal(plain_view(found), want)
            pixels += found.size
    return tracer, cases, pixels


def main() -> None:
    tracer, cases, pixels = whole_run()
    print(
        f"{cases} op cases, {len(golden_models())} models, {pixels} pixels: {tracer.values} values of "
        f"{len(tracer.functions)} functions checked, no float"
    )


if __name__ == "__main__":
    main()
