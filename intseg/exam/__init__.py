"""The exams of all ops: what vectors, coverage, mistakes, truth tables and witnesses know of one op alone."""

from importlib import import_module

from intseg import ops

from ._draw import LIMITS, Draw, Numbers, call
from ._exam import Branch, Exam, Extremes, Facts, Known, Mistake, Unit

FILES = (*ops.FILES, "windows")
"""A file for every file of intseg/ops, and one for the steps around the graph (SPEC.md section 7)."""

_found = {exam.op: exam for file in FILES for exam in import_module(f"{__name__}.{file}").EXAMS}

EXAMS: dict[str, Exam] = {op: _found[op] for op in (*ops.OPS, *(op for op in _found if op not in ops.OPS))}
"""By op, in the order of SPEC.md."""

__all__ = [
    "EXAMS",
    "FILES",
    "LIMITS",
    "Branch",
    "Draw",
    "Exam",
    "Extremes",
    "Facts",
    "Known",
    "Mistake",
    "Numbers",
    "Unit",
    "call",
]
