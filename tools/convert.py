"""Convert a float Segmenter checkpoint into integer weights.

    python tools/convert.py checkpoint.pth -o model.safetensors --calibrate photo.jpg

The checkpoint is a file of rstrudel/segmenter (with its variant.yml) or of mmsegmentation, or a folder holding one.
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

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from intseg import palettes, store
from intseg.batch.sources import Search
from intseg.cli.parser import require_ending, require_writable, whole
from intseg.errors import InputError, IntsegError, UsageError
from intseg.files import held, read_text, require_apart
from intseg.graph import ModelInfo
from intseg.images import decode as pictures
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import calibrate, normalise, tapped
from intseg.tools.twin.export import export
from intseg.tools.twin.model import RECIPES, FakeQuantSegmenter, Recipe
from intseg.tools.twin.segmenter import CheckpointError, Segmenter, SegmenterConfig, VariantLoader, load_checkpoint
from intseg.windows import at_scale, cut_windows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        _convert(args)
    except CheckpointError as error:
        return _fail(str(error), 3)
    except IntsegError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}", 4)
    except ValueError as error:
        return _fail(str(error), 2)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="convert.py",
        description="Convert a float Segmenter checkpoint into integer weights for intseg.",
        epilog="example: python tools/convert.py checkpoint.pth -o model.safetensors --calibrate photos --samples 32",
    )
    p.add_argument("checkpoint", type=Path, help="checkpoint.pth, or the folder it is in")
    p.add_argument("-o", "--output", type=Path, required=True, help="weights to write (.safetensors)")
    p.add_argument(
        "--calibrate", type=Path, required=True, nargs="+", help="images or folders of images; one is enough"
    )
    p.add_argument("--samples", type=whole(1, 10**9), help="use this many images, evenly spaced (default: all)")
    p.add_argument("--recipe", choices=sorted(RECIPES), default="intseg", help="arithmetic (default: intseg)")
    p.add_argument("--upsample", choices=("nearest", "bilinear"), help="default: the recipe's")
    p.add_argument(
        "--merge",
        choices=("pixel", "grid"),
        default="pixel",
        help="windows at any pixel, summed in pixels, as published (default), or on the patch grid",
    )
    p.add_argument(
        "--scale",
        type=lambda text: text if text == "native" else int(text),
        metavar="N",
        help="short side that images are brought to, or native (default: the checkpoint's image_size, else native)",
    )
    p.add_argument("--l2norm", choices=("keep", "drop"), help="L2 norm before the masks (default: the recipe's)")
    size, two = whole(1, 65535), ("H", "W")
    p.add_argument("--window", type=size, nargs=2, metavar=two, help="pixels of a window (default: checkpoint's)")
    p.add_argument("--stride", type=size, nargs=2, metavar=two, help="pixels between windows")
    p.add_argument("--classes", help="names: a file with one a line, or " + ", ".join(palettes.files()))
    p.add_argument("--name", help="of the model (default: the output's file name)")
    p.add_argument("--save-twin", type=Path, help="also save the fake-quant model's state (.pth), for QAT")
    p.add_argument("-q", "--quiet", action="store_true", help="no table of layers")
    return p


def recipe_for(name: str, upsample: str | None = None, l2norm: str | None = None) -> Recipe:
    """A named recipe with its upsampling and L2 norm replaced where asked."""
    recipe = RECIPES[name]
    return dataclasses.replace(
        recipe,
        upsample=upsample or recipe.upsample,
        l2norm=recipe.l2norm if l2norm is None else l2norm == "keep",
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
    rows, columns = (
        min(size, max(step // cell, -(-size // (2 * cell))) * cell if step >= cell else size)
        for step, size in zip(steps, (height, width), strict=True)
    )
    grey = [round(mean * 255 - 0.25) for mean in config.mean]
    info = ModelInfo(
        name=name,
        recipe=recipe.name,
        classes=tuple(named),
        palette=tuple(named.values()),
        window=(height, width),
        stride=(rows, columns),
        patch=patch,
        pad=(grey[0], grey[1], grey[2]),
        upsample=recipe.upsample,
        source=source,
        merge=merge,
    )
    return at_scale(info, config.im_size if scale is None else scale)


def find_images(paths: Sequence[Path], samples: int | None = None) -> list[Path]:
    """Image files as `intseg infer -r` finds them; `samples` of them, evenly spaced.

    Raises InputError when there is none, UsageError for a sample count below one.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"--samples is {samples}, expected at least 1")
    search = Search(recursive=True)
    files = [Path(source.file) for source in search.find([str(path) for path in paths])]
    if search.left_out:
        print(f"note: calibration leaves out {search.left_out.short()}", file=sys.stderr)
    if samples is None or samples >= len(files):
        return files
    return [files[i * len(files) // samples] for i in range(samples)]


def windows(file: Path, info: ModelInfo) -> Tensor:
    """All windows of an image, uint8 [B, H, W, 3]."""
    picture = pictures.decode(file, info.pad)
    for note in picture.notes:
        print(f"note: {file}: {note}", file=sys.stderr)
    return torch.from_numpy(np.stack([window for _, window in cut_windows(picture.rgb, info)]))


def report(twin: FakeQuantSegmenter, model: Segmenter, images: Tensor) -> Iterator[tuple[str, str, float, float]]:
    """(node, scale, percent of saturated values, SQNR in dB against the float model) of every node with a range."""
    floats: dict[str, Tensor] = {}
    integers: dict[str, Tensor] = {}
    with torch.no_grad():
        with tapped(model, floats.__setitem__):
            model.forward_scores(normalise(images, model.config), twin.recipe.l2norm)
        twin(images, integers.__setitem__)
    for node, act in twin.acts().items():
        if node not in floats:
            continue
        q, real = integers[node], floats[node].double()
        limit = 2 ** (act.bits - 1)
        saturated = 100 * float(((q == -limit) | (q == limit - 1)).double().mean())
        noise = float(((act.dequantize(q) - real) ** 2).sum())
        sqnr = math.inf if noise == 0 else 10 * math.log10(float((real**2).sum()) / noise)
        low, high = float(act.scale.min()), float(act.scale.max())
        yield node, f"{low:.3g}" if low == high else f"{low:.2g}..{high:.2g}", saturated, sqnr


def _convert(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    written = [require_ending(str(args.output), ".safetensors")]
    written += [require_ending(str(args.save_twin), ".pth", ".pt")] if args.save_twin else []
    checkpoint = [path for path in held(args.checkpoint) if path.suffix != ".safetensors"]
    require_apart(written, filter(None, [*checkpoint, *args.calibrate, args.classes]))
    for path in written:
        require_writable(Path(path))
    model = load_checkpoint(args.checkpoint)
    recipe = recipe_for(args.recipe, args.upsample, args.l2norm)
    dataset, stated = dataset_of(args.checkpoint), dict(model.info.classes)
    named = classes.for_model(model.config.n_cls, dataset, args.classes, stated)
    window = tuple(args.window) if args.window else None
    stride = tuple(args.stride) if args.stride else None
    info = model_info(
        *(model.config, recipe, args.name or args.output.stem, named, window, stride, "converted by intseg"),
        *(args.merge, args.scale),
    )
    files = find_images(args.calibrate, args.samples)
    batches = [windows(file, info) for file in files]
    twin = FakeQuantSegmenter(model, info.window, recipe)
    with tqdm(desc="calibrating", unit="batch", disable=not sys.stderr.isatty()) as bar:
        chosen = calibrate(twin, model, batches, bar.update)
    data = store.save(export(twin, info), args.output)
    if args.save_twin:
        save_twin(twin, args.save_twin)
    if not args.quiet:
        _print_report(twin, model, batches[0], chosen)
    floats = 4 * sum(p.numel() for p in model.parameters())
    l2norm = "kept" if recipe.l2norm else "dropped"
    at = "as they are" if info.working_size is None else f"at a short side of {info.working_size[0]}"
    print(
        f"{args.output}: {len(data):,} bytes, {floats / len(data):.2f} times smaller than the float parameters "
        f"({floats:,} bytes); recipe {recipe.name}, {recipe.upsample}, L2 norm {l2norm}; "
        f"windows merged by {info.merge}, images {at}; "
        f"{len(files)} calibration image{'s' * (len(files) > 1)}; {time.perf_counter() - start:.1f} s"
    )


def save_twin(twin: FakeQuantSegmenter, path: Path) -> None:
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


def _print_report(twin: FakeQuantSegmenter, model: Segmenter, images: Tensor, chosen: Mapping[str, str]) -> None:
    print(f"{'node':36} {'scale':>18} {'saturated':>10} {'SQNR dB':>8}  chosen")
    for node, scale, saturated, sqnr in report(twin, model, images):
        print(f"{node:36} {scale:>18} {saturated:>9.2f}% {sqnr:>8.1f}  {chosen.get(node, '')}".rstrip())


def _fail(message: str, code: int) -> int:
    print(f"convert.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
