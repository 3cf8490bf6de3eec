"""Graphs made node by node: dtype and shape of every node are those that its op infers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intseg.graph import IMAGE, Graph, ModelInfo, Node
from intseg.ops import OPS, Array, Attr, Value


class GraphBuilder:
    """Nodes and tensors so far. What it gives is not validated yet.

    nodes    in execution order
    tensors  by name
    packed   bits of the tensors that the file holds packed
    values   dtype, shape and row sum of the image, of tensors that are inputs, and of every node
    """

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.nodes: list[Node] = []
        self.tensors: dict[str, Array] = {}
        self.packed: dict[str, int] = {}
        self.values = {IMAGE: Value("uint8", (*info.window, 3))}

    def tensor(self, name: str, array: Array) -> str:
        """Add a tensor that nodes may take as an input; returns its name."""
        self.tensors[name] = np.ascontiguousarray(array)
        self.values[name] = Value(array.dtype.name, array.shape)
        return name

    def node(self, name: str, op: str, /, *inputs: str, scale: str | None = None, **operands: Array | Attr) -> str:
        """Append a node; returns its name. Raises ModelError where the op refuses its operands.

        inputs    names of the image, of tensors or of earlier nodes
        scale     name of the tensor that says what the output stands for
        operands  parameters and attributes by the op's names: a parameter is an array, stored as "name.role", or the
                  name of a tensor already there
        """
        roles, params, attrs = self._sorted(name, op, operands)
        value = OPS[op].check([self.values[source] for source in inputs], params, attrs)
        self.nodes.append(Node(name, op, inputs, roles, attrs, value.dtype, value.shape, scale))
        self.values[name] = value
        return name

    def _sorted(
        self, name: str, op: str, operands: Mapping[str, Any]
    ) -> tuple[dict[str, str], dict[str, Array], dict[str, Attr]]:
        """Tensor names by role, their arrays, attributes."""
        roles: dict[str, str] = {}
        for role in OPS[op].params:
            given = operands[role]
            roles[role] = given if isinstance(given, str) else self.tensor(f"{name}.{role}", given)
        params = {role: self.tensors[tensor] for role, tensor in roles.items()}
        return roles, params, {key: value for key, value in operands.items() if key not in roles}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the image, a tensor or a node."""
        return self.values[name].shape

    def graph(self, output: str) -> Graph:
        """The graph with this node's output as its scores."""
        return Graph(tuple(self.nodes), self.tensors, output, self.info, self.packed)
