"""Pictures as text: escaping for HTML and SVG, and a layered layout of a graph. No dependency.

The layout is Sugiyama's in four steps: layers by longest path, invisible points where an edge crosses a layer, the
order inside of layers by barycentres, coordinates pulled towards the neighbours. What only one box reads and nothing
makes stands at the left of its layer and pulls at nothing.
"""

from __future__ import annotations

import collections
import html
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Edge = tuple[str, str]

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML document may hold, not even escaped: control characters and lone surrogates."""

_SWEEPS = 12
_PULLS = 60
_STIFF = 8
_GAP_X = 26.0
_GAP_Y = 34.0


def escape(text: str) -> str:
    """Text for element content and quoted attributes of HTML and SVG, whatever it holds."""
    return html.escape(clean(text), quote=True)


def clean(text: str) -> str:
    """Text without what no XML document may hold."""
    return _NOT_XML.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Text that a terminal shows on one line, whatever it holds."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def number(value: float) -> str:
    """A coordinate: at most two decimals, no exponent, no minus zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


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
