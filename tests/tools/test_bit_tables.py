"""The tables of few bits: rank correlation, the front, the plan of the experiment."""

import json

import numpy as np
import pytest

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
    for asked in experiment.plan(costs, found):
        size = sum(layer.weights * b for layer, b in zip(costs, asked.bits, strict=True))
        right = 50 + size // 1000
        rows[asked.name] = {
            "bits": list(asked.bits),
            "size": size,
            "bitops": 8 * size,
            "confusion": [[right, 5], [5, 50]],
            "same_as_float": right,
            "pixels": 100,
        }
    return {"float": {"bilinear, L2": rows["uniform, 8"]}, "samples": 32, "scores": found, "rows": rows}


def test_the_plan_keeps_its_budgets_and_the_tables_hold_every_row() -> None:
    found = document()
    total = sum(weights for _, weights, _ in found["scores"]["layers"])
    for score in SCORES:
        for mean, row in tables.part(found, score).items():
            assert row["size"] <= float(mean) * total
    front = tables.front(found)
    assert list(front) == ["uniform", *SCORES]
    assert sum(len(front[way]) for way in SCORES) == sum(map(len, experiment.MIXED.values()))
    parts = (tables._front, tables._aims, tables._others, tables._means, tables._synergy, tables._importances)
    text = "\n".join(line for part in parts for line in part("m", found))
    said = (*experiment.MEANS, *(f"W{w}A{a}" for w, a in experiment.NARROW))
    for words in (*said, *(f"| {beta:g} |" for beta in tables.BETAS)):
        assert words in text
    assert text.count("| uniform |") == len(experiment.UNIFORM)
    assert {name.split(",")[0] for name in found["rows"]} == set(experiment.PARTS)


def test_trained_rows_stand_beside_what_they_started_from() -> None:
    found = document()
    found["rows"]["QAT, w4a8"] = {**found["rows"]["uniform, 4"], "confusion": [[90, 5], [5, 90]]}
    (row,) = list(tables._trained("m", found))[2:-1]
    before = tables.score_of(found["rows"]["uniform, 4"])
    assert row.startswith(f"| w4a8 | 4.00 | 0.00 | 0.0 | {before:.2f} | 90.00 |")
    assert "QAT" not in "\n".join(tables._front("m", found))
    assert [round(y, 2) for _, _, y in tables.curves(found)["QAT"]] == [90.0]
    assert list(tables._trained("m", document())) == []


def test_aims_are_held_against_float_and_uniform() -> None:
    found = document()
    points = {"8": 98, "6": 97.8, "4": 97, "3": 90}
    rows = {f"uniform, {b}": percent(value) for b, value in points.items()}
    rows |= {"lrp, 4": percent(97.4), "sensitivity, 4": percent(97.6), "sensitivity, 3": percent(92.5)}
    told = list(tables._aims("m", found | {"float": percent(98), "rows": rows}))
    assert told[2:6] == [
        "| W6A8 loses at most 0.3 | -0.20 |  | yes |  |",
        "| W4A8 loses at most 1.5 | -1.00 |  | yes |  |",
        "| mixed at 4 bits wins 0.5 over W4A8 | +0.60 | sensitivity | yes | 1.00 |",
        "| mixed at 3 bits wins 3 over W3A8 | +2.50 | sensitivity | no | 8.00 |",
    ]
    classified = {"float": top(80), "rows": {"uniform, 4": top(76)}}
    assert list(tables._aims("m", classified))[2:] == ["| W4A8 loses at most 3 | -4.00 |  | no |  |", ""]


def percent(miou: float) -> dict[str, object]:
    """A row of two classes of equal size and so much IoU: of n right and n - k wrong, n / (n + 2 k)."""
    right, wrong = round(20 * miou), round(10 * (100 - miou))
    return {"confusion": [[right, wrong], [wrong, right]]}


def top(share: int) -> dict[str, int]:
    """A row of a classifier."""
    return {"top1": share, "top5": 90, "same": 80, "images": 100}


def test_committed_allocations_are_the_optimum_and_that_of_an_integer_program() -> None:
    for file in sorted((make_docs.DOCS / "results").glob("bits_*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))["results"]
        scores = found["scores"]
        total = sum(weights for _, weights, _ in scores["layers"])
        for score in SCORES:
            for mean, row in tables.part(found, score).items():
                problem, budget = tables.problem_of(scores, score, 0.0), Budget(size=int(float(mean) * total))
                best, solver = allocate(problem, budget), by_milp(problem, budget)
                assert list(best.bits) == row["bits"]
                assert best.value == pytest.approx(solver.value, rel=1e-6)
                assert best.value >= solver.value


def test_the_scores_of_the_tables_are_those_that_exist() -> None:
    assert tables.SCORES == SCORES


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_is_spearmans(seed: int) -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(seed).integers(0, 6, (2, 30))
    assert tables.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
