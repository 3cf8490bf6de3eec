"""Files of results: a document a file, kept while its inputs are the same; parts of an unfinished experiment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intseg import store
from intseg.errors import InputError

Document = dict[str, Any]

FORMAT = 1
"""Of the files; a file of another format is measured again."""


class Memo:
    """Parts of an unfinished experiment, in a hidden file beside the result: what was measured once is not again."""

    def __init__(self, path: Path, inputs: Document, fresh: bool) -> None:
        self.path = path.with_name(f".{path.name}.unfinished")
        self.inputs = {name: value for name, value in inputs.items() if name not in PARTS_NAME}
        self.parts: Document = {}
        if self.path.exists() and not fresh:
            found = read_json(self.path)
            self.parts = found["parts"] if found.get("inputs") == plain(self.inputs) else {}

    def __call__(self, key: str, work: Callable[[], Document]) -> Document:
        """The part of this name, measured now unless it is there."""
        if key not in self.parts:
            self.parts[key] = plain(work())
            write({"inputs": self.inputs, "parts": self.parts}, self.path)
            print(f"  {key}", flush=True)
        found: Document = self.parts[key]
        return found

    def end(self) -> None:
        """The result is written: the parts are not needed any more."""
        self.path.unlink(missing_ok=True)


PARTS_NAME = ("samples", "recipes", "qat_steps", "tails", "parts")
"""Options that the names of an experiment's parts tell: with others, parts that are there still hold."""


def write(document: Document, path: Path) -> None:
    """One key a line at the top, whole or not at all."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
    store.write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_json(path: Path, hint: str = "delete it to measure again") -> Document:
    """A file that `write` wrote. Raises InputError, with a hint."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read ({error}); {hint}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: is not a JSON object; {hint}")
    return found


def plain(value: Document) -> Document:
    """A document as it comes back from a file."""
    found: Document = json.loads(json.dumps(value))
    return found


def up_to_date(path: Path, inputs: Document) -> bool:
    """Whether a file holds the result of these inputs."""
    return path.exists() and read_json(path).get("inputs") == plain(inputs)


def earlier(path: Path, inputs: Document) -> Document:
    """The results in a file if they are of the same checkpoint and data, else nothing."""
    found = read_json(path) if path.exists() else {}
    same = all(found.get("inputs", {}).get(key) == inputs[key] for key in ("format", "checkpoint_sha256", "data"))
    results: Document = found["results"] if same else {}
    return results
