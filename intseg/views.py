"""Test-time views: an image at several sizes and mirrored, the scores of all of them averaged exactly (SPEC 7.3).

The definition, in NumPy. What rstrudel/segmenter's evaluation averages are probabilities; here it is the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from intseg.errors import InputError
from intseg.graph import MAX_WORKING, ModelInfo
from intseg.ops import RUN, Array
from intseg.windows import (
    Pixels,
    counts,
    cut_windows,
    image_scores,
    merge_scores,
    step,
    tile,
    weight_sum,
    working_size,
)

_ROWS_PER_CHUNK = 16


@dataclass(frozen=True)
class View:
    """One look at an image: the information with its working size, and whether the image is mirrored."""

    info: ModelInfo
    mirrored: bool


def views(info: ModelInfo, height: int, width: int, percents: Sequence[int]) -> list[View]:
    """The views of an image of height x width pixels: at every percentage of its size, as it is and mirrored."""
    short, long = info.working_size or (min(height, width), max(height, width))
    found = []
    for percent in percents:
        least, most = ((2 * side * percent + 100) // 200 for side in (short, long))
        least = min(max(least, *info.window), MAX_WORKING)
        at = replace(info, working_size=(least, min(max(least, most), MAX_WORKING)))
        found += [View(at, mirrored) for mirrored in (False, True)]
    return found


def labels(rgb: Pixels, info: ModelInfo, percents: Sequence[int], forward: Callable[[Pixels], Array]) -> Array:
    """Labels uint8 or uint16 [H, W] of an image uint8 [H, W, 3].

    forward  from a window uint8 [window height, window width, 3] to its scores
    Raises InputError for an image whose summed scores might not fit INT64.
    """
    height, width, _ = rgb.shape
    seen = views(info, height, width, percents)
    factors = shares(seen, height, width)
    scores = []
    for view in seen:
        image = rgb[:, ::-1] if view.mirrored else rgb
        windows = [forward(window) for _, window in cut_windows(np.ascontiguousarray(image), view.info)]
        scores.append(merge_scores(windows, tile(view.info, height, width), view.info))
    return average_labels(scores, seen, factors, height, width)


def average_labels(
    scores: Sequence[Array], seen: Sequence[View], factors: Sequence[int], height: int, width: int
) -> Array:
    """Labels from the merged scores of every view and what `shares` gives."""
    found = []
    for start in range(0, height, _ROWS_PER_CHUNK):
        total: Array = np.zeros((), np.int64)
        for view, merged, factor in zip(seen, scores, factors, strict=True):
            rows = image_scores(merged, view.info, height, width, start, min(start + _ROWS_PER_CHUNK, height))
            total = total + (rows[:, ::-1] if view.mirrored else rows) * factor
        found.append(RUN["argmax"](total))
    return np.concatenate(found)


def shares(seen: Sequence[View], height: int, width: int) -> list[int]:
    """M / m of every view: the scores of its pixels are m times their mean, M is the least common multiple of all m.

    Raises InputError where the sum might reach 2^62.
    """
    multiples = [multiple(view.info, height, width) for view in seen]
    common = math.lcm(*multiples)
    if len(seen) * common * 2**15 >= 2**62:
        raise InputError(
            f"image is {width} x {height} pixels, too many for the exact mean of {len(seen)} views; "
            "use a smaller image or fewer views"
        )
    return [common // each for each in multiples]


def multiple(info: ModelInfo, height: int, width: int) -> int:
    """How many times their mean over the windows `image_scores` of an image of height x width pixels are."""
    tiling, cell, result = tile(info, height, width), step(info), weight_sum(info) ** 2
    for axis, (origins, size) in enumerate(((tiling.tops, tiling.height), (tiling.lefts, tiling.width))):
        result *= math.lcm(*set(counts(origins, info.window[axis] // cell, size // cell, cell).tolist()))
    working = working_size(info, height, width)
    if working != (height, width):
        result *= math.prod(2 * old // math.gcd(old, new) for old, new in zip((height, width), working, strict=True))
    return result
