"""matmul (SPEC 4.6)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from intseg.arith import limits
from intseg.arith.variant import Variant
from intseg.ops import NARROW, Array, Call, Value

from ._draw import SCALES, Draw, Drawn, call, columns, edge_rows, out_of, scales, size, typical
from ._exam import Branch, Exam, Extremes, Operands, choices, dtypes
from ._real import Float, dyadic

_BRANCHES = (
    *choices("transpose_b", 0, 1, label="transpose"),
    *dtypes("int8", "int16"),
    Branch("scale-per-batch", "one scale for all columns", lambda f: f["mult"].shape[-1] < f["result"].shape[-1]),
    Branch("scale-per-column", "a scale per column", lambda f: f["mult"].shape[-1] == f["result"].shape[-1] > 1),
    Branch("batch", "more than one batch entry", lambda f: np.prod(f["in0"].shape[:-2]) > 1),
    Branch("acc-wide", "an accumulator beyond 24 bits", lambda f: np.abs(f["acc"].astype(np.int64)) >= 2**24),
)


def _transposed(call: Call) -> Iterator[tuple[str, Variant]]:
    if call.inputs[1].shape[-1] == call.inputs[1].shape[-2]:
        yield "second factor transposed", Variant(attrs=(("transpose_b", 1 - int(call.attrs["transpose_b"])),))


def _worst(at: Extremes) -> list[Operands]:
    """Constant rows times constant columns; rows of probabilities come from the softmax."""
    a, b = at.inputs
    depth = a.shape[-1]
    rows = at.rows[0]
    if rows is None:
        dtype = np.int16 if a.high > 127 or a.low < -128 else np.int8
        rows = np.array([[a.low] * depth, [a.high] * depth], dtype)
    columns = np.array([[b.low] * depth, [b.high] * depth], np.int8)
    right = columns if at.attrs["transpose_b"] else columns.T
    indices = sorted(at.channels["product"] | at.channels["rounded"])
    flat = {role: tensor.reshape(-1) for role, tensor in at.params.items()}
    return [([rows, right], {role: x[i : i + 1] for role, x in flat.items()}) for i in indices]


def _inputs(numbers: Draw) -> Iterator[Call]:
    every, width = np.arange(-128, 128, dtype=np.int8)[:, None], len(SCALES)
    for out in ("int8", "int16", *NARROW):
        b = numbers.array("int8", 12, width)
        b[:, -1] = -128
        yield call("matmul", edge_rows("int16", 12), b, **columns(*SCALES), transpose_b=0, out=out)
        ones = np.ones((width, 1), np.int8)
        yield call("matmul", every, ones, **columns(*SCALES), transpose_b=1, out=out)
        ends = np.array([limits(out)], np.int16).T
        yield call("matmul", ends, np.ones((1, 2), np.int8), **columns((2**30, 30)), transpose_b=0, out=out)
        batched = {
            "mult": numbers.array("int32", 2, 1, low=2**20, high=2**21),
            "shift": np.full((2, 1), 28, np.int8),
        }
        a, b = numbers.array("int8", 2, 3, 64), numbers.array("int8", 2, 64, 5)
        yield call("matmul", a, b, **batched, transpose_b=0, out=out)
        yield call("matmul", a, b.swapaxes(1, 2).copy(), **batched, transpose_b=1, out=out)


def _draw(
    d: Draw,
    a: Value | None = None,
    b: Value | None = None,
    *,
    transpose_b: int = -1,
    out: str = "",
    target: int = 0,
    columns: int = -1,
) -> Drawn:
    """Results of about `target`, from operands of about 40 (INT8), 4000 (INT16), or probabilities.

    columns  whether every column has a scale of its own
    """
    transpose_b, out = d.pick(0, 1) if transpose_b < 0 else transpose_b, out_of(d, out)
    if a is None or b is None:
        batch, rows, depth, width = (2, 3)[: d.within(0, 2)], size(d), size(d), size(d)
        a = Value(d.pick("int8", "int16"), (*batch, rows, depth))
        b = Value("int8", (*batch, *((width, depth) if transpose_b else (depth, width))))
    width, depth = b.shape[-2 if transpose_b else -1], a.shape[-1]
    source = a.row_sum or (40 if a.dtype == "int8" else 4000) * (math.isqrt(depth) + 1)
    channels = width if (d.pick(0, 1) if columns < 0 else columns) else 1
    params = scales(d, (*a.shape[:-2], channels), 40 * source, target or typical(out, 4000))
    return Drawn((a, b), params, {"transpose_b": transpose_b, "out": out})


def _real(a: Float, b: Float, *, mult: Array, shift: Array, transpose_b: int, out: str) -> Float:
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    return (a @ b) * dyadic(mult, shift, a)[..., None, :]


EXAMS = (
    Exam(
        "matmul",
        digest="0bc129c5c5abc9cc5b5a732208c1f2bd7a111c896e12260bea990936276d0a90",
        kind="attention product",
        inputs=_inputs,
        draw=_draw,
        real=_real,
        branches=_BRANCHES,
        own=_transposed,
        worst=_worst,
    ),
)
