"""The integer softmaxes of the twin and the attention around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from intseg.tools.twin.act import Act, Quantized, through
from intseg.tools.twin.layers import Attrs, Integers, Layer, QLinear, QMatMul
from intseg.tools.twin.primitives import LOG2_E, bit_length, clamp_bits, dyadic, int_div, product, rsr, shift_exp
from intseg.tools.twin.recipe import Recipe

Record = Callable[[str, Tensor], None]


class QSoftmax(Layer):
    """Shiftmax or base-2 softmax of INT16 logits [B, heads, T, T]."""

    step = 2.0**-15
    i0: Tensor
    k_inter: Tensor
    frac_bits: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.op, self.kind = recipe.softmax, recipe.int_div
        self.register_buffer("i0", torch.tensor(32))
        self.register_buffer("k_inter", torch.tensor(10))
        self.register_buffer("frac_bits", torch.tensor(10))

    def unit(self) -> float:
        """The logit (natural) that one integer step stands for."""
        return 1 / int(self.i0) if self.op == "shiftmax" else 2.0 ** -int(self.frac_bits) / LOG2_E

    def attrs(self) -> Attrs:
        if self.op == "shiftmax":
            return {"i0": int(self.i0), "k_inter": int(self.k_inter), "int_div_kind": self.kind, "out": "int16"}
        return {"frac_bits": int(self.frac_bits), "a1": 21955, "a2": 5571}

    def shares(self, p: Tensor) -> Tensor:
        """Probabilities as reals."""
        return p * 2.0**-15

    def exact(self, x: Tensor) -> Tensor:
        """Probabilities in steps of 2^-15, int64."""
        down = x - x.amax(-1, keepdim=True)
        if self.op == "shiftmax":
            e, kind = shift_exp(down, int(self.i0), int(self.k_inter), 1), self.kind
        else:
            bits = int(self.frac_bits)
            q, f = -down >> bits, (-down & (2**bits - 1)) << (15 - bits)
            power = 32767 - ((f * (21955 - ((5571 * f) >> 15))) >> 15)
            e, kind = torch.where(q == 0, power, rsr(power, q.clamp(1, 17))), "normalized"
        return int_div(e, e.sum(-1, keepdim=True), 16, kind).clamp(max=32767)


class QExpWeights(Layer):
    """Softmax in two steps: UINT8 exponentials of INT16 logits [B, heads, T, T] by a table per head, divided later.

    A step of the logits is a power of two of accumulator steps, so that the scores need no multiplier, and between 1/10
    and 1/20 of an octave: 255 steps are then 12.75 octaves or more, from where on a weight is zero.
    """

    op = "exp_weights"
    step = 1 / 255
    steps_an_octave = 20

    def __init__(self, logit: Callable[[], Tensor]) -> None:
        super().__init__()
        self._logit = logit

    def halvings(self) -> Tensor:
        """n of every head, float64 [heads, 1]: a logit step is 2^n accumulator steps."""
        return -torch.floor((self._logit() * (LOG2_E * self.steps_an_octave)).log2())

    def unit(self) -> Tensor:
        """The logit (natural) that one integer step stands for, [heads, 1]."""
        return self._logit() * 2.0 ** self.halvings()

    def powers(self) -> Tensor:
        """The table before it is rounded, float64 [heads, 256]."""
        unit = self.unit()
        return 255 * 2**7 * torch.exp(-torch.arange(256, dtype=torch.float64, device=unit.device) * unit)

    def integers(self) -> Integers:
        return {"table": torch.floor(self.powers() + 0.5).long()}

    def shares(self, e: Tensor) -> Tensor:
        """Probabilities as reals."""
        return e / e.sum(-1, keepdim=True)

    def exact(self, x: Tensor) -> Tensor:
        """Weights, int64."""
        t = (x.amax(-1, keepdim=True) - x).clamp(max=255)
        power = self.integers()["table"][:, None].expand(*x.shape[:-1], 256).gather(-1, t)
        dither = torch.tensor([8, 72, 40, 104, 24, 88, 56, 120], device=x.device)
        return (power + dither[torch.arange(x.shape[-1], device=x.device) % 8]) >> 7


class QWeightedMean(Layer):
    """Values averaged by the weights of `exp_weights`; `scale` is that of a value over that of the context."""

    op = "weighted_mean"

    def __init__(self, y: Act, scale: Callable[[], Tensor]) -> None:
        super().__init__()
        self.y, self._scale = y, scale

    def attrs(self) -> Attrs:
        return self.y.narrow()

    def integers(self) -> Integers:
        mult, shift = dyadic(self._scale(), 39)
        return {"mult": mult, "shift": shift}

    def exact(self, a: Tensor, b: Tensor) -> Tensor:
        """The integers of the means."""
        p = self.integers()
        total = a.sum(-1, keepdim=True).clamp(min=1)
        length = bit_length(total)
        reciprocal = torch.div(2**61 - 1, total << (31 - length), rounding_mode="floor")
        scale = (reciprocal * p["mult"].unsqueeze(-2)) >> 31
        return clamp_bits(rsr(product(a, b) * scale, p["shift"].unsqueeze(-2) + length - 1), self.y.bits)


LOGITS_AT_ONCE = 2**22
"""Windows, or rows of one, whose attention is computed together have no more: each takes several times 8 bytes."""


def nothing(name: str, value: Tensor) -> None:
    """Records nothing: scores and probabilities, which are large, are not kept for it."""


class QAttention(nn.Module):
    """qkv -> heads -> softmax(q k^T) v -> proj.

    q and k share one scale product per head and v has a scale per channel. The mid of q is zero. The mid of k adds the
    same to a whole row of logits, which a softmax does not see; the mid of v passes through rows that sum to one and is
    the mid of the context, so that `proj` folds it into its bias.
    """

    def __init__(self, attn: Any, x: Act, recipe: Recipe) -> None:
        super().__init__()
        width = attn.proj.in_features
        self.width, self.heads, self.head_dim = width, attn.heads, width // attn.heads
        self.qkv_act, self.logit_act = Act(3 * width, 8), Act(1, 16)
        self.context_act, self.proj_act = Act(width, 8), Act(1, 16)
        self.qkv = QLinear(attn.qkv.weight, attn.qkv.bias, x, self.qkv_act)
        self.scores = QMatMul(True, self.logit_act, self._logit_scale)
        late = recipe.softmax == "exp_weights"
        self.softmax = QExpWeights(self._logit) if late else QSoftmax(recipe)
        self.context = (
            QWeightedMean(self.context_act, self._mean_scale)
            if late
            else QMatMul(False, self.context_act, self._context_scale)
        )
        self.proj = QLinear(attn.proj.weight, attn.proj.bias, self.context_act, self.proj_act)

    def _heads(self, per_channel: Tensor) -> Tensor:
        """[..., heads * d] -> [..., heads, d]."""
        return per_channel.reshape(*per_channel.shape[:-1], self.heads, self.head_dim)

    def _logit(self) -> Tensor:
        """Logit (natural) per accumulator step, [heads, 1]."""
        q, k, _ = self.qkv_act.scale.chunk(3)
        return self._heads(q * k)[:, :1] * self.head_dim**-0.5

    def _logit_scale(self) -> Tensor:
        """Logit per accumulator step in units of the softmax, [heads, 1]."""
        return self._logit() / self.softmax.unit()

    def _mean_scale(self) -> Tensor:
        """Context per step of the values, [heads, d]."""
        _, _, v = self.qkv_act.scale.chunk(3)
        return self._heads(v / self.context_act.scale)

    def _context_scale(self) -> Tensor:
        """Context per accumulator step of probabilities, [heads, d]."""
        return self._mean_scale() * 2.0**-15

    def _split(self, x: Tensor) -> list[Tensor]:
        """[B, T, 3 D] -> q, k, v, each [B, heads, T, d]."""
        return [self._heads(part).transpose(-2, -3) for part in x.chunk(3, dim=-1)]

    def forward(self, x: Quantized, name: str, record: Record) -> Quantized:
        qkv, kept = self.qkv(x), torch.is_grad_enabled() or record is not nothing
        with torch.no_grad():
            q, k, v = self._split(qkv.q)
            together = max(1, LOGITS_AT_ONCE // (self.heads * q.shape[-2] ** 2))
            parts = [self._attend(*part, kept) for part in zip(*(t.split(together) for t in (q, k, v)), strict=True)]
            s, p, c = (torch.cat(found) for found in zip(*parts, strict=True))
            del parts
            merged = c.transpose(-2, -3).flatten(-2)
        context = self.context_act.wrap(merged, lambda: self._surrogate(qkv.real, self.softmax.shares(p)))
        out: Quantized = self.proj(context)
        if record is not nothing:
            for part, value in zip(
                ("qkv", "q", "k", "v", "scores", "softmax", "context", "merge", "proj"),
                (qkv.q, q, k, v, s, p, c, merged, out.q),
                strict=True,
            ):
                record(f"{name}.{part}", value.long())
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, kept: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and softmax as INT16, no rows of them where they are not kept, and the context, of some windows."""
        rows = max(1, LOGITS_AT_ONCE // (len(q) * self.heads * k.shape[-2]))
        found = []
        for some in q.split(rows, -2):
            s = self.scores.exact(some, k)
            p = self.softmax.exact(s)
            large = (s.short(), p.short()) if kept else (s[..., :0, :].short(), p[..., :0, :].short())
            found.append((*large, self.context.exact(p, v)))
        s, p, c = (torch.cat(parts, -2) for parts in zip(*found, strict=True))
        return s, p, c

    def _surrogate(self, qkv: Tensor, probabilities: Tensor) -> Tensor:
        """Float attention on the dequantized q, k, v, with the exact probabilities forward."""
        q, k, v = self._split(qkv)
        p = through((q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1), probabilities)
        return (p @ v).transpose(-2, -3).flatten(-2)
