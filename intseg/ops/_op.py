"""What an op is: its definition, and the static contract that a graph node must meet before it may run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from intseg.errors import ModelError

Array = NDArray[Any]
Attr = int | str
Run = Callable[..., Array]
Define = Callable[..., Any]
Check = Callable[[Sequence["Value"], Mapping[str, Array], Mapping[str, Attr]], "Value"]

SHIFT = range(1, 63)
"""Shift counts of every requantization: outside of it CPUs disagree (SPEC 2.1)."""

MULT = range(2**31)
"""Multipliers of every requantization (SPEC 2.3)."""

NARROW = ("int4", "int5", "int6", "int7")
"""Types of an activation of fewer than 8 bits, which INT8 holds (SPEC 1)."""

OUT = (*NARROW, "int8", "int16")
"""Types of a result that is saturated."""

MAX_DIM = 65535
"""The largest extent of any axis (SPEC 5.3): the overflow proofs of the row sums use it."""

ACC_LIMIT = 2**31
"""Accumulators are INT32: a proof that |acc| < 2^31 for every input is needed at load (SPEC 3)."""


@dataclass(frozen=True)
class Value:
    """What is known of an intermediate: dtype, shape, and a bound on the last axis' sum of |x| if there is one."""

    dtype: str
    shape: tuple[int, ...]
    row_sum: int | None = None


@dataclass(frozen=True)
class Call:
    """A call of an op: positional inputs, parameters by role, attributes; the scale of the first input, if known."""

    op: str
    inputs: Sequence[Array]
    params: Mapping[str, Array]
    attrs: Mapping[str, Attr]
    scale: Array | None = None


@dataclass(frozen=True)
class Op:
    """One operation of the graph.

    number      N of its section 4.N of SPEC.md, and what stands for it on disk in the flat form
    define      the definition: define(m, *inputs, **params, **attrs) -> output, every step through the machine m
    inputs      for every positional input, the dtypes it may have
    check       shape inference and value checks; returns the Value of the output, raises ModelError
    params      dtype of every parameter tensor, by role
    attrs       allowed values of every attribute: a range of integers or a tuple of strings
    moves       whether it only moves values: the same function for integers and reals
    optional    attributes that may be absent; `define` says by its defaults what they are then
    multiplies  whether an element of the output takes as many products as the first input's last axis is long
    """

    number: int
    define: Define
    inputs: tuple[tuple[str, ...], ...]
    check: Check
    params: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, range | tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    multiplies: bool = False
    moves: bool = False


def require(condition: bool, message: str) -> None:
    """Raise ModelError(message) unless the condition holds."""
    if not condition:
        raise ModelError(message)


def require_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """A parameter tensor has exactly this shape."""
    require(array.shape == shape, f"{name} has shape {list(array.shape)}, expected {list(shape)}")


def require_rank(value: Value, rank: int) -> None:
    """An input has this number of axes."""
    require(len(value.shape) == rank, f"input has shape {list(value.shape)}, expected {rank} axes")


def require_within(name: str, array: Array, allowed: range) -> None:
    """Every element of a parameter tensor lies in `allowed`."""
    if array.size:
        low, high = int(array.min()), int(array.max())
        require(
            low >= allowed.start and high < allowed.stop,
            f"{name} has values in [{low}, {high}], expected [{allowed.start}, {allowed.stop - 1}]",
        )


def int_attr(attrs: Mapping[str, Attr], name: str) -> int:
    """An attribute known to be an integer (checked against the op's table before)."""
    value = attrs[name]
    assert isinstance(value, int)
    return value


def require_accumulator(bound: int) -> None:
    """The accumulator is proved to fit INT32."""
    require(
        bound < ACC_LIMIT,
        f"the INT32 accumulator may reach {bound}, expected below {ACC_LIMIT}: requantize the weights",
    )


def same_shape(inputs: Sequence[Value], dtype: str) -> Value:
    """Output of an elementwise op on its first input."""
    return Value(dtype, inputs[0].shape)
