"""The loop. A backend is the op table passed in; nothing else differs between backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from intseg.graph import IMAGE, Graph, Node
from intseg.ops import Array, Run

OnNode = Callable[[Node, Array], None]


def execute(graph: Graph, image: Array, ops: Mapping[str, Run], on_node: OnNode | None = None) -> Array:
    """Run a validated graph on one window.

    image    uint8 [H, W, 3], the size of `graph.info.window`
    ops      op name -> function(*inputs, **params, **attrs)
    on_node  called with every node and its output, in execution order
    return   the scores, int8 or int16 [h, w, classes]
    """
    values: dict[str, Array] = {IMAGE: image}
    for i, node in enumerate(graph.nodes):
        inputs, params = graph.arguments(node, values)
        values[node.name] = ops[node.op](*inputs, **params, **node.attrs)
        if on_node is not None:
            on_node(node, values[node.name])
        for name in (*node.inputs, node.name):
            if graph.last_use[name] <= i:
                values.pop(name, None)
    return values[graph.output]
