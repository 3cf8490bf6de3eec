"""The definition: every op once, in primitives, integers only. `FILES` lists them; adding an op is one word here."""

from functools import partial
from importlib import import_module

from intseg.arith import EXACT

from ._op import MAX_DIM, Array, Attr, Call, Op, Run, Value

FILES = (
    *("quantize_input", "patchify", "linear", "add", "layernorm", "matmul", "shiftmax", "softmax2", "gelu", "l2norm"),
    *("tokens", "class_map", "exp_weights", "weighted_mean"),
)
"""The files of this folder with ops in them, in the order of SPEC.md section 4. Each has its ops by name, as `OPS`."""

OPS: dict[str, Op] = {name: op for file in FILES for name, op in import_module(f"{__name__}.{file}").OPS.items()}

RUN: dict[str, Run] = {name: partial(op.define, EXACT) for name, op in OPS.items()}
"""The NumPy op table, as `executor.execute` takes it."""

MOVERS = ("patchify", "concat", "slice", "split_heads", "merge_heads", "to_grid", "upsample_nearest")
"""Ops that only move values: the same function for integers and reals."""

__all__ = ["FILES", "MAX_DIM", "MOVERS", "OPS", "RUN", "Array", "Attr", "Call", "Op", "Run", "Value"]
