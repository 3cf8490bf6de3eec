"""One step for one node: the kernel of its op, or the definition where there is none; and the op table, unfused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from intseg.graph import Graph, Node
from intseg.kernels import add as _add
from intseg.kernels import exp_weights as _exp_weights
from intseg.kernels import gelu as _gelu
from intseg.kernels import l2norm as _l2norm
from intseg.kernels import layernorm as _layernorm
from intseg.kernels import linear as _linear
from intseg.kernels import matmul as _matmul
from intseg.kernels import patchify as _patchify
from intseg.kernels import shiftmax as _shiftmax
from intseg.kernels import softmax2 as _softmax2
from intseg.kernels import weighted_mean as _weighted_mean
from intseg.ops import RUN, Array, Run

from .memory import Arrays, Buffer, Rows, Step


def output(node: Node) -> Buffer:
    return Buffer(node.name, tuple(node.shape), node.dtype)


def integer(node: Node, name: str) -> int:
    value = node.attrs[name]
    assert isinstance(value, int)
    return value


def fallback(node: Node, graph: Graph) -> Step:
    """The op of the table on the whole tensor, then a copy: rare ops, and small ones."""
    run = table()[node.op]
    params = {role: graph.tensors[name] for role, name in node.params.items()}

    def bind(arrays: Arrays) -> Rows:
        def call(start: int, stop: int, scratch: Array) -> None:
            np.copyto(arrays[node.name], run(*(arrays[name] for name in node.inputs), **params, **node.attrs))

        return call

    return Step(None, (), node.inputs, (output(node),), bind)


def _linear_step(graph: Graph, node: Node) -> Step:
    roles = ("weight", "bias", "mult", "shift")
    packed = _linear.pack(*(graph.tensors[node.params[role]] for role in roles))
    (source,) = node.inputs

    def bind(arrays: Arrays) -> Rows:
        return _linear.bind(packed, arrays[source], arrays[node.name])

    macs, scratch = math.prod(node.shape) * packed.depth, _linear.scratch_bytes(packed.depth)
    return Step(node.shape[0], (source,), (), (output(node),), bind, scratch, macs=macs)


def _layernorm_step(graph: Graph, node: Node) -> Step:
    mult, bias = (graph.tensors[node.params[role]] for role in ("mult", "bias"))
    packed = _layernorm.pack(mult, bias, integer(node, "shift"))
    (source,) = node.inputs

    def bind(arrays: Arrays) -> Rows:
        x, out = rows(arrays[source]), rows(arrays[node.name])
        return lambda start, stop, scratch: _layernorm.run(packed, x, out, start, stop)

    return Step(extent(node), (source,), (), (output(node),), bind)


def _l2norm_step(graph: Graph, node: Node) -> Step:
    mult, shift = integer(node, "mult"), integer(node, "shift")
    (source,) = node.inputs

    def bind(arrays: Arrays) -> Rows:
        x, out = rows(arrays[source]), rows(arrays[node.name])
        return lambda start, stop, scratch: _l2norm.l2norm(x, mult, shift, out, start, stop)

    return Step(extent(node), (source,), (), (output(node),), bind)


def _add_step(graph: Graph, node: Node) -> Step:
    scales = [integer(node, name) for name in ("mult_a", "shift_a", "mult_b", "shift_b")]

    def bind(arrays: Arrays) -> Rows:
        a, b = (rows(arrays[name]) for name in node.inputs)
        out = rows(arrays[node.name])
        return lambda start, stop, scratch: _add.add(a, b, *scales, out, start, stop)

    return Step(extent(node), node.inputs, (), (output(node),), bind)


def _gelu_step(graph: Graph, node: Node) -> Step:
    params = {role: graph.tensors[name] for role, name in node.params.items()}
    tables = gelu_tables(node.op, {**params, **node.attrs})
    (source,) = node.inputs

    def bind(arrays: Arrays) -> Rows:
        x, out = rows(arrays[source]), rows(arrays[node.name])
        return lambda start, stop, scratch: _gelu.lookup(x, tables, out, start, stop)

    return Step(extent(node), (source,), (), (output(node),), bind)


STEPS: Mapping[str, Callable[[Graph, Node], Step]] = {
    "linear": _linear_step,
    "layernorm": _layernorm_step,
    "l2norm": _l2norm_step,
    "add": _add_step,
    "gelu_table": _gelu_step,
    "shift_gelu": _gelu_step,
    "sigmoid_gelu": _gelu_step,
}


def rows(x: Array) -> Array:
    """[..., D] as [M, D]."""
    return x.reshape(-1, x.shape[-1])


def extent(node: Node) -> int:
    """Rows of a node's output."""
    return math.prod(node.shape[:-1])


def gelu_tables(op: str, arguments: Mapping[str, Any]) -> Array:
    """The definition on every input: int8 [1, 256], or [256, 256] where the row maximum + 128 chooses a row."""
    values = np.arange(-128, 128, dtype=np.int8)
    if op != "shift_gelu":
        return np.ascontiguousarray(RUN[op](values[None], **arguments))
    # Row m holds every value up to m, and m in place of those above: its maximum is m.
    return np.ascontiguousarray(RUN[op](np.minimum(values[None, :], values[:, None]), **arguments))


def table() -> dict[str, Run]:
    """The definition's op table with fast entries replaced; every op by itself, nothing fused."""

    def gelu(op: str) -> Run:
        return lambda x, **arguments: _gelu.apply(x, gelu_tables(op, arguments))

    return RUN | {
        "quantize_input": _patchify.quantize_input_op,
        "linear": _linear.linear_op,
        "matmul": _matmul.matmul_op,
        "add": _add.add_op,
        "layernorm": _layernorm.layernorm_op,
        "l2norm": _l2norm.l2norm_op,
        "softmax2": _softmax2.softmax2_op,
        "shiftmax": _shiftmax.shiftmax_op,
        "exp_weights": _exp_weights.exp_weights_op,
        "weighted_mean": _weighted_mean.weighted_mean_op,
        "gelu_table": gelu("gelu_table"),
        "shift_gelu": gelu("shift_gelu"),
        "sigmoid_gelu": gelu("sigmoid_gelu"),
    }
