"""How near real values come to the bounds of a certificate: inputs made for the worst registers, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from intseg import windows
from intseg.arith.bounds import Register
from intseg.arith.interval import Interval
from intseg.errors import IntsegError
from intseg.exam import EXAMS, Extremes
from intseg.exam._exam import Operands, shapes_of
from intseg.graph import Graph, ModelInfo, Node
from intseg.ops import RUN, Array, Call
from intseg.prove import NodeProof, prove_labels, prove_windows, walk_graph
from intseg.workbench.registers import steps


def witnessed(graph: Graph) -> tuple[NodeProof, ...]:
    """`intseg.prove.prove`, and for every register of a trace the value nearest to its bound that was seen.

    Raises ModelError as it does, IntsegError where a value lies outside its bound, which would be a bug.
    """
    proofs: list[NodeProof] = []
    known: dict[str, tuple[Node, Interval]] = {}
    for node, inputs, machine, output in walk_graph(graph):
        registers = tuple(machine.registers)
        worst = EXAMS[node.op].worst
        if worst is not None:
            rows = [_rows_of(known[name]) if name in known else None for name in node.inputs]
            params = {role: graph.tensors[name] for role, name in node.params.items()}
            at = Extremes(inputs, params, node.attrs, machine.worst, rows)
            registers = seen_in(node.name, Call(node.op, (), params, node.attrs), registers, list(worst(at)))
        proofs.append(NodeProof(node.name, node.op, registers, output))
        if output.row_sum is not None:
            known[node.name] = node, inputs[0]
    if graph.info.classifies:
        return tuple(proofs)
    merged = windows_seen(graph.info, next(p.output for p in proofs if p.name == graph.output))
    proofs.append(merged)
    if graph.info.upsample == "bilinear" and graph.info.merge == "grid":
        proofs.append(labels_seen(graph.info, merged.output))
    return tuple(proofs)


def _rows_of(source: tuple[Node, Interval]) -> Array:
    """Rows that an op with a bound on their sum really gives."""
    node, logits = source
    rows: Array = RUN[node.op](shapes_of(logits, logits.shape[-1], np.int16), **node.attrs)
    return rows


def seen_in(name: str, call: Call, registers: Sequence[Register], operands: Sequence[Operands]) -> tuple[Register, ...]:
    """The registers with the value of largest size that the operands give."""
    found: list[Mapping[str, Array]] = []
    for inputs, params in operands:
        case = replace(call, inputs=inputs, params=params)
        seen = steps(case)
        if not np.array_equal(seen["result"], RUN[call.op](*inputs, **params, **call.attrs)):
            raise IntsegError(f"node {name!r}: registers and definition differ; please report this model")
        found.append(seen)
    return tuple(
        reached(name, r, [seen[r.name] for seen in found]) if r.name in found[0] and not r.extra else r
        for r in registers
    )


def reached(node: str, register: Register, seen: Sequence[Array]) -> Register:
    """The register with its witness. Raises IntsegError if a value lies outside the bound."""
    low, high = min(int(x.min()) for x in seen), max(int(x.max()) for x in seen)
    if low < register.low or high > register.high:
        raise IntsegError(
            f"node {node!r}: register {register.name} has values in [{low}, {high}], "
            f"proved [{register.low}, {register.high}]; please report this model"
        )
    return replace(register, witness=high if high >= -low else low)


def windows_seen(info: ModelInfo, score: Interval) -> NodeProof:
    """The proof of the merged windows, with the value nearest to its bound."""
    proof = prove_windows(info, score)
    *before, merged = proof.registers
    seen = [scores for value in (score.low, score.high) for scores in windows.constant_merges(info, value)]
    return replace(proof, registers=(*before, reached(proof.name, merged, seen)))


def labels_seen(info: ModelInfo, merged: Interval) -> NodeProof:
    """The proof of bilinear scores of pixels, with the value nearest to its bound."""
    proof = prove_labels(info, merged)
    cells = [np.full((1, 1, 1), v, np.int32) for v in (merged.low, merged.high)]
    seen = [RUN[proof.op](x, factor=info.patch, row_start=0, row_stop=info.patch) for x in cells]
    registers = [reached(proof.name, r, seen) if r.name == "result" else r for r in proof.registers]
    return replace(proof, registers=tuple(registers))
