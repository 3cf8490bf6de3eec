"""matmul (SPEC 4.6)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intseg.arith.variant import Variant
from intseg.ops import Call

from ._exam import Branch, Exam, Extremes, Operands, choices, dtypes

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


EXAMS = (Exam("matmul", "4.6", branches=_BRANCHES, own=_transposed, worst=_worst),)
