"""What the page of a comparison shows beside its words: where in the tensor, where in the network, which classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intseg.graph import IMAGE, Graph
from intseg.images.decode import Colour
from intseg.images.overlay import PALETTES
from intseg.ops import RUN, Array
from intseg.windows import labels, merge_scores, tile
from intseg.workbench.diff import Difference, Report, comparable, differs
from intseg.workbench.sides import Other
from intseg.workbench.trace import Trace

_ROWS, _COLUMNS = 64, 96
"""Cells of the map of a tensor, at most."""

_LISTED = 24
"""Wrong elements that are listed."""

_MOST = 65535
"""The largest class that a picture has a colour for."""


@dataclass(frozen=True)
class Share:
    """How much of a node is wrong, over all windows: `wrong` of `size` elements; size 0 where it was not compared."""

    name: str
    wrong: int
    size: int


@dataclass(frozen=True, eq=False)
class Spread:
    """Where the wrong elements of the first difference lie.

    cells   float64 [r, c] in [0, 1]: the share of wrong elements in a cell of the tensor as a matrix, its last axis
            along the columns
    matrix  (rows, columns) of that matrix
    listed  (index, expected, found) of the first wrong elements
    """

    cells: NDArray[np.float64]
    matrix: tuple[int, int]
    listed: tuple[tuple[tuple[int, ...], int, int], ...]


@dataclass(frozen=True, eq=False)
class Maps:
    """The classes of the image before and after.

    golden, other  labels [H, W]
    derived        whether `other` was computed: what the other side shows, the rest by the definition
    names          of the classes, empty where the model is not known
    """

    golden: Array
    other: Array
    derived: bool
    names: tuple[str, ...]
    palette: tuple[Colour, ...]


@dataclass(frozen=True, eq=False)
class View:
    """Everything that is drawn; spread and maps are None where there is nothing to draw."""

    nodes: tuple[Share, ...]
    spread: Spread | None
    maps: Maps | None


def view(report: Report, golden: Trace, other: Other, lsb: int = 0) -> View:
    """Look at both sides once more, after `diff.compare`; `lsb` as there."""
    first = report.first
    spread = None if first is None else _spread(first, golden, other, lsb)
    return View(_shares(golden, other, lsb), spread, None if first is None else _maps(golden, other))


def _pair(golden: Trace, other: Other, key: str) -> tuple[Array, Array]:
    expected = golden.file.read(key)
    return expected, comparable(key, expected, other.read(key))[0]


def _shares(golden: Trace, other: Other, lsb: int) -> tuple[Share, ...]:
    found = []
    for node in golden.nodes:
        wrong = size = 0
        for key in (f"window{w}.{node}" for w in golden.windows):
            if key in golden.file and key in other:
                expected, given = _pair(golden, other, key)
                wrong, size = wrong + int(differs(expected, given, lsb).sum()), size + expected.size
        found.append(Share(node, wrong, size))
    return tuple(found)


def _spread(first: Difference, golden: Trace, other: Other, lsb: int) -> Spread:
    expected, found = _pair(golden, other, f"window{first.window}.{first.node}" if first.window >= 0 else first.node)
    wrong = differs(expected, found, lsb)
    flat = wrong.reshape(-1, wrong.shape[-1] if wrong.ndim else 1)
    listed = tuple(
        (at, int(expected[at]), int(found[at]))
        for at in (tuple(int(i) for i in np.unravel_index(k, wrong.shape)) for k in np.flatnonzero(wrong)[:_LISTED])
    )
    return Spread(_cells(flat), (flat.shape[0], flat.shape[1]), listed)


def _cells(wrong: Array) -> NDArray[np.float64]:
    """Means of bool [R, C] over cells of nearly equal size, at most _ROWS x _COLUMNS."""
    sums = wrong.astype(np.float64)
    for axis, most in ((0, _ROWS), (1, _COLUMNS)):
        size = sums.shape[axis]
        starts = np.arange(min(size, most)) * size // min(size, most)
        widths = np.diff(np.append(starts, size))
        shape = (-1, 1) if axis == 0 else (1, -1)
        sums = np.add.reduceat(sums, starts, axis=axis) / widths.reshape(shape)
    return sums


def _maps(golden: Trace, other: Other) -> Maps | None:
    """None where the golden trace has no labels, or those of the other side neither exist nor can be computed."""
    before = golden.file.read("labels") if "labels" in golden.file else np.empty(0)
    derived = "labels" not in other
    after = _follow(golden, other, before.shape) if derived else _pair(golden, other, "labels")[1]
    if after is None or before.ndim != 2 or not before.size or int(after.min()) < 0 or int(after.max()) > _MOST:
        return None
    count = int(max(before.max(), after.max())) + 1
    info = golden.model.info if golden.model else None
    if info is not None and count <= len(info.classes):
        return Maps(before, after, derived, info.classes, info.palette)
    return Maps(before, after, derived, (), tuple(PALETTES["distinct"](i, count) for i in range(count)))


def _follow(golden: Trace, other: Other, shape: tuple[int, ...]) -> Array | None:
    """The labels that follow from what the other side shows, everything else by the definition."""
    model = golden.model
    if model is None or len(shape) != 2:
        return None
    tiling, scores = tile(model.info, *shape), []
    for window in range(len(tiling.corners())):
        found = _scores(golden, other, model.graph, window)
        if found is None:
            return None
        scores.append(found)
    return labels(merge_scores(scores, tiling, model.info), model.info, *shape)


def _scores(golden: Trace, other: Other, graph: Graph, window: int) -> Array | None:
    """The scores of a window, from the last nodes that the other side shows.

    None where the trace lacks the window, or where the other side holds numbers that are outside of their dtype.
    """
    keys = {node.name: f"window{window}.{node.name}" for node in graph.nodes}
    given = {name for name, key in keys.items() if key in other and key in golden.file}
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed - given:
            needed.update(node.inputs)
    image = golden.value(window, IMAGE)
    if image is None:
        return None
    values: dict[str, Array] = {IMAGE: image}
    for node in graph.nodes:
        if node.name in given & needed:
            expected, values[node.name] = _pair(golden, other, keys[node.name])
            if values[node.name].dtype != expected.dtype:
                return None
        elif node.name in needed:
            inputs, params = graph.arguments(node, values)
            values[node.name] = RUN[node.op](*inputs, **params, **node.attrs)
    return values[graph.output]
