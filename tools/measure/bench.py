"""Side by side: intseg and four float and INT8 peers on one Segmenter, whole image to labels.

python tools/measure/bench.py --models tiny,small --threads 1,2 --json out.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import logging
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
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
    l2norm: bool = False
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
        out = "int16" if size.l2norm else "int8"
        ends = []
        for part, start, stop in (("patch", 0, cells), ("classes", cells, tokens)):
            rows = self.node(f"decoder.{part}", "slice", x, start=start, stop=stop)
            rows = self.linear(f"decoder.proj_{part}", rows, size.width, out)
            if size.l2norm:
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

Runner = Callable[[], Any]
PEERS = ("torch fp32 sdpa", "ort fp32", "ort dynamic int8", "ort static qdq int8")


def labels_of(graph: Graph, image: Array, backend: str, threads: int) -> Runner:
    """Image to labels by one of our backends."""
    run = backends.compile(graph, backend, threads)
    info = graph.info

    def call() -> Array:
        scores = run(image).astype(np.int32)
        height, width = image.shape[:2]
        return backends.class_map(scores, info.upsample, info.patch, height, width, backend, threads)

    return call


def float_model(name: str, shape: Shape) -> Any:
    """The same Segmenter in PyTorch: uint8 [1, H, W, 3] to labels, attention through SDPA where asked."""
    import torch

    from intseg.tools.twin.segmenter import Attention, config_for, random_segmenter

    window = (shape.image, shape.image)
    model = random_segmenter(config_for(name, n_cls=shape.classes, image_size=window), 0)

    class Labels(torch.nn.Module):
        """Normalisation, scores, bilinear upsampling, argmax."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("mean", torch.tensor(model.config.mean).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(model.config.std).view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
            return self.model(x, False).argmax(1)

    def sdpa(self: Any, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        z = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.proj(z.transpose(1, 2).reshape(batch, tokens, width))
        return out

    for module in model.modules():
        if isinstance(module, Attention):
            module.plain, module.forward = module.forward, types.MethodType(sdpa, module)
    return Labels().eval()


def export_onnx(name: str, shape: Shape, image: Array, wanted: Sequence[str], folder: Path) -> dict[str, Path]:
    """The float graph and its INT8 forms, by peer name; attention as plain operators, which ONNX Runtime fuses.

    Every stage is a process of its own: what one of them leaves behind in memory would not let the next one fit
    (Segmenter-Large on 24 GiB).
    """
    paths = {peer: folder / f"{peer.replace(' ', '-')}.onnx" for peer in wanted}
    exported, prepared = folder / "exported.onnx", folder / "prepared.onnx"
    stages: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(_export_float, (name, shape, image, exported))]
    if set(wanted) - {PEERS[1]}:
        stages.append((_prepare, (exported, prepared)))
    if PEERS[2] in wanted:
        stages.append((_quantize_dynamic, (prepared, paths[PEERS[2]])))
    if PEERS[3] in wanted:
        stages.append((_quantize_static, (prepared, paths[PEERS[3]])))
    for stage, arguments in stages:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(stage, *arguments).result()
    prepared.unlink(missing_ok=True)
    return paths | ({PEERS[1]: exported} if PEERS[1] in wanted else {})


def _export_float(name: str, shape: Shape, image: Array, path: Path) -> None:
    import torch

    from intseg.tools.twin.segmenter import Attention

    labels = float_model(name, shape)
    for module in labels.modules():
        if isinstance(module, Attention):
            module.forward = module.plain
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = torch.from_numpy(image[None])
        names = {"input_names": ["image"], "output_names": ["labels"]}
        torch.onnx.export(labels, (pixels,), path, dynamo=False, opset_version=17, **names)


def _prepare(source: Path, target: Path) -> None:
    from onnxruntime.quantization import shape_inference

    logging.disable(logging.WARNING)
    shape_inference.quant_pre_process(source, target, skip_symbolic_shape=True)


def _quantize_dynamic(source: Path, target: Path) -> None:
    from onnxruntime import quantization

    logging.disable(logging.WARNING)
    quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QInt8)


def _quantize_static(source: Path, target: Path) -> None:
    """QDQ with the same range for every tensor: speed does not depend on scales, and the library's calibration keeps
    every intermediate of the graph at once, 8 GB for Base."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.quantize import save_tensors_data

    logging.disable(logging.WARNING)
    graph = onnx.load(source).graph
    names = {name for node in graph.node for name in (*node.input, *node.output)} | {x.name for x in graph.input}
    ranges = dict.fromkeys(sorted(names), (np.float32(-4), np.float32(4)))
    del graph
    cache = target.with_suffix(".json")
    save_tensors_data(TensorsData(quantization.CalibrationMethod.MinMax, ranges), cache)
    quantization.quantize_static(
        source,
        target,
        None,
        calibration_cache_path=cache,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Conv", "Add"],
    )


def ort_runner(path: Path, image: Array, threads: int) -> Runner:
    """One ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": image[None]})[0]


def torch_runner(labels: Any, image: Array, threads: int) -> Runner:
    """Eager PyTorch."""
    import torch

    def call() -> Any:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return labels(torch.from_numpy(image[None]))

    return call


def peer_runners(name: str, shape: Shape, image: Array, wanted: Sequence[str], folder: Path) -> dict[str, Any]:
    """Peer -> function from a number of threads to a runner."""
    if not wanted:
        return {}
    makers: dict[str, Any] = {}
    if set(wanted) - {PEERS[0]}:
        for peer, path in export_onnx(name, shape, image, wanted, folder).items():
            makers[peer] = functools.partial(ort_runner, path, image)
    if PEERS[0] in wanted:
        makers[PEERS[0]] = functools.partial(torch_runner, float_model(name, shape), image)
    return {peer: makers[peer] for peer in wanted}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def clock(threads: int) -> Callable[[], float]:
    """CPU time of this thread for one thread (other programs do not count), wall time for more."""
    return time.thread_time if threads == 1 else time.perf_counter


def medians(runners: Mapping[str, Runner], rounds: int, threads: int) -> dict[str, float]:
    """Milliseconds by name: the median over rounds in which everybody runs once, after one run to warm up."""
    now, times = clock(threads), {name: list[float]() for name in runners}
    for i in range(rounds + 1):
        for name, run in runners.items():
            time.sleep(0.02 if threads == 1 else 0.3)  # pools of the one before spin for a while
            start = now()
            run()
            if i:
                times[name].append(now() - start)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def scaling(graph: Graph, image: Array, threads: Sequence[int], rounds: int) -> dict[str, Any]:
    """Wall time of one thread and of every other number, by turns; how many times faster each is than one thread."""
    runners = {str(n): labels_of(graph, image, "numba", n) for n in sorted({1, *threads})}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for i in range(rounds + 1):
        for name, run in runners.items():
            time.sleep(0.02)
            start = time.perf_counter()
            run()
            if i:
                times[name].append(time.perf_counter() - start)
    ms = {name: 1e3 * statistics.median(found) for name, found in times.items()}
    return {"ms": ms, "speedup": {name: ms["1"] / found for name, found in ms.items() if name != "1"}}


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
        now = clock(threads)
        start = now()
        run_parallel([lambda: run(rounds, 3)] * threads, threads)
        best = max(best, threads * rounds * macs / (now() - start) / 1e9)
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
    """Seconds and output of a Python program in a process of its own."""
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
from intseg.cli import main
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
    for name in ("numpy", "numba", "llvmlite", "torch", "onnx", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
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
    peers = peer_runners(name, shape, image, options.peers, folder)
    result: dict[str, Any] = {}
    for threads in options.threads:
        runners = {"intseg": labels_of(graph, image, "numba", threads)}
        runners |= {peer: make(threads) for peer, make in peers.items()}
        peak = peak_gmacs(threads)
        found = medians(runners, options.rounds, threads)
        ours = found.pop("intseg")
        numpy_ms = (
            medians({"": labels_of(graph, image, "numpy", 1)}, 1, 1)[""] if options.numpy and threads == 1 else None
        )
        entry = {
            "intseg_ms": ours,
            "peers_ms": found,
            "peak_gmacs": max(peak, peak_gmacs(threads)),
            "numpy_ms": numpy_ms,
        }
        entry["ratio"] = min(found.values()) / ours if found else None
        entry["ops"] = op_table(graph, image, options.rounds, entry["peak_gmacs"]) if threads == 1 else []
        result[str(threads)] = entry
        print_entry(name, threads, entry)
    if max(options.threads) > 1:
        result["scaling"] = scaling(graph, image, options.threads, 2 * options.rounds)
        for number, speedup in result["scaling"]["speedup"].items():
            print(f"{name}: {number} threads are {speedup:.2f} times as fast as one (wall time, by turns, alone)")
    result["peak_memory_mb"] = peak_memory_mb(graph, folder, max(options.threads))
    print(f"peak memory {result['peak_memory_mb']:.0f} MB\n", flush=True)
    return result


def print_entry(name: str, threads: int, entry: Mapping[str, Any]) -> None:
    """One block of text."""
    print(f"{name}, {threads} thread(s): register peak {entry['peak_gmacs']:.0f} GMAC/s")
    print(f"  {'intseg numba':22}{entry['intseg_ms']:10.1f} ms")
    if entry["numpy_ms"]:
        print(f"  {'intseg numpy':22}{entry['numpy_ms']:10.1f} ms   {entry['numpy_ms'] / entry['intseg_ms']:8.2f}x")
    for peer, ms in entry["peers_ms"].items():
        print(f"  {peer:22}{ms:10.1f} ms   {ms / entry['intseg_ms']:8.2f}x")
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
        ms = medians({"intseg": labels_of(graph, image, "numba", 1)}, rounds, 1)["intseg"]
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
    parser.add_argument("--peers", default=",".join(PEERS), help="peers to run, by name; empty for none")
    parser.add_argument("--numpy", action="store_true", help="time the NumPy backend too (seconds an image)")
    parser.add_argument("--cold", action="store_true", help="time `intseg infer` as a new process")
    parser.add_argument("--sweep", default="", help="cost against image size for these models")
    parser.add_argument("--sides", default="256,384,512,768,1024,1280,1536", help="image sizes of the sweep")
    parser.add_argument("--plot", type=Path, help="write the sweep as SVG")
    parser.add_argument("--json", type=Path, help="write everything measured; other models that the file has stay")
    options = parser.parse_args(arguments)
    for name, kind in (("models", str), ("threads", int), ("peers", str), ("sweep", str), ("sides", int)):
        setattr(options, name, [kind(v.strip()) for v in getattr(options, name).split(",") if v.strip()])
    unknown = set(options.models + options.sweep) - set(SHAPES) | set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; models: {', '.join(SHAPES)}; peers: {', '.join(PEERS)}")
    return options


def _with_earlier(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """A report with what an earlier one of the same machine has besides: large models need a run of their own."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if earlier.get("machine") != report["machine"]:
        return report
    merged = {key: {**earlier.get(key, {}), **report[key]} for key in ("results", "sweep")}
    return {**earlier, **report, **merged}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    report: dict[str, Any] = {"machine": machine(), "results": {}, "sweep": {}}
    print(json.dumps(report["machine"]), flush=True)
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            report["results"][name] = bench_model(name, options, Path(folder))
    if options.cold:
        with tempfile.TemporaryDirectory() as folder:
            report["cold_start_s"] = cold_start_s(Path(folder))
        print("intseg infer:", {name: f"{seconds:.2f} s" for name, seconds in report["cold_start_s"].items()})
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
