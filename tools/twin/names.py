"""Parameter names: those of other sources as the published ones."""

import re
from collections.abc import Mapping
from typing import Final, Literal

from torch import Tensor

State = dict[str, Tensor]

# Published checkpoints keep the classification heads of the backbone; early mmsegmentation kept the unused `conv_seg`,
# and an auxiliary head has a part in training only.
UNUSED: Final = re.compile(
    r"encoder\.(head|head_dist|pre_logits|fc_norm)\..*|decode_head\.conv_seg\..*|(data_preprocessor|auxiliary_head)\..*"
)

_MMSEG_BLOCK: Final = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.attn.in_proj_": "attn.qkv.",
    "attn.attn.out_proj": "attn.proj",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
_MMSEG_TOP: Final = {
    "backbone.patch_embed.projection.": "encoder.patch_embed.proj.",
    "backbone.cls_token": "encoder.cls_token",
    "backbone.pos_embed": "encoder.pos_embed",
    "backbone.ln1.": "encoder.norm.",
    "decode_head.dec_proj.": "decoder.proj_dec.",
    "decode_head.cls_emb": "decoder.cls_emb",
    "decode_head.decoder_norm.": "decoder.decoder_norm.",
    "decode_head.mask_norm.": "decoder.mask_norm.",
}


def published_names(state: Mapping[str, Tensor]) -> tuple[State, Literal["segmenter", "mmseg"]]:
    """Parameters under their published names, whichever names they came with. Unknown names stay as they are."""
    if not any(name.startswith("backbone.") for name in state):
        return dict(state), "segmenter"
    linear = "decode_head.cls_emb" not in state
    return dict(_from_mmseg(name, value, linear) for name, value in state.items()), "mmseg"


def _from_mmseg(name: str, value: Tensor, linear: bool) -> tuple[str, Tensor]:
    if block := re.fullmatch(r"(backbone|decode_head)\.layers\.(\d+)\.(.*)", name):
        side, index, rest = block.groups()
        for old, new in _MMSEG_BLOCK.items():
            if rest.startswith(old):
                side = "encoder" if side == "backbone" else "decoder"
                return f"{side}.blocks.{index}.{new}{rest.removeprefix(old)}", value
    if name in ("decode_head.patch_proj.weight", "decode_head.classes_proj.weight"):
        new = "decoder.proj_patch" if "patch" in name else "decoder.proj_classes"
        return new, value.T  # nn.Linear holds the transpose of the published x @ P
    if linear and name.startswith("decode_head.conv_seg."):  # FCNHead without convolutions: one 1 x 1 convolution
        return name.replace("decode_head.conv_seg", "decoder.head"), value.flatten(1) if value.ndim == 4 else value
    for old, new in _MMSEG_TOP.items():
        if name.startswith(old):
            return new + name.removeprefix(old), value
    return name, value
