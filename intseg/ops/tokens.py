"""Ops that only move tokens: concat, slice, split_heads, merge_heads, to_grid (SPEC 4.13 to 4.17)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import MAX_DIM, Array, Attr, Op, Value, int_attr, require, require_rank

_ANY = ("int8", "int16")
_DIM = range(MAX_DIM + 1)


def concat(m: Machine, a: Any, b: Any) -> Any:
    """Rows of a, then rows of b.

    a       int8 or int16 [M, D]
    b       dtype of a    [N, D]
    return  dtype of a    [M + N, D]
    """
    return m.concat(a, b)


def slice_tokens(m: Machine, x: Any, *, start: int, stop: int) -> Any:
    """Rows start to stop - 1.

    x       int8 or int16 [M, D]   0 <= start < stop <= M
    return  dtype of x    [stop - start, D]
    """
    return m.rows(x, start, stop)


def split_heads(m: Machine, x: Any, *, heads: int, part: int, parts: int) -> Any:
    """One of the `parts` equal column blocks (q, k, v are 0, 1, 2 of 3), cut into heads.

    x       int8 [T, parts * heads * d]
    return  int8 [heads, T, d]
    """
    tokens, width = x.shape
    blocks = m.reshape(x, tokens, parts, heads, width // (parts * heads))
    return m.transpose(m.pick(blocks, part, 1), 1, 0, 2)


def merge_heads(m: Machine, x: Any) -> Any:
    """Heads side by side again.

    x       int8 [heads, T, d]
    return  int8 [T, heads * d]
    """
    heads, tokens, width = x.shape
    return m.reshape(m.transpose(x, 1, 0, 2), tokens, heads * width)


def to_grid(m: Machine, x: Any, *, height: int, width: int) -> Any:
    """Tokens in row-major order become a grid.

    x       int8 or int16 [height * width, C]
    return  dtype of x    [height, width, C]
    """
    return m.reshape(x, height, width, x.shape[-1])


def check_concat(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    a, b = inputs
    require_rank(a, 2)
    require_rank(b, 2)
    require(a.dtype == b.dtype, f"inputs are {a.dtype} and {b.dtype}, expected one dtype")
    require(a.shape[1] == b.shape[1], f"inputs have widths {a.shape[1]} and {b.shape[1]}, expected equal ones")
    return Value(a.dtype, (a.shape[0] + b.shape[0], a.shape[1]))


def check_slice(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 2)
    start, stop = int_attr(attrs, "start"), int_attr(attrs, "stop")
    rows, width = inputs[0].shape
    require(start < stop <= rows, f"rows {start}:{stop} of {rows}, expected 0 <= start < stop <= {rows}")
    return Value(inputs[0].dtype, (stop - start, width))


def check_split_heads(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 2)
    tokens, width = inputs[0].shape
    heads, part, parts = (int_attr(attrs, name) for name in ("heads", "part", "parts"))
    require(part < parts, f"part is {part}, expected below parts = {parts}")
    require(width % (heads * parts) == 0, f"width {width} does not divide into {parts} parts of {heads} heads")
    return Value(inputs[0].dtype, (heads, tokens, width // (heads * parts)))


def check_merge_heads(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 3)
    heads, tokens, width = inputs[0].shape
    return Value(inputs[0].dtype, (tokens, heads * width))


def check_to_grid(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    require_rank(inputs[0], 2)
    height, width = int_attr(attrs, "height"), int_attr(attrs, "width")
    tokens, channels = inputs[0].shape
    require(height * width == tokens, f"{tokens} tokens do not fill a grid of {height} x {width}")
    return Value(inputs[0].dtype, (height, width, channels))


OPS = {
    "concat": Op(13, concat, (_ANY, _ANY), check_concat, moves=True),
    "slice": Op(14, slice_tokens, (_ANY,), check_slice, attrs={"start": _DIM, "stop": _DIM}, moves=True),
    "split_heads": Op(
        15,
        split_heads,
        (_ANY,),
        check_split_heads,
        attrs={"heads": range(1, 1025), "part": range(3), "parts": range(1, 4)},
        moves=True,
    ),
    "merge_heads": Op(16, merge_heads, (_ANY,), check_merge_heads, moves=True),
    "to_grid": Op(
        17,
        to_grid,
        (_ANY,),
        check_to_grid,
        attrs={"height": range(1, MAX_DIM + 1), "width": range(1, MAX_DIM + 1)},
        moves=True,
    ),
}
