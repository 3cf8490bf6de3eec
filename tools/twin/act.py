"""Activations of the twin: what integers stand for, and the gradient that passes straight through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from intseg.tools.twin.primitives import clamp_bits


class Quantized(NamedTuple):
    """Integers int64 and the reals they stand for, same shape."""

    q: Tensor
    real: Tensor


def through(surrogate: Tensor, exact: Tensor) -> Tensor:
    """The exact value forward, the surrogate's gradient backward; float32 where the surrogate has less."""
    surrogate = surrogate.float() if surrogate.dtype == torch.bfloat16 else surrogate
    return surrogate + (exact.to(surrogate.dtype) - surrogate).detach()


class Act(nn.Module):
    """real = q * scale + mid, per channel of the last axis (or one for all), `bits` wide: 4 to 8, or 16."""

    scale: Tensor
    mid: Tensor

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.momentum = 0.0
        self.register_buffer("scale", torch.ones(channels, dtype=torch.float64))
        self.register_buffer("mid", torch.zeros(channels, dtype=torch.float64))

    def get_extra_state(self) -> Tensor:
        """The bits, in `state_dict()` too."""
        return torch.tensor(self.bits)

    def set_extra_state(self, state: Tensor) -> None:
        """Those that were saved."""
        self.bits = int(state)

    def narrow(self) -> dict[str, int | str]:
        """The attribute of an op whose result is INT8 where it has none."""
        return {"out": f"int{self.bits}"} if self.bits < 8 else {}

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
