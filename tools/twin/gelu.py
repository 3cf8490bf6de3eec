"""The integer GELUs of the twin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from intseg.tools.twin.act import Act, Quantized
from intseg.tools.twin.layers import Attrs, Integers, Layer
from intseg.tools.twin.primitives import aligned_exps, clamp_bits, dyadic, int_div, rsr, shift_exp, shift_exps
from intseg.tools.twin.recipe import Recipe


class QGelu(Layer):
    """One of the three integer GELUs on INT8.

    The table is the GELU between `table_x` and `table_y`. A unit's own x and y may mean something else: it then uses
    the shared curve at its own size, which comes close where a GELU is close to max(0, x).
    """

    def __init__(self, recipe: Recipe, x: Act, y: Act, table_x: Act | None = None, table_y: Act | None = None) -> None:
        super().__init__()
        self.op, self.recipe, self.x, self.y = recipe.gelu, recipe, x, y
        self.kind = "aligned" if recipe.aligned else recipe.int_div
        self.table_x, self.table_y = table_x or x, table_y or y

    def attrs(self) -> Attrs:
        if self.op == "gelu_table":
            return {}
        mult, shift = dyadic(self.x.scale * 2.0**-7 / self.y.scale)
        return {
            "i0": max(1, round(1 / float(self.x.scale))),
            "k_inter": self.recipe.k_inter,
            "lam": self.recipe.lam,
            "int_div_kind": self.kind,
            "k_out": 8,
            "mult": int(mult),
            "shift": int(shift),
            **self.y.narrow(),
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
            exps = aligned_exps if self.kind == "aligned" else shift_exps
            e, zero = exps(p - top, -top, *arguments)
            total = e + zero
        else:
            small, one = shift_exp(-p.abs(), *arguments), torch.full_like(p, n["i0"] << n["k_inter"])
            e, total = torch.where(p >= 0, one, small), one + small
        sigma = int_div(e, total, n["k_out"], self.kind)
        return clamp_bits(rsr(x * sigma * n["mult"], n["shift"]), self.y.bits)

    def forward(self, x: Quantized) -> Quantized:
        with torch.no_grad():
            q = self.exact(x.q)
        return self.y.wrap(q, lambda: F.gelu(x.real))
