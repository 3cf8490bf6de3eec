"""What is inside a model: every node with its shapes, parameters, MACs and bytes; totals."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from intseg import api
from intseg.errors import UsageError, printable
from intseg.graph import IMAGE, Graph, Node, bits_of, types
from intseg.ops import OPS
from intseg.packing import packed_bytes
from intseg.reports.table import table

BLOCK = re.compile(r"(.*\.blocks)\.(\d+)\.(.+)")
_STRETCH = 24
"""Nodes that are drawn in a row, at most: as many as a telephone shows."""


@dataclass(frozen=True)
class Row:
    """A node, or several of them together.

    name, op         of the node; of a group its name and the number of its nodes
    inputs           "int8 [257, 192]", one text per input
    output           the same of the output; of a block that of its last node, of all nodes of an op nothing
    parameters       elements of the tensors it reads: parameters and constant inputs, not its scale
    parameter_bytes  their size in the file
    macs             multiply-accumulates of one window
    bits             of the operands of these products, activations first: [8, 4]; of a group nothing
    bitops           macs times the bits of both operands
    output_bytes     size of what it writes in one window
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    parameters: int
    parameter_bytes: int
    macs: int
    bits: tuple[int, ...]
    bitops: int
    output_bytes: int


@dataclass(frozen=True)
class Totals:
    """Sums over a model; a tensor that several nodes read counts once.

    precision        type -> tensors, elements and bytes in the file of the tensors the arithmetic reads
    scale_bytes      of the tensors that only say what the integers mean
    bitops           multiply-accumulates times the bits of both operands
    traffic_bits     what moves where every node reads its inputs and writes its output, and every tensor is read once
    peak_bytes       the most bytes of intermediates alive at once, node by node in the order of the file
    """

    nodes: int
    parameters: int
    parameter_bytes: int
    scale_bytes: int
    macs: int
    bitops: int
    traffic_bits: int
    peak_bytes: int
    precision: dict[str, dict[str, int]]


def describe(dtype: str, shape: Sequence[int]) -> str:
    """ "int8 [257, 192]"."""
    return f"{dtype} {list(shape)}"


def macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of a node in one window; 0 for what is no product."""
    return math.prod(node.shape) * input_of(graph, node.inputs[0])[1][-1] if OPS[node.op].multiplies else 0


def operand_bits(node: Node, kinds: Mapping[str, str]) -> tuple[int, ...]:
    """Bits of both operands of a node's products; none for what is no product.

    kinds  `intseg.graph.types`
    """
    if not OPS[node.op].multiplies:
        return ()
    return bits_of(kinds[node.inputs[0]]), bits_of(kinds[node.params.get("weight") or node.inputs[1]])


def stored_bytes(graph: Graph, name: str) -> int:
    """Of a tensor in the file."""
    tensor = graph.tensors[name]
    return packed_bytes(tensor.size, graph.packed[name]) if name in graph.packed else tensor.nbytes


def rows(graph: Graph) -> list[Row]:
    """One row for every node, in execution order."""
    kinds = types(graph)
    return [row_of(graph, node, kinds) for node in graph.nodes]


def row_of(graph: Graph, node: Node, kinds: Mapping[str, str]) -> Row:
    """The row of a node.

    kinds  `intseg.graph.types`
    """
    names, bits = _tensor_names(graph, node), operand_bits(node, kinds)
    return Row(
        name=node.name,
        op=node.op,
        inputs=tuple(describe(*input_of(graph, name)) for name in node.inputs),
        output=describe(kinds[node.name], node.shape),
        parameters=sum(graph.tensors[name].size for name in names),
        parameter_bytes=sum(stored_bytes(graph, name) for name in names),
        macs=macs(graph, node),
        bits=bits,
        bitops=macs(graph, node) * math.prod(bits),
        output_bytes=_output_bytes(node),
    )


def _output_bytes(node: Node) -> int:
    return math.prod(node.shape) * np.dtype(node.dtype).itemsize


def _tensor_names(graph: Graph, node: Node) -> list[str]:
    """Tensors that the arithmetic of a node reads."""
    return list(dict.fromkeys([*node.params.values(), *(name for name in node.inputs if name in graph.tensors)]))


def input_of(graph: Graph, name: str) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of an input."""
    if name == IMAGE:
        return "uint8", (*graph.info.window, 3)
    if name in graph.tensors:
        return graph.tensors[name].dtype.name, graph.tensors[name].shape
    node = graph.node(name)
    return node.dtype, tuple(node.shape)


def totals(graph: Graph) -> Totals:
    """The sums."""
    read, kinds = {name for node in graph.nodes for name in _tensor_names(graph, node)}, types(graph)
    precision: dict[str, dict[str, int]] = {}
    for name in sorted(read, key=lambda name: (bits_of(kinds[name]), kinds[name])):
        tensor = graph.tensors[name]
        entry = precision.setdefault(kinds[name], {"tensors": 0, "elements": 0, "bytes": 0})
        for key, value in (("tensors", 1), ("elements", tensor.size), ("bytes", stored_bytes(graph, name))):
            entry[key] += value
    return Totals(
        nodes=len(graph.nodes),
        parameters=sum(entry["elements"] for entry in precision.values()),
        parameter_bytes=sum(entry["bytes"] for entry in precision.values()),
        scale_bytes=sum(tensor.nbytes for name, tensor in graph.tensors.items() if name not in read),
        macs=sum(macs(graph, node) for node in graph.nodes),
        bitops=sum(macs(graph, node) * math.prod(operand_bits(node, kinds)) for node in graph.nodes),
        traffic_bits=_traffic(graph, kinds) + 8 * sum(stored_bytes(graph, name) for name in read),
        peak_bytes=_peak_bytes(graph),
        precision=precision,
    )


def _traffic(graph: Graph, kinds: Mapping[str, str]) -> int:
    """Bits of activations that the definition moves: every node reads its inputs and writes its output."""
    sizes = {node.name: math.prod(node.shape) * bits_of(kinds[node.name]) for node in graph.nodes}
    sizes[IMAGE] = math.prod(graph.info.window) * 3 * 8
    return sum(sizes.get(name, 0) for node in graph.nodes for name in (node.name, *node.inputs))


def _peak_bytes(graph: Graph) -> int:
    """As `executor.execute` runs: an output lives from its node to its last reader."""
    alive, peak = {IMAGE: math.prod(graph.info.window) * 3}, 0
    for i, node in enumerate(graph.nodes):
        alive[node.name] = _output_bytes(node)
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if graph.last_use.get(name, -1) > i}
    return peak


# --------------------------------------------------------------------------------------------------------- groups


def inner_name(name: str) -> str:
    """The name of a node inside of its block: "attn.softmax"."""
    match = BLOCK.fullmatch(name)
    return match[3] if match else name


def block_of(name: str) -> str:
    """The transformer block of a node, or the node itself: "encoder.blocks.0"."""
    match = BLOCK.fullmatch(name)
    return f"{match[1]}.{match[2]}" if match else name


def stretches(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Nodes in execution order, cut where a block begins or ends: (title, names), at most _STRETCH each."""
    found: list[tuple[str, list[str]]] = []
    last = ""
    for name in names:
        block = block_of(name) if BLOCK.fullmatch(name) else ""
        if not found or block != last or len(found[-1][1]) == _STRETCH:
            found.append((block or name, []))
        found[-1][1].append(name)
        last = block
    return found


GROUPS: Mapping[str, Callable[[Row], str]] = {
    "node": lambda row: row.name,
    "block": lambda row: block_of(row.name),
    "op": lambda row: row.op,
}
"""What the table may have a row for."""


def grouped(found: Sequence[Row], by: str) -> list[Row]:
    """Rows added up by block or by op, in the order of their first nodes."""
    if by not in GROUPS:
        raise UsageError(f"group {by!r} is unknown, expected {', '.join(GROUPS)}")
    groups: dict[str, list[Row]] = {}
    for row in found:
        groups.setdefault(GROUPS[by](row), []).append(row)
    return [group[0] if by != "op" and len(group) == 1 else _sum(name, group, by) for name, group in groups.items()]


def _sum(name: str, group: Sequence[Row], by: str) -> Row:
    columns = ("parameters", "parameter_bytes", "macs", "bitops", "output_bytes")
    sums: dict[str, Any] = {column: sum(getattr(row, column) for row in group) for column in columns} | {"bits": ()}
    count = f"{len(group)} node{'s' if len(group) > 1 else ''}"
    if by == "op":  # nodes of one op have nothing to do with each other
        return Row(name, count, (), "", **sums)
    return Row(name, count, group[0].inputs[:1], group[-1].output, **sums)


# ----------------------------------------------------------------------------------------------------------- text


def as_json(model: api.Model) -> dict[str, Any]:
    """Everything of this module about a model, for programs."""
    info = model.info
    return {
        "model": {"name": info.name, "recipe": info.recipe, "sha256": model.sha256, "classes": list(info.classes)},
        "task": info.task,
        "window": list(info.window),
        "totals": asdict(totals(model.graph)),
        "nodes": [
            asdict(row) | {"reads": list(node.inputs), "attrs": dict(node.attrs)}
            for row, node in zip(rows(model.graph), model.graph.nodes, strict=True)
        ],
    }


def lines(model: api.Model, by: str = "node") -> Iterator[str]:
    """What `intseg inspect` prints."""
    yield from textwrap.wrap(printable(repr(model)[1:-1]), 80, subsequent_indent="  ")
    shown = grouped(rows(model.graph), by)
    blocks = [_block(row.name) if by == "node" else "" for row in shown]
    names = [f"  {inner_name(row.name)}" if block else row.name for row, block in zip(shown, blocks, strict=True)]
    cells = [_cells(row, name) for row, name in zip(shown, names, strict=True)]
    titles: tuple[str, ...] = ("name", "op", "output", "parameters", "MMAC", "bits")
    if all(row.bits in ((), (8, 8)) for row in shown):
        titles, cells = titles[:-1], [row[:-1] for row in cells]
    head, *body = table([titles, *cells], left=3, gap=2)
    yield head
    for i, (line, block) in enumerate(zip(body, blocks, strict=True)):
        if block and (not i or block != blocks[i - 1]):
            yield f"  {printable(block)}"
        yield line
    yield from _total_lines(totals(model.graph), model.path.stat().st_size)


def _cells(row: Row, name: str) -> tuple[str, ...]:
    return (name, row.op, row.output, f"{row.parameters:,}", _mega(row.macs), "x".join(map(str, row.bits)) or "-")


def _block(name: str) -> str:
    """The transformer block that a node is in; "" for none."""
    block = block_of(name)
    return "" if block == name else block


def _mega(count: int) -> str:
    return f"{count / 1e6:.3f}" if count else "-"


def _total_lines(found: Totals, file_bytes: int) -> Iterator[str]:
    yield f"{found.nodes} nodes, {found.parameters:,} parameters, {found.macs / 1e6:,.3f} MMAC per window"
    yield f"{found.bitops / 1e9:,.3f} GBitOp per window: MACs times the bits of both operands"
    yield f"{found.traffic_bits / 8e6:,.3f} MB per window moved node by node"
    yield f"at most {found.peak_bytes:,} bytes of intermediates at once"
    precision = [("precision", "tensors", "elements", "bytes", "share")]
    for dtype, entry in found.precision.items():
        share = f"{entry['bytes'] / file_bytes:.1%}"
        precision.append((dtype, f"{entry['tensors']:,}", f"{entry['elements']:,}", f"{entry['bytes']:,}", share))
    precision.append(("scales", "", "", f"{found.scale_bytes:,}", f"{found.scale_bytes / file_bytes:.1%}"))
    rest = file_bytes - found.parameter_bytes - found.scale_bytes
    precision.append(("header", "", "", f"{rest:,}", f"{rest / file_bytes:.1%}"))
    precision.append(("file", "", "", f"{file_bytes:,}", "100.0%"))
    yield from table(precision)
