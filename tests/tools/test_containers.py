"""Checkpoints as other programs save them: keys, prefixes, objects that nobody needs, mmsegmentation's config."""

import argparse
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from test_segmenter import MmsegTwin, close, image, linear, tiny
from torch import Tensor

from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.config import CheckpointError, SegmenterConfig
from intseg.tools.twin.segmenter import Segmenter, random_segmenter

State = dict[str, Tensor]


def renamed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


class History(dict[str, int]):
    """As mmengine's HistoryBuffer: a class that only its own package knows."""

    def __init__(self) -> None:
        self.log = np.arange(3)


class Harm:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


CONTAINERS: dict[str, Callable[[State], object]] = {
    "bare": lambda s: s,
    "compiled and wrapped": lambda s: renamed(s, "_orig_mod.module."),
    "wrapped and compiled": lambda s: {"state_dict": renamed(s, "model.module._orig_mod.")},
    "model_state_dict": lambda s: {"model_state_dict": s, "epoch": 3},
    "ema": lambda s: {"ema_state_dict": s, "best": np.float32(0.5)},
    "student": lambda s: {"student": renamed(s, "module."), "teacher": {"encoder.x": torch.zeros(1)}},
    "averaged": lambda s: renamed(s, "module.") | {"n_averaged": torch.tensor(7)},
    "mmengine's average": lambda s: {"ema_state_dict": renamed(s, "module.") | {"steps": torch.tensor(9)}},
    "arguments": lambda s: {"model": s, "args": argparse.Namespace(lr=1), "best_miou": np.float64(3)},
    "message_hub": lambda s: {"state_dict": s, "message_hub": {"log": History(), "seen": np.arange(2)}},
    "harm": lambda s: {"model": s, "hook": Harm()},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", CONTAINERS)
def test_the_parameters_are_found_and_nothing_is_run(
    case: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = random_segmenter(tiny(), seed=0)
    save_checkpoint(model, tmp_path)
    content = CONTAINERS[case](dict(model.state_dict()))
    torch.save(content, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert not Path("harmed").exists()


def test_several_state_dicts_are_said_and_chosen(tmp_path: Path) -> None:
    raw, averaged = (random_segmenter(tiny(), seed) for seed in (1, 2))
    save_checkpoint(raw, tmp_path)
    torch.save({"model": raw.state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "checkpoint.pth")

    def first(model: Segmenter) -> Tensor:
        return next(model.parameters())

    loaded = load_checkpoint(tmp_path)
    assert torch.equal(first(loaded), first(raw))
    assert "parameters = model: model, model_ema are there (--state)" in loaded.info.notes
    assert torch.equal(first(load_checkpoint(tmp_path, key="model_ema")), first(averaged))
    with pytest.raises(CheckpointError, match=r"holds no ema \(its dictionaries: model, model_ema\)"):
        load_checkpoint(tmp_path, key="ema")


def test_safetensors_and_narrow_floats(tmp_path: Path) -> None:
    model = random_segmenter(tiny(), seed=0)
    save_checkpoint(model, tmp_path)
    file = tmp_path / "float.safetensors"
    safetensors.torch.save_file(dict(model.state_dict()), file)
    assert torch.equal(next(load_checkpoint(file).parameters()), next(model.parameters()))
    safetensors.torch.save_file(dict(model.state_dict()), file, metadata={"intseg": "{}"})
    with pytest.raises(CheckpointError, match="holds integer weights, expected a float checkpoint"):
        load_checkpoint(file)
    narrow = {name: value.to(torch.float8_e4m3fn) for name, value in model.state_dict().items()}
    torch.save(narrow, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"cls_token is torch.float8_e4m3fn, expected a float tensor"):
        load_checkpoint(tmp_path)


# --- mmsegmentation's config ----------------------------------------------------------------------------------------

CFG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
backbone_norm_cfg = dict(type='LN', eps=1e-06, requires_grad=True)
data_preprocessor = dict(type='SegDataPreProcessor', mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5],
                         bgr_to_rgb=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='VisionTransformer', img_size=(16, 24), patch_size=4, embed_dims=24, num_layers=2, num_heads=6,
                  drop_path_rate=0.1, attn_drop_rate=0.0, final_norm=True, norm_cfg=backbone_norm_cfg,
                  with_cls_token=True, interpolate_mode='bicubic', patch_bias=False, out_indices=(1, )),
    decode_head=dict(type='SegmenterMaskTransformerHead', in_channels=24, num_classes=5, num_heads=4, embed_dims=16),
    test_cfg=dict(mode='slide', crop_size=(16, 24), stride=(12, 16)))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2048, 512), keep_ratio=True)]
"""


def save_mmseg(path: Path, config: SegmenterConfig, text: str, without: tuple[str, ...] = ()) -> MmsegTwin:
    twin = MmsegTwin(config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in twin.named_parameters():
        gone = name.endswith(without) if without else False
        parameter.data = 0.0 * parameter if gone else 0.3 * torch.randn(parameter.shape, generator=generator)
    state = {name: value for name, value in twin.state_dict().items() if not (without and name.endswith(without))}
    torch.save({"meta": {"cfg": text}, "state_dict": state}, path)
    return twin


def test_the_config_says_what_tensors_cannot(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny(), n_heads=6, dec_heads=4, norm_eps=1e-6, pos_mode="bicubic", im_size=512)
    config = dataclasses.replace(config, image_size=(16, 24), window=(16, 24), stride=(12, 16))
    file = tmp_path / "iter.pth"
    twin = save_mmseg(file, config, CFG, ("projection.bias", "in_proj_bias", "out_proj.bias"))
    loaded = load_checkpoint(file)
    assert loaded.config == config
    assert loaded.info.notes == tuple(
        f"{kind}.bias = 0: no layer has one"
        for kind in (
            *("encoder patch_embed.proj", "encoder attn.qkv", "encoder attn.proj"),
            *("decoder attn.qkv", "decoder attn.proj"),
        )
    )
    x = image(config)
    with torch.no_grad():
        close(loaded.forward_scores(x).permute(0, 3, 1, 2), twin(x))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("out_indices=(1, )", "out_indices=[0]", r"out_indices is 0, expected the last block, 1"),
        ("patch_bias=False", "act_cfg=dict(type='ReLU')", "act_cfg is ReLU, expected GELU"),
        ("with_cls_token=True", "with_cls_token=False", "with_cls_token is False, expected True"),
        ("'bicubic'", "'nearest'", "interpolate_mode is nearest"),
        ("mean=[127.5, 127.5, 127.5]", "mean=[1, 2, 3]", r"mean \[1, 2, 3\], std .*, expected those of vit or deit"),
        ("bgr_to_rgb=True", "bgr_to_rgb=False", "feeds BGR, expected RGB"),
        ("                         bgr_to_rgb=True", "", "feeds BGR, expected RGB"),
        ("mean=[127.5, 127.5, 127.5], ", "", "has no mean of pixels, expected that of vit or deit"),
        ("num_heads=4,", "num_heads=4, align_corners=True,", "decode_head.align_corners is True, expected False"),
        ("patch_bias=False", "num_fcs=3", "backbone.num_fcs is 3, expected 2"),
        ("'SegmenterMaskTransformerHead'", "'FCNHead'", "decode_head.num_convs is 2, expected 0"),
        ("num_classes=5", "num_classes=2, out_channels=1", "one output channel, sigmoid and a threshold of 0.3"),
        ("num_heads=6", "num_heads=7", "n_heads is 7, expected a divisor of the width 24"),
    ],
)
def test_what_the_graph_cannot_do_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in CFG
    save_mmseg(tmp_path / "iter.pth", dataclasses.replace(tiny(), image_size=(16, 24)), CFG.replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "iter.pth")


def test_a_config_of_version_0(tmp_path: Path) -> None:
    """Pixels by img_norm_cfg, RGB unless it says otherwise; the size of images around their transforms."""
    head, model = CFG.split("model = dict(", 1)
    norm = "img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])\n"
    old = head.split("data_preprocessor", 1)[0] + norm + "model = dict(" + model.split("test_pipeline", 1)[0]
    old = old.replace("    data_preprocessor=data_preprocessor,\n", "")
    old += "test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(2048, 512), transforms=[dict(type='Resize')])]\n"
    config, file = dataclasses.replace(tiny(), image_size=(16, 24)), tmp_path / "iter.pth"
    save_mmseg(file, config, old)
    loaded = load_checkpoint(file)
    assert (loaded.config.normalization, loaded.config.im_size, loaded.info.notes) == ("deit", 512, ())
    save_mmseg(file, config, old.replace("57.375])", "57.375], to_rgb=False)"))
    with pytest.raises(CheckpointError, match="feeds BGR, expected RGB"):
        load_checkpoint(file)


def test_a_side_without_biases(tmp_path: Path) -> None:
    """mmsegmentation's qkv_bias is one of the backbone and one of the head; it is proj's too."""
    config = dataclasses.replace(tiny(), n_heads=6, dec_heads=4, norm_eps=1e-6, image_size=(16, 24))
    twin, file = MmsegTwin(config).eval(), tmp_path / "iter.pth"
    state = dict(twin.state_dict())
    for name in [name for name in state if name.startswith("backbone") and "attn" in name and name.endswith("bias")]:
        twin.get_parameter(name).data.zero_()
        del state[name]
    torch.save({"meta": {"cfg": CFG}, "state_dict": state}, file)
    loaded = load_checkpoint(file)
    assert loaded.info.notes == tuple(f"encoder attn.{kind}.bias = 0: no layer has one" for kind in ("qkv", "proj"))
    with torch.no_grad():
        close(loaded.forward_scores(image(config)).permute(0, 3, 1, 2), twin(image(config)))


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (" keep_ratio=True", " keep_ratio=False", "mmsegmentation makes every image 2048 x 512: here as they are"),
        ("(2048, 512)", "(1024, 512)", "mmsegmentation's long side is at most 1024: here 2048"),
        ("mode='slide', ", "", "mmsegmentation runs it on whole images"),
    ],
)
def test_what_is_done_otherwise_is_said(old: str, new: str, note: str, tmp_path: Path) -> None:
    assert old in CFG
    config = dataclasses.replace(tiny(), image_size=(16, 24))
    save_mmseg(tmp_path / "iter.pth", config, CFG.replace(old, new))
    loaded = load_checkpoint(tmp_path / "iter.pth")
    assert any(line.startswith(note) for line in loaded.info.notes)
    assert loaded.config.im_size == (None if "every" in note else 512)


def test_heads_that_a_config_leaves_out_are_the_default_of_mmsegmentation(tmp_path: Path) -> None:
    save_mmseg(tmp_path / "iter.pth", tiny(), CFG.replace("num_heads=6,", ""))
    assert load_checkpoint(tmp_path / "iter.pth").config.n_heads == 12
    save_mmseg(tmp_path / "iter.pth", tiny(), CFG.replace(" num_heads=4,", ""))
    notes = load_checkpoint(tmp_path / "iter.pth").info.notes
    assert "decoder n_heads = 1: not stated (net_kwargs: decoder: n_heads in a variant.yml)" in notes


def test_a_config_that_cannot_be_read_states_nothing(tmp_path: Path) -> None:
    square = {"image_size": (16, 16), "window": (16, 16), "stride": (16, 16), "d_model": 128, "n_heads": 2}
    for text in ("model = dict(", "model = build()", "import os\nmodel = dict(backbone=dict(num_heads=os.getpid()))"):
        save_mmseg(tmp_path / "iter.pth", linear(**square), text)
        assert load_checkpoint(tmp_path / "iter.pth").config.n_heads == 2
