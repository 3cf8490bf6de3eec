"""What quantization costs, layer by layer: ranges, saturation, SQNR, and the loss that each approximation causes.

A model is run twice side by side: by its integer ops, and by `intseg.exam.real`, where nothing is rounded, saturated or
approximated. One thing at a time is then swapped between the two. In the real graph, one op gets the error that its
integers have: what it costs on its own. In the integer graph, one op is computed exactly and put back on its grid: what
a better integer version of it could win with the same bits.

A swap changes nothing before its first node, so only what follows is computed again; in memory are never more than the
live values of the two runs and of one swap.

Weights are what the file says. What their rounding may have cost is guessed: moved at random by up to half a step, they
are weights that the file could have come from. Weights that were cut off show in how many lie at an end of their range
(`cut_off`); how far they reached, only a float checkpoint says (tools/measure/quant_report.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from intseg import api, backends
from intseg.arith import limits
from intseg.batch import metrics
from intseg.batch.sources import find_sources
from intseg.errors import UsageError
from intseg.exam import EXAMS, real
from intseg.graph import IMAGE, Graph, Node, bits_of, types
from intseg.images import decode as pictures
from intseg.images.labels import Labelling
from intseg.images.labels import truth as read_truth
from intseg.images.notes import Notes
from intseg.ops import Array
from intseg.progress import Progress
from intseg.reports.swaps import KINDS, MODEL, REFERENCE, Question, Variant, questions
from intseg.windows import cut_windows, merge_scores, tile
from intseg.workbench.trace import scales as scales_of


@dataclass(frozen=True)
class Effect:
    """What a swap changes.

    pixels      (images of a classifier) in the real graph: part of those whose class changes. In the integer graph:
                part of those that agree with the real graph afterwards, minus before
    scores      error of the scores, root mean square relative to the scores: in the real graph what appears, in the
                integer graph what disappears
    miou, aacc  change in points of percent; None without labels
    """

    pixels: float
    scores: float
    miou: float | None
    aacc: float | None


@dataclass(frozen=True)
class Row:
    """An answer: how many nodes were swapped, and what that did; None where a swap has no meaning."""

    name: str
    nodes: int
    in_real: Effect | None
    in_integer: Effect | None


@dataclass
class NodeStats:
    """What a node's integers look like, over all windows.

    step         (least, greatest) real number that one integer step stands for; None without a scale tensor
    low, high    least and greatest value
    used         part of the dtype's range between them
    saturated    part of the values at an end of the dtype
    local_db     SQNR of the op alone: against its real op on the same integers; None where there is no error. Of what a
                 GELU alone reads, behind that GELU: a range that ends where it is flat loses nothing
    end_db       SQNR against the real graph, with all errors of the nodes before it, likewise
    outlier      the channel of the largest real value, that value, and how many times the median channel's largest
                 that is; None for what has no channels
    cut          part of the weights that look cut off; None for what has no weights
    """

    name: str
    op: str
    kind: str
    dtype: str
    step: tuple[float, float] | None
    low: int = 0
    high: int = 0
    used: float = 0.0
    saturated: float = 0.0
    local_db: float | None = None
    end_db: float | None = None
    outlier: tuple[int, float, float] | None = None
    cut: float | None = None


@dataclass(frozen=True)
class QuantReport:
    """Everything measured.

    changed, score_error  of the integer model against the real graph, as in `Effect`
    real, integer         (mIoU, aAcc) in percent; None without labels
    rows                  group -> rows, the most expensive first: "kinds", "layers", "approximations", perhaps "nodes"
    notes                 contradictions between scale tensors and arithmetic, weights that look cut off
    decoded               what was done to decode the images
    """

    model: api.Model
    images: int
    windows: int
    pixels: int
    seconds: float
    changed: float
    score_error: float
    real: tuple[float, float] | None
    integer: tuple[float, float] | None
    nodes: tuple[NodeStats, ...]
    rows: Mapping[str, tuple[Row, ...]]
    notes: tuple[str, ...]
    decoded: Notes


# --------------------------------------------------------------------------------------------------------- running


class _Seen:
    """Sums of one node."""

    def __init__(self, node: Node, scale: Array | None, kind: str) -> None:
        self.limits = limits(kind)
        step = None if scale is None else np.ldexp(scale[0].astype(np.float64), -scale[2].astype(np.int64))
        self.step = np.float32(1) if step is None else step.astype(np.float32)
        self.offset = np.float32(0) if scale is None else np.ldexp(scale[1] / 1.0, -scale[2]).astype(np.float32)
        span = None if step is None else (float(step.min()), float(step.max()))
        self.found = NodeStats(node.name, node.op, KINDS[node.op], node.dtype, span, 2**31, -(2**31))
        self.size = self.ends = 0
        self.signal, self.noise = [0.0, 0.0], [0.0, 0.0]
        self.reach = np.zeros(node.shape[-1] if len(node.shape) == 2 else 0)
        self.behind: Callable[[Array], Array] | None = None
        """What alone reads it, where that is a function of one number: errors count behind it."""
        self.owners: Array | None = None
        """The channel that each is a part of, and `join` says how the parts' values are that channel's."""
        self.join: np.ufunc = np.maximum

    def add(self, q: Array, local: Array, end: Array) -> None:
        """One window: the integers, the op's real result on the same inputs, the real graph's values."""
        self.found.low, self.found.high = min(self.found.low, int(q.min())), max(self.found.high, int(q.max()))
        self.size, self.ends = self.size + q.size, self.ends + int(np.isin(q, self.limits).sum())
        if self.reach.size:
            self.reach = np.maximum(self.reach, np.abs(end * self.step + self.offset).max(axis=0))
        step, offset = self.step, self.offset
        if self.behind is not None:
            step, offset = np.float32(1), np.float32(0)
            q, local, end = (self.behind(x.astype(np.float32)) for x in (q, local, end))
        for i, exact in enumerate((local, end)):
            self.signal[i] += _power(exact * step + offset)
            self.noise[i] += _power((exact - q) * step)

    def stats(self) -> NodeStats:
        low, high = self.limits
        self.found.used = (self.found.high - self.found.low) / (high - low)
        self.found.saturated = self.ends / self.size
        self.found.local_db, self.found.end_db = map(_decibels, self.signal, self.noise)
        if self.owners is not None:
            parts, self.reach = self.reach, np.zeros_like(self.reach)
            self.join.at(self.reach, self.owners, parts)
        if self.reach.size > 1 and (median := float(np.median(self.reach))) > 0:
            channel = int(self.reach.argmax())
            self.found.outlier = channel, float(self.reach[channel]), float(self.reach[channel]) / median
        return self.found


def _power(x: Array) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _decibels(signal: float, noise: float) -> float | None:
    if noise == 0:
        return None
    return 10 * math.log10(max(signal / noise, 1e-30))


class _Runner:
    """Runs windows: both bases side by side, and the end of every variant from its first swapped node on."""

    def __init__(self, graph: Graph, backend: str, variants: Sequence[Variant]) -> None:
        self.graph, self.integer_ops = graph, backends.table(backend)
        self.scales = scales_of(graph)
        self.real_ops = {node.name: real.bind(graph, node, self.scales) for node in graph.nodes}
        found = types(graph)
        self.types = {node.name: found[node.name] for node in graph.nodes}
        self.seen = {
            n.name: _Seen(n, self.scales.get(n.name), self.types[n.name]) for n in graph.nodes if n.op in KINDS
        }
        self.noisy = {n.name: _noisy(graph, n, self.scales.get(n.inputs[0])) for n in graph.nodes if n.op == "linear"}
        for node in graph.nodes:
            if node.op == "linear":
                self.seen[node.name].found.cut = cut_off(
                    graph.tensors[node.params["weight"]], found[node.params["weight"]]
                )
            self._look_behind(node)
        self.variants = list(dict.fromkeys(variant.scored for variant in variants))
        place = {node.name: i for i, node in enumerate(graph.nodes)}
        self.starting: dict[int, list[Variant]] = {}
        for variant in self.variants:
            if variant.modes:
                self.starting.setdefault(min(place[name] for name, _ in variant.modes), []).append(variant)

    def _look_behind(self, node: Node) -> None:
        """Where a node is a GELU and alone reads its input: errors of that count behind it, in real numbers."""
        source, here = self.seen.get(node.inputs[0]), self.seen.get(node.name)
        readers = [other for other in self.graph.nodes if node.inputs[0] in other.inputs]
        if EXAMS[node.op].function is not None and readers == [node] and source and here:
            source.behind = lambda x: self.real_ops[node.name](x) * here.step + here.offset
            source.owners = here.owners = real.owners_of(self.graph, self.graph.node(node.inputs[0]))
            here.join = np.add

    def run(self, window: Array) -> dict[Variant, Array]:
        """Scores of every variant for one window uint8 [H, W, 3]."""
        integers: dict[str, Array] = {IMAGE: window}
        reals: dict[str, Array] = {IMAGE: window}
        scores: dict[Variant, Array | None] = {}
        for i, node in enumerate(self.graph.nodes):
            q, exact = self._integer(node, integers), self._real(node, reals)
            if node.name in self.seen:
                self.seen[node.name].add(q, self._real(node, integers), exact)
            for variant in self.starting.get(i, ()):
                values, own = (reals, exact) if variant.base == "real" else (integers, q)
                scores[variant] = self._finish(variant, i, values, own)
            integers[node.name], reals[node.name] = q, exact
            self._free(i, integers)
            self._free(i, reals)
        bases = {"real": reals[self.graph.output], "integer": integers[self.graph.output]}
        ends = {variant: scores.get(variant) for variant in self.variants}
        return {variant: bases[variant.base] if end is None else end for variant, end in ends.items()}

    def _free(self, i: int, values: dict[str, Array]) -> None:
        for name in (*self.graph.nodes[i].inputs, self.graph.nodes[i].name):
            if self.graph.last_use[name] <= i:
                values.pop(name, None)

    def _integer(self, node: Node, values: Mapping[str, Array]) -> Array:
        inputs, params = self.graph.arguments(node, values)
        result: Array = self.integer_ops[node.op](*inputs, **params, **node.attrs)
        return result

    def _real(self, node: Node, values: Mapping[str, Array]) -> Array:
        return self.real_ops[node.name](*self._floats(node, values))

    def _floats(self, node: Node, values: Mapping[str, Array]) -> Sequence[Array]:
        """The inputs of a node, constant tensors among them."""
        return real.as_float(self.graph.arguments(node, values)[0])

    def _finish(self, variant: Variant, start: int, values: Mapping[str, Array], own: Array) -> Array | None:
        """The variant's scores, from its first swapped node on; None where the swap of a single node changes nothing.

        own   what the base gives at that node
        """
        values, modes = dict(values), dict(variant.modes)
        for i in range(start, len(self.graph.nodes)):
            node = self.graph.nodes[i]
            if node.name in modes:
                swapped = self._in_real if variant.base == "real" else self._in_integer
                values[node.name] = swapped(node, modes[node.name], values)
                if len(modes) == 1 and np.array_equal(values[node.name], own):
                    return None
            else:
                step = self._real if variant.base == "real" else self._integer
                values[node.name] = step(node, values)
            self._free(i, values)
        return values[self.graph.output]

    def _in_real(self, node: Node, mode: str, values: Mapping[str, Array]) -> Array:
        """A node of the real graph with an error of the integers."""
        if mode == "unit rows":
            return self._unit_product(node, values)
        exact = self._real(node, values)
        if mode == "weights":
            moved: Array = exact + self.noisy[node.name](*self._floats(node, values))
            return moved
        low, high = limits(self.types[node.name])
        if mode == "rounding":
            return np.floor(exact + np.float32(0.5))
        if mode == "saturation":
            return np.clip(exact, low, high)
        if mode == "channels":
            return _per_channel(exact)
        # The op's error is taken at its inputs' nearest integers, so that no error of the inputs counts.
        rounded = dict(values)
        for name in node.inputs:
            if name in self.types:
                rounded[name] = real.on_grid(values[name], self.types[name])
        ideal = self._real(node, rounded)
        if mode == "approximation":
            ideal = real.on_grid(ideal, self.types[node.name]).astype(exact.dtype)
        wrong: Array = exact + (self._integer(node, rounded) - ideal)
        return wrong

    def _in_integer(self, node: Node, mode: str, values: Mapping[str, Array]) -> Array:
        """A node of the integer graph without its approximation."""
        if mode == "unit rows":
            product = self._unit_product(node, values)
            largest = np.abs(product).max()
            return real.on_grid(product * (limits(node.dtype)[1] / (largest or 1)), node.dtype)
        return real.on_grid(self._real(node, values), self.types[node.name])

    def _unit_product(self, node: Node, values: Mapping[str, Array]) -> Array:
        """a b^T of rows of length one, in the numbers their scales say; its size is arbitrary."""
        named = zip(node.inputs, self.graph.arguments(node, values)[0], strict=True)
        a, b = (real.dequantize(self.scales.get(name), value) for name, value in named)
        a, b = (x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), 1e-30) for x in (a, b))
        product: Array = (a @ np.swapaxes(b, -1, -2) * 2.0**10).astype(np.float32)
        return product


def _noisy(graph: Graph, node: Node, scale: Array | None) -> Callable[[Array], Array]:
    """What a linear layer in real arithmetic gives more with weights moved by up to half a step, the same every time.

    scale  of its input. The numbers that the input stands for count, not its integers: biases hold what their zero
           point gives with the weights as they were
    """
    params = {role: graph.tensors[name] for role, name in node.params.items()}
    place = [other.name for other in graph.nodes].index(node.name)
    zero = np.float32(0) if scale is None else (scale[1] / scale[0]).astype(np.float32)

    def compute(x: Array) -> Array:
        weight = params["weight"]
        moved = np.random.default_rng(place).random(weight.shape, np.float32) - np.float32(0.5)
        moved *= weight.any(axis=1, keepdims=True)  # a row without weights has none that were rounded
        changed = {"weight": moved, "bias": np.zeros_like(params["bias"])}
        result: Array = real.REAL[node.op](x + zero, **{**params, **changed}, **node.attrs)
        return result

    return compute


def cut_off(weight: Array, kind: str) -> float:
    """Part of the weights [outputs, inputs] that look cut off: more at an end of their range than rounding leaves.

    A scale that a row's largest weight sets leaves that one at an end, and fewer beside it than there are a step below.
    """
    most = 2 ** (bits_of(kind) - 1) - 1
    size = np.abs(weight.astype(np.int64))
    beyond = int((size >= most).sum()) - int((size == most - 1).sum()) - len(weight)
    return max(0, beyond) / weight.size


def _per_channel(x: Array) -> Array:
    """Rounded to 256 levels between the extremes of every channel (last axis; of every head where there are heads)."""
    rows = np.atleast_2d(x)
    low, high = rows.min(axis=-2, keepdims=True), rows.max(axis=-2, keepdims=True)
    step = np.maximum((high - low) / 255, np.float32(1e-30))
    rounded: Array = np.floor((rows - low) / step + np.float32(0.5)) * step + low
    return rounded.reshape(x.shape)


# ------------------------------------------------------------------------------------------------------- measuring


@dataclass
class _Sums:
    """What a variant adds up to: confusion with the labels; against other variants, pixels that differ and errors."""

    confusion: NDArray[np.int64]
    differing: dict[Variant, int] = field(default_factory=dict)
    noise: dict[Variant, float] = field(default_factory=dict)
    power: float = 0.0

    def metrics(self) -> tuple[float, float] | None:
        """(mIoU, aAcc) in percent."""
        found = metrics.metrics(self.confusion)
        return (found.miou, found.aacc) if self.confusion.any() else None


@dataclass(frozen=True)
class Source:
    """An image, with its label image where there is one."""

    image: Path
    labels: Path | None = None


def sources(images: Sequence[str], labels: Sequence[str] | None = None) -> list[Source]:
    """Images with their label images in the same order; without labels, as `intseg infer` finds them.

    Raises UsageError unless there are as many labels as images.
    """
    if labels is None:
        return [Source(Path(found.file)) for found in find_sources(images)] if images else []
    if len(labels) != len(images):
        raise UsageError(
            f"{len(labels)} label images for {len(images)} images, expected one for each; name them in the same order"
        )
    return [Source(Path(image), Path(file)) for image, file in zip(images, labels, strict=True)]


def measure(
    images: Sequence[Source],
    weights: Any = None,
    *,
    labelling: Labelling | None = None,
    backend: str = "auto",
    per_node: bool = False,
    progress: bool = False,
) -> QuantReport:
    """Run a model on images, as integers, in real arithmetic, and with every swap.

    images    of any size; labels for all of them or for none
    weights   as of `intseg.run`
    backend   of the integer ops: the same numbers, numba is faster
    per_node  also swap every node by itself: the time grows with the square of the depth
    progress  how far it is, on standard error
    Raises InputError for an image or a label image, UsageError for no image or labels for some only.

    Matrix products run on one thread: these are small, more threads wait for each other, and the order of float sums,
    so the numbers, would depend on how many there are.
    """
    if not images:
        raise UsageError("no image; name at least one, or a data set with --root")
    if len({source.labels is None for source in images}) > 1:
        raise UsageError("label images for some images only, expected one for each; name them in the same order")
    with threadpool_limits(1, "blas"):
        return _measured(images, api.load(weights), labelling or Labelling(), backend, per_node, progress)


def _measured(
    images: Sequence[Source], model: api.Model, labelling: Labelling, backend: str, per_node: bool, progress: bool
) -> QuantReport:
    start = time.perf_counter()
    asked = questions(model.graph, per_node)
    pairs = _pairs(asked)
    runner = _Runner(model.graph, backends.resolve(backend), [variant for pair in pairs for variant in pair])
    classifies = model.info.classifies
    if classifies and any(source.labels is not None for source in images):
        raise UsageError(f"model {model.info.name} classifies images: it has no pixels to label; leave the labels out")
    n_cls = 1 if classifies else len(model.info.classes)
    sums = {variant: _Sums(np.zeros((n_cls, n_cls), np.int64)) for pair in pairs for variant in pair}
    windows, pixels, notes = 0, 0, Notes()
    with Progress("swapping", None, "window", quiet=not progress) as shown:
        for left, source in zip(range(len(images), 0, -1), images, strict=True):
            picture, truth = pictures.decode(source.image, model.info.pad), None
            notes.add(str(source.image), *picture.notes)
            if source.labels is not None:
                truth, said = read_truth(source.labels, picture, n_cls, labelling, str(source.image))
                notes.add(str(source.image), *said)
            found = _run_windows(runner, picture.rgb, model, shown, left)
            height, width, _ = picture.rgb.shape
            windows += len(next(iter(found.values())))
            pixels += 1 if classifies else height * width
            _add(sums, pairs, found, model, (height, width), truth)
    seconds = time.perf_counter() - start
    return _report(model, asked, sums, runner, (len(images), windows, pixels), seconds, notes)


def _pairs(asked: Sequence[Question]) -> list[tuple[Variant, Variant]]:
    """(variant, reference) of every comparison."""
    pairs = [(MODEL, REFERENCE)]
    for question in asked:
        if question.in_real:
            pairs.append(question.in_real)
        if question.in_integer:
            after, before, reference = question.in_integer
            pairs += [(after, reference), (before, reference)]
    return list(dict.fromkeys(pairs))


def _run_windows(
    runner: _Runner, rgb: Array, model: api.Model, progress: Progress, left: int
) -> dict[Variant, list[Array]]:
    """Scores of every variant; `left` images are to come, this one included, and are taken to be as large."""
    found: dict[Variant, list[Array]] = {variant: [] for variant in runner.variants}
    cut = list(cut_windows(rgb, model.info))
    progress.expect(progress.count + left * len(cut))
    for _, window in cut:
        for variant, scores in runner.run(window).items():
            found[variant].append(scores)
        progress.update()
    return found


def _add(
    sums: Mapping[Variant, _Sums],
    pairs: Sequence[tuple[Variant, Variant]],
    found: Mapping[Variant, Sequence[Array]],
    model: api.Model,
    size: Sequence[int],
    truth: Array | None,
) -> None:
    """Take in one image."""
    info, tiling = model.info, tile(model.info, *size)
    means = {scored: real.merge_scores(scores, tiling, info) for scored, scores in found.items()}
    labels: dict[Variant, Array] = {}
    for variant, its in sums.items():
        its_info = info if variant.upsample == "own" else replace(info, upsample=variant.upsample)
        if variant.base == "integer":  # exactly what the model gives
            merged = merge_scores(found[variant.scored], tiling, info)
            labels[variant] = backends.labels(merged, its_info, size[0], size[1], "numpy")
        else:
            labels[variant] = real.labels(means[variant.scored], its_info, size[0], size[1])
        its.power += _power(means[variant.scored])
        if truth is not None:
            its.confusion += metrics.confusion(truth, labels[variant], len(info.classes), ignore=-1)
    for variant, reference in pairs:
        its, error = sums[variant], means[variant.scored] - means[reference.scored]
        differing = int((labels[variant] != labels[reference]).sum())
        its.differing[reference] = its.differing.get(reference, 0) + differing
        its.noise[reference] = its.noise.get(reference, 0.0) + _power(error)


def _report(
    model: api.Model,
    asked: Sequence[Question],
    sums: Mapping[Variant, _Sums],
    runner: _Runner,
    counts: tuple[int, int, int],
    seconds: float,
    decoded: Notes,
) -> QuantReport:
    pixels = counts[2]

    def apart(variant: Variant, reference: Variant) -> tuple[float, float]:
        """Part of the pixels that differ, and the error of the scores."""
        error = math.sqrt(sums[variant].noise[reference] / (sums[reference].power or 1))
        return sums[variant].differing[reference] / pixels, error

    def gained(variant: Variant, base: Variant) -> tuple[float, float] | tuple[None, None]:
        after, before = sums[variant].metrics(), sums[base].metrics()
        return (after[0] - before[0], after[1] - before[1]) if after and before else (None, None)

    def cost(variant: Variant, reference: Variant) -> Effect:
        return Effect(*apart(variant, reference), *gained(variant, reference))

    def gain(after: Variant, before: Variant, reference: Variant) -> Effect:
        new, old = apart(after, reference), apart(before, reference)
        return Effect(old[0] - new[0], old[1] - new[1], *gained(after, before))

    rows: dict[str, list[Row]] = {}
    for question in asked:
        in_real = cost(*question.in_real) if question.in_real else None
        in_integer = gain(*question.in_integer) if question.in_integer else None
        rows.setdefault(question.group, []).append(Row(question.name, question.nodes, in_real, in_integer))
    return QuantReport(
        model,
        *counts,
        seconds,
        *apart(MODEL, REFERENCE),
        sums[REFERENCE].metrics(),
        sums[MODEL].metrics(),
        tuple(seen.stats() for seen in runner.seen.values()),
        {group: tuple(sorted(found, key=_expense, reverse=True)) for group, found in rows.items()},
        (*contradictions(model.graph, runner.scales), *_cut(runner)),
        decoded,
    )


MOST_CUT = 0.001
"""Part of a layer's weights that may look cut off without a word."""


def _cut(runner: _Runner) -> Iterator[str]:
    """A sentence on weights that look cut off, where there are such."""
    found = [seen.found for seen in runner.seen.values() if (seen.found.cut or 0) > MOST_CUT]
    if found:
        most = max(found, key=lambda node: node.cut or 0)
        layers = "1 layer" if len(found) == 1 else f"{len(found)} layers"
        yield (
            f"weights look cut off in {layers}, most in {most.name}: {most.cut:.1%}. What that costs is not seen here: "
            "the real graph has the same weights"
        )


def _expense(row: Row) -> tuple[float, float]:
    return (row.in_real.pixels, row.in_real.scores) if row.in_real else (-1.0, 0.0)


# ---------------------------------------------------------------------------------------------------------- scales


def contradictions(graph: Graph, scales: Mapping[str, Array]) -> Iterator[str]:
    """Sums and products whose multiplier is not what the scale tensors say (more than 1 % off), one sentence each.

    Everything in this report rests on the scales being true; a converter that writes wrong ones is found here.
    """
    for node in graph.nodes:
        steps = [_uniform(scales.get(name)) for name in (*node.inputs, node.name)]
        factors = EXAMS[node.op].factors
        for what, factor, source in factors(node.attrs) if factors is not None else ():
            yield from _contradiction(node, what, factor, steps[source], steps[-1])


def _uniform(scale: Array | None) -> float | None:
    """The step of a scale that is one number for the whole tensor."""
    return (
        math.ldexp(int(scale[0].flat[0]), -int(scale[2].flat[0])) if scale is not None and scale[0].size == 1 else None
    )


def _contradiction(node: Node, what: str, found: float, source: float | None, target: float | None) -> Iterator[str]:
    if source is not None and target and abs(found / (source / target) - 1) > 0.01:
        yield f"{node.name}: {what} is scaled by {found:.4g}, its scale tensors say {source / target:.4g}"
