"""An exact confusion matrix, and mIoU, mAcc and aAcc from it.

Floating point appears only in the last step, from counts to percentages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.errors import InputError

Array = NDArray[Any]
Counts = NDArray[np.int64]


MAX_COUNT = 2**62
"""Pixels of all images together at most: sums of counts stay in INT64."""


@dataclass(frozen=True)
class Metrics:
    """Percentages from a confusion matrix.

    miou   mean of `iou` over the classes that occur in labels or predictions
    macc   mean of `acc` over the classes that occur in labels
    aacc   pixels with the right class; NaN, as the others, where nothing was counted
    iou    intersection over union per class; None for a class in neither labels nor predictions
    acc    recall per class; None for a class not in the labels
    """

    miou: float
    macc: float
    aacc: float
    iou: tuple[float | None, ...]
    acc: tuple[float | None, ...]


_CHUNK = 2**22
"""Pixels counted at a time: the int64 copies of a large label image need not fit into memory."""


def confusion(labels: Array, prediction: Array, n_cls: int, ignore: int | None = None) -> Counts:
    """Pixels by true class (rows) and predicted class (columns).

    labels      any integer dtype [...]    in [0, n_cls), or equal to `ignore`
    prediction  any integer dtype, shape of labels; in [0, n_cls)
    ignore      the label that is not counted, whatever was predicted there
    return      int64 [n_cls, n_cls]
    Raises InputError for other shapes or values.
    """
    if labels.shape != prediction.shape:
        raise InputError(f"labels are {size_of(labels)}, predictions {size_of(prediction)}, expected equal sizes")
    flat = labels.ravel(), prediction.ravel()
    counts: Counts = np.zeros(n_cls * n_cls, np.int64)
    wrong: dict[str, tuple[int, int]] = {}  # the first value out of range, and how many there are
    for start in range(0, labels.size, _CHUNK):
        truth, guess = (array[start : start + _CHUNK].astype(np.int64) for array in flat)
        if ignore is not None:
            counted = truth != ignore
            truth, guess = truth[counted], guess[counted]
        for name, values in (("label", truth), ("predicted class", guess)):
            outside = values[(values < 0) | (values >= n_cls)]
            if outside.size:
                first, before = wrong.get(name, (int(outside[0]), 0))
                wrong[name] = first, before + outside.size
        if not wrong:
            counts += np.bincount(truth * n_cls + guess, minlength=n_cls * n_cls)
    for name in ("label", "predicted class"):
        if name in wrong:
            first, pixels = wrong[name]
            raise InputError(
                f"{name} {first} in {pixels} pixels, expected 0 to {n_cls - 1}"
                + (f" or {ignore} (ignored)" if ignore is not None else "; name a void label with --ignore")
            )
    return counts.reshape(n_cls, n_cls)


def metrics(matrix: Counts) -> Metrics:
    """mIoU, mAcc, aAcc and the values per class, in percent, of a confusion matrix int64 [C, C]."""
    right, truth, guess = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    iou = tuple(_percent(int(r), int(u)) for r, u in zip(right, truth + guess - right, strict=True))
    acc = tuple(_percent(int(r), int(t)) for r, t in zip(right, truth, strict=True))
    overall = _percent(int(right.sum()), int(matrix.sum()))
    return Metrics(_mean(iou), _mean(acc), math.nan if overall is None else overall, iou, acc)


def shifted(matrix: Counts) -> int | None:
    """By how much stored labels seem to be numbered from elsewhere: 1 or -1, where that makes twice as many right.

    matrix  int64 [C, C], rows are labels. A label that is counted from 1 is one above its class.
    """
    right = int(np.trace(matrix))
    for offset in (1, -1):
        if int(np.trace(matrix, -offset)) > max(2 * right, int(matrix.sum()) // 4):
            return offset
    return None


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else math.nan


def size_of(array: Array) -> str:
    """Width x height."""
    return " x ".join(str(n) for n in array.shape[::-1])


def number(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
