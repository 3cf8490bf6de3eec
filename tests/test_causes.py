"""The search for causes on one call: each mistake is written here again, and the search has to name it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from faults import (
    FAULTS,
    Array,
    after,
    base2,
    booth,
    ceil,
    clamp16,
    floor,
    gelu,
    half_up,
    high_by_floor,
    in_float32,
    layernorm,
    linear,
    one_pass,
    op,
    packed,
    part,
    saturate,
    shiftmax,
    term_by_term,
    unsigned_end,
    vsmul,
    weighted_mean,
    whole_tiles,
    wide,
    wrapped_before,
)

from intseg.arith.recorder import usual_mistakes
from intseg.arith.variant import Variant
from intseg.exam import EXAMS
from intseg.ops import RUN, Call
from intseg.workbench.search import explain


def rows_of(size: int) -> Callable[..., Array]:
    return after("linear", lambda y: y * (np.arange(len(y)) < len(y) // size * size)[:, None])


def bias_after(x: Array, *, weight: Array, bias: Array, mult: Array, shift: Array, out: str) -> Array:
    return saturate(half_up(wide(x) @ wide(weight).T * mult, shift) + half_up(wide(bias) * mult, shift), out)


def int16_mult(mult: Any) -> Any:
    return np.minimum((wide(mult) + 2**15) >> 16, 2**15 - 1) << 16


DSP = "{} in one multiplier (DSP packing), what the lower one borrows from the {} one kept, {}"
LARGE = {
    "truncated high product": (part(linear, rounding=high_by_floor), "as a truncating high multiplication", 34),
    "vsmul": (part(linear, rounding=vsmul), "half up, then half to even", 34),
    "multiplier rounded to INT16": (op("linear", mult=int16_mult), "mult rounded to INT16", 34),
    "float32": (in_float32, "float32 requantization", 31),
    "ceil": (part(linear, rounding=ceil), "round up (ceil)"),
    "saturation": (
        part(linear, dot=lambda x, w: clamp16(wide(x) @ wide(w).T), acc=clamp16),
        "INT16 accumulator that saturates",
    ),
    "no saturation": (part(linear, narrow=lambda x, out: x), "kept wider", 39),
    "saturation at every term": (
        part(linear, dot=term_by_term, acc=clamp16),
        "INT16 accumulator that saturates at every term",
    ),
    "a product of 15 bits": (part(linear, dot=part(booth, lowest=-(2**14))), "-128 times -128 is -16384"),
    "incomplete tile of a sum": (part(linear, dot=whole_tiles(32)), "the last 11 terms of a sum missing (tiles of 32)"),
    "bias after the shift": (bias_after, "bias rounded apart"),
    "incomplete tile of rows": (rows_of(16), "the last 5 rows of the result missing (tiles of 16)"),
    "end of the unsigned type": (part(linear, narrow=unsigned_end), "type without sign, then wraps", 39),
    "INT16 before the saturation": (part(linear, narrow=wrapped_before), "wraps at 16 bits before", 31),
} | {
    words: (part(linear, dot=packed(axis, upper, once)), words, 34)
    for axis, side in ((-1, "two columns"), (-2, "two rows"))
    for upper, which in enumerate(("even", "odd"))
    for once, when in ((False, "at every product"), (True, "once a sum"))
    for words in [DSP.format(side, which, when)]
}
"""Faults that need larger numbers or other sizes than those models have, what they are called, and the shift (42)."""


@pytest.mark.parametrize("name", LARGE)
def test_a_fault_of_large_numbers_is_named(name: str):
    random, (fault, words, *shift) = np.random.default_rng(1), LARGE[name]
    out = "int16" if shift and name != "INT16 before the saturation" and shift != [39] else "int8"
    params = {
        "weight": random.integers(-128, 128, (24, 75)).astype(np.int8),
        "bias": random.integers(-5000, 5000, 24).astype(np.int32),
        "mult": random.integers(2**30, 2**31, 24).astype(np.int32),
        "shift": np.full(24, *shift or [42], np.int8),
    }
    x = random.integers(-128, 128, (53, 75)).astype(np.int8)
    x[0, 0] = params["weight"][:, 0] = -128
    call = Call("linear", [x], params, {"out": out})
    assert any(words in found for found in explain(call, fault(x, **params, out=out)).names()[:2])


SOFTMAX2 = {"frac_bits": 8, "a1": 21955, "a2": 5571}
SHIFTMAX = {"i0": 16, "k_inter": 11, "int_div_kind": "paper", "out": "int16"}
GELU = {"i0": 20, "k_inter": 12, "lam": 2, "int_div_kind": "paper", "k_out": 8, "mult": 2**30, "shift": 37}


def numbers(low: int, high: int, *shape: int) -> Array:
    """INT16, always the same."""
    return np.random.default_rng(4).integers(low, high, shape).astype(np.int16)


def norm_of(x: Array, mult: int = 2**24, out: str = "int8", **changes: Any) -> tuple[Call, Array]:
    """A LayerNorm of x, and a faulty one."""
    width = x.shape[-1]
    params = {"mult": np.full(width, mult, np.int32), "bias": np.zeros(width, np.int64)}
    call = Call("layernorm", [x], params, {"shift": 47, "out": out})
    return call, layernorm(x, **params, **call.attrs, **changes)


def row_of(name: str, x: Array, attrs: dict[str, Any], fault: Callable[..., Array]) -> tuple[Call, Array]:
    """An op without parameters, and a faulty one."""
    return Call(name, [x], {}, attrs), fault(x, **attrs)


def roots(function: Callable[[int], int]) -> Callable[[Array], Array]:
    return lambda v: np.array([[function(int(n))] for n in v[:, 0]])


def newton(n: int) -> int:
    root = 2**16
    for _ in range(10):
        root = (root + n // max(root, 1)) >> 1
    return root


def to_even(total: Array, count: int) -> Array:
    return np.array([[round(Fraction(int(t), count))] for t in total[:, 0]])


SHORT, LOGITS, BYTES = numbers(-2, 4, 12, 9), numbers(-3000, 0, 6, 40), numbers(-128, 128, 6, 40).astype(np.int8)
HALVES = numbers(-40, 40, 60, 2)
NORMS = {
    "31-bit reciprocal of 2^31 instead of 2^31 - 1": norm_of(
        np.concatenate([np.resize(np.array([1, -1], np.int16), (1, 64)), numbers(-(2**15), 2**15, 5, 64)]),
        2**30 + 2**19,
        "int16",
        top=2**31,
    ),
    "square root rounded up": norm_of(SHORT, root=roots(lambda n: math.isqrt(n - 1) + 1)),
    "square root rounded to nearest": norm_of(SHORT, root=roots(lambda n: (math.isqrt(4 * n) + 1) // 2)),
    "square root by ten Newton steps": norm_of(SHORT, root=roots(newton)),
    "mean rounded toward zero": norm_of(SHORT - 3, mean=lambda t, n: -(-t // n)),
    "mean rounded half to even": norm_of(HALVES, mean=to_even),
    "mean not subtracted": norm_of(SHORT, mean=lambda t, n: 0 * t),
}
SOFTMAXES = {
    "reciprocal of 2^n instead of 2^n - 1": row_of(
        "softmax2", np.array([[0, 0, -3840, -3840], *LOGITS[:, :4]], np.int16), SOFTMAX2, part(base2, less=0)
    ),
    "quotient shifted without rounding": row_of("softmax2", LOGITS, SOFTMAX2, part(base2, rounding=floor)),
    "exponential shifted without rounding": row_of("softmax2", LOGITS, SOFTMAX2, part(base2, lower=floor)),
    "maximum of the whole tensor": row_of("softmax2", LOGITS, SOFTMAX2, part(base2, largest=np.max)),
    "8-bit Shiftmax, not brought": row_of("shiftmax", LOGITS // 8, SHIFTMAX, part(shiftmax, eight=0)),
    "exponent not multiplied by 1.4375": row_of("shiftmax", LOGITS // 8, SHIFTMAX, part(shiftmax, base_2=True)),
}
GELUS = {
    "row maximum not clamped to zero": row_of(
        "shift_gelu", np.minimum(BYTES, -9), GELU, part(gelu, by_row=True, lowest=-1000)
    ),
    "1.625 x instead of 1.6875 x": row_of(
        "shift_gelu", BYTES, GELU, part(gelu, by_row=True, factor=lambda x: x + (x >> 1) + (x >> 3))
    ),
    "1.625 x instead": row_of(
        "sigmoid_gelu", BYTES, GELU, part(gelu, by_row=False, factor=lambda x: x + (x >> 1) + (x >> 3))
    ),
}


def others() -> dict[str, tuple[Call, Array]]:
    """Faults of ops that have one of their own."""
    image, wide_rows = BYTES[:, :36].reshape(6, 12, 3), LOGITS[:, :36]
    columns = [image[y : y + 2, x : x + 2].ravel() for x in range(0, 12, 2) for y in range(0, 6, 2)]
    branches = {"mult_a": 1518500250, "shift_a": 31, "mult_b": 2**30 + 5, "shift_b": 33}
    once = half_up(wide(LOGITS) * (4 * branches["mult_a"] + branches["mult_b"]), 33)
    scores = numbers(0, 3, 6, 9)
    last = [max(range(9), key=lambda i: (row[i], i)) for row in scores]
    interleaved = np.stack([wide_rows[:, 12 + head : 24 : 3] for head in range(3)])
    table = np.array([32640 - 121 * t for t in range(256)], np.int16)
    power = wide(table)[np.minimum(LOGITS.max(-1, keepdims=True) // 8 - LOGITS // 8, 255)]
    weights = Call("exp_weights", [LOGITS // 8], {"table": table}, {})
    bytes_ = numbers(0, 256, 5, 40).astype(np.uint8)
    mean = {"mult": np.array([2**30], np.int32), "shift": np.array([30], np.int8)}
    return {
        "patches column by column": (Call("patchify", [image], {}, {"patch": 2}), np.stack(columns)),
        "rounded once after the sum": (Call("add", [LOGITS, LOGITS], {}, branches), saturate(once, "int16")),
        "the highest index on a tie": (Call("argmax", [scores], {}, {}), np.array(last, np.uint8)),
        "order (element, head)": (
            Call("split_heads", [wide_rows], {}, {"heads": 3, "part": 1, "parts": 3}),
            interleaved,
        ),
        "heads merged without": (Call("merge_heads", [wide_rows.reshape(3, 6, 12)], {}, {}), wide_rows),
        "rounded to nearest instead of dithered": (weights, (power + 64 >> 7).astype(np.uint8)),
        "the dither's steps in rising order": (
            weights,
            (power + np.resize(range(8, 136, 16), 40) >> 7).astype(np.uint8),
        ),
        "weights read as signed bytes": (
            Call("weighted_mean", [bytes_, BYTES.T.copy()], mean, {}),
            weighted_mean(bytes_, BYTES.T, **mean),
        ),
    }


RARE = NORMS | SOFTMAXES | GELUS | others()


@pytest.mark.parametrize("name", RARE)
def test_a_fault_of_an_op_is_named(name: str):
    call, found = RARE[name]
    assert name in " or ".join(explain(call, np.ascontiguousarray(found)).names()[:2])


def test_every_mistake_of_arithmetic_and_of_an_op_has_a_fault_written_here():
    """Numbers do not count: one width stands for all."""
    known = [fault.cause for fault in FAULTS.values()] + [words for _, words, *_ in LARGE.values()] + [*RARE, *BESIDE]
    known = [re.sub(r"\d+", "#", words) for words in known]
    used = {"saturate": "int6", "int_div": "Shiftmax"}
    used |= dict.fromkeys(("rsr", "accumulate", "matmul", "floor_shift", "isqrt", "mean", "row_max", "stretch"), "")
    own = [(mistake.words, Variant()) for exam in EXAMS.values() for mistake in exam.mistakes]
    names = {re.sub(r"\d+", "#", name) for name, _ in usual_mistakes({**used, "product": ""}, iter(own))}
    assert [name for name in names if not any(words in name for words in known)] == []


BESIDE = ("variance as sum", "beyond the table's end", "every second entry", "without half a pixel", "align_corners")
BESIDE += ("nearest by i / factor", "saturated at the 8 bits of INT8 instead")
"""Named by the tests below and above."""


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
