"""Charts as SVG: the same bytes for the same numbers and one version of matplotlib, legible on light and dark pages."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, SOFT, RULE, PAPER, BOX = "#1b1f24", "#4b5560", "#d5dae0", "#ffffff", "#eef3f8"
BLUE, ORANGE, GREEN, GRAY = "#1f6fb8", "#a4500f", "#2f9356", "#59636e"
SERIES = (BLUE, ORANGE, GREEN, GRAY)

DARK = {
    INK: "#eef1f4",
    SOFT: "#b6c0ca",
    RULE: "#39424c",
    PAPER: "#14181d",
    BOX: "#232b33",
    BLUE: "#74b6f2",
    ORANGE: "#f0a868",
    GREEN: "#6fcf97",
    GRAY: "#98a3af",
}
"""What each colour becomes on a dark page."""

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "intseg",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
}
matplotlib.rcParams.update(SETTINGS)


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of width x height pixels, and its axes: one, or an array of them."""
    made = Figure(figsize=(width / 96, height / 96), layout="constrained")
    return made, made.subplots(rows, columns)


def svg(made: Figure, title: str) -> str:
    """The document; colours follow the reader's light or dark theme."""
    data = io.StringIO()
    # savefig draws everything once more, only to lay it out, which drawing does by itself.
    FigureCanvasSVG(made).print_svg(data, metadata={"Date": None, "Creator": None, "Title": title})
    rules = "".join(
        f'[style*="fill: {light}"]{{fill:{dark}!important}}[style*="stroke: {light}"]{{stroke:{dark}!important}}\n'
        for light, dark in DARK.items()
        if light in data.getvalue()
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>"
    text = re.sub(r"(<svg [^>]*>)", rf"\1\n{style}", data.getvalue(), count=1)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def bare(axes: Axes) -> Axes:
    """Axes without rules, ticks and frame: for drawings."""
    axes.set_axis_off()
    axes.set_aspect("equal")
    return axes
