"""Test-time views (SPEC 7.3): sizes, the exact mean against fractions, what a single view is, the command."""

import dataclasses
import json
from pathlib import Path

import naive
import numpy as np
import pytest
from graphs import tiny
from patterns import pattern
from PIL import Image

from intseg import api, store, views, windows
from intseg.cli.evaluate import VIEWS
from intseg.cli.main import main
from intseg.errors import InputError
from intseg.graph import ModelInfo

INFO = ModelInfo(
    name="views",
    recipe="",
    classes=("a", "b", "c"),
    palette=((0, 0, 0),) * 3,
    window=(8, 12),
    stride=(6, 6),
    patch=4,
    pad=(1, 2, 3),
    upsample="bilinear",
    merge="pixel",
)


def test_sizes_never_fall_below_the_window() -> None:
    seen = views.views(INFO, 9, 30, (50, 100, 250))
    assert [(view.info.working_size, view.mirrored) for view in seen[::2]] == [
        ((12, 15), False),
        ((12, 30), False),
        ((23, 75), False),
    ]
    assert all(view.mirrored for view in seen[1::2])
    stated = dataclasses.replace(INFO, working_size=(20, 80))
    assert [view.info.working_size for view in views.views(stated, 9, 30, (150,))] == [(30, 120)] * 2


@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
@pytest.mark.parametrize(("height", "width"), [(9, 13), (16, 12), (5, 30)])
def test_the_mean_is_that_of_fractions(height: int, width: int, upsample: str) -> None:
    info, percents = dataclasses.replace(INFO, upsample=upsample), (75, 150)
    rng = np.random.default_rng(height)
    seen = views.views(info, height, width, percents)
    scores = []
    for view in seen:
        count = len(windows.tile(view.info, height, width).corners())
        scores.append(rng.integers(-300, 300, (count, 2, 3, 3)).astype(np.int16))
    merged = [
        windows.merge_scores(list(part), windows.tile(view.info, height, width), view.info)
        for part, view in zip(scores, seen, strict=True)
    ]
    found = views.average_labels(merged, seen, views.shares(seen, height, width), height, width)
    means = [
        naive.view_scores(part.tolist(), info.window, info.stride, 4, upsample, (height, width), percent, mirrored)
        for part, percent, mirrored in zip(scores, (75, 75, 150, 150), (False, True) * 2, strict=True)
    ]
    assert found.tolist() == naive.mean_labels(means)
    assert len(np.unique(found)) == 3


def test_a_mirrored_view_is_the_image_mirrored() -> None:
    """A model that looks at single pixels sees the same in both views, so that two views are as one."""
    rgb, _ = pattern(0, 20, 29)

    def forward(window: np.ndarray) -> np.ndarray:
        sums = window.reshape(2, 4, 3, 4, 3).sum((1, 3), dtype=np.int64)
        return (sums - sums.mean(axis=(0, 1)).astype(np.int64)).astype(np.int16)

    one = views.labels(rgb, INFO, (100,), forward)
    mirrored = views.labels(np.ascontiguousarray(rgb[:, ::-1]), INFO, (100,), forward)
    assert np.array_equal(one, mirrored[:, ::-1])


def test_too_many_pixels_are_refused() -> None:
    seen = views.views(INFO, 30011, 60013, VIEWS)
    with pytest.raises(InputError, match="too many for the exact mean of 12 views"):
        views.shares(seen, 30011, 60013)


def test_eval_counts_the_mean_of_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = tiny()
    store.save(graph, Path("m.safetensors"))
    model = api.load("m.safetensors")
    count = len(model.info.classes)
    rgb, _ = pattern(1, 40, 52)
    forward = model.compiled("numpy")
    for folder in ("images", "labels"):
        Path(folder).mkdir()
    Image.fromarray(rgb).save("images/a.png")
    Image.fromarray(views.labels(rgb, model.info, (100, 50), forward)).save("labels/a.png")
    command = [
        *["eval", "--images", "images", "--labels", "labels", "-w", "m.safetensors", "--json", "--backend", "numpy"]
    ]
    assert main([*command, "--tta", "100", "50", "--resume", "j.jsonl"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["aAcc"] == 100.0
    assert np.trace(np.array(found["confusion"])) == rgb.shape[0] * rgb.shape[1]
    assert len(found["classes"]) == count
    assert main([*command, "--resume", "j.jsonl"]) == 2
    assert "another" in capsys.readouterr().err
