"""Throughput and memory of `intseg infer` on many images, beside the rate of single images in the same run.

    python tools/measure/bench_batch.py
    python tools/measure/bench_batch.py --images 1000

Single images: decoded before, one thread, the calling process alone, before the batch and after it. "Inference alone"
is as many such processes at once as the batch has, before and after it: what these cores can do at all. The batch
reads image files, JPEG as cameras write them or PNG, which take 4 times longer to decode; it writes label PNGs and
records. On cores that are shared with other work, or that share their memory, only the comparison with inference
alone says something about the batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from intseg import api
from intseg.batch import infer as batch

STREET = Path(__file__).resolve().parents[2] / "golden" / "images" / "street.png"
START_S, RUN_S = 4.0, 5.0
DIFFERENT = 20
"""Pictures that are made; the images repeat them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    model = api.load(args.weights)
    with tempfile.TemporaryDirectory() as folder:
        scenes, files = generate(Path(folder) / "images", args.images, args.format)
        before = single_rate(model, scenes), together_rate(model, args.jobs)
        rates, share, memory = run_batch(model, files, Path(folder) / "out", args.jobs, args.overlay)
        after = single_rate(model, scenes), together_rate(model, args.jobs)
    report(before, after, rates, share, memory, args)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description="Throughput and memory of a batch, beside single images.")
    p.add_argument("--images", type=int, default=200, help="number of images, 480 x 360 (200)")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    p.add_argument("--weights", help="weights file or bundled model (the default model)")
    p.add_argument("--format", choices=("jpeg", "png"), default="jpeg", help="of the image files (jpeg, quality 92)")
    p.add_argument("--overlay", action="store_true", help="write overlays too")
    return p


def scene(i: int) -> np.ndarray:
    """The example street, moved by 24 i pixels: uint8 [360, 480, 3]."""
    with Image.open(STREET) as image:
        return np.roll(np.asarray(image), 24 * i, axis=1)


def generate(folder: Path, count: int, kind: str) -> tuple[list[np.ndarray], list[Path]]:
    """Pictures uint8 [360, 480, 3], and `count` files of a kind, "jpeg" or "png", that repeat them."""
    folder.mkdir()
    scenes = [scene(i) for i in range(min(count, DIFFERENT))]
    files = [folder / f"{i:05}.{kind}" for i in range(count)]
    for i, file in enumerate(files):
        if i < len(scenes):
            Image.fromarray(scenes[i]).save(file, **({"quality": 92} if kind == "jpeg" else {}))
        else:
            file.write_bytes(files[i % len(scenes)].read_bytes())
    return scenes, files


def single_rate(model: api.Model, scenes: Sequence[np.ndarray]) -> float:
    """Images a second of `intseg.run` with one thread; the median over the scenes."""
    api.run(scenes[0], model, threads=1)
    seconds = []
    for scene in scenes:
        start = time.perf_counter()
        api.run(scene, model, threads=1)
        seconds.append(time.perf_counter() - start)
    return 1 / float(np.median(seconds))


def together_rate(model: api.Model, jobs: int) -> float:
    """Images a second of `jobs` processes that do nothing but `intseg.run` with one thread, all at once."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        start = time.time() + START_S
        return sum(pool.map(spin, [model] * jobs, [start] * jobs))


def spin(model: api.Model, start: float) -> float:
    """Images a second in the RUN_S seconds from the time `start` on."""
    image = scene(0)
    api.run(image, model, threads=1)
    time.sleep(max(0.0, start - time.time()))
    images, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + RUN_S:
        api.run(image, model, threads=1)
        images += 1
    return images / (time.perf_counter() - begin)


def run_batch(
    model: api.Model, files: Sequence[Path], output: Path, jobs: int, overlay: bool
) -> tuple[tuple[float, float], float, list[tuple[int, float]]]:
    """(rate with, rate without the start of the processes), part of the time spent in inference, [(images, MiB)]."""
    memory: list[tuple[int, float]] = []
    marks: list[float] = []
    stops = sorted({max(4 * jobs, len(files) // 20), len(files) // 2, len(files)})

    def watch(found: Iterator[batch.Outcome], total: int) -> Iterable[batch.Outcome]:
        for i, outcome in enumerate(found, 1):
            marks.append(time.perf_counter())
            if i in stops:
                memory.append((i, tree_mib()))
            yield outcome

    sources = batch.find_sources([str(file) for file in files])
    options = batch.Options(output=output, overlay=output if overlay else None, threads=batch.threads_for(jobs) or 1)
    start = time.perf_counter()
    how = batch.Run(jobs, str(output / "all.jsonl"), progress=watch)
    done = batch.run(sources, model, options, how)
    whole = done.images / (time.perf_counter() - start)
    skip = min(4 * jobs, len(marks) // 2)
    steady = (len(marks) - skip) / (marks[-1] - marks[skip - 1])
    return (whole, steady), done.seconds[1] / sum(done.seconds), memory


def tree_mib() -> float:
    """Resident memory of this process and its children in MiB, shared pages once per process; NaN without /proc."""
    pids = [os.getpid()]
    try:
        for entry in Path("/proc").glob("[0-9]*/stat"):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                pids.append(int(entry.parent.name))
        pages = [int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) for pid in pids]
    except OSError:
        return float("nan")
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def report(
    before: tuple[float, float],
    after: tuple[float, float],
    rates: tuple[float, float],
    share: float,
    memory: Sequence[tuple[int, float]],
    args: argparse.Namespace,
) -> None:
    """Print the table."""
    single, together = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    whole, steady = rates
    names = ("single image, 1 thread", f"inference alone, {args.jobs} processes")
    for name, first, last in zip(names, before, after, strict=True):
        print(f"{name:30} {first:7.2f} images/s before the batch, {last:.2f} after")
    for name, rate in (
        (f"batch of {args.images} {args.format}, --jobs {args.jobs}", steady),
        ("with the start of processes", whole),
    ):
        parts = f"{rate / together:.1%} of inference alone, {rate / args.jobs / single:.1%} of {args.jobs} x single"
        print(f"{name:30} {rate:7.2f} images/s, {parts}")
    print(f"part of it spent in inference {share:.1%}; the rest is decoding, hashing, encoding, writing")
    for images, mib in memory:
        print(f"memory after {images:5} images    {mib:7.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
