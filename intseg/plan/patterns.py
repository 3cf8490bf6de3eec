"""Patterns of nodes that one kernel does: a whole attention; the table of the pixels and their patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from intseg.graph import Graph, Node
from intseg.kernels import _heads, _isa
from intseg.kernels import add as _add
from intseg.kernels import layernorm as _layernorm
from intseg.kernels import linear as _linear
from intseg.kernels import patchify as _patchify
from intseg.kernels._tile import highest, lane_order
from intseg.ops import Array

from .memory import Arrays, Buffer, Rows, Step
from .steps import ATTENTIONS, integer, output, params_of, rows_of

Match = tuple[list[str], list[Step]]
"""Names of the nodes inside a pattern, and the steps that replace it."""


class Inner(Protocol):
    """The node of a name if it is that op, of any by default, and is read once only: nobody misses its output."""

    def __call__(self, name: str, op: str = "") -> Node | None: ...


def _match_patches(graph: Graph, inner: Inner, node: Node) -> Match | None:
    """quantize_input, patchify -> one pass over the image."""
    if node.op != "patchify":
        return None
    quantize = inner(node.inputs[0], "quantize_input")
    if quantize is None:
        return None
    lookup = np.ascontiguousarray(graph.tensors[quantize.params["table"]])
    source, patch = quantize.inputs[0], integer(node, "patch")

    def bind(arrays: Arrays) -> Rows:
        image, out = arrays[source], arrays[node.name]
        return lambda start, stop, scratch: _patchify.patches(image, lookup, patch, out, start, stop)

    return [quantize.name], [Step(node.shape[0], (), (source,), (output(node),), bind)]


@dataclass(frozen=True)
class _Attention:
    """The nodes of one attention, from split_heads to merge_heads."""

    heads: tuple[Node, Node, Node]
    scores: Node
    softmax: Node
    context: Node
    merge: Node

    @property
    def inside(self) -> list[str]:
        """All nodes but the last."""
        return [node.name for node in (*self.heads, self.scores, self.softmax, self.context)]


@dataclass(frozen=True)
class FusedAttention:
    """A kernel and what it is called with besides buffers."""

    kernel: Callable[..., None]
    shape: _heads.Shape
    scores: _heads.Scores
    value_quant: Array
    highest: int
    softmax: Any

    def __call__(self, qkv: Array, query: int, keys: Array, init: Array, values: Array, *rest: Any) -> None:
        """Rows of the output; `rest` is the output, the range of rows and scratch."""
        fixed = (self.scores.kinds, self.scores.quant, self.value_quant, self.highest, self.softmax)
        self.kernel(qkv, query, keys, init, values, *fixed, *rest)


Scale = tuple[Array, Array]
"""Multipliers and shifts."""


def fuse_attention(
    softmax: Node, params: Arrays, shape: tuple[int, int, int], scores: Scale, values: Scale, out: str = "int8"
) -> FusedAttention | None:
    """The kernel for a softmax node, its parameters by role, [heads, tokens, dim], the scales of both products and
    the type of the result; None where they do not fit the registers."""
    (heads, tokens, dim), found = shape, ATTENTIONS[softmax.op]
    packed, quant = found.scores(*scores, dim), found.values(*values, dim)
    if packed is None or quant is None:
        return None
    sizes, argument = found.shape(tokens, heads, dim), found.softmax(params, softmax.attrs)
    return FusedAttention(found.kernel, sizes, packed, quant, highest(out), argument)


def _find_attention(inner: Inner, merge: Node) -> _Attention | None:
    """merge_heads(product(softmax(matmul(q, k^T)), v)) with q, k, v split from one tensor and no other readers."""
    context = inner(merge.inputs[0]) if merge.op == "merge_heads" else None
    softmax = inner(context.inputs[0]) if context else None
    if context is None or softmax is None or softmax.op not in ATTENTIONS:
        return None
    scores = inner(softmax.inputs[0], "matmul")
    if scores is None or context.op != ATTENTIONS[softmax.op].product:
        return None
    found = [inner(name, "split_heads") for name in (*scores.inputs, context.inputs[1])]
    heads = [node for node in found if node is not None]
    if len(heads) != 3 or len({(node.inputs[0], node.attrs["heads"], node.attrs["parts"]) for node in heads}) != 1:
        return None
    return _Attention((heads[0], heads[1], heads[2]), scores, softmax, context, merge)


def _match_attention(graph: Graph, inner: Inner, node: Node) -> Match | None:
    """An attention the kernel can do: INT8 heads, one scale of the scores per head, register shifts."""
    found = _find_attention(inner, node)
    if found is None:
        return None
    tensors = graph.tensors
    scores, context = found.scores, found.context
    score_scale, value_scale = ((tensors[n.params["mult"]], tensors[n.params["shift"]]) for n in (scores, context))
    suitable = (
        all(head.dtype == "int8" and head.inputs[0] not in tensors for head in found.heads)
        and (scores.attrs["transpose_b"], scores.dtype) == (1, "int16")
        and (context.attrs.get("transpose_b", 0), context.dtype) == (0, "int8")
        and score_scale[0].shape[-1] == 1
    )
    if not suitable:
        return None
    heads, tokens, dim = found.heads[0].shape
    params, out = params_of(graph, found.softmax), str(context.attrs.get("out", "int8"))
    fused = fuse_attention(found.softmax, params, (heads, tokens, dim), score_scale, value_scale, out)
    return (found.inside, _attention_steps(found, fused)) if fused is not None else None


def _attention_steps(found: _Attention, fused: FusedAttention) -> list[Step]:
    shape, starts = fused.shape, fused.scores.starts
    heads, dim = shape.heads, shape.head_dim
    query, key, value = (integer(head, "part") * heads * dim for head in found.heads)
    name, source = found.merge.name, found.heads[0].inputs[0]
    operands = (
        Buffer(f"{name}/keys", (heads, shape.key_bytes), "int8"),
        Buffer(f"{name}/init", (heads, shape.padded), "int32"),
        Buffer(f"{name}/values", (heads, shape.value_bytes), "int8"),
    )
    names = tuple(buffer.name for buffer in operands)
    order = lane_order(_isa.select())

    def bind_pack(arrays: Arrays) -> Rows:
        qkv, targets = arrays[source], [arrays[n] for n in names]
        return lambda start, stop, scratch: _heads.pack_keys_values(
            qkv, key, value, heads, dim, dim, *targets, starts, order, shape.value_group, start, stop
        )

    def bind(arrays: Arrays) -> Rows:
        qkv, sources, out = arrays[source], [arrays[n] for n in names], arrays[name]
        return lambda start, stop, scratch: fused(qkv, query, *sources, out, start, stop, scratch)

    macs = 2 * heads * shape.tokens**2 * dim
    return [
        Step(shape.tokens, (source,), (), operands, bind_pack, op="pack keys, values"),
        Step(shape.tokens, (source,), names, (output(found.merge),), bind, shape.scratch_bytes, "attention", macs),
    ]


def _match_product(graph: Graph, inner: Inner, node: Node) -> Match | None:
    """A product of two INT8 activations, every row with every row: one is packed as weights are, by a kernel."""
    sources = {other.name: other for other in graph.nodes}
    if node.op != "matmul" or node.attrs["transpose_b"] != 1 or not all(name in sources for name in node.inputs):
        return None
    left, right = (sources[name] for name in node.inputs)
    if len(node.shape) != 2 or (left.dtype, right.dtype) != ("int8", "int8"):
        return None
    (width, depth), params, order = right.shape, params_of(graph, node), lane_order(_isa.select())
    mult, shift = (np.broadcast_to(params[role], width) for role in ("mult", "shift"))
    nothing, out = np.zeros((width, depth), np.int8), str(node.attrs["out"])
    packed = _linear.pack(nothing, np.zeros(width, np.int32), mult, shift, out, 2**14 * depth)
    panels = Buffer(f"{node.name}/panels", packed.panels.shape, "int8")
    init = Buffer(f"{node.name}/init", packed.init.shape, "int32")

    def bind_pack(arrays: Arrays) -> Rows:
        rows, targets = arrays[right.name], (arrays[panels.name][None], arrays[init.name][None])
        rest = np.zeros((1, 0), np.int8), np.zeros((2, 1), np.int64), order, 4, 0, width  # keys without values
        return lambda start, stop, scratch: _heads.pack_keys_values(rows, 0, 0, 1, depth, 0, *targets, *rest)

    def bind(arrays: Arrays) -> Rows:
        found = replace(packed, panels=arrays[panels.name], init=arrays[init.name])
        return _linear.bind(found, arrays[left.name], arrays[node.name])

    whole, scratch = (left.name, panels.name, init.name), _linear.scratch_bytes(depth)
    return [], [
        Step(None, (), (right.name,), (panels, init), bind_pack, op="pack rows"),
        Step(node.shape[0], (), whole, (output(node),), bind, scratch, macs=node.shape[0] * width * depth),
    ]


PATTERNS = (_match_attention, _match_patches, _match_product)
"""From a graph, Inner and the node that a pattern ends at to what it replaces."""


def follow(graph: Graph, nodes: tuple[Node, Node], steps: tuple[Step, Step]) -> Step | None:
    """One step for a sum and the node behind it that normalizes its rows; both outputs stay."""
    (total, norm), (first, second) = nodes, steps
    if (total.op, norm.op) != ("add", "layernorm") or norm.inputs[0] != total.name:
        return None
    params, attrs = params_of(graph, norm), norm.attrs
    packed = _layernorm.pack(params["mult"], params["bias"], integer(norm, "shift"), str(attrs["out"]))
    scales = _add.pack(*(integer(total, name) for name in ("mult_a", "shift_a", "mult_b", "shift_b")))

    def bind(arrays: Arrays) -> Rows:
        a, b, x, out = (rows_of(arrays[name]) for name in (*total.inputs, total.name, norm.name))
        return lambda start, stop, scratch: _layernorm.run(packed, x, out, start, stop, scratch, a, b, scales)

    outputs, scratch = (*first.outputs, *second.outputs), _layernorm.SCRATCH
    return replace(first, outputs=outputs, bind=bind, scratch=scratch, op="add, layernorm")
