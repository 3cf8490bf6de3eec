"""The overflow certificate: bounds of every register of a graph, for every image, by interval analysis (SPEC.md 10).

A bound follows from the interval of an op's inputs, the tensors and the attributes; nothing is run. The ops say their
steps to a machine of intervals, which proves every register; those that only kernels hold (kernels/lanes/) come beside
them. Loading a model proves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intseg import windows
from intseg.arith.bounds import Bounds, Register
from intseg.arith.interval import Interval
from intseg.graph import IMAGE, Graph, ModelInfo, Node
from intseg.kernels import lanes
from intseg.ops import OPS

WINDOWS, LABELS = "(windows)", "(labels)"
"""What follows the graph (SPEC.md 7), under names that no node can have."""


@dataclass(frozen=True)
class NodeProof:
    """The registers of a node in the order of computation, and what is known of its output."""

    name: str
    op: str
    registers: tuple[Register, ...]
    output: Interval

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the registers that a trace has, without the result."""
        return tuple(r.name for r in self.registers if not r.extra and r.name != "result")


def prove(graph: Graph) -> tuple[NodeProof, ...]:
    """Bounds of every register of a valid graph (`intseg.graph.validate`), and of the steps from scores to labels.

    A classifier has no such steps: its class is the argmax of the logits that its graph gives.

    Raises ModelError naming node, register, bound and width when a register is not proved to hold its values.
    """
    proofs = [NodeProof(node.name, node.op, tuple(m.registers), output) for node, _, m, output in walk_graph(graph)]
    if graph.info.classifies:
        return tuple(proofs)
    after = prove_windows(graph.info, next(p.output for p in proofs if p.name == graph.output))
    proofs.append(after)
    if graph.info.upsample == "bilinear" and graph.info.merge == "grid":
        proofs.append(prove_labels(graph.info, after.output))
    return tuple(proofs)


def walk_graph(graph: Graph) -> Iterator[tuple[Node, list[Interval], Bounds, Interval]]:
    """Every node with the intervals of its inputs, the machine that proved it, and the interval of its output."""
    known = {IMAGE: Interval(0, 255, shape=(*graph.info.window, 3), moved=True)}
    for node in graph.nodes:
        for name in node.inputs:
            if name not in known:
                tensor = graph.tensors[name]
                known[name] = Interval(int(tensor.min()), int(tensor.max()), shape=tensor.shape, moved=True)
        inputs = [known[name] for name in node.inputs]
        machine, output = prove_node(graph, node, inputs)
        known[node.name] = Interval(output.low, output.high, output.row_sum, tuple(node.shape), moved=True)
        yield node, inputs, machine, known[node.name]


def prove_node(graph: Graph, node: Node, inputs: Sequence[Interval]) -> tuple[Bounds, Interval]:
    """The registers of a node, for inputs in these intervals. Raises ModelError."""
    params = {role: graph.tensors[name] for role, name in node.params.items()}
    machine = Bounds(node.name, node.op)
    output = machine.result(OPS[node.op].define(machine, *inputs, **params, **node.attrs), node.dtype)
    prove_lanes(machine, inputs, params, node.attrs)
    return machine, output


def prove_lanes(m: Bounds, inputs: Sequence[Interval], params: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Add the lanes of the kernel of an op, if it has one, to its registers. Raises ModelError."""
    add = lanes.of(m.op)
    if add is not None:
        add(m, inputs, params, attrs)


# ------------------------------------------------------------------------------------------- from scores to labels


def prove_windows(info: ModelInfo, score: Interval) -> NodeProof:
    """The sum of overlapping windows (SPEC 7), for images of any size."""
    machine = Bounds(WINDOWS, "merge_scores")
    for name, low, high, dtype in windows.bounds(info, score.low, score.high):
        machine.prove(name, Interval(low, high), dtype, extra=name != "merged")
    merged = machine.registers[-1]
    return NodeProof(WINDOWS, machine.op, tuple(machine.registers), Interval(merged.low, merged.high))


def prove_labels(info: ModelInfo, merged: Interval) -> NodeProof:
    """Bilinear scores of pixels."""
    machine, factor = Bounds(LABELS, "upsample_bilinear"), info.patch
    cell = Interval(merged.low, merged.high, shape=(1, 1, 1))
    pixels = OPS[machine.op].define(machine, cell, factor=factor, row_start=0, row_stop=factor)
    machine.result(pixels, "int64")
    machine.way("walk", walk(merged, factor))
    return NodeProof(LABELS, machine.op, tuple(machine.registers), Interval(pixels.low, pixels.high))


def walk(merged: Interval, factor: int) -> Interval:
    """The kernel of pixel labels walks along a row: 2 f near + (far - near) u + 2 i (far - near).

    u < 2 f, i < f and |near| <= 2 f S, where S is the largest merged score.
    """
    most = 20 * factor**2 * merged.size
    return Interval(-most, most)
