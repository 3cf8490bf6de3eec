"""What a seed stands for: a kind, a base, mutations."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hostile.held import Arrays, Headers, Names, Numbers, Pictures, Records, Words
from hostile.images import Images, Labels
from hostile.journals import Evaluations, Journals
from hostile.kind import Files, Kind
from hostile.packs import Packs
from hostile.texts import CacheEntries, Folders, Texts
from hostile.traces import Dumps, Tables, Traces
from hostile.weights import Weights
from intseg.kernels import _jit

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Weights(),
        Images(),
        Labels(),
        Traces(),
        Dumps(),
        Tables(),
        Packs(),
        Journals(),
        Evaluations(),
        Texts(),
        Folders(),
        CacheEntries(),
        Words(),
        Arrays(),
        Headers(),
        Records(),
        Names(),
        Numbers(),
        Pictures(),
    )
}


@dataclass(frozen=True)
class Case:
    """What decides the bytes: a kind, the number of a base, a seed for every mutation."""

    kind: str
    base: int
    steps: tuple[int, ...]

    def files(self) -> Files:
        """The files of the case."""
        return KINDS[self.kind].build(self.base, self.steps)


@functools.cache
def _population(kinds: tuple[str, ...], held: int) -> tuple[list[str], list[int]]:
    weights = (KINDS[name].weight * (held if KINDS[name].held else 1) for name in kinds)
    return list(kinds), list(itertools.accumulate(weights))


def drawn(seed: int, index: int, kinds: tuple[str, ...], held: int = 1) -> Case:
    """Case number `index` of a seed among some kinds; what is read from memory comes `held` times as often."""
    r = Random((seed << 40) + index)
    names, until = _population(kinds, held)
    (kind,) = r.choices(names, cum_weights=until)
    count = r.choice((1, 1, 1, 2, 2, 3, 6))
    return Case(kind, r.randrange(KINDS[kind].bases), tuple(r.getrandbits(32) for _ in range(count)))


def cache_folder() -> Path | None:
    """Where compiled kernels are kept."""
    return _jit.cache_folder()
