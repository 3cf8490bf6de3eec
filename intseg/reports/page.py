"""One HTML page about images: class map, class areas, score margins, ranges and saturation of every layer, digests.

The page is one file: pictures are data URLs, plots are inline SVG, style and script are inside, and a content security
policy forbids the browser to load anything. It follows the reader's light or dark theme, works with the keyboard, and
every plot has its numbers as text.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api, backends
from intseg._version import __version__
from intseg.executor import execute
from intseg.graph import Node
from intseg.images import overlay as overlays
from intseg.reports.markup import escape, number
from intseg.windows import cut_windows, image_scores

Array = NDArray[Any]

_MOVES = ("patchify", "concat", "slice", "split_heads", "merge_heads", "to_grid")
"""Ops whose output holds nothing that their input did not: left out of the plots of layers."""

_BINS = 48


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


@dataclass(frozen=True, eq=False)
class Look:
    """An image with everything the page says about it.

    margins  int32 or int64 [h, w]: best minus second best score of every cell of the patch grid
    layers   in execution order; empty when they were not asked for
    """

    name: str
    result: api.Result
    margins: NDArray[np.signedinteger[Any]]
    layers: tuple[Layer, ...]


def look(image: Any, model: api.Model, backend: str = "auto", threads: int | None = None, layers: bool = True) -> Look:
    """Run a model on an image and collect what the page shows. Arguments and errors as of `api.run`."""
    result = api.run(image, model, backend, threads)
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else "image"
    return Look(str(name), result, margins(_cells(result)), _layers(result) if layers else ())


def _cells(result: api.Result) -> NDArray[np.signedinteger[Any]]:
    """Scores [h, w, C] of the cells: merged on the grid, or of the pixels in their middle where windows merge there."""
    if result.scores.ndim == 3:
        return result.scores
    info, (height, width) = result.model.info, result.labels.shape
    middles = range(min(info.patch // 2, height - 1), height, info.patch)
    rows = [image_scores(result.scores, info, height, width, y, y + 1)[0] for y in middles]
    return np.stack(rows)[:, min(info.patch // 2, width - 1) :: info.patch]


def margins(scores: NDArray[np.signedinteger[Any]]) -> NDArray[np.signedinteger[Any]]:
    """Best minus second best score of every cell; 0 for a model of one class."""
    if scores.shape[-1] == 1:
        return np.zeros(scores.shape[:-1], scores.dtype)
    best = np.partition(scores, -2, axis=-1)
    difference: NDArray[np.signedinteger[Any]] = best[..., -1] - best[..., -2]
    return difference


class _Seen:
    """Running extremes of one node."""

    def __init__(self, node: Node) -> None:
        self.node, self.low, self.high = node, 2**62, -(2**62)
        self.at_low = self.at_high = self.size = 0

    def add(self, value: Array) -> None:
        limits = np.iinfo(value.dtype)
        low, high = int(value.min()), int(value.max())
        self.low, self.high, self.size = min(self.low, low), max(self.high, high), self.size + value.size
        self.at_low += int((value == limits.min).sum()) if low == limits.min else 0
        self.at_high += int((value == limits.max).sum()) if high == limits.max else 0

    def layer(self) -> Layer:
        node, size = self.node, self.size
        return Layer(node.name, node.op, node.dtype, self.low, self.high, self.at_low / size, self.at_high / size)


def _layers(result: api.Result) -> tuple[Layer, ...]:
    """Every node that computes something, over all windows."""
    graph, ops = result.model.graph, backends.table(result.backend)
    seen = {node.name: _Seen(node) for node in graph.nodes if node.op not in _MOVES}

    def keep(node: Node, value: Array) -> None:
        if node.name in seen:
            seen[node.name].add(value)

    for _, window in cut_windows(result.image, graph.info):
        execute(graph, window, ops, keep)
    return tuple(found.layer() for found in seen.values())


# ----------------------------------------------------------------------------------------------------------- page


def page(model: api.Model, looks: Sequence[Look]) -> bytes:
    """The page as UTF-8."""
    sections = [_section(i, found) for i, found in enumerate(looks, 1)]
    text = _PAGE.format(
        title=escape(f"{model.info.name}: {len(looks)} image{'s' if len(looks) != 1 else ''}"),
        model=escape(model.info.name),
        style=_STYLE,
        script=_SCRIPT,
        navigation="".join(
            f'<li><a href="#image-{i}">{escape(_short(found.name))}</a></li>' for i, found in enumerate(looks, 1)
        ),
        about=_about(model, looks),
        sections="".join(sections),
        version=escape(__version__),
    )
    return text.encode("utf-8", "replace")


def _short(name: str) -> str:
    return os.path.basename(name) or name


def _about(model: api.Model, looks: Sequence[Look]) -> str:
    info = model.info
    facts = {
        "Recipe": info.recipe,
        "Classes": str(len(info.classes)),
        "Window": f"{_by(info.window)}, stride {_by(info.stride)}, patch {info.patch}",
        "Backend": ", ".join(sorted({found.result.backend for found in looks})) or "none",
        "Model sha256": model.sha256,
    }
    return _facts(facts)


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} × {size[1]}"


def _facts(facts: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in facts.items())}</dl>"


def _section(i: int, found: Look) -> str:
    height, width = found.result.labels.shape
    notes = "".join(f"<p>Note: {escape(note)}.</p>" for note in found.result.notes)
    parts = [
        f'<section aria-labelledby="image-{i}"><h2 id="image-{i}" tabindex="-1">{escape(_short(found.name))}</h2>',
        f"<p>{width} × {height} pixels.</p>{notes}",
        _viewer(i, found),
        _areas(i, found.result),
        _margins(i, found),
        _plots(i, found.layers) if found.layers else "",
        _digests(found),
        "</section>",
    ]
    return "".join(parts)


def _viewer(i: int, found: Look) -> str:
    result = found.result
    alt = f"{_short(found.name)}, the image"
    shares = ", ".join(f"{name} {overlays.percent(share)}" for name, share in list(result.shares().items())[:5])
    colours = np.array(result.palette, np.uint8)[result.labels]
    height, width = result.labels.shape
    return (
        f'<div class="viewer" style="max-width:{max(width, 320)}px">'
        f'<div class="stack"><img src="{_picture(result.image)}" width="{width}" height="{height}" alt="{escape(alt)}">'
        f'<img class="classes" id="classes-{i}" src="{_picture(colours, lossy=False)}" width="{width}" '
        f'height="{height}" alt="{escape("Class map: " + shares)}"></div>'
        f'<p class="slider"><label for="opacity-{i}">Opacity of the classes</label>'
        f'<input type="range" id="opacity-{i}" min="0" max="100" step="5" value="50" data-for="classes-{i}">'
        f'<output for="opacity-{i}" id="opacity-value-{i}">50 %</output></p></div>'
    )


def _picture(rgb: Array, lossy: bool = True) -> str:
    """A data URL of uint8 [H, W, 3]: PNG, or JPEG where that is allowed and smaller."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(rgb))
    kinds = ("PNG", "JPEG") if lossy else ("PNG",)
    data, kind = min(((overlays.encode(image, kind), kind) for kind in kinds), key=lambda item: len(item[0]))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def _areas(i: int, result: api.Result) -> str:
    rows = []
    largest = max(result.shares().values())
    colours = dict(zip(result.classes, result.palette, strict=True))
    for name, count in result.counts().items():
        share = count / result.labels.size
        colour = "#{:02x}{:02x}{:02x}".format(*colours[name])
        rows.append(
            f'<tr><th scope="row">{_swatch(colour)}{escape(name)}</th><td class="number">{count:,}</td>'
            f'<td class="number">{overlays.percent(share)}</td>'
            f'<td class="bar">{_bar(share / largest, colour)}</td></tr>'
        )
    return "<h3>Class areas</h3>" + _table(
        f"areas-{i}",
        "Pixels of every class that was found",
        '<th scope="col">Class</th><th scope="col" class="number">Pixels</th>'
        '<th scope="col" class="number">Share</th><th><span class="hidden">Bar</span></th>',
        rows,
    )


def _table(key: str, caption: str, head: str, rows: Sequence[str]) -> str:
    """A table that can be scrolled with the keyboard when it is wider than the screen."""
    return (
        f'<div class="scroll" role="region" aria-labelledby="{key}" tabindex="0"><table>'
        f'<caption id="{key}">{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _swatch(colour: str) -> str:
    return (
        '<svg class="swatch" width="14" height="14" aria-hidden="true">'
        f'<rect x=".5" y=".5" width="13" height="13" fill="{colour}"/></svg>'
    )


def _bar(part: float, colour: str) -> str:
    return (
        '<svg width="160" height="12" aria-hidden="true">'
        f'<rect x=".5" y=".5" width="{number(1 + 158 * part)}" height="11" fill="{colour}"/></svg>'
    )


def _margins(i: int, found: Look) -> str:
    values = found.margins
    quarter, median = (int(np.percentile(values, q, method="lower")) for q in (25, 50))
    ties = int((values == 0).sum())
    summary = (
        f"Best minus second best score of the {values.size:,} cells of the patch grid: least {values.min():,}, "
        f"quarter {quarter:,}, median {median:,}, greatest {values.max():,}; {ties:,} ties. "
        "A small margin is a cell that a little noise could turn into another class."
    )
    scaled = values.astype(np.float64) / max(1, int(values.max()))
    grey = (255 * np.sqrt(scaled)).astype(np.uint8)
    map_picture = np.repeat(grey[..., None], 3, axis=2)
    patch = found.result.model.info.patch
    height, width = found.result.labels.shape
    rows, columns = -(-height // patch), -(-width // patch)
    return (
        f'<h3 id="margins-{i}">Score margins</h3><p>{escape(summary)}</p><div class="pair">'
        f'<figure><img class="cells" src="{_picture(map_picture[:rows, :columns], lossy=False)}" '
        f'width="{columns * 12}" height="{rows * 12}" alt="Map of the margins, bright where the best class is clear">'
        "<figcaption>Where: bright is a clear decision, black a tie</figcaption></figure>"
        f"<figure>{_histogram(values)}<figcaption>How many cells have which margin</figcaption></figure></div>"
    )


def _histogram(values: Array) -> str:
    counts, edges = np.histogram(values, bins=_BINS, range=(0, max(1, int(values.max()))))
    width, height = 480, 200
    step, most = (width - 50) / _BINS, max(1, int(counts.max()))
    bars = "".join(
        f'<rect class="ink" x="{number(45 + n * step)}" y="{number(170 - 150 * count / most)}" '
        f'width="{number(step - 1)}" height="{number(150 * count / most)}"><title>{int(low):,} to {int(high):,}: '
        f"{count:,} cells</title></rect>"
        for n, (count, low, high) in enumerate(zip(counts.tolist(), edges, edges[1:], strict=False))
        if count
    )
    axes = (
        f'<path class="axis" d="M45 20V170H{width - 5}"/><text x="40" y="26" text-anchor="end">{most:,}</text>'
        f'<text x="40" y="172" text-anchor="end">0</text><text x="45" y="188">0</text>'
        f'<text x="{width - 5}" y="188" text-anchor="end">{int(edges[-1]):,}</text>'
    )
    label = f"Histogram of {values.size:,} margins from {int(values.min()):,} to {int(values.max()):,}"
    return _plot(width, height, label, axes + bars)


def _plot(width: float, height: float, label: str, content: str) -> str:
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {number(width)} {number(height)}" '
        f'width="{number(width)}" height="{number(height)}">{content}</svg>'
    )


# --------------------------------------------------------------------------------------------------------- layers


def _plots(i: int, layers: Sequence[Layer]) -> str:
    worst = max(layers, key=lambda layer: layer.share_low + layer.share_high)
    share = worst.share_low + worst.share_high
    summary = (
        f"{len(layers)} nodes that compute, in execution order. A bar reaches from the least to the greatest value, "
        "as a part of what the dtype can hold; below it is the share of elements at an end of the dtype, saturated or "
        f"just reaching it. The largest such share is {share:.3%} ({worst.name})."
    )
    rows = [
        f'<tr><th scope="row">{escape(layer.name)}</th><td>{escape(layer.op)}</td><td>{escape(layer.dtype)}</td>'
        f'<td class="number">{layer.low:,}</td><td class="number">{layer.high:,}</td>'
        f'<td class="number">{layer.share_low:.4%}</td><td class="number">{layer.share_high:.4%}</td></tr>'
        for layer in layers
    ]
    head = '<th scope="col">Node</th><th scope="col">Op</th><th scope="col">Dtype</th>' + "".join(
        f'<th scope="col" class="number">{name}</th>' for name in ("Least", "Greatest", "At least", "At greatest")
    )
    return (
        f'<h3 id="layers-{i}">Layers</h3><p>{escape(summary)}</p>'
        f'<div class="scroll" role="region" aria-labelledby="layers-{i}" tabindex="0">{_layer_plot(layers)}</div>'
        '<p class="key"><span class="int8">■ int8</span> <span class="int16">■ int16</span></p>'
        f"<details><summary>All numbers of the layers</summary>{_table(f'numbers-{i}', 'Layers', head, rows)}</details>"
    )


def _layer_plot(layers: Sequence[Layer]) -> str:
    """Ranges above, saturation on a logarithmic scale below, one column a layer."""
    step = max(5.0, min(16.0, 900 / len(layers)))
    width = 70 + step * len(layers) + 10
    columns = "".join(_column(layer, 70 + n * step, step - 1.5) for n, layer in enumerate(layers))
    label = f"Ranges and saturation of {len(layers)} layers; the numbers are in the table below"
    return _plot(width, 350, label, "".join([*_grid(width), *_marks(layers, step), columns]))


def _grid(width: float) -> Iterator[str]:
    ranges = ((20, "max"), (100, "0"), (180, "min"))
    shares = ((210, "100 %"), (240, "1 %"), (270, "0.01 %"), (300, "0"))
    for y, text in (*ranges, *shares):
        yield f'<path class="rule" d="M65 {y}H{number(width)}"/>'
        yield f'<text x="60" y="{y + 4}" text-anchor="end">{text}</text>'


def _marks(layers: Sequence[Layer], step: float) -> Iterator[str]:
    """A tick and a name where a block begins."""
    last = ""
    for n, layer in enumerate(layers):
        parts = layer.name.split(".")
        block = ".".join(parts[:3]) if "blocks" in parts else parts[0] if len(parts) > 1 else ""
        if block != last and "blocks" in parts:
            x = number(70 + n * step)
            text = f"{parts[0][:3]} {parts[2]}"
            yield f'<path class="rule" d="M{x} 14V320"/><text x="{x}" y="335">{escape(text)}</text>'
        last = block


def _column(layer: Layer, x: float, width: float) -> str:
    limits = np.iinfo(layer.dtype)
    end = float(max(-int(limits.min), int(limits.max)))
    top, bottom = (100 - 80 * value / end for value in (layer.high, layer.low))
    share = layer.share_low + layer.share_high
    height = _log_height(share)
    title = f"{layer.name} ({layer.op}): {layer.low:,} to {layer.high:,} of {layer.dtype}, {share:.4%} at its ends"
    return (
        f'<g class="{layer.dtype}"><title>{escape(title)}</title>'
        f'<rect x="{number(x)}" y="{number(top)}" width="{number(width)}" height="{number(max(1.0, bottom - top))}"/>'
        f'<rect x="{number(x)}" y="{number(300 - height)}" width="{number(width)}" height="{number(height)}"/></g>'
    )


def _log_height(share: float) -> float:
    """0 for nothing, 90 for everything, 15 less for every power of ten, at least 2 for something."""
    return 0.0 if share == 0 else max(2.0, 90 + 15 * float(np.log10(share)))


def _digests(found: Look) -> str:
    result = found.result
    arrays: dict[str, Array] = {"Decoded pixels": result.image, "Scores": result.scores, "Labels": result.labels}
    facts = {
        f"{name}, {array.dtype.name} {list(array.shape)}": hashlib.sha256(
            np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        ).hexdigest()
        for name, array in arrays.items()
    }
    return (
        f"<h3>Digests</h3><p>sha256 of the little-endian bytes: equal on every machine and backend.</p>{_facts(facts)}"
    )


_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1b1f24; --soft: #4b5560; --line: #8a94a0;
  --panel: #f4f6f8; --int8: #1f6fb8; --int16: #a4500f; --focus: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181d; --text: #eef1f4; --soft: #b6c0ca; --line: #77828e; --panel: #1f252c;
    --int8: #74b6f2; --int16: #f0a868; --focus: #9cc4ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
header, nav, main, footer { padding: 0.5rem clamp(1rem, 4vw, 3rem); }
header, footer { background: var(--panel); }
h1 { margin: 0.5rem 0; font-size: 1.5rem; } h2 { margin-top: 2rem; overflow-wrap: anywhere; } h3 { margin-top: 2rem; }
a { color: var(--focus); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
.skip { position: absolute; left: -100vw; } .skip:focus { position: static; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
nav ul { display: flex; flex-wrap: wrap; gap: 0 1.5rem; padding: 0; margin: 0; list-style: none; }
nav a { display: inline-block; padding: 0.25rem 0; overflow-wrap: anywhere; } summary { padding: 0.25rem 0; }
dl { margin: 0.5rem 0; } dl div { display: flex; flex-wrap: wrap; gap: 0 0.75rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace; }
.stack { position: relative; line-height: 0; } .stack img { width: 100%; height: auto; }
.stack .classes { position: absolute; inset: 0; opacity: 0.5; image-rendering: pixelated; }
.slider { display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 1rem; }
.slider input { flex: 1 1 12rem; min-height: 1.5rem; accent-color: var(--focus); } output { min-width: 4rem; }
.cells { image-rendering: pixelated; max-width: 100%; height: auto; border: 1px solid var(--line); }
.pair { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; } figcaption { color: var(--soft); }
.scroll { position: relative; overflow-x: auto; max-width: 100%; } table { border-collapse: collapse; }
caption { text-align: left; color: var(--soft); padding: 0 0 0.5rem; }
th, td { text-align: left; padding: 0.15rem 1rem 0.15rem 0; border-bottom: 1px solid var(--line); }
th[scope=row] { font-weight: 400; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.swatch { vertical-align: -2px; margin-right: 0.5rem; } .swatch rect, .bar rect { stroke: var(--line); }
.plot { max-width: none; } figure .plot { max-width: 100%; height: auto; }
.plot text { font-size: 12px; fill: var(--soft); } .plot .ink { fill: var(--int8); }
.plot .axis, .plot .rule { fill: none; stroke: var(--line); } .plot .rule { stroke-opacity: 0.5; }
g.int8 rect { fill: var(--int8); } g.int16 rect { fill: var(--int16); }
.key .int8 { color: var(--int8); } .key .int16 { color: var(--int16); }
@media print { nav, .slider, .skip { display: none; } }
"""

_SCRIPT = """
for (const slider of document.querySelectorAll("input[type=range]")) {
  const show = () => {
    document.getElementById(slider.dataset.for).style.opacity = slider.value / 100;
    slider.nextElementSibling.textContent = slider.value + " %";
    slider.setAttribute("aria-valuetext", slider.value + " percent");
  };
  slider.addEventListener("input", show);
  show();
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the images</a>
<header><h1>Segmentation by {model}</h1>{about}</header>
<nav aria-label="Images"><ul>{navigation}</ul></nav>
<main id="main" tabindex="-1">{sections}</main>
<footer><p>Written by intseg {version}. This page is one file and loads nothing.</p></footer>
<script>{script}</script>
</body>
</html>
"""
