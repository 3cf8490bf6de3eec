"""upsample_bilinear and argmax in one pass, without scores at pixel resolution (SPEC 4.19, 4.20)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import helper, kernel

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled


@helper
def _candidates(a: Array, b: Array, c: Array, d: Array, found: Array) -> Int:
    """Classes that can win somewhere between four cells, ascending, to `found`; returns their number.

    A bilinear value lies between the least and the greatest of its corners. A class whose greatest corner is below
    some other's least corner never wins; equal ones stay, for ties.
    """
    classes = a.shape[0]
    floor = min(min(a[0], b[0]), min(c[0], d[0]))
    for k in range(1, classes):
        floor = max(floor, min(min(a[k], b[k]), min(c[k], d[k])))
    count: Int = 0
    for k in range(classes):
        found[count] = k
        count += np.int64(max(max(a[k], b[k]), max(c[k], d[k])) >= floor)
    return count


@helper
def _raise_to(best: Array, winner: Array, count: int, value: Int, step: Int, label: int, first: bool) -> None:
    """best = max(best, value + i step) for i < count, `winner` the label that has it; LLVM makes vectors of it."""
    if first:
        for i in range(count):
            best[i], winner[i] = value + i * step, label
        return
    for i in range(count):
        here = value + i * step
        better = here > best[i]
        best[i] = here if better else best[i]
        winner[i] = label if better else winner[i]


@kernel("void(int32[:, :, ::1], int64, uint16[:, ::1], int64[::1], int64[::1], int64[::1], int64, int64)")
def bilinear_argmax(
    scores: Array, factor: int, labels: Array, found: Array, best: Array, winner: Array, start: int, stop: int
) -> None:
    """Pixels in bands start to stop - 1; band r lies between the centres of cell rows r - 1 and r.

    scores  int32 [h, w, C];  labels uint16 [height, width], at most h * factor x w * factor
    found   int64 [C + 1], scratch;  best, winner int64 [factor], scratch
    """
    height, width = scores.shape[0], scores.shape[1]
    high, wide = labels.shape
    # Output i lies at position 2 i + 1 - factor in steps of 1 / (2 factor) cells: lower cell p // 2f, weight p % 2f.
    for r in range(start, stop):
        above, below = max(r - 1, 0), min(r, height - 1)
        y0, y1 = _span(r, height, factor, high)
        for s in range(width + 1):
            left, right = max(s - 1, 0), min(s, width - 1)
            x0, x1 = _span(s, width, factor, wide)
            if y0 >= y1 or x0 >= x1:
                continue
            corners = scores[above, left], scores[above, right], scores[below, left], scores[below, right]
            count = _candidates(corners[0], corners[1], corners[2], corners[3], found)
            if count == 1:
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        labels[y, x] = found[0]
                continue
            for y in range(y0, y1):
                v = (2 * y + 1 - factor) - 2 * factor * (r - 1) if 0 < r < height else 0
                u = (2 * x0 + 1 - factor) - 2 * factor * (s - 1) if 0 < s < width else 0
                for k in range(count):
                    n = found[k]
                    near = corners[0][n] * (2 * factor - v) + corners[2][n] * np.int64(v)
                    far = corners[1][n] * (2 * factor - v) + corners[3][n] * np.int64(v)
                    step = 2 * (far - near) if 0 < s < width else np.int64(0)
                    _raise_to(best, winner, x1 - x0, 2 * factor * near + (far - near) * u, step, n, k == 0)
                for x in range(x0, x1):
                    labels[y, x] = winner[x - x0]


@helper
def _span(cell: int, cells: int, factor: int, limit: int) -> tuple[int, int]:
    """Pixels [first, past) whose lower cell is cell - 1, those before the first and after the last centre included."""
    first = 0 if cell == 0 else (2 * factor * (cell - 1) + factor) // 2
    past = cells * factor if cell == cells else (2 * factor * cell + factor) // 2
    return first, min(past, limit)
