"""Layer-wise relevance propagation: how much of the predicted class each linear layer carries (LRP-QViT, Mix-QViT).

The relevance of the scores is the score of the predicted class, of a segmentation summed over all pixels. It goes back
layer by layer, and every rule gives its inputs as much as its output had:

linear, product   alpha-beta: of the contributions x_i w_ij to an output the positive ones share alpha of its relevance,
                  the negative ones 1 - alpha; where only one sign is there it takes all. Both factors of a product of
                  two activations get half of what their terms are given.
residual add      in proportion to the absolute sums of the two parts of an image
LayerNorm, GELU, softmax, L2 norm     as it is

What reaches a learned token (class token, class and position embeddings) ends there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.segmenter import Attention, Block, LinearDecoder, Segmenter, Upsample

ALPHA = 1.0


def linear_rule(x: Tensor, weight: Tensor, r: Tensor, alpha: float = ALPHA) -> Tensor:
    """Relevance of inputs x [..., M, K] from that of outputs r [..., M, N], with weight [..., N, K]."""
    up, down = x.clamp(min=0), x.clamp(max=0)
    plus, minus = weight.clamp(min=0), weight.clamp(max=0)
    good = up @ plus.transpose(-1, -2) + down @ minus.transpose(-1, -2)
    bad = up @ minus.transpose(-1, -2) + down @ plus.transpose(-1, -2)
    one = r.new_ones(())
    both = (good > 0) & (bad < 0)
    good_part = r * torch.where(both, alpha * one, one) / torch.where(good > 0, good, torch.inf * one)
    bad_part = r * torch.where(both, (1 - alpha) * one, one) / torch.where(bad < 0, bad, torch.inf * one)
    return up * (good_part @ plus + bad_part @ minus) + down * (good_part @ minus + bad_part @ plus)


def product_rule(a: Tensor, b: Tensor, r: Tensor, alpha: float = ALPHA) -> tuple[Tensor, Tensor]:
    """Relevance of a [..., M, K] and b [..., K, N] from that of a @ b."""
    left = linear_rule(a, b.transpose(-1, -2), r / 2, alpha)
    right = linear_rule(b.transpose(-1, -2), a, r.transpose(-1, -2) / 2, alpha).transpose(-1, -2)
    return left, right


def add_rule(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of both parts of a + b [B, N, D]; b may have one element for all of the batch."""
    size_a, size_b = (part.abs().sum((1, 2), keepdim=True) for part in (a, b))
    share = size_a / (size_a + size_b).clamp(min=torch.finfo(r.dtype).tiny)
    return r * share, r * (1 - share)


@contextmanager
def _taped(model: nn.Module) -> Iterator[dict[nn.Module, tuple[tuple[Tensor, ...], Tensor]]]:
    """Inputs and output of every module that runs while this is open."""
    tape: dict[nn.Module, tuple[tuple[Tensor, ...], Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tape[module] = (inputs, output)

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


class Relevance:
    """One backward walk through a float model; `found` holds the relevance [B] at each linear layer's output, by node.

    x        normalised pixels [B, 3, H, W]
    """

    def __init__(self, model: Segmenter | Classifier, x: Tensor, cosine: bool = True, alpha: float = ALPHA) -> None:
        self.alpha, self.found = alpha, dict[str, Tensor]()
        with torch.no_grad():
            with _taped(model) as self._tape:
                scores = model.forward_scores(x, cosine)
            if isinstance(model, Classifier):
                self.start = scores * F.one_hot(scores.argmax(1), scores.shape[1])
                r = self._heads(model, self.start[:, None])
            else:
                self.start = _predicted(scores, model.config.patch)
                r = self._decoder(model, self.start.flatten(1, 2))
            self._encoder(model, r)

    def _input(self, module: nn.Module) -> tuple[Tensor, ...]:
        return self._tape[module][0]

    def _linear(self, node: str, x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
        self.found[node] = r.flatten(1).sum(1)
        return linear_rule(x, weight, r, self.alpha)

    def _layer(self, node: str, module: nn.Linear, r: Tensor) -> Tensor:
        return self._linear(node, self._input(module)[0], module.weight, r)

    def _heads(self, model: Classifier, r: Tensor) -> Tensor:
        """From the logits [B, 1, C], the mean of the heads, to all tokens of the encoder."""
        heads = {"head": model.head} | ({"head_dist": model.head_dist} if model.config.distilled else {})
        tokens = [self._layer(name, head, r / len(heads)) for name, head in heads.items()]
        rest = self._input(model.encoder.norm)[0].shape[1] - len(heads)
        return torch.cat([*tokens, r.new_zeros(len(r), rest, model.config.d_model)], 1)

    def _decoder(self, model: Segmenter, r: Tensor) -> Tensor:
        """From the scores [B, h w, C] to all tokens of the encoder."""
        decoder = model.decoder
        if isinstance(decoder, LinearDecoder):
            r = self._layer("decoder.head", decoder.head, r)
        else:
            patches, classes = product_rule(*self._input(decoder.masks), r, self.alpha)
            ends = (
                self._linear(f"decoder.proj_{name}", self._input(module)[0], weight.T, part)
                for name, module, weight, part in (
                    ("patch", decoder.matmul_patch, decoder.proj_patch, patches),
                    ("classes", decoder.matmul_classes, decoder.proj_classes, classes.transpose(1, 2)),
                )
            )
            r = torch.cat(list(ends), 1)
            for i, block in reversed(list(enumerate(decoder.blocks))):
                r = self._block(f"decoder.blocks.{i}", block, r)
            r = self._layer("decoder.proj_dec", decoder.proj_dec, r[:, : -decoder.n_cls])
        extra = r.new_zeros(len(r), model.config.n_extra, r.shape[2])
        return torch.cat([extra, r], 1)

    def _encoder(self, model: Segmenter | Classifier, r: Tensor) -> None:
        """From all tokens after the last norm to the patch embedding."""
        for i, block in reversed(list(enumerate(model.encoder.blocks))):
            r = self._block(f"encoder.blocks.{i}", block, r)
        r, _ = add_rule(*self._input(model.encoder.pos_add), r)
        self.found["encoder.patch_embed"] = r[:, model.config.n_extra :].flatten(1).sum(1)

    def _block(self, name: str, block: Block, r: Tensor) -> Tensor:
        """Through norm, attention, add, norm, MLP, add."""
        r, branch = add_rule(*self._input(block.add2), r)
        branch = self._layer(f"{name}.mlp.fc2", block.mlp.fc2, branch)
        r = r + self._layer(f"{name}.mlp.fc1", block.mlp.fc1, branch)
        r, branch = add_rule(*self._input(block.add1), r)
        return r + self._attention(f"{name}.attn", block.attn, branch)

    def _attention(self, name: str, attn: Attention, r: Tensor) -> Tensor:
        """Through proj, the two products and qkv."""
        r = self._layer(f"{name}.proj", attn.proj, r)
        batch, tokens, width = r.shape
        r = r.reshape(batch, tokens, attn.heads, -1).transpose(1, 2)
        shares, v = product_rule(*self._input(attn.pv), r, self.alpha)
        q, k = product_rule(*self._input(attn.qk), shares, self.alpha)
        parts = torch.stack([q, k.transpose(-1, -2), v], 2)  # [B, heads, 3, N, d]
        return self._layer(f"{name}.qkv", attn.qkv, parts.permute(0, 3, 2, 1, 4).reshape(batch, tokens, 3 * width))


def _predicted(scores: Tensor, patch: int) -> Tensor:
    """Relevance [B, h, w, C] of the scores: over all pixels, the sum of what the predicted class has from each."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        Upsample(patch)(leaf).amax(1).sum().backward()
    assert leaf.grad is not None
    return leaf.grad * scores
