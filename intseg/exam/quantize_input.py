"""quantize_input (SPEC 4.1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intseg.ops import Array, Call, Value

from ._draw import Draw, Drawn, call, size
from ._exam import Branch, Exam
from ._real import Float

_BRANCHES = (
    Branch("pixel-0", "pixel 0", lambda f: f["in0"] == 0),
    Branch("pixel-255", "pixel 255", lambda f: f["in0"] == 255),
    Branch("channels", "three different tables", lambda f: f["table"][0] != f["table"][2]),
)


def _inputs(numbers: Draw) -> Iterator[Call]:
    ramp = np.stack([np.arange(256)] * 3, axis=-1).astype(np.uint8)[None]
    yield call("quantize_input", ramp, table=numbers.array("int8", 3, 256))


def _draw(d: Draw) -> Drawn:
    return Drawn((Value("uint8", (size(d), size(d), 3)),), {"table": d.array("int8", 3, 256)})


def _real(x: Array, *, table: Array) -> Float:
    """The straight line each channel's table was rounded from; a table that is no rounded line stands for itself."""
    return np.stack([_line(table[c])[x[..., c]] for c in range(x.shape[-1])], axis=-1)


def _line(table: Array) -> Float:
    """float32 [256]: the line through both ends if it rounds to the table, else the least-squares line if it is near.

    Exporters fit the range to black and white, so that the ends are exact. Nothing else would tell: a slope just below
    one rounds in one long sawtooth, which least squares takes for an offset.
    """
    index, value = np.arange(len(table)), table.astype(np.float64)
    ends = np.linspace(value[0], value[-1], len(table))
    if np.abs(ends - value).max() <= 0.5 + 1e-9:
        return ends.astype(np.float32)
    inner = (value > -128) & (value < 127)
    if inner.sum() < 2:
        return table.astype(np.float32)
    slope, start = np.polyfit(index[inner], value[inner], 1)
    line = slope * index + start
    rounded = np.abs(np.clip(line, -128, 127) - value).max() <= 0.6
    return (line if rounded else value).astype(np.float32)


EXAMS = (
    Exam(
        "quantize_input",
        digest="b1e0ca9a22f0e0644bca6c983e82311764cc1827519dc62e6b6b41fc3765c3de",
        kind="input",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        branches=_BRANCHES,
    ),
)
