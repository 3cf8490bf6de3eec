"""Why a node came out differently: the search for the mistakes that give what the other side has.

Single mistakes come first, then pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from intseg.arith.variant import Variant
from intseg.ops import Array, Call
from intseg.workbench.axes import dims
from intseg.workbench.mistakes import Hypothesis, catalogue, combine
from intseg.workbench.registers import evaluate, record, transform

SECONDS = 20.0
"""Time for the search unless another is given."""

_ROWS = 6
"""Rows on which a hypothesis is tried before all."""

_SMALL = 50_000
"""Elements up to which hypotheses on whole tensors take part in pairs."""

_MAX_MATCHES = 6

_LEAST_SHARE = 0.02
"""Part of the wrong elements below which a hypothesis is not worth mentioning."""


@dataclass(frozen=True)
class Explanation:
    """What the search found.

    matches   combinations of hypotheses that reproduce the other side exactly, the likeliest first
    partial   the best single ones where none does: (hypothesis, share of the wrong elements that it reproduces)
    tried     combinations tried
    complete  whether the time sufficed for all pairs
    node      the earlier node, unseen on the other side, in which the mistake lies; None for the compared node itself
    """

    matches: tuple[tuple[Hypothesis, ...], ...]
    partial: tuple[tuple[Hypothesis, float], ...] = ()
    tried: int = 0
    complete: bool = True
    node: str | None = None

    def names(self) -> list[str]:
        """The matches in words."""
        return [" and ".join(h.name for h in match) for match in self.matches]


@dataclass
class _Search:
    """A call, what the definition and what the other side give, and the clock."""

    call: Call
    expected: Array
    found: Array
    deadline: float
    tried: int = 0
    alone: int = field(init=False)
    rows: NDArray[np.intp] | None = field(init=False)
    small: Call = field(init=False)

    def __post_init__(self) -> None:
        self.alone = rowwise(self.call)
        self.rows = _pick_rows(self.alone, self.expected, self.found)
        self.small = self.call if self.rows is None else _take_rows(self.call, self.rows, self.alone)
        self.found_small = self.found if self.rows is None else self.found.take(self.rows, axis=-2)
        self.permuted = self.expected.dtype == self.found.dtype and np.array_equal(
            np.sort(self.expected, axis=None), np.sort(self.found, axis=None)
        )

    def late(self) -> bool:
        return time.thread_time() > self.deadline

    def result(self, variant: Variant) -> Array | None:
        """The whole output of a variant; None where it cannot be computed."""
        if variant == Variant(layout=variant.layout):
            return _guarded(lambda: transform(self.expected, variant.layout))
        return _guarded(lambda: evaluate(self.call, variant))

    def fits(self, variant: Variant) -> bool:
        """Whether a variant gives what the other side has: on some rows first, then everywhere."""
        self.tried += 1
        if self.rows is not None and not _needs_all_rows(self.alone, variant):
            few = _guarded(lambda: evaluate(self.small, variant))
            if few is None or not np.array_equal(few, self.found_small):
                return False
        whole = self.result(variant)
        return whole is not None and np.array_equal(whole, self.found)

    def reproduced(self, variant: Variant) -> float:
        """Share of the wrong elements (of the tried rows) that a variant reproduces, less those it newly spoils."""
        call, found = (self.call, self.found) if self.rows is None else (self.small, self.found_small)
        expected = self.expected if self.rows is None else self.expected.take(self.rows, axis=-2)
        got = _guarded(lambda: evaluate(call, variant))
        wrong = expected != found
        if got is None or got.shape != found.shape or not wrong.any():
            return 0.0
        right, spoiled = (got == found)[wrong].sum(), (got != found)[~wrong].sum()
        return max(float(right) - float(spoiled), 0.0) / float(wrong.sum())


_MOVING = ("write", "read", "flip", "roll", "shift", "words", "tiled", "untiled")


def is_whole(variant: Variant) -> bool:
    """Whether a variant moves elements of a tensor to other places."""
    return (
        variant.layout not in ("", "byteswap")
        or any(how.partition(":")[0] in _MOVING for _, how in variant.operands)
        or variant.quirk in ("global_max", "stale_rows", "other_axis")
        or variant.products.startswith("packed:-2")
    )


def rowwise(call: Call) -> int:
    """How many first inputs there are of which a row of the result (axis -2) needs only the same row.

    0 for ops that only move values: their mistakes move values between rows.
    """
    if "saturate" not in record(call)[0].used:
        return 0
    rows: set[str] = set()
    for dim in dims(call):
        if dim.alone and dim.out == call.inputs[0].ndim - 2:
            rows = {key for key, axis in dim.slots if key.isdecimal() and axis == call.inputs[int(key)].ndim - 2}
    return next(i for i in itertools.count() if str(i) not in rows)


def _needs_all_rows(alone: int, variant: Variant) -> bool:
    """Whether some rows alone cannot tell: elements move between the rows of the first inputs or of the result."""
    rows = {str(i) for i in range(alone)}
    kept = tuple((key, how) for key, how in variant.operands if key in rows)
    return is_whole(variant if kept == variant.operands else dataclasses.replace(variant, operands=kept))


def _guarded(run: Callable[[], Array]) -> Array | None:
    """A variant may ask for the impossible (a shape, an index, a count): it explains nothing then."""
    try:
        with np.errstate(all="ignore"):
            return run()
    except (ValueError, IndexError, OverflowError, TypeError, KeyError):
        return None


def _pick_rows(alone: int, expected: Array, found: Array) -> NDArray[np.intp] | None:
    """Some rows (indices on axis -2) with and without differences; None where rows do not stand alone."""
    if not alone or expected.ndim < 2 or expected.shape[-2] <= _ROWS:
        return None
    wrong = (expected != found).any(axis=-1)
    count = wrong.reshape(-1, expected.shape[-2]).sum(axis=0)
    order = np.argsort(-count, kind="stable")
    first = int(np.argmax(count > 0))
    picked = {first, *(int(i) for i in order[: _ROWS // 2]), *(int(i) for i in order[-(_ROWS // 2) :])}
    return np.array(sorted(picked), np.intp)


def _take_rows(call: Call, rows: NDArray[np.intp], alone: int) -> Call:
    inputs = [np.ascontiguousarray(x.take(rows, axis=-2)) if i < alone else x for i, x in enumerate(call.inputs)]
    return dataclasses.replace(call, inputs=inputs)


def explain(call: Call, found: Array, seconds: float = SECONDS, pairs: bool = True) -> Explanation:
    """Search for the mistakes with which a call gives `found` instead of its definition.

    call     the call with its golden inputs
    found    what the other side gave; shape of the output, any integer dtype
    seconds  bound on the processor time of this thread, roughly: a busy machine finds as much as an idle one
    pairs    whether two mistakes at once are tried where one does not suffice
    """
    expected = evaluate(call)
    search = _Search(call, expected, found, time.thread_time() + seconds)
    singles = [h for h in catalogue(call) if search.permuted or not _only_moves(h.variant)]
    matches = []
    for one in singles:
        if search.fits(one.variant):
            matches.append((one,))
        if len(matches) >= _MAX_MATCHES or search.late():
            break
    if matches:
        return Explanation(tuple(matches), tried=search.tried)
    partial = _partial(search, singles)
    doubles = _pairs(search, singles, partial) if pairs else ()
    complete = not search.late()
    return Explanation(doubles, () if doubles else tuple(partial[:3]), search.tried, complete)


def explain_upstream(
    call: Call, node: str, reaches: Callable[[Array], bool], seconds: float
) -> tuple[Explanation | None, int]:
    """Search for one mistake in an earlier call whose own result the other side does not show.

    reaches   whether a result of the call leads to what the other side shows later
    return    what was found, None without a match; hypotheses tried
    """
    deadline, tried = time.thread_time() + seconds, 0
    matches: list[tuple[Hypothesis, ...]] = []
    expected = evaluate(call)
    for one in catalogue(call):
        if time.thread_time() > deadline or len(matches) >= _MAX_MATCHES:
            break
        tried += 1
        result = _guarded(functools.partial(evaluate, call, one.variant))
        if result is not None and _like(result, expected) and not np.array_equal(result, expected) and reaches(result):
            matches.append((one,))
    return (Explanation(tuple(matches), tried=tried, node=node) if matches else None), tried


def _like(result: Array, expected: Array) -> bool:
    return result.shape == expected.shape and result.dtype == expected.dtype


def _only_moves(variant: Variant) -> bool:
    """Whether a variant leaves the multiset of the result's values as it is."""
    layout = variant.layout
    return layout.partition(":")[0] in _MOVING and variant == Variant(layout=layout)


def _partial(search: _Search, singles: Sequence[Hypothesis]) -> list[tuple[Hypothesis, float]]:
    """Single hypotheses that reproduce some of the wrong elements, the best first."""
    shares = []
    for one in singles:
        if search.late():
            break
        if not is_whole(one.variant) or search.found.size <= _SMALL:
            shares.append((one, search.reproduced(one.variant)))
    return sorted(((one, share) for one, share in shares if share >= _LEAST_SHARE), key=lambda item: -item[1])


def _pairs(
    search: _Search, singles: Sequence[Hypothesis], partial: Sequence[tuple[Hypothesis, float]]
) -> tuple[tuple[Hypothesis, ...], ...]:
    """Pairs that fit; those with a hypothesis that reproduces something come first."""
    rank = {one.variant: share for one, share in partial}
    usable = [h for h in singles if not is_whole(h.variant) or search.found.size <= _SMALL]
    if search.found.size <= _SMALL:  # a layout that alone explains nothing may explain the rest of another mistake
        known = {h.variant for h in usable}
        usable += [h for h in catalogue(search.call) if _only_moves(h.variant) and h.variant not in known]
    order = sorted(range(len(usable)), key=lambda i: (-rank.get(usable[i].variant, 0.0), i))
    matches: list[tuple[Hypothesis, ...]] = []
    for high in range(1, len(order)):
        for low in range(high):
            if (low % 8 == 0 and search.late()) or len(matches) >= _MAX_MATCHES:  # the clock is slower than a pair
                return tuple(matches)
            pair = (usable[order[low]], usable[order[high]])
            variant = combine(pair)
            if variant is not None and search.fits(variant):
                matches.append(pair)
    return tuple(matches)
