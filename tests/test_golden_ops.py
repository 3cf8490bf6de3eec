"""The golden vectors of the ops, replayed on every backend: exact equality; the files are those of the generator."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from compare import assert_equal

from intseg import backends
from intseg.arith import limits
from intseg.ops import NARROW, OPS, Value

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "golden" / "ops"
BACKENDS = {name: backends.table(name) for name in backends.names()}
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def read(op: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of an op's file."""
    with safetensors.safe_open(FOLDER / f"{op}.safetensors", "np") as file:
        return json.loads(file.metadata()["intseg"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def cases(op: str) -> list[tuple[list[np.ndarray], dict[str, np.ndarray], dict[str, Any], np.ndarray]]:
    """(inputs, params, attrs, expected) of every case."""
    metadata, tensors = read(op)
    result = []
    for i, attrs in enumerate(metadata["attrs"]):
        mine = {name.removeprefix(f"case{i}."): x for name, x in tensors.items() if name.startswith(f"case{i}.")}
        inputs = [mine[f"in{j}"] for j in range(len(OPS[op].inputs))]
        params = {role: mine[f"param.{role}"] for role in OPS[op].params}
        assert len(mine) == len(inputs) + len(params) + 1
        result.append((inputs, params, attrs, mine["expected"]))
    assert len(tensors) == sum(len(inputs) + len(params) + 1 for inputs, params, _, _ in result)
    return result


@every_backend
@pytest.mark.parametrize("op", OPS)
def test_replay(op: str, backend: str):
    for i, (inputs, params, attrs, expected) in enumerate(cases(op)):
        assert_equal(BACKENDS[backend][op](*inputs, **params, **attrs), expected, f"{op} case {i} {attrs}")


@pytest.mark.parametrize("op", OPS)
def test_every_case_is_a_call_that_validation_accepts(op: str):
    for inputs, params, attrs, expected in cases(op):
        assert all(value in OPS[op].attrs[name] for name, value in attrs.items())
        assert set(attrs) | set(OPS[op].optional) == set(OPS[op].attrs)
        assert all(x.dtype.name in allowed for x, allowed in zip(inputs, OPS[op].inputs, strict=True))
        assert {role: p.dtype.name for role, p in params.items()} == dict(OPS[op].params)
        value = OPS[op].check([Value(x.dtype.name, x.shape) for x in inputs], params, attrs)
        assert (value.dtype, value.shape) == (expected.dtype.name, expected.shape)


@pytest.mark.parametrize(
    "op", [op for op, entry in OPS.items() if "out" in entry.attrs or "int_div_kind" in entry.attrs]
)
def test_every_choice_of_words_is_covered(op: str):
    for name, allowed in OPS[op].attrs.items():
        if isinstance(allowed, tuple):
            found = {attrs.get(name) for _, _, attrs, _ in cases(op)}
            assert found - {None} == set(allowed)
            assert (None in found) == (name in OPS[op].optional)


@pytest.mark.parametrize(
    ("op", "out"), [(op, out) for op, entry in OPS.items() if op != "shiftmax" for out in entry.attrs.get("out", ())]
)
def test_both_saturations_and_values_between_occur(op: str, out: str):
    found = np.concatenate([e.ravel() for _, _, attrs, e in cases(op) if attrs.get("out", "int8") == out])
    low, high = limits(out)
    assert (found.min(), found.max()) == (low, high)
    assert ((found > low) & (found < high) & (found != 0)).mean() > (0.05 if out in NARROW else 0.2)


def test_a_wrong_vector_is_noticed():
    """The replay is no empty loop: one changed element of one case fails."""
    inputs, params, attrs, expected = cases("linear")[2]
    wrong = expected.copy()
    wrong.flat[-1] ^= 1
    with pytest.raises(AssertionError, match=f"1 of {wrong.size} differ"):
        assert_equal(BACKENDS["numpy"]["linear"](*inputs, **params, **attrs), wrong)


def test_there_is_one_file_per_op_and_they_are_small():
    files = list(FOLDER.iterdir())
    assert sorted(p.name for p in files) == sorted(f"{op}.safetensors" for op in OPS)
    assert sum(p.stat().st_size for p in files) < 600_000


@pytest.mark.parametrize("op", OPS)
def test_metadata(op: str):
    metadata, tensors = read(op)
    assert sorted(metadata) == ["attrs", "op", "seed"]
    assert metadata["op"] == op
    assert all(x.dtype.kind in "iu" for x in tensors.values())
    assert all(re.fullmatch(r"case\d+\.(in\d|param\.[a-z_]+|expected)", name) for name in tensors)


def test_the_generator_gives_these_files():
    run = [sys.executable, str(ROOT / "tools" / "make_golden_ops.py"), "--check"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
