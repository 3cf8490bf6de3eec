"""Labels from windows that are upsampled one by one and summed in pixels, without scores at that resolution (SPEC 7).

Windows form a grid of tops and lefts, so the windows of one left are first interpolated between their rows of cells and
added, and what is left is the sum of at most three straight lines along the row of pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._jit import helper, kernel

Array = NDArray[Any]
Int = Any  # an INT64 scalar where compiled


@helper
def _add_row(scores: Array, y: int, tops: Array, taps: Array, factor: Int, row: Array) -> None:
    """row[left] += factor * (the cells of all windows of a left, interpolated at pixel row y, summed over the tops).

    scores  int32 [tops lefts, h, w, C];  taps int64 [window height, 3]: lower and upper cell, weight of the upper, of
            `total`, which is the last row's last element;  row int64 [lefts, w, C]
    """
    lefts, cells, classes = row.shape
    high, total = taps.shape[0] - 1, taps[taps.shape[0] - 1, 2]
    for k in range(tops.shape[0]):
        inside = y - tops[k]
        if inside < 0 or inside >= high:
            continue
        above, below, upper = taps[inside, 0], taps[inside, 1], taps[inside, 2] * factor
        lower = total * factor - upper
        for n in range(lefts):
            a, b, out = scores[k * lefts + n, above], scores[k * lefts + n, below], row[n]
            for j in range(cells):
                for c in range(classes):
                    out[j, c] += a[j, c] * lower + b[j, c] * upper


@kernel(
    "void(int32[:, :, :, ::1], int64[::1], int64[:, ::1], int64[::1], int64[:, :, ::1], uint16[:, ::1], "
    "int64[:, :, ::1], int64[:, ::1], int64, int64)"
)
def pixel_argmax(
    scores: Array,
    tops: Array,
    taps: Array,
    edges: Array,
    lines: Array,
    labels: Array,
    row: Array,
    scratch: Array,
    start: int,
    stop: int,
) -> None:
    """Labels of pixel rows start to stop - 1.

    edges   int64 [segments + 1]: columns at which the lines change
    lines   int64 [segments, 3, 5]: left (-1: none), lower and upper cell, weight of the upper one at the first column
            of the segment, and what it gains a column, in parts of the taps' total
    labels  uint16 [height, width];  row int64 [lefts, w, C] and scratch int64 [3, max(C, longest segment)], scratch
    """
    classes, total = row.shape[2], taps[taps.shape[0] - 1, 2]
    first, gain, found = scratch[0], scratch[1], scratch[2]
    for y in range(start, stop):
        row[:] = 0
        _add_row(scores, y, tops, taps, 1, row)
        for s in range(lines.shape[0]):
            first[:classes], gain[:classes] = 0, 0
            for n in range(3):
                left = lines[s, n, 0]
                if left < 0:
                    break
                lower, upper, at, more = lines[s, n, 1], lines[s, n, 2], lines[s, n, 3], lines[s, n, 4]
                for c in range(classes):
                    a, b = row[left, lower, c], row[left, upper, c]
                    first[c] += a * total + (b - a) * at
                    gain[c] += (b - a) * more
            _label_segment(first, gain, found, classes, labels[y], edges[s], edges[s + 1])


@helper
def _label_segment(first: Array, gain: Array, found: Array, classes: int, labels: Array, start: int, stop: int) -> None:
    """The class of the largest first + i gain for every column; a class below another's least end never wins."""
    length = stop - start - 1
    floor = min(first[0], first[0] + length * gain[0])
    for c in range(1, classes):
        floor = max(floor, min(first[c], first[c] + length * gain[c]))
    count: Int = 0
    for c in range(classes):
        found[count] = c
        count += np.int64(max(first[c], first[c] + length * gain[c]) >= floor)
    for i in range(length + 1):
        winner = found[0]
        best = first[winner] + i * gain[winner]
        for k in range(1, count):
            c = found[k]
            here = first[c] + i * gain[c]
            winner = c if here > best else winner
            best = max(here, best)
        labels[start + i] = winner


@kernel(
    "void(int32[:, :, :, ::1], int64[::1], int64[:, ::1], int64[::1], int64[:, ::1], int64[:, :, ::1], int64[:, ::1], "
    "int64[:, ::1], uint16[:, ::1], int64[:, :, ::1], int64[:, ::1], int64[::1], int64, int64)"
)
def resized_argmax(
    scores: Array,
    tops: Array,
    taps: Array,
    heights: Array,
    rows: Array,
    lines: Array,
    widths: Array,
    columns: Array,
    labels: Array,
    row: Array,
    pixels: Array,
    winners: Array,
    start: int,
    stop: int,
) -> None:
    """Labels of rows start to stop - 1 of an image that was segmented at another size.

    heights         int64 [working height]: weights L / n of the pixel rows
    rows, columns   int64 [size + 1, 3]: lower and upper pixel and weight of the upper, in parts of the last row's last
    lines           int64 [working width, 3, 3]: left (-1: none), cell and upper cell of every pixel column
    widths          int64 [working width, 4]: weights of the upper cells, and L / n, of the pixel columns
    labels          uint16 [height, width]
    row int64 [lefts, w, C], pixels int64 [working width, C], winners int64 [working width]: scratch
    """
    total = rows[rows.shape[0] - 1, 2]
    for y in range(start, stop):
        upper = rows[y, 2]
        row[:] = 0
        _add_row(scores, rows[y, 0], tops, taps, (total - upper) * heights[rows[y, 0]], row)
        if upper > 0:
            _add_row(scores, rows[y, 1], tops, taps, upper * heights[rows[y, 1]], row)
        _pixel_row(row, lines, widths, taps[taps.shape[0] - 1, 2], pixels, winners)
        _label_row(pixels, winners, columns, labels[y])


@helper
def _pixel_row(row: Array, lines: Array, widths: Array, total: Int, pixels: Array, winners: Array) -> None:
    """Scores int64 [width, C] of a row of pixels, and their first largest class."""
    width, classes = pixels.shape
    for x in range(width):
        out, common = pixels[x], widths[x, 3]
        out[:] = 0
        for n in range(3):
            left = lines[x, n, 0]
            if left < 0:
                break
            a, b = row[left, lines[x, n, 1]], row[left, lines[x, n, 2]]
            upper = widths[x, n] * common
            lower = total * common - upper
            for c in range(classes):
                out[c] += a[c] * lower + b[c] * upper
        winner: Int = 0
        for c in range(1, classes):
            winner = c if out[c] > out[winner] else winner
        winners[x] = winner


@helper
def _label_row(pixels: Array, winners: Array, columns: Array, labels: Array) -> None:
    """Between two pixels of one class there is no other; elsewhere all classes are compared."""
    classes, total = pixels.shape[1], columns[columns.shape[0] - 1, 2]
    for x in range(labels.shape[0]):
        left, right, upper = columns[x, 0], columns[x, 1], columns[x, 2]
        winner = winners[left]
        if upper > 0 and winners[right] != winner:
            winner = 0
            best = pixels[left, 0] * (total - upper) + pixels[right, 0] * upper
            for c in range(1, classes):
                here = pixels[left, c] * (total - upper) + pixels[right, c] * upper
                winner = c if here > best else winner
                best = max(here, best)
        labels[x] = winner
