"""How many bits each layer's weights get: the best allocation under budgets of size and of work, exactly.

    maximise    sum_l gain[l, b_l] - beta sum_l synergy[l] (b_l - b_(l+1))^2
    subject to  sum_l weights[l] b_l <= size            (bits of weights)
                sum_l macs[l] b_l activations <= work   (BitOps)

With gain[l, b] = Omega_l b this is the integer quadratic program of Mix-QSAM. The layers are a chain, so that dynamic
programming over (layer, its bits) is exact; a state keeps every pair of costs that no other one beats in everything.

Gains and penalties are made whole numbers first (2^-40 of the largest): all that follows compares exactly. Of
allocations of the same value the one that takes less of a budget that may bind is taken (of size before work), then the
one with fewer bits in the first layer where two differ.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from intseg.errors import InputError, MismatchError, UsageError, suggest
from intseg.files import read_text, write_atomically

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]

BITS = tuple(range(2, 9))
"""What a layer's weights may have."""

STEPS = 2.0**40
"""Steps of the largest gain or penalty."""

MORE = 0.05
"""What more of a budget would buy is told for this much more of it."""

FORMAT = "intseg-allocation 1"
"""Of the JSON file."""


@dataclass(frozen=True)
class LayerCost:
    """A linear layer: how many weights it has, and the multiply-accumulates of one window."""

    name: str
    weights: int
    macs: int


@dataclass(frozen=True)
class Budget:
    """What an allocation may use, None for as much as it likes: bits of weights, BitOps of a window."""

    size: int | None = None
    work: int | None = None


@dataclass(frozen=True)
class Allocation:
    """Bits of every layer's weights, in the order of the graph, and of the activations they meet."""

    bits: Mapping[str, int]
    activations: int = 8
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it was found, for people: the reader takes no notice of it."""


@dataclass(frozen=True)
class Found:
    """An allocation with its value (in the units of the gains) and its costs."""

    bits: tuple[int, ...]
    value: float
    size: int
    work: int


@dataclass(frozen=True)
class Problem:
    """A chain of layers to allocate bits to.

    gain         float64 [L, len(bits)]: what a layer at so many bits is worth
    synergy      float64 [L - 1], not negative: how much two neighbours want to be alike
    """

    layers: Sequence[LayerCost]
    gain: Reals
    synergy: Reals
    beta: float = 0.0
    bits: tuple[int, ...] = BITS
    activations: int = 8

    @cached_property
    def costs(self) -> Integers:
        """[2, L, len(bits)]: bits of weights, BitOps."""
        bits = np.array(self.bits, np.int64)
        size = np.array([layer.weights for layer in self.layers], np.int64)[:, None] * bits
        work = np.array([layer.macs for layer in self.layers], np.int64)[:, None] * bits * self.activations
        return np.stack([size, work])

    @cached_property
    def _unit(self) -> float:
        """The gain of one step."""
        largest = max(float(np.abs(self.gain).max()), float(self._penalties.max(initial=0.0)))
        return largest / STEPS or 1.0

    @cached_property
    def _penalties(self) -> Reals:
        """[L - 1, len(bits), len(bits)]."""
        bits = np.array(self.bits, np.float64)
        return self.beta * self.synergy[:, None, None] * (bits[:, None] - bits) ** 2

    @cached_property
    def gains(self) -> Integers:
        """`gain` in whole steps."""
        return np.rint(self.gain / self._unit).astype(np.int64)

    @cached_property
    def penalties(self) -> Integers:
        """What neighbours of different bits cost, [L - 1, len(bits), len(bits)], in whole steps."""
        return np.rint(self._penalties / self._unit).astype(np.int64)

    def value_of(self, choice: Sequence[int]) -> int:
        """Value in whole steps of an index into `bits` for every layer."""
        own = sum(int(self.gains[i, k]) for i, k in enumerate(choice))
        return own - sum(int(self.penalties[i, a, b]) for i, (a, b) in enumerate(itertools.pairwise(choice)))

    def found(self, choice: Sequence[int]) -> Found:
        """The allocation of an index into `bits` for every layer."""
        size, work = (sum(int(cost[i, k]) for i, k in enumerate(choice)) for cost in self.costs)
        return Found(tuple(self.bits[k] for k in choice), self.value_of(choice) * self._unit, size, work)

    def limits(self, budget: Budget) -> tuple[int, int]:
        """Both budgets; where none is given, what the most bits cost. Raises UsageError below the least."""
        found = []
        for what, given, cost in zip(("weights", "BitOps"), (budget.size, budget.work), self.costs, strict=True):
            least, most = int(cost.min(1).sum()), int(cost.max(1).sum())
            if given is not None and given < least:
                raise UsageError(_below(what, given, least, min(self.bits)))
            found.append(most if given is None else min(given, most))
        return found[0], found[1]

    def limited(self, budget: Budget) -> Integers:
        """`costs`, zero where a budget allows the most bits for every layer: it cannot bind."""
        binds = [limit < cost.max(1).sum() for cost, limit in zip(self.costs, self.limits(budget), strict=True)]
        return self.costs * np.array(binds)[:, None, None]


def _below(what: str, given: int, least: int, bits: int) -> str:
    """Why a budget is not enough, in the units of the command line."""
    if what == "weights":
        return (
            f"a budget of {given / 8e6:.6g} MB is below the least, {least / 8e6:.6g} MB: every layer at {bits} bits; "
            "give at least that"
        )
    return (
        f"a budget of {given / 1e9:.6g} GBitOps is below the least, {least / 1e9:.6g}: every layer at {bits} bits; "
        "give at least that"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Dynamic programming
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Front:
    """Allocations of the first layers that no other one beats, for one choice of the last of them.

    cost    int64 [2, n]
    value   int64 [n]
    order   int64 [n]: their place among all allocations of these layers, by bits of the first layer where two differ
    before  int64 [n]: row of the front one layer earlier
    choice  int64 [n]: that front's choice
    """

    cost: Integers
    value: Integers
    order: Integers
    before: Integers
    choice: Integers

    def kept(self, which: NDArray[Any]) -> _Front:
        """Some of them."""
        return _Front(self.cost[:, which], self.value[which], self.order[which], self.before[which], self.choice[which])


def allocate(problem: Problem, budget: Budget) -> Found:
    """The best allocation. Raises UsageError where the budget is below what the fewest bits cost."""
    limits, costs = problem.limits(budget), problem.limited(budget)
    room = np.array(limits)[:, None] - np.flip(np.cumsum(np.flip(costs.min(2), 1), 1), 1)
    room = np.concatenate([room[:, 1:], np.array(limits)[:, None]], 1)  # [2, L]: what layers up to l may use
    count = len(problem.bits)
    none = np.zeros(1, np.int64)
    start = [_Front(costs[:, 0, k : k + 1], problem.gains[0, k : k + 1], none + k, none, none) for k in range(count)]
    history = [[front.kept((front.cost <= room[:, :1]).all(0)) for front in start]]
    for i in range(1, len(problem.layers)):
        history.append([_step(history[-1], costs[:, i, k], problem, i, k, room[:, i]) for k in range(count)])
        _renumber(history[-1])
    return problem.found(_best(history))


def _step(fronts: list[_Front], cost: Integers, problem: Problem, i: int, k: int, room: Integers) -> _Front:
    """The front of layers up to i with choice k for layer i."""
    joined = _Front(
        np.concatenate([front.cost for front in fronts], 1) + cost[:, None],
        np.concatenate([f.value - problem.penalties[i - 1, a, k] for a, f in enumerate(fronts)]) + problem.gains[i, k],
        np.concatenate([front.order for front in fronts]) * len(problem.bits) + k,
        np.concatenate([np.arange(len(front.value)) for front in fronts]),
        np.concatenate([np.full(len(front.value), a) for a, front in enumerate(fronts)]),
    )
    return _unbeaten(joined.kept((joined.cost <= room[:, None]).all(0)))


def _unbeaten(front: _Front) -> _Front:
    """Without those that another one equals or beats in both costs and in value."""
    front = front.kept(np.lexsort((front.order, -front.value, front.cost[1], front.cost[0])))
    if not front.cost[1].any():
        best = np.maximum.accumulate(front.value)
        return front.kept(np.concatenate([[True], front.value[1:] > best[:-1]])[: len(front.value)])
    kept, works, values = [], list[int](), list[int]()  # a staircase: work and value both rise
    for row, (work, value) in enumerate(zip(front.cost[1].tolist(), front.value.tolist(), strict=True)):
        place = bisect.bisect_right(works, work)
        if place and values[place - 1] >= value:
            continue
        end = bisect.bisect_right(values, value, place)
        start = place - 1 if place and works[place - 1] == work else place
        works[start:end], values[start:end] = [work], [value]
        kept.append(row)
    return front.kept(np.array(kept, np.int64))


def _renumber(fronts: list[_Front]) -> None:
    """Places from 0, in place: they would outgrow 64 bits."""
    places = np.unique(np.concatenate([front.order for front in fronts]))
    for front in fronts:
        front.order = np.searchsorted(places, front.order)


def _best(history: list[list[_Front]]) -> list[int]:
    """The choices of the best allocation at the end of the chain."""
    ends = (
        (-int(front.value[row]), *front.cost[:, row].tolist(), int(front.order[row]), k, row)
        for k, front in enumerate(history[-1])
        for row in range(len(front.value))
    )
    *_, k, row = min(ends)
    return _back(history, k, row)


def _back(history: list[list[_Front]], k: int, row: int) -> list[int]:
    choice = []
    for fronts in reversed(history):
        choice.append(k)
        k, row = int(fronts[k].choice[row]), int(fronts[k].before[row])
    return choice[::-1]


# ---------------------------------------------------------------------------------------------------------------------
# The same by trying all, and by a solver of linear programs: what `allocate` is checked with
# ---------------------------------------------------------------------------------------------------------------------


def by_trying_all(problem: Problem, budget: Budget) -> Found:
    """The best of all allocations, ties as `allocate` breaks them. For a few layers."""
    limits, costs, count = problem.limits(budget), problem.limited(budget), len(problem.layers)
    choices = np.indices((len(problem.bits),) * count).reshape(count, -1)
    rows = np.arange(count)[:, None]
    size, work = (cost[rows, choices].sum(0) for cost in costs)
    value = problem.gains[rows, choices].sum(0)
    value = value - problem.penalties[rows[:-1], choices[:-1], choices[1:]].sum(0)
    allowed = np.flatnonzero((size <= limits[0]) & (work <= limits[1]))
    best = min(allowed.tolist(), key=lambda i: (-value[i], size[i], work[i], i))
    return problem.found(choices[:, best].tolist())


def by_milp(problem: Problem, budget: Budget) -> Found:
    """What scipy's solver of mixed integer linear programs (HiGHS) finds, to its tolerance; ties are left to it.

    Variables: x[l, b] whether layer l has b bits, y[l, a, b] whether neighbours l and l + 1 have a and b.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, hstack, kron
    from scipy.sparse import eye_array as eye

    limits, count, n = problem.limits(budget), len(problem.bits), len(problem.layers)
    single, pair = n * count, (n - 1) * count**2
    ones = np.ones((1, count))
    one = hstack([kron(eye(n), ones), csr_array((n, pair))])
    first = hstack([-eye((n - 1) * count, single), kron(eye((n - 1) * count), ones)])
    second = hstack([-eye((n - 1) * count, single, k=count), kron(eye(n - 1), kron(ones, eye(count)))])
    costs = np.concatenate([problem.costs.reshape(2, -1), np.zeros((2, pair))], 1)
    scale = costs.max(1, keepdims=True)
    value = np.concatenate([problem.gains.ravel(), -problem.penalties.ravel()]) / STEPS
    solved = milp(
        -value,
        constraints=[
            LinearConstraint(one, 1, 1),
            LinearConstraint(first, 0, 0),
            LinearConstraint(second, 0, 0),
            LinearConstraint(costs / scale, -np.inf, np.array(limits) / scale[:, 0]),
        ],
        integrality=np.concatenate([np.ones(single), np.zeros(pair)]),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise MismatchError(f"milp found no allocation: {solved.message}")
    return problem.found(solved.x[:single].reshape(n, count).argmax(1).tolist())


# ---------------------------------------------------------------------------------------------------------------------
# The objective of a score
# ---------------------------------------------------------------------------------------------------------------------


def gain_of(kind: str, bits: Sequence[int], lrp: ArrayLike, zeroed: ArrayLike, sensitivity: ArrayLike) -> Reals:
    """What the allocation maximises, [L, len(bits)].

    An importance Omega_l is worth Omega_l b, as the papers have it. Sensitivity is a cost of each number of bits by
    itself, of mix-qvit times the relevance. All are scaled so that one bit more in every layer is worth one, as it is
    with importances: beta means the same with every score.

    lrp, zeroed   importances [L] that sum to one
    sensitivity   KL of each layer alone at so many bits, [L, len(bits)]
    """
    if kind in ("lrp", "mix-qsam"):
        gain = np.asarray(lrp if kind == "lrp" else zeroed)[:, None] * np.asarray(bits, np.float64)
    else:
        gain = -np.asarray(sensitivity) * (np.asarray(lrp)[:, None] if kind == "mix-qvit" else 1.0)
    one = float((gain[:, -1] - gain[:, 0]).sum()) / max(1, bits[-1] - bits[0])
    found: Reals = gain / one if one > 0 else gain
    return found


# ---------------------------------------------------------------------------------------------------------------------
# For people, and as a file
# ---------------------------------------------------------------------------------------------------------------------


def described(problem: Problem, budget: Budget, found: Found) -> list[str]:
    """The optimum, how much of the budgets it uses, and what more of either would buy."""
    total = sum(layer.weights for layer in problem.layers)
    mean = found.size / total
    lines = [f"bits of weights: {mean:.3f} on average, value {found.value:.6g}", f"  {histogram(problem, found)}"]
    for name, unit, per, given, used in (
        ("size", "MB", 8e6, budget.size, found.size),
        ("work", "GBitOps", 1e9, budget.work, found.work),
    ):
        text = f"  {name} {used / per:.6g} {unit}"
        if given is None:
            lines.append(text)
            continue
        lines.append(f"{text} of {given / per:.6g} ({100 * used / given:.2f} %)")
        more = Budget(**{**budget.__dict__, name: int(given * (1 + MORE))})
        lines.append(f"  {100 * MORE:g} % more {name}: {_difference(problem, found, allocate(problem, more))}")
    return lines


def _difference(problem: Problem, found: Found, better: Found) -> str:
    changed = [
        f"{layer.name} {a} to {b}"
        for layer, a, b in zip(problem.layers, found.bits, better.bits, strict=True)
        if a != b
    ]
    if not changed:
        return "buys nothing"
    shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
    return f"value {better.value - found.value:+.3g}, {shown}"


def histogram(problem: Problem, found: Found) -> str:
    """How many layers have how many bits, and their part of the weights."""
    total, parts = sum(layer.weights for layer in problem.layers), []
    for bits in problem.bits:
        held = [layer.weights for layer, b in zip(problem.layers, found.bits, strict=True) if b == bits]
        if held:
            parts.append(f"{len(held)} at {bits} ({100 * sum(held) / total:.0f} %)")
    return "layers: " + ", ".join(parts)


def uniform(layers: Sequence[LayerCost], weights: int, activations: int = 8) -> Allocation:
    """The same bits for every layer."""
    return Allocation({layer.name: weights for layer in layers}, activations, {"uniform": f"w{weights}a{activations}"})


def save(allocation: Allocation, path: Path) -> None:
    """Write an allocation as JSON, whole or not at all."""
    document = {"format": FORMAT, "activations": allocation.activations, "layers": dict(allocation.bits)}
    document |= {"about": dict(allocation.about)} if allocation.about else {}
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def load(path: Path, layers: Sequence[LayerCost]) -> Allocation:
    """Read an allocation for these layers.

    Raises InputError for a file that is none, MismatchError for one of other layers, UsageError for bits out of range.
    """
    try:
        document = json.loads(read_text(path, limit=2**20))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({str(error)[:100]}); give what convert --save-bits wrote") from None
    found = document.get("layers") if isinstance(document, dict) else None
    if not isinstance(found, dict) or document.get("format") != FORMAT:
        raise InputError(
            f"{path}: not an allocation, expected format {FORMAT!r} and layers; give what --save-bits wrote"
        )
    names = [layer.name for layer in layers]
    if unknown := [name for name in found if name not in names]:
        hint = suggest(unknown[0], names)
        raise MismatchError(f"{path}: no layer {unknown[0]!r} in this model{hint}; it has {len(names)} linear layers")
    if missing := [name for name in names if name not in found]:
        raise MismatchError(
            f"{path}: says nothing of {missing[0]}, {len(missing)} of {len(names)} layers are missing; "
            "it was made for another model"
        )
    for name, bits in {**found, "activations": document.get("activations", 8)}.items():
        low = 4 if name == "activations" else min(BITS)
        if type(bits) is not int or not low <= bits <= 8:
            raise UsageError(f"{path}: {name} has {str(bits)[:40]} bits, expected a whole number from {low} to 8")
    return Allocation({name: found[name] for name in names}, document.get("activations", 8), document.get("about", {}))
