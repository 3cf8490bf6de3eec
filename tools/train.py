"""Train a float Segmenter on a labelled data set, from scratch, from a checkpoint or from a pretrained encoder.

    python tools/train.py --root CamVid -o runs/tiny --steps 20000 --device cuda
    python tools/train.py --root CamVid -o runs/tiny --steps 20000 --device cuda --resume
    python tools/train.py --root CamVid -o runs/camvid --encoder vit_tiny_patch16_224.safetensors --layer-decay 0.85

The output folder receives state.pth (to resume), log.jsonl, curves.png and, at every report, checkpoint.pth with
variant.yml in the published layout, ready for tools/convert.py: the moving average of the parameters that has measured
best on --val so far, the last one without --val.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from intseg import palettes
from intseg.batch import datasets, metrics
from intseg.errors import UsageError
from intseg.files import held, require_apart
from intseg.graph import ModelInfo
from intseg.images import decode as pictures
from intseg.images.labels import Labelling, truth
from intseg.tools.convert import model_info, recipe_for
from intseg.tools.ends import ended
from intseg.tools.evaluate import Labels, float_labels
from intseg.tools.twin import classes, pretrained, training
from intseg.tools.twin.calibrate import normalise
from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.config import SIZES, STATS, CheckpointError, config_for
from intseg.tools.twin.segmenter import Segmenter, random_segmenter
from intseg.windows import cut_windows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    return ended("train.py", lambda: _train(args))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="train.py", description="Train a float Segmenter.")
    p.add_argument("--model", choices=sorted(SIZES), help="size of the model (default: --from's, or tiny)")
    p.add_argument("--from", dest="start", type=Path, metavar="CHECKPOINT", help="start from these parameters")
    p.add_argument(
        "--encoder",
        type=Path,
        metavar="FILE",
        help="start from this ViT, DeiT (timm's names) or Segmenter and a fresh decoder",
    )
    p.add_argument(
        "--normalization",
        choices=sorted(STATS),
        help="how pixels enter --encoder (default: what config.json or variant.yml beside it says)",
    )
    p.add_argument("--classes", help="names: a file with one a line, or " + ", ".join(palettes.files()))
    p.add_argument("--patch", type=int, default=16)
    p.add_argument(
        "--window", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help="pixels, crop and window"
    )
    p.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), help="between windows (default: 7/8 of it)")
    add_common(p, steps=5000, lr=1e-3)
    p.add_argument("--drop-path", type=float, default=0.1)
    p.add_argument("--layer-decay", type=float, default=1.0, help="learning rate of a block, of the next one's")
    return p


def add_common(p: argparse.ArgumentParser, steps: int, lr: float) -> None:
    """Arguments of training and of QAT."""
    p.add_argument("--root", type=Path, required=True, help="data set folder")
    p.add_argument(
        "--layout", choices=sorted(datasets.LAYOUTS), default="camvid", help="pairs: ROOT/SPLIT and ROOT/SPLITannot"
    )
    p.add_argument("--ignore", type=int, metavar="ID", help="stored label that is not counted (default: the layout's)")
    p.add_argument("--split", default="train")
    p.add_argument("--val", default="val", help="split to measure, or '' for none")
    p.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    p.add_argument("--steps", type=int, default=steps)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--lr", type=float, default=lr)
    p.add_argument("--warmup", type=int, default=min(200, steps // 10))
    p.add_argument("--schedule", choices=("cosine", "poly"), default="cosine")
    p.add_argument("--scale", type=float, nargs=2, default=(0.5, 1.6), metavar=("LOW", "HIGH"))
    p.add_argument("--ema", type=float, default=0.999)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    p.add_argument("--limit", type=int, help="measure the first images only")
    p.add_argument("--sample", type=int, default=1, metavar="K", help="measure every K-th image only")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of matrix products in training steps; bfloat16 halves the time where the CPU or GPU has it",
    )
    p.add_argument("--resume", action="store_true", help="go on from state.pth in the output folder")


WRITTEN = ("state.pth", "log.jsonl", "curves.png", "checkpoint.pth", "variant.yml", "model.safetensors", "twin.pth")
"""What training and QAT write to their folder."""


def require_own_folder(args: argparse.Namespace, *read: Path | None) -> None:
    """Refuse, before any work, a folder whose files are read or lie beside them: they would be replaced."""
    places = [path if path.is_dir() else path.parent for path in read if path is not None]
    require_apart([args.output / name for name in WRITTEN], [file for place in places for file in held(place)])


def open_split(args: argparse.Namespace, split: str) -> datasets.Dataset:
    """A split of the data set that the common arguments describe; what was left out is said."""
    found = datasets.open_dataset(args.layout, args.root, split)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    return found.with_labels(None if args.ignore is None else (args.ignore,))


def settings_from(args: argparse.Namespace, crop: tuple[int, int], drop_path: float) -> training.Settings:
    """The settings that the common arguments describe."""
    return training.Settings(
        steps=args.steps,
        batch=args.batch,
        lr=args.lr,
        warmup=args.warmup,
        schedule=args.schedule,
        crop=crop,
        scale=tuple(args.scale),
        ema=args.ema,
        drop_path=drop_path,
        seed=args.seed,
        precision=args.precision,
        layer_decay=getattr(args, "layer_decay", 1.0),
    )


def float_scores(model: nn.Module, images: Tensor) -> Tensor:
    """How the float model is trained: normalised pixels in, scores on the patch grid out."""
    assert isinstance(model, Segmenter)
    return model.forward_scores(normalise(images, model.config))


def val_miou(
    predict: Callable[[Tensor, tuple[int, int], ModelInfo], Labels],
    info: ModelInfo,
    data: datasets.Dataset,
    device: str,
) -> float:
    """mIoU in percent, through the windows of the engine; NaN without pairs.

    predict  (windows uint8 [B, H, W, 3], size of the image, info) -> labels of the image
    """
    count = len(info.classes)
    total = np.zeros((count, count), np.int64)
    for pair in data.pairs:
        picture = pictures.decode(pair.image, info.pad)
        cut = np.stack([window for _, window in cut_windows(picture.rgb, info)])
        batch, size = torch.from_numpy(cut).to(device), (picture.rgb.shape[0], picture.rgb.shape[1])
        labels, _ = truth(pair.labels, picture, count, data.labelling, str(pair.image))
        total += metrics.confusion(labels, predict(batch, size, info), count, ignore=-1)
    return metrics.metrics(total).miou


def val_data(args: argparse.Namespace) -> datasets.Dataset:
    """What to measure on; no pairs when --val is empty."""
    if not args.val:
        return datasets.Dataset((), Labelling())
    return open_split(args, args.val).first(args.limit, args.sample)


def _classes(args: argparse.Namespace, count: int | None) -> dict[str, classes.Colour]:
    """Names and colours; a layout of any classes needs --classes. Raises UsageError for names that do not fit."""
    if count is None and args.classes is None:
        raise UsageError("layout pairs needs --classes NAMES: they say how many there are")
    try:
        return classes.for_model(count or len(classes.named(args.classes)), args.layout, args.classes)
    except (ValueError, OSError) as error:
        raise UsageError(f"--classes: {error}") from None


def _new_model(args: argparse.Namespace, n_cls: int) -> Segmenter:
    window = (args.window[0], args.window[1])
    stride = tuple(args.stride) if args.stride else tuple(side // args.patch * 7 // 8 * args.patch for side in window)
    if args.encoder is not None:
        return pretrained.segmenter_from(
            args.encoder, n_cls, window, (stride[0], stride[1]), args.normalization, args.seed
        )
    config = config_for(
        args.model or "tiny",
        n_cls=n_cls,
        patch=args.patch,
        image_size=window,
        window=window,
        stride=(stride[0], stride[1]),
    )
    if args.start is None:
        return random_segmenter(config, args.seed)
    start = load_checkpoint(args.start)
    if args.model is None:  # any width and depth that a checkpoint has
        config = dataclasses.replace(start.config, n_cls=n_cls)
    found, expected = ((c.d_model, c.n_layers, c.n_cls) for c in (start.config, config))
    if found != expected:
        raise CheckpointError(
            f"{args.start}: (width, blocks, classes) are {found}, expected {expected}: choose --model and --root to fit"
        )
    return start


def _train(args: argparse.Namespace) -> None:
    require_own_folder(args, args.start, args.encoder)
    train = open_split(args, args.split)
    named = _classes(args, train.n_cls)
    n_cls = len(named)
    data = training.examples(train, n_cls)
    val = val_data(args)
    model = _new_model(args, n_cls)
    settings = settings_from(args, model.config.window, args.drop_path)
    args.output.mkdir(parents=True, exist_ok=True)
    trainer = training.Trainer(model, float_scores, data, settings, args.output, args.device)
    if args.resume:
        trainer.resume()
    model.config = dataclasses.replace(model.config, im_size=trainer.short_side)
    info = model_info(model.config, recipe_for("intseg"), "float", named)
    dataset = args.classes if args.classes in palettes.files() else args.layout
    print_plan(model, settings, len(data.pairs), len(val.pairs), args.every)

    def measure(averaged: nn.Module) -> float:
        """Keep the average that is best on val; without val the last."""
        assert isinstance(averaged, Segmenter)
        predict = functools.partial(float_labels, averaged, upsample="bilinear")
        score = val_miou(predict, info, val, args.device)
        if not val.pairs or score >= max((entry.get("mIoU", 0.0) for entry in trainer.log), default=0.0):
            save_checkpoint(averaged, args.output, dataset)
        return score

    trainer.run(args.every, measure)
    best = max(trainer.log, key=lambda entry: entry.get("mIoU", 0.0)) if val.pairs else trainer.log[-1]
    print(
        f"{args.output / 'checkpoint.pth'}: average at step {best['step']} of {settings.steps}"
        + (f", mIoU {best['mIoU']:.2f} %" if "mIoU" in best else "")
        + f"; last loss {trainer.log[-1]['loss']:.4f}"
    )


def print_plan(model: Segmenter, settings: training.Settings, train: int, val: int, every: int) -> None:
    """What the run will do, and what was assumed, on standard error."""
    for note in model.info.notes:
        print(f"assumed: {note}", file=sys.stderr)
    s, c = settings, model.config
    print(
        f"{s.steps} steps of {s.batch} crops of {s.crop[0]} x {s.crop[1]} from {train} images "
        f"({s.steps * s.batch / train:.1f} epochs); learning rate 0 to {s.lr:g} in {s.warmup} steps, then {s.schedule} "
        f"to 0, times {s.layer_decay:g} a block; pixels: mean {c.mean}, std {c.std}; "
        f"every {every} steps a checkpoint" + (f" and the mIoU of {val} images" if val else ""),
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
