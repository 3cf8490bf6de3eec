"""What a run has done, to continue from: a JSON line an item, appended as soon as it is known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from intseg import files
from intseg.errors import UsageError

FORMAT = 2
_LIMIT = 2**32
"""Bytes of a journal at most: several million lines."""


class Journal:
    """A journal, used as a context: it belongs to one process at a time, by a lock that ends with the process.

    The first line says of what run it is; every other one bears the mark of that line, and one that does not, was cut
    off or makes no sense is left out: its item is done again. No line is flushed to disk: what a power failure loses is
    done again too. The order of the lines and their bytes are those of the items, however many processes work.

    kind    of run: "batch", "eval"
    header  what decides the results
    keep    go on after what is there; False begins afresh
    again   what errors advise beside the same options
    lines   what is there, by item; of two lines of one item the later
    """

    def __init__(
        self, path: Path, kind: str, header: Mapping[str, object], keep: bool = True, again: str = "choose another file"
    ) -> None:
        self.path, self.keep, self.again = path, keep, again
        self.header = {f"intseg {kind}": FORMAT, **header}
        self.mark = _mark(self.header)
        self.lines: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        self._file = files.Growing(self.path)
        try:
            data = self._file.read(_LIMIT)
            whole = data[: data.rfind(b"\n") + 1] if self.keep else b""
            begun = not whole and _line(self.header).startswith(data)  # new, or killed in the first line
            if self.keep and not begun:
                self.lines = lines_of(whole, self.path, self.header, self.again)
            self._file.truncate(len(whole))
            if not whole:
                self._file.append(_line(self.header))
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def add(self, item: str, line: Mapping[str, object]) -> None:
        """Note that an item is done. Raises InputError."""
        self._file.append(_line({"of": self.mark, "item": item, **line}))


def lines_of(data: bytes, path: Path, header: Mapping[str, object], again: str) -> dict[str, dict[str, Any]]:
    """The lines of a journal by item. Raises UsageError for a file that is none, or one of another run."""
    texts = _texts(data)
    found = _parsed(next(texts, b""))
    kind = next(iter(header))
    if found.get(kind) != FORMAT:
        earlier = "is a journal of another version of intseg" if kind in found else f"is not a journal of {kind}"
        raise UsageError(f"{path}: {earlier}; {again}")
    other = [key for key in {**header, **found} if found.get(key) != header.get(key)]
    if other:
        raise UsageError(
            f"{path}: was begun with another {' and '.join(other)}; give the same options to resume, or {again}"
        )
    return _marked(texts, _mark(header))


def read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The header of a journal that nobody writes, and its lines by item. Raises UsageError for a file that is none."""
    data = files.read(path, "the journal", limit=_LIMIT)
    texts = _texts(data[: data.rfind(b"\n") + 1])
    header = _parsed(next(texts, b""))
    if header.get(f"intseg {kind}") != FORMAT:
        raise UsageError(f"{path}: is not a journal of intseg {kind}; give files that it wrote")
    return header, _marked(texts, _mark(header))


def _texts(data: bytes) -> Iterator[bytes]:
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield data[start:end]
        start = end + 1


def _marked(texts: Iterator[bytes], mark: str) -> dict[str, dict[str, Any]]:
    parsed = (_parsed(text) for text in texts)
    return {str(line.get("item")): line for line in parsed if line.get("of") == mark}


def item_of(file: str) -> str:
    """The name of an item for its file, "/" between folders: one that is not UTF-8 by its bytes, as no other can be."""
    file = file.replace(os.sep, "/")
    try:
        file.encode()
    except UnicodeEncodeError:
        return f"\0{os.fsencode(file).hex()}"
    return file


def _mark(header: Mapping[str, object]) -> str:
    return hashlib.sha256(_line(header)).hexdigest()[:16]


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _parsed(text: bytes) -> dict[str, Any]:
    """The object on a line; an empty one for anything else."""
    try:
        value = files.parse_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
