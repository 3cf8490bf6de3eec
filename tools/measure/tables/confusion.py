"""Figures B.6 to B.8: confusion and IoU per class; the pictures of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from intseg.tools.measure.tables.bits import base_of, curves, heads, measured
from intseg.tools.measure.tables.results import Document, Results, latencies, metrics


def compared(results: Results, name: str) -> dict[str, Document]:
    """The rows that the figures of a checkpoint show: float, PTQ with the most images, QAT."""
    found = results.of("ptq", name)
    if found is None:
        return {}
    rows = {"float": found["float"]["bilinear, L2"]}
    most = max(row["images"] for row in found["rows"])
    for recipe in ("paper", "intseg"):
        row = next((r for r in found["rows"] if r["recipe"] == recipe and r["images"] == most), None)
        rows |= {f"PTQ {recipe}": row} if row else {}
        trained = results.of("qat", name)
        rows |= {f"QAT {recipe}": trained["rows"][recipe]} if trained and recipe in trained["rows"] else {}
    return rows


def normalised(row: Document) -> Any:
    """Percent of the pixels of a label by predicted class, rows without pixels all zero."""
    matrix = np.array(row["confusion"], np.float64)
    return 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def figures(results: Results) -> dict[str, str]:
    """Pictures by file name."""
    from intseg.tools.measure.figures import bars, fronts, matrices, speed  # needs matplotlib

    drawn = {}
    if results.bench:
        drawn["results_speed.svg"] = speed("Milliseconds of one image, one thread", latencies(results))
    for name, found in measured(results):
        title = f"Size and BitOps against accuracy of {name}"
        drawn[f"results_bits_{name}.svg"] = fronts(title, curves(found), heads(base_of(found))[0])
    for name in results.names:
        rows = compared(results, name)
        document = results.found["ptq"].get(name)
        if not rows or document is None:
            continue
        classes = document["classes"]
        shown = {way: normalised(row) for way, row in rows.items() if way in ("float", "PTQ intseg", "QAT intseg")}
        base = normalised(rows["float"])
        deltas = {f"{way} - float": normalised(row) - base for way, row in rows.items() if way != "float"}
        drawn[f"results_confusion_{name}.svg"] = matrices(f"Confusion of {name}", shown, classes, False)
        drawn[f"results_difference_{name}.svg"] = matrices(f"Changes of confusion of {name}", deltas, classes, True)
        drawn[f"results_iou_{name}.svg"] = bars(
            f"IoU per class of {name}", {way: metrics(row).iou for way, row in rows.items()}, classes
        )
    return drawn


def figure_section(results: Results) -> Iterator[str]:
    """Figures B.6 to B.8."""
    yield "## Figures B.6 to B.8: confusion and IoU per class"
    yield ""
    for name, found in results.each("ptq"):
        rows = compared(results, name)
        most = max(row["images"] for row in found["rows"])
        yield f"Row-normalised confusion of {name}; post-training quantization from {most} image(s):"
        yield ""
        yield f"![Confusion matrices of {name}](pictures/results_confusion_{name}.svg)"
        yield ""
        yield "What quantization changes. On the diagonal a positive number is a gain, elsewhere a loss:"
        yield ""
        yield f"![Changes of the confusion matrix of {name}](pictures/results_difference_{name}.svg)"
        yield ""
        yield f"![IoU per class of {name}](pictures/results_iou_{name}.svg)"
        yield ""
        yield from _figure_words(results, name, rows)
    yield from results.missing("ptq")


def _figure_words(results: Results, name: str, rows: Mapping[str, Document]) -> Iterator[str]:
    classes, base = results.found["ptq"][name]["classes"], metrics(rows["float"]).iou
    for way, row in rows.items():
        deltas = [
            (b - a, label)
            for a, b, label in zip(base, metrics(row).iou, classes, strict=True)
            if a is not None and b is not None
        ]
        if way != "float" and deltas:
            low, high = min(deltas), max(deltas)
            yield f"{way}: IoU changes from {low[0]:+.2f} ({low[1]}) to {high[0]:+.2f} ({high[1]}) points."
    never = [label for label, value in zip(classes, base, strict=True) if value is not None and value < 1]
    if never:
        yield f"The float model itself hardly finds {', '.join(never)}: no quantization can lose much there."
    yield ""
