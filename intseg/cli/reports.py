"""The commands that look into a model, its speed, its results and this installation."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intseg import models
from intseg.cli.labelled import add_labelling, opened, relabelled
from intseg.cli.parser import (
    BACKENDS,
    LAYOUTS,
    Command,
    Read,
    ReadHeld,
    WrittenFolder,
    add_model,
    add_threads,
    add_weights,
    whole,
    written,
)
from intseg.cli.printing import Answer, count, say, size, wrote
from intseg.errors import MismatchError, ModelError, UsageError
from intseg.reports.table import table

if TYPE_CHECKING:
    from intseg import api
    from intseg.reports import doctor


def _models() -> Answer:
    from intseg import api

    if not models.names():
        raise ModelError("no bundled model is installed, expected at least one; install intseg again")
    loaded = {name: api.load(name) for name in models.names()}
    rows = [("name", "classes", "window", "recipe", "size", "sha256")]
    for name, model in loaded.items():
        info, held = model.info, size(model.path.stat().st_size)
        window = f"{info.window[0]}x{info.window[1]}"
        rows.append((name, str(len(info.classes)), window, info.recipe, held, model.sha256[:12]))
    lines = [*table(rows), f"without -w, {models.DEFAULT} is used"]
    return Answer(lines, [_model_json(name, model) for name, model in loaded.items()])


def _model_json(name: str, model: api.Model) -> dict[str, Any]:
    info = model.info
    return {
        "name": name,
        "path": str(model.path),
        "sha256": model.sha256,
        "recipe": info.recipe,
        "classes": list(info.classes),
        "palette": [list(colour) for colour in info.palette],
        "window": list(info.window),
        "source": info.source,
    }


_INSPECT = """\
Show what is inside a model: every node with its shape, parameters and MACs, totals, size by precision; --json has more.

examples:
  intseg inspect --list                  the bundled models
  intseg inspect model.safetensors --by block
  intseg inspect --svg graph.svg         a drawing, equal blocks drawn once
"""


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--list", action="store_true", help="list the bundled models instead")
    parser.add_argument("--by", choices=("node", "block", "op"), default="node", help="one row for each (node)")
    parser.add_argument(
        "--dot", type=written(".dot", ".gv"), metavar="FILE", help="write every node as a Graphviz graph"
    )
    parser.add_argument("--svg", type=written(".svg"), metavar="FILE", help="write a drawing of the graph")


def _inspect(args: argparse.Namespace) -> Answer:
    if args.list:
        return _models()
    from intseg import api, store
    from intseg.reports import graph_drawing
    from intseg.reports import inspect as inspect_model

    model = api.load(args.weights)
    if args.dot:
        store.write_atomically(Path(args.dot), graph_drawing.dot(model.graph).encode())
    if args.svg:
        store.write_atomically(Path(args.svg), graph_drawing.svg(model).encode())
    made = [path for path in (args.dot, args.svg) if path]
    lines = [*inspect_model.lines(model, args.by), *(f"wrote {path}" for path in made)]
    return Answer(lines, inspect_model.as_json(model) | {"written": made})


_PROVE = """\
Prove that no register overflows, for any image: per node and register the bound, the bits it needs, the bits
to spare, and how near a constructed input comes. Loading a model proves the same, without these inputs.

examples:
  intseg prove
  intseg prove model.safetensors --by op       the tightest register of every op
  intseg prove --nodes '*.blocks.0.*' --json
  intseg prove model.safetensors --fast          the bounds only
"""


def _prove_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--by", choices=("register", "node", "op"), default="register", help="rows (register)")
    parser.add_argument("--nodes", default="*", metavar="PATTERN", help="names with * and ?, and commas (all)")
    parser.add_argument("--fast", action="store_true", help="run no inputs: bounds only, as loading does")


def _prove(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.reports import certificate as prove_report

    found = prove_report.certify(api.load(args.weights), not args.fast)
    return Answer(prove_report.lines(found, args.by, args.nodes), prove_report.as_json(found))


_PROFILE = """\
Time the first window of an image: every node by itself, then every step of the fused program that infer runs.
Times are of the fastest of --repeat runs; a step that threads share has the sum over the threads.

examples:
  intseg profile street.png --by op
  intseg profile street.png --trace trace.json     open it in ui.perfetto.dev
"""


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Read, metavar="IMAGE", help="image, any size")
    add_weights(parser, threads=True)
    parser.add_argument("--by", choices=("node", "op"), default="node", help="one row for each (node)")
    parser.add_argument("--repeat", type=whole(1, 100_000), default=3, metavar="N", help="counted runs (3)")
    parser.add_argument(
        "--trace",
        type=written(".json"),
        metavar="FILE",
        help="write events for Chrome's trace viewer",
    )


def _profile(args: argparse.Namespace) -> Answer:
    from intseg import store
    from intseg.reports import profile as profiling

    found = profiling.profile(args.image, args.weights, args.backend, args.threads, args.repeat)
    for note in found.notes:
        say(f"note: {args.image}: {note}")
    if args.trace:
        store.write_atomically(Path(args.trace), profiling.chrome_trace(found))
    made = [f"wrote {args.trace}"] if args.trace else []
    return Answer([*profiling.lines(found, args.by), *made], profiling.as_json(found))


_DOCTOR = """\
Examine this installation: versions, processor, instruction path, threads, cache of compiled kernels; then run every
bundled model on every backend and compare with the known digest. Exit code 1 if one differs.

examples:
  intseg doctor
  intseg doctor --warm           compile the kernels now, not at the first image
"""


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--warm", action="store_true", help="compile the kernels first")
    add_threads(parser)


def _doctor(args: argparse.Namespace) -> Answer:
    from intseg import backends
    from intseg.reports import doctor

    if args.warm:
        if not backends.has_numba():
            raise UsageError("the numba backend needs the package numba: pip install numba, or nothing to warm up")
        say("compiling the kernels ...")
        backends.warmup()
    findings = doctor.examine(args.threads)
    if not args.json:
        return Answer(_doctor_lines(findings))
    found = list(findings)
    return Answer((), doctor.as_json(found), failure=_wrong(found))


def _doctor_lines(findings: Iterator[doctor.Finding]) -> Iterator[str]:
    """Each as soon as it is known. Raises MismatchError at the end."""
    from intseg.reports import doctor

    seen: list[doctor.Finding] = []
    for finding in findings:
        yield from doctor.lines(finding, seen[-1].section if seen else None)
        seen.append(finding)
    if failure := _wrong(seen):
        raise failure


def _wrong(findings: list[doctor.Finding]) -> MismatchError | None:
    wrong = [f"{finding.name}: {finding.value}" for finding in findings if finding.ok is False]
    if not wrong:
        return None
    return MismatchError(f"{len(wrong)} wrong: {wrong[0]}; install intseg again, or report this output")


_REPORT = """\
Write one HTML page about images: class map over the image, class areas, score margins, ranges and saturation of every
layer, digests. The page is one file and loads nothing from anywhere.

examples:
  intseg report street.png -o report.html
  intseg report photos/*.png -w model.safetensors -o report.html
"""


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", type=Read, metavar="IMAGE", help="images, folders, patterns, @list.txt")
    add_weights(parser, threads=True)
    page = written(".html", ".htm")
    parser.add_argument("-o", "--output", required=True, type=page, metavar="FILE", help="the page (.html)")
    parser.add_argument("--no-layers", action="store_true", help="leave out the layers: less work")


def _report(args: argparse.Namespace) -> Answer:
    from intseg import api, store
    from intseg.batch.sources import find_sources
    from intseg.reports import page as report

    model = api.load(args.weights)
    sources = find_sources(args.images)
    looked = [report.look(one.file, model, args.backend, args.threads, not args.no_layers) for one in sources]
    for one, look in zip(sources, looked, strict=True):
        for note in look.result.notes:
            say(f"note: {one.file}: {note}")
    page = report.page(model, looked)
    store.write_atomically(Path(args.output), page)
    about = f"{count(len(looked), 'image')}, {size(len(page))}"
    return wrote(args.output, about, images=len(looked), bytes=len(page))


_CARD = """\
Write a model folder as model hubs expect it: config.json, model.safetensors (the same bytes), preprocessor_config.json
and README.md with recipe, sizes, classes, the digest to check an installation with, and accuracy if it is given.

examples:
  intseg card camvid-tiny -o camvid-tiny/
  intseg eval --root CamVid --json > metrics.json
  intseg card camvid-tiny -o camvid-tiny/ --metrics metrics.json --data CamVid
"""


def _card_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    new = WrittenFolder
    parser.add_argument("-o", "--output", required=True, type=new, metavar="FOLDER", help="new or empty folder")
    parser.add_argument("--metrics", type=Read, metavar="FILE", help="what intseg eval --json printed for this model")
    parser.add_argument("--data", metavar="NAME", help="name of the data set of --metrics")
    parser.add_argument("--license", metavar="ID", help="licence of the weights, as model hubs write it")
    parser.add_argument("--force", action="store_true", help="replace the files of an existing folder")


def _card(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.reports import card

    facts = card.Facts(args.metrics, args.data, args.license)
    made = [str(path) for path in card.write(api.load(args.weights), args.output, facts, args.force)]
    return Answer([f"wrote {path}" for path in made], {"written": made})


_QUANT_REPORT = """\
What quantization costs: every layer's range, saturation and SQNR, and the loss that each kind of op,
each layer and each approximation causes, by swapping one at a time between integer and real
arithmetic. docs/QUANTIZATION.md explains how to read it.

examples:
  intseg quant-report camvid-tiny street.png
  intseg quant-report camvid-tiny street.png --per-node --json > report.json
  intseg quant-report model.safetensors --root CamVid --split val --limit 8
"""


def _quant_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", type=ReadHeld, metavar="W", help="weights file or bundled model")
    parser.add_argument("sources", nargs="*", type=Read, metavar="IMAGE", help="images, folders, patterns, @list.txt")
    text = "label image of every IMAGE, in the same order"
    parser.add_argument("--labels", nargs="+", type=Read, metavar="FILE", help=text)
    parser.add_argument("--root", type=Read, metavar="DIR", help="folder of a data set, in place of images")
    parser.add_argument("--split", default="val", help="part of the data set (val)")
    parser.add_argument("--layout", choices=LAYOUTS[:-1], default="camvid", help="of the data set (camvid)")
    add_labelling(parser)
    parser.add_argument("--limit", type=whole(1, 10**9), metavar="N", help="only the first N images")
    parser.add_argument("--per-node", action="store_true", help="also swap every node by itself: takes longer")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="of the integer ops (auto)")


def _quant_report(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.batch import datasets
    from intseg.images.labels import Labelling
    from intseg.reports import quantization as quant_report
    from intseg.reports import quantization_text

    if args.root:
        if args.sources or args.labels:
            raise UsageError("--root gives the images and their labels; name neither besides, or leave --root out")
        data = opened(args, args.layout)
        sources = [quant_report.Source(pair.image, pair.labels) for pair in data.pairs]
    else:
        data = datasets.Dataset((), Labelling())
        sources = quant_report.sources(args.sources, args.labels)[: args.limit]
    model = api.load(args.weights)
    data = relabelled(args, data, model)
    found = quant_report.measure(
        sources,
        model,
        labelling=data.labelling,
        backend=args.backend,
        per_node=args.per_node,
        progress=not args.quiet,
    )
    for note in (*data.notes, *found.decoded.lines()):
        say(f"note: {note}")
    return Answer(quantization_text.lines(found, args.per_node), quantization_text.as_json(found))


INSPECT = Command("inspect", "show what is inside a model", _INSPECT, _inspect_arguments, _inspect)
PROVE = Command("prove", "prove that nothing overflows", _PROVE, _prove_arguments, _prove)
PROFILE = Command("profile", "time every node and step", _PROFILE, _profile_arguments, _profile)
DOCTOR = Command("doctor", "examine this installation", _DOCTOR, _doctor_arguments, _doctor)
REPORT = Command("report", "write an HTML page about images", _REPORT, _report_arguments, _report)
CARD = Command("card", "write a model folder with a card", _CARD, _card_arguments, _card)
QUANT_REPORT = Command("quant-report", "what quantization costs", _QUANT_REPORT, _quant_report_arguments, _quant_report)
