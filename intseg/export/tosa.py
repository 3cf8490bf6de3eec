"""A graph as TOSA 1.0 (PRO-INT with EXT-INT16), in the JSON form of the serialization: whole, and a file a node.

One more reading of the ops: `tosa_machine` writes them down. A step that it cannot say refuses the node and says which
(docs/TOSA.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intseg import files, prove, windows
from intseg.arith import limits
from intseg.arith.bounds import Bounds
from intseg.arith.interval import Interval
from intseg.graph import IMAGE, Graph, Node
from intseg.ops import OPS, Array

from .tosa_block import VERSION, Block, CannotError, Cell, Operand
from .tosa_machine import TosaMachine

MODEL, MAP, LABELS = "model.json", "map.json", "labels"


def _write_node(
    block: Block, graph: Graph, node: Node, operands: Sequence[tuple[Operand, str]], known: Sequence[Interval]
) -> Cell:
    """The operators of a node, its result under its name."""
    machine = TosaMachine(block, Bounds(node.name, node.op))
    inputs = [machine.given(x, dtype, i) for (x, dtype), i in zip(operands, known, strict=True)]
    params: dict[str, Array] = {role: graph.tensors[name] for role, name in node.params.items()}
    result = OPS[node.op].define(machine, *inputs, **params, **node.attrs).cell
    return block.operator("IDENTITY", [result], str(result.dtype), result.shape, name=node.name)


def _operand(graph: Graph, name: str) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of what a node reads."""
    if name == IMAGE:
        return "uint8", (*graph.info.window, 3)
    if name in graph.tensors:
        return graph.tensors[name].dtype.name, graph.tensors[name].shape
    node = graph.node(name)
    return node.dtype, tuple(node.shape)


def node_file(graph: Graph, node: Node, known: Sequence[Interval]) -> dict[str, Any]:
    """The TOSA graph of one node, its inputs and its result under their names. Raises CannotError."""
    block, names = Block(), list(dict.fromkeys(node.inputs))
    operands = {name: (block.tensor(name, *_operand(graph, name)), _operand(graph, name)[0]) for name in names}
    _write_node(block, graph, node, [operands[name] for name in node.inputs], known)
    return block.file(names, [node.name])


def nodes(graph: Graph) -> dict[str, dict[str, Any] | str]:
    """The TOSA graph of every node by name, or why there is none."""
    found: dict[str, dict[str, Any] | str] = {}
    for node, known, _, _ in prove.walk_graph(graph):
        try:
            found[node.name] = node_file(graph, node, known)
        except CannotError as error:
            found[node.name] = str(error)
    return found


def model_file(graph: Graph, labels: bool = False) -> dict[str, Any]:
    """The whole graph, `image` to the scores, and to `labels` if asked for. Raises CannotError."""
    block = Block()
    values: dict[str, tuple[Operand, str]] = {name: (x, x.dtype.name) for name, x in graph.tensors.items()}
    values[IMAGE] = block.tensor(IMAGE, *_operand(graph, IMAGE)), "uint8"
    for node, known, _, _ in prove.walk_graph(graph):
        made = _write_node(block, graph, node, [values[name] for name in node.inputs], known)
        values[node.name] = made, node.dtype
        if node.name == graph.output and labels:
            _write_labels(block, graph, made)
    return block.file([IMAGE], [graph.output, *([LABELS] if labels else [])])


def _write_labels(block: Block, graph: Graph, scores: Cell) -> None:
    """SPEC 7 for an image of one window: classes of pixels, or the class, [1]."""
    machine = TosaMachine(block, Bounds(LABELS, "argmax"))
    shape = (1, *scores.shape) if graph.info.classifies else scores.shape
    known = Interval(*limits(scores.dtype), shape=shape)
    value = machine.given(block.reshape(scores, shape), scores.dtype, known)
    for op, attrs in [("argmax", {})] if graph.info.classifies else windows.label_steps(graph.info):
        value = OPS[op].define(machine, value, **attrs)
    block.operator("IDENTITY", [value.cell], "int32", value.shape, name=LABELS)


def _create(path: Path, document: object, **how: Any) -> None:
    with files.create(path) as out:
        out.write(json.dumps(document, **how).encode())


def write(graph: Graph, folder: Path, labels: bool = False) -> tuple[int, dict[str, str]]:
    """The whole graph (with labels if asked for), a file a node, and map.json: op, inputs, file or reason.

    Returns how many nodes have one, and the reasons of the others. Where a node cannot be said, there is no
    file of the whole.
    """
    made, entries = nodes(graph), []
    reasons = {name: found for name, found in made.items() if isinstance(found, str)}
    close = {"separators": (",", ":")}
    with files.new_folder(folder) as place:
        for i, node in enumerate(graph.nodes):
            entry = {"node": node.name, "op": node.op, "inputs": list(node.inputs)}
            if node.name in reasons:
                entries.append({**entry, "cannot": reasons[node.name]})
                continue
            name = f"{i:04d}.json"
            _create(place / name, made[node.name], **close)
            entries.append({**entry, "file": name})
        if not reasons:
            _create(place / MODEL, model_file(graph, labels), **close)
        _create(place / MAP, {"tosa": VERSION, "nodes": entries}, indent=1)
    return len(made) - len(reasons), reasons
