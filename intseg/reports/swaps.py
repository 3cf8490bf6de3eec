"""What a quantization report swaps, and what it asks by that (intseg/reports/quantization.py runs it)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from intseg.exam import EXAMS
from intseg.graph import Graph, Node
from intseg.ops import MOVERS
from intseg.reports.inspect import block_of

KINDS = {exam.op: exam.kind for exam in EXAMS.values() if exam.kind}
APPROXIMATIONS = {exam.op: exam.approximates for exam in EXAMS.values() if exam.approximates}

Modes = tuple[tuple[str, str], ...]
"""(node, how it is computed) of the nodes that a variant computes in another way than its base.

In the real graph:    "integer"        the exact result plus the whole error of the integer op
                      "approximation"  plus its error without rounding and saturation of the result
                      "rounding"       rounded, not saturated
                      "saturation"     saturated, not rounded
                      "channels"       rounded to 256 levels between the extremes of each channel in this window
                      "weights"        its weights moved by a random part of half a step: what may have been rounded
In the integer graph: "real"           exact, then rounded and saturated
In both:              "unit rows"      a product of rows of length one
"""


@dataclass(frozen=True)
class Variant:
    """A way to run the graph: a base, "real" or "integer", with some nodes computed in another way."""

    base: str
    modes: Modes
    upsample: str

    @property
    def scored(self) -> Variant:
        """What decides its scores: the upsampling comes after them."""
        return Variant(self.base, self.modes, "")


@dataclass(frozen=True)
class Question:
    """A row of the report.

    in_real     (with it, without it): two variants near the real graph
    in_integer  (without it, with it, reference): two variants near the integer graph, and what both are compared with
    """

    group: str
    name: str
    nodes: int
    in_real: tuple[Variant, Variant] | None = None
    in_integer: tuple[Variant, Variant, Variant] | None = None


def questions(graph: Graph, per_node: bool = False) -> list[Question]:
    """What the report asks of a graph: every kind, every layer, every approximation; every node if wanted."""
    nodes = [node for node in graph.nodes if node.op in KINDS]
    found = [_swap("kinds", name, group) for name, group in _groups(nodes, lambda node: KINDS[node.op])]
    found += [_swap("layers", name, group) for name, group in _groups(nodes, lambda node: block_of(node.name))]
    found += [_swap("nodes", node.name, [node]) for node in nodes if per_node]
    for op, group in _groups(nodes, lambda node: node.op):
        if op in APPROXIMATIONS:
            found.append(_approximation(APPROXIMATIONS[op], group, "approximation"))
    for dtype, group in _groups(nodes, lambda node: node.dtype):
        found.append(_approximation(f"rounding to {dtype.upper()}", group, "rounding"))
    found.append(_approximation("saturation", nodes, "saturation"))
    weighted = [node for node in nodes if node.op == "linear"]
    if weighted:
        found.append(_approximation("rounding of weights, a guess", weighted, "weights"))
    ranged = [node for node in nodes if node.dtype == "int8" and node.op != "quantize_input"]
    if ranged:
        found.append(_approximation("INT8 if channels had own ranges", ranged, "channels"))
    if graph.info.upsample == "nearest" and not graph.info.classifies:
        in_real = Variant("real", (), "nearest"), REFERENCE
        in_integer = INTEGER, Variant("integer", (), "nearest"), REFERENCE
        found += [Question(g, "nearest for bilinear", 0, in_real, in_integer) for g in ("kinds", "approximations")]
    masks = dropped_norm(graph)
    if masks is not None:
        kept, restored = (Variant(base, ((masks, "unit rows"),), "bilinear") for base in ("real", "integer"))
        found.append(Question("approximations", "dropped L2 norm", 1, (REFERENCE, kept), (restored, INTEGER, kept)))
    return found


REFERENCE = Variant("real", (), "bilinear")
"""All real, with bilinear upsampling: what the integer model is compared with."""

INTEGER = Variant("integer", (), "bilinear")
"""All integer. The upsampling is bilinear here too, so that `nearest` covers nothing up: it is a row of its own."""

MODEL = Variant("integer", (), "own")
"""What the model gives, with its own upsampling."""


def _groups(nodes: Sequence[Node], key: Callable[[Node], str]) -> Iterator[tuple[str, list[Node]]]:
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        groups.setdefault(key(node), []).append(node)
    yield from groups.items()


def _variant(base: str, nodes: Sequence[Node], mode: str) -> Variant:
    return Variant(base, tuple((node.name, mode) for node in nodes), "bilinear")


def _swap(group: str, name: str, nodes: Sequence[Node]) -> Question:
    return Question(group, name, len(nodes), (_variant("real", nodes, "integer"), REFERENCE), _made_exact(nodes))


def _approximation(name: str, nodes: Sequence[Node], mode: str) -> Question:
    in_integer = _made_exact(nodes) if mode == "approximation" else None
    return Question("approximations", name, len(nodes), (_variant("real", nodes, mode), REFERENCE), in_integer)


def _made_exact(nodes: Sequence[Node]) -> tuple[Variant, Variant, Variant] | None:
    approximate = [node for node in nodes if node.op in APPROXIMATIONS]
    return (_variant("integer", approximate, "real"), INTEGER, REFERENCE) if approximate else None


def dropped_norm(graph: Graph) -> str | None:
    """The product of patches and classes that Segmenter has an L2 norm before, where the graph has none; else None.

    It is what the graph shows: scores that are the LayerNorm of a product of two linear layers' rows. Because of that
    LayerNorm the size of the product does not matter.
    """
    by_name = {node.name: node for node in graph.nodes}

    def source(name: str) -> Node | None:
        while name in by_name and by_name[name].op in MOVERS:
            name = by_name[name].inputs[0]
        return by_name.get(name)

    norm = source(graph.output)
    masks = source(norm.inputs[0]) if norm is not None and norm.op == "layernorm" else None
    if masks is None or masks.op != "matmul" or not masks.attrs["transpose_b"]:
        return None
    factors = [source(name) for name in masks.inputs]
    return masks.name if all(factor is not None and factor.op == "linear" for factor in factors) else None
