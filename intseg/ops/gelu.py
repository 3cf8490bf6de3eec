"""The three integer GELUs: shift_gelu (row max), sigmoid_gelu (no row max), gelu_table (SPEC 4.9 to 4.11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ._arith import int_div, requantize, shift_exp
from ._op import MULT, SHIFT, Array, Attr, Op, Value, as_int64, int_attr, require, require_shape, same_shape


def times_1_6875(x: NDArray[np.int64]) -> NDArray[np.int64]:
    """x + x/2 + x/8 + x/16 with floor shifts: 1.702 x in binary 1.1011 (paper eq. 7)."""
    p: NDArray[np.int64] = x + (x >> 1) + (x >> 3) + (x >> 4)
    return p


def shift_gelu(
    x: Array, *, i0: int, k_inter: int, lam: int, int_div_kind: str, k_out: int, mult: int, shift: int
) -> Array:
    """lambda-ShiftGELU with the paper's row max (eq. 6-13, appendix A); lambda = 1 is I-ViT's ShiftGELU.

    x       int8 [..., D]   real value = x / i0
    return  int8 [..., D]   saturate(RSR(x * sigma * mult, shift)), sigma in steps of 2^-(k_out - 1)

    I_max = max(0, max_j I_p): an all-negative row would need 2^positive. d = max(d, 1): from a row maximum of about
    12 on, both exponentials floor to zero and eq. 13 is 0 / 0 as printed (numerics D8).
    """
    x = as_int64(x)
    p = times_1_6875(x)
    top = np.maximum(p.max(axis=-1, keepdims=True), 0)
    e = shift_exp(p - top, i0, k_inter, lam)
    sigma = int_div(e, e + shift_exp(-top, i0, k_inter, lam), k_out, int_div_kind)
    return requantize(x * sigma, mult, shift, "int8")


def sigmoid_gelu(
    x: Array, *, i0: int, k_inter: int, lam: int, int_div_kind: str, k_out: int, mult: int, shift: int
) -> Array:
    """x * sigmoid(1.6875 x) with E = ShiftExp(-|I_p|): elementwise, the divisor is at least 2^k_inter * i0.

    x       int8 [..., D]   real value = x / i0
    return  int8 [..., D]   saturate(RSR(x * sigma * mult, shift)), sigma in steps of 2^-(k_out - 1)
    """
    x = as_int64(x)
    p = times_1_6875(x)
    e = shift_exp(-np.abs(p), i0, k_inter, lam)
    one = np.int64(i0 << k_inter)
    sigma = int_div(np.where(p >= 0, one, e), one + e, k_out, int_div_kind)
    return requantize(x * sigma, mult, shift, "int8")


def gelu_table(x: Array, *, table: Array) -> Array:
    """Any function of one INT8 value, computed by the exporter: its only error is quantization.

    x       int8 [...]
    table   int8 [256]   indexed by x + 128
    return  int8 [...]
    """
    return table[x.astype(np.int16) + 128]


def check_shift(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    i0, k_inter = int_attr(attrs, "i0"), int_attr(attrs, "k_inter")
    require(i0 << k_inter < 2**45, f"i0 * 2^k_inter is {i0 << k_inter}, expected below {2**45}")
    require(attrs["k_out"] in (8, 16), f"k_out is {attrs['k_out']}, expected 8 or 16")
    return same_shape(inputs, "int8")


def check_table(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_shape("table", params["table"], (256,))
    return same_shape(inputs, "int8")


_ATTRS: dict[str, range | tuple[str, ...]] = {
    "i0": range(1, 2**15 + 1),
    "k_inter": range(32),
    "lam": range(1, 65),
    "int_div_kind": ("paper", "normalized"),
    "k_out": range(8, 17),
    "mult": MULT,
    "shift": SHIFT,
}

SHIFT_GELU = Op(shift_gelu, (("int8",),), check_shift, attrs=_ATTRS)
SIGMOID_GELU = Op(sigmoid_gelu, (("int8",),), check_shift, attrs=_ATTRS)
GELU_TABLE = Op(gelu_table, (("int8",),), check_table, params={"table": "int8"})
