"""The overflow certificate as text for people and as an object for programs."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from intseg.api import Model
from intseg.arith.bounds import Register
from intseg.conformance.witness import witnessed
from intseg.errors import UsageError
from intseg.prove import NodeProof, prove
from intseg.reports.table import table

_HEAD = ("register", "bound", "bits", "width", "spare", "witness")


@dataclass(frozen=True)
class Certificate:
    """Everything proved about a model.

    nodes    in execution order, then what follows the graph
    seconds  of one processor that the bounds took, witnesses not counted
    """

    model: Model
    nodes: tuple[NodeProof, ...]
    seconds: float

    @property
    def registers(self) -> int:
        """How many bounds there are."""
        return sum(len(node.registers) for node in self.nodes)


def certify(model: Model, witnesses: bool) -> Certificate:
    """Prove a model, and time it. Raises ModelError as `intseg.prove.prove`."""
    start = time.process_time()
    nodes = prove(model.graph)
    seconds = time.process_time() - start
    return Certificate(model, witnessed(model.graph) if witnesses else nodes, seconds)


def tightest(node: NodeProof) -> Register | None:
    """The register with the least to spare; results fill their width by saturation and do not count."""
    inner = [register for register in node.registers if register.name != "result"]
    return min(inner, key=lambda register: register.headroom, default=None)


def lines(found: Certificate, by: str, pattern: str) -> Iterator[str]:
    """The table, a row for every register, or for the tightest one of every node or op.

    by       "register", "node" or "op"
    pattern  names of nodes with * and ?, joined by commas
    Raises UsageError when no node is called so.
    """
    nodes = [node for node in found.nodes if any(fnmatch.fnmatchcase(node.name, p) for p in pattern.split(","))]
    if not nodes:
        raise UsageError(f"no node is called {pattern!r}; intseg inspect lists them")
    if by == "op":
        nodes = [min((n for n in nodes if n.op == op), key=_spare) for op in dict.fromkeys(n.op for n in nodes)]
    chosen = [node.registers if by == "register" else [r for r in (tightest(node),) if r is not None] for node in nodes]
    head, *rows = table([_HEAD, *(_cells(register) for registers in chosen for register in registers)], gap=1)
    yield head
    for node, registers in zip(nodes, chosen, strict=True):
        if registers:
            yield f"{node.name} ({node.op})"
            yield from rows[: len(registers)]
            del rows[: len(registers)]
    yield "* no register of a trace: a sum on the way to one, or one that only kernels hold"
    inside = len(found.model.graph.nodes)
    steps = len(found.nodes) - inside
    counts = f"{found.registers} registers of {inside} nodes and {steps} step{'s' * (steps != 1)}"
    yield f"{found.model.info.name}: {counts} hold every value"
    yield f"proved in {found.seconds:.3f} s of processor time"


def _spare(node: NodeProof) -> int:
    register = tightest(node)
    return 64 if register is None else register.headroom


def _cells(register: Register) -> tuple[str, ...]:
    name, witness = register.name + " *" * register.extra, "" if register.witness is None else str(register.witness)
    return (name, *map(str, (register.bound, register.bits, register.width, register.headroom)), witness)


def as_json(found: Certificate) -> dict[str, Any]:
    """Everything, with both ends of every interval."""
    return {
        "model": {"name": found.model.info.name, "sha256": found.model.sha256},
        "seconds": found.seconds,
        "registers": found.registers,
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "registers": [
                    {
                        "name": register.name,
                        "low": register.low,
                        "high": register.high,
                        "dtype": register.dtype,
                        "bits": register.bits,
                        "headroom": register.headroom,
                        "extra": register.extra,
                        "witness": register.witness,
                    }
                    for register in node.registers
                ],
            }
            for node in found.nodes
        ],
    }
