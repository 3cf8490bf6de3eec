"""A quantization report as tables for people and as an object for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from intseg.reports.quantization import Effect, NodeStats, QuantReport, Row
from intseg.reports.table import table

_TITLES = {
    "approximations": "approximation",
    "kinds": "kind of op",
    "layers": "layer",
    "nodes": "node",
}
_WORST = 10
_OUTLIERS = 5


def as_json(report: QuantReport) -> dict[str, Any]:
    """Everything of a report, for programs. A null SQNR: no error; a null effect: the swap has no meaning; a null
    number: none that JSON knows, as of a float model that overflows."""
    info = report.model.info
    document = {
        "model": {"name": info.name, "recipe": info.recipe, "sha256": report.model.sha256},
        "images": report.images,
        "windows": report.windows,
        "pixels": report.pixels,
        "seconds": report.seconds,
        "changed": report.changed,
        "score_error": report.score_error,
        "real": _metrics_json(report.real),
        "integer": _metrics_json(report.integer),
        "nodes": [asdict(node) for node in report.nodes],
        "rows": {group: [asdict(row) for row in rows] for group, rows in report.rows.items()},
        "notes": list(report.notes),
        "decoded": report.decoded.as_json(),
    }
    known: dict[str, Any] = _known(document)
    return known


def _known(value: Any) -> Any:
    """The same, with None in place of infinities and what is no number."""
    if isinstance(value, dict):
        return {key: _known(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_known(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics_json(found: tuple[float, float] | None) -> dict[str, float] | None:
    return None if found is None else {"miou": found[0], "aacc": found[1]}


def lines(report: QuantReport, per_node: bool = False) -> Iterator[str]:
    """What `intseg quant-report` prints, within 80 columns where names allow."""
    info, labelled = report.model.info, report.integer is not None
    counts = (f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((report.images, "image"), (report.windows, "window")))
    yield f"{info.name} (recipe {info.recipe}): {', '.join(counts)}, {report.seconds:.1f} s"
    yield "integers against real arithmetic, same weights:"
    yield f"  {report.changed:.2%} of the {_unit(report)} differ, score error {report.score_error:.2%}"
    if report.real and report.integer:
        yield (
            f"mIoU {report.real[0]:.2f} % in real arithmetic, {report.integer[0]:.2f} % as integers; "
            f"aAcc {report.real[1]:.2f} %, {report.integer[1]:.2f} %"
        )
    yield from (f"note: {note}" for note in report.notes)
    unit = _unit(report)
    yield "cost, in %: its error put into the real graph;"
    yield f"  px: {unit} that change, scores: error that appears"
    yield "gain, in %: made exact in the integer graph;"
    yield f"  px: {unit} won back, scores: error that disappears"
    for group, title in _TITLES.items():
        if group in report.rows:
            yield ""
            yield from _cost_table(report.rows[group], title, labelled)
    yield ""
    ranked = sorted(report.nodes, key=lambda node: math.inf if node.local_db is None else node.local_db)
    yield "ends: values at an end of the range; SQNR in dB of the op by itself,"
    yield "  all: with all errors before it; what a GELU alone reads is judged behind it"
    yield "every node:" if per_node else f"the {min(_WORST, len(ranked))} nodes with the lowest SQNR by themselves:"
    yield from table(_node_cells(report.nodes if per_node else ranked[:_WORST]))
    yield ""
    yield "channels that reach furthest beyond the median channel of their node:"
    yield from table(_outlier_cells(report.nodes))


def _unit(report: QuantReport) -> str:
    """What has a class."""
    return "images" if report.model.info.classifies else "pixels"


def _outlier_cells(nodes: Sequence[NodeStats]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = [("node", "channel", "reaches", "times the median")]
    known = [(node.name, *node.outlier) for node in nodes if node.outlier is not None]
    for name, channel, reach, ratio in sorted(known, key=lambda entry: -entry[3])[:_OUTLIERS]:
        cells.append((name, str(channel), f"{reach:.3g}", f"{ratio:.1f}"))
    return cells


def _cost_table(rows: Sequence[Row], title: str, labelled: bool) -> Iterator[str]:
    # Three numbers for the cost, three for the gain; accuracy only where there are labels.
    head = ["cost px", "scores", *(["mIoU"] if labelled else []), "gain px", "scores", *(["mIoU"] if labelled else [])]
    cells = [(title, "nodes", *head)]
    for row in rows:
        effects = [*_effect_cells(row.in_real, labelled), *_effect_cells(row.in_integer, labelled, signed=True)]
        cells.append((row.name, str(row.nodes or "-"), *effects))
    yield from table(cells)


def _effect_cells(effect: Effect | None, labelled: bool, signed: bool = False) -> list[str]:
    if effect is None:
        return ["-"] * (2 + labelled)
    cells = [f"{100 * value:+.2f}" if signed else f"{100 * value:.2f}" for value in (effect.pixels, effect.scores)]
    if labelled:
        cells.append("-" if effect.miou is None or math.isnan(effect.miou) else f"{effect.miou:+.2f}")
    return cells


def _node_cells(nodes: Sequence[NodeStats]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = [("node", "step", "range", "used", "ends", "SQNR", "all")]
    for node in nodes:
        low, high = node.step or (math.nan, math.nan)
        step = "-" if node.step is None else f"{low:.2g}" if low == high else f"{low:.2g}..{high:.2g}"
        share = (f"{node.used:.0%}", f"{node.saturated:.1%}")
        cells.append((node.name, step, f"{node.low}..{node.high}", *share, _db(node.local_db), _db(node.end_db)))
    return cells


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"
