"""Weights of fewer bits in a classifier: uniform and mixed by every score; docs/results/bits_NAME.json.

    python tools/measure/classify_bits.py vit_tiny_patch16_224 --name vit_tiny --root imagenet_val

Every 20th image calibrates and is left out of what is measured. Rows that were measured are kept until all are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from intseg import store
from intseg.batch.classified import Example, open_imagenet
from intseg.plan.plan import Plan
from intseg.tools.convert import class_info, windows
from intseg.tools.ends import ended
from intseg.tools.make_docs import DOCS
from intseg.tools.measure.classify import Array, accuracy, in_batches, sha256, windows_of
from intseg.tools.measure.experiment.bits import PARTS, SAMPLES, Rounding
from intseg.tools.measure.experiment.memo import Document, Memo, write
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import normalise
from intseg.tools.twin.classifier import load_classifier
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuant, twin_of
from intseg.tools.twin.recipe import RECIPES

CALIBRATING = 20
"""Every so many-th image calibrates."""


def split(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Those that calibrate, SAMPLES at most, and all that are measured."""
    calibrating = list(examples[::CALIBRATING])[:SAMPLES]
    kept = {example.image for example in calibrating}
    return calibrating, [example for example in examples if example.image not in kept]


def measure(args: argparse.Namespace) -> None:
    """Write the document."""
    model, recipe = load_classifier(args.checkpoint), RECIPES["intseg"]
    info = class_info(model.config, recipe, args.name, classes.for_model(model.config.n_cls, "imagenet", None))
    calibrating, examples = split(open_imagenet(args.root, "val", info.classes)[0][:: args.every])
    seen, truth = windows_of(examples, info), np.array([example.label for example in examples])
    with torch.no_grad():
        floats = np.concatenate([model(normalise(batch, model.config)).numpy() for batch in in_batches(seen)])

    def counted(logits: Array) -> Document:
        same = int((logits.argmax(1) == floats.argmax(1)).sum())
        return accuracy(logits, truth) | {"same": same, "images": len(truth)}

    def count(twin: FakeQuant) -> Document:
        plan = Plan(store.loads(store.dumps(export(twin, info))), 1)
        return counted(np.stack([plan(window) for window in seen]))

    rounding = Rounding(
        model,
        lambda: twin_of(model, info.window, recipe),
        lambda samples: [windows(example.image, info) for example in calibrating[:samples]],
        count,
    )
    inputs = {"sha256": sha256(args.checkpoint / "model.safetensors"), "every": args.every}
    path = args.docs / "results" / f"bits_{args.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    memo = Memo(path, inputs, fresh=False)
    command = f"python tools/measure/classify_bits.py {args.checkpoint.name} --name {args.name} --root {args.root.name}"
    document = {
        "experiment": "classification_bits",
        "command": command + ("" if args.parts == list(PARTS) else f" --parts {' '.join(args.parts)}"),
        "checkpoint": {"name": args.name, "sha256": inputs["sha256"]},
        "images": len(examples),
        "results": {"float": counted(floats), **rounding.rows(memo, args.parts)},
    }
    write(document, path)
    memo.end()
    print(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="classify_bits.py", description="Measure a classifier at fewer bits.")
    parser.add_argument("checkpoint", type=Path, help="folder with model.safetensors and config.json")
    parser.add_argument("--name", required=True, help="of the model in docs/results")
    parser.add_argument("--root", type=Path, required=True, help="images/ and labels.txt, or a folder for every class")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="groups of rows (all)")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th image")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of results/")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    return ended("classify_bits.py", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
