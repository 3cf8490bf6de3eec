"""What is inside a model: every node with its shapes, parameters, MACs and bytes; totals; drawings of the graph."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from intseg import api
from intseg.errors import UsageError
from intseg.graph import IMAGE, Graph, Node
from intseg.reports import graph_drawing as drawing

_BLOCK = re.compile(r"(.*\.blocks)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Row:
    """A node, or several of them together.

    name, op         of the node; of a group its name and the number of its nodes
    inputs           "int8 [257, 192]", one text per input
    output           the same of the output; of a block that of its last node, of all nodes of an op nothing
    parameters       elements of the tensors it reads: parameters and constant inputs, not its scale
    parameter_bytes  their size in the file
    macs             multiply-accumulates of one window
    output_bytes     size of what it writes in one window
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    parameters: int
    parameter_bytes: int
    macs: int
    output_bytes: int


@dataclass(frozen=True)
class Totals:
    """Sums over a model; a tensor that several nodes read counts once.

    precision        dtype -> tensors, elements and bytes of the tensors the arithmetic reads
    scale_bytes      of the tensors that only say what the integers mean
    peak_bytes       the most bytes of intermediates alive at once, node by node in the order of the file
    """

    nodes: int
    parameters: int
    parameter_bytes: int
    scale_bytes: int
    macs: int
    peak_bytes: int
    precision: dict[str, dict[str, int]]


def describe(dtype: str, shape: Sequence[int]) -> str:
    """ "int8 [257, 192]"."""
    return f"{dtype} {list(shape)}"


def macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of a node in one window; 0 for what is neither `linear` nor `matmul`."""
    if node.op == "linear":
        return math.prod(node.shape) * int(graph.tensors[node.params["weight"]].shape[1])
    if node.op == "matmul":
        return math.prod(node.shape) * _input(graph, node.inputs[0])[1][-1]
    return 0


def rows(graph: Graph) -> list[Row]:
    """One row for every node, in execution order."""
    return [_row(graph, node) for node in graph.nodes]


def _row(graph: Graph, node: Node) -> Row:
    tensors = [graph.tensors[name] for name in _tensor_names(graph, node)]
    return Row(
        name=node.name,
        op=node.op,
        inputs=tuple(describe(*_input(graph, name)) for name in node.inputs),
        output=describe(node.dtype, node.shape),
        parameters=sum(tensor.size for tensor in tensors),
        parameter_bytes=sum(tensor.nbytes for tensor in tensors),
        macs=macs(graph, node),
        output_bytes=_output_bytes(node),
    )


def _output_bytes(node: Node) -> int:
    return math.prod(node.shape) * np.dtype(node.dtype).itemsize


def _tensor_names(graph: Graph, node: Node) -> list[str]:
    """Tensors that the arithmetic of a node reads."""
    return list(dict.fromkeys([*node.params.values(), *(name for name in node.inputs if name in graph.tensors)]))


def _input(graph: Graph, name: str) -> tuple[str, tuple[int, ...]]:
    """dtype and shape of an input."""
    if name == IMAGE:
        return "uint8", (*graph.info.window, 3)
    if name in graph.tensors:
        return graph.tensors[name].dtype.name, graph.tensors[name].shape
    node = graph.node(name)
    return node.dtype, tuple(node.shape)


def totals(graph: Graph) -> Totals:
    """The sums."""
    read = {name for node in graph.nodes for name in _tensor_names(graph, node)}
    precision: dict[str, dict[str, int]] = {}
    for name in sorted(read, key=lambda name: (graph.tensors[name].itemsize, graph.tensors[name].dtype.name)):
        tensor = graph.tensors[name]
        entry = precision.setdefault(tensor.dtype.name, {"tensors": 0, "elements": 0, "bytes": 0})
        for key, value in (("tensors", 1), ("elements", tensor.size), ("bytes", tensor.nbytes)):
            entry[key] += value
    return Totals(
        nodes=len(graph.nodes),
        parameters=sum(entry["elements"] for entry in precision.values()),
        parameter_bytes=sum(entry["bytes"] for entry in precision.values()),
        scale_bytes=sum(tensor.nbytes for name, tensor in graph.tensors.items() if name not in read),
        macs=sum(macs(graph, node) for node in graph.nodes),
        peak_bytes=_peak_bytes(graph),
        precision=precision,
    )


def _peak_bytes(graph: Graph) -> int:
    """As `executor.execute` runs: an output lives from its node to its last reader."""
    alive, peak = {IMAGE: math.prod(graph.info.window) * 3}, 0
    for i, node in enumerate(graph.nodes):
        alive[node.name] = _output_bytes(node)
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if graph.last_use.get(name, -1) > i}
    return peak


# --------------------------------------------------------------------------------------------------------- groups


def block_of(name: str) -> str:
    """The transformer block of a node, or the node itself: "encoder.blocks.0"."""
    match = _BLOCK.fullmatch(name)
    return f"{match[1]}.{match[2]}" if match else name


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
    columns = ("parameters", "parameter_bytes", "macs", "output_bytes")
    sums = [sum(getattr(row, column) for row in group) for column in columns]
    count = f"{len(group)} node{'s' if len(group) > 1 else ''}"
    if by == "op":  # nodes of one op have nothing to do with each other
        return Row(name, count, (), "", *sums)
    return Row(name, count, group[0].inputs[:1], group[-1].output, *sums)


# ----------------------------------------------------------------------------------------------------------- text


def as_json(model: api.Model) -> dict[str, Any]:
    """Everything of this module about a model, for programs."""
    info = model.info
    return {
        "model": {"name": info.name, "recipe": info.recipe, "sha256": model.sha256, "classes": list(info.classes)},
        "window": list(info.window),
        "totals": asdict(totals(model.graph)),
        "nodes": [
            asdict(row) | {"reads": list(node.inputs), "attrs": dict(node.attrs)}
            for row, node in zip(rows(model.graph), model.graph.nodes, strict=True)
        ],
    }


def lines(model: api.Model, by: str = "node", as_document: bool = False) -> Iterator[str]:
    """What `intseg inspect` prints."""
    if as_document:
        yield json.dumps(as_json(model))
        return
    yield drawing.one_line(repr(model)[1:-1])
    yield from table(
        [("name", "op", "input", "output", "parameters", "bytes", "MMAC", "output bytes")]
        + [_cells(row) for row in grouped(rows(model.graph), by)],
        left=4,
    )
    yield from _total_lines(totals(model.graph), model.path.stat().st_size)


def _cells(row: Row) -> tuple[str, ...]:
    counts = (f"{row.parameters:,}", f"{row.parameter_bytes:,}", _mega(row.macs), f"{row.output_bytes:,}")
    return (row.name, row.op, ", ".join(row.inputs), row.output, *counts)


def _mega(count: int) -> str:
    return f"{count / 1e6:.3f}" if count else "-"


def _total_lines(found: Totals, file_bytes: int) -> Iterator[str]:
    yield f"{found.nodes} nodes, {found.parameters:,} parameters, {found.macs / 1e6:,.3f} MMAC per window"
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


def table(cells: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Columns as wide as they need; the first `left` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "   ".join(padded)).rstrip()


# -------------------------------------------------------------------------------------------------------- Graphviz


def dot(graph: Graph) -> str:
    """Every node as a Graphviz graph, blocks as clusters."""
    parts = ["digraph intseg {", '  node [shape=box, fontname="monospace", fontsize=10];']
    parts += [f"  {_quote(IMAGE)} [shape=oval];"]
    for name in _constants(graph):
        parts.append(f"  {_quote(name)} [shape=oval, style=dashed];")
    for block, nodes in _by_block(graph).items():
        boxes = [f"{_quote(n.name)} [label={_quote(_label(n))}];" for n in nodes]
        if len(nodes) > 1:
            parts += [f"  subgraph {_quote('cluster ' + block)} {{", f"    label={_quote(block)};"]
            parts += [f"    {box}" for box in boxes] + ["  }"]
        else:
            parts += [f"  {box}" for box in boxes]
    for node in graph.nodes:
        parts += [f"  {_quote(name)} -> {_quote(node.name)};" for name in dict.fromkeys(node.inputs)]
    return "\n".join([*parts, "}", ""])


def _label(node: Node) -> str:
    return f"{node.name.rpartition('.')[2]}\n{node.op}\n{describe(node.dtype, node.shape)}"


def _quote(text: str) -> str:
    escaped = drawing.clean(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _constants(graph: Graph) -> list[str]:
    """Tensors that are inputs of nodes."""
    return list(dict.fromkeys(name for node in graph.nodes for name in node.inputs if name in graph.tensors))


def _by_block(graph: Graph) -> dict[str, list[Node]]:
    blocks: dict[str, list[Node]] = {}
    for node in graph.nodes:
        blocks.setdefault(block_of(node.name), []).append(node)
    return blocks


# ------------------------------------------------------------------------------------------------------------ SVG


@dataclass(frozen=True)
class _Box:
    """A box of the drawing: its lines of text and what decides its colour."""

    lines: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class _Panel:
    """A part of the drawing under a title."""

    title: str
    boxes: dict[str, _Box]
    edges: list[drawing.Edge]


_KINDS = {
    "linear": "mac",
    "matmul": "mac",
    "layernorm": "norm",
    "l2norm": "norm",
    "shiftmax": "norm",
    "softmax2": "norm",
    "add": "sum",
    "gelu_table": "curve",
    "shift_gelu": "curve",
    "sigmoid_gelu": "curve",
}
_CHARACTER, _LINE, _MARGIN = 7.3, 16.0, 28.0


def svg(model: api.Model) -> str:
    """The graph as a drawing: equal blocks in a row are one box, and what is inside of them is drawn once beside it."""
    graph = model.graph
    runs = _runs(graph)
    panels = [_overview(graph, runs)]
    drawn: set[tuple[Any, ...]] = set()
    for run in runs:
        nodes = _by_block(graph)[run[0]]
        if len(nodes) > 1 and _signature(nodes) not in drawn:
            drawn.add(_signature(nodes))
            panels.append(_inside(_run_name(run), nodes))
    return _document(model, panels)


def _signature(nodes: Sequence[Node]) -> tuple[Any, ...]:
    """What two blocks have in common when they are drawn as one."""
    inside = {node.name for node in nodes}
    return tuple(
        (_inner(n.name), n.op, n.dtype, n.shape, tuple(_inner(i) if i in inside else "" for i in n.inputs))
        for n in nodes
    )


def _inner(name: str) -> str:
    match = _BLOCK.fullmatch(name)
    return match[3] if match else name


def _runs(graph: Graph) -> list[list[str]]:
    """Blocks and single nodes in order; equal blocks that follow each other are one run."""
    runs: list[list[str]] = []
    blocks = _by_block(graph)
    for name, nodes in blocks.items():
        last = blocks[runs[-1][-1]] if runs else []
        if len(nodes) > 1 and len(last) > 1 and _signature(last) == _signature(nodes):
            runs[-1].append(name)
        else:
            runs.append([name])
    return runs


def _run_name(run: Sequence[str]) -> str:
    return run[0] if len(run) == 1 else f"{run[0]} to {run[-1].rpartition('.')[2]}"


def _overview(graph: Graph, runs: Sequence[Sequence[str]]) -> _Panel:
    owner = {node.name: run[0] for run in runs for block in run for node in _by_block(graph)[block]}
    boxes = {IMAGE: _Box((IMAGE, describe("uint8", (*graph.info.window, 3))), "data")}
    for name in _constants(graph):
        boxes[name] = _Box((name, describe(*_input(graph, name))), "data")
    for run in runs:
        boxes[run[0]] = _run_box(graph, run)
    edges = dict.fromkeys((owner.get(name, name), owner[node.name]) for node in graph.nodes for name in node.inputs)
    return _Panel(graph.info.name, boxes, [edge for edge in edges if edge[0] != edge[1]])


def _run_box(graph: Graph, run: Sequence[str]) -> _Box:
    nodes = [node for block in run for node in _by_block(graph)[block]]
    if len(nodes) == 1:
        return _node_box(nodes[0], nodes[0].name)
    found = [_row(graph, node) for node in nodes]
    size = f"{sum(row.parameters for row in found) / 1e6:.2f} M parameters"
    work = f"{sum(row.macs for row in found) / 1e6:.0f} MMAC"
    count = f"{len(run)} blocks of {len(nodes) // len(run)} nodes" if len(run) > 1 else f"{len(nodes)} nodes"
    return _Box((_run_name(run), count, f"{size}, {work}"), "block")


def _node_box(node: Node, name: str) -> _Box:
    return _Box((name, node.op, describe(node.dtype, node.shape)), _KINDS.get(node.op, "move"))


def _inside(title: str, nodes: Sequence[Node]) -> _Panel:
    names = {node.name for node in nodes}
    outside = dict.fromkeys(name for node in nodes for name in node.inputs if name not in names)
    boxes = {name: _Box(("block input",), "data") for name in outside}
    boxes |= {node.name: _node_box(node, _inner(node.name)) for node in nodes}
    edges = dict.fromkeys((name, node.name) for node in nodes for name in node.inputs)
    return _Panel(f"inside {title}", boxes, list(edges))


_STYLE = """
svg { background: #ffffff; font: 12px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; }
text { fill: #1b1f24; text-anchor: middle; }
.first { font-weight: 600; } .title { font-size: 16px; text-anchor: start; }
rect { stroke: #59636e; fill: #f2f4f6; } path { fill: none; stroke: #59636e; } marker path { fill: #59636e; }
.mac rect { fill: #d7e8fb; } .norm rect { fill: #fbe7c8; } .sum rect { fill: #dcf3df; } .curve rect { fill: #f6dcea; }
.block rect { fill: #e6e0f8; stroke-width: 2; } .data rect { fill: #ffffff; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
svg { background: #14181d; } text { fill: #eef1f4; } rect { stroke: #98a3af; fill: #262c33; }
path { stroke: #98a3af; } marker path { fill: #98a3af; }
.mac rect { fill: #163a5f; } .norm rect { fill: #54390c; } .sum rect { fill: #17431f; } .curve rect { fill: #55203d; }
.block rect { fill: #37296b; } .data rect { fill: #14181d; } }
"""


def _document(model: api.Model, panels: Sequence[_Panel]) -> str:
    parts, x, height = [], _MARGIN, 0.0
    for panel in panels:
        drawn, panel_width, panel_height = _draw(panel, x)
        parts += drawn
        x += panel_width + 2 * _MARGIN
        height = max(height, panel_height)
    width, height = x - _MARGIN, height + _MARGIN
    size = f'width="{drawing.number(width)}" height="{drawing.number(height)}"'
    title = drawing.escape(f"Graph of {model.info.name}")
    summary = drawing.escape(repr(model)[1:-1])
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} '
        f'viewBox="0 0 {drawing.number(width)} {drawing.number(height)}">',
        f"<title>{title}</title><desc>{summary}</desc><style>{_STYLE}</style>",
        '<defs><marker id="end" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto">'
        '<path d="M0 0L7 3.5L0 7z"/></marker></defs>',
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def _draw(panel: _Panel, left: float) -> tuple[list[str], float, float]:
    """The elements of a panel, its width, and where it ends."""
    sizes = {name: _size(box) for name, box in panel.boxes.items()}
    order = _topological(list(panel.boxes), panel.edges)
    layout = drawing.layered({name: sizes[name] for name in order}, panel.edges)
    top = _MARGIN + 24
    parts = [
        f'<text class="title" x="{drawing.number(left)}" y="{_MARGIN}">{drawing.escape(panel.title)}</text>',
        f'<g transform="translate({drawing.number(left)} {drawing.number(top)})">',
        *(f'<path d="{drawing.path(route)}" marker-end="url(#end)"/>' for route in layout.routes.values()),
        *(_draw_box(panel.boxes[name], layout.centres[name], sizes[name]) for name in order),
        "</g>",
    ]
    title_width = 10 * len(panel.title)
    return parts, max(layout.width, title_width), layout.height + top


def _topological(names: Sequence[str], edges: Sequence[drawing.Edge]) -> list[str]:
    """Sources before targets, otherwise in the given order: a run's first block stands for all of its blocks."""
    sources: dict[str, set[str]] = {name: set() for name in names}
    for source, target in edges:
        sources[target].add(source)
    order: list[str] = []
    while len(order) < len(names):
        order.append(next(name for name in names if name not in order and sources[name] <= set(order)))
    return order


def _size(box: _Box) -> drawing.Point:
    return max(map(len, box.lines)) * _CHARACTER + 20, len(box.lines) * _LINE + 10


def _draw_box(box: _Box, centre: drawing.Point, size: drawing.Point) -> str:
    (x, y), (width, height) = centre, size
    left, top = drawing.number(x - width / 2), drawing.number(y - height / 2)
    corner = 12 if box.kind == "data" else 3
    texts = [
        f'<text class="{"line" if i else "first"}" x="{drawing.number(x)}" '
        f'y="{drawing.number(y - height / 2 + 17 + i * _LINE)}">{drawing.escape(line)}</text>'
        for i, line in enumerate(box.lines)
    ]
    shape = (
        f'<rect x="{left}" y="{top}" width="{drawing.number(width)}" height="{drawing.number(height)}" rx="{corner}"/>'
    )
    return f'<g class="{box.kind}">{shape}{"".join(texts)}</g>'
