"""What is said of many files: each remark once, with the number of files and the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Notes:
    """Remarks on files, counted."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, file: str, *remarks: str) -> None:
        """Remarks on a file."""
        for remark in remarks:
            count, first = self._found.get(remark, (0, file))
            self._found[remark] = count + 1, first

    def merge(self, other: Notes) -> None:
        """Take in the remarks of another."""
        for remark, (count, first) in other._found.items():
            mine, before = self._found.get(remark, (0, first))
            self._found[remark] = mine + count, before

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self) -> Iterator[str]:
        """ "2 files, first a.png: remark"; of one file "a.png: remark"."""
        for remark, (count, first) in self._found.items():
            yield f"{first}: {remark}" if count == 1 else f"{count} files, first {first}: {remark}"

    def short(self) -> str:
        """ "2 hidden, 1 ending in .txt (first notes.txt)": for remarks that are a word or two."""
        return ", ".join(f"{count} {remark} (first {first})" for remark, (count, first) in self._found.items())

    def as_json(self) -> list[dict[str, Any]]:
        """The same for programs."""
        return [{"note": note, "files": count, "first": first} for note, (count, first) in self._found.items()]
