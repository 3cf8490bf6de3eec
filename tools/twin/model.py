"""The fake-quant twin of a Segmenter or a classifier: the engine's integers, gradients that pass straight through.

An activation is a `Quantized` pair: `q`, the exact integers (int64), and `real`, the same values as floats that carry
gradients. Every layer computes `q` with integer arithmetic written here for PyTorch, independently of the engine, and
`real` as surrogate + (dequantized q - surrogate).detach(): forward it is what the integers stand for, backward it is
the float layer. Node names are the engine's; `record` receives every intermediate under its name.

Integers derive from three kinds of state, all in `state_dict()`: float parameters, `Act` buffers (what an activation's
integers stand for) and weight scales. Nothing is remembered outside of it, so saving and loading loses nothing.

`recipe.py` names the arithmetics, `primitives.py` computes, `act.py` says what integers stand for, `layers.py`,
`gelu.py` and `attention.py` are the layers; here they become blocks, an encoder, decoders and the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from intseg.errors import UsageError, suggest
from intseg.tools.twin.act import Act, Quantized
from intseg.tools.twin.attention import QAttention, Record, nothing
from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.gelu import QGelu
from intseg.tools.twin.layers import Constant, QAdd, QL2Norm, QLayerNorm, QLinear, QMatMul
from intseg.tools.twin.recipe import Recipe
from intseg.tools.twin.segmenter import Segmenter


class QBlock(nn.Module):
    """Pre-norm transformer block on an INT16 residual stream."""

    def __init__(self, block: Any, x: Act, recipe: Recipe) -> None:
        super().__init__()
        width = block.mlp.fc1.in_features
        self.norm1_act, self.add1_act, self.norm2_act, self.add2_act = (
            Act(width, 8),
            Act(1, 16),
            Act(width, 8),
            Act(1, 16),
        )
        units = block.mlp.fc1.out_features if recipe.gelu == "gelu_table" else 1
        self.fc1_act, self.gelu_act, self.fc2_act = Act(units, 8), Act(units, 8), Act(1, 16)
        table = (Act(1, 8), Act(1, 8)) if recipe.gelu == "gelu_table" else (None, None)
        self.norm1 = QLayerNorm(block.norm1, self.norm1_act)
        self.attn = QAttention(block.attn, self.norm1_act, recipe)
        self.add1 = QAdd(x, self.attn.proj_act, self.add1_act)
        self.norm2 = QLayerNorm(block.norm2, self.norm2_act)
        self.fc1 = QLinear(block.mlp.fc1.weight, block.mlp.fc1.bias, self.norm2_act, self.fc1_act)
        self.gelu = QGelu(recipe, self.fc1_act, self.gelu_act, *table)
        self.fc2 = QLinear(block.mlp.fc2.weight, block.mlp.fc2.bias, self.gelu_act, self.fc2_act)
        self.add2 = QAdd(self.add1_act, self.fc2_act, self.add2_act)

    def forward(self, x: Quantized, name: str, record: Record) -> Quantized:
        normed = self.norm1(x)
        record(f"{name}.norm1", normed.q)
        x = self.add1(x, self.attn(normed, f"{name}.attn", record))
        record(f"{name}.add1", x.q)
        y = x
        for part, layer in (
            ("norm2", self.norm2),
            ("mlp.fc1", self.fc1),
            ("mlp.act", self.gelu),
            ("mlp.fc2", self.fc2),
        ):
            y = layer(y)
            record(f"{name}.{part}", y.q)
        x = self.add2(x, y)
        record(f"{name}.add2", x.q)
        return x

    def acts(self, name: str) -> dict[str, Act]:
        """Node name -> what its integers stand for; the parts of `attn.qkv` and the logits follow from these."""
        a = self.attn
        return {
            f"{name}.norm1": self.norm1_act,
            f"{name}.attn.qkv": a.qkv_act,
            f"{name}.attn.merge": a.context_act,
            f"{name}.attn.proj": a.proj_act,
            f"{name}.add1": self.add1_act,
            f"{name}.norm2": self.norm2_act,
            f"{name}.mlp.fc1": self.fc1_act,
            f"{name}.mlp.act": self.gelu_act,
            f"{name}.mlp.fc2": self.fc2_act,
            f"{name}.add2": self.add2_act,
        }

    def linears(self, name: str) -> dict[str, QLinear]:
        """Node name -> linear layer."""
        found = {f"{name}.attn.qkv": self.attn.qkv, f"{name}.attn.proj": self.attn.proj}
        return found | {f"{name}.mlp.fc1": self.fc1, f"{name}.mlp.fc2": self.fc2}


def _join(a: Quantized, b: Quantized) -> Quantized:
    """Tokens of a, then tokens of b; whichever has no batch axis is repeated."""

    def cat(x: Tensor, y: Tensor) -> Tensor:
        batch = max(x.ndim, y.ndim) == 3 and next(t.shape[0] for t in (x, y) if t.ndim == 3)
        parts = [t if t.ndim == 3 else t.expand(batch, -1, -1) for t in (x, y)]
        return torch.cat(parts, dim=1)

    return Quantized(cat(a.q, b.q), cat(a.real, b.real))


def _rows(x: Quantized, rows: slice) -> Quantized:
    return Quantized(x.q[:, rows], x.real[:, rows])


class QEncoder(nn.Module):
    """uint8 windows -> INT8 tokens after the last norm, all of them."""

    def __init__(self, model: Segmenter | Classifier, window: tuple[int, int], recipe: Recipe) -> None:
        super().__init__()
        config, encoder = model.config, model.encoder
        width, grid = config.d_model, (window[0] // config.patch, window[1] // config.patch)
        self.patch = config.patch
        self.register_buffer("mean", torch.tensor(config.mean, dtype=torch.float64))
        self.register_buffer("std", torch.tensor(config.std, dtype=torch.float64))
        self.input_act, self.patch_act = Act(3, 8), Act(3 * config.patch**2, 8)
        self.embed_act, self.pos_act, self.x_act = Act(1, 16), Act(1, 16), Act(1, 16)
        # [D, 3, P, P] -> [D, P * P * 3]: patchify flattens a patch as (row, column, channel).
        kernel = encoder.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
        self.patch_embed = QLinear(kernel, encoder.patch_embed.proj.bias, self.patch_act, self.embed_act)
        extra = [encoder.cls_token, encoder.dist_token] if config.distilled else [encoder.cls_token]
        self.cls_token = Constant(torch.cat([token[0] for token in extra]), self.embed_act)
        self.pos_embed = Constant(encoder.pos_embed_for(grid)[0], self.pos_act)
        self.pos_add = QAdd(self.embed_act, self.pos_act, self.x_act)
        streams = [self.x_act]
        self.blocks = nn.ModuleList()
        for block in encoder.blocks:
            self.blocks.append(QBlock(block, streams[-1], recipe))
            streams.append(self.blocks[-1].add2_act)
        self.norm_act = Act(width, 8)
        self.norm = QLayerNorm(encoder.norm, self.norm_act)

    def table(self) -> Tensor:
        """Integers of the 256 pixel values, [3, 256]."""
        pixels = torch.arange(256, dtype=torch.float64, device=self.mean.device) / 255
        return self.input_act.quantize((pixels[:, None] - self.mean) / self.std).T

    def forward(self, images: Tensor, record: Record) -> Quantized:
        b, h, w, _ = images.shape
        index = images.long()
        q = torch.stack([self.table()[c][index[..., c]] for c in range(3)], dim=-1)
        record("quantize_input", q)
        p = self.patch
        q = q.reshape(b, h // p, p, w // p, p, 3).transpose(2, 3).reshape(b, -1, p * p * 3)
        record("patchify", q)
        x = self.patch_embed(Quantized(q, self.patch_act.dequantize(q).to(self.patch_embed.weight.dtype)))
        record("encoder.patch_embed", x.q)
        x = _join(self.cls_token(), x)
        record("encoder.tokens", x.q)
        x = self.pos_add(x, self.pos_embed())
        record("encoder.pos_add", x.q)
        for i, block in enumerate(self.blocks):
            x = block(x, f"encoder.blocks.{i}", record)
        x = self.norm(x)
        record("encoder.norm", x.q)
        return x


class QMaskTransformer(nn.Module):
    """INT8 patch tokens -> INT16 class scores [B, h w, C]."""

    def __init__(self, decoder: Any, x: Act, recipe: Recipe) -> None:
        super().__init__()
        width, self.n_cls, self.cosine = decoder.proj_dec.out_features, decoder.n_cls, recipe.cosine
        bits = 16 if recipe.cosine else 8
        self.dec_act, self.norm_act = Act(1, 16), Act(width, 8)
        self.patch_act, self.class_act = Act(1, bits), Act(1, bits)
        self.mask_act, self.score_act = Act(1, 16), Act(1, 16)
        self.proj_dec = QLinear(decoder.proj_dec.weight, decoder.proj_dec.bias, x, self.dec_act)
        self.cls_emb = Constant(decoder.cls_emb[0], self.dec_act)
        streams = [self.dec_act]
        self.blocks = nn.ModuleList()
        for block in decoder.blocks:
            self.blocks.append(QBlock(block, streams[-1], recipe))
            streams.append(self.blocks[-1].add2_act)
        self.decoder_norm = QLayerNorm(decoder.decoder_norm, self.norm_act)
        self.proj_patch = QLinear(decoder.proj_patch.T, None, self.norm_act, self.patch_act)
        self.proj_classes = QLinear(decoder.proj_classes.T, None, self.norm_act, self.class_act)
        if recipe.cosine:
            self.l2_patch_act, self.l2_class_act = Act(1, 8), Act(1, 8)
            self.l2_patch, self.l2_classes = QL2Norm(self.l2_patch_act), QL2Norm(self.l2_class_act)
        self.masks = QMatMul(True, self.mask_act, self._mask_scale)
        self.mask_norm = QLayerNorm(decoder.mask_norm, self.score_act)

    def mask_factors(self) -> tuple[Act, Act]:
        """What the masks are the product of: patches and classes."""
        return (self.l2_patch_act, self.l2_class_act) if self.cosine else (self.patch_act, self.class_act)

    def _mask_scale(self) -> Tensor:
        a, b = self.mask_factors()
        return a.scale * b.scale / self.mask_act.scale

    def forward(self, x: Quantized, record: Record) -> Quantized:
        x = self.proj_dec(x)
        record("decoder.proj_dec", x.q)
        x = _join(x, self.cls_emb())
        record("decoder.tokens", x.q)
        for i, block in enumerate(self.blocks):
            x = block(x, f"decoder.blocks.{i}", record)
        x = self.decoder_norm(x)
        record("decoder.decoder_norm", x.q)
        patches, classes = _rows(x, slice(None, -self.n_cls)), _rows(x, slice(-self.n_cls, None))
        record("decoder.patches", patches.q)
        record("decoder.classes", classes.q)
        patches, classes = self.proj_patch(patches), self.proj_classes(classes)
        record("decoder.proj_patch", patches.q)
        record("decoder.proj_classes", classes.q)
        if self.cosine:
            patches, classes = self.l2_patch(patches), self.l2_classes(classes)
            record("decoder.l2_patch", patches.q)
            record("decoder.l2_classes", classes.q)
        with torch.no_grad():
            q = self.masks.exact(patches.q, classes.q)
        masks = self.mask_act.wrap(q, lambda: patches.real @ classes.real.transpose(-1, -2))
        record("decoder.masks", masks.q)
        out: Quantized = self.mask_norm(masks)
        record("decoder.mask_norm", out.q)
        return out


class QLinearDecoder(nn.Module):
    """INT8 patch tokens -> INT16 class scores [B, h w, C] by one linear layer."""

    def __init__(self, decoder: Any, x: Act, recipe: Recipe) -> None:
        super().__init__()
        self.score_act = Act(1, 16)
        self.head = QLinear(decoder.head.weight, decoder.head.bias, x, self.score_act)

    def forward(self, x: Quantized, record: Record) -> Quantized:
        out: Quantized = self.head(x)
        record("decoder.head", out.q)
        return out


class FakeQuant(nn.Module):
    """The twin. Built from a float model; `calibrate.py` gives its `Act`s and weight scales their values.

    window   pixels (height, width) of one window, multiples of the patch
    """

    decoder: nn.Module | None

    def __init__(self, model: Segmenter | Classifier, window: tuple[int, int], recipe: Recipe) -> None:
        super().__init__()
        self.config: SegmenterConfig = model.config
        self.window, self.recipe = window, recipe
        self.encoder = QEncoder(model, window, recipe)

    def train(self, mode: bool = True) -> Self:
        """In training mode scales follow the weights; evaluation mode starts with the scales of the last ones."""
        super().train(mode)
        if not mode:
            for layer in self.linears().values():
                layer.fit_weight_scale()
        return self

    def follow_ranges(self, momentum: float) -> None:
        """Let the ranges of a twin with symmetric ranges follow what training sees; 0 freezes them."""
        if self.recipe.ranges != "ema":
            raise ValueError(f"recipe {self.recipe.name} has fitted ranges, which stay as calibrated")
        fixed = (self.encoder.input_act, self.encoder.patch_act)
        for act in self.modules():
            if isinstance(act, Act) and act not in fixed:
                act.momentum = momentum

    def acts(self) -> dict[str, Act]:
        """What the integers of a node stand for, for every node with a meaning of its own."""
        e = self.encoder
        acts = {"quantize_input": e.input_act, "patchify": e.patch_act, "encoder.patch_embed": e.embed_act}
        acts |= {"encoder.tokens": e.embed_act, "encoder.pos_add": e.x_act}
        for i, block in enumerate(e.blocks):
            acts |= block.acts(f"encoder.blocks.{i}")
        return acts | {"encoder.norm": e.norm_act}

    def linears(self) -> dict[str, QLinear]:
        """Every linear layer by its node, in the order of the graph."""
        found = {"encoder.patch_embed": self.encoder.patch_embed}
        for i, block in enumerate(self.encoder.blocks):
            found |= block.linears(f"encoder.blocks.{i}")
        return found

    def token_readers(self) -> tuple[QLinear, ...]:
        """The layers that read the encoder's tokens."""
        raise NotImplementedError

    def readers(self) -> dict[str, tuple[Act, ...]]:
        """By layer, the activations of at most 8 bits that it multiplies, and what has to have as many bits.

        The layers are the linear ones and the products of attention and masks. Several may read one activation.
        """
        e, d = self.encoder, self.decoder
        found: dict[str, tuple[Act, ...]] = {name: (layer.x,) for name, layer in self.linears().items()}
        found["encoder.patch_embed"] = (e.input_act, e.patch_act)
        blocks = [(f"encoder.blocks.{i}", block) for i, block in enumerate(e.blocks)]
        if isinstance(d, QMaskTransformer):
            blocks += [(f"decoder.blocks.{i}", block) for i, block in enumerate(d.blocks)]
            found["decoder.masks"] = d.mask_factors()
        for name, block in blocks:
            found |= {f"{name}.attn.{part}": (block.attn.qkv_act,) for part in ("scores", "context")}
            found[f"{name}.mlp.fc2"] = (block.gelu_act, block.gelu.table_y)
        return found

    def uniform_bits(self, weight: int, activation: int) -> dict[str, dict[str, int]]:
        """The same bits for all layers, as `set_bits` takes them."""
        linears = self.linears()
        return {
            name: {"weight": weight, "activation": activation} if name in linears else {"activation": activation}
            for name in self.readers()
        }

    def set_bits(self, bits: Mapping[str, Mapping[str, int]]) -> None:
        """Give layers fewer bits before calibration: {layer: {"weight": 2 to 8, "activation": 4 to 8}}, or one of both.

        A layer's activations are those that it reads (`readers`); what is not named stays as it is. Raises UsageError
        for a layer that is not there, for other bits, for less than 8 bits of weights that are all zero, and for two
        layers that read one activation and ask for different bits of it.
        """
        linears, readers, asked = self.linears(), self.readers(), dict[Act, tuple[str, int]]()
        for name, entry in bits.items():
            if name not in readers:
                raise UsageError(f"layer {name!r} is not in the model{suggest(name, readers)}")
            for part, wanted in entry.items():
                allowed = {"weight": range(2, 9) if name in linears else (), "activation": range(4, 9)}.get(part, ())
                if wanted not in allowed:
                    ends = f"{allowed[0]} to {allowed[-1]} bits" if allowed else "nothing of that name"
                    raise UsageError(f"layer {name}: {part} is {wanted!r}, expected {ends}")
            if entry.get("weight", 8) < 8 and not bool(linears[name].weight.any()):
                raise UsageError(f"layer {name}: its weights are all zero, no range for fewer bits; leave them at 8")
            for act in readers[name] if "activation" in entry else ():
                first, other = asked.setdefault(act, (name, entry["activation"]))
                if other != entry["activation"]:
                    both = f"{first} and {name} read one activation: {other} and {entry['activation']} bits"
                    raise UsageError(f"layers {both}, expected the same for both")
        for name, entry in bits.items():
            if "weight" in entry:
                linears[name].bits.fill_(entry["weight"])
        for act, (_, wanted) in asked.items():
            act.bits = wanted


class FakeQuantClassifier(FakeQuant):
    """Of a ViT or DeiT: uint8 [B, H, W, 3] -> logits, q int64 and real float [B, C]; q is the sum of the heads."""

    def __init__(self, model: Classifier, window: tuple[int, int], recipe: Recipe) -> None:
        super().__init__(model, window, recipe)
        self.decoder = None
        self.logit_act = Act(1, 16)
        self.head = QLinear(model.head.weight, model.head.bias, self.encoder.norm_act, self.logit_act)
        if self.config.distilled:
            dist = model.head_dist
            self.head_dist = QLinear(dist.weight, dist.bias, self.encoder.norm_act, self.logit_act)

    def heads(self) -> dict[str, tuple[str, QLinear]]:
        """Node of a token -> node and layer of the head that reads it."""
        found = {"class_token": ("head", self.head)}
        return found | ({"distillation_token": ("head_dist", self.head_dist)} if self.config.distilled else {})

    def forward(self, images: Tensor, record: Record = nothing) -> Quantized:
        x = self.encoder(images, record)
        found = []
        for i, (token, (name, layer)) in enumerate(self.heads().items()):
            row = _rows(x, slice(i, i + 1))
            record(token, row.q)
            found.append(layer(row))
            record(name, found[-1].q)
        if len(found) == 2:
            found = [_join(*found)]
            record("heads", found[0].q)
        logits = Quantized(found[0].q.sum(1), found[0].real.mean(1))
        record("logits", logits.q)
        return logits

    def acts(self) -> dict[str, Act]:
        acts = super().acts()
        for token, (name, _) in self.heads().items():
            acts |= {token: self.encoder.norm_act, name: self.logit_act}
        return acts | ({"heads": self.logit_act} if self.config.distilled else {})

    def linears(self) -> dict[str, QLinear]:
        return super().linears() | dict(self.heads().values())

    def token_readers(self) -> tuple[QLinear, ...]:
        return tuple(layer for _, layer in self.heads().values())


class FakeQuantSegmenter(FakeQuant):
    """Of a Segmenter: uint8 [B, H, W, 3] -> scores, q int64 and real float [B, h, w, C]."""

    def __init__(self, model: Segmenter, window: tuple[int, int], recipe: Recipe) -> None:
        super().__init__(model, window, recipe)
        mask_transformer = model.config.decoder == "mask_transformer"
        decoder = QMaskTransformer if mask_transformer else QLinearDecoder
        self.decoder = decoder(model.decoder, self.encoder.norm_act, recipe)

    def forward(self, images: Tensor, record: Record = nothing) -> Quantized:
        config = self.config
        x = _rows(self.encoder(images, record), slice(config.n_extra, None))
        record("encoder.patches", x.q)
        scores = self.decoder(x, record)
        shape = (len(images), self.window[0] // config.patch, self.window[1] // config.patch, config.n_cls)
        out = Quantized(scores.q.reshape(shape), scores.real.reshape(shape))
        record("scores", out.q)
        return out

    def acts(self) -> dict[str, Act]:
        d = self.decoder
        acts = super().acts() | {"encoder.patches": self.encoder.norm_act}
        if isinstance(d, QLinearDecoder):
            return acts | {"decoder.head": d.score_act, "scores": d.score_act}
        acts |= {"decoder.proj_dec": d.dec_act, "decoder.tokens": d.dec_act}
        for i, block in enumerate(d.blocks):
            acts |= block.acts(f"decoder.blocks.{i}")
        acts |= {f"decoder.{name}": d.norm_act for name in ("decoder_norm", "patches", "classes")}
        acts |= {"decoder.proj_patch": d.patch_act, "decoder.proj_classes": d.class_act}
        if d.cosine:
            acts |= {"decoder.l2_patch": d.l2_patch_act, "decoder.l2_classes": d.l2_class_act}
        return acts | {"decoder.masks": d.mask_act, "decoder.mask_norm": d.score_act, "scores": d.score_act}

    def linears(self) -> dict[str, QLinear]:
        d, found = self.decoder, super().linears()
        if isinstance(d, QLinearDecoder):
            return found | {"decoder.head": d.head}
        found["decoder.proj_dec"] = d.proj_dec
        for i, block in enumerate(d.blocks):
            found |= block.linears(f"decoder.blocks.{i}")
        return found | {"decoder.proj_patch": d.proj_patch, "decoder.proj_classes": d.proj_classes}

    def token_readers(self) -> tuple[QLinear, ...]:
        return (self.decoder.head if isinstance(self.decoder, QLinearDecoder) else self.decoder.proj_dec,)


def twin_of(model: Segmenter | Classifier, window: tuple[int, int], recipe: Recipe) -> FakeQuant:
    """The twin of a float model."""
    kind = FakeQuantClassifier if isinstance(model, Classifier) else FakeQuantSegmenter
    return kind(model, window, recipe)
