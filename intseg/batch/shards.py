"""Parts of a batch for machines that know nothing of each other."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from intseg.errors import UsageError

MAX_SHARDS = 65536


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1: which names it has depends on the names alone."""

    number: int
    count: int

    def has(self, name: str) -> bool:
        """Whether a name, relative to its folder, is of this part."""
        digest = hashlib.sha256(os.fsencode(name)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def named(self, file: str) -> str:
        """The name of this part's own file: "errors.jsonl" becomes "errors.2-of-8.jsonl"."""
        stem, dot, ending = file.rpartition(".")
        return f"{stem}.{self.number}-of-{self.count}{dot}{ending}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse(text: str) -> Shard:
    """ "2/8". Raises UsageError."""
    found = re.fullmatch("([0-9]{1,5})/([0-9]{1,5})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MAX_SHARDS:
        raise UsageError(f"shard {text!r:.40}, expected K/N such as 2/8, with K from 1 to N")
    return Shard(int(found[1]), int(found[2]))
