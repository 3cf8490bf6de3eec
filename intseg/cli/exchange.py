"""The commands that take a model to other people's tools."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intseg.cli.parser import Command, WrittenFolder, add_model, require_ending
from intseg.cli.printing import Answer, count, say, size, wrote
from intseg.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from intseg.graph import Graph

_EXPORT = """\
Write a model as ONNX: standard integer operators only, no float anywhere, the same bits (docs/ONNX.md). One window of
pixels in, `image` uint8 [H, W, 3]; the scores of the graph's output node out. Every op is a local function with its
registers by name, every node a call of it under the graph's own name.

examples:
  intseg export camvid-tiny -o camvid-tiny.onnx
  intseg export model.safetensors -o model.onnx --labels
  intseg export model.safetensors -o qdq.onnx --form qdq
  intseg verify --onnx model.onnx -w model.safetensors
  intseg export --cases -o cases               op cases as ONNX node tests
  intseg export model.safetensors -o tosa --form tosa
"""


_NO_QOPERATOR = (
    "--form qoperator: QLinearMatMul and its kin take float scales and round ties to even, so they cannot have the "
    "bits of SPEC.md, and there are none for LayerNorm and softmax; use exact for the bits or qdq for what tools fuse"
)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UsageError("ONNX models need the package onnx: pip install 'intseg[onnx]'") from None


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    text = "ONNX file (.onnx); with --cases and --form tosa a new folder"
    parser.add_argument("-o", "--output", required=True, type=WrittenFolder, metavar="FILE", help=text)
    text = (
        "exact: integer operators, the same bits; qdq: what vendor tools fuse, not exact, measured; tosa: a folder "
        "with the TOSA 1.0 graph (JSON) and one for every node, the same bits (exact)"
    )
    parser.add_argument("--form", choices=("exact", "qdq", "qoperator", "tosa"), default="exact", help=text)
    parser.add_argument(
        "--labels", action="store_true", help="also give the class of every pixel of the window, or of the image"
    )
    parser.add_argument("--cases", action="store_true", help="op cases in the layout of ONNX node tests, no model")


def _export(args: argparse.Namespace) -> Answer:
    from intseg import api, files

    if args.form == "tosa":
        return _tosa(args)
    _need_onnx()
    from intseg.export import onnx_cases, onnx_model

    if args.cases:
        number = onnx_cases.write(Path(args.output))
        return wrote(args.output, count(number, "op case"), cases=number)
    if args.form == "qoperator":
        raise UsageError(_NO_QOPERATOR)
    require_ending(args.output, ".onnx")
    graph = api.load(args.weights).graph
    made = onnx_model.model(graph, args.labels, args.form)
    data = made.SerializeToString(deterministic=True)
    files.write_atomically(Path(args.output), data)
    operators = sum(len(function.node) for function in made.functions)
    facts = {
        "bytes": len(data),
        "nodes": len(made.graph.node),
        "functions": len(made.functions),
        "operators": operators,
        "opset": made.opset_import[0].version,
    }
    about = (
        f"{count(facts['nodes'], 'node')}, {count(facts['functions'], 'function')} of {count(operators, 'operator')}, "
        f"{size(len(data))}, opset {facts['opset']}"
    )
    lines, runs, _ = _measured(made, graph, _noise(graph, 1)) if args.form == "qdq" else ([], [], [])
    answer = wrote(args.output, about, form=args.form, **facts, **({"runs": runs} if runs else {}))
    return Answer([*answer.lines, *lines], answer.document)


def _tosa(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.export import tosa

    if args.cases:
        raise UsageError("--form tosa: op cases are ONNX node tests; leave --form out")
    graph = api.load(args.weights).graph
    number, reasons = tosa.write(graph, Path(args.output), args.labels)
    ops: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        ops.setdefault(f"{graph.node(name).op}: {reason}", []).append(name)
    lines = [f"  {count(len(names), 'node')} of {why}" for why, names in sorted(ops.items())]
    answer = wrote(
        args.output, f"{number} of {count(len(graph.nodes), 'node')}", form="tosa", nodes=number, cannot=reasons
    )
    return Answer([*answer.lines, *(["not in TOSA 1.0:", *lines] if lines else [])], answer.document)


def _noise(graph: Graph, count: int) -> list[Any]:
    """Random windows."""
    import numpy as np

    numbers = np.random.default_rng(0)
    return [numbers.integers(0, 256, (*graph.info.window, 3), np.uint8) for _ in range(count)]


def _measured(
    made: Any, graph: Graph, images: list[Any], seconds: int = 90
) -> tuple[list[str], list[dict[str, object]], list[Any]]:
    """Lines and entries of a model in the runtimes that are installed, on windows; of an exact one that differs the
    first node, in words, and `Found.example`.
    """
    from intseg.export import onnx_check

    exact = onnx_check.form(made) == "exact"
    lines: list[str] = []
    entries: list[dict[str, object]] = []
    examples: list[Any] = []
    for found in onnx_check.compare(made, graph, images, onnx_check.installed(say), seconds):
        wrong, elements = (sum(getattr(node, part) for node in found.differ) for part in ("wrong", "elements"))
        about = f"{count(found.compared, 'node')} of {count(found.images, 'window')} compared"
        lines.append(f"{found.runtime}: {about}, {len(found.differ)} differ; {found.seconds:.2g} s a window")
        if exact:
            examples += [(str(found.differ[0]), found.example)] if found.differ else []
        elif found.differ:
            last = next((node.largest for node in found.differ if node.node == graph.output), 0)
            lines.append(
                f"  {100 * wrong / elements:.1f}% of their elements, scores by {last} at most; "
                f"labels: {found.labels} of {count(found.pixels, 'pixel')}"
            )
        entries.append(
            {
                "runtime": found.runtime,
                "windows": found.images,
                "compared": found.compared,
                "different": len(found.differ),
                "labels": found.labels,
                "pixels": found.pixels,
                "seconds": found.seconds,
                "nodes": [
                    {"node": n.node, "elements": n.elements, "differ": n.wrong, "largest": n.largest}
                    for n in found.differ
                ],
            }
        )
    return lines, entries, examples


def verify_onnx(path: str, weights: str | None, windows: int, seconds: int, folder: str | None = None) -> Answer:
    """An exported model in every ONNX runtime that is installed, node by node against the engine.

    windows  of noise
    seconds  processor time after which ONNX's own evaluator gets no more windows
    folder   a conformance pack or a golden folder, on whose images it is run too
    """
    from intseg import api, files

    _need_onnx()
    from intseg.conformance import verify
    from intseg.export import onnx_check
    from intseg.reports import diff_text

    model = api.load(weights)
    graph = model.graph
    made = onnx_check.read(path, files.read(path))
    onnx_check.require_export(path, made, graph)
    images = _noise(graph, windows)
    images += [] if folder is None else verify.windows_of(Path(folder), graph.info)
    lines, entries, wrong = _measured(made, graph, images, seconds)
    if onnx_check.form(made) != "exact":
        return Answer([*lines, "form qdq: not exact, and not meant to be"], {"runs": entries, "form": "qdq"})
    document = {"runs": entries, "form": "exact", "ok": not wrong}
    if not wrong:
        return Answer([*lines, "ok: all equal"], document)
    first, example = wrong[0]
    report = onnx_check.explained(model, *example)
    document |= {"diff": diff_text.as_json(report)}
    return Answer([*lines, *diff_text.lines(report)], document, failure=MismatchError(f"{path}: {first}"))


EXPORT = Command("export", "write a model as ONNX or TOSA", _EXPORT, _export_arguments, _export)
