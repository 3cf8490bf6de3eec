"""Small valid graphs at random, to compare backends, targets and versions on: every op, attribute and fused pattern.

A case is named by family, seed and index. It is the same everywhere: nothing but `random.Random` and integer arithmetic
make it, because the streams of NumPy's generators change between versions.

* `random`: values and scales that keep activations spread over their range, as those of a trained model are.
* `adversarial`: operands all lowest, all highest, alternating, one-hot, tied; multipliers, shifts and biases at the
  limits that loading accepts.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.errors import ModelError
from intseg.graph import IMAGE, Graph, ModelInfo, Node, validate
from intseg.ops import OPS, Array, Attr, Value

FAMILIES = ("random", "adversarial")
MAX_BYTES = 100_000
"""Tensors of one graph, at most."""

MAX_PIXELS = 4096
"""Pixels of a window, at most: the NumPy class map goes over all of them."""

_LIMITS = {"int8": (-(2**7), 2**7 - 1), "uint8": (0, 2**8 - 1), "int16": (-(2**15), 2**15 - 1)}
_EDGE_SHIFTS = (1, 2, 8, 30, 31, 32, 33, 46, 61, 62)
_EDGE_MULTS = (0, 1, 2**15, 2**30, 2**30 + 1, 2**31 - 2, 2**31 - 1)
_IDENTITY: Mapping[str, Attr] = {"mult_a": 2**30, "shift_a": 30, "mult_b": 2**30, "shift_b": 30}


@dataclass(frozen=True)
class Case:
    """A graph and what to run it on.

    name     "random 0:17": family, seed, index
    image    uint8, one window
    other    uint8, another window: what ran before must not matter
    size     (height, width) of the class map, at most the window
    """

    name: str
    graph: Graph
    image: Array
    other: Array
    size: tuple[int, int]


def make(family: str, seed: int, index: int) -> Case:
    """One case; what validation refuses (a proof that does not hold, too many bytes) is drawn again."""
    for attempt in itertools.count():
        found = _Builder(family, f"{family} {seed} {index} {attempt}").build(f"{family} {seed}:{index}")
        try:
            validate(found.graph)
        except ModelError:
            continue
        if sum(array.nbytes for array in found.graph.tensors.values()) < MAX_BYTES:
            return found
    raise AssertionError


def cases(count: int, adversarial: int, seed: int = 0) -> Iterator[Case]:
    """`count` random cases, then `adversarial` adversarial ones."""
    for family, number in zip(FAMILIES, (count, adversarial), strict=True):
        for index in range(number):
            yield make(family, seed, index)


def parse(name: str) -> Case:
    """The case of a name."""
    family, place = name.split()
    seed, index = map(int, place.split(":"))
    return make(family, seed, index)


class _Draw:
    """Integers and integer arrays."""

    def __init__(self, key: str) -> None:
        self.source = random.Random(key)

    def pick(self, *options: Any) -> Any:
        """One of the options, all as likely."""
        return self.source.choice(options)

    def often(self, percent: int) -> bool:
        """True in so many of a hundred cases."""
        return self.source.randrange(100) < percent

    def within(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return self.source.randint(low, high)

    def between(self, low: int, high: int, *shape: int) -> NDArray[np.int64]:
        """Integers in [low, high], high - low below 2^63."""
        raw = np.frombuffer(self.source.randbytes(8 * math.prod(shape)), "<u8")
        offsets = (raw % np.uint64(high - low + 1)).astype(np.int64)
        return (offsets + np.int64(low)).reshape(shape)

    def bell(self, low: int, high: int, spread: int, *shape: int) -> NDArray[np.int64]:
        """Integers in [low, high] around the middle with about this standard deviation."""
        raw = np.frombuffer(self.source.randbytes(4 * math.prod(shape)), np.int8).astype(np.int64)
        total = raw.reshape(-1, 4).sum(axis=1) * spread // 148
        return np.clip(total + (low + high + 1) // 2, low, high).reshape(shape)

    def spread_out(self, dtype: str, *shape: int) -> Array:
        """What activations and weights of a model look like, and now and then something else."""
        low, high = _LIMITS[dtype]
        kind = self.within(0, 9)
        if kind < 7:
            return self.bell(low, high, (high - low) // 6, *shape).astype(dtype)
        if kind == 7:
            return self.between(max(low, -2), 2, *shape).astype(dtype)
        return self.between(low, high, *shape).astype(dtype)

    def extreme(self, dtype: str, *shape: int) -> Array:
        """Arrays that kernels get wrong."""
        low, high = _LIMITS[dtype]
        kind = self.pick("low", "high", "alternating", "one-hot", "rows", "ties", "edges", "any")
        flat = np.full(math.prod(shape), low if kind != "high" else high, np.int64)
        if kind == "alternating":
            flat[self.within(0, 1) :: 2] = high
        elif kind == "one-hot":
            flat[:] = self.pick(low, max(low, 0))
            flat[self.within(0, flat.size - 1)] = high
        elif kind == "rows":
            rows = flat.size // shape[-1]
            flat = np.repeat(self.between(low, high, rows), shape[-1])
        elif kind == "ties":
            flat = self.between(max(low, -1), 1, flat.size)
        elif kind == "edges":
            edges = np.array([low, low + 1, max(low, -1), 0, 1, high - 1, high])
            flat = edges[self.between(0, len(edges) - 1, flat.size)]
        elif kind == "any":
            flat = self.between(low, high, flat.size)
        return flat.reshape(shape).astype(dtype)


class _Builder(_Draw):
    """One graph, node by node: dtypes and shapes are those that the ops infer."""

    def __init__(self, family: str, key: str) -> None:
        super().__init__(key)
        self.hard = family == "adversarial"
        self.nodes: list[Node] = []
        self.tensors: dict[str, Array] = {}
        self.values: dict[str, Value] = {}

    # Pieces

    def fill(self, dtype: str, *shape: int) -> Array:
        """Elements in the style of the family."""
        return self.extreme(dtype, *shape) if self.hard and self.often(75) else self.spread_out(dtype, *shape)

    def tensor(self, array: Array) -> str:
        """Add a tensor, return its name."""
        name = f"tensor.{len(self.tensors)}"
        self.tensors[name] = np.ascontiguousarray(array)
        self.values[name] = Value(array.dtype.name, array.shape)
        return name

    def node(self, op: str, *inputs: str, params: Mapping[str, Array] | None = None, **attrs: Attr) -> str:
        """Append a node, return its name. Raises ModelError where the op refuses it."""
        name = f"{op}.{len(self.nodes)}"
        roles = {role: self.tensor(array) for role, array in (params or {}).items()}
        value = OPS[op].check([self.values[i] for i in inputs], params or {}, attrs)
        self.nodes.append(Node(name, op, inputs, roles, dict(attrs), value.dtype, value.shape))
        self.values[name] = value
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value."""
        return self.values[name].shape

    def scale(self, source: int, target: int) -> tuple[int, int]:
        """(mult, shift) that brings values of about `source` to about `target`; at the limits in the hard family."""
        if self.hard and self.often(40):
            return self.pick(*_EDGE_MULTS), self.pick(*_EDGE_SHIFTS)
        numerator, denominator = target * self.within(700, 1400), max(source, 1) * 1000
        whole = 31 + denominator.bit_length() - numerator.bit_length()
        shift = min(max(whole - self.pick(0, 0, 0, 0, self.within(0, 30)), 1), 62)
        return min((numerator << shift) // denominator, 2**31 - 1), shift

    def scales(self, count: int, source: int, target: int) -> dict[str, Array]:
        """One scale per channel: all different, all equal, or all but one equal."""
        first = self.scale(source, target)
        kind = self.within(0, 3)
        pairs = [self.scale(source, target) if kind == 0 else first for _ in range(count)]
        if kind == 1:
            pairs[self.within(0, count - 1)] = self.pick(*_EDGE_MULTS), self.pick(*_EDGE_SHIFTS)
        return {"mult": np.array([m for m, _ in pairs], np.int32), "shift": np.array([s for _, s in pairs], np.int8)}

    def linear(self, x: str, width: int, out: str) -> str:
        depth = self.shape(x)[1]
        weight = self.fill("int8", width, depth)
        room = 2**31 - 1 - 128 * np.abs(weight.astype(np.int64)).sum(axis=1)
        source = 40 * 40 * (math.isqrt(depth) + 1)
        bias = self.between(-source, source, width)
        if self.hard and self.often(40):
            bias = np.where(self.between(0, 1, width) > 0, room, -room)
            source = self.pick(source, 2**31 - 1)
        bias = np.clip(bias, -room, room).astype(np.int32)
        scales = self.scales(width, source, 40 if out == "int8" else 4000)
        return self.node("linear", x, params={"weight": weight, "bias": bias, **scales}, out=out)

    def layernorm(self, x: str, out: str) -> str:
        depth, target = self.shape(x)[-1], 40 if out == "int8" else 8000
        shift = self.pick(*_EDGE_SHIFTS) if self.hard else self.within(24, 50)
        unit = min(max(target * math.isqrt(depth) * 2**shift >> 30, 1), 2**31 - 1)
        reach = min(target << shift, 2**61 - 1)
        mult, bias = self.between(-unit, unit, depth), self.between(-reach, reach, depth) // 2
        if self.hard and self.often(50):
            mult = np.resize(self.between(-1, 1, self.within(1, 5)) * self.pick(2**31 - 1, 2**30, 1), depth)
        if self.hard and self.often(50):
            limit = self.pick(2**61 - 1, 2 ** min(shift + 6, 60), 1)
            bias = self.between(-1, 1, depth) * limit
        return self.node("layernorm", x, params={"mult": mult.astype(np.int32), "bias": bias}, shift=shift, out=out)

    def l2norm(self, x: str) -> str:
        mult, shift = self.scale(2**30 // (math.isqrt(self.shape(x)[-1]) + 1), 40)
        return self.node("l2norm", x, mult=mult, shift=shift)

    def add(self, a: str, b: str) -> str:
        """Identity, a matched scale, or the largest that loading accepts."""
        attrs = dict(_IDENTITY)
        for branch in "ab" if self.often(60) else "":
            mult, shift = self.scale(4, self.pick(1, 2, 4, 4, 9))
            if self.hard and self.often(30):
                mult = 2 ** (shift + 14) - 1
            attrs |= {f"mult_{branch}": min(mult, 2 ** (shift + 14) - 1, 2**31 - 1), f"shift_{branch}": shift}
        return self.node("add", a, b, **attrs)

    def matmul(self, a: str, b: str, source: int, target: int, transpose: int, out: str, per_column: bool) -> str:
        batch, width = self.shape(a)[:-2], self.shape(b)[-2 if transpose else -1]
        columns = width if per_column else 1
        scales = self.scales(math.prod(batch) * columns, source, target)
        params = {role: array.reshape(*batch, columns) for role, array in scales.items()}
        return self.node("matmul", a, b, params=params, transpose_b=transpose, out=out)

    def gelu(self, x: str) -> str:
        op = self.pick("gelu_table", "gelu_table", "shift_gelu", "sigmoid_gelu", "none")
        if op == "none":
            return x
        if op == "gelu_table":
            return self.node(op, x, params={"table": self.fill("int8", 256)})
        k_inter = self.pick(0, 8, 15, 23, 23, 23, 31)
        k_out, i0 = self.pick(8, 16), self.within(5, 80)
        if self.hard and self.often(60):
            i0 = self.pick(1, 2, min(2**15, 2 ** (45 - k_inter) - 1))
        mult, shift = self.scale(40 << (k_out - 1), 40)
        kind, lam = self.pick("paper", "normalized"), self.pick(1, 2, 6, 6, 64)
        attrs = {"i0": i0, "k_inter": k_inter, "lam": lam, "int_div_kind": kind, "k_out": k_out}
        return self.node(op, x, **attrs, mult=mult, shift=shift)

    def softmax(self, dtype: str) -> tuple[str, dict[str, Attr], int, int]:
        """(op, attributes, spread of the logits it likes, what one is in its result) for logits of a dtype."""
        if dtype == "int16" and self.often(60):
            frac_bits = self.within(0, 15)
            a1, a2 = self.pick((16384, 0), (21955, 5571), (21955, 5571), (32767, 0), (32767, 16383), (16384, 16383))
            return "softmax2", {"frac_bits": frac_bits, "a1": a1, "a2": a2}, min(2 << frac_bits, 20000), 2**15
        k_inter = self.within(0, 15)
        i0, out = self.pick(1, 2 ** (15 - k_inter), self.within(1, 2 ** (15 - k_inter))), self.pick("int8", "int16")
        attrs: dict[str, Attr] = {
            "i0": i0,
            "k_inter": k_inter,
            "int_div_kind": self.pick("paper", "normalized"),
            "out": out,
        }
        return "shiftmax", attrs, min(3 * i0, 20000), 2**7 if out == "int8" else 2**15

    def attention(self, x: str, width: int, dim: int) -> str:
        """int8 [T, D] to int16 [T, width]. Half of them have the form that is fused."""
        heads, usual = self.pick(1, 1, 2, 3, 4), self.often(50)
        unusual = ("apart", "pairs", "bytes", "columns", "words", "shared", "words out", "mixed")
        variant = "usual" if usual else self.pick(*unusual)
        parts = [0, 1, 2]
        if variant == "apart":
            sources = [self.linear(x, heads * dim, "int8") for _ in parts]
            q, k, v = (self.node("split_heads", s, heads=heads, part=0, parts=1) for s in sources)
        elif variant == "pairs":
            sources = [self.linear(x, n * heads * dim, "int8") for n in (1, 2, 2)]
            q = self.node("split_heads", sources[0], heads=heads, part=0, parts=1)
            k, v = (self.node("split_heads", sources[i], heads=heads, part=i - 1, parts=2) for i in (1, 2))
        else:
            if variant == "mixed":
                self.source.shuffle(parts)
            qkv = self.linear(x, 3 * heads * dim, "int8")
            q, k, v = (self.node("split_heads", qkv, heads=heads, part=p, parts=3) for p in parts)
        if variant == "words" and dim <= 511:
            q = self.node("split_heads", self.linear(x, heads * dim, "int16"), heads=heads, part=0, parts=1)
        logits = "int8" if variant == "bytes" else "int16"
        op, attrs, spread, one = self.softmax(logits)
        source = (4000 if self.values[q].dtype == "int16" else 40) * 40 * (math.isqrt(dim) + 1)
        target = 40 if logits == "int8" else spread
        scores = self.matmul(q, k, source, target, 1, logits, variant == "columns" or self.often(5))
        probabilities = self.node(op, scores, **attrs)
        out = "int16" if variant == "words out" else "int8"
        goal = 40 if out == "int8" else 4000
        context = self.matmul(probabilities, v, one * 30, goal, 0, out, self.often(60))
        if variant == "shared":
            again = self.matmul(probabilities, k, one * 30, 40, 0, "int8", False)
            merged = [self.node("merge_heads", c) for c in (context, again)]
            return self.add(*(self.linear(m, width, "int16") for m in merged))
        merge = self.node("merge_heads", context)
        if out == "int16":
            merge = self.l2norm(merge) if self.often(50) else self.layernorm(merge, "int8")
        return self.linear(merge, width, "int16")

    def block(self, x: str, dim: int) -> str:
        """A transformer block on the INT16 stream, halves of which may be missing."""
        width = self.shape(x)[1]
        if self.often(85):
            x = self.residual(x, self.attention(self.layernorm(x, "int8"), width, dim))
        if self.often(70):
            hidden = self.linear(self.layernorm(x, "int8"), self.pick(1, 3, width, 2 * width, 4 * width), "int8")
            x = self.residual(x, self.linear(self.gelu(hidden), width, "int16"))
        return self.residual(x, self.oddity(x)) if self.often(20) else x

    def oddity(self, x: str) -> str:
        """int16 [T, D] to int16 of the same shape by what no Segmenter does: other ranks, constants, moved int8."""
        tokens, width = self.shape(x)
        kind = self.pick("heads", "bytes", "mixer", "gate", "grid")
        if kind == "heads":
            parts, heads, dim = self.pick(1, 2), self.pick(1, 2, 3), self.pick(1, 3, 8, 17)
            y = self.linear(self.layernorm(x, "int8"), parts * heads * dim, "int16")
            y = self.node("split_heads", y, heads=heads, part=parts - 1, parts=parts)
            y = self.add(y, self.tensor(self.fill("int16", *self.shape(y))))
            y = self.gelu(self.layernorm(y, "int8") if self.often(50) else self.l2norm(y))
            return self.linear(self.node("merge_heads", y), width, "int16")
        if kind == "bytes":
            y = self.node("concat", self.tensor(self.fill("int8", 2, width)), self.layernorm(x, "int8"))
            y = self.node("slice", self.node("slice", y, start=1, stop=tokens + 2), start=1, stop=tokens + 1)
            return self.linear(self.gelu(y), width, "int16")
        if kind == "mixer":
            weights = self.tensor(self.fill("int8", tokens, tokens))
            y = self.layernorm(x, "int8")
            return self.matmul(weights, y, 1600 * (math.isqrt(tokens) + 1), 4000, 0, "int16", self.often(50))
        if kind == "gate":
            op, attrs, _, one = self.softmax("int16")
            weights = self.tensor(self.fill("int8", width, width))
            return self.matmul(self.node(op, x, **attrs), weights, one * 30, 4000, self.pick(0, 1), "int16", True)
        grid = self.node("to_grid", self.add(x, x), height=1, width=tokens)
        y = self.node("merge_heads", self.layernorm(grid, self.pick("int8", "int16")))
        return y if self.values[y].dtype == "int16" else self.linear(y, width, "int16")

    def residual(self, x: str, y: str) -> str:
        """Either order, now and then one operand twice: the output may take the place of the last input."""
        if self.often(5):
            y = self.add(y, y)
        return self.add(x, y) if self.often(75) else self.add(y, x)

    # The whole

    def build(self, name: str) -> Case:
        """Draw until the ops accept everything."""
        while True:
            self.nodes, self.tensors, self.values = [], {}, {}
            try:
                return self.segmenter(name)
            except ModelError:
                continue

    def segmenter(self, name: str) -> Case:
        """Patches, tokens, blocks, scores, labels."""
        many = self.often(25)  # more than one panel of tokens, so that threads share them
        side = self.pick(1, 2, 3, 4, 5) if not many else self.within(8, 13)
        rows, columns = side, self.pick(1, side, side + 1) if not many else self.within(8, 14)
        patch = self.pick(*(p for p in (1, 2, 3, 4, 4, 5, 7, 8, 16, 32, 64) if p * p * rows * columns <= MAX_PIXELS))
        coarse = self.pick(2, 3) if not many and self.often(8) and patch * 3 <= 16 else 1
        window = rows * patch * coarse, columns * patch * coarse
        width = self.pick(1, 2, 3, 5, 8, 12, 16, 17, 31, 33) if not many else self.pick(3, 8, 16)
        if not many and self.often(4):
            width = self.pick(64, 65, 72)
        if patch > 16:
            width = min(width, 5)
        dim = self.pick(1, 2, 3, 4, 7, 8, 16) if many or self.often(90) else self.pick(31, 32, 33, 64, 66)
        classes = self.pick(1, 2, 3, 5, 11, 19) if self.often(97) else self.pick(65, 257, 300)
        self.values = {IMAGE: Value("uint8", (*window, 3))}

        x = self.tokens(window, patch * coarse, width)
        extra = self.shape(x)[0] - rows * columns
        for _ in range(self.pick(0, 1, 1, 1, 2)):
            x = self.block(x, dim)
        x = self.scores(x, extra, rows * columns, classes, dim)
        x = self.node("to_grid", x, height=rows, width=columns)
        if coarse > 1:
            x = self.node("upsample_nearest", x, factor=coarse)
        if self.often(15):
            self.side_branch(x)
        size = tuple(n - self.pick(0, 0, self.within(0, min(patch, n) - 1)) for n in window)
        graph = Graph(tuple(self.nodes), self.tensors, x, self.info(window, patch, classes))
        images = [self.fill("uint8", *window, 3) for _ in range(2)]
        return Case(name, graph, *images, (size[0], size[1]))

    def tokens(self, window: tuple[int, int], patch: int, width: int) -> str:
        """int16 [T, width] from the image: class tokens in front, a position embedding."""
        table = np.tile(np.arange(-128, 128), (3, 1)).astype(np.int8) if self.often(50) else self.fill("int8", 3, 256)
        source = IMAGE
        if self.often(3):  # pixels that the graph computes
            source = self.node("argmax", self.tensor(self.fill("int16", *window, 3, self.pick(2, 7))))
        pixels = self.node("quantize_input", source, params={"table": table})
        patches = self.node("patchify", pixels, patch=patch)
        x = self.linear(patches, width, "int16")
        if self.often(5):  # a second reader: nothing is fused
            x = self.add(x, self.linear(self.node("patchify", pixels, patch=patch), width, "int16"))
        for _ in range(self.pick(0, 1, 1, 2)):
            x = self.node("concat", self.tensor(self.fill("int16", 1, width)), x)
        if self.often(80):
            position = self.tensor(self.fill("int16", *self.shape(x)))
            x = self.add(x, position) if self.often(70) else self.add(position, x)
        return x

    def scores(self, x: str, extra: int, cells: int, classes: int, dim: int) -> str:
        """int8 or int16 [cells, classes]: the masks of a decoder, or the linear decoder."""
        if extra or self.often(30):
            start = self.pick(0, extra)
            x = self.node("slice", x, start=start, stop=start + cells)
        if self.often(40):
            y = self.layernorm(x, "int8") if self.often(80) else self.l2norm(x)
            return self.linear(y, classes, self.pick("int8", "int16", "int16"))
        width = self.shape(x)[1]
        tokens = self.tensor(self.fill("int16", classes, width))
        x = self.node("concat", x, tokens)
        if self.often(30):
            x = self.block(x, dim)
        normed = self.layernorm(x, "int8")
        out = self.pick("int8", "int16")
        ends = []
        for start, stop in ((0, cells), (cells, cells + classes)):
            part = self.linear(self.node("slice", normed, start=start, stop=stop), width, out)
            ends.append(part if out == "int8" else self.l2norm(part))
        source, target = 40 * 40 * (math.isqrt(width) + 1), 4000
        masks = self.matmul(*ends, source, target, 1, "int16", self.often(30))
        return self.layernorm(masks, "int16") if self.often(70) else masks

    def side_branch(self, scores: str) -> None:
        """Nodes that nobody reads: labels inside of the graph."""
        height = self.shape(scores)[0]
        factor = self.pick(1, 2, 3)
        if self.values[scores].dtype == "int16":
            if self.often(60):
                start = self.within(0, height * factor - 1)
                stop = self.within(start + 1, height * factor)
                grid = self.node("upsample_bilinear", scores, factor=factor, row_start=start, row_stop=stop)
            else:
                grid = self.node("upsample_nearest", scores, factor=factor)
            self.node("upsample_nearest", self.node("argmax", grid), factor=self.pick(1, 2))
        shape = self.pick(1, 2), self.pick(1, 3), self.pick(1, 4)
        extremes = self.between(0, 1, *shape) * (2**32 - 1) - 2**31
        constant = self.tensor(extremes.astype(np.int32))
        self.node("argmax", self.node("upsample_nearest", constant, factor=factor))
        self.node("upsample_bilinear", constant, factor=self.pick(1, 2, 64), row_start=0, row_stop=1)

    def info(self, window: tuple[int, int], patch: int, classes: int) -> ModelInfo:
        """Grey levels for colours."""
        names = tuple(f"class {i}" for i in range(classes))
        palette = tuple((i % 256, i % 256, i % 256) for i in range(classes))
        upsample = self.pick("nearest", "bilinear", "bilinear", "bilinear")
        return ModelInfo("random", "none", names, palette, window, window, patch, (127, 127, 127), upsample)
