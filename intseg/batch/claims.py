"""A folder belongs to one run at a time: to its process and to the workers that it started."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intseg.errors import InputError
from intseg.files import is_locked, lockable

_PATIENCE = 5.0
"""Seconds to wait for the workers of a killed run: they end as soon as they notice."""

_claims: list[int] = []


class Claims:
    """What `claimed` has claimed. Pickled for a process that is spawned, it is claimed by that process too."""

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing import reduction

        return _adopted, tuple(reduction.DupFd(descriptor) for descriptor in _claims)


def _adopted(*descriptors: Any) -> Claims:
    """In the new process: the descriptors stay open, and the claims last, until it ends."""
    for descriptor in descriptors:
        descriptor.detach()
    return Claims()


@contextlib.contextmanager
def claimed(folder: Path, shared: bool = False) -> Iterator[None]:
    """A folder to write to, which no other run claims: several may share it where all of them do.

    The claim ends with the process and those that it gave its `Claims`, whatever ends them: none is ever stale, and a
    worker that outlives a killed run keeps the next one out. Where a file system has no locks on folders, as some on a
    network, nothing is claimed.
    """
    descriptor = lockable(folder)
    try:
        if descriptor is not None and _stays_locked(descriptor, shared):
            raise InputError(f"{folder}: another run is at work here; wait for its end, or choose another folder")
        if descriptor is not None:
            _claims.append(descriptor)
        yield
    finally:
        if descriptor is not None:
            if descriptor in _claims:
                _claims.remove(descriptor)
            os.close(descriptor)


def _stays_locked(descriptor: int, shared: bool) -> bool:
    end = time.monotonic() + _PATIENCE
    while is_locked(descriptor, shared):
        if time.monotonic() > end:
            return True
        time.sleep(0.05)
    return False
