"""The usual mistakes as variants of a call, the likeliest first: those of the primitives it uses, of its op, of scales,
operands, attributes and layouts.

A hypothesis is a name and a `Variant`. It explains a node when recomputing the node from the golden inputs with this
variant gives the other side's result in every element.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from intseg.arith.recorder import usual_mistakes
from intseg.arith.variant import DEFINITION, Named, Variant
from intseg.exam import EXAMS
from intseg.ops import OPS, Array, Call
from intseg.workbench.registers import evaluate, record


@dataclass(frozen=True)
class Hypothesis:
    """A mistake that somebody may have made."""

    name: str
    variant: Variant


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
    return Variant(**changes, **merged)  # type: ignore[arg-type]


@functools.lru_cache(4096)
def _changes(variant: Variant) -> dict[str, object]:
    fields = dataclasses.fields(Variant)
    return {f.name: getattr(variant, f.name) for f in fields if getattr(variant, f.name) != getattr(DEFINITION, f.name)}


# ---------------------------------------------------------------------------------------------------- the catalogue


def catalogue(call: Call) -> list[Hypothesis]:
    """Every hypothesis that can matter for a call, the likeliest first, no variant twice."""
    found: dict[Variant, Hypothesis] = {}
    for source in (_arithmetic, _scales, _operands, _attributes, _own, _layouts):
        for name, variant in source(call):
            if variant != DEFINITION:
                found.setdefault(variant, Hypothesis(name, variant))
    return list(found.values())


def _arithmetic(call: Call) -> Named:
    """Mistakes of the primitives that the call uses, and of the op."""
    own = ((mistake.words, Variant(quirk=mistake.name)) for mistake in EXAMS[call.op].mistakes)
    return usual_mistakes(record(call)[0].used, own)


def _own(call: Call) -> Named:
    """Mistakes of the op that depend on the call."""
    more = EXAMS[call.op].own
    return iter(more(call) if more is not None else ())


def _scales(call: Call) -> Named:
    """Multipliers and shifts that are off."""
    for role in ("shift", "mult"):
        if role in call.params:
            for step in (1, -1):
                yield f"{role} off by one ({step:+d})", Variant(operands=((role, f"plus:{step}"),))
    for name, value in call.attrs.items():
        if name.startswith(("shift", "mult")) and isinstance(value, int):
            for step in (1, -1):
                yield f"{name} off by one ({step:+d})", Variant(attrs=((name, value + step),))
    if "mult" in call.params:
        for bits in (16, 8, 15, 7, 24):
            yield f"mult without its low {bits} bits", Variant(operands=(("mult", f"drop:{bits}"),))
        for bits, words in _ROUNDED.items():
            yield f"mult rounded to {words}", Variant(operands=(("mult", f"round:{bits}"),))
        yield "mult without sign", Variant(operands=(("mult", "unsigned"),))
        yield "mult doubled and read with sign (Q32 in INT32)", Variant(operands=(("mult", "wrap:31"),))
    yield from _cut_attributes(call)
    if "mult" in call.params and call.params["mult"].shape[-1] > 1:
        roles = [role for role in ("mult", "shift") if role in call.params]
        yield "scale of channel 0 for all channels", Variant(operands=tuple((role, "first") for role in roles))
        for role in roles:
            yield f"{role} of channel 0 for all channels", Variant(operands=((role, "first"),))
        for size in (n for n in _TILES if n < call.params["mult"].shape[-1]):
            name = f"of the first {size} channels again for every {size}"
            yield f"scales {name}", Variant(operands=tuple((role, f"cycle:{size}") for role in roles))
            if "bias" in call.params:
                yield f"biases {name}", Variant(operands=(("bias", f"cycle:{size}"),))
    if "shift" in call.params:
        yield "shift taken modulo 32", Variant(operands=(("shift", "mod:32"),))
        yield "shift at most 31", Variant(operands=(("shift", "atmost:31"),))


def _cut_attributes(call: Call) -> Named:
    """The same of multipliers and shifts that are attributes."""
    for name, value in call.attrs.items():
        if name.startswith("mult") and isinstance(value, int):
            for bits, words in _ROUNDED.items():
                step = 1 << bits
                rounded = min((value + step // 2) // step, 2**31 // step - 1) * step
                yield f"{name} rounded to {words}", Variant(attrs=((name, rounded),))
                yield f"{name} without its low {bits} bits", Variant(attrs=((name, value // step * step),))
        elif name.startswith("shift") and isinstance(value, int):
            yield f"{name} taken modulo 32", Variant(attrs=((name, value % 32),))
            yield f"{name} at most 31", Variant(attrs=((name, min(value, 31)),))


_ROUNDED = {
    16: "INT16 (its low 16 bits)",
    7: "24 bits (float32)",
    23: "8 bits (bfloat16)",
    20: "11 bits (float16)",
    15: "16 bits",
    8: "23 bits",
}
"""Low bits that are rounded away, and what a multiplier of 31 bits then is."""


def _operands(call: Call) -> Named:
    """Parameters and inputs that were read wrongly."""
    if "bias" in call.params:
        yield "bias missing", Variant(operands=(("bias", "zero"),))
        yield "bias added twice", Variant(operands=(("bias", "double"),))
        yield "bias subtracted", Variant(operands=(("bias", "negate"),))
        yield "bias cut to INT16", Variant(operands=(("bias", "narrow:int16"),))
        yield "bias cut to INT32", Variant(operands=(("bias", "narrow:int32"),))
    operands = {str(i): (f"input {i}", x) for i, x in enumerate(call.inputs)}
    operands |= {role: (role, x) for role, x in call.params.items()}
    for key, (name, x) in operands.items():
        if x.dtype.kind == "i" and key not in ("mult", "shift"):
            yield f"{name} read without sign", Variant(operands=((key, "unsigned"),))
        if x.dtype.name == "int8" and key in call.params and key != "shift":
            yield from _packings(key, name, x)
        if x.dtype.itemsize > 1:
            yield f"endianness of {name} swapped", Variant(operands=((key, "byteswap"),))
    yield from _tiles(call)
    for key, (name, x) in operands.items():
        for how, words in _relayouts(x):
            yield f"{name} {words}", Variant(operands=((key, how),))


_TILES = (16, 8, 32, 4, 64)


def _tiles(call: Call) -> Named:
    """Sums of products that go tile by tile: the last one missing, only the last one kept, all added twice."""
    if not OPS[call.op].multiplies:
        return
    depth = call.inputs[0].shape[-1]
    yield "products added twice", Variant(operands=(("0", "double"),))
    for size in _TILES:
        if depth > size:
            yield (
                f"only the last {size} terms of a sum (cleared for every tile)",
                Variant(operands=(("0", f"last:{size}"),)),
            )
            yield f"only the first {size} terms of a sum", Variant(operands=(("0", f"head:{size}"),))
            if depth % size:
                name = f"the last {depth % size} terms of a sum missing (tiles of {size})"
                yield name, Variant(operands=(("0", f"tail:{size}"),))


def _packings(key: str, name: str, x: Array) -> Named:
    """A tensor of fewer than 8 bits, packed or unpacked wrongly; how many it was stored with the values do not say."""
    size = max(int(x.max()), ~int(x.min())) if x.size else 127
    for bits in range(max(size.bit_length() + 1, 2), 8):
        yield f"{name} of {bits} bits unpacked without its sign", Variant(operands=((key, f"unsigned:{bits}"),))
        yield f"{name} of {bits} bits unpacked high bits first", Variant(operands=((key, f"highfirst:{bits}"),))


def _attributes(call: Call) -> Named:
    """Attributes that are off or belong to another node."""
    attrs = call.attrs
    yield from _i0(call)
    for other in OPS[call.op].attrs.get("int_div_kind", ()):
        if other != attrs["int_div_kind"]:
            yield f"int_div of the kind {other!r}", Variant(attrs=(("int_div_kind", other),))
    for name in ("k_inter", "lam", "frac_bits", "start", "part", "a1", "a2"):
        value = attrs.get(name)
        for step in (1, -1):
            if isinstance(value, int) and value + step in OPS[call.op].attrs[name]:
                yield from _stepped(call, name, value + step)
    if "lam" in attrs:
        for lam in (1, 6):
            yield f"lambda {lam}", Variant(attrs=(("lam", lam),))
    if "a1" in attrs:
        yield "straight line for 2^-f", Variant(attrs=(("a1", 16384), ("a2", 0)))
        yield "quadratic for 2^-f", Variant(attrs=(("a1", 21955), ("a2", 5571)))


def _stepped(call: Call, name: str, value: int) -> Named:
    if name == "start":  # the number of rows stays
        start, stop = int(call.attrs["start"]), int(call.attrs["stop"])
        if not 0 <= value <= len(call.inputs[0]) - (stop - start):
            return
        yield f"rows from {value}", Variant(attrs=(("start", value), ("stop", value + stop - start)))
    elif name != "part" or 0 <= value < int(call.attrs["parts"]):
        yield f"{name} {value} instead of {call.attrs[name]}", Variant(attrs=((name, value),))
    if name == "part" and call.attrs.get("parts") == 3:
        other = 2 - int(call.attrs["part"])
        yield f"part {other} instead of {call.attrs['part']}", Variant(attrs=(("part", other),))


def _i0(call: Call) -> Named:
    """I_0 is 1 / S made an integer: by floor, ceil or round of the scale of the input, or one beside."""
    i0 = call.attrs.get("i0")
    if not isinstance(i0, int):
        return
    if call.scale is not None and call.scale.size == 3 and int(call.scale.reshape(-1)[0]) > 0:
        mult, _, shift = (int(n) for n in call.scale.reshape(-1))
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


def _layouts(call: Call) -> Named:
    """The result stored or read in another order. Only shape and dtype of the result matter."""
    result = evaluate(call)
    for how, words in _relayouts(result):
        yield f"result {words}", Variant(layout=how)
    rows = result.shape[-2] if result.ndim > 1 else 0
    for size in _TILES:
        if rows % size:
            yield f"the last {rows % size} rows of the result missing (tiles of {size})", Variant(layout=f"rows:{size}")


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
    for size in _TILES if x.ndim > 1 else ():
        if x.shape[-1] > size and x.shape[-2] >= size and not (x.shape[-1] % size or x.shape[-2] % size):
            yield f"tiled:{size}", f"stored as tiles of {size} x {size}, read in C order"
            yield f"untiled:{size}", f"stored in C order, read as tiles of {size} x {size}"
    for axis in axes:
        if x.shape[axis] > 1:
            yield f"flip:{axis}", f"reversed along axis {axis}"
            yield f"roll:{axis}:1", f"rotated by one along axis {axis}"
            yield f"roll:{axis}:-1", f"rotated back by one along axis {axis}"
    if x.size > 1:
        yield "shift:1", "one element late"
        yield "shift:-1", "one element early"
