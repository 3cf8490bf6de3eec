"""How commands on many images spread their work: processes, parts for other machines, a cluster. Needs no NumPy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from intseg.cli.parser import add_jobs
from intseg.errors import UsageError

if TYPE_CHECKING:
    from intseg.batch.executors import Executor
    from intseg.batch.shards import Shard


def add_spread(parser: argparse.ArgumentParser) -> None:
    """--jobs, --shard, --ray."""
    add_jobs(parser)
    parser.add_argument("--shard", metavar="K/N", help="only part K of N, chosen by names: for machines on their own")
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="on a Ray cluster; without ADDRESS a local one"
    )
    parser.add_argument("--ship", action="store_true", help="with --ray: bytes travel, no shared file system is needed")


def executor_of(args: argparse.Namespace, count: int) -> Executor:
    """Where `count` images are to be worked on. Raises UsageError."""
    from intseg.batch import executors

    if args.ray is None:
        if args.ship:
            raise UsageError("--ship goes with --ray; give both, or leave it out")
        return executors.local(args.jobs, count)
    from intseg.batch import cluster

    if args.jobs > 1:
        raise UsageError("--jobs is for the processes of one machine, --ray uses those of a cluster; give one of them")
    return cluster.Ray(args.ray, args.ship)


def shard_of(args: argparse.Namespace) -> Shard | None:
    """The part that --shard names. Raises UsageError."""
    from intseg.batch import shards

    return None if args.shard is None else shards.parse(args.shard)
