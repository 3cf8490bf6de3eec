"""Measure a classifier: float, every recipe's engine, the twin in every logit; docs/results/classification_NAME.json.

    python tools/measure/classify.py vit_tiny_patch16_224 --name vit_tiny --root imagenet_val --calibrate street.png

One calibration image, which is none of those that are measured. The float model, the twin and the engine see the same
window of an image (SPEC.md, 7.4). The twin of recipe intseg is compared with the engine on every image, those of others
on every `--twin`-th (all).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intseg import store
from intseg.batch.classified import Example, open_imagenet
from intseg.errors import InputError
from intseg.graph import ModelInfo
from intseg.images import decode as pictures
from intseg.plan.plan import Plan
from intseg.tools.convert import class_info, windows
from intseg.tools.make_docs import DOCS
from intseg.tools.measure.experiment.activations import Errors, apply_gelu, blocks, gelus
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.classifier import Classifier, load_classifier
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuantClassifier, QBlock, twin_of
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.samples import normalise, tapped
from intseg.windows import cut_windows

Array = NDArray[Any]
BATCH = 10
GELU_IMAGES = 8


def windows_of(examples: Sequence[Example], info: ModelInfo) -> Array:
    """What is seen of every image, uint8 [images, H, W, 3]."""
    return np.stack(
        [window for e in examples for _, window in cut_windows(pictures.decode(e.image, info.pad).rgb, info)]
    )


def in_batches(seen: Array) -> Iterator[Tensor]:
    """BATCH windows at a time."""
    return (torch.from_numpy(seen[i : i + BATCH]) for i in range(0, len(seen), BATCH))


def accuracy(logits: Array, truth: Array) -> dict[str, int]:
    """How many are right first, and among the best 5 (ties: the lower class)."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return {"top1": int((order[:, 0] == truth).sum()), "top5": int((order == truth[:, None]).any(1).sum())}


def recipe_row(model: Classifier, name: str, calibration: Path, seen: Array, truth: Array, every: int) -> Any:
    """Engine logits of a recipe, its twin's differences, the twin itself."""
    recipe = RECIPES[name]
    named = classes.for_model(model.config.n_cls, "imagenet", None)
    info = class_info(model.config, recipe, name, named)
    twin = twin_of(model, info.window, recipe)
    assert isinstance(twin, FakeQuantClassifier)
    chosen = calibrate(twin, model, [windows(calibration, info)])
    graph = store.loads(store.dumps(export(twin.eval(), info)))
    plan = Plan(graph, 1)
    start = time.perf_counter()
    logits = np.stack([plan(window) for window in seen])
    seconds = (time.perf_counter() - start) / len(seen)
    different, compared = 0, 0
    with torch.no_grad():
        for i, batch in enumerate(in_batches(seen[::every])):
            wanted = twin(batch).q.numpy()
            found = logits[::every][i * BATCH : i * BATCH + len(batch)]
            different, compared = different + int((wanted != found).sum()), compared + wanted.size
    row = accuracy(logits, truth) | {"twin_logits": compared, "twin_different": different, "ms": 1000 * seconds}
    return row | {"gelu": {k: v for k, v in chosen.items() if k.endswith(".act")}}, logits, twin


def gelu_errors(model: Classifier, paper: FakeQuantClassifier, fitted: FakeQuantClassifier, seen: Array) -> Any:
    """Root mean square error of every integer GELU by block, the largest input and its channel."""
    ours, theirs = blocks(fitted), blocks(paper)
    kinds = {name: gelus(theirs[name], ours[name]) for name in ours}
    errors, where = {name: Errors() for name in ours}, dict.fromkeys(ours, (0.0, 0))
    inputs: dict[str, Tensor] = {}

    def receive(node: str, value: Tensor) -> None:
        if node.endswith(".mlp.fc1"):
            inputs[node] = value
        if not node.endswith(".mlp.act"):
            return
        name = node.removesuffix(".mlp.act")
        x, sums = inputs.pop(f"{name}.mlp.fc1"), errors[name]
        sums.elements += x.numel()
        sums.largest = max(sums.largest, float(x.abs().max()))
        reach = x.amax((0, 1))
        where[name] = max(where[name], (float(reach.max()), int(reach.argmax())))
        for variant, layer in kinds[name].items():
            sums.add(variant, whole_gelu(ours[name], layer, x, "fitted" in variant), value)

    with torch.no_grad(), tapped(model, receive):
        for batch in in_batches(seen[:GELU_IMAGES]):
            model.forward_scores(normalise(batch, model.config))
    return {name: found.as_json() | {"channel": where[name][1]} for name, found in errors.items()}


def whole_gelu(block: QBlock, layer: Any, x: Tensor, fitted: bool) -> Tensor:
    """The GELU of inputs [B, N, units], the parts of a divided unit added up."""
    units = block.fc1.units if fitted else None
    y = apply_gelu(layer, layer.x.quantize(x if units is None else x[..., units]).to(torch.int8), "auto")
    return y if units is None else torch.zeros_like(y).index_add(-1, units, y)


def measure(args: argparse.Namespace) -> Any:
    """The document."""
    model = load_classifier(args.checkpoint)
    named = classes.for_model(model.config.n_cls, "imagenet", None)
    info = class_info(model.config, RECIPES["intseg"], args.name, named)
    examples = open_imagenet(args.root, "val", info.classes)[0][:: args.every]
    if args.calibrate.resolve() in {example.image.resolve() for example in examples}:
        raise InputError(f"{args.calibrate}: is one of the images that are measured; give another")
    seen, truth = windows_of(examples, info), np.array([example.label for example in examples])
    with torch.no_grad():
        floats = np.concatenate([model(normalise(batch, model.config)).numpy() for batch in in_batches(seen)])
    rows, twins = {}, {}
    for name in args.recipes:
        rows[name], logits, twins[name] = recipe_row(
            model, name, args.calibrate, seen, truth, 1 if name == "intseg" else args.twin
        )
        rows[name]["same"] = int((logits.argmax(1) == floats.argmax(1)).sum())
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    return {
        "experiment": "classification",
        "command": f"python tools/measure/classify.py {args.checkpoint.name} --name {args.name} "
        f"--root {args.root.name} --calibrate {args.calibrate.name}" + f" --twin {args.twin}" * (args.twin != 1),
        "checkpoint": {"name": args.name, "sha256": sha256(args.checkpoint / "model.safetensors")},
        "images": len(examples),
        "calibration": args.calibrate.name,
        "results": {
            "float": accuracy(floats, truth),
            "recipes": rows,
            "gelu": gelu_errors(model, twins["paper"], twins["intseg"], seen),
        },
    }


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="classify.py", description="Measure a classifier.")
    parser.add_argument("checkpoint", type=Path, help="folder with model.safetensors and config.json")
    parser.add_argument("--name", required=True, help="of the model in docs/results")
    parser.add_argument("--root", type=Path, required=True, help="images/ and labels.txt, or a folder for every class")
    parser.add_argument("--calibrate", type=Path, required=True, help="one image, none of those")
    parser.add_argument("--recipes", nargs="+", default=["intseg", "paper", "i-vit"], choices=RECIPES)
    parser.add_argument("--every", type=int, default=1, help="only every so many-th image")
    parser.add_argument("--twin", type=int, default=1, help="twins of other recipes on every so many-th image")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of results/")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    document = measure(args)
    path = args.docs / "results" / f"classification_{args.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
    print(f"wrote {path}")
    return int(any(row["twin_different"] for row in document["results"]["recipes"].values()))


if __name__ == "__main__":
    sys.exit(main())
