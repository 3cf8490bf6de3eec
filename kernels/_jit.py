"""The one decorator of the kernels, and its cache of compiled code.

Numba's own cache does not see edits in other files, crashes on a truncated entry, fails to import where neither the
package nor HOME can be written, and unpickles (executes) whatever lies in its folder. This one

* keys every entry by the sources of all kernels, the versions of Numba, llvmlite, NumPy and Python, and the target;
* checks the length and SHA-256 of an entry before it is unpickled, and compiles again where they are wrong;
* uses only a folder that belongs to this user and that nobody else may write to, otherwise none at all.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import pickle
import stat
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import binding
from numba.core import compiler, serialize
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.nrt import rtsys
from numba.extending import intrinsic as _numba_intrinsic

from . import _isa, _parts

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "no_cfunc_wrapper": True}
_HELPER_OPTIONS: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True}
_MAGIC = b"intseg-kernel-1\n"
_DIGEST = 32

binding.initialize_native_asmparser()  # some kernels hold assembly; without it LLVM aborts the process

REGISTRY: dict[str, Kernel] = {}
"""Every kernel by name, filled by the decorator when its module is imported."""


def helper(function: Callable[..., Any]) -> Any:
    """Mark a function that kernels call: compiled into each of them, never called from Python."""
    return numba.njit(**_HELPER_OPTIONS, pipeline_class=_parts.Compiler)(function)


def optimized(function: Callable[..., Any]) -> Any:
    """As `helper`, compiled by itself before it becomes part of a kernel: takes longer, some loops come out faster."""
    return numba.njit(**_HELPER_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """As `helper`, for what loops call: never a call in machine code."""
    return numba.njit(**_HELPER_OPTIONS, pipeline_class=_parts.Compiler, forceinline=True)(function)


def emitted(function: Callable[..., Any]) -> Any:
    """Mark a function that emits LLVM IR, to be called from kernels without its first argument, the typing context."""
    return _numba_intrinsic(function)


class Kernel:
    """A function compiled for one signature on its first call, from the cache if it is there."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self.py_func = function
        self.signature = signature
        self._lock = threading.Lock()
        self._compiled: Any = None
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any) -> Any:
        return (self._compiled or self.compile())(*args)

    def compile(self) -> Any:
        """The compiled function (a Numba dispatcher with one overload, closed to others)."""
        with self._lock:
            if self._compiled is None:
                dispatcher = numba.njit(**_OPTIONS)(self.py_func)
                folder = cache_folder()
                if folder is not None:
                    dispatcher._cache = Cache(folder, self.name)
                with _no_garbage():
                    dispatcher.compile(self.signature)
                if not dispatcher.stats.cache_hits:
                    _parts.set_environments(next(iter(dispatcher.overloads.values())))
                dispatcher.disable_compile()
                self._compiled = dispatcher
        return self._compiled

    def llvm(self) -> str:
        """The optimized LLVM IR."""
        return str(next(iter(self._inspectable().inspect_llvm().values())))

    def assembly(self) -> str:
        """The machine code as text."""
        return str(next(iter(self._inspectable().inspect_asm().values())))

    def _inspectable(self) -> Any:
        """A dispatcher that was compiled in this process: entries of the cache hold machine code only."""
        dispatcher = self.compile()
        if sum(dispatcher.stats.cache_hits.values()):
            dispatcher = numba.njit(**_OPTIONS)(self.py_func)
            dispatcher.compile(self.signature)
        return dispatcher


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Not looked for while a kernel compiles: its many objects live till the end, and searching them is an eighth."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator: compile for exactly this signature, lazily, through the cache, without the GIL."""

    def decorate(function: Callable[..., Any]) -> Kernel:
        made = Kernel(function, signature)
        REGISTRY[made.name] = made
        return made

    return decorate


def _free_locks() -> None:
    """A forked child has none of the threads that may hold one."""
    global_compiler_lock.release()  # type: ignore[no-untyped-call]
    for made in REGISTRY.values():
        made._lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # waits for a compilation: what LLVM is doing then cannot be taken over
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_free_locks,
    )


class Cache:
    """What Numba's dispatcher expects of a cache, with one file per function and key."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def _path(self, signature: Any) -> Path:
        key = hashlib.sha256(f"{fingerprint()}|{_isa.current_target()}|{self._name}|{signature}".encode())
        return self._folder / f"{self._name}-{key.hexdigest()[:40]}.bin"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function of an intact entry, None where there is none."""
        try:
            payload = _unwrap(_read_own(self._path(signature)))
        except OSError:
            return None
        if payload is None:
            return None
        # The digest proves the bytes are those that this user's process wrote; a failure to rebuild them would be a
        # version mix the fingerprint missed, and compiling again is always right.
        with contextlib.suppress(Exception):
            rebuild: Any = compiler.CompileResult._rebuild
            parts = pickle.loads(payload)
            # Machine code needs the symbols of Numba's runtime only. What compiling needs, and 0.2 s to import (SciPy
            # with it), whoever compiles asks for: `target_context.refresh()`.
            rtsys.initialize(target_context)
            return rebuild(target_context, *parts)
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Write an entry; a folder that cannot be written costs time, not the run."""
        if result.library.has_dynamic_globals:
            if os.environ.get("NUMBA_OPT") == "0":  # unoptimised code keeps what is never used, such pointers too
                return
            raise RuntimeError(f"kernel {self._name} holds a pointer of this process and cannot be cached")
        dumps: Any = serialize.dumps
        payload: bytes = dumps(result._reduce())
        with contextlib.suppress(OSError):
            _write_atomically(self._path(signature), _MAGIC + hashlib.sha256(payload).digest() + payload)

    def enable(self) -> None:
        """Part of Numba's interface; this cache is always on."""

    def disable(self) -> None:
        """Part of Numba's interface; this cache is always on."""

    def flush(self) -> None:
        """Part of Numba's interface; stale entries have other names and are never read."""

    @property
    def cache_path(self) -> str:
        """The folder of the entries."""
        return str(self._folder)


def _unwrap(data: bytes) -> bytes | None:
    """The payload of an entry, None if the entry is not whole."""
    head = len(_MAGIC) + _DIGEST
    payload = data[head:]
    intact = data.startswith(_MAGIC) and hashlib.sha256(payload).digest() == data[len(_MAGIC) : head]
    return payload if intact else None


def _read_own(path: Path) -> bytes:
    """The bytes of a regular file of this user; OSError for anything else."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not _is_private(os.fstat(file.fileno())):
            raise PermissionError(f"{path} may have been written by another user")
        return file.read()


def _write_atomically(path: Path, data: bytes) -> None:
    """Write beside, then rename: a reader sees all of an entry or none.

    Not flushed to disk: an entry that a power failure damages fails its digest and is compiled again.
    """
    _remove_leftovers(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left: writing takes milliseconds, so nobody works on a file an hour old."""
    for leftover in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()


@functools.cache
def fingerprint() -> str:
    """Hash of everything outside of a function that its compiled code depends on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.glob("*.py")):
        source = path.read_bytes()
        digest.update(f"{path.name}:{len(source)}:".encode() + source)
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version, str(_isa.select()))
    digest.update("|".join(versions).encode())
    return digest.hexdigest()


def _candidates() -> list[Path]:
    """Where the cache may be, best first. INTSEG_CACHE_DIR is the only candidate where it is set."""
    override = os.environ.get("INTSEG_CACHE_DIR")
    if override:
        return [Path(override)]
    found = []
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        found.append(Path(base) / "intseg")
    with contextlib.suppress(RuntimeError):  # no HOME and no entry in the user database
        if Path.home().is_dir():
            found.append(Path.home() / ".cache" / "intseg")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    found.append(Path(tempfile.gettempdir()) / f"intseg-{user}")
    return found


@functools.cache
def cache_folder() -> Path | None:
    """A folder only this user can write to, made if needed; None (one warning) where there is none."""
    problems = []
    for path in _candidates():
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_private(os.lstat(path)):
                problems.append(f"{path} can be written by other users")
            elif not os.access(path, os.W_OK | os.X_OK):
                problems.append(f"{path} cannot be written")
            else:
                return path
        except OSError as error:
            problems.append(str(error))
    warnings.warn(
        f"compiled kernels are not kept ({'; '.join(problems)}); set INTSEG_CACHE_DIR to a private folder", stacklevel=2
    )
    return None


def _is_private(status: os.stat_result) -> bool:
    """Not a link, owned by this user, and not writable for group or others. Windows keeps user folders private."""
    if stat.S_ISLNK(status.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
