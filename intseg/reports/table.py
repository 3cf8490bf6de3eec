"""The text tables that commands print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from intseg.errors import printable

WIDTH = 80
"""Of a terminal."""


def table(cells: Sequence[Sequence[str]], left: int = 1, gap: int = 3) -> Iterator[str]:
    """Columns as wide as they need, names from files escaped; the first `left` to the left, the others to the right.

    gap  blanks between columns, fewer where the table is wider than a terminal
    """
    shown = [[printable(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    gap = max(1, min(gap, (WIDTH - 2 - sum(widths)) // max(1, len(widths) - 1)))
    for row in shown:
        padded = (
            f"{cell:{'<' if i < left else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield ("  " + (" " * gap).join(padded)).rstrip()


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same as Markdown; the first row is the head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [head, f"|{'---|' * len(rows[0])}", *body]
