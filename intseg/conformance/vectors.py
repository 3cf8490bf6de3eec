"""A conformance pack: inputs, expected results and a description by which any implementation can test itself.

Three parts. *Op cases* call every op of SPEC.md section 4 and the three steps of section 7; they are the same for every
model and reach every branch that `coverage` lists. *Images* are corner cases for one model: sizes around
the window, flat and alternating pixels. `runner.json` says how to read them and what to do. All of it is integers, and
the same model gives the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from intseg import api, arith, backends, store
from intseg._version import __version__
from intseg.conformance import coverage
from intseg.errors import InputError, MismatchError
from intseg.exam import EXAMS
from intseg.executor import execute
from intseg.files import create, new_folder
from intseg.graph import ModelInfo, Node
from intseg.ops import Array, Attr, Call, Run
from intseg.ops.gelu import times_1_6875
from intseg.windows import GEOMETRY, STEPS, cut_windows, info_of, merge_scores, run_step, tile

FORMAT = 1
KEY = "intseg"
_LIMITS = {name: (int(np.iinfo(name).min), int(np.iinfo(name).max)) for name in ("int8", "uint8", "int16", "uint16")}
_LIMITS |= {name: (int(np.iinfo(name).min), int(np.iinfo(name).max)) for name in ("int32", "int64")}


# ----------------------------------------------------------------------------------------------- numbers and rows


class Numbers:
    """Integers that are the same on every machine: a 64-bit linear congruential generator."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, limit: int) -> int:
        """The next integer in [0, limit), limit at most 2^32."""
        self.state = (6364136223846793005 * self.state + 1442695040888963407) % 2**64
        return (self.state >> 32) * limit >> 32

    def integers(self, low: int, high: int, *shape: int, dtype: str) -> Array:
        """Integers in [low, high]."""
        count = int(np.prod(shape))
        return np.array([low + self.below(high - low + 1) for _ in range(count)], dtype).reshape(shape)

    def full(self, dtype: str, *shape: int) -> Array:
        """Integers over the whole range of a dtype of at most 32 bits."""
        return self.integers(*_LIMITS[dtype], *shape, dtype=dtype)


def edge_rows(dtype: str, width: int) -> Array:
    """Lowest, highest, alternating, one-hot, one low, zero, constant, negative, 0 and -1, a ramp, pairs at the top."""
    low, high = _LIMITS[dtype]
    rows = np.zeros((11, width), dtype)
    rows[0], rows[1] = low, high
    rows[2, ::2], rows[2, 1::2] = low, high
    rows[3, width // 2], rows[4, 0] = high, low
    rows[6], rows[7] = 5, -3
    rows[8, ::2] = -1
    rows[9] = np.arange(width) - width // 2
    rows[10, :2] = 1
    return rows


# ------------------------------------------------------------------------------------------------------ op cases

Cases = Iterator[Call]
_SCALES = ((0, 1), (1, 1), (1, 3), (3, 7), (2**30, 30), (2**31 - 1, 62), (2**31 - 1, 31), (1, 62), (2**31 - 1, 1))
"""(mult, shift): zero, ties, the identity, both ends."""


def _call(op: str, *inputs: Array, params: Mapping[str, Array] | None = None, **attrs: Attr) -> Call:
    return Call(op, inputs, params or {}, attrs)


def _between(a: int) -> tuple[int, int]:
    """(mult, shift) that round a and a + 1 to different integers, so that the last bit of an operand shows.

    a  not 0 or -1, |a| at most 2^30
    """
    small = a if a >= 1 else -a - 1
    shift = small.bit_length() + 31
    half = 1 << (shift - 1)
    return (-(-half // (small + 1)) if a >= 1 else half // small), shift


def _quantize_input(numbers: Numbers) -> Cases:
    ramp = np.stack([np.arange(256)] * 3, axis=-1).astype(np.uint8)[None]
    yield _call("quantize_input", ramp, params={"table": numbers.full("int8", 3, 256)})


def _patchify(numbers: Numbers) -> Cases:
    for patch, rows, columns, channels in ((1, 2, 3, 3), (2, 3, 2, 3), (8, 1, 2, 3), (3, 1, 1, 1)):
        yield _call("patchify", numbers.full("int8", patch * rows, patch * columns, channels), patch=patch)


def _scales() -> dict[str, Array]:
    """_SCALES as parameters, one per output column."""
    mult, shift = zip(*_SCALES, strict=True)
    return {"mult": np.array(mult, np.int32), "shift": np.array(shift, np.int8)}


def _linear(numbers: Numbers) -> Cases:
    every = np.arange(-128, 128, dtype=np.int8)[:, None]
    for out in ("int8", "int16"):
        count = len(_SCALES)
        scale = _scales()
        free = 2**31 - 1 - 128 * 128 * 12
        bias = np.array([0, 1, -1, 2**20, -(2**20), free, -free, 7, 0], np.int32)
        params: dict[str, Array] = {"weight": edge_rows("int8", 12)[:count], "bias": bias, **scale}
        yield _call("linear", edge_rows("int8", 12), params=params, out=out)
        ones: dict[str, Array] = {"weight": np.ones((count, 1), np.int8), "bias": np.zeros(count, np.int32), **scale}
        yield _call("linear", every, params=ones, out=out)
        limits = _LIMITS[out]
        exact: dict[str, Array] = {
            "weight": np.zeros((4, 1), np.int8),
            "bias": np.array([limits[0], limits[1], limits[0] - 1, limits[1] + 1], np.int32),
        }
        exact |= {"mult": np.full(4, 2**30, np.int32), "shift": np.full(4, 30, np.int8)}
        yield _call("linear", every[:2], params=exact, out=out)
        params = {"weight": numbers.full("int8", 9, 33), "bias": numbers.integers(-5000, 5000, 9, dtype="int32")}
        params |= {"mult": numbers.integers(2**30, 2**31 - 1, 9, dtype="int32"), "shift": np.full(9, 41, np.int8)}
        yield _call("linear", numbers.full("int8", 7, 33), params=params, out=out)


def _add(numbers: Numbers) -> Cases:
    scales = ((1, 1), (3, 2), (2**30, 30), (0, 62), (2**31 - 1, 62), (2**15 - 1, 1), (2**31 - 1, 18), (1, 4))
    for i, (mult, shift) in enumerate(scales):
        other = scales[(i * 3 + 1) % len(scales)]
        a, b = edge_rows("int16", 6), edge_rows("int16", 6)[::-1].copy()
        scale: dict[str, Attr] = {"mult_a": mult, "shift_a": shift, "mult_b": other[0], "shift_b": other[1]}
        yield _call("add", a, b, params={}, **scale)
        yield _call("add", numbers.full("int16", 2, 9), numbers.full("int16", 2, 9), params={}, **scale)
    wide: dict[str, Attr] = {"mult_a": 2**30, "shift_a": 29, "mult_b": 2**30, "shift_b": 29}
    a = np.array([[32767, -32768, 16384, -16384, 16383]], np.int16)
    b = np.array([[-32768, 32767, 0, 0, 0]], np.int16)
    yield _call("add", a, b, params={}, **wide)
    same: dict[str, Attr] = {"mult_a": 2**30, "shift_a": 30, "mult_b": 2**30, "shift_b": 30}
    yield _call("add", np.array([[32766, -32767]], np.int16), np.array([[1, -1]], np.int16), params={}, **same)


def _layernorm(numbers: Numbers) -> Cases:
    for out in ("int8", "int16"):
        for shift in (1, 24, 53, 62):
            mult = np.array([0, 1, -1, 2**31 - 1, -(2**31) + 1, 2**24], np.int32)
            bias = np.array([2**61 - 1, 0, -(2**61) + 1, 2**40, -(2**40), 2 ** min(shift - 1, 60)], np.int64)
            yield _call("layernorm", edge_rows("int16", 6), params={"mult": mult, "bias": bias}, shift=shift, out=out)
        yield _call("layernorm", np.array([[9], [-9]], np.int16), params=_affine(5, 1 << 33), shift=31, out=out)
        x = np.concatenate([_zero_mean_squares(), numbers.full("int16", 3, 4)])
        mult, bias = numbers.integers(2**20, 2**21, 4, dtype="int32"), np.array([3, -3, 0, 1], np.int64) << 42
        yield _call("layernorm", x, params={"mult": mult, "bias": bias}, shift=44, out=out)
        x = numbers.integers(-300, 300, 2, 3, 4, dtype="int16")
        yield _call("layernorm", x, params={"mult": mult, "bias": bias}, shift=44, out=out)
        limits = _LIMITS[out]
        beta = np.array([limits[0], limits[1], limits[0] - 1, limits[1] + 1, 0, 1, -1, 3, -3], np.int64)
        exact = {"mult": np.zeros(9, np.int32), "bias": np.where(np.abs(beta) > 4, beta << 4, beta << 3)}
        yield _call("layernorm", numbers.full("int16", 1, 9), params=exact, shift=4, out=out)
    yield from _last_bits()


def _last_bits() -> Cases:
    """Results that are the last bits of z: mult = 2 and bias = -2 z + 2 j at shift 1 give j."""
    for row in ([0, 1], [-1, 0, 0], [3, -5, 7, 100, -2], [1000, -999, 998, -32768, 32767]):
        y = np.array(row, np.int64) - (2 * sum(row) + len(row)) // (2 * len(row))
        z = (y * ((2**31 - 1) // arith.isqrt((y * y).sum()))) >> 1
        params = {"mult": np.full(len(row), 2, np.int32), "bias": 2 * (np.arange(len(row)) - z)}
        yield _call("layernorm", np.array([row], np.int16), params=params, shift=1, out="int16")


def _affine(mult: int, bias: int) -> dict[str, Array]:
    return {"mult": np.array([mult], np.int32), "bias": np.array([bias], np.int64)}


def _zero_mean_squares() -> Array:
    """Rows with sums of squares 0, 4 (exact), 8 (one below 9), 2 ..., means of 1/2 above and below zero."""
    rows = [[0, 0, 0, 0], [1, 1, -1, -1], [2, 0, -2, 0], [1, -1, 0, 0], [3, -3, 1, -1], [0, 0, 1, 1], [-1, -1, 0, 0]]
    return np.array([*rows, [-5, -6, -5, -5], [30000, -30000, 30000, -30000], [2, 2, 2, -6]], np.int16)


def _matmul(numbers: Numbers) -> Cases:
    scale, width = _scales(), len(_SCALES)
    every = np.arange(-128, 128, dtype=np.int8)[:, None]
    for out in ("int8", "int16"):
        b = numbers.full("int8", 12, width)
        b[:, -1] = -128
        yield _call("matmul", edge_rows("int16", 12), b, params=scale, transpose_b=0, out=out)
        yield _call("matmul", every, np.ones((width, 1), np.int8), params=scale, transpose_b=1, out=out)
        limits = np.array([_LIMITS[out]], np.int16).T
        exact: dict[str, Array] = {"mult": np.array([2**30], np.int32), "shift": np.array([30], np.int8)}
        yield _call("matmul", limits, np.ones((1, 2), np.int8), params=exact, transpose_b=0, out=out)
        batched: dict[str, Array] = {
            "mult": numbers.integers(2**20, 2**21, 2, 1, dtype="int32"),
            "shift": np.full((2, 1), 28, np.int8),
        }
        a, b = numbers.full("int8", 2, 3, 64), numbers.full("int8", 2, 64, 5)
        yield _call("matmul", a, b, params=batched, transpose_b=0, out=out)
        yield _call("matmul", a, b.swapaxes(1, 2).copy(), params=batched, transpose_b=1, out=out)


def _softmax_rows(numbers: Numbers, dtype: str) -> Iterator[Array]:
    yield edge_rows(dtype, 7)
    yield np.array([[-7]], dtype)
    yield np.array(
        [[0, -1, -2, -15, -16, -17, -31, -32, -33, -100], [_LIMITS[dtype][1], *[_LIMITS[dtype][0]] * 9]], dtype
    )
    yield numbers.integers(-90, -20, 2, 3, 17, dtype=dtype)


def _shiftmax(numbers: Numbers) -> Cases:
    for out in ("int8", "int16"):
        for kind in ("paper", "normalized"):
            for i0, k_inter in ((1, 15), (16, 11), (23, 10), (16, 2), (1, 0), (2**15, 0)):
                for dtype in ("int8", "int16"):
                    for x in _softmax_rows(numbers, dtype):
                        yield _call("shiftmax", x, params={}, i0=i0, k_inter=k_inter, int_div_kind=kind, out=out)
    yield _tie_at_power_of_two()


def _tie_at_power_of_two() -> Call:
    """Exponentials 2^15, 2^14, 2^13, ..., 1 that sum to 2^16: 1 of it is a tie, but for the reciprocal 2^16 - 1."""
    x = np.repeat(-np.arange(12), (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 1, 2)).astype(np.int8)[None]
    return _call("shiftmax", x, params={}, i0=1, k_inter=15, int_div_kind="normalized", out="int16")


def _softmax2(numbers: Numbers) -> Cases:
    for a1, a2 in ((21955, 5571), (16384, 0), (16384, 16383)):
        for frac_bits in (0, 4, 8, 15):
            for x in _softmax_rows(numbers, "int16"):
                yield _call("softmax2", x, params={}, frac_bits=frac_bits, a1=a1, a2=a2)
    sums = np.array([[0, -15], [0, -1], [0, -14]], np.int16)  # 32768, a power of two; others
    lost = np.array([[0, 0, 0, -15]], np.int16)  # 1 of 98302
    for x in (sums, lost):
        yield _call("softmax2", x, params={}, frac_bits=0, a1=21955, a2=5571)


def _gelus(numbers: Numbers) -> Cases:
    every = np.arange(-128, 128, dtype=np.int8)
    for op in ("shift_gelu", "sigmoid_gelu"):
        for kind in ("paper", "normalized"):
            for k_out in (8, 16):
                for i0, k_inter, lam in ((16, 23, 6), (23, 15, 1), (5, 15, 64), (2**13, 31, 6), (1, 30, 6), (7, 0, 1)):
                    attrs: dict[str, Attr] = {"i0": i0, "k_inter": k_inter, "lam": lam, "int_div_kind": kind}
                    attrs |= {"k_out": k_out, "mult": 1, "shift": k_out - 1}
                    yield _call(op, every[None], params={}, **attrs)
                    yield _call(op, every[:, None], params={}, **attrs)
                    yield _call(op, edge_rows("int8", 7), params={}, **attrs)
                    yield _call(op, numbers.integers(-128, 20, 2, 2, 9, dtype="int8"), params={}, **attrs)
                flat: dict[str, Attr] = {**attrs, "i0": 2**13, "k_inter": 23, "lam": 1, "mult": 65, "shift": k_out + 4}
                yield _call(op, every[:, None], params={}, **flat)  # sigma near 1 / 2: the lowest result is reached
                for mult, shift in (*_SCALES, (3, k_out + 1), (1, k_out - 2)):
                    scale: dict[str, Attr] = {**attrs, "i0": 16, "k_inter": 23, "lam": 6, "mult": mult, "shift": shift}
                    yield _call(op, every[None, ::5], params={}, **scale)
    yield from _sharp_gelus()


def _sharp_gelus() -> Cases:
    """The last bit of sigma where it shows whether a divisor of 17 to 33 bits is normalized by its exact length."""
    for k_inter in (10, 14, 18, 22, 25, 26):
        for value in (-90, 83):
            p, one = times_1_6875(arith.EXACT, np.array([value], np.int64)), np.array([97 << k_inter], np.int64)
            e = arith.shift_exp(-np.abs(p), 97, k_inter, 6)
            product = value * int(arith.int_div(one if value >= 0 else e, one + e, 16, "normalized")[0])
            for below in (product - 1, product):
                mult, shift = _between(below)
                attrs: dict[str, Attr] = {"i0": 97, "k_inter": k_inter, "lam": 6, "int_div_kind": "normalized"}
                attrs |= {"k_out": 16, "mult": mult, "shift": shift}
                for op in ("shift_gelu", "sigmoid_gelu"):
                    yield _call(op, np.array([[value]], np.int8), params={}, **attrs)


def _gelu_table(numbers: Numbers) -> Cases:
    yield _call("gelu_table", np.arange(-128, 128, dtype=np.int8), params={"table": numbers.full("int8", 256)})


def _l2norm(numbers: Numbers) -> Cases:
    squares = np.array([[3, 4, 0, 0], [1, -1, 1, 0], [2, 2, -2, 2], [-4, 2, 2, 0], [-1, 0, 0, 0]], np.int16)
    ties = np.array([[30893, 30893, 248, 2], [30893, 30893, 248, -2]], np.int16)  # f = 3 2^14, z = 3 2^14
    yield _call("l2norm", ties, params={}, mult=1, shift=15)
    for mult, shift in (*_SCALES, (127, 30), (128, 30), (255, 31), (2**31 - 1, 55), (1, 23), (1, 24), (1, 27)):
        for x in (edge_rows("int16", 6), squares, numbers.full("int16", 2, 2, 16)):
            yield _call("l2norm", x, params={}, mult=mult, shift=shift)
    yield from _last_bits_l2norm()


def _last_bits_l2norm() -> Cases:
    for row in ([-1, 0, 0], [3, -4, 7], [1000, -30000, 32767]):
        x = np.array([row], np.int64)
        reciprocal = (2**31 - 1) // int(arith.isqrt((x * x).sum()))
        for value in filter(None, row):
            z = value * reciprocal >> 1
            for below in (max(z - 1, -(2**30)), z):
                mult, shift = _between(below)
                yield _call("l2norm", x.astype(np.int16), params={}, mult=mult, shift=shift)


def _concat(numbers: Numbers) -> Cases:
    for dtype in ("int8", "int16"):
        yield _call("concat", numbers.full(dtype, 1, 5), numbers.full(dtype, 4, 5))


def _slice(numbers: Numbers) -> Cases:
    for dtype in ("int8", "int16"):
        for start, stop in ((0, 7), (6, 7), (2, 5)):
            yield _call("slice", numbers.full(dtype, 7, 3), params={}, start=start, stop=stop)


def _split_heads(numbers: Numbers) -> Cases:
    for dtype in ("int8", "int16"):
        for heads, part, parts in ((1, 0, 1), (2, 0, 3), (2, 1, 3), (3, 2, 3), (4, 1, 2)):
            x = numbers.full(dtype, 5, heads * parts * 3)
            yield _call("split_heads", x, params={}, heads=heads, part=part, parts=parts)


def _merge_heads(numbers: Numbers) -> Cases:
    for dtype in ("int8", "int16"):
        for shape in ((1, 4, 3), (3, 5, 2)):
            yield _call("merge_heads", numbers.full(dtype, *shape))


def _to_grid(numbers: Numbers) -> Cases:
    for dtype in ("int8", "int16"):
        for height, width in ((3, 4), (1, 5)):
            yield _call("to_grid", numbers.full(dtype, height * width, 3), params={}, height=height, width=width)


def _upsample_nearest(numbers: Numbers) -> Cases:
    for dtype in ("uint8", "uint16", "int16", "int32"):
        yield _call("upsample_nearest", numbers.full(dtype, 2, 3), params={}, factor=4)
        yield _call("upsample_nearest", numbers.full(dtype, 3, 1, 2), params={}, factor=1)


def _upsample_bilinear(numbers: Numbers) -> Cases:
    for dtype in ("int16", "int32"):
        for height, width, factor in ((1, 1, 64), (1, 3, 4), (3, 1, 3), (3, 2, 5), (2, 2, 1)):
            x = numbers.full(dtype, height, width, 2)
            rows = height * factor
            for start, stop in ((0, rows), (rows - 1, rows)):
                yield _call("upsample_bilinear", x, params={}, factor=factor, row_start=start, row_stop=stop)


def _argmax(numbers: Numbers) -> Cases:
    for dtype in ("int16", "int32", "int64"):
        yield _call("argmax", edge_rows(dtype, 7))
        yield _call("argmax", numbers.integers(-9, -1, 3, 19, dtype=dtype))
        for classes in (1, 256, 257, 1000):
            yield _call("argmax", numbers.integers(0, 60, 3, classes, dtype=dtype))
        yield _call("argmax", numbers.integers(0, 60, 1, 257, 2, dtype=dtype))


_GEOMETRIES = ((16, 32, 8, 16, 8), (16, 16, 16, 16, 8), (32, 24, 16, 16, 8))
"""Window height and width, stride, patch, in pixels."""

_SIZES = ((16, 32), (21, 27), (13, 21), (22, 69), (50, 48), (1, 1), (32, 64), (47, 33))


def _geometry(numbers: tuple[int, ...]) -> dict[str, Attr]:
    return dict(zip(GEOMETRY, numbers, strict=True))


def _cut_windows(numbers: Numbers) -> Cases:
    for geometry in _GEOMETRIES:
        for height, width in _SIZES:
            x = numbers.full("uint8", height, width, 3)
            yield _call("cut_windows", x, params={}, **_geometry(geometry), pad_red=1, pad_green=128, pad_blue=255)


def _merge_scores(numbers: Numbers) -> Cases:
    for dtype in ("int8", "int16"):
        for geometry in _GEOMETRIES:
            for height, width in _SIZES:
                attrs = _geometry(geometry) | {"height": height, "width": width}
                count = len(tile(info_of(attrs), height, width).corners())
                cells = (geometry[0] // 8, geometry[1] // 8)
                yield _call("merge_scores", numbers.full(dtype, count, *cells, 2), params={}, **attrs)


def _class_map(numbers: Numbers) -> Cases:
    for upsample in ("nearest", "bilinear"):
        for classes, top in ((5, 3), (1, 9), (256, 40), (257, 40), (300, 2**19)):
            x = numbers.integers(-top, top, 3, 4, classes, dtype="int32")
            x[0, 0] = -5  # all negative, all tied
            x[0, 1], x[0, 1, -1] = -5, -4
            for height, width in ((24, 32), (17, 25)):
                yield _call("class_map", x, params={}, upsample=upsample, patch=8, height=height, width=width)


MAKERS: dict[str, Callable[[Numbers], Cases]] = {
    "quantize_input": _quantize_input,
    "patchify": _patchify,
    "linear": _linear,
    "add": _add,
    "layernorm": _layernorm,
    "matmul": _matmul,
    "gelu": _gelus,
    "shiftmax": _shiftmax,
    "softmax2": _softmax2,
    "gelu_table": _gelu_table,
    "l2norm": _l2norm,
    "concat": _concat,
    "slice": _slice,
    "split_heads": _split_heads,
    "merge_heads": _merge_heads,
    "to_grid": _to_grid,
    "upsample_nearest": _upsample_nearest,
    "upsample_bilinear": _upsample_bilinear,
    "argmax": _argmax,
    "cut_windows": _cut_windows,
    "merge_scores": _merge_scores,
    "class_map": _class_map,
}


def op_cases() -> dict[str, list[Call]]:
    """Every op case of a pack, by op: the ops of section 4 in its order, then the steps of section 7."""
    cases: dict[str, list[Call]] = {op: [] for op in EXAMS}
    for name, make in MAKERS.items():
        for call in make(Numbers(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))):
            cases[call.op].append(call)
    return cases


# ------------------------------------------------------------------------------------------------------- running


def section7(backend: str) -> dict[str, Run]:
    """The three steps around the graph, as ops."""

    def class_map(x: Array, *, upsample: str, patch: int, height: int, width: int) -> Array:
        return backends.class_map(x, upsample, patch, height, width, backend, 1)

    steps: dict[str, Run] = {name: lambda x, step=name, **attrs: run_step(step, x, attrs) for name in STEPS}
    return steps | {"class_map": class_map}


def table(backend: str) -> dict[str, Run]:
    """The op table of a backend with the steps of section 7."""
    return {**backends.table(backend), **section7(backend)}


def run_call(call: Call, ops: Mapping[str, Run]) -> Array:
    """The result of a call."""
    return np.ascontiguousarray(ops[call.op](*call.inputs, **call.params, **call.attrs))


def array_sha256(array: Array) -> str:
    """sha256 of the line "dtype [extents]" and of the little-endian bytes in C order."""
    digest = hashlib.sha256(f"{array.dtype.name} {list(array.shape)}\n".encode())
    digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


class Digest:
    """One sha256 over named results, in the order in which they come."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, name: str, sha256: str) -> None:
        """A result, by the sha256 of its array."""
        self._sha256.update(f"{name} {sha256}\n".encode())

    def __str__(self) -> str:
        return self._sha256.hexdigest()


# -------------------------------------------------------------------------------------------------------- images


def corner_images(info: ModelInfo) -> dict[str, Array]:
    """Images uint8 [H, W, 3] around the sizes and the contents where implementations break."""
    height, width = info.window
    numbers = Numbers(7)
    checker = np.zeros((height, width, 3), np.uint8)
    checker[::2, ::2], checker[1::2, 1::2] = 255, 255
    impulse = np.zeros((height, width, 3), np.uint8)
    impulse[height // 2, width // 2] = (255, 128, 1)
    tall, wide = height + info.patch + 1, width + info.stride[1] + info.patch + 1
    return {
        "black": np.zeros((height, width, 3), np.uint8),
        "white": np.full((height, width, 3), 255, np.uint8),
        "checker": checker,
        "impulse": impulse,
        "noise": numbers.full("uint8", height, width, 3),
        "pixel": np.full((1, 1, 3), (255, 0, 128), np.uint8),
        "smaller": _ramp(max(height - info.patch - 3, 1), max(width // 2 - 1, 1)),
        "overlap": _ramp(tall, wide),
    }


def _ramp(height: int, width: int) -> Array:
    """Three different gradients with a grid of steps."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, (x * 7 + y * 3) % 256, y * 255 // height], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class ImageResult:
    """What an image gives.

    tensors  image, corners of the windows, window{i}.scores, merged scores, labels
    nodes    sha256 of the output of every node of window 0
    reached  (node, branches) of window 0, and of the three steps of section 7
    """

    tensors: dict[str, Array]
    nodes: dict[str, str]
    reached: list[tuple[str, coverage.Found]]


def run_image(model: api.Model, rgb: Array, backend: str, with_coverage: bool) -> ImageResult:
    """Run an image, keeping what a conformance pack says about it."""
    info, forward = model.info, model.compiled(backend, 1)
    cut = list(cut_windows(rgb, info))
    scores = [np.ascontiguousarray(forward(window)) for _, window in cut]
    merged = merge_scores(scores, tile(info, *rgb.shape[:2]), info)
    height, width, _ = rgb.shape
    labels = backends.class_map(merged, info.upsample, info.patch, height, width, backend, 1)
    tensors = {"image": rgb, "corners": np.array([corner for corner, _ in cut], np.int32)}
    tensors |= {f"window{i}.scores": score for i, score in enumerate(scores)}
    tensors |= {"merged": merged, "labels": labels}
    nodes, reached = trace_window(model, cut[0][1], backend, with_coverage)
    if with_coverage:
        reached += _section7_reached(info, tensors)
    return ImageResult(tensors, nodes, reached)


def trace_window(
    model: api.Model, window: Array, backend: str, with_coverage: bool = False
) -> tuple[dict[str, str], list[tuple[str, coverage.Found]]]:
    """sha256 of every node's output, and the branches that every node reaches, if asked for."""
    graph, values = model.graph, {"image": window}
    nodes: dict[str, str] = {}
    reached: list[tuple[str, coverage.Found]] = []

    def on_node(node: Node, value: Array) -> None:
        nodes[node.name] = array_sha256(value)
        if with_coverage:
            inputs, params = graph.arguments(node, values)
            reached.append((node.name, coverage.branches(Call(node.op, tuple(inputs), params, node.attrs))))
            values[node.name] = value
            for name in {*node.inputs} & {*values}:
                if graph.last_use[name] < len(nodes):
                    del values[name]

    execute(graph, window, backends.table(backend), on_node)
    return nodes, reached


def _section7_reached(info: ModelInfo, tensors: Mapping[str, Array]) -> list[tuple[str, coverage.Found]]:
    height, width, _ = tensors["image"].shape
    window: dict[str, Attr] = _geometry((*info.window, *info.stride, info.patch))
    size: dict[str, Attr] = {"height": height, "width": width}
    calls = (
        Call("cut_windows", (tensors["image"],), {}, window),
        Call("merge_scores", (tensors["window0.scores"],), {}, window | size),
        Call("class_map", (tensors["merged"],), {}, size | {"patch": info.patch, "upsample": info.upsample}),
    )
    return [(call.op, coverage.branches(call)) for call in calls]


# ---------------------------------------------------------------------------------------------------------- pack

_HOW = (
    "All tensors are integers in safetensors files: little-endian, C order. SPEC.md is the definition.",
    "Op cases: ops/OP.safetensors holds case{i}.in{j}, case{i}.param.{role}, case{i}.expected; the attributes of case "
    "i are entry i of attrs in the JSON text under the metadata key intseg. Run OP and compare dtype, shape and every "
    "element with expected. Comparison is equality, without tolerance.",
    "cut_windows, merge_scores and class_map are steps 1 and 2, 3, 4 and 5 of SPEC.md section 7; windows are stacked.",
    "Images: load the model, run images/NAME.safetensors: image is uint8 [H, W, 3]; corners are (top, left) of the "
    "windows, window{i}.scores their scores, merged their sum, labels the class map. Compare as above.",
    "nodes of an image gives, for every node of window 0, the sha256 of the line 'dtype [d0, d1, ...]' with a line "
    "feed (extents joined by comma and space) followed by the tensor's little-endian bytes.",
    "digest is the sha256 over the lines 'ops/OP/{i} SHA' of the op cases in the order of ops, then for every image, "
    "in order, 'images/NAME/{tensor} SHA' of its tensors but image in the order of names (by code point), and "
    "'images/NAME/nodes/{node} SHA' in execution order; each line ends in a line feed, SHA as for nodes.",
)


@dataclass(frozen=True)
class Pack:
    """A conformance pack in memory.

    files     bytes by path inside the pack
    coverage  one entry a branch, as `coverage.report` gives it
    digest    of all expected results
    """

    files: dict[str, bytes]
    coverage: list[dict[str, Any]]
    digest: str

    @property
    def unreached(self) -> list[str]:
        """Names of the branches that nothing in the pack reaches."""
        return [entry["name"] for entry in self.coverage if not entry["count"]]


def make_pack(model: api.Model, backend: str = "numpy", say: Callable[[str], None] = lambda line: None) -> Pack:
    """A conformance pack for a model: the same bytes for the same model, on every backend.

    Raises MismatchError naming the branches of SPEC.md that nothing in the pack reaches.
    """
    digest = Digest()
    found: list[tuple[str, coverage.Found]] = []
    files = {"model.safetensors": store.dumps(model.graph)}
    cases = op_cases()
    for op, calls in cases.items():
        say(f"{op}: {len(calls)} cases")
        files[f"ops/{op}.safetensors"] = _op_file(op, calls, table(backend), digest)
        found += [(f"ops/{op}/{i}", coverage.branches(call)) for i, call in enumerate(calls)]
    images = []
    for name, rgb in corner_images(model.info).items():
        say(f"image {name}: {rgb.shape[0]} x {rgb.shape[1]}")
        result = run_image(model, rgb, backend, with_coverage=True)
        found += [(f"images/{name}/{node}", names) for node, names in result.reached]
        files[f"images/{name}.safetensors"] = safetensors.numpy.save(dict(sorted(result.tensors.items())))
        add_image(digest, name, result)
        images.append({"name": name, "file": f"images/{name}.safetensors", "nodes": result.nodes})
    rows = list(coverage.report(found))
    files["coverage.json"] = _json({"branches": rows})
    files["runner.json"] = _json(_runner(model, files, cases, images, str(digest)))
    pack = Pack(files, rows, str(digest))
    if pack.unreached:
        raise MismatchError(f"{len(pack.unreached)} branches of SPEC.md are not reached: {', '.join(pack.unreached)}")
    return pack


def add_image(digest: Digest, name: str, result: ImageResult) -> None:
    """Add an image's results in the order that runner.json states."""
    for key in sorted(set(result.tensors) - {"image"}):
        digest.add(f"images/{name}/{key}", array_sha256(result.tensors[key]))
    for node, sha256 in result.nodes.items():
        digest.add(f"images/{name}/nodes/{node}", sha256)


def _op_file(op: str, calls: Iterable[Call], ops: Mapping[str, Run], digest: Digest) -> bytes:
    """A file of op cases, in the format of golden/ops."""
    tensors: dict[str, Array] = {}
    attrs = []
    for i, call in enumerate(calls):
        expected = run_call(call, ops)
        tensors |= {f"case{i}.in{j}": x for j, x in enumerate(call.inputs)}
        tensors |= {f"case{i}.param.{role}": x for role, x in call.params.items()}
        tensors[f"case{i}.expected"] = expected
        attrs.append(dict(call.attrs))
        digest.add(f"ops/{op}/{i}", array_sha256(expected))
    text = json.dumps({"attrs": attrs, "op": op}, sort_keys=True, separators=(",", ":"))
    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}
    data: bytes = safetensors.numpy.save(contiguous, metadata={KEY: text})
    return data


def _runner(
    model: api.Model, files: Mapping[str, bytes], cases: Mapping[str, list[Call]], images: list[Any], digest: str
) -> dict[str, Any]:
    info = model.info
    return {
        "format": FORMAT,
        "kind": "intseg conformance pack",
        "intseg": __version__,
        "how": list(_HOW),
        "model": {"file": "model.safetensors", "name": info.name, "recipe": info.recipe},
        "ops": [{"op": op, "file": f"ops/{op}.safetensors", "cases": len(calls)} for op, calls in cases.items()],
        "images": images,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
        "digest": digest,
    }


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def write_pack(pack: Pack, folder: str | os.PathLike[str]) -> None:
    """Write a pack to a new or empty folder, whole or not at all. Raises InputError."""
    target = Path(folder)
    require_new(target)
    with new_folder(target) as made:
        for name, data in pack.files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            with create(made / name) as file:
                file.write(data)


def require_new(target: Path) -> None:
    """A folder that does not exist, or is empty, in a folder that exists. Raises InputError."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{target}: exists, expected a new or empty folder; choose another with -o")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: no folder {target.parent}; create it, or choose another with -o")


def summary(pack: Pack) -> dict[str, Any]:
    """What a pack holds, in numbers."""
    runner = json.loads(pack.files["runner.json"])
    return {
        "digest": pack.digest,
        "cases": sum(entry["cases"] for entry in runner["ops"]),
        "images": len(runner["images"]),
        "bytes": sum(map(len, pack.files.values())),
        "branches": len(pack.coverage),
        "reached": len(pack.coverage) - len(pack.unreached),
        "by_model": sum(bool(entry["images"]) for entry in pack.coverage),
        "files": len(pack.files),
    }
