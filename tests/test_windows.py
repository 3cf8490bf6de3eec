"""Section 7 where windows are merged in pixels: definition, oracle in plain integers and kernels agree."""

from __future__ import annotations

import numpy as np
from compare import assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import argmax, pixel_scores
from tiny_model import tiny_info

from intseg import backends, windows
from intseg.graph import ModelInfo, validate_info

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
