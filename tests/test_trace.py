"""Trace files and registers: the steps end in the definition, the file is whole or absent, bad files are refused."""

from __future__ import annotations

import json
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

import intseg
from intseg import api, arith, store
from intseg.arith.recorder import Recorder
from intseg.arith.rounding import wrong_round
from intseg.cli import main as cli
from intseg.errors import InputError, UsageError
from intseg.ops import OPS, RUN, Call
from intseg.workbench import registers
from intseg.workbench import trace as traces
from intseg.workbench.trace import TensorFile, Writer

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> api.Model:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    store.save(tiny_graph(), path)
    return api.load(path)


def image(height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3), np.uint8)


# Registers


class Strict(Recorder):
    """A recorder that holds every claim and every width to be wrong until it is seen."""

    def keep(self, name: str, x: Any, bits: int) -> Any:
        x = super().keep(name, x, bits)
        assert np.array_equal(self.kept[name], x), name
        return x

    def claim(self, x: Any, low: int | None = None, high: int | None = None, why: str = "") -> Any:
        assert low is None or np.min(x) >= low, why
        assert high is None or np.max(x) <= high, why
        return x

    def sums_to(self, x: Any, most: int, why: str) -> Any:
        assert x.min() >= 0
        assert x.sum(axis=-1, dtype=np.int64).max() <= most, why
        return x

    def row_sum(self, x: Any, has: int | None = None, why: str = "") -> Any:
        assert has is None or (x == has).any(axis=-1).all(), why
        return super().row_sum(x)

    def squares(self, x: Any, about_mean_of: Any = None) -> Any:
        found = super().squares(x)
        if about_mean_of is not None:
            spread = np.ptp(about_mean_of, axis=-1, keepdims=True)
            assert np.all(found <= x.shape[-1] * (spread * spread + 1) // 4)
        return found

    def rising(self, function: Any, x: Any) -> Any:
        ramp = np.arange(-70000, 70001, dtype=np.int64)
        assert np.all(np.diff(function(ramp)) >= 0)
        return super().rising(function, x)

    def blend(self, a: Any, b: Any, weight: Any, total: int, tap: str) -> Any:
        assert 0 <= np.min(weight) <= np.max(weight) <= total
        return super().blend(a, b, weight, total, tap)

    def rsr_or_same(self, x: Any, n: Any, most: int, via: str, case: str) -> Any:
        beyond = [arith.rsr(np.asarray(x), most + i) for i in range(3)]
        assert all(np.array_equal(beyond[0], other) for other in beyond)
        return super().rsr_or_same(x, n, most, via, case)


@pytest.mark.parametrize("op", CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_claims_hold_no_register_is_cut_and_the_steps_end_in_the_definition(op: str, data: st.DataObject):
    """What the certificate takes for true is true of every call."""
    case = data.draw(CASES[op])
    found = OPS[op].define(Strict(), *case.inputs, **case.params, **case.attrs)
    expected = RUN[op](*case.inputs, **case.params, **case.attrs)
    for result in (found, registers.steps(case)["result"]):
        assert_equal(np.ascontiguousarray(result), expected, op)


def test_registers_by_hand():
    """The examples of SPEC.md, step by step."""
    x = np.array([[0, 0, 0, 4]], np.int16)
    params = {"mult": np.array([9, 9, 9, -9], np.int32), "bias": np.zeros(4, np.int64)}
    found = registers.steps(Call("layernorm", [x], params, {"shift": 30, "out": "int8"}))
    assert found["mean"].tolist() == [[1]]
    assert found["centered"].tolist() == [[-1, -1, -1, 3]]
    assert found["variance"].tolist() == [[12]]
    assert found["isqrt"].tolist() == [[3]]
    assert found["reciprocal"].tolist() == [[(2**31 - 1) // 3]]
    x = np.array([[0, -16, -127]], np.int8)
    attrs = {"i0": 16, "k_inter": 11, "int_div_kind": "paper", "out": "int8"}
    found = registers.steps(Call("shiftmax", [x], {}, attrs))
    assert found["q"].tolist() == [[0, 1, 11]]
    assert found["exponent"].tolist() == [[0, -23, -176]]  # the last one clamped at -11 * 16
    assert found["r"].tolist() == [[0, 7, 0]]
    assert found["exponential"][0, 0] == 16 * 2048
    assert found["row_sum"][0, 0] == found["exponential"].sum()
    assert found["result"].tolist() == [[93, 34, 0]]


@pytest.mark.parametrize("mode", ["half_up", "half_even", "half_away", "half_down", "toward_zero", "floor", "ceil"])
def test_roundings_against_fractions(mode: str):
    from fractions import Fraction
    from math import ceil, floor

    def exact(x: int, c: int) -> int:
        value = Fraction(x, 2**c)
        low, rest = floor(value), value - floor(value)
        half = Fraction(1, 2)
        return {
            "half_up": low + (rest >= half),
            "half_even": round(value),
            "half_away": low + (rest > half or (rest == half and x >= 0)),
            "half_down": low + (rest > half),
            "toward_zero": low if x >= 0 else ceil(value),
            "floor": low,
            "ceil": ceil(value),
        }[mode]

    x = np.arange(-70, 70)
    for c in range(7):
        assert wrong_round(x, c, mode).tolist() == [exact(int(v), c) for v in x]
    assert wrong_round(x, -2, mode).tolist() == (4 * x).tolist()


@pytest.mark.parametrize("how", ["write:1,0", "read:1,0", "flip:1", "roll:0:1", "shift:-1", "byteswap", "words:4"])
def test_rearrangements_keep_shape_and_values(how: str):
    x = np.arange(12, dtype=np.int16).reshape(3, 4)
    found = registers.transform(x, how)
    assert found.shape == x.shape
    values = found.byteswap() if how == "byteswap" else found
    assert sorted(values.ravel().tolist()) == list(range(12))
    assert not np.array_equal(found, x)


# Files


def test_a_trace_holds_what_python_sees(model: api.Model, tmp_path: Path):
    pixels = image()
    found = traces.write(tmp_path / "t.safetensors", pixels, model)
    tensors = safetensors.numpy.load_file(tmp_path / "t.safetensors")
    assert found.tensors == len(tensors)
    expected = list(intseg.trace(pixels, model))
    assert found.windows == len(expected) == len(tensors["corners"])
    for i, (corner, outputs) in enumerate(expected):
        assert tuple(tensors["corners"][i]) == corner
        for name, value in outputs.items():
            assert_equal(tensors[f"window{i}.{name}"], np.ascontiguousarray(value), name)
    result = intseg.run(pixels, model, "numpy")
    assert_equal(tensors["merged"], result.scores)
    assert_equal(tensors["labels"], result.labels)
    assert_equal(tensors["image"], pixels)


def test_metadata(model: api.Model, tmp_path: Path):
    traces.write(tmp_path / "t.safetensors", image(), model, "norm*,qkv", with_registers=True)
    with safetensors.safe_open(tmp_path / "t.safetensors", "np") as file:
        document = json.loads(file.metadata()["intseg"])
    assert document["nodes"] == ["norm1", "qkv", "norm2"]
    assert document["registers"]["qkv"] == ["dot", "acc", "product", "rounded"]
    assert document["model"] == {"name": "tiny", "sha256": model.sha256}
    assert document["kind"] == "trace"
    assert document["format"] == 1


def test_registers_are_in_the_file(model: api.Model, tmp_path: Path):
    traces.write(tmp_path / "t.safetensors", image(24, 32), model, with_registers=True)
    tensors = safetensors.numpy.load_file(tmp_path / "t.safetensors")
    graph = model.graph
    x, acc = tensors["window0.norm1"].astype(np.int64), tensors["window0.qkv--acc"]
    assert np.array_equal(x @ graph.tensors["qkv.weight"].T.astype(np.int64) + graph.tensors["qkv.bias"], acc)
    assert np.array_equal(acc - tensors["window0.qkv--dot"], np.broadcast_to(graph.tensors["qkv.bias"], acc.shape))
    assert tensors["window0.softmax--row_sum"].shape == (2, 12, 1)


def test_equal_traces_are_equal_bytes_on_every_backend(model: api.Model, tmp_path: Path):
    for name, backend in (("a", "numpy"), ("b", "numpy"), ("c", "auto")):
        traces.write(tmp_path / name, image(24, 32), model, with_registers=True, backend=backend)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_scales_follow_the_values():
    model = api.load(GOLDEN / "models" / "intseg.safetensors")
    found = traces.scales(model.graph)
    assert set(found) == {node.name for node in model.graph.nodes}
    for node in model.graph.nodes:
        shape = found[node.name].shape
        assert shape[0] == 3
        assert all(n in (1, m) for n, m in zip(shape[1:], node.shape, strict=True)), node.name
    product = found["encoder.blocks.0.attn.qkv"]
    value = found["encoder.blocks.0.attn.v"]
    assert np.array_equal(np.broadcast_to(value, (3, 2, 1, 16)).reshape(3, 32), product[:, 0, 64:])


def test_only_some_nodes_and_none(model: api.Model, tmp_path: Path):
    traces.write(tmp_path / "t", image(), model, "q*")
    names = {name.split(".", 1)[1] for name in TensorFile(tmp_path / "t").names() if name.startswith("window")}
    assert names == {"image", "quantize_input", "qkv", "q"}
    with pytest.raises(UsageError, match="no node matches"):
        traces.write(tmp_path / "u", image(), model, "nothing")
    assert not (tmp_path / "u").exists()


def test_a_failure_leaves_nothing(model: api.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise InputError("stop")

    monkeypatch.setattr(traces, "_put_registers", fail)
    with pytest.raises(InputError, match="stop"):
        traces.write(tmp_path / "t", image(), model, with_registers=True)
    with pytest.raises(InputError, match="cannot write"):
        traces.write(tmp_path / "no" / "t", image(), model)
    assert list(tmp_path.iterdir()) == []


def test_steps_that_disagree_with_the_backend_are_noticed(
    model: api.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    op = model.graph.node("softmax").op
    definition = RUN[op]
    monkeypatch.setitem(RUN, op, lambda x, **attrs: definition(x, **attrs) + np.int16(1))
    with pytest.raises(intseg.errors.MismatchError, match="softmax"):
        traces.write(tmp_path / "t", image(), model, with_registers=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3, 4, 5)])
def test_the_writer_writes_what_the_library_reads(tmp_path: Path, dtype: str, shape: tuple[int, ...]):
    array = np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)
    with Writer(tmp_path / "t", {"a": "ü"}, ["first", "second"]) as writer:
        writer.put("first", np.ones(3, np.int8))
        writer.put("second", array)
    found = safetensors.numpy.load_file(tmp_path / "t")
    assert found["second"].dtype == dtype
    assert np.array_equal(found["second"], array)
    mine = TensorFile(tmp_path / "t")
    assert mine.metadata == {"a": "ü"}
    assert mine.kind("second") == (dtype, shape)
    assert np.array_equal(mine.read("second"), array)


GOOD = {"x": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}


@pytest.mark.parametrize(
    "header",
    [
        {"x": {**GOOD["x"], "shape": [3]}},
        {"x": {**GOOD["x"], "dtype": "I4"}},
        {"x": {**GOOD["x"], "data_offsets": [1, 3]}},
        {"x": {"dtype": "I8"}},
        {"x": {**GOOD["x"], "shape": [-2]}},
        {"x": {**GOOD["x"], "shape": 2}},
        {"../x": GOOD["x"]},
        {"x": GOOD["x"], "__metadata__": {"intseg": "{"}},
        {"x": GOOD["x"], "__metadata__": {"intseg": "[1]"}},
        {"x": GOOD["x"], "__metadata__": 3},
        {"x": 5},
        {},
        [],
        5,
    ],
)
def test_bad_headers_are_refused(tmp_path: Path, header: object):
    text = json.dumps(header).encode()
    (tmp_path / "t").write_bytes(len(text).to_bytes(8, "little") + text + b"\1\2")
    with pytest.raises(InputError):
        TensorFile(tmp_path / "t")


@pytest.mark.parametrize("size", [0, 4, 8, 40, 100, -1, -1000])
def test_truncated_files_are_refused(model: api.Model, tmp_path: Path, size: int):
    traces.write(tmp_path / "t", image(24, 32), model)
    data = (tmp_path / "t").read_bytes()
    (tmp_path / "u").write_bytes(data[:size])
    with pytest.raises(InputError):
        TensorFile(tmp_path / "u")


# Command line


def test_command(model: api.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["trace", str(GOLDEN / "images" / "small.png"), "-w", str(model.path), "-o", str(tmp_path / "t.safetensors")]
    assert cli.main([*argv, "--registers", "--nodes", "qkv"]) == 0
    assert "1 window, " in capsys.readouterr().out
    assert "window0.qkv--acc" in TensorFile(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["trace", "no.png", "-o", "OUT"], 4),
        (["trace", "IMAGE", "-o", "no/where/t.safetensors"], 4),
        (["trace", "IMAGE"], 2),
        (["trace", "IMAGE", "-o", "OUT", "-w", "no.safetensors"], 4),
        (["trace", "IMAGE", "-o", "OUT", "--nodes", "zzz"], 2),
        (["dump", "-o", "OUT"], 2),
        (["dump", "no.safetensors", "-o", "OUT"], 4),
        (["dump", "IMAGE", "-o", "OUT"], 4),
        (["dump", "--read", "no", "-o", "OUT"], 4),
        (["dump", "camvid-tiny", "-o", "OUT", "--format", "vhdl"], 2),
        (["dump", "camvid-tiny", "-o", "OUT", "--format", "hex", "--tile", "4"], 2),
        (["dump", "camvid-tiny", "-o", "OUT", "--format", "hex", "--width", "3"], 2),
    ],
)
def test_bad_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int):
    names = {"OUT": str(tmp_path / "out.safetensors"), "IMAGE": str(GOLDEN / "images" / "small.png")}
    assert cli.main([names.get(word, word) for word in argv]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_dumped_and_read(model: api.Model, tmp_path: Path):
    assert cli.main(["dump", str(model.path), "--format", "mem", "-o", str(tmp_path / "d"), "--per-word", "4"]) == 0
    assert cli.main(["dump", "--read", str(tmp_path / "d"), "-o", str(tmp_path / "back.safetensors")]) == 0
    back = store.load(tmp_path / "back.safetensors")
    assert back.nodes == model.graph.nodes
    for name, tensor in model.graph.tensors.items():
        assert_equal(back.tensors[name], tensor)
