"""The fast path of a graph: packed weights, fused patterns, buffers planned once, rows spread over threads.

A plan is a list of segments. Inside a segment every step works row by row on the same rows, so a thread takes a range
of rows through all of its steps; between segments all threads wait. With the attention of a strip of rows in one step,
a transformer block has one such wait. Same bits as `executor.execute`; intermediates that a pattern swallows do not
exist here, which is why tracing runs unfused.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from intseg.graph import IMAGE, Graph, Node
from intseg.kernels import _jit
from intseg.ops import Array

from . import labels  # noqa: F401  its kernels are among those that are compiled
from .memory import Arrays, Buffer, Rows, Segment, Step, aligned, join, place
from .patterns import PATTERNS, follow
from .steps import FAST, integer, step
from .threads import Task, ranges, run_stages, thread_count

_CHUNK_ROWS = 64
"""Row ranges of threads start at multiples of this: the width of a panel of keys."""


class Plan:
    """A compiled graph: call it with an image window, from as many threads at once as wanted."""

    def __init__(self, graph: Graph, threads: int | None = None) -> None:
        self.threads = thread_count(threads)
        builder = _Builder(graph)
        self.segments = join(builder.steps, builder.root)
        self._constants = {name: np.ascontiguousarray(graph.tensors[name]) for name in builder.constants}
        self._views = builder.views
        self._output = graph.output
        self._placed, self.workspace_bytes = place(self.segments, builder.root, graph.output)
        self._free: deque[_Workspace] = deque()

    def __call__(self, image: Array, on_output: Callable[[str, Array], None] | None = None) -> Array:
        """Scores int8 or int16 [h, w, classes] of one window uint8 [H, W, 3].

        on_output  called after every segment with the names and values it leaves behind: the nodes no pattern swallows
                   and nothing overwrites at once, and the packed operands of patterns; on whichever of the plan's
                   threads is free, one call at a time, before the next segment begins
        """
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = self._workspace()
        try:
            np.copyto(workspace.arrays[IMAGE], image, casting="no")
            stages = []
            for segment, calls in zip(self.segments, workspace.calls, strict=True):
                stages.append(_tasks(segment.extent, calls, self.threads, workspace.scratch))
                if on_output is not None:
                    stages.append([functools.partial(_report, segment, workspace.arrays, on_output)])
            run_stages(stages, self.threads)
            scores: Array = workspace.arrays[self._output].copy()
            return scores
        finally:
            self._free.append(workspace)

    def _workspace(self) -> _Workspace:
        """Memory and bound calls for one run at a time."""
        arena = aligned(self.workspace_bytes)
        arrays = dict(self._constants)
        for buffer, offset in self._placed:
            flat = arena[offset : offset + buffer.nbytes].view(buffer.dtype)
            arrays[buffer.name] = flat[: math.prod(buffer.shape)].reshape(buffer.shape)
        for name, (source, view) in self._views.items():
            arrays[name] = view(arrays[source])
        size = max(step.scratch for s in self.segments for step in s.steps)
        scratch: deque[Array] = deque(aligned(size) for _ in range(self.threads))
        return _Workspace(arrays, [[step.bind(arrays) for step in s.steps] for s in self.segments], scratch)


@dataclass(frozen=True)
class _Workspace:
    arrays: Arrays
    calls: Sequence[Sequence[Rows]]
    scratch: deque[Array]


def _tasks(extent: int | None, calls: Sequence[Rows], threads: int, scratch: deque[Array]) -> list[Task]:
    """A segment as one task for every thread; scratch is taken from and given back to `scratch`."""

    def work(start: int, stop: int) -> None:
        mine = scratch.pop()
        try:
            for call in calls:
                call(start, stop, mine)
        finally:
            scratch.append(mine)

    parts = [(0, extent or 0)] if extent is None or threads == 1 else ranges(extent, threads, _CHUNK_ROWS)
    return [functools.partial(work, *part) for part in parts]


def _report(segment: Segment, arrays: Arrays, on_output: Callable[[str, Array], None]) -> None:
    """What a segment leaves behind: of buffers that share memory, the last."""
    left = {arrays[buffer.name].ctypes.data: buffer.name for step in segment.steps for buffer in step.outputs}
    for name in left.values():
        on_output(name, arrays[name])


# ---- from nodes to steps ------------------------------------------------------------------------------------------


def _identity(x: Array) -> Array:
    return x


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
        before = None  # a node whose step is the last
        for node in graph.nodes:
            known = len(self.steps)
            if node.name in patterns:
                self.steps += patterns[node.name]
            else:
                self._single(node)
            self.steps[known:] = [replace(step, op=step.op or node.op) for step in self.steps[known:]]
            single = node.name not in patterns and len(self.steps) > known
            if before is not None and single:
                joined = follow(graph, (before, node), (self.steps[-2], self.steps[-1]))
                self.steps[-2:] = self.steps[-2:] if joined is None else [joined]
            before = node if single else None

    def root(self, name: str) -> str:
        """See Root."""
        while name in self.views:
            name = self.views[name][0]
        return name

    def inner(self, name: str, op: str = "") -> Node | None:
        """See patterns.Inner."""
        node = self._nodes.get(name)
        return node if node is not None and op in ("", node.op) and self._uses[name] == 1 else None

    def _match(self, node: Node) -> Iterator[tuple[str, list[Step]]]:
        """Steps by node name for a pattern that ends at this node; nodes inside of it have none."""
        for pattern in PATTERNS:
            found = pattern(self.graph, self.inner, node)
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
        made = step(self.graph, node)
        moved = tuple(name for name in made.local if name in self._shifted)
        local = tuple(name for name in made.local if name not in self._shifted)
        self.steps.append(replace(made, local=local, whole=(*made.whole, *moved)))
        fast = FAST.get(node.op)
        reused = node.inputs[-1]
        free = self._uses[reused] == 1 and reused in self._nodes and reused not in self._shifted
        if free and fast is not None and fast.in_place and self._nodes[reused].dtype == node.dtype:
            self.views[node.name] = (reused, _identity)


# Outputs that are their input's memory under another shape; rows of the two differ.
_VIEWS: Mapping[str, Callable[[Node], Callable[[Array], Array]]] = {
    "slice": lambda node: lambda x: x[integer(node, "start") : integer(node, "stop")],
    "to_grid": lambda node: lambda x: x.reshape(node.shape),
}


def _image_step(graph: Graph) -> Step:
    """Makes room for the window; the caller copies it there."""
    height, width = graph.info.window
    return Step(None, (), (), (Buffer(IMAGE, (height, width, 3), "uint8"),), lambda arrays: _nothing)


def _nothing(start: int, stop: int, scratch: Array) -> None:
    """No work."""


# ---- labels, and compilation --------------------------------------------------------------------------------------


def compile_all() -> None:
    """Compile every kernel, or load it from the cache."""
    for kernel in _jit.REGISTRY.values():
        kernel.compile()
