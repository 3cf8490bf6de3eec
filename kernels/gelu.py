"""gelu: every GELU variant on INT8 is a table, of 256 entries, or of 256 by 256 with the row maximum as first index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from ._fast import Fast, Work
from ._ir import I8, Emit, Value
from ._jit import emitted, kernel
from ._tile import address

Array = NDArray[Any]


@emitted
def row_lookup(typingctx: Any, source: Any, count: Any, table: Any, out: Any) -> Any:
    """Table of 256 bytes at address `table` (indexed by x + 128) on the first bytes of a row; returns how many.

    With AVX512-VBMI 64 at a time by two byte permutes; elsewhere none: the plain loop does all.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emit(context, builder)
        source_, count_, table_, out_ = args
        if not e.isa.vbmi:
            return e.i64(0)
        bytes_ = ir.VectorType(I8, 64)
        parts = [e.load(e.offset(table_, 64 * i), bytes_) for i in range(4)]

        def step(i: Value, carried: list[Value]) -> list[Value]:
            x = e.load(builder.add(source_, i), bytes_)
            low, high = (
                e.call("llvm.x86.avx512.vpermi2var.qi.512", bytes_, [parts[n], x, parts[n + 1]]) for n in (0, 2)
            )
            # Negative x are the first half of the table; their low seven bits are x + 128.
            negative = builder.icmp_signed("<", x, e.const(bytes_, 0))
            e.store(builder.add(out_, i), builder.select(negative, low, high))
            return []

        whole = builder.and_(count_, e.i64(-64))
        e.loop(e.i64(0), whole, 64, [], step)
        return whole

    return types.int64(*[types.int64] * 4), codegen


@kernel("void(int8[:, ::1], int8[:, ::1], int8[:, ::1], int64, int64)")
def lookup(x: Array, tables: Array, out: Array, start: int, stop: int) -> None:
    """Rows start to stop - 1 of x int8 [M, D] through `tables` int8 [1 or 256, 256]; `out` may be x.

    With 256 tables, the row maximum + 128 chooses one.
    """
    count = x.shape[1]
    for i in range(start, stop):
        which = np.int64(0)
        if tables.shape[0] == 256:
            top = np.int64(-128)
            for j in range(count):
                top = max(top, np.int64(x[i, j]))
            which = top + 128
        table = address(tables) + which * 256
        done = row_lookup(address(x) + i * count, count, table, address(out) + i * count)
        for j in range(done, count):
            out[i, j] = tables[which, np.int64(x[i, j]) + 128]


def apply(x: Array, tables: Array) -> Array:
    """Tables int8 [1 or 256, 256] on x int8 [..., D]."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    lookup(rows, np.ascontiguousarray(tables), out, 0, rows.shape[0])
    return out.reshape(x.shape)


_VALUES: Array = np.arange(-128, 128, dtype=np.int8)


def _tables(define: Callable[..., Array], arguments: Mapping[str, Any], maxima: Array | None) -> Array:
    """The definition on every input: int8 [1, 256], or [256, 256] where the row maximum + 128 chooses a row.

    maxima  those of the rows that will be chosen, the other rows are 0; None where none is
    """
    if maxima is None:
        return np.ascontiguousarray(define(_VALUES[None], **arguments))
    tables = np.zeros((256, 256), np.int8)
    # Row m holds every value up to m, and m in place of those above: its maximum is m.
    tables[maxima.astype(np.int16) + 128] = define(np.minimum(_VALUES[None], maxima[:, None]), **arguments)
    return tables


def _fast(by_maximum: bool) -> Fast:
    """By a table of the definition."""

    def run(define: Callable[..., Array], x: Array, **arguments: Any) -> Array:
        return apply(x, _tables(define, arguments, np.unique(x.max(axis=-1)) if by_maximum else None))

    def work(define: Callable[..., Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Work:
        tables = _tables(define, {**params, **attrs}, _VALUES if by_maximum else None)
        return Work(lambda x, out: lambda start, stop, scratch: lookup(x[0], tables, out, start, stop))

    return Fast(run, work, in_place=True, tabulates=True)


OPS = {"gelu_table": _fast(False), "sigmoid_gelu": _fast(False), "shift_gelu": _fast(True)}
