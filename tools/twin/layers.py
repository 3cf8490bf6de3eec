"""Layers of the twin that every recipe uses: linear, norms, sums, products and learned constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intseg.tools.twin.act import Act, Quantized, through
from intseg.tools.twin.primitives import clamp_bits, dyadic, isqrt, product, rsr

Integers = dict[str, Tensor]
Attrs = dict[str, int | str]


CELL = 0.45
"""Of a step: how far weights that are held lie from their integers at most."""


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
    """x W^T + b with weights scaled per output channel; input scales fold into the weights, input mids into the bias.

    bits   of the weights, 2 to 8; of 8 the least value is not used
    clip   part of a row's largest weight that the largest integer stands for; larger ones saturate
    held   whether the scale stays whatever the weights become, as `hold` says
    unit   [N, 1] and [K]: `weight` times both are the weights; ones, or of a layer that is held an integer's step
    rest   [N, K] of a rounded layer: how far each weight was above its integer before, in steps; else None
    units  the float layer's output that each output is a part of, where calibration divided some (fit.py); else None
    """

    op = "linear"
    units: Tensor | None = None
    rest: Tensor | None = None
    weight_scale: Tensor
    bits: Tensor
    clip: Tensor
    held: Tensor
    row_unit: Tensor
    column_unit: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, x: Act, y: Act) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.detach().clone())
        self.x, self.y = x, y
        self.register_buffer("weight_scale", torch.ones(len(weight), dtype=torch.float64))
        self.register_buffer("bits", torch.tensor(8))
        self.register_buffer("clip", torch.ones(len(weight), dtype=torch.float64))
        self.register_buffer("held", torch.tensor(False))
        self.register_buffer("row_unit", torch.ones(len(weight), 1, dtype=torch.float64))
        self.register_buffer("column_unit", torch.ones(weight.shape[1], dtype=torch.float64))

    def limits(self) -> tuple[int, int]:
        """The least and the largest integer weight."""
        top = 2 ** (int(self.bits) - 1) - 1
        return -top if top == 127 else -top - 1, top

    def fit_weight_scale(self) -> None:
        """The largest folded weight of a row, times its clip, becomes the largest integer.

        A row of tiny weights, or of none, has steps in which its bias fits INT32. One that is held keeps it.
        """
        if self.held:
            return
        least = self._offset().detach().abs() * 2.0**-30
        self.weight_scale.copy_(torch.maximum(self._largest() * self.clip / self.limits()[1], least))

    def use_weight_scale(self, scale: Tensor) -> None:
        """Make `scale` [N] what `fit_weight_scale` gives."""
        self.clip.copy_(scale * self.limits()[1] / self._largest())
        self.fit_weight_scale()

    def hold(self) -> None:
        """Keep the scale from now on, and count `weight` in steps of the integers; what the layer computes stays.

        Weights go back to where they were before they were rounded, as far as they round to the same integers: those
        that hardly did are the first to change.
        """
        before = self._offset()
        self.row_unit.copy_(self.weight_scale[:, None])
        self.column_unit.copy_(1 / self.x.scale)
        self.weight.copy_(self.weight.double() / (self.row_unit * self.column_unit))
        if self.rest is not None:
            self.weight.add_(self.rest.clamp(-CELL, CELL))
        self.held.fill_(True)
        self.bias.add_(before - self._offset())

    def real_weight(self) -> Tensor:
        """The weights before they are rounded, float64 [N, K]."""
        return self.weight.double() * self.row_unit * self.column_unit

    def _largest(self) -> Tensor:
        return self.folded().detach().abs().amax(dim=1).clamp(min=1e-12)

    def folded(self) -> Tensor:
        """The weights that meet the input's integers, float64 [N, K]."""
        return self.real_weight() * self.x.scale

    def _offset(self) -> Tensor:
        """What a row adds to its products, in reals, float64 [N].

        Of a layer that is held the mids meet the rounded weights, as the inputs do: a weight on its way to the next
        integer changes nothing yet, and a gradient, which sees inputs and not mids, could not tell what it would.
        """
        weight = self._rounded() * self.row_unit * self.column_unit if self.held else self.real_weight()
        return self.bias.double() + weight @ self.x.mid.expand(weight.shape[1]) - self.y.mid

    def _rounded(self) -> Tensor:
        """The integer weights as float64 [N, K]."""
        return torch.floor(self.folded() / self.weight_scale[:, None] + 0.5).clamp(*self.limits())

    def attrs(self) -> Attrs:
        return {"out": f"int{self.y.bits}"}

    def integers(self) -> Integers:
        weight = self._rounded().long()
        bias = torch.floor(self._offset() / self.weight_scale + 0.5)
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
        return self.y.wrap(q, lambda: F.linear(x.real, through(self.real_weight().float(), weight), self.bias))


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


class QL2Norm(Layer):
    """x / |x| on INT16, INT8 out."""

    op = "l2norm"

    def __init__(self, y: Act) -> None:
        super().__init__()
        self.y = y

    def attrs(self) -> Attrs:
        mult, shift = dyadic(2.0**-30 / self.y.scale)
        return {"mult": int(mult), "shift": int(shift), **self.y.narrow()}

    def forward(self, x: Quantized) -> Quantized:
        with torch.no_grad():
            n = self.attrs()
            norm = isqrt((x.q * x.q).sum(-1, keepdim=True)).clamp(min=1)
            z = (x.q * torch.div(2**31 - 1, norm, rounding_mode="floor")) >> 1
            q = clamp_bits(rsr(z * int(n["mult"]), int(n["shift"])), self.y.bits)
        return self.y.wrap(q, lambda: F.normalize(x.real, dim=-1))


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
