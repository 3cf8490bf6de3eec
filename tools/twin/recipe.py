"""Recipes: which arithmetic a model uses, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Which arithmetic a model uses. The named ones are in RECIPES."""

    name: str
    softmax: str  # "shiftmax", "softmax2" or "exp_weights"
    gelu: str  # "shift_gelu", "sigmoid_gelu" or "gelu_table"
    int_div: str  # "paper" or "normalized"; softmax2 is always normalized
    lam: int  # lambda of the GELU's ShiftExp
    k_inter: int  # of the GELU's ShiftExp
    cosine: bool  # masks are cosines: patches and classes are L2-normalised before their product
    upsample: str  # "nearest" or "bilinear"
    ranges: str  # "ema": symmetric per-tensor min/max; "fit": affine, per channel where that is free
    aligned: bool = False  # whether shift_gelu aligns its exponentials (SPEC 2.9) before it divides them


RECIPES = {
    "i-vit": Recipe("i-vit", "shiftmax", "shift_gelu", "paper", 1, 23, False, "nearest", "ema"),
    "paper": Recipe("paper", "shiftmax", "shift_gelu", "paper", 6, 23, False, "nearest", "ema"),
    "paper-aligned": Recipe("paper-aligned", "shiftmax", "shift_gelu", "paper", 6, 23, False, "nearest", "ema", True),
    "intseg": Recipe("intseg", "exp_weights", "gelu_table", "normalized", 1, 0, True, "bilinear", "fit"),
}
