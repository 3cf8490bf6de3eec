"""intseg export: every op and every golden model as standard ONNX operators, equal in other people's runtimes."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import assert_equal
from safetensors.numpy import save_file

from intseg import packing, store, windows
from intseg.conformance import vectors
from intseg.exam import real
from intseg.graph import Graph, Node, types
from intseg.ops import MOVERS, OPS, RUN, Array, Call
from intseg.workbench import trace

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

from intseg.cli import main as cli  # noqa: E402
from intseg.export import onnx_cases, onnx_check, onnx_model  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
MODELS = sorted((GOLDEN / "models").glob("*.safetensors"))
ALLOWED = {"": onnx_model.OPSET, onnx_model.DOMAIN: 1}


def op_cases(op: str) -> list[Call]:
    """Calls of an op with their corners: those of the conformance packs."""
    return [call for call in vectors.op_cases()[op] if all(x.size < 70_000 for x in call.inputs)]


def operand(x: Array) -> tuple[str, tuple[int, ...]]:
    return x.dtype.name, x.shape


def run_op(runtime: str, call: Call) -> Array:
    inputs, params = [operand(x) for x in call.inputs], {role: operand(x) for role, x in call.params.items()}
    made = onnx_model.op_model(call.op, inputs, params, call.attrs)
    onnx.checker.check_model(made, full_check=True)
    feed = dict(zip([x.name for x in made.graph.input], [*call.inputs, *call.params.values()], strict=True))
    if runtime == "onnx.reference":
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(made).run(None, feed)[0]
    return run_model(made, feed)


def run_model(made: Any, feed: Mapping[str, Array]) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


@pytest.mark.parametrize("op", OPS)
def test_an_op_gives_the_same_bits(op: str) -> None:
    """Corner inputs of the op, by onnxruntime and by the reference evaluator."""
    calls = op_cases(op)
    assert calls
    for i, call in enumerate(calls[:: max(len(calls) // 6, 1)]):
        expected = RUN[op](*call.inputs, **call.params, **call.attrs)
        assert_equal(run_op(("onnxruntime", "onnx.reference")[i % 2], call), expected)


def floats(made: Any) -> list[str]:
    """Tensors of any kind in a model that are not integers."""
    integers = {
        onnx.TensorProto.DataType.Value(name) for name in ("INT8", "UINT8", "INT16", "UINT16", "INT32", "INT64")
    }
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    nodes = [node for function in made.functions for node in function.node] + list(made.graph.node)
    for node in nodes:
        kinds |= {f"{node.name}.{a.name}": a.t.data_type for a in node.attribute if a.HasField("t")}
        kinds |= {f"{node.name}.to": a.i for a in node.attribute if a.name == "to"}
    inferred = onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True)
    for info in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        kinds[info.name] = info.type.tensor_type.elem_type
    return [name for name, kind in kinds.items() if kind not in integers]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_is_standard_operators_on_integers(path: Path) -> None:
    graph = store.load(path)
    made = onnx_model.model(graph, labels=True)
    onnx.checker.check_model(made, full_check=True)
    assert {entry.domain: entry.version for entry in made.opset_import} == ALLOWED
    assert {node.domain for function in made.functions for node in function.node} == {""}
    own = {"Constant", "Unsqueeze"} if graph.info.classifies else set()  # the logits as the one row of argmax
    assert {node.op_type for node in made.graph.node} - own == {function.name for function in made.functions}
    assert not floats(made)
    names = [node.name for node in made.graph.node if node.name not in graph.packed]
    assert names[: len(graph.nodes)] == [node.name for node in graph.nodes]
    assert len(made.SerializeToString()) < 1.1 * path.stat().st_size + 2_000_000
    assert onnx_model.model(graph, labels=True).SerializeToString(deterministic=True) == made.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1,), (3, 5), (8, 16)])
def test_packed_bytes_are_unpacked(bits: int, shape: tuple[int, ...]) -> None:
    functions, low = onnx_model.Functions(), -(2 ** (bits - 1))
    values = np.resize(np.arange(low, -low), shape).astype(np.int8)
    stream = packing.pack(values, bits)
    stream = np.pad(stream, (0, -(-values.size // 8) * bits - len(stream)))
    name, opsets = functions.unpack(bits, shape), [onnx.helper.make_opsetid("", onnx_model.OPSET)]
    node = onnx.helper.make_node(name, ["packed"], ["result"], domain=onnx_model.DOMAIN)
    kinds = (onnx.TensorProto.UINT8, stream.shape), (onnx.TensorProto.INT8, shape)
    infos = [onnx.helper.make_tensor_value_info(n, *k) for n, k in zip(("packed", "result"), kinds, strict=True)]
    graph = onnx.helper.make_graph([node], "unpack", infos[:1], infos[1:])
    opsets.append(onnx.helper.make_opsetid(onnx_model.DOMAIN, 1))
    made = onnx.helper.make_model(graph, functions=functions.protos, opset_imports=opsets, ir_version=9)
    assert_equal(run_model(made, {"packed": stream}), values)


def images(graph: Graph, count: int) -> list[Array]:
    numbers = np.random.default_rng(5)
    return [numbers.integers(0, 256, (*graph.info.window, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_node_of_a_golden_model_is_equal(path: Path) -> None:
    graph = store.load(path)
    found = list(onnx_check.compare(onnx_model.model(graph), graph, images(graph, 1)))
    assert [f.runtime for f in found] == list(onnx_check.RUNTIMES)
    for f in found:
        assert (f.compared, f.differ) == (len(graph.nodes), ())


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_form_that_tools_fuse_is_close(path: Path) -> None:
    """qdq: every node but movers has float operators, which give its real twin, given its exact inputs."""
    graph = store.load(path)
    made = onnx_model.model(graph, labels=True, form="qdq")
    onnx.checker.check_model(made, full_check=True)
    stay = json.loads(next(entry.value for entry in made.metadata_props if entry.key == "exact_nodes"))
    ops = {node.name: node.op for node in graph.nodes}
    assert {ops[name] for name in stay} <= {*MOVERS, "quantize_input", "sum_rows"}
    assert {name for node in made.graph.node if node.domain for name in node.output} - {"labels", "labels.argmax"} >= {
        *stay
    }
    values = {"image": images(graph, 1)[0], **graph.tensors}
    values |= onnx_check.expected_values(graph, values["image"])
    scales, kinds, seen = trace.scales(graph), types(graph), collections.Counter[str]()
    for node in graph.nodes:
        seen[node.op] += 1
        if node.name not in stay and seen[node.op] <= 2:
            inputs = real.as_float([values[name] for name in node.inputs], np.float64)
            twin = real.on_grid(real.bind(graph, node, scales)(*inputs), kinds[node.name])
            given = run_model(
                alone(made, node), {name: values[name] for name in node.inputs if name not in graph.tensors}
            )
            far = np.abs(given.astype(np.int64) - twin)
            assert (given.dtype, given.shape, far.max() <= 1) == (twin.dtype, twin.shape, True), (node.name, far.max())
            assert (far > 0).mean() < 0.2, node.name  # QuantizeLinear takes ties to even, and few bits have many


def alone(made: Any, node: Node) -> Any:
    """The float operators of a node as a model, with what unpacks its weights."""
    nodes = [n for n in made.graph.node if n.name.startswith(f"{node.name}/")]
    read = {name for n in nodes for name in n.input}
    nodes = [n for n in made.graph.node if n.op_type.startswith("unpack") and n.output[0] in read] + nodes
    known = {info.name: info for info in (*made.graph.value_info, *made.graph.input, *made.graph.output)}
    used = {name for n in nodes for name in n.input}
    initializers = [tensor for tensor in made.graph.initializer if tensor.name in used]
    inputs = [known[name] for name in dict.fromkeys(node.inputs) if name in known]
    graph = onnx.helper.make_graph(nodes, "node", inputs, [known[node.name]], initializers)
    about = {"opset_imports": list(made.opset_import), "ir_version": made.ir_version}
    return onnx.helper.make_model(graph, functions=list(made.functions), **about)


def test_one_window_has_the_labels_of_either_merge() -> None:
    graph = store.load(GOLDEN / "models" / "intseg.safetensors")
    (image,), info = images(graph, 1), dataclasses.replace(graph.info, merge="pixel")
    given = onnxruntime_labels(onnx_model.model(dataclasses.replace(graph, info=info), labels=True), image)
    scores = onnx_check.expected_values(graph, image)[graph.output]
    tiling = windows.tile(info, *info.window)
    assert_equal(given, windows.labels(windows.merge_scores([scores], tiling, info), info, *info.window))


def onnxruntime_labels(made: Any, image: Array) -> Array:
    return onnx_check.RUNTIMES["onnxruntime"](made)(image)["labels"]


def test_a_wrong_node_is_named() -> None:
    """The canary: one weight changed in the ONNX file."""
    graph = store.load(GOLDEN / "models" / "intseg.safetensors")
    made = onnx_model.model(graph)
    name = next(node.params["weight"] for node in graph.nodes if node.op == "linear")
    weight = next(tensor for tensor in made.graph.initializer if tensor.name == name)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] ^= 64
    weight.CopyFrom(onnx.numpy_helper.from_array(array, name))
    (found,) = onnx_check.compare(made, graph, images(graph, 1), ["onnxruntime"])
    assert found.differ[0].node == next(node.name for node in graph.nodes if node.op == "linear")
    assert found.differ[0].wrong > 0


def test_the_cause_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file whose residual additions round down: what `intseg diff` says of it."""
    weights, target = str(GOLDEN / "models" / "paper.safetensors"), tmp_path / "m.onnx"
    made = onnx_model.model(store.load(weights))
    for function in made.functions:
        if function.name.split("_of_")[0] == "add":
            for node in function.node:
                if node.op_type == "Add" and node.input[0].startswith("product_"):
                    node.input[1] = "zero"
            zero = onnx.numpy_helper.from_array(np.array(0))
            function.node.insert(0, onnx.helper.make_node("Constant", [], ["zero"], value=zero))
    target.write_bytes(made.SerializeToString())
    code, out, err = run(capsys, "verify", "--onnx", str(target), "-w", weights)
    assert (code, "(add)" in out, "  - round down (floor)" in out) == (1, True, True)
    assert "elements differ, [" in err
    remainder = next(n for f in made.functions if "zero" in f.node[0].output for n in f.node if n.op_type == "Mod")
    remainder.input[1] = "zero"
    target.write_bytes(made.SerializeToString())
    code, _, err = run(capsys, "verify", "--onnx", str(target), "-w", weights)
    assert (code, "cannot run it" in err, err.count("\n")) == (4, True, 1)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main([*arguments])
    return code, *capsys.readouterr()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, target = str(GOLDEN / "models" / "intseg.safetensors"), tmp_path / "m.onnx"
    assert run(capsys, "export", weights, "-o", str(target), "--labels")[0] == 0
    made = onnx.load(target)
    assert [output.name for output in made.graph.output] == [store.load(weights).output, "labels"]
    code, out, _ = run(capsys, "verify", "--onnx", str(target), "-w", weights, "--json")
    assert code == 0
    assert '"different": 0' in out
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "wide.png").write_bytes((GOLDEN / "images" / "wide.png").read_bytes())
    save_file({"image": images(store.load(weights), 1)[0]}, tmp_path / "images" / "one.safetensors")
    code, out, _ = run(capsys, "verify", str(tmp_path), "--onnx", str(target), "-w", weights, "--json")
    assert (code, [entry["windows"] for entry in json.loads(out)["runs"]]) == (0, [8, 8, 8])  # noise, six and one
    code, _, err = run(capsys, "verify", str(tmp_path / "images"), "--onnx", str(target), "-w", weights)
    assert (code, "has no images; give a folder" in err) == (4, True)
    other = str(GOLDEN / "models" / "paper.safetensors")
    code, _, err = run(capsys, "verify", "--onnx", str(target), "-w", other)
    assert (code, "exported from other weights" in err) == (4, True)
    target.write_bytes(b"x" * 100)
    code, _, err = run(capsys, "verify", "--onnx", str(target), "-w", weights)
    assert (code, "not an ONNX model" in err) == (4, True)
    assert run(capsys, "export", weights, "-o", str(tmp_path / "m.txt"))[0] == 2
    code, out, _ = run(capsys, "export", weights, "-o", str(target), "--form", "qdq", "--json")
    runs = json.loads(out)["runs"]
    assert (code, runs[0]["pixels"]) == (0, 16 * 32)
    assert all(0 < node["differ"] <= node["elements"] and node["largest"] > 0 for node in runs[0]["nodes"])
    code, out, _ = run(capsys, "verify", "--onnx", str(target), "-w", weights)
    assert (code, "not exact" in out, "labels: " in out) == (0, True, True)
    code, _, err = run(capsys, "export", weights, "-o", str(target), "--form", "qoperator")
    assert (code, "ties to even" in err) == (2, True)


def test_op_cases_are_onnx_node_tests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX's own runner reads them: the folder's model, its operands by number, its result. Two of every op."""
    target, every = tmp_path / "cases", {call.op: [] for _, call in onnx_cases.cases()}
    for name, call in onnx_cases.cases():
        every[call.op].append((name, call))
    monkeypatch.setattr(onnx_cases, "cases", lambda: [case for found in every.values() for case in found[:2]])
    assert run(capsys, "export", "--cases", "-o", str(target))[0] == 0
    folders = sorted(target.iterdir())
    assert {folder.name.removeprefix("test_").rpartition("_")[0] for folder in folders} == set(OPS)
    for folder in folders[::3]:
        made, data = onnx.load(folder / "model.onnx"), folder / "test_data_set_0"
        count = len(list(data.glob("input_*.pb")))
        feed = [onnx.load_tensor(data / f"input_{i}.pb") for i in range(count)]
        assert [tensor.name for tensor in feed] == [x.name for x in made.graph.input]
        given = run_model(made, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in feed})
        assert_equal(given, onnx.numpy_helper.to_array(onnx.load_tensor(data / "output_0.pb")))
    assert run(capsys, "export", "--cases", "-o", str(target))[0] != 0  # it is there


def test_a_missing_package_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    missing: Mapping[str, Any] = {"onnx": None, "intseg.export.onnx_model": None}
    for name in [*missing, *(m for m in sys.modules if m.startswith("intseg.export"))]:
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run(capsys, "export", "camvid-tiny", "-o", str(tmp_path / "m.onnx"))
    assert (code, "pip install 'intseg[onnx]'" in err, err.count("\n")) == (2, True, 1)
    assert not list(tmp_path.iterdir())
