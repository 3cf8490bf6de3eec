"""The definition: every op once, in primitives, integers only. A file of this folder has its ops by name, as `OPS`."""

from functools import partial
from importlib import import_module
from pkgutil import iter_modules

from intseg.arith import EXACT

from ._op import MAX_DIM, NARROW, OUT, Array, Attr, Call, Op, Run, Value

FILES = tuple(sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_")))

OPS: dict[str, Op] = dict(
    sorted(
        (item for file in FILES for item in import_module(f"{__name__}.{file}").OPS.items()),
        key=lambda item: item[1].number,
    )
)
"""In the order of SPEC.md, section 4."""

RUN: dict[str, Run] = {name: partial(op.define, EXACT) for name, op in OPS.items()}
"""The NumPy op table, as `executor.execute` takes it."""

MOVERS = tuple(name for name, op in OPS.items() if op.moves)
"""Ops that only move values: the same function for integers and reals."""

__all__ = ["FILES", "MAX_DIM", "MOVERS", "NARROW", "OPS", "OUT", "RUN", "Array", "Attr", "Call", "Op", "Run", "Value"]
