"""Is this installation sound? Versions, processor, instruction path, cache, and the digests of the bundled models."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intseg import api, backends, models, store
from intseg._version import __version__
from intseg.errors import IntsegError

PACKAGES = ("numpy", "numba", "llvmlite", "pillow", "safetensors", "tqdm", "threadpoolctl")

VARIABLES = ("INTSEG_CACHE_DIR", "XDG_CACHE_HOME", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_DISABLE_JIT")
"""Environment variables that change what the numba backend does."""

FEATURES = ("sse2", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "avx512vbmi", "dotprod")
"""Processor features that decide the instruction path."""

DIGESTS = {
    "camvid-tiny": "48adb0514cb8ce1865ef6b58f16f6cfe29017ccd8a186999e6d3293e81992c5d",
    "camvid-tiny-paper": "f95d2e5019b55768a32f2dbfba89ca9b71821d7d9d419d058f8378dd5576f45e",
}
"""`digest` of every bundled model on `pattern()`, by the NumPy definition. A new model needs a new
digest: the test says which."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    ok  False for what makes results wrong, None for what is only information
    """

    section: str
    name: str
    value: str
    ok: bool | None = None


def pattern() -> NDArray[np.uint8]:
    """A picture that is the same everywhere: integer waves and noise, uint8 [200, 280, 3]; two windows of 256 x 256."""
    y, x, channel = np.indices((200, 280, 3), np.int64)
    noise = (y * 280 + x) * 3 + channel
    noise = (noise * 1103515245 + 12345) >> 7 & 63
    waves = (x * (channel + 1) >> 1 & 127) + (y * (3 - channel) >> 1 & 63)
    sky = np.where(y < 80, 96 - y, 0)
    image: NDArray[np.uint8] = np.clip(waves + noise + sky, 0, 255).astype(np.uint8)
    return image


def digest(result: api.Result) -> str:
    """sha256 of the scores and of the labels, little-endian, in that order."""
    found = hashlib.sha256()
    for array in (result.scores, result.labels):
        found.update(f"{array.dtype.name} {list(array.shape)}\n".encode())
        found.update(store.little(array).tobytes())
    return found.hexdigest()


def installed_backends() -> tuple[str, ...]:
    """The backends that can run here."""
    return tuple(name for name in backends.names() if name != "numba" or backends.has_numba())


def examine(threads: int | None = None) -> Iterator[Finding]:
    """Everything, one finding at a time: the last ones take seconds."""
    yield from _versions()
    yield from _processor(threads)
    if backends.has_numba():
        yield from _cache()
    yield from _self_test(threads)


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "intseg", __version__)
    yield Finding("versions", "python", f"{platform.python_implementation()} {platform.python_version()}")
    yield Finding("versions", "system", f"{platform.system()} {platform.release()} {platform.machine()}")
    for package in PACKAGES:
        try:
            yield Finding("versions", package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            optional = package in ("numba", "llvmlite")
            yield Finding(
                "versions", package, "absent" + (", slow backend only" if optional else ""), None if optional else False
            )


def _processor(threads: int | None) -> Iterator[Finding]:
    yield Finding("processor", "byte order", sys.byteorder)
    yield Finding("processor", "cores", str(os.cpu_count() or "unknown"))
    if not backends.has_numba():
        yield Finding("processor", "path", f"numpy only: {backends.numba_problem()}")
        return
    from intseg.kernels import _isa
    from intseg.plan.threads import thread_count

    triple, cpu, features = _isa.current_target()
    have = [name for name in FEATURES if f"+{name}" in features.split(",")]
    path = _isa.select()
    yield Finding("processor", "threads", str(thread_count(threads)))
    yield Finding("processor", "target", f"{triple}, {cpu}")
    yield Finding("processor", "features", " ".join(have) or "none that matter")
    detail = f"{path.lanes} lanes, groups of {path.group}, tile {path.rows} x {path.columns}"
    yield Finding("processor", "path", f"{path.name}{' with vbmi' if path.vbmi else ''}: {detail}")
    for variable in VARIABLES:
        if variable in os.environ:
            yield Finding("processor", variable, os.environ[variable] or "(empty)")


def _cache() -> Iterator[Finding]:
    from intseg.kernels import _jit
    from intseg.plan import plan  # noqa: F401  the import fills the registry

    folder = _jit.cache_folder()
    if folder is None:
        yield Finding("cache", "folder", "none: every process compiles; set INTSEG_CACHE_DIR to a private folder")
        return
    entries = list(folder.glob("*.bin"))
    ready = sum(_jit.Cache(folder, k.name)._path(k.signature).exists() for k in _jit.REGISTRY.values())
    hint = "" if ready == len(_jit.REGISTRY) else "; intseg doctor --warm compiles the rest"
    yield Finding("cache", "folder", str(folder))
    yield Finding("cache", "kernels", f"{ready} of {len(_jit.REGISTRY)} are compiled{hint}")
    size = sum(entry.stat().st_size for entry in entries)
    yield Finding("cache", "entries", f"{len(entries)}, {size / 1e6:.1f} MB, of this and other versions")


def _self_test(threads: int | None) -> Iterator[Finding]:
    if not models.names():
        yield Finding("self-test", "models", "none is installed; install intseg again", False)
    for name in models.names():
        for backend in installed_backends():
            yield _tested(name, backend, threads)


def _tested(name: str, backend: str, threads: int | None) -> Finding:
    title = f"{name}, {backend}"
    try:
        found = digest(api.run(pattern(), name, backend, threads))
    except IntsegError as error:
        return Finding("self-test", title, str(error), False)
    expected = DIGESTS.get(name)
    if expected is None:
        return Finding("self-test", title, f"{found}, and no digest is known", False)
    return Finding(
        "self-test", title, found if found == expected else f"{found}, expected {expected}", found == expected
    )


# ----------------------------------------------------------------------------------------------------------- text


def lines(finding: Finding, section: str | None) -> Iterator[str]:
    """A finding as `intseg doctor` prints it, under its section's name when that is a new one."""
    if finding.section != section:
        yield finding.section
    mark = {True: "  ok", False: "  WRONG", None: ""}[finding.ok]
    value = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", finding.value) if finding.ok else finding.value
    parts = textwrap.wrap(value + mark.replace(" ", "\0"), 51, break_long_words=False) or [""]
    for name, part in zip([finding.name, *[""] * len(parts)], parts, strict=False):
        yield f"  {name:26} {part}".replace("\0", " ")


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """All findings for programs."""
    return {
        "ok": all(finding.ok is not False for finding in findings),
        "findings": [{"section": f.section, "name": f.name, "value": f.value, "ok": f.ok} for f in findings],
    }
