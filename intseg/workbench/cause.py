"""Why a node differs: hypotheses on it, and on nodes before it that the other side does not show."""

from __future__ import annotations

import dataclasses
import functools
import time

import numpy as np

from intseg.graph import IMAGE, Node
from intseg.ops import RUN, Array, Call
from intseg.workbench.registers import evaluate
from intseg.workbench.search import Explanation, explain, explain_upstream
from intseg.workbench.sides import Other
from intseg.workbench.trace import Trace


def node_of(golden: Trace, name: str) -> Node | None:
    """A node of the golden model by name; None where the model or the node is not known."""
    if golden.model is None:
        return None
    return next((node for node in golden.model.graph.nodes if node.name == name), None)


def call_of(golden: Trace, window: int, node: Node) -> Call | None:
    """The call that a node is in a window, from golden values; None where the trace lacks one of its inputs."""
    assert golden.model is not None
    graph, values = golden.model.graph, {}
    for name in node.inputs:
        if name in graph.tensors:
            continue
        value = golden.value(window, name)
        if value is None:
            return None
        values[name] = value
    inputs, params = graph.arguments(node, values)
    scale = golden.scale(node.inputs[0]) if node.inputs[0] != IMAGE else None
    return Call(node.op, inputs, params, node.attrs, scale)


def cause(
    golden: Trace, other: Other, window: int, name: str, found: Array, seconds: float, notes: list[str]
) -> Explanation | None:
    """Search for the cause of the first difference, at a node; None, with a note, where that is not possible."""
    node = node_of(golden, name)
    assert node is not None
    call = call_of(golden, window, node)
    if call is None:
        notes.append(
            f"no cause was searched: the golden trace lacks an input of {node.name} ({', '.join(node.inputs)})"
        )
        return None
    expected = golden.value(window, node.name)
    if expected is not None and not np.array_equal(evaluate(call), expected):
        notes.append(
            f"the golden trace does not follow the definition at {node.name}: recomputed from its own inputs the "
            "node comes out differently; no cause was searched"
        )
        return None
    unseen = _unseen(golden, other, window, node)
    if not unseen:
        return explain(call, found, seconds)
    names = ", ".join(["..."] * (len(unseen) > 3) + [one.name for one in unseen[-3:]])
    notes.append(
        f"the other side lacks {len(unseen)} nodes directly before {node.name} ({names}): "
        "the first wrong bit may lie in one of them"
    )
    return _cause_with_unseen(golden, window, name, call, found, unseen, seconds)


def _unseen(golden: Trace, other: Other, window: int, node: Node) -> list[Node]:
    """Nodes before `node`, in execution order, that lead to it through nodes which the other side does not show."""
    assert golden.model is not None
    nodes = {one.name: one for one in golden.model.graph.nodes}
    found: dict[str, Node] = {}
    queue = list(node.inputs)
    while queue:
        name = queue.pop()
        if name in nodes and name not in found and f"window{window}.{name}" not in other:
            found[name] = nodes[name]
            queue += nodes[name].inputs
    return [one for one in golden.model.graph.nodes if one.name in found]


def _cause_with_unseen(
    golden: Trace, window: int, target: str, call: Call, found: Array, unseen: list[Node], seconds: float
) -> Explanation:
    """One mistake in the node, one in an unseen node before it (the nearest first), two in the node."""
    deadline = time.thread_time() + seconds
    alone = explain(call, found, seconds / 4, pairs=False)
    tried = alone.tried
    if alone.matches:
        return alone
    for node in reversed(unseen):
        left = deadline - time.thread_time()
        upstream = call_of(golden, window, node)
        if left <= 0 or upstream is None:
            break
        leads = functools.partial(_leads_to, golden, window, node, target, found)
        explanation, count = explain_upstream(upstream, node.name, leads, left)
        tried += count
        if explanation is not None:
            return explanation
    rest = explain(call, found, max(deadline - time.thread_time(), 0.0))
    return dataclasses.replace(rest, tried=tried + rest.tried)


def _leads_to(golden: Trace, window: int, node: Node, target: str, found: Array, result: Array) -> bool:
    """Whether `result` at a node leads to `found` at a later one, everything between following the definition."""
    assert golden.model is not None
    graph, values = golden.model.graph, {node.name: result}
    for later in graph.nodes:
        if not values.keys() & set(later.inputs):
            continue
        for name in later.inputs:
            if name not in values and name not in graph.tensors:
                golden_value = golden.value(window, name)
                if golden_value is None:
                    return False
                values[name] = golden_value
        inputs, params = graph.arguments(later, values)
        values[later.name] = RUN[later.op](*inputs, **params, **later.attrs)
        if later.name == target:
            return np.array_equal(values[target], found)
    return False
