"""shiftmax (SPEC 4.7)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intseg.ops import Call, Value

from ._draw import Draw, Drawn, call, size, softmax_inputs
from ._exam import Exam, dtypes, row_extremes, softmax_rows
from ._real import Float, softmax


def _inputs(numbers: Draw) -> Iterator[Call]:
    for out in ("int8", "int16"):
        for kind in ("paper", "normalized"):
            for i0, k_inter in ((1, 15), (16, 11), (23, 10), (16, 2), (1, 0), (2**15, 0)):
                for dtype in ("int8", "int16"):
                    for x in softmax_inputs(numbers, dtype):
                        yield call("shiftmax", x, i0=i0, k_inter=k_inter, int_div_kind=kind, out=out)
    # Exponentials 2^15, 2^14, 2^13, ..., 1 that sum to 2^16: 1 of it is a tie, but for the reciprocal 2^16 - 1.
    x = np.repeat(-np.arange(12), (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 1, 2)).astype(np.int8)[None]
    yield call("shiftmax", x, i0=1, k_inter=15, int_div_kind="normalized", out="int16")


def _draw(d: Draw, x: Value | None = None, *, out: str = "") -> Drawn:
    x = x or Value(d.pick("int8", "int16"), (size(d), size(d)))
    k_inter = d.within(0, 15)
    i0 = d.pick(1, 2 ** (15 - k_inter), d.within(1, 2 ** (15 - k_inter)))
    kind, out = d.pick("paper", "normalized"), out or d.pick("int8", "int16")
    return Drawn((x,), {}, {"i0": i0, "k_inter": k_inter, "int_div_kind": kind, "out": out})


def _real(x: Float, *, i0: int, k_inter: int, int_div_kind: str, out: str) -> Float:
    return softmax(x / i0) * (2**7 if out == "int8" else 2**15)


EXAMS = (
    Exam(
        "shiftmax",
        digest="97bbfd76a5e2db64603729465c296adea3f50dc4a9a7d1bda229b99fed96d4f4",
        kind="softmax",
        approximates="Shiftmax for softmax",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        branches=(*softmax_rows(), *dtypes("int8", "int16")),
        worst=row_extremes,
    ),
)
