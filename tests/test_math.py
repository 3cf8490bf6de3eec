"""The definition against real mathematics (float64 and fractions), within the bounds that SPEC.md states.

Never mixed with exactness: these tests say how good the approximations are, test_ops.py says what they are.
"""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from graphs import SOFTMAX
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arrays, integers

from intseg import arith
from intseg.ops import RUN
from intseg.ops.exp_weights import DITHER
from intseg.ops.gelu import times_1_6875

SPEC = (Path(__file__).parent.parent / "SPEC.md").read_text(encoding="utf-8")
EXAMPLES = settings(max_examples=150, deadline=None)
KINDS = pytest.mark.parametrize("kind", ["paper", "normalized"])
K_OUTS = pytest.mark.parametrize("k_out", [8, 16])


def spec_table(first_column: str) -> list[list[str]]:
    """Cells of the rows below the table head that begins with this column."""
    body = SPEC.split(f"\n| {first_column} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


# 2.5, 2.7, 2.8


def test_isqrt_is_the_floor_of_the_root():
    v = np.random.default_rng(0).integers(0, 2**62, 5000)
    root = [int(r) for r in arith.isqrt(v)]
    assert all(r * r <= int(x) < (r + 1) * (r + 1) for r, x in zip(root, v, strict=True))


def check_int_div(n: int, d: int, k_out: int, kind: str) -> None:
    """The bound of SPEC 11.1, in exact fractions."""
    error = Fraction(n * 2 ** (k_out - 1), d) - int(arith.int_div(np.int64(n), np.int64(d), k_out, kind))
    if kind == "paper":
        assert 0 <= error < 1 + Fraction(n, 2 ** (32 - k_out))
    else:
        above = Fraction(1, 2**15) if d >= 2**31 else 0
        assert -Fraction(1, 2) - above <= error <= Fraction(1, 2) + Fraction(2**k_out, 2**16)


@KINDS
@K_OUTS
def test_int_div_of_small_divisors(kind: str, k_out: int):
    """Exhaustive for d <= 300."""
    n, d = (part.ravel() for part in np.meshgrid(np.arange(301), np.arange(1, 301)))
    n, d = n[n <= d], d[n <= d]
    error = n * 2 ** (k_out - 1) / d - arith.int_div(n, d, k_out, kind)
    low, high = (0, 1 + 300 / 2 ** (32 - k_out)) if kind == "paper" else (-0.5, 0.5 + 2.0 ** (k_out - 16))
    assert low - 1e-9 <= error.min()
    assert error.max() <= high + 1e-9


@settings(max_examples=500, deadline=None)
@given(d=integers(1, 2**46 - 1), part=st.integers(0, 1000))
def test_int_div_of_any_divisor(d: int, part: int):
    for k_out, kind in itertools.product((8, 16), ("paper", "normalized")):
        check_int_div(d * part // 1000, d, k_out, kind)


def test_int_div_paper_loses_half_at_2_to_30_and_all_at_2_to_31():
    assert int(arith.int_div(np.int64(2**30), np.int64(2**30), 16, "paper")) == 2**14
    assert int(arith.int_div(np.int64(2**31), np.int64(2**31), 16, "paper")) == 0
    assert int(arith.int_div(np.int64(2**31), np.int64(2**31), 16, "normalized")) == 2**15


def exponential_error(i0: int, k_inter: int, lam: int) -> np.ndarray:
    x = -np.arange(65536)
    return arith.shift_exp(x, i0, k_inter, lam) / (i0 << k_inter) - np.exp(x / i0)


def test_shift_exp_is_within_the_table():
    """Exhaustive over 65,536 inputs per row; the stated limits are tight to 0.0002."""
    table = spec_table("i0 | k, lam = 1")
    assert len(table) > 5
    for i0, k_inter, *limits in table:
        for lam, k, low, high in ((1, int(k_inter), *limits[:2]), (6, 23, *limits[2:])):
            error = exponential_error(int(i0), k, lam)
            assert float(low) <= error.min() <= float(low) + 2e-4
            assert float(high) - 2e-4 <= error.max() <= float(high)


# Softmax


@pytest.mark.parametrize(("i0", "k_inter"), [(1, 15), (4, 13), (16, 11), (23, 10), (64, 9), (1024, 5)])
def test_shiftmax_is_within_its_bound(i0: int, k_inter: int):
    """Every row in every kind and output."""
    worst = np.abs(exponential_error(i0, k_inter, 1)).max()

    @EXAMPLES
    @given(
        st.integers(1, 40).flatmap(lambda n: arrays("int16", 1, n) | arrays("int16", 1, n, low=-3 * i0, high=3 * i0))
    )
    def run(x: np.ndarray) -> None:
        t = x.astype(np.int64) - int(x.max())
        exact = np.exp(t / i0)
        exact /= exact.sum()
        total = int(arith.shift_exp(t, i0, k_inter, 1).sum())
        common = worst * (i0 << k_inter) / total * (1 - exact + (x.size - 1) * exact)
        for (out, one), kind in itertools.product({"int8": 2**7, "int16": 2**15}.items(), ("paper", "normalized")):
            result = RUN["shiftmax"](x, i0=i0, k_inter=k_inter, int_div_kind=kind, out=out)
            bound = common + (1 / one + total / 2**31 if kind == "paper" else 1.51 / one)
            assert (np.abs(result / one - exact) <= bound + 1e-12).all()
            assert result.min() >= 0

    run()


COEFFICIENTS = [(16384, 0, 0.0615), (21955, 5571, 0.0028)]


@pytest.mark.parametrize(("a1", "a2", "limit"), COEFFICIENTS)
def test_softmax2_power_is_within_its_bound(a1: int, a2: int, limit: float):
    """Exhaustive over f; the stated limit is tight to its last digit."""
    f = np.arange(2**15)
    error = np.abs((32767 - ((f * (a1 - ((a2 * f) >> 15))) >> 15)) / 32767 * 2.0 ** (f / 2**15) - 1)
    assert limit - 1e-4 <= error.max() <= limit


@pytest.mark.parametrize("frac_bits", [0, 5, 8, 11, 15])
def test_softmax2_is_within_its_bound(frac_bits: int):
    """Every row with the line and the quadratic."""
    spread = min(4 << frac_bits, 2**15 - 1)

    @EXAMPLES
    @given(st.integers(1, 40).flatmap(lambda n: arrays("int16", n) | arrays("int16", n, low=-spread, high=spread)))
    def run(x: np.ndarray) -> None:
        t = int(x.max()) - x.astype(np.int64)
        real = 32767 * 2.0 ** (-t / 2**frac_bits)
        exact = real / real.sum()
        q = t >> frac_bits
        f = (t % 2**frac_bits) << (15 - frac_bits)
        for a1, a2, limit in COEFFICIENTS:
            power = 32767 - ((f * (a1 - ((a2 * f) >> 15))) >> 15)
            total = sum(int(arith.rsr(v, int(n))) if n else int(v) for v, n in zip(power, q, strict=True) if n < 16)
            result = RUN[SOFTMAX](x, frac_bits=frac_bits, a1=a1, a2=a2)
            bound = 2 * limit * exact * (1 - exact) * real.sum() + (1 - exact + (x.size - 1) * exact) / 2
            assert (np.abs(result / 2**15 - exact) <= bound / total + 1.51 / 2**15 + 1e-12).all()

    run()


def test_softmax2_of_two_elements():
    """Exhaustive over the differences up to 16 octaves, frac_bits = 8."""
    t = np.arange(2**12)
    x = np.stack([np.zeros_like(t), -t], axis=-1).astype(np.int16)
    exact = 1 / (1 + 2.0 ** (-t / 256))
    result = RUN[SOFTMAX](x, frac_bits=8, a1=21955, a2=5571) / 2**15
    error = np.abs(result - np.stack([exact, 1 - exact], axis=-1)).max()
    assert 0.0006 < error <= 0.0007


def test_weights_are_within_their_bound():
    """Exhaustive over the table's entries, at every place."""
    power = np.arange(255 * 2**7 + 1)
    error = [((power + dither) >> 7) - power / 2**7 for dither in DITHER]
    assert np.abs(error).max() == 15 / 16
    assert np.abs(np.mean(error, axis=0)).max() == 1 / 16


@EXAMPLES
@given(st.integers(1, 60).flatmap(lambda k: st.tuples(arrays("uint8", k), arrays("int8", k))), st.integers(1, 39))
def test_a_mean_is_within_its_bound(rows: tuple[np.ndarray, np.ndarray], shift: int):
    a, b = rows
    for mult in (2**30, 2**31 - 1, 1234567):
        scale = np.array([mult], np.int32)
        (result,) = RUN["weighted_mean"](a[None], b[:, None], mult=scale, shift=np.array([shift], np.int8))[0]
        acc, total = int(a.astype(int) @ b), max(1, int(a.sum()))
        exact = Fraction(acc * mult, total * 2**shift)
        lost = Fraction(abs(acc), 2 ** (shift + total.bit_length() - 1))
        if -128 < result < 127:
            assert abs(int(result) - exact) <= Fraction(1, 2) + abs(exact) / 2**30 + lost


# GELU


def test_the_sigmoid_gelu_itself_is_within_0_021():
    x = np.linspace(-10, 10, 20001)
    assert 0.0199 < np.abs(x / (1 + np.exp(-1.702 * x)) - gelu(x)).max() <= 0.021


@pytest.mark.parametrize(("kind", "k_out"), [("normalized", 8), ("normalized", 16), ("paper", 8), ("paper", 16)])
def test_sigmoid_gelu_is_within_the_table(kind: str, k_out: int):
    """Exhaustive over the 256 inputs and i0 = 8 to 128. The op's mult and shift are undone by taking sigma apart."""
    x = np.arange(-128, 128)
    p = times_1_6875(arith.EXACT, x)
    for span, *limits in spec_table("i0 | `normalized`, 8"):
        first, last = (int(i) for i in span.split(" to "))
        limit = float(limits[{("normalized", 8): 0, ("normalized", 16): 1}.get((kind, k_out), 2)])
        worst = 0.0
        for i0 in range(first, last + 1):
            e, one = arith.shift_exp(-np.abs(p), i0, 23, 6), i0 << 23
            sigma = arith.int_div(np.where(p >= 0, one, e), one + e, k_out, kind) / 2 ** (k_out - 1)
            worst = max(worst, np.abs(x / i0 * sigma - gelu(x / i0)).max())
        assert worst <= limit
        assert kind == "paper" or limit - 0.0011 <= worst


@pytest.mark.parametrize(("kind", "k_out"), [("normalized", 8), ("normalized", 16), ("paper", 8), ("paper", 16)])
def test_shift_gelu_is_within_the_table(kind: str, k_out: int):
    """Exhaustive over the elements and the row maximum."""
    column = {("normalized", 8): 1, ("normalized", 16): 2}.get((kind, k_out), 3)
    table = [(float(row[0].split(" to ")[-1]), float(row[column])) for row in spec_table("row maximum at most")]
    for i0 in (8, 10, 12, 16, 20, 23, 32, 48, 64, 96, 128):
        for top in range(0, 128, 1 if i0 == 8 else 5):
            limit = next(value for maximum, value in table if top / i0 <= maximum)
            x = np.arange(-128, top + 1)
            p = times_1_6875(arith.EXACT, x)
            e, other = (arith.shift_exp(v - max(int(p[-1]), 0), i0, 23, 6) for v in (p, np.int64(0)))
            sigma = arith.int_div(e, e + other, k_out, kind) / 2 ** (k_out - 1)
            assert np.abs(x / i0 * sigma - gelu(x / i0)).max() <= limit


def test_aligned_exponentials_are_within_the_table():
    """Over the elements, row maxima and i0; of the larger spans some, both ends and where the largest error is."""
    for span, *limits in spec_table("i0, `aligned`"):
        first, last = (int(i) for i in span.split(" to "))
        worst = {8: 0.0, 16: 0.0}
        for i0 in sorted({*range(first, min(last, 33) + 1), *range(first, last + 1, 13), last}):
            for top in range(0, 128, 3):
                x = np.arange(-128, top + 1)
                p = times_1_6875(arith.EXACT, x)
                e, other = arith.aligned_exps(p - p[-1], np.full_like(p, -p[-1]), i0, 23, 6)
                for k_out in worst:
                    sigma = arith.int_div(e, e + other, k_out, "normalized") / 2 ** (k_out - 1)
                    worst[k_out] = max(worst[k_out], np.abs(x / i0 * sigma - gelu(x / i0)).max())
        for limit, found in zip(limits, worst.values(), strict=True):
            assert float(limit) - 0.005 <= found <= float(limit)


@pytest.mark.parametrize("op", ["shift_gelu", "sigmoid_gelu"])
def test_gelu_ops_as_a_whole(op: str):
    """With the last requantization at the scale of the input: its half step comes on top of the table's 0.04."""
    x = np.arange(-128, 128, dtype=np.int8)[:, None]
    attrs = {"i0": 32, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 16, "mult": 1, "shift": 15}
    assert np.abs(RUN[op](x, **attrs) / 32 - gelu(x / 32)).max() <= 0.04 + 0.5 / 32


# Normalisations


def check_layernorm(x: np.ndarray) -> None:
    """RSR by one bit of 4 z and saturation are avoided by taking z apart through an identity requantization."""
    count = x.size
    centred = x - x.mean()
    root = math.sqrt(float((centred**2).sum()))
    if root == 0:
        return
    # z at 15 of its 30 bits: result = RSR(z, 15), in [-2^15, 2^15]
    one = np.ones(count, np.int32)
    result = RUN["layernorm"](x[None], mult=one, bias=np.zeros(count, np.int64), shift=15, out="int16")[0] / 2**15
    bound = (0.5 + max(1, count / (8 * root))) / root + (root + count) / 2**31 + 2.0**-29
    assert (np.abs(result - centred / root) <= bound + 1.0 / 2**15).all()


@EXAMPLES
@given(st.integers(2, 64).flatmap(lambda n: arrays("int16", n) | arrays("int16", n, low=-30, high=30)))
def test_layernorm_is_within_its_bound(x: np.ndarray):
    check_layernorm(x)


def test_layernorm_of_long_rows():
    source = np.random.default_rng(0)
    for deviation in (0.3, 1, 10, 1000, 8000):
        for _ in range(20):
            check_layernorm(np.clip(np.rint(source.normal(3, deviation, 1024)), -32768, 32767).astype(np.int16))


@EXAMPLES
@given(st.integers(1, 64).flatmap(lambda n: arrays("int16", n) | arrays("int16", n, low=-30, high=30)))
def test_l2norm_is_within_its_bound(x: np.ndarray):
    root = math.sqrt(float((x.astype(np.int64) ** 2).sum()))
    if root:
        result = RUN["l2norm"](x[None], mult=127, shift=30)[0] / 127
        bound = 1 / root + root / 2**31 + 2.0**-29
        assert (np.abs(result - x / root) <= bound + 0.5 / 127).all()


# Upsampling


def interpolate(line: list[Fraction], position: Fraction) -> Fraction:
    """Linear interpolation between samples at 0, 1, 2, ..., constant outside."""
    position = min(max(position, Fraction(0)), Fraction(len(line) - 1))
    lower = math.floor(position)
    upper = min(lower + 1, len(line) - 1)
    return line[lower] + (position - lower) * (line[upper] - line[lower])


@pytest.mark.parametrize("factor", [1, 2, 3, 16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (3, 2)])
def test_upsample_bilinear_is_exact(factor: int, shape: tuple[int, int]):
    height, width = shape
    x = np.random.default_rng(factor).integers(-(2**31), 2**31, (*shape, 1)).astype(np.int32)
    result = RUN["upsample_bilinear"](x, factor=factor, row_start=0, row_stop=height * factor)
    cells = [[Fraction(int(v)) for v in line] for line in x[..., 0]]
    half = Fraction(1, 2)
    for j in range(width * factor):
        column = [interpolate(line, (j + half) / factor - half) for line in cells]
        for i in range(height * factor):
            assert int(result[i, j, 0]) == interpolate(column, (i + half) / factor - half) * (2 * factor) ** 2


def test_the_bounds_are_those_of_the_text():
    """The numbers of this file that come from no table."""
    words = " ".join(SPEC.split())
    for text in ("A = 0.0028 for the quadratic", "0.0615 for the line", "at most 0.0007", "within 0.021", "d <= 300"):
        assert text in words
    assert re.search(r"\|z 2\^-30 - u\| <= \(1/2 \+ max\(1, D / \(8 R\)\)\) / R \+ S 2\^-31 \+ 2\^-29", words)
