"""Threads of the fast path: one pool for the process, tasks that every caller helps with."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

_pool_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def thread_count(threads: int | None) -> int:
    """`threads`, or the number of cores this process may run on."""
    if threads is not None:
        return max(1, threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _workers(count: int) -> ThreadPoolExecutor:
    """The one pool of the process; it grows to the largest number of threads asked for."""
    global _pool
    with _pool_lock:
        if _pool is None or _pool._max_workers < count:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool = ThreadPoolExecutor(count, thread_name_prefix="intseg")
        return _pool


def run_parallel(tasks: Sequence[Callable[[], None]], threads: int) -> None:
    """All tasks, on this thread and up to threads - 1 others. This thread never waits for a task that has not begun."""
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            task()
        return
    left = deque(tasks)

    def work() -> None:
        while True:
            try:
                task = left.popleft()
            except IndexError:
                return
            task()

    others = _submit(work, min(threads, len(tasks)) - 1)
    try:
        work()
    finally:
        left.clear()
        for future in others:
            if not future.cancel():
                future.result()


def _submit(work: Callable[[], None], count: int) -> list[Future[None]]:
    """`count` runs of `work` on the pool; fewer where the pool was replaced or is shutting down."""
    futures = []
    for _ in range(count):
        try:
            futures.append(_workers(count).submit(work))
        except RuntimeError:
            break
    return futures


def ranges(extent: int, parts: int, unit: int) -> list[tuple[int, int]]:
    """`parts` ranges of about equal size that start at multiples of `unit`."""
    marks = sorted({min(round(extent * i / parts / unit) * unit, extent) for i in range(parts)} | {extent})
    return list(itertools.pairwise(marks))
