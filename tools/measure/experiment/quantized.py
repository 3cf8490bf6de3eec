"""Tables 3 to 5: post-training quantization and its cost, quantization-aware training."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from intseg import api
from intseg.errors import UsageError
from intseg.graph import Graph
from intseg.reports import inspect
from intseg.tools.convert import find_images
from intseg.tools.measure import bench
from intseg.tools.measure.experiment.memo import Document
from intseg.tools.measure.experiment.subject import Subject

TOOLS = Path(__file__).resolve().parents[2]

_LAUNCH = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""
"""Between this process and the one that is measured: a new process counts the memory of the one it comes from."""


def measured(command: Sequence[str | Path]) -> Document:
    """Run a command of tools/ on one thread; its seconds (elapsed, and of the processor) and peak memory."""
    start = time.perf_counter()
    launch = [sys.executable, "-c", _LAUNCH, sys.executable, *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    code, seconds, peak = done.stdout.split() if done.returncode == 0 else (str(done.returncode), "0", "0")
    if int(code):
        raise UsageError(f"{Path(command[0]).name}: {' '.join(done.stderr.split())[-300:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(float(seconds), 2),
        "peak_bytes": int(peak) * unit,
    }


def ptq(subject: Subject) -> Document:
    """Tables 3 to 5: tools/convert.py for every recipe and number of images, then the engine on what it wrote."""
    options = subject.options
    found = []
    for samples in options.samples:
        count = len(subject.training) if samples == "all" else int(samples)
        for recipe in options.recipes:
            work = functools.partial(_converted, subject, recipe, count)
            found.append(subject.memo(f"{recipe}, {count} images", work))
    training = (
        subject.memo(f"{options.qat_steps} QAT steps", lambda: _training_cost(subject)) if options.qat_steps else None
    )
    size = 4 * sum(p.numel() for p in subject.model.parameters())
    return {
        "float": subject.floats(),
        "float_bytes": size,
        "rows": found,
        "training": training,
        "machine": bench.machine(),
    }


def _converted(subject: Subject, recipe: str, count: int) -> Document:
    """One model: its conversion as a process of its own, and its accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{recipe}.safetensors"
        command = [TOOLS / "convert.py", subject.path, "-o", file, "--recipe", recipe, "-q"]
        cost = measured([*command, "--calibrate", *find_images(subject.training, count)])
        row = subject.engine_row(api.load(file)).as_json()
        return {"recipe": recipe, "images": count, "bytes": file.stat().st_size, "cost": cost, **row}


def _training_cost(subject: Subject) -> Document:
    """Processor seconds of a step of tools/qat.py, from a run of one step and one of a few more."""
    options = subject.options
    command = [TOOLS / "qat.py", subject.path, "--root", options.root, "--layout", options.layout]
    command += ["--split", options.train, "--val", "", "--calibrate", subject.training[0], "--batch", "8"]
    with tempfile.TemporaryDirectory() as folder:
        counts = (1, 1 + options.qat_steps)
        runs = [measured([*command, "--steps", str(n), "-o", Path(folder) / str(n)]) for n in counts]
    step = (runs[1]["cpu_seconds"] - runs[0]["cpu_seconds"]) / options.qat_steps
    return {"batch": 8, "cpu_seconds_per_step": round(step, 2), "peak_bytes": runs[1]["peak_bytes"]}


def qat(subject: Subject) -> Document:
    """Tables 3 and 4: models that tools/qat.py exported. Rows of recipes that are not named now stay."""
    rows = dict(subject.earlier.get("rows", {}))
    for recipe, file in subject.options.qat.get(subject.name, {}).items():
        model = api.load(file)
        if model.info.recipe != recipe.partition("+")[0]:
            raise UsageError(f"{file}: recipe is {model.info.recipe}, expected {recipe}; change --qat")
        row = subject.engine_row(model).as_json() | (_costs(model.graph) if "+" in recipe else {})
        rows[recipe] = {"model_sha256": model.sha256, "bytes": file.stat().st_size, **row}
    return {"rows": rows}


def _costs(graph: Graph) -> Document:
    """Bits of the weights of every linear layer, and what they cost, as the rows of `bits` have it."""
    linear = [row for row in inspect.rows(graph) if row.op == "linear"]
    bits = [row.bits[1] for row in linear]
    sizes = (graph.tensors[graph.node(row.name).params["weight"]].size for row in linear)
    size = sum(b * n for b, n in zip(bits, sizes, strict=True))
    return {"bits": bits, "size": size, "bitops": sum(row.bitops for row in linear)}
