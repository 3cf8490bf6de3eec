"""Side by side: intseg and four float and INT8 peers on one Segmenter, whole image to labels.

python tools/bench.py --models tiny,small --threads 1,2 --json out.json
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intseg.graph import IMAGE, Graph, ModelInfo, Node
from intseg.ops import OPS, Array, Attr, Value

# ---------------------------------------------------------------------------------------------------------------------
# A graph with the shapes of a Segmenter and random integers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of a Segmenter with a mask transformer; `image` is one window."""

    width: int
    heads: int
    layers: int
    image: int = 512
    decoder_layers: int = 2
    classes: int = 150
    patch: int = 16
    softmax: str = "softmax2"
    gelu: str = "gelu_table"
    l2norm: bool = False
    upsample: str = "bilinear"


SHAPES = {
    "tiny": Shape(192, 3, 12),
    "small": Shape(384, 6, 12),
    "base": Shape(768, 12, 12),
    "large": Shape(1024, 16, 24, image=640),
}

_SOFTMAX: Mapping[str, Mapping[str, Attr]] = {
    "softmax2": {"frac_bits": 10, "a1": 21955, "a2": 5571},
    "shiftmax": {"i0": 2**7, "k_inter": 8, "int_div_kind": "normalized", "out": "int16"},
}
_IDENTITY: Mapping[str, Attr] = {"mult_a": 2**30, "shift_a": 30, "mult_b": 2**30, "shift_b": 30}
_RESIDUAL: Mapping[str, Attr] = {"mult_a": 2046820351, "shift_a": 31, "mult_b": 1503238554, "shift_b": 31}
_GELU: Mapping[str, Attr] = {
    "i0": 32,
    "k_inter": 23,
    "lam": 6,
    "int_div_kind": "normalized",
    "k_out": 8,
    "mult": 2**30,
    "shift": 37,
}


def dyadic(scale: float) -> tuple[int, int]:
    """(mult, shift) of a real scale, mult in [2^30, 2^31)."""
    mantissa, exponent = math.frexp(scale)
    return round(mantissa * 2**31), 31 - exponent


class RandomGraph:
    """Builds a valid graph whose activations stay spread over their range, so that no op works on constants."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.tensors: dict[str, NDArray[np.signedinteger]] = {}
        self.values = {IMAGE: Value("uint8", (shape.image, shape.image, 3))}

    def tensor(self, name: str, array: Array) -> str:
        """Add a tensor, return its name."""
        self.tensors[name] = array
        self.values[name] = Value(array.dtype.name, array.shape)
        return name

    def node(
        self, name: str, op: str, inputs: list[str], params: Mapping[str, Array] | None = None, **attrs: Attr
    ) -> str:
        """Append a node, its dtype and shape inferred; return its name."""
        roles = {role: self.tensor(f"{name}.{role}", array) for role, array in (params or {}).items()}
        arrays = {role: self.tensors[tensor] for role, tensor in roles.items()}
        value = OPS[op].check([self.values[i] for i in inputs], arrays, attrs)
        self.nodes.append(Node(name, op, tuple(inputs), roles, dict(attrs), value.dtype, value.shape))
        self.values[name] = value
        return name

    def bytes(self, *shape: int) -> Array:
        """Random INT8 with a standard deviation of about 40."""
        return np.clip(self.rng.normal(0, 40, shape).round(), -127, 127).astype(np.int8)

    def words(self, *shape: int) -> Array:
        """Random INT16 with a standard deviation of 1000."""
        return self.rng.normal(0, 1000, shape).round().astype(np.int16)

    def scales(self, count: int, scale: float) -> tuple[Array, Array]:
        """Per channel multipliers and shifts around a scale."""
        pairs = [dyadic(scale * s) for s in self.rng.uniform(0.7, 1.4, count)]
        return np.array([m for m, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int8)

    def linear(self, name: str, x: str, width: int, out: str) -> str:
        """out std 40 for INT8, 1000 for INT16."""
        depth = self.values[x].shape[-1]
        target = 40 if out == "int8" else 1000
        mult, shift = self.scales(width, target / (1600 * math.sqrt(depth)))
        bias = self.rng.integers(-20000, 20000, width).astype(np.int32)
        params = {"weight": self.bytes(width, depth), "bias": bias, "mult": mult, "shift": shift}
        return self.node(name, "linear", [x], params, out=out)

    def layernorm(self, name: str, x: str, out: str = "int8") -> str:
        """z has a standard deviation of 2^30 / sqrt(D)."""
        depth = self.values[x].shape[-1]
        target = 40 if out == "int8" else 4000
        mult, shift = dyadic(target * math.sqrt(depth) / 2**30)
        gain = (self.rng.uniform(-1, 1, depth) * mult).astype(np.int32)
        bias = self.rng.integers(-(2 ** (shift + 4)), 2 ** (shift + 4), depth)
        return self.node(name, "layernorm", [x], {"mult": gain, "bias": bias}, shift=shift, out=out)

    def matmul(self, name: str, a: str, b: str, scale: float, columns: int, transpose: int, out: str) -> str:
        """Scales per head, or per column of a head."""
        batch = self.values[a].shape[:-2]
        mult, shift = self.scales(math.prod(batch) * columns, scale)
        params = {"mult": mult.reshape(*batch, columns), "shift": shift.reshape(*batch, columns)}
        return self.node(name, "matmul", [a, b], params, transpose_b=transpose, out=out)

    def attention(self, name: str, x: str) -> str:
        """From INT8 tokens to the INT16 projection."""
        width, heads = self.shape.width, self.shape.heads
        qkv = self.linear(f"{name}.qkv", x, 3 * width, "int8")
        parts = [
            self.node(f"{name}.{n}", "split_heads", [qkv], heads=heads, part=i, parts=3) for i, n in enumerate("qkv")
        ]
        dim = width // heads
        spread = 1500 if self.shape.softmax == "softmax2" else 130
        scores = self.matmul(f"{name}.scores", parts[0], parts[1], spread / (1600 * math.sqrt(dim)), 1, 1, "int16")
        softmax = self.node(f"{name}.softmax", self.shape.softmax, [scores], **_SOFTMAX[self.shape.softmax])
        tokens = self.values[x].shape[0]
        context = self.matmul(f"{name}.context", softmax, parts[2], math.sqrt(tokens) / 2**17, dim, 0, "int8")
        return self.linear(f"{name}.proj", self.node(f"{name}.merge", "merge_heads", [context]), width, "int16")

    def gelu(self, name: str, x: str) -> str:
        """The variant of the shape."""
        if self.shape.gelu == "gelu_table":
            table = np.array([round(v / (1 + math.exp(-1.702 * v / 32))) for v in range(-128, 128)], np.int8)
            return self.node(name, "gelu_table", [x], {"table": table})
        return self.node(name, self.shape.gelu, [x], **_GELU)

    def block(self, name: str, x: str) -> str:
        """One transformer block on the INT16 stream."""
        width = self.shape.width
        y = self.attention(f"{name}.attn", self.layernorm(f"{name}.norm1", x))
        x = self.node(f"{name}.add1", "add", [x, y], **_RESIDUAL)
        y = self.linear(f"{name}.mlp.fc1", self.layernorm(f"{name}.norm2", x), 4 * width, "int8")
        y = self.linear(f"{name}.mlp.fc2", self.gelu(f"{name}.mlp.act", y), width, "int16")
        return self.node(f"{name}.add2", "add", [x, y], **_IDENTITY)

    def masks(self, x: str, cells: int) -> str:
        """Scores [cells, classes] from decoder tokens."""
        shape, tokens = self.shape, self.values[x].shape[0]
        out = "int16" if shape.l2norm else "int8"
        ends = []
        for part, start, stop in (("patch", 0, cells), ("classes", cells, tokens)):
            rows = self.node(f"decoder.{part}", "slice", [x], start=start, stop=stop)
            rows = self.linear(f"decoder.proj_{part}", rows, shape.width, out)
            if shape.l2norm:
                mult, shift = dyadic(40 * math.sqrt(shape.width) / 2**30)
                rows = self.node(f"decoder.l2_{part}", "l2norm", [rows], mult=mult, shift=shift)
            ends.append(rows)
        masks = self.matmul("decoder.masks", ends[0], ends[1], 1000 / (1600 * math.sqrt(shape.width)), 1, 1, "int16")
        return self.layernorm("decoder.mask_norm", masks, "int16")

    def build(self) -> Graph:
        """The whole model."""
        shape = self.shape
        side = shape.image // shape.patch
        table = np.stack([np.arange(-128, 128, dtype=np.int8)] * 3)
        x = self.node("quantize_input", "quantize_input", [IMAGE], {"table": table})
        x = self.node("patchify", "patchify", [x], patch=shape.patch)
        x = self.linear("encoder.patch_embed", x, shape.width, "int16")
        x = self.node("encoder.tokens", "concat", [self.tensor("encoder.cls_token", self.words(1, shape.width)), x])
        position = self.tensor("encoder.pos_embed", self.words(side * side + 1, shape.width))
        x = self.node("encoder.pos_add", "add", [x, position], **_RESIDUAL)
        for i in range(shape.layers):
            x = self.block(f"encoder.blocks.{i}", x)
        x = self.layernorm("encoder.norm", x)
        x = self.node("encoder.patches", "slice", [x], start=1, stop=side * side + 1)
        x = self.linear("decoder.proj_dec", x, shape.width, "int16")
        classes = self.tensor("decoder.cls_emb", self.words(shape.classes, shape.width))
        x = self.node("decoder.tokens", "concat", [x, classes])
        for i in range(shape.decoder_layers):
            x = self.block(f"decoder.blocks.{i}", x)
        x = self.masks(self.layernorm("decoder.decoder_norm", x), side * side)
        x = self.node("scores", "to_grid", [x], height=side, width=side)
        return Graph(tuple(self.nodes), self.tensors, x, self.info())

    def info(self) -> ModelInfo:
        """One window, grey levels for colours."""
        count, window = self.shape.classes, (self.shape.image, self.shape.image)
        names = tuple(f"class {i}" for i in range(count))
        palette = tuple((i % 256, i % 256, i % 256) for i in range(count))
        patch, upsample = self.shape.patch, self.shape.upsample
        return ModelInfo("random", "intseg", names, palette, window, window, patch, (127, 127, 127), upsample)
