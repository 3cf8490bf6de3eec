"""The tables of few bits: rank correlation, the front, the plan of the experiment."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from intseg.tools import make_docs
from intseg.tools.bits.allocation import Budget, LayerCost, allocate, by_milp
from intseg.tools.bits.scores import SCORES
from intseg.tools.measure.experiment import bits as experiment
from intseg.tools.measure.tables import bits as tables


def document(layers: int = 6) -> dict[str, object]:
    """Results of the experiment with made-up scores and the rows of its plan, all with one confusion."""
    rng = np.random.default_rng(0)
    found = {
        "layers": [[f"l{i}", 100 * (i + 1), 1000] for i in range(layers)],
        "lrp": rng.dirichlet(np.ones(layers)).tolist(),
        "mix-qsam": rng.dirichlet(np.ones(layers)).tolist(),
        "synergy": rng.random(layers - 1).tolist(),
        "sensitivity": (rng.random((layers, 1)) * 0.25 ** np.arange(7)).tolist(),
    }
    costs = [LayerCost(*layer) for layer in found["layers"]]
    rows = {}
    for name, _, bits, _ in experiment._plan(None, costs, found):
        size = sum(layer.weights * b for layer, b in zip(costs, bits, strict=True))
        right = 50 + size // 1000
        rows[name] = {
            "bits": list(bits),
            "size": size,
            "bitops": 8 * size,
            "confusion": [[right, 5], [5, 50]],
            "same_as_float": right,
            "pixels": 100,
        }
    return {"float": {"bilinear, L2": rows["uniform W8"]}, "samples": 32, "scores": found, "rows": rows}


def test_the_plan_keeps_its_budgets_and_the_tables_hold_every_row() -> None:
    found = document()
    total = sum(weights for _, weights, _ in found["scores"]["layers"])
    for name, row in found["rows"].items():
        if name.endswith(" bits"):
            assert row["size"] <= float(name.split(" ")[-2]) * total
    front = tables.front(found)
    assert set(front) == {"uniform", *SCORES}
    assert sum(len(front[way]) for way in SCORES) == sum(map(len, experiment.MIXED.values()))
    parts = (tables._front, tables._means, tables._synergy, tables._importances)
    text = "\n".join(line for part in parts for line in part("m", found))
    for words in ("each weight to its nearest", *(f"| {beta:g} |" for beta in tables.BETAS)):
        assert words in text
    assert text.count("| uniform |") == len(experiment.UNIFORM)


def test_committed_allocations_are_the_optimum_and_that_of_an_integer_program() -> None:
    for file in sorted((make_docs.DOCS / "results").glob("bits_*.json")):
        results = json.loads(file.read_text(encoding="utf-8"))["results"]
        found, rows = results["scores"], results["rows"]
        total = sum(weights for _, weights, _ in found["layers"])
        for mean, by in experiment.MIXED.items():
            for score in by:
                problem, budget = tables.problem_of(found, score, 0.0), Budget(size=int(mean * total))
                best, solver = allocate(problem, budget), by_milp(problem, budget)
                assert list(best.bits) == rows[f"{score}, {mean:g} bits"]["bits"]
                assert best.value == pytest.approx(solver.value, rel=1e-6)
                assert best.value >= solver.value


def test_the_scores_of_the_tables_are_those_that_exist() -> None:
    assert tables.SCORES == SCORES


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_is_spearmans(seed: int) -> None:
    a, b = np.random.default_rng(seed).integers(0, 6, (2, 30))
    assert tables.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
