"""linear (SPEC 4.3)."""

from __future__ import annotations

import numpy as np

from ._exam import Branch, Exam, Extremes, Operands

_BRANCHES = (
    Branch("bias-only", "the products sum to 0", lambda f: f["dot"] == 0),
    Branch("acc-wide", "an accumulator beyond 24 bits", lambda f: np.abs(f["acc"].astype(np.int64)) >= 2**24),
)


def _worst(at: Extremes) -> list[Operands]:
    """For the worst channels, every input at the end of its interval that the sign of its weight asks for."""
    (x,) = at.inputs
    channels = sorted(set.union(*(at.channels[name] for name in ("dot", "acc", "product", "rounded"))))
    params = {role: tensor[channels] for role, tensor in at.params.items()}
    up = np.where(params["weight"] > 0, x.high, x.low)
    down = np.where(params["weight"] > 0, x.low, x.high)
    return [([np.concatenate([up, down]).astype(np.int8)], params)]


EXAMS = (Exam("linear", "4.3", branches=_BRANCHES, worst=_worst),)
