"""A small valid model with random weights, built by hand: tests of everything around the arithmetic need no more.

One attention block behind a position embedding, so that the scores of a patch depend on its window and its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from graphs import COEFFICIENTS, SOFTMAX
from numpy.typing import NDArray

from intseg.build import GraphBuilder
from intseg.graph import IMAGE, Graph, ModelInfo

Array = NDArray[Any]
WIDTH = 8


def tiny_info(
    n_cls: int = 5,
    window: tuple[int, int] = (24, 32),
    stride: tuple[int, int] = (16, 24),
    patch: int = 8,
    upsample: str = "nearest",
    merge: str = "grid",
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
        merge=merge,
    )


def tiny_graph(seed: int = 0, **info: Any) -> Graph:
    """A valid graph for `tiny_info(**info)`; equal arguments give equal graphs."""
    return _Builder(tiny_info(**info), seed).made()


def tiny_classifier(
    seed: int = 0, n_cls: int = 7, heads: int = 1, working_size: tuple[int, int] | None = None
) -> Graph:
    """A valid graph of a classifier with one head or two; equal arguments give equal graphs."""
    info = tiny_info(n_cls, stride=(24, 32))
    info = replace(info, name="tiny classifier", task="classification", working_size=working_size)
    return _Builder(info, seed).made(heads)


class _Builder(GraphBuilder):
    """Methods append nodes of the usual scales; each returns the name of its node."""

    def __init__(self, info: ModelInfo, seed: int) -> None:
        super().__init__(info)
        self.random = np.random.default_rng(seed)

    def made(self, heads: int = 0) -> Graph:
        info, depth = self.info, self.info.patch**2 * 3
        rows, columns = info.window[0] // info.patch, info.window[1] // info.patch
        x = self.node("quantize_input", "quantize_input", IMAGE, table=self.bytes(3, 256))
        x = self.node("patchify", "patchify", x, patch=info.patch)
        x = self.linear("patch_embed", x, depth, WIDTH, 5, "int16")
        position = self.random.integers(-4000, 4000, (rows * columns, WIDTH), np.int16)
        x = self.add("add_pos", x, self.tensor("pos_embed", position))
        x = self.add("add_attn", x, self.attention(self.norm("norm1", x)))
        x = self.norm("norm2", x)
        if heads:
            return self.graph(self.logits(x, heads))
        x = self.linear("head", x, WIDTH, len(info.classes), 1, "int16")
        return self.graph(self.node("to_grid", "to_grid", x, height=rows, width=columns))

    def logits(self, x: str, heads: int) -> str:
        """The sum of the heads, each on a token of its own."""
        rows = [self.node(f"token{i}", "slice", x, start=i, stop=i + 1) for i in range(heads)]
        rows = [self.linear(f"head{i}", row, WIDTH, len(self.info.classes), 1, "int16") for i, row in enumerate(rows)]
        return self.node("logits", "sum_rows", rows[0] if heads == 1 else self.node("heads", "concat", *rows))

    def attention(self, x: str) -> str:
        x = self.linear("qkv", x, WIDTH, 3 * WIDTH, 7, "int8")
        q, k, v = (self.node(name, "split_heads", x, heads=2, part=i, parts=3) for i, name in enumerate("qkv"))
        s = self.matmul("scores", q, k, 1, 3, "int16")
        s = self.node("softmax", SOFTMAX, s, **COEFFICIENTS)
        x = self.matmul("mix", s, v, 0, 14, "int8")
        return self.linear("proj", self.node("merge_heads", "merge_heads", x), WIDTH, WIDTH, 1, "int16")

    def linear(self, name: str, x: str, depth: int, width: int, shift: int, out: str) -> str:
        weight, bias = self.bytes(width, depth), self.random.integers(-1000, 1000, width, np.int32)
        mult, shifts = np.ones(width, np.int32), np.full(width, shift, np.int8)
        return self.node(name, "linear", x, weight=weight, bias=bias, mult=mult, shift=shifts, out=out)

    def matmul(self, name: str, a: str, b: str, transpose: int, shift: int, out: str) -> str:
        mult, shifts = np.ones((2, 1), np.int32), np.full((2, 1), shift, np.int8)
        return self.node(name, "matmul", a, b, mult=mult, shift=shifts, transpose_b=transpose, out=out)

    def add(self, name: str, a: str, b: str) -> str:
        return self.node(name, "add", a, b, mult_a=1, shift_a=1, mult_b=1, shift_b=1)

    def norm(self, name: str, x: str) -> str:
        mult, bias = np.full(WIDTH, 100, np.int32), self.random.integers(-(2**28), 2**28, WIDTH, np.int64)
        return self.node(name, "layernorm", x, mult=mult, bias=bias, shift=30, out="int8")

    def bytes(self, *shape: int) -> Array:
        return self.random.integers(-128, 128, shape, np.int8)
