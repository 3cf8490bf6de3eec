"""The three integer GELUs: shift_gelu (row max), sigmoid_gelu (no row max), gelu_table (SPEC 4.9 to 4.11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import MULT, NARROW, SHIFT, Array, Attr, Op, Value, int_attr, require, require_shape, same_shape


def times_1_6875(m: Machine, x: Any) -> Any:
    """x + x/2 + x/8 + x/16 with floor shifts, none of which falls where x rises: 1.702 x in binary 1.1011 (eq. 7)."""
    return x + m.floor_shift(x, 1) + m.floor_shift(x, 3) + m.floor_shift(x, 4)


def shift_gelu(
    m: Machine,
    x: Any,
    *,
    i0: int,
    k_inter: int,
    lam: int,
    int_div_kind: str,
    k_out: int,
    mult: int,
    shift: int,
    out: str = "int8",
) -> Any:
    """lambda-ShiftGELU with the paper's row max (eq. 6-13, appendix A); lambda = 1 is I-ViT's ShiftGELU.

    x       int8 [..., D]   real value = x / i0
    return  int8 [..., D]   saturate(RSR(x * sigma * mult, shift)), sigma in steps of 2^-(k_out - 1)

    top = max(0, max_j p): an all-negative row would need 2^positive. d = max(d, 1): from a row maximum of about
    12 on, both exponentials floor to zero and eq. 13 is 0 / 0 as printed (numerics D8). `aligned` divides what both
    are of the larger, as FP32 does, whose exponent goes down to 2^-126.
    """
    x = m.widen(x)
    p = m.keep("p", m.rising(lambda v: times_1_6875(m, v), x), 32)
    top = m.keep("row_max", m.at_least(m.row_max(p), 0), 32)
    down = m.claim(p - top, high=0, why="top is the largest p of the row, or 0 above it")
    if int_div_kind == "aligned":
        e, e_0 = m.aligned_exps(down, -top, i0, k_inter, lam)
        why = "the larger is not shifted, and 1 - f / 2 is above a half"
        total, int_div_kind = m.claim(e + e_0, low=(i0 + 1) // 2 << k_inter, why=why), "normalized"
    else:
        e = m.shift_exp(down, i0, k_inter, lam)
        e_0 = m.keep("exponential_0", m.quiet.shift_exp(-top, i0, k_inter, lam), 64)
        total = e + e_0
    d = m.keep("divisor", m.accumulate(total), 64)
    sigma = m.keep("sigma", m.int_div(e, d, k_out, int_div_kind, "sigma"), 32)
    return m.requantize(m.keep("x_sigma", x * sigma, 32), mult, shift, out)


def sigmoid_gelu(
    m: Machine,
    x: Any,
    *,
    i0: int,
    k_inter: int,
    lam: int,
    int_div_kind: str,
    k_out: int,
    mult: int,
    shift: int,
    out: str = "int8",
) -> Any:
    """x * sigmoid(1.6875 x) with e = ShiftExp(-|p|): elementwise, the divisor is at least 2^k_inter * i0.

    x       int8 [..., D]   real value = x / i0
    return  int8 [..., D]   saturate(RSR(x * sigma * mult, shift)), sigma in steps of 2^-(k_out - 1)
    """
    x = m.widen(x)
    p = m.keep("p", m.rising(lambda v: times_1_6875(m, v), x), 32)
    e = m.shift_exp(-abs(p), i0, k_inter, lam)
    one = i0 << k_inter
    d = m.keep("divisor", m.accumulate(one + e), 64)
    n = m.where(m.is_negative(p), e, one)
    sigma = m.keep("sigma", m.int_div(n, d, k_out, int_div_kind, "sigma"), 32)
    return m.requantize(m.keep("x_sigma", x * sigma, 32), mult, shift, out)


def gelu_table(m: Machine, x: Any, *, table: Any) -> Any:
    """Any function of one INT8 value, computed by the exporter: its only error is quantization.

    x       int8 [...]
    table   int8 [256]   indexed by x + 128
    return  int8 [...]
    """
    return m.lookup(table, x, -128)


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
    "out": NARROW,
}

_KINDS = ("paper", "normalized", "aligned")

OPS = {
    "shift_gelu": Op(
        9, shift_gelu, (("int8",),), check_shift, attrs={**_ATTRS, "int_div_kind": _KINDS}, optional=("out",)
    ),
    "sigmoid_gelu": Op(10, sigmoid_gelu, (("int8",),), check_shift, attrs=_ATTRS, optional=("out",)),
    "gelu_table": Op(11, gelu_table, (("int8",),), check_table, params={"table": "int8"}),
}
