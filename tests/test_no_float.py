"""The definition makes no float, from uint8 pixels to labels; the tracer that says so finds one wherever it is put."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from no_float import (
    MODULES,
    ROOT,
    FloatFound,
    Guarded,
    Tracer,
    by_pixel,
    definition_functions,
    golden_models,
    guarded,
    labels,
    picture,
    run_ops,
    whole_run,
)

from intseg import api, store
from intseg.ops import OPS

OUTSIDE_THE_OPS = {
    "intseg.api:run",
    "intseg.api:run_picture",
    "intseg.backends:_run_numpy",
    "intseg.backends:class_map",
    "intseg.executor:execute",
    "intseg.graph:Graph.arguments",
    "intseg.windows:class_map",
    "intseg.windows:counts",
    "intseg.windows:cut_windows",
    "intseg.windows:merge_scores",
    "intseg.windows:pad",
    "intseg.windows:starts",
    "intseg.windows:tile",
    "intseg.backends:labels",
    "intseg.resize:_along_rows",
    "intseg.resize:resize",
    "intseg.resize:weights_of",
    "intseg.windows:image_scores",
    "intseg.windows:labels",
    "intseg.windows:merge_on_grid",
    "intseg.windows:pixel_scores",
    "intseg.windows:resize_taps",
    "intseg.windows:upsampled",
    "intseg.windows:weights",
    "intseg.windows:working_size",
}
"""What lies between the ops, from pixels to labels."""

CANARIES = [
    # (module, text, the same with a float on the way, op that runs it)
    ("arith.rounding", "np.right_shift(x + half, c)", "((x + half) / 2**c).astype(np.int64)", "linear"),
    ("arith.rounding", "np.right_shift(x + half, c)", "np.floor_divide(x + half, np.exp2(c)).astype(int)", "linear"),
    ("arith.machine", "quotient = x // divisor", "quotient = (x // float(divisor)).astype(np.int64)", "shiftmax"),
    ("arith.norm", "root = np.zeros_like(v)", "root = (np.sqrt(v) * 0).astype(int)", "layernorm"),
    ("arith.machine", "return np.maximum(x, low)", "return np.maximum(x, low * 1.0).astype(np.int64)", "shiftmax"),
    ("arith.division", "(2**bits - less) // d", "int(2.0**bits - less) // d", "shiftmax"),
    ("arith.norm", "(2 * total + count) // (2 * count)", "np.int64(total / count + 0.25)", "layernorm"),
    ("ops.layernorm", "x.shape[-1])", "int(x.shape[-1] * (2 / 2)))", "layernorm"),
    ("ops.layernorm", "x.shape[-1])", "round(x.shape[-1] * 4**-1 * 4))", "layernorm"),
    ("arith.sums", "a.astype(np.int32)", "a.astype(np.float32).astype(np.int32)", "linear"),
    ("arith.sums", "a.astype(np.int32)", 'a.astype("f8").astype(np.int32)', "linear"),
    ("arith.sums", "b.astype(np.int32, ", "np.array(b, dtype=float).astype(np.int32, ", "linear"),
    ("arith.sums", "a.astype(np.int32)", "np.rint(a).astype(np.int32)", "matmul"),
    ("arith.sums", "a.astype(np.int32)", "a.astype(np.int32) + np.zeros(1).astype(np.int32)", "matmul"),
    ("arith.machine", "return x.max(axis=-1, keepdims=True)", "return np.percentile(x, 100)", "shiftmax"),
    ("arith.interpolation", "index: Int = np.arange(start, stop, dtype=np.int64)",
     "index = np.linspace(start, stop - 1, stop - start, dtype=np.int64)", "upsample_bilinear"),
    ("arith.machine", "return x.astype(np.int64)\n", "return x.view(np.float32).view(np.int32)\n", "upsample_bilinear"),
    ("arith.interpolation", "2 * index + 1 - factor, 0)", "2 * index + 1 - factor, 0.0)", "upsample_bilinear"),
    ("arith.machine", "return x[start:stop]", "return x[int(start + 0.5) : stop]", "slice"),
    ("ops.gelu", "one = i0 << k_inter", "one = int(i0 * 2.0**k_inter)", "sigmoid_gelu"),
    ("arith.machine", "x.astype(np.int16) - first", "np.fmin(x.astype(int) - first, 9e9).astype(int)", "gelu_table"),
    ("windows", "np.lcm.reduce(np.unique(held)) // held", "(6 / held).astype(np.int32)", ""),
    ("windows", "x : x + width] += window", "x : x + width] += window.astype('f4').astype('i4')", ""),
    ("windows", "total = np.zeros((tiling.height // patch", "total = np.zeros((int(tiling.height / patch)", ""),
    ("windows", "chunks.append(RUN", "height / 1; chunks.append(RUN", ""),
    ("resize", "+ total) // (2 * total)", "+ total / 2) // (1 * total)", ""),
    ("resize", "(total + (1 << BITS - 1)) >> BITS", "np.rint(total * 2.0**-BITS)", ""),
    ("windows", "left : left + wide] += rows", "left : left + wide] += rows.astype('f8').astype('i8')", ""),
    ("executor", "[node.op](*inputs", "[node.op](*(x.astype(complex).real.astype(x.dtype) for x in inputs)", ""),
    ("api", "height, width, _ = rgb.shape\n    require", "height, width, _ = rgb.shape + 0 * (1.0,)\n    require", ""),
]  # fmt: skip
"""Every one gives labels or results that are right, or nearly: only the tracer can tell."""


def test_nothing_is_a_float_from_pixels_to_labels(capsys: pytest.CaptureFixture[str]) -> None:
    """All golden op cases and the models of every recipe, with results equal to those of an untraced run."""
    tracer, cases, pixels = whole_run()
    assert cases > 400
    assert pixels > 1000
    assert tracer.values > 100_000


def test_every_function_of_the_definition_ran_under_the_tracer() -> None:
    ran = whole_run()[0].functions
    assert definition_functions() - ran == set()
    assert OUTSIDE_THE_OPS - ran == set()


def functions(module: str) -> dict[str, ast.FunctionDef]:
    """Functions of a module by qualified name."""
    found: dict[str, ast.FunctionDef] = {}

    def walk(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{path}.{child.name}" if path else child.name
            if isinstance(child, ast.FunctionDef):
                found[inner] = child
            walk(child, inner)

    path = ROOT.joinpath(*module.split("."))
    walk(ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")), "")
    return found


def test_no_function_that_ran_has_a_division_or_a_float_in_its_text() -> None:
    """The complement: what the run did not reach inside of a function that it did."""
    texts = {module: functions(module) for module in MODULES}
    seen = 0
    for name in whole_run()[0].functions - {"intseg.api:load"}:  # `/` joins paths there
        module, _, function = name.partition(":")
        for node in ast.walk(texts[module][function]):
            seen += 1
            assert not isinstance(node, ast.Div), f"{name} divides"
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float | complex)), (
                f"{name} has a float"
            )
            assert not (isinstance(node, ast.Attribute) and node.attr.startswith(("float", "complex"))), name
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("float", "complex")), name
    assert seen > 2000


@pytest.mark.parametrize(("module", "text", "other", "op"), CANARIES, ids=[f"{c[0]}:{c[2][:24]}" for c in CANARIES])
def test_a_float_on_the_way_is_caught(module: str, text: str, other: str, op: str) -> None:
    if op:
        with Tracer().running({f"intseg.{module}": (text, other)}), pytest.raises(FloatFound):
            run_ops(op)
        return
    model = next(m for m in map(api.load, golden_models()) if m.info.upsample == "bilinear")
    model = by_pixel(model, 1) if module == "resize" or "rows" in text else model
    with Tracer().running({f"intseg.{module}": (text, other)}), pytest.raises(FloatFound):
        labels(model, picture(model.graph))


def test_the_definition_is_itself_again_after_a_run() -> None:
    function = OPS["linear"].define
    code = function.__code__
    with Tracer().running({"intseg.ops.linear": ("m.dot(x, weight)", "m.dot(x, -weight)")}):
        assert function.__code__ is not code
    assert function.__code__ is code
    assert sum(run_ops(op) for op in ("linear", "add")) > 10


def test_guarded_arrays_raise_inside_of_numpy() -> None:
    x = guarded(np.arange(6))
    assert isinstance(x[1:] + 1, Guarded)
    for make in (np.mean, np.std, np.median, np.sqrt, np.linalg.norm, lambda v: v / 2, lambda v: v * 0.5):
        with pytest.raises(FloatFound):
            make(x)
    with pytest.raises(FloatFound):
        x.astype(np.float16)
    with pytest.raises(FloatFound):
        x.view(np.float64)


@pytest.mark.parametrize("path", [*golden_models(), *(ROOT / "intseg" / "models").glob("*.safetensors")], ids=str)
def test_files_hold_integers_only(path: Path) -> None:
    """That others are refused is tests/test_store.py's part."""
    tensors = store.load(path).tensors
    assert tensors
    assert all(tensor.dtype.kind in "iu" for tensor in tensors.values())
    assert {op for node in store.load(path).nodes for op in [node.op]} <= OPS.keys()
