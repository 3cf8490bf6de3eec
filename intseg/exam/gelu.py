"""shift_gelu, sigmoid_gelu, gelu_table (SPEC 4.9 to 4.11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from intseg import arith
from intseg.arith.recorder import Recorder
from intseg.ops import NARROW, RUN, Array, Attr, Call, Value
from intseg.ops.gelu import times_1_6875

from ._draw import SCALES, Draw, Drawn, between, call, edge_rows, narrowed, scale, size
from ._exam import Branch, Exam, Extremes, Known, Mistake, Operands, Unit, equals, every_int8
from ._real import Float, dyadic, gelu


def _p_1_625(p: Any, m: Recorder) -> Any:
    return p - m.floor_shift(m.widen(m.call.inputs[0]), 4)


def _unclamped(_: Any, m: Recorder) -> Any:
    return m.widen(m.row_max(m.kept["p"]))


def _unsigned_index(_: Any, m: Recorder) -> Any:
    return m.call.params["table"][m.call.inputs[0].view(np.uint8)]


_BRANCHES = (
    Branch("lam-one", "lam = 1", lambda f: f["lam"] == 1),
    Branch("lam-above", "lam > 1", lambda f: f["lam"] > 1),
    Branch("negative", "x < 0", lambda f: f["in0"] < 0),
    Branch("zero", "x = 0", lambda f: f["in0"] == 0),
    Branch("positive", "x > 0", lambda f: f["in0"] > 0),
    Branch("half-floor", "odd x: the floor of x / 2 in p matters", lambda f: f["in0"] % 2 == 1),
    Branch("eighth-floor", "negative x, the floor of x / 8 in p matters",
           lambda f: (f["in0"] < 0) & (f["in0"] % 8 != 0)),
    Branch("sixteenth-floor", "negative x, the floor of x / 16 in p",
           lambda f: (f["in0"] < 0) & (f["in0"] % 16 != 0)),
)  # fmt: skip

_ROWS = (
    Branch("row-negative", "an all-negative row: top = 0", lambda f: f["p"].max(axis=-1) < 0),
    Branch("row-zero", "the row's largest p is 0", lambda f: f["p"].max(axis=-1) == 0),
    Branch("row-positive", "the row's largest p is above 0", lambda f: f["p"].max(axis=-1) > 0),
    Branch("divisor-zero", "both exponentials vanish: 0 / 1", lambda f: f["divisor"] == 0),
    Branch(
        "aligned",
        "as printed, both exponentials would vanish; aligned, the larger has all its bits",
        lambda f: "q_0" in f and np.minimum(f["q"], f["q_0"]) > f["k_inter"] + 15,
    ),
)

_P_1_625 = Mistake("p_1_625", "1.625 x instead of 1.6875 x", {"p": _p_1_625})


def _every(at: Extremes) -> Any:
    (x,) = at.inputs
    return np.arange(x.low, x.high + 1, dtype=np.int8 if x.low >= -128 else np.int16)


def _alone(at: Extremes) -> list[Operands]:
    """Every value."""
    return [([_every(at)[:, None]], {})]


def _pairs(at: Extremes) -> list[Operands]:
    """Every value beside every other, or alone in rows of one element."""
    if at.inputs[0].shape[-1] == 1:
        return _alone(at)
    return [([np.stack(np.meshgrid(_every(at), _every(at)), axis=-1).reshape(-1, 2)], {})]


def _inputs(numbers: Draw) -> Iterator[Call]:
    """Calls of either op: they share a run of numbers."""
    every = np.arange(-128, 128, dtype=np.int8)
    for op in ("shift_gelu", "sigmoid_gelu"):
        for kind in ("paper", "normalized"):
            for k_out in (8, 16):
                for i0, k_inter, lam in ((16, 23, 6), (23, 15, 1), (5, 15, 64), (2**13, 31, 6), (1, 30, 6), (7, 0, 1)):
                    attrs: dict[str, Attr] = {"i0": i0, "k_inter": k_inter, "lam": lam, "int_div_kind": kind}
                    attrs |= {"k_out": k_out, "mult": 1, "shift": k_out - 1}
                    yield call(op, every[None], **attrs)
                    yield call(op, every[:, None], **attrs)
                    yield call(op, edge_rows("int8", 7), **attrs)
                    yield call(op, numbers.array("int8", 2, 2, 9, high=20), **attrs)
                flat: dict[str, Attr] = {**attrs, "i0": 2**13, "k_inter": 23, "lam": 1, "mult": 65, "shift": k_out + 4}
                yield call(op, every[:, None], **flat)  # sigma near 1 / 2: the lowest result is reached
                for mult, shift in (*SCALES, (3, k_out + 1), (1, k_out - 2)):
                    scaled: dict[str, Attr] = {**attrs, "i0": 16, "k_inter": 23, "lam": 6, "mult": mult, "shift": shift}
                    yield call(op, every[None, ::5], **scaled)
        for out in NARROW:
            narrow: dict[str, Attr] = {"i0": 16, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8}
            for mult, shift in ((1, 7), (1, 8), (1, 10), (3, 11), (65, 12)):
                yield call(op, every[:, None], **narrow, mult=mult, shift=shift, out=out)
                yield call(op, every[:, None], **{**narrow, "i0": 2**13, "lam": 1}, mult=mult, shift=shift, out=out)
    yield from _sharp()
    yield from _aligned(numbers)


def _aligned(numbers: Draw) -> Iterator[Call]:
    """The kind that only shift_gelu has: rows whose maximum makes both exponentials vanish, or does not."""
    every = np.arange(-128, 128, dtype=np.int8)
    for k_out in (8, 16):
        for i0, k_inter, lam in (
            (16, 23, 6),
            (8, 23, 6),
            (4, 23, 64),
            (2, 23, 6),
            (1, 31, 64),
            (2**13, 31, 1),
            (3, 0, 1),
        ):
            attrs: dict[str, Attr] = {"i0": i0, "k_inter": k_inter, "lam": lam, "int_div_kind": "aligned"}
            attrs |= {"k_out": k_out, "mult": 1, "shift": k_out - 1}
            yield call("shift_gelu", every[None], **attrs)
            yield call("shift_gelu", every[:, None], **attrs)
            yield call("shift_gelu", numbers.array("int8", 2, 2, 9, high=20), **attrs)
            yield call("shift_gelu", numbers.array("int8", 3, 9), **(attrs | {"mult": 3, "shift": k_out + 1}))


def _sharp() -> Iterator[Call]:
    """The last bit of sigma where it shows whether a divisor of 17 to 33 bits is normalized by its exact length."""
    for k_inter in (10, 14, 18, 22, 25, 26):
        for value in (-90, 83):
            p, one = times_1_6875(arith.EXACT, np.array([value], np.int64)), np.array([97 << k_inter], np.int64)
            e = arith.shift_exp(-np.abs(p), 97, k_inter, 6)
            product = value * int(arith.int_div(one if value >= 0 else e, one + e, 16, "normalized")[0])
            for below in (product - 1, product):
                attrs: dict[str, Attr] = {"i0": 97, "k_inter": k_inter, "lam": 6, "int_div_kind": "normalized"}
                for op in ("shift_gelu", "sigmoid_gelu"):
                    yield call(op, np.array([[value]], np.int8), **attrs, k_out=16, **between(below))


def _inputs_of(op: str) -> Callable[[Draw], Iterator[Call]]:
    return lambda numbers: (found for found in _inputs(numbers) if found.op == op)


def _table_inputs(numbers: Draw) -> Iterator[Call]:
    yield call("gelu_table", np.arange(-128, 128, dtype=np.int8), table=numbers.array("int8", 256))


def _draw_shift(d: Draw, x: Value | None = None) -> Drawn:
    return _draw(d, x, ("paper", "normalized", "aligned"))


def _draw(d: Draw, x: Value | None = None, kinds: Sequence[str] = ("paper", "normalized")) -> Drawn:
    k_inter, k_out = d.pick(0, 8, 15, 23, 23, 23, 31, d.within(0, 31)), d.pick(8, 16)
    i0 = d.within(1, min(2**15, 2 ** (45 - k_inter) - 1)) if d.odd() else d.within(5, 80)
    mult, shift = scale(d, 40 << (k_out - 1), 40)
    attrs: dict[str, Attr] = {"i0": i0, "k_inter": k_inter, "lam": d.pick(1, 2, 6, 6, 64)}
    attrs |= {"int_div_kind": d.pick(*kinds), "k_out": k_out, "mult": mult, "shift": shift, **narrowed(d)}
    return Drawn((x or Value("int8", (size(d), size(d))),), {}, attrs)


def _draw_table(d: Draw, x: Value | None = None) -> Drawn:
    return Drawn((x or Value("int8", (size(d), size(d))),), {"table": d.array("int8", 256)})


def _real(
    x: Float,
    *,
    i0: int,
    k_inter: int,
    lam: int,
    int_div_kind: str,
    k_out: int,
    mult: int,
    shift: int,
    out: str = "int8",
) -> Float:
    """The GELU of x / i0; i0 and sigma's 2^(k_out - 1) are folded back in by mult and shift."""
    return gelu(x / i0) * (i0 * dyadic(mult, shift - (k_out - 1), x))


def _real_table(x: Float, *, table: Array) -> Float:
    """Without scales nobody knows the function: straight lines between the entries, constant beyond the ends."""
    result: Float = np.interp(x, np.arange(-128, 128), table).astype(x.dtype)
    return result


def _factors(attrs: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    yield "the result", math.ldexp(attrs["mult"], attrs["k_out"] - 1 - attrs["shift"]), 0


_ATTRS: dict[str, Attr] = {"i0": 16, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8}
_ATTRS |= {"mult": 1, "shift": 7}


def _every_pair(**attrs: Attr) -> dict[str, Array]:
    """Every value x and every row maximum: an element depends on the rest of its row only by that.

    The 32,896 pairs with x <= row maximum; the other pairs of 256 x 256 do not exist.
    """
    values = np.arange(-128, 128).astype(np.int8)
    top, x = (grid.ravel() for grid in np.meshgrid(values, values, indexing="ij"))
    top, x = top[x <= top], x[x <= top]
    result = RUN["shift_gelu"](np.stack([x, top], axis=-1), **attrs)[:, 0]
    return {"row_max": top, "x": x, "result": np.ascontiguousarray(result)}


_SHIFT_TABLE: Known = ("shift_gelu", {}, "796cf6fd30a098421aab672a6cd991c41317f05c05f8552ece3917e455828cc4")
_SIGMOID_TABLE: Known = ("sigmoid_gelu", {}, "c13e9ab3282745bab15a2c2b02cd27b83dab3fa4929be41c8565f9ffd0c58bd5")

EXAMS = (
    Exam(
        "shift_gelu",
        digest="ea59cf4012e15797402d8abc4d2e6e7e01b5a733ce5d36dd199e1abea4bcef31",
        kind="GELU",
        approximates="ShiftGELU for GELU",
        inputs=_inputs_of("shift_gelu"),
        seed="gelu",
        draw=_draw_shift,
        real=_real,
        function=gelu,
        branches=(*_BRANCHES, *_ROWS),
        mistakes=(
            Mistake("top_may_be_negative", "row maximum not clamped to zero", {"row_max": _unclamped}),
            _P_1_625,
        ),
        worst=_pairs,
        factors=_factors,
        units=(Unit("shift_gelu", _ATTRS, _every_pair, (_SHIFT_TABLE,)),),
    ),
    Exam(
        "sigmoid_gelu",
        digest="b46dd161a23aef8df155371e8a800e7b77e765596dc41906e5de70e49c8b3c43",
        kind="GELU",
        approximates="shifted sigmoid for GELU",
        inputs=_inputs_of("sigmoid_gelu"),
        seed="gelu",
        draw=_draw,
        real=_real,
        function=gelu,
        branches=_BRANCHES,
        mistakes=(_P_1_625,),
        worst=_alone,
        factors=_factors,
        units=(Unit("sigmoid_gelu", _ATTRS, every_int8("sigmoid_gelu"), (_SIGMOID_TABLE,)),),
    ),
    Exam(
        "gelu_table",
        digest="e5c0eb7552f209209464a53c0bf8305466c4abc7738e98e3351d66b71a26e7fa",
        kind="GELU",
        approximates="table for GELU",
        inputs=_table_inputs,
        draw=_draw_table,
        real=_real_table,
        function=gelu,
        branches=tuple(
            Branch(name, f"x = {value}", equals("in0", value))
            for value, name in ((-128, "lowest"), (0, "zero"), (127, "highest"))
        ),
        mistakes=(
            Mistake("unsigned_index", "table indexed by the bits of x instead of x + 128", {"result": _unsigned_index}),
        ),
    ),
)
