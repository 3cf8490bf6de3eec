"""The integer primitives that every op is made of (SPEC.md, section 2), each with all that is known of it.

A primitive's file has its values, the same with a usual mistake, its bound, its cases and its mistakes in words. The
machines (`machine`, `recorder`, `bounds`, `extents`) put them together: an op is written once against a machine.
"""

from functools import partial

from .division import int_div as _int_div
from .exponential import aligned_exps as _aligned_exps
from .exponential import shift_exp as _shift_exp
from .machine import EXACT, Machine
from .norm import isqrt
from .rounding import rsr
from .saturation import INT_RANGE, NARROW, held, limits, saturate
from .shifting import bit_length, shift_left
from .variant import DEFINITION, Variant

requantize = EXACT.requantize
int_div = partial(_int_div, EXACT)
shift_exp = partial(_shift_exp, EXACT)
aligned_exps = partial(_aligned_exps, EXACT)

__all__ = [
    "DEFINITION",
    "EXACT",
    "INT_RANGE",
    "NARROW",
    "Machine",
    "Variant",
    "aligned_exps",
    "bit_length",
    "held",
    "int_div",
    "isqrt",
    "limits",
    "requantize",
    "rsr",
    "saturate",
    "shift_exp",
    "shift_left",
]
