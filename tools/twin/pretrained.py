"""A Segmenter with a pretrained encoder, a ViT or DeiT in timm's names or another Segmenter's, and a fresh decoder.

The tensors say width, depth, patch and training size; `config.json` (timm's) or variant.yml beside them how pixels
enter. What nothing says is assumed and noted: a head for every 64 channels, the normalization of the family.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intseg.tools.twin.checkpoint import check_state, encoder_fields
from intseg.tools.twin.config import STATS, CheckpointError, Normalization, Pair, SegmenterConfig
from intseg.tools.twin.containers import few, read_file, require_floats, state_of
from intseg.tools.twin.names import UNUSED
from intseg.tools.twin.segmenter import LoadInfo, Segmenter, resize_pos_embed
from intseg.tools.twin.variant import Variant


def segmenter_from(
    file: Path,
    n_cls: int,
    window: Pair | None = None,
    stride: Pair | None = None,
    normalization: Normalization | None = None,
    seed: int = 0,
) -> Segmenter:
    """The encoder of `file`, its position embedding resized to `window`, and a mask transformer drawn from `seed`.

    window         pixels, (rows, columns); the encoder's training size where None
    stride         between windows; the window where None
    normalization  overrides what config.json or variant.yml says
    Raises CheckpointError. `model.info` lists the parameters left aside and the values assumed.
    """
    notes: list[str] = []
    state = {f"encoder.{name}": value for name, value in tensors(file, notes).items()}
    ignored = tuple(name for name in state if UNUSED.fullmatch(name))
    state = {name: value.float() for name, value in state.items() if name not in ignored}
    folder = file if file.is_dir() else file.parent
    variant = folder / "variant.yml"
    stated = Variant.read(variant if variant.is_file() else None)
    fields = encoder_fields(state, stated, file, notes)
    trained, patch, width = fields.pop("image_size"), fields["patch"], fields["d_model"]
    window = window or trained
    config = SegmenterConfig(
        image_size=window,
        window=window,
        stride=stride or window,
        n_cls=n_cls,
        d_decoder=width,
        dec_layers=2,
        dec_heads=fields["n_heads"],
        dec_mlp_dim=4 * width,
        normalization=normalization
        or stated.net.get("normalization")
        or normalization_of(folder, fields["distilled"], notes),
        **fields,
    )
    old = (trained[0] // patch, trained[1] // patch)
    state["encoder.pos_embed"] = resize_pos_embed(
        state["encoder.pos_embed"], old, config.grid, config.n_extra, config.pos_mode
    )
    with torch.device("meta"):
        model = Segmenter(config)
    state |= _decoder(model, seed)
    check_state(state, model, file)
    model.load_state_dict(state, assign=True)
    model.info = LoadInfo(ignored=ignored, notes=tuple(notes))
    return model.eval()


def _decoder(model: Segmenter, seed: int) -> dict[str, Tensor]:
    """Parameters as Segmenter's authors start them: truncated normal 0.02, unit gains, projections of D^-0.5."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("decoder."):
            continue
        value = torch.zeros(parameter.shape)
        if "proj_patch" in name or "proj_classes" in name:
            value.normal_(generator=generator).mul_(1 / math.sqrt(len(value)))
        elif "norm" in name:
            value.fill_(float(name.endswith("weight")))
        elif not name.endswith("bias"):
            torch.nn.init.trunc_normal_(value, std=0.02, generator=generator)
        state[name] = value
    return state


def tensors(file: Path, notes: list[str], prefix: str = "encoder.") -> dict[str, Tensor]:
    """The encoder in a .safetensors or PyTorch file, under timm's names: without a prefix that there is."""
    file = next(iter(sorted(file.glob("*.safetensors")) + sorted(file.glob("*.pth"))), file) if file.is_dir() else file
    state = state_of(read_file(file), None, notes)
    found = state if isinstance(state, str) else few(list(state))
    if isinstance(state, dict) and any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    if isinstance(state, str) or "blocks.0.attn.qkv.weight" not in state:
        raise CheckpointError(
            f"{file}: holds {found}, expected a ViT or DeiT in timm's names "
            "(blocks.0.attn.qkv.weight, ...), or a Segmenter"
        )
    return require_floats(state, file)


def normalization_of(folder: Path, distilled: bool, notes: list[str]) -> Normalization:
    """The name in STATS of the mean and std that config.json states; without one what the family usually has."""
    path = folder / "config.json"
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        section = raw.get("pretrained_cfg", raw)
        stated = tuple(section["mean"]), tuple(section["std"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        assumed: Normalization = "deit" if distilled else "vit"
        notes.append(f"normalization = {assumed}: no config.json states mean and std (--normalization)")
        return assumed
    for name in ("vit", "deit"):
        if stated == STATS[name]:
            return name  # type: ignore[return-value]
    raise CheckpointError(f"{path}: mean and std are {stated}, expected one of {list(STATS.values())}")
