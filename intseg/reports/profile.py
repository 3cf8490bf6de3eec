"""Where the time of a window goes: node by node as the graph says, and step by step as the plan runs it.

The two tables measure different programs. Unfused, every node is one call on the whole tensor: what an op costs by
itself. Fused is what `infer` runs: steps swallow nodes, and threads share their rows. The scores of both are compared.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from intseg import api, backends
from intseg.errors import MismatchError
from intseg.executor import execute
from intseg.graph import Node
from intseg.images import decode as pictures
from intseg.reports.inspect import macs
from intseg.reports.table import table
from intseg.windows import cut_windows, tile

if TYPE_CHECKING:
    from intseg.plan.memory import Rows, Step
    from intseg.plan.plan import Plan

Array = api.Array


@dataclass(frozen=True)
class Event:
    """One call: when, in nanoseconds of the process clock, and on which thread."""

    index: int
    start: int
    stop: int
    thread: int

    @property
    def duration(self) -> int:
        """Nanoseconds."""
        return self.stop - self.start


@dataclass(frozen=True)
class Timed:
    """A node or a step with its best time.

    nanoseconds  of the fastest of the repeated runs; of a step split over threads, the sum over the threads
    """

    name: str
    op: str
    macs: int
    nanoseconds: int

    @property
    def gmacs(self) -> float | None:
        """10^9 multiply-accumulates a second (and thread); None for what has none."""
        return self.macs / self.nanoseconds if self.macs and self.nanoseconds else None


@dataclass(frozen=True)
class Profile:
    """What `profile` measured on the first window of an image.

    nodes, steps  unfused and fused; no steps on the numpy backend
    wall          nanoseconds of the fastest run from the first to the last call: unfused, fused
    traces        the events of these two runs, for the trace file
    windows       number of windows of the image
    notes         what was done to decode it
    """

    model: api.Model
    backend: str
    threads: int
    windows: int
    nodes: tuple[Timed, ...]
    steps: tuple[Timed, ...]
    wall: tuple[int, ...]
    traces: tuple[tuple[Event, ...], ...]
    notes: tuple[str, ...] = ()


def profile(
    image: Any, weights: Any = None, backend: str = "auto", threads: int | None = None, repeat: int = 3
) -> Profile:
    """Time every node and every step on the first window of an image.

    Arguments and errors as of `api.run`; every table holds the fastest of `repeat` runs after one that is not counted.
    Raises MismatchError if the fused and the unfused scores differ.
    """
    model, backend = api.load(weights), backends.resolve(backend)
    picture = pictures.decode(image, model.info.pad)
    _, window = next(iter(cut_windows(picture.rgb, model.info)))
    windows = len(tile(model.info, *picture.rgb.shape[:2]).corners())
    nodes = model.graph.nodes
    scores, runs = _unfused(model, backend, window, repeat)
    timed = tuple(
        Timed(n.name, n.op, macs(model.graph, n), best) for n, best in zip(nodes, _best(runs, len(nodes)), strict=True)
    )
    walls, traces, count = [_wall(runs)], [_fastest(runs)], 1
    steps: tuple[Timed, ...] = ()
    if backend == "numba":
        plan, described, plan_runs, fused = _fused(model, threads, window, repeat)
        if not np.array_equal(scores, fused):
            raise MismatchError(f"{model.path}: fused and unfused scores differ; please report it with intseg doctor")
        best = _best(plan_runs, len(described))
        steps = tuple(Timed(*what, ns) for what, ns in zip(described, best, strict=True))
        walls, traces, count = [*walls, _wall(plan_runs)], [*traces, _fastest(plan_runs)], plan.threads
    return Profile(model, backend, count, windows, timed, steps, tuple(walls), tuple(traces), picture.notes)


Run = list[Event]


def _unfused(model: api.Model, backend: str, window: Array, repeat: int) -> tuple[Array, list[Run]]:
    """Scores, and the events of every counted run of the executor."""
    ops, runs = backends.table(backend), []
    for _ in range(repeat + 1):
        events: Run = []
        last = time.perf_counter_ns()

        def keep(node: Node, value: Array, events: Run = events) -> None:
            nonlocal last
            now = time.perf_counter_ns()
            events.append(Event(len(events), last, now, threading.get_ident()))
            last = time.perf_counter_ns()

        scores = execute(model.graph, window, ops, keep)
        runs.append(events)
    return scores, runs[1:]


def _fused(
    model: api.Model, threads: int | None, window: Array, repeat: int
) -> tuple[Plan, list[tuple[str, str, int]], list[Run], Array]:
    """The plan, what its steps are, the events of every counted run, the scores."""
    from intseg.plan.plan import Plan

    plan = Plan(model.graph, threads)
    steps = [step for segment in plan.segments for step in segment.steps]
    events: Run = []
    _record(plan, events)
    runs = []
    for _ in range(repeat + 1):
        events.clear()
        scores = plan(window)
        runs.append(sorted(events, key=lambda event: event.start))
    return plan, [_described(model, step) for step in steps], runs[1:], scores


def _described(model: api.Model, step: Step) -> tuple[str, str, int]:
    """Name, op and MACs of a step; one without a kernel does not know its own."""
    name = step.outputs[0].name
    return name, step.op or "copy", step.macs or _node_macs(model, name, step.op)


def _node_macs(model: api.Model, name: str, op: str) -> int:
    return sum(macs(model.graph, node) for node in model.graph.nodes if (node.name, node.op) == (name, op))


def _record(plan: Plan, events: Run) -> None:
    """Give the plan a workspace whose calls note when they ran; this plan serves nothing else."""
    from dataclasses import replace

    workspace, index = plan._workspace(), iter(range(10**9))
    calls = [[_recorded(call, next(index), events) for call in calls] for calls in workspace.calls]
    plan._free.append(replace(workspace, calls=calls))


def _recorded(call: Rows, index: int, events: Run) -> Rows:
    def timed(start: int, stop: int, scratch: Array) -> None:
        begin = time.perf_counter_ns()
        call(start, stop, scratch)
        events.append(Event(index, begin, time.perf_counter_ns(), threading.get_ident()))

    return timed


def _best(runs: Sequence[Run], count: int) -> list[int]:
    """For every index the least time of a run, calls of several threads added up."""
    sums = [[0] * count for _ in runs]
    for total, run in zip(sums, runs, strict=True):
        for event in run:
            total[event.index] += event.duration
    return [min(values) for values in zip(*sums, strict=True)]


def _length(run: Run) -> int:
    return max(event.stop for event in run) - min(event.start for event in run)


def _wall(runs: Sequence[Run]) -> int:
    return min(map(_length, runs))


def _fastest(runs: Sequence[Run]) -> tuple[Event, ...]:
    return min(zip(map(_length, runs), map(tuple, runs), strict=True), key=lambda item: item[0])[1]


# ----------------------------------------------------------------------------------------------------------- text


def lines(found: Profile, by: str = "node") -> Iterator[str]:
    """What `intseg profile` prints."""
    threads = f", {found.threads} thread{'s' if found.threads > 1 else ''}" if found.steps else ""
    yield (
        f"{found.model.info.name}, backend {found.backend}{threads}, "
        f"first of {found.windows} window{'s' if found.windows > 1 else ''}"
    )
    parts = [("unfused, one call a node", found.nodes)]
    if found.steps:
        parts.append(("fused, as infer runs it", found.steps))
    for (title, timed), wall in zip(parts, found.wall, strict=True):
        yield ""
        yield title
        yield from _table(timed, ("name", "op")) if by == "node" else _table(_by_op(timed), ("op", "calls"))
        total = sum(entry.macs for entry in timed)
        yield f"{wall / 1e6:.3f} ms in all, {total / 1e9:.3f} GMAC, {total / wall:.1f} GMAC/s"


def _by_op(timed: Sequence[Timed]) -> list[Timed]:
    """Added up by op, the slowest first."""
    groups: dict[str, list[Timed]] = {}
    for entry in timed:
        groups.setdefault(entry.op, []).append(entry)
    sums = [
        Timed(op, str(len(group)), sum(e.macs for e in group), sum(e.nanoseconds for e in group))
        for op, group in groups.items()
    ]
    return sorted(sums, key=lambda entry: -entry.nanoseconds)


def _table(timed: Sequence[Timed], head: tuple[str, str]) -> Iterator[str]:
    total = sum(entry.nanoseconds for entry in timed) or 1
    cells = [(*head, "ms", "share", "MMAC", "GMAC/s")]
    for e in timed:
        work = f"{e.macs / 1e6:.3f}" if e.macs else "-"
        rate = "-" if e.gmacs is None else f"{e.gmacs:.1f}"
        cells.append((e.name, e.op, f"{e.nanoseconds / 1e6:.3f}", f"{e.nanoseconds / total:.1%}", work, rate))
    yield from table(cells, left=2)


def as_json(found: Profile) -> dict[str, Any]:
    """The same for programs; times in nanoseconds."""

    def entries(timed: Sequence[Timed]) -> list[dict[str, Any]]:
        return [{"name": e.name, "op": e.op, "macs": e.macs, "ns": e.nanoseconds} for e in timed]

    return {
        "model": {"name": found.model.info.name, "sha256": found.model.sha256},
        "backend": found.backend,
        "threads": found.threads,
        "windows": found.windows,
        "notes": list(found.notes),
        "nodes": entries(found.nodes),
        "steps": entries(found.steps),
        "wall_ns": dict(zip(("nodes", "steps"), found.wall, strict=False)),
    }


def chrome_trace(found: Profile) -> bytes:
    """The fastest runs in Chrome's trace event format: open it in chrome://tracing or ui.perfetto.dev."""
    events: list[dict[str, Any]] = []
    names = ("unfused nodes", "fused steps")
    for i, (trace, timed) in enumerate(zip(found.traces, (found.nodes, found.steps), strict=False)):
        events.append({"ph": "M", "name": "process_name", "pid": i, "tid": 0, "args": {"name": names[i]}})
        threads = {thread: n for n, thread in enumerate(dict.fromkeys(event.thread for event in trace))}
        events += [
            {"ph": "M", "name": "thread_name", "pid": i, "tid": n, "args": {"name": f"thread {n}"}}
            for n in threads.values()
        ]
        start = min(event.start for event in trace)
        events += [_trace_event(event, timed[event.index], i, threads[event.thread], start) for event in trace]
    about = {"model": found.model.info.name, "sha256": found.model.sha256, "backend": found.backend}
    document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}
    return (json.dumps(document) + os.linesep).encode()


def _trace_event(event: Event, timed: Timed, process: int, thread: int, start: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": timed.name,
        "cat": timed.op,
        "ts": (event.start - start) / 1000,
        "dur": event.duration / 1000,
        "pid": process,
        "tid": thread,
        "args": {"op": timed.op, "macs": timed.macs},
    }
