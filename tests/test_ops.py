"""Every op of every backend equals the oracle of plain integers, exactly: random calls, edge values, small domains."""

from __future__ import annotations

import math
import random
from typing import Any

import naive
import numpy as np
import pytest
from compare import assert_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import CASES, integers

import intseg.ops
from intseg import arith, backends
from intseg.exam import EXAMS
from intseg.ops import Call, Value

BACKENDS = {name: backends.table(name) for name in backends.names()}
"""Name -> op table."""

EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def check(case: Call) -> np.ndarray:
    """The case is valid, its type is inferred, inputs are left alone, every backend's result is that of the oracle."""
    op = intseg.ops.OPS[case.op]
    before = [x.copy() for x in case.inputs]
    value = op.check([Value(x.dtype.name, x.shape) for x in case.inputs], case.params, case.attrs)
    expected = naive.evaluate(case.op, case.inputs, case.params, case.attrs)
    for backend, table in BACKENDS.items():
        assert_equal(table[case.op](*case.inputs, **case.params, **case.attrs), expected, f"{case.op}, {backend}")
    for x, old in zip(case.inputs, before, strict=True):
        assert_equal(x, old, "input")
    assert (value.dtype, value.shape) == (expected.dtype.name, expected.shape)
    if value.row_sum is not None:
        assert int(np.abs(expected.astype(np.int64)).sum(axis=-1).max()) <= value.row_sum
    return expected


def test_the_tables_have_the_same_keys():
    assert list(naive.NAIVE) == list(CASES) == list(intseg.ops.OPS) == list(intseg.ops.RUN)


@pytest.mark.parametrize("op", CASES)
def test_random_calls(op: str):
    @EXAMPLES
    @given(CASES[op])
    def run(case: Call) -> None:
        for role, value in case.attrs.items():
            assert value in intseg.ops.OPS[op].attrs[role]
        check(case)

    run()


# Primitives


@settings(max_examples=300, deadline=None)
@given(integers(-(2**62), 2**62), st.integers(1, 62))
def test_rsr(x: int, c: int):
    assert int(arith.rsr(np.int64(x), c)) == naive.rsr(x, c)


@pytest.mark.parametrize("c", [1, 2, 7, 31, 32, 61, 62])
def test_rsr_ties_round_up(c: int):
    for x in (-3, -2, -1, 0, 1):
        tie = (2 * x + 1) * 2 ** (c - 1)
        if abs(tie) < 2**62:
            values = [int(arith.rsr(np.int64(v), c)) for v in (tie - 1, tie, tie + 1)]
            assert values == [x, x + 1, x + 1]


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_requantize_at_every_tie_and_both_saturations(dtype: str):
    low, high = naive.LIMITS[dtype]
    step = 1 if dtype == "int8" else 257
    cells = [*range(low - 2, high + 3, step), high - 1, high, high + 1, high + 2]
    values = [v for i in cells for v in (8 * i - 5, 8 * i - 4, 8 * i - 3, 8 * i)]
    expected = np.array([naive.requantize(v, 1, 3, dtype) for v in values], dtype)
    assert_equal(arith.requantize(np.array(values), 1, 3, dtype), expected)
    assert expected.min() == low
    assert expected.max() == high


@settings(max_examples=300, deadline=None)
@given(
    integers(-(2**31) + 1, 2**31 - 1), integers(0, 2**31 - 1), st.integers(1, 62), st.sampled_from(["int8", "int16"])
)
def test_requantize(x: int, mult: int, shift: int, dtype: str):
    assert int(arith.requantize(np.int64(x), mult, shift, dtype)) == naive.requantize(x, mult, shift, dtype)


def test_isqrt_around_every_square_up_to_2_to_32():
    for start in range(0, 2**16 + 1, 2**14):
        root = np.arange(start, start + 2**14, dtype=np.int64)
        assert np.array_equal(arith.isqrt(root * root), root)
        assert np.array_equal(arith.isqrt(root * root + 2 * root), root)  # the last value before the next square
        assert np.array_equal(arith.isqrt(root[root > 0] ** 2 - 1), root[root > 0] - 1)


def test_isqrt_of_random_62_bit_values():
    source = random.Random(1)
    roots = [source.getrandbits(source.randint(1, 31)) for _ in range(2000)]
    values = [source.getrandbits(source.randint(1, 62)) for _ in range(2000)] + [2**62 - 1, (2**31 - 1) ** 2]
    values += [r * r + step for r in roots for step in (-1, 0, 1) if r * r + step >= 0]
    assert arith.isqrt(np.array(values)).tolist() == [math.isqrt(v) for v in values]
    assert [naive.isqrt(v) for v in values] == [math.isqrt(v) for v in values]


def test_bit_length():
    values = [0, *(2**n + step for n in range(63) for step in (-1, 0, 1) if 0 <= 2**n + step < 2**63)]
    assert arith.bit_length(np.array(values)).tolist() == [v.bit_length() for v in values]
    assert [naive.bit_length(v) for v in values] == [v.bit_length() for v in values]


@settings(max_examples=300, deadline=None)
@given(
    integers(0, 2**46 - 1), st.integers(0, 2**10), st.sampled_from([8, 16]), st.sampled_from(["paper", "normalized"])
)
def test_int_div(d: int, part: int, k_out: int, kind: str):
    n = d * part // 2**10
    assert int(arith.int_div(np.int64(n), np.int64(d), k_out, kind)) == naive.int_div(n, d, k_out, kind)


@pytest.mark.parametrize("kind", ["paper", "normalized"])
def test_int_div_by_zero_counts_as_division_by_one(kind: str):
    assert int(arith.int_div(np.int64(0), np.int64(0), 8, kind)) == naive.int_div(0, 0, 8, kind) == 0


@settings(max_examples=300, deadline=None)
@given(integers(-(2**17), 0), integers(1, 2**15), st.integers(0, 31), st.integers(1, 64))
def test_shift_exp(x: int, i0: int, k_inter: int, lam: int):
    k_inter = min(k_inter, 60 - i0.bit_length())
    assert int(arith.shift_exp(np.int64(x), i0, k_inter, lam)) == naive.shift_exp(x, i0, k_inter, lam)


@settings(max_examples=200, deadline=None)
@given(integers(-(2**40), 2**40), st.integers(-2000, 20))
def test_shift_left(x: int, n: int):
    assert int(arith.shift_left(np.int64(x), np.int64(n))) == naive.floor_shift(x, max(n, -62))


# Edge values


@pytest.mark.parametrize("op", intseg.ops.OPS)
def test_corner_inputs(op: str):
    """The calls of the op's exam: edge rows, whole small domains, scales at both ends."""
    for call in EXAMS[op].calls():
        check(call)


OUT = pytest.mark.parametrize("out", ["int8", "int16"])
KIND = pytest.mark.parametrize("kind", ["paper", "normalized"])


@OUT
def test_linear_of_depth_one_over_the_whole_domain(out: str):
    """K = 1: all 65,536 products, at a scale with ties."""
    x = np.arange(-128, 128, dtype=np.int8)[:, None]
    params = {
        "weight": x,
        "bias": np.zeros(256, np.int32),
        "mult": np.ones(256, np.int32),
        "shift": np.full(256, 6, np.int8),
    }
    result = check(Call("linear", [x], params, {"out": out}))
    assert (result.min(), result.max()) == ((-128, 127) if out == "int8" else (-254, 256))


@OUT
def test_linear_at_the_accumulator_bound(out: str):
    """128 * sum |w| + |bias| = 2^31 - 1 is the last bias that validation accepts; both signs of the accumulator."""
    bias = 2**31 - 1 - 128 * 128 * 3
    params = {
        "weight": np.full((2, 3), -128, np.int8),
        "bias": np.array([bias, -bias], np.int32),
        "mult": np.full(2, 2**31 - 1, np.int32),
        "shift": np.array([62, 62], np.int8),
    }
    check(Call("linear", [np.full((1, 3), -128, np.int8)], params, {"out": out}))
    check(Call("linear", [np.full((1, 3), 127, np.int8)], params, {"out": out}))


@every_backend
def test_add_identity_is_exact(backend: str):
    x = np.arange(-(2**15), 2**15, dtype=np.int16)[None]
    attrs = {"mult_a": 2**30, "shift_a": 30, "mult_b": 2**30, "shift_b": 30}
    assert_equal(BACKENDS[backend]["add"](x, np.zeros_like(x), **attrs), x)


def test_layernorm_of_a_long_row():
    """1,024 channels of alternating extremes: the variance needs 41 bits."""
    x = np.tile(np.array([-32768, 32767], np.int16), 512)[None]
    params = {"mult": np.full(1024, 2**26, np.int32), "bias": np.zeros(1024, np.int64)}
    check(Call("layernorm", [x], params, {"shift": 50, "out": "int16"}))


@OUT
@pytest.mark.parametrize("transpose", [0, 1])
@pytest.mark.parametrize("value", [-32768, 32767])
def test_matmul_int16_at_the_accumulator_bound(out: str, transpose: int, value: int):
    """K = 511 is the longest inner axis that is proved without a row sum: 511 * 2^15 * 2^7 < 2^31."""
    a = np.full((1, 1, 511), value, np.int16)
    b = np.full((1, 2, 511) if transpose else (1, 511, 2), -128, np.int8)
    params = {"mult": np.full((1, 1), 2**31 - 1, np.int32), "shift": np.full((1, 1), 55, np.int8)}
    check(Call("matmul", [a, b], params, {"transpose_b": transpose, "out": out}))


@pytest.mark.parametrize("per_column", [False, True])
def test_matmul_without_batch_axes(per_column: bool):
    a, b = np.array([[-128]], np.int8), np.array([[127, -128, 1]], np.int8)
    mult = np.array([3, 2**31 - 1, 0] if per_column else [5], np.int32)
    shift = np.array([1, 62, 62] if per_column else [4], np.int8)
    check(Call("matmul", [a, b], {"mult": mult, "shift": shift}, {"transpose_b": 0, "out": "int16"}))


@OUT
@KIND
def test_shiftmax_of_1025_tokens(out: str, kind: str):
    x = (np.arange(1025, dtype=np.int16) * 37 % 256 - 128)[None].astype(np.int8)
    check(Call("shiftmax", [x], {}, {"i0": 16, "k_inter": 11, "int_div_kind": kind, "out": out}))


def test_exponentials_of_a_gelu_may_both_vanish():
    """Row maximum 127 at i0 = 5 is 25.4 in real units: both exponentials vanish for the small elements (D8)."""
    top = naive.times_1_6875(127)
    assert naive.shift_exp(naive.times_1_6875(-128) - top, 5, 23, 6) == naive.shift_exp(-top, 5, 23, 6) == 0


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
@pytest.mark.parametrize(("classes", "label"), [(1, "uint8"), (256, "uint8"), (257, "uint16")])
def test_argmax_ties_and_label_width(dtype: str, classes: int, label: str):
    low, high = naive.LIMITS[dtype]
    x = np.full((4, classes), low, dtype)
    x[1, -1] = x[2, classes // 2] = x[2, -1] = high
    x[3] = high
    result = check(Call("argmax", [x], {}, {}))
    assert result.dtype == label
    assert result.tolist() == [0, classes - 1, classes // 2, 0]


@pytest.mark.parametrize("dtype", ["int16", "int32"])
@pytest.mark.parametrize("factor", [1, 2, 3, 16, 64])
def test_upsample_bilinear_extremes(dtype: str, factor: int):
    low, high = naive.LIMITS[dtype]
    for cells in ([[low, high]], [[low], [high]], [[high]], [[low, low], [low, low]]):
        x = np.array(cells, dtype)[..., None]
        attrs: dict[str, Any] = {"factor": factor, "row_start": 0, "row_stop": len(cells) * factor}
        check(Call("upsample_bilinear", [x], {}, attrs))


@every_backend
def test_upsample_bilinear_in_strips_equals_the_whole(backend: str):
    run = BACKENDS[backend]["upsample_bilinear"]
    x = np.random.default_rng(0).integers(-(2**20), 2**20, (3, 4, 2), dtype=np.int32)
    whole = run(x, factor=5, row_start=0, row_stop=15)
    strips = [run(x, factor=5, row_start=r, row_stop=r + 1) for r in range(15)]
    assert_equal(np.concatenate(strips), whole)


def test_gelu_table_and_quantize_input_index_correctly():
    identity = np.arange(-128, 128, dtype=np.int8)
    for ops in BACKENDS.values():
        assert_equal(ops["gelu_table"](identity, table=identity), identity)
    pixels = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1)[None]
    table = np.stack([identity, identity[::-1], np.full(256, 7, np.int8)])
    check(Call("quantize_input", [pixels], {"table": table}, {}))


@every_backend
def test_merge_heads_undoes_split_heads(backend: str):
    ops = BACKENDS[backend]
    x = np.random.default_rng(0).integers(-128, 128, (5, 3 * 2 * 7), dtype=np.int8)
    parts = [ops["merge_heads"](ops["split_heads"](x, heads=2, part=i, parts=3)) for i in range(3)]
    assert_equal(np.concatenate(parts, axis=1), x)
