"""Section 7 where windows are merged in pixels or images resized: definition, oracle and kernels agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from compare import assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import argmax, between, pixel_scores
from naive import resize as naive_resize
from naive import working_size as naive_working_size
from PIL import Image
from tiny_model import tiny_info

from intseg import backends, windows
from intseg.errors import InputError, UsageError
from intseg.graph import ModelInfo, validate_info
from intseg.resize import resize

CLOSE = settings(max_examples=60, deadline=None)


@st.composite
def infos(draw: st.DrawFn, classes: int) -> ModelInfo:
    """Windows of 1 to 3 patches, any stride from half of it on."""
    patch = draw(st.integers(1, 6))
    window = (patch * draw(st.integers(1, 3)), patch * draw(st.integers(1, 3)))
    stride = tuple(draw(st.integers(-(-n // 2), n)) for n in window)
    upsample = draw(st.sampled_from(["bilinear", "bilinear", "nearest"]))
    info = tiny_info(classes, window, stride, patch, upsample, merge="pixel")
    validate_info(info)
    return info


def random_scores(info: ModelInfo, size: tuple[int, int], limit: int, seed: int) -> np.ndarray:
    """What `merge_scores` gives for an image of this size."""
    random, tiling = np.random.default_rng(seed), windows.tile(info, *size)
    cells = [n // info.patch for n in info.window]
    scores = [
        random.integers(-limit - 1, limit + 1, (*cells, len(info.classes))).astype(np.int16) for _ in tiling.corners()
    ]
    return windows.merge_scores(scores, tiling, info)


@CLOSE
@given(st.data())
def test_labels_of_windows_merged_in_pixels(data: st.DataObject) -> None:
    info = data.draw(infos(data.draw(st.integers(1, 5))))
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    scores = random_scores(info, size, data.draw(st.sampled_from([1, 3, 32767])), data.draw(st.integers(0, 99)))
    oracle = pixel_scores(scores.tolist(), info.window, info.stride, info.patch, info.upsample, size)
    found = windows.pixel_scores(scores, info, *size, 0, size[0])
    tiling = windows.tile(info, *size)
    common = [
        np.lcm.reduce(windows.counts(origins, info.window[axis], padded, 1))
        for axis, (origins, padded) in enumerate([(tiling.tops, tiling.height), (tiling.lefts, tiling.width)])
    ]
    assert_equal(found * (36 // (common[0] * common[1])), np.array(oracle, np.int64))
    labels = np.array(argmax(oracle), np.uint8)
    assert_equal(windows.labels(scores, info, *size), labels)
    for threads in (1, 2):
        assert_equal(backends.labels(scores, info, *size, "numba", threads), labels)


@CLOSE
@given(st.data())
def test_labels_of_images_at_another_size(data: st.DataObject) -> None:
    """Interpolated between the pixels of the working size, for windows merged in pixels and on the grid."""
    info = data.draw(infos(data.draw(st.integers(1, 4))))
    short = data.draw(st.integers(min(info.window), 24))
    info = replace(info, working_size=(short, data.draw(st.integers(short, 40))))
    size = (data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30)))
    working = windows.working_size(info, *size)
    assert list(working) == naive_working_size(*size, *info.working_size)
    scores = random_scores(info, size, data.draw(st.sampled_from([1, 3, 32767])), data.draw(st.integers(0, 99)))
    pixels = pixel_scores(scores.tolist(), info.window, info.stride, info.patch, info.upsample, working)
    labels = np.array(argmax(between(pixels, size)), np.uint8)
    assert_equal(windows.labels(scores, info, *size), labels)
    assert_equal(backends.labels(scores, info, *size, "numba", 2), labels)
    grid = replace(info, merge="grid", stride=info.window)
    merged = random_scores(grid, size, 3, 5)
    zoomed = windows.pixel_scores(merged, grid, *working, 0, working[0])
    labels = np.array(argmax(between(zoomed.tolist(), size)), np.uint8)
    assert_equal(windows.labels(merged, grid, *size), labels)
    assert_equal(backends.labels(merged, grid, *size, "numba", 2), labels)


@CLOSE
@given(*(st.integers(1, 20) for _ in range(4)), st.sampled_from([1, 255]), st.integers(0, 99))
def test_resized_images(height: int, width: int, tall: int, wide: int, step: int, seed: int) -> None:
    rgb = (np.random.default_rng(seed).integers(0, 256 // step, (height, width, 3)) * step).astype(np.uint8)
    expected = np.array(naive_resize(rgb.tolist(), tall, wide), np.uint8)
    assert_equal(resize(rgb, tall, wide), expected)
    rgb.flags.writeable = False  # as Pillow gives it
    for threads in (1, 2):
        assert_equal(backends.resize(rgb, tall, wide, "numba", threads), expected)


SIZES = [(1, 1, 7, 9), (180, 240, 360, 480), (720, 960, 360, 480), (500, 333, 384, 256), (997, 1009, 256, 259)]
SIZES += [(1, 3000, 1, 2048), (65_535, 1, 300, 1), (37, 53, 512, 700), (360, 480, 363, 484)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resized_images_are_those_of_pillow(size: tuple[int, int, int, int]) -> None:
    """Bit for bit, one pass after the other: newer versions take the rows first where that is less work."""
    height, width, tall, wide = size
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    narrow = Image.fromarray(rgb).resize((wide, height), Image.Resampling.BILINEAR)
    assert_equal(resize(rgb, tall, wide), np.asarray(narrow.resize((wide, tall), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize(
    ("size", "working"),
    [
        ((360, 480), (256, 341)),
        ((1, 3000), (1, 1024)),
        ((3000, 1), (1024, 1)),
        ((1, 1), (256, 256)),
        ((7, 9), (256, 329)),
    ],
)
def test_extreme_shapes_stay_bounded(size: tuple[int, int], working: tuple[int, int]) -> None:
    info = windows.at_scale(tiny_info(merge="pixel"), 256)
    assert info.working_size == (256, 1024)
    assert windows.working_size(info, *size) == working
    assert windows.tile(info, *size).height >= info.window[0]
    assert windows.working_size(windows.at_scale(info, "native"), *size) == size
    assert windows.at_scale(info, 3).working_size == (32, 128)  # never below the window
    with pytest.raises(UsageError, match="scale is 0, expected native or 1 to 4096"):
        windows.at_scale(info, 0)


def test_images_whose_weights_would_not_fit_are_refused() -> None:
    info = replace(tiny_info(merge="pixel", upsample="bilinear"), patch=64, window=(64, 64), working_size=(64, 256))
    windows.require_narrow(replace(info, working_size=None), 65_535, 65_535)
    with pytest.raises(InputError, match="use a smaller image or scale native"):
        windows.require_narrow(info, 65_535, 65_533)


def test_windows_of_unknown_origin_have_a_size() -> None:
    attrs = dict.fromkeys(windows.GEOMETRY, 4096) | {"patch": 64, "height": 4096, "width": 4096}
    scores = np.zeros((1, 64, 64, 3), np.int8)
    windows.check_step("merge_scores", scores, attrs)
    with pytest.raises(ValueError, match=r"window is \(4160, 4096\)"):
        windows.check_step("merge_scores", scores, attrs | {"window_height": 4160, "stride_rows": 4160})
