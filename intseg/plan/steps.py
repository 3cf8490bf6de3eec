"""One step for one node: the kernel of its op, or the definition where there is none; and the op table, unfused."""

from __future__ import annotations

import functools
import math
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np

from intseg import kernels
from intseg.graph import Graph, Node
from intseg.kernels._fast import Attention, Fast
from intseg.ops import RUN, Array, Run

from .memory import Arrays, Buffer, Rows, Step

_MODULES = [
    import_module(f"{kernels.__name__}.{module.name}")
    for module in iter_modules(kernels.__path__)
    if not (module.ispkg or module.name.startswith("_"))
]

FAST: dict[str, Fast] = {op: fast for module in _MODULES for op, fast in getattr(module, "OPS", {}).items()}
"""Kernels by op: what the files of `kernels` have as `OPS`."""

ATTENTIONS: dict[str, Attention] = {
    op: found for module in _MODULES for op, found in getattr(module, "ATTENTIONS", {}).items()
}
"""Fused attentions by softmax, likewise."""


def output(node: Node) -> Buffer:
    return Buffer(node.name, tuple(node.shape), node.dtype)


def integer(node: Node, name: str) -> int:
    value = node.attrs[name]
    assert isinstance(value, int)
    return value


def params_of(graph: Graph, node: Node) -> Arrays:
    """Parameters by role."""
    return {role: graph.tensors[name] for role, name in node.params.items()}


def step(graph: Graph, node: Node) -> Step:
    """The kernel on rows; without one, for rare ops and small ones, the op on the whole tensor, then a copy."""
    params, fast = params_of(graph, node), FAST.get(node.op)
    if fast is None or fast.work is None:
        return _fallback(node, params)
    first = (RUN[node.op],) if fast.tabulates else ()
    work = fast.work(*first, params, node.attrs)

    def bind(arrays: Arrays) -> Rows:
        return work.bind([rows_of(arrays[name]) for name in node.inputs], rows_of(arrays[node.name]))

    macs = math.prod(node.shape) * work.depth
    return Step(math.prod(node.shape[:-1]), node.inputs, (), (output(node),), bind, work.scratch, macs=macs)


def _fallback(node: Node, params: Arrays) -> Step:
    run = table()[node.op]

    def bind(arrays: Arrays) -> Rows:
        def call(start: int, stop: int, scratch: Array) -> None:
            np.copyto(arrays[node.name], run(*(arrays[name] for name in node.inputs), **params, **node.attrs))

        return call

    return Step(None, (), node.inputs, (output(node),), bind)


def rows_of(x: Array) -> Array:
    """[..., D] as [M, D]."""
    return x.reshape(-1, x.shape[-1])


def table() -> dict[str, Run]:
    """The definition's op table with fast entries replaced; every op by itself, nothing fused."""

    def run(op: str, fast: Fast) -> Any:
        return functools.partial(fast.run, RUN[op]) if fast.tabulates else fast.run

    return RUN | {op: run(op, fast) for op, fast in FAST.items()}
