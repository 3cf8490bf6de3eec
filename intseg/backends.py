"""Backends by name: op tables, compiled graphs, and labels from scores. Numba is imported on first use, never before.

`numpy` is the definition. `numba` is the definition with fast entries replaced; both give the same bits.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from intseg import resize as definition
from intseg import windows
from intseg.errors import UsageError, printable, suggest
from intseg.executor import execute
from intseg.graph import Graph, ModelInfo, Node
from intseg.ops import RUN, Array, Run

Forward = Callable[[Array], Array]


def names() -> tuple[str, ...]:
    """All backends that a user may ask for by name, fast or not, installed or not."""
    return ("numpy", "numba")


@functools.cache
def numba_problem() -> str:
    """Why the numba backend cannot be used here; empty where it can. Imports Numba, once per process.

    Numba refuses to be imported beside a NumPy that is newer than it knows, and with settings that it cannot use.
    """
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install numba"
    try:
        from numba.core import config
    except Exception as error:  # whatever a package that does not fit this installation raises
        first = (str(error).splitlines() or [""])[0]
        return f"numba cannot be imported ({type(error).__name__}: {printable(first)})"
    disabled: bool = getattr(config, "DISABLE_JIT", False)
    return "NUMBA_DISABLE_JIT is set: unset it" if disabled else ""


def has_numba() -> bool:
    """Whether the numba backend can be used here."""
    return not numba_problem()


def resolve(name: str) -> str:
    """The backend behind "auto", "numpy" or "numba": auto is numba where it can be used, and says so where not.

    Raises UsageError for another name, and for "numba" where it cannot be used.
    """
    if name == "auto":
        if has_numba():
            return "numba"
        _say_why_slow(numba_problem())
        return "numpy"
    if name not in names():
        raise UsageError(f"backend {name!r} is unknown, expected auto, {', '.join(names())}")
    if name == "numba" and not has_numba():
        raise UsageError(
            f"backend 'numba' cannot be used: {numba_problem()}, or use the backend 'numpy' (same results)"
        )
    return name


@functools.cache
def _say_why_slow(problem: str) -> None:
    """Warn, once per process, that inference will be slow."""
    warnings.warn(f"{problem}; running the slow NumPy backend (same results)", stacklevel=3)


def table(name: str) -> Mapping[str, Run]:
    """The op table of a backend, as `executor.execute` takes it. Every entry equals the definition, unfused."""
    if resolve(name) == "numpy":
        return RUN
    from intseg.plan.steps import table as kernels

    return kernels()


def compile(graph: Graph, backend: str, threads: int | None = None) -> Forward:
    """A function from one window to its scores, for a validated graph.

    backend  "auto", "numpy" or "numba"
    threads  of the numba backend; None is every core this process may run on, 1 starts none
    return   uint8 [H, W, 3] -> int8 or int16 [h, w, classes]; may be called from several threads at once
    """
    if resolve(backend) == "numpy":
        return functools.partial(_run_numpy, graph)
    from intseg.plan.plan import Plan

    return Plan(graph, threads)


class OwnOps:
    """A graph run unfused, some of its ops computed by functions of the caller: a prototype among the definitions.

    ops  op or node name -> function(*inputs, **params, **attrs), as `intseg.ops.RUN` has them
    Raises UsageError for a name that neither an op nor a node of the graph has, and, when it runs, for a result that
    is not what the node gives.
    """

    def __init__(self, graph: Graph, backend: str, ops: Mapping[str, Run]) -> None:
        self.graph, self.ops = graph, ops
        self.table = {**table(backend), **{node.name: self._of(node, backend) for node in graph.nodes}}
        known = {name for node in graph.nodes for name in (node.name, node.op)}
        for name in ops:
            if name not in known:
                raise UsageError(
                    f"ops has {name!r}{suggest(name, known)}, which is neither an op nor a node of {graph.info.name}; "
                    "intseg inspect lists them"
                )
        self.own = replace(graph, nodes=tuple(replace(node, op=node.name) for node in graph.nodes))

    def _of(self, node: Node, backend: str) -> Run:
        chosen = self.ops.get(node.name, self.ops.get(node.op))
        return table(backend)[node.op] if chosen is None else functools.partial(_checked, node, chosen)

    def __call__(self, window: Array, on_node: Callable[[Node, Array], None] | None = None) -> Array:
        """The scores of a window; as `executor.execute`."""
        return execute(self.own, window, self.table, on_node)


def _checked(node: Node, op: Run, *inputs: Array, **arguments: Any) -> Array:
    found = op(*inputs, **arguments)
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if dtype is None or (dtype.name, tuple(shape or ())) != (node.dtype, tuple(node.shape)):
        what = type(found).__name__ if dtype is None else f"{dtype} {list(shape or ())}"
        raise UsageError(
            f"node {node.name}: your {node.op} gives {what}, expected {node.dtype} {list(node.shape)}; correct it"
        )
    return np.ascontiguousarray(found)


def _run_numpy(graph: Graph, image: Array) -> Array:
    return execute(graph, image, RUN)


def class_map(
    scores: Array, upsample: str, patch: int, height: int, width: int, backend: str, threads: int | None = None
) -> Array:
    """`windows.class_map` by a backend: labels uint8 or uint16 [height, width] from scores int32 [h, w, C]."""
    if upsample == "nearest" or resolve(backend) == "numpy":
        return windows.class_map(scores, upsample, patch, height, width)
    from intseg.plan.labels import bilinear_labels

    return bilinear_labels(scores, patch, height, width, threads)


def labels(scores: Array, info: ModelInfo, height: int, width: int, backend: str, threads: int | None = None) -> Array:
    """`windows.labels` by a backend: labels uint8 or uint16 [height, width] from what `windows.merge_scores` gives."""
    if info.classifies:
        return windows.labels(scores, info, height, width)
    own = windows.working_size(info, height, width) == (height, width)
    if info.merge == "grid" and own:
        return class_map(scores, info.upsample, info.patch, height, width, backend, threads)
    if resolve(backend) == "numpy":
        return windows.labels(scores, info, height, width)
    from intseg.plan.labels import pixel_labels

    return pixel_labels(scores, info, height, width, threads)


def resize(rgb: Array, height: int, width: int, backend: str, threads: int | None = None) -> Array:
    """`intseg.resize.resize` by a backend: uint8 [H, W, 3] to uint8 [height, width, 3]."""
    if (height, width) == rgb.shape[:2] or resolve(backend) == "numpy":
        return definition.resize(rgb, height, width)
    from intseg.plan.labels import resized

    return resized(rgb, height, width, threads)


def warmup() -> None:
    """Compile every kernel and store it in the cache, so that no later run has to."""
    resolve("numba")
    from intseg.plan.plan import compile_all

    compile_all()
