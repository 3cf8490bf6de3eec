"""Integer primitives (SPEC.md, section 2) on int64 tensors, written for PyTorch independently of the engine.

Products of integers run in floats whose bits hold every partial sum exactly; the rest runs in int64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)


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
    """n / d in steps of 2^-(k_out - 1), `paper` or else `normalized`."""
    d = d.clamp(min=1)
    if kind == "paper":
        return (torch.div(2**31 - 1, d, rounding_mode="floor") * n) >> (32 - k_out)
    length = bit_length(d)
    up = 31 - length
    shifted = torch.where(up >= 0, d << up.clamp(min=0), d >> (-up).clamp(min=0))
    return rsr(torch.div(2**46 - 1, shifted, rounding_mode="floor") * n, length + 16 - k_out)


def split_exp(x: Tensor, i0: int, k_inter: int, lam: int) -> tuple[Tensor, Tensor]:
    """(base, q) with i0 e^(x / i0) ~ base 2^-q for x <= 0."""
    x = (x + (x >> 1) - (x >> 4)).clamp(min=-lam * k_inter * i0)
    q = torch.div(-x, i0, rounding_mode="floor")
    return i0 - torch.div(-x - q * i0 + 1, 2, rounding_mode="floor"), q


def scaled(base: Tensor, up: Tensor) -> Tensor:
    """floor(base 2^up)."""
    return torch.where(up >= 0, base << up.clamp(min=0), base >> (-up).clamp(0, 62))


def shift_exp(x: Tensor, i0: int, k_inter: int, lam: int) -> Tensor:
    """2^k_inter i0 e^(x / i0) for x <= 0."""
    base, q = split_exp(x, i0, k_inter, lam)
    return scaled(base, k_inter - q)


def shift_exps(x: Tensor, y: Tensor, i0: int, k_inter: int, lam: int) -> tuple[Tensor, Tensor]:
    """shift_exp of both."""
    return shift_exp(x, i0, k_inter, lam), shift_exp(y, i0, k_inter, lam)


def aligned_exps(x: Tensor, y: Tensor, i0: int, k_inter: int, lam: int) -> tuple[Tensor, Tensor]:
    """shift_exp of both, times the power of two that brings the larger to k_inter bits."""
    (base_x, q_x), (base_y, q_y) = split_exp(x, i0, k_inter, lam), split_exp(y, i0, k_inter, lam)
    top = torch.minimum(q_x, q_y) + k_inter
    return scaled(base_x, top - q_x), scaled(base_y, top - q_y)


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
