"""Weights of fewer bits in a classifier: uniform and mixed by every score; docs/results/bits_NAME.json.

    python tools/measure/classify_bits.py vit_tiny_patch16_224 --name vit_tiny --root imagenet_val

Every 20th image calibrates and is left out of what is measured. Rows that were measured are kept, those of the file
that is there too (--force measures again). With --judge, photographs without labels, none of them measured or
calibrated on, choose how W4A8 is rounded: of EFFORTS the one whose logits give classes the shares nearest to float's.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from intseg import store
from intseg.batch.classified import Example, open_imagenet
from intseg.graph import ModelInfo
from intseg.plan.plan import Plan
from intseg.tools.bits.allocation import LayerCost
from intseg.tools.bits.rounding import Ways
from intseg.tools.convert import class_info, find_images, windows
from intseg.tools.ends import ended
from intseg.tools.make_docs import DOCS
from intseg.tools.measure.classify import Array, accuracy, in_batches, sha256, windows_of
from intseg.tools.measure.experiment.bits import PARTS, SAMPLES, Asked, Rounding
from intseg.tools.measure.experiment.memo import Document, Memo, read_json, write
from intseg.tools.twin import classes
from intseg.tools.twin.calibrate import normalise
from intseg.tools.twin.classifier import Classifier, load_classifier
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuant, FakeQuantClassifier, twin_of
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.training import divergence

EFFORTS = {"as above": Ways(), "3 views": Ways(views=3)}
"""How weights of CHOSEN_BITS are rounded, to choose from."""

CHOSEN_BITS = 4
JUDGES = 256
"""Photographs that choose, evenly spaced, at most."""

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
    memo = Memo(path, inputs, args.force)
    about = {"checkpoint": {"name": args.name, "sha256": inputs["sha256"]}, "images": len(examples)}
    memo.parts = memo.parts or ({} if args.force else kept(path, about))
    results = {"float": counted(floats), **rounding.rows(memo, args.parts)}
    if args.judge:
        judge = distance(model, info, find_images(args.judge, JUDGES))
        results["effort"] = chosen(rounding, judge, memo, results)
    command = f"python tools/measure/classify_bits.py {args.checkpoint.name} --name {args.name} --root {args.root.name}"
    command += "" if args.parts == list(PARTS) else f" --parts {' '.join(args.parts)}"
    command += f" --judge {' '.join(file.name for file in args.judge)}" if args.judge else ""
    document = {"experiment": "classification_bits", "command": command, **about, "results": results}
    write(document, path)
    memo.end()
    print(f"wrote {path}")


def kept(path: Path, about: Document) -> Document:
    """What was measured before of the same model and images."""
    found = read_json(path) if path.exists() else {}
    if any(found.get(key) != value for key, value in about.items()):
        return {}
    return {"scores": found["results"]["scores"], **found["results"]["rows"]}


def distance(model: Classifier, info: ModelInfo, files: Sequence[Path]) -> Callable[[FakeQuant], Document]:
    """What says how far (KL) the shares that an integer model gives to classes are from float's, on photographs."""
    seen = torch.cat([windows(file, info) for file in files]).numpy()
    with torch.no_grad():
        expected = torch.cat([model(normalise(batch, model.config)) for batch in in_batches(seen)])

    def measured(twin: FakeQuant) -> Document:
        assert isinstance(twin, FakeQuantClassifier)
        plan = Plan(store.loads(store.dumps(export(twin, info))), 1)
        logits = np.stack([plan(window) for window in seen]) * float(twin.logit_act.scale)
        return {"kl": float(divergence(expected, torch.from_numpy(logits))), "photographs": len(seen)}

    return measured


def chosen(
    rounding: Rounding, judge: Callable[[FakeQuant], Document], memo: Memo, results: Document
) -> dict[str, Document]:
    """KL of all EFFORTS; the row of the best goes to the results as "chosen, 4"."""
    costs = [LayerCost(*layer) for layer in results["scores"]["layers"]]

    def made(by: Rounding, name: str) -> Document:
        return by.row(costs, Asked(name, (CHOSEN_BITS,) * len(costs), ways=EFFORTS[name]))

    judged = rounding.counting(judge)
    found = {name: memo(f"effort, {name}", functools.partial(made, judged, name)) for name in EFFORTS}
    best = min(found, key=lambda name: float(found[name]["kl"]))
    results["rows"][f"chosen, {CHOSEN_BITS}"] = memo(f"chosen, {best}", functools.partial(made, rounding, best))
    return {name: {key: row[key] for key in ("kl", "photographs")} for name, row in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="classify_bits.py", description="Measure a classifier at fewer bits.")
    parser.add_argument("checkpoint", type=Path, help="folder with model.safetensors and config.json")
    parser.add_argument("--name", required=True, help="of the model in docs/results")
    parser.add_argument("--root", type=Path, required=True, help="images/ and labels.txt, or a folder for every class")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="groups of rows (all)")
    text = "photographs without labels, or folders of them, that choose how W4A8 is rounded"
    parser.add_argument("--judge", type=Path, nargs="+", default=[], help=text)
    parser.add_argument("--force", action="store_true", help="measure again what is there")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th image")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of results/")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    return ended("classify_bits.py", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
