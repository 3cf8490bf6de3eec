"""Every op on plain Python integers: nested lists, obvious loops, arbitrary precision. The oracle of the op tests.

Written from SPEC.md and not from the NumPy code. A function takes its arrays as nested lists and returns nested lists;
`dtype_of` gives the dtype that a result must have. Widths that SPEC.md claims are asserted, and so is every range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np

Nested = Any
"""An integer or a list of Nested."""

LIMITS = {
    "int4": (-8, 7),
    "int5": (-16, 15),
    "int6": (-32, 31),
    "int7": (-64, 63),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-2147483648, 2147483647),
    "int64": (-9223372036854775808, 9223372036854775807),
}


def fits(value: int, dtype: str) -> int:
    """Return the value; AssertionError when it does not fit the dtype."""
    low, high = LIMITS[dtype]
    assert low <= value <= high, f"{value} does not fit {dtype}"
    return value


# Primitives (SPEC.md, section 2)


def rsr(x: int, c: int) -> int:
    """Floor of x / 2^c + 1/2."""
    assert 1 <= c <= 62
    return fits(x + 2 ** (c - 1), "int64") // 2**c


def saturate(x: int, dtype: str) -> int:
    low, high = LIMITS[dtype]
    if x < low:
        return low
    if x > high:
        return high
    return x


def requantize(x: int, mult: int, shift: int, dtype: str) -> int:
    assert 0 <= mult < 2**31
    product = fits(fits(x, "int32") * mult, "int64")
    assert abs(product) <= 2**62
    return saturate(rsr(product, shift), dtype)


def floor_shift(x: int, n: int) -> int:
    """Floor of x * 2^n."""
    return x * 2**n if n >= 0 else x // 2**-n


def isqrt(v: int) -> int:
    """Largest root with root * root <= v, by bisection."""
    assert 0 <= v < 2**62
    low, high = 0, 2**31
    while high - low > 1:
        middle = (low + high) // 2
        if middle * middle <= v:
            low = middle
        else:
            high = middle
    return low


def bit_length(v: int) -> int:
    assert v >= 0
    length = 0
    while 2**length <= v:
        length += 1
    return length


def int_div(n: int, d: int, k_out: int, kind: str) -> int:
    assert 0 <= n <= d < 2**46
    if d == 0:
        d = 1
    if kind == "paper":
        product = (2**31 - 1) // d * n
        assert product < 2**31
        return product // 2 ** (32 - k_out)
    assert kind == "normalized"
    length = bit_length(d)
    reciprocal = (2**46 - 1) // floor_shift(d, 31 - length)
    assert 2**15 <= reciprocal < 2**16
    return rsr(n * reciprocal, length + 16 - k_out)


def split_exp(x: int, i0: int, k_inter: int, lam: int) -> tuple[int, int]:
    """(base, q): e^(x / i0) is about base / i0 / 2^q."""
    assert -(2**40) < x <= 0
    times_1_4375 = x + x // 2 - x // 16
    assert times_1_4375 <= 0
    clamped = max(times_1_4375, -lam * k_inter * i0)
    q = 0
    rest = -clamped
    while rest >= i0:  # rest = q * i0 + r
        q, rest = q + 1, rest - i0
    base = (-rest) // 2 + i0
    assert 1 <= base <= i0
    return base, q


def shift_exp(x: int, i0: int, k_inter: int, lam: int) -> int:
    base, q = split_exp(x, i0, k_inter, lam)
    return floor_shift(base, k_inter - q)


def aligned_exps(x: int, y: int, i0: int, k_inter: int, lam: int) -> tuple[int, int]:
    (base_x, q_x), (base_y, q_y) = split_exp(x, i0, k_inter, lam), split_exp(y, i0, k_inter, lam)
    q = min(q_x, q_y)
    return floor_shift(base_x, k_inter - q_x + q), floor_shift(base_y, k_inter - q_y + q)


# Helpers on nested lists


def unpack(stream: list[int], count: int, bits: int) -> list[int]:
    """Elements of a packed tensor (section 6.1), from one large integer."""
    assert 2 <= bits <= 8
    assert len(stream) == -(-count * bits // 8)
    whole = 0
    for byte in reversed(stream):
        whole = 256 * whole + byte
    result = []
    for _ in range(count):
        whole, low = divmod(whole, 2**bits)
        result.append(low - 2**bits if low >= 2 ** (bits - 1) else low)
    assert whole == 0
    return result


def rows(x: Nested, function: Callable[[list[int]], Nested]) -> Nested:
    """Apply a function to every innermost list."""
    if isinstance(x[0], list):
        return [rows(part, function) for part in x]
    return function(x)


def elements(x: Nested, function: Callable[[int], int]) -> Nested:
    """Apply a function to every integer."""
    return [elements(part, function) for part in x] if isinstance(x, list) else function(x)


def dot(a: Sequence[int], b: Sequence[int], start: int = 0) -> int:
    """INT32 accumulation from the left: every partial sum fits."""
    total = start
    for left, right in zip(a, b, strict=True):
        total = fits(total + left * right, "int32")
    return total


# Ops (SPEC.md, section 4)


def quantize_input(x: Nested, *, table: Nested) -> Nested:
    return [[[table[c][value] for c, value in enumerate(pixel)] for pixel in line] for line in x]


def patchify(x: Nested, *, patch: int) -> Nested:
    result = []
    for top in range(0, len(x), patch):
        for left in range(0, len(x[0]), patch):
            values = []
            for i in range(patch):
                for j in range(patch):
                    values.extend(x[top + i][left + j])
            result.append(values)
    return result


def linear(x: Nested, *, weight: Nested, bias: Nested, mult: Nested, shift: Nested, out: str) -> Nested:
    return [[requantize(dot(row, weight[n], bias[n]), mult[n], shift[n], out) for n in range(len(weight))] for row in x]


def add(a: Nested, b: Nested, *, mult_a: int, shift_a: int, mult_b: int, shift_b: int) -> Nested:
    if isinstance(a, list):
        scales = {"mult_a": mult_a, "shift_a": shift_a, "mult_b": mult_b, "shift_b": shift_b}
        return [add(left, right, **scales) for left, right in zip(a, b, strict=True)]
    left, right = rsr(a * mult_a, shift_a), rsr(b * mult_b, shift_b)
    assert abs(left) <= 2**29
    assert abs(right) <= 2**29
    return saturate(fits(left + right, "int32"), "int16")


def layernorm(x: Nested, *, mult: Nested, bias: Nested, shift: int, out: str) -> Nested:
    def one_row(row: list[int]) -> list[int]:
        count = len(row)
        total = 0
        for value in row:
            total = fits(total + value, "int32")
        mean = (2 * total + count) // (2 * count)
        centred = [value - mean for value in row]
        variance = 0
        for value in centred:
            variance += value * value
        assert variance < 2**48
        std = max(isqrt(variance), 1)
        reciprocal = (2**31 - 1) // std
        result = []
        for j, value in enumerate(centred):
            z = fits(value * reciprocal, "int32") // 2
            assert -(2**30) <= z < 2**30
            scaled = fits(z * mult[j] + bias[j], "int64")
            assert abs(scaled) < 2**62
            result.append(saturate(rsr(scaled, shift), out))
        return result

    return rows(x, one_row)


def matmul(a: Nested, b: Nested, *, mult: Nested, shift: Nested, transpose_b: int, out: str) -> Nested:
    if isinstance(a[0][0], list):
        return [
            matmul(*parts[:2], mult=parts[2], shift=parts[3], transpose_b=transpose_b, out=out)
            for parts in zip(a, b, mult, shift, strict=True)
        ]
    columns = b if transpose_b else [[line[n] for line in b] for n in range(len(b[0]))]
    result = []
    for row in a:
        line = []
        for n, column in enumerate(columns):
            i = 0 if len(mult) == 1 else n
            line.append(requantize(dot(row, column), mult[i], shift[i], out))
        result.append(line)
    return result


def shiftmax(x: Nested, *, i0: int, k_inter: int, int_div_kind: str, out: str) -> Nested:
    assert i0 * 2**k_inter <= 2**15
    k_out = {"int8": 8, "int16": 16}[out]

    def one_row(row: list[int]) -> list[int]:
        top = max(row)
        e = [shift_exp(value - top, i0, k_inter, 1) for value in row]
        assert all(0 <= value <= 2**15 for value in e)
        total = fits(sum(e), "int32")
        return [saturate(int_div(value, total, k_out, int_div_kind), out) for value in e]

    return rows(x, one_row)


def softmax2(x: Nested, *, frac_bits: int, a1: int, a2: int) -> Nested:
    def exponential(t: int) -> int:
        q = t // 2**frac_bits
        f = t % 2**frac_bits * 2 ** (15 - frac_bits)
        slope = a1 - fits(a2 * f, "int32") // 2**15
        assert slope >= 1
        power = 32767 - fits(f * slope, "int32") // 2**15
        assert 1 <= power <= 32767
        if q == 0:
            return power
        return 0 if q >= 16 else rsr(power, q)

    def one_row(row: list[int]) -> list[int]:
        top = max(row)
        e = [fits(exponential(top - value), "int16") for value in row]
        total = fits(sum(e), "int32")
        return [saturate(int_div(value, total, 16, "normalized"), "int16") for value in e]

    return rows(x, one_row)


DITHER = [8, 72, 40, 104, 24, 88, 56, 120]


def exp_weights(x: Nested, *, table: Nested) -> Nested:
    if isinstance(x[0][0], list):
        return [exp_weights(part, table=own) for part, own in zip(x, table, strict=True)]
    assert table[0] == 255 * 128

    def one_row(row: list[int]) -> list[int]:
        top, result = max(row), []
        for j, value in enumerate(row):
            power = table[min(fits(top - value, "uint16"), 255)]
            assert 0 <= power <= 255 * 128
            result.append(fits(power + DITHER[j % 8], "int16") // 2**7)
        return result

    return rows(x, one_row)


def weighted_mean(a: Nested, b: Nested, *, mult: Nested, shift: Nested, out: str = "int8") -> Nested:
    if isinstance(a[0][0], list):
        parts = zip(a, b, mult, shift, strict=True)
        return [weighted_mean(*part[:2], mult=part[2], shift=part[3], out=out) for part in parts]
    columns, result = [[line[n] for line in b] for n in range(len(b[0]))], []
    for row in a:
        total = max(1, fits(sum(row), "int32"))
        length = len(bin(total)) - 2
        reciprocal = (2**61 - 1) // (total * 2 ** (31 - length))
        assert 2**30 <= reciprocal < 2**31
        line = []
        for n, column in enumerate(columns):
            i = 0 if len(mult) == 1 else n
            scale = fits(fits(reciprocal * mult[i], "int64") // 2**31, "int32")
            acc = dot(row, column)
            assert abs(acc) <= 128 * total
            line.append(saturate(rsr(fits(acc * scale, "int64"), shift[i] + length - 1), out))
        result.append(line)
    return result


def times_1_6875(x: int) -> int:
    return x + x // 2 + x // 8 + x // 16


def shift_gelu(
    x: Nested,
    *,
    i0: int,
    k_inter: int,
    lam: int,
    int_div_kind: str,
    k_out: int,
    mult: int,
    shift: int,
    out: str = "int8",
) -> Nested:
    def one_row(row: list[int]) -> list[int]:
        top = 0
        for value in row:
            top = max(top, times_1_6875(value))
        result = []
        for value in row:
            down = times_1_6875(value) - top
            if int_div_kind == "aligned":
                e, other = aligned_exps(down, -top, i0, k_inter, lam)
                assert 2 * max(e, other) >= i0 * 2**k_inter
                kind = "normalized"
            else:
                e, other = shift_exp(down, i0, k_inter, lam), shift_exp(-top, i0, k_inter, lam)
                kind = int_div_kind
            assert e < 2**45
            sigma = int_div(e, e + other, k_out, kind)
            assert 0 <= sigma <= 2 ** (k_out - 1)
            result.append(requantize(value * sigma, mult, shift, out))
        return result

    return rows(x, one_row)


def sigmoid_gelu(
    x: Nested,
    *,
    i0: int,
    k_inter: int,
    lam: int,
    int_div_kind: str,
    k_out: int,
    mult: int,
    shift: int,
    out: str = "int8",
) -> Nested:
    one = i0 * 2**k_inter

    def one_value(value: int) -> int:
        p = times_1_6875(value)
        e = shift_exp(-abs(p), i0, k_inter, lam)
        assert e <= one < 2**45
        sigma = int_div(one if p >= 0 else e, one + e, k_out, int_div_kind)
        assert 0 <= sigma <= 2 ** (k_out - 1)
        return requantize(value * sigma, mult, shift, out)

    return elements(x, one_value)


def gelu_table(x: Nested, *, table: Nested) -> Nested:
    return elements(x, lambda value: table[value + 128])


def l2norm(x: Nested, *, mult: int, shift: int, out: str = "int8") -> Nested:
    def one_row(row: list[int]) -> list[int]:
        total = 0
        for value in row:
            total += value * value
        assert total < 2**46
        reciprocal = (2**31 - 1) // max(isqrt(total), 1)
        return [requantize(fits(value * reciprocal, "int32") // 2, mult, shift, out) for value in row]

    return rows(x, one_row)


def concat(a: Nested, b: Nested) -> Nested:
    return a + b


def slice_tokens(x: Nested, *, start: int, stop: int) -> Nested:
    return [x[i] for i in range(start, stop)]


def split_heads(x: Nested, *, heads: int, part: int, parts: int) -> Nested:
    width = len(x[0]) // (parts * heads)
    return [[[row[(part * heads + h) * width + i] for i in range(width)] for row in x] for h in range(heads)]


def merge_heads(x: Nested) -> Nested:
    heads, tokens = len(x), len(x[0])
    return [[value for h in range(heads) for value in x[h][t]] for t in range(tokens)]


def to_grid(x: Nested, *, height: int, width: int) -> Nested:
    assert len(x) == height * width
    return [[x[i * width + j] for j in range(width)] for i in range(height)]


def upsample_nearest(x: Nested, *, factor: int) -> Nested:
    height, width = len(x) * factor, len(x[0]) * factor
    return [[x[i // factor][j // factor] for j in range(width)] for i in range(height)]


def taps(dst: int, size: int, factor: int) -> tuple[int, int, int]:
    """Lower cell, upper cell, weight of the upper: position (dst + 1/2) / factor - 1/2 clamped to [0, size - 1]."""
    doubled = 2 * dst + 1 - factor  # position times 2 factor
    doubled = min(max(doubled, 0), 2 * factor * (size - 1))
    lower = doubled // (2 * factor)
    return lower, min(lower + 1, size - 1), doubled - 2 * factor * lower


def upsample_bilinear(x: Nested, *, factor: int, row_start: int, row_stop: int) -> Nested:
    height, width, classes = len(x), len(x[0]), len(x[0][0])
    result = []
    for i in range(row_start, row_stop):
        top, bottom, below = taps(i, height, factor)
        line = []
        for j in range(width * factor):
            left, right, beside = taps(j, width, factor)
            pixel = []
            for c in range(classes):
                upper = x[top][left][c] * (2 * factor - beside) + x[top][right][c] * beside
                lower = x[bottom][left][c] * (2 * factor - beside) + x[bottom][right][c] * beside
                total = upper * (2 * factor - below) + lower * below
                assert abs(total) <= 2**45
                pixel.append(total)
            line.append(pixel)
        result.append(line)
    return result


def argmax(x: Nested) -> Nested:
    def first_largest(row: list[int]) -> int:
        best = 0
        for c, value in enumerate(row):
            if value > row[best]:
                best = c
        return best

    return rows(x, first_largest)


def sum_rows(x: Nested) -> Nested:
    return [fits(sum(column), "int32") for column in zip(*x, strict=True)]


def window_starts(size: int, window: int, stride: int) -> list[int]:
    found = [0]
    while found[-1] + window < size:
        found.append(min(found[-1] + stride, size - window))
    return found


def resize_axis(lines: Nested, size: int) -> Nested:
    """Rows of pixels, each a list of channel values, at another number of rows; weights as exact fractions (SPEC 7)."""
    old, result = len(lines), []
    scale = Fraction(old, size)
    reach = max(scale, Fraction(1))
    for x in range(size):
        tents = [1 - abs(i + Fraction(1, 2) - (x + Fraction(1, 2)) * scale) / reach for i in range(old)]
        total = sum(t for t in tents if t > 0)
        weights = [floor(2**22 * t / total + Fraction(1, 2)) if t > 0 else 0 for t in tents]
        columns = zip(*lines, strict=True)
        sums = [sum(w * v for w, v in zip(weights, column, strict=True)) for column in columns]
        assert all(0 <= s + 2**21 < 2**31 for s in sums)
        result.append([min((s + 2**21) >> 22, 255) for s in sums])
    return result


def resize(image: Nested, height: int, width: int) -> Nested:
    if width != len(image[0]):
        flat = [[v for row in image for v in row[x]] for x in range(len(image[0]))]
        flat = resize_axis(flat, width)
        image = [[line[3 * y : 3 * y + 3] for line in flat] for y in range(len(image))]
    if height != len(image):
        flat = resize_axis([[v for pixel in row for v in pixel] for row in image], height)
        image = [[row[3 * x : 3 * x + 3] for x in range(width)] for row in flat]
    return image


def working_size(height: int, width: int, short: int, long: int, classify: bool = False) -> list[int]:
    factor = min(Fraction(short, min(height, width)), Fraction(long, max(height, width)))
    half = Fraction(0 if classify else 1, 2)
    return [max(1, floor(size * factor + half)) for size in (height, width)]


def center_crop(image: Nested, window: Sequence[int], pad: Sequence[int]) -> tuple[list[int], Nested]:
    """Start of the window on both axes of the padded image, and its pixels (SPEC 7.4)."""
    height, width = len(image), len(image[0])
    before = [max(0, w - n) // 2 for n, w in zip((height, width), window, strict=True)]
    start = [round(Fraction(max(0, n - w), 2)) for n, w in zip((height, width), window, strict=True)]

    def pixel(y: int, x: int) -> Nested:
        y, x = y + start[0] - before[0], x + start[1] - before[1]
        return image[y][x] if 0 <= y < height and 0 <= x < width else list(pad)

    return start, [[pixel(y, x) for x in range(window[1])] for y in range(window[0])]


def between(values: Nested, size: int) -> Nested:
    """Scores of pixels [h, w, C] at another size [2], bilinear between centres, as fractions."""

    def axis(lines: Nested, count: int) -> Nested:
        result = []
        for i in range(count):
            at = min(max(Fraction(2 * i + 1, 2) * len(lines) / count - Fraction(1, 2), 0), len(lines) - 1)
            low = floor(at)
            high = min(low + 1, len(lines) - 1)
            result.append([a + (b - a) * (at - low) for a, b in zip(lines[low], lines[high], strict=True)])
        return result

    height, width = size
    rows = axis([[v for pixel in row for v in pixel] for row in values], height)
    classes = len(values[0][0])
    rows = [[row[i : i + classes] for i in range(0, len(row), classes)] for row in rows]
    columns = axis([[v for row in rows for v in row[x]] for x in range(len(rows[0]))], width)
    return [[column[y * classes : (y + 1) * classes] for column in columns] for y in range(height)]


def pixel_scores(
    windows: Nested, window: Sequence[int], stride: Sequence[int], patch: int, upsample: str, size: Sequence[int]
) -> Nested:
    """The mean of the windows of every pixel, times 36 for the counts, (2 patch)^2 for bilinear (SPEC 7, by pixel)."""
    origins = [window_starts(max(n, w), w, s) for n, w, s in zip(size, window, stride, strict=True)]
    corners = [(top, left) for top in origins[0] for left in origins[1]]
    zoomed = [
        upsample_nearest(scores, factor=patch)
        if upsample == "nearest"
        else upsample_bilinear(scores, factor=patch, row_start=0, row_stop=len(scores) * patch)
        for scores in windows
    ]
    result = []
    for y in range(size[0]):
        line = []
        for x in range(size[1]):
            here = [
                scores[y - top][x - left]
                for scores, (top, left) in zip(zoomed, corners, strict=True)
                if 0 <= y - top < window[0] and 0 <= x - left < window[1]
            ]
            assert len(here) in (1, 2, 3, 4, 6, 9)
            pixel = [36 * sum(column) // len(here) for column in zip(*here, strict=True)]
            assert all(36 * sum(c) == len(here) * p for c, p in zip(zip(*here, strict=True), pixel, strict=True))
            line.append(pixel)
        result.append(line)
    return result


def view_scores(
    windows: Nested,
    window: Sequence[int],
    stride: Sequence[int],
    patch: int,
    upsample: str,
    size: Sequence[int],
    percent: int,
    mirrored: bool,
) -> Nested:
    """The mean of a view's windows (merged in pixels) for the pixels of an image of `size`, as fractions (SPEC 7.3)."""
    sides = [max(floor(Fraction(side * percent, 100) + Fraction(1, 2)), 1) for side in sorted(size)]
    short = max(sides[0], *window)
    working = working_size(size[0], size[1], short, max(short, sides[1]))
    unit = 36 * (1 if upsample == "nearest" else 2 * patch) ** 2
    found = pixel_scores(windows, window, stride, patch, upsample, working)
    found = between([[[Fraction(v, unit) for v in pixel] for pixel in row] for row in found], size)
    return [row[::-1] for row in found] if mirrored else found


def mean_labels(views: Sequence[Nested]) -> Nested:
    """The class of every pixel by the mean of views."""
    return [
        [argmax([sum(column) for column in zip(*pixels, strict=True)]) for pixels in zip(*rows, strict=True)]
        for rows in zip(*views, strict=True)
    ]


_NAMED = (quantize_input, patchify, linear, add, layernorm, matmul, shiftmax, softmax2, shift_gelu, sigmoid_gelu)
_NAMED += (
    gelu_table,
    l2norm,
    concat,
    slice_tokens,
    split_heads,
    merge_heads,
    to_grid,
    upsample_nearest,
    upsample_bilinear,
    argmax,
)
_NAMED += (exp_weights, weighted_mean, sum_rows)
NAIVE: dict[str, Callable[..., Nested]] = {f.__name__.removesuffix("_tokens"): f for f in _NAMED}

_INT8 = ("quantize_input", "patchify", "shift_gelu", "sigmoid_gelu", "gelu_table", "l2norm", "weighted_mean")
FIXED_DTYPES = dict.fromkeys(_INT8, "int8") | {"add": "int16", "softmax2": "int16", "upsample_bilinear": "int64"}
FIXED_DTYPES |= {"exp_weights": "uint8", "sum_rows": "int32"}


def dtype_of(op: str, inputs: Sequence[np.ndarray], attrs: dict[str, Any]) -> str:
    """Dtype of an op's result: an attribute, fixed, by the number of classes, or that of the first input."""
    if op == "argmax":
        return "uint8" if inputs[0].shape[-1] <= 256 else "uint16"
    out = attrs.get("out")
    return "int8" if out in ("int4", "int5", "int6", "int7") else out or FIXED_DTYPES.get(op) or inputs[0].dtype.name


def evaluate(op: str, inputs: Sequence[np.ndarray], params: dict[str, np.ndarray], attrs: dict[str, Any]) -> np.ndarray:
    """Run an op on arrays through NAIVE; every element of the result is asserted to fit its dtype."""
    nested = NAIVE[op](*(x.tolist() for x in inputs), **{role: p.tolist() for role, p in params.items()}, **attrs)
    dtype = dtype_of(op, inputs, attrs)
    elements(nested, lambda value: fits(value, attrs.get("out") or dtype))
    return np.array(nested, dtype=dtype)
