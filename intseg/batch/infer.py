"""Many images: on any executor, with a journal to continue from and one JSON line an image.

What is written does not depend on the number of processes or on interruptions, but for the measured "ms" of a record.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from intseg import api, files
from intseg.batch import journal as journals
from intseg.batch.claims import claimed
from intseg.batch.executors import Executor, InProcess, Task
from intseg.batch.shards import Shard
from intseg.batch.sources import ENDINGS, Source
from intseg.errors import InputError, UsageError
from intseg.files import Replacement, flush_folder, remove_leftovers, require_replaceable, write_atomically
from intseg.images import decode as pictures
from intseg.images import overlay as overlays
from intseg.images.notes import Notes
from intseg.store import little

ERRORS, JOURNAL = "errors.jsonl", ".intseg-journal.jsonl"
STAGES = ("decode", "segment", "encode and write")

# -------------------------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Options:
    """What is made of every image.

    output   folder of the label images, or of what a classifier found; None for none
    overlay  folder of the overlays; None for none
    palette  colours per class; None for the model's
    values   what a label image stores per class; None for the index
    backend, threads   as of `api.run`; they decide the speed only
    classifies   whether the model gives an image one class
    """

    output: Path | None = None
    overlay: Path | None = None
    opacity: float = 0.5
    legend: bool = False
    palette: tuple[pictures.Colour, ...] | None = None
    values: tuple[int, ...] | None = None
    backend: str = "auto"
    threads: int | None = None
    classifies: bool = False

    def targets(self, source: Source) -> dict[str, Path]:
        """The files written for an image by what they are: "labels", "overlay"; "classes"."""
        folders = {"classes" if self.classifies else "labels": self.output, "overlay": self.overlay}
        return {
            kind: folder / f"{source.name}{ENDINGS[kind]}" for kind, folder in folders.items() if folder is not None
        }

    def settings(self) -> dict[str, Any]:
        """What decides the bytes that are written, for the journal."""
        return {
            "labels": self.output is not None,
            "overlay": [self.opacity, self.legend] if self.overlay is not None else None,
            "palette": [list(colour) for colour in self.palette] if self.palette else None,
            "values": list(self.values) if self.values else None,
        }


def check_targets(sources: Sequence[Source], options: Options, others: Iterable[Path] = ()) -> None:
    """Refuse outputs that would replace each other or an input, before any work.

    others  more files that will be written
    Raises UsageError naming the two.
    """
    inputs = {os.path.realpath(source.file): source.file for source in sources}
    taken: dict[str, str] = {}
    targets = [(path, source.file) for source in sources for path in options.targets(source).values()]
    for path, origin in [*targets, *((path, "another option") for path in others)]:
        real = os.path.normcase(os.path.realpath(path))
        if real in inputs:
            raise UsageError(f"{path}: would replace the image {inputs[real]}; choose another output")
        if real in taken:
            hint = "rename one" if taken[real] != origin else "name it once"
            raise UsageError(
                f"{path}: would be written for {taken[real]} and for {origin}; {hint}, or use -r on a folder"
            )
        taken[real] = origin


# ------------------------------------------------------------------------------------------------------ one image


@dataclass(frozen=True)
class Outcome:
    """What became of one image: a record and the sha256 of the files written, or an error.

    input    sha256 of the image file
    made     the files by what they are, where another process is to write them
    seconds  per stage of STAGES
    """

    record: dict[str, Any] | None = None
    written: dict[str, str] = field(default_factory=dict)
    input: str = ""
    error: str | None = None
    made: Mapping[str, bytes] = field(default_factory=dict)
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Item:
    """An image for a worker; its bytes, where they travel."""

    source: Source
    data: bytes | None = None


def process(item: Item, model: api.Model, options: Options) -> Outcome:
    """Segment one image and write its files, each whole or not at all; of an image whose bytes travelled, give them.

    What cannot be decoded, does not fit into memory, or whose files cannot be written, gives an Outcome with an error.
    Raises InputError when no file at all can be written.
    """
    source, start = item.source, time.perf_counter()
    try:
        data = pictures.read(source.file) if item.data is None else item.data
        picture = pictures.decode(data, model.info.pad, source.file)
        decoded = time.perf_counter()
        result = api.run_picture(picture, model, options.backend, options.threads)
        segmented = time.perf_counter()
        made = {kind: _encoded(kind, result, options) for kind in options.targets(source)}
        record = _record(source, result, round((segmented - decoded) * 1000, 3), options)
    except InputError as error:
        return Outcome(error=" ".join(str(error).split()))
    except MemoryError:
        return Outcome(error=_out_of_memory(source))
    written = {kind: hashlib.sha256(file).hexdigest() for kind, file in made.items()}
    outcome = Outcome(record, written, hashlib.sha256(data).hexdigest(), None, made)
    outcome = store(source, outcome, options) if item.data is None else outcome
    return replace(outcome, seconds=(decoded - start, segmented - decoded, time.perf_counter() - segmented))


def _out_of_memory(source: Source) -> str:
    return f"{source.file}: out of memory; use a smaller image, or fewer --jobs"


def store(source: Source, outcome: Outcome, options: Options) -> Outcome:
    """Write the files that were made. An error of one file is that of its image; one of all files is raised."""
    try:
        for kind, path in options.targets(source).items():
            root = options.overlay if kind == "overlay" else options.output
            if root is not None and path.parent != root:
                files.require_inside(path.parent, root)
                _make_folder(path.parent)
            write_atomically(path, outcome.made[kind], tidy=False)  # `run` cleans and flushes the folder
    except InputError as error:
        cause = error.__context__.errno if isinstance(error.__context__, OSError) else None
        nested = path.parent not in (options.output, options.overlay)
        if cause in _EVERYONES or (cause in (errno.EACCES, errno.EPERM) and not nested):
            raise
        return Outcome(error=" ".join(str(error).split()))
    return replace(outcome, made={})


_EVERYONES = {errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_EVERYONES.add(getattr(errno, "EDQUOT", errno.ENOSPC))
"""What is wrong with the disk or the process, not with one name."""


def _encoded(kind: str, result: api.Result, options: Options) -> bytes:
    if kind == "classes":
        return _json_line(classes_of(result))
    if kind == "labels":
        values = None if options.values is None else np.array(options.values, np.uint16)
        return result.png(options.palette, values)
    return overlays.encode(result.overlay(options.opacity, options.legend, options.palette), "PNG")


def _record(source: Source, result: api.Result, ms: float, options: Options) -> dict[str, Any]:
    height, width, _ = result.image.shape
    digest_key, found_key = _found_keys(options)
    found: Any = [vars(best) for best in result.top()] if options.classifies else result.counts()
    return {
        "file": source.file,
        "width": width,
        "height": height,
        "pixels_sha256": hashlib.sha256(np.ascontiguousarray(result.image).data).hexdigest(),
        digest_key: labels_sha256(result.logits if options.classifies else result.labels),
        "model_sha256": result.model.sha256,
        found_key: found,
        "notes": list(result.notes),
        "written": {kind: f"{source.name}{ENDINGS[kind]}" for kind in options.targets(source)},
        "ms": ms,
    }


def _found_keys(options: Options) -> tuple[str, str]:
    """Keys of a record: the digest of what was found, and what was."""
    return ("logits_sha256", "top") if options.classifies else ("labels_sha256", "classes")


def classes_of(result: api.Result) -> dict[str, Any]:
    """What a classifier found, whole: the best classes and all logits."""
    return {
        "label": result.label,
        "top": [vars(best) for best in result.top()],
        "logits": result.logits.tolist(),
        "logits_sha256": labels_sha256(result.logits),
    }


def labels_sha256(labels: api.Array) -> str:
    """sha256 of the class indices, row by row, or of logits; as little-endian bytes."""
    return hashlib.sha256(little(labels).tobytes()).hexdigest()


# --------------------------------------------------------------------------------------------------------- workers


def outcomes(
    sources: Iterable[Source], model: api.Model, options: Options, executor: Executor
) -> Generator[Outcome, None, None]:
    """What became of every image, in their order."""
    task: Task[Item, Outcome] = Task(_start, model, options)
    if not executor.ships:
        yield from executor.run(task, map(Item, sources))
        return
    waiting: deque[tuple[Source, str | None]] = deque()

    def items() -> Iterator[Item]:
        for source in sources:
            try:
                item, error = Item(source, pictures.read(source.file)), None
            except InputError as found:
                item, error = Item(source, b""), " ".join(str(found).split())
            except MemoryError:
                item, error = Item(source, b""), _out_of_memory(source)
            waiting.append((source, error))
            yield item

    with contextlib.closing(executor.run(task, items())) as found:
        for outcome in found:
            source, error = waiting.popleft()
            if error is not None:
                yield Outcome(error=error)
            else:
                yield outcome if outcome.record is None else store(source, outcome, options)


def _start(model: api.Model, options: Options) -> Callable[[Item], Outcome]:
    """A worker: kernels are loaded before the first image, whose "ms" would show it."""
    api.run(np.zeros((*model.info.window, 3), np.uint8), model, options.backend, options.threads)
    return functools.partial(process, model=model, options=options)


# ------------------------------------------------------------------------------------------------------ the whole


@dataclass(frozen=True)
class Run:
    """How a batch is run.

    executor   where
    jsonl      file of the records; "-" for `emit` alone; None for none
    earlier    "refuse" to replace what is there, "resume" after what is done, or "force": replace it
    fail_fast  raise at the first image that fails
    emit       gets every record, in order
    complain   gets one line for every image that fails
    progress   wraps the iterator of the outcomes, given their number
    shard      of the sources: only these are done, beside other runs in the same folder
    """

    executor: Executor = field(default_factory=InProcess)
    jsonl: str | None = None
    earlier: str = "refuse"
    fail_fast: bool = False
    emit: Callable[[dict[str, Any]], None] = lambda record: None
    complain: Callable[[str], None] = lambda line: None
    progress: Callable[[Iterator[Outcome], int], Iterable[Outcome]] = lambda found, total: found
    shard: Shard | None = None

    def folder(self, options: Options) -> Path | None:
        """Where the journal and the list of errors are; None where nothing is kept."""
        if options.output is not None:
            return options.output
        if self.jsonl not in (None, "-"):
            return Path(str(self.jsonl)).parent
        return options.overlay

    def file(self, options: Options, name: str) -> Path | None:
        """A file in that folder, by its name for the whole: JOURNAL or ERRORS."""
        folder = self.folder(options)
        if folder is None:
            return None
        return folder / (name if self.shard is None else self.shard.named(name))

    @property
    def records(self) -> Path | None:
        """The file of the records."""
        return None if self.jsonl in (None, "-") else Path(str(self.jsonl))


@dataclass
class Summary:
    """A finished batch.

    before   how many of the `images` were done by an earlier run
    seconds  per stage of STAGES
    notes    what was done to decode the images
    """

    images: int = 0
    failed: int = 0
    before: int = 0
    seconds: tuple[float, ...] = (0.0, 0.0, 0.0)
    errors: Path | None = None
    notes: Notes = field(default_factory=Notes)

    def add(self, outcome: Outcome) -> None:
        """Count one image."""
        self.images += 1
        self.failed += outcome.record is None
        if outcome.record is not None:
            self.notes.add(str(outcome.record["file"]), *outcome.record["notes"])
        self.seconds = tuple(a + b for a, b in zip(self.seconds, outcome.seconds, strict=True))


def run(sources: Sequence[Source], model: api.Model, options: Options, how: Run) -> Summary:
    """Segment all images.

    An image that cannot be read or written is listed in errors.jsonl and the others go on. Output files appear whole;
    the journal makes a later run with earlier="resume" give the same bytes as one that was never interrupted. It goes
    when all images are done, unless it was asked for by "resume" or is that of a shard.
    Raises UsageError before any work for outputs that collide or exist already, InputError for a folder that is in use
    or cannot be written.
    """
    errors, path = how.file(options, ERRORS), how.file(options, JOURNAL)
    check_targets(sources, options, filter(None, (how.records, errors)))
    for file in filter(None, (how.records, errors)):
        require_replaceable(file)
    if how.shard is not None:
        sources = [source for source in sources if how.shard.has(source.name)]
    resuming = how.earlier == "resume"
    if resuming and path is None:
        raise UsageError("--resume needs a place to keep what is done: give -o DIR or --jsonl FILE")
    if how.earlier == "refuse" or (resuming and not _journals(how, options)):
        _require_new(sources, options, how)
    with contextlib.ExitStack() as stack:
        for folder in filter(None, (options.output, options.overlay, how.folder(options))):
            _make_folder(folder)
        places = {os.path.realpath(p) for p in (options.output, options.overlay, how.folder(options)) if p}
        for place in sorted(places):
            stack.enter_context(claimed(Path(place), shared=how.shard is not None))
        if path is None:
            return _run(sources, model, options, how, None, {})
        finished: list[Path] = []
        stack.callback(_remove, finished)
        header = {"model": model.identity, **options.settings()} | ({"shard": str(how.shard)} if how.shard else {})
        again = "--force to begin again"
        book = stack.enter_context(journals.Journal(path, "batch", header, resuming, again))
        done = _done(book, sources, model, options, how) if resuming else {}
        targets = [target for source in sources for target in options.targets(source).values()]
        remove_leftovers(targets)
        summary = _run(sources, model, options, how, book, done)
        if how.shard is None and not resuming and not summary.failed:
            finished.append(path)  # nothing is left to continue; with --resume it may grow
        return summary


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _journals(how: Run, options: Options) -> list[Path]:
    """What may be continued from: the journal of this run, and for a whole one those of shards too."""
    own = how.file(options, JOURNAL)
    assert own is not None
    stem = JOURNAL.removesuffix(".jsonl")
    shards = [] if how.shard else sorted(own.parent.glob(f"{stem}.*.jsonl"))
    pattern = rf"{re.escape(stem)}\.[0-9]+-of-[0-9]+\.jsonl"
    return [path for path in (own, *shards) if path.is_file() and (path == own or re.fullmatch(pattern, path.name))]


def _require_new(sources: Sequence[Source], options: Options, how: Run) -> None:
    """Raise UsageError for files that this run may not replace."""
    targets = [path for source in sources for path in options.targets(source).values()]
    existing = [path for path in [*targets, *filter(None, [how.records])] if os.path.lexists(path)]
    keeps = "--resume keeps what an interrupted run has done"
    if how.earlier == "resume":
        keeps = "no journal tells how it was made, for a batch that finished without --resume leaves none"
    if existing:
        raise UsageError(
            f"{existing[0]}: exists already ({len(existing)} such); {keeps}, "
            "--force replaces it, -o chooses another folder"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot create the folder: {error.strerror}; choose another with -o") from None


def _done(
    book: journals.Journal, sources: Sequence[Source], model: api.Model, options: Options, how: Run
) -> dict[str, Outcome]:
    """The images done before, by their file, where they and what was written are unchanged.

    What shards have done is taken into the journal of the whole.
    """
    lines = dict(book.lines)
    for path in _journals(how, options):
        if path != book.path:
            header, others = journals.read(path, "batch")
            if {key: value for key, value in header.items() if key != "shard"} == book.header:
                lines = others | lines
    found = {}
    for source in sources:
        item = journals.item_of(source.file)
        outcome = _restored(lines.get(item, {}), source, model, options)
        if outcome is not None:
            found[source.file] = outcome
            if item not in book.lines:
                book.add(item, _entry(outcome))
    return found


_OWN = ("file", "model_sha256", "written", "ms")
"""What a record has that its line in the journal lacks: it is known without, or differs from run to run."""


def _entry(outcome: Outcome) -> dict[str, Any]:
    """The line of an image in the journal."""
    assert outcome.record is not None
    record = {key: value for key, value in outcome.record.items() if key not in _OWN}
    return {"input": outcome.input, "written": outcome.written, "record": record}


def _restored(line: Mapping[str, Any], source: Source, model: api.Model, options: Options) -> Outcome | None:
    """The outcome that a line tells of; None unless input and outputs are as they were, by their digests."""
    record, targets = line.get("record"), options.targets(source)
    notes = record.get("notes") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
        return None
    read, written = _digest(Path(source.file)), {kind: _digest(path) for kind, path in targets.items()}
    if read is None or None in written.values() or line.get("input") != read or line.get("written") != written:
        return None
    names = {kind: f"{source.name}{ENDINGS[kind]}" for kind in targets}
    whole = {**record, "file": source.file, "model_sha256": model.sha256, "written": names, "ms": None}
    digest, found = _found_keys(options)
    order = ("file", "width", "height", "pixels_sha256", digest, "model_sha256", found, "notes", *_OWN[2:])
    if set(whole) != set(order):
        return None
    return Outcome({key: whole[key] for key in order}, line["written"], line["input"])


def _digest(path: Path) -> str | None:
    try:
        return files.sha256(path)
    except InputError:
        return None


def _run(
    sources: Sequence[Source],
    model: api.Model,
    options: Options,
    how: Run,
    book: journals.Journal | None,
    done: dict[str, Outcome],
) -> Summary:
    todo = [source for source in sources if source.file not in done]
    summary, errors = Summary(before=len(done)), []
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(Replacement(how.records)) if how.records else None
        found = stack.enter_context(contextlib.closing(outcomes(todo, model, options, how.executor)))
        stream = iter(how.progress(found, len(todo)))
        for source in sources:
            outcome = done.get(source.file) or next(stream)
            summary.add(outcome)
            if outcome.record is None:
                errors.append({"file": source.file, "error": outcome.error})
                if how.fail_fast:
                    _write_errors(how.file(options, ERRORS), errors)
                    raise InputError(str(outcome.error))
                how.complain(str(outcome.error))
                continue
            if book and source.file not in done:
                book.add(journals.item_of(source.file), _entry(outcome))
            if lines:
                lines.write(_json_line(outcome.record))
            how.emit(outcome.record)
        next(stream, None)  # lets a progress bar see the end
    summary.errors = _write_errors(how.file(options, ERRORS), errors)
    for place in {path.parent for source in todo for path in options.targets(source).values()}:
        flush_folder(place)
    return summary


def _write_errors(path: Path | None, errors: Sequence[dict[str, Any]]) -> Path | None:
    """Write errors.jsonl, or remove that of an earlier run where there is no error now."""
    if path is None:
        return None
    if errors:
        write_atomically(path, b"".join(_json_line(error) for error in errors))
        return path
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return None


def _json_line(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
