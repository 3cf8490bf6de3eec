"""Text for HTML and SVG."""

from __future__ import annotations

import html

from intseg.errors import printable


def escape(text: object) -> str:
    """Text for element content and quoted attributes of HTML and SVG, whatever it holds: nothing moves what is near."""
    return html.escape(printable(str(text)), quote=True)


def number(value: float) -> str:
    """A coordinate: at most two decimals, no exponent, no minus zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
