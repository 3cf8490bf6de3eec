"""The worker processes of `infer` and `eval`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from intseg.errors import InputError


@contextmanager
def pool(jobs: int, start: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """`jobs` spawned processes, each of which begins with start(*arguments); what waits is dropped at the end.

    Raises InputError when a process dies.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin, initargs=(start, *arguments)) as found:
        try:
            yield found
        except BrokenProcessPool:
            raise InputError(
                "a process ended without a word, perhaps for lack of memory; use fewer --jobs, and --resume to go on"
            ) from None
        finally:
            found.shutdown(cancel_futures=True)


def _begin(start: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it and stops the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    """A killed parent does not tell its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
