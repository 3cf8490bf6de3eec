"""What the tests of tools/ begin with: windows, a calibrated twin of a random model, its graph, its integers."""

import copy

import torch
from configs import SMALL
from torch import Tensor

from intseg.graph import ModelInfo
from intseg.tools import convert
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.classes import numbered
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import Recipe
from intseg.tools.twin.segmenter import Segmenter, random_segmenter

torch.set_num_threads(1)


def noisy(count: int, seed: int = 0, config: SegmenterConfig = SMALL) -> Tensor:
    """Random uint8 windows [count, H, W, 3], each with its own brightness."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 150, (count, 1, 1, 3), generator=generator)
    return (low + torch.randint(0, 106, (count, *config.window, 3), generator=generator)).byte()


def smooth(count: int, seed: int = 0, config: SegmenterConfig = SMALL) -> Tensor:
    """Smooth random uint8 windows [count, H, W, 3]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    fine = torch.nn.functional.interpolate(coarse, size=config.window, mode="bilinear", align_corners=False)
    return fine.round().byte().permute(0, 2, 3, 1).contiguous()


def calibrated(
    recipe: Recipe, batches: list[Tensor], config: SegmenterConfig = SMALL, seed: int = 1, again: bool = False
) -> tuple[FakeQuantSegmenter, Segmenter]:
    """A twin in evaluation mode, and the random model that it was calibrated for.

    Copies of what was calibrated with the same before; `again` calibrates anew, as a test that changes how must.
    """
    key = (recipe, config, seed, *((batch.shape, batch.numpy().tobytes()) for batch in batches))
    if not again and key in _KEPT:
        return copy.deepcopy(_KEPT[key])
    model = random_segmenter(config, seed)
    twin = FakeQuantSegmenter(model, config.window, recipe)
    calibrate(twin, model, batches)
    if not again:
        _KEPT[key] = copy.deepcopy((twin.eval(), model))
    return twin.eval(), model


_KEPT: dict[object, tuple[FakeQuantSegmenter, Segmenter]] = {}


def info_of(twin: FakeQuantSegmenter) -> ModelInfo:
    """Windows merged on the patch grid, numbered classes."""
    return convert.model_info(twin.config, twin.recipe, "random", numbered(twin.config.n_cls), merge="grid")


def integers(twin: FakeQuantSegmenter, images: Tensor) -> dict[str, Tensor]:
    """Every intermediate of a twin."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        twin(images, found.__setitem__)
    return found
