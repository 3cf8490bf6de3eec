"""Many images: one process or several, a journal to continue from, one JSON line an image.

What is written does not depend on the number of processes or on interruptions, but for the measured "ms" of a record.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from intseg import api, strict_json
from intseg.batch import workers
from intseg.batch.sources import ENDINGS, Source
from intseg.errors import InputError, IntsegError, UsageError
from intseg.files import Replacement, flush_folder, remove_leftovers, write_atomically
from intseg.images import decode as pictures
from intseg.images import overlay as overlays
from intseg.images.notes import Notes

ERRORS, JOURNAL = "errors.jsonl", ".intseg-journal.jsonl"
STAGES = ("decode", "segment", "encode and write")

_AHEAD = 3
"""Images given to the processes in advance, per process: bounds the memory and keeps every process busy."""

# -------------------------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Options:
    """What is made of every image.

    output   folder of the label images; None for none
    overlay  folder of the overlays; None for none
    palette  colours per class; None for the model's
    values   what a label image stores per class; None for the index
    backend, threads   as of `api.run`; they decide the speed only
    """

    output: Path | None = None
    overlay: Path | None = None
    opacity: float = 0.5
    legend: bool = False
    palette: tuple[pictures.Colour, ...] | None = None
    values: tuple[int, ...] | None = None
    backend: str = "auto"
    threads: int | None = None

    def targets(self, source: Source) -> dict[str, Path]:
        """The files written for an image by what they are: "labels", "overlay"."""
        folders = {"labels": self.output, "overlay": self.overlay}
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

    seconds  per stage of STAGES
    """

    record: dict[str, Any] | None = None
    written: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)


def process(source: Source, model: api.Model, options: Options) -> Outcome:
    """Segment one image and write its files, each whole or not at all.

    An image that cannot be decoded or does not fit into memory gives an Outcome with an error. Raises InputError when
    an output cannot be written: that would happen to every image.
    """
    start = time.perf_counter()
    try:
        picture = pictures.decode(source.file, model.info.pad)
        decoded = time.perf_counter()
        result = api.run_picture(picture, model, options.backend, options.threads)
    except InputError as error:
        return Outcome(error=" ".join(str(error).split()))
    except MemoryError:
        return Outcome(error=f"{source.file}: out of memory; use a smaller image, or fewer --jobs")
    segmented = time.perf_counter()
    written = {kind: _write(path, _encoded(kind, result, options)) for kind, path in options.targets(source).items()}
    record = _record(source, result, round((segmented - decoded) * 1000, 3), options)
    times = (decoded - start, segmented - decoded, time.perf_counter() - segmented)
    return Outcome(record, written, None, times)


def _encoded(kind: str, result: api.Result, options: Options) -> bytes:
    if kind == "labels":
        values = None if options.values is None else np.array(options.values, np.uint16)
        return result.png(options.palette, values)
    return overlays.encode(result.overlay(options.opacity, options.legend, options.palette), "PNG")


def _record(source: Source, result: api.Result, ms: float, options: Options) -> dict[str, Any]:
    height, width = result.labels.shape
    return {
        "file": source.file,
        "width": width,
        "height": height,
        "pixels_sha256": hashlib.sha256(np.ascontiguousarray(result.image).data).hexdigest(),
        "labels_sha256": labels_sha256(result.labels),
        "model_sha256": result.model.sha256,
        "classes": result.counts(),
        "notes": list(result.notes),
        "written": {kind: f"{source.name}{ENDINGS[kind]}" for kind in options.targets(source)},
        "ms": ms,
    }


def labels_sha256(labels: api.Array) -> str:
    """sha256 of the class indices, row by row; uint16 as little-endian bytes."""
    little = labels.astype(labels.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()


def _write(path: Path, data: bytes) -> str:
    """Write a file, whole or not at all; `run` cleans and flushes the folder. Returns sha256."""
    write_atomically(path, data, tidy=False)
    return hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------------------------------ processes


def outcomes(
    sources: Sequence[Source], model: api.Model, options: Options, jobs: int
) -> Generator[Outcome, None, None]:
    """What became of every image, in their order, from `jobs` processes."""
    jobs = min(jobs, len(sources))
    if jobs <= 1:
        _warm(model, options)
        yield from (process(source, model, options) for source in sources)
        return
    arguments = (pickle.dumps(model), options)
    with workers.pool(jobs, _start_worker, *arguments) as pool:
        yield from _in_order(pool, sources, _AHEAD * jobs)


def _warm(model: api.Model, options: Options) -> None:
    """Segment one empty window: kernels are loaded before the first image, whose "ms" would show it."""
    api.run(np.zeros((*model.info.window, 3), np.uint8), model, options.backend, options.threads)


def _in_order(pool: ProcessPoolExecutor, sources: Iterable[Source], ahead: int) -> Iterator[Outcome]:
    """Results in the order of the sources; at most `ahead` are in work or waiting."""
    waiting: deque[Future[Outcome]] = deque()
    for source in sources:
        waiting.append(pool.submit(_work, source))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_worker: tuple[api.Model, Options] | IntsegError | None = None


def _start_worker(model: bytes, options: Options) -> None:
    global _worker
    try:
        _worker = (pickle.loads(model), options)
        _warm(*_worker)
    except IntsegError as error:  # raised here, it would be a traceback of the pool
        _worker = error


def _work(source: Source) -> Outcome:
    assert _worker is not None
    if isinstance(_worker, IntsegError):
        raise _worker
    return process(source, *_worker)


def threads_for(jobs: int) -> int | None:
    """Threads for each of `jobs` processes so that together they use every core; None (every core) for one process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs) if jobs > 1 else None


# -------------------------------------------------------------------------------------------------------- journal


class Journal:
    """Which images are done: a line each, appended as soon as its files are there; the first line has the settings."""

    def __init__(self, path: Path, model: api.Model, options: Options) -> None:
        self.path = path
        self.options = options
        self.header = {"intseg batch": 1, "model": model.identity, **options.settings()}
        self._file: io.FileIO | None = None

    def read(self, sources: Sequence[Source]) -> dict[str, Outcome]:
        """The images done before, by their file, if they and what was written are unchanged.

        Raises UsageError when there is no journal but outputs are there, or when it has other settings.
        """
        lines = self._read_lines()
        if not lines:
            return {}
        if lines[0] != self.header:
            other = [key for key, value in self.header.items() if lines[0].get(key) != value]
            raise UsageError(
                f"{self.path}: was begun with another {' and '.join(other) or 'version of intseg'}; "
                "give the same options to resume, or --force to begin again"
            )
        wanted = {source.file: source for source in sources}
        found = {}
        for line in lines[1:]:
            source = wanted.get(str(line.get("file")))
            if source is not None and self._is_current(line, source):
                found[source.file] = Outcome(line["record"], line["written"])
        return found

    def open(self, keep: bool) -> None:
        """Begin to append, after what is there or afresh. Raises InputError."""
        try:
            if keep:
                self._cut_broken_line()
            self._file = self.path.open("ab" if keep else "wb", buffering=0)
            if self._file.tell() == 0:
                self._append(self.header)
        except OSError as error:
            raise self._error(error) from None

    def add(self, source: Source, outcome: Outcome) -> None:
        """Note that an image is done. Raises InputError."""
        line = {"file": source.file, "stamp": _stamp(source.file), "written": outcome.written, "record": outcome.record}
        try:
            self._append(line)
        except OSError as error:
            raise self._error(error) from None

    def close(self) -> None:
        """End appending."""
        if self._file is not None:
            self._file.close()

    def _append(self, line: object) -> None:
        """Write a line in one piece. It is not flushed to disk: a line lost or torn costs one image, done again."""
        assert self._file is not None
        data = _json_line(line)
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _error(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: cannot write: {error.strerror}; free space or choose another folder")

    def _read_lines(self) -> list[dict[str, Any]]:
        """Whole lines; a line that was cut off when the process was killed is not one."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.path}: cannot read: {error.strerror}; check the permissions") from None
        lines = []
        for text in data.split(b"\n")[:-1]:
            try:
                line = strict_json.parse(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def _cut_broken_line(self) -> None:
        if self.path.exists():
            data = self.path.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(self.path, data.rfind(b"\n") + 1)

    def _is_current(self, line: dict[str, Any], source: Source) -> bool:
        targets = self.options.targets(source)
        return (
            isinstance(line.get("record"), dict)
            and line.get("stamp") == _stamp(source.file)
            and line.get("written") == {kind: _file_sha256(path) for kind, path in targets.items()}
        )


def _stamp(file: str) -> list[int] | None:
    """Size and time of change of a file; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _file_sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _json_line(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


# ------------------------------------------------------------------------------------------------------ the whole


@dataclass(frozen=True)
class Run:
    """How a batch is run.

    jsonl      file of the records; "-" for `emit` alone; None for none
    earlier    "refuse" to replace what is there, "resume" after what is done, or "force": replace it
    fail_fast  raise at the first image that fails
    emit       gets every record, in order
    complain   gets one line for every image that fails
    progress   wraps the iterator of the outcomes, given their number
    """

    jobs: int = 1
    jsonl: str | None = None
    earlier: str = "refuse"
    fail_fast: bool = False
    emit: Callable[[dict[str, Any]], None] = lambda record: None
    complain: Callable[[str], None] = lambda line: None
    progress: Callable[[Iterator[Outcome], int], Iterable[Outcome]] = lambda found, total: found

    def folder(self, options: Options) -> Path | None:
        """Where the journal and the list of errors are; None where nothing is kept."""
        if options.output is not None:
            return options.output
        if self.jsonl not in (None, "-"):
            return Path(str(self.jsonl)).parent
        return options.overlay


@dataclass
class Summary:
    """A finished batch. `before` of the `images` were done by an earlier run; `seconds` are per stage of STAGES,
    `notes` of all decoded images."""

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

    An image that cannot be read is listed in errors.jsonl and the others go on. Output files appear whole; the
    journal makes a later run with earlier="resume" give the same bytes as one that was never interrupted.
    Raises UsageError before any work for outputs that collide or exist already, InputError when one cannot be written.
    """
    folder = how.folder(options)
    journal = None if folder is None else Journal(folder / JOURNAL, model, options)
    jsonl = None if how.jsonl in (None, "-") else Path(str(how.jsonl))
    check_targets(sources, options, [path for path in (jsonl, folder and folder / ERRORS) if path])
    done = _earlier(sources, options, journal, jsonl, how)
    _make_folders(sources, options)
    remove_leftovers(path for source in sources for path in options.targets(source).values())
    if journal:
        journal.open(keep=how.earlier == "resume")
    try:
        return _run(sources, model, options, how, done, journal, jsonl)
    finally:
        if journal:
            journal.close()


def _earlier(
    sources: Sequence[Source], options: Options, journal: Journal | None, jsonl: Path | None, how: Run
) -> dict[str, Outcome]:
    """What an earlier run has done. Raises UsageError for files that this run may not replace."""
    if how.earlier == "force":
        return {}
    if how.earlier == "resume":
        if journal is None:
            raise UsageError("--resume needs a place to keep what is done: give -o DIR or --jsonl FILE")
        if journal.path.exists():
            return journal.read(sources)
    targets = [path for source in sources for path in options.targets(source).values()]
    existing = [path for path in [*targets, *([jsonl] if jsonl else [])] if path.exists()]
    if existing:
        raise UsageError(
            f"{existing[0]}: exists already ({len(existing)} such); --resume keeps what an interrupted run has done, "
            "--force replaces it, -o chooses another folder"
        )
    return {}


def _make_folders(sources: Sequence[Source], options: Options) -> None:
    folders = {path.parent for source in sources for path in options.targets(source).values()}
    folders |= {folder for folder in (options.output, options.overlay) if folder}
    for folder in sorted(folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot create the folder: {error.strerror}; choose another with -o") from None


def _run(
    sources: Sequence[Source],
    model: api.Model,
    options: Options,
    how: Run,
    done: dict[str, Outcome],
    journal: Journal | None,
    jsonl: Path | None,
) -> Summary:
    todo = [source for source in sources if source.file not in done]
    summary, errors = Summary(before=len(done)), []
    folder = how.folder(options)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(Replacement(jsonl)) if jsonl else None
        found = stack.enter_context(contextlib.closing(outcomes(todo, model, options, how.jobs)))
        stream = iter(how.progress(found, len(todo)))
        for source in sources:
            outcome = done.get(source.file) or next(stream)
            summary.add(outcome)
            if outcome.record is None:
                errors.append({"file": source.file, "error": outcome.error})
                if how.fail_fast:
                    _write_errors(folder, errors)
                    raise InputError(str(outcome.error))
                how.complain(str(outcome.error))
                continue
            if journal and source.file not in done:
                journal.add(source, outcome)
            if lines:
                lines.write(_json_line(outcome.record))
            how.emit(outcome.record)
        next(stream, None)  # lets a progress bar see the end
    summary.errors = _write_errors(folder, errors)
    for place in {path.parent for source in todo for path in options.targets(source).values()}:
        flush_folder(place)
    return summary


def _write_errors(folder: Path | None, errors: Sequence[dict[str, Any]]) -> Path | None:
    """Write errors.jsonl, or remove that of an earlier run where there is no error now."""
    if folder is None:
        return None
    if errors:
        write_atomically(folder / ERRORS, b"".join(_json_line(error) for error in errors))
        return folder / ERRORS
    with contextlib.suppress(OSError):
        (folder / ERRORS).unlink(missing_ok=True)
    return None
