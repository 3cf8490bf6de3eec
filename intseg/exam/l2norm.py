"""l2norm (SPEC 4.12)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from intseg import arith
from intseg.ops import NARROW, Call, Value

from ._draw import SCALES, Draw, Drawn, between, call, edge_rows, narrowed, scale, size
from ._exam import Exam, row_extremes
from ._real import Float, dyadic, unit_rows


def _inputs(numbers: Draw) -> Iterator[Call]:
    squares = np.array([[3, 4, 0, 0], [1, -1, 1, 0], [2, 2, -2, 2], [-4, 2, 2, 0], [-1, 0, 0, 0]], np.int16)
    ties = np.array([[30893, 30893, 248, 2], [30893, 30893, 248, -2]], np.int16)  # f = 3 2^14, z = 3 2^14
    yield call("l2norm", ties, mult=1, shift=15)
    for out in NARROW:
        yield call("l2norm", ties, mult=1, shift=15, out=out)
        for mult, shift in ((127, 30), (arith.limits(out)[1], 30), (arith.limits(out)[1] + 1, 30), (3, 30)):
            yield call("l2norm", np.concatenate([edge_rows("int16", 4), squares]), mult=mult, shift=shift, out=out)
    for mult, shift in (*SCALES, (127, 30), (128, 30), (255, 31), (2**31 - 1, 55), (1, 23), (1, 24), (1, 27)):
        for x in (edge_rows("int16", 6), squares, numbers.array("int16", 2, 2, 16)):
            yield call("l2norm", x, mult=mult, shift=shift)
    for row in ([-1, 0, 0], [3, -4, 7], [1000, -30000, 32767]):  # the last bits of z
        x = np.array([row], np.int64)
        reciprocal = (2**31 - 1) // int(arith.isqrt((x * x).sum()))
        for value in filter(None, row):
            z = value * reciprocal >> 1
            for below in (max(z - 1, -(2**30)), z):
                yield call("l2norm", x.astype(np.int16), **between(below))


def _draw(d: Draw, x: Value | None = None) -> Drawn:
    x = x or Value("int16", (size(d), size(d)))
    mult, shift = scale(d, 2**30 // (math.isqrt(x.shape[-1]) + 1), 40)
    return Drawn((x,), {}, {"mult": mult, "shift": shift, **narrowed(d)})


def _real(x: Float, *, mult: int, shift: int, out: str = "int8") -> Float:
    return unit_rows(x) * dyadic(mult, shift - 30, x)


EXAMS = (
    Exam(
        "l2norm",
        digest="e22c12d1b2a1cb292a8bc927fa09fc8c47f097e7ec14e033dd079a0c756c9f39",
        kind="L2 norm",
        approximates="integer for exact L2 norm",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        worst=row_extremes,
    ),
)
