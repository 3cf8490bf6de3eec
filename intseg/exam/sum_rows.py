"""sum_rows (SPEC 4.23)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intseg.ops import Call, Value

from ._draw import Draw, Drawn, call, size
from ._exam import Branch, Exam, Extremes, Operands, dtypes
from ._real import Float


def _inputs(numbers: Draw) -> Iterator[Call]:
    for dtype in ("int8", "int16"):
        for heads, classes in ((1, 7), (2, 300), (5, 1), (700, 3)):
            yield call("sum_rows", numbers.array(dtype, heads, classes))
        ends = np.iinfo(dtype)
        yield call("sum_rows", np.array([[ends.min, ends.max, ends.min]] * 3, dtype))


def _draw(d: Draw, x: Value | None = None) -> Drawn:
    return Drawn((x or Value(d.pick("int8", "int16"), (size(d), size(d))),))


def _worst(at: Extremes) -> list[Operands]:
    """Heads that agree."""
    x = at.inputs[0]
    return [([np.full(x.shape, end, np.int16)], {}) for end in (x.low, x.high)]


def _real(x: Float) -> Float:
    total: Float = x.sum(axis=0)
    return total


EXAMS = (
    Exam(
        "sum_rows",
        digest="1112d589080bcceeb8b5814867275333ee20e73b1504e4bf6507f9d0751d0c4f",
        kind="sum of heads",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        branches=(
            *dtypes("int8", "int16"),
            Branch("one", "one head", lambda f: f["in0"].shape[0] == 1),
            Branch("two", "two heads", lambda f: f["in0"].shape[0] == 2),
            Branch("wide", "a sum beyond INT16", lambda f: np.abs(f["sum"]) > 2**15),
        ),
        worst=_worst,
    ),
)
