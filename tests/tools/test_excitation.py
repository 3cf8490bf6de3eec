"""What calibration images say: groups of poor ones, the drawn scene; samples within their budget."""

from pathlib import Path

import numpy as np
import pytest
import torch
from configs import SMALL
from patterns import pattern
from PIL import Image
from torch import Tensor

import intseg
from intseg.tools import convert
from intseg.tools.twin import calibrate as cal
from intseg.tools.twin import excitation as ex
from intseg.tools.twin import samples
from intseg.tools.twin.checkpoint import save_checkpoint
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.segmenter import random_segmenter

torch.set_num_threads(1)

PHOTO = ex.drawn_scene((64, 96), 3)[2:]
"""No photo, but things of many sizes and colours; not among those that excitation is judged by."""

NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8))
IMAGES = {
    "photo": (PHOTO, ""),
    "dark": (PHOTO // 6, "dark or flat: a contrast of"),
    "flat": (PHOTO // 6 + 100, "dark or flat: a contrast of"),
    "noise": (NOISE, "noise: neighbouring pixels have a correlation of"),
    "gray": (torch.full_like(PHOTO, 128), "of one colour"),
    "black": (torch.zeros_like(PHOTO), "of one colour"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_groups_are_told_apart(name: str) -> None:
    image, words = IMAGES[name]
    found = ex.excitation(random_segmenter(SMALL, 1), [image])
    assert found.poor.startswith(words)
    assert bool(found.poor) == bool(words)
    assert ("a drawn scene, which was added" in found.warning()) == bool(words)


def test_one_good_image_among_poor_ones_is_enough() -> None:
    found = ex.excitation(random_segmenter(SMALL, 1), [IMAGES["gray"][0], NOISE, PHOTO])
    assert not found.poor


def test_dead_channels_count() -> None:
    found = ex.excitation(random_segmenter(SMALL, 1), [torch.full_like(PHOTO, 128)])
    assert found.dead > ex.excitation(random_segmenter(SMALL, 1), [PHOTO]).dead
    assert ex.Excitation(dead=0.9, contrast=200, correlation=0.9).poor == "without things in them"


def test_the_scene_is_the_same_everywhere() -> None:
    scene = ex.drawn_scene((64, 64))
    assert scene.shape == (2, 64, 64, 3)
    assert int(scene.long().sum()) == SCENE_SUM


SCENE_SUM = 3216072


@pytest.mark.parametrize(("gray", "options"), [(True, ["--check", "photo.png"]), (False, [])])
def test_convert_says_it_and_keeps_it(
    gray: bool, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(random_segmenter(SMALL, 3), "checkpoint")
    rgb, _ = pattern(0, 64, 96)
    Image.fromarray(rgb).save("photo.png")
    Image.fromarray(np.full_like(rgb, 128)).save("gray.png")
    image = "gray.png" if gray else "photo.png"
    assert convert.main(["checkpoint", "-o", "m.safetensors", "--calibrate", image, *options]) == 0
    printed = capsys.readouterr()
    assert ("warning: calibration images are of one colour" in printed.err) == gray
    assert ("of one colour" in intseg.load("m.safetensors").info.source) == gray
    assert ("saturated, SQNR: on photo.png\n" in printed.out) == gray


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [100, 26_880, 266_240])
def test_samples_stay_within_their_budget(channels: int) -> None:
    for images in (1, 7, 32, 98, 367, 5000, 10**6):
        rows, every = samples.rows_of(images, channels)
        assert rows >= 1
        assert rows * -(-images // every) * channels <= samples.SAMPLE_BUDGET
    assert samples.rows_of(32, 26_880) == (64, 1)
    assert samples.rows_of(7, 26_880) == (292, 1)


def test_an_image_in_parts_gives_what_it_gives_at_once() -> None:
    values = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    for rows in (0, 1, 4, 9, 35, 100):
        whole, parts = samples.Stats(), samples.Stats()
        for image in (values, values * 3):
            whole.update(image, rows)
            for first, last in ((0, 2), (2, 3), (3, 5)):
                parts.update(image[first:last], rows, first, 5)
        assert (whole.low, whole.high, whole.largest, whole.seen) == (parts.low, parts.high, parts.largest, parts.seen)
        assert all(torch.equal(a, b) for a, b in zip(whole.samples, parts.samples, strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_only_nodes_that_something_is_fitted_to_keep_samples(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_segmenter(SMALL, 1)
    twin = FakeQuantSegmenter(model, SMALL.window, RECIPES[recipe])
    batches: list[Tensor] = [ex.drawn_scene(SMALL.window, 3)]
    wanted = cal.sampled_nodes(twin)
    stats = samples.collect(model, batches, twin.recipe.cosine, wanted)
    assert {node for node, found in stats.items() if found.samples} == set(wanted)
    assert {stats[node].samples[0].shape[1] for node in wanted if node.endswith("norm1")} <= set(wanted.values())
    for node, channels in wanted.items():
        assert node.endswith("scores") or stats[node].samples[0].shape[1] == channels
    monkeypatch.setattr(samples, "LOGITS_AT_ONCE", 1)
    again = samples.collect(model, batches, twin.recipe.cosine, wanted)
    for node in wanted:
        torch.testing.assert_close(again[node].samples[0], stats[node].samples[0], rtol=1e-4, atol=1e-4)
