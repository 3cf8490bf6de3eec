"""Text for HTML and SVG, and what the pages have in common: colours of both themes, pictures as data URLs, tables."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from intseg.errors import printable
from intseg.images import overlay as overlays

if TYPE_CHECKING:
    from intseg.ops import Array


def escape(text: object) -> str:
    """Text for element content and quoted attributes of HTML and SVG, whatever it holds: nothing moves what is near."""
    return html.escape(printable(str(text)), quote=True)


def number(value: float) -> str:
    """A coordinate: at most two decimals, no exponent, no minus zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def picture(pixels: Array, lossy: bool = False) -> str:
    """A data URL of uint8 [H, W], [H, W, 3] or [H, W, 4]: PNG, or JPEG where that is allowed and smaller."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    kinds = ("PNG", "JPEG") if lossy else ("PNG",)
    data, kind = min(((overlays.encode(image, kind), kind) for kind in kinds), key=lambda item: len(item[0]))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def table(key: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[object]], texts: int = 1) -> str:
    """A table of text; on a narrow screen every row is a block, its cells named, so that no number is cut.

    key    id of its caption
    texts  columns from the left that are text, the rest are numbers
    """
    kinds = ["" if i < texts else ' class="number"' for i in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(
            f'<td data-name="{escape(name)}"{kind}>{escape(cell)}</td>'
            for name, kind, cell in zip(head[1:], kinds[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-labelledby="{key}" tabindex="0"><table class="rows">'
        f'<caption id="{key}">{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
        "</table></div>"
    )


STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --text: #1b1f24; --soft: #4b5560; --line: #c3cad1;
  --panel: #f4f6f8; --ink: #1f6fb8; --second: #a4500f; --third: #7a3fae; --focus: #0b57d0; --bad: #b3261e;
  --good: #1a6b35; --mark: #c62828; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181d; --text: #eef1f4; --soft: #b6c0ca; --line: #4a545f; --panel: #1f252c;
    --ink: #74b6f2; --second: #f0a868; --third: #c9a3f5; --focus: #9cc4ff; --bad: #ff9a92; --good: #7fd99b;
    --mark: #ff6f61; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
header, nav, main, footer { padding: 0.5rem clamp(1rem, 4vw, 3rem); }
header, footer { background: var(--panel); }
main { max-width: 110rem; }
h1 { margin: 0.5rem 0; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin-top: 2rem; font-size: 1.25rem; overflow-wrap: anywhere; } h3 { margin-top: 2rem; font-size: 1.05rem; }
p { max-width: 70rem; } code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
a { color: var(--focus); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.soft, figcaption, caption, dt { color: var(--soft); }
summary { padding: 0.25rem 0; cursor: pointer; }
dl { margin: 0.5rem 0; } dl div { display: flex; flex-wrap: wrap; gap: 0 0.75rem; }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace; }
figure { margin: 0; max-width: 100%; } img { max-width: 100%; }
.scroll { position: relative; overflow-x: auto; max-width: 100%; } table { border-collapse: collapse; }
caption { text-align: left; padding: 0 0 0.5rem; }
th, td { text-align: left; padding: 0.15rem 1rem 0.15rem 0; border-bottom: 1px solid var(--line); }
th[scope=row] { font-weight: 400; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
@media (max-width: 42rem) {
  .rows thead { position: absolute; clip-path: inset(50%); }
  .rows, .rows tbody, .rows caption { display: block; }
  .rows tr { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0.25rem 0; border-bottom: 1px solid var(--line); }
  .rows th, .rows td { border: 0; padding: 0; } .rows th[scope=row] { flex: 1 0 100%; }
  .rows td::before { content: attr(data-name) " "; color: var(--soft); }
}
"""
"""Of every page; the contrast of each text colour to its ground is at least 4.5."""
