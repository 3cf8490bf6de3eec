"""Backends by name: op tables, compiled graphs, and labels from scores. Numba is imported on first use, never before.

`numpy` is the definition. `numba` is the definition with fast entries replaced; both give the same bits.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from intseg.errors import UsageError, printable
from intseg.executor import execute
from intseg.graph import Graph
from intseg.ops import RUN, Array, Run

Forward = Callable[[Array], Array]

_ROWS_PER_CHUNK = 16
"""Pixel rows of the score tensor that the NumPy class map interpolates at once: bounds its memory."""


def names() -> tuple[str, ...]:
    """All backends that a user may ask for by name, fast or not, installed or not."""
    return ("numpy", "numba")


@functools.cache
def numba_problem() -> str:
    """Why the numba backend cannot be used here; empty where it can. Imports Numba, once per process.

    Numba refuses to be imported beside a NumPy that is newer than it knows, and with settings that it cannot use.
    """
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install numba"
    try:
        from numba.core import config
    except Exception as error:  # whatever a package that does not fit this installation raises
        first = (str(error).splitlines() or [""])[0]
        return f"numba cannot be imported ({type(error).__name__}: {printable(first)})"
    disabled: bool = getattr(config, "DISABLE_JIT", False)
    return "NUMBA_DISABLE_JIT is set: unset it" if disabled else ""


def has_numba() -> bool:
    """Whether the numba backend can be used here."""
    return not numba_problem()


def resolve(name: str) -> str:
    """The backend behind "auto", "numpy" or "numba": auto is numba where it can be used, and says so where not.

    Raises UsageError for another name, and for "numba" where it cannot be used.
    """
    if name == "auto":
        if has_numba():
            return "numba"
        _say_why_slow(numba_problem())
        return "numpy"
    if name not in names():
        raise UsageError(f"backend {name!r} is unknown, expected auto, {', '.join(names())}")
    if name == "numba" and not has_numba():
        raise UsageError(
            f"backend 'numba' cannot be used: {numba_problem()}, or use the backend 'numpy' (same results)"
        )
    return name


@functools.cache
def _say_why_slow(problem: str) -> None:
    """Warn, once per process, that inference will be slow."""
    warnings.warn(f"{problem}; running the slow NumPy backend (same results)", stacklevel=3)


def table(name: str) -> Mapping[str, Run]:
    """The op table of a backend, as `executor.execute` takes it. Every entry equals the definition, unfused."""
    if resolve(name) == "numpy":
        return RUN
    from intseg.plan import plan

    return plan.table()


def compile(graph: Graph, backend: str, threads: int | None = None) -> Forward:
    """A function from one window to its scores, for a validated graph.

    backend  "auto", "numpy" or "numba"
    threads  of the numba backend; None is every core this process may run on, 1 starts none
    return   uint8 [H, W, 3] -> int8 or int16 [h, w, classes]; may be called from several threads at once
    """
    if resolve(backend) == "numpy":
        return functools.partial(_run_numpy, graph)
    from intseg.plan.plan import Plan

    return Plan(graph, threads)


def _run_numpy(graph: Graph, image: Array) -> Array:
    return execute(graph, image, RUN)


def class_map(
    scores: Array, upsample: str, patch: int, height: int, width: int, backend: str, threads: int | None = None
) -> Array:
    """Labels of the pixels of an image from the (summed) scores of its patches.

    scores         int32 [h, w, C]
    upsample       "nearest" or "bilinear"
    patch          pixels per score in each direction
    height, width  of the image, at most h * patch and w * patch: the rest is padding and is cut off
    return         uint8 [height, width] for C <= 256, uint16 above; ties go to the lowest class
    """
    if upsample == "nearest":
        labels = RUN["upsample_nearest"](RUN["argmax"](scores), factor=patch)
        return np.ascontiguousarray(labels[:height, :width])
    if resolve(backend) == "numpy":
        return _bilinear_labels(scores, patch, height, width)
    from intseg.plan.plan import bilinear_labels

    return bilinear_labels(scores, patch, height, width, threads)


def _bilinear_labels(scores: Array, patch: int, height: int, width: int) -> Array:
    """argmax of the bilinear scores, some pixel rows at a time; columns beyond the image are cut off early."""
    scores = scores[:, : min(scores.shape[1], -(-width // patch) + 1)]
    chunks = []
    for start in range(0, height, _ROWS_PER_CHUNK):
        stop = min(start + _ROWS_PER_CHUNK, height)
        rows = RUN["upsample_bilinear"](scores, factor=patch, row_start=start, row_stop=stop)
        chunks.append(RUN["argmax"](rows[:, :width]))
    return np.concatenate(chunks)


def warmup() -> None:
    """Compile every kernel and store it in the cache, so that no later run has to."""
    resolve("numba")
    from intseg.plan.plan import compile_all

    compile_all()
