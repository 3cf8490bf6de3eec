"""Golden vectors of the ops: golden/ops/<op>.safetensors, expected values from the oracle in tests/naive.py.

    python tools/make_golden_ops.py [--check]

No vector comes from the code it judges: the oracle computes on plain Python integers. The files are the same bytes at
every run; --check compares instead of writing. Format: tensors `case{i}.in{j}`, `case{i}.param.{role}`,
`case{i}.expected`, and one metadata key `intseg` with canonical JSON {"attrs": [...], "op": ..., "seed": ...}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "golden" / "ops"
sys.path.insert(0, str(ROOT / "tests"))
import naive  # noqa: E402

SEED = 20250
Case = tuple[list[np.ndarray], dict[str, np.ndarray], dict[str, Any]]
"""Inputs, parameters, attributes."""


class Source:
    """Random integers that are the same on every machine and NumPy version: a 64-bit linear congruential generator."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, limit: int) -> int:
        """The next integer in [0, limit), from the upper bits of two states."""
        high, low = self._next() >> 32, self._next() >> 32
        return (high << 32 | low) * limit >> 64

    def integers(self, low: int, high: int, *shape: int, dtype: str) -> np.ndarray:
        """Integers in [low, high]."""
        count = int(np.prod(shape))
        return np.array([low + self.below(high - low + 1) for _ in range(count)], dtype).reshape(shape)

    def full(self, dtype: str, *shape: int) -> np.ndarray:
        """Integers over the whole range of a dtype."""
        return self.integers(*naive.LIMITS[dtype], *shape, dtype=dtype)

    def _next(self) -> int:
        self.state = (6364136223846793005 * self.state + 1442695040888963407) % 2**64
        return self.state


def edge_rows(dtype: str, width: int) -> np.ndarray:
    """All lowest, all highest, alternating both ways, one-hot, one low, zero, constant, 0 and -1, a ramp."""
    low, high = naive.LIMITS[dtype]
    rows = np.zeros((10, width), dtype)
    rows[0], rows[1] = low, high
    rows[2, ::2], rows[2, 1::2] = low, high
    rows[3, ::2], rows[3, 1::2] = high, low
    rows[4, width // 2], rows[5, 0] = high, low
    rows[7], rows[8, ::2] = 5, -1
    rows[9] = np.arange(width) - width // 2
    return rows


def between(a: int) -> tuple[int, int]:
    """(mult, shift) by which a and a + 1 are rounded to different integers: the last bit of an operand shows."""
    small = a if a >= 1 else -a - 1  # the one nearer to zero of the two, which must not be zero
    shift = small.bit_length() + 31
    half = 2 ** (shift - 1)
    mult = -(-half // (small + 1)) if a >= 1 else half // small
    if not (0 < mult < 2**31 and naive.rsr(a * mult, shift) != naive.rsr((a + 1) * mult, shift)):
        raise ValueError(f"no scale tells {a} from {a + 1}")
    return mult, shift


def quantize_input(source: Source) -> Iterator[Case]:
    ramp = np.stack([np.arange(256)] * 3, axis=-1).astype(np.uint8)[None]
    yield [ramp], {"table": source.full("int8", 3, 256)}, {}
    yield [source.full("uint8", 3, 5, 3)], {"table": source.full("int8", 3, 256)}, {}


def patchify(source: Source) -> Iterator[Case]:
    for patch, rows, columns, channels in ((1, 2, 3, 3), (2, 3, 2, 3), (16, 1, 2, 3), (3, 1, 1, 1)):
        yield [source.full("int8", patch * rows, patch * columns, channels)], {}, {"patch": patch}


def linear(source: Source) -> Iterator[Case]:
    for out in ("int8", "int16"):
        for tokens, depth, width in ((1, 1, 1), (3, 1, 5), (5, 17, 7), (7, 64, 65), (6, 192, 3)):
            shift = 23 if out == "int16" else 31
            params = {
                "weight": source.full("int8", width, depth),
                "bias": source.integers(-(2**16), 2**16, width, dtype="int32"),
                "mult": source.integers(2**18, 2**19, width, dtype="int32") * np.int32(64 // min(depth, 64)),
                "shift": np.full(width, shift, np.int8),
            }
            yield [source.full("int8", tokens, depth)], params, {"out": out}
        scales = [(0, 1), (1, 1), (1, 2), (3, 7), (2**31 - 1, 1), (2**31 - 1, 62), (2**30, 30), (2**30, 45)]
        free = 2**31 - 1 - 128 * 128 * 10
        params = {
            "weight": edge_rows("int8", 10)[: len(scales)],
            "bias": np.array([free, -free, 0, 1, -1, free, -free, 2**20], np.int32),
            "mult": np.array([m for m, _ in scales], np.int32),
            "shift": np.array([s for _, s in scales], np.int8),
        }
        yield [edge_rows("int8", 10)], params, {"out": out}
        every = np.arange(-128, 128, dtype=np.int8)[:, None]
        ties: dict[str, np.ndarray] = {"weight": np.array([[1], [-1]], np.int8), "bias": np.zeros(2, np.int32)}
        ties |= {"mult": np.ones(2, np.int32), "shift": np.array([1, 3], np.int8)}
        yield [every], ties, {"out": out}


def add(source: Source) -> Iterator[Case]:
    scales = [
        (2**30, 30),
        (1, 1),
        (3, 2),
        (0, 62),
        (2**31 - 1, 62),
        (2**15 - 1, 1),
        (2**31 - 1, 18),
        (2**29 + 12345, 31),
    ]
    for i, (mult, shift) in enumerate(scales):
        other = scales[(i * 3 + 1) % len(scales)]
        attrs = {"mult_a": mult, "shift_a": shift, "mult_b": other[0], "shift_b": other[1]}
        yield [edge_rows("int16", 7), edge_rows("int16", 7)[::-1].copy()], {}, attrs
        yield [source.full("int16", 3, 33), source.full("int16", 3, 33)], {}, attrs


def layernorm(source: Source) -> Iterator[Case]:
    for out in ("int8", "int16"):
        for width, spread in ((1, 2**15 - 1), (2, 3), (7, 2**15 - 1), (64, 100), (192, 3000)):
            shift = 45 if out == "int8" else 38
            params = {
                "mult": source.integers(-(2**21), 2**21, width, dtype="int32"),
                "bias": source.integers(-(2**49), 2**49, width, dtype="int64"),
            }
            x = source.integers(-spread, spread, 4, width, dtype="int16")
            yield [x], params, {"shift": shift, "out": out}
        for shift in (1, 24, 53, 62):
            params = {
                "mult": np.array([0, 1, -1, 2**31 - 1, -(2**31) + 1, 2**24, -(2**24)], np.int32),
                "bias": np.array([2**61 - 1, 0, -(2**61) + 1, 2**40, -(2**40), 2 ** min(shift - 1, 60), 0], np.int64),
            }
            yield [edge_rows("int16", 7)], params, {"shift": shift, "out": out}
        params = {
            "mult": source.integers(-(2**21), 2**21, 5, dtype="int32"),
            "bias": source.integers(-(2**40), 2**40, 5, dtype="int64"),
        }
        yield [source.integers(-300, 300, 2, 3, 5, dtype="int16")], params, {"shift": 44, "out": out}
    yield from sharp_layernorm()


def sharp_layernorm() -> Iterator[Case]:
    """Results that are the last bits of z: mult = 2 and bias = -2 z + 2 j at shift 1 give j."""
    for row in ([0, 1], [-1, 0, 0], [3, -5, 7, 100, -2], [-9], [1000, -999, 998, -32768, 32767]):
        mean = (2 * sum(row) + len(row)) // (2 * len(row))
        centred = [value - mean for value in row]
        reciprocal = (2**31 - 1) // max(naive.isqrt(sum(value * value for value in centred)), 1)
        bias = [2 * (j - value * reciprocal // 2) for j, value in enumerate(centred)]
        params = {"mult": np.full(len(row), 2, np.int32), "bias": np.array(bias, np.int64)}
        yield [np.array([row], np.int16)], params, {"shift": 1, "out": "int16"}


def matmul(source: Source) -> Iterator[Case]:
    for out in ("int8", "int16"):
        for kind, shape in (
            ("int8", (2, 3, 64, 5)),
            ("int16", (3, 4, 17, 6)),
            ("int8", (1, 1, 1, 1)),
            ("int16", (1, 2, 511, 3)),
        ):
            batch, rows, depth, width = shape
            a = source.full(kind, batch, rows, depth)
            bits = (12 if kind == "int8" else 20) + (8 if out == "int8" else 0)
            for transpose in (0, 1):
                b = source.full("int8", batch, *((width, depth) if transpose else (depth, width)))
                columns = width if transpose else 1
                params = {
                    "mult": source.integers(2**20, 2**21, batch, columns, dtype="int32"),
                    "shift": np.full((batch, columns), 12 + bits, np.int8),
                }
                yield [a, b], params, {"transpose_b": transpose, "out": out}
    scale: dict[str, np.ndarray] = {
        "mult": np.array([0, 1, 2**31 - 1, 2**30], np.int32),
        "shift": np.array([1, 1, 62, 45], np.int8),
    }
    for out in ("int8", "int16"):
        yield [edge_rows("int16", 9), source.full("int8", 9, 4)], scale, {"transpose_b": 0, "out": out}


def shiftmax(source: Source) -> Iterator[Case]:
    for out in ("int8", "int16"):
        for kind in ("paper", "normalized"):
            for i0, k_inter in ((1, 15), (16, 11), (23, 10), (2**15, 0)):
                attrs = {"i0": i0, "k_inter": k_inter, "int_div_kind": kind, "out": out}
                yield [edge_rows("int16", 7)], {}, attrs
                yield [source.integers(-4 * min(i0, 100), 4 * min(i0, 100), 2, 33, dtype="int16")], {}, attrs
                yield [source.full("int8", 1, 129)], {}, attrs
            yield [np.array([[5]], np.int8)], {}, attrs
            power = np.array(
                [[0, 0, 0, -1, -2, -3, -3, -3, -4, -5, -5, -5, -6, -7, -7, -7, -8, -9, -9, -9, -10, -10]], np.int8
            )  # exponentials that sum to 2^17, with results that are ties
            yield [power], {}, {"i0": 1, "k_inter": 15, "int_div_kind": kind, "out": out}


def softmax2(source: Source) -> Iterator[Case]:
    for a1, a2 in ((21955, 5571), (16384, 0), (16384, 16383), (32767, 0)):
        for frac_bits in (0, 8, 11, 15):
            attrs = {"frac_bits": frac_bits, "a1": a1, "a2": a2}
            spread = min(4 << frac_bits, 2**15 - 1)
            yield [edge_rows("int16", 7)], {}, attrs
            yield [source.integers(-spread, spread, 3, 65, dtype="int16")], {}, attrs
    yield [source.integers(-1000, 1000, 1, 1025, dtype="int16")], {}, {"frac_bits": 8, "a1": 21955, "a2": 5571}
    yield [np.array([[-7]], np.int16)], {}, {"frac_bits": 8, "a1": 21955, "a2": 5571}


def gelu(source: Source) -> Iterator[Case]:
    every = np.arange(-128, 128, dtype=np.int8)
    for kind in ("paper", "normalized"):
        for k_out in (8, 16):
            for i0, k_inter, lam in ((16, 23, 6), (23, 23, 1), (5, 15, 64), (2**13, 31, 6), (100, 0, 1)):
                attrs = {"i0": i0, "k_inter": k_inter, "lam": lam, "int_div_kind": kind, "k_out": k_out}
                attrs |= {"mult": 1, "shift": k_out - 1}
                yield [every[None]], {}, attrs
                yield [edge_rows("int8", 7)], {}, attrs
                yield [source.integers(-128, -1, 2, 17, dtype="int8")], {}, attrs
            yield [every[:, None]], {}, attrs | {"i0": 16, "k_inter": 23, "lam": 6}
            for mult, shift in ((0, 1), (2**31 - 1, 1), (2**31 - 1, 62), (3, k_out)):
                scale = {"i0": 16, "k_inter": 23, "lam": 6, "mult": mult, "shift": shift}
                yield [source.integers(-60, 30, 3, 9, dtype="int8")], {}, attrs | scale
    scale = {"i0": 16, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8, "mult": 1, "shift": 7}
    yield [source.integers(-60, 30, 2, 3, 5, dtype="int8")], {}, scale
    yield from sharp_gelu()


def sharp_gelu() -> Iterator[Case]:
    """The last bit of sigma where it shows whether the divisor, of 21 to 33 bits, is normalized by its exact length."""
    i0 = 97
    for k_inter in (14, 18, 22, 25, 26):
        for value in (-90, 83):
            p = naive.times_1_6875(value)
            one, e = i0 << k_inter, naive.shift_exp(-abs(p), i0, k_inter, 6)
            product = value * naive.int_div(one if p >= 0 else e, one + e, 16, "normalized")
            for below in (product - 1, product):
                mult, shift = between(below)
                attrs = {"i0": i0, "k_inter": k_inter, "lam": 6, "int_div_kind": "normalized", "k_out": 16}
                yield [np.array([[value]], np.int8)], {}, attrs | {"mult": mult, "shift": shift}


def gelu_table(source: Source) -> Iterator[Case]:
    yield [np.arange(-128, 128, dtype=np.int8)], {"table": source.full("int8", 256)}, {}
    yield [source.full("int8", 3, 5)], {"table": source.full("int8", 256)}, {}


def l2norm(source: Source) -> Iterator[Case]:
    for mult, shift in ((127, 30), (2**31 - 1, 55), (0, 1), (2**31 - 1, 62), (2**31 - 1, 1), (1, 23)):
        yield [edge_rows("int16", 7)], {}, {"mult": mult, "shift": shift}
        yield [source.full("int16", 2, 64)], {}, {"mult": mult, "shift": shift}
        yield [source.integers(-3, 3, 4, 5, dtype="int16")], {}, {"mult": mult, "shift": shift}
        short = np.array([[[-1, 0, 0], [1, 1, -1]], [[0, 0, 1], [2, 0, 0]]], np.int16)
        yield [short], {}, {"mult": mult, "shift": shift}
    yield [source.full("int16", 2, 3, 4)], {}, {"mult": 127, "shift": 30}
    for row in ([-1, 0, 0], [3, -4, 7], [1000, -30000, 32767]):  # the last bit of z
        reciprocal = (2**31 - 1) // naive.isqrt(sum(value * value for value in row))
        for value in filter(None, row):
            z = value * reciprocal // 2
            for below in (max(z - 1, -(2**30)), z):
                mult, shift = between(below)
                yield [np.array([row], np.int16)], {}, {"mult": mult, "shift": shift}


def concat(source: Source) -> Iterator[Case]:
    for dtype in ("int8", "int16"):
        yield [source.full(dtype, 1, 5), source.full(dtype, 4, 5)], {}, {}
        yield [source.full(dtype, 3, 1), source.full(dtype, 1, 1)], {}, {}


def slice_tokens(source: Source) -> Iterator[Case]:
    for dtype in ("int8", "int16"):
        for start, stop in ((0, 7), (1, 7), (6, 7), (0, 1), (2, 5)):
            yield [source.full(dtype, 7, 3)], {}, {"start": start, "stop": stop}


def split_heads(source: Source) -> Iterator[Case]:
    for dtype in ("int8", "int16"):
        for heads, part, parts in ((1, 0, 1), (2, 0, 3), (2, 1, 3), (3, 2, 3), (4, 1, 2)):
            yield [source.full(dtype, 5, heads * parts * 3)], {}, {"heads": heads, "part": part, "parts": parts}


def merge_heads(source: Source) -> Iterator[Case]:
    for dtype in ("int8", "int16"):
        for shape in ((1, 1, 1), (3, 5, 2), (1, 4, 3), (4, 1, 3)):
            yield [source.full(dtype, *shape)], {}, {}


def to_grid(source: Source) -> Iterator[Case]:
    for dtype in ("int8", "int16"):
        for height, width in ((1, 1), (3, 4), (4, 3), (1, 5), (5, 1)):
            yield [source.full(dtype, height * width, 3)], {}, {"height": height, "width": width}


def upsample_nearest(source: Source) -> Iterator[Case]:
    for dtype in ("uint8", "uint16", "int16", "int32"):
        yield [source.full(dtype, 2, 3)], {}, {"factor": 4}
        yield [source.full(dtype, 3, 1, 2)], {}, {"factor": 3}
        yield [source.full(dtype, 2, 2, 1)], {}, {"factor": 1}


def upsample_bilinear(source: Source) -> Iterator[Case]:
    for dtype in ("int16", "int32"):
        for height, width, factor in ((1, 1, 64), (1, 3, 4), (3, 1, 3), (3, 2, 5), (2, 2, 1), (2, 3, 16)):
            x = source.full(dtype, height, width, 2)
            rows = height * factor
            yield [x], {}, {"factor": factor, "row_start": 0, "row_stop": min(rows, 9)}
            yield [x], {}, {"factor": factor, "row_start": rows - 1, "row_stop": rows}


def argmax(source: Source) -> Iterator[Case]:
    for dtype in ("int16", "int32", "int64"):
        yield [edge_rows(dtype, 7)], {}, {}
        yield [source.full(dtype, 2, 5, 19)], {}, {}
        yield [source.integers(-1, 1, 9, 5, dtype=dtype)], {}, {}
        yield [source.full(dtype, 4, 1)], {}, {}
        yield [source.integers(0, 1, 2, 256, dtype=dtype)], {}, {}
    yield (
        [np.concatenate([source.integers(-9, 9, 3, 256, dtype="int16"), np.array([[10], [0], [-10]], np.int16)], 1)],
        {},
        {},
    )
    yield [source.integers(-9, 9, 1, 300, dtype="int16")], {}, {}
    yield [source.integers(-9, 9, 257, 2, dtype="int16")], {}, {}
    yield [source.integers(-9, 9, 1, 257, 2, dtype="int16")], {}, {}


MAKERS: dict[str, Callable[[Source], Iterator[Case]]] = {
    "quantize_input": quantize_input,
    "patchify": patchify,
    "linear": linear,
    "add": add,
    "layernorm": layernorm,
    "matmul": matmul,
    "shiftmax": shiftmax,
    "softmax2": softmax2,
    "shift_gelu": gelu,
    "sigmoid_gelu": gelu,
    "gelu_table": gelu_table,
    "l2norm": l2norm,
    "concat": concat,
    "slice": slice_tokens,
    "split_heads": split_heads,
    "merge_heads": merge_heads,
    "to_grid": to_grid,
    "upsample_nearest": upsample_nearest,
    "upsample_bilinear": upsample_bilinear,
    "argmax": argmax,
}


def make(op: str) -> bytes:
    """The file of one op. Refuses weak vectors: in a third of the cases at least, results must take three values."""
    tensors: dict[str, np.ndarray] = {}
    attributes = []
    varied = 0
    for i, (inputs, params, attrs) in enumerate(MAKERS[op](Source(SEED))):
        expected = naive.evaluate(op, inputs, params, attrs)
        tensors |= {f"case{i}.in{j}": x for j, x in enumerate(inputs)}
        tensors |= {f"case{i}.param.{role}": p for role, p in params.items()}
        tensors[f"case{i}.expected"] = expected
        attributes.append(attrs)
        varied += len(np.unique(expected)) > 2
    if 3 * varied < len(attributes):
        raise SystemExit(f"{op}: only {varied} of {len(attributes)} cases have more than two different results")
    text = json.dumps({"attrs": attributes, "op": op, "seed": SEED}, sort_keys=True, separators=(",", ":"))
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    data: bytes = safetensors.numpy.save(contiguous, metadata={"intseg": text})
    return data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    different = []
    for op in MAKERS:
        data, path = make(op), FOLDER / f"{op}.safetensors"
        if arguments.check and (not path.exists() or path.read_bytes() != data):
            different.append(op)
        elif not arguments.check:
            path.write_bytes(data)
    strangers = sorted({p.stem for p in FOLDER.glob("*.safetensors")} - set(MAKERS))
    total = sum(p.stat().st_size for p in FOLDER.glob("*.safetensors"))
    print(f"{len(MAKERS)} ops, {total} bytes, different: {different or 'none'}, unknown files: {strangers or 'none'}")
    return 1 if different or strangers else 0


if __name__ == "__main__":
    raise SystemExit(main())
