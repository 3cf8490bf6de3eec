"""Measure the paper's tables on a labelled data set: one JSON file per experiment and checkpoint, for report.py.

    python tools/measure/experiments.py all --root CamVid --checkpoint tiny=segmenter_tiny_camvid -o docs/results
    python tools/measure/experiments.py ptq --root CamVid --checkpoint tiny=DIR --checkpoint tiny24=DIR
    python tools/measure/experiments.py qat --root CamVid --checkpoint tiny=DIR --qat tiny:paper=model.safetensors

activations      Table 1: errors of the integer GELUs and softmaxes, per block
upsampling       Table 2: nearest or bilinear, L2 norm kept or dropped
ptq              Tables 3 to 5: post-training quantization from few and many images, its time and memory
qat              Tables 3 and 4: models that tools/qat.py wrote
bits             weights of 2 to 8 bits, uniform and mixed, by every score; ablation and synergy
simplifications  what each difference between the recipes intseg and paper costs
calibration      what the choices of calibration win, on training images that it does not see
sizes            Tables 6 and 7: size and memory traffic of the four published sizes; needs no data

What was measured before with the same checkpoint and options is kept, also of an experiment that was ended early. The
engine's integers are those of the fake-quant model bit for bit (tests/tools), so that only the engine runs here. No
file holds a path of the machine.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from intseg import store
from intseg.batch import datasets
from intseg.errors import InputError, UsageError
from intseg.tools.ends import ended
from intseg.tools.measure import bench
from intseg.tools.measure.experiment.activations import activations
from intseg.tools.measure.experiment.bits import PARTS, bits
from intseg.tools.measure.experiment.choices import calibration, simplifications, upsampling
from intseg.tools.measure.experiment.memo import FORMAT, Document, Memo, earlier, up_to_date, write
from intseg.tools.measure.experiment.quantized import ptq, qat
from intseg.tools.measure.experiment.sizes import sizes
from intseg.tools.measure.experiment.subject import Subject
from intseg.tools.twin.recipe import RECIPES

PER_CHECKPOINT: Mapping[str, Callable[[Subject], Document]] = {
    "upsampling": upsampling,
    "activations": activations,
    "simplifications": simplifications,
    "calibration": calibration,
    "ptq": ptq,
    "qat": qat,
    "bits": bits,
}
"""Experiments whose file is EXPERIMENT_CHECKPOINT.json."""

LAYOUT_NAMES = {"camvid": "CamVid", "ade20k": "ADE20K", "cityscapes": "Cityscapes", "idd_lite": "IDD-Lite"}
"""Data sets as the documents call them."""

OPTIONS = {
    "upsampling": ("split", "limit"),
    "activations": ("split", "limit", "images", "tails"),
    "simplifications": ("split", "limit"),
    "calibration": ("split", "limit", "train", "images"),
    "ptq": ("split", "limit", "train", "samples", "recipes", "qat_steps"),
    "qat": ("split", "limit"),
    "bits": ("split", "limit", "train", "parts"),
}
"""Options that decide a result."""


def inputs_of(experiment: str, subject: Subject) -> Document:
    """What a result depends on; equal inputs are not measured again."""
    options = {name: getattr(subject.options, name) for name in OPTIONS[experiment]}
    names = hashlib.sha256("\n".join(pair.image.name for pair in subject.pairs).encode()).hexdigest()
    found = {"format": FORMAT, "checkpoint_sha256": subject.sha256, "data": names, **options}
    if experiment == "qat":
        files = subject.options.qat.get(subject.name, {})
        found["models"] = {recipe: hashlib.sha256(store.read(file)).hexdigest() for recipe, file in files.items()}
    return found


def header(experiment: str, subject: Subject) -> Document:
    """What a file says about itself."""
    config = subject.model.config
    options = subject.options
    command = f"python tools/measure/experiments.py {experiment} --root {options.layout_name} "
    command += "" if options.layout == "camvid" else f"--layout {options.layout} "
    command += f"--checkpoint {subject.name}={subject.path.name}"
    if experiment == "bits" and list(options.parts) != list(PARTS):
        command += f" --parts {' '.join(options.parts)}"
    if experiment == "qat":
        kept = dict.fromkeys(subject.earlier.get("rows", {}), Path("model.safetensors"))
        files = {**kept, **options.qat.get(subject.name, {})}
        command += "".join(f" --qat {subject.name}:{recipe}={file.name}" for recipe, file in files.items())
    return {
        "experiment": experiment,
        "command": command,
        "checkpoint": {
            "name": subject.name,
            "blocks": config.n_layers,
            "width": config.d_model,
            "decoder_blocks": config.dec_layers,
            "window": list(config.window),
        },
        "data": options.layout_name,
        "classes": list(subject.classes),
        "images": len(subject.pairs),
        "training_images": len(subject.training),
    }


def run(options: argparse.Namespace) -> None:
    """All that is asked for, one file after the other."""
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = [*PER_CHECKPOINT, "sizes"] if "all" in options.experiments else options.experiments
    for name, path in options.checkpoint.items():
        chosen = [e for e in wanted if e in PER_CHECKPOINT and (e != "qat" or options.qat.get(name))]
        subject = Subject(name, path, options) if chosen else None
        for experiment in chosen:
            assert subject is not None
            file, inputs = options.output / f"{experiment}_{name}.json", inputs_of(experiment, subject)
            if not options.force and up_to_date(file, inputs):
                print(f"{file}: up to date")
                continue
            subject.earlier = earlier(file, inputs)
            subject.memo = Memo(file, inputs, options.force)
            _measure(file, inputs, header(experiment, subject), functools.partial(PER_CHECKPOINT[experiment], subject))
            subject.memo.end()
    if "sizes" in wanted:
        file, names = options.output / "sizes.json", list(options.sizes)
        inputs = {"format": FORMAT, "sizes": names}
        if not options.force and up_to_date(file, inputs):
            print(f"{file}: up to date")
            return
        command = "python tools/measure/experiments.py sizes"
        command += "" if names == list(bench.SHAPES) else f" --sizes {' '.join(names)}"
        about = {"experiment": "sizes", "command": command}
        _measure(file, inputs, about, lambda: sizes(names))


def _measure(file: Path, inputs: Document, about: Document, work: Callable[[], Document]) -> None:
    start, processor = time.perf_counter(), time.process_time()
    result = work()
    write({**about, "inputs": inputs, "results": result}, file)
    elapsed = f"{time.perf_counter() - start:.0f} s, {time.process_time() - processor:.0f} of this process"
    print(f"{file}: {elapsed}", flush=True)


def _named(values: Sequence[str], option: str) -> dict[str, Path]:
    """NAME=PATH, several."""
    found = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name.isidentifier() and equals and path):
            raise UsageError(f"{option} {value}: expected NAME=PATH, the name of letters and digits")
        if not Path(path).exists():
            raise InputError(f"{option} {value}: no such file or folder")
        found[name] = Path(path)
    return found


def _qat_files(values: Sequence[str], checkpoints: Sequence[str]) -> dict[str, dict[str, Path]]:
    """[NAME:]RECIPE[+BITS]=FILE, several; the name may be left out where there is one checkpoint."""
    found: dict[str, dict[str, Path]] = {}
    for value in values:
        left, _, file = value.partition("=")
        name, _, recipe = left.rpartition(":")
        name = name or (checkpoints[0] if len(checkpoints) == 1 else "")
        if name not in checkpoints or recipe.partition("+")[0] not in RECIPES or not file:
            raise UsageError(f"--qat {value}: expected NAME:RECIPE=FILE, a checkpoint and one of {', '.join(RECIPES)}")
        if not Path(file).is_file():
            raise InputError(f"--qat {value}: no such file")
        found.setdefault(name, {})[recipe] = Path(file)
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="experiments.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("experiments", nargs="+", choices=["all", *PER_CHECKPOINT, "sizes"], metavar="EXPERIMENT")
    p.add_argument("--root", type=Path, help="folder of the data set")
    p.add_argument("--layout", choices=sorted(set(datasets.LAYOUTS) - {"pairs"}), default="camvid")
    p.add_argument("--split", default="val", help="part of the data set that is measured (val)")
    p.add_argument("--train", default="train", help="part that calibration takes images from (train)")
    p.add_argument("--checkpoint", action="append", default=[], metavar="NAME=PATH", help="several are allowed")
    text = "of tools/qat.py, several; BITS are words for those of a model of fewer, as intseg+w4a8"
    p.add_argument("--qat", action="append", default=[], metavar="[NAME:]RECIPE[+BITS]=FILE", help=text)
    p.add_argument("-o", "--output", type=Path, default=Path("docs/results"), help="folder of the files (docs/results)")
    p.add_argument("--samples", nargs="+", default=["1", "all", "32"], help="calibration images of ptq (1 all 32)")
    p.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=sorted(RECIPES), help="of ptq (all)")
    p.add_argument("--images", type=int, default=26, help="of activations and calibration, evenly spaced (26)")
    p.add_argument("--tails", type=int, nargs="*", default=[8, 16], help="factors of Table 1's long tails (8 16)")
    p.add_argument("--qat-steps", type=int, default=3, help="training steps that are timed by ptq; 0 for none (3)")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="groups of rows of bits (all)")
    p.add_argument("--sizes", nargs="+", choices=list(bench.SHAPES), default=list(bench.SHAPES), help="of sizes (all)")
    p.add_argument("--limit", type=int, help="first images only")
    p.add_argument("--backend", default="auto", help="of the engine (auto)")
    p.add_argument("--threads", type=int, default=1, help="of the engine (1)")
    p.add_argument("--force", action="store_true", help="measure again what is there")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(argv)
    options.layout_name = LAYOUT_NAMES.get(options.layout, options.layout)
    return ended("experiments.py", lambda: _checked(options))


def _checked(options: argparse.Namespace) -> None:
    options.checkpoint = _named(options.checkpoint, "--checkpoint")
    options.qat = _qat_files(options.qat, list(options.checkpoint))
    if set(options.experiments) != {"sizes"} and not (options.root and options.checkpoint):
        raise UsageError("needs --root DIR and --checkpoint NAME=PATH; see --help")
    run(options)


if __name__ == "__main__":
    sys.exit(main())
