"""Every command on some models of the campaign of tests/trust/commands.py."""

from __future__ import annotations

import argparse
from typing import Any

import commands
import pytest

from intseg.cli import main as cli
from intseg.conformance import coverage, vectors
from intseg.reports import doctor

CASES = ["random 12:4", "random 11:4", "adversarial 5:0", "adversarial 7:7"]


@pytest.fixture
def what_no_graph_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of ops in a pack are drawn and looked through once; a card's digest is of a part of its picture."""
    cases = vectors.op_cases()
    ours = {id(call) for calls in cases.values() for call in calls}
    known: dict[int, Any] = {}
    branches, pattern = coverage.branches, doctor.pattern()[:50, :70]

    def once(call: Any) -> Any:
        if id(call) not in ours:
            return branches(call)
        if id(call) not in known:
            known[id(call)] = branches(call)
        return known[id(call)]

    monkeypatch.setattr(vectors, "op_cases", lambda: cases)
    monkeypatch.setattr(coverage, "branches", once)
    monkeypatch.setattr(doctor, "pattern", lambda: pattern)


@pytest.mark.usefixtures("what_no_graph_changes")
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
