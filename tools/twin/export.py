"""Write a calibrated fake-quant twin as an engine graph: its own wiring, so that comparing the two checks both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intseg.build import GraphBuilder
from intseg.graph import IMAGE, Graph, ModelInfo
from intseg.ops import OPS
from intseg.tools.twin.layers import Constant, Layer, QLinear
from intseg.tools.twin.model import FakeQuant, FakeQuantClassifier, QBlock, QLinearDecoder


def export(twin: FakeQuant, info: ModelInfo) -> Graph:
    """The graph of a calibrated twin; `info` describes windows and classes. The result is not validated yet."""
    with torch.no_grad():
        return _Builder(twin, info).exported()


class _Builder(GraphBuilder):
    """Every method appends nodes and returns the name of the last."""

    def __init__(self, twin: FakeQuant, info: ModelInfo) -> None:
        super().__init__(info)
        self.twin, self.acts = twin, twin.acts()
        self.scale_names: dict[tuple[tuple[int, ...], bytes], str] = {}

    def exported(self) -> Graph:
        """Encoder, decoder, scores; encoder, heads, logits."""
        tokens = self.encoder()
        if isinstance(self.twin, FakeQuantClassifier):
            return self.graph(self.logits(self.twin, tokens))
        tokens = self.rows("encoder.patches", tokens, self.twin.config.n_extra, self.shape(tokens)[0])
        decoder = self.twin.decoder
        if isinstance(decoder, QLinearDecoder):
            last = self.layer("decoder.head", decoder.head, tokens)
        else:
            last = self.mask_transformer(tokens)
        patch = self.info.patch
        height, width = (side // patch for side in self.info.window)
        return self.graph(self.node("scores", "to_grid", last, height=height, width=width))

    def encoder(self) -> str:
        """From the image to the INT8 tokens."""
        encoder = self.twin.encoder
        table = _integers(encoder.table(), "int8", "quantize_input.table")
        x = self.meaning(self.node("quantize_input", "quantize_input", IMAGE, table=table))
        x = self.node("patchify", "patchify", x, patch=self.info.patch)
        x = self.layer("encoder.patch_embed", encoder.patch_embed, x)
        x = self.node("encoder.tokens", "concat", self.constant("encoder.cls_token", encoder.cls_token), x)
        x = self.layer("encoder.pos_add", encoder.pos_add, x, self.constant("encoder.pos_embed", encoder.pos_embed))
        for i, block in enumerate(encoder.blocks):
            x = self.block(f"encoder.blocks.{i}", block, x)
        return self.layer("encoder.norm", encoder.norm, x)

    def logits(self, twin: FakeQuantClassifier, tokens: str) -> str:
        """From the INT8 tokens to the INT32 logits: the sum of the heads, at their mean's scale."""
        rows = []
        for i, (token, (name, layer)) in enumerate(twin.heads().items()):
            rows.append(self.layer(name, layer, self.rows(token, tokens, i, i + 1)))
        last = self.node("heads", "concat", *rows) if len(rows) == 2 else rows[0]
        meaning = twin.logit_act.scale / len(rows), twin.logit_act.mid
        return self.meaning(self.node("logits", "sum_rows", last), meaning)

    def block(self, name: str, block: QBlock, x: str) -> str:
        """norm, attention, add; norm, MLP, add."""
        y = self.layer(f"{name}.norm1", block.norm1, x)
        x = self.layer(f"{name}.add1", block.add1, x, self.attention(f"{name}.attn", block, y))
        y = self.layer(f"{name}.norm2", block.norm2, x)
        y = self.layer(f"{name}.mlp.fc1", block.fc1, y)
        y = self.layer(f"{name}.mlp.act", block.gelu, y)
        y = self.layer(f"{name}.mlp.fc2", block.fc2, y)
        return self.layer(f"{name}.add2", block.add2, x, y)

    def attention(self, name: str, block: QBlock, x: str) -> str:
        """qkv, heads, scores, softmax, context, merged heads, proj."""
        attn = block.attn
        qkv = self.layer(f"{name}.qkv", attn.qkv, x)
        q, k, v = (
            self.node(f"{name}.{part}", "split_heads", qkv, heads=attn.heads, part=i, parts=3)
            for i, part in enumerate("qkv")
        )
        unit = (torch.as_tensor(attn.softmax.unit()).reshape(-1, 1, 1), torch.tensor(0.0))
        s = self.layer(f"{name}.scores", attn.scores, q, k, scale=unit)
        p = self.layer(f"{name}.softmax", attn.softmax, s, scale=(torch.tensor(attn.softmax.step), torch.tensor(0.0)))
        per_head = [t.reshape(attn.heads, 1, -1) for t in (attn.context_act.scale, attn.context_act.mid)]
        c = self.layer(f"{name}.context", attn.context, p, v, scale=(per_head[0], per_head[1]))
        merged = self.node(f"{name}.merge", "merge_heads", c)
        return self.layer(f"{name}.proj", attn.proj, merged)

    def mask_transformer(self, x: str) -> str:
        """From the INT8 patch tokens to the INT16 scores per patch."""
        decoder = self.twin.decoder
        x = self.layer("decoder.proj_dec", decoder.proj_dec, x)
        x = self.node("decoder.tokens", "concat", x, self.constant("decoder.cls_emb", decoder.cls_emb))
        for i, block in enumerate(decoder.blocks):
            x = self.block(f"decoder.blocks.{i}", block, x)
        x = self.layer("decoder.decoder_norm", decoder.decoder_norm, x)
        tokens = self.shape(x)[0]
        patches = self.rows("decoder.patches", x, 0, tokens - decoder.n_cls)
        classes = self.rows("decoder.classes", x, tokens - decoder.n_cls, tokens)
        patches = self.layer("decoder.proj_patch", decoder.proj_patch, patches)
        classes = self.layer("decoder.proj_classes", decoder.proj_classes, classes)
        if decoder.cosine:
            patches = self.layer("decoder.l2_patch", decoder.l2_patch, patches)
            classes = self.layer("decoder.l2_classes", decoder.l2_classes, classes)
        masks = self.layer("decoder.masks", decoder.masks, patches, classes)
        return self.layer("decoder.mask_norm", decoder.mask_norm, masks)

    def rows(self, name: str, x: str, start: int, stop: int) -> str:
        """A slice of tokens."""
        return self.node(name, "slice", x, start=start, stop=stop)

    def constant(self, name: str, constant: Constant) -> str:
        """A learned INT16 tensor."""
        return self.tensor(name, _integers(constant.integers()["value"], "int16", name))

    def layer(self, name: str, layer: Layer, *inputs: str, scale: tuple[Tensor, Tensor] | None = None) -> str:
        """The node of one of the twin's layers."""
        dtypes = OPS[layer.op].params
        params = {role: _integers(x, dtypes[role], f"{name}.{role}") for role, x in layer.integers().items()}
        if isinstance(layer, QLinear) and layer.bits < 8:
            self.packed[f"{name}.weight"] = int(layer.bits)
        return self.meaning(self.node(name, layer.op, *inputs, **params, **layer.attrs()), scale)

    def meaning(self, name: str, scale: tuple[Tensor, Tensor] | None = None) -> str:
        """Say what the integers of the last node stand for: the given scale, or that of the twin's activation."""
        if scale is None and name in self.acts:
            scale = self.acts[name].scale, self.acts[name].mid
        if scale is not None:
            self.nodes[-1] = replace(self.nodes[-1], scale=self.scale(name, *scale, len(self.shape(name))))
        return name

    def scale(self, name: str, scale: Tensor, mid: Tensor, rank: int) -> str:
        """Name of the int32 tensor [3, ...] that says what integers stand for; equal ones are stored once."""
        array = _scale_integers(scale, mid)
        if array.ndim == 2 and (array == array[:, :1]).all():
            array = array[:, :1]
        array = array.reshape(3, *(1,) * (rank + 1 - array.ndim), *array.shape[1:])
        key = (array.shape, array.tobytes())
        if key not in self.scale_names:
            self.scale_names[key] = f"{name}.scale"
            self.tensors[f"{name}.scale"] = array
        return self.scale_names[key]


def _integers(tensor: Tensor, dtype: str, name: str) -> NDArray[np.signedinteger]:
    """An int64 tensor as a narrower array; what does not fit is an error, never a wrap."""
    array = tensor.detach().cpu().numpy()
    narrow = array.astype(dtype)
    if not np.array_equal(narrow, array):
        raise ValueError(f"{name}: values in [{array.min()}, {array.max()}] do not fit {dtype}")
    return np.ascontiguousarray(narrow)


def _scale_integers(scale: Tensor, mid: Tensor) -> NDArray[np.int32]:
    """(mult, offset, shift) with real = (q * mult + offset) * 2^-shift; 22 bits for the scale if the mid allows."""
    scale, mid = torch.broadcast_tensors(scale.double(), mid.double())
    largest = torch.maximum(scale, mid.abs() / 256).clamp(min=2.0**-40)
    shift = (22 - torch.frexp(largest).exponent).clamp(0, 62).double()
    rows = [torch.round(scale * 2**shift), torch.round(mid * 2**shift), shift]
    return torch.stack(rows).to(torch.int32).numpy()
