"""Backends by name: op tables, compiled graphs, and labels from scores. Numba is imported on first use, never before.

`numpy` is the definition. `numba` is the definition with fast entries replaced; both give the same bits.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping

from intseg import resize as definition
from intseg import windows
from intseg.errors import UsageError, printable
from intseg.executor import execute
from intseg.graph import Graph, ModelInfo
from intseg.ops import RUN, Array, Run

Forward = Callable[[Array], Array]


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
    from intseg.plan.steps import table as kernels

    return kernels()


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
    """`windows.class_map` by a backend: labels uint8 or uint16 [height, width] from scores int32 [h, w, C]."""
    if upsample == "nearest" or resolve(backend) == "numpy":
        return windows.class_map(scores, upsample, patch, height, width)
    from intseg.plan.labels import bilinear_labels

    return bilinear_labels(scores, patch, height, width, threads)


def labels(scores: Array, info: ModelInfo, height: int, width: int, backend: str, threads: int | None = None) -> Array:
    """`windows.labels` by a backend: labels uint8 or uint16 [height, width] from what `windows.merge_scores` gives."""
    own = windows.working_size(info, height, width) == (height, width)
    if info.merge == "grid" and own:
        return class_map(scores, info.upsample, info.patch, height, width, backend, threads)
    if resolve(backend) == "numpy":
        return windows.labels(scores, info, height, width)
    from intseg.plan.labels import pixel_labels

    return pixel_labels(scores, info, height, width, threads)


def resize(rgb: Array, height: int, width: int, backend: str, threads: int | None = None) -> Array:
    """`intseg.resize.resize` by a backend: uint8 [H, W, 3] to uint8 [height, width, 3]."""
    if (height, width) == rgb.shape[:2] or resolve(backend) == "numpy":
        return definition.resize(rgb, height, width)
    from intseg.plan.labels import resized

    return resized(rgb, height, width, threads)


def warmup() -> None:
    """Compile every kernel and store it in the cache, so that no later run has to."""
    resolve("numba")
    from intseg.plan.plan import compile_all

    compile_all()
