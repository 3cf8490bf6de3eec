"""./check machines without emulators or a network: what it compares, what it says of what cannot be had, its table."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "trust"))

import machine_run  # noqa: E402
import machines  # noqa: E402
from machines import Machine, Result  # noqa: E402

posix = pytest.mark.skipif(os.name != "posix", reason="kills process groups")
EXPECTED = {"golden": "aa", "street": "bb"}
ARM = Machine("arm", "arm64", "neoverse-n1", "trixie", "3.13", isa="dotprod")


def result(isa: str = "dotprod", instructions: tuple[str, ...] = ("sdot",), **digests: str) -> Result:
    found = {"golden numpy": "aa", "golden numba": "aa", "street numba": "bb"} | digests
    facts = {"machine": "aarch64", "byteorder": "little", "isa": isa}
    return Result("arm", facts=facts, instructions=dict.fromkeys(instructions, 1), digests=found)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (result(), ""),
        (result(**{"golden numba": "ab"}), "golden numba, 1 in all"),
        (result(**{"more numpy": "ab"}), "more numpy, 1 in all"),
        (Result("arm", digests={"golden numpy": "aa"}), "street, 1 in all"),
        (result("generic", ()), "takes the path generic, expected dotprod"),
        (result("dotprod", ("smlal",)), "path dotprod without sdot"),
    ],
)
def test_a_difference_of_any_kind_is_said(found: Result, problem: str) -> None:
    machines.judge(found, ARM, EXPECTED)
    assert (found.state, found.problem) == ("differs" if problem else "ok", problem)


def test_the_generic_path_has_no_instruction_of_another() -> None:
    found = result("generic", ("sdot",))
    machines.judge(found, Machine("arm", "arm64", isa="generic"), EXPECTED)
    assert found.problem == "path generic with sdot"


def test_the_digests_to_reach_are_those_of_numpy_here() -> None:
    digests = {"golden numpy": "aa", "golden numba": "zz", "street camvid numpy": "bb", "files": "cc"}
    assert machines.reference(Result("here", digests=digests)) == {"golden": "aa", "street camvid": "bb", "files": "cc"}


def test_rows_of_other_machines_stay_while_their_digests_are_todays(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    machines.write(
        path, [Result("here", digests={"golden numpy": "aa"}), Result("s390x", digests={"golden numpy": "aa"})]
    )
    machines.write(
        path, [Result("here", digests={"golden numpy": "aa"}, tree="new"), Result("aarch64", state="failed")]
    )
    rows = {entry["name"]: entry["tree"] for entry in json.loads(path.read_text(encoding="utf-8"))}
    assert rows == {"here": "new", "aarch64": "", "s390x": ""}
    machines.write(path, [Result("here", digests={"golden numpy": "ab"})])
    assert [entry["name"] for entry in json.loads(path.read_text(encoding="utf-8"))] == ["here", "aarch64"]


def test_what_cannot_be_had_fails_only_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = machines.run

    def run(machine: Machine, *rest: Any) -> Result:
        return Result("here", digests={"golden numpy": "aa"}) if machine.name == "here" else ran(machine, *rest)

    monkeypatch.setattr(machines, "run", run)
    monkeypatch.setattr(machines, "MACHINES", (machines.MACHINES[0], ARM))
    monkeypatch.setenv("PATH", str(tmp_path))  # without apt-get, dpkg and pip's index
    assert machines.main(["--json", str(tmp_path / "found.json")]) == 0
    assert "1 with the same bits, 1 not to be had, 0 wrong" in capsys.readouterr().out
    assert machines.main(["arm"]) == 1
    captured = capsys.readouterr()
    assert "not to be had: " in captured.out
    assert "apt-get" in captured.out
    assert captured.err.count("\n") >= 2
    assert machines.main(["--table", str(tmp_path / "found.json")]) == 0
    assert "not to be had" in capsys.readouterr().out
    assert [machine.short for machine in machines.chosen([], short=True)] == [False, True]
    with pytest.raises(SystemExit, match="unknown machine 'vax', expected here, arm"):
        machines.main(["vax"])


PROGRAM = """\
import json, os, sys, time
print(json.dumps({"name": "facts", "machine": "m", "byteorder": "big", "seconds": 0}), flush=True)
print(json.dumps({"name": "golden numpy", "digest": "aa", "compared": 1, "wrong": WRONG, "seconds": 1}), flush=True)
END
"""


@posix
@pytest.mark.parametrize(
    ("wrong", "end", "state", "problem"),
    [
        ("", 'print(json.dumps({"name": "end", "seconds": 0}))', "ok", ""),
        ("node 3", 'print(json.dumps({"name": "end", "seconds": 0}))', "differs", "golden numpy: node 3"),
        ("", 'sys.exit("no such instruction")', "failed", "exit code 1: no such instruction"),
        ("", "", "failed", "exit code 0: no reason given"),
        ("", "os.fork(); time.sleep(60)", "failed", "not done after 3 s"),
    ],
)
def test_a_program_is_read_to_its_end_or_ended(
    wrong: str, end: str, state: str, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "run.py"
    program.write_text(PROGRAM.replace("WRONG", repr(wrong)).replace("END", end), encoding="utf-8")
    monkeypatch.setattr(machines, "RUN", program)
    said: list[str] = []
    limit = 3 if "sleep" in end else 600
    found = machines.run(machines.MACHINES[0], machines.Store(tmp_path, "", said.append), limit, said.append)
    assert (found.state, found.problem, found.digests) == (state, problem, {"golden numpy": "aa"})
    assert "here: golden numpy (1.0 s)" in said


def test_what_failed_to_come_is_not_fetched_again_and_leaves_nothing(tmp_path: Path) -> None:
    store, tries = machines.Store(tmp_path, "", print), []

    def make(folder: Path) -> None:
        (folder / "half").touch()
        tries.append(folder)
        raise machines.Missing("404")

    for _ in range(2):
        with pytest.raises(machines.Missing, match="404"):
            store._once("thing", make)
    assert len(tries) == 1
    assert not (tmp_path / "thing").exists()


def test_every_kind_of_file_is_written(tmp_path: Path) -> None:
    machine_run.write_files(tmp_path)
    endings = {path.suffix for path in tmp_path.rglob("*")}
    assert {".npy", ".npz", ".json", ".bin", ".hex", ".mem", ".coe", ".h", ".csv", ".safetensors"} <= endings
    before = machine_run.folder_digest(tmp_path)
    (tmp_path / "flat.bin").write_bytes(b"\0" + (tmp_path / "flat.bin").read_bytes()[1:])
    assert machine_run.folder_digest(tmp_path) != before


def test_the_table_of_trust_is_what_the_results_give() -> None:
    text = (ROOT / "docs" / "TRUST.md").read_text(encoding="utf-8")
    entries = json.loads((ROOT / "docs" / "machines.json").read_text(encoding="utf-8"))
    assert machines.table(entries) in text
    assert [asdict(Result(**entry)) for entry in entries] == entries
    assert {entry["name"] for entry in entries} == {machine.name for machine in machines.MACHINES}
