#!/usr/bin/env python3
"""Write golden/: small models, small images, and full traces of the PyTorch twin that every backend has to repeat.

    python tools/make_golden.py             rewrite golden/; images/ stays as it is
    python tools/make_golden.py --check     write it to a temporary folder instead and compare; status 1 on a difference

Expected values come from the twin (tools/twin/) and from the sums and labels written here with PyTorch; the
engine that they judge computes none of them.

The same bytes on every machine: parameters are integers times powers of two, drawn by Python's generator. Ranges are
calibrated in float64 and then rounded to few significant bits, and every value that lies so close to a rounding
boundary that the last bits of a float could decide is refused (`nearest`). All further float64 arithmetic is exact, or
one correctly rounded operation at a time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import math
import platform
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image
from torch import Tensor, nn

import intseg
from intseg import store
from intseg.graph import ModelInfo
from intseg.ops import OPS
from intseg.tools import make_golden_ops
from intseg.tools.twin.act import Act
from intseg.tools.twin.attention import QAttention, QExpWeights
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.classifier import Classifier
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.export import export
from intseg.tools.twin.gelu import QGelu
from intseg.tools.twin.model import FakeQuant, FakeQuantClassifier, twin_of
from intseg.tools.twin.primitives import LOG2_E
from intseg.tools.twin.recipe import RECIPES, Recipe
from intseg.tools.twin.segmenter import Segmenter

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SEED = 30
WINDOW, STRIDE, PATCH, PAD = (16, 32), (8, 16), 8, (127, 126, 125)
CLASSES = {
    "background": (40, 40, 40),
    "stripe": (230, 60, 50),
    "disc": (70, 130, 180),
    "cross": (240, 200, 60),
    "edge": (90, 170, 90),
}
SIGNIFICANT_BITS = 6
"""Of every activation scale after rounding."""

BIAS_BITS = 12
"""Of every bias behind the binary point."""

MARGIN = 1e-7
"""A rounded number lies at least this far, in units of the result, from where it would round the other way."""

UNLISTED = ("MANIFEST.json", "README.md")
"""Files of golden/ that the manifest does not list."""


class WeakError(Exception):
    """A seed that makes a fragile or an empty golden vector; choose another."""


# ---------------------------------------------------------------------------------------------------------------------
# What is made, and of which images
# ---------------------------------------------------------------------------------------------------------------------


KEPT = {
    "calibration": "nine scenes of 64 x 64 pixels, one below the other, that the models are calibrated with",
    "odd": "not a multiple of the patch; two windows",
    "small": "smaller than a window",
    "wide": "2 x 3 windows; up to three of them cover a column",
    "street": "the example",
    "street_truth": "its labels",
    "leuven": "a photo, leuvenB.jpg of OpenCV's samples (Apache-2.0), scaled to 480 x 360",
}
"""Images that stay as they are: name and what they are for. Nothing writes them."""


def picture(name: str) -> np.ndarray:
    """The pixels of an image that stays: uint8 [H, W, 3]."""
    with Image.open(GOLDEN / "images" / f"{name}.png") as image:
        return np.array(image)


@dataclass(frozen=True)
class Case:
    """A model: its architecture, its arithmetic, the images it is traced on."""

    config: SegmenterConfig
    recipe: Recipe
    pictures: tuple[str, ...]
    bits: tuple[tuple[int, int], ...] = ()
    """Of weights and of activations, layer after layer and round again; none for 8 everywhere."""
    stride: tuple[int, int] = STRIDE
    working: tuple[int, int] | None = None
    """Short and long side that images are brought to; windows are then merged in pixels."""
    seed: int = SEED
    classifies: bool = False
    """One window in the middle, one class (SPEC.md, 7.4)."""


MASK = SegmenterConfig(
    image_size=WINDOW,
    patch=PATCH,
    d_model=32,
    n_layers=2,
    n_heads=2,
    mlp_dim=64,
    n_cls=len(CLASSES),
    window=WINDOW,
    stride=STRIDE,
    d_decoder=48,
    dec_layers=1,
    dec_heads=3,
    dec_mlp_dim=64,
)
LINEAR = dataclasses.replace(MASK, decoder="linear", d_decoder=0, dec_layers=0, dec_heads=0, dec_mlp_dim=0)
HEADS = dataclasses.replace(LINEAR, distilled=True, normalization="deit", stride=WINDOW)
DISTILLED = dataclasses.replace(MASK, distilled=True, normalization="deit", n_layers=1)
INTSEG = dataclasses.replace(RECIPES["intseg"], softmax="softmax2")
CASES = {
    "i-vit": Case(MASK, RECIPES["i-vit"], ("odd", "small", "wide")),
    "paper": Case(MASK, RECIPES["paper"], ("odd", "small", "wide")),
    "paper-aligned": Case(MASK, RECIPES["paper-aligned"], ("small",)),
    "intseg": Case(MASK, INTSEG, ("odd", "small", "wide")),
    "weights": Case(MASK, RECIPES["intseg"], ("odd", "small")),
    # Weights of 2 to 8 bits, activations of 4 to 8.
    "bits": Case(MASK, RECIPES["intseg"], ("odd", "small"), ((3, 6), (4, 8), (8, 4), (5, 6), (7, 7), (2, 5), (6, 4))),
    "bits-paper": Case(DISTILLED, RECIPES["paper"], ("odd",), ((4, 7), (6, 5), (2, 6), (5, 4), (3, 8))),
    # Windows at any pixel, merged in pixels, of images that are resized.
    "pixel": Case(LINEAR, RECIPES["intseg"], ("odd",), stride=(9, 21), working=(27, 60)),
    # The ops and attributes that the named recipes leave out.
    "linear": Case(
        LINEAR,
        dataclasses.replace(INTSEG, name="sigmoid", gelu="sigmoid_gelu", lam=6, k_inter=23, upsample="nearest"),
        ("odd", "small"),
    ),
    "distilled": Case(
        DISTILLED,
        dataclasses.replace(INTSEG, name="shift", softmax="shiftmax", gelu=RECIPES["i-vit"].gelu, lam=6, k_inter=23),
        ("odd", "small"),
    ),
    "classifier": Case(HEADS, RECIPES["intseg"], ("odd", "small"), seed=33, classifies=True),
}


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that are the same everywhere
# ---------------------------------------------------------------------------------------------------------------------


def draw_model(config: SegmenterConfig, seed: int, kind: type[Segmenter | Classifier] = Segmenter) -> Any:
    """A float model whose parameters are multiples of 2^-12, spread as in trained models."""
    rng = random.Random(seed)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread, centre = _spread(name, parameter.shape)
            # Four bytes summed: nearly normal, standard deviation 147.8.
            sums = [sum(rng.getrandbits(32).to_bytes(4, "little")) - 510 for _ in range(parameter.numel())]
            values = [math.floor(n * spread * 4096 / 147.8 + 0.5) / 4096 + centre for n in sums]
            parameter.copy_(torch.tensor(values).reshape(parameter.shape))
    return model.eval()


def _spread(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Standard deviation and mean of a parameter."""
    if name.endswith("bias"):
        return 0.25, 0.0
    if "norm" in name:
        return 0.4, 1.0
    if name.endswith(("_token", "pos_embed", "cls_emb")):
        return 0.5, 0.0
    if "patch_embed" in name:  # pixels count for more than the position
        return 4.0 / math.sqrt(math.prod(shape[1:])), 0.0
    if name.endswith("qkv.weight"):  # attention that is not flat
        return 2.0 / math.sqrt(shape[1]), 0.0
    if name.endswith("fc1.weight"):  # beyond 5 the lambda of the GELU's ShiftExp shows
        return 3.0 / math.sqrt(shape[1]), 0.0
    return 1.0 / math.sqrt(math.prod(shape[1:])), 0.0


def nearest(x: Tensor) -> Tensor:
    """float64 x to integers. Raises WeakError where an error of MARGIN would change the result."""
    distance = (x - torch.floor(x) - 0.5).abs().min()
    if distance < MARGIN:
        raise WeakError(f"a value lies {float(distance):.1e} from a rounding boundary, expected {MARGIN}; change SEED")
    return torch.floor(x + 0.5)


def coarse(x: Tensor, bits: int = SIGNIFICANT_BITS) -> Tensor:
    """Positive float64 x to `bits` significant bits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(nearest(mantissa * 2.0**bits), exponent - bits)


def coarsen(twin: FakeQuant) -> None:
    """Replace what calibration found by few-bit dyadic numbers close to it, and derive weight scales from these."""
    logits = {attn: attn._heads(_product(attn))[:, :1] for attn in twin.modules() if isinstance(attn, QAttention)}
    for act in twin.modules():
        if isinstance(act, Act):
            _, exponent = torch.frexp(act.scale)
            unit = torch.ldexp(torch.ones_like(act.scale), exponent - 3)
            act.set(coarse(act.scale), nearest(act.mid / unit) * unit)
    for gelu in twin.modules():
        if isinstance(gelu, QGelu):  # whole steps: the GELU's long tail at 0 is then far from a rounding boundary
            for act in {gelu.y, gelu.table_y}:
                # With few steps, where the GELU is x, x may lie exactly between two of them: not between these.
                beside = 5 / 16 if act.bits < 8 else 0
                act.mid.copy_((nearest(act.mid / act.scale) + beside) * act.scale)
    for attn, product in logits.items():  # one scale product for every head, one mid for values and context
        _, k, v = attn.qkv_act.scale.chunk(3)
        k = torch.ldexp(torch.ones_like(k), torch.frexp(k).exponent)
        q = coarse(product).expand(-1, attn.head_dim).flatten() / k
        attn.qkv_act.scale.copy_(torch.cat([q, k, v]))
        attn.context_act.mid.copy_(attn.qkv_act.mid.chunk(3)[2])
    for layer in twin.linears().values():
        layer.bias.copy_(nearest(layer.bias.double() * 2.0**BIAS_BITS) * 2.0**-BIAS_BITS)
        layer.weight_scale.copy_(layer.folded().abs().amax(dim=1).clamp(min=2.0**-20) / layer.limits()[1])


def _product(attn: QAttention) -> Tensor:
    q, k, _ = attn.qkv_act.scale.chunk(3)
    return q * k


def _refuse_fragile(twin: FakeQuant) -> None:
    """The only functions left that another machine may round differently: GELU and e^x in tables, and log2(e)."""
    if LOG2_E != 1.4426950408889634:
        raise WeakError(f"math.log2(math.e) is {LOG2_E!r} on this machine, expected 1.4426950408889634")
    q = torch.cat([torch.arange(-128, 0), torch.arange(1, 128)])
    for gelu in twin.modules():
        if isinstance(gelu, QGelu) and gelu.op == "gelu_table":
            nearest((nn.functional.gelu(gelu.table_x.dequantize(q)) - gelu.table_y.mid) / gelu.table_y.scale)
    for softmax in twin.modules():
        if isinstance(softmax, QExpWeights):
            nearest(softmax.powers())


class InDouble(nn.Module):
    """A float32 model run in float64 behind the same interface: what calibration needs of a model."""

    def __init__(self, model: Segmenter | Classifier) -> None:
        super().__init__()
        double = copy.deepcopy(model).double()
        self.config = model.config
        for name, part in double.named_children():
            setattr(self, name, part)
        self.forward_scores = lambda x, cosine: double.forward_scores(x.double(), cosine)


def make_twin(case: Case) -> FakeQuant:
    """The calibrated twin of a case."""
    model = draw_model(case.config, case.seed, Classifier if case.classifies else Segmenter)
    twin = twin_of(model, WINDOW, case.recipe)
    if case.bits:
        twin.set_bits(mixed_bits(twin, case.bits))
    # More images than calibration varies by itself: its variations interpolate in float32.
    calibrate(twin, InDouble(model), _calibration_images())
    with torch.no_grad():
        coarsen(twin)
        _refuse_fragile(twin)
    return twin.eval()


def mixed_bits(twin: FakeQuant, pairs: Sequence[tuple[int, int]]) -> dict[str, dict[str, int]]:
    """Bits of (weights, activations) for the layers in turn; those that read one activation agree about it."""
    found: dict[str, dict[str, int]] = {}
    read: dict[Act, int] = {}
    linears = twin.linears()
    for i, (name, acts) in enumerate(twin.readers().items()):
        weight, activation = pairs[i % len(pairs)]
        found[name] = {"activation": read.setdefault(acts[0], activation)}
        found[name] |= {"weight": weight} if name in linears else {}
    return found


@functools.cache
def _calibration_images() -> list[Tensor]:
    """Scenes cut into windows, uint8 [windows, H, W, 3] each."""
    height, width = WINDOW
    scenes = torch.from_numpy(picture("calibration")).reshape(-1, 4 * height, 2 * width, 3)
    return [scene.reshape(4, height, 2, width, 3).transpose(1, 2).flatten(0, 1).contiguous() for scene in scenes]


def info_of(name: str, case: Case) -> ModelInfo:
    """What the model file says beside its arithmetic."""
    about = {"stride": WINDOW, "upsample": "nearest", "task": "classification"} if case.classifies else {}
    info = ModelInfo(
        name=f"golden-{name}",
        recipe=case.recipe.name,
        classes=tuple(CLASSES),
        palette=tuple(CLASSES.values()),
        window=WINDOW,
        stride=case.stride,
        patch=PATCH,
        pad=PAD,
        upsample=case.recipe.upsample,
        merge="pixel" if case.working else "grid",
        working_size=case.working,
        source=f"random weights, tools/make_golden.py, seed {case.seed}",
    )
    return dataclasses.replace(info, **about)


# ---------------------------------------------------------------------------------------------------------------------
# Expected values
# ---------------------------------------------------------------------------------------------------------------------


def axis(size: int, window: int, stride: int, unit: int) -> tuple[int, list[int], Tensor]:
    """Padded size, window starts, and the weight L / n of every cell of `unit` pixels, of one axis (SPEC 7)."""
    padded = max(window, math.ceil(size / unit) * unit)
    starts = [0]
    while starts[-1] + window < padded:
        starts.append(min(starts[-1] + stride, padded - window))
    counts = [sum(s <= cell * unit < s + window for s in starts) for cell in range(padded // unit)]
    return padded, starts, torch.tensor([math.lcm(*counts) // n for n in counts])


def expected(twin: FakeQuant, pixels: np.ndarray, case: Case) -> dict[str, np.ndarray]:
    """Every tensor of a trace: corners, window{i}.{node}, merged scores, labels."""
    if isinstance(twin, FakeQuantClassifier):
        return expected_class(twin, pixels)
    shown = torch.from_numpy(pixels)
    if case.working:
        shown = resized(shown, *fitted(pixels.shape[:2], case.working))
    height, width, _ = shown.shape
    unit = 1 if case.working else PATCH
    rows, tops, row_weights = axis(height, WINDOW[0], case.stride[0], unit)
    columns, lefts, column_weights = axis(width, WINDOW[1], case.stride[1], unit)
    image = torch.tensor(PAD, dtype=torch.uint8).repeat(rows, columns, 1)
    image[:height, :width] = shown
    corners = [(top, left) for top in tops for left in lefts]
    windows = torch.stack([image[t : t + WINDOW[0], x : x + WINDOW[1]] for t, x in corners])
    nodes: dict[str, Tensor] = {}
    with torch.no_grad():
        scores = twin(windows, nodes.__setitem__).q
    parts = torch.stack([zoomed(window, twin.recipe.upsample) for window in scores]) if case.working else scores
    merged = torch.zeros(rows // unit, columns // unit, len(CLASSES), dtype=parts.dtype)
    for (top, left), window in zip(corners, parts, strict=True):
        for y, row in enumerate(window):
            for x, cell in enumerate(row):
                merged[top // unit + y, left // unit + x] += cell
    merged = merged * row_weights[:, None, None] * column_weights[None, :, None]
    trace = {"corners": np.array(corners, np.int32)}
    if case.working:
        trace["merged"] = narrow(scores, "int16")
        found = highest(brought_back(merged[:height, :width], pixels.shape[:2]))
    else:
        trace["merged"] = narrow(merged, "int32")
        found = labels(merged, twin.recipe.upsample)[:height, :width]
    trace["labels"] = narrow(found, "uint8")
    for node, values in nodes.items():
        for i, value in enumerate(values):
            trace[f"window{i}.{node}"] = narrow(value, dtype_of(twin, node))
    return trace


def expected_class(twin: FakeQuantClassifier, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The same of a classifier, which sees the middle (SPEC.md, 7.4), by the rule of torchvision's CenterCrop."""
    before = [max(0, wanted - size) // 2 for size, wanted in zip(pixels.shape, WINDOW, strict=False)]
    padded = [max(size, wanted) for size, wanted in zip(pixels.shape, WINDOW, strict=False)]
    image = torch.tensor(PAD, dtype=torch.uint8).repeat(*padded, 1)
    image[before[0] : before[0] + len(pixels), before[1] : before[1] + pixels.shape[1]] = torch.from_numpy(pixels)
    top, left = (round((size - wanted) / 2) for size, wanted in zip(padded, WINDOW, strict=True))
    nodes: dict[str, Tensor] = {}
    with torch.no_grad():
        logits = twin(image[None, top : top + WINDOW[0], left : left + WINDOW[1]], nodes.__setitem__).q
    trace = {"corners": np.array([(top, left)], np.int32), "merged": narrow(logits[None], "int32")}
    trace["labels"] = narrow(highest(logits[None]), "uint8")
    return trace | {f"window0.{node}": narrow(value[0], dtype_of(twin, node)) for node, value in nodes.items()}


def labels(scores: Tensor, upsample: str) -> Tensor:
    """Classes of the pixels of the padded image."""
    return highest(zoomed(scores, upsample))


def zoomed(scores: Tensor, upsample: str) -> Tensor:
    """Scores [h, w, C] of the pixels, float64."""
    mode = {"mode": "bilinear", "align_corners": False} if upsample == "bilinear" else {"mode": "nearest"}
    # Weights are multiples of 1 / (2 PATCH) and PATCH is a power of two: exact in float64.
    size = (scores.shape[0] * PATCH, scores.shape[1] * PATCH)
    image = nn.functional.interpolate(scores.double().permute(2, 0, 1)[None], size=size, **mode)
    return image[0].permute(1, 2, 0)


def highest(scores: Tensor) -> Tensor:
    """The class of the largest score; ties go to the lowest."""
    count = scores.shape[-1]
    return torch.where(scores == scores.amax(-1, keepdim=True), torch.arange(count), count).amin(-1)


def fitted(size: tuple[int, ...], working: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image of this size at a working size [short, long]."""
    factor = min(Fraction(working[0], min(size)), Fraction(working[1], max(size)))
    height, width = (max(1, math.floor(side * factor + Fraction(1, 2))) for side in size)
    return height, width


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 [H, W, 3] at another size (SPEC 7.1): columns first, then rows."""
    for way, count in ((1, width), (0, height)):
        size = image.shape[way]
        if size == count:
            continue
        distance = (2 * torch.arange(size) + 1) * count - (2 * torch.arange(count)[:, None] + 1) * size
        tent = (2 * max(size, count) - distance.abs()).clamp(min=0)
        total = tent.sum(1, keepdim=True)
        kernel = (2**23 * tent + total) // (2 * total)
        sums = torch.tensordot(kernel, image.long(), dims=([1], [way]))
        image = ((sums + 2**21) >> 22).clamp(max=255).to(torch.uint8)
        image = image.transpose(0, 1) if way == 1 else image
    return image


def brought_back(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """Scores [h, w, C] between pixels at an image's size, times 4 H W / g (SPEC 7.2); exact in float64."""
    for _ in range(2):  # rows, then columns: the axes change places
        old, new = scores.shape[0], size[0]
        common = math.gcd(old, new)
        steps, unit = old // common, 2 * (new // common)
        position = ((2 * torch.arange(new) + 1) * steps - unit // 2).clamp(0, unit * (old - 1))
        lower, upper = position // unit, (position // unit + 1).clamp(max=old - 1)
        weight = (position % unit).double()[:, None, None]
        scores = (scores[lower] * (unit - weight) + scores[upper] * weight).transpose(0, 1)
        size = size[::-1]
    return scores


def dtype_of(twin: FakeQuant, node: str) -> str:
    """Of a node's integers, from the twin."""
    if node in (acts := twin.acts()):
        return "int16" if acts[node].bits == 16 else "int8"
    if node == "logits":
        return "int32"
    if node.endswith(".attn.softmax") and twin.recipe.softmax == "exp_weights":
        return "uint8"
    return "int16" if node.endswith((".attn.scores", ".attn.softmax")) else "int8"


def narrow(values: Tensor, dtype: str) -> np.ndarray:
    """int64 values as a narrower array. Raises OverflowError where one does not fit."""
    wide = values.numpy()
    array = wide.astype(dtype)
    if not np.array_equal(array, wide):
        raise OverflowError(f"values in [{wide.min()}, {wide.max()}] do not fit {dtype}")
    return np.ascontiguousarray(array)


def weaknesses(name: str, traces: Sequence[Mapping[str, np.ndarray]]) -> Iterator[str]:
    """What makes the traces of a model poor witnesses."""
    for trace in traces:
        if trace["labels"].size > 1 and len(np.unique(trace["labels"])) < 2:
            yield f"{name}: an image of {trace['labels'].shape} pixels has one label only"
    nodes = sorted({key.split(".", 1)[1] for trace in traces for key in trace if key.startswith("window")})
    for node in nodes:
        values = np.concatenate([v.ravel() for t in traces for k, v in t.items() if k.partition(".")[2] == node])
        limits = np.iinfo(values.dtype)
        saturated = np.mean((values == limits.min) | (values == limits.max))
        if len(np.unique(values)) < min(12, values.size):
            yield f"{name}: {node} takes only {len(np.unique(values))} values"
        if saturated > 0.25 and values.dtype != np.uint8:  # of weights, 0 and 255 are ordinary
            yield f"{name}: {saturated:.0%} of {node} is saturated"


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def write(folder: Path) -> dict[str, dict[str, str | int]]:
    """Write everything but the images; returns where each file comes from, as the manifest says it."""
    sources: dict[str, dict[str, str | int]] = {f"images/{name}.png": {"kept": what} for name, what in KEPT.items()}
    for part in ("models", "traces", "ops"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    def put(path: str, data: bytes, seed: int) -> None:
        store.write_atomically(folder / path, data)
        sources[path] = {"generator": "tools/make_golden.py", "seed": seed}

    for name, case in CASES.items():
        twin = make_twin(case)
        put(f"models/{name}.safetensors", store.dumps(export(twin, info_of(name, case))), case.seed)
        traces = {image: expected(twin, picture(image), case) for image in case.pictures}
        for image, trace in traces.items():
            put(f"traces/{name}.{image}.safetensors", safetensors.numpy.save(dict(sorted(trace.items()))), case.seed)
        for weakness in weaknesses(name, list(traces.values())):
            print(f"make_golden.py: weak: {weakness}", file=sys.stderr)
    for op in OPS:
        put(f"ops/{op}.safetensors", make_golden_ops.make(op), make_golden_ops.SEED)
        sources[f"ops/{op}.safetensors"]["generator"] = "tools/make_golden_ops.py"
    return sources


def files_of(folder: Path) -> list[str]:
    """Files that the manifest lists.

    Not listed: what `intseg infer` writes beside the example, and the examples for hardware and C, which have
    manifests of their own.
    """
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    written, examples = ("_labels.png", "_overlay.png"), ("rtl/", "c/", "reader/")
    return [n for n in names if n not in UNLISTED and not n.endswith(written) and not n.startswith(examples)]


def manifest(folder: Path, sources: Mapping[str, Mapping[str, str | int]]) -> str:
    """MANIFEST.json of a folder, sorted."""
    files = {}
    for name in files_of(folder):
        data = (folder / name).read_bytes()
        files[name] = {**sources[name], "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    versions = {
        "intseg": intseg.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return json.dumps({"files": files, "versions": versions}, indent=1, sort_keys=True) + "\n"


def differences(golden: Path, fresh: Path) -> Iterator[str]:
    """What `golden` has that a fresh folder and the manifest say otherwise, one line each."""
    try:
        listed = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"MANIFEST.json: cannot be used: {error!r}"
        return
    kept = [f"images/{name}.png" for name in KEPT]
    made, found = [*files_of(fresh), *kept], files_of(golden)
    for name in sorted({*made, *found, *listed}):
        if name not in made:
            yield f"{name}: is not made by this script"
        elif name not in found:
            yield f"{name}: is missing"
        elif name not in listed:
            yield f"{name}: is not in MANIFEST.json"
        elif listed[name]["sha256"] != hashlib.sha256((golden / name).read_bytes()).hexdigest():
            yield f"{name}: sha256 is not that of MANIFEST.json"
        elif name not in kept and (golden / name).read_bytes() != (fresh / name).read_bytes():
            yield f"{name}: differs from what this script makes"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make_golden.py", description="Write or check the golden vectors.")
    parser.add_argument("--check", action="store_true", help="compare with golden/ and write nothing there")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not args.check:
        sources = write(GOLDEN)
        store.write_atomically(GOLDEN / "MANIFEST.json", manifest(GOLDEN, sources).encode())
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for difference in differences(GOLDEN, Path(folder)):
            print(f"make_golden.py: {difference}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
