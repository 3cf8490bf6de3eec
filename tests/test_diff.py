"""The workbench finds the first wrong node and says why: faults of the test's own making, each in one node.

A fault is a function of this file put in place of one call of an op in a second execution; nothing of the product knows
of it. What that execution gives is written by the safetensors library, without metadata, as a stranger's would be.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tiny_model import tiny_graph

from intseg import api, store
from intseg.arith.variant import DEFINITION, Variant
from intseg.cli import main as cli
from intseg.errors import InputError, IntsegError, UsageError
from intseg.executor import execute
from intseg.graph import Graph, Node
from intseg.images import decode as pictures
from intseg.ops import RUN, Call
from intseg.reports import diff_text
from intseg.windows import cut_windows
from intseg.workbench import cause, diff, dump, sides
from intseg.workbench import trace as traces
from intseg.workbench.diff import Settings
from intseg.workbench.mistakes import Hypothesis, catalogue, combine
from intseg.workbench.registers import evaluate
from intseg.workbench.search import explain

GOLDEN = Path(__file__).parent.parent / "golden"
Array = np.ndarray
LIMIT = {"int8": (-128, 127), "int16": (-(2**15), 2**15 - 1)}

# ------------------------------------------------------------------------------- faulty arithmetic, written here again


def wide(x: Any) -> Array:
    return np.asarray(x).astype(np.int64)


def half_up(x: Array, c: Any) -> Array:
    return (x + (1 << (wide(c) - 1))) >> wide(c)


def half_even(x: Array, c: Any) -> Array:
    low, up = x >> wide(c), half_up(x, c)
    tie = (x & ((1 << wide(c)) - 1)) == 1 << (wide(c) - 1)
    return np.where(tie & (up % 2 != 0), low, up)


def toward_zero(x: Array, c: Any) -> Array:
    return np.sign(x) * (np.abs(x) >> wide(c))


def floor(x: Array, c: Any) -> Array:
    return x >> wide(c)


def half_away(x: Array, c: Any) -> Array:
    return np.sign(x) * half_up(np.abs(x), c)


def twice(first: int) -> Callable[[Array, Any], Array]:
    return lambda x, c: half_up(half_up(x, first), wide(c) - first)


def unsigned64(x: Array, c: Any) -> Array:
    return (np.ascontiguousarray(x + (1 << (wide(c) - 1))).view(np.uint64) >> wide(c).astype(np.uint64)).astype(
        np.int64
    )


def gemmlowp(x: Array, c: Any) -> Array:
    """The high half of twice the product, rounded half up; then a shift, rounded half away from zero."""
    return half_away(half_up(x, 31), wide(c) - 31)


def high_by_floor(x: Array, c: Any) -> Array:
    return half_away(x >> 31, wide(c) - 31)


def saturate(x: Array, out: str) -> Array:
    return np.clip(x, *LIMIT[out]).astype(out)


def wrap(x: Array, out: str) -> Array:
    return x.astype(out)


def symmetric(x: Array, out: str) -> Array:
    return np.clip(x, -LIMIT[out][1], LIMIT[out][1]).astype(out)


def relu(x: Array, out: str) -> Array:
    return np.clip(x, 0, LIMIT[out][1]).astype(out)


def unsigned_end(x: Array, out: str) -> Array:
    return np.clip(x, LIMIT[out][0], 2 * LIMIT[out][1] + 1).astype(out)


def wrapped_before(x: Array, out: str) -> Array:
    return saturate(x.astype(np.int16), out)


def pairs(x: Array, weight: Array) -> Array:
    """pmaddubsw: x + 128 without sign, two products in INT16 that saturates."""
    u, w = wide(x) + 128, wide(weight)
    two = [np.clip(u[:, k : k + 2] @ w[:, k : k + 2].T, -(2**15), 2**15 - 1) for k in range(0, u.shape[1], 2)]
    return sum(two) - 128 * w.sum(1)


def term_by_term(x: Array, weight: Array) -> Array:
    total = np.zeros((len(x), len(weight)), np.int64)
    for k in range(x.shape[1]):
        total = np.clip(total + np.outer(x[:, k].astype(int), weight[:, k].astype(int)), -(2**15), 2**15 - 1)
    return total


def clamp16(total: Array) -> Array:
    return np.clip(total, -(2**15), 2**15 - 1)


def not_cleared(x: Array, weight: Array) -> Array:
    found = wide(x) @ wide(weight).T
    for row in range(1, len(found)):
        found[row] += found[row - 1]
    return found


def last_slice(size: int) -> Callable[[Array, Array], Array]:
    """The accumulator is cleared before every slice of the sum."""

    def dot(x: Array, weight: Array) -> Array:
        start = (x.shape[1] - 1) // size * size
        return wide(x[:, start:]) @ wide(weight[:, start:]).T

    return dot


def whole_tiles(size: int) -> Callable[[Array, Array], Array]:
    """What is over after whole tiles is forgotten."""

    def dot(x: Array, weight: Array) -> Array:
        stop = x.shape[1] // size * size
        return wide(x[:, :stop]) @ wide(weight[:, :stop]).T

    return dot


def linear(
    x: Array,
    *,
    weight: Array,
    bias: Array,
    mult: Array,
    shift: Array,
    out: str,
    rounding: Callable[..., Array] = half_up,
    narrow: Callable[..., Array] = saturate,
    acc: Callable[[Array], Array] = lambda x: x,
    bias_factor: int = 1,
    shift_step: int = 0,
    mult_step: int = 0,
    product: Callable[[Array], Array] = lambda x: x,
    dot: Callable[[Array, Array], Array] = lambda x, weight: wide(x) @ wide(weight).T,
) -> Array:
    total = acc(dot(x, weight) + bias_factor * wide(bias))
    return narrow(rounding(product(total * (wide(mult) + mult_step)), wide(shift) + shift_step), out)


def matmul(
    a: Array,
    b: Array,
    *,
    mult: Array,
    shift: Array,
    transpose_b: int,
    out: str,
    rounding: Callable[..., Array] = half_up,
) -> Array:
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    return saturate(rounding(wide(a) @ wide(b) * wide(mult)[..., None, :], shift[..., None, :]), out)


def layernorm(
    x: Array,
    *,
    mult: Array,
    bias: Array,
    shift: int,
    out: str,
    mean: Callable[[Array, int], Array] = lambda t, n: (2 * t + n) // (2 * n),
    root: Callable[[Array], Array] = lambda v: np.array([[math.isqrt(max(int(n), 0))] for n in v[:, 0]]),
    variance: Callable[[Array], Array] = lambda v: v,
    top: int = 2**31 - 1,
    halve: Callable[[Array], Array] = lambda z: z >> 1,
    bias_factor: int = 1,
) -> Array:
    x = wide(x)
    y = x - mean(x.sum(-1, keepdims=True), x.shape[-1])
    s = np.maximum(root(variance((y * y).sum(-1, keepdims=True))), 1)
    z = halve(y * (top // s))
    return saturate(half_up(z * wide(mult) + bias_factor * bias, shift), out)


def add(a: Array, b: Array, *, mult_a: int, shift_a: int, mult_b: int, shift_b: int, clamp: bool = False) -> Array:
    one, two = half_up(wide(a) * mult_a, shift_a), half_up(wide(b) * mult_b, shift_b)
    if clamp:
        one, two = np.clip(one, *LIMIT["int16"]), np.clip(two, *LIMIT["int16"])
    return saturate(one + two, "int16")


def shift_exp(x: Array, i0: int, k: int, lam: int, shr: Callable[[Array, int], Array] = floor) -> Array:
    x = np.maximum(x + shr(x, 1) - shr(x, 4), -lam * k * i0)
    q = -x // i0
    value = shr(-(-x - q * i0), 1) + i0
    return np.where(k >= q, value << np.maximum(k - q, 0), value >> np.clip(q - k, 0, 62))


def shiftmax(
    x: Array,
    *,
    i0: int,
    k_inter: int,
    int_div_kind: str,
    out: str,
    step: int = 0,
    eight: bool = False,
    top: int = 2**31 - 1,
    extra: int = 0,
    shr: Callable[[Array, int], Array] = floor,
) -> Array:
    x = wide(x)
    e = shift_exp(x - x.max(-1, keepdims=True), i0 + step, k_inter, 1, shr)
    total = e.sum(-1, keepdims=True)
    assert int_div_kind == "paper"
    if eight:
        return (np.minimum((top // total) * e >> 24, 127) << 8).astype(out)
    return saturate((top // total) * e >> (16 + extra), out)


def base2(x: Array, *, frac_bits: int, a1: int, a2: int, bits: int = 16, one: int = 32767) -> Array:
    x = wide(x)
    t = x.max(-1, keepdims=True) - x
    q, f = t >> frac_bits, (t & (2**frac_bits - 1)) << (15 - frac_bits)
    power = one - ((f * (a1 - ((a2 * f) >> 15))) >> 15)
    e = np.where(q == 0, power, half_up(power, np.clip(q, 1, 17)))
    d = e.sum(-1, keepdims=True)
    length = np.array([int(n).bit_length() for n in d.ravel()]).reshape(d.shape)
    reciprocal = (2 ** (30 + bits) - 1) // (d << (31 - length))
    return saturate(half_up(e * reciprocal, length + bits - 16), "int16")


def op(name: str, **changes: Any) -> Callable[..., Array]:
    """The definition of an op with some attributes changed."""
    return lambda *inputs, **kwargs: RUN[name](*inputs, **{**kwargs, **{k: f(kwargs[k]) for k, f in changes.items()}})


def after(name: str, change: Callable[[Array], Array]) -> Callable[..., Array]:
    """The definition of an op, its result then changed."""
    return lambda *inputs, **kwargs: np.ascontiguousarray(change(RUN[name](*inputs, **kwargs)))


def before(name: str, change: Callable[[Array], Array]) -> Callable[..., Array]:
    """The definition of an op on a changed first input."""
    return lambda x, *inputs, **kwargs: RUN[name](change(x), *inputs, **kwargs)


def int16(x: Array) -> Array:
    return x.astype(np.int16).astype(np.int64)


def int32(x: Array) -> Array:
    return x.astype(np.int32).astype(np.int64)


def logical32(x: Array) -> Array:
    return (x & 0xFFFFFFFF) >> 1


def heads_first(x: Array, *, heads: int, part: int, parts: int) -> Array:
    return x.reshape(len(x), heads, parts, -1)[:, :, part].transpose(1, 0, 2)


def channels_first(x: Array, *, patch: int) -> Array:
    rows = RUN["patchify"](x, patch=patch)
    return rows.reshape(len(rows), -1, x.shape[2]).transpose(0, 2, 1).reshape(rows.shape)


part = functools.partial


@dataclass(frozen=True)
class Fault:
    """A faulty function for one node of a model, and a piece of the name of its cause."""

    model: str
    node: str
    run: Callable[..., Array]
    cause: str


B0, B1 = "encoder.blocks.0.", "encoder.blocks.1."
FAULTS = {
    "round half to even": Fault("tiny", "patch_embed", part(linear, rounding=half_even), "half to even"),
    "round half away": Fault("tiny", "scores", part(matmul, rounding=half_away), "half away"),
    "round toward zero": Fault("tiny", "scores", part(matmul, rounding=toward_zero), "toward zero"),
    "floor": Fault("tiny", "proj", part(linear, rounding=floor), "round down (floor)"),
    "double rounding": Fault("tiny", "patch_embed", part(linear, rounding=twice(3)), "double rounding"),
    "double rounding, high product": Fault(
        "intseg", f"{B0}mlp.fc2", part(linear, rounding=twice(31)), "double rounding (31 bits first"
    ),
    "wrap": Fault("tiny", "qkv", part(linear, narrow=wrap), "wraps instead of saturating"),
    "symmetric clamp": Fault("tiny", "qkv", part(linear, narrow=symmetric), "symmetric range"),
    "16-bit reciprocal, LayerNorm": Fault(
        "intseg", f"{B0}norm1", part(layernorm, top=2**16 - 1, halve=lambda z: z << 14), "16-bit reciprocal"
    ),
    "32-bit reciprocal, Shiftmax": Fault(
        "i-vit", "decoder.blocks.0.attn.softmax", part(shiftmax, top=2**32 - 1, extra=1), "32-bit reciprocal"
    ),
    "31-bit reciprocal, base-2 softmax": Fault(
        "intseg", f"{B1}attn.softmax", part(base2, bits=31), "31-bit reciprocal"
    ),
    "8-bit Shiftmax": Fault("i-vit", f"{B1}attn.softmax", part(shiftmax, eight=True), "8-bit Shiftmax"),
    "I_0 by floor": Fault("i-vit", f"{B0}mlp.act", op("shift_gelu", i0=lambda v: v - 1), "I_0 by floor"),
    "I_0 by ceil": Fault("i-vit", f"{B0}attn.softmax", part(shiftmax, step=1), "I_0 by ceil"),
    "unsigned shift, LayerNorm": Fault("intseg", f"{B0}norm2", part(layernorm, halve=logical32), "unsigned"),
    "unsigned rounding shift": Fault("tiny", "qkv", part(linear, rounding=unsigned64), "unsigned"),
    "I_0 by round": Fault("i0", "gelu", op("sigmoid_gelu", i0=lambda v: 11), "I_0 by ceil or round"),
    "truncating shift, Shiftmax": Fault(
        "i-vit", f"{B1}attn.softmax", part(shiftmax, shr=toward_zero), "truncate toward zero"
    ),
    "transposed result": Fault("tiny", "proj", after("linear", lambda y: y.T.reshape(y.shape)), "transposed"),
    "permuted result": Fault(
        "intseg", f"{B0}attn.context", after("matmul", lambda y: y.transpose(1, 0, 2).reshape(y.shape)), "(1,0,2)"
    ),
    "permuted heads": Fault("intseg", f"{B0}attn.q", heads_first, "(head, part)"),
    "channels first": Fault("tiny", "patchify", channels_first, "channels first"),
    "swapped endianness": Fault("tiny", "patch_embed", after("linear", lambda y: y.byteswap()), "endianness"),
    "swapped endianness of an input": Fault("tiny", "norm1", before("layernorm", lambda x: x.byteswap()), "endianness"),
    "missing bias": Fault("tiny", "head", part(linear, bias_factor=0), "bias missing"),
    "missing bias, LayerNorm": Fault("intseg", "encoder.norm", part(layernorm, bias_factor=0), "bias missing"),
    "shift one more": Fault("tiny", "qkv", part(linear, shift_step=1), "shift off by one (+1)"),
    "shift one less": Fault("intseg", f"{B0}attn.proj", part(linear, shift_step=-1), "shift off by one (-1)"),
    "mult one more": Fault("tiny", "patch_embed", part(linear, mult_step=1), "mult off by one (+1)"),
    "shift of one branch": Fault("tiny", "add_attn", op("add", shift_b=lambda v: v + 1), "shift_b off by one"),
    "int16 accumulator": Fault("tiny", "patch_embed", part(linear, acc=int16), "INT16 accumulator that wraps"),
    "int32 variance": Fault("clamp", "norm2", part(layernorm, variance=int32), "INT32 accumulator"),
    "INT32 product": Fault("i-vit", f"{B0}mlp.fc1", part(linear, product=int32), "wraps at 32 bits"),
    "activation without sign": Fault("tiny", "proj", before("linear", lambda x: x.view(np.uint8)), "without sign"),
    "mean rounded down": Fault("intseg", f"{B0}norm2", part(layernorm, mean=lambda t, n: t // n), "mean rounded down"),
    "clamped branches": Fault("clamp", "add_attn", part(add, clamp=True), "branches clamped"),
    "exponential from 32768": Fault("intseg", f"{B0}attn.softmax", part(base2, one=32768), "32768"),
    "other int_div": Fault(
        "i-vit", f"{B1}mlp.act", op("shift_gelu", int_div_kind=lambda v: "normalized"), "int_div of the kind"
    ),
    "table without offset": Fault("intseg", f"{B0}mlp.act", lambda x, *, table: table[x.view(np.uint8)], "bits of x"),
    "class token last": Fault("intseg", "encoder.tokens", lambda a, b: np.concatenate([b, a]), "other order"),
    # What issues of other projects blame
    "two roundings of two kinds": Fault(
        "intseg", f"{B0}mlp.fc2", part(linear, rounding=gemmlowp), "as gemmlowp and TFLite"
    ),
    "one scale for all channels": Fault(
        "intseg",
        f"{B0}attn.qkv",
        op("linear", mult=lambda m: m[0] + 0 * m, shift=lambda s: s[0] + 0 * s),
        "scale of channel 0",
    ),
    "shift of five bits": Fault("intseg", f"{B0}attn.proj", op("linear", shift=lambda s: s % 32), "modulo 32"),
    "pairs that saturate": Fault("intseg", f"{B0}mlp.fc1", part(linear, dot=pairs), "in pairs that saturate at INT16"),
    "accumulator not cleared": Fault("tiny", "qkv", part(linear, dot=not_cleared), "not cleared between rows"),
    "accumulator cleared in the loop": Fault(
        "intseg", f"{B0}mlp.fc2", part(linear, dot=last_slice(16)), "only the last 16"
    ),
    "sum taken twice": Fault("tiny", "proj", part(linear, dot=lambda x, w: 2 * (wide(x) @ wide(w).T)), "added twice"),
    "fused ReLU": Fault("tiny", "qkv", part(linear, narrow=relu), "fused ReLU"),
    "two faults": Fault("tiny", "qkv", part(linear, rounding=half_even, bias_factor=0), "bias missing"),
    "two other faults": Fault("tiny", "proj", part(linear, narrow=wrap, shift_step=-1), "shift off by one (-1)"),
}

# -------------------------------------------------------------------------------------------------------- the models


MADE_HERE = ("tiny", "clamp", "i0")


def large_sums() -> Graph:
    """The tiny graph with residuals that leave INT16 before they are summed."""
    graph = tiny_graph()
    nodes = tuple(
        dataclasses.replace(n, attrs={"mult_a": 5, "shift_a": 1, "mult_b": 7, "shift_b": 1})
        if n.name == "add_attn"
        else n
        for n in graph.nodes
    )
    tensors = dict(graph.tensors)
    tensors["pos_embed"] = np.clip(tensors["pos_embed"].astype(np.int32) * 8, -32768, 32767).astype(np.int16)
    tensors["proj.shift"] = np.full_like(tensors["proj.shift"], 1)
    tensors["proj.mult"] = np.full_like(tensors["proj.mult"], 3)
    return dataclasses.replace(graph, nodes=nodes, tensors=tensors)


def i0_by_floor() -> Graph:
    """The tiny graph with a GELU behind its second norm; 1 / S = 10.66 of its input and I_0 = 10."""
    graph = tiny_graph()
    norm, head = graph.node("norm2"), graph.node("head")
    attrs = {"i0": 10, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8, "mult": 1, "shift": 7}
    gelu = Node("gelu", "sigmoid_gelu", ("norm2",), {}, attrs, "int8", norm.shape)
    changed = {
        "norm2": (dataclasses.replace(norm, scale="norm2.scale"), gelu),
        "head": (dataclasses.replace(head, inputs=("gelu",)),),
    }
    nodes = tuple(one for n in graph.nodes for one in changed.get(n.name, (n,)))
    tensors = {**graph.tensors, "norm2.scale": np.array([3 << 20, 0, 25], np.int32).reshape(3, 1, 1)}
    return dataclasses.replace(graph, nodes=nodes, tensors=tensors)


@dataclass(frozen=True)
class Subject:
    """A model, an image of one window, its golden trace."""

    weights: Path
    model: api.Model
    window: Array
    trace: Path


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Subject]:
    folder = tmp_path_factory.mktemp("golden")
    store.save(tiny_graph(), folder / "tiny.safetensors")
    store.save(large_sums(), folder / "clamp.safetensors")
    store.save(i0_by_floor(), folder / "i0.safetensors")
    files = {name: folder / f"{name}.safetensors" for name in MADE_HERE}
    files |= {name: GOLDEN / "models" / f"{name}.safetensors" for name in ("intseg", "i-vit")}
    result = {}
    for name, path in files.items():
        model = api.load(path)
        image = np.random.default_rng(3).integers(0, 256, (*model.info.window, 3), np.uint8)
        if name not in MADE_HERE:
            image = pictures.decode(GOLDEN / "images" / "odd.png", model.info.pad).rgb
        _, window = next(iter(cut_windows(image, model.info)))
        traces.write(folder / f"{name}.trace", window, model, with_registers=True)
        result[name] = Subject(path, model, window, folder / f"{name}.trace")
    return result


def execution(subject: Subject, node: str = "", faulty: Callable[..., Array] | None = None) -> dict[str, Array]:
    """Every intermediate by tensor name; the call of `node` is `faulty`."""
    graph = subject.model.graph
    values: dict[str, Array] = {}
    order = iter(graph.nodes)

    def run(name: str, *inputs: Array, **kwargs: Any) -> Array:
        return (faulty if next(order).name == node and faulty else RUN[name])(*inputs, **kwargs)

    table = {name: part(run, name) for name in RUN}
    execute(graph, subject.window, table, lambda n, value: values.__setitem__(f"window0.{n.name}", value))
    return {name: np.ascontiguousarray(value) for name, value in values.items()}


def compare(subject: Subject, arrays: Mapping[str, Array], folder: Path, **settings: Any) -> diff.Report:
    path = folder / "other.safetensors"
    safetensors.numpy.save_file(dict(arrays), path)
    golden = sides.open_golden(subject.trace, str(subject.weights))
    return diff.compare(golden, sides.open_other(path, golden), Settings(**settings))


# ----------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_at_its_node_and_named(subjects: Mapping[str, Subject], tmp_path: Path, name: str):
    fault = FAULTS[name]
    report = compare(subjects[fault.model], execution(subjects[fault.model], fault.node, fault.run), tmp_path)
    assert report.first is not None, "the fault changes nothing on this image"
    assert report.first.node == fault.node
    assert report.explanation is not None
    assert any(fault.cause in name for name in report.explanation.names()[:2]), report.explanation


def rows_of(size: int) -> Callable[..., Array]:
    return after("linear", lambda y: y * (np.arange(len(y)) < len(y) // size * size)[:, None])


def bias_after(x: Array, *, weight: Array, bias: Array, mult: Array, shift: Array, out: str) -> Array:
    return saturate(half_up(wide(x) @ wide(weight).T * mult, shift) + half_up(wide(bias) * mult, shift), out)


def int16_mult(mult: Any) -> Any:
    return np.minimum((wide(mult) + 2**15) >> 16, 2**15 - 1) << 16


LARGE = {
    "truncated high product": (part(linear, rounding=high_by_floor), "as a truncating high multiplication"),
    "multiplier rounded to INT16": (op("linear", mult=int16_mult), "mult rounded to INT16"),
    "saturation at every term": (
        part(linear, dot=term_by_term, acc=clamp16),
        "INT16 accumulator that saturates at every term",
    ),
    "incomplete tile of a sum": (part(linear, dot=whole_tiles(32)), "the last 11 terms of a sum missing (tiles of 32)"),
    "bias after the shift": (bias_after, "bias rounded apart"),
    "incomplete tile of rows": (rows_of(16), "the last 5 rows of the result missing (tiles of 16)"),
    "end of the unsigned type": (part(linear, narrow=unsigned_end), "type without sign, then wraps"),
    "INT16 before the saturation": (part(linear, narrow=wrapped_before), "wraps at 16 bits before"),
}
"""Faults that need larger numbers or other sizes than those models have, and what they are called."""


@pytest.mark.parametrize("name", LARGE)
def test_a_fault_of_large_numbers_is_named(name: str):
    random, (fault, words) = np.random.default_rng(1), LARGE[name]
    wide_out = "product" in name or "multiplier" in name
    shift = 34 if wide_out else {"end of the unsigned type": 39, "INT16 before the saturation": 31}.get(name, 42)
    out = "int16" if wide_out else "int8"
    params = {
        "weight": random.integers(-128, 128, (24, 75)).astype(np.int8),
        "bias": random.integers(-5000, 5000, 24).astype(np.int32),
        "mult": random.integers(2**30, 2**31, 24).astype(np.int32),
        "shift": np.full(24, shift, np.int8),
    }
    x = random.integers(-128, 128, (53, 75)).astype(np.int8)
    call = Call("linear", [x], params, {"out": out})
    assert any(words in found for found in explain(call, fault(x, **params, out=out)).names()[:2])


def bilinear(x: Array, place: Callable[[Array], Array]) -> Array:
    """Rows and columns doubled; place(i) is where pixel i lies, in quarters of a cell."""
    for axis in (0, 1):
        at = np.clip(place(np.arange(2 * x.shape[axis])), 0, 4 * (x.shape[axis] - 1))
        low, up, w = at // 4, np.minimum(at // 4 + 1, x.shape[axis] - 1), np.expand_dims(at % 4, (1 - axis, 2))
        x = wide(x).take(low, axis) * (4 - w) + wide(x).take(up, axis) * w
    return x


def test_faults_of_resizing_and_of_a_branch_are_named():
    x = np.random.default_rng(2).integers(-(2**15), 2**15, (5, 5, 3)).astype(np.int16)
    attrs = {"factor": 2, "row_start": 0, "row_stop": 10}
    call = Call("upsample_bilinear", [x], {}, attrs)
    assert explain(call, bilinear(x, lambda i: 2 * i)).names() == ["pixels at i / factor, without half a pixel"]
    assert explain(call, bilinear(x, lambda i: 16 * i // 9)).names() == ["corners aligned (align_corners = True)"]
    nearest = x[np.minimum((np.arange(10) + 1) // 2, 4)][:, np.minimum((np.arange(10) + 1) // 2, 4)]
    assert (
        explain(Call("upsample_nearest", [x], {}, {"factor": 2}), nearest)
        .names()[0]
        .startswith("nearest by i / factor")
    )
    branches = {"mult_a": 1518500250, "shift_a": 31, "mult_b": 2**30, "shift_b": 31}
    found = RUN["add"](x, x, **{**branches, "mult_a": int(int16_mult(branches["mult_a"]))})
    assert explain(Call("add", [x, x], {}, branches), found).names()[0] == "mult_a rounded to INT16 (its low 16 bits)"


def test_the_faults_cover_what_the_workbench_promises():
    words = " ".join(fault.cause for fault in FAULTS.values())
    for word in (
        *("half to even", "half away", "toward zero", "floor", "double", "wraps", "32-bit rec", "31-bit rec", "8-bit"),
        *("I_0", "unsigned", "transposed", "(1,0,2)", "endianness", "bias", "off by one", "INT16", "INT32"),
        *("gemmlowp", "channel 0", "modulo 32", "pairs", "not cleared", "last 16", "twice", "ReLU"),
    ):
        assert word in words
    assert len(FAULTS) >= 20


@pytest.mark.parametrize("model", ["intseg", "i-vit"])
def test_one_wrong_bit_is_found_at_any_node(subjects: Mapping[str, Subject], tmp_path: Path, model: str):
    subject = subjects[model]
    right = execution(subject)
    source = np.random.default_rng(1)
    for node in subject.model.graph.nodes[::3]:
        wrong = dict(right)
        array = wrong[f"window0.{node.name}"].copy()
        at = tuple(int(source.integers(n)) for n in array.shape)
        array[at] ^= 1 << int(source.integers(7))
        wrong[f"window0.{node.name}"] = array
        report = compare(subject, wrong, tmp_path, seconds=0.05)
        assert report.first is not None
        assert (report.first.node, report.first.index, report.first.count) == (node.name, at, 1)
        assert (report.first.expected, report.first.found) == (right[f"window0.{node.name}"][at], array[at])
        assert report.explanation is None or not report.explanation.matches


def test_the_real_value_and_the_histogram(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["intseg"]
    arrays = execution(subject)
    name = f"window0.{B0}attn.q"  # a node that only moves values: its scale is that of the product before it
    arrays[name] = arrays[name].copy()
    arrays[name][1, 2, 3:6] ^= np.array([1, 1, 4], np.int8)
    first = compare(subject, arrays, tmp_path, seconds=0.1).first
    assert first is not None
    graph = subject.model.graph
    mult, offset, shift = graph.tensors[graph.node(f"{B0}attn.qkv").scale or ""][:, 0, 16 + 3].tolist()
    assert first.reals[0] == math.ldexp(first.expected * mult + offset, -shift)
    assert first.reals[1] == math.ldexp(first.found * mult + offset, -shift)
    assert sum(count for _, count in first.histogram) == first.count == 3
    assert "axis 0 only at 1" in first.pattern
    assert "axis 2 only 3..5" in first.pattern


def test_a_register_is_named_where_both_sides_have_it(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    file = traces.TensorFile(subject.trace)
    arrays = {name: file.read(name) for name in file.names()}
    for name in ("qkv--acc", "qkv--product", "qkv--rounded", "qkv"):
        arrays[f"window0.{name}"] = arrays[f"window0.{name}"].copy()
        arrays[f"window0.{name}"][3, 4] += 1
    first = compare(subject, arrays, tmp_path, seconds=0.1).first
    assert first is not None
    assert first.register is not None
    assert first.register[:2] == ("acc", (3, 4))


def test_tolerance(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    arrays = execution(subject)
    arrays["window0.head"] = arrays["window0.head"] + np.int16(2)
    assert compare(subject, arrays, tmp_path, lsb=2).equal
    assert not compare(subject, arrays, tmp_path, lsb=1, seconds=1).equal


def test_an_unexplained_difference_names_what_explains_a_part(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    arrays = execution(subject, "proj", part(linear, rounding=floor))
    arrays["window0.proj"][0, 0] += 100
    report = compare(subject, arrays, tmp_path, seconds=2)
    assert report.explanation is not None
    assert not report.explanation.matches
    best, share = report.explanation.partial[0]
    assert best.name == "round down (floor)"
    assert 0.5 < share < 1
    assert any("% of the wrong elements" in line for line in diff_text.lines(report))


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [(10, 11, "ceil or round"), (11, 10, "floor"), (12, 11, "ceil or round"), (12, 10, "floor")],
)
def test_i0_is_derived_from_the_scale(ours: int, theirs: int, name: str):
    """1 / S = 10.66: floor, ceil and round give 10, 11 and 11."""
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, -1)
    attrs = {"i0": ours, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8, "mult": 1, "shift": 7}
    scale = np.array([3 << 20, 0, 25], np.int32).reshape(3, 1, 1)
    found = RUN["sigmoid_gelu"](x, **{**attrs, "i0": theirs})
    names = explain(Call("sigmoid_gelu", [x], {}, attrs, scale), found).names()
    assert f"I_0 by {name} ({theirs} instead of {ours})" in names[:2]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_mistakes_of_fewer_bits_are_named(bits: int):
    """Saturated at 8 bits; packed weights without their sign, or read high bits first; each written here again."""
    source, most = np.random.default_rng(bits), 2 ** (bits - 1)
    x, weight = (source.integers(-n, n, shape, np.int8) for n, shape in ((100, (9, 40)), (most, (12, 40))))
    weight[0, :2] = -most, most - 1
    stream = sum(int(w) % 2**bits << i * bits for i, w in enumerate(weight.ravel()))
    data = stream.to_bytes(-(-weight.size * bits // 8), "little")
    text = "".join(f"{byte:08b}" for byte in data)  # as a reader does that takes the high bits of a byte first
    high_first = [int(text[i * bits : (i + 1) * bits], 2) for i in range(weight.size)]
    high_first = [value - 2**bits if value >= most else value for value in high_first]
    params = {"weight": weight, "bias": np.full(12, 5, np.int32), "mult": np.full(12, 2**30, np.int32)}
    params["shift"] = np.full(12, 31 + bits, np.int8)
    call = Call("linear", [x], params, {"out": "int6"})
    wrong = {
        f"weight of {bits} bits unpacked without its sign": {"weight": weight.astype(np.int64) % 2**bits},
        f"weight of {bits} bits unpacked high bits first": {"weight": np.array(high_first).reshape(weight.shape)},
    }
    found = {name: RUN["linear"](x, **{**params, **changed}, out="int6") for name, changed in wrong.items()}
    found["saturated at the 8 bits of INT8 instead of 6"] = RUN["linear"](x, **params, out="int8")
    for name, result in found.items():
        assert explain(call, result).names()[0] == name


def test_every_hypothesis_can_be_computed(subjects: Mapping[str, Subject]):
    """On every op of three models: nothing but the refusals that the search expects."""
    seen = set()
    for name in ("intseg", "i-vit", "tiny"):
        golden = sides.open_golden(subjects[name].trace, str(subjects[name].weights))
        for node in subjects[name].model.graph.nodes:
            if node.op in seen:
                continue
            seen.add(node.op)
            case = cause.call_of(golden, 0, node)
            assert case is not None
            explanation = explain(case, evaluate(case).astype(np.int64) + 10**6, seconds=0.3)
            assert not explanation.matches
            assert len({h.variant for h in catalogue(case)}) == len(catalogue(case))
    assert len(seen) > 12


def test_mistakes_combine_only_where_they_change_different_things():
    even, wraps = Hypothesis("a", Variant(rounding="half_even")), Hypothesis("b", Variant(overflow="wrap"))
    bias, weight = (Hypothesis("c", Variant(operands=((role, "zero"),))) for role in ("bias", "weight"))
    assert combine([even, wraps]) == Variant(rounding="half_even", overflow="wrap")
    assert combine([even, Hypothesis("d", Variant(rounding="floor"))]) is None
    assert combine([bias, weight]) == Variant(operands=(("bias", "zero"), ("weight", "zero")))
    assert combine([bias, bias]) is None
    assert combine([]) == DEFINITION


# ---------------------------------------------------------------------------------------------- forms of the other side


@pytest.mark.parametrize("kind", dump.FORMATS)
def test_a_dumped_folder_is_compared(subjects: Mapping[str, Subject], tmp_path: Path, kind: str):
    subject = subjects["tiny"]
    arrays = execution(subject, "qkv", part(linear, bias_factor=0))
    safetensors.numpy.save_file(arrays, tmp_path / "other.safetensors")
    dump.write_folder(tmp_path / "other.safetensors", tmp_path / "d", kind)
    golden = sides.open_golden(subject.trace, str(subject.weights))
    report = diff.compare(golden, sides.open_other(tmp_path / "d", golden))
    assert report.first is not None
    assert report.first.node == "qkv"
    assert report.explanation is not None
    assert report.explanation.names()[0] == "bias missing"


def test_one_tensor_npy_npz_hex(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    arrays = execution(subject, "qkv", part(linear, bias_factor=0))
    wrong = arrays["window0.qkv"]
    np.save(tmp_path / "qkv.npy", wrong)
    np.save(tmp_path / "x.npy", wrong.astype(np.float32))
    np.savez(tmp_path / "some.npz", qkv=wrong)
    (tmp_path / "qkv.hex").write_text("".join(f"{int(v) & 255:02x}\n" for v in wrong.ravel()))
    (tmp_path / "qkv.bin").write_bytes(wrong.tobytes())
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "window0.qkv.npy", wrong)
    golden = sides.open_golden(subject.trace, str(subject.weights))
    for name in ("qkv.npy", "x.npy", "some.npz", "qkv.hex", "qkv.bin", "folder"):
        other = sides.open_other(tmp_path / name, golden, "qkv" if name == "x.npy" else None)
        report = diff.compare(golden, other)
        assert report.explanation is not None, name
        assert report.explanation.names()[0] == "bias missing", name
    with pytest.raises(UsageError, match="--node"):
        sides.open_other(tmp_path / "x.npy", golden)


def test_golden_traces_of_the_twin_are_read(tmp_path: Path):
    golden = sides.open_golden(
        GOLDEN / "traces" / "intseg.wide.safetensors", str(GOLDEN / "models" / "intseg.safetensors")
    )
    model = api.load(GOLDEN / "models" / "intseg.safetensors")
    traces.write(tmp_path / "mine.safetensors", GOLDEN / "images" / "wide.png", model)
    report = diff.compare(golden, sides.open_other(tmp_path / "mine.safetensors", golden))
    assert report.equal
    assert report.compared == 6 * len(model.graph.nodes) + 2
    with pytest.raises(UsageError, match="-w"):
        sides.open_golden(GOLDEN / "traces" / "intseg.wide.safetensors", None)


def test_the_earliest_of_several_differences_counts(tmp_path: Path):
    """Windows one after the other, in each the order of execution, not that of the names."""
    weights, path = GOLDEN / "models" / "intseg.safetensors", GOLDEN / "traces" / "intseg.odd.safetensors"
    golden = sides.open_golden(path, str(weights))
    arrays = safetensors.numpy.load_file(path)
    for name, first in (
        ("merged", ("merged", -1)),
        ("window1.decoder.proj_dec", ("decoder.proj_dec", 1)),
        ("window1.quantize_input", ("quantize_input", 1)),
        ("window0.scores", ("scores", 0)) if "window0.scores" in arrays else ("labels", ("quantize_input", 1)),
        (f"window0.{B1}mlp.act", (f"{B1}mlp.act", 0)),
        (f"window0.{B1}add1", (f"{B1}add1", 0)),
        ("window0.patchify", ("patchify", 0)),
    ):
        arrays[name] = arrays[name] ^ 1
        safetensors.numpy.save_file(arrays, tmp_path / "other.safetensors")
        report = diff.compare(golden, sides.open_other(tmp_path / "other.safetensors", golden), Settings(seconds=0.05))
        assert report.first is not None
        assert (report.first.node, report.first.window) == first
        assert report.explanation is None or not report.explanation.matches


def test_an_image_is_traced_when_it_is_the_golden_side(tmp_path: Path):
    weights, image = GOLDEN / "models" / "intseg.safetensors", GOLDEN / "images" / "small.png"
    golden = sides.open_golden(image, str(weights))
    other = sides.open_other(GOLDEN / "traces" / "intseg.small.safetensors", golden)
    assert diff.compare(golden, other).equal


def test_whole_floats_are_compared_and_said(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    arrays = {name: x.astype(np.float32) for name, x in execution(subject).items()}
    report = compare(subject, arrays, tmp_path)
    assert report.equal
    assert "float32" in report.notes[0]
    arrays["window0.qkv"][0, 0] = 300
    first = compare(subject, arrays, tmp_path, seconds=0.1).first
    assert first is not None
    assert first.found == 300


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_wider_integers_and_a_batch_of_one_are_compared_by_value(
    subjects: Mapping[str, Subject], tmp_path: Path, dtype: str
):
    subject = subjects["tiny"]
    arrays = {name: x.astype(dtype)[None] for name, x in execution(subject).items()}
    report = compare(subject, arrays, tmp_path)
    assert report.equal
    assert "batch axis of 1" in report.notes[0]
    assert f"are {dtype}; all values" in report.notes[1]
    arrays["window0.qkv"][0, 0, 0] = 300
    first = compare(subject, arrays, tmp_path, seconds=0.1).first
    assert first is not None
    assert (first.node, first.found) == ("qkv", 300)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.view(np.uint8), "is uint8 with values to 2.., expected int8"),
        (lambda a: a.astype(np.uint64) | 2**63, "is uint64 with values to"),
        (lambda a: a[None, None], "has shape"),
        (lambda a: a[:-1], "has shape"),
        (lambda a: a.T, "has shape"),
        (lambda a: a.astype(np.float32) + 0.5, "expected integers"),
        (lambda a: np.where(a == a.max(), np.nan, a), "nan"),
        (lambda a: np.where(a == a.max(), np.inf, a), "inf"),
        (lambda a: a.astype(np.float64) * 2.0**60, "expected integers"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    subjects: Mapping[str, Subject], tmp_path: Path, change: Callable[[Array], Array], words: str
):
    arrays = execution(subjects["tiny"])
    arrays["window0.qkv"] = np.ascontiguousarray(change(arrays["window0.qkv"]))
    with pytest.raises(InputError, match=words) as error:
        compare(subjects["tiny"], arrays, tmp_path)
    assert "window0.qkv" in str(error.value)


def test_missing_nodes_need_partial(subjects: Mapping[str, Subject], tmp_path: Path):
    arrays = execution(subjects["tiny"], "qkv", part(linear, bias_factor=0))
    del arrays["window0.norm1"]
    with pytest.raises(InputError, match=r"window0\.norm1.*--partial"):
        compare(subjects["tiny"], arrays, tmp_path)
    report = compare(subjects["tiny"], arrays, tmp_path, partial=True)
    assert report.first is not None
    assert report.first.node == "qkv"
    assert any("directly before qkv (norm1)" in note for note in report.notes)
    with pytest.raises(InputError, match="lacks"):
        compare(subjects["tiny"], {"x": np.zeros(1, np.int8)}, tmp_path, partial=True)


@pytest.mark.parametrize(
    "name", ["unsigned shift, LayerNorm", "8-bit Shiftmax", "missing bias, LayerNorm", "I_0 by floor"]
)
def test_a_fault_in_a_node_that_the_other_side_does_not_show(
    subjects: Mapping[str, Subject], tmp_path: Path, name: str
):
    """Only residuals and the scores are seen: the node and the cause are named all the same."""
    fault = FAULTS[name]
    subject = subjects[fault.model]
    arrays = execution(subject, fault.node, fault.run)
    seen = {
        n: x for n, x in arrays.items() if n.endswith(("add1", "add2")) or n == f"window0.{subject.model.graph.output}"
    }
    report = compare(subject, seen, tmp_path, partial=True)
    assert report.first is not None
    assert report.first.node != fault.node
    assert report.explanation is not None
    assert report.explanation.node == fault.node
    assert any(fault.cause in name for name in report.explanation.names()[:2])
    assert any(f"unseen node {fault.node}" in line for line in diff_text.lines(report))


def test_another_model_image_or_format_is_refused(subjects: Mapping[str, Subject], tmp_path: Path):
    tiny = subjects["tiny"]
    golden = sides.open_golden(tiny.trace, str(tiny.weights))
    with pytest.raises(UsageError, match="another model"):
        diff.compare(golden, sides.open_other(subjects["intseg"].trace, golden))
    traces.write(tmp_path / "t.safetensors", 255 - tiny.window, tiny.model)
    with pytest.raises(UsageError, match="another image"):
        diff.compare(golden, sides.open_other(tmp_path / "t.safetensors", golden))
    with pytest.raises(UsageError, match="is a trace of the model"):
        sides.open_golden(tiny.trace, str(subjects["intseg"].weights))
    file = traces.TensorFile(tiny.trace)
    for change, kind in (({"format": 2}, "format"), ({"kind": "model"}, "not a trace")):
        with traces.Writer(tmp_path / "n.safetensors", {**(file.metadata or {}), **change}, file.names()) as writer:
            for name in file.names():
                writer.put(name, file.read(name))
        with pytest.raises(IntsegError, match=kind):
            sides.open_golden(tmp_path / "n.safetensors", str(tiny.weights))


def test_a_golden_trace_that_is_wrong_itself_is_said(subjects: Mapping[str, Subject], tmp_path: Path):
    tiny = subjects["tiny"]
    file = traces.TensorFile(tiny.trace)
    with traces.Writer(tmp_path / "bad.safetensors", file.metadata, file.names()) as writer:
        for name in file.names():
            writer.put(name, file.read(name) + (1 if name == "window0.qkv" else 0))
    golden = sides.open_golden(tmp_path / "bad.safetensors", str(tiny.weights))
    report = diff.compare(golden, sides.open_other(tiny.trace, golden))
    assert report.explanation is None
    assert any("does not follow the definition at qkv" in note for note in report.notes)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("qkv.npy", b"hello"),
        ("qkv.npy", b"PK\x03\x04 no zip"),
        ("a.npz", b"PK\x03\x04 no zip"),
        ("a.npz", b""),
        ("qkv.hex", b"zz"),
        ("qkv.hex", b"\xff\xfe"),
        ("qkv.bin", b"1"),
        ("t.safetensors", b"\0" * 100),
    ],
)
def test_files_that_are_something_else(subjects: Mapping[str, Subject], tmp_path: Path, name: str, data: bytes):
    golden = sides.open_golden(subjects["tiny"].trace, str(subjects["tiny"].weights))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name.replace(".", "[.]")):
        sides.open_other(tmp_path / name, golden)


def test_big_endian_arrays_are_the_same_numbers(subjects: Mapping[str, Subject], tmp_path: Path):
    arrays = execution(subjects["tiny"])
    np.savez(tmp_path / "a.npz", **{name: x.astype(x.dtype.newbyteorder(">")) for name, x in arrays.items()})
    golden = sides.open_golden(subjects["tiny"].trace, str(subjects["tiny"].weights))
    assert diff.compare(golden, sides.open_other(tmp_path / "a.npz", golden)).equal


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def files(subjects: Mapping[str, Subject], tmp_path: Path) -> list[str]:
    subject = subjects["tiny"]
    safetensors.numpy.save_file(execution(subject, "qkv", part(linear, bias_factor=0)), tmp_path / "other.safetensors")
    return [str(subject.trace), str(tmp_path / "other.safetensors"), "-w", str(subject.weights)]


def test_the_command_prints_all_and_exits_with_1(files: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["diff", *files]) == 1
    out = capsys.readouterr().out
    for words in ("node qkv (linear)", "first index [", "expected", "found", "0x", "elements differ", "bias missing"):
        assert words in out
    assert cli.main(["diff", files[0], files[0], *files[2:]]) == 0
    assert "equal:" in capsys.readouterr().out


def test_json(files: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["diff", *files, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"]["node"] == "qkv"
    assert found["cause"]["exact"][0] == ["bias missing"]
    assert found["first"]["expected"]["decimal"] != found["first"]["found"]["decimal"]
    assert {entry["tensor"] for entry in found["others"]} >= {"window0.q"}


def test_without_the_model_the_node_is_found_but_no_cause(files: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["diff", *files[:2]]) == 1
    out = capsys.readouterr().out
    assert "node qkv" in out
    assert "cause:" not in out
    assert "-w" in out


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["diff", "GOLDEN", "no.safetensors"], 4),
        (["diff", "no.safetensors", "GOLDEN"], 4),
        (["diff", "GOLDEN", "GOLDEN", "-w", "no"], 4),
        (["diff", "GOLDEN", "GOLDEN", "--lsb", "-1"], 2),
        (["diff", "GOLDEN", "TEXT"], 4),
        (["diff", "GOLDEN", "EMPTY"], 4),
        (["diff", "GOLDEN", "GOLDEN", "--html", "no/where.html"], 4),
    ],
)
def test_bad_command_lines(
    subjects: Mapping[str, Subject], tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int
):
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty").mkdir()
    names = {
        "GOLDEN": str(subjects["tiny"].trace),
        "TEXT": str(tmp_path / "text.safetensors"),
        "EMPTY": str(tmp_path / "empty"),
    }
    assert cli.main([names.get(word, word) for word in argv]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
