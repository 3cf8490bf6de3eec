"""Every command on some models of the campaign of tests/trust/commands.py."""

from __future__ import annotations

import argparse

import commands
import pytest

from intseg.cli import main as cli

CASES = ["random 5:0", "random 11:4", "adversarial 5:0", "adversarial 7:7"]


@pytest.mark.filterwarnings("ignore")
def test_every_command_on_every_graph() -> None:
    counts, wrong = commands.campaign(CASES)
    assert wrong == []
    assert sum(counts.values()) == len(CASES) * len(commands.LINES)
    assert counts[0] > 0.8 * sum(counts.values())


def test_every_command_is_tried() -> None:
    (subparsers,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    elsewhere = {"convert", "train", "qat", "compare-float"}  # of checkpoints, and tests of their own
    elsewhere |= {line.split()[0] for line in commands.ONCE}
    assert {line.split()[0] for line in commands.LINES} == set(subparsers.choices) - elsewhere
