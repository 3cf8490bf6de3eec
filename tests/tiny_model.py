"""A small valid model with random weights, built by hand: tests of everything around the arithmetic need no more.

One attention block behind a position embedding, so that the scores of a patch depend on its window and its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.graph import IMAGE, Graph, ModelInfo, Node

Array = NDArray[Any]
WIDTH = 8


def tiny_info(
    n_cls: int = 5,
    window: tuple[int, int] = (24, 32),
    stride: tuple[int, int] = (16, 24),
    patch: int = 8,
    upsample: str = "nearest",
) -> ModelInfo:
    """Information for `tiny_graph`; the palette has distinct colours for up to 2^24 classes."""
    return ModelInfo(
        name="tiny",
        recipe="random",
        classes=tuple(f"class {i}" for i in range(n_cls)),
        palette=tuple((37 * i % 256, 91 * i % 256, i % 256) for i in range(n_cls)),
        window=window,
        stride=stride,
        patch=patch,
        pad=(127, 128, 129),
        upsample=upsample,
        source="random numbers",
    )


def tiny_graph(seed: int = 0, **info: Any) -> Graph:
    """A valid graph for `tiny_info(**info)`; equal arguments give equal graphs."""
    return _Builder(tiny_info(**info), seed).graph()


class _Builder:
    """Nodes and tensors so far; every method appends one node and returns its name."""

    def __init__(self, info: ModelInfo, seed: int) -> None:
        self.info = info
        self.random = np.random.default_rng(seed)
        self.rows, self.columns = info.window[0] // info.patch, info.window[1] // info.patch
        self.tokens = self.rows * self.columns
        self.nodes: list[Node] = []
        self.tensors: dict[str, Array] = {}

    def graph(self) -> Graph:
        depth = self.info.patch**2 * 3
        x = self.node("quantize_input", [IMAGE], (*self.info.window, 3), table=self.bytes(3, 256))
        x = self.node("patchify", [x], (self.tokens, depth), attrs={"patch": self.info.patch})
        x = self.linear("patch_embed", x, depth, WIDTH, 5, "int16")
        self.tensors["pos_embed"] = self.random.integers(-4000, 4000, (self.tokens, WIDTH), np.int16)
        x = self.add("add_pos", x, "pos_embed")
        x = self.add("add_attn", x, self.attention(self.norm("norm1", x)))
        x = self.linear("head", self.norm("norm2", x), WIDTH, len(self.info.classes), 1, "int16")
        shape = (self.rows, self.columns, len(self.info.classes))
        x = self.node("to_grid", [x], shape, "int16", attrs={"height": self.rows, "width": self.columns})
        return Graph(tuple(self.nodes), self.tensors, x, self.info)

    def attention(self, x: str) -> str:
        heads, size = 2, WIDTH // 2
        x = self.linear("qkv", x, WIDTH, 3 * WIDTH, 7, "int8")
        q, k, v = (
            self.node(
                "split_heads", [x], (heads, self.tokens, size), attrs={"heads": heads, "part": i, "parts": 3}, name=part
            )
            for i, part in enumerate("qkv")
        )
        s = self.matmul("scores", q, k, 1, self.tokens, 3, "int16")
        s = self.node(
            "softmax2", [s], (heads, self.tokens, self.tokens), "int16", attrs={"frac_bits": 8, "a1": 21955, "a2": 5571}
        )
        x = self.matmul("mix", s, v, 0, size, 14, "int8")
        x = self.node("merge_heads", [x], (self.tokens, WIDTH))
        return self.linear("proj", x, WIDTH, WIDTH, 1, "int16")

    def node(
        self,
        op: str,
        inputs: list[str],
        shape: tuple[int, ...],
        dtype: str = "int8",
        attrs: dict[str, int | str] | None = None,
        name: str | None = None,
        **params: Array,
    ) -> str:
        name = name or op
        self.tensors.update({f"{name}.{role}": array for role, array in params.items()})
        roles = {role: f"{name}.{role}" for role in params}
        self.nodes.append(Node(name, op, tuple(inputs), roles, attrs or {}, dtype, shape))
        return name

    def linear(self, name: str, x: str, depth: int, width: int, shift: int, out: str) -> str:
        return self.node(
            "linear",
            [x],
            (self.tokens, width),
            out,
            {"out": out},
            name,
            weight=self.bytes(width, depth),
            bias=self.random.integers(-1000, 1000, width, np.int32),
            mult=np.ones(width, np.int32),
            shift=np.full(width, shift, np.int8),
        )

    def matmul(self, name: str, a: str, b: str, transpose: int, width: int, shift: int, out: str) -> str:
        params = {"mult": np.ones((2, 1), np.int32), "shift": np.full((2, 1), shift, np.int8)}
        return self.node(
            "matmul", [a, b], (2, self.tokens, width), out, {"transpose_b": transpose, "out": out}, name, **params
        )

    def add(self, name: str, a: str, b: str) -> str:
        attrs: dict[str, int | str] = {"mult_a": 1, "shift_a": 1, "mult_b": 1, "shift_b": 1}
        return self.node("add", [a, b], (self.tokens, WIDTH), "int16", attrs, name)

    def norm(self, name: str, x: str) -> str:
        mult, bias = np.full(WIDTH, 100, np.int32), self.random.integers(-(2**28), 2**28, WIDTH, np.int64)
        return self.node(
            "layernorm", [x], (self.tokens, WIDTH), "int8", {"shift": 30, "out": "int8"}, name, mult=mult, bias=bias
        )

    def bytes(self, *shape: int) -> Array:
        return self.random.integers(-128, 128, shape, np.int8)
