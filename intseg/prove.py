"""The overflow certificate: bounds of every register of a graph, for every image, by interval analysis (SPEC.md 3.1).

A bound follows from the interval of an op's inputs, the tensors and the attributes; nothing is run. It holds for the
definition (intseg/ops), for the registers of a trace (workbench/registers.py) and for sums that only kernels hold:
partial sums in any order, with the +128 of unsigned dot products, in lanes of 16 and 32 bits. Loading a model proves
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from intseg import windows
from intseg.arith import EXACT, INT_RANGE
from intseg.errors import IntsegError, ModelError
from intseg.graph import IMAGE, Graph, ModelInfo, Node
from intseg.ops import RUN, Array
from intseg.ops.gelu import times_1_6875
from intseg.ops.shiftmax import probability_row_sum
from intseg.workbench.registers import REGISTERS, steps

WINDOWS, LABELS = "(windows)", "(labels)"
"""What follows the graph (SPEC.md 7), under names that no node can have."""

_RANGE = INT_RANGE | {"uint32": (0, 2**32 - 1)}
_PAD = 63
"""Columns that a kernel may add to a row to fill its vectors, at most (kernels/_isa.py)."""


@dataclass(frozen=True)
class Interval:
    """Every element of a tensor lies in [low, high]; a row of a non-negative one sums to at most row_sum."""

    low: int
    high: int
    row_sum: int | None = None

    def hull(self, *others: int) -> Interval:
        """The smallest interval with these values in it as well."""
        return Interval(min(self.low, *others), max(self.high, *others))


@dataclass(frozen=True)
class Register:
    """A proved bound: low <= value <= high, in a register of this dtype.

    extra    not a register of a trace: a sum on the way to one, or one that only kernels hold
    witness  the value of largest size that a constructed input gives; None where none was run
    """

    name: str
    low: int
    high: int
    dtype: str
    extra: bool = False
    witness: int | None = None

    @property
    def bound(self) -> int:
        """The end of larger size."""
        return self.high if self.high >= -self.low else self.low

    @property
    def width(self) -> int:
        """Bits of the register."""
        return int(self.dtype.lstrip("uint"))

    @property
    def bits(self) -> int:
        """Bits that hold the whole interval."""
        if self.dtype.startswith("u"):
            return self.high.bit_length()
        return max((end if end >= 0 else ~end).bit_length() for end in (self.low, self.high)) + 1

    @property
    def headroom(self) -> int:
        """Bits to spare."""
        return self.width - self.bits


@dataclass(frozen=True)
class NodeProof:
    """The registers of a node in the order of computation, and what is known of its output."""

    name: str
    op: str
    registers: tuple[Register, ...]
    output: Interval


def prove(graph: Graph, witnesses: bool = False) -> tuple[NodeProof, ...]:
    """Bounds of every register of a valid graph (`intseg.graph.validate`), and of the steps from scores to labels.

    witnesses  run constructed inputs through the ops too, to see how near the bounds real values come
    Raises ModelError naming node, register, bound and width when a register is not proved to hold its values.
    """
    shapes: dict[str, tuple[int, ...]] = {IMAGE: (*graph.info.window, 3)}
    known: dict[str, Interval] = {IMAGE: Interval(0, 255)}
    proofs: dict[str, NodeProof] = {}
    for node in graph.nodes:
        call = _Call(
            node.name,
            node.op,
            [known[name] if name in known else _constant(graph.tensors[name]) for name in node.inputs],
            [shapes[name] if name in shapes else graph.tensors[name].shape for name in node.inputs],
            {role: graph.tensors[name] for role, name in node.params.items()},
            node.attrs,
        )
        known[node.name] = _PROOFS[node.op](call)
        shapes[node.name] = node.shape
        rows = _ROWS.get(node.op) if witnesses else None
        if rows is not None:
            call.witness(rows(call, [_softmax_of(name, graph, proofs, known) for name in node.inputs]))
        proofs[node.name] = NodeProof(node.name, node.op, tuple(call.registers), known[node.name])
    after = [_windows(graph.info, known[graph.output], witnesses)]
    if graph.info.upsample == "bilinear":
        after.append(_labels(graph.info, after[0].output, witnesses))
    return (*proofs.values(), *after)


def _constant(tensor: Array) -> Interval:
    return Interval(int(tensor.min()), int(tensor.max()))


class _Call:
    """One node while it is proved: what goes in, and the registers so far."""

    def __init__(
        self,
        name: str,
        op: str,
        inputs: Sequence[Interval],
        shapes: Sequence[tuple[int, ...]],
        params: Mapping[str, Array],
        attrs: Mapping[str, Any],
    ) -> None:
        self.name, self.op, self.inputs, self.shapes = name, op, inputs, shapes
        self.params, self.attrs = params, attrs
        self.registers: list[Register] = []
        self.worst: dict[str, set[int]] = {}

    def put(self, name: str, low: Any, high: Any, dtype: str = "", extra: bool = False) -> None:
        """Prove one register; low and high are integers or arrays with an element per channel.

        dtype   that of REGISTERS if not given
        Raises ModelError.
        """
        if isinstance(high, np.ndarray):
            self.worst[name] = {int(low.argmin()), int(high.argmax())}
            low, high = int(low.min()), int(high.max())
        dtype = dtype or REGISTERS[self.op][name]
        lowest, highest = _RANGE[dtype]
        for value in (low, high):
            if not lowest <= value <= highest:
                raise ModelError(
                    f"node {self.name!r} ({self.op}): register {name} may reach {value}, expected {dtype}, "
                    f"[{lowest}, {highest}]: requantize the weights"
                )
        self.registers.append(Register(name, int(low), int(high), dtype, extra))

    def put_extra(self, name: str, low: Any, high: Any, dtype: str = "int64") -> None:
        """Prove a register that no trace has."""
        self.put(name, low, high, dtype, extra=True)

    def saturated(self, low: Any, high: Any, dtype: str, row_sum: int | None = None) -> Interval:
        """Prove the result, which a saturation narrows to dtype."""
        lowest, highest = _RANGE[dtype]
        low, high = (min(max(int(v), lowest), highest) for v in (np.min(low), np.max(high)))
        self.put("result", low, high, dtype)
        return Interval(low, high, row_sum)

    def witness(self, calls: Sequence[tuple[Sequence[Array], Mapping[str, Array]]]) -> None:
        """Run inputs with their params and keep, for every register, the value nearest to its bound."""
        found = [steps(self.op, inputs, params, self.attrs) for inputs, params in calls]
        for (inputs, params), seen in zip(calls, found, strict=True):
            if not np.array_equal(seen["result"], RUN[self.op](*inputs, **params, **self.attrs)):
                raise IntsegError(f"node {self.name!r}: registers and definition differ; please report this model")
        self.registers = [
            _reached(self.name, r, [seen[r.name] for seen in found]) if r.name in found[0] and not r.extra else r
            for r in self.registers
        ]


def _reached(node: str, register: Register, seen: Sequence[Array]) -> Register:
    """The register with its witness. Raises IntsegError if a value lies outside the bound, which would be a bug."""
    low, high = min(int(x.min()) for x in seen), max(int(x.max()) for x in seen)
    if low < register.low or high > register.high:
        raise IntsegError(
            f"node {node!r}: register {register.name} has values in [{low}, {high}], "
            f"proved [{register.low}, {register.high}]; please report this model"
        )
    return replace(register, witness=high if high >= -low else low)


# ------------------------------------------------------------------------------------------------------ arithmetic


def _exact(a: Any, b: Any, limit: int) -> tuple[Any, Any]:
    """Operands as INT64 if a result of this size fits, else as Python integers."""
    kind: Any = np.int64 if limit < 2**63 else object
    return np.asarray(a).astype(kind), np.asarray(b).astype(kind)


def _size(a: Any) -> int:
    return max(abs(int(np.min(a))), abs(int(np.max(a))))


def _times(a: Any, b: Any) -> Any:
    """a * b without wrapping."""
    left, right = _exact(a, b, _size(a) * _size(b))
    return left * right


def _plus(a: Any, b: Any) -> Any:
    """a + b without wrapping."""
    left, right = _exact(a, b, _size(a) + _size(b))
    return left + right


def _product(a: Interval, b: Interval) -> Interval:
    """Products of two values."""
    corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Interval(min(corners), max(corners))


def _scaled(low: Any, high: Any, factor: Array) -> tuple[Any, Any]:
    """[low, high] times a factor of any sign, per channel."""
    ends = _times(low, factor), _times(high, factor)
    return np.minimum(*ends), np.maximum(*ends)


def _round(call: _Call, names: tuple[str, str], low: Any, high: Any, shift: Any) -> tuple[Any, Any]:
    """RSR: the sum with its rounding constant, then the shift."""
    shift = np.asarray(shift, dtype=np.int64)
    half = np.left_shift(np.int64(1), shift - 1)
    call.put_extra(names[0], low, _plus(high, half))
    low, high = (np.right_shift(_plus(x, half), shift) for x in (low, high))
    call.put(names[1], low, high)
    return low, high


def _requantize(call: _Call, low: Any, high: Any, mult: Any, shift: Any, dtype: str) -> Interval:
    """SPEC 2.3."""
    low, high = _scaled(low, high, np.atleast_1d(np.asarray(mult, dtype=np.int64)))
    call.put("product", low, high)
    return call.saturated(*_round(call, ("rounding", "rounded"), low, high, shift), dtype)


def _shift_left(x: int, n: int) -> int:
    return x << n if n >= 0 else x >> -n


def _stretched(x: int) -> int:
    """1.4375 x of ShiftExp; it never falls where x rises: one step adds 1, 0 or 1, and takes 0 or 1."""
    return x + (x >> 1) - (x >> 4)


def _shift_exp(call: _Call, x: Interval, i0: int, k: int, lam: int) -> Interval:
    """SPEC 2.8 for x <= 0."""
    low, high = _stretched(x.low), _stretched(x.high)
    call.put_extra("stretched", low, high)
    low, high = (max(v, -lam * k * i0) for v in (low, high))
    call.put("exponent", low, high)
    q = Interval(-high // i0, -low // i0)
    call.put("q", q.low, q.high)
    rest = min(i0 - 1, -low)
    call.put("r", 0, rest)
    base = (-rest >> 1) + i0
    call.put("i_b", base, i0)
    result = Interval(_shift_left(base, k - q.high), _shift_left(i0, k - q.low))
    call.put("exponential", result.low, result.high)
    return result


def _divide(call: _Call, n: Interval, d: Interval, k_out: int, kind: str, name: str) -> Interval:
    """SPEC 2.7 for 0 <= n <= d."""
    low, high = max(d.low, 1), max(d.high, 1)
    if kind == "paper":
        top = 2**31 - 1
        call.put("reciprocal", top // high, top // low)
        # reciprocal <= top / d and n <= d
        call.put("scaled", top // high * n.low, min(top // low * n.high, top))
        result = Interval(top // high * n.low >> (32 - k_out), min(top // low * n.high, top) >> (32 - k_out))
    else:
        # The divisor is shifted into [2^30, 2^31).
        call.put("reciprocal", 2**15, 2**16 - 1)
        call.put("scaled", 2**15 * n.low, (2**16 - 1) * n.high)
        call.put_extra("scaled_rounding", 2**15 * n.low, (2**16 - 1) * n.high + (1 << (high.bit_length() + 15 - k_out)))
        result = Interval(0, 2 ** (k_out - 1))
    call.put(name, result.low, result.high)
    return result


# ------------------------------------------------------------------------------------------------------------- ops


def weight_sums(weight: Array) -> tuple[Array, Array]:
    """Per output channel the sums of the positive and of the negative weights: int64 [N] each, for int8 [N, K]."""
    size = np.abs(weight.astype(np.int16)).sum(axis=1, dtype=np.int32).astype(np.int64)  # at most 2^16 * 2^7
    total = weight.sum(axis=1, dtype=np.int32).astype(np.int64)
    return (total + size) // 2, (total - size) // 2


def _linear(call: _Call) -> Interval:
    (x,), params = call.inputs, call.params
    positive, negative = weight_sums(params["weight"])
    bias = params["bias"].astype(np.int64)

    def dot(x: Interval) -> tuple[Array, Array]:
        return positive * x.low + negative * x.high, positive * x.high + negative * x.low

    low, high = dot(x)
    call.put("dot", low, high)
    call.put("acc", low + bias, high + bias)
    # A term that is not added yet counts as x = 0, or as x = -128 where a kernel starts at bias - 128 sum w.
    partial = dot(x.hull(0, -128))
    call.put_extra("partial", partial[0] + bias, partial[1] + bias, "int32")
    return _requantize(call, low + bias, high + bias, params["mult"], params["shift"], call.attrs["out"])


def _matmul(call: _Call) -> Interval:
    a, b = call.inputs
    depth, row_sum = call.shapes[0][-1], a.row_sum
    split = row_sum is not None and a.high > 127

    def total(a: Interval) -> Interval:
        product = _product(a, b)
        return Interval(depth * product.low, depth * product.high)

    acc = total(a)
    # As in linear; INT16 is multiplied as it is.
    partial = total(a.hull(0, -128)).hull(0)
    if row_sum is not None:
        # 0 <= a: row_sum times the extremes of b and 0.
        acc = Interval(max(acc.low, row_sum * min(b.low, 0)), min(acc.high, row_sum * max(b.high, 0)))
        # INT16 probabilities go in as bytes, low and 2^8 times high, neither above the whole.
        partial = acc.hull(0) if split else partial
    call.put("acc", acc.low, acc.high)
    call.put_extra("partial", partial.low, partial.high, "int32")
    shift = call.params["shift"].reshape(-1)
    return _requantize(call, acc.low, acc.high, call.params["mult"].reshape(-1), shift, call.attrs["out"])


def _add(call: _Call) -> Interval:
    attrs = call.attrs
    branches = dict(zip("ab", call.inputs, strict=True))
    products = {n: (x.low * attrs[f"mult_{n}"], x.high * attrs[f"mult_{n}"]) for n, x in branches.items()}
    for n, ends in products.items():
        call.put(f"product_{n}", *ends)
    low = high = 0
    for n, ends in products.items():
        branch = [int(v) for v in _round(call, (f"rounding_{n}", f"branch_{n}"), *ends, attrs[f"shift_{n}"])]
        low, high = low + branch[0], high + branch[1]
    call.put("sum", low, high)
    # Kernels keep the low 32 bits of branches and sum.
    call.put_extra("lane_sum", low, high, "int32")
    return call.saturated(low, high, "int16")


def _normalize(call: _Call, y: Interval, variance: int) -> Interval:
    """From the sum of squares to z = (y f) >> 1, for |y| <= isqrt(variance)."""
    top = 2**31 - 1
    call.put("variance", 0, variance)
    root = max(math.isqrt(variance), 1)
    call.put("isqrt", 1, root)
    call.put("reciprocal", top // root, top)
    low, high = max(min(y.low, 0) * top, -top), min(max(y.high, 0) * top, top)
    call.put_extra("scaled", low, high)
    call.put("normalized", low >> 1, high >> 1)
    return Interval(low >> 1, high >> 1)


def _layernorm(call: _Call) -> Interval:
    (x,), count = call.inputs, call.shapes[0][-1]
    total = Interval(count * x.low, count * x.high)
    call.put("row_sum", total.low, total.high)
    moved = total.hull(0)
    call.put_extra("partial", moved.low, moved.high, "int32")
    call.put_extra("row_sum_rounding", 2 * total.low + count, 2 * total.high + count)
    mean = Interval(*((2 * v + count) // (2 * count) for v in (total.low, total.high)))
    call.put("mean", mean.low, mean.high)
    y = Interval(x.low - mean.high, x.high - mean.low)
    call.put("centered", y.low, y.high)
    # Kernels sum squares, pairs of them in 32 bits without sign, and correct by the mean.
    square = max(x.low * x.low, x.high * x.high)
    call.put_extra("pair", 0, 2 * square, "uint32")
    call.put_extra("squares", 0, count * square)
    cross = 2 * _size((mean.low, mean.high)) * _size((total.low, total.high))
    call.put_extra("moments", -cross, count * square + cross)
    # About the middle of the interval the squares are largest; the rounding of the mean adds at most count / 4.
    z = _normalize(call, y, count * ((x.high - x.low) ** 2 + 1) // 4)
    low, high = _scaled(z.low, z.high, call.params["mult"])
    call.put("product", low, high)
    bias = call.params["bias"]
    low, high = _plus(low, bias), _plus(high, bias)
    call.put("biased", low, high)
    shift = np.full(low.shape, call.attrs["shift"], np.int64)
    return call.saturated(*_round(call, ("rounding", "rounded"), low, high, shift), call.attrs["out"])


def _l2norm(call: _Call) -> Interval:
    (x,), attrs = call.inputs, call.attrs
    z = _normalize(call, x, call.shapes[0][-1] * max(x.low * x.low, x.high * x.high))
    return _requantize(call, z.low, z.high, attrs["mult"], attrs["shift"], "int8")


_BITS = {"int8": 8, "int16": 16}


def _shiftmax(call: _Call) -> Interval:
    (x,), attrs, count = call.inputs, call.attrs, call.shapes[0][-1]
    call.put("row_max", x.low, x.high)
    e = _shift_exp(call, Interval(x.low - x.high, 0), attrs["i0"], attrs["k_inter"], 1)
    call.put_extra("power", e.low, e.high, "uint16")
    # The largest element has the full power.
    row_sum = Interval(e.high + (count - 1) * e.low, count * e.high)
    call.put("row_sum", row_sum.low, row_sum.high)
    bits = _BITS[attrs["out"]]
    p = _divide(call, e, row_sum, bits, attrs["int_div_kind"], "quotient")
    return call.saturated(p.low, p.high, attrs["out"], probability_row_sum(count, attrs["out"]))


def _softmax2(call: _Call) -> Interval:
    (x,), attrs, count = call.inputs, call.attrs, call.shapes[0][-1]
    bits, spread = attrs["frac_bits"], x.high - x.low
    call.put("row_max", x.low, x.high)
    call.put("t", 0, spread)
    call.put_extra("t_lane", 0, spread, "uint16")
    call.put("q", 0, spread >> bits)
    f = min(spread, 2**bits - 1) << (15 - bits)
    call.put("f", 0, f)
    call.put_extra("a2_f", 0, attrs["a2"] * f, "uint32")
    slope = attrs["a1"] - (attrs["a2"] * f >> 15)
    call.put_extra("slope", slope, attrs["a1"], "uint16")
    call.put_extra("f_slope", 0, f * attrs["a1"], "uint32")
    call.put("i_b", 32767 - (f * attrs["a1"] >> 15), 32767)
    call.put_extra("twice", 0, 2 * 32767, "uint16")
    call.put_extra("e_rounding", 0, 32767 + 2**16)
    call.put("exponential", 0, 32767)
    call.put("row_sum", 32767, count * 32767)
    call.put_extra("padded_sum", 0, (count + _PAD) * 32767, "uint32")
    p = _divide(call, Interval(0, 32767), Interval(32767, count * 32767), 16, "normalized", "quotient")
    return call.saturated(p.low, p.high, "int16", probability_row_sum(count, "int16"))


def _scaled_x(call: _Call) -> Interval:
    """p = 1.6875 x by floor shifts, which never falls where x rises."""
    x = call.inputs[0]
    low, high = (int(times_1_6875(EXACT, np.int64(v))) for v in (x.low, x.high))
    call.put("p", low, high)
    return Interval(low, high)


def _shift_gelu(call: _Call) -> Interval:
    i0, k, lam = (call.attrs[name] for name in ("i0", "k_inter", "lam"))
    p = _scaled_x(call)
    top = Interval(max(p.low, 0), max(p.high, 0))
    call.put("row_max", top.low, top.high)
    e = _shift_exp(call, Interval(p.low - top.high, min(p.high, 0)), i0, k, lam)
    zero = _Call(call.name, call.op, (), (), {}, {})
    e0 = _shift_exp(zero, Interval(-top.high, -top.low), i0, k, lam)
    call.put("exponential_0", e0.low, e0.high)
    d = Interval(e.low + e0.low, e.high + e0.high)
    call.put("divisor", d.low, d.high)
    return _gelu_end(call, e, d)


def _sigmoid_gelu(call: _Call) -> Interval:
    i0, k, lam = (call.attrs[name] for name in ("i0", "k_inter", "lam"))
    p = _scaled_x(call)
    nearest = 0 if p.low <= 0 <= p.high else min(abs(p.low), abs(p.high))
    e = _shift_exp(call, Interval(-max(abs(p.low), abs(p.high)), -nearest), i0, k, lam)
    one = i0 << k
    d = Interval(one + e.low, one + e.high)
    call.put("divisor", d.low, d.high)
    return _gelu_end(call, Interval(min(one, e.low), one), d)


def _gelu_end(call: _Call, n: Interval, d: Interval) -> Interval:
    attrs = call.attrs
    sigma = _divide(call, n, d, attrs["k_out"], attrs["int_div_kind"], "sigma")
    product = _product(call.inputs[0], sigma)
    call.put("x_sigma", product.low, product.high)
    return _requantize(call, product.low, product.high, attrs["mult"], attrs["shift"], "int8")


def _gelu_table(call: _Call) -> Interval:
    x = call.inputs[0]
    return _looked_up(call, call.params["table"][x.low + 128 : x.high + 129])


def _quantize_input(call: _Call) -> Interval:
    x = call.inputs[0]
    return _looked_up(call, call.params["table"][:, x.low : x.high + 1])


def _looked_up(call: _Call, values: Array) -> Interval:
    found = _constant(values)
    call.put("result", found.low, found.high, "int8")
    call.registers[-1] = replace(call.registers[-1], witness=call.registers[-1].bound)
    return found


def _moved(call: _Call) -> Interval:
    """Ops that move values: no register."""
    first, *rest = call.inputs
    return first.hull(first.low, *(v for x in rest for v in (x.low, x.high)))


def _upsample_bilinear(call: _Call) -> Interval:
    return _interpolate(call, call.inputs[0], call.attrs["factor"])


def _interpolate(call: _Call, x: Interval, factor: int) -> Interval:
    """SPEC 4.19; the weights of an axis sum to 2 factor."""
    sides = x.hull(0)
    call.put_extra("tap", 2 * factor * sides.low, 2 * factor * sides.high)
    call.put_extra("rows", 2 * factor * x.low, 2 * factor * x.high)
    call.put_extra("column_tap", 4 * factor**2 * sides.low, 4 * factor**2 * sides.high)
    result = Interval(4 * factor**2 * x.low, 4 * factor**2 * x.high)
    call.put("result", result.low, result.high, "int64")
    return result


def _argmax(call: _Call) -> Interval:
    classes = call.shapes[0][-1]
    call.put("result", 0, classes - 1, "uint8" if classes <= 256 else "uint16")
    return Interval(0, classes - 1)


_PROOFS: dict[str, Callable[[_Call], Interval]] = {
    "quantize_input": _quantize_input,
    "patchify": _moved,
    "linear": _linear,
    "add": _add,
    "layernorm": _layernorm,
    "matmul": _matmul,
    "shiftmax": _shiftmax,
    "softmax2": _softmax2,
    "shift_gelu": _shift_gelu,
    "sigmoid_gelu": _sigmoid_gelu,
    "gelu_table": _gelu_table,
    "l2norm": _l2norm,
    "concat": _moved,
    "slice": _moved,
    "split_heads": _moved,
    "merge_heads": _moved,
    "to_grid": _moved,
    "upsample_nearest": _moved,
    "upsample_bilinear": _upsample_bilinear,
    "argmax": _argmax,
}

# ------------------------------------------------------------------------------------------- from scores to labels


def _windows(info: ModelInfo, score: Interval, witnesses: bool) -> NodeProof:
    """The sum of overlapping windows (SPEC 7), for images of any size."""
    call = _Call(WINDOWS, "merge_scores", [score], [], {}, {})
    for name, low, high, dtype in windows.bounds(info, score.low, score.high):
        call.put(name, low, high, dtype, extra=name != "merged")
    result = Interval(call.registers[-1].low, call.registers[-1].high)
    if witnesses:
        seen = [merged for v in (score.low, score.high) for merged in windows.constant_merges(info, v)]
        call.registers[-1] = _reached(WINDOWS, call.registers[-1], seen)
    return NodeProof(WINDOWS, call.op, tuple(call.registers), result)


def _labels(info: ModelInfo, merged: Interval, witnesses: bool) -> NodeProof:
    """Bilinear scores of pixels."""
    call = _Call(LABELS, "upsample_bilinear", [merged], [], {}, {})
    factor, size = info.patch, _size((merged.low, merged.high))
    result = _interpolate(call, merged, factor)
    # The kernel walks along a row: 2 f near + (far - near) u + 2 i (far - near), with u < 2 f, i < f, |near| <= 2 f S.
    call.put_extra("walk", -20 * factor**2 * size, 20 * factor**2 * size)
    if witnesses:
        cells = [np.full((1, 1, 1), v, np.int32) for v in (merged.low, merged.high)]
        seen = [RUN["upsample_bilinear"](x, factor=factor, row_start=0, row_stop=factor) for x in cells]
        call.registers = [_reached(LABELS, r, seen) if r.name == "result" else r for r in call.registers]
    return NodeProof(LABELS, call.op, tuple(call.registers), result)


# ------------------------------------------------------------------------------------------------------- witnesses

Calls = list[tuple[Sequence[Array], Mapping[str, Array]]]
"""Inputs and params of calls of an op."""

Softmax = tuple[Node, Interval] | None
"""The softmax that gives an input, and the interval of its logits."""


def _softmax_of(name: str, graph: Graph, proofs: Mapping[str, NodeProof], known: Mapping[str, Interval]) -> Softmax:
    if name not in proofs or known[name].row_sum is None:
        return None
    node = graph.node(name)
    source = node.inputs[0]
    return node, known[source] if source in known else _constant(graph.tensors[source])


def _linear_rows(call: _Call, _: Sequence[Softmax]) -> Calls:
    """For the worst channels, every input at the end of its interval that the sign of its weight asks for."""
    (x,) = call.inputs
    channels = sorted(set.union(*(call.worst[name] for name in ("dot", "acc", "product", "rounded"))))
    params = {role: tensor[channels] for role, tensor in call.params.items()}
    up = np.where(params["weight"] > 0, x.high, x.low)
    down = np.where(params["weight"] > 0, x.low, x.high)
    return [([np.concatenate([up, down]).astype(np.int8)], params)]


def _matmul_rows(call: _Call, softmax: Sequence[Softmax]) -> Calls:
    """Constant rows times constant columns; rows of probabilities come from the softmax."""
    a, b = call.inputs
    depth = call.shapes[0][-1]
    rows = np.array([[a.low] * depth, [a.high] * depth], np.int16 if a.high > 127 or a.low < -128 else np.int8)
    if softmax[0] is not None:
        node, logits = softmax[0]
        rows = RUN[node.op](_shapes_of(logits, depth, np.int16), **node.attrs)
    columns = np.array([[b.low] * depth, [b.high] * depth], np.int8)
    right = columns if call.attrs["transpose_b"] else columns.T
    calls: Calls = []
    for index in sorted(call.worst["product"] | call.worst["rounded"]):
        params = {role: tensor.reshape(-1)[index : index + 1] for role, tensor in call.params.items()}
        calls.append(([rows, right], params))
    return calls


def _shapes_of(x: Interval, count: int, dtype: Any, spots: Sequence[int] = (0,)) -> Array:
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


def _row_rows(call: _Call, _: Sequence[Softmax]) -> Calls:
    """Rows of an op along the last axis; apart are the elements that its worst channels see."""
    spots = set().union(*call.worst.values()) if call.op == "layernorm" else {0}
    return [([_shapes_of(call.inputs[0], call.shapes[0][-1], np.int16, sorted(spots))], call.params)]


def _add_rows(call: _Call, _: Sequence[Softmax]) -> Calls:
    a, b = ([[x.low], [x.high]] for x in call.inputs)
    pairs = [(i, j) for i in range(2) for j in range(2)]
    sides = [np.array([side[p[n]] for p in pairs], np.int16) for n, side in enumerate((a, b))]
    return [(sides, {})]


def _gelu_rows(call: _Call, _: Sequence[Softmax]) -> Calls:
    """Every value beside every other, or alone in rows of one element."""
    (x,) = call.inputs
    values = np.arange(x.low, x.high + 1, dtype=np.int8 if x.low >= -128 else np.int16)
    if call.op == "sigmoid_gelu" or call.shapes[0][-1] == 1:
        return [([values[:, None]], {})]
    return [([np.stack(np.meshgrid(values, values), axis=-1).reshape(-1, 2)], {})]


_ROWS: dict[str, Callable[[_Call, Sequence[Softmax]], Calls]] = {
    "linear": _linear_rows,
    "matmul": _matmul_rows,
    "add": _add_rows,
    "layernorm": _row_rows,
    "l2norm": _row_rows,
    "shiftmax": _row_rows,
    "softmax2": _row_rows,
    "shift_gelu": _gelu_rows,
    "sigmoid_gelu": _gelu_rows,
}
