"""The command line: `intseg` or `python -m intseg.cli`. The only module that prints.

A subcommand is one entry of COMMANDS: a function that declares its arguments and one that carries it out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

from intseg import models
from intseg._version import __version__
from intseg.cli import insight
from intseg.errors import InputError, IntsegError, MismatchError, ModelError, UsageError, printable, suggest

if TYPE_CHECKING:  # NumPy and all that needs it is imported by the commands: --help and mistakes are answered at once
    from intseg import api
    from intseg.batch import evaluate
    from intseg.batch import infer as batch

INTERNAL = 5
INTERRUPTED = 130
BROKEN_PIPE = 141

_BACKENDS = ("auto", "numpy", "numba")
_LAYOUTS = ("camvid", "ade20k", "cityscapes", "idd_lite", "pairs")

_DESCRIPTION = "Integer-only semantic segmentation, the same bits on every machine."
_EPILOG = """\
examples:
  intseg infer street.png
  intseg eval --root CamVid --split val

exit codes: 0 ok, 1 mismatch, 2 usage, 3 bad model, 4 bad input or IO, 5 internal error
"""

# ---------------------------------------------------------------------------------------------------------- infer

_INFER = """\
Segment images. One image gives, next to it, replacing what is there, <name>_labels.png (class index of
every pixel, with the palette) and <name>_overlay.png (colours over the image, with a legend). Several
(a folder, a pattern, a list, files) go into -o DIR; errors.jsonl there names the bad ones, exit code 4.

examples:
  intseg infer street.png
  intseg infer street.png -o out.png --no-overlay -w mymodel.safetensors --json
  intseg infer photos -r -o results --overlay --jsonl results/all.jsonl --jobs 4
  intseg infer - < street.png > labels.png
"""


def _infer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SRC", help="image, folder, 'pattern*', @list.txt; - is stdin")
    _add_model_arguments(parser)
    add = parser.add_argument
    add("--threads", type=_positive, metavar="N", help="of the numba backend; default: every core")
    add("-o", "--output", metavar="OUT", help="label image (.png), or a folder")
    overlay = parser.add_mutually_exclusive_group()
    overlay.add_argument(
        "--overlay", nargs="?", const="", metavar="OUT", action=_Overlay, help="write overlays (there)"
    )
    overlay.add_argument("--no-overlay", action="store_true", help="write the labels only")
    add("--opacity", type=_fraction, default=0.5, metavar="X", help="of the colours, 0 to 1 (0.5)")
    add("--legend", action=argparse.BooleanOptionalAction, help="below overlays; default: for one image")
    add("--palette", metavar="P", default="model", help="model, voc, distinct, gray, a data set, or a file of colours")
    values = parser.add_mutually_exclusive_group()
    values.add_argument("--label-offset", type=_natural, metavar="N", default=0, help="added to every stored label")
    values.add_argument("--label-map", metavar="M", help="stored instead: JSON file, or 'road=7,*=0'")
    add("--json", action="store_true", help="print one JSON object an image instead of the table")
    add("--jsonl", metavar="FILE", help="write these objects to a file (- is stdout)")
    add("--time", action="store_true", help="say what took how long, and the peak memory")
    add("-q", "--quiet", action="store_true", help="print nothing but errors")
    add("-r", "--recursive", action="store_true", help="look into the folders of a folder")
    add("--jobs", type=_positive, metavar="N", default=1, help="processes (1)")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="continue an interrupted run: keep what is done")
    earlier.add_argument("--force", action="store_true", help="replace what an earlier run wrote")
    add("--fail-fast", action="store_true", help="stop at the first bad image")


class _Overlay(argparse.Action):
    """Keeps the value and whether it came before the images: `--overlay a.png b.png` may mean two images."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if values and not namespace.sources and os.path.isfile(str(values)):
            parser.error(f"--overlay {values}: a file that exists, before the images; put --overlay after the images")
        namespace.overlay = values


def _infer(args: argparse.Namespace) -> int:
    from intseg.batch import infer as batch

    if args.sources == ["-"]:
        return _infer_stdin(args)
    if batch.is_one_image(args.sources) and not (args.jsonl or args.resume):
        return _infer_one(args, args.sources[0])
    return _infer_batch(args)


def _infer_one(args: argparse.Namespace, file: str) -> int:
    from intseg import api

    labels_path, overlay_path = _outputs(args, Path(file))
    clock = _Clock()
    model = api.load(args.weights)
    clock.lap("load weights")
    palette, values = _colours(args, model)
    if os.path.lexists(file):  # otherwise the image is the thing to complain about
        for path in filter(None, (labels_path, overlay_path)):
            _require_writable(path)
    model.compiled(args.backend, args.threads)
    clock.lap("prepare backend")
    result = api.run(file, model, args.backend, args.threads)
    clock.lap("segment")
    if not args.quiet:
        _say_notes(file, result)
    result.save(labels_path, palette, values)
    if overlay_path:
        result.save_overlay(overlay_path, args.opacity, args.legend is not False, palette)
    clock.lap("write")
    if args.time:
        clock.report()
    if args.json:
        _print_json(_infer_json(file, result, labels_path, overlay_path))
    elif not args.quiet:
        _print_infer(file, result, labels_path, overlay_path)
    return 0


def _say_notes(file: str, result: api.Result) -> None:
    for note in result.notes:
        _say(f"note: {file}: {note}")


def _colours(args: argparse.Namespace, model: api.Model) -> tuple[tuple[tuple[int, int, int], ...], Any]:
    """The palette, and what is stored per class: uint16 [C], None for the index."""
    from intseg.images import decode as image

    info = model.info
    palette = image.palette(args.palette, info.classes, info.palette)
    if not (args.label_offset or args.label_map):
        return palette, None
    return palette, image.stored_values(info.classes, args.label_offset, args.label_map)


def _infer_stdin(args: argparse.Namespace) -> int:
    """The image on standard input; the label PNG on standard output, or in -o FILE."""
    from intseg import api, store
    from intseg.images import decode as image

    if args.output is None and (sys.stdout.isatty() or args.json or args.jsonl):
        raise UsageError("the label PNG goes to standard output, expected a file or a pipe there; redirect, or give -o")
    if args.jsonl or args.resume or (args.output and api.image_format(args.output) != "PNG"):
        raise UsageError(
            "- takes -o FILE.png and --overlay FILE, and neither --jsonl nor --resume; give a file instead"
        )
    model = api.load(args.weights)
    palette, values = _colours(args, model)
    picture = image.decode(sys.stdin.buffer.read(), model.info.pad, "standard input")
    result = api.run_picture(picture, model, args.backend, args.threads)
    if not args.quiet:
        _say_notes("standard input", result)
    overlay = Path(args.overlay) if args.overlay else None
    if overlay:
        result.save_overlay(overlay, args.opacity, args.legend is not False, palette)
    if args.output is None:
        sys.stdout.buffer.write(result.png(palette, values))
        return 0
    store.write_atomically(Path(args.output), result.png(palette, values))
    if args.json:
        _print_json(_infer_json("-", result, Path(args.output), overlay))
    elif not args.quiet:
        _print_infer("standard input", result, Path(args.output), overlay)
    return 0


def _infer_batch(args: argparse.Namespace) -> int:
    from intseg import api
    from intseg.batch import infer as batch

    output = Path(args.output) if args.output else None
    overlay = None if args.overlay is None else Path(args.overlay) if args.overlay else output
    if not (output or overlay or args.jsonl or args.json):
        raise UsageError("several images need -o DIR for the label images, or --jsonl FILE; see intseg infer --help")
    for folder in filter(None, (output, overlay)):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: is a file, expected a folder for several images; choose another name")
    clock = _Clock()
    sources = batch.find_sources(args.sources, args.recursive, output)
    model = api.load(args.weights)
    clock.lap("load weights")
    palette, values = _colours(args, model)
    threads = args.threads or batch.threads_for(min(args.jobs, len(sources)))
    kept = None if values is None else tuple(values.tolist())
    options = batch.Options(output, overlay, args.opacity, bool(args.legend), palette, kept, args.backend, threads)
    lines = _print_json if args.json or args.jsonl == "-" else _ignore
    earlier = "resume" if args.resume else "force" if args.force else "refuse"
    how = batch.Run(args.jobs, args.jsonl, earlier, args.fail_fast, lines, _say_failure, _bar(args.quiet))
    done = batch.run(sources, model, options, how)
    clock.lap("whole batch")
    if args.time:
        clock.laps += [(f"  {stage}", seconds) for stage, seconds in zip(batch.STAGES, done.seconds, strict=True)]
        clock.report()
    if not args.quiet:
        _say_summary(done, clock.laps[1][1], output or overlay)
    return InputError.exit_code if done.failed else 0


def _say_summary(done: batch.Summary, seconds: float, folder: Path | None) -> None:
    new = done.images - done.before
    rate = f"{new} images in {seconds:.1f} s, {new / seconds:.1f} a second"
    before = f", {done.before} done before" if done.before else ""
    failed = f", {done.failed} failed" + (f" ({done.errors})" if done.errors else "") if done.failed else ""
    _say(rate + before + failed + (f"; wrote {folder}" if folder else ""))


def _bar(quiet: bool) -> Callable[[Iterator[batch.Outcome], int], Iterable[batch.Outcome]]:
    """A progress bar with rate and time left on standard error, where that is a terminal."""

    def wrap(found: Iterator[batch.Outcome], total: int) -> Iterable[batch.Outcome]:
        from tqdm import tqdm

        return tqdm(found, total=total, unit="image", disable=True if quiet else None)

    return wrap


def _say_failure(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(printable(f"intseg: {line}"), file=sys.stderr)  # above the bar


def _ignore(value: object) -> None:
    pass


class _Clock:
    """Times of the stages of a command, and the peak memory of the process."""

    def __init__(self) -> None:
        self.laps: list[tuple[str, float]] = []
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.laps.append((stage, now - self.last))
        self.last = now

    def report(self) -> None:
        """One line a stage, on standard error."""
        for stage, seconds in self.laps:
            _say(f"time: {stage:16} {seconds * 1000:9.1f} ms")
        if resource is not None:  # not on Windows; ru_maxrss is in KiB, on macOS in bytes
            own, children = (
                resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            )
            _say(
                f"peak memory:      {own:9.1f} MiB"
                + (f", the largest process of --jobs {children:.1f}" * (children > own))
            )


def _outputs(args: argparse.Namespace, image: Path) -> tuple[Path, Path | None]:
    """Where the labels and the overlay go. Raises UsageError for names that cannot be meant."""
    from intseg import api

    if args.output is None:
        labels = image.parent / f"{image.stem}_labels.png"
    elif args.output.endswith(("/", os.sep)) or os.path.isdir(args.output):
        labels = Path(args.output) / f"{image.stem}_labels.png"
    else:
        labels = Path(args.output)
    overlay = None if args.no_overlay else Path(args.overlay or labels.parent / f"{image.stem}_overlay.png")
    if api.image_format(labels) != "PNG":
        raise UsageError(f"{labels}: labels are written without loss; give -o a name that ends in .png")
    if overlay:
        api.image_format(overlay)
    for one, other in ((labels, image), (overlay, image), (overlay, labels)):
        if one and os.path.realpath(one) == os.path.realpath(other):
            raise UsageError(f"{one}: is {other} too, expected different files; choose another name")
    return labels, overlay


def _require_writable(path: Path) -> None:
    """Fail before the work, not after it."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file name")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no folder {path.parent}; create it, or choose another with -o")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: folder {path.parent} is read-only; choose another with -o")


def _infer_json(image: str, result: api.Result, labels: Path, overlay: Path | None) -> dict[str, Any]:
    from intseg.batch.infer import labels_sha256

    height, width = result.labels.shape
    counts = result.counts()
    return {
        "file": image,
        "width": width,
        "height": height,
        "model": {"name": result.model.info.name, "sha256": result.model.sha256},
        "backend": result.backend,
        "labels_sha256": labels_sha256(result.labels),
        "classes": [
            {"index": result.classes.index(name), "name": name, "pixels": pixels, "share": pixels / result.labels.size}
            for name, pixels in counts.items()
        ],
        "notes": list(result.notes),
        "written": {"labels": str(labels), "overlay": str(overlay) if overlay else None},
    }


def _print_infer(image: str, result: api.Result, labels: Path, overlay: Path | None) -> None:
    from intseg.images.decode import percent

    height, width = result.labels.shape
    _print(f"{image}: {width} x {height}, {result.model.info.name}, backend {result.backend}")
    _print_table([(name, percent(share)) for name, share in result.shares().items()])
    _print(f"wrote {labels}")
    if overlay:
        _print(f"wrote {overlay}")


# ----------------------------------------------------------------------------------------------------------- eval

_EVAL = """\
Measure a model on labelled images: confusion matrix, IoU per class, mIoU, mAcc, aAcc.

layouts under --root, for --split val:
  camvid       val/*.png, valannot/*.png                          11 classes, label 11 is void
  ade20k       images/validation, annotations/validation          150 classes, label 0 is void
  cityscapes   leftImg8bit/val/*, gtFine/val/*_labelTrainIds.png  19 classes, label 255 is void
  idd_lite     leftImg8bit/val/*, gtFine/val/*_label.png          7 classes, label 255 is void
  pairs        --images DIR --labels DIR, equal names             any classes, void by --ignore

examples:
  intseg eval --root CamVid --split val --jobs 4
  intseg eval --images photos --labels truth --ignore 255 --json > before.json
  intseg eval --root CamVid --split val -w new.safetensors --compare-with before.json
  intseg eval --root ADE20K --layout ade20k -w ade.safetensors --resume ade.jsonl
"""


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", default="val", help="part of the data set (val)")
    parser.add_argument("--layout", choices=_LAYOUTS, help="default: camvid, or pairs where --images is given")
    parser.add_argument("--images", metavar="DIR", help="layout pairs: folder of the images")
    parser.add_argument("--labels", metavar="DIR", help="layout pairs: folder of the label images")
    _add_model_arguments(parser)
    parser.add_argument("--ignore", type=int, metavar="ID", help="stored label that is not counted")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N images")
    parser.add_argument("--resume", metavar="FILE", help="keep counts per image there, and continue from them")
    parser.add_argument("--compare-with", metavar="JSON", help="what --json printed before: show the changes")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def _eval(args: argparse.Namespace) -> int:
    from intseg import api
    from intseg.batch import evaluate

    name = args.layout or ("pairs" if args.images or args.labels else "camvid")
    layout = evaluate.LAYOUTS[name]
    pairs = evaluate.find_pairs(*_eval_folders(args, name), layout.key)[: args.limit]
    model = api.load(args.weights)
    if layout.n_cls not in (None, len(model.info.classes)):
        raise UsageError(
            f"model {model.info.name} has {len(model.info.classes)} classes, layout {name} needs {layout.n_cls}; "
            "give another model with -w, or use --images and --labels"
        )
    ignore = layout.ignore if args.ignore is None else args.ignore
    earlier = evaluate.read_earlier(args.compare_with, model.info.classes) if args.compare_with else None
    found = evaluate.evaluate(
        pairs,
        model,
        backend=args.backend,
        jobs=args.jobs,
        ignore=ignore,
        offset=layout.offset,
        progress=True,
        journal=args.resume,
    )
    compared = evaluate.compare(found, earlier) if earlier else None
    if args.json:
        _print_json(found.as_json() | ({"compared": compared.as_json()} if compared else {}))
    else:
        _print_eval(found, compared)
    return 0


def _eval_folders(args: argparse.Namespace, layout: str) -> tuple[Path, Path]:
    from intseg.batch import evaluate

    if layout == "pairs":
        if not (args.images and args.labels):
            raise UsageError("layout pairs needs --images DIR and --labels DIR; see intseg eval --help")
        return Path(args.images), Path(args.labels)
    if not args.root or args.images or args.labels:
        raise UsageError(f"layout {layout} needs --root DIR, and neither --images nor --labels; see intseg eval --help")
    return evaluate.LAYOUTS[layout].folders(Path(args.root), args.split)


def _print_eval(found: evaluate.Evaluation, compared: evaluate.Comparison | None) -> None:
    measured, pixels = found.metrics, found.confusion.sum(axis=1)
    columns = [("class", *found.model.info.classes), ("IoU %", *map(_percent, measured.iou))]
    columns += [("change", *map(_change, compared.iou))] if compared else []
    columns += [("acc %", *map(_percent, measured.acc))]
    columns += [("change", *map(_change, compared.acc))] if compared else []
    _print_table(list(zip(*columns, ("pixels", *map(str, pixels)), strict=True)))
    changes = [f" ({_change(n)})" for n in (compared.miou, compared.macc, compared.aacc)] if compared else [""] * 3
    means = zip(("mIoU", "mAcc", "aAcc"), (measured.miou, measured.macc, measured.aacc), changes, strict=True)
    _print("   ".join(f"{name} {value:.2f} %{change}" for name, value, change in means))
    _print(f"{found.images} images, {found.model.info.name}, sha256 {found.model.sha256[:12]}")
    if compared:
        _print(f"changes since {compared.name}, in points of percent")


def _change(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ----------------------------------------------------------------------------------------------- models and warmup


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of the table")


def _models(args: argparse.Namespace) -> int:
    from intseg import api

    if not models.names():
        raise ModelError("no bundled model is installed, expected at least one; install intseg again")
    loaded = {name: api.load(name) for name in models.names()}
    if args.json:
        _print_json([_model_json(name, model) for name, model in loaded.items()])
        return 0
    rows = [("name", "classes", "window", "recipe", "size", "sha256")]
    for name, model in loaded.items():
        info, size = model.info, f"{model.path.stat().st_size / 1e6:.1f} MB"
        window = f"{info.window[0]}x{info.window[1]}"
        rows.append((name, str(len(info.classes)), window, info.recipe, size, model.sha256[:12]))
    _print_table(rows)
    _print(f"without -w, {models.DEFAULT} is used")
    return 0


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


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _warmup(args: argparse.Namespace) -> int:
    from intseg import backends

    if not backends.has_numba():
        raise UsageError("the numba backend needs the package numba: pip install numba, or nothing to warm up")
    _say("compiling the kernels, about a minute the first time ...")
    backends.warmup()
    print("the numba backend is ready")
    return 0


# ----------------------------------------------------------------------------------------------------------- trace

_TRACE = """\
Write every intermediate of an image into one safetensors file of integers (docs/WORKBENCH.md).

examples:
  intseg trace street.png -o trace.safetensors
  intseg trace street.png --registers -o trace.safetensors            the inside of the ops too
  intseg trace street.png --nodes '*.blocks.0.*' -o trace.safetensors
"""


def _trace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="PNG, JPEG, BMP, WEBP, TIFF, PPM or GIF, any size")
    _add_model_arguments(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="trace file (.safetensors)")
    parser.add_argument("--nodes", default="*", metavar="PATTERN", help="names with * and ?, joined by commas (all)")
    parser.add_argument("--registers", action="store_true", help="accumulators, products, q, r, sums, roots, ...")


def _trace(args: argparse.Namespace) -> int:
    from intseg import api
    from intseg.workbench import trace as traces

    _require_writable(Path(args.output))
    model = api.load(args.weights)
    found = traces.write(args.output, args.image, model, args.nodes, args.registers, args.backend)
    for note in found.notes:
        _say(f"note: {args.image}: {note}")
    _print(f"wrote {args.output}: {found.windows} windows, {found.tensors} tensors, {found.size / 1e6:.1f} MB")
    return 0


# ------------------------------------------------------------------------------------------------------------ dump

_DUMP = """\
Write the tensors of a trace or a model for other tools, and read them back (docs/WORKBENCH.md).

formats:
  npy, npz, json   whole elements
  bin              raw words
  hex, mem         text for $readmemh (hexadecimal) and $readmemb (binary), one word a line
  coe, c           memory initialization of FPGAs, C headers

examples:
  intseg dump trace.safetensors --format hex -o rtl/
  intseg dump model.safetensors --format mem --tensors '*.qkv.*' --per-word 8 --tile 8x8 -o rtl/
  intseg dump --read rtl/ -o trace.safetensors
"""


def _dump_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="TRACE_OR_MODEL", help="safetensors file, or a bundled model")
    parser.add_argument("--format", default="npy", metavar="F", help="npy, npz, bin, hex, mem, coe, c or json (npy)")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="new folder; with --read, the file")
    parser.add_argument("--tensors", default="*", metavar="PATTERN", help="names with * and ?, joined by commas (all)")
    parser.add_argument("--width", type=_positive, default=0, metavar="BITS", help="of an element (that of its dtype)")
    parser.add_argument("--per-word", type=_positive, default=1, metavar="N", help="elements per word (1)")
    parser.add_argument("--endian", default="little", metavar="E", help="little or big, of elements and bytes (little)")
    parser.add_argument("--order", default="C", metavar="O", help="C, F, or axes such as 2,0,1, the last the fastest")
    parser.add_argument("--tile", type=_tile, metavar="RxC", help="cut the last two axes into tiles, filled with zeros")
    parser.add_argument("--read", metavar="DIR", help="read a dumped folder instead, into the file -o")


def _tile(text: str) -> tuple[int, int]:
    rows, x, columns = text.partition("x")
    if not (x and rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 16x16")
    return int(rows), int(columns)


def _dump(args: argparse.Namespace) -> int:
    from intseg.workbench import dump

    if (args.source is None) == (args.read is None):
        raise UsageError("give one of TRACE_OR_MODEL and --read DIR; see intseg dump --help")
    if args.read is not None:
        count = dump.read_folder(args.read, args.output)
    else:
        source = models.path(args.source) if args.source in models.names() else args.source
        options = dump.Options(args.width, args.per_word, args.endian, args.order, args.tile)
        count = dump.write_folder(source, args.output, args.format, options, args.tensors)
    _print(f"wrote {args.output}: {count} tensors")
    return 0


# --------------------------------------------------------------------------------------------------------- flatten

_FLATTEN = """\
Write a model as one flat file of integers, for firmware that maps it into memory: fixed records, tensors at multiples
of 64 bytes, no JSON (golden/reader/README.md describes every byte; golden/reader/reader.c runs it).

examples:
  intseg flatten camvid-tiny -o camvid-tiny.flat
  intseg flatten mymodel.safetensors -o model.flat
"""


def _flatten_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="W", help="weights file or bundled model")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the flat file; replaced if it is there")


def _flatten(args: argparse.Namespace) -> int:
    from intseg.conformance import flat

    _require_writable(Path(args.output))
    size = flat.write(args.weights, args.output)
    _print(f"wrote {args.output}: {size} bytes")
    return 0


# ---------------------------------------------------------------------------------------------- diff and minimize

_DIFF = """\
Find the first wrong bit and say why: nodes are compared in execution order, and the first one that differs is
recomputed from the golden inputs under the usual mistakes (docs/WORKBENCH.md). Exit code 1 when something differs.

GOLDEN is a trace, or an image to trace now. OTHER is a trace, a folder of intseg dump or of npy files, an npz,
or one npy, hex, mem or bin file named like its node.

examples:
  intseg diff golden.safetensors mine.safetensors
  intseg diff street.png rtl_out/ -w model.safetensors --html report.html
  intseg diff golden.safetensors scores.npy --node encoder.blocks.0.attn.scores
"""


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("golden", metavar="GOLDEN", help="trace, or image to trace now")
    parser.add_argument("other", metavar="OTHER", help="what another implementation gave")
    parser.add_argument("-w", "--weights", metavar="W", help="weights file or bundled model; default: that of GOLDEN")
    parser.add_argument("--lsb", type=_natural, default=0, metavar="N", help="tolerate differences up to N (0)")
    parser.add_argument("--partial", action="store_true", help="OTHER may lack nodes: compare what is there")
    parser.add_argument("--node", metavar="NAME", help="OTHER is one tensor: the output of this node")
    parser.add_argument("--window", type=_natural, default=0, metavar="I", help="of --node (0)")
    parser.add_argument("--seconds", type=_positive, default=20, metavar="S", help="time to search the cause (20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    parser.add_argument("--html", metavar="FILE", help="write a report that opens offline")


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def _diff(args: argparse.Namespace) -> int:
    from intseg import store
    from intseg.reports import diff_page as diff_report
    from intseg.workbench import diff

    if args.html:
        _require_writable(Path(args.html))
    golden = diff.open_golden(args.golden, args.weights)
    other = diff.open_other(args.other, golden, args.node, args.window)
    report = diff.compare(golden, other, diff.Settings(args.lsb, args.seconds, args.partial))
    if args.html:
        page = diff_report.page(report, args.golden, args.other)
        store.write_atomically(Path(args.html), page.encode())
    if args.json:
        _print_json(diff.as_json(report))
    else:
        for line in diff.lines(report):
            _print(line)
    return 0 if report.equal else MismatchError.exit_code


_MINIMIZE = """\
Compare as intseg diff does, and cut the first node that differs down to the smallest call of its op that still does.
It is written as a golden op case (golden/ops). Exit code 1 when something differs, 0 and no file otherwise.

examples:
  intseg minimize golden.safetensors mine.safetensors -o case.safetensors
  intseg minimize street.png mine.safetensors -w model.safetensors -o case.safetensors
"""


def _minimize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("golden", metavar="GOLDEN", help="trace, or image to trace now")
    parser.add_argument("other", metavar="OTHER", help="what another implementation gave")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the case (.safetensors)")
    parser.add_argument("-w", "--weights", metavar="W", help="weights file or bundled model; default: that of GOLDEN")
    parser.add_argument("--partial", action="store_true", help="OTHER may lack nodes: compare what is there")
    parser.add_argument("--seconds", type=_positive, default=20, metavar="S", help="time to search the cause (20)")


def _minimize(args: argparse.Namespace) -> int:
    from intseg.workbench import diff, minimize

    _require_writable(Path(args.output))
    golden = diff.open_golden(args.golden, args.weights)
    other = diff.open_other(args.other, golden)
    settings = diff.Settings(seconds=args.seconds, partial=args.partial)
    report, minimal = minimize.minimize(golden, other, settings)
    if minimal is None:
        for line in diff.lines(report):
            _print(line)
        return 0
    minimize.save(minimal, args.output)
    for line in minimize.lines(minimal):
        _print(line)
    _print(f"wrote {args.output}")
    return MismatchError.exit_code


# ------------------------------------------------------------------------------- truth-table, vectors and verify

_UNITS = ("shift_exp", "gelu_table", "shift_gelu", "sigmoid_gelu", "isqrt", "requantize", "exp2")
_UNIT_OPTIONS = (
    *("i0", "k_inter", "lam", "low", "high", "mult", "shift", "out", "limit"),
    *("int_div_kind", "k_out", "frac_bits", "a1", "a2"),
)

_TRUTH_TABLE = """\
Every row of a unit with a small domain, by the definition: to verify hardware on all inputs.

  shift_exp      --i0 --k-inter --lam --low   x = low .. 0
  gelu_table     -w W --node NAME             256 values of the first or a named node
  shift_gelu     attributes of SPEC.md 4.9    every pair of a row maximum and a value
  sigmoid_gelu   the same                     256 values
  isqrt          --low --high                 around the square of every root low .. high
  requantize     --mult --shift --out --limit both sides of every step of the result, and ties
  exp2           --frac-bits --a1 --a2        the power of two of softmax2

examples:
  intseg truth-table shift_exp --i0 16 --k-inter 11 --lam 1 -o exp.csv
"""


def _truth_table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("unit", metavar="UNIT", choices=_UNITS, help=", ".join(_UNITS))
    for name in _UNIT_OPTIONS:
        words = {"out": ("int8", "int16"), "int_div_kind": ("paper", "normalized")}.get(name)
        flag = f"--{name.replace('_', '-')}"
        if words:
            parser.add_argument(flag, dest=name, choices=words)
        else:
            parser.add_argument(flag, dest=name, type=int, metavar="N")
    parser.add_argument("-w", "--weights", metavar="W", help=f"gelu_table: weights file or model ({models.DEFAULT})")
    parser.add_argument("--node", metavar="NAME", help="gelu_table: a node of the model")
    parser.add_argument("-o", "--output", metavar="OUT", help="NAME.npz, .csv or .hex (for $readmemh, a file a column)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the summary")


def _truth_table(args: argparse.Namespace) -> int:
    from intseg import api
    from intseg.conformance import truth_table

    kind = Path(args.output).suffix[1:] if args.output else None
    if kind is not None and kind not in truth_table.FORMATS:
        raise UsageError(f"{args.output}: ends in none of .{', .'.join(truth_table.FORMATS)}; rename it")
    options = {name: getattr(args, name) for name in _UNIT_OPTIONS if getattr(args, name) is not None}
    if args.unit != "gelu_table" and (args.node or args.weights):
        raise UsageError(f"unit {args.unit} takes neither -w nor --node, only gelu_table does")
    if args.unit == "gelu_table" and not options:
        table = truth_table.model_gelu_table(api.load(args.weights).graph, args.node)
    else:
        table = truth_table.make(args.unit, options)
    written = truth_table.write(table, args.output, kind) if kind else []
    if args.json:
        _print_json(table.as_json() | {"written": [str(path) for path in written]})
        return 0
    params = ", ".join(f"{name} {value}" for name, value in table.params.items())
    _print(f"{table.unit}{f' ({params})' if params else ''}: {table.rows} rows of {', '.join(table.columns)}")
    _print(f"sha256 {table.sha256}")
    for path in written:
        _print(f"wrote {path}")
    return 0


_VECTORS = """\
Write a conformance pack for a model: op cases that reach every branch of SPEC.md, corner-case
images, the expected results, a coverage report and runner.json, which says how to use it. The same
model gives the same bytes everywhere.

examples:
  intseg vectors -o pack
  intseg vectors -o pack -w mymodel.safetensors
  intseg verify pack
"""


def _vectors_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="a new or empty folder")
    _add_model_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the summary")


def _vectors(args: argparse.Namespace) -> int:
    from intseg import api, backends
    from intseg.conformance import vectors

    vectors.require_new(Path(args.output))
    model = api.load(args.weights)
    backend = "numpy" if args.backend == "auto" else backends.resolve(args.backend)
    pack = vectors.make_pack(model, backend, _say)
    vectors.write_pack(pack, args.output)
    found = vectors.summary(pack)
    if args.json:
        _print_json({"written": args.output, **found})
        return 0
    _print(f"{args.output}: {found['cases']} op cases, {found['images']} images, {found['bytes'] / 1e6:.1f} MB")
    _print(f"{found['reached']} of {found['branches']} branches of SPEC.md reached, {found['by_model']} by the model")
    _print(f"digest {found['digest']}")
    return 0


_VERIFY = """\
Replay golden vectors on this machine, on every backend that is installed, and print one digest,
which is the same on every machine. DIR is a folder that intseg vectors wrote, or the golden folder
of a checkout. Without DIR: the golden folder of the checkout around the working folder, or else a
self-test of the installed package.
"""


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", help="conformance pack or golden folder")
    parser.add_argument("--backend", choices=_BACKENDS[1:], help="only this one; default: all that are installed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the summary")


def _verify(args: argparse.Namespace) -> int:
    from intseg import backends
    from intseg.conformance import verify

    names = (backends.resolve(args.backend),) if args.backend else ()
    folder = Path(args.folder) if args.folder is not None else verify.find_golden(Path.cwd())
    report = verify.verify(folder, names, _say)
    for note in report.notes:
        _say(f"note: {note}")
    if args.json:
        _print_json({**report.__dict__, "backends": list(report.backends), "ok": report.ok})
        return 0 if report.ok else MismatchError.exit_code
    counts = ", ".join(f"{count} {kind}" for kind, count in report.counts.items()) or "nothing"
    _print(f"{report.source}: compared {counts} on {', '.join(report.backends)}")
    _print(f"digest {report.digest}")
    if report.ok:
        print("ok: all equal")
        return 0
    raise MismatchError(f"{report.failed} results differ, the first is {report.mismatch or 'missing'}")


_QUANT_REPORT = """\
What quantization costs: every layer's range, saturation and SQNR, and the loss that each kind of op,
each layer and each approximation causes, by swapping one at a time between integer and real
arithmetic. docs/QUANTIZATION.md explains how to read it.

examples:
  intseg quant-report camvid-tiny street.png
  intseg quant-report camvid-tiny-paper street.png --per-node --json > report.json
  intseg quant-report model.safetensors --root CamVid --split val --limit 8
"""


def _quant_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="W", help="weights file or bundled model")
    parser.add_argument("sources", nargs="*", metavar="IMAGE", help="images, any size")
    parser.add_argument("--labels", nargs="+", metavar="FILE", help="label image of every IMAGE, in the same order")
    parser.add_argument("--root", metavar="DIR", help="folder of a data set, in place of images")
    parser.add_argument("--split", default="val", help="part of the data set (val)")
    parser.add_argument("--layout", choices=_LAYOUTS[:-1], default="camvid", help="of the data set (camvid)")
    parser.add_argument("--ignore", type=int, metavar="ID", help="stored label that is not counted")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N images")
    parser.add_argument("--per-node", action="store_true", help="also swap every node by itself: takes longer")
    parser.add_argument("--backend", choices=_BACKENDS, default="auto", help="of the integer ops (auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")


def _quant_report(args: argparse.Namespace) -> int:
    from intseg import api
    from intseg.batch import evaluate
    from intseg.reports import quantization as quant_report

    layout = evaluate.LAYOUTS[args.layout] if args.root else evaluate.LAYOUTS["pairs"]
    if args.root:
        if args.sources or args.labels:
            raise UsageError("--root gives the images and their labels; name neither besides, or leave --root out")
        pairs = evaluate.find_pairs(*layout.folders(Path(args.root), args.split), layout.key)
        sources = [quant_report.Source(pair.image, pair.labels) for pair in pairs]
    else:
        sources = quant_report.sources(args.sources, args.labels)
    model = api.load(args.weights)
    if layout.n_cls not in (None, len(model.info.classes)):
        raise UsageError(
            f"model {model.info.name} has {len(model.info.classes)} classes, layout {args.layout} needs "
            f"{layout.n_cls}; give another model, or name images"
        )
    labelling = quant_report.Labelling(layout.ignore if args.ignore is None else args.ignore, layout.offset)
    found = quant_report.measure(
        sources[: args.limit],
        model,
        labelling=labelling,
        backend=args.backend,
        per_node=args.per_node,
        progress=True,
    )
    if args.json:
        _print_json(quant_report.as_json(found))
        return 0
    for line in quant_report.lines(found, args.per_node):
        _print(line)
    return 0


_COMPLETION = """\
Print a script that completes commands, options and file names in a shell.

examples:
  source <(intseg completion bash)                                   in ~/.bashrc
  source <(intseg completion zsh)                                    in ~/.zshrc, after compinit
  intseg completion fish > ~/.config/fish/completions/intseg.fish
"""


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


def _completion(args: argparse.Namespace) -> int:
    from intseg.cli import completion

    print(completion.script(_parser(), args.shell), end="")
    return 0


# --------------------------------------------------------------------------------------------------------- parsing


@dataclass(frozen=True)
class Command:
    """A subcommand: one line of `intseg --help`, the text of its own help, its arguments, what it does."""

    name: str
    summary: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _printing(entry: insight.Entry) -> Callable[[argparse.Namespace], int]:
    """A command whose work is done elsewhere: what it gives is printed here."""

    def run(args: argparse.Namespace) -> int:
        for name in entry.writes:
            if getattr(args, name):
                _require_writable(Path(getattr(args, name)))
        for line in entry.lines(args):
            print(line)
        return 0

    return run


COMMANDS = (
    Command("infer", "segment an image", _INFER, _infer_arguments, _infer),
    Command("eval", "measure a model on labelled images", _EVAL, _eval_arguments, _eval),
    Command("models", "list the bundled models", "List the bundled models.", _models_arguments, _models),
    Command("completion", "completion for your shell", _COMPLETION, _completion_arguments, _completion),
    Command("warmup", "compile the numba backend now", "Compile the numba backend now.", _no_arguments, _warmup),
    Command("truth-table", "every row of a small unit", _TRUTH_TABLE, _truth_table_arguments, _truth_table),
    Command("vectors", "write a conformance pack for a model", _VECTORS, _vectors_arguments, _vectors),
    Command("verify", "replay golden vectors on this machine", _VERIFY, _verify_arguments, _verify),
    Command("trace", "write every intermediate of an image", _TRACE, _trace_arguments, _trace),
    Command("dump", "write tensors for RTL, C and other tools", _DUMP, _dump_arguments, _dump),
    Command("flatten", "write a model for firmware", _FLATTEN, _flatten_arguments, _flatten),
    Command("diff", "find the first wrong bit and its cause", _DIFF, _diff_arguments, _diff),
    Command("minimize", "cut a difference down to one op call", _MINIMIZE, _minimize_arguments, _minimize),
    Command("quant-report", "what quantization costs", _QUANT_REPORT, _quant_report_arguments, _quant_report),
    *(Command(e.name, e.summary, e.description, e.arguments, _printing(e)) for e in insight.ENTRIES),
)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Prose of a description is filled to the width of the terminal; paragraphs with indented lines stay."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(p if "\n " in p else textwrap.fill(p, width) for p in paragraphs) + "\n"


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, with a suggestion."""

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
        hint = suggest(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
        raise UsageError(f"{message}{hint}; see {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser("intseg", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"intseg {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(
            command.name, help=command.summary, description=command.description, formatter_class=_Help
        )
        command.arguments(sub)
        sub.usage = _usage(sub)
        sub.set_defaults(run=command.run, parser=sub)
    return parser


def _usage(parser: argparse.ArgumentParser) -> str:
    """What must be given; the options are listed below it anyway."""
    words = [parser.prog]
    for action in parser._actions:
        name = str(action.metavar or action.dest)
        if not action.option_strings:
            several = {"+": f"{name}...", "*": f"[{name}...]", "?": f"[{name}]"}
            words.append(several.get(str(action.nargs), name))
        elif action.required:
            words.append(f"{action.option_strings[0]} {name}")
    return " ".join([*words, "[options]"])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; images may stand between options. Raises UsageError, with a suggestion for an unknown option."""
    args, extra = _parser().parse_known_args(argv)
    options = [word for word in extra if word.startswith("-") and word != "-"]
    if options or (extra and not hasattr(args, "sources")):
        known = [option for action in args.parser._actions for option in action.option_strings]
        hint = suggest(options[0].partition("=")[0], known) if options else ""
        args.parser.error(f"unrecognized arguments: {' '.join(extra)}{hint}")
    if extra:
        args.sources += extra
    return args


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-w", "--weights", metavar="W", help=f"weights file or bundled model ({models.DEFAULT})")
    parser.add_argument("--backend", choices=_BACKENDS, default="auto", help="same bits (auto)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


# -------------------------------------------------------------------------------------------------------- printing


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in shown) for i in range(len(rows[0]))]
    for row in shown:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "   ".join(cells))


def _print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False))


def _print(line: str) -> None:
    """One line on standard output: names in files may hold what moves a cursor or sets a title."""
    print(printable(line))


def _say(line: str) -> None:
    """One line on standard error."""
    print(printable(line), file=sys.stderr)


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"note: {message}")


# ------------------------------------------------------------------------------------------------------------ main


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; every failure is one line on standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        try:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")  # a file name need not be valid text
            args = _parse(argv)
            code: int = args.run(args)
            sys.stdout.flush()
            return code
        except Exception as error:
            if os.environ.get("INTSEG_DEBUG") == "1":
                traceback.print_exc()
            return _explain(error)
        except KeyboardInterrupt:
            _say("intseg: interrupted")
            return INTERRUPTED


def _explain(error: Exception) -> int:
    """Say in one line what went wrong; the exit code."""
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
        return BROKEN_PIPE
    text = " ".join(str(error).split())
    if isinstance(error, IntsegError):
        _say(f"intseg: {text}")
        return error.exit_code
    if isinstance(error, MemoryError):
        _say(f"intseg: out of memory ({text}); use a smaller image or a smaller model")
        return InputError.exit_code
    if isinstance(error, OSError):
        _discard_stdout()
        _say(f"intseg: {error.strerror or text}: {error.filename or 'standard output'}; free space or check the path")
        return InputError.exit_code
    _say(f"intseg: internal error, {type(error).__name__}: {text}; please report it (INTSEG_DEBUG=1 shows where)")
    return INTERNAL


def _discard_stdout() -> None:
    """Standard output is gone: keep the interpreter from complaining when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):  # not a real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
