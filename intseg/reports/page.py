"""One HTML page about images: class map, class areas, score margins, ranges and saturation of every layer, digests.

The page is one file: pictures are data URLs, plots are inline SVG, style and script are inside, and a content security
policy forbids the browser to load anything. It follows the reader's light or dark theme, works with the keyboard, and
every plot has its numbers as text. Without the script the class map is seen beside the image, not over it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api, backends, store
from intseg._version import __version__
from intseg.executor import execute
from intseg.graph import Node
from intseg.images import overlay as overlays
from intseg.reports import layer_plot, markup
from intseg.reports.layer_plot import Layer
from intseg.reports.markup import escape, number, picture
from intseg.windows import cut_windows, image_scores

Array = NDArray[Any]

_MOVES = ("patchify", "concat", "slice", "split_heads", "merge_heads", "to_grid")
"""Ops whose output holds nothing that their input did not: left out of the plots of layers."""

_BINS = 48


@dataclass(frozen=True, eq=False)
class Look:
    """An image with everything the page says about it.

    cells    int32, int16 or int64 [h, w, C]: scores of the cells of the patch grid, one for each patch of the image
    layers   in execution order; empty when they were not asked for
    """

    name: str
    result: api.Result
    cells: NDArray[np.signedinteger[Any]]
    layers: tuple[Layer, ...]


def look(image: Any, model: api.Model, backend: str = "auto", threads: int | None = None, layers: bool = True) -> Look:
    """Run a model on an image and collect what the page shows. Arguments and errors as of `api.run`."""
    result = api.run(image, model, backend, threads)
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else "image"
    return Look(str(name), result, _cells(result), _layers(result) if layers else ())


def _cells(result: api.Result) -> NDArray[np.signedinteger[Any]]:
    """Scores [h, w, C] of the cells: merged on the grid, or of the pixels in their middle where windows merge there."""
    info, (height, width) = result.model.info, result.labels.shape
    if result.scores.ndim == 3:
        return result.scores[: -(-height // info.patch), : -(-width // info.patch)]
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
        style=markup.STYLE + layer_plot.STYLE + _STYLE,
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
    """An image: the views, then areas beside margins, then the layers; what the script needs in data attributes."""
    height, width, _ = found.result.image.shape
    notes = "".join(f"<p>Note: {escape(note)}.</p>" for note in found.result.notes)
    info = found.result.model.info
    for_script = (
        f'class="image" data-patch="{info.patch}" data-names="{escape(json.dumps(info.classes))}" '
        f'data-cells="{_cell_texts(found.cells)}"'
    )
    parts = [
        f'<section aria-labelledby="image-{i}" {"" if info.classifies else for_script}>'
        f'<h2 id="image-{i}" tabindex="-1">{escape(_short(found.name))}</h2>',
        f"<p>{width} × {height} pixels.</p>{notes}",
        _best(i, found) if info.classifies else _labelled(i, found),
        layer_plot.plots(i, found.layers) if found.layers else "",
        _digests(found),
        "</section>",
    ]
    return "".join(parts)


def _cell_texts(cells: Array) -> str:
    """Of every cell, row by row: columns of the grid, then best class, second class, margin, all after each other."""
    order = np.argsort(-cells.astype(np.int64), axis=-1, kind="stable")
    second = order[..., min(1, cells.shape[-1] - 1)]
    numbers = np.stack([order[..., 0], second, margins(cells)], axis=-1)
    return ",".join(map(str, [cells.shape[1], *numbers.ravel().tolist()]))


def _labelled(i: int, found: Look) -> str:
    """The image with the classes of its pixels, their areas, the margins."""
    pair = f'<div class="pair"><div>{_areas(i, found.result)}</div><div>{_margins(i, found)}</div></div>'
    return _views(i, found) + pair


def _best(i: int, found: Look) -> str:
    """The image and the best classes of a classifier."""
    result, ranked = found.result, found.result.top()
    height, width, _ = result.image.shape
    widest = max(1, ranked[0].logit - ranked[-1].logit)
    rows = [
        f'<tr><td class="number">{best.index}</td><th scope="row">{escape(best.name)}</th>'
        f'<td class="number">{best.logit:,}</td><td class="bar">'
        f'<span style="width:{100 * (best.logit - ranked[-1].logit) / widest:.1f}%"></span></td></tr>'
        for best in ranked
    ]
    alt = escape(f"{_short(found.name)}, the image")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Number", "Class", "Logit"))
    return (
        f'<p><img src="{picture(result.image, lossy=True)}" width="{width}" height="{height}" alt="{alt}"></p>'
        f"<h3>Classes</h3><p>Best minus second best logit: {int(margins(found.cells).flat[0]):,}.</p>"
        f'<div class="scroll" role="region" aria-labelledby="best-{i}" tabindex="0"><table class="areas">'
        f'<caption id="best-{i}">The best classes</caption><thead><tr>{head}'
        f'<th><span class="hidden">Bar</span></th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _views(i: int, found: Look) -> str:
    """The image beside its classes, which the script lays over a copy of it."""
    result = found.result
    shares = ", ".join(f"{name} {overlays.percent(share)}" for name, share in list(result.shares().items())[:5])
    colours = np.array(result.palette, np.uint8)[result.labels]
    height, width = result.labels.shape
    indices = np.stack([result.labels & 255, result.labels >> 8, result.labels * 0], axis=-1).astype(np.uint8)
    size, cross = f'width="{width}" height="{height}"', '<i class="cross" hidden></i>'
    hint = "Classes; arrow keys move the cross by a patch, with Shift by a pixel"
    return (
        f'<div class="views" style="--most:{max(2 * width, 320)}px">'
        f'<div class="stack"><img class="original" src="{picture(result.image, lossy=True)}" {size} '
        f'alt="{escape(f"{_short(found.name)}, the image")}">{cross}</div>'
        f'<div class="stack" tabindex="0" role="group" aria-label="{hint}" aria-describedby="under-{i}">'
        f'<canvas {size} aria-hidden="true"></canvas><img class="classes" id="classes-{i}" src="{picture(colours)}" '
        f'{size} alt="{escape("Class map: " + shares)}">{cross}</div></div>'
        f'<img class="indices" src="{picture(indices)}" {size} alt="Class indices, for the script" hidden>'
        f'<p class="under" id="under-{i}" role="status">Point at a pixel, or move the cross with the arrow keys.</p>'
        f'<p class="slider"><label for="opacity-{i}">Opacity of the classes</label>'
        f'<input type="range" id="opacity-{i}" min="0" max="100" step="5" value="50">'
        f'<output for="opacity-{i}" id="opacity-value-{i}">50 %</output></p>'
    )


def _areas(i: int, result: api.Result) -> str:
    rows = []
    largest = max(result.shares().values())
    index = {name: k for k, name in enumerate(result.classes)}
    for name, count in result.counts().items():
        share, k = count / result.labels.size, index[name]
        colour = "#{:02x}{:02x}{:02x}".format(*result.palette[k])
        rows.append(
            f'<tr><th scope="row"><input type="checkbox" id="show-{i}-{k}" data-class="{k}" checked> '
            f'<label for="show-{i}-{k}">{_swatch(colour)}{escape(name)}</label></th>'
            f'<td class="number">{count:,}</td><td class="number">{overlays.percent(share)}</td>'
            f'<td class="bar"><span style="width:{100 * share / largest:.1f}%;background:{colour}"></span></td></tr>'
        )
    return (
        '<h3>Class areas</h3><p class="choose">Show <button type="button" data-show="1">all classes</button> '
        '<button type="button" data-show="">none</button></p>'
        f'<div class="scroll" role="region" aria-labelledby="areas-{i}" tabindex="0"><table class="areas">'
        f'<caption id="areas-{i}">Pixels of every class that was found</caption><thead><tr><th scope="col">Class</th>'
        '<th scope="col" class="number">Pixels</th><th scope="col" class="number">Share</th>'
        f'<th><span class="hidden">Bar</span></th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _swatch(colour: str) -> str:
    return (
        '<svg class="swatch" width="14" height="14" aria-hidden="true">'
        f'<rect x=".5" y=".5" width="13" height="13" fill="{colour}"/></svg>'
    )


def _margins(i: int, found: Look) -> str:
    values = margins(found.cells)
    quarter, median = (int(np.percentile(values, q, method="lower")) for q in (25, 50))
    ties = int((values == 0).sum())
    summary = (
        f"Best minus second best score of the {values.size:,} cells of the patch grid: least {values.min():,}, "
        f"quarter {quarter:,}, median {median:,}, greatest {values.max():,}; {ties:,} ties. "
        "A small margin is a cell that a little noise could turn into another class."
    )
    scaled = values.astype(np.float64) / max(1, int(values.max()))
    grey = (255 * np.sqrt(scaled)).astype(np.uint8)
    rows, columns = values.shape
    return (
        f'<h3 id="margins-{i}">Score margins</h3><p>{escape(summary)}</p>'
        f'<figure><img class="cells" src="{picture(grey)}" '
        f'width="{columns * 16}" height="{rows * 16}" alt="Map of the margins, bright where the best class is clear">'
        "<figcaption>Where: bright is a clear decision, black a tie</figcaption></figure>"
        f"<figure>{_histogram(values)}<figcaption>How many cells have which margin</figcaption></figure>"
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
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">{axes}{bars}</svg>'
    )


def _digests(found: Look) -> str:
    result = found.result
    arrays: dict[str, Array] = {"Decoded pixels": result.image, "Scores": result.scores, "Labels": result.labels}
    facts = {
        f"{name}, {array.dtype.name} {list(array.shape)}": hashlib.sha256(store.little(array).tobytes()).hexdigest()
        for name, array in arrays.items()
    }
    return (
        f"<h3>Digests</h3><p>sha256 of the little-endian bytes: equal on every machine and backend.</p>{_facts(facts)}"
    )


_STYLE = """
.skip { position: absolute; left: -100vw; } .skip:focus { position: static; }
nav ul { display: flex; flex-wrap: wrap; gap: 0 1.5rem; padding: 0; margin: 0; list-style: none; }
nav a { display: inline-block; padding: 0.25rem 0; overflow-wrap: anywhere; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.stack { position: relative; line-height: 0; max-width: var(--most); align-self: start; overflow: hidden; }
.stack img, .stack canvas { width: 100%; height: auto; }
canvas { position: absolute; inset: 0; } .classes { position: relative; image-rendering: pixelated; }
.cross { position: absolute; width: 15px; height: 15px; margin: -7px; border-radius: 50%; pointer-events: none;
  border: 2px solid #fff; outline: 1px solid #000; }
.seen .stack { cursor: crosshair; }
.under { min-height: 1.5em; font-variant-numeric: tabular-nums; }
.slider { display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 1rem; max-width: 40rem; }
.slider input { flex: 1 1 12rem; min-height: 1.5rem; accent-color: var(--focus); } output { min-width: 4rem; }
.choose button { font: inherit; color: var(--focus); background: var(--panel); border: 1px solid var(--line);
  border-radius: 4px; padding: 0.1rem 0.6rem; }
.areas { width: 100%; } .areas input { width: 1.1rem; height: 1.1rem; margin: 0; vertical-align: -2px;
  accent-color: var(--focus); }
.bar { width: 40%; padding-right: 0; } .bar span { display: block; height: 0.8rem; border: 1px solid var(--line); }
.cells { image-rendering: pixelated; width: 100%; max-width: 40rem; height: auto; border: 1px solid var(--line); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 3rem; }
.pair > div { min-width: 0; } .pair figure { margin-bottom: 1rem; }
.swatch { vertical-align: -2px; margin-right: 0.5rem; } .swatch rect { stroke: var(--line); }
figure .plot { max-width: 100%; height: auto; }
.plot text { font-size: 12px; fill: var(--soft); }
.plot .ink { fill: var(--ink); } .plot .axis, .plot .rule { fill: none; stroke: var(--line); }
@media (max-width: 42rem) { .bar { display: none; } .areas thead th:last-child { display: none; } }
@media print { nav, .slider, .skip, .choose, .under, .areas input { display: none; } }
"""

_SCRIPT = """
for (const image of document.querySelectorAll(".image")) wake(image);

async function wake(image) {
  const get = selector => image.querySelector(selector);
  const names = JSON.parse(image.dataset.names), patch = +image.dataset.patch;
  const [columns, ...cells] = image.dataset.cells.split(",").map(Number);
  const original = get(".original"), map = get(".classes"), stack = get("canvas").parentElement;
  const under = get(".under"), slider = get("input[type=range]");
  await Promise.all([original.decode(), get(".indices").decode()]);
  const { naturalWidth: width, naturalHeight: height } = original;
  get("canvas").getContext("2d").drawImage(original, 0, 0, width, height);
  const pixels = pictured(get(".indices")), colours = pictured(map);
  const label = at => pixels[4 * at] + 256 * pixels[4 * at + 1];
  const fade = () => {
    map.style.opacity = slider.value / 100;
    slider.nextElementSibling.textContent = slider.value + " %";
    slider.setAttribute("aria-valuetext", slider.value + " percent");
  };
  slider.addEventListener("input", fade);
  fade();

  function pictured(picture) {
    const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    return context.getImageData(0, 0, width, height).data;
  }

  let x = width >> 1, y = height >> 1;
  const point = (toX, toY) => {
    x = Math.min(width - 1, Math.max(0, Math.floor(toX)));
    y = Math.min(height - 1, Math.max(0, Math.floor(toY)));
    const row = Math.floor(y / patch), column = Math.floor(x / patch);
    const at = 3 * (row * columns + column), [best, second, margin] = cells.slice(at, at + 3);
    under.textContent = `x ${x}, y ${y}: ${names[label(y * width + x)]}. Scores of cell [${row}, ${column}]: ` +
      (best === second ? names[best] : `${names[best]}, ${margin.toLocaleString("en")} above ${names[second]}`) + ".";
    for (const cross of image.querySelectorAll(".cross")) {
      cross.hidden = false;
      cross.style.left = 100 * (x + 0.5) / width + "%";
      cross.style.top = 100 * (y + 0.5) / height + "%";
    }
  };
  for (const one of image.querySelectorAll(".stack")) {
    one.addEventListener("pointermove", event => {
      const box = one.getBoundingClientRect();
      point((event.clientX - box.left) * width / box.width, (event.clientY - box.top) * height / box.height);
    });
  }
  stack.addEventListener("keydown", event => {
    const step = event.shiftKey ? 1 : patch;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    point(x + moves[event.key][0], y + moves[event.key][1]);
  });

  const boxes = [...image.querySelectorAll("[data-class]")];
  const filter = () => {
    const shown = new Set(boxes.filter(box => box.checked).map(box => +box.dataset.class));
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const drawn = new ImageData(new Uint8ClampedArray(colours), width, height);
    for (let at = 0; at < width * height; at++) if (!shown.has(label(at))) drawn.data[4 * at + 3] = 0;
    canvas.getContext("2d").putImageData(drawn, 0, 0);
    map.src = canvas.toDataURL();
  };
  for (const box of boxes) box.addEventListener("change", filter);
  for (const button of image.querySelectorAll("[data-show]")) button.addEventListener("click", () => {
    for (const box of boxes) box.checked = !!button.dataset.show;
    filter();
  });
  image.classList.add("seen");
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
