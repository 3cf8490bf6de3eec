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

from intseg.arith import held, limits
from intseg.exam import EXAMS
from intseg.exam._real import Float, taps
from intseg.graph import IMAGE, Graph, ModelInfo, Node
from intseg.ops import RUN, Array
from intseg.windows import Tiling, counts, resize_taps, tile, working_size

RealOp = Callable[..., Float]

REAL: dict[str, RealOp] = {op: exam.real for op, exam in EXAMS.items() if exam.real is not None}
"""Op name -> real op: same inputs (float32 or float64), params and attributes as the integer op."""


def on_grid(x: Float, kind: str) -> Array:
    """The nearest integers of a dtype or a narrow type: half up, then saturated (SPEC 2.1, 2.2)."""
    result: Array = np.clip(np.floor(x + 0.5), *limits(kind)).astype(held(kind))
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


# ---------------------------------------------------------------------------------------------------------- graphs


def bind(graph: Graph, node: Node, scales: Mapping[str, Array]) -> RealOp:
    """The real op of a node: a function of its inputs alone.

    scales  as `trace.scales` gives them. Where input and output of an op that is a function of one number (a GELU)
            have one, it is that function of what they say: the rounding of 1 / i0 to an integer, or of a table, is
            then an error of the integer op
    """
    params = {role: graph.tensors[name] for role, name in node.params.items()}
    op, function = functools.partial(REAL[node.op], **params, **node.attrs), EXAMS[node.op].function
    if node.op == "linear" and (parts := divided(graph, node)) is not None:
        return functools.partial(_within, op, parts, limits(str(node.attrs["out"])))
    if function is None or node.inputs[0] not in scales or node.name not in scales:
        return op
    of_scales = functools.partial(_between, function, scales[node.inputs[0]], scales[node.name])
    source = next((other for other in graph.nodes if other.name == node.inputs[0]), None)
    parts = None if source is None else divided(graph, source)
    return of_scales if parts is None else lambda x: np.where(parts, op(x), of_scales(x))


def divided(graph: Graph, node: Node) -> Array | None:
    """Units of a linear layer in front of a table that are parts of one, bool [units]: their weights are equal.

    Calibration divides a unit that reaches far beyond a table (tools/twin/fit.py). Each part gives what lies in its own
    range, so that the range, and the table, are what it means. None where there are none.
    """
    owners = owners_of(graph, node)
    return None if owners is None else np.bincount(owners, minlength=len(owners))[owners] > 1


def owners_of(graph: Graph, node: Node) -> Array | None:
    """The unit that each is a part of, int [units]: of those that are `divided` the one with the smallest step."""
    readers = [other.op for other in graph.nodes if node.name in other.inputs]
    if node.op != "linear" or readers != ["gelu_table"] or node.scale is None:
        return None
    weight, (mult, _, shift) = graph.tensors[node.params["weight"]], graph.tensors[node.scale]
    _, place, count = np.unique(weight, axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    steps = np.broadcast_to(np.ldexp(mult.astype(np.float64), -shift), (*mult.shape[:-1], len(place)))
    steps, owners = steps.reshape(-1, len(place))[0], np.arange(len(place))
    for group in np.flatnonzero(count > 1):
        parts = np.flatnonzero(place == group)
        if weight[parts[0]].any():
            owners[parts] = parts[steps[parts].argmin()]
    return owners if (owners != np.arange(len(owners))).any() else None


def _within(op: RealOp, parts: Array, ends: tuple[int, int], x: Float) -> Float:
    y = op(x)
    return np.where(parts, y.clip(*ends), y)


def _between(function: Callable[[Float], Float], source: Array, target: Array, x: Float) -> Float:
    return quantize(target, function(dequantize(source, x).astype(x.dtype)))


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
    """Mean score of every cell of the patch grid over the windows that hold it, float64 (SPEC.md, section 7).

    Merged in pixels, they are those of every window: float64 [windows, window height / patch, window width / patch, C].
    Logits are float64 [1, 1, C].
    """
    if info.classifies:
        return scores[0].reshape(1, 1, -1).astype(np.float64)
    if info.merge == "pixel":
        return np.stack(scores).astype(np.float64)
    patch = info.patch
    total = np.zeros((tiling.height // patch, tiling.width // patch, len(info.classes)))
    count = np.zeros((*total.shape[:2], 1))
    for (top, left), window in zip(tiling.corners(), scores, strict=True):
        cells = np.s_[top // patch : top // patch + window.shape[0], left // patch : left // patch + window.shape[1]]
        total[cells] += window
        count[cells] += 1
    return total / count


def labels(scores: Float, info: ModelInfo, height: int, width: int) -> Array:
    """Labels of the pixels of an image from what `merge_scores` gives: uint8 [height, width] or uint16."""
    if info.classifies:
        return RUN["argmax"](scores)
    if info.merge == "grid":
        return class_map(scores, info.upsample, info.patch, height, width)
    tiling = tile(info, height, width)
    total = np.zeros((scores.shape[-1], tiling.height, tiling.width), np.float32)
    for (top, left), window in zip(tiling.corners(), scores, strict=True):
        planes = _upsampled(window, info.upsample, info.patch, *info.window)
        total[:, top : top + info.window[0], left : left + info.window[1]] += planes
    size = working_size(info, height, width)
    for origins, axis in ((tiling.tops, 0), (tiling.lefts, 1)):
        held = counts(origins, info.window[axis], total.shape[1 + axis], 1).astype(np.float32)
        total /= held.reshape((-1, 1) if axis == 0 else (1, -1))
    planes = total[:, : size[0], : size[1]]
    if size != (height, width):
        rows, columns = (
            _weights_between(*resize_taps(*of_axis), of_axis[1]) for of_axis in zip((height, width), size, strict=True)
        )
        planes = rows @ planes @ columns.T
    return _classes(planes)


def class_map(scores: Float, upsample: str, patch: int, height: int, width: int) -> Array:
    """Labels of the pixels from mean scores [h, w, C], `nearest` or `bilinear`: uint8 [height, width] or uint16."""
    if upsample == "nearest":
        return RUN["upsample_nearest"](RUN["argmax"](scores), factor=patch)[:height, :width]
    return _classes(_upsampled(scores, upsample, patch, height, width))


def _upsampled(scores: Float, upsample: str, patch: int, height: int, width: int) -> Float:
    """Scores [h, w, C] as planes of pixels, float32 [C, height, width]."""
    if upsample == "nearest":
        return RUN["upsample_nearest"](scores, factor=patch)[:height, :width].transpose(2, 0, 1).astype(np.float32)
    rows, columns = (taps(n, patch)[:size] for n, size in zip(scores.shape[:2], (height, width), strict=True))
    # Class by class: an argmax over a short last axis is what takes the time.
    planes: Float = (
        rows.astype(np.float32) @ scores.transpose(2, 0, 1).astype(np.float32) @ columns.T.astype(np.float32)
    )
    return planes


def _weights_between(lower: Array, upper: Array, weight: Array, total: int, size: int) -> Float:
    """Rows of weights of an interpolation between `size` pixels, float32."""
    rows = np.zeros((len(lower), size), np.float32)
    rows[np.arange(len(lower)), lower] = 1 - weight / total
    rows[np.arange(len(lower)), upper] += (weight / total).astype(np.float32)
    return rows


def _classes(planes: Float) -> Array:
    """The class of the largest score of every pixel of planes [C, H, W]."""
    found: Array = planes.argmax(axis=0).astype(np.uint8 if len(planes) <= 256 else np.uint16)
    return found
