"""Quantization-aware training: train the fake-quant twin of a checkpoint, then write the engine's weights.

    intseg qat checkpoint.pth --root CamVid -o runs/qat --calibrate CamVid/train --samples 32 --device cuda
    intseg qat vit_tiny_patch16_224 -o runs/vit4 --calibrate photos --uniform w4a8 --steps 60

The twin computes the engine's integers in every forward; gradients pass straight through (--precision bfloat16 is for
their matrix products alone). Where bits are asked for (--uniform, --bits, --budget-...) training starts at the integers
that `intseg convert` writes, whose scales stay; a weight learns in steps of its integers (`QLinear.hold`), the float
model is the teacher (--distill). Without --root the windows of calibration are what it sees: no labels are needed.

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
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from intseg import store
from intseg.cli.printing import Answer, count, wrote
from intseg.errors import UsageError
from intseg.graph import ModelInfo
from intseg.tools.bits.allocation import save as save_allocation
from intseg.tools.bits.rounding import Ways
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
from intseg.tools.evaluate import twin_labels
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
    labelled = training.examples(open_split(args, args.split), model.config.n_cls) if args.root else None
    val = val_data(args)
    info = _info(model, recipe, checkpoint, output.name)
    files = find_images([Path(name) for name in args.calibrate], args.samples)
    twin, batches = twin_of(model, info.window, recipe), [windows(file, info) for file in files]
    on = f"{count(len(files), 'image')}, {count(sum(map(len, batches)), 'window')}"
    allocation, _, _ = calibrated(args, twin, model, batches, on, Ways(keep_rest=True))
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

    def measure(averaged: nn.Module) -> float:
        assert isinstance(averaged, FakeQuant)
        store.save(export(averaged, info), output / "model.safetensors")
        save_twin(averaged, output / "twin.pth")
        if not val.pairs:
            return math.nan
        assert isinstance(averaged, FakeQuantSegmenter)
        return val_miou(functools.partial(twin_labels, averaged), info, val, args.device)

    trainer.run(args.every, measure)
    last = trainer.log[-1]
    about = f"{settings.steps} steps, last loss {last['loss']:.4f}"
    return wrote(output / "model.safetensors", about, last=last)


def _settings(args: argparse.Namespace, twin: FakeQuant, taught: bool) -> training.Settings:
    """The settings of a run; `taught` is whether the float model teaches where --distill says nothing."""
    share = float(taught) if args.distill is None else args.distill
    common = settings_from(args, twin.window, drop_path=0.0)
    return dataclasses.replace(common, distill=share, model=described(twin))


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
