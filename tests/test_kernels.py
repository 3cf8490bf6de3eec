"""Every kernel equals its op on every element, and the fused plan equals the definition."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import assert_equal
from graphs import SOFTMAX
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import Dice, same_shape
from strategies import CASES

from intseg import backends
from intseg.errors import UsageError
from intseg.exam import EXAMS
from intseg.executor import execute
from intseg.graph import Graph, Node, validate
from intseg.ops import OPS, RUN, Array, Call, Value
from intseg.tools.measure import bench

pytest.importorskip("numba")
CLOSE = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

FAST_OPS = tuple(op for op, run in backends.table("numba").items() if run is not RUN[op])


def check(op: str, *inputs: Array, **arguments: Any) -> None:
    assert_equal(backends.table("numba")[op](*inputs, **arguments), RUN[op](*inputs, **arguments), op)


@pytest.mark.parametrize("op", FAST_OPS)
def test_kernel_equals_its_op(op: str) -> None:
    @CLOSE
    @given(CASES[op])
    def run(case: Call) -> None:
        check(op, *case.inputs, **case.params, **case.attrs)

    run()


def rows(dtype: str, count: int, width: int) -> Iterator[Array]:
    """Adversarial matrices: extremes, alternating, one-hot, constant rows, ties, random."""
    low, high = (-128, 127) if dtype == "int8" else (-(2**15), 2**15 - 1)
    random = np.random.default_rng(width)
    yield np.full((count, width), low, dtype)
    yield np.full((count, width), high, dtype)
    alternating = np.full((count, width), low, dtype)
    alternating[:, 1::2] = high
    yield alternating
    yield np.ascontiguousarray(alternating.T[::-1].T)
    hot = np.full((count, width), low, dtype)
    hot[np.arange(count), np.arange(count) % width] = high
    yield hot
    yield np.repeat(random.integers(low, high + 1, (count, 1)).astype(dtype), width, axis=1)
    yield random.integers(-1, 2, (count, width)).astype(dtype)
    yield random.integers(low, high + 1, (count, width)).astype(dtype)


@pytest.mark.parametrize(
    ("tokens", "depth", "width"), [(1, 1, 1), (7, 64, 64), (13, 65, 63), (6, 3, 129), (5, 193, 66)]
)
@pytest.mark.parametrize("out", ["int8", "int16"])
def test_linear_on_adversarial_operands(tokens: int, depth: int, width: int, out: str) -> None:
    shifts = np.resize([1, 2, 24, 30, 31, 32, 33, 40, 61, 62], width).astype(np.int8)
    high, near = np.full(width, 40, np.int8), np.resize([28, 33, 31, 40, 57], width).astype(np.int8)
    mult = np.resize([2**31 - 1, 0, 2**30, 1], width).astype(np.int32)
    limit = 2**31 - 1 - 128 * 128 * depth
    bias = np.resize([limit, -limit, 0, 5], width).astype(np.int32)
    for x in rows("int8", tokens, depth):
        for weight in rows("int8", width, depth):
            for shift in (shifts, high):
                check("linear", x, weight=weight, bias=bias, mult=mult, shift=shift, out=out)
            check("linear", x, weight=weight, bias=bias >> 9, mult=mult, shift=near, out=out)  # shifted left first


@pytest.mark.parametrize("width", [1, 2, 15, 16, 31, 33, 64, 192, 200])
@pytest.mark.parametrize("op", sorted({*same_shape(), "add"} & {*FAST_OPS}))
def test_row_kernels_on_adversarial_rows(op: str, width: int) -> None:
    d, draw, kinds = Dice("adversarial", f"{op} {width}"), EXAMS[op].draw, OPS[op].inputs
    for dtype in kinds[0]:
        for x in rows(dtype, 5, width):
            for _ in range(10):
                drawn = draw(d, *[Value(dtype, x.shape)] * len(kinds))
                check(op, *[x, x[::-1]][: len(kinds)], **drawn.params, **drawn.attrs)


@pytest.mark.parametrize("kind", ["paper", "normalized", "aligned"])
def test_a_gelu_of_every_value_below_every_maximum(kind: str) -> None:
    values = np.arange(-128, 128, dtype=np.int8)
    x = np.minimum(values, values[:, None])
    check("shift_gelu", x, i0=16, k_inter=23, lam=6, int_div_kind=kind, k_out=16, mult=3, shift=17)


@pytest.mark.parametrize("width", [1, 31, 64, 192, 200])
def test_a_sum_is_normalized_at_once(width: int) -> None:
    from intseg.kernels import add, layernorm

    d, scratch = Dice("adversarial", f"sums of {width}"), np.full(layernorm.SCRATCH, 77, np.int8)
    for a in rows("int16", 19, width):
        for case in range(10):
            b, of = a[::-1].copy(), EXAMS["add"].draw(d, *[Value("int16", a.shape)] * 2).attrs
            norm = EXAMS["layernorm"].draw(d, Value("int16", a.shape))
            total = RUN["add"](a, b, **of)
            expected = RUN["layernorm"](total, **norm.params, **norm.attrs)
            packed, out = layernorm.pack(**norm.params, **norm.attrs), np.zeros_like(expected)
            x = b if case % 2 else np.zeros_like(a)  # over an operand, or beside them
            for part in ((0, 9), (9, 19)):
                layernorm.run(packed, x, out, *part, scratch, a, b, add.pack(**of))
            assert_equal(x, total)
            assert_equal(out, expected)


# Fused attention


def attention_nodes(
    qkv: Array, heads: int, scale: int, value_scale: int, attrs: dict[str, Any], times: int = 1
) -> tuple[Array, Array]:
    """(fused, definition) of one attention on int8 [T, 3 heads d], whose queries are `times` times the same.

    With an empty `attrs`, weights of a byte.
    """
    from intseg.kernels import _heads, _isa
    from intseg.kernels._tile import lane_order
    from intseg.plan.patterns import fuse_attention

    tokens, dim = qkv.shape[0], qkv.shape[1] // 3 // heads
    op = next(op for op in OPS if OPS[op].attrs.keys() == attrs.keys()) if attrs else "exp_weights"
    falling = np.array([255 * 2**7 // 2 ** (t / 13) for t in range(256)], np.int16)
    flat = np.where(np.arange(256) > 0, np.arange(256) * 127, 255 * 2**7)  # far keys weigh most
    params = {} if attrs else {"table": np.array([falling, flat, falling][:heads], np.int16)}
    mult, shift = np.full((heads, 1), 2**30, np.int32), np.full((heads, 1), scale, np.int8)
    mult[1:] += 12345
    value_mult = np.resize(np.array([2**30, 2**31 - 1, 12345], np.int32), (heads, dim))
    value_shift = np.full((heads, dim), value_scale, np.int8)
    q, k, v = (RUN["split_heads"](qkv, heads=heads, part=i, parts=3) for i in range(3))
    scores = RUN["matmul"](q[:, : tokens // times], k, mult=mult, shift=shift, transpose_b=1, out="int16")
    weights = RUN[op](scores, **params, **attrs)
    if attrs:
        context = RUN["matmul"](weights, v, mult=value_mult, shift=value_shift, transpose_b=0, out="int8")
    else:
        context = RUN["weighted_mean"](weights, v, mult=value_mult, shift=value_shift)
    expected = np.tile(RUN["merge_heads"](context), (times, 1))

    softmax = Node("softmax", op, (), {role: role for role in params}, attrs, "int16", ())
    fused = fuse_attention(softmax, params, (heads, tokens, dim), (mult, shift), (value_mult, value_shift))
    assert fused is not None
    shape, garbage = fused.shape, np.random.default_rng(0)
    keys = garbage.integers(-128, 128, (heads, shape.key_bytes)).astype(np.int8)
    values = garbage.integers(-128, 128, (heads, shape.value_bytes)).astype(np.int8)
    init, scratch = np.full((heads, shape.padded), 99, np.int32), np.full(shape.scratch_bytes + 64, 77, np.int8)
    scratch = scratch[-scratch.ctypes.data % 64 :][: shape.scratch_bytes]
    order, group = lane_order(_isa.select()), shape.value_group
    width, out, starts = heads * dim, np.zeros_like(expected), fused.scores.starts
    _heads.pack_keys_values(qkv, width, 2 * width, heads, dim, dim, keys, init, values, starts, order, group, 0, tokens)
    for start, stop in ((0, tokens // 2), (tokens // 2, tokens)):
        fused(qkv, 0, keys, init, values, out, start, stop, scratch)
    return out, expected


QUADRATIC = {"frac_bits": 10, "a1": 21955, "a2": 5571}
SHIFTMAX = [
    {"i0": i0, "k_inter": k, "int_div_kind": kind, "out": out}
    for i0, k in ((1, 15), (2**15, 0), (2**14, 1), (77, 8), (128, 8))
    for kind in ("paper", "normalized")
    for out in ("int8", "int16")
]


@pytest.mark.parametrize(
    ("tokens", "heads", "dim"), [(1, 1, 64), (2, 2, 3), (65, 1, 64), (130, 3, 32), (67, 1, 72), (64, 2, 128)]
)
def test_attention_on_adversarial_operands(tokens: int, heads: int, dim: int) -> None:
    for qkv in rows("int8", tokens, 3 * heads * dim):
        for scale in (25, 31, 32, 36, 44):
            assert_equal(*attention_nodes(qkv, heads, scale, 46, QUADRATIC))
            assert_equal(*attention_nodes(qkv, heads, scale, 30, {}))


@pytest.mark.parametrize("attrs", SHIFTMAX, ids=str)
def test_attention_with_shiftmax(attrs: dict[str, Any]) -> None:
    for qkv in rows("int8", 66, 3 * 2 * 16):
        for scale in (28, 33, 40):
            assert_equal(*attention_nodes(qkv, 2, scale, 46, attrs))


@CLOSE
@given(st.data())
def test_attention_on_any_operands(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 140))
    heads, dim = data.draw(st.sampled_from([(1, 64), (2, 16), (1, 5)]))
    spread = data.draw(st.sampled_from([1, 10, 60, 400]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    qkv = np.clip(random.normal(0, spread, (tokens, 3 * heads * dim)).round(), -128, 127).astype(np.int8)
    attrs = {
        "frac_bits": data.draw(st.integers(0, 15)),
        "a1": data.draw(st.integers(2**14, 2**15 - 1)),
        "a2": data.draw(st.integers(0, 2**14 - 1)),
    }
    scale = data.draw(st.integers(24, 45))
    assert_equal(*attention_nodes(qkv, heads, scale, data.draw(st.integers(40, 50)), attrs))
    assert_equal(*attention_nodes(qkv, heads, data.draw(st.integers(24, 60)), data.draw(st.integers(26, 39)), {}))


@pytest.mark.parametrize("scale", [33, 40])
def test_attention_on_4096_tokens(scale: int) -> None:
    random = np.random.default_rng(scale)
    qkv = np.clip(random.normal(0, 50, (4096, 3 * 16)).round(), -128, 127).astype(np.int8)
    qkv[:, :16] = np.tile(qkv[:512, :16], (8, 1))
    assert_equal(*attention_nodes(qkv, 1, scale, 46, QUADRATIC, times=8))
    assert_equal(*attention_nodes(qkv, 1, scale, 29, {}, times=8))


def test_means_of_small_shifts_are_not_fused() -> None:
    """Their multipliers cannot be raised: the floor of (f mult) >> 31 comes before the shift."""
    from intseg.kernels import mean_attention

    mult, shift = np.array([[1, 0, 2**30]], np.int32), np.array([[26, 1, 30]], np.int8)
    assert mean_attention.pack_values(mult, shift, 3) is not None
    assert mean_attention.pack_values(mult, np.array([[25, 1, 30]], np.int8), 3) is None


def test_padding_that_would_not_saturate_is_not_fused() -> None:
    from intseg.plan.steps import ATTENTIONS

    one = np.ones(1, np.int32)

    def fits(mult: int, shift: int) -> bool:
        return ATTENTIONS[SOFTMAX].scores(one * mult, one.astype(np.int8) * shift, 64) is not None

    assert fits(2**30, 45)
    assert not fits(2**30, 46)
    assert not fits(0, 32)
    assert fits(2**31 - 1, 23)
    assert not fits(2**31 - 1, 22)


# Plans

SMALL = {"width": 64, "heads": 2, "layers": 2, "image": 64, "classes": 11, "decoder_layers": 1}
GRAPHS: dict[str, dict[str, Any]] = {
    "default": {},
    SOFTMAX: {"softmax": SOFTMAX},
    "i-vit": {"softmax": "shiftmax", "gelu": "shift_gelu", "cosine": True},
    "sigmoid, odd sizes": {"gelu": "sigmoid_gelu", "width": 60, "heads": 3, "patch": 8, "image": 72, "classes": 3},
    "one token": {"image": 16, "classes": 1},
}


def make(**changes: Any) -> tuple[Graph, Array]:
    shape = dataclasses.replace(bench.Shape(**SMALL), **changes)
    graph = bench.RandomGraph(shape).build()
    validate(graph)
    image = np.random.default_rng(1).integers(0, 256, (shape.image, shape.image, 3)).astype(np.uint8)
    return graph, image


@pytest.mark.parametrize("kind", GRAPHS)
def test_fused_and_unfused_equal_the_definition_at_every_node(kind: str) -> None:
    graph, image = make(**GRAPHS[kind])
    expected: dict[str, Array] = {}
    execute(graph, image, RUN, lambda node, value: expected.update({node.name: value}))
    execute(
        graph, image, backends.table("numba"), lambda node, value: assert_equal(value, expected[node.name], node.name)
    )
    from intseg.plan.plan import Plan

    for threads in (1, 2, 3):
        plan, seen = Plan(graph, threads), set()

        def on_output(name: str, value: Array, seen: set[str] = seen) -> None:
            if name in expected:
                assert_equal(value, expected[name], name)
                seen.add(name)

        for _ in range(2):
            assert_equal(plan(image, on_output), expected[graph.output])
        assert len(seen) > len(graph.nodes) // 2
        assert_equal(plan(image[::-1].copy()), execute(graph, image[::-1].copy(), RUN))


def test_attention_is_fused_and_a_block_waits_once() -> None:
    from intseg.plan.plan import Plan

    graph, _ = make()
    more, _ = make(layers=5)
    assert len(Plan(more).segments) - len(Plan(graph).segments) == 3
    outputs = {buffer.name for s in Plan(graph).segments for step in s.steps for buffer in step.outputs}
    assert "encoder.blocks.0.attn.softmax" not in outputs
    assert "encoder.blocks.0.attn.merge" in outputs


def test_a_plan_runs_in_several_threads_at_once() -> None:
    graph, image = make()
    run = backends.compile(graph, "numba", 2)
    images = [np.roll(image, 5 * i, axis=0) for i in range(6)]
    expected = [execute(graph, x, RUN) for x in images]
    found: dict[int, Array] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = run(images[i])

    callers = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for i, scores in enumerate(expected):
        assert_equal(found[i], scores)


def test_one_thread_starts_none() -> None:
    graph, image = make()
    run = backends.compile(graph, "numba", 1)
    before = set(threading.enumerate())
    run(image)
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_runs_with_threads() -> None:
    graph, image = make()
    run = backends.compile(graph, "numba", 2)
    expected = run(image).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if run(image).tobytes() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_in_a_task_reaches_the_caller() -> None:
    from intseg.plan.threads import run_parallel

    def fail() -> None:
        raise ValueError("here")

    for threads in (1, 2):
        with pytest.raises(ValueError, match="here"):
            run_parallel([fail, fail, fail], threads)


def test_a_stage_begins_when_the_one_before_has_ended() -> None:
    from intseg.plan.threads import run_stages

    def note(stage: int, last: bool) -> None:
        seen.append(stage)
        if last:
            time.sleep(0.001)
        seen.append(stage)

    for threads in (1, 2, 3):
        seen: list[int] = []
        run_stages([[partial(note, stage, n == 1) for n in range(2)] for stage in range(20)], threads)
        assert seen == sorted(seen)
        assert len(seen) == 80


def test_no_stage_begins_after_an_error() -> None:
    from intseg.plan.threads import run_stages

    def fail() -> None:
        raise ValueError("here")

    for threads in (1, 2, 3):
        seen: list[int] = []
        for stage in ([fail, partial(time.sleep, 0.01)], [partial(time.sleep, 0.01), fail]):
            with pytest.raises(ValueError, match="here"):
                run_stages([stage, [partial(seen.append, 1)] * 3], threads)
        assert not seen


# Labels


@CLOSE
@given(st.data())
def test_bilinear_labels_equal_the_definition(data: st.DataObject) -> None:
    h, w, classes = (data.draw(st.integers(1, n)) for n in (4, 4, 6))
    patch = data.draw(st.sampled_from([1, 2, 3, 4, 7, 16]))
    height, width = data.draw(st.integers(1, h * patch)), data.draw(st.integers(1, w * patch))
    limit = data.draw(st.sampled_from([1, 3, 1000, 2**31 - 1]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scores = random.integers(-limit, limit + 1, (h, w, classes)).astype(np.int32)
    for upsample in ("nearest", "bilinear"):
        expected = backends.class_map(scores, upsample, patch, height, width, "numpy")
        for threads in (1, 2):
            assert_equal(backends.class_map(scores, upsample, patch, height, width, "numba", threads), expected)


def test_labels_of_many_classes_are_uint16() -> None:
    scores = np.zeros((2, 2, 300), np.int32)
    scores[..., 299] = 1
    for upsample in ("nearest", "bilinear"):
        labels = [backends.class_map(scores, upsample, 4, 7, 8, name) for name in ("numpy", "numba")]
        assert_equal(labels[1], labels[0])
        assert labels[0].dtype == np.uint16
        assert (labels[0] == 299).all()


# Names


def test_unknown_and_missing_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.resolve("auto") == "numba"
    with pytest.raises(UsageError, match="unknown"):
        backends.resolve("cuda")
    monkeypatch.setattr(backends, "numba_problem", lambda: "numba is not installed: pip install numba")
    with pytest.raises(UsageError, match="pip install"):
        backends.resolve("numba")
    backends._say_why_slow.cache_clear()
    with pytest.warns(UserWarning, match="slow"):
        assert backends.resolve("auto") == "numpy"
    assert backends.resolve("auto") == "numpy"  # a second warning would be an error


REFUSES = "raise ImportError('Numba needs NumPy 2.3 or less. Got NumPy 2.9.\\nsecond line')"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"PYTHONPATH": REFUSES},
            "numba cannot be imported (ImportError: Numba needs NumPy 2.3 or less. Got NumPy 2.9.)",
        ),
        ({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set"),
        ({"NUMBA_NUM_THREADS": "0"}, "numba cannot be imported (ValueError"),
    ],
)
def test_a_numba_that_cannot_be_used_is_said_and_done_without(
    settings: dict[str, str], reason: str, tmp_path: Path
) -> None:
    """Inference, verification and the doctor go on with the definition; asking for numba is one line."""
    stub = tmp_path / "stub" / "numba"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(REFUSES)
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": root} | settings
    if "PYTHONPATH" in settings:
        environment["PYTHONPATH"] = os.pathsep.join([str(stub.parent), root])
    code = (
        "import warnings; warnings.simplefilter('default')\n"
        "from intseg import backends; from intseg.reports import doctor\n"
        "print(backends.resolve('auto'), backends.resolve('auto'), doctor.installed_backends())\n"
        "print([f.value for f in doctor._processor(None) if f.name == 'path'])\n"
        "backends.resolve('numba')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, cwd=tmp_path)
    assert done.stdout.startswith("numpy numpy ('numpy',)")
    assert reason in done.stdout.splitlines()[1]
    assert done.stderr.count("running the slow NumPy backend") == 1
    assert "UsageError: backend 'numba' cannot be used: " + reason in done.stderr


# The benchmark


@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_measures_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(bench.SHAPES, "tiny", bench.Shape(**SMALL))
    report, drawing = tmp_path / "out.json", tmp_path / "cost.svg"
    arguments = ["--models", "tiny", "--threads", "1,2", "--rounds", "1", "--peers", "", "--sweep", "tiny"]
    assert bench.main([*arguments, "--sides", "32,64", "--json", str(report), "--plot", str(drawing)]) == 0
    results = json.loads(report.read_text())["results"]["tiny"]
    assert results["1"]["intseg_ms"] > 0
    assert results["1"]["peak_gmacs"] > 1
    assert {"attention", "linear 64 x 192 int8"} <= {row["op"] for row in results["1"]["ops"]}
    assert abs(sum(row["share"] for row in results["1"]["ops"]) - 1) < 1e-6
    assert 20 < results["peak_memory_mb"] < 1000
    assert "of peak" in capsys.readouterr().out
    assert "tiny" in drawing.read_text()
