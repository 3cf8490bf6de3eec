"""Table 2, what each simplification costs, and what calibration chooses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from intseg.tools.measure.tables.markdown import command, prose, table
from intseg.tools.measure.tables.results import Document, Results, miou, same

COMBINATIONS = ("nearest, no L2", "nearest, L2", "bilinear, no L2", "bilinear, L2")


def table_2(results: Results) -> Iterator[str]:
    """Interpolation and L2 norm."""
    yield "## Table 2: interpolation and L2 norm"
    yield ""
    yield from command(results.commands("upsampling"))
    yield from prose("""
        mIoU in percent, in brackets the pixels equal to float. All integer columns are integer to the end, bilinear and
        L2 norm included; one calibration image. (The paper's rows with L2 norm or bilinear are not integer-only.)
    """)
    for name, found in results.each("upsampling"):
        rows = []
        for combination in COMBINATIONS:
            cells = [found["rows"][way][combination] for way in ("float", "intseg", "paper")]
            rows.append([f"{name}: {combination}", *(f"{miou(row):.2f} ({same(row):.2f})" for row in cells)])
        yield from table(("interpolation, L2 norm", "float", "intseg otherwise", "paper otherwise"), rows)
    yield from results.missing("upsampling")
    for name, found in results.each("upsampling"):
        for way in ("float", "intseg", "paper"):
            near, up = (
                np.mean([miou(found["rows"][way][f"{kind}, {l2}"]) for l2 in ("L2", "no L2")])
                for kind in ("nearest", "bilinear")
            )
            dropped, kept = (
                np.mean([miou(found["rows"][way][f"{kind}, {l2}"]) for kind in ("nearest", "bilinear")])
                for l2 in ("no L2", "L2")
            )
            yield f"{name}, {way}: bilinear instead of nearest {up - near:+.2f}, L2 norm {kept - dropped:+.2f}"
            yield "points on average."
    yield from prose("""
        The paper has +1.7 and +0.9 over its models. `mask_norm` undoes any factor that the classes of a patch share, so
        that of the L2 norm only the lengths of the class embeddings can change a label.
    """)


def simplifications(results: Results) -> Iterator[str]:
    """One change at a time."""
    yield "## What each simplification costs"
    yield ""
    yield from command(results.commands("simplifications"))
    yield from prose("""
        From `intseg` to `paper`, one calibration image; mIoU in percent with the change, in brackets the pixels equal
        to float. *In float*: only this in the float model. *Alone*: only this in `intseg`. *Together*: this and all
        above it.
    """)

    def cell(row: Document | None) -> str:
        return "-" if row is None else f"{miou(row):.2f} ({same(row):.2f})"

    for name, found in results.each("simplifications"):
        base = found["alone"]["intseg"]
        rows = [[f"{name}: nothing", cell(found["float"]), cell(base), cell(base)]]
        for step, row in found["together"].items():
            rows.append([step, cell(found["in float"].get(step)), cell(found["alone"][step]), cell(row)])
        yield from table(("change", "in float", "alone", "together"), rows)
        others = {step: row for step, row in found["in float"].items() if step not in found["together"]}
        yield f"Other operators alone in the float model of {name}, on the ranges of `paper` unless fitted:"
        yield ""
        yield from table(("operator", "mIoU % (equal %)"), [[step, cell(row)] for step, row in others.items()])
        changes = [(same(row) - same(base), step) for step, row in found["alone"].items() if step != "intseg"]
        worst, least = min(changes), max(changes)
        yield f"On {name} the costliest change alone is {worst[1]} ({worst[0]:+.2f} points of equal pixels),"
        yield f"the cheapest {least[1]} ({least[0]:+.2f})."
        yield ""
    yield from results.missing("simplifications")


def calibration(results: Results) -> Iterator[str]:
    """What calibration chooses, and what that wins."""
    yield "## What calibration chooses"
    yield ""
    yield from command(results.commands("calibration"))
    measured = list(results.each("calibration"))
    images = measured[0][1]["images"] if measured else 0
    yield from prose(f"""
        Percent of the pixels equal to the float model, on {images} training images, for three calibration images (one
        at a time; the mean first). `extremes x 1.6` is what was seen, 1.6 times as wide; an estimator is chosen for
        every node by what it loses on views that it was not fitted to, after the weights that read the node. The last
        row lets this choice also say how much room is left for other images: the views of one image are too much
        alike for that.
    """)
    for name, found in measured:
        rows = []
        for way, parts in found["ways"].items():
            equal = [100 * part["same"] / part["pixels"] for part in parts]
            rows.append([way, f"{np.mean(equal):.3f}", *(f"{value:.3f}" for value in equal)])
        yield from table((name, "mean", *(f"image {i + 1}" for i in range(len(rows[0]) - 2))), rows)
        chosen: dict[str, int] = {}
        for part in found["chosen"]:
            for estimator, nodes in part.items():
                chosen[estimator] = chosen.get(estimator, 0) + nodes
        words = ", ".join(f"`{estimator}` {nodes}" for estimator, nodes in chosen.items())
        mean = {
            way: np.mean([100 * part["same"] / part["pixels"] for part in parts])
            for way, parts in found["ways"].items()
        }
        plain, corrected, chosen_only, both, room = mean.values()
        yield f"Chosen for {name}, nodes of all models: {words}. On average biases change {corrected - plain:+.3f}"
        yield f"points, the estimators {chosen_only - plain:+.3f}, both {both - plain:+.3f}, and a chosen room besides"
        yield f"{room - plain:+.3f}."
        yield ""
    yield from results.missing("calibration")
