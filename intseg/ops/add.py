"""add: residual addition of two INT16 tensors brought to a common scale (SPEC 4.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intseg.arith import Machine

from ._op import MULT, SHIFT, Array, Attr, Op, Value, int_attr, require


def add(m: Machine, a: Any, b: Any, *, mult_a: int, shift_a: int, mult_b: int, shift_b: int) -> Any:
    """saturate(RSR(a * mult_a, shift_a) + RSR(b * mult_b, shift_b)): branches are not clamped, the sum is, once.

    a, b    int16 [..., D]   equal shapes
    mult    in [0, 2^31) with mult < 2^(shift + 14), so that a branch stays below 2^29 and the sum inside INT32
    shift   in [1, 62];      mult = 2^30, shift = 30 is the identity
    return  int16 [..., D]
    """
    product_a = m.keep("product_a", m.product(m.widen(a), mult_a), 64)
    product_b = m.keep("product_b", m.product(m.widen(b), mult_b), 64)
    branch_a = m.keep("branch_a", m.rsr(product_a, shift_a, "rounding_a", "a"), 64)
    branch_b = m.keep("branch_b", m.rsr(product_b, shift_b, "rounding_b", "b"), 64)
    total = m.keep("sum", m.accumulate(branch_a + branch_b), 64)
    return m.saturate(total, "int16")


def check(inputs: Sequence[Value], params: Mapping[str, Array], attrs: Mapping[str, Attr]) -> Value:
    a, b = inputs
    require(a.shape == b.shape, f"inputs have shapes {list(a.shape)} and {list(b.shape)}, expected equal ones")
    for branch in "ab":
        mult, shift = int_attr(attrs, f"mult_{branch}"), int_attr(attrs, f"shift_{branch}")
        require(
            mult < 2 ** (shift + 14),
            f"branch {branch} is scaled by {mult} * 2^-{shift}, expected below 2^14: the INT32 sum could overflow",
        )
    return Value("int16", a.shape)


OPS = {
    "add": Op(
        4,
        add,
        (("int16",), ("int16",)),
        check,
        attrs={"mult_a": MULT, "shift_a": SHIFT, "mult_b": MULT, "shift_b": SHIFT},
    ),
}
