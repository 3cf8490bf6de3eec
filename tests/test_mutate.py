"""tests/trust/mutate.py: an unmutated copy passes, mutants are killed, and the list of equivalents is up to date."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import mutate
import mutate_package
import pytest

ROOT = Path(__file__).parent.parent


@cache
def suite() -> Any:
    return mutate.read_suite()


@cache
def listed() -> list[Any]:
    return list(mutate.all_mutants())


@cache
def mutants() -> dict[str, Any]:
    return {mutant.key: mutant for mutant in listed()}


def test_an_unmutated_copy_passes():
    assert mutate.killer(None, suite()) is None


@pytest.mark.parametrize(
    ("key", "killed_by"),
    [
        ("arith/rounding.py:rsr: ft(np.int64(1), c [- -> +] 1)", "ops/"),
        ("ops/add.py:add: cumulate(branch_a [+ -> -] branch_b), 64)", "ops/add"),
        ("arith/interpolation.py:blend:  (total - weight) [+ -> -] b * weight", "ops/upsample_bilinear"),
    ],
)
def test_examples(key: str, killed_by: str):
    """Three by hand; the score as a whole is a command, not a test."""
    assert killed_by in str(mutate.killer(mutants()[key], suite()))


def test_names_are_unique_and_equivalents_exist():
    assert max(Counter(mutant.key for mutant in listed()).values()) == 1
    assert set(mutate.EQUIVALENT) <= set(mutants())


def test_the_page_counts_as_many():
    """Who adds to the definition judges the vectors again."""
    page = (ROOT / "docs" / "CONFORMANCE.md").read_text(encoding="utf-8")
    counts = f"{len(mutate.all_mutants())} | {len(mutate.EQUIVALENT)}"
    assert page.count(f"| golden/ | {counts} |") == page.count(f"| op cases of a pack | {counts} |") == 1


def test_an_equivalent_mutant_survives():
    key = next(key for key in mutate.EQUIVALENT if "patchify" in key)
    assert mutate.killer(mutants()[key], suite()) is None


def test_the_package_is_left_alone():
    import intseg.ops

    before = dict(intseg.ops.RUN)
    mutate.killer(next(iter(mutants().values())), suite())
    assert before == intseg.ops.RUN


def test_list_runs_nothing(capsys: pytest.CaptureFixture[str]):
    assert mutate.main(["--list", "--file", "add"]) == 0
    assert "add.py" in capsys.readouterr().out


def test_a_folder_without_op_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert mutate.main(["--ops", str(tmp_path)]) == 2
    assert "holds no op files" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- the whole package


def test_mutants_of_the_package_compile_and_are_drawn_by_a_seed() -> None:
    found = mutate_package.all_changes("intseg/files")
    drawn = [change.mutant() for change in mutate_package.drawn(found, 10, 1)]
    assert [m.path for m in mutate_package.drawn(found, 10, 1)] == [m.path for m in mutate_package.drawn(found, 10, 1)]
    for mutant in drawn:
        compile(mutant.tree, mutant.file, "exec")
        assert mutant.before != mutant.after
    assert all((ROOT / place).exists() for place in mutate_package.TESTS)
    assert all((ROOT / file).exists() for place in mutate_package.TESTS for file in mutate_package.tests_of(place))


def test_guards_are_mutated() -> None:
    places = ("require_replaceable", "Growing._require_ours")
    found = [change for change in mutate_package.all_changes("intseg/files") if change.function in places]
    keys = " ".join(change.mutant().key for change in found)
    for change in ("[ -> not ]kind == 'symbo", "choose another name') -> pass]", "st_nlink > [1 -> 2]", "[or -> and]"):
        assert change in keys, change


def test_the_package_passes_unmutated_and_a_mutant_does_not(tmp_path: Path) -> None:
    """In a process that has not imported what the tests import: a run that cannot start must not count as killed."""
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mutate_package as m
m.preload()
workshop = m.Workshop(Path(sys.argv[2]))
tests = [m.Test("tests/test_files.py::test_a_number_has_a_range_that_the_message_states", 1.0)]
assert workshop.passes(tests)
changes = [change.mutant() for change in m.changes_of("intseg/errors.py") if change.function == "number"]
(mutant,) = [mutant for mutant in changes if mutant.after == "pass"]
assert not workshop.survives(mutant, tests)
"""
    arguments = [sys.executable, "-c", code, str(ROOT / "tests" / "trust"), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_of_the_page_is_that_of_the_journal(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutate_package.main(["--show", str(ROOT / "docs" / "mutants.jsonl")]) == 0
    page = (ROOT / "docs" / "TRUST.md").read_text(encoding="utf-8")
    for line in capsys.readouterr().out.splitlines():
        assert line in page


def test_argued_mutants_exist() -> None:
    found = mutate_package.named(mutate_package.EQUIVALENT)
    assert {change.mutant().key for change in found} == set(mutate_package.EQUIVALENT)


def test_a_mutant_cannot_leave_its_cage(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    code = """
import os, shutil, sys
sys.path.insert(0, sys.argv[1])
import cage
cage.enter("in")
open("in/a", "w").close()
os.rename("in/a", "in/b")
shutil.rmtree("in/c", ignore_errors=True)
assert open("victim").read() == "kept"
os.symlink("../victim", "in/link")
tries = [lambda: open("victim", "w"), lambda: os.remove("victim"), lambda: shutil.rmtree("folder")]
tries += [lambda: os.rmdir("folder"), lambda: os.chmod("victim", 0), lambda: os.kill(-1, 0)]
tries += [lambda: os.rename("victim", "in/v"), lambda: os.rename("in/b", "b"), lambda: os.truncate("victim", 0)]
tries += [lambda: os.remove("victim", dir_fd=os.open(".", os.O_RDONLY))]
for attempt in tries:
    try:
        attempt()
    except PermissionError:
        continue
    sys.exit("left the cage")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "tests" / "trust")], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "victim").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in", "victim"]
