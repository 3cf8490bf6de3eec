#!/usr/bin/env python3
"""Vectors of the hardware and C examples: golden/rtl/vectors/*.mem and golden/c/vectors.h, with one manifest.

    python golden/rtl/make_vectors.py [--check]

Expected values come from plain Python integers (tests/naive.py). A .mem file has one word a line, hexadecimal, two's
complement, in the order of C arrays; manifest.json says dtype, shape and sha256 of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent
sys.path.insert(0, str(GOLDEN.parent / "tests"))
import naive  # noqa: E402

M, K, N = 5, 24, 4
"""Rows, depth and columns of the GEMM tile."""

BITS = {"int8": 8, "uint8": 8, "int16": 16, "int32": 32}
SCALES = ((0, 1), (1, 1), (1, 3), (3, 7), (2**30, 30), (2**31 - 1, 62), (2**31 - 1, 1), (1518500250, 45), (5 << 20, 24))
Column = tuple[str, tuple[int, ...], list[int]]
"""dtype, shape, values."""


class Source:
    """A 64-bit linear congruential generator."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def integer(self, low: int, high: int) -> int:
        """The next integer in [low, high]."""
        self.state = (6364136223846793005 * self.state + 1442695040888963407) % 2**64
        return low + ((self.state >> 32) * (high - low + 1) >> 32)


def accumulators(mult: int, shift: int, out: str, source: Source) -> list[int]:
    """Limits, small values, ties on both sides, both sides of both saturations, random ones."""
    found = {0, 1, -1, 2, -2, 3, -3, 2**31 - 1, -(2**31) + 1}
    low, high = naive.LIMITS[out]
    if mult:
        twos = (mult & -mult).bit_length() - 1
        step = 2 ** max(shift - 1 - twos, 0)
        found |= {odd * step for odd in (1, 3, -1, -3, 5, -5)}
        for value in (low, high + 1):
            first = -((2 ** (shift - 1) - value * 2**shift) // mult)
            found |= {first - 1, first}
    found |= {source.integer(-(2**20), 2**20) for _ in range(4)} | {source.integer(-(2**31) + 1, 2**31 - 1)}
    return sorted(acc for acc in found if abs(acc) < 2**31)


def requantize_columns() -> dict[str, Column]:
    """One requantization a row."""
    source, rows = Source(1), []
    for mult, shift in SCALES:
        for wide, out in enumerate(("int8", "int16")):
            for acc in accumulators(mult, shift, out, source):
                rows.append((acc, mult, shift, wide, naive.requantize(acc, mult, shift, out)))
    columns = list(map(list, zip(*rows, strict=True)))
    names = {"acc": "int32", "mult": "int32", "shift": "int8", "wide": "uint8", "expected": "int16"}
    return {
        f"requantize_{name}": (dtype, (len(rows),), column)
        for (name, dtype), column in zip(names.items(), columns, strict=True)
    }


def tile_columns() -> dict[str, Column]:
    """A linear op of M x K by N x K; its columns have ordinary scales, a tie, a saturation and a zero."""
    source = Source(2)
    x = [[source.integer(-128, 127) for _ in range(K)] for _ in range(M)]
    weight = [[source.integer(-128, 127) for _ in range(K)] for _ in range(N)]
    bias = [source.integer(-(2**15), 2**15) for _ in range(N)]
    mult, shift = [1518500250, 1, 2**31 - 1, 1073741824], [40, 9, 35, 39]
    expected = naive.linear(x, weight=weight, bias=bias, mult=mult, shift=shift, out="int8")
    return {
        "tile_x": ("int8", (M, K), flat(x)),
        "tile_weight": ("int8", (N, K), flat(weight)),
        "tile_bias": ("int32", (N,), bias),
        "tile_mult": ("int32", (N,), mult),
        "tile_shift": ("int8", (N,), shift),
        "tile_expected": ("int16", (M, N), flat(expected)),
    }


def flat(rows: list[list[int]]) -> list[int]:
    """Rows one after another."""
    return [value for row in rows for value in row]


def mem(column: Column) -> str:
    """One word a line, as $readmemh reads it."""
    bits = BITS[column[0]]
    return "".join(f"{value % 2**bits:0{bits // 4}x}\n" for value in column[2])


def sizes(rows: int) -> str:
    """The `define lines of the bench."""
    named = {"REQUANTIZE_ROWS": rows, "TILE_M": M, "TILE_K": K, "TILE_N": N}
    return "".join(f"`define {name} {value}\n" for name, value in named.items())


def header(columns: dict[str, Column], rows: int) -> str:
    """The same vectors as C arrays."""
    lines = [
        "/* Written by golden/rtl/make_vectors.py. */",
        "#ifndef VECTORS_H",
        "#define VECTORS_H",
        "#include <stdint.h>",
    ]
    lines.append(f"enum {{ REQUANTIZE_ROWS = {rows}, TILE_M = {M}, TILE_K = {K}, TILE_N = {N} }};")
    for name, (dtype, shape, values) in columns.items():
        lines.append(f"static const {dtype}_t {name}[{' * '.join(map(str, shape))}] = {{")
        lines += ["    " + ", ".join(map(str, values[i : i + 16])) + "," for i in range(0, len(values), 16)]
        lines.append("};")
    return "\n".join([*lines, "#endif", ""])


def files() -> dict[str, str]:
    """Every generated file by its path below golden/."""
    requantizations = requantize_columns()
    columns = requantizations | tile_columns()
    rows = len(requantizations["requantize_acc"][2])
    made = {f"rtl/vectors/{name}.mem": mem(column) for name, column in columns.items()}
    made |= {"rtl/vectors/sizes.svh": sizes(rows), "c/vectors.h": header(columns, rows)}
    entries = {path: {"sha256": hashlib.sha256(text.encode()).hexdigest()} for path, text in made.items()}
    for name, (dtype, shape, _) in columns.items():
        entries[f"rtl/vectors/{name}.mem"] |= {"dtype": dtype, "shape": list(shape)}
    made["rtl/manifest.json"] = json.dumps({"files": entries}, indent=1, sort_keys=True) + "\n"
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or compare them; 1 when one differs."""
    parser = argparse.ArgumentParser(description="Write or check the vectors of the hardware and C examples.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args(argv).check
    different = []
    for path, text in files().items():
        target = GOLDEN / path
        if check and (not target.is_file() or target.read_text(encoding="utf-8") != text):
            different.append(path)
        elif not check:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    print(f"{len(files())} files, different: {', '.join(different) or 'none'}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
