"""Named hypothesis strategies, built from each other, up to `cases(op)`: a valid call of one op.

Arrays draw from edge values as often as from the whole range. Sizes are small and often odd: the oracle is slow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Strategy = st.SearchStrategy

RANGE = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True)
class Case:
    """One call of an op."""

    op: str
    inputs: list[np.ndarray]
    params: dict[str, np.ndarray] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)


def integers(low: int, high: int) -> Strategy[int]:
    """Integers in [low, high]: the ends, powers of two +-2, or any."""
    edges = {low, low + 1, high - 1, high, 0}
    for exponent in range(high.bit_length() + 1):
        edges.update(sign * 2**exponent + step for sign in (-1, 1) for step in (-2, -1, 0, 1, 2))
    return st.sampled_from(sorted(v for v in edges if low <= v <= high)) | st.integers(low, high)


sizes = st.sampled_from([1, 2, 3, 5, 8])
"""Extents of an axis."""

shifts = st.sampled_from([1, 2, 31, 32, 61, 62]) | st.integers(1, 62)
mults = integers(0, 2**31 - 1)
narrow = st.sampled_from(["int8", "int16"])
int_div_kinds = st.sampled_from(["paper", "normalized"])


def arrays(dtype: str, *shape: int, low: int | None = None, high: int | None = None) -> Strategy[np.ndarray]:
    """Arrays of a dtype, optionally within narrower limits: constant, alternating extremes, one-hot, edges, or any."""
    low = RANGE[dtype][0] if low is None else low
    high = RANGE[dtype][1] if high is None else high

    def full(value: int) -> np.ndarray:
        return np.full(shape, value, dtype)

    def alternating(first: int) -> np.ndarray:
        result = full(low)
        result.reshape(-1)[first::2] = high
        return result

    def one_hot(position: int) -> np.ndarray:
        result = full(min(max(0, low), high))
        result.reshape(-1)[position % max(result.size, 1)] = high
        return result

    return (
        hnp.arrays(dtype, shape, elements=integers(low, high), fill=st.nothing())
        | hnp.arrays(dtype, shape, elements=st.integers(low, high), fill=st.nothing())
        | integers(low, high).map(full)
        | st.sampled_from([0, 1]).map(alternating)
        | st.integers(0, 1000).map(one_hot)
    )


@st.composite
def scales(draw: Any, source: int, target: int) -> tuple[int, int]:
    """A multiplier and a shift that bring values of about `source` to about `target`, so that results do not all
    saturate or vanish; one in four draws is any valid pair."""
    if draw(st.integers(0, 3)) == 0:
        return draw(mults), draw(shifts)
    shift = draw(shifts)
    mult = target * 2**shift // max(source, 1)
    return min(max(mult + draw(st.integers(-1, 1)), 0), 2**31 - 1), shift


def scale_arrays(draw: Any, shape: tuple[int, ...], source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of multipliers and shifts."""
    count = int(np.prod(shape))
    pairs = [draw(scales(source, target)) for _ in range(count)]
    mult = np.array([m for m, _ in pairs], np.int32).reshape(shape)
    return mult, np.array([s for _, s in pairs], np.int8).reshape(shape)


# One strategy per op


@st.composite
def quantize_input(draw: Any) -> Case:
    x = draw(arrays("uint8", draw(sizes), draw(sizes), 3))
    return Case("quantize_input", [x], {"table": draw(arrays("int8", 3, 256))})


@st.composite
def patchify(draw: Any) -> Case:
    patch, rows, columns = draw(sizes), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Case("patchify", [draw(arrays("int8", patch * rows, patch * columns, draw(sizes)))], {}, {"patch": patch})


@st.composite
def linear(draw: Any) -> Case:
    tokens, depth, width, out = draw(sizes), draw(sizes), draw(sizes), draw(narrow)
    bias_limit = 2**31 - 1 - 128 * 128 * depth
    params = {
        "weight": draw(arrays("int8", width, depth)),
        "bias": draw(arrays("int32", width, low=-bias_limit, high=bias_limit) | arrays("int32", width, low=-9, high=9)),
    }
    largest = int(np.abs(params["bias"].astype(np.int64)).max()) + 128 * 64 * depth
    params["mult"], params["shift"] = scale_arrays(draw, (width,), largest, RANGE[out][1])
    return Case("linear", [draw(arrays("int8", tokens, depth))], params, {"out": out})


@st.composite
def add(draw: Any) -> Case:
    shape = (draw(sizes), draw(sizes))
    attrs = {}
    for branch in "ab":
        mult, shift = draw(st.just((2**30, 30)) | scales(2**15, draw(integers(1, 2**17))))
        attrs |= {f"mult_{branch}": min(mult, 2 ** (shift + 14) - 1), f"shift_{branch}": shift}
    return Case("add", [draw(arrays("int16", *shape)), draw(arrays("int16", *shape))], {}, attrs)


@st.composite
def layernorm(draw: Any) -> Case:
    width, out, shift = draw(sizes), draw(narrow), draw(st.integers(30, 62) | shifts)
    unit = min(max(2**shift * RANGE[out][1] // 2**29, 1), 2**31 - 1)
    mult = arrays("int32", width, low=-(2**31) + 1) | arrays("int32", width, low=-unit, high=unit)
    limit = min(2**61 - 1, RANGE[out][1] * 2**shift)
    return Case(
        "layernorm",
        [draw(arrays("int16", draw(sizes), width) | arrays("int16", draw(sizes), width, low=-4, high=4))],
        {"mult": draw(mult), "bias": draw(arrays("int64", width, low=-limit, high=limit))},
        {"shift": shift, "out": out},
    )


@st.composite
def matmul(draw: Any) -> Case:
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    rows, depth, width, out = draw(sizes), draw(sizes), draw(sizes), draw(narrow)
    transpose, kind = draw(st.integers(0, 1)), draw(narrow)
    a = draw(arrays(kind, *batch, rows, depth))
    b = draw(arrays("int8", *batch, *((width, depth) if transpose else (depth, width))))
    scale_shape = (*batch, draw(st.sampled_from([1, width])))
    mult, shift = scale_arrays(draw, scale_shape, RANGE[kind][1] * 64 * depth, RANGE[out][1])
    return Case("matmul", [a, b], {"mult": mult, "shift": shift}, {"transpose_b": transpose, "out": out})


@st.composite
def shiftmax(draw: Any) -> Case:
    k_inter = draw(st.integers(0, 15))
    attrs = {
        "i0": draw(integers(1, 2 ** (15 - k_inter))),
        "k_inter": k_inter,
        "int_div_kind": draw(int_div_kinds),
        "out": draw(narrow),
    }
    x = arrays(draw(narrow), draw(sizes), draw(sizes)) | arrays("int16", draw(sizes), draw(sizes), low=-40, high=40)
    return Case("shiftmax", [draw(x)], {}, attrs)


@st.composite
def softmax2(draw: Any) -> Case:
    frac_bits = draw(st.integers(0, 15))
    coefficients = st.sampled_from([(16384, 0), (21955, 5571), (16384, 16383), (32767, 0), (32767, 16383)])
    a1, a2 = draw(coefficients | st.tuples(integers(2**14, 2**15 - 1), integers(0, 2**14 - 1)))
    spread = min(2 ** (frac_bits + 3), 2**15 - 1)
    shape = (draw(sizes), draw(sizes))
    x = draw(arrays("int16", *shape) | arrays("int16", *shape, low=-spread, high=spread))
    return Case("softmax2", [x], {}, {"frac_bits": frac_bits, "a1": a1, "a2": a2})


@st.composite
def gelu(draw: Any, op: str) -> Case:
    k_inter, k_out = draw(st.sampled_from([0, 8, 15, 23, 31]) | st.integers(0, 31)), draw(st.sampled_from([8, 16]))
    mult, shift = draw(scales(128 * 2 ** (k_out - 1), draw(integers(1, 400))))
    attrs = {
        "i0": draw(integers(1, min(2**15, 2 ** (45 - k_inter) - 1)) | st.integers(5, 60)),
        "k_inter": k_inter,
        "lam": draw(st.sampled_from([1, 2, 6, 64])),
        "int_div_kind": draw(int_div_kinds),
        "k_out": k_out,
        "mult": mult,
        "shift": shift,
    }
    attrs["i0"] = min(attrs["i0"], 2 ** (45 - k_inter) - 1)
    negative = arrays("int8", draw(sizes), draw(sizes), high=-1)
    return Case(op, [draw(arrays("int8", draw(sizes), draw(sizes)) | negative)], {}, attrs)


@st.composite
def gelu_table(draw: Any) -> Case:
    return Case("gelu_table", [draw(arrays("int8", draw(sizes), draw(sizes)))], {"table": draw(arrays("int8", 256))})


@st.composite
def l2norm(draw: Any) -> Case:
    mult, shift = draw(scales(2**30, draw(integers(1, 400))))
    x = arrays("int16", draw(sizes), draw(sizes)) | arrays("int16", draw(sizes), draw(sizes), low=-4, high=4)
    return Case("l2norm", [draw(x)], {}, {"mult": mult, "shift": shift})


@st.composite
def concat(draw: Any) -> Case:
    dtype, width = draw(narrow), draw(sizes)
    return Case("concat", [draw(arrays(dtype, draw(sizes), width)), draw(arrays(dtype, draw(sizes), width))])


@st.composite
def slice_tokens(draw: Any) -> Case:
    x = draw(arrays(draw(narrow), draw(sizes), draw(sizes)))
    start = draw(st.integers(0, len(x) - 1))
    return Case("slice", [x], {}, {"start": start, "stop": draw(st.integers(start + 1, len(x)))})


@st.composite
def split_heads(draw: Any) -> Case:
    heads, parts = draw(sizes), draw(st.integers(1, 3))
    x = draw(arrays(draw(narrow), draw(sizes), parts * heads * draw(sizes)))
    return Case("split_heads", [x], {}, {"heads": heads, "part": draw(st.integers(0, parts - 1)), "parts": parts})


@st.composite
def merge_heads(draw: Any) -> Case:
    return Case("merge_heads", [draw(arrays(draw(narrow), draw(sizes), draw(sizes), draw(sizes)))])


@st.composite
def to_grid(draw: Any) -> Case:
    height, width = draw(sizes), draw(sizes)
    x = draw(arrays(draw(narrow), height * width, draw(sizes)))
    return Case("to_grid", [x], {}, {"height": height, "width": width})


@st.composite
def upsample_nearest(draw: Any) -> Case:
    dtype = draw(st.sampled_from(["uint8", "uint16", "int16", "int32"]))
    shape = (draw(sizes), draw(sizes), *draw(st.lists(sizes, max_size=1)))
    return Case("upsample_nearest", [draw(arrays(dtype, *shape))], {}, {"factor": draw(st.integers(1, 5))})


@st.composite
def upsample_bilinear(draw: Any) -> Case:
    x = draw(arrays(draw(st.sampled_from(["int16", "int32"])), draw(sizes), draw(sizes), draw(st.integers(1, 3))))
    factor = draw(st.sampled_from([1, 2, 3, 4, 64])) if len(x) == 1 and x.shape[1] == 1 else draw(st.integers(1, 4))
    start = draw(st.integers(0, len(x) * factor - 1))
    stop = draw(st.integers(start + 1, len(x) * factor))
    return Case("upsample_bilinear", [x], {}, {"factor": factor, "row_start": start, "row_stop": stop})


@st.composite
def argmax(draw: Any) -> Case:
    dtype = draw(st.sampled_from(["int16", "int32", "int64"]))
    shape = (draw(sizes), draw(st.sampled_from([1, 2, 3, 19])))
    return Case("argmax", [draw(arrays(dtype, *shape) | arrays(dtype, *shape, low=-1, high=1))])


CASES: dict[str, Strategy[Case]] = {
    "quantize_input": quantize_input(),
    "patchify": patchify(),
    "linear": linear(),
    "add": add(),
    "layernorm": layernorm(),
    "matmul": matmul(),
    "shiftmax": shiftmax(),
    "softmax2": softmax2(),
    "shift_gelu": gelu("shift_gelu"),
    "sigmoid_gelu": gelu("sigmoid_gelu"),
    "gelu_table": gelu_table(),
    "l2norm": l2norm(),
    "concat": concat(),
    "slice": slice_tokens(),
    "split_heads": split_heads(),
    "merge_heads": merge_heads(),
    "to_grid": to_grid(),
    "upsample_nearest": upsample_nearest(),
    "upsample_bilinear": upsample_bilinear(),
    "argmax": argmax(),
}
"""Op name -> strategy of valid calls."""
