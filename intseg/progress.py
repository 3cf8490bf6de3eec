"""How far long work is, on standard error: a bar on a terminal, elsewhere a line now and then; with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""

T = TypeVar("T")
_now = time.monotonic


class Progress:
    """A stage of work. Use as a context manager; `update` after every step.

    stage  what is done, in a word
    total  steps in all, None where that is not known
    unit   what a step is, in the singular
    done   steps that were done before
    quiet  say nothing
    leave  keep the bar at the end
    """

    def __init__(
        self, stage: str, total: int | None, unit: str, done: int = 0, quiet: bool = False, leave: bool = False
    ) -> None:
        from tqdm import tqdm

        self.stage, self.total, self.unit, self.count, self.before = stage, total, unit, done, done
        on_terminal = sys.stderr.isatty()
        silent = quiet or not on_terminal
        self._bar = tqdm(total=total, initial=done, desc=stage, unit=unit, leave=leave, disable=silent)
        self._lines = not quiet and not on_terminal
        self._begun = self._said = _now()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self.count += steps
        self._bar.update(steps)
        if self._lines and _now() - self._said >= EVERY:
            self._said = _now()
            sys.stderr.write(f"intseg: {self.line()}\n")
            sys.stderr.flush()

    def expect(self, total: int) -> None:
        """So many steps are there in all, as is known now."""
        self.total = self._bar.total = total

    def line(self) -> str:
        """Stage, steps, time left."""
        if self.total is None:
            return f"{self.stage}: {self.unit} {self.count}"
        here = max(1, self.count - self.before)
        left = (_now() - self._begun) / here * (self.total - self.count)
        return f"{self.stage}: {self.unit} {self.count} of {self.total}, about {_span(left)} left"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shown(
    found: Iterable[T], stage: str, total: int, unit: str, done: int = 0, quiet: bool = False, leave: bool = False
) -> Iterator[T]:
    """What `found` gives, its progress shown."""
    with Progress(stage, total, unit, done, quiet, leave) as progress:
        for one in found:
            yield one
            progress.update()
