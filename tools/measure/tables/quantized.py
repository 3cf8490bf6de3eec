"""Tables 3 to 5: post-training quantization and its cost, quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterator

from intseg.tools.measure.tables.markdown import accuracy, command, prose, table
from intseg.tools.measure.tables.results import RECIPES, Document, Results


def table_3(results: Results) -> Iterator[str]:
    """Accuracy of PTQ and QAT."""
    yield "## Tables 3 and 4: accuracy"
    yield ""
    yield from command([*results.commands("ptq"), *results.commands("qat")])
    for name, found in results.each("ptq"):
        base = found["float"]["bilinear, L2"]
        rows = [["float", "-", "bilinear, L2 norm", *accuracy(base, base)]]
        rows.append(["float", "-", "nearest, no L2 norm", *accuracy(found["float"]["nearest, no L2"], base)])
        for row in sorted(found["rows"], key=lambda row: (row["images"], RECIPES.index(row["recipe"]))):
            rows.append(["PTQ", str(row["images"]), row["recipe"], *accuracy(row, base)])
        yield from _data(results.found["ptq"][name])
        trained = (results.of("qat", name) or {"rows": {}})["rows"]
        rows += [["QAT", "-", recipe, *accuracy(trained[recipe], base)] for recipe in RECIPES if recipe in trained]
        yield from table((f"{name}", "S", "recipe", "mIoU %", "change", "pixel accuracy %", "equal %"), rows)
    yield from results.missing("ptq")
    yield "The paper loses 3.9 to 6.2 points by PTQ from one image with lambda-ShiftGELU, and 0.6 to 5.0 by QAT."
    yield ""


def _data(document: Document) -> Iterator[str]:
    """A line where the table's images are others than those of the page."""
    if document.get("data", "CamVid") != "CamVid":
        yield f"{document['images']} images of {document['data']} val, S of {document['training_images']}:"
        yield ""


def table_5(results: Results) -> Iterator[str]:
    """Time and memory of PTQ and QAT."""
    yield "## Table 5: time and memory of calibration and training"
    yield ""
    yield from command(results.commands("ptq"))
    yield from prose("""
        `tools/convert.py` as a process of its own on one thread, from start to the written file: processor seconds and
        peak memory, measured by the command above; of QAT one training step of 8 crops. The paper's PTQ takes 1 s and
        1.76 GB (Tiny, S = 1) to 82 s and 12.88 GB (Large, S = 500) on an A100, its QAT 8 to 70 hours.
    """)
    rows = []
    for name, found in results.each("ptq"):
        for row in sorted(found["rows"], key=lambda row: (RECIPES.index(row["recipe"]), row["images"])):
            rows.append([name, "PTQ", row["recipe"], str(row["images"]), *_cost(row["cost"], "cpu_seconds", 0)])
        if step := found.get("training"):
            rows.append([name, "QAT, one step", "intseg", "-", *_cost(step, "cpu_seconds_per_step", 1)])
    yield from table(("checkpoint", "", "recipe", "S", "seconds", "GB"), rows)
    for name, found in results.each("ptq"):
        machine = found["machine"]
        yield f"{name} on {machine['cpu']}, PyTorch {machine.get('torch', '?')}, Python {machine['python']}."
        if found.get("training"):
            hours = 1000 * found["training"]["cpu_seconds_per_step"] / 3600
            yield f"A QAT run of 1000 such steps (the default) would take {hours:.1f} hours of one core;"
            yield "that is not measured."
    costs = [
        row["cost"]["peak_bytes"] for _, found in results.each("ptq") for row in found["rows"] if row["images"] > 99
    ]
    if any(peak > 4e9 for peak in costs):
        yield from prose("""
            GB but those of idd were measured before samples had a budget and were given back: 367 images take 1.9 GB at
            most since, one image about two thirds of its row ([QUANTIZATION](QUANTIZATION.md#calibration-images)).
        """)
    yield from _by_size(results)
    yield from prose("""
        Starting Python and PyTorch is part of the seconds. `intseg` runs seven views of each image when there are 8 or
        fewer of them (calibrate.py).
    """)


def _by_size(results: Results) -> Iterator[str]:
    """What larger networks take."""
    if results.memory is None:
        return
    found, machine = results.memory["results"], results.memory["results"]["machine"]
    sizes = found["sizes"].items()
    yield from prose(f"""
        The published sizes with random weights, windows of 512 x 512, one image, recipe {found["recipe"]}, on
        {machine["cpu"]} (`{results.memory["command"]}`):
    """)
    rows = [[name, *_cost(cost, "cpu_seconds", 0), f"{cost['bytes'] / 1e6:.0f}"] for name, cost in sizes]
    yield from table(("size", "seconds", "GB", "MB of the file"), rows)
    if old := ", ".join(name for name, cost in sizes if not cost.get("shares_weights")):
        yield from prose(f"Measured before the twin read the float model's own weights, it takes less since: {old}.")


def _cost(cost: Document, seconds: str, digits: int) -> tuple[str, str]:
    return f"{cost[seconds]:.{digits}f}", f"{cost['peak_bytes'] / 1e9:.2f}"
