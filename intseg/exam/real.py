"""Every op in real arithmetic: what its integers stand for, without rounding, saturation or approximation.

Values are in steps of the integer grid: a real op gives the number that its integer op would give if it were exact.
So `floor(real op + 1/2)`, saturated, is the best that the dtype allows, and integer and real op may be swapped anywhere
in a graph. The scale tensors (SPEC.md, section 5.4) turn steps into the numbers of the float model; the ops need them
only where the file holds a rounded function (a GELU).

This module judges the integers. Nothing that computes them imports it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.arith import INT_RANGE
from intseg.graph import IMAGE, Graph, ModelInfo, Node
from intseg.ops import RUN, Array
from intseg.windows import Tiling

Float = NDArray[np.floating[Any]]
RealOp = Callable[..., Float]

MOVERS = ("patchify", "concat", "slice", "split_heads", "merge_heads", "to_grid", "upsample_nearest")
"""Ops that only move values: the same function for integers and reals."""

ERF_ERROR = 1.5e-7
"""Largest |erf(x) - math.erf(x)| in float64 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26)."""

_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def erf(x: Float) -> Float:
    """The error function, elementwise, dtype of x; |error| <= ERF_ERROR plus the rounding of the dtype."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = np.zeros_like(x)
    for coefficient in reversed(_ERF):
        poly = (poly + coefficient) * t
    result: Float = np.copysign(1 - poly * np.exp(-x * x), x)
    return result


def gelu(x: Float) -> Float:
    """x Phi(x) with the normal distribution's Phi; |error| <= |x| ERF_ERROR / 2."""
    result: Float = x * (1 + erf(x * 0.5**0.5)) / 2
    return result


def on_grid(x: Float, dtype: str) -> Array:
    """The nearest integers that `dtype` holds: round half up, then saturate, as RSR and saturate do (SPEC 2.1, 2.2)."""
    low, high = INT_RANGE[dtype]
    result: Array = np.clip(np.floor(x + 0.5), low, high).astype(dtype)
    return result


def dequantize(scale: Array | None, q: Array) -> Float:
    """(q * mult + offset) * 2^-shift, float64 of q's shape (SPEC 5.4); without a scale the steps themselves."""
    if scale is None:
        return q.astype(np.float64)
    mult, offset, shift = (plane.astype(np.float64) for plane in scale)
    result: Float = (q.astype(np.float64) * mult + offset) * 2.0**-shift
    return result


def quantize(scale: Array, real: Float) -> Float:
    """The inverse of `dequantize`, not rounded: steps, in the dtype of `real`."""
    mult, offset, shift = (plane.astype(np.float64) for plane in scale)
    result: Float = ((real * 2.0**shift - offset) / mult).astype(real.dtype)
    return result


# ------------------------------------------------------------------------------------------------------------- ops


def _dyadic(mult: Array | int, shift: Array | int, like: Float) -> Float:
    """mult * 2^-shift in the dtype of `like`."""
    return np.asarray(np.ldexp(np.asarray(mult, np.float64), -np.asarray(shift, np.int64)), like.dtype)


def _quantize_input(x: Array, *, table: Array) -> Float:
    """The straight line each channel's table was rounded from; a table that is no rounded line stands for itself."""
    return np.stack([_line(table[c])[x[..., c]] for c in range(x.shape[-1])], axis=-1)


def _line(table: Array) -> Float:
    """float32 [256]: the line through both ends if it rounds to the table, else the least-squares line if it is near.

    Exporters fit the range to black and white, so that the ends are exact. Nothing else would tell: a slope just below
    one rounds in one long sawtooth, which least squares takes for an offset.
    """
    index, value = np.arange(len(table)), table.astype(np.float64)
    ends = np.linspace(value[0], value[-1], len(table))
    if np.abs(ends - value).max() <= 0.5 + 1e-9:
        return ends.astype(np.float32)
    inner = (value > -128) & (value < 127)
    if inner.sum() < 2:
        return table.astype(np.float32)
    slope, start = np.polyfit(index[inner], value[inner], 1)
    line = slope * index + start
    rounded = np.abs(np.clip(line, -128, 127) - value).max() <= 0.6
    return (line if rounded else value).astype(np.float32)


def _linear(x: Float, *, weight: Array, bias: Array, mult: Array, shift: Array, out: str) -> Float:
    """(x W^T + b) mult 2^-shift."""
    return (x @ weight.T.astype(x.dtype) + bias.astype(x.dtype)) * _dyadic(mult, shift, x)


def _add(a: Float, b: Float, *, mult_a: int, shift_a: int, mult_b: int, shift_b: int) -> Float:
    return a * _dyadic(mult_a, shift_a, a) + b * _dyadic(mult_b, shift_b, a)


def _unit_rows(x: Float) -> Float:
    """Rows of length one; a zero row stays zero, as the integer ops have it."""
    root = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    return x / np.where(root > 0, root, 1)


def _layernorm(x: Float, *, mult: Array, bias: Array, shift: int, out: str) -> Float:
    """z = (x - mean) / |x - mean| in steps of 2^-30, then gamma and beta. No epsilon: the integers have none."""
    z = _unit_rows(x - x.mean(axis=-1, keepdims=True))
    return z * _dyadic(mult, shift - 30, x) + _dyadic(bias, shift, x)


def _l2norm(x: Float, *, mult: int, shift: int) -> Float:
    return _unit_rows(x) * _dyadic(mult, shift - 30, x)


def _matmul(a: Float, b: Float, *, mult: Array, shift: Array, transpose_b: int, out: str) -> Float:
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    return (a @ b) * _dyadic(mult, shift, a)[..., None, :]


def _softmax(x: Float) -> Float:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Float = e / e.sum(axis=-1, keepdims=True)
    return result


def _shiftmax(x: Float, *, i0: int, k_inter: int, int_div_kind: str, out: str) -> Float:
    return _softmax(x / i0) * (2**7 if out == "int8" else 2**15)


def _softmax2(x: Float, *, frac_bits: int, a1: int, a2: int) -> Float:
    return _softmax(x * (float(np.log(2)) * 2.0**-frac_bits)) * 2**15


def _shift_gelu(
    x: Float, *, i0: int, k_inter: int, lam: int, int_div_kind: str, k_out: int, mult: int, shift: int
) -> Float:
    """The GELU of x / i0; i0 and sigma's 2^(k_out - 1) are folded back in by mult and shift."""
    return gelu(x / i0) * (i0 * _dyadic(mult, shift - (k_out - 1), x))


def _gelu_table(x: Float, *, table: Array) -> Float:
    """Without scales nobody knows the function: straight lines between the entries, constant beyond the ends."""
    result: Float = np.interp(x, np.arange(-128, 128), table).astype(x.dtype)
    return result


def _upsample_bilinear(x: Float, *, factor: int, row_start: int, row_stop: int) -> Float:
    rows = _taps(x.shape[0], factor).astype(x.dtype)[row_start:row_stop]
    columns = _taps(x.shape[1], factor).astype(x.dtype)
    result: Float = np.einsum("yi,xj,ijc->yxc", rows, columns, x, optimize=True) * (2 * factor) ** 2
    return result


def _taps(size: int, factor: int) -> Float:
    """float64 [size * factor, size]: weights of the cells in every pixel of an axis (align_corners = False)."""
    position = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
    weights: Float = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size)))
    return weights


REAL: dict[str, RealOp] = {
    **{name: RUN[name] for name in MOVERS},
    "quantize_input": _quantize_input,
    "linear": _linear,
    "add": _add,
    "layernorm": _layernorm,
    "matmul": _matmul,
    "shiftmax": _shiftmax,
    "softmax2": _softmax2,
    "shift_gelu": _shift_gelu,
    "sigmoid_gelu": _shift_gelu,
    "gelu_table": _gelu_table,
    "l2norm": _l2norm,
    "upsample_bilinear": _upsample_bilinear,
    "argmax": RUN["argmax"],
}
"""Op name -> real op: same inputs (float32 or float64), params and attributes as the integer op."""

_GELUS = ("gelu_table", "shift_gelu", "sigmoid_gelu")


# ---------------------------------------------------------------------------------------------------------- graphs


def bind(graph: Graph, node: Node, scales: Mapping[str, Array]) -> RealOp:
    """The real op of a node: a function of its inputs alone.

    scales  as `trace.scales` gives them. Where input and output of a GELU have one, it is the GELU of what they
            say: the rounding of 1 / i0 to an integer, or of a table, is then an error of the integer op
    """
    if node.op in _GELUS and node.inputs[0] in scales and node.name in scales:
        return functools.partial(_gelu_between, scales[node.inputs[0]], scales[node.name])
    params = {role: graph.tensors[name] for role, name in node.params.items()}
    return functools.partial(REAL[node.op], **params, **node.attrs)


def _gelu_between(source: Array, target: Array, x: Float) -> Float:
    return quantize(target, gelu(dequantize(source, x).astype(x.dtype)))


def as_float(inputs: Sequence[Array], dtype: Any = np.float32) -> list[Array]:
    """Integers as floats; pixels (uint8) stay, they index a table."""
    return [x if x.dtype == np.uint8 else x.astype(dtype, copy=False) for x in inputs]


def run(graph: Graph, image: Array, scales: Mapping[str, Array], dtype: Any = np.float32) -> Float:
    """A whole window in real arithmetic.

    image   uint8 [H, W, 3], the size of `graph.info.window`
    return  scores in steps of their grid, float [h, w, classes]
    """
    values: dict[str, Array] = {IMAGE: image}
    for i, node in enumerate(graph.nodes):
        inputs = as_float(graph.arguments(node, values)[0], dtype)
        values[node.name] = bind(graph, node, scales)(*inputs)
        for name in node.inputs:
            if graph.last_use[name] <= i:
                values.pop(name, None)
    return values[graph.output]


def merge_scores(scores: Sequence[Array], tiling: Tiling, info: ModelInfo) -> Float:
    """Mean score of every cell of the patch grid over the windows that hold it, float64 (SPEC.md, section 7)."""
    patch = info.patch
    total = np.zeros((tiling.height // patch, tiling.width // patch, len(info.classes)))
    count = np.zeros((*total.shape[:2], 1))
    for (top, left), window in zip(tiling.corners(), scores, strict=True):
        cells = np.s_[top // patch : top // patch + window.shape[0], left // patch : left // patch + window.shape[1]]
        total[cells] += window
        count[cells] += 1
    return total / count


def class_map(scores: Float, upsample: str, patch: int, height: int, width: int) -> Array:
    """Labels of the pixels from mean scores [h, w, C], `nearest` or `bilinear`: uint8 [height, width] or uint16."""
    if upsample == "nearest":
        return RUN["upsample_nearest"](RUN["argmax"](scores), factor=patch)[:height, :width]
    rows, columns = (_taps(n, patch)[:size] for n, size in zip(scores.shape[:2], (height, width), strict=True))
    # Class by class: an argmax over a short last axis is what takes the time.
    planes = rows.astype(np.float32) @ scores.transpose(2, 0, 1).astype(np.float32) @ columns.T.astype(np.float32)
    labels: Array = planes.argmax(axis=0).astype(np.uint8 if scores.shape[-1] <= 256 else np.uint16)
    return labels
