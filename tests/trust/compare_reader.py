"""Compare golden/reader/reader.c, written from SPEC.md alone, with the engine: every node, sums, labels.

    python tests/trust/compare_reader.py                  golden models and images, bundled models on the example image
    python tests/trust/compare_reader.py --random 200     and random graphs, half of them adversarial
    python tests/trust/compare_reader.py --sanitize       with the undefined-behaviour and address sanitizers

Exit code 1 when anything differs. Prints what was compared; docs/TRUST.md quotes it.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api, models, windows
from intseg.conformance import flat
from intseg.executor import execute
from intseg.graph import Graph
from intseg.images import decode as image
from intseg.ops import RUN
from intseg.plan import steps
from intseg.windows import cut_windows, merge_scores, tile

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "golden" / "reader" / "reader.c"
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
OPTIMIZE = ("-O3",)
SANITIZE = ("-O1", "-g", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")

Array = NDArray[Any]


@dataclass(frozen=True)
class Job:
    """A graph, the uint8 RGB image to run it on, and whether the engine uses its kernels, which are faster."""

    name: str
    graph: Graph
    rgb: NDArray[np.uint8]
    kernels: bool = False


def compiler() -> str | None:
    """The C compiler, or None where there is none."""
    return shutil.which("cc")


def build(folder: Path, options: Sequence[str] = OPTIMIZE, source: str | None = None) -> Path:
    """Compile the reader, or another text of it, in a folder. Raises CalledProcessError."""
    text, program = folder / "reader.c", folder / "reader"
    text.write_text(SOURCE.read_text(encoding="utf-8") if source is None else source, encoding="utf-8")
    cc = compiler()
    if cc is None:
        sys.exit("compare_reader: no C compiler 'cc' on the path; install one")
    subprocess.run([cc, *FLAGS, *options, "-o", str(program), str(text)], check=True, timeout=600)
    return program


def digest(array: Array) -> str:
    """SHA-256 of the elements in C order, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def expected(job: Job) -> tuple[list[str], Array]:
    """The lines that the engine gives, and its labels."""
    ops = steps.table() if job.kernels else RUN
    info, lines, scores = job.graph.info, [], []
    height, width = job.rgb.shape[:2]
    tiling = tile(info, height, width)
    for i, (_, window) in enumerate(cut_windows(job.rgb, info)):
        scores.append(
            execute(
                job.graph,
                window,
                ops,
                lambda node, value, i=i: lines.append(f"window {i} {node.name} {digest(value)}"),  # type: ignore[misc]
            )
        )
    merged = merge_scores(scores, tiling, info)
    labels = np.ascontiguousarray(windows.labels(merged, info, height, width))
    best = np.argsort(-merged.ravel().astype(np.int64), kind="stable")[:5].tolist() if info.classifies else []
    classes = [f"class {i} {merged.flat[i]} {info.classes[i]}" for i in best]
    return [*lines, f"merged {digest(merged)}", f"labels {digest(labels)}", *classes], labels


def ppm(rgb: NDArray[np.uint8]) -> bytes:
    """A binary PPM."""
    return b"P6\n%d %d\n255\n" % (rgb.shape[1], rgb.shape[0]) + rgb.tobytes()


def read_pgm(path: Path) -> Array:
    """The label image that the reader wrote."""
    _, size, most, pixels = path.read_bytes().split(b"\n", 3)
    width, height = map(int, size.split())
    return np.frombuffer(pixels, "u1" if most == b"255" else ">u2").reshape(height, width)


def run(program: Path, job: Job) -> tuple[list[str], Array]:
    """The lines that the reader prints, and its labels. Raises CalledProcessError."""
    folder = program.parent
    (folder / "model.flat").write_bytes(flat.flatten(job.graph))
    (folder / "image.ppm").write_bytes(ppm(job.rgb))
    command = [str(program), "model.flat", "image.ppm", "labels.pgm"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
    return done.stdout.splitlines(), read_pgm(folder / "labels.pgm")


def difference(program: Path, job: Job) -> tuple[int, str]:
    """How many digests were compared, and the first line that differs, or ''."""
    wanted, wanted_labels = expected(job)
    found, found_labels = run(program, job)
    for a, b in zip(wanted, found, strict=False):
        if a != b:
            return len(wanted), f"{job.name}: engine {a!r}, reader {b!r}"
    if len(wanted) != len(found) or not np.array_equal(wanted_labels, found_labels):
        return len(wanted), f"{job.name}: {len(wanted)} and {len(found)} lines, or other labels of the same digest"
    return len(wanted), ""


def golden_jobs() -> Iterator[Job]:
    """Every golden model on every golden image."""
    for path in sorted((ROOT / "golden" / "models").glob("*.safetensors")):
        for name in ("odd", "small", "wide"):
            yield _job(path, ROOT / "golden" / "images" / f"{name}.png", kernels=False)


def bundled_jobs() -> Iterator[Job]:
    """The bundled models on the example image."""
    for name in models.names():
        yield _job(models.path(name), ROOT / "golden" / "images" / "street.png", kernels=True)


def random_jobs(count: int) -> Iterator[Job]:
    """Random graphs (tests/trust/random_graphs.py), half of them adversarial."""
    from random_graphs import cases

    for case in cases(count - count // 2, count // 2):
        yield Job(case.name, case.graph, case.image[: case.size[0], : case.size[1]].copy())


def _job(weights: Path, picture: Path, kernels: bool) -> Job:
    model = api.load(weights)
    rgb = image.decode(picture, model.info.pad).rgb
    return Job(f"{weights.stem} on {picture.name}", model.graph, rgb, kernels)


def compare(program: Path, jobs: Iterator[Job], what: str) -> bool:
    """Print one line a set of jobs. True if all are equal."""
    digests = pixels = count = 0
    start = time.perf_counter()
    for job in jobs:
        found, problem = difference(program, job)
        if problem:
            print(problem)
            return False
        digests, pixels, count = digests + found, pixels + job.rgb.shape[0] * job.rgb.shape[1], count + 1
    seconds = time.perf_counter() - start
    print(f"{what}: {count} runs, {digests} digests and {pixels} labels equal, {seconds:.1f} s with the engine")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="random graphs as well (0)")
    parser.add_argument("--sanitize", action="store_true", help="with the compiler's sanitizers")
    args = parser.parse_args(argv)
    print(f"reader.c: {len(SOURCE.read_text(encoding='utf-8').splitlines())} lines")
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), SANITIZE if args.sanitize else OPTIMIZE)
        sets = [(golden_jobs(), "golden models"), (bundled_jobs(), "bundled models")]
        if args.random:
            sets.append((random_jobs(args.random), "random graphs"))
        return 0 if all(compare(program, jobs, what) for jobs, what in sets) else 1


if __name__ == "__main__":
    sys.exit(main())
