"""Side by side: intseg and eight float and INT8 peers (`peers.py`) on one Segmenter, whole image to labels, wall time.

python tools/measure/bench.py --models tiny,small --threads 1,2 --json out.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from intseg import backends, store
from intseg.build import GraphBuilder
from intseg.graph import IMAGE, Graph, ModelInfo, validate
from intseg.ops import Array, Attr
from intseg.plan.memory import Step
from intseg.plan.plan import Plan
from intseg.plan.threads import run_parallel, thread_count
from intseg.tools.measure import peers

# ---------------------------------------------------------------------------------------------------------------------
# A graph with the shapes of a Segmenter and random integers
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of a Segmenter with a mask transformer; `image` is one window."""

    width: int
    heads: int
    layers: int
    image: int = 512
    decoder_layers: int = 2
    classes: int = 150
    patch: int = 16
    softmax: str = "exp_weights"
    gelu: str = "gelu_table"
    cosine: bool = False
    upsample: str = "bilinear"


SHAPES = {
    "tiny": Shape(192, 3, 12),
    "small": Shape(384, 6, 12),
    "base": Shape(768, 12, 12),
    "large": Shape(1024, 16, 24, image=640),
}

_SOFTMAX: Mapping[str, Mapping[str, Attr]] = {
    "softmax2": {"frac_bits": 10, "a1": 21955, "a2": 5571},
    "shiftmax": {"i0": 2**7, "k_inter": 8, "int_div_kind": "normalized", "out": "int16"},
}
_IDENTITY: Mapping[str, Attr] = {"mult_a": 2**30, "shift_a": 30, "mult_b": 2**30, "shift_b": 30}
_RESIDUAL: Mapping[str, Attr] = {"mult_a": 2046820351, "shift_a": 31, "mult_b": 1503238554, "shift_b": 31}
_GELU: Mapping[str, Attr] = {
    "i0": 32,
    "k_inter": 23,
    "lam": 6,
    "int_div_kind": "normalized",
    "k_out": 8,
    "mult": 2**30,
    "shift": 37,
}


def dyadic(scale: float) -> tuple[int, int]:
    """(mult, shift) of a real scale, mult in [2^30, 2^31)."""
    mantissa, exponent = math.frexp(scale)
    return round(mantissa * 2**31), 31 - exponent


def _info(size: Shape) -> ModelInfo:
    """One window, grey levels for colours."""
    count, window = size.classes, (size.image, size.image)
    names = tuple(f"class {i}" for i in range(count))
    palette = tuple((i % 256, i % 256, i % 256) for i in range(count))
    return ModelInfo("random", "intseg", names, palette, window, window, size.patch, (127, 127, 127), size.upsample)


class RandomGraph(GraphBuilder):
    """Builds a valid graph whose activations stay spread over their range, so that no op works on constants."""

    def __init__(self, size: Shape, seed: int = 0) -> None:
        super().__init__(_info(size))
        self.size, self.rng = size, np.random.default_rng(seed)

    def bytes(self, *shape: int) -> Array:
        """Random INT8 with a standard deviation of about 40."""
        return np.clip(self.rng.normal(0, 40, shape).round(), -127, 127).astype(np.int8)

    def words(self, *shape: int) -> Array:
        """Random INT16 with a standard deviation of 1000."""
        return self.rng.normal(0, 1000, shape).round().astype(np.int16)

    def scales(self, count: int, scale: float) -> tuple[Array, Array]:
        """Per channel multipliers and shifts around a scale."""
        pairs = [dyadic(scale * s) for s in self.rng.uniform(0.7, 1.4, count)]
        return np.array([m for m, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int8)

    def linear(self, name: str, x: str, width: int, out: str) -> str:
        """out std 40 for INT8, 1000 for INT16."""
        depth = self.shape(x)[-1]
        target = 40 if out == "int8" else 1000
        mult, shift = self.scales(width, target / (1600 * math.sqrt(depth)))
        bias = self.rng.integers(-20000, 20000, width).astype(np.int32)
        weight = self.bytes(width, depth)
        return self.node(name, "linear", x, weight=weight, bias=bias, mult=mult, shift=shift, out=out)

    def layernorm(self, name: str, x: str, out: str = "int8") -> str:
        """z has a standard deviation of 2^30 / sqrt(D)."""
        depth = self.shape(x)[-1]
        target = 40 if out == "int8" else 4000
        mult, shift = dyadic(target * math.sqrt(depth) / 2**30)
        gain = (self.rng.uniform(-1, 1, depth) * mult).astype(np.int32)
        bias = self.rng.integers(-(2 ** (shift + 4)), 2 ** (shift + 4), depth)
        return self.node(name, "layernorm", x, mult=gain, bias=bias, shift=shift, out=out)

    def matmul(self, name: str, a: str, b: str, scale: float, columns: int, transpose: int, out: str) -> str:
        """Scales per head, or per column of a head."""
        batch = self.shape(a)[:-2]
        mult, shift = self.scales(math.prod(batch) * columns, scale)
        mult, shift = mult.reshape(*batch, columns), shift.reshape(*batch, columns)
        return self.node(name, "matmul", a, b, mult=mult, shift=shift, transpose_b=transpose, out=out)

    def attention(self, name: str, x: str) -> str:
        """From INT8 tokens to the INT16 projection."""
        width, heads = self.size.width, self.size.heads
        qkv = self.linear(f"{name}.qkv", x, 3 * width, "int8")
        q, k, v = (
            self.node(f"{name}.{part}", "split_heads", qkv, heads=heads, part=i, parts=3)
            for i, part in enumerate("qkv")
        )
        mixed = self.mean if self.size.softmax == "exp_weights" else self.probabilities
        merged = self.node(f"{name}.merge", "merge_heads", mixed(name, q, k, v))
        return self.linear(f"{name}.proj", merged, width, "int16")

    def mean(self, name: str, q: str, k: str, v: str) -> str:
        """Weights of a byte: scores by a shift of about 1/1600 sqrt(dim) octaves, in 16 steps."""
        heads, tokens, dim = self.shape(q)
        halvings = round(math.log2(1600 * math.sqrt(dim) / 24))
        one, shift = np.full((heads, 1), 2**30, np.int32), np.full((heads, 1), 30 + halvings, np.int8)
        scores = self.node(f"{name}.scores", "matmul", q, k, mult=one, shift=shift, transpose_b=1, out="int16")
        powers = [round(255 * 2**7 * 2 ** (-t / 16)) for t in range(256)]
        table = np.tile(np.array(powers, np.int16), (heads, 1))
        weights = self.node(f"{name}.softmax", "exp_weights", scores, table=table)
        mult, shift = (x.reshape(heads, dim) for x in self.scales(heads * dim, math.sqrt(tokens) / 4))
        return self.node(f"{name}.context", "weighted_mean", weights, v, mult=mult, shift=shift)

    def probabilities(self, name: str, q: str, k: str, v: str) -> str:
        """softmax2 or shiftmax."""
        _, tokens, dim = self.shape(q)
        spread = 1500 if self.size.softmax == "softmax2" else 130
        scores = self.matmul(f"{name}.scores", q, k, spread / (1600 * math.sqrt(dim)), 1, 1, "int16")
        softmax = self.node(f"{name}.softmax", self.size.softmax, scores, **_SOFTMAX[self.size.softmax])
        return self.matmul(f"{name}.context", softmax, v, math.sqrt(tokens) / 2**17, dim, 0, "int8")

    def gelu(self, name: str, x: str) -> str:
        """The variant of the shape."""
        if self.size.gelu == "gelu_table":
            table = np.array([round(v / (1 + math.exp(-1.702 * v / 32))) for v in range(-128, 128)], np.int8)
            return self.node(name, "gelu_table", x, table=table)
        return self.node(name, self.size.gelu, x, **_GELU)

    def block(self, name: str, x: str) -> str:
        """One transformer block on the INT16 stream."""
        width = self.size.width
        y = self.attention(f"{name}.attn", self.layernorm(f"{name}.norm1", x))
        x = self.node(f"{name}.add1", "add", x, y, **_RESIDUAL)
        y = self.linear(f"{name}.mlp.fc1", self.layernorm(f"{name}.norm2", x), 4 * width, "int8")
        y = self.linear(f"{name}.mlp.fc2", self.gelu(f"{name}.mlp.act", y), width, "int16")
        return self.node(f"{name}.add2", "add", x, y, **_IDENTITY)

    def masks(self, x: str, cells: int) -> str:
        """Scores [cells, classes] from decoder tokens."""
        size, tokens = self.size, self.shape(x)[0]
        out = "int16" if size.cosine else "int8"
        ends = []
        for part, start, stop in (("patch", 0, cells), ("classes", cells, tokens)):
            rows = self.node(f"decoder.{part}", "slice", x, start=start, stop=stop)
            rows = self.linear(f"decoder.proj_{part}", rows, size.width, out)
            if size.cosine:
                mult, shift = dyadic(40 * math.sqrt(size.width) / 2**30)
                rows = self.node(f"decoder.l2_{part}", "l2norm", rows, mult=mult, shift=shift)
            ends.append(rows)
        masks = self.matmul("decoder.masks", ends[0], ends[1], 1000 / (1600 * math.sqrt(size.width)), 1, 1, "int16")
        return self.layernorm("decoder.mask_norm", masks, "int16")

    def build(self) -> Graph:
        """The whole model."""
        size = self.size
        side = size.image // size.patch
        table = np.stack([np.arange(-128, 128, dtype=np.int8)] * 3)
        x = self.node("quantize_input", "quantize_input", IMAGE, table=table)
        x = self.node("patchify", "patchify", x, patch=size.patch)
        x = self.linear("encoder.patch_embed", x, size.width, "int16")
        x = self.node("encoder.tokens", "concat", self.tensor("encoder.cls_token", self.words(1, size.width)), x)
        position = self.tensor("encoder.pos_embed", self.words(side * side + 1, size.width))
        x = self.node("encoder.pos_add", "add", x, position, **_RESIDUAL)
        for i in range(size.layers):
            x = self.block(f"encoder.blocks.{i}", x)
        x = self.layernorm("encoder.norm", x)
        x = self.node("encoder.patches", "slice", x, start=1, stop=side * side + 1)
        x = self.linear("decoder.proj_dec", x, size.width, "int16")
        classes = self.tensor("decoder.cls_emb", self.words(size.classes, size.width))
        x = self.node("decoder.tokens", "concat", x, classes)
        for i in range(size.decoder_layers):
            x = self.block(f"decoder.blocks.{i}", x)
        x = self.masks(self.layernorm("decoder.decoder_norm", x), side * side)
        x = self.node("scores", "to_grid", x, height=side, width=side)
        return self.graph(x)


# ---------------------------------------------------------------------------------------------------------------------
# What runs
# ---------------------------------------------------------------------------------------------------------------------

Call = Callable[[], Any]


def labels_of(graph: Graph, image: Array, backend: str, threads: int) -> Call:
    """Image to labels by one of our backends."""
    run = backends.compile(graph, backend, threads)
    info = graph.info

    def call() -> Array:
        scores = run(image).astype(np.int32)
        height, width = image.shape[:2]
        return backends.class_map(scores, info.upsample, info.patch, height, width, backend, threads)

    return call


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This process, and the threads it starts meanwhile, on that many cores, the last ones."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(frozen=True)
class Times:
    """Of one runner, in milliseconds: wall time, and CPU time of all its threads, which other programs leave alone."""

    median: float
    least: float
    cpu: float


def times(runners: Mapping[str, Call], rounds: int, threads: int) -> dict[str, Times]:
    """By name, over rounds in which everybody runs once, after one run to warm up."""
    wall, cpu = ({name: list[float]() for name in runners} for _ in range(2))
    for i in range(rounds + 1):
        for name, run in runners.items():
            time.sleep(0.02 if threads == 1 else 0.3)  # pools of the one before spin for a while
            start, used = time.perf_counter(), time.process_time()
            run()
            if i:
                wall[name].append(1e3 * (time.perf_counter() - start))
                cpu[name].append(1e3 * (time.process_time() - used))
    return {name: Times(statistics.median(row), min(row), statistics.median(cpu[name])) for name, row in wall.items()}


def scaling(graph: Graph, image: Array, threads: int, rounds: int) -> dict[str, float]:
    """One thread and so many by turns, without peers: wall time, how many times faster."""
    found = times({str(n): labels_of(graph, image, "numba", n) for n in (1, threads)}, rounds, 1)
    one, many = found["1"], found[str(threads)]
    return {"ms_1": one.median, "ms": many.median, "speedup": one.median / many.median, "least": one.least / many.least}


@functools.cache
def peak_kernel() -> Any:
    """Dot products of the instruction path on registers alone, and their multiply-accumulates per iteration."""
    import numba
    from llvmlite import ir
    from numba.core import types as nbt
    from numba.extending import intrinsic

    from intseg.kernels import _isa
    from intseg.kernels._ir import I32, Emit

    isa = _isa.select()
    count = 24 if isa.zmm else 12

    @intrinsic
    def emit(typingctx: Any, rounds: Any, seed: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            e = Emit(context, builder)
            kind = ir.VectorType(I32, e.isa.lanes)
            b = e.splat(args[1], e.isa.lanes)

            def step(i: Any, accs: list[Any]) -> list[Any]:
                # Without VNNI the product must depend on the accumulator, or it moves out of the loop.
                return [e.dot8(acc, b if e.isa.group == 4 else acc, b) for acc in accs]

            accs = e.loop(e.i64(0), args[0], 1, [e.const(kind, i) for i in range(count)], step)
            return e.sum_lanes(functools.reduce(builder.add, accs))

        return nbt.int32(nbt.int64, nbt.int32), codegen

    @numba.njit("int32(int64, int32)", nogil=True)
    def run(rounds: int, seed: int) -> int:
        return emit(rounds, seed)  # type: ignore[no-any-return, call-arg]

    return run, count * isa.lanes * isa.group


def peak_gmacs(threads: int = 1) -> float:
    """The rate of dot products from registers, over all threads."""
    run, macs = peak_kernel()
    rounds, best = 400_000, 0.0
    for _ in range(7):
        start = time.perf_counter()
        run_parallel([lambda: run(rounds, 3)] * threads, threads)
        best = max(best, threads * rounds * macs / (time.perf_counter() - start) / 1e9)
    return best


def op_table(graph: Graph, image: Array, repeats: int, peak: float) -> list[dict[str, Any]]:
    """Time of every step alone on one thread, summed by op and shape."""
    compiled = Plan(graph, 1)
    compiled(image)
    workspace = compiled._free[-1]
    calls = [
        (segment.extent or 0, step, call)
        for segment, bound in zip(compiled.segments, workspace.calls, strict=True)
        for step, call in zip(segment.steps, bound, strict=True)
    ]
    best = [math.inf] * len(calls)
    for _ in range(repeats):
        for i, (extent, _, call) in enumerate(calls):
            start = time.thread_time()
            call(0, extent, workspace.scratch[0])
            best[i] = min(best[i], time.thread_time() - start)
    table: dict[str, dict[str, Any]] = {}
    for (_, step, _), seconds in zip(calls, best, strict=True):
        name = _step_name(step, graph)
        row = table.setdefault(name, {"op": name, "calls": 0, "ms": 0.0, "gmac": 0.0})
        row["calls"], row["ms"] = row["calls"] + 1, row["ms"] + 1e3 * seconds
        row["gmac"] += step.macs / 1e9
    total = sum(row["ms"] for row in table.values())
    for row in table.values():
        row["share"] = row["ms"] / total
        row["gmacs"] = row["gmac"] / row["ms"] * 1e3 if row["ms"] else 0.0
        row["of_peak"] = row["gmacs"] / peak
    return sorted(table.values(), key=lambda row: -float(row["ms"]))


def _step_name(step: Step, graph: Graph) -> str:
    if step.op != "linear":
        return step.op or "image"
    node = graph.node(step.outputs[0].name)
    width, depth = graph.tensors[node.params["weight"]].shape
    return f"linear {depth} x {width} {node.dtype}"


def child(code: str, **environment: str) -> tuple[float, str]:
    """Seconds and output of a Python program in a process of its own, which keeps bytecode as an installed one does."""
    environment["PYTHONDONTWRITEBYTECODE"] = ""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return time.perf_counter() - start, done.stdout.strip()


_MEMORY = """
import re
from pathlib import Path
import numpy as np
from intseg import backends, store
graph = store.load({path!r})
run = backends.compile(graph, "numba", {threads})
side = graph.info.window[0]
scores = run(np.zeros((side, side, 3), np.uint8))
backends.class_map(scores.astype(np.int32), "bilinear", graph.info.patch, side, side, "numba", {threads})
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def peak_memory_mb(graph: Graph, folder: Path, threads: int) -> float:
    """Peak resident memory of a process that loads the model and labels one image, kernels compiled already."""
    path = folder / "graph.safetensors"
    store.save(graph, path)
    code = _MEMORY.format(path=str(path), threads=threads)
    child(code)
    return int(child(code)[1]) / 1024


_INFER = """
import sys
from intseg.cli.main import main
sys.exit(main(["infer", {image!r}, "-o", {out!r}]))
"""


def cold_start_s(folder: Path) -> dict[str, float]:
    """Seconds of `intseg infer` on the bundled model as a new process: empty cache, then warm (best of three)."""
    from PIL import Image

    image, cache = folder / "image.png", folder / "cache"
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(image)
    code = _INFER.format(image=str(image), out=str(folder / "labels.png"))
    empty = child(code, INTSEG_CACHE_DIR=str(cache))[0]
    return {"empty cache": empty, "warm cache": min(child(code, INTSEG_CACHE_DIR=str(cache))[0] for _ in range(3))}


# ---------------------------------------------------------------------------------------------------------------------
# Reports
# ---------------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """CPU, instruction path, versions."""
    from intseg.kernels import _isa

    versions = {}
    for name in ("numpy", "numba", "llvmlite", "torch", "onnx", "onnxruntime", "openvino", "nncf"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    target, path = _isa.current_target()[1], _isa.select().name
    cores = thread_count(None)
    return {"cpu": model, "target": target, "path": path, "cores": cores, "python": sys.version.split()[0], **versions}


def bench_model(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runners of one size, for every number of threads."""
    shape = SHAPES[name]
    graph = RandomGraph(shape).build()
    validate(graph)
    image = np.random.default_rng(1).integers(0, 256, (shape.image, shape.image, 3)).astype(np.uint8)
    source = name, shape.classes, shape.image
    paths = peers.files(source, [image], options.peers, folder)
    result: dict[str, Any] = {}
    for threads in options.threads:
        with pinned(threads):
            runners = {"intseg": labels_of(graph, image, "numba", threads)}
            for peer in options.peers:
                runners[peer] = peers.on(image, peers.runner(peer, source, paths, threads))
            entry = measure(runners, options.rounds, threads)
            if threads == 1:
                if options.numpy:
                    entry["numpy_ms"] = times({"": labels_of(graph, image, "numpy", 1)}, 1, 1)[""].median
                entry["ops"] = op_table(graph, image, options.rounds, entry["peak_gmacs"])
                at_peak = 1e3 * sum(row["gmac"] for row in entry["ops"]) / entry["peak_gmacs"]
                entry["of_peak"] = at_peak / entry["intseg_cpu_ms"]
            else:
                entry["scaling"] = scaling(graph, image, threads, 2 * options.rounds)
        result[str(threads)] = entry
        print_entry(name, threads, entry)
    result["peak_memory_mb"] = peak_memory_mb(graph, folder, max(options.threads))
    print(f"peak memory {result['peak_memory_mb']:.0f} MB\n", flush=True)
    return result


def measure(runners: Mapping[str, Call], rounds: int, threads: int) -> dict[str, Any]:
    """Times of all, the ratio of the fastest peer, and the register peak before and after."""
    peak = peak_gmacs(threads)
    found = times(runners, rounds, threads)
    ours = found.pop("intseg")
    fastest = min(found, key=lambda peer: found[peer].median, default="")
    return {
        "intseg_ms": ours.median,
        "intseg_least_ms": ours.least,
        "intseg_cpu_ms": ours.cpu,
        "peers_cpu_ms": {peer: row.cpu for peer, row in found.items()},
        "peers_ms": {peer: row.median for peer, row in found.items()},
        "peers_least_ms": {peer: row.least for peer, row in found.items()},
        "fastest": fastest,
        "ratio": found[fastest].median / ours.median if found else None,
        "cpu_ratio": min(row.cpu for row in found.values()) / ours.cpu if found else None,
        "peak_gmacs": max(peak, peak_gmacs(threads)),
        "numpy_ms": None,
        "ops": [],
    }


def print_entry(name: str, threads: int, entry: Mapping[str, Any]) -> None:
    """One block of text: median and least wall time, CPU time; ratios of both medians."""
    ours = entry["intseg_ms"]
    print(f"{name}, {threads} thread(s): register peak {entry['peak_gmacs']:.0f} GMAC/s")
    print(f"  {'':22}{'median':>10}{'least':>10}{'CPU':>10} ms")
    print(f"  {'intseg numba':22}{ours:10.1f}{entry['intseg_least_ms']:10.1f}{entry['intseg_cpu_ms']:10.1f}")
    if entry["numpy_ms"]:
        print(f"  {'intseg numpy':22}{entry['numpy_ms']:10.1f} ms   {entry['numpy_ms'] / ours:8.2f}x")
    for peer, ms in entry["peers_ms"].items():
        cpu = entry["peers_cpu_ms"][peer]
        row = f"{ms:10.1f}{entry['peers_least_ms'][peer]:10.1f}{cpu:10.1f}"
        print(f"  {peer:22}{row}{ms / ours:9.2f}x{cpu / entry['intseg_cpu_ms']:9.2f}x")
    if "of_peak" in entry:
        print(f"  its own products at the register peak would take {entry['of_peak']:.0%} of its CPU time")
    if "scaling" in entry:
        print(f"  {entry['scaling']['speedup']:.2f} times as fast as one thread (by turns, without peers)")
    for row in entry["ops"]:
        rate = f"{row['gmacs']:8.1f} GMAC/s {row['of_peak']:5.0%} of peak" if row["gmac"] else ""
        print(f"    {row['op']:28}{row['calls']:4} x {row['ms']:9.2f} ms {row['share']:6.1%} {rate}")
    sys.stdout.flush()


def sweep(name: str, sides: Sequence[int], rounds: int) -> list[dict[str, float]]:
    """Cost against the number of tokens: one window of every size, one thread."""
    rows = []
    for side in sides:
        shape = replace(SHAPES[name], image=side)
        graph = RandomGraph(shape).build()
        image = np.random.default_rng(1).integers(0, 256, (side, side, 3)).astype(np.uint8)
        ms = times({"": labels_of(graph, image, "numba", 1)}, rounds, 1)[""].median
        attention = sum(row["share"] for row in op_table(graph, image, 2, 1.0) if row["op"] == "attention")
        tokens = (side // shape.patch) ** 2 + 1
        rows.append(
            {"side": side, "tokens": tokens, "ms": ms, "us_per_token": 1e3 * ms / tokens, "attention": attention}
        )
        print(f"{name} {side:5} {tokens:6} tokens {ms:9.1f} ms {1e3 * ms / tokens:7.1f} us/token", end="")
        print(f", attention {attention:.0%}")
        sys.stdout.flush()
    return rows


def plot(curves: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Milliseconds against tokens, both logarithmic, as SVG; needs matplotlib."""
    from intseg.tools.measure.figures import cost

    points = {name: [(row["tokens"], row["ms"]) for row in rows] for name, rows in curves.items()}
    store.write_atomically(path, cost("Milliseconds against tokens", points).encode())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,small", help="of tiny, small, base, large")
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds that the medians are over")
    parser.add_argument("--peers", default=",".join(peers.PEERS), help="peers to run, by name; empty for none")
    parser.add_argument("--numpy", action="store_true", help="time the NumPy backend too (seconds an image)")
    parser.add_argument("--cold", action="store_true", help="time `intseg infer` as a new process")
    parser.add_argument("--accuracy", type=Path, help="a checkpoint: how many pixels of every peer are as in float")
    parser.add_argument("--root", type=Path, help="CamVid for --accuracy: train to calibrate with, val to count")
    parser.add_argument("--images", type=int, default=10, help="images of val for --accuracy")
    parser.add_argument("--sweep", default="", help="cost against image size for these models")
    parser.add_argument("--sides", default="256,384,512,768,1024,1280,1536", help="image sizes of the sweep")
    parser.add_argument("--plot", type=Path, help="write the sweep as SVG")
    parser.add_argument("--json", type=Path, help="write everything measured; other models that the file has stay")
    options = parser.parse_args(arguments)
    for name, kind in (("models", str), ("threads", int), ("peers", str), ("sweep", str), ("sides", int)):
        setattr(options, name, [kind(v.strip()) for v in getattr(options, name).split(",") if v.strip()])
    unknown = set(options.models + options.sweep) - set(SHAPES) | set(options.peers) - set(peers.PEERS)
    if unknown:
        known = f"models: {', '.join(SHAPES)}; peers: {', '.join(peers.PEERS)}"
        parser.error(f"unknown: {', '.join(sorted(unknown))}; {known}")
    if options.accuracy and not options.root:
        parser.error("--accuracy needs --root")
    return options


def _with_earlier(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """A report with what an earlier one of the same machine has besides: large models need a run of their own."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if earlier.get("machine") != report["machine"]:
        return report
    merged = {key: {**earlier.get(key, {}), **report[key]} for key in ("results", "sweep")}
    for name, found in report["results"].items():  # each number of threads is a run of its own
        merged["results"][name] = {**earlier.get("results", {}).get(name, {}), **found}
    return {**earlier, **report, **merged}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    if len(options.threads) > 1 and options.peers:  # their pools keep the number of cores that they found first
        given = sys.argv[1:] if arguments is None else arguments
        for threads in options.threads:
            subprocess.run([sys.executable, __file__, *given, "--threads", str(threads)], check=True)
        return 0
    report: dict[str, Any] = {"machine": machine(), "results": {}, "sweep": {}}
    print(json.dumps(report["machine"]), flush=True)
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            report["results"][name] = bench_model(name, options, Path(folder))
    if options.cold:
        with tempfile.TemporaryDirectory() as folder:
            report["cold_start_s"] = cold_start_s(Path(folder))
        print("intseg infer:", {name: f"{seconds:.2f} s" for name, seconds in report["cold_start_s"].items()})
    if options.accuracy:
        with tempfile.TemporaryDirectory() as folder:
            where = options.accuracy, options.root, options.images
            report["accuracy"] = peers.accuracy(*where, options.peers, Path(folder))
        for peer, share in report["accuracy"].items():
            print(f"  {peer:22}{share:10.3%} of the pixels as in the float model")
    for name in options.sweep:
        report["sweep"][name] = sweep(name, options.sides, min(options.rounds, 3))
    if options.plot and report["sweep"]:
        plot(report["sweep"], options.plot)
    if options.json:
        report = _with_earlier(report, options.json)
        store.write_atomically(options.json, (json.dumps(report, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
