"""The usual mistakes of an implementation, as data: one `Variant` says which step of SPEC 2 is done how instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One way of computing an op. The defaults are the definition.

    rounding         of every rounding shift: half_up, half_even, half_away, half_down, toward_zero, floor, ceil
    first_shift      bits that a first rounding shift removes, a second one the rest; 0: one shift; -n: all but n
    first_rounding   of the first of two shifts where it is another than `rounding`; "" for the same
    rounded_bits     width of the rounded value before it is saturated, which wraps; 0 for wide enough
    overflow         of the result: saturate, wrap, symmetric (lowest value never used), none, unsigned (clamped to the
                     end of the type without sign), relu (clamped to zero below), size (without its sign),
                     whole (INT8 for a narrow type)
    shift            floor shifts of negative numbers: arithmetic, truncate, logical16, logical32, logical64
    rounding_shift   the same for rounding shifts: arithmetic, logical32, logical64
    acc_bits         width of accumulators and sums; 0 for wide enough
    acc_overflow     at acc_bits: wrap, saturate, or steps (saturate after every term)
    products         how sums of products are made: "pairs" (of bytes without sign and with, saturated at INT16),
                     "packed:A:U:W" (two neighbours on axis A of the result from one multiplier; that of index U
                     lacks what the other borrows, W: at every product, or once), "lowest:n" (-128 times -128 is n)
    product_bits     width of the product before a shift, which wraps; 0 for wide enough
    as_float         products of a requantization rounded to the 24 bits of a float, operands too
    reciprocal_bits  of int_div and the norms; 0 for those of SPEC.md
    reciprocal_power reciprocals of 2^n instead of 2^n - 1
    k_out            8 for probabilities computed in 8 bits; 0 for those of the node
    k_out_scaled     whether 8-bit probabilities are brought to the scale of the node
    row_mean         rounding of the LayerNorm mean: half_up, floor, toward_zero, half_even
    root             of isqrt: floor, ceil, nearest, newton10 (ten Newton steps from 2^16)
    quirk            a mistake of one op only
    attrs            (attribute, value) pairs that replace those of the node
    operands         (input index or parameter role, transformation) pairs, see `transform`
    layout           transformation of the result, "" for none
    """

    rounding: str = "half_up"
    first_shift: int = 0
    first_rounding: str = ""
    rounded_bits: int = 0
    overflow: str = "saturate"
    shift: str = "arithmetic"
    rounding_shift: str = "arithmetic"
    acc_bits: int = 0
    acc_overflow: str = "wrap"
    products: str = ""
    product_bits: int = 0
    as_float: bool = False
    reciprocal_bits: int = 0
    reciprocal_power: bool = False
    k_out: int = 0
    k_out_scaled: bool = True
    row_mean: str = "half_up"
    root: str = "floor"
    quirk: str = ""
    attrs: tuple[tuple[str, int | str], ...] = ()
    operands: tuple[tuple[str, str], ...] = ()
    layout: str = ""


DEFINITION = Variant()

Named = Iterator[tuple[str, Variant]]
"""Mistakes in words."""
