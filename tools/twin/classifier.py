"""The float classifier: a ViT, or a DeiT with its two heads, and the reading of published checkpoints.

Parameter names of the encoder are those of a Segmenter's (`encoder.blocks.0.attn.qkv.weight`), the heads are `head` and
`head_dist`, as timm and DeiT call them. Checkpoints hold timm's names: the same without `encoder.`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intseg.tools.twin import pretrained
from intseg.tools.twin.checkpoint import check_state, encoder_fields
from intseg.tools.twin.config import CheckpointError, SegmenterConfig
from intseg.tools.twin.segmenter import Encoder, LoadInfo, drawn
from intseg.tools.twin.variant import Variant

CROP = 0.9
"""Part of the resized image that the window sees, where no config.json says it: timm's for these models."""

IMAGENET = 1000
"""A head of so many classes is taken for one of ILSVRC 2012."""

_HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
_FOREIGN = {
    "fc_norm.": "the mean of all tokens in place of the class token (global_pool avg)",
    "pre_logits.": "a layer before the head (representation_size)",
    "attn_pool.": "attention pooling",
    "norm_pre.": "a norm before the blocks",
    "reg_token": "register tokens",
    ".ls1.": "layer scale",
    ".q_norm.": "normalized queries",
}
"""Parts of other ViTs, which the graph has no form for."""


class Classifier(nn.Module):
    """Float ViT. Images are brought to a short side of `config.im_size`, `config.window` is what is seen of them."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.info = LoadInfo()
        self.encoder = Encoder(config)
        self.head = nn.Linear(config.d_model, config.n_cls)
        if config.distilled:
            self.head_dist = nn.Linear(config.d_model, config.n_cls)

    def forward_scores(self, x: Tensor, cosine: bool = True) -> Tensor:
        """Normalised pixels [B, 3, H, W] of one window -> logits [B, C], of two heads their mean."""
        tokens = self.encoder(x)
        logits: Tensor = self.head(tokens[:, :1])  # rows, so that hooks see [B, 1, C]
        if self.config.distilled:
            logits = (logits + self.head_dist(tokens[:, 1:2])) / 2
        return logits[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return self.forward_scores(x)


def is_classifier(path: Path) -> bool:
    """Whether a checkpoint is a ViT or DeiT with its head, in timm's names. What cannot be read is none."""
    try:
        return "head.weight" in pretrained.tensors(path, [], "")
    except CheckpointError:
        return False


def load_classifier(path: Path, given: Mapping[str, Any] | None = None) -> Classifier:
    """A checkpoint in evaluation mode; `info` lists the values assumed. Raises CheckpointError.

    given  "n_heads", "normalization", where they are stated otherwise
    """
    notes: list[str] = []
    state = pretrained.tensors(path, notes, "")
    for part, what in _FOREIGN.items():
        if name := next((name for name in state if part in name), None):
            raise CheckpointError(f"{path}: has {name}: {what}, which intseg has no form for; give a plain ViT or DeiT")
    state = {name if name in _HEADS else f"encoder.{name}": value.float() for name, value in state.items()}
    for name in [
        name for name in state if name.endswith(".weight") and name.removesuffix("weight") + "bias" not in state
    ]:
        state[name.removesuffix("weight") + "bias"] = torch.zeros(len(state[name]))
    fields = encoder_fields(state, Variant.read(None).given(given), path, notes)
    folder = path if path.is_dir() else path.parent
    image = fields["image_size"]
    config = SegmenterConfig(
        window=image,
        stride=image,
        decoder="linear",
        n_cls=len(state["head.weight"]),
        normalization=(given or {}).get("normalization")
        or pretrained.normalization_of(folder, fields["distilled"], notes),
        norm_eps=1e-6,
        im_size=_short_side(folder, min(image), notes),
        **fields,
    )
    with torch.device("meta"):
        model = Classifier(config)
    check_state(state, model, path)
    model.load_state_dict({name: value.contiguous() for name, value in state.items()}, assign=True)
    model.info = LoadInfo("timm", (), tuple(notes))
    return model.eval()


def _short_side(folder: Path, size: int, notes: list[str]) -> int:
    """The short side to which published evaluation resizes: the window over crop_pct, rounded down."""
    crop, stated = CROP, {}
    try:
        raw: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated = raw.get("pretrained_cfg", raw)
        crop = float(stated["crop_pct"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        notes.append(f"crop_pct = {CROP}: no config.json states it (--scale)")
    if not 0.1 <= crop <= 1:
        raise CheckpointError(
            f"{folder / 'config.json'}: crop_pct is {crop}, expected 0.1 to 1; correct it, or --scale"
        )
    if isinstance(stated, dict) and stated.get("interpolation", "bilinear") != "bilinear":
        notes.append(f"interpolation is {stated['interpolation']}, here antialiased bilinear (SPEC.md, 7.1)")
    return int(size / crop)


def random_classifier(config: SegmenterConfig, seed: int) -> Classifier:
    """A model in evaluation mode with parameters drawn from `seed`, as `random_segmenter`."""
    return drawn(Classifier, config, seed)
