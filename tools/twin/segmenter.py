"""The float Segmenter in plain PyTorch, and the reading and writing of its checkpoints.

Parameter names are those of the published checkpoints (rstrudel/segmenter): `checkpoint.pth` holds
`{"model": state_dict}` and lies beside `variant.yml`. Checkpoints with mmsegmentation's names load too.

Shapes in comments: B images, H x W pixels, P patch size, h x w = H/P x W/P patches, E extra tokens (class token, and
DeiT's distillation token), N = E + h w encoder tokens, C classes, M = h w + C decoder tokens, D width, d head width.

Every intermediate value is the output of a named leaf module (`encoder.blocks.0.attn.softmax`), so that a forward hook
can read or replace it. Modules added for that hold no parameters and leave the published names as they are.

What the two sources do differently, all of it in `SegmenterConfig`:

                              rstrudel/segmenter     mmsegmentation
    LayerNorm eps, encoder    1e-5                   1e-6 (its configs)
    LayerNorm eps, decoder    1e-5                   1e-5
    position embedding        bilinear               bicubic
"""

import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from intseg import files
from intseg.errors import InputError, ModelError
from intseg.files import write_atomically

State = dict[str, Tensor]
Decoder = Literal["mask_transformer", "linear"]
Normalization = Literal["vit", "deit"]
PosMode = Literal["bilinear", "bicubic"]
Pair = tuple[int, int]

HEAD_DIM: Final = 64  # of every published model; decoders have no other source for their head count
# Pixels are divided by 255, then normalised per channel with (mean, std).
STATS: Final[dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]]] = {
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class CheckpointError(ModelError):
    """A checkpoint or its variant.yml cannot be used. One line: what was found, what was expected, what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmenterConfig:
    """Everything the forward needs besides the parameters. Sizes are (rows, columns)."""

    image_size: Pair  # pixels that the stored position embedding covers
    patch: int
    d_model: int
    n_layers: int
    n_heads: int
    mlp_dim: int
    n_cls: int
    window: Pair  # pixels of one inference window
    stride: Pair  # pixels between windows, rows and columns
    distilled: bool = False
    decoder: Decoder = "mask_transformer"
    d_decoder: int = 0  # the four are 0 with the linear decoder
    dec_layers: int = 0
    dec_heads: int = 0
    dec_mlp_dim: int = 0
    normalization: Normalization = "vit"
    norm_eps: float = 1e-5  # encoder LayerNorms
    dec_norm_eps: float = 1e-5  # decoder LayerNorms, mask_norm included
    pos_mode: PosMode = "bilinear"
    im_size: int | None = None  # short side of the images it was trained on; None: not stated

    def __post_init__(self) -> None:
        if self.image_size[0] % self.patch or self.image_size[1] % self.patch:
            raise ValueError(f"image_size {self.image_size} is not a multiple of the patch size {self.patch}")
        for what, width, heads in (
            ("encoder", self.d_model, self.n_heads),
            ("decoder", self.d_decoder, self.dec_heads),
        ):
            used = what == "encoder" or self.decoder == "mask_transformer"
            if used and (heads < 1 or width < 1 or width % heads):
                raise ValueError(f"{what} width {width} does not divide into {heads} heads")
        if self.normalization not in STATS:
            raise ValueError(f"normalization {self.normalization!r} is unknown, expected one of {sorted(STATS)}")
        if min(*self.window, *self.stride, self.n_cls, self.n_layers) < 1:
            raise ValueError("window, stride, n_cls and n_layers must be at least 1")

    @property
    def grid(self) -> Pair:
        """Patches that the stored position embedding covers."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def n_extra(self) -> int:
        """Tokens before the patches: the class token, and DeiT's distillation token."""
        return 1 + self.distilled

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per channel, of pixels in [0, 1]."""
        return STATS[self.normalization][0]

    @property
    def std(self) -> tuple[float, float, float]:
        """Per channel, of pixels in [0, 1]."""
        return STATS[self.normalization][1]

    @property
    def upsample(self) -> int:
        """Pixels per score in each direction."""
        return self.patch


class Size(NamedTuple):
    """A ViT by name."""

    d_model: int
    n_layers: int
    n_heads: int


SIZES: Final = {
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
}


def backbone_name(config: SegmenterConfig) -> str:
    """The published name of an encoder (`vit_tiny_patch16_384`), `vit_custom_...` where it has none."""
    size = Size(config.d_model, config.n_layers, config.n_heads)
    known = next((name for name, value in SIZES.items() if value == size), "custom")
    return f"{'deit' if config.distilled else 'vit'}_{known}_{'distilled_' * config.distilled}patch{config.patch}_384"


def backbone_defaults(name: str) -> dict[str, Any]:
    """The `net_kwargs` that a published backbone name implies; empty for other names."""
    found = re.fullmatch(r"(vit|deit)_(tiny|small|base|large)_(distilled_)?patch(\d+)_(224|384)", name)
    if not found:
        return {}
    family, size, distilled, patch, _ = found.groups()
    implied = {"patch_size": int(patch), "normalization": family, "distilled": distilled is not None}
    return SIZES[size]._asdict() | implied


def config_for(
    name: str,
    *,
    n_cls: int = 150,
    patch: int = 16,
    image_size: Pair = (512, 512),
    window: Pair | None = None,
    stride: Pair | None = None,
    decoder: Decoder = "mask_transformer",
    distilled: bool = False,
) -> SegmenterConfig:
    """The published configuration `tiny`, `small`, `base` or `large`."""
    if name not in SIZES:
        raise ValueError(f"model size {name!r} is unknown, expected one of {', '.join(SIZES)}")
    width, layers, heads = SIZES[name]
    mask = decoder == "mask_transformer"
    window = window or image_size
    return SegmenterConfig(
        image_size=image_size,
        patch=patch,
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        mlp_dim=4 * width,
        n_cls=n_cls,
        window=window,
        stride=stride or window,
        distilled=distilled,
        decoder=decoder,
        d_decoder=width * mask,
        dec_layers=2 * mask,
        dec_heads=heads * mask,
        dec_mlp_dim=4 * width * mask,
        normalization="deit" if distilled else "vit",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Leaf modules without parameters: places for hooks
# ---------------------------------------------------------------------------------------------------------------------


class Add(nn.Module):
    """a + b."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class MatMul(nn.Module):
    """a [..., m, k] @ b [..., k, n] -> [..., m, n]."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


class Scale(nn.Module):
    """x times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Concat(nn.Module):
    """Tokens of several tensors [B, n_i, D] -> [B, sum n_i, D]; each is repeated where its B is 1."""

    def forward(self, *parts: Tensor) -> Tensor:
        batch = max(part.shape[0] for part in parts)
        return torch.cat([part.expand(batch, -1, -1) for part in parts], dim=1)


class L2Norm(nn.Module):
    """x [..., D] / |x|. No eps, as published: a zero vector gives NaN."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x / x.norm(dim=-1, keepdim=True)
        return out


class Upsample(nn.Module):
    """Scores [B, h, w, C] -> [B, C, P h, P w], bilinear between patch centres (align_corners=False)."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, scores: Tensor) -> Tensor:
        size = (scores.shape[1] * self.factor, scores.shape[2] * self.factor)
        return F.interpolate(scores.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention [B, N, D] -> [B, N, D]. The rows of `qkv` are ordered (q, k, v), head, d."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.qk = MatMul()
        self.scale = Scale((width // heads) ** -0.5)
        self.softmax = nn.Softmax(dim=-1)
        self.pv = MatMul()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, d]
        p = self.softmax(self.scale(self.qk(q, k.transpose(-2, -1))))  # [B, heads, N, N]
        z = self.pv(p, v)  # [B, heads, N, d]
        out: Tensor = self.proj(z.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Mlp(nn.Module):
    """[B, N, D] -> [B, N, D] through `hidden` channels and the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.add1 = Add()
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)
        self.add2 = Add()

    def forward(self, x: Tensor) -> Tensor:
        x = self.add1(x, self.attn(self.norm1(x)))
        out: Tensor = self.add2(x, self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    """Pixels [B, 3, H, W] -> patches [B, h w, D], row by row."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


def resize_pos_embed(pos: Tensor, old: Pair, new: Pair, n_extra: int, mode: PosMode = "bilinear") -> Tensor:
    """Position embedding [1, E + old, D] of an (h, w) grid -> [1, E + new, D]; the E extra tokens stay as they are."""
    if old == new:
        return pos
    extra, grid = pos[:, :n_extra], pos[:, n_extra:]
    grid = grid.reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)  # [1, D, h, w]
    grid = F.interpolate(grid, size=new, mode=mode, align_corners=False)
    return torch.cat([extra, grid.flatten(2).transpose(1, 2)], dim=1)


class Encoder(nn.Module):
    """ViT or distilled DeiT: pixels [B, 3, H, W] -> tokens [B, N, D], the extra tokens first."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        width, (rows, cols) = config.d_model, config.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.n_extra + rows * cols, width))
        self.patch_embed = PatchEmbed(config.patch, width)
        self.concat = Concat()
        self.pos_add = Add()
        self.blocks = nn.ModuleList(
            Block(width, config.n_heads, config.mlp_dim, config.norm_eps) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def pos_embed_for(self, grid: Pair) -> Tensor:
        """The position embedding [1, E + h w, D] of a grid of (h, w) patches.

        The original compares token counts and so reuses a 16 x 16 embedding unchanged for 8 x 32 patches; here the
        grids are compared.
        """
        c = self.config
        return resize_pos_embed(self.pos_embed, c.grid, grid, c.n_extra, c.pos_mode)

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2] // self.config.patch, x.shape[3] // self.config.patch)
        extra = [self.cls_token, self.dist_token] if self.config.distilled else [self.cls_token]
        x = self.concat(*extra, self.patch_embed(x))
        x = self.pos_add(x, self.pos_embed_for(grid))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


class MaskTransformer(nn.Module):
    """Patches [B, h w, D_encoder] -> scores [B, h w, C]: class embeddings join the patches, then meet in a product."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        width, eps = config.d_decoder, config.dec_norm_eps
        self.n_cls = config.n_cls
        self.proj_dec = nn.Linear(config.d_model, width)
        self.cls_emb = nn.Parameter(torch.zeros(1, config.n_cls, width))
        self.concat = Concat()
        self.blocks = nn.ModuleList(
            Block(width, config.dec_heads, config.dec_mlp_dim, eps) for _ in range(config.dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=eps)
        self.proj_patch = nn.Parameter(torch.zeros(width, width))  # x @ P, not x @ P.T as in nn.Linear
        self.proj_classes = nn.Parameter(torch.zeros(width, width))
        self.matmul_patch = MatMul()
        self.matmul_classes = MatMul()
        self.l2_patch = L2Norm()
        self.l2_classes = L2Norm()
        self.masks = MatMul()
        self.mask_norm = nn.LayerNorm(config.n_cls, eps=eps)

    def forward(self, x: Tensor, l2norm: bool = True) -> Tensor:
        x = self.concat(self.proj_dec(x), self.cls_emb)  # [B, M, D]
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)
        patches = self.matmul_patch(x[:, : -self.n_cls], self.proj_patch)  # [B, h w, D]
        classes = self.matmul_classes(x[:, -self.n_cls :], self.proj_classes)  # [B, C, D]
        if l2norm:
            patches, classes = self.l2_patch(patches), self.l2_classes(classes)
        out: Tensor = self.mask_norm(self.masks(patches, classes.transpose(1, 2)))
        return out


class LinearDecoder(nn.Module):
    """Patches [B, h w, D_encoder] -> scores [B, h w, C]."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.d_model, config.n_cls)

    def forward(self, x: Tensor, l2norm: bool = True) -> Tensor:
        out: Tensor = self.head(x)  # nothing here is normalised: l2norm changes nothing
        return out


@dataclass(frozen=True)
class LoadInfo:
    """What loading a checkpoint found out."""

    source: Literal["segmenter", "mmseg"] = "segmenter"
    ignored: tuple[str, ...] = ()  # parameters of the file that segmentation does not use
    notes: tuple[str, ...] = ()  # values that were assumed because nothing states them
    classes: tuple[tuple[str, tuple[int, int, int]], ...] = ()  # names and colours that the checkpoint's meta states


class Segmenter(nn.Module):
    """Float Segmenter. `config` describes it; `info` says how its checkpoint was read."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.info = LoadInfo()
        self.encoder = Encoder(config)
        self.decoder = (MaskTransformer if config.decoder == "mask_transformer" else LinearDecoder)(config)
        self.upsample = Upsample(config.patch)

    def forward_scores(self, x: Tensor, l2norm: bool = True) -> Tensor:
        """Normalised pixels [B, 3, H, W], H and W multiples of the patch -> class scores [B, h, w, C]."""
        patch, (rows, cols) = self.config.patch, x.shape[2:]
        if rows % patch or cols % patch:
            raise ValueError(f"image of {rows} x {cols} pixels: expected multiples of {patch}; pad it, or call forward")
        tokens = self.encoder(x)[:, self.config.n_extra :]
        scores: Tensor = self.decoder(tokens, l2norm)
        return scores.reshape(len(x), rows // patch, cols // patch, self.config.n_cls)

    def forward(self, x: Tensor, l2norm: bool = True) -> Tensor:
        """Normalised pixels [B, 3, H, W] of any size -> class scores [B, C, H, W].

        As published, the image is padded with zeros (mean grey) below and to the right, and the scores are cropped.
        """
        patch, (rows, cols) = self.config.patch, x.shape[2:]
        x = F.pad(x, (0, -cols % patch, 0, -rows % patch))
        scores: Tensor = self.upsample(self.forward_scores(x, l2norm))
        return scores[:, :, :rows, :cols]


def random_segmenter(config: SegmenterConfig, seed: int) -> Segmenter:
    """A model in evaluation mode with parameters drawn from `seed`, for tests and benchmarks.

    The draw keeps the statistics of trained models where they matter to quantization: unit-variance products, LayerNorm
    gains of unequal size with some negative ones, non-zero biases everywhere.
    """
    with torch.device("meta"):
        model = Segmenter(config)
    generator = torch.Generator().manual_seed(seed)
    state = {name: _draw(name, p.shape, generator) for name, p in model.named_parameters()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * noise
    if "norm" in name:
        return 1.0 + 0.4 * noise
    if name.endswith(("_token", "pos_embed", "cls_emb")):
        return 0.5 * noise
    fan_in = math.prod(shape[1:])
    return noise * (1.0 / math.sqrt(fan_in))


# ---------------------------------------------------------------------------------------------------------------------
# Reading a checkpoint
# ---------------------------------------------------------------------------------------------------------------------

# Published checkpoints keep the classification heads of the backbone; early mmsegmentation kept the unused `conv_seg`.
UNUSED: Final = re.compile(
    r"encoder\.(head|head_dist|pre_logits|fc_norm)\..*|decode_head\.conv_seg\..*|data_preprocessor\..*"
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


def load_checkpoint(path: str | os.PathLike[str], variant: str | os.PathLike[str] | None = None) -> Segmenter:
    """Read a checkpoint into a model in evaluation mode; every failure is a CheckpointError.

    path     a checkpoint file, or the folder that holds `checkpoint.pth`
    variant  the variant.yml; by default the one beside the checkpoint, and if there is none the tensors decide alone

    The tensors say what the architecture is; variant.yml adds what they cannot (heads, window, normalization) and has
    to agree with them. `model.info` lists the parameters left aside and the values assumed.
    """
    file = Path(path)
    file = file / "checkpoint.pth" if file.is_dir() else file
    raw = _read(file)
    state, source = published_names(_tensors(raw, file))
    if variant is None and (file.parent / "variant.yml").is_file():
        variant = file.parent / "variant.yml"
    ignored = tuple(name for name in state if UNUSED.fullmatch(name))
    state = {name: value for name, value in state.items() if name not in ignored}
    config, notes = _config_from(state, source, Variant.read(variant), file)
    with torch.device("meta"):
        model = Segmenter(config)
    _check_state(state, model, file)
    model.load_state_dict({k: v.to(torch.float32, copy=True).contiguous() for k, v in state.items()}, assign=True)
    model.info = LoadInfo(source, ignored, notes, _stated_classes(raw, config.n_cls))
    return model.eval()


def published_names(state: Mapping[str, Tensor]) -> tuple[State, Literal["segmenter", "mmseg"]]:
    """Parameters under their published names, whichever names they came with. Unknown names stay as they are."""
    if all(name.startswith("module.") for name in state):  # saved from a DistributedDataParallel wrapper
        state = {name.removeprefix("module."): value for name, value in state.items()}
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


def _read(file: Path) -> object:
    try:
        with files.opened(file, "", "give a checkpoint.pth") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except InputError as error:
        raise CheckpointError(str(error)) from None
    except Exception as error:  # bad bytes raise RuntimeError, UnpicklingError, EOFError, OSError, KeyError, ...
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{file}: holds the Python object {found[1]}, expected tensors and plain values only; "
                "save its state_dict alone in the environment that wrote it, with torch.save"
            ) from None
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(
            f"{file}: not a complete PyTorch checkpoint ({reason}); download it again, or save it with torch.save"
        ) from None


def _tensors(raw: object, file: Path) -> State:
    """The state dict of {"model": ...} (Segmenter), {"state_dict": ...} (mmsegmentation) or of the file itself."""
    wanted = (
        'expected {"model": {encoder.*, decoder.*}} or mmsegmentation\'s {"state_dict": {backbone.*, decode_head.*}}'
    )
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: holds a {type(raw).__name__}, {wanted}; give the checkpoint.pth of a Segmenter")
    state = next((raw[key] for key in ("model", "state_dict") if isinstance(raw.get(key), dict)), raw)
    names = [str(name) for name in state]
    if not any(name.removeprefix("module.").startswith(("encoder.", "backbone.")) for name in names):
        raise CheckpointError(f"{file}: holds {_few(names)}, {wanted}; give the checkpoint.pth of a Segmenter")
    for name, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"{file}: {name} is {found}, expected a float tensor; save the float model again")
    return {str(name): value for name, value in state.items()}


def _stated_classes(raw: object, n_cls: int) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """Classes of mmsegmentation's meta: CLASSES and PALETTE (0.x) or dataset_meta (1.x); empty where it has none."""
    meta = raw.get("meta") if isinstance(raw, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    meta |= meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), dict) else {}
    names, colours = (meta.get(key, meta.get(key.upper())) for key in ("classes", "palette"))
    try:
        names = [" ".join(name.split()) for name in names]
        found = [(int(r), int(g), int(b)) for r, g, b in colours]
    except (TypeError, ValueError, AttributeError):
        return ()
    usable = len(set(names)) == len(names) == len(found) == n_cls and all(0 <= v <= 255 for c in found for v in c)
    return tuple(zip(names, found, strict=True)) if usable else ()


def _check_state(state: State, model: Segmenter, file: Path) -> None:
    """Names, shapes and values of `state` against a model on the meta device."""
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if missing := [name for name in expected if name not in state]:
        raise CheckpointError(f"{file}: missing parameters {_few(missing)}; save the whole model's state_dict")
    if extra := [name for name in state if name not in expected]:
        raise CheckpointError(
            f"{file}: unexpected parameters {_few(extra)}, expected only those of a "
            f"{model.config.decoder} Segmenter; remove them if they are not part of the model"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            found = list(state[name].shape)
            raise CheckpointError(f"{file}: {name} is {found}, expected {list(shape)}; save the model again")
    if broken := [name for name in expected if not state[name].isfinite().all()]:
        raise CheckpointError(f"{file}: NaN or infinity in {_few(broken)}; expected finite values: training diverged")


def _few(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


# ---------------------------------------------------------------------------------------------------------------------
# variant.yml
# ---------------------------------------------------------------------------------------------------------------------


class VariantLoader(yaml.SafeLoader):
    """Safe YAML plus tuples: published files write `image_size: !!python/tuple [512, 512]`."""


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)


@dataclass(frozen=True)
class Variant:
    """The parts of variant.yml that matter here; all empty where there is no file."""

    name: str  # for messages
    net: dict[str, Any]
    decoder: dict[str, Any]
    inference: dict[str, Any]
    dataset: dict[str, Any]

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None) -> "Variant":
        """Read the file; None stands for a checkpoint that has none."""
        if path is None:
            return cls("no variant.yml", {}, {}, {}, {})
        try:
            raw = yaml.load(files.read_text(path, limit=2**20), Loader=VariantLoader)
        except (InputError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{path}: cannot be read as YAML ({reason}); use the published file") from None
        net = _section(raw, "net_kwargs", path)
        if not net:
            raise CheckpointError(f"{path}: no net_kwargs, expected them in a variant.yml; use the published file")
        net = backbone_defaults(str(net.get("backbone"))) | net
        sections = (_section(raw, key, path) for key in ("inference_kwargs", "dataset_kwargs"))
        return cls(str(path), net, _section(net, "decoder", path), *sections)

    def agree(self, key: str, found: object, tensor: str, values: dict[str, Any] | None = None) -> None:
        """A value that is stated has to be the one that the tensors show."""
        values = self.net if values is None else values
        if key in values and values[key] != found:
            raise CheckpointError(
                f"{self.name}: {key} is {values[key]!r}, but {tensor} in the checkpoint says {found!r}; "
                "use the variant.yml that came with this checkpoint"
            )

    def pair(self, values: dict[str, Any], key: str) -> Pair | None:
        """`512` or `[512, 512]` as (rows, columns); None where it is not stated."""
        value = values.get(key)
        pair = (value, value) if isinstance(value, int) else value
        if pair is None:
            return None
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(type(v) is int and v > 0 for v in pair):
            return pair[0], pair[1]
        raise CheckpointError(f"{self.name}: {key} is {value!r}, expected a positive integer or two; correct it")

    def im_size(self, image: Pair) -> int | None:
        """Short side of the training images; None where it is not stated.

        Earlier versions of `save_checkpoint` wrote the least of image_size without knowing, and no data set beside it.
        """
        stated = self.pair(self.dataset, "image_size")
        found = stated or self.pair(self.inference, "im_size")
        return None if found is None or (not stated and min(found) == min(image)) else min(found)

    def heads(self, values: dict[str, Any], what: str, width: int, notes: list[str]) -> int:
        """Stated heads, otherwise one for every 64 channels: no tensor shows them."""
        heads = values.get("n_heads", max(1, width // HEAD_DIM))
        if type(heads) is not int or heads < 1 or width % heads:
            raise CheckpointError(
                f"{self.name}: {what} n_heads is {heads!r}, expected a divisor of the width {width}; set it"
            )
        if "n_heads" not in values and (what == "encoder" or width % HEAD_DIM):
            notes.append(f"{what} n_heads = {heads}: one per {HEAD_DIM} channels")
        return heads


def _section(raw: object, key: str, path: object) -> dict[str, Any]:
    section = raw.get(key, {}) if isinstance(raw, dict) else None
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: {key} is not a mapping, expected one in a variant.yml; use the published file")
    return section


def _config_from(
    state: State, source: Literal["segmenter", "mmseg"], variant: Variant, file: Path
) -> tuple[SegmenterConfig, tuple[str, ...]]:
    """The configuration that the tensors show, confirmed and completed by variant.yml; and what had to be assumed."""
    notes: list[str] = []
    encoder = _encoder_fields(state, variant, file, notes)
    image = encoder["image_size"]
    for key in ("window_size", "window_stride", "normalization"):
        if key not in variant.inference | variant.net:
            notes.append(f"{key} is not stated: default")
    window = variant.pair(variant.inference, "window_size") or image
    mmseg: dict[str, Any] = {"norm_eps": 1e-6, "pos_mode": "bicubic"} if source == "mmseg" else {}
    stated = {key: variant.net[key] for key in ("norm_eps", "pos_mode") if key in variant.net}
    try:
        config = SegmenterConfig(
            window=window,
            stride=variant.pair(variant.inference, "window_stride") or window,
            normalization=variant.net.get("normalization", "deit" if encoder["distilled"] else "vit"),
            im_size=variant.im_size(image),
            **encoder,
            **_decoder_fields(state, variant, file, notes),
            **(mmseg | stated),
        )
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; correct {variant.name}") from None
    return config, tuple(notes)


def _encoder_fields(state: State, variant: Variant, file: Path, notes: list[str]) -> dict[str, Any]:
    proj = "encoder.patch_embed.proj.weight"
    width, _, patch, _ = _shape(state, proj, 4, file)
    _, tokens, _ = _shape(state, "encoder.pos_embed", 3, file)
    hidden, _ = _shape(state, "encoder.blocks.0.mlp.fc1.weight", 2, file)
    layers = _count_blocks(state, "encoder")
    distilled = "encoder.dist_token" in state
    variant.agree("d_model", width, proj)
    variant.agree("patch_size", patch, proj)
    variant.agree("n_layers", layers, "the number of encoder.blocks")
    variant.agree("distilled", distilled, "the presence of encoder.dist_token")
    return {
        "image_size": _image_size(tokens - 1 - distilled, patch, variant, file, notes),
        "patch": patch,
        "d_model": width,
        "n_layers": layers,
        "n_heads": variant.heads(variant.net, "encoder", width, notes),
        "mlp_dim": hidden,
        "distilled": distilled,
    }


def _image_size(patches: int, patch: int, variant: Variant, file: Path, notes: list[str]) -> Pair:
    """Pixels that the position embedding covers: stated, otherwise a square."""
    if size := variant.pair(variant.net, "image_size"):
        rows, cols = size[0] // patch, size[1] // patch
        if rows * cols != patches:
            raise CheckpointError(
                f"{variant.name}: image_size is {size}, {rows} x {cols} patches of {patch}, but encoder.pos_embed in "
                f"the checkpoint has {patches} patches; use the variant.yml that came with this checkpoint"
            )
        return size
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise CheckpointError(
            f"{file}: encoder.pos_embed has {patches} patches, not a square, expected image_size in "
            f"{variant.name}; write net_kwargs: image_size: [rows, columns] to variant.yml"
        )
    notes.append(f"image_size = {side * patch} x {side * patch}: a square position embedding")
    return side * patch, side * patch


def _decoder_fields(state: State, variant: Variant, file: Path, notes: list[str]) -> dict[str, Any]:
    stated = variant.decoder.get("name")
    if "decoder.cls_emb" not in state and "decoder.head.weight" not in state:
        found = _few([name for name in state if name.startswith(("decoder.", "decode_head."))])
        raise CheckpointError(
            f"{file}: decoder parameters are {found}, expected decoder.cls_emb (mask transformer) or "
            "decoder.head (linear); give a checkpoint with one of these decoders"
        )
    kind: Decoder = "mask_transformer" if "decoder.cls_emb" in state else "linear"
    if stated is not None and ("linear" if "linear" in str(stated) else stated) != kind:
        variant.agree("name", kind, "the decoder", variant.decoder)
    if kind == "linear":
        n_cls, _ = _shape(state, "decoder.head.weight", 2, file)
        variant.agree("n_cls", n_cls, "decoder.head.weight")
        return {"decoder": kind, "n_cls": n_cls}
    _, n_cls, width = _shape(state, "decoder.cls_emb", 3, file)
    layers = _count_blocks(state, "decoder")
    variant.agree("n_cls", n_cls, "decoder.cls_emb")
    variant.agree("n_layers", layers, "the number of decoder.blocks", variant.decoder)
    return {
        "decoder": kind,
        "n_cls": n_cls,
        "d_decoder": width,
        "dec_layers": layers,
        "dec_heads": variant.heads(variant.decoder, "decoder", width, notes),
        "dec_mlp_dim": _shape(state, "decoder.blocks.0.mlp.fc1.weight", 2, file)[0] if layers else 0,
    }


def _shape(state: State, name: str, rank: int, file: Path) -> tuple[int, ...]:
    """The shape of a parameter that the configuration is read from."""
    if name not in state:
        raise CheckpointError(f"{file}: missing parameters {name}; save the whole model's state_dict")
    shape = tuple(state[name].shape)
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"{file}: {name} is {list(shape)}, expected {rank} dimensions; save the model again")
    return shape


def _count_blocks(state: State, side: str) -> int:
    """Distinct block numbers. A gap among them shows up later as a missing block."""
    return len({m[1] for name in state if (m := re.match(rf"{side}\.blocks\.(\d+)\.", name))})


# ---------------------------------------------------------------------------------------------------------------------
# Writing a checkpoint
# ---------------------------------------------------------------------------------------------------------------------


def save_checkpoint(model: Segmenter, folder: str | os.PathLike[str], dataset: str = "") -> None:
    """Write `checkpoint.pth` and `variant.yml` as published; each file appears whole or not at all.

    dataset  its name, from which conversion knows the classes' names; "" for none
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    variant = _variant_of(model.config)
    if dataset:
        variant["dataset_kwargs"] = {"dataset": dataset} | variant["dataset_kwargs"]
    text = yaml.safe_dump(variant, sort_keys=False)
    buffer = io.BytesIO()
    torch.save({"model": state, "n_cls": model.config.n_cls}, buffer)
    write_atomically(target / "checkpoint.pth", buffer.getvalue())
    write_atomically(target / "variant.yml", text.encode())


def _variant_of(c: SegmenterConfig) -> dict[str, Any]:
    """variant.yml of a configuration. Keys unknown to the original code appear only where the model needs them."""
    decoder: dict[str, Any] = {"name": c.decoder}
    if c.decoder == "mask_transformer":
        decoder |= {"n_layers": c.dec_layers, "dropout": 0.0, "drop_path_rate": 0.0}
        if c.dec_heads != c.d_decoder // HEAD_DIM:
            decoder["n_heads"] = c.dec_heads
    net = {
        "backbone": backbone_name(c),
        "image_size": list(c.image_size),
        "patch_size": c.patch,
        "d_model": c.d_model,
        "n_heads": c.n_heads,
        "n_layers": c.n_layers,
        "n_cls": c.n_cls,
        "normalization": c.normalization,
        "distilled": c.distilled,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "decoder": decoder,
    }
    if c.norm_eps != 1e-5:
        net["norm_eps"] = c.norm_eps
    if c.pos_mode != "bilinear":
        net["pos_mode"] = c.pos_mode
    inference: dict[str, Any] = {"window_size": _plain(c.window), "window_stride": _plain(c.stride)}
    dataset: dict[str, Any] = {"normalization": c.normalization}
    if c.im_size is not None:
        dataset["image_size"] = inference["im_size"] = c.im_size
    return {"net_kwargs": net, "dataset_kwargs": dataset, "inference_kwargs": inference}


def _plain(pair: Pair) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)
