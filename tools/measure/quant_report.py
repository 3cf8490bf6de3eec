"""Compare a weights file with the float checkpoint it was made from: what intseg quant-report cannot see.

    python tools/measure/quant_report.py checkpoint.pth camvid-tiny street.png

A row per node that the float model has too: SQNR of its weights; of its values where only the weights are rounded (the
graph in real arithmetic); and of its integers, all against the float model. The lowest first. Give the images that the
model was not calibrated on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intseg import api, backends
from intseg.errors import ModelError
from intseg.exam import real
from intseg.executor import execute
from intseg.graph import IMAGE, Graph, Node
from intseg.images import decode as pictures
from intseg.reports.table import table
from intseg.tools.convert import windows
from intseg.tools.ends import ended
from intseg.tools.evaluate import float_labels
from intseg.tools.twin.calibrate import node_of, normalise, tapped
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.segmenter import Segmenter
from intseg.windows import tile
from intseg.workbench.trace import scales as scales_of

Array = NDArray[Any]


@dataclass
class Compared:
    """Sums of one node: the float values' power, and the power of what differs, real arithmetic and integers."""

    name: str
    weight_db: float | None = None
    signal: float = 0.0
    noise: dict[str, float] = field(default_factory=lambda: {"real": 0.0, "integer": 0.0})

    def decibels(self, way: str) -> float:
        """SQNR of the values; of no error at all 300."""
        return decibels(self.signal, self.noise[way])


@dataclass(frozen=True)
class Comparison:
    """A comparison over some images; `same` is the part of the pixels with the class of the float model."""

    nodes: tuple[Compared, ...]
    constants: dict[str, float]
    same: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        nodes = [
            {"name": n.name, "weight_db": n.weight_db, "real_db": n.decibels("real"), "db": n.decibels("integer")}
            for n in self.nodes
        ]
        return {"nodes": nodes, **{key: asdict(self)[key] for key in ("constants", "same")}}


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), from -300 to 300."""
    return 10 * math.log10(min(max(signal / noise, 1e-30), 1e30)) if noise else 300.0


def weight_sqnr(graph: Graph, model: Segmenter) -> dict[str, float]:
    """SQNR of every linear node's weights against the float model's, by node.

    Both count as they meet the integers of the input: a channel that hardly varies has small steps, and its weights
    matter as little.
    """
    scales, floats = scales_of(graph), float_weights(model)
    found = {}
    for node in graph.nodes:
        if node.op == "linear" and node.name in floats and {node.name, node.inputs[0]} <= set(scales):
            weight, into = folded(graph, node, scales)
            exact = floats[node.name].double().numpy()
            if exact.shape != weight.shape:
                raise ModelError(
                    f"node {node.name!r}: weights are {list(weight.shape)}, the checkpoint's {list(exact.shape)}; "
                    "give the checkpoint that the file was converted from"
                )
            exact = exact * into
            found[node.name] = decibels(float((exact**2).sum()), float(((weight - exact) ** 2).sum()))
    return found


def float_weights(model: Segmenter) -> dict[str, Tensor]:
    """Weights [N, K] of the float model, by the node that has them as integers."""
    found = {
        node: module.weight.detach()
        for name, module in model.named_modules()
        if (node := node_of(name)) is not None and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    # A patch is flattened as (row, column, channel) by the engine, as (channel, row, column) by a convolution.
    found["encoder.patch_embed"] = found["encoder.patch_embed"].permute(0, 2, 3, 1).flatten(1)
    for name in ("proj_patch", "proj_classes"):
        if hasattr(model.decoder, name):
            found[f"decoder.{name}"] = getattr(model.decoder, name).detach().T
    return found


def folded(graph: Graph, node: Node, scales: Mapping[str, Array]) -> tuple[Array, Array]:
    """What a linear node's weights stand for, float64 [N, K], times the input's steps; these steps, float64 [1 or K].

    One step of the accumulator is mult 2^-shift steps of the output.
    """
    params = {role: graph.tensors[name] for role, name in node.params.items()}
    rows = np.ldexp(params["mult"].astype(np.float64), -params["shift"].astype(np.int64))
    out, into = (_steps(scales[name], n) for name, n in ((node.name, len(rows)), (node.inputs[0], None)))
    return params["weight"] * (rows * out)[:, None], into


def _steps(scale: Array, width: int | None) -> Array:
    """Step of every channel of the last axis."""
    steps = np.ldexp(scale[0].astype(np.float64), -scale[2].astype(np.int64))
    return np.broadcast_to(steps.reshape(-1), (width or steps.size,))


def constant_sqnr(graph: Graph, model: Segmenter) -> dict[str, float]:
    """SQNR of the learned tokens, by tensor name; those of another window than the checkpoint's are resized first."""
    scales, encoder, decoder = scales_of(graph), model.encoder, model.decoder
    grid = (graph.info.window[0] // graph.info.patch, graph.info.window[1] // graph.info.patch)
    extra = [encoder.cls_token, encoder.dist_token] if model.config.distilled else [encoder.cls_token]
    exact = {"encoder.cls_token": torch.cat([token[0] for token in extra])}
    exact["encoder.pos_embed"] = encoder.pos_embed_for(grid)[0]
    if hasattr(decoder, "cls_emb"):
        exact["decoder.cls_emb"] = decoder.cls_emb[0]
    steps = {}
    for node in graph.nodes:
        for name in set(node.inputs) & set(exact):
            if node.op == "concat" and node.name in scales:
                steps[name] = float(_steps(scales[node.name], None)[0])
            elif node.op == "add" and node.name in scales:
                branch = "ab"[node.inputs.index(name)]
                factor = math.ldexp(int(node.attrs[f"mult_{branch}"]), -int(node.attrs[f"shift_{branch}"]))
                steps[name] = factor * float(_steps(scales[node.name], None)[0])
    found = {}
    for name, step in steps.items():
        value = exact[name].detach().double().numpy()
        found[name] = decibels(float((value**2).sum()), float(((graph.tensors[name] * step - value) ** 2).sum()))
    return found


def compare(checkpoint: Segmenter, model: api.Model, images: Sequence[Path]) -> Comparison:
    """Run all three on every window of every image. Raises ModelError for a checkpoint of another model."""
    graph, scales = model.graph, scales_of(model.graph)
    _require_same(checkpoint, graph)
    weights = weight_sqnr(graph, checkpoint)
    nodes = {node.name: Compared(node.name, weights.get(node.name)) for node in graph.nodes if node.name in scales}
    cosine = any(node.name.startswith("decoder.l2_") for node in graph.nodes)
    ops = backends.table("auto")
    same, pixels = {"real": 0, "integer": 0}, 0
    for file in images:
        rgb = pictures.decode(file, graph.info.pad).rgb
        batch = windows(file, graph.info)
        scores: dict[str, list[Array]] = {"real": [], "integer": []}
        for window in batch:
            floats: dict[str, Tensor] = {}
            with torch.no_grad(), tapped(checkpoint, floats.__setitem__):
                checkpoint.forward_scores(normalise(window[None], checkpoint.config), cosine)
            integers = _integers(graph, window.numpy(), ops)
            reals = dict(_reals(graph, window.numpy(), scales))
            for way, values in (("real", reals), ("integer", integers)):
                scores[way].append(values[graph.output])
                for name in nodes.keys() & floats.keys():
                    _take(
                        nodes[name], way, real.dequantize(scales[name], values[name]), floats[name][0].double().numpy()
                    )
        size = (rgb.shape[0], rgb.shape[1])
        reference = float_labels(checkpoint, batch, size, graph.info, "bilinear")
        pixels += reference.size
        for way, found in scores.items():
            mean = real.merge_scores(found, tile(graph.info, *size), graph.info)
            same[way] += int((real.labels(mean, replace(graph.info, upsample="bilinear"), *size) == reference).sum())
    measured = sorted((node for node in nodes.values() if node.signal), key=lambda node: node.decibels("integer"))
    shares = {way: count / pixels for way, count in same.items()}
    return Comparison(tuple(measured), constant_sqnr(graph, checkpoint), shares)


def _require_same(checkpoint: Segmenter, graph: Graph) -> None:
    found, expected = checkpoint.config.n_cls, len(graph.info.classes)
    if (found, checkpoint.config.patch) != (expected, graph.info.patch):
        raise ModelError(
            f"checkpoint has {found} classes and patches of {checkpoint.config.patch}, the weights file {expected} and "
            f"{graph.info.patch}; give the checkpoint that the file was converted from"
        )


def _integers(graph: Graph, window: Array, ops: Mapping[str, Any]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    execute(graph, window, ops, lambda node, value: found.__setitem__(node.name, value))
    return found


def _reals(graph: Graph, window: Array, scales: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    values: dict[str, Array] = {IMAGE: window}
    for node in graph.nodes:
        inputs = real.as_float(graph.arguments(node, values)[0])
        values[node.name] = real.bind(graph, node, scales)(*inputs)
        yield node.name, values[node.name]


def _take(node: Compared, way: str, found: Array, exact: Array) -> None:
    """Add one window. The logits of a row may be shifted together: the softmax does not see it, and exporters do it.
    Weights count as shares of their row.
    """
    if node.name.endswith(".attn.softmax"):
        found = found / found.sum(axis=-1, keepdims=True)
    if node.name.endswith(".attn.scores"):
        found, exact = (x - x.mean(axis=-1, keepdims=True) for x in (found, exact))
    node.noise[way] += float(((found - exact) ** 2).sum())
    if way == "real":
        node.signal += float((exact**2).sum())


def lines(found: Comparison) -> Iterator[str]:
    """The table."""
    shares = ", ".join(f"{found.same[way]:.2%} {words}" for way, words in _WAYS.items())
    yield f"pixels as in the float model, all bilinear: {shares}"
    cells = [("SQNR in dB", "weights", "real", "integer")]
    for node in found.nodes:
        weight = "-" if node.weight_db is None else f"{node.weight_db:.1f}"
        cells.append((node.name, weight, f"{node.decibels('real'):.1f}", f"{node.decibels('integer'):.1f}"))
    cells += [(name, f"{db:.1f}", "-", "-") for name, db in sorted(found.constants.items())]
    yield from table(cells)


_WAYS = {"real": "with only the weights rounded", "integer": "as integers"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="quant_report.py", description="Weights file and float checkpoint side by side.")
    p.add_argument("checkpoint", type=Path, help="checkpoint.pth, or the folder it is in")
    p.add_argument("weights", help="weights file or bundled model")
    p.add_argument("images", type=Path, nargs="+", help="images, any size")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    return ended("quant_report.py", lambda: _print(args))


def _print(args: argparse.Namespace) -> None:
    found = compare(load_checkpoint(args.checkpoint), api.load(args.weights), args.images)
    for line in [json.dumps(found.as_json())] if args.json else lines(found):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
