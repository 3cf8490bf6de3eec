"""The commands that take a model to other people's tools."""

from __future__ import annotations

import argparse
from pathlib import Path

from intseg.cli.parser import Command, WrittenFolder, add_model, require_ending
from intseg.cli.printing import Answer, count, say, wrote
from intseg.errors import MismatchError, UsageError

_EXPORT = """\
Write a model as ONNX: standard integer operators only, no float anywhere, the same bits (docs/ONNX.md). One window of
pixels in, `image` uint8 [H, W, 3]; the scores of the graph's output node out. Every op is a local function with its
registers by name, every node a call of it under the graph's own name.

examples:
  intseg export camvid-tiny -o camvid-tiny.onnx
  intseg export model.safetensors -o model.onnx --labels
  intseg verify --onnx model.onnx -w model.safetensors
  intseg export --cases -o cases               op cases as ONNX node tests
"""


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UsageError("ONNX models need the package onnx: pip install 'intseg[onnx]'") from None


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    text = "ONNX file (.onnx); with --cases a new folder"
    parser.add_argument("-o", "--output", required=True, type=WrittenFolder, metavar="FILE", help=text)
    parser.add_argument("--labels", action="store_true", help="also give the class of every pixel of the window")
    parser.add_argument("--cases", action="store_true", help="op cases in the layout of ONNX node tests, no model")


def _export(args: argparse.Namespace) -> Answer:
    from intseg import api, files

    _need_onnx()
    from intseg.export import onnx_cases, onnx_model

    if args.cases:
        number = onnx_cases.write(Path(args.output))
        return wrote(args.output, count(number, "op case"), cases=number)
    require_ending(args.output, ".onnx")
    made = onnx_model.model(api.load(args.weights).graph, args.labels)
    data = made.SerializeToString(deterministic=True)
    files.write_atomically(Path(args.output), data)
    operators = sum(len(function.node) for function in made.functions)
    facts = {
        "bytes": len(data),
        "nodes": len(made.graph.node),
        "functions": len(made.functions),
        "operators": operators,
    }
    about = (
        f"{count(facts['nodes'], 'node')}, {count(facts['functions'], 'function')} of {count(operators, 'operator')}, "
        f"{len(data) / 1e6:.1f} MB, opset {onnx_model.OPSET}"
    )
    return wrote(args.output, about, opset=onnx_model.OPSET, form="exact", **facts)


def verify_onnx(path: str, weights: str | None, windows: int) -> Answer:
    """An exported model in every ONNX runtime that is installed, node by node against the engine."""
    import numpy as np

    from intseg import api, files

    _need_onnx()
    from intseg.export import onnx_check

    graph = api.load(weights).graph
    made = onnx_check.read(path, files.read(path))
    onnx_check.require_export(path, made, graph)
    numbers = np.random.default_rng(0)
    images = [numbers.integers(0, 256, (*graph.info.window, 3), np.uint8) for _ in range(windows)]
    lines, entries = [], []
    for found in onnx_check.compare(made, graph, images, onnx_check.installed(say)):
        differ = [node for node, *_ in found.differ]
        lines.append(f"{found.runtime}: {count(found.compared, 'node')} compared, {len(differ)} differ")
        lines += [f"first: {text}" for text in map(onnx_check.describe, found.differ[:1])]
        entries.append(
            {"runtime": found.runtime, "compared": found.compared, "different": len(differ), "nodes": differ}
        )
    wrong = [line for line in lines if line.startswith("first: ")]
    failure = MismatchError(f"{path}: {wrong[0].removeprefix('first: ')}") if wrong else None
    return Answer(lines if wrong else [*lines, "ok: all equal"], {"runs": entries, "ok": not wrong}, failure=failure)


EXPORT = Command("export", "write a model as ONNX", _EXPORT, _export_arguments, _export)
