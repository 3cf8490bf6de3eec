"""The float Segmenter: its forward against independent wirings, its checkpoints, and every error of reading them."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from intseg.errors import InputError
from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.config import CheckpointError, SegmenterConfig, backbone_defaults, backbone_name, config_for
from intseg.tools.twin.segmenter import LoadInfo, Segmenter, random_segmenter, resize_pos_embed

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


def tiny(**changes: Any) -> SegmenterConfig:
    """A small mask-transformer configuration: 2 + 1 blocks, 4 x 6 patches of 4 pixels, 5 classes."""
    fields: dict[str, Any] = {
        "image_size": (16, 24),
        "patch": 4,
        "d_model": 24,
        "n_layers": 2,
        "n_heads": 3,
        "mlp_dim": 40,
        "n_cls": 5,
        "window": (16, 24),
        "stride": (8, 12),
        "d_decoder": 16,
        "dec_layers": 1,
        "dec_heads": 2,
        "dec_mlp_dim": 20,
    }
    return SegmenterConfig(**(fields | changes))


def linear(**changes: Any) -> SegmenterConfig:
    """The same encoder with the linear decoder."""
    return tiny(decoder="linear", d_decoder=0, dec_layers=0, dec_heads=0, dec_mlp_dim=0, **changes)


FAMILIES = {
    "mask": tiny(),
    "linear": linear(),
    "distilled": tiny(distilled=True, normalization="deit"),
    "distilled-linear": linear(distilled=True, normalization="deit"),
    "patch8": tiny(patch=8, image_size=(32, 32), window=(32, 32), stride=(16, 16)),
    "patch32": tiny(patch=32, image_size=(64, 96), window=(64, 96), stride=(64, 96)),
    "one-head-per-64": tiny(d_model=64, n_heads=1, d_decoder=128, dec_heads=2),
    "no-decoder-blocks": tiny(dec_layers=0, dec_mlp_dim=0),
    "mmseg-numerics": tiny(norm_eps=1e-6, pos_mode="bicubic"),
    "window-not-image": tiny(window=(32, 32), stride=(16, 20)),
}


def image(config: SegmenterConfig, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *config.image_size, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# --- the forward, against a second wiring ---------------------------------------------------------------------------


def reference_scores(p: dict[str, Tensor], c: SegmenterConfig, x: Tensor) -> Tensor:
    """The published model written as functions of its parameters, with PyTorch's own attention and normalisation."""

    def norm(name: str, y: Tensor, eps: float) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def dense(name: str, y: Tensor) -> Tensor:
        return F.linear(y, p[f"{name}.weight"], p[f"{name}.bias"])

    def block(name: str, y: Tensor, heads: int, eps: float) -> Tensor:
        q, k, v = (
            t.reshape(len(t), -1, heads, t.shape[-1] // heads).transpose(1, 2)
            for t in dense(f"{name}.attn.qkv", norm(f"{name}.norm1", y, eps)).chunk(3, dim=-1)
        )
        z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = y + dense(f"{name}.attn.proj", z)
        return y + dense(f"{name}.mlp.fc2", F.gelu(dense(f"{name}.mlp.fc1", norm(f"{name}.norm2", y, eps))))

    conv = F.conv2d(x, p["encoder.patch_embed.proj.weight"], p["encoder.patch_embed.proj.bias"], stride=c.patch)
    extra = [p[f"encoder.{name}"] for name in ("cls_token", "dist_token")[: c.n_extra]]
    y = torch.cat([t.expand(len(x), -1, -1) for t in extra] + [conv.flatten(2).mT], 1) + p["encoder.pos_embed"]
    for i in range(c.n_layers):
        y = block(f"encoder.blocks.{i}", y, c.n_heads, c.norm_eps)
    y = norm("encoder.norm", y, c.norm_eps)[:, c.n_extra :]
    if c.decoder == "linear":
        return dense("decoder.head", y).reshape(len(x), *c.grid, -1)
    y = torch.cat([dense("decoder.proj_dec", y), p["decoder.cls_emb"].expand(len(x), -1, -1)], 1)
    for i in range(c.dec_layers):
        y = block(f"decoder.blocks.{i}", y, c.dec_heads, c.dec_norm_eps)
    y = norm("decoder.decoder_norm", y, c.dec_norm_eps)
    patches = F.normalize(y[:, : -c.n_cls] @ p["decoder.proj_patch"], dim=-1)
    classes = F.normalize(y[:, -c.n_cls :] @ p["decoder.proj_classes"], dim=-1)
    return norm("decoder.mask_norm", patches @ classes.mT, c.dec_norm_eps).reshape(len(x), *c.grid, -1)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_match_a_second_wiring(family: str) -> None:
    config = FAMILIES[family]
    model = random_segmenter(config, seed=1)
    x = image(config)
    with torch.no_grad():
        scores = model.forward_scores(x)
        assert scores.shape == (2, *config.grid, config.n_cls)
        close(scores, reference_scores(dict(model.named_parameters()), config, x))


def test_every_layernorm_has_the_eps_of_its_side() -> None:
    """Too small to show in the scores, so read directly."""
    model = random_segmenter(tiny(norm_eps=1e-3, dec_norm_eps=1e-2), seed=0)
    norms = {name: module.eps for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 2 * 2 + 1 + 2 * 1 + 2
    assert all(eps == (1e-3 if name.startswith("encoder") else 1e-2) for name, eps in norms.items())


def test_without_l2_the_masks_are_plain_products() -> None:
    model = random_segmenter(tiny(), seed=2)
    seen: dict[str, Tensor] = {}
    for name in ("matmul_patch", "matmul_classes", "l2_patch"):
        module = model.decoder.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        scores = model.forward_scores(image(tiny()), cosine=False)
        masks = seen["matmul_patch"] @ seen["matmul_classes"].mT
        close(scores.flatten(1, 2), model.decoder.get_submodule("mask_norm")(masks))
    assert "l2_patch" not in seen


@pytest.mark.parametrize("size", [(16, 24), (15, 23), (17, 1), (40, 32)])
def test_forward_pads_below_and_right_and_crops(size: tuple[int, int]) -> None:
    model = random_segmenter(tiny(), seed=3)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(4))
    padded = torch.zeros(1, 3, -(-size[0] // 4) * 4, -(-size[1] // 4) * 4)
    padded[:, :, : size[0], : size[1]] = x
    with torch.no_grad():
        scores = model.forward_scores(padded).permute(0, 3, 1, 2)
        expected = F.interpolate(scores, scale_factor=4, mode="bilinear")[:, :, : size[0], : size[1]]
        close(model(x), expected)


def test_scores_need_whole_patches() -> None:
    with pytest.raises(ValueError, match="15 x 24 pixels: expected multiples of 4"):
        random_segmenter(tiny(), seed=0).forward_scores(torch.zeros(1, 3, 15, 24))


def test_position_embedding_is_resized_bilinearly_and_extra_tokens_stay() -> None:
    pos = torch.arange(2 + 6, dtype=torch.float32).reshape(1, 8, 1).repeat(1, 1, 2)  # tokens 0, 1; 2 x 3 grid from 2
    out = resize_pos_embed(pos, (2, 3), (4, 3), 2)
    assert out.shape == (1, 14, 2)
    assert out[0, :2, 0].tolist() == [0, 1]
    # Rows 2 and 5 become four rows whose centres lie at -1/4, 1/4, 3/4, 5/4 of the old rows, clamped to [0, 1].
    assert out[0, 2::3, 1].tolist() == [2, 2.75, 4.25, 5]
    assert resize_pos_embed(pos, (2, 3), (2, 3), 2) is pos


def test_same_token_count_on_another_grid_is_resized() -> None:
    encoder = random_segmenter(tiny(), seed=0).encoder
    assert torch.equal(encoder.pos_embed_for((4, 6)), encoder.pos_embed)
    assert not torch.equal(encoder.pos_embed_for((6, 4)), encoder.pos_embed)


def test_position_embedding_mode_reaches_the_encoder() -> None:
    modes = ("bilinear", "bicubic")
    a, b = (random_segmenter(tiny(pos_mode=mode), seed=0).encoder.pos_embed_for((8, 8)) for mode in modes)
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("family", ["mask", "linear", "distilled"])
def test_every_leaf_module_fires_once_in_its_own_order(family: str) -> None:
    model = random_segmenter(FAMILIES[family], seed=0)
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    fired: list[str] = []
    for name in leaves:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: fired.append(name))
    with torch.no_grad():
        model(image(FAMILIES[family]))
    assert fired == leaves


def test_hooks_can_replace_every_value_between_leaves() -> None:
    """Each leaf's output is what the next one gets: zeroing any of them changes the scores."""
    config = tiny(n_layers=1)
    model = random_segmenter(config, seed=5)
    x = image(config, batch=1)
    with torch.no_grad():
        plain = model(x)
        for name, module in model.named_modules():
            if not list(module.children()):
                handle = module.register_forward_hook(lambda _m, _i, out: out * 0 + 0.5)
                assert not torch.allclose(model(x), plain, equal_nan=True), name
                handle.remove()


def test_random_models_repeat_and_differ_by_seed() -> None:
    first, again, other = (random_segmenter(tiny(), seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "width", "layers"), [("tiny", 192, 12), ("small", 384, 12), ("base", 768, 12), ("large", 1024, 24)]
)
def test_named_configurations_have_the_parameters_counted_by_hand(name: str, width: int, layers: int) -> None:
    with torch.device("meta"):
        model = Segmenter(config_for(name))
    block = 12 * width**2 + 13 * width
    encoder = layers * block + 3 * 16**2 * width + (1 + 1 + 1 + 32 * 32 + 2) * width
    decoder = 2 * block + 3 * width**2 + (1 + 150 + 2) * width + 2 * 150
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder


def test_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'huge' is unknown, expected one of tiny, small, base, large"):
        config_for("huge")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (config_for("tiny"), "vit_tiny_patch16_384"),
        (config_for("base", patch=8), "vit_base_patch8_384"),
        (config_for("large", patch=32), "vit_large_patch32_384"),
        (config_for("base", distilled=True), "deit_base_distilled_patch16_384"),
        (tiny(), "vit_custom_patch4_384"),
    ],
)
def test_backbone_names(config: SegmenterConfig, name: str) -> None:
    assert backbone_name(config) == name
    implied = backbone_defaults(name)
    assert (not implied) == ("custom" in name)
    renamed = {"patch_size": "patch"}
    assert all(getattr(config, renamed.get(key, key)) == value for key, value in implied.items())


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_models_load_as_they_were(family: str, tmp_path: Path) -> None:
    model = random_segmenter(FAMILIES[family], seed=11)
    save_checkpoint(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth", "variant.yml"]
    for path in (tmp_path, tmp_path / "checkpoint.pth"):
        loaded = load_checkpoint(path)
        assert loaded.config == model.config
        assert loaded.info == LoadInfo()
        assert not loaded.training
        assert all(p.requires_grad for p in loaded.parameters())
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_failed_save_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_segmenter(tiny(), seed=0)
    save_checkpoint(model, tmp_path)
    before = (tmp_path / "checkpoint.pth").read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(model, tmp_path)
    assert (tmp_path / "checkpoint.pth").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_published_file_with_tuples_heads_and_optimizer_loads(tmp_path: Path) -> None:
    """As rstrudel/segmenter writes it: python/tuple in the YAML, classification heads and the optimizer in the file."""
    config = tiny(distilled=True, normalization="deit", image_size=(16, 16), window=(16, 16), stride=(12, 12))
    model = random_segmenter(config, seed=0)
    save_checkpoint(model, tmp_path)
    heads = {f"encoder.{name}.{kind}": torch.ones(2) for name in ("head", "head_dist") for kind in ("weight", "bias")}
    state = model.state_dict() | heads
    torch.save({"model": state, "optimizer": {"state": {}, "lr": 1e-3}, "n_cls": 5, "epoch": 3}, tmp_path / "c.pth")
    text = (tmp_path / "variant.yml").read_text()
    listed = "image_size:\n  - 16\n  - 16\n"
    assert listed in text
    (tmp_path / "variant.yml").write_text(text.replace(listed, listed.replace(":", ": !!python/tuple")))
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert loaded.config == config
    assert loaded.info.ignored == tuple(heads)
    with torch.no_grad():
        assert torch.equal(loaded(image(config)), model(image(config)))


def test_without_variant_the_tensors_decide(tmp_path: Path) -> None:
    config = tiny(
        d_model=128, n_heads=2, d_decoder=64, dec_heads=1, image_size=(16, 16), window=(16, 16), stride=(16, 16)
    )
    save_checkpoint(random_segmenter(config, seed=0), tmp_path)
    (tmp_path / "variant.yml").unlink()
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == config
    assert loaded.info.notes == (
        "image_size = 16 x 16: a square position embedding",
        "encoder n_heads = 2: one per 64 channels (--heads)",
        "window_size = 16 x 16: not stated (--window)",
        "window_stride = 16 x 16: not stated (--stride)",
        "normalization = vit: not stated (--normalization)",
    )


def test_backbone_name_stands_for_what_it_implies(tmp_path: Path) -> None:
    config = dataclasses.replace(linear(), d_model=192, mlp_dim=8, n_layers=12, patch=16, image_size=(32, 48))
    save_checkpoint(random_segmenter(config, seed=0), tmp_path)
    text = "net_kwargs: {backbone: vit_tiny_patch16_384, image_size: [32, 48]}"
    (tmp_path / "variant.yml").write_text(text)
    loaded = load_checkpoint(tmp_path)
    assert (loaded.config.n_heads, loaded.config.normalization, loaded.config.grid) == (3, "vit", (2, 3))
    (tmp_path / "variant.yml").write_text(text.replace("tiny", "small"))
    with pytest.raises(CheckpointError, match=r"d_model is 384, but .* says 192"):
        load_checkpoint(tmp_path)


def test_explicit_variant_wins_over_the_one_beside(tmp_path: Path) -> None:
    save_checkpoint(random_segmenter(tiny(), seed=0), tmp_path)
    other = tmp_path / "other.yml"
    other.write_text((tmp_path / "variant.yml").read_text().replace("n_heads: 3", "n_heads: 6"))
    assert load_checkpoint(tmp_path, other).config.n_heads == 6


def test_half_precision_and_wrapped_checkpoints_load_as_float32(tmp_path: Path) -> None:
    model = random_segmenter(tiny(), seed=0)
    save_checkpoint(model, tmp_path)
    torch.save({f"module.{k}": v.half() for k, v in model.state_dict().items()}, tmp_path / "bare.pth")
    loaded = load_checkpoint(tmp_path / "bare.pth")
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.half().float())


def test_loaded_parameters_share_no_memory(tmp_path: Path) -> None:
    """Two parameters saved as one storage are trained apart afterwards."""
    model = random_segmenter(tiny(), seed=0)
    save_checkpoint(model, tmp_path)
    state = model.state_dict()
    state["encoder.blocks.0.norm1.weight"] = state["encoder.blocks.0.norm2.weight"]
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    pointers = [p.data_ptr() for p in load_checkpoint(tmp_path).parameters()]
    assert len(set(pointers)) == len(pointers)


# --- mmsegmentation -------------------------------------------------------------------------------------------------


class MmsegFfn(nn.Module):
    """mmcv's FFN: layers.0 is Sequential(Linear, GELU), layers.1 is Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(width, hidden), nn.GELU()), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class MmsegAttention(nn.Module):
    """mmcv's MultiheadAttention: PyTorch's own, one level down."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attn(x, x, x)[0]
        return out


class MmsegLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = MmsegAttention(width, heads)
        self.ffn = MmsegFfn(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        out: Tensor = x + self.ffn(self.ln2(x))
        return out


class MmsegTwin(nn.Module):
    """mmsegmentation's Segmenter with its own names and layout: nn.MultiheadAttention, nn.Linear projections."""

    def __init__(self, c: SegmenterConfig) -> None:
        super().__init__()
        self.c = c
        self.backbone: Any = nn.Module()
        backbone = self.backbone
        backbone.patch_embed = nn.Module()
        backbone.patch_embed.projection = nn.Conv2d(3, c.d_model, c.patch, c.patch)
        backbone.cls_token = nn.Parameter(torch.zeros(1, 1, c.d_model))
        backbone.pos_embed = nn.Parameter(torch.zeros(1, 1 + c.grid[0] * c.grid[1], c.d_model))
        backbone.layers = nn.Sequential(*[MmsegLayer(c.d_model, c.n_heads, c.mlp_dim, 1e-6) for _ in range(c.n_layers)])
        backbone.ln1 = nn.LayerNorm(c.d_model, eps=1e-6)
        self.decode_head: Any = nn.Module()
        head = self.decode_head
        if c.decoder == "linear":
            head.conv_seg = nn.Conv2d(c.d_model, c.n_cls, 1)
            return
        head.dec_proj = nn.Linear(c.d_model, c.d_decoder)
        head.cls_emb = nn.Parameter(torch.zeros(1, c.n_cls, c.d_decoder))
        layers = [MmsegLayer(c.d_decoder, c.dec_heads, c.dec_mlp_dim, 1e-5) for _ in range(c.dec_layers)]
        head.layers = nn.Sequential(*layers)
        head.patch_proj = nn.Linear(c.d_decoder, c.d_decoder, bias=False)
        head.classes_proj = nn.Linear(c.d_decoder, c.d_decoder, bias=False)
        head.decoder_norm, head.mask_norm = nn.LayerNorm(c.d_decoder), nn.LayerNorm(c.n_cls)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> scores [B, C, h, w]."""
        b, head = self.backbone, self.decode_head
        y = b.patch_embed.projection(x).flatten(2).mT
        y = torch.cat([b.cls_token.expand(len(x), -1, -1), y], 1) + b.pos_embed
        y = b.ln1(b.layers(y))[:, 1:]
        if self.c.decoder == "linear":
            out: Tensor = head.conv_seg(y.mT.reshape(len(x), -1, *self.c.grid))
            return out
        y = head.decoder_norm(head.layers(torch.cat([head.dec_proj(y), head.cls_emb.expand(len(x), -1, -1)], 1)))
        patches = F.normalize(head.patch_proj(y[:, : -self.c.n_cls]), dim=2)
        classes = F.normalize(head.classes_proj(y[:, -self.c.n_cls :]), dim=2)
        scores: Tensor = head.mask_norm(patches @ classes.mT)
        return scores.mT.reshape(len(x), -1, *self.c.grid)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_mmseg_checkpoint_gives_the_scores_of_mmseg(decoder: str, wrapped: bool, tmp_path: Path) -> None:
    square = {"image_size": (16, 16), "window": (16, 16), "stride": (16, 16), "d_model": 128, "n_heads": 2}
    config = tiny(**square, d_decoder=64, dec_heads=1) if decoder == "mask" else linear(**square)
    twin = MmsegTwin(config).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in twin.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    state = twin.state_dict()
    unused = {"decode_head.conv_seg.weight": torch.ones(1)} if decoder == "mask" else {}
    state = state | unused
    names, colours = [f"class  {i}" for i in range(config.n_cls)], [[i, 2, 255] for i in range(config.n_cls)]
    old, new = {"CLASSES": names, "PALETTE": colours}, {"dataset_meta": {"classes": tuple(names), "palette": colours}}
    meta = old if decoder == "mask" else new
    torch.save({"meta": meta, "state_dict": state} if wrapped else state, tmp_path / "iter.pth")
    loaded = load_checkpoint(tmp_path / "iter.pth")
    assert loaded.config == dataclasses.replace(config, norm_eps=1e-6, pos_mode="bicubic")
    assert (loaded.info.source, loaded.info.ignored) == ("mmseg", tuple(unused))
    assert loaded.info.classes == tuple((f"class {i}", (i, 2, 255)) for i in range(config.n_cls) if wrapped)
    x = image(config)
    with torch.no_grad():
        close(loaded.forward_scores(x).permute(0, 3, 1, 2), twin(x))
    save_checkpoint(loaded, tmp_path / "again")  # the published layout keeps mmseg's eps and resize mode
    assert load_checkpoint(tmp_path / "again").config == loaded.config


# --- errors ---------------------------------------------------------------------------------------------------------

Edit = Callable[[dict[str, Tensor]], object]


def error_of(path: Path, variant: Path | None = None) -> str:
    """The message of the CheckpointError that loading raises: one line, and it names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, variant)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message or "variant.yml" in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(random_segmenter(tiny(), seed=0), tmp_path)
    return tmp_path


def edit_state(folder: Path, edit: Edit) -> None:
    raw = torch.load(folder / "checkpoint.pth", weights_only=True)
    edit(raw["model"])
    torch.save(raw, folder / "checkpoint.pth")


def edit_variant(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    raw = yaml.safe_load((folder / "variant.yml").read_text())
    edit(raw)
    (folder / "variant.yml").write_text(yaml.safe_dump(raw))


FC1 = "encoder.blocks.0.mlp.fc1.weight"
STATE_ERRORS: dict[str, tuple[Edit, str]] = {
    "missing": (lambda s: s.pop("encoder.norm.bias"), "missing parameters encoder.norm.bias; save"),
    "missing-shape-source": (lambda s: s.pop("encoder.pos_embed"), "missing parameters encoder.pos_embed; save"),
    "missing-many": (
        lambda s: [s.pop(name) for name in list(s) if ".blocks.0.a" in name],
        "missing parameters encoder.blocks.0.attn.qkv.weight, .* and 4 more",
    ),
    "extra": (lambda s: s.update({"encoder.gate": torch.ones(1)}), "unexpected parameters encoder.gate, expected only"),
    "shape": (
        lambda s: s.update({"encoder.norm.bias": torch.ones(7)}),
        r"encoder.norm.bias is \[7\], expected \[24\]",
    ),
    "rank": (lambda s: s.update({FC1: torch.ones(3)}), r"fc1.weight is \[3\], expected 2 dimensions"),
    "empty": (lambda s: s.update({FC1: torch.ones(0, 24)}), r"fc1.weight is \[0, 24\], expected 2 dimensions"),
    "nan": (lambda s: s["decoder.cls_emb"][0, 1].fill_(torch.nan), "NaN or infinity in decoder.cls_emb; expected"),
    "inf": (lambda s: s[FC1].view(-1)[5].fill_(-torch.inf), f"NaN or infinity in {FC1}"),
    "integers": (lambda s: s.update({FC1: torch.ones(40, 24, dtype=torch.int8)}), f"{FC1} is torch.int8, expected a"),
    "not-a-tensor": (lambda s: s.update({FC1: "text"}), f"{FC1} is str, expected a float tensor"),  # type: ignore[dict-item]
    "no-decoder": (
        lambda s: [s.pop(name) for name in list(s) if name in ("decoder.cls_emb", "decoder.proj_patch")],
        r"decoder parameters are decoder.proj_classes, .* more, expected decoder.cls_emb",
    ),
    "gap-in-blocks": (
        lambda s: s.update({"encoder.blocks.3.norm1.bias": torch.ones(24)}),
        "n_layers is 2, but the number of encoder.blocks in the checkpoint says 3",
    ),
}


@pytest.mark.parametrize("case", STATE_ERRORS)
def test_wrong_parameters(case: str, folder: Path) -> None:
    edit, message = STATE_ERRORS[case]
    edit_state(folder, edit)
    assert re.search(message, error_of(folder))


def test_gap_in_blocks_without_variant_is_a_missing_block(folder: Path) -> None:
    (folder / "variant.yml").write_text("net_kwargs: {image_size: [16, 24], n_heads: 3, decoder: {n_heads: 2}}")
    edit_state(folder, lambda s: s.update({"encoder.blocks.999999999.norm1.bias": torch.ones(24)}))
    assert "missing parameters encoder.blocks.2.norm1.weight" in error_of(folder)


VARIANT_ERRORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "d_model": (lambda v: v["net_kwargs"].update(d_model=32), "d_model is 32, but encoder.patch_embed.* says 24"),
    "patch": (lambda v: v["net_kwargs"].update(patch_size=16), "patch_size is 16, but .* says 4"),
    "layers": (lambda v: v["net_kwargs"].update(n_layers=12), "n_layers is 12, but .* says 2"),
    "classes": (lambda v: v["net_kwargs"].update(n_cls=150), "n_cls is 150, but decoder.cls_emb in .* says 5"),
    "distilled": (lambda v: v["net_kwargs"].update(distilled=True), "distilled is True, but .* says False"),
    "decoder": (lambda v: v["net_kwargs"]["decoder"].update(name="linear"), "name is 'linear', but .* 'mask_trans"),
    "decoder-layers": (lambda v: v["net_kwargs"]["decoder"].update(n_layers=2), "n_layers is 2, but .*decoder.blocks"),
    "heads": (lambda v: v["net_kwargs"].update(n_heads=5), "encoder n_heads is 5, expected a divisor of the width 24"),
    "heads-type": (lambda v: v["net_kwargs"].update(n_heads="3"), "encoder n_heads is '3', expected a divisor"),
    "image": (lambda v: v["net_kwargs"].update(image_size=[16, 16]), "image_size is .16, 16.,.* has 24 patches"),
    "image-type": (lambda v: v["net_kwargs"].update(image_size="big"), "image_size is 'big', expected a positive"),
    "image-remainder": (lambda v: v["net_kwargs"].update(image_size=[18, 24]), "not a multiple of the patch size 4"),
    "no-image": (lambda v: v["net_kwargs"].pop("image_size"), "24 patches, not a square, expected image_size"),
    "normalization": (lambda v: v["net_kwargs"].update(normalization="x"), "'x' is unknown, expected one of .'deit'"),
    "window": (lambda v: v["inference_kwargs"].update(window_size=0), "window_size is 0, expected a positive integer"),
    "stride": (lambda v: v["inference_kwargs"].update(window_stride=[1]), "window_stride is .1., expected a positive"),
    "section": (lambda v: v.update(net_kwargs=[1]), "net_kwargs is not a mapping"),
    "no-net": (lambda v: v.pop("net_kwargs"), "no net_kwargs, expected them in a variant.yml"),
}


@pytest.mark.parametrize("case", VARIANT_ERRORS)
def test_wrong_variant(case: str, folder: Path) -> None:
    edit, message = VARIANT_ERRORS[case]
    edit_variant(folder, edit)
    assert re.search(message, error_of(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "cannot be read as YAML"),
        ("- 1", "net_kwargs is not a mapping"),
        ("", "net_kwargs is not a mapping"),
        ("net_kwargs: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_unreadable_variant(text: str, message: str, folder: Path) -> None:
    (folder / "variant.yml").write_text(text)
    assert message in error_of(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    assert "No such file" in error_of(tmp_path / "nowhere.pth")
    assert "No such file" in error_of(folder, tmp_path / "other-variant.yml")


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_truncated_file(keep: int, folder: Path) -> None:
    path = folder / "checkpoint.pth"
    path.write_bytes(path.read_bytes()[:keep])
    assert "not a complete PyTorch checkpoint" in error_of(path)


def test_not_a_pytorch_file(folder: Path) -> None:
    (folder / "checkpoint.pth").write_text("<html>404</html>")
    assert "not a complete PyTorch checkpoint" in error_of(folder)


class Unsafe:
    """Something that unpickling would have to import."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], 'holds a list, expected {"model":'),
        ({"weights": torch.ones(1), 3: 4}, "holds weights, 3, expected"),
        ({"model": {}}, "holds nothing, expected"),
        ({"model": {"fc.weight": torch.ones(1)}}, "holds fc.weight, expected"),
    ],
)
def test_not_a_segmenter(content: object, message: str, folder: Path) -> None:
    torch.save(content, folder / "checkpoint.pth")
    assert message in error_of(folder)


def test_python_objects_are_refused_and_named(folder: Path) -> None:
    torch.save({"model": Unsafe()}, folder / "checkpoint.pth")
    assert re.search(r"holds the Python object \S*Unsafe, expected .\"model\"", error_of(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (15, 24)}, "not a multiple of the patch size 4"),
        ({"n_heads": 5}, "encoder width 24 does not divide into 5 heads"),
        ({"dec_heads": 0}, "decoder width 16 does not divide into 0 heads"),
        ({"normalization": "none"}, "normalization 'none' is unknown"),
        ({"stride": (0, 4)}, "must be at least 1"),
    ],
)
def test_impossible_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**change)
