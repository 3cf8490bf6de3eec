"""layernorm (SPEC 4.5)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._exam import Branch, Exam, Facts, row_extremes


def _tie(f: Facts) -> Any:
    """Whether the mean ends in 1/2."""
    count = f["in0"].shape[-1]
    return (2 * f["row_sum"].astype(np.int64) + count) % (2 * count) == 0 if count % 2 == 0 else np.False_


_BRANCHES = (
    Branch("mean-tie", "the mean ends in 1/2: up", _tie),
    Branch("mean-tie-negative", "a negative mean ends in 1/2: up, towards zero",
           lambda f: _tie(f) & (f["row_sum"] < 0)),
    Branch("mean-negative", "a negative mean, rounded",
           lambda f: (f["row_sum"] < 0) & (f["row_sum"] % f["in0"].shape[-1] != 0)),
    Branch("gamma-zero", "mult = 0: beta alone", lambda f: f["mult"] == 0),
    Branch("gamma-negative", "mult < 0", lambda f: f["mult"] < 0),
    Branch("gamma-largest", "|mult| = 2^31 - 1", lambda f: np.abs(f["mult"].astype(np.int64)) == 2**31 - 1),
    Branch("beta-wide", "|bias| beyond 32 bits", lambda f: np.abs(f["bias"]) >= 2**31),
    Branch("beta-largest", "|bias| = 2^61 - 1", lambda f: np.abs(f["bias"]) == 2**61 - 1),
    Branch("beta-negative", "bias < 0", lambda f: f["bias"] < 0),
    Branch("row-single", "a row of one element", lambda f: f["in0"].shape[-1] == 1),
    Branch("variance-wide", "a sum of squares beyond 32 bits", lambda f: f["variance"] >= 2**32),
    Branch("shift-one", "shift = 1", lambda f: f["shift"] == 1),
    Branch("shift-62", "shift = 62", lambda f: f["shift"] == 62),
)  # fmt: skip

EXAMS = (Exam("layernorm", "4.5", branches=_BRANCHES, worst=row_extremes),)
