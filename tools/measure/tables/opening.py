"""What RESULTS.md and README.md begin with: accuracy, size and speed of what the package holds."""

from __future__ import annotations

from collections.abc import Iterator

from intseg.reports.card import WEAK
from intseg.tools.measure.tables.markdown import prose, table
from intseg.tools.measure.tables.results import RECIPES, Results, metrics, miou, same
from intseg.tools.measure.tables.speed import sentence

_BUNDLED = "bundled"


def accuracy(results: Results) -> Iterator[str]:
    """The bundled model's recipes from one calibration image beside its float checkpoint; what it hardly finds.

    Nothing where it was not measured.
    """
    found = results.of("ptq", _BUNDLED)
    if found is None:
        return
    document = results.found["ptq"][_BUNDLED]
    measured = {row["recipe"]: row for row in found["rows"] if row["images"] == 1}
    rows = {"float, in PyTorch": found["float"]["bilinear, L2"]}
    rows |= {f"integers, recipe `{name}`": measured[name] for name in reversed(RECIPES) if name in measured}
    yield from table(
        (f"CamVid val, {document['images']} images", "mIoU %", "pixel accuracy %", "pixels equal to float %"),
        [[title, f"{miou(row):.2f}", f"{metrics(row).aacc:.2f}", f"{same(row):.2f}"] for title, row in rows.items()],
    )
    iou = metrics(measured["intseg"]).iou if "intseg" in measured else []
    weak = [
        f"{label} {value:.0f}"
        for label, value in zip(document["classes"], iou, strict=False)
        if value is not None and value < WEAK
    ]
    if weak:
        yield f"It hardly finds (IoU %): {', '.join(weak)}."
        yield ""


def opening(results: Results) -> Iterator[str]:
    """Accuracy, size, speed."""
    yield "# Results"
    yield ""
    found = results.of("ptq", _BUNDLED)
    if found is not None:
        yield "**Accuracy.** The bundled model, quantized with one calibration image, windows of 256 x 256:"
        yield ""
        yield from accuracy(results)
        size = next((row["bytes"] for row in found["rows"] if row["recipe"] == "intseg"), None)
        if size:
            yield from prose(f"""
                **Size.** Its file has {size / 1e6:.2f} MB; the parameters in FP32 have {found["float_bytes"] / 1e6:.2f}
                MB, {found["float_bytes"] / size:.2f} times as many.
            """)
    if results.bench:
        yield f"**Speed.** {sentence(results)}"
        yield ""
        yield "![Milliseconds of one image by model and program](pictures/results_speed.svg)"
        yield ""
