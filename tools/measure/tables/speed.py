"""The tables of README.md and docs/PERFORMANCE.md that docs/results/bench.json fills, with whatever peers it holds."""

from __future__ import annotations

from collections.abc import Iterator

from intseg.tools.measure.tables.markdown import table
from intseg.tools.measure.tables.results import MISSING, PAPER_TRAFFIC, PEERS, Document, Results

_ROWS = 10
"""Kinds of op that a table of a model lists."""


def entries(results: Results) -> Iterator[tuple[str, str, Document]]:
    """(model, threads, what was measured), small models first."""
    found = results.bench["results"] if results.bench else {}
    for model in PAPER_TRAFFIC:
        for threads in sorted(key for key in found.get(model, {}) if key.isdecimal()):
            yield model, threads, found[model][threads]


def fastest(entry: Document) -> tuple[str, float] | None:
    """(program, milliseconds) of the fastest peer."""
    times = {title: entry["peers_ms"][peer] for peer, title in PEERS if peer in entry["peers_ms"]}
    return min(times.items(), key=lambda item: item[1]) if times else None


def sentence(results: Results) -> str:
    """How fast one image is, beside the fastest other program."""
    assert results.bench is not None
    parts, named = [], ""
    for model, threads, entry in entries(results):
        if threads == "1":
            own, best = entry["intseg_ms"], fastest(entry)
            beside = ""
            if best is not None and best[1] >= own:
                name = "" if named == best[0] else f" as fast as {best[0]}, the fastest of the others"
                beside, named = f", {best[1] / own:.1f} times{name}", best[0]
            elif best is not None:
                beside = f" ({best[0]} takes {best[1]:,.0f})"
            parts.append(f"{model.capitalize()} {own:,.0f} ms{beside}")
    text = f"One image of 512 x 512, 150 classes, one thread of {results.bench['machine']['cpu']}: {'; '.join(parts)}."
    return f"{text} The others: {_others(results)}."


def _others(results: Results) -> str:
    """Every peer, those of a program together."""
    kinds: dict[str, list[str]] = {}
    for title in dict.fromkeys(t for _, _, entry in entries(results) for p, t in PEERS if p in entry["peers_ms"]):
        program = next(name for name in _PROGRAMS if title.startswith(name))
        kinds.setdefault(program, []).append(title.removeprefix(program).strip())
    return "; ".join(f"{program} {', '.join(names)}" for program, names in kinds.items())


_PROGRAMS = ("PyTorch", "ONNX Runtime", "OpenVINO")


def side_by_side(results: Results) -> str:
    """Every program, every model and number of threads; what was not measured is a dash."""
    assert results.bench is not None
    found = list(entries(results))
    head = ("milliseconds", *(f"{model.capitalize()}, {threads}" for model, threads, _ in found))
    runs = [entry for _, _, entry in found]
    rows = [
        [title, *(_ms(entry["peers_ms"].get(peer)) for entry in runs)]
        for peer, title in PEERS
        if any(peer in entry["peers_ms"] for entry in runs)
    ]
    rows.append(["**intseg**", *(f"**{_ms(entry['intseg_ms'])}**" for entry in runs)])
    best = [fastest(entry) for entry in runs]
    ratios = [MISSING if b is None else f"{b[1] / entry['intseg_ms']:.2f}" for b, entry in zip(best, runs, strict=True)]
    rows.append(["the fastest other / intseg", *ratios])
    rows.append(["peak GMAC/s", *(f"{entry['peak_gmacs']:.0f}" for entry in runs)])
    machine = results.bench["machine"]
    names = {
        "numpy": "NumPy",
        "numba": "Numba",
        "llvmlite": "llvmlite",
        "torch": "PyTorch",
        "onnxruntime": "ONNX Runtime",
    }
    names |= {"openvino": "OpenVINO", "nncf": "NNCF"}
    versions = ", ".join(f"{title} {machine[name]}" for name, title in names.items() if name in machine)
    where = f"{machine['cpu']} ({machine['target']}, {machine['cores']} cores, path {machine['path']})"
    said = f"On {where}; Python {machine['python']}, {versions}; every model with the number of threads:"
    return "\n".join([said, "", *table(head, rows)]).rstrip()


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def where_it_goes(results: Results) -> str:
    """The kinds of op of each model that take longest, with one thread."""
    parts: list[str] = []
    for model, threads, entry in entries(results):
        if threads == "1" and entry["ops"]:
            rows = [
                [
                    *(op["op"], str(op["calls"]), f"{op['ms']:.2f}", f"{op['share']:.1%}"),
                    *((f"{op['gmacs']:.0f}", f"{op['of_peak']:.0%}") if op["gmac"] else ("", "")),
                ]
                for op in entry["ops"][:_ROWS]
            ]
            parts += table((model.capitalize(), "calls", "ms", "share", "GMAC/s", "of peak"), rows)
    return "\n".join(parts).rstrip()
