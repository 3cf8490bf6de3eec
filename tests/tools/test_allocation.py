"""Allocation of bits: the dynamic program is exact, its ties are settled, its files and budgets say what is wrong."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intseg.errors import InputError, IntsegError, MismatchError, UsageError
from intseg.tools.bits import allocation as al

CASES = 1000


def random_problem(rng: random.Random) -> tuple[al.Problem, al.Budget]:
    """Up to 8 layers; sizes, gains and budgets that meet in ties often."""
    count = rng.randint(1, 8)
    bits = tuple(sorted(rng.sample(al.BITS, rng.randint(1, {1: 7, 2: 7, 3: 7, 4: 6, 5: 5, 6: 4}.get(count, 3)))))
    few = rng.random() < 0.5
    layers = [
        al.LayerCost(f"l{i}", rng.randint(1, 4 if few else 999), rng.randint(1, 5 if few else 9999))
        for i in range(count)
    ]
    gain = np.array([[rng.randint(0, 3) if few else rng.random() for _ in bits] for _ in layers], float)
    if rng.random() < 0.5:
        gain = gain[:, :1] * np.array(bits)
    synergy = np.array([rng.randint(0, 2) if few else rng.random() for _ in range(count - 1)], float)
    problem = al.Problem(layers, gain, synergy, rng.choice([0.0, 0.1, 0.5]), bits, rng.choice([4, 8]))
    size, work = (cost.min(1).sum() + rng.random() * (cost.max(1).sum() - cost.min(1).sum()) for cost in problem.costs)
    return problem, al.Budget(rng.choice([None, int(size)]), rng.choice([None, int(work)]))


def test_equals_trying_all() -> None:
    rng = random.Random(14)
    for _ in range(CASES):
        problem, budget = random_problem(rng)
        assert al.allocate(problem, budget) == al.by_trying_all(problem, budget)


def vit(width: int, blocks: int, tokens: int, classes: int, seed: int = 0) -> al.Problem:
    """The linear layers of a Segmenter, with random gains."""
    layers = [al.LayerCost("patch_embed", 768 * width, 768 * width * tokens)]
    for i in range(blocks + 2):
        seen = tokens + (1 if i < blocks else classes)
        layers += [
            al.LayerCost(f"{i}.{name}", n * width**2, n * width**2 * seen)
            for name, n in (("qkv", 3), ("proj", 1), ("fc1", 4), ("fc2", 4))
        ]
    layers += [al.LayerCost(name, width**2, width**2 * n) for name, n in (("patch", tokens), ("classes", classes))]
    rng = np.random.default_rng(seed)
    gain = rng.lognormal(size=(len(layers), 1)) * np.array(al.BITS)
    return al.Problem(layers, gain, rng.random(len(layers) - 1), 0.05)


@pytest.mark.parametrize("both", [False, True])
def test_large_shapes_are_quick_and_equal_the_solver(both: bool) -> None:
    problem = vit(1024, 24, 1024, 150)
    size, work = (int(cost[:, 2].sum()) for cost in problem.costs)  # 4 bits on average
    budget = al.Budget(size, int(work * 0.97) if both else None)
    start = time.process_time()
    found = al.allocate(problem, budget)
    assert time.process_time() - start < 10
    solver = al.by_milp(problem, budget)
    assert solver.value <= found.value <= solver.value * (1 + 1e-6)


def test_value_and_costs_are_what_they_say() -> None:
    problem = replace(vit(4, 1, 2, 3), gain=np.tile(np.array(al.BITS) / 8.0, (15, 1)), beta=0.0)
    found = al.allocate(problem, al.Budget())
    assert set(found.bits) == {8}
    assert found.value == pytest.approx(15)
    assert found.size == 8 * sum(layer.weights for layer in problem.layers)
    assert found.work == 64 * sum(layer.macs for layer in problem.layers)


def test_synergy_draws_neighbours_together() -> None:
    layers = [al.LayerCost(f"l{i}", 10, 10) for i in range(4)]
    gain = np.array([[5.0], [0.0], [5.0], [0.0]]) * np.array(al.BITS)
    budget = al.Budget(size=200)
    apart = al.allocate(al.Problem(layers, gain, np.ones(3), 0.0), budget)
    alike = al.allocate(al.Problem(layers, gain, np.ones(3), 100.0), budget)
    assert apart.bits == (8, 2, 8, 2)
    assert alike.bits == (5, 5, 5, 5)


def test_a_budget_below_the_least_names_it() -> None:
    problem = vit(4, 1, 2, 3)
    least = int(problem.costs[0].min(1).sum())
    with pytest.raises(UsageError, match=rf"below the least, {least / 8e6:.6g} MB"):
        al.allocate(problem, al.Budget(size=least - 1))
    with pytest.raises(UsageError, match="GBitOps is below the least"):
        al.allocate(problem, al.Budget(work=1))
    assert set(al.allocate(problem, al.Budget(size=least)).bits) == {2}


def test_description_tells_what_more_buys() -> None:
    problem = vit(192, 2, 16, 5)
    budget = al.Budget(size=int(problem.costs[0][:, 2].sum()))
    lines = al.described(problem, budget, al.allocate(problem, budget))
    assert any("5 % more size: value +" in line for line in lines)
    assert "buys nothing" in al._difference(problem, *[al.allocate(problem, al.Budget())] * 2)


LAYERS = [al.LayerCost("a.qkv", 3, 3), al.LayerCost("a.proj", 1, 1)]


def test_file_round_trip(tmp_path: Path) -> None:
    given = al.Allocation({"a.qkv": 3, "a.proj": 8}, 6, {"score": "lrp"})
    al.save(given, tmp_path / "a.json")
    assert al.load(tmp_path / "a.json", LAYERS) == given


@pytest.mark.parametrize(
    ("document", "error", "says"),
    [
        ("{", InputError, "not JSON"),
        ("[]", InputError, "not an allocation"),
        ({"format": "x", "layers": {}}, InputError, "not an allocation"),
        ({"layers": {"a.qkv": 3, "a.proj": 8, "a.qk": 3}}, MismatchError, "no layer 'a.qk'.*did you mean"),
        ({"layers": {"a.qkv": 3}}, MismatchError, "nothing of a.proj, 1 of 2 layers"),
        ({"layers": {"a.qkv": 1, "a.proj": 8}}, UsageError, "a.qkv has 1 bits, expected a whole number from 2"),
        ({"layers": {"a.qkv": True, "a.proj": 8}}, UsageError, "a.qkv has True bits"),
        ({"layers": {"a.qkv": 2, "a.proj": 8}, "activations": 3}, UsageError, "activations has 3 bits"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, document: object, error: type[IntsegError], says: str) -> None:
    file = tmp_path / "a.json"
    found = document if isinstance(document, str) else json.dumps({"format": al.FORMAT} | document)  # type: ignore
    file.write_text(found)
    with pytest.raises(error, match=says) as caught:
        al.load(file, LAYERS)
    assert "\n" not in str(caught.value)
