"""Classification: a ViT by recipe, engine against twin, the GELU's errors by block."""

from __future__ import annotations

from collections.abc import Iterator

from intseg.tools.measure.tables.markdown import command, prose, significant, table
from intseg.tools.measure.tables.results import Document, Results

GELUS = ("ShiftGELU", "lambda-ShiftGELU", "aligned", "sigmoid GELU", "table", "table, fitted ranges")
PORT = 78.6
"""Percent of top-1 in which jmha02/I-ViT-Gemmini, a port of I-ViT, reports that its PyTorch and TVM forms agree."""


def classification(results: Results) -> Iterator[str]:
    """Every classifier that was measured."""
    if not results.classifiers:
        return
    yield "## Classification"
    yield ""
    yield from command([document["command"] for document in results.classifiers.values()])
    rows = [row for document in results.classifiers.values() for row in document["results"]["recipes"].values()]
    logits, other = (sum(row[key] for row in rows) for key in ("twin_logits", "twin_different"))
    agreed = "100 % of top-1: all" if other == 0 else f"all but {other:,} of the"
    yield from prose(f"""
        I-ViT's own task. Images are brought to a short side, the window is their middle (SPEC.md, 7.4). One calibration
        image, which is none of those that are measured. *Same* is the share of images with the top-1 of the float
        model, *twin* how many logits of the fake-quant model were compared with the engine's, and how many differ. A
        public port of I-ViT (jmha02/I-ViT-Gemmini) reports that its PyTorch and its TVM form agree on {PORT} % of
        top-1: each has its own rounding. Here the PyTorch form and the engine agree on {agreed} {logits:,} logits are
        equal.
    """)
    for name, document in results.classifiers.items():
        yield from _one(name, document)


def _one(name: str, document: Document) -> Iterator[str]:
    found, images = document["results"], document["images"]

    def percent(count: int) -> str:
        return f"{100 * count / images:.2f}"

    rows = [["float", percent(found["float"]["top1"]), percent(found["float"]["top5"]), "", "", ""]]
    for recipe, row in found["recipes"].items():
        twin = f"{row['twin_logits']:,}, {row['twin_different']} differ"
        cells = [percent(row[key]) for key in ("top1", "top5", "same")]
        rows.append([f"`{recipe}`", *cells, twin, f"{row['ms']:.0f}"])
    yield f"`{name}`, {images} images, calibrated on {document['calibration']}:"
    yield ""
    yield from table(("recipe", "top-1 %", "top-5 %", "same %", "twin", "ms, one thread"), rows)
    yield "Root mean square error of its GELUs as in Table 1, and the unit that reaches furthest:"
    yield ""
    blocks = found["gelu"]
    cells = [
        [block, f"{entry['largest_input']:.0f}", str(entry["channel"])]
        + [significant(entry["rmse"][variant]) for variant in GELUS]
        for block, entry in blocks.items()
    ]
    yield from table(("block", "largest input", "unit", *GELUS), cells)
    worst = max(blocks, key=lambda block: blocks[block]["largest_input"])
    largest, chosen = blocks[worst]["largest_input"], found["recipes"]["intseg"]["gelu"][f"{worst}.mlp.act"]
    yield from prose(f"""
        {worst} has inputs of {largest:.0f} in unit {blocks[worst]["channel"]}, at a few tokens; `intseg quant-report`
        names it first among its channels. One INT8 range for all units would give every other input a step of
        {largest / 255:.2f}. What `intseg` chose there: {chosen}. A divided unit keeps what lies inside the table, units
        whose outputs hardly vary give way to the parts above it, and the graph keeps its shape.
    """)
