"""What a Segmenter is besides its parameters, and the published configurations by name."""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from intseg.errors import ModelError

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


def sides(pair: Pair) -> str:
    """(rows, columns) for people."""
    return f"{pair[0]} x {pair[1]}"


class CheckpointError(ModelError):
    """A checkpoint or its variant.yml cannot be used. One line: what was found, what was expected, what to do."""


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
