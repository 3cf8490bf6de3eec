"""The search for causes on one call: each mistake is written here again, and the search has to name it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from faults import (
    Array,
    after,
    clamp16,
    half_up,
    high_by_floor,
    layernorm,
    linear,
    one_pass,
    op,
    part,
    saturate,
    term_by_term,
    unsigned_end,
    whole_tiles,
    wide,
    wrapped_before,
)

from intseg.ops import RUN, Call
from intseg.workbench.search import explain


def rows_of(size: int) -> Callable[..., Array]:
    return after("linear", lambda y: y * (np.arange(len(y)) < len(y) // size * size)[:, None])


def bias_after(x: Array, *, weight: Array, bias: Array, mult: Array, shift: Array, out: str) -> Array:
    return saturate(half_up(wide(x) @ wide(weight).T * mult, shift) + half_up(wide(bias) * mult, shift), out)


def int16_mult(mult: Any) -> Any:
    return np.minimum((wide(mult) + 2**15) >> 16, 2**15 - 1) << 16


LARGE = {
    "truncated high product": (part(linear, rounding=high_by_floor), "as a truncating high multiplication"),
    "multiplier rounded to INT16": (op("linear", mult=int16_mult), "mult rounded to INT16"),
    "saturation at every term": (
        part(linear, dot=term_by_term, acc=clamp16),
        "INT16 accumulator that saturates at every term",
    ),
    "incomplete tile of a sum": (part(linear, dot=whole_tiles(32)), "the last 11 terms of a sum missing (tiles of 32)"),
    "bias after the shift": (bias_after, "bias rounded apart"),
    "incomplete tile of rows": (rows_of(16), "the last 5 rows of the result missing (tiles of 16)"),
    "end of the unsigned type": (part(linear, narrow=unsigned_end), "type without sign, then wraps"),
    "INT16 before the saturation": (part(linear, narrow=wrapped_before), "wraps at 16 bits before"),
}
"""Faults that need larger numbers or other sizes than those models have, and what they are called."""


@pytest.mark.parametrize("name", LARGE)
def test_a_fault_of_large_numbers_is_named(name: str):
    random, (fault, words) = np.random.default_rng(1), LARGE[name]
    wide_out = "product" in name or "multiplier" in name
    shift = 34 if wide_out else {"end of the unsigned type": 39, "INT16 before the saturation": 31}.get(name, 42)
    out = "int16" if wide_out else "int8"
    params = {
        "weight": random.integers(-128, 128, (24, 75)).astype(np.int8),
        "bias": random.integers(-5000, 5000, 24).astype(np.int32),
        "mult": random.integers(2**30, 2**31, 24).astype(np.int32),
        "shift": np.full(24, shift, np.int8),
    }
    x = random.integers(-128, 128, (53, 75)).astype(np.int8)
    call = Call("linear", [x], params, {"out": out})
    assert any(words in found for found in explain(call, fault(x, **params, out=out)).names()[:2])


def bilinear(x: Array, place: Callable[[Array], Array]) -> Array:
    """Rows and columns doubled; place(i) is where pixel i lies, in quarters of a cell."""
    for axis in (0, 1):
        at = np.clip(place(np.arange(2 * x.shape[axis])), 0, 4 * (x.shape[axis] - 1))
        low, up, w = at // 4, np.minimum(at // 4 + 1, x.shape[axis] - 1), np.expand_dims(at % 4, (1 - axis, 2))
        x = wide(x).take(low, axis) * (4 - w) + wide(x).take(up, axis) * w
    return x


def test_faults_of_resizing_and_of_a_branch_are_named():
    x = np.random.default_rng(2).integers(-(2**15), 2**15, (5, 5, 3)).astype(np.int16)
    attrs = {"factor": 2, "row_start": 0, "row_stop": 10}
    call = Call("upsample_bilinear", [x], {}, attrs)
    assert explain(call, bilinear(x, lambda i: 2 * i)).names() == ["pixels at i / factor, without half a pixel"]
    assert explain(call, bilinear(x, lambda i: 16 * i // 9)).names() == ["corners aligned (align_corners = True)"]
    nearest = x[np.minimum((np.arange(10) + 1) // 2, 4)][:, np.minimum((np.arange(10) + 1) // 2, 4)]
    assert (
        explain(Call("upsample_nearest", [x], {}, {"factor": 2}), nearest)
        .names()[0]
        .startswith("nearest by i / factor")
    )
    branches = {"mult_a": 1518500250, "shift_a": 31, "mult_b": 2**30, "shift_b": 31}
    found = RUN["add"](x, x, **{**branches, "mult_a": int(int16_mult(branches["mult_a"]))})
    assert explain(Call("add", [x, x], {}, branches), found).names()[0] == "mult_a rounded to INT16 (its low 16 bits)"


def test_faults_of_short_rows_and_of_tables_are_named():
    x = np.random.default_rng(1).integers(-2, 4, (12, 9)).astype(np.int16)
    params = {"mult": np.full(9, 2**24, np.int32), "bias": np.zeros(9, np.int64)}
    call = Call("layernorm", [x], params, {"shift": 47, "out": "int8"})
    found = layernorm(x, **params, **call.attrs, variance=lambda _: one_pass(x))
    assert explain(call, found).names()[0] == "variance as sum x^2 - D mean^2, of the rounded mean"
    table = np.array([32640 - 121 * t for t in range(256)], np.int16)
    x = np.random.default_rng(1).integers(-400, 0, (6, 20)).astype(np.int16)
    distance = x.max(-1, keepdims=True) - x
    wrong = {
        "distances beyond the table's end wrap to its beginning": distance % 256,
        "a table of every second entry (its address without the lowest bit)": np.minimum(distance, 255) // 2 * 2,
    }
    dither = np.resize([8, 72, 40, 104, 24, 88, 56, 120], 20)
    for name, index in wrong.items():
        found = ((wide(table)[index] + dither) >> 7).astype(np.uint8)
        assert explain(Call("exp_weights", [x], {"table": table}, {}), found).names()[0] == name


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [(10, 11, "ceil or round"), (11, 10, "floor"), (12, 11, "ceil or round"), (12, 10, "floor")],
)
def test_i0_is_derived_from_the_scale(ours: int, theirs: int, name: str):
    """1 / S = 10.66: floor, ceil and round give 10, 11 and 11."""
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, -1)
    attrs = {"i0": ours, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8, "mult": 1, "shift": 7}
    scale = np.array([3 << 20, 0, 25], np.int32).reshape(3, 1, 1)
    found = RUN["sigmoid_gelu"](x, **{**attrs, "i0": theirs})
    names = explain(Call("sigmoid_gelu", [x], {}, attrs, scale), found).names()
    assert f"I_0 by {name} ({theirs} instead of {ours})" in names[:2]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_mistakes_of_fewer_bits_are_named(bits: int):
    """Saturated at 8 bits; packed weights without their sign, or read high bits first; each written here again."""
    source, most = np.random.default_rng(bits), 2 ** (bits - 1)
    x, weight = (source.integers(-n, n, shape, np.int8) for n, shape in ((100, (9, 40)), (most, (12, 40))))
    weight[0, :2] = -most, most - 1
    stream = sum(int(w) % 2**bits << i * bits for i, w in enumerate(weight.ravel()))
    data = stream.to_bytes(-(-weight.size * bits // 8), "little")
    text = "".join(f"{byte:08b}" for byte in data)  # as a reader does that takes the high bits of a byte first
    high_first = [int(text[i * bits : (i + 1) * bits], 2) for i in range(weight.size)]
    high_first = [value - 2**bits if value >= most else value for value in high_first]
    params = {"weight": weight, "bias": np.full(12, 5, np.int32), "mult": np.full(12, 2**30, np.int32)}
    params["shift"] = np.full(12, 31 + bits, np.int8)
    call = Call("linear", [x], params, {"out": "int6"})
    wrong = {
        f"weight of {bits} bits unpacked without its sign": {"weight": weight.astype(np.int64) % 2**bits},
        f"weight of {bits} bits unpacked high bits first": {"weight": np.array(high_first).reshape(weight.shape)},
    }
    found = {name: RUN["linear"](x, **{**params, **changed}, out="int6") for name, changed in wrong.items()}
    found["saturated at the 8 bits of INT8 instead of 6"] = RUN["linear"](x, **params, out="int8")
    for name, result in found.items():
        assert explain(call, result).names()[0] == name
