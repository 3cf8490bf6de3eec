"""The pictures of docs/ARITHMETIC.md, drawn from the ops themselves: what they show is what the engine computes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.patches import FancyArrow, Rectangle

from intseg import arith
from intseg.ops import RUN
from intseg.tools.charts import BLUE, BOX, GRAY, INK, ORANGE, SOFT, bare, figure, svg
from intseg.windows import starts


def quantization() -> str:
    """Real values on a grid of integers."""
    made, axes = figure(660, 320)
    scale, xs = 1 / 7, np.linspace(-1.5, 1.5, 601)
    axes.plot(xs, np.clip(np.floor(xs / scale + 0.5), -8, 7), color=BLUE, label="q, saturated")
    axes.plot([-1.4, 1.4], [-1.4 / scale, 1.4 / scale], "--", color=GRAY, label="x / scale")
    axes.set_title("integer q for a real value x, scale 1/7: four bits, so that the steps can be seen")
    axes.set_yticks([-8, -4, 0, 4, 7])
    axes.legend()
    return svg(made, "Quantization")


def rounding() -> str:
    """RSR against the real quotient."""
    made, axes = figure(650, 340)
    xs = np.arange(-10, 11)
    rounded = arith.rsr(xs.astype(np.int64), 2)
    ties = xs % 4 == 2
    axes.plot([-10, 10], [-2.5, 2.5], "--", color=GRAY, label="x / 4")
    axes.plot(xs, rounded, "o", color=BLUE, label="RSR")
    axes.plot(xs[ties], rounded[ties], "o", color=ORANGE, label="ties: up, towards +∞")
    axes.set_title("RSR(x, 2) against x / 4")
    axes.set_xticks([-10, -6, -2, 0, 2, 6, 10])
    axes.legend()
    return svg(made, "The rounding shift right")


def pipeline() -> str:
    """The widths a number has inside of a linear layer."""
    boxes = [
        ("x, weight", "INT8 × INT8", 8),
        ("sum + bias", "INT32", 32),
        ("× mult", "INT64", 64),
        ("RSR by shift", "INT64", 64),
        ("saturate", "INT8 or INT16", 8),
    ]
    made, axes = figure(760, 155)
    bare(axes).set(xlim=(0, 760), ylim=(155, 0))
    for i, (name, kind, bits) in enumerate(boxes):
        x = 20 + 150 * i
        axes.add_patch(Rectangle((x, 40), 120, 60, facecolor=BOX, edgecolor=GRAY))
        axes.text(x + 60, 65, name, ha="center")
        axes.text(x + 60, 87, kind, ha="center", color=SOFT)
        axes.add_patch(Rectangle((x + 60 - bits, 112), 2 * bits, 8, color=BLUE))
        if i:
            arrow = {"width": 1, "head_width": 8, "head_length": 6, "length_includes_head": True, "color": GRAY}
            axes.add_patch(FancyArrow(x - 29, 70, 28, 0, **arrow))
    axes.text(20, 24, "linear: one rounding, at the end")
    axes.text(20, 142, "bars: bits of the value", color=SOFT)
    return svg(made, "Widths inside of a linear layer")


def power() -> str:
    """2^-f in softmax2: the quadratic, the straight line of the paper, and their errors."""
    f = np.arange(0, 2**15, 128)
    exact = 2.0 ** -(f / 2**15)

    def approximate(a1: int, a2: int) -> Any:
        return (32767 - ((f * (a1 - ((a2 * f) >> 15))) >> 15)) / 2**15

    made, (left, right) = figure(720, 340, 1, 2)
    curves = [("straight line (16384, 0)", ORANGE, 2**14, 0), ("quadratic (21955, 5571)", BLUE, 21955, 5571)]
    for label, colour, a1, a2 in curves:
        values = approximate(a1, a2)
        left.plot(f / 2**15, values, color=colour, label=label)
        right.plot(f / 2**15, 100 * (values - exact), color=colour)
    left.plot(f / 2**15, exact, "--", color=GRAY, label="$2^{-f}$")
    left.set_title("2^-f")
    right.set_title("error, % of 1")
    left.legend()
    return svg(made, "The exponential of softmax2")


def softmax() -> str:
    """A row of logits and its probabilities, integers and reals."""
    logits = np.array([[300, -200, 900, 100, 760, -1000, 500, 0]], np.int16)
    found = RUN["softmax2"](logits, frac_bits=8, a1=21955, a2=5571)[0] / 2**15
    real = 2.0 ** (logits[0] / 256)
    made, axes = figure(650, 310)
    axes.bar(range(8), found, color=BLUE, width=0.6, label="the integers / 2^15")
    axes.hlines(real / real.sum(), np.arange(8) - 0.35, np.arange(8) + 0.35, color=ORANGE, label="real softmax")
    axes.set_xticks(range(8), map(str, logits[0]))
    axes.set_title("softmax2 of a row of INT16 logits, 8 fraction bits")
    axes.legend()
    return svg(made, "Integer softmax")


def gelu() -> str:
    """Two GELUs on every INT8 value, real value = q / 32, and the real one."""
    q = np.arange(-128, 128, dtype=np.int8)
    xs = q / 32
    exact = np.array([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in xs.tolist()])
    table = np.clip(np.floor(exact * 32 + 0.5), -128, 127).astype(np.int8)
    by_table = RUN["gelu_table"](q, table=table) / 32
    arguments = {"i0": 32, "k_inter": 10, "int_div_kind": "normalized", "k_out": 8, "mult": 2**30, "shift": 37}
    by_shift = RUN["sigmoid_gelu"](q[None], lam=6, **arguments)[0] / 32
    made, (left, right) = figure(720, 340, 1, 2)
    for values, colour, label in (
        (by_shift, ORANGE, "sigmoid_gelu, from shifts and adds"),
        (by_table, BLUE, "gelu_table"),
    ):
        left.plot(xs, values, color=colour, label=label)
        right.plot(xs, values - exact, color=colour)
    left.plot(xs, exact, "--", color=GRAY, label="x Φ(x)")
    left.set_title("GELU")
    right.set_title("error")
    left.legend()
    return svg(made, "Integer GELU")


def windows() -> str:
    """Overlapping windows of an image of 480 x 360 pixels, and how many cover a row and a column."""
    width, height, window, stride = 480, 368, 256, 224
    tops, lefts = starts(height, window, stride), starts(width, window, stride)
    made, axes = figure(570, 465)
    bare(axes).set(xlim=(-30, width + 30), ylim=(height + 50, -30))
    axes.add_patch(Rectangle((0, 0), width, height, facecolor=BOX, edgecolor=GRAY))
    for y, x in itertools.product(tops, lefts):
        axes.add_patch(Rectangle((x, y), window, window, color=BLUE, alpha=0.2))
        axes.add_patch(Rectangle((x, y), window, window, fill=False, edgecolor=BLUE, linewidth=1.5))
    for origins, size, across in ((lefts, width, True), (tops, height, False)):
        marks = sorted({0, size, *origins, *(origin + window for origin in origins)})
        for a, b in itertools.pairwise(marks):
            count = sum(origin <= a < origin + window for origin in origins)
            place = ((a + b) / 2, height + 18) if across else (width + 12, (a + b) / 2)
            axes.text(*place, str(count), ha="center", va="center", color=INK)
    axes.text(0, -12, "480 × 360 pixels, padded to 480 × 368, windows of 256, stride 224")
    axes.text(0, height + 44, "numbers: how many windows cover the column, the row", color=SOFT)
    return svg(made, "Windows")


PICTURES: Mapping[str, Callable[[], str]] = {
    f"pictures/{draw.__name__}.svg": draw for draw in (quantization, rounding, pipeline, power, softmax, gelu, windows)
}
