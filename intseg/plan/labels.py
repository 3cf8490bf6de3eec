"""Labels of an image from the scores of its windows, over threads (SPEC.md, section 7)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from intseg import windows
from intseg.arith import interpolation
from intseg.graph import ModelInfo
from intseg.kernels import class_map, pixel_map
from intseg.kernels import resize as kernels
from intseg.ops import Array
from intseg.resize import weights_of

from .threads import ranges, run_parallel, thread_count

Rows = Callable[[int, int], None]
"""Work on pixel rows start to stop - 1."""


def bilinear_labels(scores: Array, patch: int, height: int, width: int, threads: int | None) -> Array:
    """Classes of pixels from scores [h, w, C], as `backends.class_map` defines them for "bilinear"."""
    scores = np.ascontiguousarray(scores, np.int32)
    classes = scores.shape[2]
    if max(int(scores.max()), -int(scores.min())) * patch**2 >= class_map.WIDEST:
        return windows.class_map(scores, "bilinear", patch, height, width)
    labels = np.empty((height, width), np.uint16)
    bands, count = scores.shape[0] + 1, thread_count(threads)

    block = patch * (patch + 16)

    def work(start: int, stop: int) -> None:
        scratch = (np.empty(n, np.int32) for n in (classes + 1, classes + 1, block, block))
        class_map.bilinear_argmax(scores, patch, labels, *scratch, start, stop)

    run_parallel([functools.partial(work, *r) for r in ranges(bands, count, 1)], count)
    return labels.astype(np.uint8) if classes <= 256 else labels


def resized(rgb: Array, height: int, width: int, threads: int | None) -> Array:
    """`intseg.resize.resize`, with the same bits."""
    rgb, count = np.require(rgb, requirements=["C", "W"]), thread_count(threads)  # kernels refuse what is read-only
    if width != rgb.shape[1]:
        narrow = np.empty((len(rgb), width, 3), np.uint8)
        across = functools.partial(kernels.resize_columns, rgb, *weights_of(rgb.shape[1], width), narrow)
        run_parallel([functools.partial(across, *r) for r in ranges(len(rgb), count, 1)], count)
        rgb = narrow
    if height == len(rgb):
        return rgb
    result = np.empty((height, width, 3), np.uint8)
    flat = [x.reshape(len(x), 3 * width) for x in (rgb, result)]
    weights = weights_of(len(rgb), height)

    def down(start: int, stop: int) -> None:
        kernels.resize_rows(flat[0], *weights, flat[1], np.empty(3 * width, np.int32), start, stop)

    run_parallel([functools.partial(down, *r) for r in ranges(height, count, 1)], count)
    return result


def pixel_labels(scores: Array, info: ModelInfo, height: int, width: int, threads: int | None) -> Array:
    """`windows.labels` for `merge` "pixel", and for images that are not segmented at their own size; the same bits."""
    windows.require_narrow(info, height, width)
    scores = np.require(scores, np.int32, ["C", "W"])
    labels = np.empty((height, width), np.uint16)
    if windows.working_size(info, height, width) == (height, width):
        work = _direct(scores, info, labels)
    else:
        work = _resized(scores if info.merge == "pixel" else scores[None], info, labels)
    count = thread_count(threads)
    run_parallel([functools.partial(work, *r) for r in ranges(height, count, 1)], count)
    return labels.astype(np.uint8) if scores.shape[-1] <= 256 else labels


def _direct(scores: Array, info: ModelInfo, labels: Array) -> Rows:
    """Work on rows of an image that is segmented at its own size."""
    _, _, cells, classes = scores.shape
    tiling = windows.tile(info, *labels.shape)
    tops, taps = np.array(tiling.tops), _table(_taps(info, 0), windows.weight_sum(info))
    every = _lines(tiling.lefts, _taps(info, 1), labels.shape[1])
    # A run of columns ends where a window begins or ends, its cell changes, or it leaves its first centre.
    kinds = every[:, :, (0, 1, 2, 4)]
    edges = np.concatenate([[0], np.flatnonzero((kinds[1:] != kinds[:-1]).any(axis=(1, 2))) + 1, labels.shape[1:]])
    lines = every[edges[:-1]]
    longest = max(classes, int(np.diff(edges).max()))

    def work(start: int, stop: int) -> None:
        row, scratch = np.empty((len(tiling.lefts), cells, classes), np.int64), np.empty((3, longest), np.int64)
        pixel_map.pixel_argmax(scores, tops, taps, edges, lines, labels, row, scratch, start, stop)

    return work


def _resized(scores: Array, info: ModelInfo, labels: Array) -> Rows:
    """Work on rows of an image that was segmented at another size."""
    _, _, cells, classes = scores.shape
    size = windows.working_size(info, *labels.shape)
    tiling = windows.tile(info, *labels.shape)
    if info.merge == "grid":  # they are merged: one window over all cells
        tiling = windows.Tiling(tiling.height, tiling.width, (0,), (0,))
        info = replace(info, window=(tiling.height, tiling.width))
    tops, taps = np.array(tiling.tops), _table(_taps(info, 0), windows.weight_sum(info))
    heights, common = (
        windows.weights(*of_axis, 1).astype(np.int64)
        for of_axis in ((tiling.tops, info.window[0], tiling.height), (tiling.lefts, info.window[1], tiling.width))
    )
    every = _lines(tiling.lefts, _taps(info, 1), size[1])
    lines = np.ascontiguousarray(every[:, :, :3])
    widths = np.concatenate([every[:, :, 3], common[: size[1], None]], axis=1)
    resized = (windows.resize_taps(*of_axis) for of_axis in zip(labels.shape, size, strict=True))
    down, across = (_table(np.stack(taps, axis=-1), total) for *taps, total in resized)

    def work(start: int, stop: int) -> None:
        row, pixels = np.empty((len(tiling.lefts), cells, classes), np.int64), np.empty((size[1], classes), np.int64)
        winners = np.empty(size[1], np.int64)
        pixel_map.resized_argmax(
            *(scores, tops, taps, heights, down, lines, widths, across, labels, row, pixels, winners, start, stop)
        )

    return work


def _taps(info: ModelInfo, axis: int) -> NDArray[np.int64]:
    """Along an axis of a window: lower and upper cell, weight of the upper, its gain a pixel; int64 [pixels, 4]."""
    patch, size = info.patch, info.window[axis]
    pixel = np.arange(size)
    if info.upsample == "nearest":
        return np.stack([pixel // patch, pixel // patch, 0 * pixel, 0 * pixel], axis=-1)
    free = 2 * pixel + 1 - patch
    gain = np.where((free >= 0) & (free < 2 * patch * (size // patch - 1)), 2, 0)
    return np.stack([*interpolation.taps(0, size, size // patch, patch), gain], axis=-1)


def _table(taps: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """int64 [pixels + 1, 3]: taps, and what the weights of a pixel sum to as the last element."""
    return np.ascontiguousarray(np.concatenate([taps[:, :3], [(0, 0, total)]]))


def _lines(lefts: tuple[int, ...], taps: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """What `pixel_argmax` calls lines, for every column; int64 [width, 3, 5]."""
    lines = np.full((width, 3, 5), -1, np.int64)
    held = np.zeros(width, np.int64)
    for n, left in enumerate(lefts):
        x = np.arange(left, min(left + len(taps), width))
        lines[x, held[x], 0] = n
        lines[x, held[x], 1:] = taps[x - left]
        held[x] += 1
    return lines
