"""Steps of a plan, the segments they join, and a workspace in which buffers that never live together share memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from intseg.ops import Array

Rows = Callable[[int, int, Array], None]
"""Work on rows start to stop - 1, with scratch that no other thread uses."""

Arrays = Mapping[str, Array]

_ALIGN = 64


@dataclass(frozen=True)
class Buffer:
    """An array of the workspace."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size, a multiple of the alignment."""
        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        return -(-size // _ALIGN) * _ALIGN


@dataclass(frozen=True)
class Step:
    """One kernel call.

    extent   rows it can be split over, None if it cannot be split
    local    inputs of which it reads only the rows it works on
    whole    inputs it reads all of
    outputs  buffers it writes, row by row
    scratch  bytes of scratch for one thread
    bind     arrays by name -> the call
    op, macs what it is and how many multiply-accumulates it does, for benchmarks
    """

    extent: int | None
    local: tuple[str, ...]
    whole: tuple[str, ...]
    outputs: tuple[Buffer, ...]
    bind: Callable[[Arrays], Rows]
    scratch: int = 0
    op: str = ""
    macs: int = 0


@dataclass(frozen=True)
class Segment:
    """Steps without a wait in between."""

    extent: int | None
    steps: tuple[Step, ...]


def aligned(size: int) -> Array:
    raw = np.zeros(size + _ALIGN, np.int8)
    return raw[-raw.ctypes.data % _ALIGN :][:size]


Root = Callable[[str], str]
"""The buffer (or constant) that a name's memory belongs to: its own, or that of what it is a view of."""


def join(steps: Sequence[Step], root: Root) -> list[Segment]:
    """Join steps on the same rows as long as none needs rows of another thread."""
    segments: list[Segment] = []
    written: set[str] = set()
    for step in steps:
        joins = bool(segments) and step.extent is not None and step.extent == segments[-1].extent
        if joins and not written.intersection(map(root, step.whole)):
            segments[-1] = Segment(step.extent, (*segments[-1].steps, step))
        else:
            segments.append(Segment(step.extent, (step,)))
            written = set()
        written.update(root(buffer.name) for buffer in step.outputs)
    return segments


def place(segments: Sequence[Segment], root: Root, output: str) -> tuple[list[tuple[Buffer, int]], int]:
    """An offset for every buffer such that buffers alive in one segment do not overlap; the total size.

    Lifetimes count in segments: inside of one, threads are at different steps. Largest first, lowest gap that fits.
    """
    buffers: dict[str, Buffer] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {root(output): len(segments)}
    for i, segment in enumerate(segments):
        for step in segment.steps:
            for buffer in step.outputs:
                if root(buffer.name) == buffer.name:
                    buffers[buffer.name] = buffer
                    first.setdefault(buffer.name, i)
            for name in map(root, (*step.local, *step.whole, *(buffer.name for buffer in step.outputs))):
                last[name] = max(last.get(name, 0), i)
    placed: list[tuple[Buffer, int]] = []
    for name, buffer in sorted(buffers.items(), key=lambda item: -item[1].nbytes):
        offset = 0
        for other, at in sorted(placed, key=lambda item: item[1]):
            alive = first[other.name] <= last[name] and first[name] <= last[other.name]
            if alive and at < offset + buffer.nbytes and offset < at + other.nbytes:
                offset = at + other.nbytes
        placed.append((buffer, offset))
    return placed, max(offset + buffer.nbytes for buffer, offset in placed)
