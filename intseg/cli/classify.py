"""`intseg infer` and `intseg eval` of a classifier: best classes in place of labels, top-1 and top-5."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intseg.cli.parser import require_ending, require_writable
from intseg.cli.printing import Answer, Clock, count, say
from intseg.cli.spread import executor_of, shard_of
from intseg.errors import UsageError
from intseg.files import read_stream, require_apart
from intseg.reports.table import table

if TYPE_CHECKING:
    from intseg import api
    from intseg.batch import classified

# ----------------------------------------------------------------------------------------------------------- infer

_PIXELS = {
    "overlay": ("--overlay", None),
    "no_overlay": ("--no-overlay", False),
    "opacity": ("--opacity", 0.5),
    "legend": ("--legend", None),
    "palette": ("--palette", "model"),
    "label_offset": ("--label-offset", 0),
    "label_map": ("--label-map", None),
}
"""Options of `infer` about pixels, with what they are where they are not given."""


def refuse_pixels(args: argparse.Namespace, model: api.Model) -> None:
    """Raise UsageError for an option that says something about the labels of pixels."""
    for name, (option, default) in _PIXELS.items():
        if getattr(args, name) != default:
            raise UsageError(f"model {model.info.name} classifies images, {option} is about pixels; leave it out")


def infer_one(args: argparse.Namespace, file: str, model: api.Model, clock: Clock) -> Answer:
    """One image: printed, and written where -o says so."""
    from intseg import api

    path = _output(args, Path(file), model)
    if path and os.path.lexists(file):
        require_writable(path)
    model.compiled(args.backend, args.threads)
    clock.lap("prepare backend")
    result = api.run(file, model, args.backend, args.threads)
    clock.lap("classify")
    answer = _answer(file, result, path)
    if args.time:
        clock.report()
    return answer


def infer_stdin(args: argparse.Namespace, model: api.Model) -> Answer:
    """The image on standard input."""
    from intseg import api
    from intseg.images import decode as image

    if args.jsonl or args.resume:
        raise UsageError("- takes -o FILE.json, and neither --jsonl nor --resume; give a file instead")
    path = _output(args, Path("stdin"), model)
    picture = image.decode(read_stream(sys.stdin.buffer, "standard input"), model.info.pad, "standard input")
    result = api.run_picture(picture, model, args.backend, args.threads)
    return _answer("-" if args.json else "standard input", result, path)


def _output(args: argparse.Namespace, image: Path, model: api.Model) -> Path | None:
    """Where the JSON goes; None for nowhere. Raises UsageError."""
    refuse_pixels(args, model)
    if args.output is None:
        return None
    folder = args.output.endswith(("/", os.sep)) or os.path.isdir(args.output)
    path = Path(args.output) / f"{image.stem}_classes.json" if folder else Path(require_ending(args.output, ".json"))
    require_apart([path], filter(None, [image, args.weights]))
    return path


def _answer(name: str, result: api.Result, path: Path | None) -> Answer:
    document = _document(name, result, path)
    for note in result.notes:
        say(f"note: {name}: {note}")
    if path:
        import json

        from intseg import store

        store.write_atomically(path, json.dumps(document).encode() + b"\n")
    return Answer(_lines(name, result, path), document)


def _document(name: str, result: api.Result, path: Path | None) -> dict[str, Any]:
    from intseg.batch.infer import classes_of

    height, width, _ = result.image.shape
    return {
        "file": name,
        "width": width,
        "height": height,
        "model": {"name": result.model.info.name, "sha256": result.model.sha256},
        "backend": result.backend,
        **classes_of(result),
        "notes": list(result.notes),
        "written": {"classes": str(path) if path else None},
    }


def _lines(name: str, result: api.Result, path: Path | None) -> Iterator[str]:
    height, width, _ = result.image.shape
    yield f"{name}: {width} x {height}, {result.model.info.name}, backend {result.backend}"
    cells = [(str(best.index), best.name, str(best.logit), _real(result, best.logit)) for best in result.top()]
    yield from table([("", "class", "logit", "real"), *cells])
    if path:
        yield f"wrote {path}"


def _real(result: api.Result, logit: int) -> str:
    """What a logit stands for; "-" where the model does not say."""
    from intseg.workbench.trace import real, scales

    graph = result.model.graph
    found = real(scales(graph).get(graph.output), (0,), logit)
    return "-" if found is None else f"{found:.3f}"


# ------------------------------------------------------------------------------------------------------------ eval

_LABELS = ("ignore", "label_offset", "label_map", "orientation", "images")
"""Options of `eval` about label images."""


def evaluate(args: argparse.Namespace) -> Answer:
    """`intseg eval --layout imagenet`."""
    from intseg import api
    from intseg.batch import classified

    given = next((name for name in _LABELS if getattr(args, name) is not None), None)
    if given or args.reduce_zero_label:
        option = (given or "reduce_zero_label").replace("_", "-")
        raise UsageError(f"layout imagenet has no label images, --{option} is about these; leave it out")
    if args.merge:
        return _measured(args, classified.merge(args.merge))
    if not args.root:
        raise UsageError("layout imagenet needs --root DIR; see intseg eval --help")
    if args.shard and not args.resume:
        raise UsageError("--shard needs --resume FILE, the journal that --merge joins with those of the other parts")
    model = api.load(args.weights).at_scale(args.scale)
    classified.require_classifier(model)
    listed = Path(args.labels) if args.labels else None
    examples, notes = classified.open_imagenet(Path(args.root), args.split, model.info.classes, listed)
    examples = examples[: args.limit]
    found = classified.evaluate(
        examples,
        model,
        backend=args.backend,
        progress=not args.quiet,
        journal=Path(args.resume) if args.resume else None,
        shard=shard_of(args),
        executor=executor_of(args, len(examples)),
    )
    return _measured(args, found, {"left out": list(notes)})


def _measured(args: argparse.Namespace, found: classified.Accuracy, more: Mapping[str, Any] | None = None) -> Answer:
    from intseg.batch.compare import compare_classes

    compared = compare_classes(found, args.compare_with) if args.compare_with else None
    for note in found.notes.lines():
        say(f"note: {note}")
    changes = [f" ({change:+.2f})" for change in (compared.top1, compared.top5)] if compared else [""] * 2
    lines = [
        f"top-1 {found.top1:.2f} %{changes[0]}   top-5 {found.top5:.2f} %{changes[1]}",
        f"{count(found.images, 'image')}, {found.name}, sha256 {found.sha256[:12]}",
    ]
    if compared:
        same = f"the same class first in {compared.same}, all logits equal in {compared.equal}"
        lines.append(
            f"changes since {compared.name}, in points of percent; {same} of {count(compared.images, 'image')}"
        )
    extra = {"compared": compared.as_json()} if compared else {}
    return Answer(lines, {**found.as_json(), **(more or {}), **extra})
