"""tests/trust/neighbours.py in short, and that it would notice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import neighbours
import pytest

from intseg import errors, files
from intseg.reports import page

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices as POSIX has them")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = neighbours.main([*arguments, "--seconds", "600"])
    return code, capsys.readouterr().out


def many(case: Callable[[Random, Path], str], folder: Path) -> None:
    for seed in range(200):
        case(Random(seed), folder)


@pytest.mark.parametrize(("kind", "count"), [("planted", "25"), ("drawing", "40"), ("two", "1")])
def test_a_short_campaign(
    kind: str, count: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "NO_WRITER", 0.1)
    monkeypatch.setattr(files, "SILENCE", 1.0)
    monkeypatch.setattr(neighbours, "PATIENCE", 300.0)
    code, printed = run(capsys, "--kind", kind, "--count", count)
    assert code == 0, printed
    assert "0 failures" in printed


def test_a_writer_that_follows_links_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def through(path: Path, data: bytes, *, tidy: bool = True) -> None:
        path.write_bytes(data)

    monkeypatch.setattr(neighbours.store, "write_atomically", through)
    monkeypatch.setattr(neighbours, "COMMANDS", {"inspect": neighbours.COMMANDS["inspect"]})
    monkeypatch.setattr(files, "require_replaceable", lambda path: None)
    with pytest.raises(neighbours.Failure, match=r"the victim changed|was \('link'"):
        many(neighbours.planted, tmp_path)


def test_a_name_that_is_not_escaped_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "escape", str)
    assert errors.printable("\u202e") == r"\u202e"
    with pytest.raises(neighbours.Failure, match="holds"):
        many(neighbours.drawing, tmp_path)
