"""Train a float Segmenter on a labelled data set, from scratch, from a checkpoint or from a pretrained encoder.

    intseg train --root CamVid -o runs/tiny --steps 20000 --device cuda
    intseg train --root CamVid -o runs/tiny --steps 20000 --device cuda --resume
    intseg train --root CamVid -o runs/camvid --encoder vit_tiny_patch16_224.safetensors --layer-decay 0.85

The output folder receives state.pth (to resume), log.jsonl, curves.png and, at every report, checkpoint.pth with
variant.yml in the published layout, ready for `intseg convert`: the moving average of the parameters that has measured
best on --val so far, the last one without --val. The command's arguments are declared in intseg/cli/training.py.
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
from intseg.cli.printing import Answer, count, say, wrote
from intseg.errors import UsageError
from intseg.files import held, require_apart
from intseg.graph import ModelInfo
from intseg.images import decode as pictures
from intseg.images.labels import Labelling, truth
from intseg.tools.convert import model_info, recipe_for
from intseg.tools.evaluate import Labels, float_labels
from intseg.tools.twin import classes, pretrained, training
from intseg.tools.twin.calibrate import normalise
from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.config import CheckpointError, config_for
from intseg.tools.twin.segmenter import Segmenter, random_segmenter
from intseg.windows import cut_windows


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intseg train`; returns the exit code."""
    from intseg.cli.main import main as cli

    return cli(["train", *(sys.argv[1:] if argv is None else argv)])


WRITTEN = ("state.pth", "log.jsonl", "curves.png", "checkpoint.pth", "variant.yml", "model.safetensors", "twin.pth")
"""What training and QAT write to their folder."""


def require_own_folder(output: Path, *read: str | None) -> None:
    """Refuse, before any work, a folder whose files are read or lie beside them: they would be replaced."""
    places = [path if path.is_dir() else path.parent for path in map(Path, filter(None, read))]
    require_apart([output / name for name in WRITTEN], [file for place in places for file in held(place)])


def open_split(args: argparse.Namespace, split: str) -> datasets.Dataset:
    """A split of the data set that the common arguments describe; what was left out is said."""
    found = datasets.open_dataset(args.layout, Path(args.root), split)
    for note in found.notes:
        say(f"note: {note}")
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
    """What to measure on; no pairs when --val is empty, or there is no --root."""
    if not args.val or not args.root:
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
            Path(args.encoder), n_cls, window, (stride[0], stride[1]), args.normalization, args.seed
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
    start = load_checkpoint(Path(args.start))
    if args.model is None:  # any width and depth that a checkpoint has
        config = dataclasses.replace(start.config, n_cls=n_cls)
    found, expected = ((c.d_model, c.n_layers, c.n_cls) for c in (start.config, config))
    if found != expected:
        raise CheckpointError(
            f"{args.start}: (width, blocks, classes) are {found}, expected {expected}: choose --model and --root to fit"
        )
    return start


def run(args: argparse.Namespace) -> Answer:
    """Carry out `intseg train`."""
    output = Path(args.output)
    require_own_folder(output, args.start, args.encoder)
    train = open_split(args, args.split)
    named = _classes(args, train.n_cls)
    n_cls = len(named)
    data = training.examples(train, n_cls)
    val = val_data(args)
    model = _new_model(args, n_cls)
    settings = settings_from(args, model.config.window, args.drop_path)
    output.mkdir(parents=True, exist_ok=True)
    trainer = training.Trainer(model, float_scores, data, settings, output, args.device)
    if args.resume:
        trainer.resume()
    model.config = dataclasses.replace(model.config, im_size=trainer.short_side)
    info = model_info(model.config, recipe_for("intseg"), "float", named)
    dataset = str(args.classes) if args.classes in palettes.files() else args.layout
    print_plan(model, settings, len(data.pairs), len(val.pairs), args.every)

    def measure(averaged: nn.Module) -> dict[str, float]:
        """Keep the average that is best on val; without val the last."""
        assert isinstance(averaged, Segmenter)
        predict = functools.partial(float_labels, averaged, upsample="bilinear")
        score = val_miou(predict, info, val, args.device)
        if not val.pairs or score >= max((entry.get("mIoU", 0.0) for entry in trainer.log), default=0.0):
            save_checkpoint(averaged, output, dataset)
        return {"mIoU": score}

    trainer.run(args.every, measure)
    last = trainer.log[-1]
    best = max(trainer.log, key=lambda entry: entry.get("mIoU", 0.0)) if val.pairs else last
    accuracy = f", mIoU {best['mIoU']:.2f} %" if "mIoU" in best else ""
    about = f"average at step {best['step']} of {settings.steps}{accuracy}; last loss {last['loss']:.4f}"
    return wrote(output / "checkpoint.pth", about, best=best, last=last)


def print_plan(model: Segmenter, settings: training.Settings, train: int, val: int, every: int) -> None:
    """What the run will do, and what was assumed, on standard error."""
    for note in model.info.notes:
        say(f"assumed: {note}")
    s, c = settings, model.config
    say(
        f"{s.steps} steps of {s.batch} crops of {s.crop[0]} x {s.crop[1]} from {count(train, 'image')} "
        f"({s.steps * s.batch / train:.1f} epochs)"
    )
    say(f"learning rate 0 to {s.lr:g} in {s.warmup} steps, then {s.schedule} to 0, times {s.layer_decay:g} a block")
    say(f"pixels: mean {c.mean}, std {c.std}")
    measured = f" and the mIoU of {count(val, 'image')}" if val else ""
    say(f"a checkpoint{measured} every {count(every, 'step')}")


if __name__ == "__main__":
    sys.exit(main())
