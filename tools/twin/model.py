"""The fake-quant twin of a Segmenter: integers equal to the engine's bit for bit, gradients that pass straight through.

An activation is a `Quantized` pair: `q`, the exact integers (int64), and `real`, the same values as floats that carry
gradients. Every layer computes `q` with integer arithmetic written here for PyTorch, independently of the engine, and
`real` as surrogate + (dequantized q - surrogate).detach(): forward it is what the integers stand for, backward it is
the float layer. Node names are the engine's; `record` receives every intermediate under its name.

Integers derive from three kinds of state, all in `state_dict()`: float parameters, `Act` buffers (what an activation's
integers stand for) and weight scales. Nothing is remembered outside of it, so saving and loading loses nothing.
Products of integers run in floats whose bits hold every partial sum exactly; requantization runs in int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intseg.tools.twin.segmenter import Segmenter, SegmenterConfig

Record = Callable[[str, Tensor], None]
Integers = dict[str, Tensor]
Attrs = dict[str, int | str]

LOG2_E = math.log2(math.e)


class Quantized(NamedTuple):
    """Integers int64 and the reals they stand for, same shape."""

    q: Tensor
    real: Tensor


@dataclass(frozen=True)
class Recipe:
    """Which arithmetic a model uses. The three named ones are in RECIPES."""

    name: str
    softmax: str  # "shiftmax", "softmax2" or "exp_weights"
    gelu: str  # "shift_gelu", "sigmoid_gelu" or "gelu_table"
    int_div: str  # "paper" or "normalized"; softmax2 is always normalized
    lam: int  # lambda of the GELU's ShiftExp
    k_inter: int  # of the GELU's ShiftExp
    l2norm: bool
    upsample: str  # "nearest" or "bilinear"
    ranges: str  # "ema": symmetric per-tensor min/max; "fit": affine, per channel where that is free


RECIPES = {
    "i-vit": Recipe("i-vit", "shiftmax", "shift_gelu", "paper", 1, 23, False, "nearest", "ema"),
    "paper": Recipe("paper", "shiftmax", "shift_gelu", "paper", 6, 23, False, "nearest", "ema"),
    "intseg": Recipe("intseg", "exp_weights", "gelu_table", "normalized", 1, 0, True, "bilinear", "fit"),
}


# ---------------------------------------------------------------------------------------------------------------------
# Integer primitives (SPEC.md, section 2) on int64 tensors
# ---------------------------------------------------------------------------------------------------------------------


def rsr(x: Tensor, c: Tensor | int) -> Tensor:
    """floor((x + 2^(c-1)) / 2^c), 1 <= c <= 62."""
    c = torch.as_tensor(c, dtype=torch.int64, device=x.device)
    return (x + (torch.ones_like(c) << (c - 1))) >> c


def clamp_bits(x: Tensor, bits: int) -> Tensor:
    """Saturate to `bits` bits."""
    return x.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def isqrt(v: Tensor) -> Tensor:
    """floor(sqrt(v)) for 0 <= v < 2^52: a float64 root corrected by one where it rounded across an integer."""
    root = v.double().sqrt().long()
    root = torch.where(root * root > v, root - 1, root)
    return torch.where((root + 1) * (root + 1) <= v, root + 1, root)


def bit_length(v: Tensor) -> Tensor:
    """Bits of v for 0 <= v < 2^53, whose float64 exponent is exact."""
    return torch.frexp(v.double()).exponent.long()


def int_div(n: Tensor, d: Tensor, k_out: int, kind: str) -> Tensor:
    """n / d in steps of 2^-(k_out - 1), `paper` or `normalized`."""
    d = d.clamp(min=1)
    if kind == "paper":
        return (torch.div(2**31 - 1, d, rounding_mode="floor") * n) >> (32 - k_out)
    length = bit_length(d)
    up = 31 - length
    shifted = torch.where(up >= 0, d << up.clamp(min=0), d >> (-up).clamp(min=0))
    return rsr(torch.div(2**46 - 1, shifted, rounding_mode="floor") * n, length + 16 - k_out)


def shift_exp(x: Tensor, i0: int, k_inter: int, lam: int) -> Tensor:
    """2^k_inter i0 e^(x / i0) for x <= 0."""
    x = (x + (x >> 1) - (x >> 4)).clamp(min=-lam * k_inter * i0)
    q = torch.div(-x, i0, rounding_mode="floor")
    base = i0 - torch.div(-x - q * i0 + 1, 2, rounding_mode="floor")
    up = k_inter - q
    return torch.where(up >= 0, base << up.clamp(min=0), base >> (-up).clamp(0, 62))


def dyadic(real: Tensor, most: int = 62) -> tuple[Tensor, Tensor]:
    """(mult, shift) int64 with mult * 2^-shift ~ real and mult in [2^30, 2^31), for reals in [2^(30 - most), 2^30).

    Smaller reals keep shift `most` and lose multiplier bits; 0 gives (0, 31).
    """
    mantissa, exponent = torch.frexp(real.double())
    mult = torch.round(mantissa * 2.0**31).long()
    shift = 31 - exponent.long()
    carried = mult == 2**31
    mult, shift = torch.where(carried, mult >> 1, mult), torch.where(carried, shift - 1, shift)
    excess = (shift - most).clamp(min=0)
    mult = torch.where(excess > 0, rsr(mult, excess.clamp(1, 62)), mult)
    if bool((shift < 1).any()):
        raise ValueError(f"scale {float(real.max())} is too large for a dyadic multiplier, expected below 2^30")
    return mult, shift - excess


def product(a: Tensor, b: Tensor) -> Tensor:
    """Exact integer matrix product through float64 (|sums| < 2^53), or float32 where no partial sum can reach 2^24."""
    largest = int(a.abs().sum(-1).max()) * int(b.abs().max())
    exact = torch.float32 if largest < 2**24 else torch.float64
    with torch.autocast(a.device.type, enabled=False):  # it would round float32 operands to bfloat16
        return (a.to(exact) @ b.to(exact)).long()


def through(surrogate: Tensor, exact: Tensor) -> Tensor:
    """The exact value forward, the surrogate's gradient backward; float32 where the surrogate has less."""
    surrogate = surrogate.float() if surrogate.dtype == torch.bfloat16 else surrogate
    return surrogate + (exact.to(surrogate.dtype) - surrogate).detach()


# ---------------------------------------------------------------------------------------------------------------------
# What integers stand for
# ---------------------------------------------------------------------------------------------------------------------


class Act(nn.Module):
    """real = q * scale + mid, per channel of the last axis (or one for all), `bits` wide."""

    scale: Tensor
    mid: Tensor

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.momentum = 0.0
        self.register_buffer("scale", torch.ones(channels, dtype=torch.float64))
        self.register_buffer("mid", torch.zeros(channels, dtype=torch.float64))

    def set(self, scale: Tensor | float, mid: Tensor | float = 0.0) -> None:
        """Fix the meaning; scalars spread over the channels."""
        self.scale.copy_(torch.as_tensor(scale, dtype=torch.float64))
        self.mid.copy_(torch.as_tensor(mid, dtype=torch.float64))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Affine: low becomes the smallest integer and high the largest."""
        steps = 2.0**self.bits - 1
        scale = (high - low).double().clamp(min=1e-9) / steps
        self.set(scale, low.double() + scale * 2 ** (self.bits - 1))

    def set_max(self, largest: Tensor | float) -> None:
        """Symmetric: real = q * S, S = largest / (2^(bits-1) - 1) (numerics D1)."""
        largest = torch.as_tensor(largest, dtype=torch.float64).clamp(min=1e-9)
        self.set(largest / (2.0 ** (self.bits - 1) - 1))

    def follow(self, real: Tensor) -> None:
        """Move a symmetric range towards the largest value of `real` by `momentum` (paper eq. 2-4)."""
        seen = self.scale.max() * (2.0 ** (self.bits - 1) - 1)
        self.set_max(seen + self.momentum * (real.detach().abs().max().double() - seen))

    def quantize(self, real: Tensor) -> Tensor:
        """Reals to integers, rounding half up."""
        return clamp_bits(torch.floor((real.double() - self.mid) / self.scale + 0.5).long(), self.bits)

    def dequantize(self, q: Tensor) -> Tensor:
        """Integers to reals, float64."""
        return q.double() * self.scale + self.mid

    def clip(self, real: Tensor) -> Tensor:
        """Reals limited to what the integers can say; outside, the gradient is zero, as saturation makes it."""
        low = (self.mid - self.scale * 2 ** (self.bits - 1)).to(real.dtype)
        high = (self.mid + self.scale * (2 ** (self.bits - 1) - 1)).to(real.dtype)
        return real.clamp(low, high)

    def wrap(self, q: Tensor, surrogate: Callable[[], Tensor]) -> Quantized:
        """Exact integers with the gradient of a float surrogate; the surrogate runs only where gradients are wanted."""
        if not torch.is_grad_enabled():
            return Quantized(q, self.dequantize(q))
        real = surrogate()
        out = Quantized(q, through(self.clip(real), self.dequantize(q)))
        if self.momentum:
            self.follow(real)
        return out


class Layer(nn.Module):
    """A node of the graph: its op, attributes and integer parameters, as the exporter writes them."""

    op: str

    def attrs(self) -> Attrs:
        """Attributes of the node."""
        return {}

    def integers(self) -> Integers:
        """Parameter tensors of the node, int64."""
        return {}


class QLinear(Layer):
    """x W^T + b with INT8 weights per output channel; input scales fold into the weights, input mids into the bias."""

    op = "linear"
    weight_scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, x: Act, y: Act) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.detach().clone())
        self.x, self.y = x, y
        self.register_buffer("weight_scale", torch.ones(len(weight), dtype=torch.float64))

    def fit_weight_scale(self) -> None:
        """The largest folded weight of a row becomes 127."""
        self.weight_scale.copy_(self.folded().detach().abs().amax(dim=1).clamp(min=1e-12) / 127)

    def folded(self) -> Tensor:
        """The weights that meet the input's integers, float64 [N, K]."""
        return self.weight.double() * self.x.scale

    def attrs(self) -> Attrs:
        return {"out": f"int{self.y.bits}"}

    def integers(self) -> Integers:
        weight = torch.floor(self.folded() / self.weight_scale[:, None] + 0.5).clamp(-127, 127).long()
        mid = self.weight.double() @ self.x.mid.expand(self.weight.shape[1])
        bias = torch.floor((self.bias.double() + mid - self.y.mid) / self.weight_scale + 0.5)
        room = 2**31 - 1 - 128 * weight.abs().sum(dim=1)
        bias = torch.minimum(torch.maximum(bias.clamp(-(2.0**40), 2.0**40).long(), -room), room)
        mult, shift = dyadic(self.weight_scale / self.y.scale)
        return {"weight": weight, "bias": bias, "mult": mult.expand(len(weight)), "shift": shift.expand(len(weight))}

    def forward(self, x: Quantized) -> Quantized:
        with torch.no_grad():
            if self.training:
                self.fit_weight_scale()
            p = self.integers()
            acc = product(x.q, p["weight"].T) + p["bias"]
            q = clamp_bits(rsr(acc * p["mult"], p["shift"]), self.y.bits)
            weight = p["weight"].double() * self.weight_scale[:, None] / self.x.scale
        return self.y.wrap(q, lambda: F.linear(x.real, through(self.weight, weight), self.bias))


class QLayerNorm(Layer):
    """I-LayerNorm on INT16; a scale and a mid for every output channel cost nothing."""

    op = "layernorm"

    def __init__(self, norm: nn.LayerNorm, y: Act) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().clone())
        self.bias = nn.Parameter(norm.bias.detach().clone())
        self.eps, self.y = norm.eps, y

    def _fixed(self) -> tuple[Tensor, Tensor, int]:
        """gamma and beta at the output scale, and the largest shift that keeps both in range."""
        gain = self.weight.double() * math.sqrt(len(self.weight)) * 2.0**-30 / self.y.scale
        offset = (self.bias.double() - self.y.mid) / self.y.scale
        room = min(_room(gain, 31), _room(offset, 61), 62)
        if room < 1:
            raise ValueError("layernorm: gamma or beta is too large for its output range; calibrate again")
        return torch.round(gain * 2.0**room).long(), torch.round(offset * 2.0**room).long(), room

    def attrs(self) -> Attrs:
        return {"shift": self._fixed()[2], "out": f"int{self.y.bits}"}

    def integers(self) -> Integers:
        mult, bias, _ = self._fixed()
        return {"mult": mult, "bias": bias}

    def forward(self, x: Quantized) -> Quantized:
        with torch.no_grad():
            mult, bias, shift = self._fixed()
            count = x.q.shape[-1]
            mean = torch.div(2 * x.q.sum(-1, keepdim=True) + count, 2 * count, rounding_mode="floor")
            y = x.q - mean
            std = isqrt((y * y).sum(-1, keepdim=True)).clamp(min=1)
            z = (y * torch.div(2**31 - 1, std, rounding_mode="floor")) >> 1
            q = clamp_bits(rsr(z * mult + bias, shift), self.y.bits)
        return self.y.wrap(q, lambda: F.layer_norm(x.real, (count,), self.weight, self.bias, self.eps))


def _room(values: Tensor, bits: int) -> int:
    """The largest shift with |round(values * 2^shift)| < 2^bits."""
    largest = float(values.abs().max())
    return 62 if largest == 0 else bits - math.frexp(largest * (1 + 2.0**-40))[1]


class QAdd(Layer):
    """a + b at the scale of the result."""

    op = "add"

    def __init__(self, a: Act, b: Act, y: Act) -> None:
        super().__init__()
        self.a, self.b, self.y = a, b, y

    def attrs(self) -> Attrs:
        (mult_a, shift_a), (mult_b, shift_b) = dyadic(self.a.scale / self.y.scale), dyadic(self.b.scale / self.y.scale)
        return {
            "mult_a": int(mult_a),
            "shift_a": int(shift_a),
            "mult_b": int(mult_b),
            "shift_b": int(shift_b),
        }

    def forward(self, a: Quantized, b: Quantized) -> Quantized:
        with torch.no_grad():
            n = self.attrs()
            left = rsr(a.q * int(n["mult_a"]), int(n["shift_a"]))
            q = clamp_bits(left + rsr(b.q * int(n["mult_b"]), int(n["shift_b"])), 16)
        return self.y.wrap(q, lambda: a.real + b.real)


class QMatMul(Layer):
    """a b, or a b^T, requantized by `scale`: real of an accumulator step, one per batch entry or per column of it."""

    op = "matmul"

    def __init__(self, transpose_b: bool, y: Act, scale: Callable[[], Tensor]) -> None:
        super().__init__()
        self.transpose_b, self.y, self._scale = transpose_b, y, scale

    def attrs(self) -> Attrs:
        return {"transpose_b": int(self.transpose_b), "out": f"int{self.y.bits}"}

    def integers(self) -> Integers:
        mult, shift = dyadic(self._scale())
        return {"mult": mult, "shift": shift}

    def exact(self, a: Tensor, b: Tensor) -> Tensor:
        """The integers of the product."""
        p = self.integers()
        acc = product(a, b.transpose(-1, -2) if self.transpose_b else b)
        return clamp_bits(rsr(acc * p["mult"].unsqueeze(-2), p["shift"].unsqueeze(-2)), self.y.bits)


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

    def __init__(self, scale: Callable[[], Tensor]) -> None:
        super().__init__()
        self._scale = scale

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
        return clamp_bits(rsr(product(a, b) * scale, p["shift"].unsqueeze(-2) + length - 1), 8)


class QGelu(Layer):
    """One of the three integer GELUs on INT8.

    The table is the GELU between `table_x` and `table_y`. A unit's own x and y may mean something else: it then uses
    the shared curve at its own size, which comes close where a GELU is close to max(0, x).
    """

    def __init__(self, recipe: Recipe, x: Act, y: Act, table_x: Act | None = None, table_y: Act | None = None) -> None:
        super().__init__()
        self.op, self.recipe, self.x, self.y = recipe.gelu, recipe, x, y
        self.table_x, self.table_y = table_x or x, table_y or y

    def attrs(self) -> Attrs:
        if self.op == "gelu_table":
            return {}
        mult, shift = dyadic(self.x.scale * 2.0**-7 / self.y.scale)
        return {
            "i0": max(1, round(1 / float(self.x.scale))),
            "k_inter": self.recipe.k_inter,
            "lam": self.recipe.lam,
            "int_div_kind": self.recipe.int_div,
            "k_out": 8,
            "mult": int(mult),
            "shift": int(shift),
        }

    def integers(self) -> Integers:
        if self.op != "gelu_table":
            return {}
        return {
            "table": self.table_y.quantize(
                F.gelu(self.table_x.dequantize(torch.arange(-128, 128, device=self.x.scale.device)))
            )
        }

    def exact(self, x: Tensor) -> Tensor:
        """Integers of the GELU, int64."""
        if self.op == "gelu_table":
            return self.integers()["table"][x + 128]
        n = {key: value for key, value in self.attrs().items() if isinstance(value, int)}
        p = x + (x >> 1) + (x >> 3) + (x >> 4)
        arguments = n["i0"], n["k_inter"], n["lam"]
        if self.op == "shift_gelu":
            top = p.amax(-1, keepdim=True).clamp(min=0)
            e = shift_exp(p - top, *arguments)
            total = e + shift_exp(-top, *arguments)
        else:
            small, one = shift_exp(-p.abs(), *arguments), torch.full_like(p, n["i0"] << n["k_inter"])
            e, total = torch.where(p >= 0, one, small), one + small
        sigma = int_div(e, total, n["k_out"], self.recipe.int_div)
        return clamp_bits(rsr(x * sigma * n["mult"], n["shift"]), 8)

    def forward(self, x: Quantized) -> Quantized:
        with torch.no_grad():
            q = self.exact(x.q)
        return self.y.wrap(q, lambda: F.gelu(x.real))


class QL2Norm(Layer):
    """x / |x| on INT16, INT8 out."""

    op = "l2norm"

    def __init__(self, y: Act) -> None:
        super().__init__()
        self.y = y

    def attrs(self) -> Attrs:
        mult, shift = dyadic(2.0**-30 / self.y.scale)
        return {"mult": int(mult), "shift": int(shift)}

    def forward(self, x: Quantized) -> Quantized:
        with torch.no_grad():
            n = self.attrs()
            norm = isqrt((x.q * x.q).sum(-1, keepdim=True)).clamp(min=1)
            z = (x.q * torch.div(2**31 - 1, norm, rounding_mode="floor")) >> 1
            q = clamp_bits(rsr(z * int(n["mult"]), int(n["shift"])), 8)
        return self.y.wrap(q, lambda: F.normalize(x.real, dim=-1))


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
            QWeightedMean(self._mean_scale) if late else QMatMul(False, self.context_act, self._context_scale)
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
        qkv = self.qkv(x)
        with torch.no_grad():
            q, k, v = self._split(qkv.q)
            s = self.scores.exact(q, k)
            p = self.softmax.exact(s)
            c = self.context.exact(p, v)
            merged = c.transpose(-2, -3).flatten(-2)
        context = self.context_act.wrap(merged, lambda: self._surrogate(qkv.real, self.softmax.shares(p)))
        out: Quantized = self.proj(context)
        for part, value in zip(
            ("qkv", "q", "k", "v", "scores", "softmax", "context", "merge", "proj"),
            (qkv.q, q, k, v, s, p, c, merged, out.q),
            strict=True,
        ):
            record(f"{name}.{part}", value)
        return out

    def _surrogate(self, qkv: Tensor, probabilities: Tensor) -> Tensor:
        """Float attention on the dequantized q, k, v, with the exact probabilities forward."""
        q, k, v = self._split(qkv)
        p = through((q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1), probabilities)
        return (p @ v).transpose(-2, -3).flatten(-2)


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


class Constant(Layer):
    """A learned INT16 tensor: class token, position embedding, class embeddings."""

    op = "constant"

    def __init__(self, value: Tensor, y: Act) -> None:
        super().__init__()
        self.value, self.y = nn.Parameter(value.detach().clone()), y

    def integers(self) -> Integers:
        return {"value": self.y.quantize(self.value)}

    def forward(self) -> Quantized:
        return self.y.wrap(self.integers()["value"].detach(), lambda: self.value)


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

    def __init__(self, model: Segmenter, window: tuple[int, int], recipe: Recipe) -> None:
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
        width, self.n_cls, self.l2norm = decoder.proj_dec.out_features, decoder.n_cls, recipe.l2norm
        bits = 16 if recipe.l2norm else 8
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
        ends = [self.patch_act, self.class_act]
        if recipe.l2norm:
            self.l2_patch_act, self.l2_class_act = Act(1, 8), Act(1, 8)
            self.l2_patch, self.l2_classes = QL2Norm(self.l2_patch_act), QL2Norm(self.l2_class_act)
            ends = [self.l2_patch_act, self.l2_class_act]
        self.masks = QMatMul(True, self.mask_act, lambda: ends[0].scale * ends[1].scale / self.mask_act.scale)
        self.mask_norm = QLayerNorm(decoder.mask_norm, self.score_act)

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
        if self.l2norm:
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


class FakeQuantSegmenter(nn.Module):
    """The twin. Built from a float Segmenter; `calibrate.py` gives its `Act`s and weight scales their values.

    window   pixels (height, width) of one window, multiples of the patch
    forward  uint8 [B, H, W, 3] -> scores: q int64 and real float [B, h, w, C]
    """

    def __init__(self, model: Segmenter, window: tuple[int, int], recipe: Recipe) -> None:
        super().__init__()
        self.config: SegmenterConfig = model.config
        self.window, self.recipe = window, recipe
        self.encoder = QEncoder(model, window, recipe)
        mask_transformer = model.config.decoder == "mask_transformer"
        decoder = QMaskTransformer if mask_transformer else QLinearDecoder
        self.decoder = decoder(model.decoder, self.encoder.norm_act, recipe)

    def forward(self, images: Tensor, record: Record = lambda name, value: None) -> Quantized:
        config = self.config
        x = _rows(self.encoder(images, record), slice(config.n_extra, None))
        record("encoder.patches", x.q)
        scores = self.decoder(x, record)
        shape = (len(images), self.window[0] // config.patch, self.window[1] // config.patch, config.n_cls)
        out = Quantized(scores.q.reshape(shape), scores.real.reshape(shape))
        record("scores", out.q)
        return out

    def train(self, mode: bool = True) -> FakeQuantSegmenter:
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
        e, d = self.encoder, self.decoder
        acts = {"quantize_input": e.input_act, "patchify": e.patch_act, "encoder.patch_embed": e.embed_act}
        acts |= {"encoder.tokens": e.embed_act, "encoder.pos_add": e.x_act}
        for i, block in enumerate(e.blocks):
            acts |= block.acts(f"encoder.blocks.{i}")
        acts |= {"encoder.norm": e.norm_act, "encoder.patches": e.norm_act}
        if isinstance(d, QLinearDecoder):
            return acts | {"decoder.head": d.score_act, "scores": d.score_act}
        acts |= {"decoder.proj_dec": d.dec_act, "decoder.tokens": d.dec_act}
        for i, block in enumerate(d.blocks):
            acts |= block.acts(f"decoder.blocks.{i}")
        acts |= {f"decoder.{name}": d.norm_act for name in ("decoder_norm", "patches", "classes")}
        acts |= {"decoder.proj_patch": d.patch_act, "decoder.proj_classes": d.class_act}
        if d.l2norm:
            acts |= {"decoder.l2_patch": d.l2_patch_act, "decoder.l2_classes": d.l2_class_act}
        return acts | {"decoder.masks": d.mask_act, "decoder.mask_norm": d.score_act, "scores": d.score_act}

    def linears(self) -> dict[str, QLinear]:
        """Every linear layer by its node, in the order of the graph."""
        e, d = self.encoder, self.decoder
        found = {"encoder.patch_embed": e.patch_embed}
        for i, block in enumerate(e.blocks):
            found |= block.linears(f"encoder.blocks.{i}")
        if isinstance(d, QLinearDecoder):
            return found | {"decoder.head": d.head}
        found["decoder.proj_dec"] = d.proj_dec
        for i, block in enumerate(d.blocks):
            found |= block.linears(f"decoder.blocks.{i}")
        return found | {"decoder.proj_patch": d.proj_patch, "decoder.proj_classes": d.proj_classes}
