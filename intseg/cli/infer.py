"""`intseg infer`: one image, many, or standard input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intseg.cli import classify
from intseg.cli.parser import (
    Command,
    Read,
    WrittenFolder,
    add_scale,
    add_weights,
    fraction,
    require_writable,
    whole,
    written,
)
from intseg.cli.printing import Answer, Clock, complain_above_the_bar, count, say, show_bytes, show_json
from intseg.cli.spread import add_spread, executor_of, shard_of
from intseg.errors import InputError, UsageError
from intseg.files import read_stream, require_apart
from intseg.progress import shown
from intseg.reports.table import table

if TYPE_CHECKING:
    from intseg import api
    from intseg.batch import infer as batch
    from intseg.images.notes import Notes

_INFER = """\
Segment images, or classify them (with a classifier: the best classes are printed, -o writes them and all logits
as JSON). One image gives, next to it, replacing what is there, <name>_labels.png (class index of
every pixel, with the palette) and <name>_overlay.png (colours over the image, with a legend). Several
(a folder, a pattern, a list, files) go into -o DIR; errors.jsonl there names the bad ones, exit code 4.

examples:
  intseg infer street.png
  intseg infer street.png -o out.png --no-overlay -w mymodel.safetensors --json
  intseg infer photos -r -o results --overlay --jsonl results/all.jsonl --jobs 4
  intseg infer - < street.png > labels.png
"""


def _infer_arguments(parser: argparse.ArgumentParser) -> None:
    text = "image, folder, 'pattern*', @list.txt; - is stdin"
    parser.add_argument("sources", nargs="+", type=Read, metavar="SRC", help=text)
    add_weights(parser, threads=True)
    add_scale(parser)
    add = parser.add_argument
    add("-o", "--output", type=WrittenFolder, metavar="OUT", help="label image (.png), or a folder")
    overlay = parser.add_mutually_exclusive_group()
    overlay.add_argument(
        "--overlay", nargs="?", const="", metavar="OUT", action=_Overlay, help="write overlays (there)"
    )
    overlay.add_argument("--no-overlay", action="store_true", help="write the labels only")
    add("--opacity", type=fraction, default=0.5, metavar="X", help="of the colours, 0 to 1 (0.5)")
    add("--legend", action=argparse.BooleanOptionalAction, help="below overlays; default: for one image")
    text = "model, voc, distinct, gray, a data set, or a file of colours"
    add("--palette", type=Read, metavar="P", default="model", help=text)
    values = parser.add_mutually_exclusive_group()
    offset = whole(0, 65535)
    values.add_argument("--label-offset", type=offset, metavar="N", default=0, help="added to every stored label")
    values.add_argument("--label-map", type=Read, metavar="M", help="stored instead: JSON file, or 'road=7,*=0'")
    add("--jsonl", type=_lines_file, metavar="FILE", help="write these objects to a file (- is stdout)")
    add("--time", action="store_true", help="say what took how long, and the peak memory")
    add("-r", "--recursive", action="store_true", help="look into the folders of a folder")
    add_spread(parser)
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="continue an interrupted run: keep what is done")
    earlier.add_argument("--force", action="store_true", help="replace what an earlier run wrote")
    add("--fail-fast", action="store_true", help="stop at the first bad image")


def _lines_file(text: str) -> str:
    return text if text == "-" else written(".jsonl", ".ndjson", ".json")(text)


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
        namespace.overlay = WrittenFolder(values) if values else values


def _infer(args: argparse.Namespace) -> Answer:
    from intseg.batch.sources import is_one_image

    if args.sources == ["-"]:
        return _infer_stdin(args)
    if is_one_image(args.sources) and not (args.jsonl or args.resume or args.shard or args.ray):
        return _infer_one(args, args.sources[0])
    return _infer_batch(args)


def _infer_one(args: argparse.Namespace, file: str) -> Answer:
    from intseg import api

    clock = Clock()
    model = api.load(args.weights).at_scale(args.scale)
    clock.lap("load weights")
    if model.info.classifies:
        return classify.infer_one(args, file, model, clock)
    labels_path, overlay_path = _outputs(args, Path(file))
    palette, values = _colours(args, model)
    if os.path.lexists(file):  # otherwise the image is the thing to complain about
        for path in filter(None, (labels_path, overlay_path)):
            require_writable(path)
    model.compiled(args.backend, args.threads)
    clock.lap("prepare backend")
    result = api.run(file, model, args.backend, args.threads)
    clock.lap("segment")
    _say_notes(file, result)
    result.save(labels_path, palette, values)
    if overlay_path:
        result.save_overlay(overlay_path, args.opacity, args.legend is not False, palette)
    clock.lap("write")
    if args.time:
        clock.report()
    return _answer(file, result, labels_path, overlay_path)


def _answer(name: str, result: api.Result, labels: Path, overlay: Path | None) -> Answer:
    return Answer(_infer_lines(name, result, labels, overlay), _infer_json(name, result, labels, overlay))


def _say_notes(file: str, result: api.Result) -> None:
    for note in result.notes:
        say(f"note: {file}: {note}")


def _colours(args: argparse.Namespace, model: api.Model) -> tuple[tuple[tuple[int, int, int], ...], Any]:
    """The palette, and what is stored per class: uint16 [C], None for the index."""
    from intseg.images.labels import stored_values
    from intseg.images.overlay import palette as colours

    info = model.info
    palette = colours(args.palette, info.classes, info.palette)
    if not (args.label_offset or args.label_map):
        return palette, None
    return palette, stored_values(info.classes, args.label_offset, args.label_map)


def _infer_stdin(args: argparse.Namespace) -> Answer:
    """The image on standard input; the label PNG on standard output, or in -o FILE."""
    from intseg import api, store
    from intseg.images import decode as image

    if args.output is None and (sys.stdout.isatty() or args.json or args.jsonl):
        raise UsageError("the label PNG goes to standard output, expected a file or a pipe there; redirect, or give -o")
    if args.jsonl or args.resume or (args.output and api.image_format(args.output) != "PNG"):
        raise UsageError(
            "- takes -o FILE.png and --overlay FILE, and neither --jsonl nor --resume; give a file instead"
        )
    model = api.load(args.weights).at_scale(args.scale)
    if model.info.classifies:
        return classify.infer_stdin(args, model)
    palette, values = _colours(args, model)
    picture = image.decode(read_stream(sys.stdin.buffer, "standard input"), model.info.pad, "standard input")
    result = api.run_picture(picture, model, args.backend, args.threads)
    _say_notes("standard input", result)
    overlay = Path(args.overlay) if args.overlay else None
    if overlay:
        result.save_overlay(overlay, args.opacity, args.legend is not False, palette)
    if args.output is None:
        show_bytes(result.png(palette, values))
        return Answer(())
    store.write_atomically(Path(args.output), result.png(palette, values))
    return _answer("-" if args.json else "standard input", result, Path(args.output), overlay)


def _infer_batch(args: argparse.Namespace) -> Answer:
    from intseg import api
    from intseg.batch import infer as batch
    from intseg.batch.sources import Search

    output = Path(args.output) if args.output else None
    overlay = None if args.overlay is None else Path(args.overlay) if args.overlay else output
    if not (output or overlay or args.jsonl or args.json):
        raise UsageError("several images need -o DIR for the label images, or --jsonl FILE; see intseg infer --help")
    for folder in filter(None, (output, overlay)):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: is a file, expected a folder for several images; choose another name")
    clock = Clock()
    search = Search(args.recursive, output, tuple(map(Path, filter(None, (args.overlay, args.jsonl)))))
    sources = search.find(args.sources)
    model = api.load(args.weights).at_scale(args.scale)
    clock.lap("load weights")
    if model.info.classifies:
        classify.refuse_pixels(args, model)
    palette, values = _colours(args, model)
    executor = executor_of(args, len(sources))
    threads = args.threads or executor.threads
    kept = None if values is None else tuple(values.tolist())
    options = batch.Options(output, overlay, args.opacity, bool(args.legend), palette, kept, args.backend, threads)
    options = replace(options, classifies=model.info.classifies)
    lines = show_json if args.json or args.jsonl == "-" else _ignore
    earlier = "resume" if args.resume else "force" if args.force else "refuse"
    how = batch.Run(executor, args.jsonl, earlier, args.fail_fast, lines, complain_above_the_bar, _bar, shard_of(args))
    done = batch.run(sources, model, options, how)
    clock.lap("whole batch")
    if args.time:
        clock.laps += [(f"  {stage}", seconds) for stage, seconds in zip(batch.STAGES, done.seconds, strict=True)]
        clock.report()
    _say_summary(done, clock.laps[1][1], output or overlay, search.left_out)
    return Answer((), code=InputError.exit_code if done.failed else 0)


def _say_summary(done: batch.Summary, seconds: float, folder: Path | None, left_out: Notes) -> None:
    for note in done.notes.lines():
        say(f"note: {note}")
    new = done.images - done.before
    rate = f"{count(new, 'image')} in {seconds:.1f} s, {new / seconds:.1f} a second"
    before = f", {done.before} done before" if done.before else ""
    failed = f", {done.failed} failed" + (f" ({done.errors})" if done.errors else "") if done.failed else ""
    left = f"; left out {left_out.short()}" if left_out else ""
    say(rate + before + failed + (f"; wrote {folder}" if folder else "") + left)


def _bar(found: Iterator[batch.Outcome], total: int) -> Iterable[batch.Outcome]:
    """How far it is and the time left, on standard error."""
    return shown(found, "segmenting", total, "image", leave=True)


def _ignore(value: object) -> None:
    pass


def _is_linked_png(output: str) -> bool:
    """A link of the name of a label image is not taken for the folder that it may lead to."""
    return os.path.islink(output) and output.lower().endswith(".png")


def _outputs(args: argparse.Namespace, image: Path) -> tuple[Path, Path | None]:
    """Where the labels and the overlay go. Raises UsageError for names that cannot be meant."""
    from intseg import api

    if args.output is None:
        labels = image.parent / f"{image.stem}_labels.png"
    elif args.output.endswith(("/", os.sep)) or (os.path.isdir(args.output) and not _is_linked_png(args.output)):
        labels = Path(args.output) / f"{image.stem}_labels.png"
    else:
        labels = Path(args.output)
    overlay = None if args.no_overlay else Path(args.overlay or labels.parent / f"{image.stem}_overlay.png")
    if api.image_format(labels) != "PNG":
        raise UsageError(f"{labels}: labels are written without loss; give -o a name that ends in .png")
    if overlay:
        api.image_format(overlay)
    read = [image, args.weights, args.palette, args.label_map]
    require_apart(filter(None, (labels, overlay)), filter(None, read))
    return labels, overlay


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


def _infer_lines(image: str, result: api.Result, labels: Path, overlay: Path | None) -> Iterator[str]:
    from intseg.images.overlay import percent

    height, width = result.labels.shape
    yield f"{image}: {width} x {height}, {result.model.info.name}, backend {result.backend}"
    yield from table([(name, percent(share)) for name, share in result.shares().items()])
    yield from (f"wrote {path}" for path in (labels, overlay) if path)


INFER = Command("infer", "segment or classify images", _INFER, _infer_arguments, _infer)
