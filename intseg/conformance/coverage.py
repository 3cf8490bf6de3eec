"""The branches of SPEC.md as a list of predicates, and which of them a call of an op reaches.

A branch is a case that an implementation may get wrong by itself: a tie of a rounding on one side of zero, a
saturation, a shift that turns negative, a divisor of zero. Every branch looks at the *facts* of a call: the
intermediates of SPEC.md, computed here again with the primitives of the definition. Nothing is compared with a fact.

Beside the ops of section 4 there are the three steps of section 7, under names of their own: `cut_windows`,
`merge_scores`, `class_map`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from intseg import arith, windows
from intseg.ops import Array, Attr
from intseg.ops.gelu import times_1_6875

Facts = Mapping[str, Any]
Reached = Callable[[Facts], Any]


@dataclass(frozen=True)
class Call:
    """A call of an op: positional inputs, parameters by role, attributes."""

    op: str
    inputs: tuple[Array, ...]
    params: Mapping[str, Array]
    attrs: Mapping[str, Attr]


@dataclass(frozen=True)
class Branch:
    """A case of SPEC.md.

    name     "op.case", unique
    section  of SPEC.md
    text     what happens there
    reached  whether the facts of a call of `op` show it, for at least one element
    """

    name: str
    section: str
    text: str
    reached: Reached

    @property
    def op(self) -> str:
        """The op whose calls can reach it."""
        return self.name.split(".")[0]


def reached(call: Call) -> list[str]:
    """Names of the branches that a call reaches, in the order of `BRANCHES`."""
    facts = FACTS[call.op](call)
    return [branch.name for branch in BRANCHES if branch.op == call.op and bool(np.any(branch.reached(facts)))]


def report(found: Iterable[tuple[str, Iterable[str]]], most: int = 5) -> list[dict[str, Any]]:
    """One entry a branch: how many vectors reach it, and the first `most` of every kind.

    found  pairs (vector, names of branches); a vector's name begins with its kind and "/"
    """
    by_branch: dict[str, list[str]] = {branch.name: [] for branch in BRANCHES}
    for vector, names in found:
        for name in names:
            by_branch[name].append(vector)
    return [
        {
            "name": branch.name,
            "section": branch.section,
            "text": branch.text,
            "count": len(by_branch[branch.name]),
            **{
                kind: [vector for vector in by_branch[branch.name] if vector.startswith(f"{kind}/")][:most]
                for kind in ("ops", "images")
            },
        }
        for branch in BRANCHES
    ]


# ---------------------------------------------------------------------------------------------------------- facts


def _wide(x: Any) -> Array:
    return np.asarray(x, dtype=np.int64)


def _rounding(prefix: str, value: Array, shift: Any) -> dict[str, Any]:
    """What RSR(value, shift) drops: its remainder, half a step, its result."""
    shift = _wide(shift)
    half = np.left_shift(np.int64(1), shift - 1)
    remainder = value - np.left_shift(np.right_shift(value, shift), shift)
    return {
        f"{prefix}value": value,
        f"{prefix}half": half,
        f"{prefix}rest": remainder,
        f"{prefix}rounded": arith.rsr(value, shift),
        f"{prefix}shift": shift,
    }


def _requantized(x: Array, mult: Any, shift: Any, out: str) -> dict[str, Any]:
    low, high = arith.INT_RANGE[out]
    return _rounding("", x * _wide(mult), shift) | {"mult": _wide(mult), "low": low, "high": high, "out": out}


def _linear(call: Call) -> Facts:
    (x,), p = call.inputs, call.params
    acc = x.astype(np.int32) @ p["weight"].T.astype(np.int32) + p["bias"]
    return _requantized(_wide(acc), p["mult"], p["shift"], str(call.attrs["out"])) | {
        "acc": acc,
        "bias": np.broadcast_to(p["bias"], acc.shape),
    }


def _matmul(call: Call) -> Facts:
    (a, b), p = call.inputs, call.params
    b = np.swapaxes(b, -1, -2) if call.attrs["transpose_b"] else b
    acc = a.astype(np.int32) @ b.astype(np.int32)
    mult, shift = (_wide(p[role])[..., None, :] for role in ("mult", "shift"))
    return _requantized(_wide(acc), mult, shift, str(call.attrs["out"])) | {
        "transpose": call.attrs["transpose_b"],
        "dtype": a.dtype.name,
        "columns": p["mult"].shape[-1],
        "width": acc.shape[-1],
        "batch": int(np.prod(a.shape[:-2])),
        "acc": acc,
    }


def _add(call: Call) -> Facts:
    facts: dict[str, Any] = {"low": -(2**15), "high": 2**15 - 1}
    for x, branch in zip(call.inputs, "ab", strict=True):
        mult = call.attrs[f"mult_{branch}"]
        facts |= _rounding(f"{branch}.", _wide(x) * mult, call.attrs[f"shift_{branch}"]) | {f"{branch}.mult": mult}
    return facts | {"sum": facts["a.rounded"] + facts["b.rounded"]}


def _norm(v: Array) -> dict[str, Any]:
    root = arith.isqrt(v)
    return {"v": v, "root": root}


def _layernorm(call: Call) -> Facts:
    x, count = _wide(call.inputs[0]), call.inputs[0].shape[-1]
    total = x.sum(axis=-1, keepdims=True)
    y = x - (2 * total + count) // (2 * count)
    facts = _norm((y * y).sum(axis=-1, keepdims=True))
    product = y * ((2**31 - 1) // np.maximum(facts["root"], 1))
    mult, bias = _wide(call.params["mult"]), call.params["bias"]
    low, high = arith.INT_RANGE[str(call.attrs["out"])]
    facts |= _rounding("", (product >> 1) * mult + bias, call.attrs["shift"])
    return facts | {
        "total": total,
        "count": count,
        "product": product,
        "mult": np.broadcast_to(mult, x.shape),
        "bias": np.broadcast_to(bias, x.shape),
        "low": low,
        "high": high,
        "out": call.attrs["out"],
    }


def _l2norm(call: Call) -> Facts:
    x = _wide(call.inputs[0])
    facts = _norm((x * x).sum(axis=-1, keepdims=True))
    product = x * ((2**31 - 1) // np.maximum(facts["root"], 1))
    return facts | _requantized(product >> 1, call.attrs["mult"], call.attrs["shift"], "int8") | {"product": product}


def _exponential(x: Array, i0: int, k: int, lam: int) -> dict[str, Any]:
    scaled = x + (x >> 1) - (x >> 4)
    clamped = np.maximum(scaled, -lam * k * i0)
    q = -clamped // i0
    r = -clamped - q * i0
    return {
        "exp.x": x,
        "exp.scaled": scaled,
        "exp.clamped": clamped,
        "exp.q": q,
        "exp.r": r,
        "exp.count": k - q,
        "exp": arith.shift_exp(x, i0, k, lam),
    }


def _division(n: Array, d: Array, k_out: int, kind: str) -> dict[str, Any]:
    divisor = np.maximum(d, 1)
    length = arith.bit_length(divisor)
    reciprocal = (2**46 - 1) // arith.shift_left(divisor, 31 - length)
    drop = length + 16 - k_out
    rest = _rounding("div.", n * reciprocal, drop) if kind == "normalized" else {}
    return rest | {
        "div.n": n,
        "div.d": np.broadcast_to(d, np.broadcast_shapes(n.shape, d.shape)),
        "div.length": length,
        "div.kind": kind,
        "div.out": k_out,
        "div": arith.int_div(n, d, k_out, kind),
    }


def _rows(x: Array) -> dict[str, Any]:
    top = x.max(axis=-1, keepdims=True)
    return {"x": x, "top": top, "at top": (x == top).sum(axis=-1), "length": x.shape[-1]}


def _shiftmax(call: Call) -> Facts:
    x, attrs = _wide(call.inputs[0]), call.attrs
    i0, k = _ints(attrs, "i0", "k_inter")
    facts = _rows(x) | _exponential(x - x.max(axis=-1, keepdims=True), i0, k, 1)
    bits = 8 if attrs["out"] == "int8" else 16
    e = facts["exp"]
    facts |= _division(e, e.sum(axis=-1, keepdims=True), bits, str(attrs["int_div_kind"]))
    return facts | {"dtype": call.inputs[0].dtype.name}


def _ints(attrs: Mapping[str, Attr], *names: str) -> list[int]:
    return [int(attrs[name]) for name in names]


def _softmax2(call: Call) -> Facts:
    x = _wide(call.inputs[0])
    bits, a1, a2 = _ints(call.attrs, "frac_bits", "a1", "a2")
    facts = _rows(x)
    t = facts["top"] - x
    q, f = t >> bits, (t & (2**bits - 1)) << (15 - bits)
    power = 32767 - ((f * (a1 - ((a2 * f) >> 15))) >> 15)
    e = np.where(q == 0, power, arith.rsr(power, np.clip(q, 1, 17)))
    facts |= _rounding("exp.", power[q >= 1], np.clip(q, 1, 17)[q >= 1])
    facts |= _division(e, e.sum(axis=-1, keepdims=True), 16, "normalized")
    return facts | {"q": q, "f": f, "bits": bits, "a2": a2, "slope": a2 * f, "area": f * (a1 - ((a2 * f) >> 15))}


def _gelu_result(call: Call, x: Array, sigma: Array) -> dict[str, Any]:
    return _requantized(x * sigma, call.attrs["mult"], call.attrs["shift"], "int8")


def _shift_gelu(call: Call) -> Facts:
    x = _wide(call.inputs[0])
    i0, k, lam, k_out = _ints(call.attrs, "i0", "k_inter", "lam", "k_out")
    p = times_1_6875(arith.EXACT, x)
    highest = p.max(axis=-1, keepdims=True)
    top = np.maximum(highest, 0)
    e = _exponential(p - top, i0, k, lam)
    facts = e | _division(
        e["exp"], e["exp"] + arith.shift_exp(-top, i0, k, lam), k_out, str(call.attrs["int_div_kind"])
    )
    return facts | _gelu_result(call, x, facts["div"]) | {"x": x, "highest": highest, "lam": lam}


def _sigmoid_gelu(call: Call) -> Facts:
    x = _wide(call.inputs[0])
    i0, k, lam, k_out = _ints(call.attrs, "i0", "k_inter", "lam", "k_out")
    p, one = times_1_6875(arith.EXACT, x), np.int64(i0 << k)
    e = _exponential(-np.abs(p), i0, k, lam)
    n = np.where(p >= 0, one, e["exp"])
    facts = e | _division(n, one + e["exp"], k_out, str(call.attrs["int_div_kind"]))
    return facts | _gelu_result(call, x, facts["div"]) | {"x": x, "lam": lam}


def _plain(call: Call) -> Facts:
    """Ops that move or look up values: shapes, attributes, inputs are all there is."""
    x = call.inputs[0]
    shapes = {f"shape{i}": y.shape for i, y in enumerate(call.inputs)}
    return {"x": x, "dtype": x.dtype.name, **shapes, **call.params, **call.attrs}


def _bilinear(call: Call) -> Facts:
    height, width, _ = call.inputs[0].shape
    factor, start, stop = _ints(call.attrs, "factor", "row_start", "row_stop")
    facts: dict[str, Any] = {"dtype": call.inputs[0].dtype.name, "factor": factor, "start": start}
    for axis, size, index in (
        ("row", height, np.arange(start, stop)),
        ("column", width, np.arange(width * factor)),
    ):
        free = 2 * index + 1 - factor
        facts |= {f"{axis}.free": free, f"{axis}.last": 2 * factor * (size - 1), f"{axis}.size": size}
    return facts | {"short": stop - start < height * factor}


def _argmax(call: Call) -> dict[str, Any]:
    x = call.inputs[0]
    ties = (x == x.max(axis=-1, keepdims=True)).sum(axis=-1)
    return {"x": x, "ties": ties, "best": x.argmax(axis=-1), "classes": x.shape[-1], "dtype": x.dtype.name}


def _cut_windows(call: Call) -> Facts:
    height, width, _ = call.inputs[0].shape
    facts: dict[str, Any] = {}
    names = ("window_height", "window_width", "stride_rows", "stride_columns", "patch")
    window_h, window_w, stride_h, stride_w, patch = _ints(call.attrs, *names)
    for axis, size, window, stride in (("row", height, window_h, stride_h), ("column", width, window_w, stride_w)):
        padded = max(-(-size // patch) * patch, window)
        starts = windows.starts(padded, window, stride)
        facts |= {f"{axis}.size": size, f"{axis}.padded": padded, f"{axis}.window": window}
        facts |= {f"{axis}.starts": np.array(starts), f"{axis}.flush": starts[-1] % stride != 0}
    return facts


def _merge_scores(call: Call) -> Facts:
    facts: dict[str, Any] = {}
    names = ("window_height", "window_width", "stride_rows", "stride_columns", "patch", "height", "width")
    window_h, window_w, stride_h, stride_w, patch, height, width = _ints(call.attrs, *names)
    for axis, size, window, stride in (("row", height, window_h, stride_h), ("column", width, window_w, stride_w)):
        padded = max(-(-size // patch) * patch, window)
        cells = np.arange(0, padded, patch)
        starts = windows.starts(padded, window, stride)
        facts[axis] = sum(((cells >= s) & (cells < s + window)).astype(int) for s in starts)
    return facts | {"dtype": call.inputs[0].dtype.name}


def _class_map(call: Call) -> Facts:
    x = call.inputs[0]
    patch, height, width = _ints(call.attrs, "patch", "height", "width")
    return _argmax(call) | {
        "upsample": call.attrs["upsample"],
        "cropped": height < x.shape[0] * patch or width < x.shape[1] * patch,
        "whole": height == x.shape[0] * patch and width == x.shape[1] * patch,
    }


FACTS: dict[str, Callable[[Call], Facts]] = {
    "quantize_input": _plain,
    "patchify": _plain,
    "linear": _linear,
    "add": _add,
    "layernorm": _layernorm,
    "matmul": _matmul,
    "shiftmax": _shiftmax,
    "softmax2": _softmax2,
    "shift_gelu": _shift_gelu,
    "sigmoid_gelu": _sigmoid_gelu,
    "gelu_table": _plain,
    "l2norm": _l2norm,
    "concat": _plain,
    "slice": _plain,
    "split_heads": _plain,
    "merge_heads": _plain,
    "to_grid": _plain,
    "upsample_nearest": _plain,
    "upsample_bilinear": _bilinear,
    "argmax": _argmax,
    "cut_windows": _cut_windows,
    "merge_scores": _merge_scores,
    "class_map": _class_map,
}

# ------------------------------------------------------------------------------------------------------- branches


def _equals(fact: str, value: Any) -> Reached:
    """The fact has the value."""
    return lambda f: f[fact] == value


def _both(first: Reached, second: Reached) -> Reached:
    """The second test, of calls that pass the first."""
    return lambda f: first(f) and second(f)


def _at_once(first: Reached, second: Reached) -> Reached:
    """Both tests by the same element."""
    return lambda f: first(f) & second(f)


def _inside(f: Facts) -> Any:
    return (f["rounded"] >= f["low"]) & (f["rounded"] <= f["high"])


def _roundings(op: str, prefix: str, keep: Reached, section: str = "2.1") -> Iterator[Branch]:
    """The cases of one RSR: ties on both sides of zero, both directions on both sides, nothing to round."""

    def branch(name: str, text: str, test: Reached) -> Branch:
        dotted = prefix.replace(".", "-")
        return Branch(f"{op}.{dotted}{name}", section, text, lambda f: keep(f) and np.any(test(f)))

    value, rest, half = (f"{prefix}{name}" for name in ("value", "rest", "half"))
    yield branch("tie-positive", "tie of a positive value", lambda f: (f[rest] == f[half]) & (f[value] > 0))
    yield branch("down", "rounded down", lambda f: (f[rest] > 0) & (f[rest] < f[half]))
    yield branch("up", "rounded up", lambda f: f[rest] > f[half])
    yield branch("exact", "nothing to round, not zero", lambda f: (f[rest] == 0) & (f[value] != 0))


def _negative_roundings(op: str, prefix: str, keep: Reached) -> Iterator[Branch]:
    dotted = prefix.replace(".", "-")
    value, rest, half = (f"{prefix}{name}" for name in ("value", "rest", "half"))
    cases: tuple[tuple[str, str, Reached], ...] = (
        ("tie-negative", "tie of a negative value: up, towards zero", lambda f: f[rest] == f[half]),
        ("down-negative", "a negative value rounded down", lambda f: (f[rest] > 0) & (f[rest] < f[half])),
        ("up-negative", "a negative value rounded up", lambda f: f[rest] > f[half]),
    )
    for name, text, test in cases:
        yield Branch(f"{op}.{dotted}{name}", "2.1", text, _both(keep, _at_once(test, lambda f: f[value] < 0)))


def _saturations(op: str, out: str) -> Iterator[Branch]:
    """Both saturations, and results that only just fit."""
    cases: tuple[tuple[str, str, Reached], ...] = (
        ("saturates-high", "above the highest value", lambda f: f["rounded"] > f["high"]),
        ("saturates-low", "below the lowest value", lambda f: f["rounded"] < f["low"]),
        ("highest", "the highest value, not saturated", lambda f: f["rounded"] == f["high"]),
        ("lowest", "the lowest value, not saturated", lambda f: f["rounded"] == f["low"]),
    )
    for name, text, test in cases:
        yield Branch(f"{op}.{out}-{name}", "2.2", f"{out}: {text}", _both(_equals("out", out), test))


def _requantizations(op: str, *outs: str) -> Iterator[Branch]:
    """Every case of the requantization at the end of an op, for every output dtype."""
    for out in outs:
        yield from _saturations(op, out)
        for branch in (
            *_roundings(op, "", _equals("out", out)),
            *_negative_roundings(op, "", _equals("out", out)),
        ):
            name = branch.name.replace(f"{op}.", f"{op}.{out}-")
            yield Branch(name, "2.3", f"{out}: {branch.text}, inside the range", _unsaturated(branch.reached))
    yield Branch(f"{op}.mult-zero", "2.3", "mult = 0", lambda f: f["mult"] == 0)
    yield Branch(f"{op}.mult-largest", "2.3", "mult = 2^31 - 1", lambda f: f["mult"] == 2**31 - 1)
    yield Branch(f"{op}.shift-one", "2.3", "shift = 1", lambda f: f["shift"] == 1)
    yield Branch(f"{op}.shift-62", "2.3", "shift = 62", lambda f: f["shift"] == 62)


def _unsaturated(test: Reached) -> Reached:
    """The same test on the elements that do not saturate."""

    def inside(f: Facts) -> Any:
        keep = np.broadcast_to(_inside(f), np.broadcast_shapes(np.shape(f["value"]), np.shape(f["rounded"])))
        names = ("value", "rest", "half", "rounded")
        return test({**f, **{name: np.broadcast_to(f[name], keep.shape)[keep] for name in names}})

    return inside


def _exponentials(op: str, negative: bool) -> Iterator[Branch]:
    """The cases of shift_exp; with lam > 1 the shift count can be negative."""
    cases: list[tuple[str, str, Reached]] = [
        ("exp-top", "x = 0", lambda f: f["exp.x"] == 0),
        ("exp-clamped", "the clamp -lam k i0 acts", lambda f: f["exp.clamped"] > f["exp.scaled"]),
        ("exp-q-zero", "q = 0, r > 0", lambda f: (f["exp.q"] == 0) & (f["exp.r"] > 0)),
        ("exp-r-zero", "q > 0, r = 0", lambda f: (f["exp.q"] > 0) & (f["exp.r"] == 0)),
        ("exp-r-odd", "odd r: the floor of -r / 2 matters", lambda f: f["exp.r"] % 2 == 1),
        ("exp-half-floor", "odd x: the floor of x / 2 matters", lambda f: f["exp.x"] % 2 == 1),
        ("exp-sixteenth-floor", "the floor of x / 16 matters", lambda f: f["exp.x"] % 16 != 0),
        ("exp-left", "k - q > 0: left shift", lambda f: f["exp.count"] > 0),
        ("exp-still", "k - q = 0", lambda f: f["exp.count"] == 0),
    ]
    if negative:
        cases += [
            ("exp-right", "k - q < 0: right shift", lambda f: (f["exp.count"] < 0) & (f["exp.count"] >= -62)),
            ("exp-right-beyond-62", "k - q < -62 acts as -62", lambda f: f["exp.count"] < -62),
            ("exp-vanishes", "the result is 0", lambda f: f["exp"] == 0),
        ]
    shifts = ("exp-left", "exp-still", "exp-right", "exp-right-beyond-62")
    yield from (Branch(f"{op}.{name}", "2.4" if name in shifts else "2.8", text, test) for name, text, test in cases)


def _divisions(op: str, kinds: tuple[str, ...], outs: tuple[int, ...]) -> Iterator[Branch]:
    """The cases of int_div that every divisor has."""
    for kind in kinds:
        for out in outs:
            yield from _quotients(op, kind, out)
    if "normalized" in kinds:
        yield from _roundings(op, "div.", lambda f: f["div.kind"] == "normalized", "2.7")
        yield Branch(
            f"{op}.div-power-of-two",
            "2.7",
            "normalized: d a power of two, the reciprocal's largest value",
            lambda f: f["div.kind"] == "normalized" and (f["div.d"] & (f["div.d"] - 1)) == 0,
        )


def _divisor_of_one(op: str) -> Branch:
    """The shortest divisor that there is after max(d, 1)."""
    is_one = _both(_equals("div.kind", "normalized"), _equals("div.length", 1))
    return Branch(f"{op}.div-one", "2.6", "normalized: a divisor of one bit", is_one)


def _quotients(op: str, kind: str, out: int) -> Iterator[Branch]:
    """Quotients of one kind of division at one width."""
    this = _both(_equals("div.kind", kind), _equals("div.out", out))
    cases: tuple[tuple[str, str, Reached], ...] = (
        ("zero", "n > 0, the quotient is 0", lambda f: (f["div.n"] > 0) & (f["div"] == 0)),
        ("between", "a quotient between", lambda f: (f["div"] > 0) & (f["div"] < 2 ** (out - 1))),
        ("full", "the quotient is 2^(k_out-1)", lambda f: f["div"] == 2 ** (out - 1)),
    )
    for name, text, test in cases:
        if (kind, name) != ("paper", "full"):  # floor((2^31 - 1) / d) d < 2^31: never full scale
            yield Branch(f"{op}.{kind}-{out}-{name}", "2.7", f"{kind}, k_out {out}: {text}", _both(this, test))


def _wide_divisions(op: str) -> Iterator[Branch]:
    """Divisors of the GELUs reach beyond 31 bits."""
    for kind, text in (("paper", "the reciprocal is 0"), ("normalized", "d shifted right")):
        yield Branch(
            f"{op}.{kind}-divisor-32-bits",
            "2.7",
            f"{kind}, d >= 2^31: {text}",
            _both(_equals("div.kind", kind), lambda f: f["div.length"] > 31),
        )
    yield Branch(
        f"{op}.normalized-divisor-31-bits",
        "2.7",
        "normalized, 2^30 <= d < 2^31: d not shifted",
        lambda f: f["div.kind"] == "normalized" and f["div.length"] == 31,
    )


def _softmax_rows(op: str, section: str) -> Iterator[Branch]:
    cases: tuple[tuple[str, str, Reached], ...] = (
        ("row-one-hot", "one survivor: the result saturates", lambda f: f["div"] >= 2 ** (f["div.out"] - 1)),
        ("row-equal", "all elements equal", lambda f: (f["at top"] == f["length"]) & (f["length"] > 1)),
        ("row-tied", "several largest elements, not all", lambda f: (f["at top"] > 1) & (f["at top"] < f["length"])),
        ("row-single", "a row of one element", lambda f: f["length"] == 1),
        ("row-negative", "all elements negative", lambda f: f["top"] < 0),
        ("row-full-range", "from the lowest to the highest of the dtype", _full_range),
    )
    yield from (Branch(f"{op}.{name}", section, text, test) for name, text, test in cases)


def _full_range(f: Facts) -> Any:
    return f["top"] - f["x"].min(axis=-1, keepdims=True) >= 255


def _roots(op: str, section: str) -> Iterator[Branch]:
    yield Branch(f"{op}.root-zero", section, "a sum of squares of 0: the root counts as 1", lambda f: f["v"] == 0)
    yield Branch(f"{op}.root-exact", "2.5", "a perfect square", lambda f: (f["v"] > 0) & (f["root"] ** 2 == f["v"]))
    yield Branch(
        f"{op}.root-below",
        "2.5",
        "one below a perfect square",
        lambda f: (f["v"] > 0) & ((f["root"] + 1) ** 2 == f["v"] + 1),
    )
    yield Branch(
        f"{op}.root-between",
        "2.5",
        "between perfect squares",
        lambda f: (f["root"] ** 2 < f["v"]) & (f["v"] + 1 < (f["root"] + 1) ** 2),
    )
    yield Branch(
        f"{op}.z-floor-negative",
        section,
        "a negative odd product: the floor of (y f) >> 1",
        lambda f: (f["product"] < 0) & (f["product"] % 2 == 1),
    )


def _choices(op: str, section: str, fact: str, *values: Any) -> Iterator[Branch]:
    for value in values:
        yield Branch(f"{op}.{fact}-{value}", section, f"{fact} = {value}", _equals(fact, value))


def _layernorm_branches() -> Iterator[Branch]:
    op, section = "layernorm", "4.5"
    yield from _roots(op, section)
    for out in ("int8", "int16"):
        yield from _saturations(op, out)
    yield from _roundings(op, "", lambda f: True)
    yield from _negative_roundings(op, "", lambda f: True)
    cases: tuple[tuple[str, str, Reached], ...] = (
        (
            "mean-tie",
            "the mean ends in 1/2: up",
            lambda f: (2 * f["total"] + f["count"]) % (2 * f["count"]) == 0 if f["count"] % 2 == 0 else False,
        ),
        (
            "mean-tie-negative",
            "a negative mean ends in 1/2: up, towards zero",
            lambda f: (
                (f["total"] < 0) & ((2 * f["total"] + f["count"]) % (2 * f["count"]) == 0)
                if f["count"] % 2 == 0
                else False
            ),
        ),
        ("mean-negative", "a negative mean, rounded", lambda f: (f["total"] < 0) & (f["total"] % f["count"] != 0)),
        ("gamma-zero", "mult = 0: beta alone", lambda f: f["mult"] == 0),
        ("gamma-negative", "mult < 0", lambda f: f["mult"] < 0),
        ("gamma-largest", "|mult| = 2^31 - 1", lambda f: np.abs(f["mult"]) == 2**31 - 1),
        ("beta-wide", "|bias| beyond 32 bits", lambda f: np.abs(f["bias"]) >= 2**31),
        ("beta-largest", "|bias| = 2^61 - 1", lambda f: np.abs(f["bias"]) == 2**61 - 1),
        ("beta-negative", "bias < 0", lambda f: f["bias"] < 0),
        ("row-single", "a row of one element", lambda f: f["count"] == 1),
        ("variance-wide", "a sum of squares beyond 32 bits", lambda f: f["v"] >= 2**32),
        ("shift-one", "shift = 1", lambda f: f["shift"] == 1),
        ("shift-62", "shift = 62", lambda f: f["shift"] == 62),
    )
    yield from (Branch(f"{op}.{name}", section, text, test) for name, text, test in cases)


def _add_branches() -> Iterator[Branch]:
    for branch in "ab":
        yield from _roundings("add", f"{branch}.", lambda f: True)
        yield from _negative_roundings("add", f"{branch}.", lambda f: True)
        yield Branch(f"add.{branch}-mult-zero", "4.4", "mult = 0", _equals(f"{branch}.mult", 0))
        yield Branch(f"add.{branch}-shift-one", "4.4", "shift = 1", _equals(f"{branch}.shift", 1))
        yield Branch(f"add.{branch}-shift-62", "4.4", "shift = 62", _equals(f"{branch}.shift", 62))
    yield Branch("add.saturates-high", "4.4", "the sum is above INT16", lambda f: f["sum"] > f["high"])
    yield Branch("add.saturates-low", "4.4", "the sum is below INT16", lambda f: f["sum"] < f["low"])
    yield Branch("add.highest", "4.4", "the sum is the highest INT16", lambda f: f["sum"] == f["high"])
    yield Branch("add.lowest", "4.4", "the sum is the lowest INT16", lambda f: f["sum"] == f["low"])
    yield Branch(
        "add.wide-branch",
        "4.4",
        "a branch beyond INT16, the sum inside: no clamp between",
        lambda f: (np.abs(f["a.rounded"]) > 2**15) & (f["sum"] <= f["high"]) & (f["sum"] >= f["low"]),
    )


def _matmul_branches() -> Iterator[Branch]:
    yield from _requantizations("matmul", "int8", "int16")
    yield from _choices("matmul", "4.6", "transpose", 0, 1)
    yield from _choices("matmul", "4.6", "dtype", "int8", "int16")
    yield Branch("matmul.scale-per-batch", "4.6", "one scale for all columns", lambda f: f["columns"] < f["width"])
    yield Branch("matmul.scale-per-column", "4.6", "a scale per column", lambda f: f["columns"] == f["width"] > 1)
    yield Branch("matmul.batch", "4.6", "more than one batch entry", lambda f: f["batch"] > 1)
    yield Branch("matmul.acc-wide", "4.6", "an accumulator beyond 24 bits", lambda f: np.abs(f["acc"]) >= 2**24)


def _softmax2_branches() -> Iterator[Branch]:
    op, section = "softmax2", "4.8"
    yield from _softmax_rows(op, section)
    yield from _divisions(op, ("normalized",), (16,))
    yield from _roundings(op, "exp.", lambda f: True, section)
    yield from _choices(op, section, "bits", 0, 15)
    for name, text, test in (
        ("q-zero", "q = 0: no rounding", lambda f: f["q"] == 0),
        ("q-one", "q = 1", lambda f: f["q"] == 1),
        ("q-fifteen", "q = 15: the last that can give 1", lambda f: f["q"] == 15),
        ("q-sixteen", "q = 16: zero", lambda f: f["q"] == 16),
        ("q-beyond", "q > 17: zero", lambda f: f["q"] > 17),
        ("line", "a2 = 0: the straight line", lambda f: f["a2"] == 0),
        ("slope-floor", "the floor of (a2 f) >> 15 matters", lambda f: f["slope"] % 2**15 != 0),
        ("area-floor", "the floor of (f slope) >> 15 matters", lambda f: f["area"] % 2**15 != 0),
        ("f-zero", "f = 0 with q > 0", lambda f: (f["f"] == 0) & (f["q"] > 0)),
    ):
        yield Branch(f"{op}.{name}", section, text, test)


def _gelu_branches(op: str, section: str) -> Iterator[Branch]:
    yield from _exponentials(op, negative=True)
    yield from _divisions(op, ("paper", "normalized"), (8, 16))
    yield from _wide_divisions(op)
    yield from _requantizations(op, "int8")
    yield Branch(f"{op}.lam-one", section, "lam = 1", lambda f: f["lam"] == 1)
    yield Branch(f"{op}.lam-above", section, "lam > 1", lambda f: f["lam"] > 1)
    for name, text, test in (
        ("negative", "x < 0", lambda f: f["x"] < 0),
        ("zero", "x = 0", lambda f: f["x"] == 0),
        ("positive", "x > 0", lambda f: f["x"] > 0),
        ("half-floor", "odd x: the floor of x / 2 in p matters", lambda f: f["x"] % 2 == 1),
        ("eighth-floor", "negative x, the floor of x / 8 in p matters", lambda f: (f["x"] < 0) & (f["x"] % 8 != 0)),
        ("sixteenth-floor", "negative x, the floor of x / 16 in p", lambda f: (f["x"] < 0) & (f["x"] % 16 != 0)),
    ):
        yield Branch(f"{op}.{name}", section, text, test)


def _shift_gelu_branches() -> Iterator[Branch]:
    yield from _gelu_branches("shift_gelu", "4.9")
    for name, text, test in (
        ("row-negative", "an all-negative row: top = 0", lambda f: f["highest"] < 0),
        ("row-zero", "the row's largest p is 0", lambda f: f["highest"] == 0),
        ("row-positive", "the row's largest p is above 0", lambda f: f["highest"] > 0),
        ("divisor-zero", "both exponentials vanish: 0 / 1", lambda f: f["div.d"] == 0),
    ):
        yield Branch(f"shift_gelu.{name}", "4.9", text, test)


def _moving_branches() -> Iterator[Branch]:
    """Ops without arithmetic."""
    yield Branch("quantize_input.pixel-0", "4.1", "pixel 0", lambda f: f["x"] == 0)
    yield Branch("quantize_input.pixel-255", "4.1", "pixel 255", lambda f: f["x"] == 255)
    yield Branch("quantize_input.channels", "4.1", "three different tables", lambda f: f["table"][0] != f["table"][2])
    yield Branch("patchify.one-pixel", "4.2", "patch = 1", lambda f: f["patch"] == 1)
    yield Branch("patchify.patch", "4.2", "patch > 1", lambda f: f["patch"] > 1)
    yield Branch(
        "patchify.grid",
        "4.2",
        "several rows and columns of patches, not square",
        lambda f: f["patch"] < f["shape0"][0] != f["shape0"][1] > f["patch"],
    )
    for value, name in ((-128, "lowest"), (0, "zero"), (127, "highest")):
        yield Branch(f"gelu_table.{name}", "4.11", f"x = {value}", _equals("x", value))
    for op, section in (("concat", "4.13"), ("slice", "4.14"), ("split_heads", "4.15"), ("merge_heads", "4.16")):
        yield from _choices(op, section, "dtype", "int8", "int16")
    yield from _choices("to_grid", "4.17", "dtype", "int8", "int16")
    yield Branch("concat.unequal", "4.13", "different lengths", lambda f: f["shape0"][0] != f["shape1"][0])
    yield Branch("slice.from-start", "4.14", "start = 0", lambda f: f["start"] == 0)
    yield Branch("slice.later", "4.14", "start > 0", lambda f: f["start"] > 0)
    yield Branch("slice.to-end", "4.14", "stop = M", lambda f: f["stop"] == f["shape0"][0])
    yield Branch("slice.earlier", "4.14", "stop < M", lambda f: f["stop"] < f["shape0"][0])
    yield from _choices("split_heads", "4.15", "parts", 1, 2, 3)
    yield from _choices("split_heads", "4.15", "part", 0, 1, 2)
    yield Branch("split_heads.heads", "4.15", "several heads", lambda f: f["heads"] > 1)
    yield Branch("merge_heads.heads", "4.16", "several heads", lambda f: f["shape0"][0] > 1)
    yield Branch("to_grid.oblong", "4.17", "height and width differ", lambda f: 1 < f["height"] != f["width"] > 1)
    yield from _choices("upsample_nearest", "4.18", "dtype", "uint8", "uint16", "int16", "int32")
    yield Branch("upsample_nearest.same", "4.18", "factor = 1", lambda f: f["factor"] == 1)
    yield Branch("upsample_nearest.larger", "4.18", "factor > 1", lambda f: f["factor"] > 1)
    yield Branch("upsample_nearest.channels", "4.18", "more than two axes", lambda f: len(f["shape0"]) > 2)


def _bilinear_branches() -> Iterator[Branch]:
    op, section = "upsample_bilinear", "4.19"
    yield from _choices(op, section, "dtype", "int16", "int32")
    yield Branch(f"{op}.same", section, "factor = 1", lambda f: f["factor"] == 1)
    yield Branch(f"{op}.largest", section, "factor = 64", lambda f: f["factor"] == 64)
    yield Branch(f"{op}.odd-factor", section, "an odd factor above 1", lambda f: f["factor"] > 1 == f["factor"] % 2)
    yield Branch(f"{op}.even-factor", section, "an even factor", lambda f: f["factor"] % 2 == 0)
    yield Branch(f"{op}.later-rows", section, "row_start > 0", lambda f: f["start"] > 0)
    yield Branch(f"{op}.part", section, "not all rows", lambda f: f["short"])
    for axis in ("row", "column"):
        yield from _bilinear_axis(op, section, axis)


def _bilinear_axis(op: str, section: str, axis: str) -> Iterator[Branch]:
    free, last = f"{axis}.free", f"{axis}.last"
    cases: tuple[tuple[str, str, Reached], ...] = (
        ("before", "before the first centre", lambda f: f[free] < 0),
        ("after", "beyond the last centre", lambda f: (f[free] > f[last]) & (f[last] > 0)),
        ("between", "between two centres", lambda f: (f[free] > 0) & (f[free] < f[last])),
        ("single", "one cell", lambda f: f[f"{axis}.size"] == 1),
    )
    for name, text, test in cases:
        yield Branch(f"{op}.{axis}-{name}", section, f"{axis}: {text}", test)


def _argmax_branches(op: str, section: str) -> Iterator[Branch]:
    yield Branch(f"{op}.tie", section, "a tie: the lowest class", lambda f: f["ties"] > 1)
    yield Branch(f"{op}.clear", section, "no tie", lambda f: f["ties"] == 1)
    yield Branch(f"{op}.first", section, "class 0", lambda f: f["best"] == 0)
    yield Branch(
        f"{op}.last", section, "the last class", lambda f: (f["best"] == f["classes"] - 1) & (f["classes"] > 1)
    )
    yield Branch(f"{op}.negative", section, "all scores negative", lambda f: (f["x"] < 0).all(axis=-1))
    yield Branch(f"{op}.classes-256", section, "256 classes: uint8", lambda f: f["classes"] == 256)
    yield Branch(f"{op}.classes-above", section, "more than 256 classes: uint16", lambda f: f["classes"] > 256)


def _window_axis(axis: str) -> Iterator[Branch]:
    """Padding and windows along an axis."""
    size, padded, window, starts, flush = (f"{axis}.{name}" for name in ("size", "padded", "window", "starts", "flush"))
    cases: tuple[tuple[str, str, Reached], ...] = (
        ("fits", "nothing to pad", lambda f: f[size] == f[padded]),
        ("to-patch", "padded to a whole patch", lambda f: f[window] < f[size] < f[padded]),
        ("to-window", "padded to a window", lambda f: f[size] < f[window]),
        ("one", "one window", lambda f: len(f[starts]) == 1),
        ("many", "more than two windows", lambda f: len(f[starts]) > 2),
        ("flush", "the last window flush with the edge", lambda f: f[flush]),
        ("even", "the last window at a multiple of the stride", lambda f: len(f[starts]) > 1 and not f[flush]),
    )
    for name, text, test in cases:
        yield Branch(f"cut_windows.{axis}-{name}", "7", f"{axis}s: {text}", test)
    for count in (1, 2, 3):
        yield Branch(f"merge_scores.{axis}-{count}", "7", f"{axis}s: a cell in {count} windows", _equals(axis, count))
    mixed = f"{axis}s: different counts, weights above 1"
    yield Branch(f"merge_scores.{axis}-mixed", "7", mixed, lambda f: len(np.unique(f[axis])) > 1)


def _image_branches() -> Iterator[Branch]:
    """Section 7."""
    yield from _window_axis("row")
    yield from _window_axis("column")
    yield from _choices("merge_scores", "7", "dtype", "int8", "int16")
    yield from _choices("class_map", "7", "upsample", "nearest", "bilinear")
    yield from _argmax_branches("class_map", "7")
    yield Branch("class_map.cropped", "7", "padding cut off", lambda f: f["cropped"])
    yield Branch("class_map.whole", "7", "nothing to cut off", lambda f: f["whole"])


def _all_branches() -> Iterator[Branch]:
    yield from _requantizations("linear", "int8", "int16")
    yield Branch("linear.bias-only", "4.3", "the products sum to 0", lambda f: f["acc"] == f["bias"])
    yield Branch("linear.acc-wide", "4.3", "an accumulator beyond 24 bits", lambda f: np.abs(f["acc"]) >= 2**24)
    yield from _add_branches()
    yield from _layernorm_branches()
    yield from _matmul_branches()
    yield from _exponentials("shiftmax", negative=False)
    yield from _divisions("shiftmax", ("paper", "normalized"), (8, 16))
    yield _divisor_of_one("shiftmax")
    yield _divisor_of_one("shift_gelu")
    yield from _softmax_rows("shiftmax", "4.7")
    yield from _choices("shiftmax", "4.7", "dtype", "int8", "int16")
    yield from _softmax2_branches()
    yield from _shift_gelu_branches()
    yield from _gelu_branches("sigmoid_gelu", "4.10")
    yield from _roots("l2norm", "4.12")
    yield from _requantizations("l2norm", "int8")
    yield from _moving_branches()
    yield from _bilinear_branches()
    yield from _argmax_branches("argmax", "4.20")
    yield from _choices("argmax", "4.20", "dtype", "int16", "int32", "int64")
    yield from _image_branches()


BRANCHES: tuple[Branch, ...] = tuple(_all_branches())
"""Every branch, by section 4's order of ops, then section 7."""
