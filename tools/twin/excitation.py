"""Whether calibration images say what the values of a network will be; a scene drawn for where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.samples import normalise, tapped
from intseg.tools.twin.segmenter import Segmenter

MOST_DEAD: Final = 0.4
"""A channel of the encoder's LayerNorms is dead where it strays over the tokens less than half as far as on the drawn
scene. Of the two trained Tiny here photos leave 0 to 5 %, and 5 to 32 %, dead; gray 84 and 45 %."""

LEAST_CONTRAST: Final = 64
"""Steps of 255 between the darkest and the brightest 2 % of the pixels, below which an image is dark or flat."""

ONE_COLOUR: Final = 16
"""Steps below which it is of one colour."""

LEAST_CORRELATION: Final = 0.5
"""Of neighbouring pixels. Photos have 0.9 and more, noise 0."""

WINDOWS, MOST = 2, 16
"""Windows of an image that are looked at, and of all images together."""


@dataclass(frozen=True)
class Excitation:
    """What the most exciting of some images excites.

    dead         share of the channels (MOST_DEAD)
    contrast     of the pixels
    correlation  of neighbouring pixels
    """

    dead: float
    contrast: int
    correlation: float

    @property
    def poor(self) -> str:
        """What is wrong with the images; "" for photos."""
        if self.contrast < ONE_COLOUR:
            return "of one colour"
        if self.correlation < LEAST_CORRELATION:
            return f"noise: neighbouring pixels have a correlation of {self.correlation:.2f}"
        if self.contrast < LEAST_CONTRAST:
            return f"dark or flat: a contrast of {self.contrast} of 255, expected {LEAST_CONTRAST} or more"
        return "without things in them" if self.dead > MOST_DEAD else ""

    def warning(self) -> str:
        """One line; "" for photos."""
        if not self.poor:
            return ""
        return (
            f"calibration images are {self.poor}; {self.dead:.0%} of the LayerNorm channels stray less than half as "
            "far as on a drawn scene, which was added; give a photo of what the model is for"
        )


def excitation(model: Segmenter | Classifier, batches: Sequence[Tensor]) -> Excitation:
    """Run some windows of every image, uint8 [B, H, W, 3], through the float model."""
    chosen = [batch[:: max(1, len(batch) // WINDOWS)][:WINDOWS] for batch in batches]
    chosen = chosen[:: max(1, -(-len(chosen) * WINDOWS // MOST))]
    height, width = chosen[0].shape[1:3]
    scene, found = _strays(model, [drawn_scene((height, width))]), _strays(model, chosen)
    dead = torch.cat([found[node] < scene[node] / 2 for node in scene])
    contrast, correlation = max(map(_contrast, chosen)), max(map(_correlation, chosen))
    return Excitation(float(dead.double().mean()), contrast, correlation)


def _strays(model: Segmenter | Classifier, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Standard deviation over the tokens, the largest of any batch, of every channel of the encoder's LayerNorms."""
    names = {name for name, module in model.encoder.named_modules(prefix="encoder") if isinstance(module, nn.LayerNorm)}
    found: dict[str, Tensor] = {}

    def receive(node: str, value: Tensor) -> None:
        if node in names:
            spread = value.flatten(0, -2).std(0)
            found[node] = torch.maximum(found.get(node, spread), spread)

    with torch.no_grad(), tapped(model, receive):
        for windows in batches:
            model.forward_scores(normalise(windows, model.config))
    return found


def _contrast(windows: Tensor) -> int:
    values = windows.flatten()
    values = values[:: max(1, len(values) // 10**6)].sort().values
    return int(values[len(values) * 98 // 100]) - int(values[len(values) * 2 // 100])


def _correlation(windows: Tensor) -> float:
    """Of pixels with those to their right."""
    left, right = (x - x.mean() for x in (windows[:, :, :-1].double(), windows[:, :, 1:].double()))
    return float((left * right).mean() / (left.square().mean() * right.square().mean()).sqrt().clamp(min=1e-9))


def drawn_scene(window: tuple[int, int], count: int = 2) -> Tensor:
    """Windows uint8 [count, H, W, 3] of discs of many sizes, later ones over earlier ones ("dead leaves").

    Sizes fall off with the third power, as things in photos do. Integers of one generator: the same on every machine.
    """
    height, width = window
    numbers = np.random.default_rng(30)
    scenes = numbers.integers(0, 256, (count, 1, 1, 3)).repeat(height, 1).repeat(width, 2).astype(np.uint8)
    largest = max(4, min(window) // 3)
    rows, columns = np.ogrid[:height, :width]
    for scene in scenes:
        for _ in range(600):
            y, x, draw = (int(numbers.integers(0, n)) for n in (height, width, 1000))
            radius = max(2, int(largest / (1 + draw * (largest**2 / 4 - 1) / 999) ** 0.5))
            scene[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = numbers.integers(0, 256, 3)
    return torch.from_numpy(scenes)
