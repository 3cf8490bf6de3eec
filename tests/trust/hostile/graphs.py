"""Small graphs to begin with: every op in five of them."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from intseg.build import GraphBuilder
from intseg.graph import IMAGE, Graph, ModelInfo


class _Builder(GraphBuilder):
    """With random weights."""

    def __init__(self, info: ModelInfo, seed: int) -> None:
        super().__init__(info)
        self.random = np.random.default_rng(seed)

    def linear(self, name: str, x: str, width: int, out: str, shift: int, **more: Any) -> None:
        params = {
            "weight": self.random.integers(-128, 128, (width, self.shape(x)[-1])).astype(np.int8),
            "bias": self.random.integers(-1000, 1000, width).astype(np.int32),
            "mult": np.full(width, 2**30, np.int32),
            "shift": np.full(width, shift, np.int8),
        }
        self.node(name, "linear", x, **params, out=out, **more)


def _info(upsample: str, classes: int = 3) -> ModelInfo:
    return ModelInfo(
        name="tiny",
        recipe="intseg",
        classes=("road", "sky", "ä", "car")[:classes],
        palette=((1, 2, 3), (0, 0, 0), (255, 255, 255), (9, 9, 9))[:classes],
        window=(8, 8),
        stride=(4, 8),
        patch=4,
        pad=(124, 116, 104),
        upsample=upsample,
        source="by hand",
    )


@functools.cache
def linear_graph() -> Graph:
    """The smallest graph with weights: one linear layer."""
    b = _Builder(_info("bilinear"), 1)
    b.node("input", "quantize_input", IMAGE, table=np.tile(np.arange(-128, 128), (3, 1)).astype(np.int8))
    b.node("patches", "patchify", "input", patch=4)
    scale = b.tensor("scale", np.array([1, 0, 7], np.int32).reshape(3, 1, 1))
    b.linear("head", "patches", 3, "int16", 36, scale=scale)
    b.node("scores", "to_grid", "head", height=2, width=2)
    return b.graph("scores")


@functools.cache
def block_graph(softmax: str, gelu: str, out: str) -> Graph:
    """A class token, attention of two heads, an MLP, and ends that nothing reads: every op in four of these."""
    b = _Builder(_info("nearest"), 2)
    r = b.random
    b.node("input", "quantize_input", IMAGE, table=r.integers(-128, 128, (3, 256)).astype(np.int8))
    b.node("patches", "patchify", "input", patch=4)
    b.linear("embed", "patches", 4, "int16", 36)
    b.node("tokens", "concat", b.tensor("cls", np.array([[1, -2, 300, -32768]], np.int16)), "embed")
    position = b.tensor("pos", r.integers(-100, 100, (5, 4)).astype(np.int16))
    b.node("placed", "add", "tokens", position, mult_a=2**30, shift_a=30, mult_b=2**30, shift_b=29)
    norm = {
        "mult": np.array([2**20, -(2**20), 0, 2**21], np.int32),
        "bias": np.array([0, 2**40, -(2**45), 5], np.int64),
    }
    b.node("norm", "layernorm", "placed", **norm, shift=45, out="int8")
    b.linear("qkv", "norm", 12, "int8", 36)
    for part, name in enumerate("qkv"):
        b.node(name, "split_heads", "qkv", heads=2, part=part, parts=3)
    one = np.full((2, 1), 2**30, np.int32)
    scale = {"mult": one, "shift": np.full((2, 1), 31, np.int8)}
    b.node("qk", "matmul", "q", "k", **scale, transpose_b=1, out="int16")
    soft: dict[str, Any] = {"frac_bits": 8, "a1": 21955, "a2": 5571}
    if softmax == "shiftmax":
        soft = {"i0": 64, "k_inter": 9, "int_div_kind": "normalized", "out": out}
    if softmax == "exp_weights":
        b.node("attn", softmax, "qk", table=np.array([[255 * 2**7 >> t // 16 for t in range(256)]] * 2, np.int16))
        b.node("av", "weighted_mean", "attn", "v", **scale)
    else:
        b.node("attn", softmax, "qk", **soft)
        later = {**scale, "shift": np.full((2, 1), 40, np.int8)}
        b.node("av", "matmul", "attn", "v", **later, transpose_b=0, out="int8")
    b.node("merged", "merge_heads", "av")
    b.linear("fc1", "merged", 6, "int8", 37)
    if gelu == "gelu_table":
        b.node("gelu", gelu, "fc1", table=r.integers(-128, 128, 256).astype(np.int8))
    else:
        kind = {"i0": 16, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8, "mult": 2**30, "shift": 38}
        b.node("gelu", gelu, "fc1", **kind)
    b.linear("fc2", "gelu", 4, "int16", 36)
    b.node("sum", "add", "placed", "fc2", mult_a=1, shift_a=1, mult_b=2**30, shift_b=30)
    b.node("unit", "l2norm", "sum", mult=2**30, shift=53)
    b.node("spatial", "slice", "unit", start=1, stop=5)
    b.linear("head", "spatial", 3, "int16", 34)
    b.node("scores", "to_grid", "head", height=2, width=2)
    b.node("wide", "upsample_nearest", "scores", factor=2)
    b.node("smooth", "upsample_bilinear", "scores", factor=4, row_start=1, row_stop=7)
    b.node("best", "argmax", "smooth")
    return b.graph("scores")


BLOCK = ("softmax2", "gelu_table", "int16")
"""Of `block_graph`: the one that traces are made of."""


def packed_graph() -> Graph:
    """The small one with weights of few bits, packed, and results of fewer than 8."""
    graph = linear_graph()
    bits = {name: 2 + i % 6 for i, name in enumerate(n for n in graph.tensors if n.endswith(".weight"))}
    few = {name: graph.tensors[name] >> np.int8(8 - n) for name, n in bits.items()}
    return replace(graph, tensors={**graph.tensors, **few}, packed=bits)


@functools.cache
def graphs() -> tuple[Graph, ...]:
    """The bases of weights; the small one comes up most."""
    blocks = (
        BLOCK,
        ("shiftmax", "shift_gelu", "int16"),
        ("shiftmax", "sigmoid_gelu", "int8"),
        ("exp_weights", "gelu_table", "int16"),
    )
    return (
        *(linear_graph() for _ in range(6)),
        *(packed_graph() for _ in range(3)),
        *(block_graph(*block) for block in blocks),
    )
