"""A hand-made graph with every kind of node input, small enough to follow, and ways to spoil it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from intseg.build import GraphBuilder
from intseg.exam import EXAMS
from intseg.graph import IMAGE, Graph, ModelInfo, Node
from intseg.ops import OPS, Value

INFO = ModelInfo(
    name="tiny",
    recipe="intseg",
    classes=("road", "sky", "ä"),
    palette=((1, 2, 3), (0, 0, 0), (255, 255, 255)),
    window=(8, 8),
    stride=(4, 8),
    patch=4,
    pad=(124, 116, 104),
    upsample="nearest",
    source="by hand",
)

SOFTMAX = "softmax2"
COEFFICIENTS: dict[str, Any] = {"frac_bits": 8, "a1": 21955, "a2": 5571}
IDENTITY: dict[str, Any] = {"mult_a": 2**30, "shift_a": 30, "mult_b": 2**30, "shift_b": 30}


def node(name: str, op: str, inputs: str, result: str, params: dict[str, str] | None = None, **attrs: Any) -> Node:
    """A node to put into a graph: inputs "a b", result "int8 4 48", right or wrong."""
    dtype, *shape = result.split()
    return Node(name, op, tuple(inputs.split()), params or {}, attrs, dtype, tuple(map(int, shape)))


def linear_params(name: str) -> dict[str, str]:
    return {role: f"{name}.{role}" for role in ("weight", "bias", "mult", "shift")}


def tiny() -> Graph:
    """Four patches and a class token of width 4, an attention of two heads, scores of three classes on a 2 x 2 grid."""
    source, b = np.random.default_rng(7), GraphBuilder(INFO)
    table = b.tensor("table", np.tile(np.arange(-128, 128), (3, 1)).astype(np.int8))
    cls = b.tensor("cls", np.array([[1, -2, 300, -32768]], np.int16))
    pos = b.tensor("pos", source.integers(-100, 100, (5, 4)).astype(np.int16))
    b.tensor("pos.scale", np.array([[[1]], [[0]], [[8]]], np.int32))
    b.tensor("scale", np.array([1, 0, 7], np.int32).reshape(3, 1, 1))
    widths = {"embed": (4, 48, 36), "qkv": (12, 4, 36), "head": (3, 4, 29)}
    layers = {name: _layer(source, *sizes) for name, sizes in widths.items()}
    mult = np.full((2, 1), 2**30, np.int32)

    b.node("input", "quantize_input", IMAGE, table=table)
    b.node("patches", "patchify", "input", patch=4)
    b.node("embed", "linear", "patches", **layers["embed"], out="int16", scale="scale")
    b.node("tokens", "concat", cls, "embed")
    b.node("placed", "add", "tokens", pos, **IDENTITY, scale="pos.scale")
    gamma, beta = np.array([2**20, -(2**20), 0, 2**21], np.int32), np.array([0, 2**40, -(2**45), 5], np.int64)
    b.node("norm", "layernorm", "placed", mult=gamma, bias=beta, shift=45, out="int8")
    b.node("qkv", "linear", "norm", **layers["qkv"], out="int8")
    for part, name in enumerate("qkv"):
        b.node(name, "split_heads", "qkv", heads=2, part=part, parts=3)
    b.node("qk", "matmul", "q", "k", mult=mult, shift=np.full((2, 1), 31, np.int8), transpose_b=1, out="int16")
    b.node("attn", SOFTMAX, "qk", **COEFFICIENTS)
    b.node("av", "matmul", "attn", "v", mult=mult, shift=np.full((2, 1), 44, np.int8), transpose_b=0, out="int8")
    b.node("merged", "merge_heads", "av")
    b.node("spatial", "slice", "merged", start=1, stop=5)
    b.node("head", "linear", "spatial", **layers["head"], out="int16")
    b.node("scores", "to_grid", "head", height=2, width=2)
    return b.graph("scores")


def _layer(source: np.random.Generator, width: int, depth: int, shift: int) -> dict[str, Any]:
    return {
        "weight": source.integers(-128, 128, (width, depth)).astype(np.int8),
        "bias": source.integers(-1000, 1000, width).astype(np.int32),
        "mult": np.full(width, 2**30, np.int32),
        "shift": np.full(width, shift, np.int8),
    }


def image(seed: int = 0) -> np.ndarray:
    """A random image of the size of the window."""
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def with_call(graph: Graph, op: str) -> Graph:
    """The graph with one more node "x": the smallest of the calls that the exam of an op makes, on constants."""
    call = min(EXAMS[op].calls(), key=lambda call: sum(x.size for x in call.inputs))
    value = OPS[op].check([Value(x.dtype.name, x.shape) for x in call.inputs], call.params, call.attrs)
    tensors = {f"x.in{i}": x for i, x in enumerate(call.inputs)} | {f"x.{role}": p for role, p in call.params.items()}
    inputs, params = tuple(f"x.in{i}" for i in range(len(call.inputs))), {role: f"x.{role}" for role in call.params}
    node = Node("x", op, inputs, params, call.attrs, value.dtype, value.shape)
    return dataclasses.replace(graph, nodes=(*graph.nodes, node), tensors={**graph.tensors, **tensors})


def with_node(graph: Graph, name: str, /, **changes: Any) -> Graph:
    """The graph with some fields of one node changed."""
    nodes = tuple(dataclasses.replace(n, **changes) if n.name == name else n for n in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes)


def with_attr(graph: Graph, name: str, **attrs: Any) -> Graph:
    """The graph with some attributes of one node changed."""
    return with_node(graph, name, attrs={**graph.node(name).attrs, **attrs})


def with_tensor(graph: Graph, name: str, array: np.ndarray) -> Graph:
    """The graph with one tensor replaced or added."""
    return dataclasses.replace(graph, tensors={**graph.tensors, name: array})


def with_element(graph: Graph, name: str, value: int) -> Graph:
    """The graph with the first element of one tensor replaced."""
    array = graph.tensors[name].copy()
    array.flat[0] = value
    return with_tensor(graph, name, array)


def with_info(graph: Graph, **changes: Any) -> Graph:
    """The graph with some fields of its information changed."""
    return dataclasses.replace(graph, info=dataclasses.replace(graph.info, **changes))
