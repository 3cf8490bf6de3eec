"""The overflow certificate: bounds hold on every run, witnesses come near, the last model inside is accepted and the
first outside is refused."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import COEFFICIENTS, SOFTMAX, node, tiny, with_attr, with_element, with_tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import CASES
from tiny_model import tiny_graph

from intseg import api, models, prove, store
from intseg.arith import sums
from intseg.arith.bounds import Bounds, Register
from intseg.arith.interval import Interval
from intseg.cli import main as cli
from intseg.conformance import witness
from intseg.errors import IntsegError, ModelError
from intseg.exam import EXAMS, Extremes
from intseg.executor import execute
from intseg.graph import IMAGE, Graph, Node, validate
from intseg.ops import OPS, RUN, Call, Value
from intseg.prove import NodeProof, prove_lanes
from intseg.reports import certificate as prove_report
from intseg.windows import merge_scores, pixel_scores, tile
from intseg.workbench.registers import steps

ROOT = Path(__file__).parent.parent
MODELS = [*sorted((ROOT / "golden" / "models").glob("*.safetensors")), *(models.path(name) for name in models.names())]
ARITHMETIC = sorted(op for op in OPS if EXAMS[op].worst is not None)
COLUMNS = 16


def prove_case(case: Call, intervals: Sequence[Interval], witnesses: bool = False) -> NodeProof:
    """The proof of one call of an op, for inputs in these intervals."""
    inputs = [dataclasses.replace(i, shape=x.shape, moved=True) for i, x in zip(intervals, case.inputs, strict=True)]
    machine = Bounds("node", case.op)
    output = OPS[case.op].define(machine, *inputs, **case.params, **case.attrs)
    machine.result(output, RUN[case.op](*case.inputs, **case.params, **case.attrs).dtype.name)
    prove_lanes(machine, inputs, case.params, case.attrs)
    registers = tuple(machine.registers)
    if witnesses:
        at = Extremes(inputs, case.params, case.attrs, machine.worst, [None] * len(inputs))
        call = Call(case.op, (), case.params, case.attrs)
        registers = witness.seen_in("node", call, registers, list(EXAMS[case.op].worst(at)))
    return NodeProof("node", case.op, registers, output)


def whole(case: Call) -> list[Interval]:
    """The intervals of the inputs' dtypes."""
    return [Interval(*map(int, (np.iinfo(x.dtype).min, np.iinfo(x.dtype).max))) for x in case.inputs]


def narrow(case: Call) -> list[Interval]:
    """The intervals of the inputs' values."""
    return [Interval(int(x.min()), int(x.max())) for x in case.inputs]


def assert_inside(proof: NodeProof, seen: Mapping[str, np.ndarray]) -> None:
    """Every register that was seen is bounded, and inside its bound."""
    bounds = {register.name: register for register in proof.registers if not register.extra}
    assert bounds.keys() == seen.keys(), (proof.name, bounds.keys() ^ seen.keys())
    for name, values in seen.items():
        low, high = int(values.min()), int(values.max())
        assert bounds[name].low <= low, f"{proof.name} ({proof.op}): {name} is {low}, proved from {bounds[name].low} on"
        assert high <= bounds[name].high, f"{proof.name} ({proof.op}): {name} is {high}, proved to {bounds[name].high}"


def small(case: Call) -> bool:
    """Whether validation accepts the call (the strategies know no accumulator limit of matmul)."""
    try:
        OPS[case.op].check([Value(x.dtype.name, x.shape) for x in case.inputs], case.params, case.attrs)
    except ModelError:
        return False
    return True


def partial_sums(terms: np.ndarray, start: int, order: np.ndarray) -> Iterator[int]:
    """Every sum on the way of adding terms in an order."""
    yield start
    yield from (start + np.cumsum(terms[order])).tolist()


# ------------------------------------------------------------------------------------------------- bounds hold


@pytest.mark.parametrize("op", ARITHMETIC)
def test_no_register_of_a_random_call_exceeds_its_bound(op: str) -> None:
    """Calls of the op tests: edges, extremes, any; with the interval of the dtype and with that of the values."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(CASES[op])
    def run(case: Call) -> None:
        if not small(case):
            return
        seen = steps(case)
        for intervals in (whole(case), narrow(case)):
            assert_inside(prove_case(case, intervals), seen)

    run()


@pytest.mark.parametrize("op", ARITHMETIC)
def test_whatever_validation_accepts_is_proved_and_its_witnesses_are_inside(op: str) -> None:
    """SPEC 10 says that section 5.2 is enough; witnesses raise IntsegError where a bound does not hold."""

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(CASES[op])
    def run(case: Call) -> None:
        if small(case):
            for intervals in (whole(case), narrow(case)):
                prove_case(case, intervals, witnesses=True)

    run()


def adversary(seed: int) -> Graph:
    """A valid graph that is as near to its limits as validation lets it be."""
    source = np.random.default_rng(seed)
    graph = tiny()
    for name in ("embed", "qkv", "head"):
        weight = source.choice(np.array([-128, 127], np.int8), graph.tensors[f"{name}.weight"].shape)
        free = 2**31 - 1 - 128 * np.abs(weight.astype(np.int64)).sum(axis=1)
        graph = with_tensor(graph, f"{name}.weight", weight)
        bias = (free * source.choice([-1, 1], len(free))).astype(np.int32)
        graph = with_tensor(graph, f"{name}.bias", bias if name != "qkv" else source.permutation(bias // 3))
    graph = with_tensor(graph, "norm.mult", np.array([2**31 - 1, -(2**31) + 1, 0, 2**31 - 1], np.int32))
    return with_tensor(graph, "norm.bias", np.array([2**61 - 1, -(2**61) + 1, 5, 0], np.int64))


@pytest.mark.parametrize("make", [tiny, tiny_graph, *(lambda s=s: adversary(s) for s in range(4))])
def test_no_register_of_a_whole_graph_exceeds_its_bound(make: Any) -> None:
    graph = make()
    validate(graph)
    proofs = {proof.name: proof for proof in witness.witnessed(graph)}
    source = np.random.default_rng(3)
    height, width = graph.info.window
    pictures = [np.full((height, width, 3), value, np.uint8) for value in (0, 255)]
    pictures += [source.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(3)]
    pictures += [source.choice(np.array([0, 255], np.uint8), (height, width, 3)) for _ in range(5)]
    for picture in pictures:
        values = {IMAGE: picture}
        execute(graph, picture, RUN, lambda n, value, values=values: values.update({n.name: value}))
        for item in graph.nodes:
            inputs, params = graph.arguments(item, values)
            seen = steps(Call(item.op, inputs, params, item.attrs))
            known = proofs[item.name]
            assert known.output.low <= int(seen["result"].min())
            assert int(seen["result"].max()) <= known.output.high
            if item.op in ARITHMETIC:
                assert_inside(known, seen)
            if known.output.row_sum is not None:
                assert int(seen["result"].astype(np.int64).sum(axis=-1).max()) <= known.output.row_sum


def test_partial_sums_in_any_order_stay_inside_the_bound_of_the_kernels() -> None:
    """linear: from the bias, or from bias - 128 sum w with x + 128 in place of x; matmul: the same without a bias."""
    source = np.random.default_rng(5)
    for trial in range(200):
        depth = int(source.integers(1, 30))
        low, high = sorted(source.integers(-128, 128, 2).tolist())
        weight = source.choice(np.array([-128, -1, 0, 1, 127]), (1, depth)).astype(np.int8)
        bias = np.array([int(source.integers(-(2**20), 2**20))], np.int32)
        params = {"weight": weight, "bias": bias, "mult": np.ones(1, np.int32), "shift": np.ones(1, np.int8)}
        x = source.integers(low, high + 1, (1, depth)).astype(np.int8)
        proofs = [
            prove_case(Call("linear", [x], params, {"out": "int8"}), [Interval(low, high)]),
            prove_case(
                Call(
                    "matmul", [x, weight], {n: params[n] for n in ("mult", "shift")}, {"transpose_b": 1, "out": "int8"}
                ),
                [Interval(low, high), Interval(int(weight.min()), int(weight.max()))],
            ),
        ]
        for proof, start in zip(proofs, (int(bias[0]), 0), strict=True):
            bound = next(register for register in proof.registers if register.name == "partial")
            for added in (0, 128):
                terms = (x[0].astype(np.int64) + added) * weight[0]
                first = start - added * int(weight.sum(dtype=np.int64))
                for value in partial_sums(terms, first, source.permutation(depth)):
                    assert bound.low <= value <= bound.high, (trial, added)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_byte_planes_of_probabilities_stay_inside_the_bound(count: int, source: random.Random) -> None:
    """The fused attention sums the low bytes, the high bytes times 2^8, and both, of probabilities times values."""
    logits = np.array([[source.choice([-300, 0, 1, 40, 800]) for _ in range(count)]], np.int16)
    p = RUN[SOFTMAX](logits, **COEFFICIENTS)
    low, high = sorted(source.choices(range(-128, 128), k=2))
    v = np.array([[source.choice([low, high])] for _ in range(count)], np.int8)
    params = {"mult": np.array([1], np.int32), "shift": np.array([1], np.int8)}
    case = Call("matmul", [p, v], params, {"transpose_b": 0, "out": "int8"})
    row_sum = OPS[SOFTMAX].check([Value("int16", p.shape)], {}, {}).row_sum
    proof = prove_case(case, [Interval(0, 32767, row_sum), Interval(low, high)])
    bound = next(register for register in proof.registers if register.name == "partial")
    order = np.array(source.sample(range(count), count))
    for plane in (p & 255, p >> 8 << 8, p):
        for value in partial_sums(plane[0].astype(np.int64) * v[:, 0], 0, order):
            assert bound.low <= value <= bound.high


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
def test_merged_windows_and_pixel_scores_stay_inside_their_bounds(cells: int) -> None:
    """Windows of 1 to 4 cells at every stride, images of every size: the bound is reached exactly."""
    for stride in range((cells + 1) // 2, cells + 1):
        for score in (Interval(-32768, 32767), Interval(1, 1), Interval(3, 9), Interval(-9, -3), Interval(0, 5)):
            check_windows(4 * cells, 4 * stride, score)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 5), (8, 7), (8, 8), (4, 4), (4, 3)])
def test_windows_summed_in_pixels_stay_inside_their_bounds(window: int, stride: int, upsample: str) -> None:
    sides = {"window": (window, window), "stride": (stride, stride), "upsample": upsample, "working_size": (20, 80)}
    info = dataclasses.replace(tiny().info, merge="pixel", **sides)
    for score in (Interval(-32768, 32767), Interval(2, 5), Interval(-9, -3)):
        proof = witness.windows_seen(info, score)
        (bound,) = (register for register in proof.registers if register.name == "merged")
        seen: list[int] = []
        for height, width in ((20, 3 * window + 20), (20, 2 * window + 23), (window + 21, 20)):
            tiling = tile(info, height, width)
            assert (tiling.height, tiling.width) == (height, width)
            grid = (window // 4, window // 4, 3)
            choices = [np.random.default_rng(1).choice([score.low, score.high], grid) for _ in tiling.corners()]
            for scores in (choices, [0 * x + score.low for x in choices], [0 * x + score.high for x in choices]):
                stack = merge_scores([x.astype(np.int16) for x in scores], tiling, info)
                pixels = pixel_scores(stack, info, height, width, 0, height)
                seen += [int(pixels.min()), int(pixels.max())]
        assert bound.low <= min(seen) <= max(seen) <= bound.high
        assert bound.witness in (bound.low, bound.high)


def check_windows(window: int, stride: int, score: Interval) -> None:
    info = dataclasses.replace(tiny().info, stride=(window, stride), window=(window, window), upsample="bilinear")
    windows = witness.windows_seen(info, score)
    labels = witness.labels_seen(info, windows.output)
    bounds = {register.name: register for register in windows.registers}
    lowest, highest = score.high, score.low
    source = np.random.default_rng(1)
    for height in range(window, 2 * window + 1, 4):
        for width in range(window, 4 * window + 1, 4):
            tiling = tile(info, height, width)
            for choice in ([score.low], [score.high], [score.low, score.high]):
                scores = [
                    source.choice(np.array(choice, np.int16), (window // 4, window // 4, 3)) for _ in tiling.corners()
                ]
                merged = merge_scores(scores, tiling, info)
                assert bounds["merged"].low <= int(merged.min()) <= int(merged.max()) <= bounds["merged"].high
                lowest, highest = min(lowest, int(merged.min())), max(highest, int(merged.max()))
                pixels = RUN["upsample_bilinear"](merged, factor=4, row_start=0, row_stop=4 * len(merged))
                assert labels.output.low <= int(pixels.min()) <= int(pixels.max()) <= labels.output.high
    assert (lowest, highest) == (bounds["merged"].low, bounds["merged"].high)
    assert bounds["merged"].witness in (lowest, highest)


# ---------------------------------------------------------------------------------------------- witnesses come near


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models_prove_and_witnesses_come_near(path: Path) -> None:
    graph = store.load(path)
    proofs = witness.witnessed(graph)
    fast = prove.prove(graph)
    assert [proof.name for proof in proofs][: len(graph.nodes)] == [item.name for item in graph.nodes]
    for quick, proof in zip(fast, proofs, strict=True):
        assert quick.output == proof.output
        assert [dataclasses.replace(r, witness=None) for r in proof.registers] == [
            dataclasses.replace(r, witness=None) for r in quick.registers
        ]
        for register in proof.registers:
            assert 0 <= register.headroom == register.width - register.bits
            if not register.extra:
                assert register.witness is not None
        named = {register.name: register for register in proof.registers}
        if proof.op == "linear":
            for name in ("dot", "acc", "product", "rounded"):
                assert named[name].witness == named[name].bound, (proof.name, name)
        elif proof.op in ("matmul", "add"):
            for name in ("acc", "product", "sum"):
                if name in named:
                    assert 2 * abs(named[name].witness or 0) >= abs(named[name].bound), (proof.name, name)
        elif EXAMS[proof.op].kind in ("LayerNorm", "L2 norm"):
            for name in ("variance", "isqrt", "reciprocal", "normalized"):
                assert 2 * abs(named[name].witness or 0) >= abs(named[name].bound), (proof.name, name)
        elif proof.op in (SOFTMAX, "shiftmax"):
            for name in ("exponential", "row_sum", "result"):
                assert 2 * (named[name].witness or 0) >= named[name].bound, (proof.name, name)


def test_every_op_with_registers_has_witnesses() -> None:
    for path in MODELS:
        for proof in prove.prove(store.load(path)):
            assert bool(proof.kept) == (proof.op in ARITHMETIC) or proof.op == "merge_scores"


def test_a_bound_that_does_not_hold_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "weight_sums", lambda weight: (np.zeros(len(weight), int), np.zeros(len(weight), int)))
    with pytest.raises(IntsegError, match=r"'embed': register dot has values in .* proved \[0, 0\]") as caught:
        witness.witnessed(tiny())
    assert caught.value.exit_code == 5


# ------------------------------------------------------------------------------------- refused and just accepted


def linear_graph(bias: int, table: tuple[int, int]) -> Graph:
    """tiny() with inputs in [table] and the first channel of the embedding of weights 3, -5, 0, 0, ..."""
    graph = with_tensor(tiny(), "table", np.array([[*table] * 128] * 3, np.int8))
    weight = graph.tensors["embed.weight"].copy()
    weight[0] = [3, -5] + [0] * 46
    graph = with_tensor(graph, "embed.weight", weight)
    return with_element(graph, "embed.bias", bias)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_bias_of_the_interval_is_accepted_and_the_next_refused(sign: int) -> None:
    """The partial sum may hold a term of x = -128 even where inputs lie in [-7, 100]."""
    largest = {1: 2**31 - 1 - (3 * 100 + 5 * 128), -1: -(2**31) + 3 * 128 + 5 * 100}[sign]
    prove.prove(linear_graph(largest, (-7, 100)))
    with pytest.raises(ModelError) as caught:
        prove.prove(linear_graph(largest + sign, (-7, 100)))
    text = str(caught.value)
    outside = 2**31 if sign == 1 else -(2**31) - 1
    for word in ("node 'embed' (linear)", "register partial", str(outside), "int32", "[-2147483648, 2147483647]"):
        assert word in text, text


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_file_at_the_limit_loads_and_one_beyond_does_not(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tiny()
    free = 2**31 - 1 - 128 * int(np.abs(graph.tensors["qkv.weight"][0].astype(int)).sum())
    data = store.dumps(with_element(graph, "qkv.bias", sign * free))
    assert store.loads(data).tensors["qkv.bias"][0] == sign * free
    with pytest.raises(ModelError, match="accumulator"):
        store.dumps(with_element(graph, "qkv.bias", sign * (free + 1)))


def test_loading_proves_even_where_validation_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = with_element(tiny(), "qkv.bias", 2**31 - 1)
    monkeypatch.setattr(store, "validate", lambda graph: None)
    with pytest.raises(ModelError, match=r"node 'qkv' \(linear\): register acc may reach \d+, expected int32"):
        store.dumps(bad)


def long_matmul(depth: int) -> Graph:
    """INT16 values times INT8 bytes over `depth`, the dead end of a graph."""
    graph = with_tensor(tiny(), "long.a", np.full((1, depth), -(2**15), np.int16))
    graph = with_tensor(graph, "long.b", np.full((1, depth), -128, np.int8))
    graph = with_tensor(with_tensor(graph, "long.mult", np.ones(1, np.int32)), "long.shift", np.ones(1, np.int8))
    params = {"mult": "long.mult", "shift": "long.shift"}
    last = node("long", "matmul", "long.a long.b", "int16 1 1", params, transpose_b=1, out="int16")
    return dataclasses.replace(graph, nodes=(*graph.nodes, last))


def test_matmul_of_511_is_accepted_and_of_512_refused() -> None:
    validate(long_matmul(511))
    prove.prove(long_matmul(511))
    with pytest.raises(ModelError, match=r"node 'long' \(matmul\): register acc may reach 2147483648"):
        prove.prove(long_matmul(512))


def test_layernorm_bias_beyond_int64_is_refused_without_wrapping() -> None:
    graph = with_tensor(tiny(), "norm.mult", np.array([2**31 - 1] * 4, np.int32))
    largest = 2**63 - 1 - 2**44 - (2**30 - 1) * (2**31 - 1)  # shift 45: the rounding adds 2^44
    prove.prove(with_element(graph, "norm.bias", largest))
    with pytest.raises(ModelError, match=rf"node 'norm' \(layernorm\): register rounding may reach {2**63}, .*int64"):
        prove.prove(with_element(graph, "norm.bias", largest + 1))
    with pytest.raises(ModelError, match=rf"node 'norm' .* register biased may reach -{2**63 + 2**61 - 2**30}"):
        prove.prove(with_element(graph, "norm.bias", -(2**63)))


def test_a_branch_of_add_beyond_its_lane_is_refused() -> None:
    """Kernels add branches in INT32 lanes: -2^15 mult 2^-shift must leave room for the other."""
    base = with_attr(tiny(), "placed", mult_a=2**31 - 1, shift_a=15, mult_b=0)
    with pytest.raises(ModelError, match=r"node 'placed' \(add\): register lane_sum"):
        prove.prove(with_attr(base, "placed", mult_a=2**31 - 1, shift_a=14))
    prove.prove(base)


def test_a_wide_power_is_refused() -> None:
    """shiftmax: i0 2^k_inter beyond 2^15 leaves 16 bits."""
    attn = node("attn", "shiftmax", "qk", "int16 2 5 5", i0=2, k_inter=15, int_div_kind="paper", out="int16")
    graph = tiny()

    def replaced(k_inter: int) -> Graph:
        other = dataclasses.replace(attn, attrs={**attn.attrs, "k_inter": k_inter})
        return dataclasses.replace(graph, nodes=tuple(other if n.name == "attn" else n for n in graph.nodes))

    prove.prove(replaced(14))
    with pytest.raises(ModelError, match=r"node 'attn' \(shiftmax\): register power may reach 65536, expected uint16"):
        prove.prove(replaced(15))


# ------------------------------------------------------------------------------------------------ bits, command line


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**40))
def test_bits_are_those_that_hold_the_interval(low: int, size: int) -> None:
    register = Register("r", low, low + size, "int64")
    bits = register.bits
    assert -(2 ** (bits - 1)) <= low <= low + size <= 2 ** (bits - 1) - 1
    assert bits == 1 or not (-(2 ** (bits - 2)) <= low and low + size <= 2 ** (bits - 2) - 1)
    assert Register("r", -128, -128, "int8").bits == 8
    unsigned = Register("r", 0, size, "uint64")
    assert size < 2**unsigned.bits
    assert size == 0 or size >= 2 ** (unsigned.bits - 1)
    assert abs(register.bound) == max(abs(low), abs(low + size))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["prove", *arguments])
    return code, *capsys.readouterr()


def test_the_table_fits_a_terminal_and_has_every_register(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(MODELS[0]))
    assert code == 0
    graph = store.load(MODELS[0])
    proofs = prove.prove(graph)
    rows = out.splitlines()
    assert max(map(len, rows)) <= 80
    assert len(rows) == 4 + sum(1 + len(p.registers) for p in proofs if p.registers)
    assert f"{sum(len(p.registers) for p in proofs)} registers of {len(graph.nodes)} nodes and " in rows[-2]
    assert rows[-1].startswith("proved in ")


@pytest.mark.parametrize("by", ["node", "op"])
def test_one_row_a_node_or_an_op(by: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(MODELS[0]), "--by", by, "--fast")
    assert code == 0
    graph = store.load(MODELS[0])
    proofs = [p for p in prove.prove(graph) if prove_report.tightest(p) is not None]
    names = [line.split()[0] for line in out.splitlines()[1:] if line.endswith(")") and not line.startswith(" ")]
    if by == "node":
        assert names == [proof.name for proof in proofs]
    else:
        ops = {proof.op for proof in proofs}
        assert {proof.op for proof in proofs if proof.name in names} == ops
        assert len(names) == len(ops)


def test_the_page_on_trust_counts_as_many() -> None:
    page = (ROOT / "docs" / "TRUST.md").read_text(encoding="utf-8")
    for name in models.names():
        found = prove_report.certify(api.load(name), witnesses=False)
        assert f"| `{name}` | {found.registers} | {len(found.model.graph.nodes)} |" in page


def test_json_has_both_ends_of_every_register(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(MODELS[0]), "--json")
    found = json.loads(out)
    proofs = witness.witnessed(store.load(MODELS[0]))
    assert code == 0
    assert found["registers"] == sum(len(proof.registers) for proof in proofs)
    assert found["model"]["sha256"]
    for entry, proof in zip(found["nodes"], proofs, strict=True):
        assert (entry["name"], entry["op"]) == (proof.name, proof.op)
        for item, register in zip(entry["registers"], proof.registers, strict=True):
            assert item == {**register.__dict__, "bits": register.bits, "headroom": register.headroom}


def test_unknown_nodes_and_refused_models_have_their_exit_codes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "intseg: no node is called 'nix'; intseg inspect lists them\n"
    assert run(capsys, str(MODELS[0]), "--nodes", "nix")[::2] == (2, expected)
    path = tmp_path / "bad.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(store, "validate", lambda graph: None)
        patch.setattr(store, "prove", lambda graph: None)
        path.write_bytes(store.dumps(with_element(tiny(), "qkv.bias", 2**31 - 1)))
    code, _, err = run(capsys, str(path))
    assert code == 3
    assert "node 'qkv'" in err


def test_proved_nodes_know_their_inputs_only_from_nodes_before_them() -> None:
    """A node's bound follows from what feeds it: a smaller table gives a smaller accumulator."""

    def acc(graph: Graph, name: str) -> int:
        proof: NodeProof = next(p for p in prove.prove(graph) if p.name == name)
        return next(abs(r.bound) for r in proof.registers if r.name == "acc")

    wide, slim = linear_graph(0, (-128, 127)), linear_graph(0, (-1, 1))
    item: Node = wide.node("embed")
    assert item.op == "linear"
    assert acc(slim, "embed") * 20 < acc(wide, "embed")
