"""The command line: `intseg` or `python -m intseg.cli`. The only module that prints.

A subcommand is one entry of COMMANDS: a function that declares its arguments and one that carries it out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

from intseg import api, backends, evaluate, models
from intseg._version import __version__
from intseg.errors import InputError, IntsegError, ModelError, UsageError
from intseg.image import percent

INTERNAL = 5
INTERRUPTED = 130
BROKEN_PIPE = 141

_DESCRIPTION = "Integer-only semantic segmentation, the same bits on every machine."
_EPILOG = """\
examples:
  intseg infer street.png
  intseg eval --root CamVid --split val

exit codes: 0 ok, 1 mismatch, 2 usage, 3 bad model, 4 bad input or IO, 5 internal error
"""

# ---------------------------------------------------------------------------------------------------------- infer

_INFER = """\
Segment one image. With no options, next to IMAGE, an existing file is replaced:
  <name>_labels.png    class index of every pixel, with the palette
  <name>_overlay.png   the image under its class colours, with a legend
and the classes found are printed with their share of the pixels.

examples:
  intseg infer street.png
  intseg infer street.png -o results/                  both pictures into that folder
  intseg infer street.png -o out.png --no-overlay
  intseg infer street.png -w mymodel.safetensors --json
"""


def _infer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="PNG, JPEG, BMP, WEBP, TIFF, PPM or GIF, any size")
    _add_model_arguments(parser)
    parser.add_argument("--threads", type=_positive, metavar="N", help="of the numba backend; default: every core")
    parser.add_argument("-o", "--output", metavar="OUT", help="label image (.png), or an existing folder for both")
    overlay = parser.add_mutually_exclusive_group()
    overlay.add_argument("--overlay", metavar="FILE", help="overlay (.png, .jpg); default: in the folder of the labels")
    overlay.add_argument("--no-overlay", action="store_true", help="write the labels only")
    parser.add_argument("--opacity", type=_fraction, default=0.5, metavar="X", help="of the colours, 0 to 1 (0.5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--time", action="store_true", help="say on standard error what took how long, and peak memory")


def _infer(args: argparse.Namespace) -> int:
    labels_path, overlay_path = _outputs(args)
    clock = _Clock()
    model = api.load(args.weights)
    clock.lap("load weights")
    if os.path.lexists(args.image):  # otherwise the image is the thing to complain about
        for path in filter(None, (labels_path, overlay_path)):
            _require_writable(path)
    model.compiled(args.backend, args.threads)
    clock.lap("prepare backend")
    result = api.run(args.image, model, args.backend, args.threads)
    clock.lap("segment")
    for note in result.notes:
        _say(f"note: {args.image}: {note}")
    result.save(labels_path)
    if overlay_path:
        result.save_overlay(overlay_path, args.opacity)
    clock.lap("write")
    if args.time:
        clock.report()
    if args.json:
        _print_json(_infer_json(args.image, result, labels_path, overlay_path))
    else:
        _print_infer(args.image, result, labels_path, overlay_path)
    return 0


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
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            _say(f"peak memory:      {peak / 2**20:9.1f} MiB")


def _outputs(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """Where the labels and the overlay go. Raises UsageError for names that cannot be meant."""
    image = Path(args.image)
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
    height, width = result.labels.shape
    counts = result.counts()
    little_endian = result.labels.astype(result.labels.dtype.newbyteorder("<"), copy=False)
    return {
        "file": image,
        "width": width,
        "height": height,
        "model": {"name": result.model.info.name, "sha256": result.model.sha256},
        "backend": result.backend,
        "labels_sha256": hashlib.sha256(little_endian.tobytes()).hexdigest(),
        "classes": [
            {"index": result.classes.index(name), "name": name, "pixels": pixels, "share": pixels / result.labels.size}
            for name, pixels in counts.items()
        ],
        "notes": list(result.notes),
        "written": {"labels": str(labels), "overlay": str(overlay) if overlay else None},
    }


def _print_infer(image: str, result: api.Result, labels: Path, overlay: Path | None) -> None:
    height, width = result.labels.shape
    print(f"{image}: {width} x {height}, {result.model.info.name}, backend {result.backend}")
    _print_table([(name, percent(share)) for name, share in result.shares().items()])
    print(f"wrote {labels}")
    if overlay:
        print(f"wrote {overlay}")


# ----------------------------------------------------------------------------------------------------------- eval

_EVAL = """\
Measure a model on labelled images: confusion matrix, IoU per class, mIoU, mAcc, aAcc.

layouts under --root, for --split val:
  camvid       val/*.png, valannot/*.png                          11 classes, label 11 is void
  ade20k       images/validation, annotations/validation          150 classes, label 0 is void
  cityscapes   leftImg8bit/val/*, gtFine/val/*_labelTrainIds.png  19 classes, label 255 is void
  pairs        --images DIR --labels DIR, equal names             any classes, void by --ignore

examples:
  intseg eval --root CamVid --split val --jobs 4
  intseg eval --images photos --labels truth --ignore 255 --json
"""


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", help="folder of the data set")
    parser.add_argument("--split", default="val", help="part of the data set (val)")
    parser.add_argument("--layout", choices=evaluate.LAYOUTS, help="default: camvid, or pairs where --images is given")
    parser.add_argument("--images", metavar="DIR", help="layout pairs: folder of the images")
    parser.add_argument("--labels", metavar="DIR", help="layout pairs: folder of the label images")
    _add_model_arguments(parser)
    parser.add_argument("--ignore", type=int, metavar="ID", help="stored label that is not counted")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N images")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def _eval(args: argparse.Namespace) -> int:
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
    found = evaluate.evaluate(
        pairs, model, backend=args.backend, jobs=args.jobs, ignore=ignore, offset=layout.offset, progress=True
    )
    if args.json:
        _print_json(found.as_json())
    else:
        _print_eval(found)
    return 0


def _eval_folders(args: argparse.Namespace, layout: str) -> tuple[Path, Path]:
    if layout == "pairs":
        if not (args.images and args.labels):
            raise UsageError("layout pairs needs --images DIR and --labels DIR; see intseg eval --help")
        return Path(args.images), Path(args.labels)
    if not args.root or args.images or args.labels:
        raise UsageError(f"layout {layout} needs --root DIR, and neither --images nor --labels; see intseg eval --help")
    return evaluate.LAYOUTS[layout].folders(Path(args.root), args.split)


def _print_eval(found: evaluate.Evaluation) -> None:
    measured, pixels = found.metrics, found.confusion.sum(axis=1)
    rows = [("class", "IoU %", "acc %", "pixels")]
    for i, name in enumerate(found.model.info.classes):
        rows.append((name, _percent(measured.iou[i]), _percent(measured.acc[i]), str(pixels[i])))
    _print_table(rows)
    print(f"mIoU {measured.miou:.2f} %   mAcc {measured.macc:.2f} %   aAcc {measured.aacc:.2f} %")
    print(f"{found.images} images, {found.model.info.name}, sha256 {found.model.sha256[:12]}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ----------------------------------------------------------------------------------------------- models and warmup


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of the table")


def _models(args: argparse.Namespace) -> int:
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
    print(f"without -w, {models.DEFAULT} is used")
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
    if not backends.has_numba():
        raise UsageError("the numba backend needs the package numba: pip install numba, or nothing to warm up")
    _say("compiling the kernels, about a minute the first time ...")
    backends.warmup()
    print("the numba backend is ready")
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


COMMANDS = (
    Command("infer", "segment an image", _INFER, _infer_arguments, _infer),
    Command("eval", "measure a model on labelled images", _EVAL, _eval_arguments, _eval),
    Command("models", "list the bundled models", "List the bundled models.", _models_arguments, _models),
    Command("warmup", "compile the numba backend now", "Compile the numba backend now.", _no_arguments, _warmup),
)


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _parser() -> _Parser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser("intseg", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=plain)
    parser.add_argument("--version", action="version", version=f"intseg {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(
            command.name, help=command.summary, description=command.description, formatter_class=plain
        )
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-w", "--weights", metavar="W", help=f"weights file or bundled model ({models.DEFAULT})")
    parser.add_argument("--backend", choices=("auto", *backends.names()), default="auto", help="same bits (auto)")


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
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "   ".join(cells))


def _print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


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
            args = _parser().parse_args(argv)
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
