"""A float ONNX file as the input of intseg convert."""

import copy
import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import CAMVID, NO_DECODER
from patterns import pattern
from PIL import Image

from intseg import store
from intseg.tools import convert
from intseg.tools.twin.checkpoint import save_checkpoint
from intseg.tools.twin.config import CheckpointError, SegmenterConfig
from intseg.tools.twin.onnx_import import load_onnx
from intseg.tools.twin.segmenter import Attention, Segmenter, random_segmenter

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

SMALL = dataclasses.replace(CAMVID, image_size=(32, 48), window=(32, 48), stride=(32, 48))
LINEAR = dataclasses.replace(SMALL, decoder="linear", distilled=True, normalization="deit", **NO_DECODER)


def exported(config: SegmenterConfig, path: Path, dynamo: bool = False, separate: bool = False) -> Segmenter:
    """A model that torch.onnx.export wrote; separate: q, k and v from three layers, two biases zero."""
    model = random_segmenter(config, 3)
    if separate:
        torch.nn.init.zeros_(model.encoder.patch_embed.proj.bias)
        torch.nn.init.zeros_(model.decoder.proj_dec.bias)
    written = copy.deepcopy(model)
    for module in [m for m in written.modules() if isinstance(m, Attention)] if separate else []:
        parts = zip(module.qkv.weight.chunk(3), module.qkv.bias.chunk(3), strict=True)
        module.parts = torch.nn.ModuleList(linear(weight, bias) for weight, bias in parts)
        module.forward = functools.partial(in_three, module)
    about = {"dynamo": True, "verbose": False} if dynamo else {"dynamo": False, "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(written, (torch.randn(1, 3, *config.window),), path, **about)
    return model


def linear(weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Linear:
    made = torch.nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def in_three(self: Any, x: torch.Tensor) -> torch.Tensor:
    """An attention as Hugging Face has it, q last of the three, with a mask that masks nothing."""
    batch, tokens, _ = x.shape
    k, v, q = (self.parts[i](x).view(batch, tokens, self.heads, -1).transpose(1, 2) for i in (1, 2, 0))
    z = torch.nn.functional.scaled_dot_product_attention(q, k, v, torch.ones(tokens, tokens) > 0)
    return self.proj(z.transpose(1, 2).reshape(x.shape))


def assert_found(path: Path, model: Segmenter) -> None:
    found = load_onnx(path)
    assert found.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
        assert found.state_dict()[name].stride() == value.stride(), name


@pytest.mark.parametrize("config", [SMALL, LINEAR], ids=["mask", "linear"])
def test_what_torch_exports_is_the_model_again(config: SegmenterConfig, tmp_path: Path) -> None:
    assert_found(tmp_path / "m.onnx", exported(config, tmp_path / "m.onnx"))


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
def test_three_layers_in_place_of_one(dynamo: bool, tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip("onnxscript", reason="the extra [check] is not installed")
        assert_found(tmp_path / "plain.onnx", exported(SMALL, tmp_path / "plain.onnx", dynamo))
    assert_found(tmp_path / "m.onnx", exported(SMALL, tmp_path / "m.onnx", dynamo, separate=True))
    nodes = {node.op_type: node for node in reversed(onnx.load(tmp_path / "m.onnx").graph.node)}
    assert not dynamo or ({"IsNaN", "Where"} <= {*nodes} and len(nodes["Conv"].input) == 2)


def fused(self: Any, x: torch.Tensor) -> torch.Tensor:
    """An attention as timm has it, whose export computes the scale from the shape of q and multiplies q and k."""
    batch, tokens, width = x.shape
    q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
    z = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return self.proj(z.transpose(1, 2).reshape(batch, tokens, width))


def test_a_fused_attention_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Attention, "forward", fused)
        exported(SMALL, tmp_path / "m.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert {"Sqrt", "Shape"} <= kinds
    assert load_onnx(tmp_path / "m.onnx").config == SMALL


def test_converting_it_gives_the_weights_of_the_checkpoint(tmp_path: Path) -> None:
    model = exported(SMALL, tmp_path / "m.onnx")
    save_checkpoint(model, tmp_path / "ck")
    Image.fromarray(pattern(0, 32, 48)[0]).save(tmp_path / "photo.png")
    made = []
    for source in ("m.onnx", "ck"):
        target = tmp_path / f"{source}.safetensors"
        arguments = [str(tmp_path / source), "-o", str(target), "--calibrate", str(tmp_path / "photo.png"), "-q"]
        assert convert.main(arguments) == 0
        made.append(store.load(target).tensors)
    assert made[0].keys() == made[1].keys()
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


def changed(made: Any, kind: str, change: Any) -> str:
    """The graph with its first node of a kind changed; that node's name."""
    node = next(node for node in made.graph.node if node.op_type == kind)
    change(node)
    return str(node.name)


def test_the_first_node_that_does_not_fit_is_named(tmp_path: Path) -> None:
    exported(SMALL, tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx")
    name = changed(made, "Erf", lambda node: setattr(node, "op_type", "Tanh"))
    onnx.save(made, tmp_path / "tanh.onnx")
    with pytest.raises(CheckpointError, match=f"Tanh '{name}', expected Erf"):
        load_onnx(tmp_path / "tanh.onnx")
    made = onnx.load(tmp_path / "m.onnx")
    adds = [node for node in made.graph.node if node.op_type == "Add" and node.name.endswith("add2/Add")]
    adds[0].input[0] = adds[0].input[1]  # the branch twice instead of the stream and the branch
    onnx.save(made, tmp_path / "rewired.onnx")
    with pytest.raises(CheckpointError, match="connected otherwise"):
        load_onnx(tmp_path / "rewired.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a whole ONNX model"):
        load_onnx(tmp_path / "cut.onnx")
