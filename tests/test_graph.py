"""validate() accepts a well-formed graph and refuses every other, naming the node, the found and the expected."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from graphs import tiny, with_attr, with_element, with_info, with_node, with_tensor

from intseg.build import GraphBuilder
from intseg.errors import IntsegError, ModelError
from intseg.graph import Graph, check_call, validate
from intseg.ops import OPS, Value


def refuse(graph: Graph, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        validate(graph)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_the_tiny_graph_is_valid():
    validate(tiny())


def test_node_finds_by_name_and_last_use_names_the_last_reader():
    graph = tiny()
    assert graph.node("qkv").op == "linear"
    with pytest.raises((KeyError, StopIteration)):
        graph.node("nothing")
    order = [n.name for n in graph.nodes]
    assert graph.last_use["qkv"] == order.index("v")
    assert graph.last_use["scores"] == len(order)


def test_graphs_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().output = "embed"  # type: ignore[misc]


def test_every_error_is_of_the_family():
    assert issubclass(ModelError, IntsegError)
    assert ModelError.exit_code == 3


# Names and wiring


def test_unknown_op():
    refuse(with_node(tiny(), "embed", op="conv"), "node 'embed' (conv)", "unknown op", "linear")


@pytest.mark.parametrize("name", ["image", "patches", "pos"])
def test_names_taken_by_the_image_a_node_or_a_tensor(name: str):
    refuse(with_node(tiny(), "embed", name=name), f"node '{name}'", "taken", "unique")


def test_number_of_inputs():
    refuse(with_node(tiny(), "embed", inputs=()), "node 'embed'", "0 inputs, expected 1")
    refuse(with_node(tiny(), "tokens", inputs=("cls",)), "1 inputs, expected 2")


def test_input_that_does_not_exist():
    refuse(with_node(tiny(), "embed", inputs=("nowhere",)), "node 'embed'", "'nowhere'")


def test_order_matters():
    graph = tiny()
    nodes = list(graph.nodes)
    nodes[1], nodes[2] = nodes[2], nodes[1]
    refuse(dataclasses.replace(graph, nodes=tuple(nodes)), "node 'embed'", "'patches'", "earlier")


def test_a_node_may_not_read_itself():
    refuse(with_node(tiny(), "placed", inputs=("placed", "pos")), "'placed'")


def test_missing_and_unknown_parameters():
    params = dict(graphs.linear_params("embed"))
    refuse(with_node(tiny(), "embed", params={**params, "gamma": "pos"}), "unknown parameter 'gamma'", "weight")
    params.pop("mult")
    refuse(with_node(tiny(), "embed", params=params), "node 'embed'", "lacks parameter 'mult'")
    refuse(with_node(tiny(), "tokens", params={"x": "pos"}), "unknown parameter 'x'", "none")


def test_parameter_naming_no_tensor():
    params = {**graphs.linear_params("embed"), "bias": "nothing"}
    refuse(with_node(tiny(), "embed", params=params), "node 'embed'", "'nothing'")


def test_unused_tensor():
    refuse(with_tensor(tiny(), "spare", np.zeros(1, np.int8)), "tensor 'spare'", "no node")


def test_output_is_not_a_node():
    refuse(dataclasses.replace(tiny(), output="nothing"), "output 'nothing'")


def test_the_image_is_no_output():
    refuse(dataclasses.replace(tiny(), output="image"), "output 'image'")


def test_no_nodes():
    refuse(Graph((), {}, "scores", graphs.INFO), "output 'scores'")


def test_output_of_another_shape():
    refuse(dataclasses.replace(tiny(), output="head"), "output 'head'", "[4, 3]", "[2, 2, 3]")


# Dtypes and shapes


def test_declared_dtype_and_shape_must_be_those_of_the_op():
    refuse(with_node(tiny(), "embed", dtype="int8"), "declares int8 [4, 4]", "gives int16 [4, 4]")
    refuse(with_node(tiny(), "embed", shape=(4, 5)), "declares int16 [4, 5]", "gives int16 [4, 4]")


def test_input_dtype():
    refuse(with_node(tiny(), "embed", inputs=("pos",)), "node 'embed'", "pos", "int16", "expected int8")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_parameter_dtype(dtype: str):
    graph = tiny()
    refuse(with_tensor(graph, "qkv.weight", graph.tensors["qkv.weight"].astype(dtype)), dtype, "expected int8")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_constant_input_dtype(dtype: str):
    graph = tiny()
    refuse(with_tensor(graph, "pos", graph.tensors["pos"].astype(dtype)), dtype, "int16")


@pytest.mark.parametrize("shape", [(), (0, 4), (5, 0), (65536, 4), (1, 65536)])
def test_axes_of_a_constant_input(shape: tuple[int, ...]):
    refuse(with_tensor(tiny(), "cls", np.zeros(shape, np.int16)), "node 'tokens'", "cls")


def test_rank_one_into_upsample_nearest():
    op = OPS["upsample_nearest"]
    with pytest.raises(ModelError, match=r"\[5\]"):
        op.check([Value("int16", (5,))], {}, {"factor": 2})


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("embed.weight", np.zeros((4, 47), np.int8), ("weight", "[4, 47]", "[4, 48]")),
        ("embed.weight", np.zeros(48, np.int8), ("weight", "[48]")),
        ("embed.bias", np.zeros(5, np.int32), ("bias", "[5]", "[4]")),
        ("embed.mult", np.zeros((4, 1), np.int32), ("mult", "[4, 1]", "[4]")),
        ("embed.shift", np.ones(1, np.int8), ("shift", "[1]", "[4]")),
        ("norm.mult", np.zeros(5, np.int32), ("mult", "[5]", "[4]")),
        ("norm.bias", np.zeros(1, np.int64), ("bias", "[1]", "[4]")),
        ("table", np.zeros((1, 256), np.int8), ("table", "[1, 256]", "[3, 256]")),
        ("table", np.zeros((3, 255), np.int8), ("table", "[3, 255]", "[3, 256]")),
        ("qk.mult", np.zeros((2, 2), np.int32), ("mult", "[2, 2]", "[2, 1]", "[2, 5]")),
        ("qk.mult", np.zeros((1, 1), np.int32), ("mult", "[1, 1]")),
        ("qk.shift", np.ones((2, 5), np.int8), ("shift", "[2, 5]", "[2, 1]")),
        ("cls", np.zeros((1, 5), np.int16), ("widths 5 and 4",)),
        ("pos", np.zeros((4, 4), np.int16), ("[5, 4]", "[4, 4]")),
        ("pos", np.zeros((1, 4), np.int16), ("[5, 4]", "[1, 4]", "equal")),
    ],
)
def test_shapes_of_tensors(name: str, array: np.ndarray, words: tuple[str, ...]):
    refuse(with_tensor(tiny(), name, array), "node ", *words)


@pytest.mark.parametrize(
    "scale",
    [
        np.zeros((3, 5, 4), np.int64),
        np.zeros((3, 5, 4), np.float32),
        np.zeros((2, 5, 4), np.int32),
        np.zeros((3, 4), np.int32),
        np.zeros((3, 5, 3), np.int32),
        np.zeros(3, np.int32),
    ],
)
def test_scale_tensors(scale: np.ndarray):
    refuse(with_tensor(tiny(), "pos.scale", scale), "node 'placed'", "scale is", "int32 [3, ...]", "[5, 4]")


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 5, 1), (3, 1, 4), (3, 5, 4)])
def test_scale_tensors_that_broadcast(shape: tuple[int, ...]):
    validate(with_tensor(tiny(), "pos.scale", np.ones(shape, np.int32)))


def test_scale_naming_no_tensor():
    refuse(with_node(tiny(), "merged", scale="nothing"), "node 'merged'", "'nothing'")


# Values


@pytest.mark.parametrize("name", ["embed.shift", "qk.shift"])
@pytest.mark.parametrize("value", [0, 63, -1, 127, -128])
def test_shift_tensors_out_of_range(name: str, value: int):
    refuse(with_element(tiny(), name, value), "shift", str(value), "expected [1, 62]")


@pytest.mark.parametrize("name", ["embed.mult", "av.mult"])
@pytest.mark.parametrize("value", [-1, -(2**31)])
def test_multipliers_out_of_range(name: str, value: int):
    refuse(with_element(tiny(), name, value), "mult", str(value), "[0, 2147483647]")


def test_layernorm_values_out_of_range():
    refuse(with_element(tiny(), "norm.mult", -(2**31)), "mult", "-2147483648")
    validate(with_element(tiny(), "norm.mult", -(2**31) + 1))
    for value in (2**61, -(2**61), -(2**63)):
        refuse(with_element(tiny(), "norm.bias", value), "bias", str(value), str(2**61 - 1))
    validate(with_element(tiny(), "norm.bias", 2**61 - 1))


EVERY_ATTRIBUTE = [(op, name) for op, entry in OPS.items() for name, allowed in entry.attrs.items()]


def example(op: str) -> tuple[Graph, str]:
    """A graph with a node of this op: one of the tiny graph, or one put behind the others."""
    graph = tiny()
    for entry in graph.nodes:
        if entry.op == op:
            return graph, entry.name
    return graphs.with_call(graph, op), "x"


@pytest.mark.parametrize("op", sorted({op for op, _ in EVERY_ATTRIBUTE}))
def test_the_examples_are_valid(op: str):
    validate(example(op)[0])


@pytest.mark.parametrize(("op", "attr"), EVERY_ATTRIBUTE)
def test_every_attribute_is_checked(op: str, attr: str):
    """Below and above its range, of another type, missing."""
    graph, name = example(op)
    allowed = OPS[op].attrs[attr]
    wrong: list[Any] = [True, -(2**70), 2**70]
    if isinstance(allowed, range):
        wrong += [allowed[0] - 1, allowed[-1] + 1, 1.0, 2.5, np.int64(1)]
    else:
        wrong += [0, 1, 2.5, None, "", "float", allowed[0].upper()]
    for value in wrong:
        expected = f"[{allowed[0]}, {allowed[-1]}]" if isinstance(allowed, range) else allowed[0]
        refuse(with_attr(graph, name, **{attr: value}), f"node '{name}' ({op})", attr, repr(value), expected)
    attrs = dict(graph.node(name).attrs)
    attrs.pop(attr, None)
    if attr in OPS[op].optional:
        return validate(with_node(graph, name, attrs=attrs))
    refuse(with_node(graph, name, attrs=attrs), f"node '{name}'", f"lacks attribute '{attr}'")


def test_a_word_for_a_number_is_refused_at_once():
    """`"x" in range(2**31)` would walk through the range for minutes, and C code cannot be interrupted: own process.

    The limit is CPU time where the system has one: the machine may be busy.
    """
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n" if os.name == "posix" else ""
    code = "import graphs, intseg.graph as g\ng.validate(graphs.with_attr(graphs.tiny(), 'placed', mult_a='x'))"
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{limit}{code}"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=False)
    assert "ModelError: node 'placed' (add): attribute mult_a is 'x'" in done.stderr


def test_unknown_attribute():
    refuse(with_attr(tiny(), "patches", stride=4), "unknown attribute 'stride'", "patch")


@pytest.mark.parametrize(
    ("op", "attrs", "words"),
    [
        ("add", {"mult_a": 2**31 - 1, "shift_a": 16}, ("branch a", "2147483647 * 2^-16", "2^14")),
        ("add", {"mult_b": 2**15, "shift_b": 1}, ("branch b", "2^14")),
        ("shiftmax", {"i0": 2, "k_inter": 15}, ("65536", "32768")),
        ("sigmoid_gelu", {"i0": 2**14, "k_inter": 31}, (str(2**45),)),
        ("sigmoid_gelu", {"i0": 2**15, "k_inter": 31}, (str(2**46), str(2**45))),
        ("sigmoid_gelu", {"k_out": 9}, ("k_out is 9", "8 or 16")),
        ("sigmoid_gelu", {"k_out": 15}, ("k_out is 15", "8 or 16")),
        ("patchify", {"patch": 3}, ("8 x 8", "3 x 3")),
        ("slice", {"start": 5}, ("rows 5:5 of 5",)),
        ("slice", {"stop": 6}, ("rows 1:6 of 5",)),
        ("split_heads", {"part": 2, "parts": 2}, ("part is 2", "parts = 2")),
        ("split_heads", {"heads": 5}, ("width 12", "5 heads")),
        ("to_grid", {"height": 3}, ("4 tokens", "3 x 2")),
        ("upsample_bilinear", {"row_start": 64}, ("rows 64:64 of 64",)),
        ("upsample_bilinear", {"row_stop": 65}, ("rows 0:65 of 64",)),
        ("matmul", {"transpose_b": 0}, ("inner sizes 2 and 5",)),
    ],
)
def test_attributes_that_do_not_fit_each_other(op: str, attrs: dict[str, int], words: tuple[str, ...]):
    graph, name = example(op)
    refuse(with_attr(graph, name, **attrs), f"node '{name}' ({op})", *words)


@pytest.mark.parametrize(("mult", "shift"), [(2**15 - 1, 1), (2**31 - 1, 17), (0, 1)])
def test_the_largest_scales_of_add(mult: int, shift: int):
    validate(with_attr(tiny(), "placed", mult_a=mult, shift_a=shift))


# Overflow proofs


def test_linear_accumulator():
    """The last bias that fits is accepted, the next one refused, for both signs."""
    graph = tiny()
    free = 2**31 - 1 - 128 * int(np.abs(graph.tensors["qkv.weight"][0].astype(int)).sum())
    for sign in (1, -1):
        validate(with_element(graph, "qkv.bias", sign * free))
        refuse(with_element(graph, "qkv.bias", sign * (free + 1)), "node 'qkv'", "accumulator", str(2**31))
    refuse(with_element(graph, "qkv.bias", -(2**31)), "accumulator")


def matmul_check(depth: int, dtype: str, row_sum: int | None = None) -> Value:
    params = {"mult": np.ones(1, np.int32), "shift": np.ones(1, np.int8)}
    inputs = [Value(dtype, (1, depth), row_sum), Value("int8", (depth, 1))]
    return OPS["matmul"].check(inputs, params, {"transpose_b": 0, "out": "int8"})


def test_matmul_accumulator():
    assert matmul_check(511, "int16").shape == (1, 1)
    with pytest.raises(ModelError, match="2147483648"):
        matmul_check(512, "int16")
    assert matmul_check(65535, "int8").shape == (1, 1)
    assert matmul_check(65535, "int16", row_sum=2**15 + 2**15).shape == (1, 1)
    with pytest.raises(ModelError, match="accumulator"):
        matmul_check(65535, "int16", row_sum=2**24)


@pytest.mark.parametrize("op", [graphs.SOFTMAX, "shiftmax"])
def test_only_a_softmax_gives_a_row_sum(op: str):
    attrs: dict[str, Any] = {"i0": 1, "k_inter": 1, "out": "int16"}
    value = OPS[op].check([Value("int16", (3, 1025))], {}, attrs)
    assert value.row_sum == 2**15 + 513
    small = {"heads": 1, "part": 0, "parts": 1}
    assert OPS["split_heads"].check([dataclasses.replace(value)], {}, small).row_sum is None
    assert OPS["concat"].check([value, value], {}, {}).row_sum is None


# Information


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ()}, "0 classes"),
        ({"classes": ("a", "b", "a")}, "classes 0 and 2 are both 'a'"),
        *(({"classes": ("a", f"b{c}", "c")}, "control character") for c in "\0\n\x1b\x7f\x9b"),
        ({"name": "a\rb"}, "control character"),
        ({"source": "a\nb"}, "control character"),
        ({"palette": ((1, 2, 3),)}, "1 colours for 3 classes"),
        ({"palette": ((1, 2, 3), (0, 0, 0), (0, 0, 256))}, "colour 2 of the palette is [0, 0, 256], expected three"),
        ({"palette": ((1, 2, 3), (0, 0, 0), (0, 0))}, "colour 2 of the palette is [0, 0], expected three"),
        ({"pad": (0, -1, 0)}, "pad is [0, -1, 0], expected"),
        ({"pad": (0, 0)}, "pad is [0, 0], expected"),
        ({"patch": 0}, "patch is 0"),
        ({"patch": 65}, "patch is 65"),
        ({"window": (8, 10)}, "multiples of the patch size 4"),
        ({"window": (0, 8)}, "multiples"),
        ({"stride": (2, 8)}, "multiples"),
        ({"stride": (0, 8)}, "multiples"),
        ({"stride": (4, 12)}, "between half the window and the window"),
        ({"window": (12, 8), "stride": (4, 8)}, "between half"),
        ({"window": (1024, 1028), "stride": (1024, 1028)}, "more than 65535 patches"),
        ({"upsample": "bicubic"}, "'bicubic', expected nearest or bilinear"),
        ({"classes": ("a", "b"), "palette": ((0, 0, 0),) * 2}, "[2, 2, 2]"),
    ],
)
def test_information(changes: dict[str, Any], words: str):
    refuse(with_info(tiny(), **changes), words)


def test_too_many_classes():
    names = tuple(map(str, range(65536)))
    refuse(with_info(tiny(), classes=names, palette=((0, 0, 0),) * 65536), "65536 classes", "65535")


def test_the_window_is_the_size_of_the_image():
    refuse(with_info(tiny(), window=(16, 8), stride=(8, 8)), "node 'input'", "[16, 8, 3]")


def test_messages_are_one_line():
    for graph in (with_node(tiny(), "embed", op="conv"), with_info(tiny(), patch=0)):
        with pytest.raises(ModelError) as caught:
            validate(graph)
        assert re.fullmatch(r"[^\n]+", str(caught.value))


# Builder


def test_the_builder_infers_shares_tensors_and_refuses():
    b = GraphBuilder(graphs.INFO)
    x = b.node("input", "quantize_input", "image", table=b.tensor("t", np.zeros((3, 256), np.int8)))
    b.node("again", "quantize_input", "image", table="t")
    assert b.values[b.node("patches", "patchify", x, patch=4)] == Value("int8", (4, 48))
    assert [n.params for n in b.nodes] == [{"table": "t"}, {"table": "t"}, {}]
    with pytest.raises(ModelError, match="3 x 3"):
        b.node("more", "patchify", x, patch=3)
    assert [n.name for n in b.nodes] == ["input", "again", "patches"]


def test_no_op_gives_more_than_2_30_elements() -> None:
    large = Value("int16", (4096, 4096, 1))
    assert check_call(OPS["upsample_nearest"], ["x"], [large], {}, {"factor": 8}).shape == (32_768, 32_768, 1)
    with pytest.raises(ModelError, match=r"gives int16 \[36864, 36864, 1\], expected at most 2\^30 elements"):
        check_call(OPS["upsample_nearest"], ["x"], [large], {}, {"factor": 9})
