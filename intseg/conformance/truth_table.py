"""Complete tables of the units with small domains, so that hardware is verified on all of its inputs.

Every table is computed with the primitives and ops of the definition. Columns are integer arrays of one length; a row
holds inputs first and results last. The sha256 of a table covers names, dtypes and values and no file format.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intseg import arith, files, store
from intseg.errors import InputError, ModelError, UsageError
from intseg.exam import EXAMS, Known, Unit
from intseg.graph import Graph, check_call
from intseg.ops import OPS, RUN, Array, Attr, Value

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
            digest.update(store.little(column).tobytes())
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


def _require(name: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value}, expected {allowed.start} to {allowed.stop - 1}")


def of_exam(op: str, unit: Unit, **attrs: Attr) -> Table:
    """The table of an op or of a part of it. Raises UsageError for attributes that no graph could have."""
    first = Value(OPS[op].inputs[0][0], (1,))
    try:
        check_call(OPS[op], ["x"], [first], {}, attrs)
    except ModelError as error:
        raise UsageError(f"unit {unit.name}: {error}") from None
    return Table(unit.name, attrs, unit.columns(**attrs))


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


_OF_EXAMS = {unit.name: (exam.op, unit) for exam in EXAMS.values() for unit in exam.units}

UNITS: dict[str, Callable[..., Table]] = {
    "shift_exp": shift_exp,
    "isqrt": isqrt,
    "requantize": requantize,
    "gelu_table": gelu_table,
    **{name: functools.partial(of_exam, op, unit) for name, (op, unit) in _OF_EXAMS.items()},
}

DEFAULTS: dict[str, Mapping[str, Attr]] = {
    "shift_exp": {"i0": 16, "k_inter": 11, "lam": 1, "low": -65535},
    "isqrt": {"low": 0, "high": 65535},
    "requantize": {"mult": 2**30, "shift": 38, "out": "int8", "limit": 2**14},
    "gelu_table": {},
    **{name: unit.options for name, (_, unit) in _OF_EXAMS.items()},
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


_TABLES: dict[str, tuple[Known, ...]] = {
    "shift_exp": (
        ("shift_exp", {}, "ef8e8f3f73221f09fb870141babefe3b527348e32fea7856786b57adf31a22c7"),
        ("shift_exp-lam6", {"k_inter": 23, "lam": 6, "low": -4096},
         "6446425f8a768e105ee30e556b2c0eaf3266d6dd851798e11af662f2454e0d3b"),
    ),
    "isqrt": (("isqrt", {"high": 4095}, "1ae99c470eee5bc3130b43fc33474db70a170f36a78fed45af10c065800a165b"),),
    "requantize": (
        ("requantize", {"mult": 1518500250, "shift": 40},
         "511ee6e3b750df3de49200c8da114832fb21d53a5f80b72779fe2ab620d659a8"),
        ("requantize-ties", {"mult": 3 << 20, "shift": 24, "out": "int16"},
         "f39fc00b87620a8b613e0cd19a76bc2381992e202b303c792d6a2cb3c54812d3"),
    ),
    **{name: unit.tables for name, (_, unit) in _OF_EXAMS.items()},
}  # fmt: skip


def self_test_tables() -> Iterator[tuple[str, Table, str]]:
    """The tables that `intseg verify` makes, and the sha256 that they have to have."""
    for unit, known in _TABLES.items():
        for label, options, sha256 in known:
            yield label, make(unit, options), sha256


# --------------------------------------------------------------------------------------------------------- files


def encode(table: Table, kind: str) -> dict[str, bytes]:
    """File contents by suffix of the name: ".npz", ".csv", or one ".COLUMN.hex" per column for $readmemh."""
    if kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{name: store.little(column) for name, column in table.columns.items()})
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
