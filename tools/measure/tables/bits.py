"""Weights of fewer bits: the Pareto front, what each means wins, the importance of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from intseg.tools.bits.allocation import BITS, Budget, LayerCost, Problem, allocate, gain_of
from intseg.tools.measure.tables.markdown import accuracy, command, prose, table
from intseg.tools.measure.tables.results import Document, Results, miou

SCORES = ("sensitivity", "mix-qvit", "lrp", "mix-qsam")
IMPORTANCES = ("lrp", "mix-qsam", "mix-qvit")
TRAINED = "QAT"
"""Rows of models that tools/qat.py trained at fewer bits."""

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
    yield from command([*results.commands("bits"), *(document["command"] for document in results.few_bits.values())])
    yield from prose("""
        The bits of each layer's weights by an exact allocation under a budget of size (tools/bits/allocation.py),
        weights rounded by tools/bits/rounding.py, activations of 8 bits. *uniform* gives all layers the same; the
        others maximise the sum of what bits are worth by a score (tools/bits/scores.py) with 2 to 8 bits a layer.
        Size is that of the weights of the linear layers in 10^6 bytes, BitOps are their multiplications times the bits
        of both factors, in 10^9 for one window.

        `lrp` and `mix-qsam` are worth Omega b, as published: the eighth bit as much as the third, so that a budget
        gives some layers 8 bits and the others 2. `sensitivity` and `mix-qvit` know what each bit is worth. A few
        tenths of a point of mIoU are chance: which pixels are equal to float tells rows apart better.
    """)
    for name, found in measured(results):
        yield from _front(name, found)
        yield f"![Size and BitOps against accuracy of {name}](pictures/results_bits_{name}.svg)"
        yield ""
        yield from _trained(name, found)
        yield from _aims(name, found)
        yield from _efforts(name, found)
        yield from _others(name, found)
        yield from _means(name, found)
        yield from _synergy(name, found)
        yield from _importances(name, found)
    yield from results.missing("bits")


def measured(results: Results) -> Iterator[tuple[str, Document]]:
    """(model, results) of Segmenters, with what was trained at fewer bits, then of classifiers."""
    for name, found in results.each("bits"):
        trained = (results.of("qat", name) or {"rows": {}})["rows"].items()
        few = {f"{TRAINED}, {key.partition('+')[2]}": row for key, row in trained if "+" in key}
        yield name, {**found, "rows": {**found["rows"], **few}}
    yield from ((name, document["results"]) for name, document in results.few_bits.items())


# ---------------------------------------------------------------------------------------------------------------------
# Rows of Segmenters, or of classifiers
# ---------------------------------------------------------------------------------------------------------------------


def base_of(found: Document) -> Document:
    """The float row."""
    row: Document = found["float"].get("bilinear, L2", found["float"])
    return row


def heads(base: Document) -> tuple[str, ...]:
    """Of the columns of `judged`."""
    if "top1" in base:
        return "top-1 %", "change", "top-5 %", "same %"
    return "mIoU %", "change", "pixel accuracy %", "equal %"


def judged(row: Document, base: Document) -> list[str]:
    """Accuracy, its change against the float row, a second accuracy, agreement with float."""
    if "top1" not in base:
        return accuracy(row, base)
    change = "" if row is base else f"{score_of(row) - score_of(base):+.2f}"
    return [f"{score_of(row):.2f}", change, *(f"{100 * row[key] / row['images']:.2f}" for key in ("top5", "same"))]


def score_of(row: Document) -> float:
    """mIoU, or top-1, in percent."""
    return 100 * row["top1"] / row["images"] if "top1" in row else miou(row)


def part(found: Document, name: str) -> dict[str, Document]:
    """Rows of a part of the experiment, by what they are."""
    prefix = f"{name}, "
    return {key.removeprefix(prefix): row for key, row in found["rows"].items() if key.startswith(prefix)}


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def front(found: Document) -> dict[str, list[tuple[float, float, Document]]]:
    """(megabytes, GBitOps, row) of the rows of the front, by series, the smallest first."""
    series: dict[str, list[tuple[float, float, Document]]] = {}
    for way in ("uniform", *SCORES, TRAINED):
        points = [(row["size"] / 8e6, row["bitops"] / 1e9, row) for row in part(found, way).values()]
        series |= {way: sorted(points, key=lambda point: point[0])} if points else {}
    return series


def curves(found: Document) -> dict[str, list[tuple[float, float, float]]]:
    """(MB, GBitOps, accuracy) by series, for the picture."""
    return {way: [(size, work, score_of(row)) for size, work, row in points] for way, points in front(found).items()}


def _front(name: str, found: Document) -> Iterator[str]:
    total, base = sum(weights for _, weights, _ in found["scores"]["layers"]), base_of(found)
    rows = [["float", "32", f"{4e-6 * total:.2f}", "", *judged(base, base)]]
    for way, points in front(found).items():
        if way == TRAINED:
            continue
        rows += [
            [way, f"{row['size'] / total:.2f}", f"{size:.2f}", f"{work:.1f}", *judged(row, base)]
            for size, work, row in reversed(points)
        ]
    head = ("bits a weight", "MB", "GBitOps", *heads(base))
    yield from table((f"{name}, {found['samples']} images", *head), rows)


def _trained(name: str, found: Document) -> Iterator[str]:
    """After training with the weights rounded, beside the row that it started from."""
    total, base, rows = sum(weights for _, weights, _ in found["scores"]["layers"]), base_of(found), []
    for what, row in part(found, TRAINED).items():
        before = next((other for other in found["rows"].values() if other["bits"] == row["bits"]), None)
        start = f"{score_of(before):.2f}" if before and before is not row else ""
        sizes = (f"{row['size'] / total:.2f}", f"{row['size'] / 8e6:.2f}", f"{row['bitops'] / 1e9:.1f}")
        rows.append([what, *sizes, start, *judged(row, base)])
    if rows:
        head = ("bits a weight", "MB", "GBitOps", f"{heads(base)[0]} before", *heads(base))
        yield from table((f"{name}, {TRAINED}", *head), rows)


AIMS = (
    ("uniform, 6", None, -0.3, "W6A8 loses at most 0.3"),
    ("uniform, 4", None, -1.5, "W4A8 loses at most 1.5"),
    ("{best}, 4", "uniform, 4", 0.5, "mixed at 4 bits wins 0.5 over W4A8"),
    ("{best}, 3", "uniform, 3", 3.0, "mixed at 3 bits wins 3 over W3A8"),
    ("{best}, 2.5", "uniform, 3", 0.0, "mixed at 2.5 bits is no worse than W3A8"),
    (f"{TRAINED}, w4a8", None, -0.3, "W4A8 after QAT loses at most 0.3"),
)
"""(row, what it is compared with: None is float, points of accuracy, words)."""

CLASSIFIER_AIMS = (
    ("uniform, 4", None, -3.0, "W4A8 loses at most 3"),
    ("chosen, 4", None, -3.0, "W4A8 rounded as photographs choose loses at most 3"),
)


def _aims(name: str, found: Document) -> Iterator[str]:
    """What was aimed at, what was reached, and what could have been: the distance to float."""
    rows, base, told = found["rows"], base_of(found), []
    for asked, against, points, words in CLASSIFIER_AIMS if "top1" in base else AIMS:
        candidates = [key for score in SCORES if (key := asked.format(best=score)) in rows]
        if not candidates or (against or candidates[0]) not in rows:
            continue
        best = max(candidates, key=lambda key: score_of(rows[key]))
        before = score_of(rows[against] if against else base)
        won, room = score_of(rows[best]) - before, score_of(base) - before
        by = best.partition(",")[0] if "{best}" in asked else ""
        told.append([words, f"{won:+.2f}", by, "yes" if won >= points else "no", f"{room:.2f}" if against else ""])
    if told:
        head = (f"{name}, aim", "found", "by", "reached", "float is ahead by")
        yield from table(head, told)


def _efforts(name: str, found: Document) -> Iterator[str]:
    """How far from float each way to round is on photographs without labels, and what the nearest one reaches."""
    efforts, base = found.get("effort", {}), base_of(found)
    if not efforts:
        return
    best = min(efforts, key=lambda what: float(efforts[what]["kl"]))
    measured = {"as above": found["rows"].get("uniform, 4"), best: found["rows"]["chosen, 4"]}
    rows = []
    for what, effort in efforts.items():
        row = measured.get(what)
        rows.append([what, f"{effort['kl']:.4f}", *(judged(row, base) if row else [""] * len(heads(base)))])
    count = efforts[best]["photographs"]
    yield from prose(f"""
        W4A8 rounded with more effort (`convert --views`): KL of the shares that the integer model gives to
        classes from float's, on {count} photographs that are neither calibrated on nor measured. Of the new ways only
        the one that is nearest there is measured.
    """)
    yield from table((f"{name}, W4A8", "KL", *heads(base)), rows)


def _others(name: str, found: Document) -> Iterator[str]:
    """Fewer bits of activations, fewer calibration images; beside them what they differ from."""
    base, rows = base_of(found), list[list[str]]()
    for what, row in part(found, "activations").items():
        rows.append([what, str(found["samples"]), f"{row['bitops'] / 1e9:.1f}", *judged(row, base)])
    for what, row in part(found, "images").items():
        rows.append([f"{what}A8", "1", f"{row['bitops'] / 1e9:.1f}", *judged(row, base)])
    if rows:
        yield from table((name, "images", "GBitOps", *heads(base)), rows)


def _means(name: str, found: Document) -> Iterator[str]:
    """What is left out, and the accuracy without it."""
    base, left_out = base_of(found), part(found, "means")
    for bits in dict.fromkeys(key.partition(": ")[0] for key in left_out):
        own = {key.partition(": ")[2]: row for key, row in left_out.items() if key.startswith(bits)}
        whole = part(found, "uniform").get(bits[1:])
        own |= {"all of it": whole} if whole else {}
        rows = [[what, *judged(row, base)] for what, row in own.items()]
        yield from table((f"{name}, {bits}A8", *heads(base)), rows)


def _synergy(name: str, found: Document) -> Iterator[str]:
    """What beta does to the allocation."""
    true, base = np.array(found["scores"]["sensitivity"]), base_of(found)
    total = sum(weights for _, weights, _ in found["scores"]["layers"])
    alike = [row for way in ("uniform", *SCORES, "beta") for row in part(found, way).values()]
    rows = []
    for score in SWEPT:
        for beta in BETAS:
            best = allocate(problem_of(found["scores"], score, beta), Budget(size=int(SWEPT_MEAN * total)))
            lost = sum(true[i, b - FIRST_BITS] for i, b in enumerate(best.bits))
            step, used = np.abs(np.diff(best.bits)).mean(), f"{min(best.bits)} to {max(best.bits)}"
            row = next((row for row in alike if row["bits"] == list(best.bits)), None)
            reached = judged(row, base)[:2] if row else ["", ""]
            rows.append([score, f"{beta:g}", f"{lost:.4f}", f"{step:.2f}", used, *reached])
    yield from prose(f"""
        Synergy at {SWEPT_MEAN:g} bits on average: the sum of what the layers lose alone (KL) at the bits that they get,
        how many bits neighbours differ by, and the bits in use.
    """)
    yield from table((name, "beta", "sum of KL", "step", "bits", *heads(base)[:2]), rows)


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
        alone at {TRUE_BITS} bits, {name}: {words}, which has that loss as a factor. The {LISTED} most sensitive
        layers, every column in percent of its sum over all layers:
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
