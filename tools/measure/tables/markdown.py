"""Tables, prose and numbers of a Markdown page."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence

from intseg.tools.measure.tables.results import Document, metrics, miou, same


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def filled(lines: Sequence[str]) -> Iterator[str]:
    """Lines of prose joined and filled to 120 columns; tables, code, headings and pictures as they are."""
    code = False
    for prose, group in itertools.groupby(
        lines, lambda line: bool(line) and not line.startswith(("|", "#", "```", "!"))
    ):
        found = list(group)
        code = code != (sum(line.startswith("```") for line in found) % 2 == 1)
        plain = not prose or (code and not found[0].startswith("```"))
        yield from found if plain else textwrap.wrap(" ".join(found), 120, break_long_words=False)


def prose(words: str) -> Iterator[str]:
    """Paragraphs, as `filled` takes them."""
    yield from (line.strip() for line in words.strip().splitlines())
    yield ""


def command(commands: Sequence[str]) -> Iterator[str]:
    """How a table was made."""
    if commands:
        yield from ("<!-- not run in tests: hours, and CamVid -->", "```sh", *commands, "```", "")


def accuracy(row: Document, base: Document) -> list[str]:
    """mIoU, its change against the float row, pixel accuracy, pixels equal to float."""
    found = metrics(row)
    change = "" if row is base else f"{found.miou - miou(base):+.2f}"
    return [f"{found.miou:.2f}", change, f"{found.aacc:.2f}", f"{same(row):.2f}"]


def significant(value: float) -> str:
    """Three significant digits, never an exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:.{max(0, digits)}f}"
