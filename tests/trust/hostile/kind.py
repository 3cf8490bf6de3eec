"""What a kind of file is: how its cases are built, and everything that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Files = dict[str, bytes]
"""Content by path inside a folder, with "/"."""


class Disagreement(Exception):
    """Two backends give different bits."""


class Kind:
    """One kind of file. `read` returns how far an accepted file came; everything else it does is to raise."""

    name: str
    weight: int
    """How often it comes up."""

    stages: tuple[tuple[str, str], ...] = ()
    """(function, stage): the stage that refused, by the first of these that is on the stack."""

    bases: int

    held = False
    """Whether the reader takes bytes: nothing is put into a folder."""

    def build(self, base: int, steps: Sequence[int]) -> Files:
        """The files of a case: base number `base` with one mutation for every seed in `steps`."""
        raise NotImplementedError

    def read(self, folder: Path, files: Files) -> str:
        """Read the files, which lie in `folder`, with everything that reads this kind."""
        raise NotImplementedError

    def patience(self, files: Files) -> float:
        """How many times the time limit these files may take."""
        return 1.0
