"""The steps around the graph: resize, cut_windows, merge_scores, class_map, pixel_map, center_crop (SPEC 7)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from intseg.ops import Attr, Call
from intseg.resize import weights_of
from intseg.windows import GEOMETRY, counts, info_of, starts, tile, working_size

from ._draw import Draw, call
from ._exam import Branch, Exam, choices, dtypes, equals
from .class_map import ARGMAX


def _axes(call: Call) -> Iterator[tuple[str, int, int, int, int, Sequence[int]]]:
    """Name, size, padded size, window, stride and starts of either axis."""
    rows, columns, _ = call.inputs[0].shape[-3:]
    size: dict[str, int] = {"height": rows, "width": columns}
    size |= {name: int(value) for name, value in call.attrs.items()}
    for axis, pixels, window, stride in (
        ("row", size["height"], size["window_height"], size["stride_rows"]),
        ("column", size["width"], size["window_width"], size["stride_columns"]),
    ):
        padded = max(-(-pixels // size["patch"]) * size["patch"], window)
        yield axis, pixels, padded, window, stride, starts(padded, window, stride)


def _cut_facts(call: Call) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for axis, size, padded, window, stride, first in _axes(call):
        facts |= {f"{axis}.size": size, f"{axis}.padded": padded, f"{axis}.window": window}
        facts |= {f"{axis}.starts": len(first), f"{axis}.flush": first[-1] % stride != 0}
    return facts


def _merge_facts(call: Call) -> dict[str, Any]:
    """How many windows hold every cell of an axis."""
    facts: dict[str, Any] = {"in0": call.inputs[0]}
    for axis, _, padded, window, _, first in _axes(call):
        cells = np.arange(0, padded, int(call.attrs["patch"]))
        facts[axis] = sum(((cells >= s) & (cells < s + window)).astype(int) for s in first)
    return facts


def _map_facts(call: Call) -> dict[str, Any]:
    x = call.inputs[0]
    patch, height, width = (int(call.attrs[name]) for name in ("patch", "height", "width"))
    return {
        "in0": x,
        "upsample": call.attrs["upsample"],
        "cropped": height < x.shape[0] * patch or width < x.shape[1] * patch,
        "whole": height == x.shape[0] * patch and width == x.shape[1] * patch,
    }


def _resize_facts(call: Call) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for axis, old, name in zip(("row", "column"), call.inputs[0].shape, ("height", "width"), strict=False):
        new = int(call.attrs[name])
        weights = weights_of(old, new)
        facts |= {f"{axis}.old": old, f"{axis}.new": new, f"{axis}.taken": weights.taken}
        facts[f"{axis}.sum"] = weights.weight.sum(axis=1, dtype=np.int64)
    return facts


def _resize_branches(axis: str) -> Iterator[Branch]:
    old, new, taken, total = (f"{axis}.{name}" for name in ("old", "new", "taken", "sum"))
    for name, text, test in (
        ("same", "as they are", lambda f: f[old] == f[new]),
        ("smaller", "fewer, from three old ones at least", lambda f: (f[new] < f[old]) & (f[taken] > 2)),
        ("larger", "more, from two old ones", lambda f: (f[new] > f[old]) & (f[taken] == 2)),
        ("edge", "one old pixel where others have more", lambda f: (f[taken] == 1) & (f[taken].max() > 1)),
        ("above", "weights that sum to more than 2^22", lambda f: f[total] > 2**22),
        ("below", "weights that sum to less than 2^22", lambda f: f[total] < 2**22),
    ):
        yield Branch(f"{axis}-{name}", f"{axis}s: {text}", test)


def _pixel_facts(call: Call) -> dict[str, Any]:
    info, height, width = info_of(call.attrs), *(int(call.attrs[name]) for name in ("height", "width"))
    tiling, size = tile(info, height, width), working_size(info, height, width)
    facts: dict[str, Any] = {"in0": call.inputs[0], "upsample": info.upsample, "resized": size != (height, width)}
    for axis, first, window, padded, old, new in (
        ("row", tiling.tops, info.window[0], tiling.height, height, size[0]),
        ("column", tiling.lefts, info.window[1], tiling.width, width, size[1]),
    ):
        facts |= {f"{axis}.between": any(start % info.patch for start in first), f"{axis}.grown": old > new}
        facts |= {axis: counts(first, window, padded, 1), f"{axis}.shrunk": old < new}
    return facts


def _pixel_branches(axis: str) -> Iterator[Branch]:
    for count in (1, 2, 3):
        yield Branch(f"{axis}-{count}", f"{axis}s: a pixel in {count} windows", equals(axis, count))
    yield Branch(f"{axis}-between", f"{axis}s: a window between patches", lambda f: f[f"{axis}.between"])
    yield Branch(f"{axis}-grown", f"{axis}s: labels of more pixels than were segmented", lambda f: f[f"{axis}.grown"])
    yield Branch(
        f"{axis}-shrunk", f"{axis}s: labels of fewer pixels than were segmented", lambda f: f[f"{axis}.shrunk"]
    )


def _cut_branches(axis: str) -> Iterator[Branch]:
    size, padded, window, starts, flush = (f"{axis}.{name}" for name in ("size", "padded", "window", "starts", "flush"))
    for name, text, test in (
        ("fits", "nothing to pad", lambda f: f[size] == f[padded]),
        ("to-patch", "padded to a whole patch", lambda f: f[window] < f[size] < f[padded]),
        ("to-window", "padded to a window", lambda f: f[size] < f[window]),
        ("one", "one window", lambda f: f[starts] == 1),
        ("many", "more than two windows", lambda f: f[starts] > 2),
        ("flush", "the last window flush with the edge", lambda f: f[flush]),
        ("even", "the last window at a multiple of the stride", lambda f: f[starts] > 1 and not f[flush]),
    ):
        yield Branch(f"{axis}-{name}", f"{axis}s: {text}", test)


def _merge_branches(axis: str) -> Iterator[Branch]:
    for count in (1, 2, 3):
        yield Branch(f"{axis}-{count}", f"{axis}s: a cell in {count} windows", equals(axis, count))
    mixed = f"{axis}s: different counts, weights above 1"
    yield Branch(f"{axis}-mixed", mixed, lambda f: len(np.unique(f[axis])) > 1)


def _crop_facts(call: Call) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for axis, size, name in zip(("row", "column"), call.inputs[0].shape, ("height", "width"), strict=False):
        facts[f"{axis}.spare"] = size - int(call.attrs[f"window_{name}"])
    return facts


def _crop_branches(axis: str) -> Iterator[Branch]:
    spare = f"{axis}.spare"
    for name, text, test in (
        ("fits", "as many as the window", lambda f: f[spare] == 0),
        ("even", "an even number too many", lambda f: f[spare] > 0 == f[spare] % 2),
        ("up", "an odd number too many, rounded up to even", lambda f: f[spare] > 0 and f[spare] % 4 == 3),
        ("down", "an odd number too many, rounded down to even", lambda f: f[spare] > 0 and f[spare] % 4 == 1),
        ("padded", "an even number too few", lambda f: f[spare] < 0 == f[spare] % 2),
        ("padded-odd", "an odd number too few: one more behind", lambda f: f[spare] < 0 != f[spare] % 2),
    ):
        yield Branch(f"{axis}-{name}", f"{axis}s: {text}", test)


_WINDOWS = ((16, 32, 8, 16, 8), (16, 16, 16, 16, 8), (32, 24, 16, 16, 8))
"""Window height and width, stride, patch, in pixels."""

_SIZES = ((16, 32), (21, 27), (13, 21), (22, 69), (50, 48), (1, 1), (32, 64), (47, 33))


def _geometry(numbers: tuple[int, ...]) -> dict[str, Attr]:
    return dict(zip(GEOMETRY, numbers, strict=True))


def _cut_windows(numbers: Draw) -> Iterator[Call]:
    for window in _WINDOWS:
        for height, width in _SIZES:
            x = numbers.array("uint8", height, width, 3)
            yield call("cut_windows", x, **_geometry(window), pad_red=1, pad_green=128, pad_blue=255)


def _center_crop(numbers: Draw) -> Iterator[Call]:
    for height, width in ((8, 8), (10, 9), (9, 11), (11, 10), (6, 5), (5, 6), (7, 12), (1, 1)):
        x = numbers.array("uint8", height, width, 3)
        yield call("center_crop", x, window_height=8, window_width=8, pad_red=1, pad_green=128, pad_blue=255)


def _merge_scores(numbers: Draw) -> Iterator[Call]:
    for dtype in ("int8", "int16"):
        for window in _WINDOWS:
            for height, width in _SIZES:
                attrs = _geometry(window) | {"height": height, "width": width}
                count = len(tile(info_of(attrs), height, width).corners())
                yield call("merge_scores", numbers.array(dtype, count, window[0] // 8, window[1] // 8, 2), **attrs)


def _class_map(numbers: Draw) -> Iterator[Call]:
    for upsample in ("nearest", "bilinear"):
        for classes, top in ((5, 3), (1, 9), (256, 40), (257, 40), (300, 2**19)):
            x = numbers.array("int32", 3, 4, classes, low=-top, high=top)
            x[0, 0] = -5  # all negative, all tied
            x[0, 1], x[0, 1, -1] = -5, -4
            for height, width in ((24, 32), (17, 25)):
                yield call("class_map", x, upsample=upsample, patch=8, height=height, width=width)


def _resize(numbers: Draw) -> Iterator[Call]:
    sizes = ((5, 7, 5, 7), (1, 1, 3, 2), (9, 23, 4, 6), (4, 6, 9, 23), (31, 2, 7, 5), (3, 40, 3, 1), (64, 48, 45, 34))
    for height, width, tall, wide in sizes:
        yield call("resize", numbers.array("uint8", height, width, 3), height=tall, width=wide)
        yield call("resize", np.full((height, width, 3), 255, np.uint8), height=tall, width=wide)


def _pixel_map(numbers: Draw) -> Iterator[Call]:
    windows = ((16, 32, 9, 17, 8), (16, 16, 16, 16, 8), (12, 8, 7, 5, 4))
    for window, upsample, (short, long) in itertools.product(windows, ("nearest", "bilinear"), ((0, 0), (16, 40))):
        for height, width in ((16, 32), (21, 27), (39, 50), (1, 3)):
            attrs = _geometry(window) | {"height": height, "width": width, "short": short, "long": long}
            count = len(tile(info_of(attrs), height, width).corners())
            cells = window[0] // window[4], window[1] // window[4]
            for dtype in ("int8", "int16"):
                yield call("pixel_map", numbers.array(dtype, count, *cells, 3), upsample=upsample, **attrs)


EXAMS = (
    Exam(
        "resize",
        section="7.1",
        digest="71d185c145863694d850b7b89fde06d0b34c0c6394c55369f25c696ae19699a5",
        inputs=_resize,
        branches=(*_resize_branches("row"), *_resize_branches("column")),
        facts=_resize_facts,
    ),
    Exam(
        "cut_windows",
        section="7",
        digest="5440d47ada5b8b94723fbadbd558529796c060be6e95afee566607e4b62a8bae",
        inputs=_cut_windows,
        branches=(*_cut_branches("row"), *_cut_branches("column")),
        facts=_cut_facts,
    ),
    Exam(
        "merge_scores",
        section="7",
        digest="ded12366bd062e3ef5756bf36668b429836aa93b05b18418d831f7b3dd00ff11",
        inputs=_merge_scores,
        branches=(*_merge_branches("row"), *_merge_branches("column"), *dtypes("int8", "int16")),
        facts=_merge_facts,
    ),
    Exam(
        "class_map",
        section="7",
        digest="32b02308fa5936e985b0fd607982a7675cd11241cf26eca2432a6d7cc040fac1",
        inputs=_class_map,
        branches=(
            *choices("upsample", "nearest", "bilinear"),
            *ARGMAX,
            Branch("cropped", "padding cut off", lambda f: f["cropped"]),
            Branch("whole", "nothing to cut off", lambda f: f["whole"]),
        ),
        facts=_map_facts,
    ),
    Exam(
        "pixel_map",
        section="7",
        digest="cb89ee0b9313596cd74957f3867a0430883b3e085a1b0552ab96434670dafa0b",
        inputs=_pixel_map,
        branches=(
            *_pixel_branches("row"),
            *_pixel_branches("column"),
            *choices("upsample", "nearest", "bilinear"),
            *dtypes("int8", "int16"),
            Branch("own-size", "segmented at its own size", lambda f: not f["resized"]),
        ),
        facts=_pixel_facts,
    ),
    Exam(
        "center_crop",
        section="7.4",
        digest="8dd7c147e944407b6136596abf0eb9bbf81d78b006e103a1301d10041a3569f7",
        inputs=_center_crop,
        branches=(*_crop_branches("row"), *_crop_branches("column")),
        facts=_crop_facts,
    ),
)
