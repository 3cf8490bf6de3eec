"""Weights of fewer bits: the Pareto front, what each means wins, the importance of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from intseg.tools.bits.allocation import BITS, Budget, LayerCost, Problem, allocate, gain_of
from intseg.tools.measure.tables.markdown import accuracy, command, prose, table
from intseg.tools.measure.tables.results import Document, Results, miou

SCORES = ("sensitivity", "mix-qvit", "lrp", "mix-qsam")
IMPORTANCES = ("lrp", "mix-qsam", "mix-qvit")
TRUE_BITS = 3
"""The sensitivity that importances are compared with: of a layer alone at so many bits."""

FIRST_BITS = BITS[0]
"""Of the sensitivities in the results."""

BETAS, SWEPT, SWEPT_MEAN = (0.0, 1e-3, 1e-2, 1e-1), ("mix-qsam", "sensitivity"), 3.0

LISTED = 12
"""Layers of the table of importances: the most sensitive ones."""


def bit_section(results: Results) -> Iterator[str]:
    """All of it."""
    yield "## Weights of 2 to 8 bits"
    yield ""
    yield from command(results.commands("bits"))
    yield from prose("""
        The bits of each layer's weights by an exact allocation under a budget of size (tools/bits/allocation.py),
        weights rounded by tools/bits/rounding.py, activations of 8 bits. *uniform* gives all layers the same; the
        others maximise the sum of what bits are worth by a score (tools/bits/scores.py) with 2 to 8 bits a layer.
        Size is that of the weights of the linear layers in 10^6 bytes, BitOps are their multiplications times the bits
        of both factors, in 10^9 for one window.

        `lrp` and `mix-qsam` are worth Omega b, as published: the eighth bit as much as the third, so that a budget
        gives some layers 8 bits and the others 2. `sensitivity` and `mix-qvit` know what each bit is worth.
    """)
    for name, found in results.each("bits"):
        yield from _front(name, found)
        yield f"![Size and BitOps against mIoU of {name}](pictures/results_bits_{name}.svg)"
        yield ""
        yield from _means(name, found)
        yield from _synergy(name, found)
        yield from _importances(name, found)
    yield from results.missing("bits")


def base_of(found: Document) -> Document:
    """The float row."""
    row: Document = found["float"]["bilinear, L2"]
    return row


def front(found: Document) -> dict[str, list[tuple[float, float, Document]]]:
    """(megabytes, GBitOps, row) of the rows of the front, by series."""
    series: dict[str, list[tuple[float, float, Document]]] = {}
    for name, row in found["rows"].items():
        way = name.split(" ")[0].rstrip(",")
        if way in ("uniform", *SCORES):
            series.setdefault(way, []).append((row["size"] / 8e6, row["bitops"] / 1e9, row))
    return {way: sorted(points, key=lambda point: point[0]) for way, points in series.items()}


def _front(name: str, found: Document) -> Iterator[str]:
    total, base = sum(weights for _, weights, _ in found["scores"]["layers"]), base_of(found)
    rows = [["float", "32", f"{4e-6 * total:.2f}", "", *accuracy(base, base)]]
    for way, points in front(found).items():
        rows += [
            [way, f"{row['size'] / total:.2f}", f"{size:.2f}", f"{work:.1f}", *accuracy(row, base)]
            for size, work, row in reversed(points)
        ]
    head = ("bits a weight", "MB", "GBitOps", "mIoU %", "change", "pixel accuracy %", "equal %")
    yield from table((f"{name}, {found['samples']} images", *head), rows)


def _means(name: str, found: Document) -> Iterator[str]:
    """What is left out, and the mIoU without it."""
    rows, base = found["rows"], base_of(found)
    for bits in (4, 3):
        own = {key.removeprefix(f"W{bits}, "): row for key, row in rows.items() if key.startswith(f"W{bits}, ")}
        if not own:
            continue
        own |= {"all of it": rows[f"uniform W{bits}"]}
        yield from table(
            (f"{name}, W{bits}A8", "mIoU %", "change", "pixel accuracy %", "equal %"),
            [[what, *accuracy(row, base)] for what, row in own.items()],
        )


def _synergy(name: str, found: Document) -> Iterator[str]:
    """What beta does to the allocation."""
    true = np.array(found["scores"]["sensitivity"])
    total = sum(weights for _, weights, _ in found["scores"]["layers"])
    rows = []
    for beta in BETAS:
        for score in SWEPT:
            best = allocate(problem_of(found["scores"], score, beta), Budget(size=int(SWEPT_MEAN * total)))
            lost = sum(true[i, b - FIRST_BITS] for i, b in enumerate(best.bits))
            step = np.abs(np.diff(best.bits)).mean()
            rows.append([f"{beta:g}", score, f"{lost:.4f}", f"{step:.2f}", f"{min(best.bits)} to {max(best.bits)}"])
    yield from prose(f"""
        Synergy at {SWEPT_MEAN:g} bits on average: the sum of what the layers lose alone (KL) at the bits that they get,
        how many bits neighbours differ by, and the bits in use.
    """)
    yield from table((f"{name}, beta", "score", "sum of KL", "step", "bits"), sorted(rows, key=lambda row: row[1]))


def problem_of(found: Document, score: str, beta: float) -> Problem:
    """The objective of a score from what was measured (`scores` in the results)."""
    gain = gain_of(score, BITS, found["lrp"], found["mix-qsam"], found["sensitivity"])
    return Problem([LayerCost(*layer) for layer in found["layers"]], gain, np.array(found["synergy"]), beta)


def _importances(name: str, found: Document) -> Iterator[str]:
    """Percent of every score by layer, and how its order agrees with that of the sensitivities."""
    scores, true = importances(found), np.array(found["scores"]["sensitivity"])[:, TRUE_BITS - FIRST_BITS]
    words = ", ".join(f"{score} {rank_correlation(values, true):+.2f}" for score, values in scores.items())
    yield from prose(f"""
        Rank correlation (Spearman) of the importance of the {len(true)} layers with the loss (KL) that each causes
        alone at {TRUE_BITS} bits, {name}: {words}. The {LISTED} most sensitive layers, every column in percent of its
        sum over all layers:
    """)
    parts = {f"KL at {TRUE_BITS} bits": true, **scores}
    rows = []
    for i in np.argsort(-true, kind="stable")[:LISTED]:
        layer = found["scores"]["layers"][i][0]
        rows.append([layer, *(f"{100 * values[i] / values.sum():.2f}" for values in parts.values())])
    yield from table((name, *parts), rows)


def importances(found: Document) -> dict[str, np.ndarray]:
    """Omega of every layer by score, from the results; of mix-qvit relevance times sensitivity."""
    scores = {score: np.array(found["scores"][score]) for score in IMPORTANCES[:2]}
    sensitivity = np.array(found["scores"]["sensitivity"])[:, TRUE_BITS - FIRST_BITS]
    return scores | {"mix-qvit": scores["lrp"] * sensitivity}


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's: that of the places in their orders, equal values sharing the mean of theirs."""
    return float(np.corrcoef(_ranks(np.asarray(a)), _ranks(np.asarray(b)))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return found


def curves(found: Document) -> dict[str, list[tuple[float, float, float]]]:
    """(MB, GBitOps, mIoU) by series, for the picture."""
    return {way: [(size, work, miou(row)) for size, work, row in points] for way, points in front(found).items()}
