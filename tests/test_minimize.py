"""A differing image becomes the smallest call that differs: valid, golden, and different under the same fault."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from compare import assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import CASES
from tiny_model import tiny_graph

from intseg import api, store
from intseg.arith.variant import Variant
from intseg.cli import main as cli
from intseg.executor import execute
from intseg.ops import OPS, RUN, Call, Value
from intseg.workbench import axes, diff, minimize, sides
from intseg.workbench import trace as traces
from intseg.workbench.registers import evaluate

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    store.save(tiny_graph(), folder / "tiny.safetensors")
    model = api.load(folder / "tiny.safetensors")
    pixels = np.random.default_rng(3).integers(0, 256, (*model.info.window, 3), np.uint8)
    traces.write(folder / "golden.safetensors", pixels, model)
    return {"model": folder / "tiny.safetensors", "golden": folder / "golden.safetensors"}


def fault(node: str) -> Any:
    """The definition with something wrong in the op of a node, in the test's own words."""

    def no_bias(x: np.ndarray, **kw: Any) -> np.ndarray:
        return RUN["linear"](x, **{**kw, "bias": np.zeros_like(kw["bias"])})

    def wrong_shift(a: np.ndarray, b: np.ndarray, **kw: Any) -> np.ndarray:
        return RUN["matmul"](a, b, **{**kw, "shift": kw["shift"] + np.int8(1)})

    def one_bit(x: np.ndarray, **kw: Any) -> np.ndarray:
        result = RUN["layernorm"](x, **kw).copy()
        result[4, 5] ^= 2
        return result

    def transposed(a: np.ndarray, b: np.ndarray, **kw: Any) -> np.ndarray:
        result = RUN["add"](a, b, **kw)
        return np.ascontiguousarray(result.T).reshape(result.shape)

    return {"qkv": no_bias, "scores": wrong_shift, "norm1": one_bit, "add_pos": transposed}[node]


def other(files: Mapping[str, Path], node: str, path: Path) -> Path:
    """The outputs of an execution with a fault in one node, without metadata."""
    model = api.load(files["model"])
    order = iter(model.graph.nodes)
    values: dict[str, np.ndarray] = {}

    def run(name: str, *inputs: np.ndarray, **kw: Any) -> np.ndarray:
        return (fault(node) if next(order).name == node else RUN[name])(*inputs, **kw)

    image = traces.TensorFile(files["golden"]).read("window0.image")
    table = {name: functools.partial(run, name) for name in RUN}
    execute(model.graph, image, table, lambda n, v: values.__setitem__(f"window0.{n.name}", np.ascontiguousarray(v)))
    safetensors.numpy.save_file(values, path)
    return path


def read(path: Path) -> tuple[dict[str, Any], list[np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Metadata, inputs, params, expected of a case file, read as the golden tests do."""
    with safetensors.safe_open(path, "np") as file:
        document = json.loads(file.metadata()["intseg"])
        tensors = {name.removeprefix("case0."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    op = OPS[document["op"]]
    inputs = [tensors[f"in{j}"] for j in range(len(op.inputs))]
    params = {role: tensors[f"param.{role}"] for role in op.params}
    assert len(tensors) == len(inputs) + len(params) + 1
    return document, inputs, params, tensors["expected"]


@pytest.mark.parametrize(
    ("node", "cause", "elements"),
    [
        ("qkv", "bias missing", 7),
        ("scores", "shift off by one (+1)", 8),
        ("norm1", None, 30),
        ("add_pos", "transposed", 8),
    ],
)
def test_the_case_is_small_golden_and_different(
    files: Mapping[str, Path], tmp_path: Path, node: str, cause: str | None, elements: int
):
    path = other(files, node, tmp_path / "other.safetensors")
    case = tmp_path / "case.safetensors"
    argv = ["minimize", str(files["golden"]), str(path), "-w", str(files["model"]), "-o", str(case), "--seconds", "1"]
    assert cli.main(argv) == 1
    document, inputs, params, expected = read(case)
    (attrs,) = document["attrs"]
    op = OPS[document["op"]]
    value = op.check([Value(x.dtype.name, x.shape) for x in inputs], params, attrs)
    assert (value.dtype, value.shape) == (expected.dtype.name, expected.shape)
    assert_equal(np.ascontiguousarray(RUN[document["op"]](*inputs, **params, **attrs)), expected)
    found = np.array(document["found"]["values"]).reshape(document["found"]["shape"])
    assert not np.array_equal(found, expected)
    assert sum(x.size for x in (*inputs, *params.values())) <= elements
    assert document["node"] == node
    assert (document["cause"] is None) == (cause is None)
    if cause:
        assert cause in document["cause"]
    if node in ("qkv", "scores"):
        assert np.array_equal(fault(node)(*inputs, **params, **attrs), found)


def test_equal_sides_write_nothing(files: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["minimize", str(files["golden"]), str(files["golden"]), "-w", str(files["model"])]
    assert cli.main([*argv, "-o", str(tmp_path / "case.safetensors")]) == 0
    assert "equal" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_and_with_bad_files(files: Mapping[str, Path], tmp_path: Path):
    path = str(other(files, "qkv", tmp_path / "other.safetensors"))
    assert cli.main(["minimize", str(files["golden"]), path, "-o", str(tmp_path / "case.safetensors")]) == 2
    assert cli.main(["minimize", str(files["golden"]), "no", "-o", str(tmp_path / "case.safetensors")]) == 4
    assert cli.main(["minimize", str(files["golden"]), path, "-o", str(tmp_path / "no" / "case.safetensors")]) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]


@pytest.mark.parametrize("op", CASES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_restricted_call_gives_the_restricted_result(op: str, data: st.DataObject):
    """Cutting the operands and then computing equals computing and then cutting the result."""
    drawn = data.draw(CASES[op])
    case = Call(op, drawn.inputs, drawn.params, drawn.attrs)
    whole = evaluate(case)
    index = tuple(data.draw(st.integers(0, n - 1)) for n in whole.shape)
    small, cut = minimize.restrict(case, whole, index)
    assert_equal(np.ascontiguousarray(evaluate(small)), np.ascontiguousarray(cut), op)


def test_shrinking_keeps_the_difference():
    source = np.random.default_rng(2)
    x = source.integers(-128, 128, (20, 30), np.int8)
    params = {
        "weight": source.integers(-128, 128, (10, 30), np.int8),
        "bias": source.integers(-999, 999, 10, np.int32),
        "mult": np.ones(10, np.int32),
        "shift": np.full(10, 5, np.int8),
    }
    case = Call("linear", [x], params, {"out": "int16"})
    for variant in (Variant(rounding="floor"), Variant(acc_bits=16), Variant(layout="write:1,0")):
        with np.errstate(all="ignore"):
            least = minimize.shrink(case, variant, float("inf"))
        assert axes.is_valid(least)
        assert not np.array_equal(evaluate(least), evaluate(least, variant))
        assert sum(a.size for a in (*least.inputs, *least.params.values())) < 40, variant


def test_an_image_as_the_golden_side(tmp_path: Path):
    weights = GOLDEN / "models" / "intseg.safetensors"
    arrays = safetensors.numpy.load_file(GOLDEN / "traces" / "intseg.small.safetensors")
    name = "window0.encoder.blocks.0.attn.softmax"
    arrays[name] = arrays[name] + np.int16(1)
    safetensors.numpy.save_file(arrays, tmp_path / "other.safetensors")
    golden = sides.open_golden(GOLDEN / "images" / "small.png", str(weights))
    _, minimal = minimize.minimize(
        golden, sides.open_other(tmp_path / "other.safetensors", golden), diff.Settings(0, 1)
    )
    assert minimal is not None
    assert minimal.node == "encoder.blocks.0.attn.softmax"
    assert minimal.call.inputs[0].shape == (1, 1, 9)
