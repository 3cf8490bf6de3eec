"""Ranges and saturation of the layers: a small drawing a block, so that a narrow screen shows them below each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from intseg.errors import clip
from intseg.reports.inspect import inner_name, stretches
from intseg.reports.markup import escape, number, table


@dataclass(frozen=True)
class Layer:
    """What a node gave, over all windows of an image.

    low, high    least and greatest value
    share_low, share_high   parts of its elements at the ends of its dtype
    """

    name: str
    op: str
    dtype: str
    low: int
    high: int
    share_low: float
    share_high: float

    @property
    def share(self) -> float:
        """The part of its elements at either end."""
        return self.share_low + self.share_high


_LEFT, _COLUMN, _HEIGHT = 54, 9.0, 205
_ZERO, _REACH = 60, 45
"""Where the line of value 0 is, and how far from it the ends of the dtype are."""
_FLOOR, _SHARES = 195, 60
"""Where nothing saturated is, and how far above it everything."""


def plots(i: int, layers: Sequence[Layer]) -> str:
    """The section about the layers of image i."""
    worst = max(layers, key=lambda layer: layer.share)
    summary = (
        f"{len(layers)} nodes that compute, in execution order. A bar reaches from the least to the greatest value, "
        "as a part of what the dtype can hold; below it is the share of elements at an end of the dtype, saturated or "
        f"just reaching it. The largest such share is {worst.share:.3%} ({worst.name})."
    )
    head = ("Node", "Op", "Dtype", "Least", "Greatest", "At least", "At greatest")
    rows = [
        (x.name, x.op, x.dtype, f"{x.low:,}", f"{x.high:,}", f"{x.share_low:.4%}", f"{x.share_high:.4%}")
        for x in layers
    ]
    kinds = "".join(
        f'<span class="{dtype}">■ {dtype}</span> ' for dtype in dict.fromkeys(layer.dtype for layer in layers)
    )
    known = {layer.name: layer for layer in layers}
    panels = "".join(_panel(title, [known[name] for name in names]) for title, names in stretches(list(known)))
    return (
        f'<h3 id="layers-{i}">Layers</h3><p>{escape(summary)}</p><p class="key">{kinds}</p>'
        f'<div class="panels">{panels}</div><details><summary>All numbers of the layers</summary>'
        f"{table(f'numbers-{i}', 'Layers', head, rows, texts=3)}</details>"
    )


def _panel(title: str, layers: Sequence[Layer]) -> str:
    width = _LEFT + _COLUMN * max(len(layers), 8) + 4
    label = f"{title}: ranges and saturation of {len(layers)} layers; the numbers are in the table below"
    columns = "".join(_column(layer, _LEFT + n * _COLUMN, _COLUMN - 2) for n, layer in enumerate(layers))
    return (
        f'<div><svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {number(width)} {_HEIGHT}" '
        f'width="{number(width)}" height="{_HEIGHT}">{"".join(_grid(width))}{columns}</svg>'
        f'<div class="name">{escape(clip(title, 60))}</div></div>'
    )


def _grid(width: float) -> Iterator[str]:
    ranges = ((_ZERO - _REACH, "max"), (_ZERO, "0"), (_ZERO + _REACH, "min"))
    shares = ((_FLOOR - _SHARES, "100 %"), (_FLOOR - 40, "1 %"), (_FLOOR - 20, "0.01 %"), (_FLOOR, "0"))
    for y, text in (*ranges, *shares):
        yield f'<path class="rule" d="M{_LEFT - 3} {y}H{number(width)}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>'


def _column(layer: Layer, x: float, width: float) -> str:
    limits = np.iinfo(layer.dtype)
    end = float(max(-int(limits.min), int(limits.max)))
    top, bottom = (_ZERO - _REACH * value / end for value in (layer.high, layer.low))
    height = _log_height(layer.share)
    title = f"{inner_name(layer.name)} ({layer.op}): {layer.low:,} to {layer.high:,} of {layer.dtype}, "
    title += f"{layer.share:.4%} at its ends"
    return (
        f'<g class="{layer.dtype}"><title>{escape(title)}</title>'
        f'<rect x="{number(x)}" y="{number(top)}" width="{number(width)}" height="{number(max(1.0, bottom - top))}"/>'
        f'<rect x="{number(x)}" y="{number(_FLOOR - height)}" width="{number(width)}" height="{number(height)}"/></g>'
    )


def _log_height(share: float) -> float:
    """0 for nothing, _SHARES for everything, 10 less for every power of ten, at least 2 for something."""
    return 0.0 if share == 0 else max(2.0, _SHARES + 10 * float(np.log10(share)))


STYLE = """
.panels { display: flex; flex-wrap: wrap; gap: 0.5rem 1rem; }
.panels > div { max-width: 100%; } .panels .name { font-size: 0.8rem; overflow-wrap: anywhere; }
.plot g rect { fill: var(--third); }
.plot g.int8 rect { fill: var(--ink); } .plot g.int16 rect { fill: var(--second); }
.key span { color: var(--third); margin-right: 1rem; }
.key .int8 { color: var(--ink); } .key .int16 { color: var(--second); }
"""
