"""Complete tables of the units with small domains, so that hardware is verified on all of its inputs.

Every table is computed with the primitives and ops of the definition. Columns are integer arrays of one length; a row
holds inputs first and results last. The sha256 of a table covers names, dtypes and values and no file format.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intseg import arith, files
from intseg.errors import InputError, UsageError
from intseg.graph import Graph
from intseg.ops import OPS, RUN, Array, Attr, Call
from intseg.workbench.registers import steps

FORMATS = ("npz", "csv", "hex")
MAX_ROWS = 2**22


@dataclass(frozen=True)
class Table:
    """A truth table: its unit, the parameters it is for, its columns."""

    unit: str
    params: Mapping[str, Attr]
    columns: Mapping[str, Array]

    @property
    def rows(self) -> int:
        """How many."""
        return len(next(iter(self.columns.values())))

    @property
    def sha256(self) -> str:
        """Over, for every column in order, the line "name dtype [rows]" and the little-endian bytes."""
        digest = hashlib.sha256()
        for name, column in self.columns.items():
            digest.update(f"{name} {column.dtype.name} {list(column.shape)}\n".encode())
            digest.update(column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()

    def as_json(self) -> dict[str, object]:
        """What the table is, without its rows."""
        columns = {
            name: {"dtype": column.dtype.name, "lowest": int(column.min()), "highest": int(column.max())}
            for name, column in self.columns.items()
        }
        return {
            "unit": self.unit,
            "params": dict(self.params),
            "rows": self.rows,
            "columns": columns,
            "sha256": self.sha256,
        }


# --------------------------------------------------------------------------------------------------------- units


def shift_exp(i0: int, k_inter: int, lam: int, low: int = -(2**16) + 1) -> Table:
    """SPEC 2.8 for x = low .. 0; -65535 is the lowest x that an op of section 4 passes to it."""
    _require("i0", i0, range(1, 2**15 + 1))
    _require("k", k_inter, range(32))
    _require("lam", lam, range(1, 65))
    _require("low", low, range(-MAX_ROWS + 1, 1))
    x = np.arange(low, 1, dtype=np.int64)
    result = arith.shift_exp(x, i0, k_inter, lam)
    return Table("shift_exp", {"i0": i0, "k": k_inter, "lam": lam}, {"x": x.astype(np.int32), "result": result})


def gelu_table(table: Array) -> Table:
    """SPEC 4.11 for all 256 values."""
    if table.dtype != np.int8 or table.shape != (256,):
        raise UsageError(f"the GELU table is {table.dtype.name} {list(table.shape)}, expected int8 [256]")
    x = np.arange(-128, 128).astype(np.int8)
    return Table("gelu_table", {}, {"x": x, "result": RUN["gelu_table"](x, table=table)})


def sigmoid_gelu(**attrs: Attr) -> Table:
    """SPEC 4.10 for all 256 values."""
    _require_attrs("sigmoid_gelu", attrs)
    x = np.arange(-128, 128).astype(np.int8)
    return Table("sigmoid_gelu", attrs, {"x": x, "result": RUN["sigmoid_gelu"](x, **attrs)})


def shift_gelu(**attrs: Attr) -> Table:
    """SPEC 4.9 for every value x and every row maximum: an element depends on the rest of its row only by that.

    The 32,896 pairs with x <= row maximum; the other pairs of 256 x 256 do not exist.
    """
    _require_attrs("shift_gelu", attrs)
    values = np.arange(-128, 128).astype(np.int8)
    top, x = (grid.ravel() for grid in np.meshgrid(values, values, indexing="ij"))
    top, x = top[x <= top], x[x <= top]
    result = RUN["shift_gelu"](np.stack([x, top], axis=-1), **attrs)[:, 0]
    return Table("shift_gelu", attrs, {"row_max": top, "x": x, "result": np.ascontiguousarray(result)})


def isqrt(low: int = 0, high: int = 2**16 - 1) -> Table:
    """SPEC 2.5 at r^2 - 1, r^2 and r^2 + 1 for every root r = low .. high."""
    _require("low", low, range(2**31))
    _require("high", high, range(low, 2**31))
    _require("number of roots", high - low + 1, range(1, MAX_ROWS // 3))
    squares = np.arange(low, high + 1, dtype=np.int64) ** 2
    v = np.unique(np.stack([squares - 1, squares, squares + 1]))
    v = v[(v >= 0) & (v < 2**62)]
    return Table("isqrt", {"low": low, "high": high}, {"v": v, "result": arith.isqrt(v).astype(np.int32)})


def requantize(mult: int, shift: int, out: str, limit: int = 2**14) -> Table:
    """SPEC 2.3 at every step of the result, and at ties.

    The result never falls as acc rises: both sides of each of its steps determine it for every acc. On top come the
    ties nearest to zero, at most `limit` on each side, with their neighbours, and both ends of the accumulator.
    """
    _require("mult", mult, range(2**31))
    _require("shift", shift, range(1, 63))
    _require("limit", limit, range(2**20))
    if out not in ("int8", "int16"):
        raise UsageError(f"out is {out!r}, expected int8 or int16")
    points = {-(2**31) + 1, -1, 0, 1, 2**31 - 1, *_steps(mult, shift, out), *_ties(mult, shift, limit)}
    acc = np.array(sorted(a for a in points if abs(a) < 2**31), np.int64)
    result = arith.requantize(acc, mult, shift, out)
    return Table(
        "requantize", {"mult": mult, "shift": shift, "out": out}, {"acc": acc.astype(np.int32), "result": result}
    )


def _steps(mult: int, shift: int, out: str) -> Iterator[int]:
    """For every value of the result, the lowest accumulator that gives at least it, and the one before."""
    if mult == 0:
        return
    low, high = arith.INT_RANGE[out]
    for value in range(low, high + 2):
        first = -((2 ** (shift - 1) - value * 2**shift) // mult)  # ceiling of (value - 1/2) 2^shift / mult
        yield from (first - 1, first)


def _ties(mult: int, shift: int, limit: int) -> Iterator[int]:
    """acc with acc mult = 2^(shift-1) modulo 2^shift: odd multiples of one power of two, if there are any."""
    twos = (mult & -mult).bit_length() - 1
    if mult == 0 or twos > shift - 1:
        return
    step = 2 ** (shift - 1 - twos)
    for odd in range(1, 2 * limit, 2):
        if odd * step > 2**31:
            return
        for acc in (odd * step, -odd * step):
            yield from (acc - 1, acc, acc + 1)


def exp2(frac_bits: int, a1: int, a2: int) -> Table:
    """e of SPEC 4.8 by t = max x - x, for every t until it is zero for good."""
    _require_attrs("softmax2", {"frac_bits": frac_bits, "a1": a1, "a2": a2})
    t = np.arange((16 << frac_bits) + 1, dtype=np.int64)
    attrs: dict[str, Attr] = {"frac_bits": frac_bits, "a1": a1, "a2": a2}
    found = steps(Call("softmax2", [-t[None]], {}, attrs))
    columns = {"t": found["t"][0], "power": found["i_b"][0].astype(np.int16)}
    columns["e"] = found["exponential"][0].astype(np.int16)
    return Table("exp2", {"frac_bits": frac_bits, "a1": a1, "a2": a2}, columns)


def _require(name: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value}, expected {allowed.start} to {allowed.stop - 1}")


def _require_attrs(op: str, attrs: Mapping[str, Attr]) -> None:
    """Attributes that a graph could have."""
    for name, allowed in OPS[op].attrs.items():
        value = attrs[name]
        if value not in allowed:
            words = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else " or ".join(allowed)
            raise UsageError(f"{name} is {value!r}, expected {words}")
    if "k_out" in attrs and attrs["k_out"] not in (8, 16):
        raise UsageError(f"k_out is {attrs['k_out']}, expected 8 or 16")
    if "k_inter" in attrs and int(attrs["i0"]) << int(attrs["k_inter"]) >= 2**45:
        raise UsageError(f"i0 2^k_inter is {int(attrs['i0']) << int(attrs['k_inter'])}, expected below 2^45")


def model_gelu_table(graph: Graph, node: str | None = None) -> Table:
    """The table of a gelu_table node of a model; of the first one when none is named. Raises UsageError."""
    found = {n.name: n for n in graph.nodes if n.op == "gelu_table"}
    if not found:
        raise UsageError(f"model {graph.info.name} has no gelu_table node; give another with -w, or another unit")
    if node is not None and node not in found:
        raise UsageError(f"model {graph.info.name} has no gelu_table node {node!r}; it has {', '.join(found)}")
    chosen = found[node or next(iter(found))]
    table = gelu_table(graph.tensors[chosen.params["table"]])
    return Table(table.unit, {"model": graph.info.name, "node": chosen.name}, table.columns)


UNITS: dict[str, Callable[..., Table]] = {
    "shift_exp": shift_exp,
    "gelu_table": gelu_table,
    "shift_gelu": shift_gelu,
    "sigmoid_gelu": sigmoid_gelu,
    "isqrt": isqrt,
    "requantize": requantize,
    "exp2": exp2,
}

_GELU: dict[str, Attr] = {"i0": 16, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8}
_GELU |= {"mult": 1, "shift": 7}

DEFAULTS: dict[str, dict[str, Attr]] = {
    "shift_exp": {"i0": 16, "k_inter": 11, "lam": 1, "low": -65535},
    "gelu_table": {},
    "shift_gelu": _GELU,
    "sigmoid_gelu": _GELU,
    "isqrt": {"low": 0, "high": 65535},
    "requantize": {"mult": 2**30, "shift": 38, "out": "int8", "limit": 2**14},
    "exp2": {"frac_bits": 8, "a1": 21955, "a2": 5571},
}
"""Options of every unit, with the values that they have when not given."""


def make(unit: str, options: Mapping[str, Attr]) -> Table:
    """The table of a unit; options that are not given have their defaults. Raises UsageError for one it lacks."""
    if unit not in UNITS:
        raise UsageError(f"unit {unit!r} is unknown, expected {', '.join(UNITS)}")
    unknown = sorted(set(options) - set(DEFAULTS[unit]))
    if unknown:
        has = ", ".join(DEFAULTS[unit]) or "none"
        raise UsageError(f"unit {unit} has no option {unknown[0]}; its options are: {has}")
    return UNITS[unit](**{**DEFAULTS[unit], **options})


def self_test_tables() -> Iterator[tuple[str, Table]]:
    """The tables whose sha256 `intseg verify` knows."""
    yield "shift_exp", shift_exp(16, 11, 1)
    yield "shift_exp-lam6", shift_exp(16, 23, 6, -4096)
    yield "shift_gelu", shift_gelu(**_GELU)
    yield "sigmoid_gelu", sigmoid_gelu(**_GELU)
    yield "isqrt", isqrt(0, 4095)
    yield "requantize", requantize(1518500250, 40, "int8")
    yield "requantize-ties", requantize(3 << 20, 24, "int16")
    yield "exp2", exp2(8, 21955, 5571)
    yield "exp2-line", exp2(8, 16384, 0)


# --------------------------------------------------------------------------------------------------------- files


def encode(table: Table, kind: str) -> dict[str, bytes]:
    """File contents by suffix of the name: ".npz", ".csv", or one ".COLUMN.hex" per column for $readmemh."""
    if kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **dict(table.columns))
        return {".npz": buffer.getvalue()}
    if kind == "csv":
        lines = [",".join(table.columns), *(",".join(map(str, row)) for row in zip(*_lists(table), strict=True))]
        return {".csv": ("\n".join(lines) + "\n").encode()}
    if kind == "hex":
        return {f".{name}.hex": hex_words(column) for name, column in table.columns.items()}
    raise UsageError(f"format {kind!r} is unknown, expected {', '.join(FORMATS)}")


def _lists(table: Table) -> list[list[int]]:
    return [column.tolist() for column in table.columns.values()]


def hex_words(column: Array) -> bytes:
    """One word a line, two's complement, as many digits as the dtype has: what $readmemh reads."""
    digits, mask = column.dtype.itemsize * 2, 2 ** (column.dtype.itemsize * 8) - 1
    return "".join(f"{value & mask:0{digits}x}\n" for value in column.ravel().tolist()).encode()


def write(table: Table, path: str | os.PathLike[str], kind: str) -> list[Path]:
    """Write a table; returns the files. Each appears whole, and only after all fit on the disk. Raises InputError."""
    target = Path(path)
    stem = target.name.removesuffix(f".{kind}")
    if not stem or target.is_dir():
        raise InputError(f"{target}: expected a file name; give -o NAME.{kind}")
    contents = {target.with_name(stem + suffix): data for suffix, data in encode(table, kind).items()}
    with contextlib.ExitStack() as stack:
        for path, data in contents.items():
            file = stack.enter_context(files.Replacement(path))
            file.write(data)
            file.flush()
        for path in contents:
            if path.is_dir():
                raise InputError(f"{path}: cannot write: is a folder; choose another name")
    return list(contents)
