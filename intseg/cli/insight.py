"""The commands that look into a model, its speed, its results and this installation: arguments, and lines to print.

Loaded whenever the command line starts, so everything that needs NumPy is imported inside of functions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from intseg.errors import MismatchError, UsageError


@dataclass(frozen=True)
class Entry:
    """A subcommand without the printing.

    lines   does the work and gives what goes to standard output, line by line
    writes  names of the arguments that are files to write: whether they can be is checked before the work
    """

    name: str
    summary: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], None]
    lines: Callable[[argparse.Namespace], Iterator[str]]
    writes: tuple[str, ...] = ()


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", nargs="?", metavar="W", help="weights file or bundled model (the default one)")


def _running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-w", "--weights", metavar="W", help="weights file or bundled model (the default one)")
    parser.add_argument("--backend", choices=("auto", "numpy", "numba"), default="auto", help="same bits (auto)")
    _threads(parser)


def _threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive, metavar="N", help="of the numba backend; default: every core")


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _require_ending(path: str | None, *endings: str) -> None:
    """A slip must not replace an image or weights by a drawing of them."""
    if path is not None and not path.lower().endswith(endings):
        raise UsageError(f"{path}: this file is written as {' or '.join(endings)}; rename it")


# -------------------------------------------------------------------------------------------------------- inspect

_INSPECT = """\
Show what is inside a model: every node with shapes, parameters, MACs and bytes, totals, size by precision.

examples:
  intseg inspect
  intseg inspect model.safetensors --by block
  intseg inspect --svg graph.svg                 a drawing, equal blocks drawn once
"""


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--by", choices=("node", "block", "op"), default="node", help="one row for each (node)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--dot", metavar="FILE", help="write every node as a Graphviz graph")
    parser.add_argument("--svg", metavar="FILE", help="write a drawing of the graph")


def _inspect(args: argparse.Namespace) -> Iterator[str]:
    from intseg import api, store
    from intseg.reports import inspect as inspect_model

    _require_ending(args.dot, ".dot", ".gv")
    _require_ending(args.svg, ".svg")
    model = api.load(args.weights)
    if args.dot:
        store.write_atomically(Path(args.dot), inspect_model.dot(model.graph).encode())
    if args.svg:
        store.write_atomically(Path(args.svg), inspect_model.svg(model).encode())
    yield from inspect_model.lines(model, args.by, args.json)
    if not args.json:
        yield from (f"wrote {path}" for path in (args.dot, args.svg) if path)


# ---------------------------------------------------------------------------------------------------------- prove

_PROVE = """\
Prove that no register overflows, for any image: per node and register the bound, the bits it needs, the bits
to spare, and how near a constructed input comes. Loading a model proves the same, without these inputs.

examples:
  intseg prove
  intseg prove model.safetensors --by op         the tightest register of every op
  intseg prove --nodes '*.blocks.0.*' --json
  intseg prove model.safetensors --fast          the bounds only
"""


def _prove_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--by", choices=("register", "node", "op"), default="register", help="rows (register)")
    parser.add_argument("--nodes", default="*", metavar="PATTERN", help="names with * and ?, joined by commas (all)")
    parser.add_argument("--fast", action="store_true", help="run no inputs: bounds only, as loading does")
    parser.add_argument("--json", action="store_true", help="print one JSON object, all nodes, instead of the table")


def _prove(args: argparse.Namespace) -> Iterator[str]:
    from intseg import api
    from intseg.reports import certificate as prove_report

    found = prove_report.certify(api.load(args.weights), not args.fast)
    if args.json:
        yield json.dumps(prove_report.as_json(found))
    else:
        yield from prove_report.lines(found, args.by, args.nodes)


# -------------------------------------------------------------------------------------------------------- profile

_PROFILE = """\
Time the first window of an image: every node by itself, then every step of the fused program that infer runs.
Times are of the fastest of --repeat runs; a step that threads share has the sum over the threads.

examples:
  intseg profile street.png --by op
  intseg profile street.png --threads 1 --trace trace.json       open it in ui.perfetto.dev
"""


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="image, any size")
    _running(parser)
    parser.add_argument("--by", choices=("node", "op"), default="node", help="one row for each (node)")
    parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="counted runs (3)")
    parser.add_argument(
        "--trace", metavar="FILE", help="write the events of the fastest runs for Chrome's trace viewer"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


def _profile(args: argparse.Namespace) -> Iterator[str]:
    from intseg import store
    from intseg.reports import profile as profiling

    _require_ending(args.trace, ".json")
    found = profiling.profile(args.image, args.weights, args.backend, args.threads, args.repeat)
    if args.trace:
        store.write_atomically(Path(args.trace), profiling.chrome_trace(found))
    if args.json:
        yield json.dumps(profiling.as_json(found))
        return
    yield from profiling.lines(found, args.by)
    if args.trace:
        yield f"wrote {args.trace}"


# --------------------------------------------------------------------------------------------------------- doctor

_DOCTOR = """\
Examine this installation: versions, processor, instruction path, threads, cache of compiled kernels; then run every
bundled model on every backend and compare with the known digest. Exit code 1 if one differs.

examples:
  intseg doctor
  intseg doctor --json
"""


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    _threads(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the lines")


def _doctor(args: argparse.Namespace) -> Iterator[str]:
    from intseg.reports import doctor

    findings: list[doctor.Finding] = []
    for finding in doctor.examine(args.threads):
        if not args.json:
            yield from doctor.lines(finding, findings[-1].section if findings else None)
        findings.append(finding)
    if args.json:
        yield json.dumps(doctor.as_json(findings))
    wrong = [f"{finding.name}: {finding.value}" for finding in findings if finding.ok is False]
    if wrong:
        raise MismatchError(f"{len(wrong)} wrong: {wrong[0]}; install intseg again, or report this output")


# --------------------------------------------------------------------------------------------------------- report

_REPORT = """\
Write one HTML page about images: class map over the image, class areas, score margins, ranges and saturation of every
layer, digests. The page is one file and loads nothing from anywhere.

examples:
  intseg report street.png -o report.html
  intseg report photos/*.png -w model.safetensors -o report.html
"""


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, any size")
    _running(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the page (.html)")
    parser.add_argument("--no-layers", action="store_true", help="leave out the layers: less work")


def _report(args: argparse.Namespace) -> Iterator[str]:
    from intseg import api, store
    from intseg.reports import page as report

    _require_ending(args.output, ".html", ".htm")
    model = api.load(args.weights)
    looked = [report.look(image, model, args.backend, args.threads, not args.no_layers) for image in args.images]
    page = report.page(model, looked)
    store.write_atomically(Path(args.output), page)
    yield f"wrote {args.output}: {len(looked)} image{'s' if len(looked) > 1 else ''}, {len(page) / 1e6:.1f} MB"


# ----------------------------------------------------------------------------------------------------------- card

_CARD = """\
Write a model folder as model hubs expect it: config.json, model.safetensors (the same bytes), preprocessor_config.json
and README.md with recipe, sizes, classes, the digest to check an installation with, and accuracy if it is given.

examples:
  intseg card camvid-tiny -o camvid-tiny/
  intseg eval --root CamVid --json > metrics.json
  intseg card camvid-tiny -o camvid-tiny/ --metrics metrics.json --data CamVid --license apache-2.0
"""


def _card_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="new or empty folder")
    parser.add_argument("--metrics", metavar="FILE", help="what intseg eval --json printed for this model")
    parser.add_argument("--data", metavar="NAME", help="name of the data set of --metrics")
    parser.add_argument("--license", metavar="ID", help="licence of the weights, as model hubs write it")
    parser.add_argument("--force", action="store_true", help="replace the files of an existing folder")


def _card(args: argparse.Namespace) -> Iterator[str]:
    from intseg import api
    from intseg.reports import card

    facts = card.Facts(args.metrics, args.data, args.license)
    for path in card.write(api.load(args.weights), args.output, facts, args.force):
        yield f"wrote {path}"


ENTRIES = (
    Entry("inspect", "show what is inside a model", _INSPECT, _inspect_arguments, _inspect, ("dot", "svg")),
    Entry("prove", "prove that nothing overflows", _PROVE, _prove_arguments, _prove),
    Entry("profile", "time every node and step", _PROFILE, _profile_arguments, _profile, ("trace",)),
    Entry("doctor", "examine this installation", _DOCTOR, _doctor_arguments, _doctor),
    Entry("report", "write an HTML page about images", _REPORT, _report_arguments, _report, ("output",)),
    Entry("card", "write a model folder with a card", _CARD, _card_arguments, _card),
)
