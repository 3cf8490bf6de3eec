"""The doctor: the bundled models give their digests on every backend, and a wrong result is an exit code."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import intseg
from intseg import backends, models
from intseg.cli import main as cli
from intseg.reports import doctor

Capture = pytest.CaptureFixture[str]
PATTERN = "1a0f100eb66c59ab3ea312d18f3305d9dc53f0c6216961891366c1c87bfdc9b7"


@pytest.fixture(scope="module")
def findings() -> list[doctor.Finding]:
    return list(doctor.examine(1))


def test_the_pattern_is_the_same_everywhere() -> None:
    pattern = doctor.pattern()
    assert (pattern.shape, pattern.dtype.name) == ((200, 280, 3), "uint8")
    found = hashlib.sha256(pattern.tobytes()).hexdigest()
    assert found == PATTERN


def test_the_pattern_is_worth_testing_with() -> None:
    result = intseg.run(doctor.pattern())
    assert len(result.counts()) >= 3
    assert len(doctor.pattern().reshape(-1, 3)) > len(np.unique(doctor.pattern().reshape(-1, 3), axis=0)) > 10_000


def test_every_bundled_model_has_a_digest() -> None:
    assert set(doctor.DIGESTS) == set(models.names())


def test_the_installation_is_sound(findings: list[doctor.Finding]) -> None:
    wrong = [finding for finding in findings if finding.ok is False]
    assert wrong == [], "a bundled model changed? put what was found into doctor.DIGESTS, after a look at why"
    tested = [finding.name for finding in findings if finding.section == "self-test"]
    assert tested == [f"{name}, {backend}" for name in models.names() for backend in doctor.installed_backends()]


def test_the_text_fits_a_terminal(findings: list[doctor.Finding]) -> None:
    text = [line for finding in findings if finding.name != "folder" for line in doctor.lines(finding, "")]
    assert max(map(len, text)) <= 80
    assert sum(line.endswith("  ok") for line in text) == sum(finding.ok is True for finding in findings)


def test_the_findings_name_what_matters(findings: list[doctor.Finding]) -> None:
    found = {finding.name: finding.value for finding in findings}
    assert found["intseg"] == intseg.__version__
    assert found["numpy"] == np.__version__
    if backends.has_numba():
        from intseg.kernels import _isa

        assert found["path"].startswith(_isa.select().name)
        assert found["threads"] == "1"
        assert " are compiled" in found.get("kernels", "") or "none" in found["folder"]


def test_the_digest_sees_scores_labels_and_shapes() -> None:
    result = intseg.run(doctor.pattern()[:40, :40])
    found = {doctor.digest(result)}
    scores, labels = result.scores.copy(), result.labels.copy()
    scores[0, 0, 0] += 1
    labels[0, 0] ^= 1
    from dataclasses import replace

    found.add(doctor.digest(replace(result, scores=scores)))
    found.add(doctor.digest(replace(result, labels=labels)))
    found.add(doctor.digest(replace(result, labels=result.labels.reshape(20, 80))))
    assert len(found) == 4


def test_a_wrong_result_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(doctor, "DIGESTS", {**doctor.DIGESTS, models.DEFAULT: "0" * 64})
    monkeypatch.setattr(doctor, "installed_backends", lambda: (backends.resolve("auto"),))
    assert cli.main(["doctor", "--threads", "1"]) == 1
    captured = capsys.readouterr()
    assert "expected\n" in captured.out
    assert f" {'0' * 64}  WRONG\n" in captured.out
    assert captured.err.startswith("intseg: 1 wrong: ")
    assert len(captured.err.splitlines()) == 1


def test_json_says_the_same(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(doctor, "installed_backends", lambda: (backends.resolve("auto"),))
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert {"versions", "processor", "self-test"} <= {entry["section"] for entry in found["findings"]}


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numba-that-is-not-there", "numba"))
    found = {finding.name: finding for finding in doctor._versions()}
    assert found["numba-that-is-not-there"].ok is False
    assert found["numba"].ok is None


def test_a_model_that_cannot_run_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DIGESTS", {})
    assert "no digest is known" in doctor._tested(models.DEFAULT, backends.resolve("auto"), 1).value
    assert doctor._tested("no-such-model", "numpy", 1).ok is False
