"""How far long work is, on standard error: a bar on a terminal, elsewhere a line now and then; with the time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import ClassVar, TypeVar

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""

_quiet = False


@contextlib.contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """With True, no progress is shown inside."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether nothing but errors is to be said."""
    return _quiet


T = TypeVar("T")
_now = time.monotonic


class Progress:
    """A stage of work. Use as a context manager; `update` after every step.

    Stages that follow one another are one work: lines are as far apart as in one of them.

    stage  what is done, in a word
    total  steps in all, None where that is not known
    unit   what a step is, in the singular
    done   steps that were done before
    quiet  say nothing; nothing is said inside of `quietly` either
    leave  keep the bar at the end
    """

    _said: ClassVar = -EVERY
    _seen: ClassVar = -EVERY

    def __init__(
        self, stage: str, total: int | None, unit: str, done: int = 0, quiet: bool = False, leave: bool = False
    ) -> None:
        from tqdm import tqdm

        self.stage, self.total, self.unit, self.count, self.before = stage, total, unit, done, done
        on_terminal = sys.stderr.isatty()
        self._silent = quiet or _quiet
        hidden = self._silent or not on_terminal
        self._bar = tqdm(total=total, initial=done, desc=stage, unit=unit, leave=leave, disable=hidden)
        self._lines = not self._silent and not on_terminal
        self._begun = _now()
        if not 0 <= self._begun - Progress._seen < EVERY:
            Progress._said = self._begun

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, steps: int = 1) -> None:
        """So many more steps are done."""
        self.count += steps
        self._bar.update(steps)
        Progress._seen = _now()
        if self._lines and Progress._seen - Progress._said >= EVERY:
            Progress._said = Progress._seen
            sys.stderr.write(f"intseg: {self.line()}\n")
            sys.stderr.flush()

    def say(self, line: str) -> None:
        """A line on standard error, above the bar."""
        if not self._silent:
            self._bar.write(line, file=sys.stderr)

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
