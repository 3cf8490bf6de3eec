"""Quantization-aware training: train the fake-quant twin of a checkpoint, then write the engine's weights.

    intseg qat checkpoint.pth --root CamVid -o runs/qat --calibrate CamVid/train --samples 32 --device cuda
    intseg qat vit_tiny_patch16_224 -o runs/vit4 --calibrate photos --uniform w4a8 --steps 60

The twin computes the engine's integers in every forward; gradients pass straight through (--precision bfloat16 is for
their matrix products alone). Where bits are asked for (--uniform, --bits, --budget-...) training starts at the integers
that `intseg convert` writes, whose scales stay; a weight learns in steps of its integers (`QLinear.hold`), the float
model is the teacher (--distill). Without --root the windows of calibration are what it sees: no labels are needed.
With --hold-out N every N-th image is neither trained nor calibrated on, and the average that gives classes the shares
nearest to the float model's there (KL) is kept: that of step 0 where training wins nothing.

Ranges come from calibration. With the symmetric ranges of `paper` and `i-vit` they follow what training sees (momentum
0.01) for the first --freeze steps; fitted ranges stay. The folder receives state.pth, log.jsonl, curves.png and, at
every report, model.safetensors with the moving average of the parameters: the same bits as the twin in eval mode.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from intseg import store
from intseg.batch import datasets
from intseg.cli.printing import Answer, count, wrote
from intseg.errors import UsageError
from intseg.graph import ModelInfo
from intseg.tools.bits.allocation import save as save_allocation
from intseg.tools.convert import (
    calibrated,
    class_info,
    find_images,
    model_info,
    names_of,
    recipe_for,
    save_twin,
    windows,
)
from intseg.tools.evaluate import Labels, twin_labels
from intseg.tools.train import open_split, require_own_folder, settings_from, val_data, val_miou
from intseg.tools.twin import training
from intseg.tools.twin.calibrate import normalise
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.classifier import Classifier, is_classifier, load_classifier
from intseg.tools.twin.export import export
from intseg.tools.twin.layers import QLinear
from intseg.tools.twin.model import FakeQuant, FakeQuantSegmenter, twin_of
from intseg.tools.twin.recipe import Recipe
from intseg.tools.twin.segmenter import Segmenter

MOMENTUM = 0.01
KL = "KL"
"""Name in the log of the distance from the float model on images that are held out."""

STEP = 6.0
"""Weights of an allocation learn at so many times the rate, in steps of their integers: at --lr 5e-4 a hundred
iterations move none by more than a sixth of a step, so that at most so many change."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intseg qat`; returns the exit code."""
    from intseg.cli.main import main as cli

    return cli(["qat", *(sys.argv[1:] if argv is None else argv)])


def twin_scores(model: nn.Module, images: Tensor) -> Tensor:
    """How the twin is trained: the reals that its integers stand for."""
    real: Tensor = model(images).real
    return real


def described(twin: FakeQuant) -> str:
    """Recipe and bits of a twin, in few words: different ones have different words."""
    weights = [int(layer.bits) for layer in twin.linears().values()]
    bits = [*weights, *(act.bits for act in twin.acts().values())]
    if set(bits) == {8, 16}:
        return twin.recipe.name
    return f"{twin.recipe.name}, weights of {min(weights)} to {max(weights)} bits ({zlib.crc32(bytes(bits)):08x})"


def run(args: argparse.Namespace) -> Answer:
    """Carry out `intseg qat`."""
    output, checkpoint = Path(args.output), Path(args.checkpoint)
    require_own_folder(output, args.checkpoint)
    model, recipe = _loaded(args, checkpoint), recipe_for(args.recipe)
    val = val_data(args)
    info = _info(model, recipe, checkpoint, output.name)
    files = find_images([Path(name) for name in args.calibrate], args.samples)
    files, split, kept_out = held_out(args.hold_out, files, open_split(args, args.split) if args.root else None)
    labelled = training.examples(split, model.config.n_cls) if split else None
    twin, batches = twin_of(model, info.window, recipe), [windows(file, info) for file in files]
    on = f"{count(len(files), 'image')}, {count(sum(map(len, batches)), 'window')}"
    allocation, _, _ = calibrated(args, twin, model, batches, on, keep_rest=True)
    if allocation and args.save_bits:
        save_allocation(allocation, Path(args.save_bits))
    settings = _settings(args, twin, taught=allocation is not None or labelled is None)
    output.mkdir(parents=True, exist_ok=True)

    def on_step(module: nn.Module, step: int) -> None:
        if recipe.ranges == "ema":
            twin.follow_ranges(MOMENTUM if step < args.freeze else 0.0)

    def teacher(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model.forward_scores(normalise(images, model.config), recipe.cosine)

    rates = _held(twin) if allocation else {}
    model.to(args.device).requires_grad_(False)
    data = labelled or training.Windows(torch.cat(batches), model.config.n_cls)
    trainer = training.Trainer(
        twin, twin_scores, data, settings, output, args.device, recipe.upsample, on_step, teacher, rates
    )
    if args.resume:
        trainer.resume()
    distance = _distance([windows(file, info) for file in kept_out], teacher, args.device)
    miou = functools.partial(val_miou, info=info, data=val, device=args.device) if val.pairs else None
    measure = functools.partial(_measured, trainer.log, distance, miou, functools.partial(_save, info, output))
    if kept_out and not trainer.log:
        trainer.report(measure, {})
    trainer.run(args.every, measure)
    return _answer(trainer, output)


def _measured(
    log: Sequence[Mapping[str, float]],
    distance: Callable[[nn.Module], float],
    miou: Callable[[Callable[..., Labels]], float] | None,
    keep: Callable[[FakeQuant], None],
    averaged: nn.Module,
) -> dict[str, float]:
    """What is measured of a report's average, which is saved unless an earlier one is nearer to the float model."""
    assert isinstance(averaged, FakeQuant)
    found = {KL: distance(averaged)}
    if not found[KL] > min((entry[KL] for entry in log if KL in entry), default=math.inf):
        keep(averaged)
    if miou and isinstance(averaged, FakeQuantSegmenter):
        found["mIoU"] = miou(functools.partial(twin_labels, averaged))
    return found


def _save(info: ModelInfo, output: Path, twin: FakeQuant) -> None:
    store.save(export(twin, info), output / "model.safetensors")
    save_twin(twin, output / "twin.pth")


def _answer(trainer: training.Trainer, output: Path) -> Answer:
    last = trainer.log[-1]
    best = min((entry for entry in trainer.log if KL in entry), key=lambda entry: entry[KL], default=last)
    about = f"{trainer.settings.steps} steps, last loss {last['loss']:.4f}"
    about = f"average at step {best['step']} of {about}" if KL in best else about
    return wrote(output / "model.safetensors", about, best=best, last=last)


Held = tuple[list[Path], datasets.Dataset | None, list[Path]]


def held_out(every: int, files: list[Path], data: datasets.Dataset | None) -> Held:
    """(calibration images, data set, images that only judge): every so many-th of the set, or of the former.

    Raises UsageError where none is left for either.
    """
    if not every:
        return files, data, []
    if data is None:
        judging = files[every - 1 :: every]
        files = [file for i, file in enumerate(files) if (i + 1) % every]
        left = len(files)
    else:
        calibrating = {file.resolve() for file in files}
        pairs = [pair for pair in data.pairs[every - 1 :: every] if pair.image.resolve() not in calibrating]
        judging = [pair.image for pair in pairs]
        data = dataclasses.replace(data, pairs=tuple(pair for pair in data.pairs if pair not in pairs))
        left = len(data.pairs)
    if not (judging and left):
        raise UsageError(
            f"--hold-out {every} leaves {left} images to train on and {len(judging)} to judge by; change it"
        )
    return files, data, judging


def _distance(
    batches: Sequence[Tensor], teacher: Callable[[Tensor], Tensor], device: str
) -> Callable[[nn.Module], float]:
    """KL of a twin's shares from the teacher's, on a window of every image [B, H, W, 3]; NaN without images."""
    seen = [batch[i % len(batch), None].to(device) for i, batch in enumerate(batches)]
    expected = [teacher(images) for images in seen]

    def measured(twin: nn.Module) -> float:
        with torch.no_grad():
            pairs = zip(seen, expected, strict=True)
            each = [float(training.divergence(scores, twin_scores(twin, images))) for images, scores in pairs]
        return sum(each) / len(each) if each else math.nan

    return measured


def _settings(args: argparse.Namespace, twin: FakeQuant, taught: bool) -> training.Settings:
    """The settings of a run; `taught` is whether the float model teaches where --distill says nothing."""
    share = float(taught) if args.distill is None else args.distill
    common = settings_from(args, twin.window, drop_path=0.0)
    return dataclasses.replace(common, distill=share, model=described(twin), hold_out=args.hold_out)


def _held(twin: FakeQuant) -> dict[str, float]:
    """Hold every linear layer; how fast its weights, now in steps, learn, by parameter."""
    with torch.no_grad():
        for layer in twin.linears().values():
            layer.hold()
    return {f"{name}.weight": STEP for name, module in twin.named_modules() if isinstance(module, QLinear)}


def _loaded(args: argparse.Namespace, checkpoint: Path) -> Segmenter | Classifier:
    """The float model. Raises UsageError where labels are asked for that are not there."""
    model = load_classifier(checkpoint, {}) if is_classifier(checkpoint) else load_checkpoint(checkpoint)
    if args.root and isinstance(model, Classifier):
        raise UsageError(f"{checkpoint} classifies images, --root has labels of pixels; leave it out")
    if not args.root and args.distill not in (None, 1.0):
        raise UsageError(
            f"--distill is {args.distill:g}, without --root there are no labels: leave it out, or name both"
        )
    return model


def _info(model: Segmenter | Classifier, recipe: Recipe, checkpoint: Path, name: str) -> ModelInfo:
    """Windows and classes of the integer model, as `intseg convert` has them by default."""
    named = names_of(model, checkpoint)
    make = class_info if isinstance(model, Classifier) else model_info
    return make(model.config, recipe, name, named, source="QAT by intseg")


if __name__ == "__main__":
    sys.exit(main())
