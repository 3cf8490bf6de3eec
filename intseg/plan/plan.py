"""The fast path of a graph: packed weights, fused patterns, buffers planned once, rows spread over threads.

A plan is a list of segments. Inside a segment every step works row by row on the same rows, so a thread takes a range
of rows through all of its steps; between segments all threads wait. With the attention of a strip of rows in one step,
a transformer block has one such wait. Same bits as `executor.execute`; intermediates that a pattern swallows do not
exist here, which is why tracing runs unfused.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intseg.arith import shift_exp
from intseg.graph import IMAGE, Graph, Node
from intseg.kernels import _isa, _jit
from intseg.kernels import add as _add
from intseg.kernels import attention as _attention
from intseg.kernels import class_map as _class_map
from intseg.kernels import gelu as _gelu
from intseg.kernels import l2norm as _l2norm
from intseg.kernels import layernorm as _layernorm
from intseg.kernels import linear as _linear
from intseg.kernels import matmul as _matmul
from intseg.kernels import patchify as _patchify
from intseg.kernels import shiftmax as _shiftmax
from intseg.kernels import softmax2 as _softmax2
from intseg.kernels._tile import lane_order
from intseg.ops import RUN, Array, Run

Rows = Callable[[int, int, Array], None]
"""Work on rows start to stop - 1, with scratch that no other thread uses."""

Arrays = Mapping[str, Array]

_CHUNK_ROWS = 64
"""Row ranges of threads start at multiples of this: the width of a panel of keys."""

_ALIGN = 64


@dataclass(frozen=True)
class Buffer:
    """An array of the workspace."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size, a multiple of the alignment."""
        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        return -(-size // _ALIGN) * _ALIGN


@dataclass(frozen=True)
class Step:
    """One kernel call.

    extent   rows it can be split over, None if it cannot be split
    local    inputs of which it reads only the rows it works on
    whole    inputs it reads all of
    outputs  buffers it writes, row by row
    scratch  bytes of scratch for one thread
    bind     arrays by name -> the call
    op, macs what it is and how many multiply-accumulates it does, for benchmarks
    """

    extent: int | None
    local: tuple[str, ...]
    whole: tuple[str, ...]
    outputs: tuple[Buffer, ...]
    bind: Callable[[Arrays], Rows]
    scratch: int = 0
    op: str = ""
    macs: int = 0


@dataclass(frozen=True)
class Segment:
    """Steps without a wait in between."""

    extent: int | None
    steps: tuple[Step, ...]


class Plan:
    """A compiled graph: call it with an image window, from as many threads at once as wanted."""

    def __init__(self, graph: Graph, threads: int | None = None) -> None:
        self.threads = thread_count(threads)
        builder = _Builder(graph)
        self.segments = _segments(builder.steps, builder.root)
        self._constants = {name: np.ascontiguousarray(graph.tensors[name]) for name in builder.constants}
        self._views = builder.views
        self._output = graph.output
        self._placed, self.workspace_bytes = _place(self.segments, builder.root, graph.output)
        self._free: deque[_Workspace] = deque()

    def __call__(self, image: Array, on_output: Callable[[str, Array], None] | None = None) -> Array:
        """Scores int8 or int16 [h, w, classes] of one window uint8 [H, W, 3].

        on_output  called after every segment with the names and values it leaves behind: the nodes no pattern swallows
                   and nothing overwrites at once, and the packed operands of patterns
        """
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = self._workspace()
        try:
            np.copyto(workspace.arrays[IMAGE], image, casting="no")
            for segment, calls in zip(self.segments, workspace.calls, strict=True):
                _run_segment(segment.extent, calls, self.threads, workspace.scratch)
                if on_output is not None:
                    left = {workspace.arrays[b.name].ctypes.data: b.name for s in segment.steps for b in s.outputs}
                    for name in left.values():
                        on_output(name, workspace.arrays[name])
            scores: Array = workspace.arrays[self._output].copy()
            return scores
        finally:
            self._free.append(workspace)

    def _workspace(self) -> _Workspace:
        """Memory and bound calls for one run at a time."""
        arena = _aligned(self.workspace_bytes)
        arrays = dict(self._constants)
        for buffer, offset in self._placed:
            flat = arena[offset : offset + buffer.nbytes].view(buffer.dtype)
            arrays[buffer.name] = flat[: math.prod(buffer.shape)].reshape(buffer.shape)
        for name, (source, view) in self._views.items():
            arrays[name] = view(arrays[source])
        size = max(step.scratch for s in self.segments for step in s.steps)
        scratch: deque[Array] = deque(_aligned(size) for _ in range(self.threads))
        return _Workspace(arrays, [[step.bind(arrays) for step in s.steps] for s in self.segments], scratch)


@dataclass(frozen=True)
class _Workspace:
    arrays: Arrays
    calls: Sequence[Sequence[Rows]]
    scratch: deque[Array]


def _aligned(size: int) -> Array:
    raw = np.zeros(size + _ALIGN, np.int8)
    return raw[-raw.ctypes.data % _ALIGN :][:size]


# ---- threads ------------------------------------------------------------------------------------------------------

_pool_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def thread_count(threads: int | None) -> int:
    """`threads`, or the number of cores this process may run on."""
    if threads is not None:
        return max(1, threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _workers(count: int) -> ThreadPoolExecutor:
    """The one pool of the process; it grows to the largest number of threads asked for."""
    global _pool
    with _pool_lock:
        if _pool is None or _pool._max_workers < count:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool = ThreadPoolExecutor(count, thread_name_prefix="intseg")
        return _pool


def run_parallel(tasks: Sequence[Callable[[], None]], threads: int) -> None:
    """All tasks, on this thread and up to threads - 1 others. This thread never waits for a task that has not begun."""
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            task()
        return
    left = deque(tasks)

    def work() -> None:
        while True:
            try:
                task = left.popleft()
            except IndexError:
                return
            task()

    others = _submit(work, min(threads, len(tasks)) - 1)
    try:
        work()
    finally:
        left.clear()
        for future in others:
            if not future.cancel():
                future.result()


def _submit(work: Callable[[], None], count: int) -> list[Future[None]]:
    """`count` runs of `work` on the pool; fewer where the pool was replaced or is shutting down."""
    futures = []
    for _ in range(count):
        try:
            futures.append(_workers(count).submit(work))
        except RuntimeError:
            break
    return futures


def _ranges(extent: int, parts: int, unit: int) -> list[tuple[int, int]]:
    """`parts` ranges of about equal size that start at multiples of `unit`."""
    marks = sorted({min(round(extent * i / parts / unit) * unit, extent) for i in range(parts)} | {extent})
    return list(itertools.pairwise(marks))


def _run_segment(extent: int | None, calls: Sequence[Rows], threads: int, scratch: deque[Array]) -> None:
    def work(start: int, stop: int) -> None:
        mine = scratch.pop()
        try:
            for call in calls:
                call(start, stop, mine)
        finally:
            scratch.append(mine)

    if extent is None or threads == 1:
        work(0, extent or 0)
        return
    ranges = _ranges(extent, threads, _CHUNK_ROWS)
    run_parallel([functools.partial(work, *r) for r in ranges], threads)


# ---- segments and memory ------------------------------------------------------------------------------------------

Root = Callable[[str], str]
"""The buffer (or constant) that a name's memory belongs to: its own, or that of what it is a view of."""


def _segments(steps: Sequence[Step], root: Root) -> list[Segment]:
    """Join steps on the same rows as long as none needs rows of another thread."""
    segments: list[Segment] = []
    written: set[str] = set()
    for step in steps:
        joins = bool(segments) and step.extent is not None and step.extent == segments[-1].extent
        if joins and not written.intersection(map(root, step.whole)):
            segments[-1] = Segment(step.extent, (*segments[-1].steps, step))
        else:
            segments.append(Segment(step.extent, (step,)))
            written = set()
        written.update(root(buffer.name) for buffer in step.outputs)
    return segments


def _place(segments: Sequence[Segment], root: Root, output: str) -> tuple[list[tuple[Buffer, int]], int]:
    """An offset for every buffer such that buffers alive in one segment do not overlap; the total size.

    Lifetimes count in segments: inside of one, threads are at different steps. Largest first, lowest gap that fits.
    """
    buffers: dict[str, Buffer] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {root(output): len(segments)}
    for i, segment in enumerate(segments):
        for step in segment.steps:
            for buffer in step.outputs:
                if root(buffer.name) == buffer.name:
                    buffers[buffer.name] = buffer
                    first.setdefault(buffer.name, i)
            for name in map(root, (*step.local, *step.whole, *(buffer.name for buffer in step.outputs))):
                last[name] = max(last.get(name, 0), i)
    placed: list[tuple[Buffer, int]] = []
    for name, buffer in sorted(buffers.items(), key=lambda item: -item[1].nbytes):
        offset = 0
        for other, at in sorted(placed, key=lambda item: item[1]):
            alive = first[other.name] <= last[name] and first[name] <= last[other.name]
            if alive and at < offset + buffer.nbytes and offset < at + other.nbytes:
                offset = at + other.nbytes
        placed.append((buffer, offset))
    return placed, max(offset + buffer.nbytes for buffer, offset in placed)


# ---- from nodes to steps ------------------------------------------------------------------------------------------


def _identity(x: Array) -> Array:
    return x


def _output(node: Node) -> Buffer:
    return Buffer(node.name, tuple(node.shape), node.dtype)


def _integer(node: Node, name: str) -> int:
    value = node.attrs[name]
    assert isinstance(value, int)
    return value


class _Builder:
    """Steps and views of a graph: patterns first, then node by node, and the definition for what has no kernel."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps: list[Step] = [_image_step(graph)]
        self.views: dict[str, tuple[str, Callable[[Array], Array]]] = {}
        self.constants: set[str] = set()
        self._shifted: set[str] = set()
        self._nodes = {node.name: node for node in graph.nodes}
        self._uses = Counter([graph.output, *(name for node in graph.nodes for name in node.inputs)])
        patterns = dict(item for node in graph.nodes for item in self._match(node))
        for node in graph.nodes:
            known = len(self.steps)
            if node.name in patterns:
                self.steps += patterns[node.name]
            else:
                self._single(node)
            self.steps[known:] = [replace(step, op=step.op or node.op) for step in self.steps[known:]]

    def root(self, name: str) -> str:
        """See Root."""
        while name in self.views:
            name = self.views[name][0]
        return name

    def inner(self, name: str, op: str) -> Node | None:
        """The node of this name if it is this op and is read once only, so that nobody misses its output."""
        node = self._nodes.get(name)
        return node if node is not None and node.op == op and self._uses[name] == 1 else None

    def _match(self, node: Node) -> Iterator[tuple[str, list[Step]]]:
        """Steps by node name for a pattern that ends at this node; nodes inside of it have none."""
        for pattern in (_match_attention, _match_patches):
            found = pattern(self, node)
            if found is not None:
                inside, steps = found
                yield from ((name, []) for name in inside)
                yield node.name, steps

    def _single(self, node: Node) -> None:
        self.constants.update(name for name in node.inputs if name in self.graph.tensors)
        if node.op in _VIEWS:
            self.views[node.name] = (node.inputs[0], _VIEWS[node.op](node))
            self._shifted.add(node.name)
            return
        step = _STEPS[node.op](self.graph, node) if node.op in _STEPS else None
        if step is None:
            self.steps.append(_fallback(node, self.graph))
            return
        moved = tuple(name for name in step.local if name in self._shifted)
        local = tuple(name for name in step.local if name not in self._shifted)
        self.steps.append(replace(step, local=local, whole=(*step.whole, *moved)))
        reused = node.inputs[-1]
        free = self._uses[reused] == 1 and reused in self._nodes and reused not in self._shifted
        if free and node.op in _IN_PLACE and self._nodes[reused].dtype == node.dtype:
            self.views[node.name] = (reused, _identity)


# Outputs that are their input's memory under another shape; rows of the two differ.
_VIEWS: Mapping[str, Callable[[Node], Callable[[Array], Array]]] = {
    "slice": lambda node: lambda x: x[_integer(node, "start") : _integer(node, "stop")],
    "to_grid": lambda node: lambda x: x.reshape(node.shape),
}

# Row by row, these may write over their last input.
_IN_PLACE = frozenset({"add", "gelu_table", "shift_gelu", "sigmoid_gelu"})


def _image_step(graph: Graph) -> Step:
    """Makes room for the window; the caller copies it there."""
    height, width = graph.info.window
    return Step(None, (), (), (Buffer(IMAGE, (height, width, 3), "uint8"),), lambda arrays: _nothing)


def _nothing(start: int, stop: int, scratch: Array) -> None:
    """No work."""


def _fallback(node: Node, graph: Graph) -> Step:
    """The op of the table on the whole tensor, then a copy: rare ops, and small ones."""
    run = table()[node.op]
    params = {role: graph.tensors[name] for role, name in node.params.items()}

    def bind(arrays: Arrays) -> Rows:
        def call(start: int, stop: int, scratch: Array) -> None:
            np.copyto(arrays[node.name], run(*(arrays[name] for name in node.inputs), **params, **node.attrs))

        return call

    return Step(None, (), node.inputs, (_output(node),), bind)


def _linear_step(graph: Graph, node: Node) -> Step:
    roles = ("weight", "bias", "mult", "shift")
    packed = _linear.pack(*(graph.tensors[node.params[role]] for role in roles))
    (source,) = node.inputs

    def bind(arrays: Arrays) -> Rows:
        return _linear.bind(packed, arrays[source], arrays[node.name])

    macs, scratch = math.prod(node.shape) * packed.depth, _linear.scratch_bytes(packed.depth)
    return Step(node.shape[0], (source,), (), (_output(node),), bind, scratch, macs=macs)


def _layernorm_step(graph: Graph, node: Node) -> Step:
    mult, bias = (graph.tensors[node.params[role]] for role in ("mult", "bias"))
    packed = _layernorm.pack(mult, bias, _integer(node, "shift"))
    (source,) = node.inputs

    def bind(arrays: Arrays) -> Rows:
        x, out = _rows(arrays[source]), _rows(arrays[node.name])
        return lambda start, stop, scratch: _layernorm.run(packed, x, out, start, stop)

    return Step(_extent(node), (source,), (), (_output(node),), bind)


def _l2norm_step(graph: Graph, node: Node) -> Step:
    mult, shift = _integer(node, "mult"), _integer(node, "shift")
    (source,) = node.inputs

    def bind(arrays: Arrays) -> Rows:
        x, out = _rows(arrays[source]), _rows(arrays[node.name])
        return lambda start, stop, scratch: _l2norm.l2norm(x, mult, shift, out, start, stop)

    return Step(_extent(node), (source,), (), (_output(node),), bind)


def _add_step(graph: Graph, node: Node) -> Step:
    scales = [_integer(node, name) for name in ("mult_a", "shift_a", "mult_b", "shift_b")]

    def bind(arrays: Arrays) -> Rows:
        a, b = (_rows(arrays[name]) for name in node.inputs)
        out = _rows(arrays[node.name])
        return lambda start, stop, scratch: _add.add(a, b, *scales, out, start, stop)

    return Step(_extent(node), node.inputs, (), (_output(node),), bind)


def _gelu_step(graph: Graph, node: Node) -> Step:
    params = {role: graph.tensors[name] for role, name in node.params.items()}
    tables = gelu_tables(node.op, {**params, **node.attrs})
    (source,) = node.inputs

    def bind(arrays: Arrays) -> Rows:
        x, out = _rows(arrays[source]), _rows(arrays[node.name])
        return lambda start, stop, scratch: _gelu.lookup(x, tables, out, start, stop)

    return Step(_extent(node), (source,), (), (_output(node),), bind)


_STEPS: Mapping[str, Callable[[Graph, Node], Step]] = {
    "linear": _linear_step,
    "layernorm": _layernorm_step,
    "l2norm": _l2norm_step,
    "add": _add_step,
    "gelu_table": _gelu_step,
    "shift_gelu": _gelu_step,
    "sigmoid_gelu": _gelu_step,
}


def _rows(x: Array) -> Array:
    """[..., D] as [M, D]."""
    return x.reshape(-1, x.shape[-1])


def _extent(node: Node) -> int:
    """Rows of a node's output."""
    return math.prod(node.shape[:-1])


def gelu_tables(op: str, arguments: Mapping[str, Any]) -> Array:
    """The definition on every input: int8 [1, 256], or [256, 256] where the row maximum + 128 chooses a row."""
    values = np.arange(-128, 128, dtype=np.int8)
    if op != "shift_gelu":
        return np.ascontiguousarray(RUN[op](values[None], **arguments))
    # Row m holds every value up to m, and m in place of those above: its maximum is m.
    return np.ascontiguousarray(RUN[op](np.minimum(values[None, :], values[:, None]), **arguments))


# ---- patterns -----------------------------------------------------------------------------------------------------

Match = tuple[list[str], list[Step]]
"""Names of the nodes inside a pattern, and the steps that replace it."""


def _match_patches(builder: _Builder, node: Node) -> Match | None:
    """quantize_input, patchify -> one pass over the image."""
    if node.op != "patchify":
        return None
    quantize = builder.inner(node.inputs[0], "quantize_input")
    if quantize is None:
        return None
    lookup = np.ascontiguousarray(builder.graph.tensors[quantize.params["table"]])
    source, patch = quantize.inputs[0], _integer(node, "patch")

    def bind(arrays: Arrays) -> Rows:
        image, out = arrays[source], arrays[node.name]
        return lambda start, stop, scratch: _patchify.patches(image, lookup, patch, out, start, stop)

    return [quantize.name], [Step(node.shape[0], (), (source,), (_output(node),), bind)]


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


_SOFTMAX: Mapping[str, Callable[[Node], tuple[Array, Array]]] = {
    "softmax2": lambda node: (np.array([_integer(node, a) for a in ("frac_bits", "a1", "a2")]), np.empty(0, np.uint16)),
    "shiftmax": lambda node: _shiftmax_arguments(node),
}


def _shiftmax_arguments(node: Node) -> tuple[Array, Array]:
    """(kind and bits, ShiftExp of minus 0, 1, ... up to where its clamp holds) for the attention kernel."""
    i0, k_inter = _integer(node, "i0"), _integer(node, "k_inter")
    powers = shift_exp(-np.arange(k_inter * i0 + 1), i0, k_inter, 1)
    bits = 8 * np.dtype(str(node.attrs["out"])).itemsize
    return np.array([node.attrs["int_div_kind"] == "normalized", bits, 0], np.int64), powers.astype(np.uint16)


def _find_attention(builder: _Builder, merge: Node) -> _Attention | None:
    """merge_heads(matmul(softmax(matmul(q, k^T)), v)) with q, k, v split from one tensor and no other readers."""
    context = builder.inner(merge.inputs[0], "matmul") if merge.op == "merge_heads" else None
    softmax = next(filter(None, (builder.inner(context.inputs[0], op) for op in _SOFTMAX)), None) if context else None
    scores = builder.inner(softmax.inputs[0], "matmul") if softmax else None
    if context is None or softmax is None or scores is None:
        return None
    found = [builder.inner(name, "split_heads") for name in (*scores.inputs, context.inputs[1])]
    heads = [node for node in found if node is not None]
    if len(heads) != 3 or len({(node.inputs[0], node.attrs["heads"], node.attrs["parts"]) for node in heads}) != 1:
        return None
    return _Attention((heads[0], heads[1], heads[2]), scores, softmax, context, merge)


def _match_attention(builder: _Builder, node: Node) -> Match | None:
    """An attention the kernel can do: INT8 heads, one scale of the scores per head, register shifts."""
    found = _find_attention(builder, node)
    if found is None:
        return None
    tensors = builder.graph.tensors
    scores, context = found.scores, found.context
    score_scale, value_scale = ([tensors[n.params[role]] for role in ("mult", "shift")] for n in (scores, context))
    suitable = (
        all(head.dtype == "int8" and head.inputs[0] not in tensors for head in found.heads)
        and (scores.attrs["transpose_b"], scores.dtype) == (1, "int16")
        and (context.attrs["transpose_b"], context.dtype) == (0, "int8")
        and score_scale[0].shape[-1] == 1
        and not _linear.raise_shifts(*value_scale)[2]
    )
    packed = _attention.pack_scores(score_scale[0], score_scale[1], found.heads[0].shape[2]) if suitable else None
    return (found.inside, _attention_steps(found, packed, value_scale)) if packed is not None else None


def _attention_steps(found: _Attention, packed: _attention.Scores, value_scale: Sequence[Array]) -> list[Step]:
    heads, tokens, dim = found.heads[0].shape
    shape = _attention.Shape(tokens, heads, dim)
    query, key, value = (_integer(head, "part") * heads * dim for head in found.heads)
    name, source = found.merge.name, found.heads[0].inputs[0]
    operands = (
        Buffer(f"{name}/keys", (heads, shape.key_bytes), "int8"),
        Buffer(f"{name}/init", (heads, shape.padded), "int32"),
        Buffer(f"{name}/values", (heads, shape.value_bytes), "int8"),
    )
    names = tuple(buffer.name for buffer in operands)
    order = lane_order(_isa.select())
    quants = packed.quant, packed.left, _attention.pack_values(value_scale[0], value_scale[1], dim)
    arguments = _SOFTMAX[found.softmax.op](found.softmax)

    def bind_pack(arrays: Arrays) -> Rows:
        qkv, targets = arrays[source], [arrays[n] for n in names]
        return lambda start, stop, scratch: _attention.pack_keys_values(
            qkv, key, value, heads, dim, *targets, packed.left, order, start, stop
        )

    def bind(arrays: Arrays) -> Rows:
        qkv, sources, out = arrays[source], [arrays[n] for n in names], arrays[name]
        return lambda start, stop, scratch: _attention.attention(
            qkv, query, heads, dim, *sources, *quants, *arguments, out, start, stop, scratch
        )

    return [
        Step(tokens, (source,), (), operands, bind_pack, op="pack keys, values"),
        Step(
            tokens,
            (source,),
            names,
            (_output(found.merge),),
            bind,
            shape.scratch_bytes,
            "attention",
            2 * heads * tokens**2 * dim,
        ),
    ]


# ---- the op table, and labels -------------------------------------------------------------------------------------


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
        "gelu_table": gelu("gelu_table"),
        "shift_gelu": gelu("shift_gelu"),
        "sigmoid_gelu": gelu("sigmoid_gelu"),
    }


def bilinear_labels(scores: Array, patch: int, height: int, width: int, threads: int | None) -> Array:
    """Classes of pixels from scores [h, w, C], as `backends.class_map` defines them for "bilinear"."""
    scores = np.ascontiguousarray(scores, np.int32)
    classes = scores.shape[2]
    labels = np.empty((height, width), np.uint16)
    bands, count = scores.shape[0] + 1, thread_count(threads)

    def work(start: int, stop: int) -> None:
        found, best, winner = (np.empty(n, np.int64) for n in (classes + 1, patch, patch))
        _class_map.bilinear_argmax(scores, patch, labels, found, best, winner, start, stop)

    run_parallel([functools.partial(work, *r) for r in _ranges(bands, count, 1)], count)
    return labels.astype(np.uint8) if classes <= 256 else labels


def compile_all() -> None:
    """Compile every kernel, or load it from the cache."""
    for kernel in _jit.REGISTRY.values():
        kernel.compile()
