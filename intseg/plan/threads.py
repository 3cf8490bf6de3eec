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


Task = Callable[[], None]


class _Stages:
    """Tasks that threads share: those of a stage begin when all of the stage before have ended."""

    def __init__(self, stages: Sequence[Sequence[Task]]) -> None:
        self.stopped = False
        self._stages = [(len(tasks), deque(tasks), deque[None](), threading.Event()) for tasks in stages]

    def work(self) -> None:
        """Take tasks until none is left. Between stages, wait for those that other threads have begun."""
        try:
            for count, left, done, ended in self._stages:
                while left:
                    try:
                        task = left.popleft()
                    except IndexError:
                        break
                    task()
                    done.append(None)
                    if len(done) == count:
                        ended.set()
                ended.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """No task begins any more, and nobody waits."""
        self.stopped = True
        for _, left, _, ended in self._stages:
            left.clear()
            ended.set()


def run_stages(stages: Sequence[Sequence[Task]], threads: int) -> None:
    """All tasks, stage by stage, on this thread and up to threads - 1 others, which stay from stage to stage.

    This thread never waits for a task that has not begun.
    """
    most = min(threads, max(map(len, stages), default=0))
    if most <= 1:
        for task in itertools.chain(*stages):
            task()
        return
    shared = _Stages(stages)
    others = _submit(shared.work, most - 1)
    try:
        shared.work()
    finally:
        for future in others:
            if not future.cancel() and shared.stopped:
                future.result()


def run_parallel(tasks: Sequence[Task], threads: int) -> None:
    """All tasks, on this thread and up to threads - 1 others. This thread never waits for a task that has not begun."""
    run_stages([tasks], threads)


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
