"""What calibration sees of a float model: its intermediates under the engine's node names, statistics and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intseg.progress import shown
from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.segmenter import Segmenter

RENAMED = {
    "encoder.patch_embed.proj": "encoder.patch_embed",
    "decoder.matmul_patch": "decoder.proj_patch",
    "decoder.matmul_classes": "decoder.proj_classes",
}
"""Float modules whose node has another name; `.attn.pv` and `.attn.scale` are handled by suffix."""

SUFFIXES = (
    *("norm1", "attn.qkv", "attn.scale", "attn.pv", "attn.proj", "add1"),
    *("norm2", "mlp.fc1", "mlp.act", "mlp.fc2", "add2"),
    *("encoder.pos_add", "encoder.norm", "decoder.proj_dec", "decoder_norm"),
    *("l2_patch", "l2_classes", "masks", "mask_norm", "head", "head_dist"),
)
"""How the names of the float modules with a node end."""


def node_of(module: str) -> str | None:
    """The engine's node for a float module's output; None if it has none."""
    if module in RENAMED:
        return RENAMED[module]
    if not any(module == suffix or module.endswith("." + suffix) for suffix in SUFFIXES):
        return None
    return module.replace(".attn.pv", ".attn.merge").replace(".attn.scale", ".attn.scores")


def as_node_output(node: str, value: Tensor) -> Tensor:
    """A float module's output in the layout of its node: channels last, heads merged."""
    if node == "encoder.patch_embed":
        return value.flatten(2).transpose(1, 2)
    if node.endswith(".attn.merge"):
        return value.transpose(1, 2).flatten(2)
    return value


@contextmanager
def tapped(model: Segmenter | Classifier, receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, every forward of the float model reports its intermediates under the engine's node names."""

    def hook(node: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, inputs, output: receive(node, as_node_output(node, output.detach()))

    handles = [
        module.register_forward_hook(hook(node))
        for name, module in model.named_modules()
        if (node := node_of(name)) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def augment(images: Tensor) -> list[Tensor]:
    """Deterministic variations of uint8 windows [B, H, W, 3]: what another photo could have been.

    One image says little about how far a channel strays on the next; mirrored, darker, brighter, flatter, nearer and
    further views of it say more.
    """
    x = images.permute(0, 3, 1, 2).float()
    height, width = x.shape[2:]
    near = x[:, :, height // 5 : height - height // 5, width // 5 : width - width // 5]
    far = F.pad(x, (width // 4, width // 4, height // 4, height // 4), mode="reflect")
    views = [x, x.flip(3), x * 0.6, x * 1.5, x * 0.6 + 60]
    views += [F.interpolate(view, size=(height, width), mode="area") for view in (far,)]
    views += [F.interpolate(near, size=(height, width), mode="bilinear", align_corners=False)]
    return [view.round().clamp(0, 255).byte().permute(0, 2, 3, 1) for view in views]


def normalise(images: Tensor, config: SegmenterConfig) -> Tensor:
    """uint8 [B, H, W, 3] -> the float model's input [B, 3, H, W]."""
    mean, std = (torch.tensor(t, device=images.device).view(3, 1, 1) for t in (config.mean, config.std))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


@dataclass
class Stats:
    """What calibration keeps of one node."""

    low: float = 0.0  # moving averages
    high: float = 0.0
    seen: int = 0
    largest: float = 0.0  # of |x|, over everything
    samples: list[Tensor] = field(default_factory=list)  # [rows, channels] float32, one tensor an image
    _ends: tuple[float, float] = (0.0, 0.0)

    def update(self, value: Tensor, rows: int, first: int = 0, count: int = 0) -> None:
        """Take in windows [B, ..., channels] of an image, keeping up to `rows` rows of the image.

        first  windows of the image that were taken in before
        count  windows of the image, when these are not all
        """
        count = count or len(value)
        low, high = float(value.min()), float(value.max())
        self._ends = (min(low, self._ends[0]), max(high, self._ends[1])) if first else (low, high)
        if first + len(value) == count:
            weight = MOMENTUM if self.seen else 1.0
            self.low += weight * (self._ends[0] - self.low)
            self.high += weight * (self._ends[1] - self.high)
            self.largest = max(self.largest, -self._ends[0], self._ends[1])
            self.seen += 1
        if rows:
            flat = value.flatten(0, -2)
            each = len(flat) // len(value)
            step = max(1, -(-each * count // rows))
            kept = flat[-(each * first) % step :: step].clone()
            if first:
                self.samples[-1] = torch.cat([self.samples[-1], kept])
            else:
                self.samples.append(kept)

    def sampled(self) -> Tensor:
        """All samples, float64 [rows, channels]."""
        return torch.cat(self.samples).double()


MOMENTUM = 0.05

SAMPLE_BUDGET = 170_000_000
"""Floats kept as samples over all nodes, of one image or a thousand: 2,048 rows of 24 blocks of 192 and more. With two
thirds of that, a network with long tails lost 0.5 mIoU in place of 0.1."""

ENOUGH_ROWS, FEWEST_ROWS = 2048, 64
"""Rows kept of a node over all images, and of an image as long as SAMPLE_BUDGET lets it."""

SCORE_ROWS = 16
"""Rows of logits kept of an image; of more than ENOUGH_ROWS / SCORE_ROWS images fewer."""

LOGITS_AT_ONCE = 2**24
"""Windows run through the float model together have no more logits in a block."""


def windows_at_once(windows: Tensor, config: SegmenterConfig) -> int:
    """How many of the windows [B, H, W, 3] may run through the float model together."""
    tokens = windows.shape[1] // config.patch * (windows.shape[2] // config.patch) + config.n_extra
    return max(1, LOGITS_AT_ONCE // (config.n_heads * tokens**2))


def rows_of(images: int, channels: int) -> tuple[int, int]:
    """(rows kept of an image, every how many-th image gives some), whatever there are within SAMPLE_BUDGET.

    channels  sum of those of all nodes that are sampled
    """
    most = max(1, SAMPLE_BUDGET // channels)
    rows = min(max(FEWEST_ROWS, min(ENOUGH_ROWS, most) // images), max(1, most // images))
    return rows, -(-images // most)


def collect(
    model: Segmenter | Classifier,
    batches: Sequence[Tensor],
    cosine: bool,
    wanted: Mapping[str, int],
) -> dict[str, Stats]:
    """Run the float model on one batch of uint8 windows [B, H, W, 3] per image; statistics by node name.

    wanted  channels of the nodes that something is fitted to: only they keep samples
    """
    stats: dict[str, Stats] = {}
    rows, every = rows_of(len(batches), sum(n for node, n in wanted.items() if not node.endswith("attn.scores")) or 1)
    config = model.config

    def receive(node: str, value: Tensor, image: int, first: int, count: int) -> None:
        kept = rows if node in wanted and image % every == 0 else 0
        if node.endswith("attn.scores"):
            kept = min(kept and SCORE_ROWS, max(1, ENOUGH_ROWS // len(batches)))
        stats.setdefault(node, Stats()).update(value, kept, first, count)

    for image, windows in enumerate(shown(batches, "calibrating", len(batches), "view")):
        together = windows_at_once(windows, config)
        for first in range(0, len(windows), together):
            part = windows[first : first + together]

            def take(node: str, value: Tensor, image: int = image, first: int = first) -> None:
                receive(node, value, image, first, len(batches[image]))

            with torch.no_grad(), tapped(model, take):
                model.forward_scores(normalise(part, config), cosine)
    return stats
