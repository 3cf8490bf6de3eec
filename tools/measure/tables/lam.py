"""What lambda does: ShiftGELU by the largest value of its row, as printed and with aligned exponentials."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from intseg.arith.recorder import Recorder
from intseg.exam import EXAMS
from intseg.ops import OPS
from intseg.tools.measure.tables.markdown import prose, significant, table
from intseg.tools.measure.tables.results import Results, miou, same

SPREAD = 1.4
"""Standard deviation of the elements of a row."""

MAXIMA = (4, 8, 12, 16, 32, 64)

FORMS = {
    "printed, lambda 1": {"int_div_kind": "paper", "lam": 1},
    "printed, lambda 6": {"int_div_kind": "paper", "lam": 6},
    "printed, lambda 64": {"int_div_kind": "paper", "lam": 64},
    "aligned, lambda 1": {"int_div_kind": "aligned", "lam": 1},
    "aligned, lambda 6": {"int_div_kind": "aligned", "lam": 6},
    "aligned, lambda 16": {"int_div_kind": "aligned", "lam": 16},
}


def error(largest: int, form: str) -> float:
    """Root mean square of x sigma - GELU(x), over INT8 elements as often as a normal distribution has them."""
    i0 = round(127 / largest)
    x = np.arange(-128, 128).astype(np.int8)
    watch, attrs = Recorder(), {"i0": i0, "k_inter": 23, "k_out": 8, "mult": 1, "shift": 7, **FORMS[form]}
    OPS["shift_gelu"].define(watch, x[None], **attrs)
    function = EXAMS["shift_gelu"].function
    assert function is not None
    real = x / i0
    weight = np.exp(-((real / SPREAD) ** 2) / 2)
    squares = (watch.kept["x_sigma"][0] / 2**7 / i0 - function(real)) ** 2
    return math.sqrt(float((weight * squares).sum() / weight.sum()))


WAYS = ("i-vit", "paper", "paper-aligned", "intseg")


def lambda_table(results: Results) -> Iterator[str]:
    """Errors by row maximum."""
    yield "### lambda"
    yield ""
    yield from prose(f"""
        The error of ShiftGELU (k_inter 23, 8-bit quotients) on the elements of a row, normal with a standard deviation
        of {SPREAD}, whose largest is as given and becomes 127; computed from the definition when this page is written.
        The input's own rounding is not in it.
    """)
    rows = [[str(most), *(significant(error(most, form)) for form in FORMS)] for most in MAXIMA]
    yield from table(("row maximum", *FORMS), rows)
    yield from prose("""
        lambda is where the exponents are clamped: -lambda k_inter, in powers of two. With lambda 1 both exponentials of
        an element that is 9.5 below the maximum stop at the same value, and sigma is 1/2. With lambda 6 they go on to
        2^-138, which integers of 23 bits do not hold: both are 0 and so is sigma, whatever lambda is. The gain
        that the paper reports fits an emulation in FP32, whose numbers end at 2^-126: there the two tiny exponentials
        have the right quotient. `aligned` does that with integers: both are shifted by the exponent of the larger
        before they are divided (SPEC 2.9). Then lambda counts again: 6 is enough up to a row maximum of 57.
    """)
    yield from _networks(results)


def _networks(results: Results) -> Iterator[str]:
    """Accuracy where all but the GELU is the same."""
    rows = []
    for name, found in results.each("ptq"):
        ways = {row["recipe"]: row for row in found["rows"] if row["images"] == 1}
        if "paper-aligned" in ways:
            cells = [f"{miou(ways[way]):.2f} ({same(ways[way]):.2f} %)" if way in ways else "-" for way in WAYS]
            rows.append([name, f"{miou(found['float']['nearest, no L2']):.2f}", *cells])
    if not rows:
        return
    yield from prose("""
        Post-training quantization from one image, mIoU % (pixels equal to float, bilinear with L2 norm): `i-vit` has
        lambda 1, `paper` 6, `paper-aligned` 6 and aligned exponentials; all three upsample to the nearest, as the float
        model of the first column does. `intseg` has the table, and more that is other. What the GELU alone costs beside
        the table on the same ranges: the columns *aligned* and *table* of Table 1. What
        lambda rescues depends on the rows. Where few have a maximum above 11, as in the pretrained encoder of `bundled`
        (the appendix names the blocks), lambda 6 wins as printed. Where outlier channels make them the rule, as in
        `tinyhard`, lambda 6 as printed is worse than lambda 1, since 0 is further from x than x / 2 is; with aligned
        exponentials it gives back most of what the GELU lost.
    """)
    yield from table(("network", "float, nearest", *WAYS), rows)
