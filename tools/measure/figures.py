"""The pictures of docs/RESULTS.md and docs/PERFORMANCE.md: confusion, IoU per class, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from intseg.tools.charts import BLUE, GREEN, INK, ORANGE, SERIES, SOFT, figure, svg

SHADES = (
    ("float", BLUE, 1.0),
    ("PTQ paper", ORANGE, 0.5),
    ("QAT paper", ORANGE, 1.0),
    ("PTQ intseg", GREEN, 0.5),
    ("QAT intseg", GREEN, 1.0),
)
"""The bars of a class: what, colour, opacity."""


def matrices(title: str, panels: Mapping[str, Any], classes: Sequence[str], signed: bool) -> str:
    """Matrices side by side, rows are labels: percent of a label's pixels, or points of percent with their sign."""
    side = 130 + 30 * len(classes)
    made, axes = figure(
        side * min(2, len(panels)), (side + 20) * -(-len(panels) // 2), -(-len(panels) // 2), min(2, len(panels))
    )
    places = list(np.ravel(axes))
    full = max(1.0, *(float(np.abs(values).max()) for values in panels.values())) if signed else 100.0
    for place, (name, values) in zip(places, panels.items(), strict=False):
        _matrix(place, name, values, classes, full, signed)
    for place in places[len(panels) :]:
        place.set_axis_off()
    words = "rows: label, columns: prediction; "
    words += "points of percent, no number below 0.05" if signed else "percent of a label's pixels, no number below 0.5"
    made.supxlabel(words, color=SOFT, fontsize=9)
    return svg(made, title)


def _matrix(axes: Axes, name: str, values: Any, classes: Sequence[str], full: float, signed: bool) -> None:
    """A matrix with its numbers; shade by absolute value, strongest at `full`, colour by sign."""
    colours = np.array([[to_rgba(BLUE if value >= 0 else ORANGE) for value in row] for row in values])
    colours[..., 3] = np.round(np.maximum(0.6 * np.abs(values) / full, 0.03), 2)
    axes.pcolormesh(colours, edgecolors="none")
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title(name, color=INK)
    middles = np.arange(len(classes)) + 0.5
    axes.set_xticks(middles, classes, rotation=60, ha="left", rotation_mode="anchor")
    axes.set_yticks(middles, classes)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for (i, j), value in np.ndenumerate(values):
        if abs(value) >= (0.05 if signed else 0.5):
            shown = f"{value:+.1f}" if signed else f"{value:.0f}"
            axes.text(j + 0.5, i + 0.5, shown, ha="center", va="center", fontsize=7 if signed else 8)


def bars(title: str, rows: Mapping[str, Sequence[float | None]], classes: Sequence[str]) -> str:
    """IoU per class and way, in percent."""
    shown = [(way, colour, shade) for way, colour, shade in SHADES if way in rows]
    made, axes = figure(80 + len(classes) * (16 * len(shown) + 18), 340)
    width = 0.8 / len(shown)
    for j, (way, colour, shade) in enumerate(shown):
        at = np.arange(len(classes)) - 0.4 + (j + 0.5) * width
        values = [value or 0.0 for value in rows[way]]
        drawn = axes.bar(at, values, width * 0.94, color=colour, alpha=shade, label=way)
        if len(shown) < 4:
            axes.bar_label(drawn, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(classes)), classes)
    axes.grid(visible=False, axis="x")
    axes.set(ylim=(0, 100), ylabel="IoU %")
    axes.legend(ncols=len(shown), loc="lower left", bbox_to_anchor=(0, 1))
    return svg(made, title)


def speed(title: str, milliseconds: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds of one image by model and program, a panel a model; the last program is this one."""
    programs = list(dict.fromkeys(name for times in milliseconds.values() for name in times))
    programs = [*(name for name in programs if name != "intseg"), "intseg"]
    columns = min(2, len(milliseconds))
    down = -(-len(milliseconds) // columns)
    made, axes = figure(260 + 200 * columns, down * (60 + 26 * len(programs)), down, columns)
    made.get_layout_engine().set(hspace=0.06)  # else a title touches the numbers above it
    places = list(np.ravel(axes))
    for place in places[len(milliseconds) :]:
        place.set_axis_off()
    for i, (place, (model, times)) in enumerate(zip(places, milliseconds.items(), strict=False)):
        rows = [row for row, name in enumerate(programs) if name in times]
        colours = [BLUE if programs[row] == "intseg" else ORANGE for row in rows]
        drawn = place.barh(rows, [times[programs[row]] for row in rows], color=colours)
        place.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=9)
        place.set_yticks(range(len(programs)), programs if i % columns == 0 else [""] * len(programs))
        place.grid(visible=False, axis="y")
        bottom = len(programs) - 0.5  # rows beside those of the panel to the left, whoever was not run
        place.set(ylim=(bottom, -0.5), xlim=(0, 1.25 * max(times.values())), title=f"{model}, ms")
    return svg(made, title)


def fronts(title: str, curves: Mapping[str, Sequence[tuple[float, float, float]]], measure: str) -> str:
    """(MB, GBitOps, accuracy in percent) by way to choose bits: size against accuracy, BitOps against it."""
    made, places = figure(760, 320, 1, 2)
    for (way, points), colour in zip(curves.items(), (INK, *SERIES, INK), strict=False):
        style = {"uniform": "s--", "QAT": "*"}.get(way, "o-")
        size, work, reached = zip(*points, strict=True)
        for place, cost in zip(places, (size, work), strict=True):
            place.plot(cost, reached, style, color=colour, markersize=3.5, label=way)
    for place, name in zip(places, ("MB of weights", "GBitOps of a window"), strict=True):
        place.set(xlabel=name, ylabel=measure)
    places[0].legend()
    return svg(made, title)


def cost(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """(tokens, milliseconds) by model, both axes logarithmic."""
    made, axes = figure(660, 380)
    for (name, points), colour in zip(curves.items(), SERIES, strict=False):
        axes.loglog(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=name)
    axes.set(xlabel="tokens", ylabel="ms, one thread")
    axes.legend()
    return svg(made, title)
