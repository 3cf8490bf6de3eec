"""tests/trust/mutate.py: an unmutated copy passes, mutants are killed, and the list of equivalents is up to date."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@cache
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tests" / "trust" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@cache
def suite() -> Any:
    return tool().read_suite()


@cache
def mutants() -> dict[str, Any]:
    return {mutant.key: mutant for mutant in tool().all_mutants()}


def test_an_unmutated_copy_passes():
    assert tool().killer(None, suite()) is None


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
    assert killed_by in str(tool().killer(mutants()[key], suite()))


def test_names_are_unique_and_equivalents_exist():
    assert max(Counter(mutant.key for mutant in tool().all_mutants()).values()) == 1
    assert set(tool().EQUIVALENT) <= set(mutants())


def test_an_equivalent_mutant_survives():
    key = next(key for key in tool().EQUIVALENT if "patchify" in key)
    assert tool().killer(mutants()[key], suite()) is None


def test_the_package_is_left_alone():
    import intseg.ops

    before = dict(intseg.ops.RUN)
    tool().killer(next(iter(mutants().values())), suite())
    assert before == intseg.ops.RUN


def test_list_runs_nothing(capsys: pytest.CaptureFixture[str]):
    assert tool().main(["--list", "--file", "l2norm"]) == 0
    assert "l2norm" in capsys.readouterr().out


def test_a_folder_without_op_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert tool().main(["--ops", str(tmp_path)]) == 2
    assert "holds no op files" in capsys.readouterr().err
