"""The executor on a Ray cluster: tasks, a few ahead for every core, done again by Ray where a machine is lost."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from intseg import api
from intseg.batch.executors import AHEAD, Task, in_order
from intseg.errors import InputError, IntsegError, UsageError

T = TypeVar("T")
R = TypeVar("R")

_RETRIES = 16
"""How often a task is done again whose worker or machine is lost: an image that kills every worker ends the batch."""

_EXTRA = "the package ray is not installed, expected by --ray; pip install 'intseg[ray]'"


class Ray:
    """A Ray cluster.

    address  of a running one, "auto" for the one that this machine belongs to, "local" for one of this machine's cores
    ships    items hold what is read, results what is written; otherwise workers need the driver's file system
    Raises UsageError without the package, InputError for a cluster that does not answer.
    """

    threads: int | None = 1

    def __init__(self, address: str = "local", ships: bool = False) -> None:
        self.ships = ships
        self._ray = _connect(address)
        self.jobs = max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def run(self, task: Task[T, R], items: Iterable[T]) -> Generator[R, None, None]:
        """As `Executor.run`: every core holds one task and has one or two waiting."""
        ray = self._ray
        # Put into the object store once, weights included: a machine fetches it once, a worker unpacks it once.
        carried = [api.Carried(value) if isinstance(value, api.Model) else value for value in task.arguments]
        kept = ray.put(Task(task.start, *carried))
        place = None if self.ships else os.getcwd()  # where names of files begin
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_work)

        def submit(item: T) -> Callable[[], R]:
            waiting = remote.remote([kept], kept.hex(), place, item)
            return lambda: self._result(waiting)

        yield from in_order(submit, items, AHEAD * self.jobs)

    def _result(self, waiting: Any) -> Any:
        try:
            found = self._ray.get(waiting)
        except self._ray.exceptions.RayError as error:
            raise InputError(
                f"the cluster lost a task: {' '.join(str(error).split()):.300}; use --resume to go on"
            ) from None
        if isinstance(found, IntsegError):
            raise found
        return found


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(_EXTRA) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"Ray cluster {address}: cannot connect ({' '.join(str(error).split()):.200}); check the address"
            ) from None
    return ray


_workers: dict[str, Callable[[Any], Any]] = {}


def _work(kept: list[Any], name: str, place: str | None, item: Any) -> Any:
    """One item in a worker process, which keeps what it has prepared. Errors are results: Ray would wrap them."""
    try:
        if place is not None:
            _enter(place)
        if name not in _workers:
            import ray

            _workers.clear()
            _workers[name] = ray.get(kept[0])()
        return _workers[name](item)
    except IntsegError as error:
        return error


def _enter(place: str) -> None:
    try:
        os.chdir(place)
    except OSError as error:
        raise InputError(
            f"{place}: {error.strerror} on a machine of the cluster, expected a file system that all share; give --ship"
        ) from None
