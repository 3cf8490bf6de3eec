"""A hand-made graph with every kind of node input, small enough to follow, and ways to spoil it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from intseg.graph import Graph, ModelInfo, Node

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

IDENTITY = {"mult_a": 2**30, "shift_a": 30, "mult_b": 2**30, "shift_b": 30}


def node(name: str, op: str, inputs: str, result: str, params: dict[str, str] | None = None, **attrs: Any) -> Node:
    """A node from words: inputs "a b", result "int8 4 48"; a string `scale` attribute names its scale tensor."""
    dtype, *shape = result.split()
    scale = attrs.pop("scale", None)
    return Node(name, op, tuple(inputs.split()), params or {}, attrs, dtype, tuple(map(int, shape)), scale)


def linear_params(name: str) -> dict[str, str]:
    return {role: f"{name}.{role}" for role in ("weight", "bias", "mult", "shift")}


def tiny() -> Graph:
    """Four patches and a class token of width 4, an attention of two heads, scores of three classes on a 2 x 2 grid."""
    source = np.random.default_rng(7)
    tensors: dict[str, np.ndarray] = {
        "table": np.tile(np.arange(-128, 128), (3, 1)).astype(np.int8),
        "cls": np.array([[1, -2, 300, -32768]], np.int16),
        "pos": source.integers(-100, 100, (5, 4)).astype(np.int16),
        "pos.scale": np.array([[[1]], [[0]], [[8]]], np.int32),
        "scale": np.array([1, 0, 7], np.int32).reshape(3, 1, 1),
        "norm.mult": np.array([2**20, -(2**20), 0, 2**21], np.int32),
        "norm.bias": np.array([0, 2**40, -(2**45), 5], np.int64),
        "av.mult": np.full((2, 1), 2**30, np.int32),
        "av.shift": np.full((2, 1), 44, np.int8),
        "qk.mult": np.full((2, 1), 2**30, np.int32),
        "qk.shift": np.full((2, 1), 31, np.int8),
    }
    for name, width, depth, shift in (("embed", 4, 48, 36), ("qkv", 12, 4, 36), ("head", 3, 4, 29)):
        tensors[f"{name}.weight"] = source.integers(-128, 128, (width, depth)).astype(np.int8)
        tensors[f"{name}.bias"] = source.integers(-1000, 1000, width).astype(np.int32)
        tensors[f"{name}.mult"] = np.full(width, 2**30, np.int32)
        tensors[f"{name}.shift"] = np.full(width, shift, np.int8)
    nodes = (
        node("input", "quantize_input", "image", "int8 8 8 3", {"table": "table"}),
        node("patches", "patchify", "input", "int8 4 48", patch=4),
        node("embed", "linear", "patches", "int16 4 4", linear_params("embed"), out="int16", scale="scale"),
        node("tokens", "concat", "cls embed", "int16 5 4"),
        node("placed", "add", "tokens pos", "int16 5 4", **IDENTITY, scale="pos.scale"),
        node(
            "norm", "layernorm", "placed", "int8 5 4", {r: f"norm.{r}" for r in ("mult", "bias")}, shift=45, out="int8"
        ),
        node("qkv", "linear", "norm", "int8 5 12", linear_params("qkv"), out="int8"),
        *(
            node(name, "split_heads", "qkv", "int8 2 5 2", heads=2, part=part, parts=3)
            for part, name in enumerate(("q", "k", "v"))
        ),
        node(
            "qk", "matmul", "q k", "int16 2 5 5", {r: f"qk.{r}" for r in ("mult", "shift")}, transpose_b=1, out="int16"
        ),
        node("attn", "softmax2", "qk", "int16 2 5 5", frac_bits=8, a1=21955, a2=5571),
        node(
            "av", "matmul", "attn v", "int8 2 5 2", {r: f"av.{r}" for r in ("mult", "shift")}, transpose_b=0, out="int8"
        ),
        node("merged", "merge_heads", "av", "int8 5 4"),
        node("spatial", "slice", "merged", "int8 4 4", start=1, stop=5),
        node("head", "linear", "spatial", "int16 4 3", linear_params("head"), out="int16"),
        node("scores", "to_grid", "head", "int16 2 2 3", height=2, width=2),
    )
    return Graph(nodes, tensors, "scores", INFO)


def image(seed: int = 0) -> np.ndarray:
    """A random image of the size of the window."""
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


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
