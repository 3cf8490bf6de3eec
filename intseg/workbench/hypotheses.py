"""Why a node came out differently: the usual mistakes as variants of its op, and the search for the one that fits.

A hypothesis is a name and a `registers.Variant`. It explains a node when recomputing the node from the golden inputs
with this variant gives the other side's result in every element. Single mistakes come first, then pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from intseg.graph import Node
from intseg.ops import OPS, Array, Attr
from intseg.workbench.registers import DEFINITION, Variant, evaluate, transform

SECONDS = 20.0
"""Time for the search unless another is given."""

_ROWS = 6
"""Rows on which a hypothesis is tried before all."""

_SMALL = 50_000
"""Elements up to which hypotheses on whole tensors take part in pairs."""

_MAX_MATCHES = 6

_LEAST_SHARE = 0.02
"""Part of the wrong elements below which a hypothesis is not worth mentioning."""

ROWWISE = {
    "linear": 1,
    "matmul": 1,
    "add": 2,
    "layernorm": 1,
    "l2norm": 1,
    "shiftmax": 1,
    "softmax2": 1,
    "shift_gelu": 1,
    "sigmoid_gelu": 1,
}
"""Ops whose output rows (axis -2) depend only on the same rows of their first inputs, and how many inputs these are."""


@dataclass(frozen=True)
class Hypothesis:
    """A mistake that somebody may have made."""

    name: str
    variant: Variant


@dataclass(frozen=True)
class Case:
    """One call of an op. inputs, params, attrs as the op takes them; scale of the first input, where it is known."""

    op: str
    inputs: Sequence[Array]
    params: Mapping[str, Array]
    attrs: Mapping[str, Attr]
    scale: Array | None = None

    def run(self, variant: Variant = DEFINITION) -> Array:
        """The output."""
        return evaluate(self.op, self.inputs, self.params, self.attrs, variant)

    @classmethod
    def of(cls, node: Node, inputs: Sequence[Array], params: Mapping[str, Array], scale: Array | None) -> Case:
        """The call that a node of a graph is."""
        return cls(node.op, inputs, params, node.attrs, scale)


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


def combine(parts: Sequence[Hypothesis]) -> Variant | None:
    """One variant with the mistakes of all; None where two change the same thing."""
    changes: dict[str, object] = {}
    pairs: dict[str, dict[str, object]] = {"attrs": {}, "operands": {}}
    for part in parts:
        for name, value in _changes(part.variant).items():
            if name in pairs:
                items = dict(getattr(part.variant, name))
                if pairs[name].keys() & items.keys():
                    return None
                pairs[name].update(items)
            elif name in changes:
                return None
            else:
                changes[name] = value
    merged = {name: tuple(items.items()) for name, items in pairs.items()}
    return dataclasses.replace(DEFINITION, **changes, **merged)  # type: ignore[arg-type]


def _changes(variant: Variant) -> dict[str, object]:
    fields = dataclasses.fields(Variant)
    return {f.name: getattr(variant, f.name) for f in fields if getattr(variant, f.name) != getattr(DEFINITION, f.name)}


# ---------------------------------------------------------------------------------------------------- the catalogue


def catalogue(case: Case) -> list[Hypothesis]:
    """Every hypothesis that can matter for a call, the likeliest first, no variant twice."""
    found: dict[Variant, Hypothesis] = {}
    for source in (_arithmetic, _scales, _operands, _attributes, _layouts):
        for name, variant in source(case):
            if variant != DEFINITION:
                found.setdefault(variant, Hypothesis(name, variant))
    return list(found.values())


Named = Iterator[tuple[str, Variant]]

_REQUANTIZED = {"linear", "matmul", "layernorm", "l2norm", "shift_gelu", "sigmoid_gelu", "add"}
_SUMMED = {"linear", "matmul", "layernorm", "l2norm", "shiftmax", "softmax2", "add", "shift_gelu", "sigmoid_gelu"}
_SHIFTED = {"layernorm", "l2norm", "shiftmax", "shift_gelu", "sigmoid_gelu"}
_DIVIDED = {"shiftmax", "softmax2", "shift_gelu", "sigmoid_gelu"}
_NORMED = {"layernorm", "l2norm"}

_ROUNDINGS = {
    "half_even": "round half to even",
    "toward_zero": "round toward zero (truncate)",
    "floor": "round down (floor)",
    "half_away": "round half away from zero",
    "half_down": "round half down",
    "ceil": "round up (ceil)",
}


def _arithmetic(case: Case) -> Named:
    op = case.op
    if op in ROWWISE:
        for mode, name in _ROUNDINGS.items():
            yield name, Variant(rounding=mode)
        yield "the result wraps instead of saturating", Variant(overflow="wrap")
        yield "the result is clamped to a symmetric range (lowest value never used)", Variant(overflow="symmetric")
        yield "no saturation: the result is kept wider", Variant(overflow="none")
    if op in _SUMMED:
        for bits in (16, 32, 24, 20, 48):
            yield f"INT{bits} accumulator that wraps", Variant(acc_bits=bits)
            yield f"INT{bits} accumulator that saturates", Variant(acc_bits=bits, acc_overflow="saturate")
    yield from _shifts(op)
    if op in _DIVIDED:
        yield from _division(op)
    if op in _NORMED:
        yield from _norms(op)
    yield from _quirks(op)
    if op in _REQUANTIZED:
        for bits in (32, 31, 48, 40):
            yield f"the product before the shift wraps at {bits} bits", Variant(product_bits=bits)
        yield "float32 requantization", Variant(float32=True)
        yield "float32 requantization, rounded half to even", Variant(float32=True, rounding="half_even")
    if op in ROWWISE:
        yield from _double_rounding()


def _double_rounding() -> Named:
    """Two rounding shifts instead of one: the first removes 31 bits (a high multiplication), 16, all but one, ..."""
    firsts = [31, 30, 32, 16, 15, 8, *range(-1, -17, -1), *range(1, 62)]
    for first in dict.fromkeys(firsts):
        bits = f"{first} bits first" if first > 0 else f"all but {-first} bits first"
        yield f"double rounding ({bits}, then the rest)", Variant(first_shift=first)
    for first in (31, 30, 32, 16, 15):
        name = f"double rounding ({first} bits first, then the rest), half away from zero"
        yield name, Variant(first_shift=first, rounding="half_away")


def _shifts(op: str) -> Named:
    if op in _SHIFTED:
        yield "floor shifts of negative numbers done unsigned (logical, 32 bits)", Variant(shift="logical32")
        yield "floor shifts of negative numbers done unsigned (logical, 64 bits)", Variant(shift="logical64")
        yield "floor shifts of negative numbers done unsigned (logical, 16 bits)", Variant(shift="logical16")
        yield "floor shifts of negative numbers truncate toward zero", Variant(shift="truncate")
    if op in ROWWISE:
        yield "rounding shift done unsigned (logical, 64 bits)", Variant(rounding_shift="logical64")
        yield "rounding shift done unsigned (logical, 32 bits)", Variant(rounding_shift="logical32")


def _division(op: str) -> Named:
    for bits in (31, 32, 16, 15, 17, 30, 24, 33):
        for power in (False, True):
            numerator = "2^n" if power else "2^n - 1"
            yield f"{bits}-bit reciprocal ({numerator})", Variant(reciprocal_bits=bits, reciprocal_power=power)
    yield "reciprocal of 2^n instead of 2^n - 1", Variant(reciprocal_power=True)
    word = "Shiftmax" if "max" in op else "sigma"
    yield f"8-bit {word}, brought to the scale of the node", Variant(k_out=8)
    yield f"8-bit {word}, not brought to the scale of the node", Variant(k_out=8, k_out_scaled=False)


def _norms(op: str) -> Named:
    for bits in (32, 30, 33, 24, 16):
        yield f"{bits}-bit reciprocal (2^n - 1)", Variant(reciprocal_bits=bits)
        yield f"{bits}-bit reciprocal (2^n)", Variant(reciprocal_bits=bits, reciprocal_power=True)
    yield "31-bit reciprocal of 2^31 instead of 2^31 - 1", Variant(reciprocal_power=True)
    for root, name in (
        ("ceil", "square root rounded up"),
        ("nearest", "square root rounded to nearest"),
        ("newton10", "square root by ten Newton steps"),
    ):
        yield name, Variant(root=root)
    if op == "layernorm":
        for mode, name in (
            ("floor", "mean rounded down"),
            ("toward_zero", "mean rounded toward zero"),
            ("half_even", "mean rounded half to even"),
        ):
            yield name, Variant(mean=mode)


_QUIRK_NAMES = {
    "layernorm": {"no_mean": "mean not subtracted"},
    "add": {
        "clamp_branches": "branches clamped before the sum",
        "round_once": "rounded once after the sum instead of each branch",
    },
    "softmax2": {
        "one_32768": "exponential starts at 32768 instead of 32767",
        "exponential_floor": "exponential shifted without rounding",
        "quotient_floor": "quotient shifted without rounding",
        "global_max": "maximum of the whole tensor instead of the row",
    },
    "shiftmax": {
        "quotient_floor": "quotient shifted without rounding",
        "global_max": "maximum of the whole tensor instead of the row",
        "e_not_2": "exponent not multiplied by 1.4375",
    },
    "shift_gelu": {
        "quotient_floor": "quotient shifted without rounding",
        "top_may_be_negative": "row maximum not clamped to zero",
        "p_1_625": "1.625 x instead of 1.6875 x",
        "e_not_2": "exponent not multiplied by 1.4375",
    },
    "sigmoid_gelu": {
        "quotient_floor": "quotient shifted without rounding",
        "p_1_625": "1.625 x instead of 1.6875 x",
        "e_not_2": "exponent not multiplied by 1.4375",
    },
    "patchify": {
        "channel_first": "channels first inside a patch",
        "column_patches": "patches column by column",
    },
    "split_heads": {
        "heads_first": "columns in the order (head, part) instead of (part, head)",
        "interleaved": "columns in the order (element, head) instead of (head, element)",
    },
    "merge_heads": {"merge_by_reshape": "heads merged without transposition"},
    "concat": {"swapped": "inputs concatenated in the other order"},
    "gelu_table": {"unsigned_index": "table indexed by the bits of x instead of x + 128"},
    "argmax": {"last_tie": "the highest index on a tie"},
}


def _quirks(op: str) -> Named:
    for quirk, name in _QUIRK_NAMES.get(op, {}).items():
        yield name, Variant(quirk=quirk)


def _scales(case: Case) -> Named:
    """Multipliers and shifts that are off."""
    for role in ("shift", "mult"):
        if role in case.params:
            for step in (1, -1):
                yield f"{role} off by one ({step:+d})", Variant(operands=((role, f"plus:{step}"),))
    for name, value in case.attrs.items():
        if name.startswith(("shift", "mult")) and isinstance(value, int):
            for step in (1, -1):
                yield f"{name} off by one ({step:+d})", Variant(attrs=((name, value + step),))
    if "mult" in case.params:
        for bits in (16, 8, 15, 7, 24):
            yield f"mult without its low {bits} bits", Variant(operands=(("mult", f"drop:{bits}"),))
        yield "mult without sign", Variant(operands=(("mult", "unsigned"),))
    if case.op == "add":
        a, b = ({n: case.attrs[f"{n}_{branch}"] for n in ("mult", "shift")} for branch in "ab")
        swapped = tuple((f"{n}_{branch}", side[n]) for branch, side in (("a", b), ("b", a)) for n in ("mult", "shift"))
        yield "scales of the two branches swapped", Variant(attrs=swapped)


def _operands(case: Case) -> Named:
    """Parameters and inputs that were read wrongly."""
    if "bias" in case.params:
        yield "bias missing", Variant(operands=(("bias", "zero"),))
        yield "bias added twice", Variant(operands=(("bias", "double"),))
        yield "bias subtracted", Variant(operands=(("bias", "negate"),))
        yield "bias cut to INT16", Variant(operands=(("bias", "narrow:int16"),))
        yield "bias cut to INT32", Variant(operands=(("bias", "narrow:int32"),))
    operands = {str(i): (f"input {i}", x) for i, x in enumerate(case.inputs)}
    operands |= {role: (role, x) for role, x in case.params.items()}
    for key, (name, x) in operands.items():
        if x.dtype.kind == "i" and key not in ("mult", "shift"):
            yield f"{name} read without sign", Variant(operands=((key, "unsigned"),))
        if x.dtype.itemsize > 1:
            yield f"endianness of {name} swapped", Variant(operands=((key, "byteswap"),))
    for key, (name, x) in operands.items():
        for how, words in _relayouts(x):
            yield f"{name} {words}", Variant(operands=((key, how),))


def _attributes(case: Case) -> Named:
    """Attributes that are off or belong to another node."""
    attrs = case.attrs
    yield from _i0(case)
    if attrs.get("int_div_kind") in ("paper", "normalized"):
        other = "paper" if attrs["int_div_kind"] == "normalized" else "normalized"
        yield f"int_div of the kind {other!r}", Variant(attrs=(("int_div_kind", other),))
    for name in ("k_inter", "lam", "frac_bits", "start", "part", "a1", "a2"):
        value = attrs.get(name)
        for step in (1, -1):
            if isinstance(value, int) and value + step in OPS[case.op].attrs[name]:
                yield from _stepped(case, name, value + step)
    if "lam" in attrs:
        for lam in (1, 6):
            yield f"lambda {lam}", Variant(attrs=(("lam", lam),))
    if "a1" in attrs:
        yield "straight line for 2^-f", Variant(attrs=(("a1", 16384), ("a2", 0)))
        yield "quadratic for 2^-f", Variant(attrs=(("a1", 21955), ("a2", 5571)))
    if case.op == "matmul" and case.inputs[1].shape[-1] == case.inputs[1].shape[-2]:
        flipped = 1 - int(attrs["transpose_b"])
        yield "second factor transposed", Variant(attrs=(("transpose_b", flipped),))


def _stepped(case: Case, name: str, value: int) -> Named:
    if name == "start":  # the number of rows stays
        start, stop = int(case.attrs["start"]), int(case.attrs["stop"])
        if not 0 <= value <= len(case.inputs[0]) - (stop - start):
            return
        yield f"rows from {value}", Variant(attrs=(("start", value), ("stop", value + stop - start)))
    elif name != "part" or 0 <= value < int(case.attrs["parts"]):
        yield f"{name} {value} instead of {case.attrs[name]}", Variant(attrs=((name, value),))
    if name == "part" and case.attrs.get("parts") == 3:
        other = 2 - int(case.attrs["part"])
        yield f"part {other} instead of {case.attrs['part']}", Variant(attrs=(("part", other),))


def _i0(case: Case) -> Named:
    """I_0 is 1 / S made an integer: by floor, ceil or round of the scale of the input, or one beside."""
    i0 = case.attrs.get("i0")
    if not isinstance(i0, int):
        return
    if case.scale is not None and case.scale.size == 3 and int(case.scale.reshape(-1)[0]) > 0:
        mult, _, shift = (int(n) for n in case.scale.reshape(-1))
        if 0 <= shift <= 62:
            one = 1 << shift
            ways = {"floor": one // mult, "ceil": -(-one // mult), "round": (2 * one + mult) // (2 * mult)}
            for value in sorted(set(ways.values()) - {i0}):
                names = " or ".join(name for name, result in ways.items() if result == value)
                if 1 <= value <= 2**15:
                    yield f"I_0 by {names} ({value} instead of {i0})", Variant(attrs=(("i0", value),))
    if i0 > 1:
        yield f"I_0 by floor ({i0 - 1} instead of {i0})", Variant(attrs=(("i0", i0 - 1),))
    yield f"I_0 by ceil ({i0 + 1} instead of {i0})", Variant(attrs=(("i0", i0 + 1),))


def _layouts(case: Case) -> Named:
    """The result stored or read in another order. Only shape and dtype of the result matter."""
    for how, words in _relayouts(case.run()):
        yield f"result {words}", Variant(layout=how)


def _relayouts(x: Array) -> Iterator[tuple[str, str]]:
    """(transformation, words) for an operand or a result."""
    axes = tuple(range(x.ndim))
    if x.dtype.itemsize > 1:
        yield "byteswap", "with swapped endianness"
    for order in itertools.permutations(axes):
        text = ",".join(map(str, order))
        if order != axes:
            name = "transposed" if x.ndim == 2 else f"permuted to ({text})"
            yield f"write:{text}", f"{name}: stored with axes ({text}), read in C order"
            yield f"read:{text}", f"{name}: stored in C order, read with axes ({text})"
    for count in (2, 4, 8, 16, 32):
        if x.size >= count:
            yield f"words:{count}", f"reversed inside words of {count} elements"
    for axis in axes:
        if x.shape[axis] > 1:
            yield f"flip:{axis}", f"reversed along axis {axis}"
            yield f"roll:{axis}:1", f"rotated by one along axis {axis}"
            yield f"roll:{axis}:-1", f"rotated back by one along axis {axis}"
    if x.size > 1:
        yield "shift:1", "one element late"
        yield "shift:-1", "one element early"


# ------------------------------------------------------------------------------------------------------- the search


@dataclass
class _Search:
    """A call, what the definition and what the other side give, and the clock."""

    case: Case
    expected: Array
    found: Array
    deadline: float
    tried: int = 0
    rows: NDArray[np.intp] | None = field(init=False)
    small: Case = field(init=False)

    def __post_init__(self) -> None:
        self.rows = _pick_rows(self.case, self.expected, self.found)
        self.small = self.case if self.rows is None else _take_rows(self.case, self.rows)
        self.found_small = self.found if self.rows is None else self.found.take(self.rows, axis=-2)
        self.permuted = self.expected.dtype == self.found.dtype and np.array_equal(
            np.sort(self.expected, axis=None), np.sort(self.found, axis=None)
        )

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def result(self, variant: Variant) -> Array | None:
        """The whole output of a variant; None where it cannot be computed."""
        if variant == Variant(layout=variant.layout):
            return _guarded(lambda: transform(self.expected, variant.layout))
        return _guarded(lambda: self.case.run(variant))

    def fits(self, variant: Variant) -> bool:
        """Whether a variant gives what the other side has: on some rows first, then everywhere."""
        self.tried += 1
        if self.rows is not None and not _needs_all_rows(self.case.op, variant):
            few = _guarded(lambda: self.small.run(variant))
            if few is None or not np.array_equal(few, self.found_small):
                return False
        whole = self.result(variant)
        return whole is not None and np.array_equal(whole, self.found)

    def reproduced(self, variant: Variant) -> float:
        """Share of the wrong elements (of the tried rows) that a variant reproduces, less those it newly spoils."""
        case, found = (self.case, self.found) if self.rows is None else (self.small, self.found_small)
        expected = self.expected if self.rows is None else self.expected.take(self.rows, axis=-2)
        got = _guarded(lambda: case.run(variant))
        wrong = expected != found
        if got is None or got.shape != found.shape or not wrong.any():
            return 0.0
        right, spoiled = (got == found)[wrong].sum(), (got != found)[~wrong].sum()
        return max(float(right) - float(spoiled), 0.0) / float(wrong.sum())


_MOVING = ("write", "read", "flip", "roll", "shift", "words")


def is_whole(variant: Variant) -> bool:
    """Whether a variant moves elements of a tensor to other places."""
    return (
        variant.layout not in ("", "byteswap")
        or any(how.partition(":")[0] in _MOVING for _, how in variant.operands)
        or variant.quirk == "global_max"
    )


def _needs_all_rows(op: str, variant: Variant) -> bool:
    """Whether some rows alone cannot tell: elements move between the rows of the first inputs or of the result."""
    rows = {str(i) for i in range(ROWWISE.get(op, 0))}
    kept = tuple((key, how) for key, how in variant.operands if key in rows)
    return is_whole(dataclasses.replace(variant, operands=kept))


def _guarded(run: Callable[[], Array]) -> Array | None:
    """A variant may ask for the impossible (a shape, an index, a count): it explains nothing then."""
    try:
        with np.errstate(all="ignore"):
            return run()
    except (ValueError, IndexError, OverflowError, TypeError, KeyError):
        return None


def _pick_rows(case: Case, expected: Array, found: Array) -> NDArray[np.intp] | None:
    """Some rows (indices on axis -2) with and without differences; None where rows do not stand alone."""
    if case.op not in ROWWISE or expected.ndim < 2 or expected.shape[-2] <= _ROWS:
        return None
    wrong = (expected != found).any(axis=-1)
    count = wrong.reshape(-1, expected.shape[-2]).sum(axis=0)
    order = np.argsort(-count, kind="stable")
    first = int(np.argmax(count > 0))
    picked = {first, *(int(i) for i in order[: _ROWS // 2]), *(int(i) for i in order[-(_ROWS // 2) :])}
    return np.array(sorted(picked), np.intp)


def _take_rows(case: Case, rows: NDArray[np.intp]) -> Case:
    count = ROWWISE[case.op]
    inputs = [np.ascontiguousarray(x.take(rows, axis=-2)) if i < count else x for i, x in enumerate(case.inputs)]
    return dataclasses.replace(case, inputs=inputs)


def explain(case: Case, found: Array, seconds: float = SECONDS, pairs: bool = True) -> Explanation:
    """Search for the mistakes with which a call gives `found` instead of its definition.

    case     the call with its golden inputs
    found    what the other side gave; shape of the output, any integer dtype
    seconds  bound on the time, roughly
    pairs    whether two mistakes at once are tried where one does not suffice
    """
    expected = case.run()
    search = _Search(case, expected, found, time.monotonic() + seconds)
    singles = [h for h in catalogue(case) if search.permuted or not _only_moves(h.variant)]
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
    case: Case, node: str, reaches: Callable[[Array], bool], seconds: float
) -> tuple[Explanation | None, int]:
    """Search for one mistake in an earlier call whose own result the other side does not show.

    reaches   whether a result of the call leads to what the other side shows later
    return    what was found, None without a match; hypotheses tried
    """
    deadline, tried = time.monotonic() + seconds, 0
    matches: list[tuple[Hypothesis, ...]] = []
    expected = case.run()
    for one in catalogue(case):
        if time.monotonic() > deadline or len(matches) >= _MAX_MATCHES:
            break
        tried += 1
        result = _guarded(functools.partial(case.run, one.variant))
        if result is not None and _like(result, expected) and not np.array_equal(result, expected) and reaches(result):
            matches.append((one,))
    return (Explanation(tuple(matches), tried=tried, node=node) if matches else None), tried


def _like(result: Array, expected: Array) -> bool:
    return result.shape == expected.shape and result.dtype == expected.dtype


def _only_moves(variant: Variant) -> bool:
    """Whether a variant leaves the multiset of the result's values as it is."""
    layout = variant.layout
    return bool(layout) and layout != "byteswap" and variant == Variant(layout=layout)


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
        usable += [h for h in catalogue(search.case) if _only_moves(h.variant) and h.variant not in known]
    order = sorted(range(len(usable)), key=lambda i: (-rank.get(usable[i].variant, 0.0), i))
    matches: list[tuple[Hypothesis, ...]] = []
    for high in range(1, len(order)):
        for low in range(high):
            if search.late() or len(matches) >= _MAX_MATCHES:
                return tuple(matches)
            pair = (usable[order[low]], usable[order[high]])
            variant = combine(pair)
            if variant is not None and search.fits(variant):
                matches.append(pair)
    return tuple(matches)
