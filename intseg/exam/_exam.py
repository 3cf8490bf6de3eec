"""What is known of an op beside its definition: an `Exam`. Nothing that computes a result imports one.

Registers, bounds, rounding and division cases and usual mistakes follow from the primitives that a definition calls.
Here is what does not: inputs that reach its corners, cases and mistakes of its own, the function that its integers
stand for. A file of this folder has the exams of the op file of the same name, as `EXAMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intseg.arith.interval import Interval
from intseg.arith.recorder import Change
from intseg.arith.variant import Variant
from intseg.ops import OPS, RUN, Array, Attr, Call

from ._draw import Draw, Drawn, Numbers

Facts = Mapping[str, Any]
"""A call by names: inputs "in0", "in1", parameters by role, attributes, registers, "result"."""


@dataclass(frozen=True)
class Branch:
    """A case of an op's own.

    name     unique among those of the op
    text     what happens there
    reached  whether the facts of a call show it, for at least one element
    """

    name: str
    text: str
    reached: Callable[[Facts], Any]


@dataclass(frozen=True)
class Mistake:
    """A mistake that only this op invites.

    name     for `Variant.quirk`
    words    for people
    changes  what it has in place of registers ("result" included); none for one that a primitive knows by its name
    """

    name: str
    words: str
    changes: Mapping[str, Change] = field(default_factory=dict)


@dataclass(frozen=True)
class Extremes:
    """A node while witnesses are made for its bounds.

    inputs    their intervals, with shapes
    channels  for registers with an interval a channel, the channels with its ends
    rows      for every input, rows that the op before it really gives, where these sum to a bound; else None
    """

    inputs: Sequence[Interval]
    params: Mapping[str, Array]
    attrs: Mapping[str, Any]
    channels: Mapping[str, set[int]]
    rows: Sequence[Array | None]


Operands = tuple[Sequence[Array], Mapping[str, Array]]
"""Inputs and params."""


_SMALL = 300
"""Elements of the inputs of a call that is tried many times."""


Known = tuple[str, Mapping[str, Attr], str]
"""A table that every installation checks: its label, the options that differ from the usual ones, its sha256."""


@dataclass(frozen=True)
class Unit:
    """An op, or a part of one, whose inputs are few enough for a table of all.

    name     of the unit
    options  attributes of the op, with the values that they have when not given
    columns  the columns by name, of one length, inputs first, for the options
    """

    name: str
    options: Mapping[str, Attr]
    columns: Callable[..., Mapping[str, Array]]
    tables: tuple[Known, ...]


def every_int8(op: str) -> Callable[..., dict[str, Array]]:
    """Columns of an op of one INT8 input that looks at each element alone."""

    def columns(**attrs: Attr) -> dict[str, Array]:
        x = np.arange(-128, 128).astype(np.int8)
        return {"x": x, "result": RUN[op](x, **attrs)}

    return columns


@dataclass(frozen=True)
class Exam:
    """What an op is tried with.

    op         its name, or that of a step of SPEC.md section 7
    section    of SPEC.md; 4.N of an op by its number
    digest     sha256 over the results of `calls`
    kind       the kind its nodes are grouped under in reports; none for one that only moves values
    approximates  in words, what it is less exact than, apart from the rounding of its result; none for one that is
               exact up to that (SPEC 4), so that nothing can be won by computing it in real arithmetic
    inputs     calls that reach every case; the same numbers give the same calls
    seed       names the numbers of `calls`, the op's name by default
    draw       operands of any valid call: draw(source, *inputs, **choices), inputs and choices left out are drawn too
    real       the op in real arithmetic: the same operands, floats for integers
    function   the function of one real number that it is, where the scales of its input and output say so
    branches   cases of its own
    mistakes   mistakes of its own
    own        further mistakes that depend on a call: (words, variant)
    worst      operands that come near the bounds of its registers
    factors    from the attributes: (what, real factor, number of the input) that the scale tensors have to say too
    facts      for a step that no machine runs: what its branches look at
    units      complete tables of what has few inputs
    """

    op: str
    inputs: Callable[[Draw], Iterator[Call]]
    section: str = ""
    digest: str = ""
    kind: str = ""
    approximates: str = ""
    seed: str = ""
    draw: Callable[..., Drawn] | None = None
    real: Callable[..., Any] | None = None
    function: Callable[[Any], Any] | None = None
    branches: tuple[Branch, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    own: Callable[[Call], Iterable[tuple[str, Variant]]] | None = None
    worst: Callable[[Extremes], Iterable[Operands]] | None = None
    factors: Callable[[Mapping[str, Any]], Iterable[tuple[str, float, int]]] | None = None
    facts: Callable[[Call], Facts] | None = None
    units: tuple[Unit, ...] = ()

    def __post_init__(self) -> None:
        if not self.section:
            object.__setattr__(self, "section", f"4.{OPS[self.op].number}")

    def calls(self) -> list[Call]:
        """The calls that reach every case, the same on every machine."""
        return list(self.inputs(Numbers.named(self.seed or self.op)))

    def any_call(self, d: Draw) -> Call:
        """Any valid call; without `draw`, one of `calls` with new elements in its inputs."""
        if self.draw is not None:
            drawn = self.draw(d)
            inputs = [d.array(x.dtype, *x.shape) for x in drawn.inputs]
            return Call(self.op, inputs, drawn.params, drawn.attrs)
        calls = self.calls()
        found = d.pick(*([each for each in calls if sum(x.size for x in each.inputs) <= _SMALL] or calls))
        return replace(found, inputs=[d.array(x.dtype.name, *x.shape) for x in found.inputs])


def equals(fact: str, value: Any) -> Callable[[Facts], Any]:
    """Whether a fact has a value."""
    return lambda facts: facts[fact] == value


def choices(fact: str, *values: Any, label: str = "") -> Iterator[Branch]:
    """A branch for every value of a fact."""
    for value in values:
        yield Branch(f"{label or fact}-{value}", f"{label or fact} = {value}", equals(fact, value))


def dtypes(*names: str) -> Iterator[Branch]:
    """A branch for every dtype of the first input."""
    for name in names:
        yield Branch(f"dtype-{name}", f"dtype = {name}", _is_of(name))


def _is_of(dtype: str) -> Callable[[Facts], Any]:
    return lambda facts: facts["in0"].dtype.name == dtype


def softmax_rows() -> tuple[Branch, ...]:
    """Rows on which a softmax may differ."""
    return (
        Branch("row-one-hot", "one survivor: the result saturates",
               lambda f: f["quotient"] > np.iinfo(f["result"].dtype).max),
        *equal_rows(),
    )  # fmt: skip


def equal_rows() -> tuple[Branch, ...]:
    """Rows by their largest elements and their range."""
    return (
        Branch("row-equal", "all elements equal", lambda f: (_at_top(f) == f["in0"].shape[-1]) & (_at_top(f) > 1)),
        Branch("row-tied", "several largest elements, not all",
               lambda f: (_at_top(f) > 1) & (_at_top(f) < f["in0"].shape[-1])),
        Branch("row-single", "a row of one element", lambda f: f["in0"].shape[-1] == 1),
        Branch("row-negative", "all elements negative", lambda f: f["row_max"] < 0),
        Branch("row-full-range", "from the lowest to the highest of the dtype",
               lambda f: f["row_max"] - f["in0"].min(axis=-1, keepdims=True) >= 255),
    )  # fmt: skip


def _at_top(f: Facts) -> Array:
    """How many elements of every row are the largest."""
    count: Array = (f["in0"] == f["row_max"]).sum(axis=-1)
    return count


def shapes_of(x: Interval, count: int, dtype: Any, spots: Sequence[int] = (0,)) -> Array:
    """Rows of an interval: constant, halves, one element apart, a ramp."""
    low, high, least = x.low, x.high, min(max(0, x.low), x.high)
    half = np.where(np.arange(count) % 2 == 0, low, high)
    rows = [
        *(np.full(count, value) for value in (low, high, least)),
        half,
        low + high - half,
        np.maximum(high - np.arange(count), low),
    ]
    for spot in spots:
        for value, rest in ((high, low), (low, high), (high, least), (low, least)):
            row = np.full(count, rest)
            row[spot % count] = value
            rows.append(row)
    return np.stack(rows).astype(dtype)


def row_extremes(at: Extremes) -> list[Operands]:
    """Rows of an op along the last axis; apart are the elements that its worst channels see."""
    spots = set().union(*at.channels.values()) or {0}
    x = at.inputs[0]
    return [([shapes_of(x, x.shape[-1], np.int16, sorted(spots))], at.params)]


__all__ = ["Attr", "Branch", "Call", "Exam", "Extremes", "Facts", "Mistake", "Operands"]
