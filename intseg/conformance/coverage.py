"""The branches of SPEC.md, and which of them a call of an op reaches.

A branch is a case that an implementation may get wrong by itself: a tie of a rounding on one side of zero, a
saturation, a shift that turns negative, a divisor of zero. Those of the primitives follow from the definition of the
op: each primitive shows its facts as values and as intervals, and a case counts where some input may reach it. Those of
the op alone are in its exam. Nothing is compared with a fact.

Beside the ops of section 4 there are the steps of section 7, under names of their own:
`resize`, `cut_windows`, `merge_scores`, `class_map`, `pixel_map`, `center_crop`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from intseg.arith.bounds import Bounds
from intseg.arith.interval import Interval
from intseg.arith.recorder import Watcher, cases_of
from intseg.arith.saturation import INT_RANGE
from intseg.exam import EXAMS, Facts
from intseg.ops import OPS, Array, Call


@dataclass(frozen=True)
class Branch:
    """A case of SPEC.md.

    name     "op.case", unique
    section  of SPEC.md
    text     what happens there
    """

    name: str
    section: str
    text: str

    @property
    def op(self) -> str:
        """The op whose calls can reach it."""
        return self.name.split(".")[0]


Found = dict[Branch, bool]
"""Branches that calls like one may reach, and whether it does."""


def branches(call: Call) -> Found:
    """The branches of a call: of the primitives in the order of its steps, then its own."""
    exam = EXAMS[call.op]
    found: Found = {}
    facts: Facts
    if exam.facts is not None:
        facts = exam.facts(call)
    else:
        watcher, possible = _watched(call)
        for label, case, reached in cases_of(watcher.seen, possible.seen):
            prefix, text = (f"{label}-", f"{label}: {case.text}") if label else ("", case.text)
            branch = Branch(f"{call.op}.{prefix}{case.name}", case.section, text)
            found[branch] = found.get(branch, False) or reached
        facts = {f"in{i}": x for i, x in enumerate(call.inputs)} | {**call.params, **call.attrs, **watcher.kept}
    for own in exam.branches:
        found[Branch(f"{call.op}.{own.name}", exam.section, own.text)] = bool(np.any(own.reached(facts)))
    return found


def _watched(call: Call) -> tuple[Watcher, Bounds]:
    """A call as values, and as intervals of any inputs of its dtypes and shapes."""
    watcher, bounds, define = Watcher(call), Bounds("call", call.op), OPS[call.op].define
    watcher.kept["result"] = define(watcher, *call.inputs, **call.params, **call.attrs)
    define(bounds, *map(_any_of, call.inputs), **call.params, **call.attrs)
    return watcher, bounds


def _any_of(x: Array) -> Interval:
    return Interval(*INT_RANGE[x.dtype.name], shape=x.shape)


def reached(call: Call) -> list[str]:
    """Names of the branches that a call reaches."""
    return [branch.name for branch, yes in branches(call).items() if yes]


def own_branches() -> Iterator[Branch]:
    """Those that are no primitive's."""
    for exam in EXAMS.values():
        yield from (Branch(f"{exam.op}.{own.name}", exam.section, own.text) for own in exam.branches)


def report(found: Iterable[tuple[str, Found]], most: int = 5) -> Iterator[dict[str, Any]]:
    """One entry a branch: how many vectors reach it, and the first `most` of every kind.

    found  pairs (vector, its branches), op cases first; a vector's name begins with its kind and "/". Branches count
           that an op case may reach, or that are an op's own
    """
    by_branch: dict[Branch, list[str]] = {}
    for vector, its_branches in found:
        for branch, yes in its_branches.items():
            if vector.startswith("ops/"):
                by_branch.setdefault(branch, [])
            if yes and branch in by_branch:
                by_branch[branch].append(vector)
    for branch in own_branches():
        by_branch.setdefault(branch, [])
    for branch, vectors in by_branch.items():
        examples = {kind: [v for v in vectors if v.startswith(f"{kind}/")][:most] for kind in ("ops", "images")}
        yield {
            "name": branch.name,
            "section": branch.section,
            "text": branch.text,
            "count": len(vectors),
            **examples,
        }
