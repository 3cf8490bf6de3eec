"""A comparison as one HTML file that opens offline: no script, no font, no picture from elsewhere.

The cause first, then where the wrong elements lie in the tensor, in the network and in the class map; the rest is
folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from intseg.errors import clip
from intseg.ops import Array
from intseg.reports.diff_text import hexadecimal
from intseg.reports.diff_view import Maps, Share, Spread, View
from intseg.reports.inspect import inner_name, stretches
from intseg.reports.markup import STYLE, escape, picture, table
from intseg.workbench.diff import Difference, Report
from intseg.workbench.search import Explanation

_MARK = (216, 44, 44)
"""Of wrong elements, on light and on dark ground."""


def page(report: Report, view: View, golden: str, other: str) -> str:
    """The report as an HTML document; `golden` and `other` are the names of what was compared."""
    first = report.first
    title = "Equal" if first is None else f"First difference at {first.node}"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}{_STYLE}</style></head><body>",
        f'<header><h1 class="{"good" if report.equal else "bad"}">{escape(title)}</h1>',
        f'<p class="soft"><code>{escape(golden)}</code> (golden) against <code>{escape(other)}</code>, '
        f"{report.compared:,} tensors compared.</p></header><main>",
    ]
    if first is None:
        parts += _notes(report)
    else:
        parts += [*_lead(first, report.explanation), *_notes(report)]
        parts += [*_tensor(first, view.spread), *_network(first, view.nodes), *_classes(view.maps)]
        parts += _folded(report, view)
    return "\n".join([*parts, "</main></body></html>", ""])


# ------------------------------------------------------------------------------------------------------------ lead


def _lead(first: Difference, cause: Explanation | None) -> Iterator[str]:
    """The cause, then the first wrong element beside what is said of all."""
    where = f"Window {first.window}, node " if first.window >= 0 else ""
    yield '<section class="lead"><div class="cause">'
    yield from _cause(cause)
    yield f"<p>{where}<code>{escape(first.node)}</code>{f' ({escape(first.op)})' if first.op else ''}, "
    yield f"{escape(first.dtype)} {list(first.shape)}: {first.count:,} of {first.size:,} elements differ "
    yield f"({_percent(first.count / first.size)}), by at most {first.largest:,}; {escape(first.pattern)}.</p></div>"
    yield f"<div><h2>First wrong element, {list(first.index)}</h2><table class='first'>"
    yield '<thead><tr><th></th><th scope="col">expected</th><th scope="col">found</th></tr></thead><tbody>'
    yield _row("decimal", f"{first.expected:,}", f"{first.found:,}")
    yield _row("hex", hexadecimal(first.expected, first.dtype), hexadecimal(first.found, first.dtype))
    if None not in first.reals:
        yield _row("real", *(f"{real:.9g}" for real in first.reals if real is not None))
    yield "</tbody></table>"
    if first.register:
        name, at, expected, found = first.register
        yield f"<p>First register that differs: <code>{escape(name)}</code> at {list(at)}, expected {expected:,}, "
        yield f"found {found:,}.</p>"
    yield "</div></section>"


def _cause(found: Explanation | None) -> Iterator[str]:
    if found is None:
        yield "<h2>No cause was searched</h2>"
    elif found.matches:
        names = found.names()
        where = f"the unseen node <code>{escape(found.node)}</code>" if found.node else "the node"
        yield f"<h2>Cause: {escape(names[0])}</h2>"
        yield f"<p>Recomputing {where} from the golden inputs with it gives the other side exactly.</p>"
        if len(names) > 1:
            yield "<p>So do:</p><ul>" + "".join(f"<li>{escape(name)}</li>" for name in names[1:]) + "</ul>"
    else:
        searched = "" if found.complete else "; the time was up before all pairs were tried"
        yield "<h2>No known mistake explains it</h2>"
        yield f"<p>None of {found.tried:,} hypotheses and pairs gives the other side exactly{searched}.</p>"


def _row(name: str, *cells: str) -> str:
    return f'<tr><th scope="row">{name}</th>' + "".join(f'<td class="number">{cell}</td>' for cell in cells) + "</tr>"


def _notes(report: Report) -> Iterator[str]:
    yield from (f"<p>Note: {escape(note)}.</p>" for note in report.notes)


def _percent(share: float) -> str:
    """What is found never reads as nothing, and what is not all never as all."""
    text = f"{100 * share:.1f} %"
    if 0 < share < 0.0005:
        return "&lt; 0.1 %"
    return "&gt; 99.9 %" if share < 1 and text == "100.0 %" else text


# ---------------------------------------------------------------------------------------------------------- tensor


def _tensor(first: Difference, spread: Spread | None) -> Iterator[str]:
    if spread is None:
        return
    rows, columns = spread.matrix
    axes = len(first.shape)
    kind = "axis 0" if axes == 2 else f"axes 0 to {axes - 2}" if axes > 2 else "one row"
    at = divmod(int(np.ravel_multi_index(first.index, first.shape)), columns) if first.shape else (0, 0)
    y, x = (100 * (i + 0.5) / size for i, size in zip(at, spread.matrix, strict=True))
    down, across = (-(-size // cells) for size, cells in zip(spread.matrix, spread.cells.shape, strict=True))
    cell = "element" if down * across == 1 else f"{down} × {across} elements at most"
    yield '<section><h2>Where in the tensor</h2><div class="pair"><figure class="map">'
    yield f'<div class="frame"><img src="{_heat(spread.cells)}" alt="Map of the wrong elements, stronger '
    yield f'where more are wrong"><i class="ring" style="left:{x:.2f}%;top:{y:.2f}%"></i></div>'
    yield f'<p class="ends"><span>0</span><span>column {columns - 1:,}</span></p>'
    yield f"<figcaption>{rows:,} rows ({kind}) of {columns:,}; a cell is {cell}, the stronger the more of it is wrong. "
    yield f"Ring: {list(first.index)}.</figcaption></figure><figure>"
    yield "<h3>Found minus expected</h3><table class='bars'>"
    widest = max(count for _, count in first.histogram)
    for label, count in first.histogram:
        bar = f'<span style="width:{max(0.5, 100 * count / widest):.1f}%"></span>'
        yield f'<tr><th scope="row" class="number">{escape(label)}</th><td class="number">{count:,}</td>'
        yield f'<td class="bar">{bar}</td></tr>'
    yield "</table></figure></div></section>"


def _heat(cells: Array) -> str:
    """Transparent where nothing is wrong; the square root, so that a single element is seen."""
    pixels = np.zeros((*cells.shape, 4), np.uint8)
    pixels[..., :3] = _MARK
    pixels[..., 3] = np.where(cells > 0, 40 + 215 * np.sqrt(cells), 0)
    return picture(pixels)


# --------------------------------------------------------------------------------------------------------- network


def _network(first: Difference, nodes: Sequence[Share]) -> Iterator[str]:
    """A row a block, a box a node, its colour the share of wrong elements."""
    known = {node.name: node for node in nodes}
    if not known:
        return
    wrong = sum(node.wrong > 0 for node in nodes)
    yield f"<section><h2>Where in the network</h2><p>{wrong:,} of {len(nodes):,} nodes differ, over all windows. "
    yield "A box is a node, in execution order; the stronger, the more of its elements are wrong. The first is framed, "
    yield 'dashed ones were not compared. At the end of a row is its largest share.</p><div class="network">'
    for title, names in stretches(list(known)):
        row = [known[name] for name in names]
        seen = [node for node in row if node.size]
        most = max((node.wrong / node.size for node in seen), default=0.0)
        label = f"{title}: {sum(node.wrong > 0 for node in row)} of {len(row)} nodes differ, at most {most:.1%}"
        boxes = "".join(_box(node, node.name == first.node) for node in row)
        yield f'<div class="line"><code>{escape(clip(title, 24))}</code><span class="boxes" role="img" '
        share = _percent(most) if seen else "–"
        yield f'aria-label="{escape(label)}">{boxes}</span><span class="number">{share}</span></div>'
    yield "</div></section>"


def _box(node: Share, first: bool) -> str:
    share = node.wrong / node.size if node.size else 0.0
    kind = " ".join(["box", *["first"] * first, *["unseen"] * (not node.size)])
    text = f"{inner_name(node.name)}: {node.wrong:,} of {node.size:,}" if node.size else f"{node.name}: not compared"
    strength = f"{0.15 + 0.85 * share**0.5:.2f}" if share else "0"
    return f'<i class="{kind}" style="--share:{strength}" title="{escape(text)}"></i>'


# --------------------------------------------------------------------------------------------------------- classes


def _classes(maps: Maps | None) -> Iterator[str]:
    if maps is None:
        return
    wrong = maps.golden != maps.other
    count, size = int(wrong.sum()), maps.golden.size
    palette = np.array(maps.palette, np.uint8)
    marked = np.zeros((*wrong.shape, 4), np.uint8)
    marked[wrong] = (*_MARK, 255)
    how = "What the other side shows leads to it, the rest by the definition: " if maps.derived else ""
    yield f"<section><h2>What becomes of the classes</h2><p>{how}{count:,} of {size:,} pixels "
    yield f'get another class ({_percent(count / size)}){_changes(maps, wrong)}.</p><div class="maps">'
    for pixels, name in ((palette[maps.golden], "expected"), (palette[maps.other], "found"), (marked, "other class")):
        yield f'<figure><img class="frame" src="{picture(pixels)}" alt="Class map, {name}">'
        yield f"<figcaption>{name.capitalize()}</figcaption></figure>"
    yield "</div></section>"


def _changes(maps: Maps, wrong: Array) -> str:
    """The most frequent change of class, in words."""
    if not wrong.any():
        return ""
    pairs = np.stack([maps.golden[wrong], maps.other[wrong]], axis=-1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    at = int(np.argmax(counts))
    before, after = (maps.names[k] if maps.names else f"class {k}" for k in found[at].tolist())
    return f", most often {escape(before)} into {escape(after)} ({int(counts[at]):,})"


# ---------------------------------------------------------------------------------------------------------- folded


def _folded(report: Report, view: View) -> Iterator[str]:
    first, cause, spread = report.first, report.explanation, view.spread
    yield "<section><h2>More</h2>"
    if first is not None and spread is not None:
        rows = [(str(list(at)), f"{a:,}", f"{b:,}", f"{b - a:+,}") for at, a, b in spread.listed]
        text = f"The first {len(rows)} wrong elements"
        yield _fold(text, table("elements", text, ("Index", "Expected", "Found", "Difference"), rows))
    if cause is not None and cause.partial and not cause.matches:
        tried = [(one.name, f"{100 * share:.1f} %") for one, share in cause.partial]
        text = "Mistakes that explain a part"
        yield _fold(text, table("partial", text, ("Mistake", "Of the wrong elements"), tried))
    wrong = [node for node in view.nodes if node.wrong]
    if wrong:
        shares = [(node.name, f"{node.wrong:,}", f"{node.size:,}", f"{node.wrong / node.size:.4%}") for node in wrong]
        text = f"The {len(wrong):,} nodes that differ, over all windows"
        yield _fold(text, table("nodes", text, ("Node", "Wrong", "Elements", "Share"), shares))
    if report.others:
        others = [(name, f"{count:,}") for name, count in report.others]
        text = f"{len(others):,} more tensors differ after the first"
        yield _fold(text, table("others", text, ("Tensor", "Wrong elements"), others))
    yield "</section>"


def _fold(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


_STYLE = """
.bad { color: var(--bad); } .good { color: var(--good); }
.lead { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 3rem; }
.lead h2 { margin-top: 1rem; } .cause h2 { font-size: 1.5rem; }
.first { min-width: min(100%, 24rem); } .first thead th:not(:first-child) { text-align: right; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 3rem; }
.pair h3 { margin-top: 0; }
div.frame { position: relative; } .frame { background: var(--panel); border: 1px solid var(--line); }
.map img { display: block; width: 100%; min-height: 6rem; max-height: 28rem; image-rendering: pixelated; }
.ring { position: absolute; width: 16px; height: 16px; margin: -8px; border-radius: 50%;
  border: 2px solid var(--text); outline: 1px solid var(--ground); }
.ends { display: flex; justify-content: space-between; margin: 0; color: var(--soft); font-size: 0.85rem; }
.bars { width: 100%; } .bars .bar { width: 70%; padding-right: 0; }
.bar span { display: block; height: 0.8rem; background: var(--mark); }
.network { max-width: 60rem; }
.line { display: grid; grid-template-columns: 13rem 1fr 4.5rem; gap: 0.25rem 0.75rem; align-items: center;
  padding: 0.1rem 0; }
.boxes { display: flex; gap: 2px; height: 20px; }
.box { flex: 1 1 0; max-width: 2rem; border: 1px solid var(--line); position: relative; background: var(--panel); }
.box::after { content: ""; position: absolute; inset: 0; background: var(--mark); opacity: var(--share); }
.box.first { outline: 2px solid var(--text); z-index: 1; min-width: 0; } .box.unseen { border-style: dashed; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
.maps img { width: 100%; image-rendering: pixelated; display: block; }
@media (max-width: 42rem) { .line { grid-template-columns: 1fr auto; } .boxes { grid-row: 2; grid-column: 1 / 3; } }
"""
