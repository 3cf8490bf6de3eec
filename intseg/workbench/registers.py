"""The inside of every op, step by step, and the same steps done wrong on purpose.

`steps` recomputes one node and returns every register a circuit would hold: accumulators, products before the shift,
q, r, exponentials, row sums, reciprocals, means, roots. The last one, "result", is the output of the node. With the
default `Variant` it equals the definition (intseg/ops) in every element; with another it is what an implementation with
that mistake gives, which is how `intseg diff` finds causes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg.arith import INT_RANGE, bit_length, isqrt, shift_left
from intseg.ops import RUN, Array, Attr

Int = NDArray[np.int64]
Steps = dict[str, Array]


@dataclass(frozen=True)
class Variant:
    """One way of computing an op. The defaults are the definition.

    rounding         of every rounding shift: half_up, half_even, half_away, half_down, toward_zero, floor, ceil
    first_shift      bits that a first rounding shift removes, a second one the rest; 0: one shift; -n: all but n
    overflow         of the result: saturate, wrap, symmetric (lowest value never used), none
    shift            floor shifts of negative numbers: arithmetic, truncate, logical16, logical32, logical64
    rounding_shift   the same for rounding shifts: arithmetic, logical32, logical64
    acc_bits         width of accumulators and sums; 0 for wide enough
    acc_overflow     wrap or saturate at acc_bits
    product_bits     width of the product before a shift, which wraps; 0 for wide enough
    float32          products of a requantization rounded to the 24 bits of a float, operands too
    reciprocal_bits  of int_div and the norms; 0 for those of SPEC.md
    reciprocal_power reciprocals of 2^n instead of 2^n - 1
    k_out            8 for probabilities computed in 8 bits; 0 for those of the node
    k_out_scaled     whether 8-bit probabilities are brought to the scale of the node
    mean             rounding of the LayerNorm mean: half_up, floor, toward_zero, half_even
    root             of isqrt: floor, ceil, nearest, newton10 (ten Newton steps from 2^16)
    quirk            a mistake of one op only
    attrs            (attribute, value) pairs that replace those of the node
    operands         (input index or parameter role, transformation) pairs, see `transform`
    layout           transformation of the result, "" for none
    """

    rounding: str = "half_up"
    first_shift: int = 0
    overflow: str = "saturate"
    shift: str = "arithmetic"
    rounding_shift: str = "arithmetic"
    acc_bits: int = 0
    acc_overflow: str = "wrap"
    product_bits: int = 0
    float32: bool = False
    reciprocal_bits: int = 0
    reciprocal_power: bool = False
    k_out: int = 0
    k_out_scaled: bool = True
    mean: str = "half_up"
    root: str = "floor"
    quirk: str = ""
    attrs: tuple[tuple[str, Attr], ...] = ()
    operands: tuple[tuple[str, str], ...] = ()
    layout: str = ""


DEFINITION = Variant()

Function = Callable[[Variant, Sequence[Array], Mapping[str, Array], Mapping[str, Any]], Steps]


def steps(
    op: str,
    inputs: Sequence[Array],
    params: Mapping[str, Array],
    attrs: Mapping[str, Attr],
    variant: Variant = DEFINITION,
) -> Steps:
    """Every register of one call of an op in the order of computation; the last is "result".

    inputs, params, attrs  as the op takes them (SPEC.md, section 4)
    return                 name -> array; for the definition in the dtypes of REGISTERS
    """
    changes = dict(variant.operands)
    inputs = [transform(x, changes[str(i)]) if str(i) in changes else x for i, x in enumerate(inputs)]
    params = {role: transform(p, changes[role]) if role in changes else p for role, p in params.items()}
    attrs = {**attrs, **dict(variant.attrs)}
    if op in _STEPS:
        result = _STEPS[op](variant, inputs, params, attrs)
        result = {name: x.astype(REGISTERS[op].get(name, x.dtype), copy=False) for name, x in result.items()}
    else:
        result = {"result": _move(op, variant, inputs, params, attrs)}
    if variant.layout:
        result["result"] = transform(result["result"], variant.layout)
    return result


def evaluate(
    op: str, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Attr], variant: Variant
) -> Array:
    """The output of an op computed as `variant` says."""
    return steps(op, inputs, params, attrs, variant)["result"]


# ------------------------------------------------------------------------------------------------- transformations


def transform(x: Array, how: str) -> Array:
    """An operand or a result as somebody else may have stored or read it.

    how   "write:1,0"   stored with its axes in that order, read in C order
          "read:1,0"    stored in C order, read with its axes in that order
          "flip:a"      axis a reversed           "roll:a:n"  axis a rotated by n    "shift:n"  all rotated by n
          "byteswap"    bytes of every element reversed       "words:n"  every n elements in reverse order
          "unsigned"    the same bits without sign            "zero"  "negate"  "double"
          "plus:n"      n added                               "drop:n"  low n bits cleared
          "narrow:T"    wrapped to dtype T
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
    return np.ascontiguousarray(x).view(x.dtype.name.replace("int", "uint") if x.dtype.kind == "i" else x.dtype)


def _plus(x: Array, text: str) -> Array:
    return x.astype(np.int64) + int(text)


def _drop(x: Array, text: str) -> Array:
    return (x.astype(np.int64) >> int(text)) << int(text)


_TRANSFORMS: dict[str, Callable[[Array, str], Array]] = {
    "write": _write,
    "read": _read,
    "flip": lambda x, axis: np.flip(x, int(axis)),
    "roll": _roll,
    "shift": lambda x, count: np.roll(x, int(count)),
    "byteswap": lambda x, _: x.byteswap(),
    "words": _words,
    "unsigned": _unsigned,
    "zero": lambda x, _: np.zeros_like(x),
    "negate": lambda x, _: -x.astype(np.int64),
    "double": lambda x, _: 2 * x.astype(np.int64),
    "plus": _plus,
    "drop": _drop,
    "narrow": lambda x, dtype: x.astype(dtype),
}


# ------------------------------------------------------------------------------------------------------ primitives


def wrap(x: Int, bits: int) -> Int:
    """The low `bits` bits as a signed number."""
    if bits >= 64:
        return x
    half = 1 << (bits - 1)
    return ((x + half) & ((1 << bits) - 1)) - half


def round_shift(x: Int, c: Int | int, mode: str) -> Int:
    """x / 2^c rounded as `mode` says; c <= 0 shifts to the left, c above 62 counts as 62."""
    c = np.minimum(np.asarray(c, dtype=np.int64), 62)
    right = np.maximum(c, 0)
    floor = x >> right
    rest = x - (floor << right)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), np.int64(1))
    up = {
        "half_up": rest >= half,
        "half_even": (rest > half) | ((rest == half) & (floor & 1 == 1)),
        "half_away": (rest > half) | ((rest == half) & (x >= 0)),
        "half_down": rest > half,
        "toward_zero": (rest != 0) & (x < 0),
        "floor": rest < 0,
        "ceil": rest != 0,
    }[mode]
    result: Int = (floor + up) << np.maximum(-c, 0)
    return result


def _logical(x: Int, c: Int | int, bits: int) -> Int:
    """The low `bits` bits, shifted right as an unsigned number."""
    unsigned = x.view(np.uint64) if bits == 64 else x.view(np.uint64) & np.uint64((1 << bits) - 1)
    return (unsigned >> np.asarray(c).astype(np.uint64)).astype(np.int64)


def _rsr(v: Variant, x: Int, c: Int | int) -> Int:
    """The rounding shift of the definition (SPEC 2.1), or the variant's."""
    x = np.ascontiguousarray(x, dtype=np.int64)
    if v.rounding_shift != "arithmetic":
        c = np.clip(np.asarray(c, np.int64), 1, 62)
        return _logical(np.asarray(x + (np.int64(1) << (c - 1))), c, int(v.rounding_shift.removeprefix("logical")))
    if v.first_shift:
        c = np.asarray(c, np.int64)
        first = np.clip(v.first_shift if v.first_shift > 0 else c + v.first_shift, 0, np.maximum(c, 0))
        return round_shift(round_shift(x, first, v.rounding), c - first, v.rounding)
    return round_shift(x, c, v.rounding)


def _shr(v: Variant, x: Int, n: int) -> Int:
    """A floor shift of the definition, or the variant's."""
    if v.shift == "truncate":
        truncated: Int = np.sign(x) * (np.abs(x) >> n)
        return truncated
    if v.shift.startswith("logical"):
        return _logical(np.ascontiguousarray(x, dtype=np.int64), n, int(v.shift.removeprefix("logical")))
    return x >> n


def _narrow(v: Variant, x: Int, dtype: str) -> Array:
    """The result in its dtype: saturated, or as the variant does."""
    low, high = INT_RANGE[dtype]
    if v.overflow == "wrap":
        return x.astype(dtype)
    if v.overflow == "none":
        return x
    return np.clip(x, -high if v.overflow == "symmetric" else low, high).astype(dtype)


def _acc(v: Variant, x: Array) -> Int:
    """An accumulator or a sum in the variant's width."""
    x = x.astype(np.int64)
    if not v.acc_bits:
        return x
    if v.acc_overflow == "saturate":
        return np.clip(x, -(2 ** (v.acc_bits - 1)), 2 ** (v.acc_bits - 1) - 1)
    return wrap(x, v.acc_bits)


def _float24(x: Int) -> Int:
    """Integers as a float32 holds them: 24 significant bits, half to even."""
    drop = np.maximum(bit_length(np.abs(x)) - 24, 0)
    return round_shift(x, drop, "half_even") << drop


def _product(v: Variant, x: Array, mult: Array | int) -> Int:
    """The product before a shift."""
    left, right = x.astype(np.int64), np.asarray(mult, dtype=np.int64)
    if v.float32:
        return _float24(_float24(left) * _float24(right))
    return wrap(left * right, v.product_bits) if v.product_bits else left * right


def _requantize(v: Variant, x: Int, mult: Array | int, shift: Array | int, dtype: str) -> Steps:
    """Registers of a requantization (SPEC 2.3): product, rounded, result."""
    product = _product(v, x, mult)
    rounded = _rsr(v, product, np.asarray(shift, dtype=np.int64))
    return {"product": product, "rounded": rounded, "result": _narrow(v, rounded, dtype)}


def _root(v: Variant, x: Int) -> Int:
    """The square root as the variant takes it, at least 1."""
    root = isqrt(x) if v.root != "newton10" else _newton(x)
    if v.root == "ceil":
        root = root + (root * root < x)
    elif v.root == "nearest":
        root = root + (x - root * root > root)
    return np.maximum(root, 1)


def _newton(x: Int) -> Int:
    root = np.full_like(x, 2**16)
    for _ in range(10):
        root = (root + x // np.maximum(root, 1)) >> 1
    return root


def _numerator(v: Variant, bits: int) -> int:
    return (1 << bits) - (0 if v.reciprocal_power else 1)


def _divide(v: Variant, n: Int, d: Int, k_out: int, kind: str) -> Steps:
    """Registers of int_div (SPEC 2.7): reciprocal, scaled (the product before the shift), quotient."""
    d = np.maximum(d, 1)
    bits = v.k_out or k_out
    if kind == "paper":
        top = v.reciprocal_bits or 31
        reciprocal = _numerator(v, top) // d
        scaled = reciprocal * n
        quotient = _shr(v, scaled, top + 1 - bits)
    else:
        length, top = bit_length(d), (v.reciprocal_bits or 16) + 30
        reciprocal = _numerator(v, top) // shift_left(d, 31 - length)
        scaled = n * reciprocal
        rounding = "floor" if v.quirk == "quotient_floor" else v.rounding
        quotient = _rsr(_with_rounding(v, rounding), scaled, length + (top - 30) - bits)
    if bits < k_out:
        quotient = np.minimum(quotient, 2 ** (bits - 1) - 1) << (k_out - bits if v.k_out_scaled else 0)
    return {"reciprocal": reciprocal, "scaled": scaled, "quotient": quotient}


def _with_rounding(v: Variant, rounding: str) -> Variant:
    return v if rounding == v.rounding else replace(v, rounding=rounding)


def _shift_exp(v: Variant, x: Int, i0: int, k: int, lam: int) -> Steps:
    """Registers of shift_exp (SPEC 2.8): exponent, q, r, i_b, exponential."""
    exponent = np.maximum(x + _shr(v, x, 1) - _shr(v, x, 4), -lam * k * i0)
    if v.quirk == "e_not_2":
        exponent = np.maximum(x, -lam * k * i0)
    q = -exponent // i0
    r = -exponent - q * i0
    i_b = _shr(v, -r, 1) + i0
    return {"exponent": exponent, "q": q, "r": r, "i_b": i_b, "exponential": shift_left(i_b, k - q)}


# -------------------------------------------------------------------------------------------- ops with arithmetic


def _linear(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    dot = _acc(v, inputs[0].astype(np.int32) @ params["weight"].T.astype(np.int32))
    acc = _acc(v, dot + params["bias"].astype(np.int64))
    return {"dot": dot, "acc": acc} | _requantize(v, acc, params["mult"], params["shift"], attrs["out"])


def _matmul(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    a, b = inputs
    b = np.swapaxes(b, -1, -2) if attrs["transpose_b"] else b
    acc = _acc(v, a.astype(np.int32) @ b.astype(np.int32))
    mult, shift = params["mult"][..., None, :], params["shift"][..., None, :]
    return {"acc": acc} | _requantize(v, acc, mult, shift, attrs["out"])


def _add(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    product = {branch: _product(v, x, attrs[f"mult_{branch}"]) for branch, x in zip("ab", inputs, strict=True)}
    branch = {name: _rsr(v, x, attrs[f"shift_{name}"]) for name, x in product.items()}
    if v.quirk == "clamp_branches":
        branch = {name: np.clip(x, -(2**15), 2**15 - 1) for name, x in branch.items()}
    total = _acc(v, branch["a"] + branch["b"])
    if v.quirk == "round_once":
        shift = max(attrs["shift_a"], attrs["shift_b"])
        aligned = sum(x << (shift - attrs[f"shift_{name}"]) for name, x in product.items())
        total = _rsr(v, np.asarray(aligned), shift)
    return {
        "product_a": product["a"],
        "product_b": product["b"],
        "branch_a": branch["a"],
        "branch_b": branch["b"],
        "sum": total,
        "result": _narrow(v, total, "int16"),
    }


def _mean(v: Variant, total: Int, count: int) -> Int:
    """total / count rounded as the variant says."""
    floor, rest = total // count, total % count
    up = {
        "half_up": 2 * rest >= count,
        "floor": rest < 0,
        "toward_zero": (rest != 0) & (total < 0),
        "half_even": (2 * rest > count) | ((2 * rest == count) & (floor & 1 == 1)),
    }[v.mean]
    return np.zeros_like(total) if v.quirk == "no_mean" else floor + up


def _normalize(v: Variant, y: Int) -> Steps:
    """Registers that layernorm and l2norm share: variance (the sum of squares), isqrt, reciprocal, normalized."""
    variance = _acc(v, (y * y).sum(axis=-1, keepdims=True))
    root = _root(v, np.maximum(variance, 0))
    bits = v.reciprocal_bits or 31
    reciprocal = _numerator(v, bits) // root
    scaled = y * reciprocal << max(30 - bits, 0)
    normalized = _shr(v, scaled, max(bits - 30, 0))
    return {"variance": variance, "isqrt": root, "reciprocal": reciprocal, "normalized": normalized}


def _layernorm(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    x = inputs[0].astype(np.int64)
    total = _acc(v, x.sum(axis=-1, keepdims=True))
    mean = _mean(v, total, x.shape[-1])
    centered = x - mean
    norm = _normalize(v, centered)
    product = _product(v, norm["normalized"], params["mult"])
    biased = product + params["bias"].astype(np.int64)
    rounded = _rsr(v, biased, attrs["shift"])
    return {
        "row_sum": total,
        "mean": mean,
        "centered": centered,
        **norm,
        "product": product,
        "biased": biased,
        "rounded": rounded,
        "result": _narrow(v, rounded, attrs["out"]),
    }


def _l2norm(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    norm = _normalize(v, inputs[0].astype(np.int64))
    return norm | _requantize(v, norm["normalized"], attrs["mult"], attrs["shift"], "int8")


_BITS = {"int8": 8, "int16": 16}


def _shiftmax(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    x = inputs[0].astype(np.int64)
    top = x.max(axis=None if v.quirk == "global_max" else -1, keepdims=True)
    exp = _shift_exp(v, x - top, attrs["i0"], attrs["k_inter"], 1)
    row_sum = _acc(v, exp["exponential"].sum(axis=-1, keepdims=True))
    quotient = _divide(v, exp["exponential"], row_sum, _BITS[attrs["out"]], attrs["int_div_kind"])
    result = _narrow(v, quotient["quotient"], attrs["out"])
    return {"row_max": top, **exp, "row_sum": row_sum, **quotient, "result": result}


def _softmax2(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    x = inputs[0].astype(np.int64)
    bits, a1, a2 = attrs["frac_bits"], attrs["a1"], attrs["a2"]
    top = x.max(axis=None if v.quirk == "global_max" else -1, keepdims=True)
    t = top - x
    q = t >> bits
    f = (t & (2**bits - 1)) << (15 - bits)
    one = 32768 if v.quirk == "one_32768" else 32767
    power = one - ((f * (a1 - ((a2 * f) >> 15))) >> 15)
    rounding = "floor" if v.quirk == "exponential_floor" else v.rounding
    e = np.where(q == 0, power, _rsr(_with_rounding(v, rounding), power, np.clip(q, 1, 17)))
    row_sum = _acc(v, e.sum(axis=-1, keepdims=True))
    quotient = _divide(v, e, row_sum, 16, "normalized")
    exp = {"row_max": top, "t": t, "q": q, "f": f, "i_b": power, "exponential": e, "row_sum": row_sum}
    return exp | quotient | {"result": _narrow(v, quotient["quotient"], "int16")}


def _scaled_x(v: Variant, x: Int) -> Int:
    """1.6875 x by floor shifts (SPEC 4.9)."""
    p = x + _shr(v, x, 1) + _shr(v, x, 3) + _shr(v, x, 4)
    return p - _shr(v, x, 4) if v.quirk == "p_1_625" else p


def _shift_gelu(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    x = inputs[0].astype(np.int64)
    p = _scaled_x(v, x)
    top = p.max(axis=-1, keepdims=True)
    if v.quirk != "top_may_be_negative":
        top = np.maximum(top, 0)
    exp = _shift_exp(v, p - top, attrs["i0"], attrs["k_inter"], attrs["lam"])
    zero = _shift_exp(v, -top, attrs["i0"], attrs["k_inter"], attrs["lam"])["exponential"]
    divisor = _acc(v, exp["exponential"] + zero)
    registers = {"p": p, "row_max": top, **exp, "exponential_0": zero, "divisor": divisor}
    return registers | _gelu_end(v, x, exp["exponential"], divisor, attrs)


def _sigmoid_gelu(v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Steps:
    x = inputs[0].astype(np.int64)
    p = _scaled_x(v, x)
    exp = _shift_exp(v, -np.abs(p), attrs["i0"], attrs["k_inter"], attrs["lam"])
    one = np.int64(attrs["i0"] << attrs["k_inter"])
    divisor = _acc(v, one + exp["exponential"])
    registers = {"p": p, **exp, "divisor": divisor}
    return registers | _gelu_end(v, x, np.where(p >= 0, one, exp["exponential"]), divisor, attrs)


def _gelu_end(v: Variant, x: Int, dividend: Int, divisor: Int, attrs: Mapping[str, Any]) -> Steps:
    """From the quotient on: reciprocal, scaled, sigma, x_sigma, product, rounded, result."""
    quotient = _divide(v, dividend, divisor, attrs["k_out"], attrs["int_div_kind"])
    sigma = quotient.pop("quotient")
    x_sigma = x * sigma
    end = _requantize(v, x_sigma, attrs["mult"], attrs["shift"], "int8")
    return quotient | {"sigma": sigma, "x_sigma": x_sigma} | end


_STEPS: dict[str, Function] = {
    "linear": _linear,
    "matmul": _matmul,
    "add": _add,
    "layernorm": _layernorm,
    "l2norm": _l2norm,
    "shiftmax": _shiftmax,
    "softmax2": _softmax2,
    "shift_gelu": _shift_gelu,
    "sigmoid_gelu": _sigmoid_gelu,
}

# -------------------------------------------------------------------------------------------------- ops that move


def _move(op: str, v: Variant, inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """Ops without arithmetic of their own: the definition, or the quirk."""
    if v.quirk in _QUIRKS:
        return _QUIRKS[v.quirk](inputs, params, attrs)
    return RUN[op](*inputs, **params, **attrs)


def _channel_first(inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """patchify with the order (channel, row, column) inside a patch, as a convolution's weights have it."""
    patch, channels = attrs["patch"], inputs[0].shape[2]
    patches = RUN["patchify"](inputs[0], patch=patch)
    return patches.reshape(-1, patch * patch, channels).transpose(0, 2, 1).reshape(patches.shape)


def _column_patches(inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """patchify with the patches column by column."""
    height, width = (n // attrs["patch"] for n in inputs[0].shape[:2])
    patches = RUN["patchify"](inputs[0], patch=attrs["patch"])
    return patches.reshape(height, width, -1).transpose(1, 0, 2).reshape(patches.shape)


def _heads_first(inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """split_heads of columns in the order (head, part, d) instead of (part, head, d)."""
    x, heads, parts = inputs[0], attrs["heads"], attrs["parts"]
    return x.reshape(len(x), heads, parts, -1)[:, :, attrs["part"]].transpose(1, 0, 2)


def _interleaved(inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """split_heads of columns in the order (d, head) inside a part."""
    x, heads, parts = inputs[0], attrs["heads"], attrs["parts"]
    return x.reshape(len(x), parts, -1, heads)[:, attrs["part"]].transpose(2, 0, 1)


def _merge_by_reshape(inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """merge_heads without the transposition."""
    heads, tokens, width = inputs[0].shape
    return np.ascontiguousarray(inputs[0]).reshape(tokens, heads * width)


def _swapped(inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """concat in the other order."""
    return np.concatenate([inputs[1], inputs[0]], axis=0)


def _unsigned_index(inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """gelu_table indexed by the bits of x instead of x + 128."""
    result: Array = params["table"][inputs[0].view(np.uint8)]
    return result


def _last_tie(inputs: Sequence[Array], params: Mapping[str, Array], attrs: Mapping[str, Any]) -> Array:
    """argmax that gives the highest index among equal scores."""
    x = inputs[0]
    last = x.shape[-1] - 1 - x[..., ::-1].argmax(axis=-1)
    result: Array = last.astype(np.uint8 if x.shape[-1] <= 256 else np.uint16)
    return result


_QUIRKS: dict[str, Callable[[Sequence[Array], Mapping[str, Array], Mapping[str, Any]], Array]] = {
    "channel_first": _channel_first,
    "column_patches": _column_patches,
    "heads_first": _heads_first,
    "interleaved": _interleaved,
    "merge_by_reshape": _merge_by_reshape,
    "swapped": _swapped,
    "unsigned_index": _unsigned_index,
    "last_tie": _last_tie,
}

# --------------------------------------------------------------------------------------------------- the registers

_REQUANTIZE = {"product": "int64", "rounded": "int64"}
_EXP = {"exponent": "int64", "q": "int32", "r": "int32", "i_b": "int32", "exponential": "int64"}
_DIVIDE = {"reciprocal": "int64", "scaled": "int64"}
_NORMALIZE = {"variance": "int64", "isqrt": "int32", "reciprocal": "int32", "normalized": "int32"}
_GELU_END = {**_DIVIDE, "sigma": "int32", "x_sigma": "int32", **_REQUANTIZE}

REGISTERS: dict[str, dict[str, str]] = {
    "linear": {"dot": "int32", "acc": "int32", **_REQUANTIZE},
    "matmul": {"acc": "int32", **_REQUANTIZE},
    "add": dict.fromkeys(("product_a", "product_b", "branch_a", "branch_b", "sum"), "int64"),
    "layernorm": {
        "row_sum": "int32",
        "mean": "int32",
        "centered": "int32",
        **_NORMALIZE,
        "product": "int64",
        "biased": "int64",
        "rounded": "int64",
    },
    "l2norm": {**_NORMALIZE, **_REQUANTIZE},
    "shiftmax": {"row_max": "int32", **_EXP, "row_sum": "int64", **_DIVIDE, "quotient": "int64"},
    "softmax2": {
        **dict.fromkeys(("row_max", "t", "q", "f", "i_b", "exponential", "row_sum"), "int32"),
        **_DIVIDE,
        "quotient": "int64",
    },
    "shift_gelu": {
        "p": "int32",
        "row_max": "int32",
        **_EXP,
        "exponential_0": "int64",
        "divisor": "int64",
        **_GELU_END,
    },
    "sigmoid_gelu": {"p": "int32", **_EXP, "divisor": "int64", **_GELU_END},
}
"""Names and dtypes of the registers of every op that has any, in the order of computation, without the result."""
