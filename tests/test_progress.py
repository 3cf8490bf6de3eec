"""How far work is: lines without a terminal, with the time left, and nothing where nothing is wanted."""

from __future__ import annotations

import pytest

from intseg import progress
from intseg.progress import Progress, shown

Capture = pytest.CaptureFixture[str]


def test_a_line_now_and_then_without_a_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress, "_now", lambda: float(next(now)))
    assert list(shown("abcd", "reading", 4, "letter")) == list("abcd")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("intseg: reading: letter 2 of 4, about ")
    assert lines[0].endswith(" left")
    assert 1 <= len(lines) <= 4


def test_stages_that_follow_one_another_are_one_work(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is too short for a line of its own."""
    times = [0.0]
    monkeypatch.setattr(progress, "_now", lambda: times[0])
    for stage in ("first", "second"):
        for _ in shown("ab", stage, 2, "step"):
            times[0] += 10.0
    assert capsys.readouterr().err == "intseg: second: step 1 of 2, about 10 s left\n"
    times[0] += 100.0
    for _ in shown("ab", "another work", 2, "step"):
        times[0] += 10.0
    assert capsys.readouterr().err == ""


def test_quick_and_quiet_work_says_nothing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(shown("abcd", "reading", 4, "letter")) == list("abcd")
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert list(shown("abcd", "reading", 4, "letter", quiet=True)) == list("abcd")
    assert capsys.readouterr().err == ""


def test_the_time_left_is_that_of_the_steps_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of ten were done before; two took 100 s, so two more take 100 s. A total may come late."""
    times = [0.0]
    monkeypatch.setattr(progress, "_now", lambda: times[0])
    with Progress("x", None, "step", done=6) as found:
        times[0] = 20.0
        found.update(2)
        assert found.line() == "x: step 8"
        found.expect(10)
        times[0] = 100.0
        assert found.line() == "x: step 8 of 10, about 2 min left"
        times[0] = 6000.0
        assert found.line() == "x: step 8 of 10, about 1.7 h left"
