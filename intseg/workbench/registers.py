"""The inside of every op, step by step, and the same steps done wrong on purpose.

`steps` runs one call on a recording machine and returns every register a circuit would hold: accumulators, products
before the shift, q, r, exponentials, row sums, reciprocals, means, roots. The last one, "result", is the output of the
node. With the default `Variant` it equals the definition in every element; with another it is what an implementation
with that mistake gives, which is how `intseg diff` finds causes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from intseg import packing
from intseg.arith.recorder import Recorder
from intseg.arith.sums import wrap
from intseg.arith.variant import DEFINITION, Variant
from intseg.exam import EXAMS
from intseg.ops import OPS, Array, Call

Steps = dict[str, Array]


def steps(call: Call, variant: Variant = DEFINITION) -> Steps:
    """Every register of a call in the order of computation; the last is "result"."""
    machine, result = record(call, variant)
    return {**machine.kept, "result": result}


def evaluate(call: Call, variant: Variant = DEFINITION) -> Array:
    """The output of a call computed as `variant` says."""
    return record(call, variant)[1]


def record(call: Call, variant: Variant = DEFINITION) -> tuple[Recorder, Array]:
    """The machine that ran a call, and the output."""
    call = _changed(call, variant)
    own = next((mistake.changes for mistake in EXAMS[call.op].mistakes if mistake.name == variant.quirk), {})
    machine = Recorder(variant, own, call)
    result: Array = OPS[call.op].define(machine, *call.inputs, **call.params, **call.attrs)
    if "result" in own:
        result = own["result"](result, machine)
    return machine, transform(result, variant.layout) if variant.layout else result


def _changed(call: Call, variant: Variant) -> Call:
    """The operands and attributes as the variant has them."""
    if not variant.operands and not variant.attrs:
        return call
    how = dict(variant.operands)
    return dataclasses.replace(
        call,
        inputs=[transform(x, how[str(i)]) if str(i) in how else x for i, x in enumerate(call.inputs)],
        params={role: transform(p, how[role]) if role in how else p for role, p in call.params.items()},
        attrs={**call.attrs, **dict(variant.attrs)},
    )


# ------------------------------------------------------------------------------------------------- transformations


def transform(x: Array, how: str) -> Array:
    """An operand or a result as somebody else may have stored or read it.

    how   "write:1,0"   stored with its axes in that order, read in C order
          "read:1,0"    stored in C order, read with its axes in that order
          "flip:a"      axis a reversed           "roll:a:n"  axis a rotated by n    "shift:n"  all rotated by n
          "byteswap"    bytes of every element reversed       "words:n"  every n elements in reverse order
          "unsigned"    the same bits without sign            "zero"  "negate"  "double"
          "unsigned:b"  the same of b bits                    "highfirst:b"  packed in b bits, the high bits read first
          "plus:n"      n added                               "drop:n"  low n bits cleared
          "narrow:T"    wrapped to dtype T                    "round:n"  low n bits rounded away, within INT32
          "mod:n"       modulo n                              "atmost:n" clamped to n
          "first"       the first of the last axis for all    "tail:n"   what is over after tiles of n of it, zero
          "last:n"      zero before its last tile of n        "rows:n"   as tail, of the axis before it
          "head:n"      zero after its first tile of n        "cycle:n"  its first n again and again
          "tiled:n"     stored as tiles of n x n over the last two axes, which n divides, read in C order
          "untiled:n"   stored in C order, read as such tiles "wrap:n"   the low n bits with sign
    return  an array of the same shape
    """
    kind, _, rest = how.partition(":")
    return _TRANSFORMS[kind](x, rest)


def _axes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _write(x: Array, text: str) -> Array:
    return np.ascontiguousarray(x.transpose(_axes(text))).reshape(x.shape)


def _read(x: Array, text: str) -> Array:
    axes = _axes(text)
    stored = np.ascontiguousarray(x).reshape([x.shape[i] for i in axes])
    return stored.transpose([axes.index(i) for i in range(x.ndim)])


def _roll(x: Array, text: str) -> Array:
    axis, _, count = text.partition(":")
    return np.roll(x, int(count), axis=int(axis))


def _words(x: Array, text: str) -> Array:
    count = int(text)
    flat = np.ascontiguousarray(x).reshape(-1)
    whole = flat.size // count * count
    return np.concatenate([flat[:whole].reshape(-1, count)[:, ::-1].reshape(-1), flat[whole:]]).reshape(x.shape)


def _unsigned(x: Array, text: str) -> Array:
    if text:
        low: Array = x.astype(np.int64) % (1 << int(text))
        return low
    return np.ascontiguousarray(x).view(x.dtype.name.replace("int", "uint") if x.dtype.kind == "i" else x.dtype)


def _high_first(x: Array, text: str) -> Array:
    count, half = int(text), 1 << (int(text) - 1)
    bits = np.unpackbits(packing.pack(x, count))[: x.size * count].reshape(*x.shape, count)
    found: Array = (bits.astype(np.int64) @ (1 << np.arange(count)[::-1]) ^ half) - half
    return found


def _plus(x: Array, text: str) -> Array:
    return x.astype(np.int64) + int(text)


def _drop(x: Array, text: str) -> Array:
    return (x.astype(np.int64) >> int(text)) << int(text)


def _round(x: Array, text: str) -> Array:
    step = 1 << int(text)
    return np.minimum((x.astype(np.int64) + step // 2) // step, 2**31 // step - 1) * step


def _first(x: Array, text: str) -> Array:
    return np.broadcast_to(x[..., :1], x.shape)


def _cleared(x: Array, axis: int, start: int, stop: int) -> Array:
    result = np.array(x)
    np.moveaxis(result, axis, 0)[start:stop] = 0
    return result


def _whole_tiles(x: Array, axis: int, size: int) -> Array:
    count = x.shape[axis]
    return _cleared(x, axis, count // size * size, count)


def _last_tile(x: Array, text: str) -> Array:
    size, count = int(text), x.shape[-1]
    return _cleared(x, -1, 0, (count - 1) // size * size)


def _cycle(x: Array, text: str) -> Array:
    return x[..., np.arange(x.shape[-1]) % int(text)]


def _tiled(x: Array, text: str) -> Array:
    size, (rows, columns) = int(text), x.shape[-2:]
    tiles = x.reshape(-1, rows // size, size, columns // size, size)
    return np.ascontiguousarray(tiles.swapaxes(2, 3)).reshape(x.shape)


def _untiled(x: Array, text: str) -> Array:
    size, (rows, columns) = int(text), x.shape[-2:]
    tiles = np.ascontiguousarray(x).reshape(-1, rows // size, columns // size, size, size)
    return np.ascontiguousarray(tiles.swapaxes(2, 3)).reshape(x.shape)


_TRANSFORMS: dict[str, Callable[[Array, str], Array]] = {
    "write": _write,
    "read": _read,
    "flip": lambda x, axis: np.flip(x, int(axis)),
    "roll": _roll,
    "shift": lambda x, count: np.roll(x, int(count)),
    "byteswap": lambda x, _: x.byteswap(),
    "words": _words,
    "unsigned": _unsigned,
    "highfirst": _high_first,
    "zero": lambda x, _: np.zeros_like(x),
    "negate": lambda x, _: -x.astype(np.int64),
    "double": lambda x, _: 2 * x.astype(np.int64),
    "plus": _plus,
    "drop": _drop,
    "narrow": lambda x, dtype: x.astype(dtype),
    "round": _round,
    "mod": lambda x, count: x % int(count),
    "atmost": lambda x, most: np.minimum(x, int(most)),
    "first": _first,
    "tail": lambda x, size: _whole_tiles(x, -1, int(size)),
    "last": _last_tile,
    "head": lambda x, size: _cleared(x, -1, int(size), x.shape[-1]),
    "cycle": _cycle,
    "tiled": _tiled,
    "untiled": _untiled,
    "wrap": lambda x, bits: wrap(x.astype(np.int64), int(bits)),
    "rows": lambda x, size: _whole_tiles(x, -2, int(size)),
}
