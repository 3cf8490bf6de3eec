"""The peers of the benchmark: one float Segmenter in PyTorch, ONNX Runtime and OpenVINO, and its INT8 forms.

Every peer takes uint8 [1, H, W, 3] and gives labels: normalisation, upsampling and argmax are part of its graph.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from intseg.ops import Array

Runner = Callable[[Array], Array]
"""uint8 [H, W, 3] -> labels."""

PEERS: Mapping[str, tuple[str, str]] = {
    "torch fp32 sdpa": ("torch", ""),
    "ort fp32": ("float", "ort"),
    "ort dynamic int8": ("dynamic", "ort"),
    "ort static qdq int8": ("static", "ort"),
    "openvino fp32": ("float", "f32"),
    "openvino bf16": ("float", "bf16"),
    "openvino int8": ("nncf", "f32"),
    "openvino int8 + bf16": ("nncf", "bf16"),
}
"""Name -> the file it runs, and what runs it: ONNX Runtime, or OpenVINO at a precision."""

Source = tuple[str, int, int] | Path
"""A model of random weights by (size, classes, side of the window), or a checkpoint."""


def float_model(source: Source) -> Any:
    """The Segmenter in PyTorch: uint8 [1, H, W, 3] to labels, attention through SDPA where asked."""
    import torch

    from intseg.tools.twin.checkpoint import load_checkpoint
    from intseg.tools.twin.config import config_for
    from intseg.tools.twin.segmenter import Attention, random_segmenter

    if isinstance(source, Path):
        model = load_checkpoint(source)
    else:
        name, classes, side = source
        model = random_segmenter(config_for(name, n_cls=classes, image_size=(side, side)), 0)

    class Labels(torch.nn.Module):
        """Normalisation, scores, bilinear upsampling, argmax."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("mean", torch.tensor(model.config.mean).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(model.config.std).view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
            return self.model(x, isinstance(source, Path)).argmax(1)

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


# ---- files --------------------------------------------------------------------------------------------------------


def files(source: Source, images: Sequence[Array], wanted: Sequence[str], folder: Path) -> dict[str, Path]:
    """What the wanted peers run, by the words of `PEERS`; attention as plain operators, which the runtimes fuse.

    Every stage is a process of its own: what one of them leaves behind in memory would not let the next one fit
    (Segmenter-Large on 24 GiB).

    images  windows to calibrate with; of a random model the first one only says the size
    """
    kinds = {PEERS[peer][0] for peer in wanted} - {"torch"}
    found = {kind: folder / (f"{kind}.xml" if kind == "nncf" else f"{kind}.onnx") for kind in kinds}
    exported, prepared = folder / "float.onnx", folder / "prepared.onnx"
    stages: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    if kinds:
        stages.append((_export_float, (source, images[0], exported)))
    if kinds & {"dynamic", "static"}:
        stages.append((_prepare, (exported, prepared)))
    if "dynamic" in kinds:
        stages.append((_quantize_dynamic, (prepared, found["dynamic"])))
    if "static" in kinds:
        calibration = images if isinstance(source, Path) else ()
        stages.append((_quantize_static, (prepared, found["static"], calibration)))
    if "nncf" in kinds:
        stages.append((_quantize_nncf, (exported, found["nncf"], images)))
    for stage, arguments in stages:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(stage, *arguments).result()
    prepared.unlink(missing_ok=True)
    return found


def _export_float(source: Source, image: Array, path: Path) -> None:
    import torch

    from intseg.tools.twin.segmenter import Attention

    labels = float_model(source)
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


def _quantize_static(source: Path, target: Path, images: Sequence[Array]) -> None:
    """QDQ. Without images the same range for every tensor: speed does not depend on scales, and the library's
    calibration keeps every intermediate of the graph at once, 8 GB for Base."""
    from onnxruntime import quantization

    logging.disable(logging.WARNING)
    cache = None if images else _fixed_ranges(source, target.with_suffix(".json"))
    quantization.quantize_static(
        source,
        target,
        _reader(images) if images else None,
        calibration_cache_path=cache,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Conv", "Add"],
    )


def _fixed_ranges(source: Path, cache: Path) -> Path:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.quantize import save_tensors_data

    graph = onnx.load(source).graph
    names = {name for node in graph.node for name in (*node.input, *node.output)} | {x.name for x in graph.input}
    ranges = dict.fromkeys(sorted(names), (np.float32(-4), np.float32(4)))
    save_tensors_data(TensorsData(quantization.CalibrationMethod.MinMax, ranges), cache)
    return cache


def _reader(images: Sequence[Array]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"image": image[None]} for image in images]

        def get_next(self) -> dict[str, Array] | None:
            return self.left.pop(0) if self.left else None

    return Reader()


def _quantize_nncf(source: Path, target: Path, images: Sequence[Array]) -> None:
    """Post-training quantization with the preset for transformers."""
    import nncf
    import openvino

    logging.disable(logging.WARNING)
    data = nncf.Dataset(list(images), lambda image: {"image": image[None]})
    model = openvino.Core().read_model(source)
    found = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    openvino.save_model(found, target, compress_to_fp16=False)


# ---- runners ------------------------------------------------------------------------------------------------------


def runner(peer: str, source: Source, paths: Mapping[str, Path], threads: int) -> Runner:
    """A peer, ready to run."""
    kind, engine = PEERS[peer]
    if kind == "torch":
        return _torch(float_model(source), threads)
    return _ort(paths[kind], threads) if engine == "ort" else _openvino(paths[kind], threads, engine)


def _torch(labels: Any, threads: int) -> Runner:
    """Eager PyTorch."""
    import torch

    def call(image: Array) -> Array:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            found: Array = labels(torch.from_numpy(image[None]))[0].numpy()
            return found

    return call


def _ort(path: Path, threads: int) -> Runner:
    """One ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image[None]})[0][0]


def _openvino(path: Path, threads: int, precision: str) -> Runner:
    """One OpenVINO request on the CPU."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda image: np.array(request.infer({0: image[None]})[0][0])


def on(image: Array, run: Runner) -> Callable[[], Array]:
    """A runner without arguments."""
    return functools.partial(run, image)


# ---- accuracy -----------------------------------------------------------------------------------------------------


def accuracy(checkpoint: Path, root: Path, images: int, wanted: Sequence[str], folder: Path) -> dict[str, float]:
    """Share of the pixels of CamVid val that a peer labels as PyTorch in float does, window by window; and intseg's.

    Everybody calibrates with the same eight images of train.
    """
    from intseg.tools import convert
    from intseg.tools.twin.checkpoint import load_checkpoint

    model = load_checkpoint(checkpoint)
    names = {f"class {i}": (i, i, i) for i in range(model.config.n_cls)}
    info = convert.model_info(model.config, convert.recipe_for("intseg"), "bench", names)
    some = convert.find_images([root / "train"], 8)
    calibration = [window for file in some for window in convert.windows(file, info).numpy()]
    paths = files(checkpoint, calibration, wanted, folder)
    runners = {peer: runner(peer, checkpoint, paths, 1) for peer in wanted}
    runners["intseg"] = _intseg(model, info, [convert.windows(file, info) for file in some])
    exact, same, count = _torch(float_model(checkpoint), 1), dict.fromkeys(runners, 0), 0
    for file in convert.find_images([root / "val"], images):
        for window in convert.windows(file, info).numpy():
            expected = exact(window)
            count += expected.size
            for name, run in runners.items():
                same[name] += int((run(window) == expected).sum())
    return {name: number / count for name, number in same.items()}


def _intseg(model: Any, info: Any, batches: Sequence[Any]) -> Runner:
    """The engine on the model converted with its default recipe."""
    from intseg import backends
    from intseg.tools.twin.calibrate import calibrate
    from intseg.tools.twin.export import export
    from intseg.tools.twin.model import FakeQuantSegmenter
    from intseg.tools.twin.recipe import RECIPES

    twin = FakeQuantSegmenter(model, info.window, RECIPES["intseg"])
    calibrate(twin, model, batches)
    run = backends.compile(export(twin, info), "numba", 1)

    def call(image: Array) -> Array:
        height, width = image.shape[:2]
        return backends.class_map(run(image).astype(np.int32), info.upsample, info.patch, height, width, "numba", 1)

    return call
