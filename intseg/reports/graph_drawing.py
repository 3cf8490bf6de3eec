"""The graph of a model as a drawing: Graphviz text, or SVG with a layout of its own that needs no Graphviz.

The layout is Sugiyama's in four steps: layers by longest path, invisible points where an edge crosses a layer, the
order inside of layers by barycentres, coordinates pulled towards the neighbours. What only one box reads and nothing
makes stands at the left of its layer and pulls at nothing.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intseg import api
from intseg.errors import printable
from intseg.exam import EXAMS
from intseg.graph import IMAGE, Graph, Node, types
from intseg.reports.inspect import block_of, describe, inner_name, input_of, row_of
from intseg.reports.markup import escape, number

Point = tuple[float, float]
Edge = tuple[str, str]

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
    lines = [printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n")]
    return '"' + "\\n".join(lines) + '"'


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
    edges: list[Edge]


_STYLES = {
    "linear": "mac",
    "attention product": "mac",
    "LayerNorm": "norm",
    "L2 norm": "norm",
    "softmax": "norm",
    "residual add": "sum",
    "GELU": "curve",
}
"""By the kind of an op (`intseg.exam`)."""

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
        (inner_name(n.name), n.op, n.dtype, n.shape, tuple(inner_name(i) if i in inside else "" for i in n.inputs))
        for n in nodes
    )


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
        boxes[name] = _Box((name, describe(*input_of(graph, name))), "data")
    for run in runs:
        boxes[run[0]] = _run_box(graph, run)
    edges = dict.fromkeys((owner.get(name, name), owner[node.name]) for node in graph.nodes for name in node.inputs)
    return _Panel(graph.info.name, boxes, [edge for edge in edges if edge[0] != edge[1]])


def _run_box(graph: Graph, run: Sequence[str]) -> _Box:
    nodes = [node for block in run for node in _by_block(graph)[block]]
    if len(nodes) == 1:
        return _node_box(nodes[0], nodes[0].name)
    kinds = types(graph)
    found = [row_of(graph, node, kinds) for node in nodes]
    size = f"{sum(row.parameters for row in found) / 1e6:.2f} M parameters"
    work = f"{sum(row.macs for row in found) / 1e6:.0f} MMAC"
    count = f"{len(run)} blocks of {len(nodes) // len(run)} nodes" if len(run) > 1 else f"{len(nodes)} nodes"
    return _Box((_run_name(run), count, f"{size}, {work}"), "block")


def _node_box(node: Node, name: str) -> _Box:
    return _Box((name, node.op, describe(node.dtype, node.shape)), _STYLES.get(EXAMS[node.op].kind, "move"))


def _inside(title: str, nodes: Sequence[Node]) -> _Panel:
    names = {node.name for node in nodes}
    outside = dict.fromkeys(name for node in nodes for name in node.inputs if name not in names)
    boxes = {name: _Box(("block input",), "data") for name in outside}
    boxes |= {node.name: _node_box(node, inner_name(node.name)) for node in nodes}
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
    size = f'width="{number(width)}" height="{number(height)}"'
    title = escape(f"Graph of {model.info.name}")
    summary = escape(repr(model)[1:-1])
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} viewBox="0 0 {number(width)} {number(height)}">',
        f"<title>{title}</title><desc>{summary}</desc><style>{_STYLE}</style>",
        '<defs><marker id="end" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto">'
        '<path d="M0 0L7 3.5L0 7z"/></marker></defs>',
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def _draw(panel: _Panel, left: float) -> tuple[list[str], float, float]:
    """The elements of a panel, its width, and where it ends."""
    sizes = {name: _size(box) for name, box in panel.boxes.items()}
    order = _topological(list(panel.boxes), panel.edges)
    layout = layered({name: sizes[name] for name in order}, panel.edges)
    top = _MARGIN + 24
    parts = [
        f'<text class="title" x="{number(left)}" y="{_MARGIN}">{escape(panel.title)}</text>',
        f'<g transform="translate({number(left)} {number(top)})">',
        *(f'<path d="{path(route)}" marker-end="url(#end)"/>' for route in layout.routes.values()),
        *(_draw_box(panel.boxes[name], layout.centres[name], sizes[name]) for name in order),
        "</g>",
    ]
    title_width = 10 * len(panel.title)
    return parts, max(layout.width, title_width), layout.height + top


def _topological(names: Sequence[str], edges: Sequence[Edge]) -> list[str]:
    """Sources before targets, otherwise in the given order: a run's first block stands for all of its blocks."""
    sources: dict[str, set[str]] = {name: set() for name in names}
    for source, target in edges:
        sources[target].add(source)
    order: list[str] = []
    while len(order) < len(names):
        order.append(next(name for name in names if name not in order and sources[name] <= set(order)))
    return order


def _size(box: _Box) -> Point:
    return max(map(len, box.lines)) * _CHARACTER + 20, len(box.lines) * _LINE + 10


def _draw_box(box: _Box, centre: Point, size: Point) -> str:
    (x, y), (width, height) = centre, size
    left, top = number(x - width / 2), number(y - height / 2)
    corner = 12 if box.kind == "data" else 3
    texts = [
        f'<text class="{"line" if i else "first"}" x="{number(x)}" '
        f'y="{number(y - height / 2 + 17 + i * _LINE)}">{escape(line)}</text>'
        for i, line in enumerate(box.lines)
    ]
    shape = f'<rect x="{left}" y="{top}" width="{number(width)}" height="{number(height)}" rx="{corner}"/>'
    return f'<g class="{box.kind}">{shape}{"".join(texts)}</g>'


# --------------------------------------------------------------------------------------------------------- layout

_SWEEPS = 12
_PULLS = 60
_STIFF = 8
_GAP_X = 26.0
_GAP_Y = 34.0


@dataclass(frozen=True)
class Layout:
    """Where things are.

    centres        of the boxes
    routes         for every edge, the points it passes, from the bottom of its source to the top of its target
    width, height  of all of it; coordinates start at 0
    """

    centres: dict[str, Point]
    routes: dict[Edge, list[Point]]
    width: float
    height: float


def layered(boxes: Mapping[str, Point], edges: Sequence[Edge]) -> Layout:
    """A layout of a graph without cycles from top to bottom.

    boxes  (width, height) by name, sources before targets
    edges  (source, target), each once
    """
    rank = _ranks(list(boxes), edges)
    chains = {edge: _chain(edge, rank) for edge in edges}
    layers = _layers(list(boxes), rank, chains)
    aside = _aside(layers, edges)
    inner = [[name for name in layer if name not in aside] for layer in layers]
    links = [pair for chain in chains.values() if chain[0] not in aside for pair in itertools.pairwise(chain)]
    above, below = _neighbours(links)
    _order(inner, above, below)
    width = {name: boxes[name][0] if name in boxes else 8.0 for layer in layers for name in layer}
    x = _columns(inner, width, above, below)
    _place_aside(x, layers, inner, width)
    tops, heights = _rows(layers, boxes)
    centres = {name: (x[name], tops[rank[name]] + heights[rank[name]] / 2) for name in boxes}
    routes = {edge: _route(chains[edge], x, centres, boxes, tops, heights, rank) for edge in edges}
    right = max((x[name] + width[name] / 2 for name in x), default=0.0)
    return Layout(centres, routes, right, tops[-1] + heights[-1] if tops else 0.0)


def path(points: Sequence[Point]) -> str:
    """The `d` of an SVG path through the points, vertical in each of them."""
    (x, y), *rest = points
    parts = [f"M{number(x)} {number(y)}"]
    for to_x, to_y in rest:
        if abs(to_x - x) < 0.01:
            parts.append(f"V{number(to_y)}")
        else:
            middle = number((y + to_y) / 2)
            parts.append(f"C{number(x)} {middle} {number(to_x)} {middle} {number(to_x)} {number(to_y)}")
        x, y = to_x, to_y
    return "".join(parts)


def _ranks(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Layers by longest path; what has no source sits just above its first reader."""
    sources: dict[str, list[str]] = {name: [] for name in names}
    targets: dict[str, list[str]] = {name: [] for name in names}
    for source, target in edges:
        sources[target].append(source)
        targets[source].append(target)
    rank: dict[str, int] = {}
    for name in names:
        rank[name] = 1 + max((rank[source] for source in sources[name]), default=-1)
    for name in reversed(names):
        if not sources[name] and targets[name]:
            rank[name] = min(rank[target] for target in targets[name]) - 1
    return rank


def _chain(edge: Edge, rank: Mapping[str, int]) -> list[str]:
    """The edge with an invisible point in every layer between its ends; no name of a box holds a line break."""
    source, target = edge
    between = range(rank[source] + 1, rank[target])
    return [source, *(f"{source}\n{target}\n{i}" for i in between), target]


def _layers(names: Sequence[str], rank: Mapping[str, int], chains: Mapping[Edge, list[str]]) -> list[list[str]]:
    layers: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name in names:
        layers[rank[name]].append(name)
    for (source, _), chain in chains.items():
        for i, point in enumerate(chain[1:-1], rank[source] + 1):
            layers[i].append(point)
    return layers


def _aside(layers: Sequence[Sequence[str]], edges: Sequence[Edge]) -> set[str]:
    """Boxes without sources and with one target, in layers that hold something else."""
    made = {target for _, target in edges}
    readers = collections.Counter(source for source, _ in edges)
    leaves = {name for layer in layers for name in layer if name not in made and readers[name] == 1}
    return {name for layer in layers if not leaves.issuperset(layer) for name in layer if name in leaves}


def _place_aside(
    x: dict[str, float], layers: Sequence[Sequence[str]], inner: Sequence[Sequence[str]], width: Mapping[str, float]
) -> None:
    """To the left of the others in the layer; then everything to the right, so that the leftmost box is at 0."""
    for layer, others in zip(layers, inner, strict=True):
        left = min((x[name] - width[name] / 2 for name in others), default=0.0)
        for name in layer:
            if name not in x:
                x[name] = left - _GAP_X - width[name] / 2
                left = x[name] - width[name] / 2
    least = min((x[name] - width[name] / 2 for name in x), default=0.0)
    for name in x:
        x[name] -= least


def _neighbours(links: Sequence[Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for source, target in links:
        below.setdefault(source, []).append(target)
        above.setdefault(target, []).append(source)
    return above, below


def _order(layers: list[list[str]], above: Mapping[str, list[str]], below: Mapping[str, list[str]]) -> None:
    """Sort every layer by the mean position of its neighbours, downwards and upwards in turns."""
    for sweep in range(_SWEEPS):
        ordered, near = (layers, above) if sweep % 2 == 0 else (layers[::-1], below)
        position: dict[str, float] = {}
        for layer in ordered:
            here = {name: i / max(1, len(layer) - 1) if len(layer) > 1 else 0.5 for i, name in enumerate(layer)}
            means = {
                name: _mean([position[n] for n in near.get(name, ()) if n in position], here[name]) for name in layer
            }
            layer.sort(key=means.__getitem__)
            position |= {name: (i + 0.5) / len(layer) for i, name in enumerate(layer)}


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _columns(
    layers: Sequence[Sequence[str]],
    width: Mapping[str, float],
    above: Mapping[str, list[str]],
    below: Mapping[str, list[str]],
) -> dict[str, float]:
    """Centres along the x axis: towards the mean of the neighbours, without overlap."""
    x: dict[str, float] = {}
    for layer in layers:
        x |= dict(zip(layer, _spread([0.0] * len(layer), [width[name] for name in layer]), strict=True))
    for sweep in range(_PULLS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            both = [_pulling(name, [*above.get(name, ()), *below.get(name, ())]) for name in layer]
            wanted = [_mean([x[n] for n in near], x[name]) for name, near in zip(layer, both, strict=True)]
            x |= dict(zip(layer, _spread(wanted, [width[name] for name in layer]), strict=True))
    return x


def _pulling(name: str, near: Sequence[str]) -> list[str]:
    """Neighbours as often as they count: edges between boxes are stiff, the points of long edges follow."""
    return [n for n in near for _ in range(_STIFF if "\n" not in name + n else 1)]


def _spread(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Positions near the wanted ones, in this order, without overlap: the mean of pushing right and pushing left."""
    pushed = _push(wanted, widths)
    mirrored = _push([-value for value in reversed(wanted)], widths[::-1])
    return [(a - b) / 2 for a, b in zip(pushed, reversed(mirrored), strict=True)]


def _push(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    placed: list[float] = []
    for i, value in enumerate(wanted):
        least = placed[-1] + (widths[i - 1] + widths[i]) / 2 + _GAP_X if placed else value
        placed.append(max(value, least))
    return placed


def _rows(layers: Sequence[Sequence[str]], boxes: Mapping[str, Point]) -> tuple[list[float], list[float]]:
    """Top and height of every layer."""
    heights = [max((boxes[name][1] for name in layer if name in boxes), default=0.0) for layer in layers]
    tops, y = [], 0.0
    for height in heights:
        tops.append(y)
        y += height + _GAP_Y
    return tops, heights


def _route(
    chain: Sequence[str],
    x: Mapping[str, float],
    centres: Mapping[str, Point],
    boxes: Mapping[str, Point],
    tops: Sequence[float],
    heights: Sequence[float],
    rank: Mapping[str, int],
) -> list[Point]:
    source, *between, target = chain
    points = [(x[source], centres[source][1] + boxes[source][1] / 2)]
    for i, point in enumerate(between, rank[source] + 1):
        points += [(x[point], tops[i]), (x[point], tops[i] + heights[i])]
    return [*points, (x[target], centres[target][1] - boxes[target][1] / 2)]
