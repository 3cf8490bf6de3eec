"""Real ops against plain formulas, and integer ops against real ops where both are exact but for a rounding.

That the others keep to the bounds of SPEC.md, against the same formulas, is for test_math.py.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intseg import api
from intseg.arith import INT_RANGE
from intseg.exam import _real, real
from intseg.ops import OPS, RUN
from intseg.windows import cut_windows, tile
from intseg.workbench.trace import scales

PACKAGE = Path(__file__).parent.parent / "intseg"
RANDOM = np.random.default_rng(5)


def ints(dtype: str, *shape: int, low: int | None = None, high: int | None = None) -> np.ndarray:
    bottom, top = INT_RANGE[dtype]
    return RANDOM.integers(bottom if low is None else low, (top if high is None else high) + 1, shape).astype(dtype)


def test_every_op_has_a_real_one() -> None:
    assert set(real.REAL) == set(OPS)


def test_only_the_report_imports_it() -> None:
    """The integers are computed without it: no module but the report names it, and there are no back doors."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.Import | ast.ImportFrom):
                names = [f"{getattr(item, 'module', '')}.{alias.name}" for alias in item.names]
                names.append(str(getattr(item, "module", "")))
                if any(name.endswith("intseg.exam.real") or name in ("real", ".real") for name in names):
                    found.add(path.name)
    assert found == {"quantization.py"}


# ---------------------------------------------------------------------------------------------------- plain formulas


def test_erf_is_within_its_bound() -> None:
    x = np.linspace(-7, 7, 20001)
    error = np.abs(_real.erf(x) - np.vectorize(math.erf)(x)).max()
    assert 1e-7 < error <= _real.ERF_ERROR  # the bound is not slack by more than a third
    single = _real.erf(x.astype(np.float32))
    assert single.dtype == np.float32
    assert np.abs(single - np.vectorize(math.erf)(x)).max() < 6e-7


def test_gelu_is_the_formula() -> None:
    x = np.linspace(-8, 8, 4001)
    exact = [t * (1 + math.erf(t / math.sqrt(2))) / 2 for t in x.tolist()]
    assert (np.abs(_real.gelu(x) - exact) <= np.abs(x) * _real.ERF_ERROR / 2 + 1e-15).all()


LINEAR = {
    "weight": ints("int8", 3, 5),
    "bias": ints("int32", 3, low=-999, high=999),
    "mult": np.array([3, 2**30, 7], np.int32),
    "shift": np.array([5, 36, 9], np.int8),
}


def by_loops_linear(x: np.ndarray) -> np.ndarray:
    p = {role: array.tolist() for role, array in LINEAR.items()}
    return np.array(
        [
            [
                (math.fsum(a * w for a, w in zip(row, p["weight"][n], strict=True)) + p["bias"][n])
                * p["mult"][n]
                / 2 ** p["shift"][n]
                for n in range(3)
            ]
            for row in x.tolist()
        ]
    )


def by_loops_rows(x: np.ndarray, function: Any) -> np.ndarray:
    return np.array([function(row) for row in x.reshape(-1, x.shape[-1]).tolist()]).reshape(x.shape)


def softmax(row: list[float], base: float) -> list[float]:
    powers = [base ** (value - max(row)) for value in row]
    return [power / math.fsum(powers) for power in powers]


def normal(row: list[float]) -> list[float]:
    mean = math.fsum(row) / len(row)
    root = math.sqrt(math.fsum((value - mean) ** 2 for value in row))
    return [(value - mean) / root for value in row]


def unit(row: list[float]) -> list[float]:
    return [value / math.hypot(*row) for value in row]


def exact_gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


GAINS = np.array([5, -(2**20), 2**30, 0], np.int32)
OFFSETS = np.array([0, 2**40, -(2**45), 5], np.int64)
X4 = RANDOM.normal(0, 500, (6, 4))
X5 = RANDOM.normal(0, 60, (2, 5))
GELU = {"k_inter": 23, "lam": 6, "int_div_kind": "paper"}
PRODUCT = {"mult": np.array([3], np.int32), "shift": np.array([4], np.int8), "out": "int16"}

FORMULAS: dict[str, tuple[list[np.ndarray], dict[str, Any], np.ndarray]] = {
    "linear": ([X5], {**LINEAR, "out": "int8"}, by_loops_linear(X5)),
    "add": ([X4, X4[::-1]], {"mult_a": 3, "shift_a": 2, "mult_b": 5, "shift_b": 1}, X4 * 0.75 + X4[::-1] * 2.5),
    "layernorm": (
        [X4],
        {"mult": GAINS, "bias": OFFSETS, "shift": 45, "out": "int8"},
        by_loops_rows(X4, normal) * 2.0**-15 * GAINS + OFFSETS * 2.0**-45,
    ),
    "matmul": ([X4, X4[:3]], {**PRODUCT, "transpose_b": 1}, X4 @ X4[:3].T * 3 / 16),
    "shiftmax": (
        [X4],
        {"i0": 200, "k_inter": 7, "int_div_kind": "paper", "out": "int8"},
        by_loops_rows(X4, lambda row: softmax(row, math.exp(1 / 200))) * 128,
    ),
    graphs.SOFTMAX: (
        [X4],
        {"frac_bits": 8, "a1": 21955, "a2": 5571},
        by_loops_rows(X4, lambda row: softmax(row, 2 ** (1 / 256))) * 2**15,
    ),
    "shift_gelu": (
        [X5],
        {**GELU, "i0": 20, "k_out": 8, "mult": 3, "shift": 5},
        by_loops_rows(X5, lambda row: [20 * exact_gelu(v / 20) * 128 * 3 / 32 for v in row]),
    ),
    "exp_weights": (
        [X4 / 40],
        {"table": np.round(255 * 2**7 * 2 ** (-np.arange(256) / 16)).astype(np.int16)},
        by_loops_rows(X4 / 40, lambda row: [255 * 2 ** (-(max(row) - v) / 16) for v in row]),
    ),
    "weighted_mean": (
        [np.abs(X4), X4[:4]],
        {role: PRODUCT[role] for role in ("mult", "shift")},
        np.abs(X4) @ X4[:4] / np.abs(X4).sum(axis=1, keepdims=True) * 3 / 16,
    ),
    "l2norm": ([X4], {"mult": 127, "shift": 30}, by_loops_rows(X4, unit) * 127),
}
FORMULAS["sigmoid_gelu"] = FORMULAS["shift_gelu"]


ATOL = {"shift_gelu": 1e-3, "sigmoid_gelu": 1e-3, "exp_weights": 0.07}
"""Of a table of erf, and of straight lines between the entries of a table."""


@pytest.mark.parametrize("name", FORMULAS)
def test_real_op_is_the_formula(name: str) -> None:
    inputs, keywords, exact = FORMULAS[name]
    found = real.REAL[name](*inputs, **keywords)
    assert found.dtype == np.float64
    assert np.allclose(found, exact, rtol=1e-5 if "gelu" in name else 1e-12, atol=ATOL.get(name, 1e-9))
    single = real.REAL[name](*(x.astype(np.float32) for x in inputs), **keywords)
    assert single.dtype == np.float32
    assert np.allclose(single, exact, rtol=1e-4, atol=max(1e-2, ATOL.get(name, 0)))


def test_a_constant_row_and_a_zero_row_stay_finite() -> None:
    flat = np.full((2, 4), 7.0)
    norm = real.REAL["layernorm"](flat, mult=GAINS, bias=OFFSETS, shift=45, out="int8")
    assert (norm == OFFSETS * 2.0**-45).all()
    assert not real.REAL["l2norm"](flat * 0, mult=127, shift=30).any()


def test_a_table_without_scales_is_read_between_its_entries() -> None:
    table = ints("int8", 256)
    x = np.array([-128.0, -0.5, 126.25, 999.0])
    found = real.REAL["gelu_table"](x, table=table)
    between = [table[0], (int(table[127]) + int(table[128])) / 2, 0.75 * table[254] + 0.25 * table[255], table[255]]
    assert found.tolist() == pytest.approx(between)


@pytest.mark.parametrize(("slope", "start"), [(1.0, -128.0), (254 / 255, -127.0), (-0.7, 60.2), (1.3, -200.0)])
def test_an_input_table_is_the_line_it_was_rounded_from(slope: float, start: float) -> None:
    line = slope * np.arange(256) + start
    table = np.stack([real.on_grid(line, "int8")] * 3)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    found = real.REAL["quantize_input"](pixels, table=table)[..., 0].ravel()
    assert np.abs(found - line).max() < 0.06 + 1e-5


def test_an_input_table_that_is_no_line_stands_for_itself() -> None:
    table = np.stack([ints("int8", 256) for _ in range(3)])
    pixels = ints("uint8", 4, 5, 3)
    assert (real.REAL["quantize_input"](pixels, table=table) == RUN["quantize_input"](pixels, table=table)).all()


# ------------------------------------------------------------------------------------------------------------ bounds


def steps_off(op: str, inputs: list[np.ndarray], keywords: dict[str, Any]) -> np.ndarray:
    """|integer - real| in steps; the real result saturated like the integer one."""
    integer = RUN[op](*inputs, **keywords)
    exact = real.REAL[op](*real.as_float(inputs, np.float64), **keywords)
    return np.abs(integer - np.clip(exact, *INT_RANGE[integer.dtype.name]))


@given(st.integers(0, 2**32), st.sampled_from(["int8", "int16"]))
def test_linear_and_matmul_are_exact_but_for_their_rounding(seed: int, out: str) -> None:
    random = np.random.default_rng(seed)
    params = {
        "weight": random.integers(-128, 128, (4, 9)).astype(np.int8),
        "bias": random.integers(-(2**20), 2**20, 4).astype(np.int32),
        "mult": random.integers(2**30, 2**31, 4).astype(np.int32),
        "shift": random.integers(31, 45, 4).astype(np.int8),
    }
    x = random.integers(-128, 128, (3, 9)).astype(np.int8)
    assert steps_off("linear", [x], {**params, "out": out}).max() <= 0.5 + 1e-9
    keywords = {"mult": params["mult"], "shift": params["shift"], "transpose_b": 1, "out": out}
    assert steps_off("matmul", [x, params["weight"]], keywords).max() <= 0.5 + 1e-9


@given(st.integers(0, 2**32))
def test_add_rounds_each_branch(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.integers(-(2**15), 2**15, (2, 3, 9)).astype(np.int16)
    mult_a, mult_b, shift_a, shift_b = (int(n) for n in random.integers((2**29, 2**29, 29, 29), (2**31, 2**31, 36, 36)))
    keywords = {"mult_a": mult_a, "shift_a": shift_a, "mult_b": mult_b, "shift_b": shift_b}
    assert steps_off("add", [a, b], keywords).max() <= 1 + 1e-9


def test_a_gelu_table_is_off_by_its_rounding() -> None:
    graph, name = api.load("camvid-tiny").graph, "encoder.blocks.3.mlp.act"
    node, found = graph.node(name), scales(graph)
    x = np.arange(-128, 128, dtype=np.int8)
    exact = real.bind(graph, node, found)(x.astype(np.float64).reshape(1, 256))
    table = graph.tensors[node.params["table"]]
    assert 0.4 < np.abs(np.clip(exact, -128, 127) - table).max() < 0.51


def test_upsample_bilinear_is_equal() -> None:
    x = ints("int16", 5, 7, 3)
    keywords = {"factor": 4, "row_start": 3, "row_stop": 17}
    assert (
        np.abs(RUN["upsample_bilinear"](x, **keywords) - real.REAL["upsample_bilinear"](x * 1.0, **keywords)).max()
        < 1e-6
    )


# ------------------------------------------------------------------------------------------------------------ graphs


def test_scales_turn_and_return() -> None:
    scale = np.array([3, -8, 2], np.int32).reshape(3, 1)
    q = np.arange(-5, 5)
    found = real.dequantize(scale, q)
    assert (found == (q * 3 - 8) / 4).all()
    assert (real.quantize(scale, found) == q).all()
    assert (real.dequantize(None, q) == q).all()


def test_on_grid_rounds_half_up_and_saturates() -> None:
    assert real.on_grid(np.array([-0.5, 0.5, 1.4999, -200.0, 200.0]), "int8").tolist() == [0, 1, 1, -128, 127]


def test_a_gelu_between_scales_takes_their_word() -> None:
    """i0 = 7 stands for a step of 0.1365 here: the scale tensor decides, the rounding of i0 is an error of the op."""
    graph = api.load("camvid-tiny-paper").graph
    node = graph.node("encoder.blocks.0.mlp.act")
    step, result = (
        float(real.dequantize(scales(graph)[name], np.ones((1, 1)))[0, 0]) for name in (node.inputs[0], node.name)
    )
    assert node.attrs["i0"] == 7
    assert abs(step * 7 - 1) > 0.02
    found = real.bind(graph, node, scales(graph))(np.full((1, 1), 20.0))
    assert found[0, 0] == pytest.approx(exact_gelu(20 * step) / result, rel=1e-6)


def test_a_run_is_its_ops_one_after_the_other() -> None:
    graph, image = graphs.tiny(), graphs.image()
    values: dict[str, Any] = {"image": image, **graph.tensors}
    for node in graph.nodes:
        inputs = [values[name] if name == "image" else values[name].astype(np.float64) for name in node.inputs]
        params = {role: graph.tensors[name] for role, name in node.params.items()}
        values[node.name] = real.REAL[node.op](*inputs, **params, **node.attrs)
    found = real.run(graph, image, scales(graph), np.float64)
    assert (found == values[graph.output]).all()
    assert np.abs(real.run(graph, image, scales(graph)) - found).max() < 1e-3 * np.abs(found).max()


def test_scores_merge_and_upsample_as_the_engine_does() -> None:
    """On integers, which the engine handles exactly: the same labels."""
    from tiny_model import tiny_graph

    for upsample in ("nearest", "bilinear"):
        graph = tiny_graph(upsample=upsample)
        model = api.Model(graph, "", Path("tiny"))
        rgb = ints("uint8", 50, 61, 3)
        result = api.run(rgb, model, "numpy")
        tiling = tile(graph.info, 50, 61)
        windows = [model.compiled("numpy")(window) for _, window in cut_windows(rgb, graph.info)]
        mean = real.merge_scores(windows, tiling, graph.info)
        found = real.class_map(mean, upsample, graph.info.patch, 50, 61)
        assert found.dtype == result.labels.dtype
        assert (found == result.labels).mean() > 0.999  # an exact tie may fall to either side in float32
