"""The float Segmenter in plain PyTorch. Parameter names are those of the published checkpoints (rstrudel/segmenter).

Shapes in comments: B images, H x W pixels, P patch size, h x w = H/P x W/P patches, E extra tokens (class token, and
DeiT's distillation token), N = E + h w encoder tokens, C classes, M = h w + C decoder tokens, D width, d head width.

Every intermediate value is the output of a named leaf module (`encoder.blocks.0.attn.softmax`), so that a forward hook
can read or replace it. Modules added for that hold no parameters and leave the published names as they are.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intseg.tools.twin.config import Pair, PosMode, SegmenterConfig


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

    def forward(self, x: Tensor, cosine: bool = True) -> Tensor:
        x = self.concat(self.proj_dec(x), self.cls_emb)  # [B, M, D]
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)
        patches = self.matmul_patch(x[:, : -self.n_cls], self.proj_patch)  # [B, h w, D]
        classes = self.matmul_classes(x[:, -self.n_cls :], self.proj_classes)  # [B, C, D]
        if cosine:
            patches, classes = self.l2_patch(patches), self.l2_classes(classes)
        out: Tensor = self.mask_norm(self.masks(patches, classes.transpose(1, 2)))
        return out


class LinearDecoder(nn.Module):
    """Patches [B, h w, D_encoder] -> scores [B, h w, C]."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.d_model, config.n_cls)

    def forward(self, x: Tensor, cosine: bool = True) -> Tensor:
        out: Tensor = self.head(x)  # nothing here is normalised: cosine changes nothing
        return out


@dataclass(frozen=True)
class LoadInfo:
    """What loading a checkpoint found out."""

    source: Literal["segmenter", "mmseg", "timm"] = "segmenter"
    ignored: tuple[str, ...] = ()  # parameters of the file that segmentation does not use
    notes: tuple[str, ...] = ()  # values that were assumed because nothing states them
    classes: tuple[tuple[str, tuple[int, int, int]], ...] = ()  # names and colours that the checkpoint's meta states


Model = TypeVar("Model", bound=nn.Module)


class Segmenter(nn.Module):
    """Float Segmenter. `config` describes it; `info` says how its checkpoint was read."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.info = LoadInfo()
        self.encoder = Encoder(config)
        self.decoder = (MaskTransformer if config.decoder == "mask_transformer" else LinearDecoder)(config)
        self.upsample = Upsample(config.patch)

    def forward_scores(self, x: Tensor, cosine: bool = True) -> Tensor:
        """Normalised pixels [B, 3, H, W], H and W multiples of the patch -> class scores [B, h, w, C]."""
        patch, (rows, cols) = self.config.patch, x.shape[2:]
        if rows % patch or cols % patch:
            raise ValueError(f"image of {rows} x {cols} pixels: expected multiples of {patch}; pad it, or call forward")
        tokens = self.encoder(x)[:, self.config.n_extra :]
        scores: Tensor = self.decoder(tokens, cosine)
        return scores.reshape(len(x), rows // patch, cols // patch, self.config.n_cls)

    def forward(self, x: Tensor, cosine: bool = True) -> Tensor:
        """Normalised pixels [B, 3, H, W] of any size -> class scores [B, C, H, W].

        As published, the image is padded with zeros (mean grey) below and to the right, and the scores are cropped.
        """
        patch, (rows, cols) = self.config.patch, x.shape[2:]
        x = F.pad(x, (0, -cols % patch, 0, -rows % patch))
        scores: Tensor = self.upsample(self.forward_scores(x, cosine))
        return scores[:, :, :rows, :cols]


def random_segmenter(config: SegmenterConfig, seed: int) -> Segmenter:
    """A model in evaluation mode with parameters drawn from `seed`, for tests and benchmarks.

    The draw keeps the statistics of trained models where they matter to quantization: unit-variance products, LayerNorm
    gains of unequal size with some negative ones, non-zero biases everywhere.
    """
    return drawn(Segmenter, config, seed)


def drawn(kind: type[Model], config: SegmenterConfig, seed: int) -> Model:
    """A model of this kind, its parameters drawn from `seed`."""
    with torch.device("meta"):
        model = kind(config)
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
