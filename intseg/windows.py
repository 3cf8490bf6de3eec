"""From an image to the class of every pixel, or to its own: padding, windows, their sum, labels (SPEC.md, section 7).

The definition, in NumPy. `backends.class_map` has a faster last step with the same bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.arith import interpolation
from intseg.errors import InputError, UsageError
from intseg.graph import MAX_WORKING, UPSAMPLES, ModelInfo, validate_info
from intseg.ops import MAX_DIM, RUN, Array, Attr
from intseg.resize import resize

Pixels = NDArray[np.uint8]
Resize = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]
Bound = tuple[str, int, int, str]
"""Name of a register, its lowest and highest value, its dtype."""

LONG = 4
"""Times the short side of the working size is its long one where only one number is given: upstream's `max_ratio`."""

_ROWS_PER_CHUNK = 16
"""Pixel rows of the score tensor that are interpolated at once: bounds the memory."""


@dataclass(frozen=True)
class Tiling:
    """How windows cover an image.

    height, width   of the padded image in pixels, at least the window, multiples of the patch size where scores are
                    merged on the patch grid
    above, left     padding above the image and to its left; none but for a classifier
    tops, lefts     first row and first column of the windows; every pair (top, left) is one
    """

    height: int
    width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    above: int = 0
    left: int = 0

    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of every window, row by row."""
        return list(itertools.product(self.tops, self.lefts))


def starts(size: int, window: int, stride: int) -> tuple[int, ...]:
    """0, stride, 2 stride, ... while the window ends before `size`, then one flush with the end.

    size   at least window
    """
    return (*range(0, size - window, stride), size - window)


def step(info: ModelInfo) -> int:
    """Pixels of a cell in which windows are merged: windows lie at multiples of it."""
    return info.patch if info.merge == "grid" else 1


def working_size(info: ModelInfo, height: int, width: int) -> tuple[int, int]:
    """(height, width) at which an image is run: both sides by one factor, rounded half up, down for a classifier."""
    if info.working_size is None:
        return height, width
    short, long = info.working_size
    least, most = min(height, width), max(height, width)
    new, old = (short, least) if short * most <= long * least else (long, most)
    half = 0 if info.classifies else old
    tall, wide = (max(1, (2 * size * new + half) // (2 * old)) for size in (height, width))
    return tall, wide


def at_scale(info: ModelInfo, scale: int | str | None) -> ModelInfo:
    """The information with another working size: "native" for none, a number for the short side, None for its own.

    The long side is at most four times the short one, as published; that of a classifier, of which the middle is seen,
    as long as the engine takes it. Raises UsageError.
    """
    if scale is None:
        return info
    if scale == "native":
        return replace(info, working_size=None)
    if not isinstance(scale, int) or not 1 <= scale <= MAX_WORKING // LONG:
        raise UsageError(f"scale is {scale!r}, expected native or 1 to {MAX_WORKING // LONG} pixels of the short side")
    short = max(scale, *info.window)
    return replace(info, working_size=(short, MAX_WORKING if info.classifies else LONG * short))


def size_note(info: ModelInfo, height: int, width: int) -> tuple[str, ...]:
    """What was done to the size of an image, for people; nothing where nothing was."""
    tall, wide = working_size(info, height, width)
    if info.classifies:
        rows, columns = info.window
        return (f"classified by {columns} x {rows} pixels in the middle of {wide} x {tall}",)
    if (tall, wide) == (height, width):
        return ()
    return (f"segmented at {wide} x {tall} pixels, labels brought back to {width} x {height}",)


def weight_sum(info: ModelInfo) -> int:
    """What the weights of a pixel along an axis sum to where a window is upsampled."""
    return 2 * info.patch if info.upsample == "bilinear" else 1


def tile(info: ModelInfo, height: int, width: int) -> Tiling:
    """The windows of an image of height x width pixels, both at least 1."""
    return _tile(info, *working_size(info, height, width))


def _tile(info: ModelInfo, height: int, width: int) -> Tiling:
    """The windows of an image at its working size."""
    if info.classifies:
        (height, above, top), (width, before, left) = map(_middle, (height, width), info.window)
        return Tiling(height, width, (top,), (left,), above, before)
    cell = step(info)
    padded = [max(-(-size // cell) * cell, window) for size, window in zip((height, width), info.window, strict=True)]
    tops, lefts = (starts(*sizes) for sizes in zip(padded, info.window, info.stride, strict=True))
    return Tiling(padded[0], padded[1], tops, lefts)


def _middle(size: int, window: int) -> tuple[int, int, int]:
    """Padded size of an axis, padding before the image, start of the window in its middle, rounded half to even."""
    spare = max(size - window, 0)
    return max(size, window), max(window - size, 0) // 2, spare // 2 + (spare // 2 & spare & 1)


def pad(rgb: Pixels, tiling: Tiling, colour: tuple[int, int, int]) -> Pixels:
    """The image in its place among the pixels of one colour that surround it; uint8 [height, width, 3]."""
    padded = np.empty((tiling.height, tiling.width, 3), np.uint8)
    padded[:] = np.array(colour, np.uint8)
    padded[tiling.above : tiling.above + len(rgb), tiling.left : tiling.left + rgb.shape[1]] = rgb
    return padded


def cut_windows(rgb: Pixels, info: ModelInfo, resized: Resize = resize) -> Iterator[tuple[tuple[int, int], Pixels]]:
    """(top, left) and pixels uint8 [window height, window width, 3] of every window of an image uint8 [H, W, 3].

    resized  `intseg.resize.resize`, or another with the same bits
    """
    tiling = tile(info, *rgb.shape[:2])
    rgb = resized(rgb, *working_size(info, *rgb.shape[:2]))
    padded = pad(rgb, tiling, info.pad)
    height, width = info.window
    for top, left in tiling.corners():
        yield (top, left), np.ascontiguousarray(padded[top : top + height, left : left + width])


def merge_scores(scores: Sequence[Array], tiling: Tiling, info: ModelInfo) -> Array:
    """Scores of an image from those of its windows.

    scores  int8 or int16 [window height / patch, window width / patch, C], in the order of `tiling.corners()`; int32
            [C] of a classifier, which has one window
    return  of a classifier the same as int32 [1, 1, C];
            merged on the patch grid: int32 [height / patch, width / patch, C], see `merge_on_grid`;
            merged in pixels: int16 [windows, window height / patch, window width / patch, C], as they are; `labels`
            sums them where it needs them, since the sums of all pixels would take patch^2 times the memory
    """
    if info.classifies:
        (logits,) = scores
        return logits.reshape(1, 1, -1)
    if info.merge == "grid":
        return merge_on_grid(scores, tiling, info)
    return np.stack(scores).astype(np.int16, copy=False)


def merge_on_grid(scores: Sequence[Array], tiling: Tiling, info: ModelInfo) -> NDArray[np.int32]:
    """Scores of the whole patch grid, every cell with the same weight, without division.

    return  int32 [height / patch, width / patch, C]: (sum over the windows that hold the cell) * (Ly / ny) * (Lx / nx),
            where ny and nx count the windows that hold its row and its column, Ly and Lx are the least common
            multiples of these counts. At most 3 windows hold a row (stride >= window / 2), so |S| <= 36 * 2^15 < 2^31
    """
    patch, (height, width) = info.patch, (info.window[0] // info.patch, info.window[1] // info.patch)
    total = np.zeros((tiling.height // patch, tiling.width // patch, len(info.classes)), np.int32)
    for (top, left), window in zip(tiling.corners(), scores, strict=True):
        y, x = top // patch, left // patch
        total[y : y + height, x : x + width] += window
    total *= weights(tiling.tops, height, total.shape[0], patch)[:, None, None]
    total *= weights(tiling.lefts, width, total.shape[1], patch)[None, :, None]
    return total


def counts(origins: Sequence[int], window: int, size: int, step: int) -> NDArray[np.int32]:
    """How many windows hold each cell of an axis; int32 [size].

    origins  first pixel of the windows;  window, size  in cells;  step  pixels of a cell
    """
    found = np.zeros(size, np.int32)
    for origin in origins:
        found[origin // step : origin // step + window] += 1
    return found


def weights(origins: Sequence[int], window: int, size: int, step: int) -> NDArray[np.int32]:
    """L / n for every cell of one axis; int32 [size]."""
    held = counts(origins, window, size, step)
    found: NDArray[np.int32] = np.lcm.reduce(np.unique(held)) // held
    return found


def labels(scores: Array, info: ModelInfo, height: int, width: int) -> Array:
    """Labels of the pixels of an image of height x width pixels from what `merge_scores` gives.

    return  uint8 [height, width] for C <= 256, uint16 above, of a classifier [1, 1]; ties go to the lowest class
    Raises InputError for an image that is brought back from its working size with weights of more than 62 bits.
    """
    if info.classifies:
        return RUN["argmax"](scores)
    require_narrow(info, height, width)
    if info.merge == "grid" and working_size(info, height, width) == (height, width):
        return class_map(scores, info.upsample, info.patch, height, width)
    found = []
    for start in range(0, height, _ROWS_PER_CHUNK):
        rows = image_scores(scores, info, height, width, start, min(start + _ROWS_PER_CHUNK, height))
        found.append(RUN["argmax"](rows))
    return np.concatenate(found)


def image_scores(scores: Array, info: ModelInfo, height: int, width: int, start: int, stop: int) -> NDArray[np.int64]:
    """Scores of rows start to stop - 1 of an image of height x width pixels, which was segmented at its working size.

    return  int64 [stop - start, width, C]: `pixel_scores` between pixels, times the sums of the weights
    """
    size = working_size(info, height, width)
    if size == (height, width):
        return pixel_scores(scores, info, *size, start, stop)
    (above, below, down, tall), (left, right, across, wide) = map(resize_taps, (height, width), size)
    above, below, down = (taps[start:stop] for taps in (above, below, down))
    first = int(above[0])
    rows = pixel_scores(scores, info, *size, first, int(below[-1]) + 1)
    rows = interpolation.blend(rows[above - first], rows[below - first], down[:, None, None], tall)
    between: NDArray[np.int64] = interpolation.blend(rows[:, left], rows[:, right], across[:, None], wide)
    return between


def require_narrow(info: ModelInfo, height: int, width: int) -> None:
    """Refuse an image whose interpolated scores might not fit INT64: above 2^29 pixels for patches of 16.

    Raises InputError.
    """
    if info.classifies:
        return
    size = working_size(info, height, width)
    parts = [2 * old // math.gcd(old, new) for old, new in zip((height, width), size, strict=True)]
    if size != (height, width) and 36 * 2**15 * weight_sum(info) ** 2 * math.prod(parts) >= 2**62:
        raise InputError(
            f"image is {width} x {height} pixels, too many to bring labels back to from {size[1]} x {size[0]}; "
            "use a smaller image or scale native"
        )


def resize_taps(size: int, working: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Where the pixels of an axis of `size` lie between those of an axis of `working`, centres on centres.

    return  lower and upper pixel, weight of the upper one, each int64 [size]; what the weights sum to, 2 size / gcd
    """
    common = math.gcd(size, working)
    steps, parts = working // common, size // common
    position = (2 * np.arange(size, dtype=np.int64) + 1) * steps - parts
    position = np.clip(position, 0, 2 * parts * (working - 1))
    lower = position // (2 * parts)
    return lower, np.minimum(lower + 1, working - 1), position % (2 * parts), 2 * parts


def pixel_scores(scores: Array, info: ModelInfo, height: int, width: int, start: int, stop: int) -> NDArray[np.int64]:
    """Scores of pixel rows start to stop - 1 at the working size: every window is upsampled by itself, then summed.

    scores  int8 or int16 [windows, window height / patch, window width / patch, C], in the order of the corners
    return  int64 [stop - start, width, C]: the same multiple of the mean in every pixel, Ly Lx as on the grid, times
            (2 patch)^2 for bilinear: |S| <= 36 * 2^15 * 2^14 < 2^35
    """
    if info.merge == "grid":
        rows = upsampled(scores, info.upsample, info.patch, start, stop)[:, :width].astype(np.int64)
        return rows
    tiling, (high, wide), patch = _tile(info, height, width), info.window, info.patch
    total = np.zeros((stop - start, tiling.width, scores.shape[-1]), np.int64)
    for (top, left), window in zip(tiling.corners(), scores, strict=True):
        first, last = max(start, top), min(stop, top + high)
        if first < last:
            rows = upsampled(window, info.upsample, patch, first - top, last - top)
            total[first - start : last - start, left : left + wide] += rows
    total *= weights(tiling.tops, high, tiling.height, 1)[start:stop, None, None]
    total *= weights(tiling.lefts, wide, tiling.width, 1)[None, :, None]
    return total[:, :width]


def upsampled(scores: Array, upsample: str, patch: int, start: int, stop: int) -> Array:
    """Pixel rows start to stop - 1 of scores int8, int16 or int32 [h, w, C]; int64, or their own dtype for nearest."""
    scores = scores.astype(np.int16) if scores.dtype == np.int8 else scores
    if upsample == "nearest":
        return RUN["upsample_nearest"](scores, factor=patch)[start:stop]
    return RUN["upsample_bilinear"](scores, factor=patch, row_start=start, row_stop=stop)


def class_map(scores: Array, upsample: str, patch: int, height: int, width: int) -> Array:
    """Labels of the pixels of an image from the (summed) scores of its patches.

    scores         int32 [h, w, C]
    upsample       "nearest" or "bilinear"
    patch          pixels per score in each direction
    height, width  of the image, at most h * patch and w * patch: the rest is padding and is cut off
    return         uint8 [height, width] for C <= 256, uint16 above; ties go to the lowest class
    """
    if upsample == "nearest":
        labels = RUN["upsample_nearest"](RUN["argmax"](scores), factor=patch)
        return np.ascontiguousarray(labels[:height, :width])
    scores = scores[:, : min(scores.shape[1], -(-width // patch) + 1)]
    chunks = []
    for start in range(0, height, _ROWS_PER_CHUNK):
        stop = min(start + _ROWS_PER_CHUNK, height)
        rows = RUN["upsample_bilinear"](scores, factor=patch, row_start=start, row_stop=stop)
        chunks.append(RUN["argmax"](rows[:, :width]))
    return np.concatenate(chunks)


# --------------------------------------------------------------------------------------------------------- bounds


def label_steps(info: ModelInfo) -> list[tuple[str, dict[str, Attr]]]:
    """The ops, with attributes, from the scores to the labels of an image of one window."""
    if info.upsample == "bilinear":
        return [
            ("upsample_bilinear", {"factor": info.patch, "row_start": 0, "row_stop": info.window[0]}),
            ("argmax", {}),
        ]
    return [("argmax", {}), ("upsample_nearest", {"factor": info.patch})]


def bounds(info: ModelInfo, low: int, high: int) -> list[Bound]:
    """What the sum of windows may hold for scores in [low, high] and images of any size (SPEC.md, section 10).

    The multiple L of the mean depends on the image, from 1 on: the last bound is the hull over all of them.
    """
    cell = step(info)
    most = [most_windows(w // cell, s // cell) for w, s in zip(info.window, info.stride, strict=True)]
    rows, columns = (math.lcm(*range(1, n + 1)) for n in most)
    least, largest = min(low, 0), max(high, 0)
    one = weight_sum(info) ** 2 if info.merge == "pixel" else 1
    dtype = "int32" if info.merge == "grid" else "int64"
    held, weighted = one * math.prod(most), one * most[1] * rows
    # A kernel walks along a row: first + i gain, |first| <= 3 held |score|, i |gain| <= 2 held |score| in a cell.
    reach = 5 * held * max(largest, -least)
    return [
        *([("walk", -reach, reach, dtype)] if info.merge == "pixel" else []),
        ("sum", held * least, held * largest, dtype),
        ("row_weighted", weighted * least, weighted * largest, dtype),
        ("merged", one * min(low, rows * columns * low), one * max(high, rows * columns * high), dtype),
    ]


def most_windows(window: int, stride: int) -> int:
    """Windows of this many cells that can hold one cell of an axis: window / 2 <= stride <= window.

    Those at multiples of the stride overlap in pairs. The last one, flush with the edge, begins at least a cell behind
    the one before it: it can lie over that one, and over the one before that where these share two cells or more.
    """
    return 1 + (stride < window) + (window - stride >= 2 or stride == window > 1)


def constant_merges(info: ModelInfo, value: int) -> list[Array]:
    """Merged scores of windows that all hold one value: one window, and the size with the most kinds of overlap."""

    def kinds(size: int, axis: int) -> int:
        window = info.window[axis]
        held = counts(starts(size, window, info.stride[axis]), window // cell, size // cell, cell)
        return math.lcm(*set(held.tolist()))

    cell = step(info)
    size = [
        max(range(window, 4 * window + 1, cell), key=lambda n, axis=axis: (kinds(n, axis), -n))  # type: ignore[misc]
        for axis, window in enumerate(info.window)
    ]
    grid = [window // info.patch for window in info.window]
    scores = np.full((*grid, len(info.classes)), value, np.int16)
    merges = []
    for height, width in ((info.window[0], info.window[1]), (size[0], size[1])):
        tiling = _tile(info, height, width)
        merged = merge_scores([scores] * len(tiling.corners()), tiling, info)
        merges.append(merged if info.merge == "grid" else pixel_scores(merged[..., :1], info, height, width, 0, height))
    return merges


# ----------------------------------------------------------------------------------------- the steps as calls of ops

GEOMETRY = ("window_height", "window_width", "stride_rows", "stride_columns", "patch")
"""Attributes that every step but the last has."""

STEPS: Mapping[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "resize": (("height", "width"), 3, ("uint8",)),
    "cut_windows": ((*GEOMETRY, "pad_red", "pad_green", "pad_blue"), 3, ("uint8",)),
    "merge_scores": ((*GEOMETRY, "height", "width"), 4, ("int8", "int16")),
    "class_map": (("upsample", "patch", "height", "width"), 3, ("int32",)),
    "center_crop": (("window_height", "window_width", "pad_red", "pad_green", "pad_blue"), 3, ("uint8",)),
    "pixel_map": ((*GEOMETRY, "upsample", "height", "width", "short", "long"), 4, ("int8", "int16")),
}
"""Attributes of every step, axes and dtypes of its input; windows are stacked.

`pixel_map` is `labels` of windows that are merged in pixels; short and long are 0 where images are not resized.
"""

_MAX_WINDOW = 2**24
"""Pixels of a window, or of a resized image, of a call of unknown origin."""


def run_step(step: str, x: Array, attrs: Mapping[str, Attr]) -> Array:
    """The result of a step on a stack of windows or a whole array."""
    size = {name: int(attrs[name]) for name in ("height", "width") if name in attrs}
    if step == "resize":
        return resize(x, **size)
    if step == "class_map":
        return class_map(x, str(attrs["upsample"]), int(attrs["patch"]), **size)
    info = info_of(attrs, x.shape[-1])
    if step == "pixel_map":
        return labels(merge_scores(list(x), tile(info, **size), info), info, **size)
    if step in ("cut_windows", "center_crop"):
        return np.stack([window for _, window in cut_windows(x, info)])
    return merge_scores(list(x), tile(info, **size), info)


def info_of(attrs: Mapping[str, Attr], classes: int = 1) -> ModelInfo:
    """A ModelInfo that has the windows of a call and nothing else; without a stride, that of a classifier."""
    size = {name: int(value) for name, value in attrs.items() if name != "upsample"}
    window = size["window_height"], size["window_width"]
    return ModelInfo(
        name="",
        recipe="",
        classes=tuple(map(str, range(classes))),
        palette=((0, 0, 0),) * classes,
        window=window,
        stride=(size["stride_rows"], size["stride_columns"]) if "stride_rows" in size else window,
        patch=size.get("patch", 1),
        pad=(size.get("pad_red", 0), size.get("pad_green", 0), size.get("pad_blue", 0)),
        upsample=str(attrs.get("upsample", "nearest")),
        merge="pixel" if "short" in size else "grid",
        working_size=(size["short"], size["long"]) if size.get("short") else None,
        task="segmentation" if "stride_rows" in size else "classification",
    )


def check_step(step: str, x: Array, attrs: Mapping[str, Any]) -> None:
    """Refuse operands that could not come from an image. Raises ValueError, ModelError or InputError."""
    wanted, rank, dtypes = STEPS[step]
    numbers = {name: value for name, value in attrs.items() if name != "upsample"}
    if set(attrs) != set(wanted) or any(type(v) is not int or not 0 <= v <= MAX_DIM for v in numbers.values()):
        raise ValueError(f"attributes are {attrs!r:.200}")
    image = step in ("resize", "cut_windows", "center_crop")
    if x.ndim != rank or x.dtype.name not in dtypes or not x.size or (image and x.shape[2] != 3):
        raise ValueError(f"input is {x.dtype} {list(x.shape)}")
    if min(attrs.get(name, 1) for name in ("height", "width", "patch")) < 1:
        raise ValueError(f"attributes are {attrs!r:.200}")
    if step == "resize":
        fits = max(attrs["height"], x.shape[0]) * max(attrs["width"], x.shape[1]) <= _MAX_WINDOW
    elif step == "class_map":
        inside = attrs["height"] <= x.shape[0] * attrs["patch"] and attrs["width"] <= x.shape[1] * attrs["patch"]
        fits = attrs["upsample"] in UPSAMPLES and attrs["patch"] <= 64 and inside
    else:
        return _check_windows(step, x, attrs)
    if not fits:
        raise ValueError(f"attributes are {attrs!r:.200}")


def _check_windows(step: str, x: Array, attrs: Mapping[str, Any]) -> None:
    """The part of `check_step` for steps that windows take part in."""
    cut = step in ("cut_windows", "center_crop")
    info = info_of(attrs, 1 if cut else x.shape[-1])
    validate_info(info)
    if info.window[0] * info.window[1] > _MAX_WINDOW:
        raise ValueError(f"window is {info.window}")
    if cut:
        return
    require_narrow(info, attrs["height"], attrs["width"])
    count = len(tile(info, attrs["height"], attrs["width"]).corners())
    if x.shape[:3] != (count, info.window[0] // info.patch, info.window[1] // info.patch):
        raise ValueError(f"input is {x.dtype} {list(x.shape)}, expected {count} windows")
