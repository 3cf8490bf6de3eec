"""Small valid graphs at random, to compare backends, targets and versions on: every op, attribute and fused pattern.

A case is named by family, seed and index. It is the same everywhere: nothing but `intseg.exam.Numbers` makes it,
because the streams of NumPy's generators change between versions. Parameters and attributes are those that exams draw,
so that a new op takes part by itself: beside the others that keep the shape of their input if it does so, and called
with constants.

* `random`: values and scales that keep activations spread over their range, as those of a trained model are.
* `adversarial`: operands all lowest, all highest, alternating, one-hot, tied; multipliers, shifts and biases at the
  limits that loading accepts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from intseg.build import GraphBuilder
from intseg.errors import ModelError
from intseg.exam import EXAMS, LIMITS, Numbers
from intseg.graph import IMAGE, Graph, ModelInfo, validate
from intseg.ops import OPS, Array, Attr, Value

FAMILIES = ("random", "adversarial")
MAX_BYTES = 100_000
"""Tensors of one graph, at most."""

MAX_PIXELS = 4096
"""Pixels of a window, at most: the NumPy class map goes over all of them."""


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
    """One case; what an op or validation refuses (a proof that does not hold, too many bytes) is drawn again."""
    for attempt in itertools.count():
        d = Dice(family, f"{family} {seed} {index} {attempt}")
        try:
            found = _Builder(d).segmenter(f"{family} {seed}:{index}")
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


class Dice(Numbers):
    """The source of a family: values as those of a model, or such that kernels get wrong."""

    def __init__(self, family: str, key: str) -> None:
        super().__init__(Numbers.named(key).state)
        self.hard = family == "adversarial"

    def often(self, percent: int) -> bool:
        """True in so many of a hundred cases."""
        return self.below(100) < percent

    def odd(self) -> bool:
        return self.hard and self.often(45)

    def within(self, low: int, high: int) -> int:
        """Of a hard family, often an end, a power of two, or one beside it."""
        if not self.hard or self.often(60):
            return super().within(low, high)
        power = 1 << super().within(0, max(high.bit_length() - 1, 0))
        return min(max(self.pick(low, high, power, power - 1, power + 1), low), high)

    def array(self, dtype: str, *shape: int, low: int | None = None, high: int | None = None) -> Array:
        low, high = LIMITS[dtype][0] if low is None else low, LIMITS[dtype][1] if high is None else high
        if self.hard and self.often(75):
            return self._extreme(dtype, shape, low, high)
        kind = super().within(0, 9)
        if kind < 7 and high - low < 2**32:
            return self._bell(dtype, shape, low, high)
        if kind == 7:
            low, high = max(low, -2), max(min(high, 2), low)
        return super().array(dtype, *shape, low=low, high=high)

    def _bell(self, dtype: str, shape: tuple[int, ...], low: int, high: int) -> Array:
        """Around the middle, with a standard deviation of about a sixth of the range."""
        total = super().array("int8", *shape, 4).astype(np.int64).sum(axis=-1) * ((high - low) // 6) // 148
        return np.clip(total + (low + high + 1) // 2, low, high).astype(dtype)

    def _extreme(self, dtype: str, shape: tuple[int, ...], low: int, high: int) -> Array:
        """Lowest, highest, alternating, one-hot, constant rows, ties, a few edges."""
        kind = self.pick("low", "high", "alternating", "one-hot", "rows", "ties", "edges")
        flat = np.full(math.prod(shape), low if kind != "high" else high, np.int64)
        if kind == "alternating":
            flat[self.pick(0, 1) :: 2] = high
        elif kind == "one-hot":
            flat[:] = self.pick(low, min(max(low, 0), high))
            flat[super().within(0, flat.size - 1)] = high
        elif kind == "rows":
            flat = super().array("int64", flat.size // shape[-1], low=low, high=high).repeat(shape[-1])
        elif kind == "ties":
            flat = super().array("int64", flat.size, low=max(low, -1), high=max(min(high, 1), low))
        elif kind == "edges":
            edges = np.clip([low, low + 1, -1, 0, 1, high - 1, high], low, high)
            flat = edges[super().array("int8", flat.size, low=0, high=6)]
        return flat.reshape(shape).astype(dtype)


@cache
def same_shape() -> dict[str, list[Value]]:
    """Ops of one input, not of pixels, whose output has its shape, with outputs that they give."""
    found = {}
    for op, contract in OPS.items():
        if len(contract.inputs) == 1 and "uint8" not in contract.inputs[0] and EXAMS[op].draw is not None:
            calls = [(call, Value(call.inputs[0].dtype.name, call.inputs[0].shape)) for call in EXAMS[op].calls()]
            outputs = [contract.check([x], call.params, call.attrs) for call, x in calls]
            if all(x.shape == out.shape for (_, x), out in zip(calls, outputs, strict=True)):
                found[op] = outputs
    return found


class _Builder(GraphBuilder):
    """One graph, node by node."""

    def __init__(self, d: Dice) -> None:
        self.d = d
        many = d.often(25)  # more than one panel of tokens, so that threads share them
        side = d.pick(1, 2, 3, 4, 5) if not many else d.within(8, 13)
        self.rows, self.columns = side, d.pick(1, side, side + 1) if not many else d.within(8, 14)
        cells = self.rows * self.columns
        patch = d.pick(*(p for p in (1, 2, 3, 4, 4, 5, 7, 8, 16, 32, 64) if p * p * cells <= MAX_PIXELS))
        self.coarse = d.pick(2, 3) if not many and d.often(8) and patch * 3 <= 16 else 1
        self.width = d.pick(1, 2, 3, 5, 8, 12, 16, 17, 31, 33) if not many else d.pick(3, 8, 16)
        if not many and d.often(4):
            self.width = d.pick(64, 65, 72)
        if patch > 16:
            self.width = min(self.width, 5)
        self.dim = d.pick(1, 2, 3, 4, 7, 8, 16) if many or d.often(90) else d.pick(31, 32, 33, 64, 66)
        classes = d.pick(1, 2, 3, 5, 11, 19) if d.often(97) else d.pick(65, 257, 300)
        window = self.rows * patch * self.coarse, self.columns * patch * self.coarse
        super().__init__(_info(window, patch, classes, d.pick("nearest", "bilinear", "bilinear", "bilinear")))

    # Pieces

    def constant(self, array: Array) -> str:
        """A tensor as an input."""
        return self.tensor(f"tensor.{len(self.tensors)}", array)

    def put(self, op: str, *inputs: str, **operands: Array | Attr) -> str:
        """A node with a name of its own."""
        return self.node(f"{op}.{len(self.nodes)}", op, *inputs, **operands)

    def drawn(self, op: str, *inputs: str, **choices: Attr) -> str:
        """A node whose parameters and attributes its exam draws, but for the choices."""
        draw = EXAMS[op].draw
        assert draw is not None
        found = draw(self.d, *(self.values[name] for name in inputs), **choices)
        return self.put(op, *inputs, **found.params, **found.attrs)

    def linear(self, x: str, width: int, out: str) -> str:
        return self.drawn("linear", x, width=width, out=out)

    def layernorm(self, x: str, out: str) -> str:
        return self.drawn("layernorm", x, out=out)

    def like(self, x: str, out: str = "", probabilities: bool = False) -> str:
        """An op that keeps the shape of x and gives this dtype: a GELU or a norm, or a softmax."""
        wanted = [
            op
            for op, outputs in same_shape().items()
            if self.values[x].dtype in OPS[op].inputs[0]
            if any(out in ("", o.dtype) and (o.row_sum is not None) == probabilities for o in outputs)
        ]
        op = self.d.pick(*wanted)
        return self.drawn(op, x, **({"out": out} if out in OPS[op].attrs.get("out", ()) else {}))

    def anything(self) -> None:
        """Any call of any op, on constants."""
        op = self.d.pick(*OPS)
        call = EXAMS[op].any_call(self.d)
        self.put(op, *(self.constant(x) for x in call.inputs), **call.params, **call.attrs)

    def heads(self, x: str, dim: int, variant: str) -> list[str]:
        """Queries, keys and values of heads: parts of one linear op, or not."""
        heads, parts = self.d.pick(1, 1, 2, 3, 4), [0, 1, 2]
        if variant == "apart":
            sources = [self.linear(x, heads * dim, "int8") for _ in parts]
            return [self.put("split_heads", s, heads=heads, part=0, parts=1) for s in sources]
        if variant == "pairs":
            sources = [self.linear(x, n * heads * dim, "int8") for n in (1, 2, 2)]
            places = ((0, 1), (0, 2), (1, 2))
            return [
                self.put("split_heads", s, heads=heads, part=p, parts=n)
                for s, (p, n) in zip(sources, places, strict=True)
            ]
        if variant == "mixed":
            parts = list(self.d.pick((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)))
        qkv = self.linear(x, 3 * heads * dim, "int8")
        found = [self.put("split_heads", qkv, heads=heads, part=p, parts=3) for p in parts]
        if variant == "words" and dim <= 511:
            found[0] = self.put("split_heads", self.linear(x, heads * dim, "int16"), heads=heads, part=0, parts=1)
        return found

    def attention(self, x: str, width: int, dim: int) -> str:
        """int8 [T, D] to int16 [T, width]. Half of them have the form that is fused."""
        d = self.d
        unusual = ("apart", "pairs", "bytes", "columns", "words", "shared", "words out", "mixed")
        variant = "usual" if d.often(50) else d.pick(*unusual)
        q, k, v = self.heads(x, dim, variant)
        logits, out = "int8" if variant == "bytes" else "int16", "int16" if variant == "words out" else "int8"
        columns = variant == "columns" or d.often(5)
        target = 40 if logits == "int8" else d.pick(40, 400, 2000, 12000)
        late = variant not in ("bytes", "words out") and d.often(40)  # weights of a byte, divided after the product
        if late and d.often(60):
            shift = d.array("int8", self.shape(q)[0], 1, low=31, high=60)
            one = np.full_like(shift, 1, np.int32) << 30
            scores = self.put("matmul", q, k, mult=one, shift=shift, transpose_b=1, out=logits)
        else:
            scores = self.drawn("matmul", q, k, transpose_b=1, out=logits, target=target, columns=columns)
        weights = self.drawn("exp_weights", scores) if late else self.like(scores, probabilities=True)
        product, attrs = ("weighted_mean", {}) if late else ("matmul", {"transpose_b": 0, "out": out})
        context = self.drawn(product, weights, v, **attrs, columns=d.often(60))
        if variant == "shared":
            again = self.drawn(product, weights, k, **attrs, columns=0)
            merged = [self.put("merge_heads", c) for c in (context, again)]
            return self.drawn("add", *(self.linear(m, width, "int16") for m in merged))
        merge = self.put("merge_heads", context)
        return self.linear(self.like(merge, "int8") if out == "int16" else merge, width, "int16")

    def block(self, x: str) -> str:
        """A transformer block on the INT16 stream, halves of which may be missing."""
        d, width = self.d, self.shape(x)[1]
        if d.often(85):
            x = self.residual(x, self.attention(self.layernorm(x, "int8"), width, self.dim))
        if d.often(70):
            hidden = self.linear(self.layernorm(x, "int8"), d.pick(1, 3, width, 2 * width, 4 * width), "int8")
            x = self.residual(x, self.linear(self.like(hidden, "int8") if d.often(80) else hidden, width, "int16"))
        return self.residual(x, self.oddity(x)) if d.often(20) else x

    def oddity(self, x: str) -> str:
        """int16 [T, D] to int16 of the same shape by what no Segmenter does: other ranks, constants, moved int8."""
        d, (tokens, width) = self.d, self.shape(x)
        kind = d.pick("heads", "bytes", "mixer", "gate", "grid")
        if kind == "heads":
            parts, heads, dim = d.pick(1, 2), d.pick(1, 2, 3), d.pick(1, 3, 8, 17)
            y = self.linear(self.layernorm(x, "int8"), parts * heads * dim, "int16")
            y = self.put("split_heads", y, heads=heads, part=parts - 1, parts=parts)
            y = self.drawn("add", y, self.constant(d.array("int16", *self.shape(y))))
            return self.linear(self.put("merge_heads", self.like(self.like(y, "int8"), "int8")), width, "int16")
        if kind == "bytes":
            y = self.put("concat", self.constant(d.array("int8", 2, width)), self.layernorm(x, "int8"))
            y = self.put("slice", self.put("slice", y, start=1, stop=tokens + 2), start=1, stop=tokens + 1)
            return self.linear(self.like(y, "int8"), width, "int16")
        if kind == "mixer":
            weights = self.constant(d.array("int8", tokens, tokens))
            return self.drawn("matmul", weights, self.layernorm(x, "int8"), transpose_b=0, out="int16")
        if kind == "gate":
            weights = self.constant(d.array("int8", width, width))
            return self.drawn("matmul", self.like(x, probabilities=True), weights, out="int16", columns=1)
        grid = self.put("to_grid", self.drawn("add", x, x), height=1, width=tokens)
        y = self.put("merge_heads", self.layernorm(grid, d.pick("int8", "int16")))
        return y if self.values[y].dtype == "int16" else self.linear(y, width, "int16")

    def residual(self, x: str, y: str) -> str:
        """Either order, now and then one operand twice: the output may take the place of the last input."""
        if self.d.often(5):
            y = self.drawn("add", y, y)
        return self.drawn("add", x, y) if self.d.often(75) else self.drawn("add", y, x)

    # The whole

    def segmenter(self, name: str) -> Case:
        """Patches, tokens, blocks, scores, labels."""
        d, cells = self.d, self.rows * self.columns
        x = self.tokens(self.info.patch * self.coarse)
        extra = self.shape(x)[0] - cells
        for _ in range(d.pick(0, 1, 1, 1, 2)):
            x = self.block(x)
        x = self.put("to_grid", self.scores(x, extra, cells), height=self.rows, width=self.columns)
        if self.coarse > 1:
            x = self.put("upsample_nearest", x, factor=self.coarse)
        for _ in range(d.pick(0, 0, 0, 0, 0, 0, 1, 3)):  # nodes that nobody reads
            self.labels(x) if d.often(30) else self.anything()
        self.narrow()
        window, patch = self.info.window, self.info.patch
        size = tuple(n - d.pick(0, 0, d.within(0, min(patch, n) - 1)) for n in window)
        images = [d.array("uint8", *window, 3) for _ in range(2)]
        return Case(name, self.graph(x), *images, (size[0], size[1]))

    def narrow(self) -> None:
        """Weights and tables of fewer bits, some of them packed."""
        for name, tensor in self.tensors.items():
            if name.endswith((".weight", ".table")) and tensor.dtype == np.int8 and self.d.often(30):
                bits = self.d.within(2, 8)
                self.tensors[name] = np.clip(tensor, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
                if self.d.often(70):
                    self.packed[name] = bits

    def tokens(self, patch: int) -> str:
        """int16 [T, width] from the image: class tokens in front, a position embedding."""
        d, width, source = self.d, self.width, IMAGE
        table = np.tile(np.arange(-128, 128), (3, 1)).astype(np.int8) if d.often(50) else d.array("int8", 3, 256)
        if d.often(3):  # pixels that the graph computes
            source = self.put("argmax", self.constant(d.array("int16", *self.info.window, 3, d.pick(2, 7))))
        pixels = self.put("quantize_input", source, table=table)
        x = self.linear(self.put("patchify", pixels, patch=patch), width, "int16")
        if d.often(5):  # a second reader: nothing is fused
            x = self.drawn("add", x, self.linear(self.put("patchify", pixels, patch=patch), width, "int16"))
        for _ in range(d.pick(0, 1, 1, 2)):
            x = self.put("concat", self.constant(d.array("int16", 1, width)), x)
        if d.often(80):
            position = self.constant(d.array("int16", *self.shape(x)))
            x = self.drawn("add", x, position) if d.often(70) else self.drawn("add", position, x)
        return x

    def scores(self, x: str, extra: int, cells: int) -> str:
        """int8 or int16 [cells, classes]: the masks of a decoder, or the linear decoder."""
        d, classes, width = self.d, len(self.info.classes), self.width
        if extra or d.often(30):
            start = d.pick(0, extra)
            x = self.put("slice", x, start=start, stop=start + cells)
        if d.often(40):
            return self.linear(self.like(x, "int8"), classes, d.pick("int8", "int16", "int16"))
        x = self.put("concat", x, self.constant(d.array("int16", classes, width)))
        if d.often(30):
            x = self.block(x)
        normed, out = self.layernorm(x, "int8"), d.pick("int8", "int16")
        ends = []
        for start, stop in ((0, cells), (cells, cells + classes)):
            part = self.linear(self.put("slice", normed, start=start, stop=stop), width, out)
            ends.append(part if out == "int8" else self.like(part, "int8"))
        masks = self.drawn("matmul", *ends, transpose_b=1, out="int16", columns=d.often(30))
        return self.layernorm(masks, "int16") if d.often(70) else masks

    def labels(self, scores: str) -> None:
        """Labels inside of the graph."""
        factor = self.d.pick(1, 2, 3)
        if self.values[scores].dtype == "int16" and self.d.often(60):
            rows = self.shape(scores)[0] * factor
            start = self.d.within(0, rows - 1)
            stop = self.d.within(start + 1, rows)
            grid = self.put("upsample_bilinear", scores, factor=factor, row_start=start, row_stop=stop)
        else:
            grid = self.put("upsample_nearest", scores, factor=factor)
        if self.values[grid].dtype in OPS["argmax"].inputs[0]:
            self.put("upsample_nearest", self.put("argmax", grid), factor=self.d.pick(1, 2))


def _info(window: tuple[int, int], patch: int, classes: int, upsample: str) -> ModelInfo:
    """Grey levels for colours."""
    names = tuple(f"class {i}" for i in range(classes))
    palette = tuple((i % 256, i % 256, i % 256) for i in range(classes))
    return ModelInfo("random", "none", names, palette, window, window, patch, (127, 127, 127), upsample)
