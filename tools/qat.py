"""Quantization-aware training: train the fake-quant twin of a checkpoint, then write the engine's weights.

    intseg qat checkpoint.pth --root CamVid -o runs/qat --calibrate CamVid/train --samples 32 --device cuda

The twin computes the engine's integers in every forward; gradients pass straight through (--precision bfloat16 is for
their matrix products alone). Ranges come from calibration. With the symmetric ranges of `paper` and `i-vit` they
follow what training sees (momentum 0.01) for the first --freeze steps; fitted ranges stay. The folder receives
state.pth, log.jsonl, curves.png and, at every report, model.safetensors with the moving average of the parameters:
the same bits as the twin in eval mode.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from intseg import store
from intseg.cli.printing import Answer, wrote
from intseg.tools.convert import dataset_of, find_images, model_info, recipe_for, save_twin, windows
from intseg.tools.evaluate import twin_labels
from intseg.tools.train import open_split, require_own_folder, settings_from, val_data, val_miou
from intseg.tools.twin import training
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.checkpoint import load_checkpoint
from intseg.tools.twin.classes import for_model
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuantSegmenter

MOMENTUM = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intseg qat`; returns the exit code."""
    from intseg.cli.main import main as cli

    return cli(["qat", *(sys.argv[1:] if argv is None else argv)])


def twin_scores(model: nn.Module, images: Tensor) -> Tensor:
    """How the twin is trained: the reals that its integers stand for."""
    real: Tensor = model(images).real
    return real


def run(args: argparse.Namespace) -> Answer:
    """Carry out `intseg qat`."""
    output, checkpoint = Path(args.output), Path(args.checkpoint)
    require_own_folder(output, args.checkpoint)
    model = load_checkpoint(checkpoint)
    data = training.examples(open_split(args, args.split), model.config.n_cls)
    val = val_data(args)
    recipe = recipe_for(args.recipe)
    named = for_model(model.config.n_cls, dataset_of(checkpoint), None)
    info = model_info(model.config, recipe, output.name, named, source="QAT by intseg")
    files = find_images([Path(name) for name in args.calibrate], args.samples)
    twin, batches = FakeQuantSegmenter(model, info.window, recipe), [windows(file, info) for file in files]
    calibrate(twin, model, batches)
    settings = settings_from(args, info.window, drop_path=0.0)
    output.mkdir(parents=True, exist_ok=True)

    def on_step(module: nn.Module, step: int) -> None:
        if recipe.ranges == "ema":
            twin.follow_ranges(MOMENTUM if step < args.freeze else 0.0)

    trainer = training.Trainer(twin, twin_scores, data, settings, output, args.device, recipe.upsample, on_step)
    if args.resume:
        trainer.resume()

    def measure(averaged: nn.Module) -> float:
        assert isinstance(averaged, FakeQuantSegmenter)
        store.save(export(averaged, info), output / "model.safetensors")
        save_twin(averaged, output / "twin.pth")
        return val_miou(functools.partial(twin_labels, averaged), info, val, args.device)

    trainer.run(args.every, measure)
    last = trainer.log[-1]
    about = f"{settings.steps} steps, last loss {last['loss']:.4f}"
    return wrote(output / "model.safetensors", about, last=last)


if __name__ == "__main__":
    sys.exit(main())
