"""The definition: every op once, in primitives, integers only. `OPS` lists them; adding an op is one line here."""

from functools import partial

from intseg.arith import EXACT

from ._op import MAX_DIM, Array, Attr, Call, Op, Run, Value
from .add import OP as _ADD
from .class_map import ARGMAX, UPSAMPLE_BILINEAR, UPSAMPLE_NEAREST
from .gelu import GELU_TABLE, SHIFT_GELU, SIGMOID_GELU
from .l2norm import OP as _L2NORM
from .layernorm import OP as _LAYERNORM
from .linear import OP as _LINEAR
from .matmul import OP as _MATMUL
from .patchify import OP as _PATCHIFY
from .quantize_input import OP as _QUANTIZE_INPUT
from .shiftmax import OP as _SHIFTMAX
from .softmax2 import OP as _SOFTMAX2
from .tokens import CONCAT, MERGE_HEADS, SLICE, SPLIT_HEADS, TO_GRID

OPS: dict[str, Op] = {
    "quantize_input": _QUANTIZE_INPUT,
    "patchify": _PATCHIFY,
    "linear": _LINEAR,
    "add": _ADD,
    "layernorm": _LAYERNORM,
    "matmul": _MATMUL,
    "shiftmax": _SHIFTMAX,
    "softmax2": _SOFTMAX2,
    "shift_gelu": SHIFT_GELU,
    "sigmoid_gelu": SIGMOID_GELU,
    "gelu_table": GELU_TABLE,
    "l2norm": _L2NORM,
    "concat": CONCAT,
    "slice": SLICE,
    "split_heads": SPLIT_HEADS,
    "merge_heads": MERGE_HEADS,
    "to_grid": TO_GRID,
    "upsample_nearest": UPSAMPLE_NEAREST,
    "upsample_bilinear": UPSAMPLE_BILINEAR,
    "argmax": ARGMAX,
}

RUN: dict[str, Run] = {name: partial(op.define, EXACT) for name, op in OPS.items()}
"""The NumPy op table, as `executor.execute` takes it."""

__all__ = ["MAX_DIM", "OPS", "RUN", "Array", "Attr", "Call", "Op", "Run", "Value"]
