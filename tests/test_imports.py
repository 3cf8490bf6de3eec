"""Imports run one way, the runtime loads only what it needs, and the definition contains no floating point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "intseg"
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if not {"kernels", "tools"} & set(p.parts))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))

LAYERS = ["errors", "files", "packing", "_version", "arith", "ops", "graph", "resize", "windows", "kernels.lanes"]
LAYERS += ["prove"]
LAYERS += ["build", "store", "executor", "kernels", "plan", "palettes", "images", "models"]
LAYERS += ["backends", "model", "results", "api"]
"""At import time each of these may import those before it. Modules not listed (cli and its helpers) may import all."""

KERNELS_MAY = {"numpy", "numba", "llvmlite"}


def standard(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names


def imports(path: Path) -> list[tuple[str, bool]]:
    """(absolute module, at import time?) of every import in a file; relative ones are resolved inside intseg."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(n) for statement in tree.body if not is_type_checking(statement) for n in eager(statement)}
    result = []
    for item in ast.walk(tree):
        if isinstance(item, ast.Import):
            result += [(alias.name, id(item) in top) for alias in item.names]
        elif isinstance(item, ast.ImportFrom):
            base = item.module or ""
            if item.level:
                folder = (
                    ("intseg", *path.relative_to(ROOT).parts[1:-1])
                    if PACKAGE in path.parents
                    else ("intseg", *path.relative_to(ROOT).parts[:-1])
                )
                base = ".".join([*folder[: len(folder) - item.level + 1], *filter(None, [base])])
            package = base.startswith("intseg") and PACKAGE.joinpath(*base.split(".")[1:]).is_dir()
            names = [f"{base}.{alias.name}" for alias in item.names] if package else [base]
            result += [(name, id(item) in top) for name in names]
    return result


def is_type_checking(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test)


def eager(statement: ast.AST) -> list[ast.AST]:
    """The nodes that run when the module is imported: all but function bodies."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return []
    return [statement, *(n for child in ast.iter_child_nodes(statement) for n in eager(child))]


def layer_of(module: str) -> str:
    """The layer that a module below intseg belongs to: itself where it is listed, else its folder."""
    return module if module in LAYERS else module.split(".")[0]


def module_of(path: Path) -> str:
    return layer_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def test_no_file_has_more_than_650_lines_and_no_function_more_than_50():
    """The second in the package, kernels and tools: of tests it is the rule, of their harnesses not always so."""
    files = [path for folder in ("intseg", "kernels", "tools", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 650, path
        for item in [] if ROOT / "tests" in path.parents else ast.walk(ast.parse(text)):
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (item.end_lineno or item.lineno) - item.lineno < 50, f"{path}: {item.name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path):
    """A module that is listed imports, at import time, only listed modules before it (its own package included)."""
    own = module_of(path)
    if own not in LAYERS:
        return
    for name, at_import in imports(path):
        if at_import and name.startswith("intseg."):
            other = layer_of(name.removeprefix("intseg."))
            assert other in LAYERS, f"{own} imports {name}"
            assert LAYERS.index(other) <= LAYERS.index(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", [*SOURCES, *KERNELS], ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_tools_tests_or_torch(path: Path):
    roots = {name.split(".")[0] for name, _ in imports(path)}
    only = {"onnx", "onnxruntime"} if path.parent.name == "export" else set()
    if path.name != "exchange.py":  # it asks whether onnx is there
        assert not roots - only & {"tools", "tests", "torch", "onnx", "onnxruntime", "kernels"}


@pytest.mark.parametrize("path", [p for p in SOURCES if module_of(p) in ("arith", "ops", "graph", "executor")], ids=str)
def test_the_definition_needs_only_numpy(path: Path):
    for name, _ in imports(path):
        assert standard(name) or name.split(".")[0] in ("numpy", "intseg"), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_import_only_numpy_and_numba(path: Path):
    for name, _ in imports(path):
        root = name.split(".")[0]
        own = name == "intseg.kernels" or name.startswith("intseg.kernels.")
        assert standard(name) or root in KERNELS_MAY or own, f"{path.name} imports {name}"


def loaded_after(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after running the code."""
    run = [sys.executable, "-c", code + "\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(run, check=True, capture_output=True, text=True, timeout=600).stdout.split())


def test_import_intseg_is_light():
    modules = loaded_after("import intseg")
    assert "intseg" in modules
    heavy = {"numba", "llvmlite", "torch", "matplotlib", "scipy", "PIL", "tqdm", "argparse", "multiprocessing"}
    assert not modules & (heavy | {"tools"})


def test_the_definition_loads_neither_pillow_nor_safetensors():
    modules = loaded_after("import intseg.executor")
    assert not modules & {"numba", "llvmlite", "torch", "tools"}


# No floating point in the definition

OPS = sorted([*(PACKAGE / "ops").glob("*.py"), *(PACKAGE / "arith").glob("*.py")])
FLOAT_NAMES = {"float16", "float32", "float64", "sqrt", "exp", "true_divide", "divide", "mean", "std", "var"}
FLOAT_NAMES |= {"round", "rint", "power", "log2", "log", "linspace", "erf", "tanh", "average", "floating"}


def float_uses(source: str) -> list[str]:
    """Every use of floating point in a piece of code: `/`, float literals, `float`, functions that give floats."""
    found = []
    for item in ast.walk(ast.parse(source)):
        if isinstance(item, ast.BinOp | ast.AugAssign) and isinstance(item.op, ast.Div):
            found.append(f"line {item.lineno}: /")
        elif isinstance(item, ast.Constant) and isinstance(item.value, float | complex):
            found.append(f"line {item.lineno}: {item.value}")
        elif isinstance(item, ast.Name) and item.id in ("float", "complex"):
            found.append(f"line {item.lineno}: {item.id}")
        elif isinstance(item, ast.Attribute) and item.attr in FLOAT_NAMES:
            found.append(f"line {item.lineno}: .{item.attr}")
        elif isinstance(item, ast.ImportFrom) and item.module == "math":
            found.append(f"line {item.lineno}: math")
        elif (
            isinstance(item, ast.Attribute)
            and ast.unparse(item).startswith("math.")
            and item.attr not in ("isqrt", "prod")
        ):
            found.append(f"line {item.lineno}: math.{item.attr}")
    return found


@pytest.mark.parametrize("path", OPS, ids=lambda p: p.name)
def test_the_definition_contains_no_float(path: Path):
    assert not float_uses(path.read_text(encoding="utf-8"))


FLOATS = ["x / y", "x /= y", "1.5", "1e3", "np.float32", "x.mean()", "np.sqrt(x)", "float(x)", "1j"]
FLOATS += ["math.ceil(x)", "from math import e"]


@pytest.mark.parametrize("code", FLOATS)
def test_the_float_check_finds_floats(code: str):
    assert float_uses(code)


def test_the_float_check_accepts_integers():
    assert not float_uses('"""a / b, 1.5"""\nx = a // b >> 3\nx //= 2\ny = np.int64(3) * 2**31')
