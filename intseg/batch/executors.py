"""How one function runs on many items: in this process, in several, or on a cluster (intseg.batch.cluster).

An executor takes a function that prepares a worker and gives the function that does the work, once for each worker;
then the items, which it draws as it needs them: nothing else is held, be there a million.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from intseg.batch.claims import Claims
from intseg.errors import InputError, IntsegError, UsageError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 3
"""Items given to a worker in advance: bounds the memory and keeps every worker busy."""


class Executor(Protocol):
    """Runs one function on many items.

    jobs     workers at a time, as far as it is known
    threads  that each of them may use; None: every core
    ships    whether bytes travel: the items hold what is read, the results what is written
    """

    jobs: int
    threads: int | None
    ships: bool

    def run(self, task: Task[T, R], items: Iterable[T]) -> Generator[R, None, None]:
        """The results, in the order of the items. Raises what the work raises."""


class Task(Generic[T, R]):
    """A function to run: `start(*arguments)` in a worker gives it. Both can be pickled.

    The arguments are unpickled by the call: what is wrong with them, such as weights that changed, is raised there.
    """

    def __init__(self, start: Callable[..., Callable[[T], R]], *arguments: Any) -> None:
        self.start, self.arguments = start, arguments

    def __call__(self) -> Callable[[T], R]:
        return self.start(*self.arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (_unpacked, self.start, pickle.dumps(self.arguments))


def _unpacked(start: Callable[..., Callable[[T], R]], arguments: bytes) -> Callable[[T], R]:
    return start(*pickle.loads(arguments))


class InProcess:
    """One after the other, here."""

    jobs, ships = 1, False
    threads: int | None = None

    def run(self, task: Task[T, R], items: Iterable[T]) -> Generator[R, None, None]:
        """As `Executor.run`."""
        work = task()
        for item in items:
            yield work(item)


class Pool:
    """`jobs` processes of this machine. They are spawned: a script needs its `if __name__ == "__main__"`."""

    ships = False

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.threads: int | None = threads_for(jobs)

    def run(self, task: Task[T, R], items: Iterable[T]) -> Generator[R, None, None]:
        """As `Executor.run`. Raises InputError when a process dies."""
        with _pool(self.jobs, task) as pool:
            yield from in_order(lambda item: pool.submit(_work, item).result, items, AHEAD * self.jobs)


def local(jobs: int, count: int) -> Executor:
    """The executor for `jobs` processes and `count` items. Raises UsageError for less than one process."""
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, expected at least 1")
    jobs = min(jobs, count)
    return Pool(jobs) if jobs > 1 else InProcess()


def in_order(submit: Callable[[T], Callable[[], R]], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Results in the order of the items; at most `ahead` are in work or waiting.

    submit  begins with an item and gives what waits for its result
    """
    waiting: deque[Callable[[], R]] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= ahead:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def threads_for(jobs: int) -> int:
    """Threads for each of `jobs` processes so that together they use every core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


# ------------------------------------------------------------------------------------------------------- processes


@contextmanager
def _pool(jobs: int, task: Task[Any, Any]) -> Iterator[ProcessPoolExecutor]:
    spawn = multiprocessing.get_context("spawn")
    most = min(jobs, 61) if sys.platform == "win32" else jobs  # Windows waits for no more
    with ProcessPoolExecutor(most, mp_context=spawn, initializer=_begin, initargs=(task, Claims())) as found:
        try:
            yield found
        except BrokenProcessPool:
            raise InputError(
                "a process ended without a word, perhaps for lack of memory; use fewer --jobs, and --resume to go on"
            ) from None
        finally:
            found.shutdown(cancel_futures=True)


_worker: Callable[[Any], Any] | IntsegError | None = None


def _begin(task: Task[Any, Any], claims: Claims) -> None:
    """What `claims` holds is held by unpickling it: no later run writes where this worker may still write."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it and stops the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _worker = task()
    except IntsegError as error:  # raised here, it would be a traceback of the pool
        _worker = error


def _work(item: Any) -> Any:
    assert _worker is not None
    if isinstance(_worker, IntsegError):
        raise _worker
    return _worker(item)


def _end_with_parent() -> None:
    """A killed parent does not tell its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
