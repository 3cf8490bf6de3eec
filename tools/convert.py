"""Convert a float Segmenter checkpoint into integer weights.

    intseg convert checkpoint.pth -o model.safetensors --calibrate photo.jpg

The command's arguments are declared in intseg/cli/convert.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from intseg import store
from intseg.batch.sources import Search
from intseg.cli.printing import Answer, count, say
from intseg.errors import InputError, UsageError
from intseg.files import read_text
from intseg.graph import MAX_ELEMENTS, ModelInfo
from intseg.images import decode as pictures
from intseg.ops import MAX_DIM
from intseg.progress import shown
from intseg.reports.table import table
from intseg.tools.bits.allocation import Allocation
from intseg.tools.bits.allocation import save as save_allocation
from intseg.tools.bits.choice import allocation_of, as_twin_bits
from intseg.tools.bits.rounding import Ways, round_weights
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import calibrate, normalise, share_weights, tapped
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.classifier import IMAGENET, Classifier, is_classifier, load_classifier
from intseg.tools.twin.config import CheckpointError, Pair, SegmenterConfig, sides
from intseg.tools.twin.excitation import drawn_scene, excitation
from intseg.tools.twin.export import export
from intseg.tools.twin.memory import give_back_large_blocks
from intseg.tools.twin.model import FakeQuant, twin_of
from intseg.tools.twin.onnx_import import load_onnx
from intseg.tools.twin.recipe import RECIPES, Recipe
from intseg.tools.twin.segmenter import Segmenter
from intseg.tools.twin.variant import VariantLoader
from intseg.windows import at_scale, cut_windows


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intseg convert`; returns the exit code."""
    from intseg.cli.main import main as cli

    return cli(["convert", *(sys.argv[1:] if argv is None else argv)])


def recipe_for(name: str, upsample: str | None = None, cosine: str | None = None) -> Recipe:
    """A named recipe with its upsampling and L2 norm replaced where asked."""
    recipe = RECIPES[name]
    return dataclasses.replace(
        recipe,
        upsample=upsample or recipe.upsample,
        cosine=recipe.cosine if cosine is None else cosine == "keep",
    )


def model_info(
    config: SegmenterConfig,
    recipe: Recipe,
    name: str,
    named: dict[str, classes.Colour],
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    source: str = "",
    merge: str = "pixel",
    scale: int | str | None = None,
) -> ModelInfo:
    """Windows and classes of the integer model.

    The window is rounded up to whole patches, the stride up to half the window, the least the engine takes; where
    windows are merged on the patch grid, it is rounded down to whole patches before. Added pixels are mean grey, as the
    published inference pads with zeros after normalisation. Images are brought to the short side of the training images
    where the checkpoint states it; `scale` is another one, or "native".
    """
    patch = config.patch
    asked = window or config.window
    height, width = (-(-size // patch) * patch for size in asked)
    steps = stride or config.stride
    cell = patch if merge == "grid" else 1
    _require_size(config, (height, width), stride, cell)
    rows, columns = (
        min(size, max(step // cell, -(-size // (2 * cell))) * cell if step >= cell else size)
        for step, size in zip(steps, (height, width), strict=True)
    )
    facts = {"stride": (rows, columns), "upsample": recipe.upsample, "merge": merge}
    return _info(config, recipe, named, scale, name=name, window=(height, width), source=source, **facts)


def _info(
    config: SegmenterConfig, recipe: Recipe, named: dict[str, classes.Colour], scale: int | str | None, **facts: Any
) -> ModelInfo:
    """What the checkpoint says beside `facts`; images are brought to its short side, or to `scale`."""
    colours, pad = tuple(named.values()), _grey(config)
    info = ModelInfo(recipe=recipe.name, classes=tuple(named), palette=colours, patch=config.patch, pad=pad, **facts)
    return at_scale(info, config.im_size if scale is None else scale)


def differences(config: SegmenterConfig, info: ModelInfo, asked: Pair | None, stride: Pair | None) -> Iterator[str]:
    """What is otherwise than in the inference that the checkpoint was published with, in words.

    asked, stride  what the user asked for; a stride that cannot be is refused
    """
    window = asked or config.window
    grid = (info.window[0] // info.patch, info.window[1] // info.patch)
    if info.window != window:
        yield f"window = {sides(window)}: here {sides(info.window)}, whole patches of real pixels in place of zeros"
    if not asked and not stride and info.stride != config.stride:
        yield f"window_stride = {sides(config.stride)}: here {sides(info.stride)}, at least half the window"
    if grid != config.grid and math.prod(grid) == math.prod(config.grid):
        yield (
            f"the position embedding of {sides(config.grid)} patches is resized to {sides(grid)}; published code "
            "compares their number and takes it as it is"
        )


def _require_size(config: SegmenterConfig, window: Pair, stride: Pair | None, cell: int) -> None:
    """What is asked for is what is done. Raises UsageError."""
    tokens = window[0] // config.patch * (window[1] // config.patch) + config.n_extra
    if tokens > MAX_DIM or config.n_heads * tokens**2 > MAX_ELEMENTS:
        raise UsageError(
            f"a window of {window[0]} x {window[1]} has {tokens:,} tokens and {config.n_heads * tokens**2:,} attention "
            f"scores, expected at most {MAX_DIM:,} and {MAX_ELEMENTS:,}; choose a smaller --window"
        )
    for step, size in zip(stride or (), window, strict=False):
        if not size <= 2 * step <= 2 * size or step % cell:
            multiple = f", a multiple of {cell} with --merge grid" if cell > 1 else ""
            raise UsageError(f"--stride is {step}, expected {-(-size // 2)} to {size}{multiple}: half the window to it")


def refuse_pixels(args: argparse.Namespace) -> None:
    """Raise UsageError for an option that says something about windows or the labels of pixels."""
    for name, option in (("upsample",) * 2, ("merge",) * 2, ("cosine", "l2norm"), ("stride",) * 2):
        if getattr(args, name) is not None:
            raise UsageError(f"{args.checkpoint} classifies images, --{option} is about pixels; leave it out")


def class_info(
    config: SegmenterConfig,
    recipe: Recipe,
    name: str,
    named: dict[str, classes.Colour],
    window: tuple[int, int] | None = None,
    source: str = "",
    scale: int | str | None = None,
) -> ModelInfo:
    """What is known of an integer classifier: one window, in the middle of images brought to a short side."""
    patch = config.patch
    height, width = (-(-size // patch) * patch for size in window or config.window)
    facts = {"stride": (height, width), "upsample": "nearest", "task": "classification"}
    return _info(config, recipe, named, scale, name=name, window=(height, width), source=source, **facts)


def _grey(config: SegmenterConfig) -> tuple[int, int, int]:
    """The mean of the training images, as a colour: what zeros after normalisation are."""
    red, green, blue = (round(mean * 255 - 0.25) for mean in config.mean)
    return red, green, blue


def find_images(paths: Sequence[Path], samples: int | None = None) -> list[Path]:
    """Image files as `intseg infer -r` finds them; `samples` of them, evenly spaced.

    Raises InputError when there is none, UsageError for a sample count below one.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"--samples is {samples}, expected at least 1")
    search = Search(recursive=True)
    files = [Path(source.file) for source in search.find([str(path) for path in paths])]
    if search.left_out:
        say(f"note: calibration leaves out {search.left_out.short()}")
    if samples is None or samples >= len(files):
        return files
    return [files[i * len(files) // samples] for i in range(samples)]


def windows(file: Path, info: ModelInfo) -> Tensor:
    """All windows of an image, uint8 [B, H, W, 3]."""
    picture = pictures.decode(file, info.pad)
    for note in picture.notes:
        say(f"note: {file}: {note}")
    return torch.from_numpy(np.stack([window for _, window in cut_windows(picture.rgb, info)]))


REPORT_FLOATS, REPORT_FLOATS_A_TOKEN = 2**26, 18
"""Values of the float model that a report keeps, and how many a token has in a block, in widths of the block."""


def report(twin: FakeQuant, model: Segmenter | Classifier, images: Tensor) -> Iterator[tuple[str, str, float, float]]:
    """(node, scale, percent of saturated values, SQNR in dB against the float model) of every node with a range.

    Of large models and images on evenly spaced windows and tokens: REPORT_FLOATS values of the float model are kept.
    """
    acts, floats = twin.acts(), dict[str, Tensor]()
    found: dict[str, tuple[float, float]] = {}
    tokens = twin.window[0] // twin.config.patch * (twin.window[1] // twin.config.patch) + twin.config.n_extra
    each = tokens * sum(REPORT_FLOATS_A_TOKEN * twin.config.d_model for _ in twin.encoder.blocks)
    images = images[:: max(1, -(-len(images) * each // REPORT_FLOATS))][: max(1, REPORT_FLOATS // each)]
    step = max(1, -(-each // REPORT_FLOATS))

    def keep(node: str, value: Tensor) -> None:
        if node in acts:
            floats[node] = value[:, ::step].clone()

    def compare(node: str, value: Tensor) -> None:
        if node in floats:
            act, q, real = acts[node], value[:, ::step], floats.pop(node).double()
            limit = 2 ** (act.bits - 1)
            saturated = 100 * float(((q == -limit) | (q == limit - 1)).double().mean())
            noise = float(((act.dequantize(q) - real) ** 2).sum())
            found[node] = saturated, math.inf if noise == 0 else 10 * math.log10(float((real**2).sum()) / noise)

    with torch.no_grad():
        with tapped(model, keep):
            model.forward_scores(normalise(images, model.config), twin.recipe.cosine)
        twin(images, compare)
    for node in (node for node in acts if node in found):
        low, high = float(acts[node].scale.min()), float(acts[node].scale.max())
        yield node, f"{low:.3g}" if low == high else f"{low:.2g}..{high:.2g}", *found[node]


def run(args: argparse.Namespace) -> Answer:
    """Carry out `intseg convert`."""
    give_back_large_blocks()
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        return _run(args)
    finally:
        torch.set_num_threads(before)


def _run(args: argparse.Namespace) -> Answer:
    start = time.perf_counter()
    checkpoint, output = Path(args.checkpoint), Path(args.output)
    model = _load(args, checkpoint)
    recipe = recipe_for(args.recipe, args.upsample, args.cosine)
    info = _info_of(args, model, recipe)
    files = find_images([Path(name) for name in args.calibrate], args.samples)
    batches = [windows(file, info) for file in shown(files, "reading", len(files), "image")]
    checked = windows(Path(args.check), info) if args.check else batches[0]
    judged = excitation(model, batches)
    if warning := judged.warning():
        say(f"warning: {warning}")
        info = dataclasses.replace(info, source=f"{info.source}; {warning}")
        batches = [drawn_scene(info.window), *batches]
    twin = twin_of(model, info.window, recipe)
    share_weights(twin, model)
    on = f"{count(len(files), 'image')}, {count(sum(map(len, batches)), 'window')}"
    allocation, found, chosen = calibrated(args, twin, model, batches, on)
    data = store.save(export(twin, info), output)
    if allocation and args.save_bits:
        save_allocation(allocation, Path(args.save_bits))
    if args.save_twin:
        save_twin(twin, Path(args.save_twin))
    nodes = list(report(twin, model, checked)) if args.json or not args.quiet else []
    floats = 4 * sum(p.numel() for p in model.parameters())
    cosine = "kept" if recipe.cosine else "dropped"
    size = f"{len(data):,} bytes, {floats / len(data):.2f} times smaller than the float parameters"
    seconds = time.perf_counter() - start
    about = f"{count(len(files), 'calibration image')}, {seconds:.1f} s"
    at = "as they are" if info.working_size is None else f"at a short side of {info.working_size[0]}"
    way = [f"recipe {recipe.name}, {recipe.upsample}, L2 norm {cosine}", f"windows merged by {info.merge}, images {at}"]
    if info.classifies:
        way = [f"recipe {recipe.name}", f"images {at}, their middle seen in {info.window[0]} x {info.window[1]}"]
    where = args.check or f"{files[0]}, calibrated on: --check IMAGE shows another"
    wrote = [f"wrote {output}:", *(f"  {line}" for line in (size, *way, about))]
    lines = [*_lines(nodes, chosen), f"saturated, SQNR: on {where}", *found, *wrote]
    document = _document(args, recipe, nodes, chosen) | {"bytes": len(data), "seconds": seconds}
    document |= {"bits": dict(allocation.bits)} if allocation else {}
    return Answer(lines, document)


def _info_of(args: argparse.Namespace, model: Segmenter | Classifier, recipe: Recipe) -> ModelInfo:
    """Windows and classes of what is asked for; prints where they are not those of the checkpoint."""
    named = names_of(model, Path(args.checkpoint), args.classes)
    window = tuple(args.window) if args.window else None
    stride = tuple(args.stride) if args.stride else None
    about = (model.config, recipe, args.name or Path(args.output).stem, named)
    if isinstance(model, Classifier):
        refuse_pixels(args)
        return class_info(*about, window, "converted by intseg", args.scale)
    info = model_info(*about, window, stride, "converted by intseg", args.merge or "pixel", args.scale)
    for line in differences(model.config, info, window, stride):
        say(f"note: {line}")
    return info


def calibrated(
    args: argparse.Namespace,
    twin: FakeQuant,
    model: Segmenter | Classifier,
    batches: Sequence[Tensor],
    on: str,
    keep_rest: bool = False,
) -> tuple[Allocation | None, list[str], dict[str, str]]:
    """Choose bits, calibrate, round weights: the bits if they were asked for, words about them, choices by node."""
    allocation, found = allocation_of(args, model, list(twin.linears()), batches)
    if not allocation and args.views:
        raise UsageError("--views is about rounding to fewer bits; say to how many, or leave it out")
    if allocation:
        twin.set_bits(as_twin_bits(twin, allocation))
    say(f"calibrating on {on} ...")
    chosen = calibrate(twin, model, batches, correct=allocation is None)
    if allocation:
        ways = Ways(keep_rest=keep_rest, views=args.views)
        chosen |= round_weights(twin, model, batches, allocation.bits, ways)
    return allocation, found, chosen


def _load(args: argparse.Namespace, checkpoint: Path) -> Segmenter | Classifier:
    """The float model; what was assumed is printed. Raises CheckpointError."""
    given = {"n_heads": args.heads, "normalization": args.normalization}
    given = {key: value for key, value in given.items() if value is not None}
    if checkpoint.suffix == ".onnx":
        if given or args.state:
            raise UsageError(
                "an ONNX file says its heads and normalization; leave --heads, --normalization, --state out"
            )
        model: Segmenter | Classifier = load_onnx(checkpoint)
    elif is_classifier(checkpoint):
        model = load_classifier(checkpoint, given)
    else:
        model = load_checkpoint(checkpoint, key=args.state, given=given)
    for note in model.info.notes:
        say(f"assumed: {note}")
    if model.config.n_cls < 2:
        raise CheckpointError(
            f"{checkpoint}: has one output channel, meant for a sigmoid and a threshold, expected a channel for each "
            "of two classes or more: an argmax of one is always 0; train it with two"
        )
    return model


def save_twin(twin: FakeQuant, path: Path) -> None:
    """The twin's state as a torch file, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"recipe": dataclasses.asdict(twin.recipe), "window": twin.window, "model": twin.state_dict()}, buffer)
    store.write_atomically(path, buffer.getvalue())


def dataset_of(checkpoint: Path) -> str:
    """The data set that variant.yml beside a checkpoint names; "" if none does."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    try:
        variant = yaml.load(read_text(folder / "variant.yml", limit=2**20), Loader=VariantLoader)
        return str(variant["dataset_kwargs"]["dataset"])
    except (InputError, KeyError, TypeError, yaml.YAMLError):
        return ""


def names_of(model: Segmenter | Classifier, checkpoint: Path, given: str | None = None) -> dict[str, classes.Colour]:
    """Classes and colours of a model: those given, those that the checkpoint states, those of its data set."""
    dataset = dataset_of(checkpoint)
    if isinstance(model, Classifier) and model.config.n_cls == IMAGENET:
        dataset = dataset or "imagenet"
    return classes.for_model(model.config.n_cls, dataset, given, dict(model.info.classes))


Node = tuple[str, str, float, float]


def _lines(nodes: Sequence[Node], chosen: Mapping[str, str]) -> Iterator[str]:
    cells = [("node", "scale", "saturated", "SQNR dB", "chosen")]
    cells += [(node, scale, f"{ends:.2f}%", f"{sqnr:.1f}", chosen.get(node, "")) for node, scale, ends, sqnr in nodes]
    return table(cells, gap=2)


def _document(
    args: argparse.Namespace, recipe: Recipe, nodes: Sequence[Node], chosen: Mapping[str, str]
) -> dict[str, object]:
    found = [
        {
            "node": node,
            "scale": scale,
            "saturated": ends,
            "sqnr_db": sqnr if math.isfinite(sqnr) else None,
            "chosen": chosen.get(node),
        }
        for node, scale, ends, sqnr in nodes
    ]
    return {"written": str(args.output), "recipe": recipe.name, "upsample": recipe.upsample, "nodes": found}


if __name__ == "__main__":
    sys.exit(main())
