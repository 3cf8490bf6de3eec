"""The fast path of a graph: packed weights, fused patterns, buffers planned once, rows spread over threads.

A plan is a list of segments. Inside a segment every step works row by row on the same rows, so a thread takes a range of
rows through all of its steps; between segments all threads wait. With the attention of a whole strip in one step, a
transformer block has two such waits. Same bits as `executor.execute`; intermediates that a pattern swallows do not exist
here, which is why tracing runs unfused.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from intseg.graph import IMAGE, Graph, Node
from intseg.kernels import _isa
from intseg.kernels import add as _add
from intseg.kernels import attention as _attention
from intseg.kernels import class_map as _class_map
from intseg.kernels import gelu as _gelu
from intseg.kernels import l2norm as _l2norm
from intseg.kernels import layernorm as _layernorm
from intseg.kernels import linear as _linear
from intseg.kernels import patchify as _patchify
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
        size = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
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
    """

    extent: int | None
    local: tuple[str, ...]
    whole: tuple[str, ...]
    outputs: tuple[Buffer, ...]
    bind: Callable[[Arrays], Rows]
    scratch: int = 0


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
        self._segments = _segments(builder.steps, builder.alias)
        self._alias = builder.alias
        self._constants = {name: np.ascontiguousarray(graph.tensors[name]) for name in builder.constants}
        self._views = builder.views
        self._output = graph.output
        self._offsets, self.workspace_bytes = _place(self._segments, builder.alias, graph.output)
        self._free: deque[_Workspace] = deque()

    def __call__(self, image: Array) -> Array:
        """Scores int8 or int16 [h, w, classes] of one window uint8 [H, W, 3]."""
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = self._workspace()
        try:
            np.copyto(workspace.arrays[IMAGE], image)
            for extent, calls in workspace.segments:
                _run_segment(extent, calls, self.threads, workspace.scratch)
            scores: Array = workspace.arrays[self._output].copy()
            return scores
        finally:
            self._free.append(workspace)

    def _workspace(self) -> _Workspace:
        """Memory and bound calls for one run at a time."""
        arena = np.zeros(self.workspace_bytes + _ALIGN, np.uint8)
        arena = arena[-arena.ctypes.data % _ALIGN :]
        arrays = dict(self._constants)
        for buffer, offset in self._offsets.values():
            flat = arena[offset : offset + buffer.nbytes].view(buffer.dtype)
            arrays[buffer.name] = flat[: int(np.prod(buffer.shape))].reshape(buffer.shape)
        for name, (source, view) in self._views.items():
            arrays[name] = view(arrays[source])
        for name, source in self._alias.items():
            arrays[name] = arrays[source]
        size = max((step.scratch for s in self._segments for step in s.steps), default=0)
        scratch: deque[Array] = deque(_aligned(size) for _ in range(self.threads))
        bound = [(s.extent, [step.bind(arrays) for step in s.steps]) for s in self._segments]
        return _Workspace(arrays, bound, scratch)


@dataclass(frozen=True)
class _Workspace:
    arrays: Arrays
    segments: Sequence[tuple[int | None, Sequence[Rows]]]
    scratch: deque[Array]


def _aligned(size: int) -> Array:
    raw = np.zeros(size + _ALIGN, np.int8)
    return raw[-raw.ctypes.data % _ALIGN :][:size]


# ---- threads ----------------------------------------------------------------------------------------------------------

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
    run_parallel([lambda r=r: work(*r) for r in ranges], threads)


# ---- segments and memory ----------------------------------------------------------------------------------------------


def _segments(steps: Sequence[Step], alias: Mapping[str, str]) -> list[Segment]:
    """Join steps on the same rows as long as none needs rows of another thread."""
    segments: list[Segment] = []
    written: set[str] = set()
    for step in steps:
        joins = bool(segments) and step.extent is not None and step.extent == segments[-1].extent
        if joins and not written.intersection(alias.get(name, name) for name in step.whole):
            segments[-1] = Segment(step.extent, (*segments[-1].steps, step))
        else:
            segments.append(Segment(step.extent, (step,)))
            written = set()
        written.update(alias.get(buffer.name, buffer.name) for buffer in step.outputs)
    return segments


def _place(
    segments: Sequence[Segment], alias: Mapping[str, str], output: str
) -> tuple[dict[str, tuple[Buffer, int]], int]:
    """An offset for every buffer such that buffers alive in one segment do not overlap; the total size.

    Lifetimes count in segments: inside of one, threads are at different steps.
    """
    buffers: dict[str, Buffer] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, segment in enumerate(segments):
        for step in segment.steps:
            for buffer in step.outputs:
                if alias.get(buffer.name, buffer.name) == buffer.name:
                    buffers[buffer.name] = buffer
                    first.setdefault(buffer.name, i)
            for name in (*step.local, *step.whole, *(buffer.name for buffer in step.outputs)):
                last[alias.get(name, name)] = i
    last[alias.get(output, output)] = len(segments)
    placed: list[tuple[int, Buffer]] = []
    offsets: dict[str, tuple[Buffer, int]] = {}
    for name in sorted(buffers, key=lambda n: -buffers[n].nbytes):
        others = [(o, b) for o, b in placed if first[b.name] <= last[name] and first[name] <= last[b.name]]
        offset = 0
        for o, b in sorted(others, key=lambda item: item[0]):
            if offset + buffers[name].nbytes <= o:
                break
            offset = max(offset, o + b.nbytes)
        placed.append((offset, buffers[name]))
        offsets[name] = (buffers[name], offset)
    return offsets, max((o + b.nbytes for o, b in placed), default=0)


# ---- from nodes to steps ----------------------------------------------------------------------------------------------


class _Builder:
    """Steps, aliases and views of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps: list[Step] = [_input_step(graph)]
        self.alias: dict[str, str] = {}
        self.views: dict[str, tuple[str, Callable[[Array], Array]]] = {}
        self.constants: set[str] = set()
        self._nodes = {node.name: node for node in graph.nodes}
        self._uses = Counter(name for node in graph.nodes for name in node.inputs) + Counter([graph.output])
        matched = {name: pattern for node in graph.nodes for name, pattern in self._match(node)}
        for node in graph.nodes:
            pattern = matched.get(node.name)
            if pattern is not None:
                self.steps += pattern
            else:
                self._plain(node)

    def _match(self, node: Node) -> Iterable[tuple[str, list[Step]]]:
        """Steps by node name for a pattern that ends at this node: none for the nodes inside."""
        for pattern in (self._match_attention, self._match_patches):
            found = pattern(node)
            if found is not None:
                inside, steps = found
                yield from ((name, []) for name in inside)
                yield node.name, steps

    def _inner(self, name: str, op: str) -> Node | None:
        """The node of this name if it is this op and used once only, so that nobody misses its output."""
        node = self._nodes.get(name)
        return node if node is not None and node.op == op and self._uses[name] == 1 else None

    def _plain(self, node: Node) -> None:
        """One node, one step, or a view."""
        self.constants.update(name for name in node.inputs if name in self.graph.tensors)
        if node.op in _VIEWS:
            self._view(node)
            return
        make = _STEPS.get(node.op)
        step = make(self.graph, node) if make is not None else None
        self.steps.append(step or _fallback(self.graph, node))
        if node.op in _IN_PLACE and step is not None:
            self._share(node)

    def _view(self, node: Node) -> None:
        """The output is part of the input's memory: reading it is reading the input."""
        source = node.inputs[0]
        base = self.alias.get(source, source)
        self.views[node.name] = (source, _VIEWS[node.op](node))
        self.steps.append(Step(None, (), (base,), (), lambda arrays: _nothing))
        self._uses[base] += self._uses[node.name]
        self._reads_as(node.name, base)

    def _reads_as(self, name: str, base: str) -> None:
        self.view_base[name] = base

    def _share(self, node: Node) -> None:
        """Write the output over an input that nobody reads afterwards."""


def _nothing(start: int, stop: int, scratch: Array) -> None:
    """A step that only marks a use."""
