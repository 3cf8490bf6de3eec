"""Text for HTML and SVG."""

from __future__ import annotations

import html
import re

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML document may hold, not even escaped: control characters and lone surrogates."""


def escape(text: str) -> str:
    """Text for element content and quoted attributes of HTML and SVG, whatever it holds."""
    return html.escape(clean(text), quote=True)


def clean(text: str) -> str:
    """Text without what no XML document may hold."""
    return _NOT_XML.sub("\ufffd", text)


def number(value: float) -> str:
    """A coordinate: at most two decimals, no exponent, no minus zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
