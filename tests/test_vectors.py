"""Conformance packs: every branch reached, cases that a graph could have, the same bytes, a runner that works."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import naive
import numpy as np
import pytest
import safetensors.numpy
from compare import assert_equal
from graphs import SOFTMAX

from intseg import api, backends, store
from intseg.cli import main as cli
from intseg.conformance import coverage, vectors
from intseg.errors import InputError, MismatchError
from intseg.exam import EXAMS, Numbers
from intseg.executor import execute
from intseg.ops import OPS, RUN, Call, Value

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "golden" / "models" / "paper.safetensors"
CALLS = [(op, i, call) for op, calls in vectors.op_cases().items() for i, call in enumerate(calls)]


@cache
def found_by_call() -> list[coverage.Found]:
    return [coverage.branches(call) for _, _, call in CALLS]


@cache
def all_branches() -> tuple[coverage.Branch, ...]:
    return tuple({branch: None for found in found_by_call() for branch in found})


@cache
def pack() -> vectors.Pack:
    return vectors.make_pack(api.load(MODEL))


# Branches


def test_every_branch_is_reached_by_op_cases_alone():
    reached = {branch for found in found_by_call() for branch, yes in found.items() if yes}
    assert sorted(branch.name for branch in all_branches() if branch not in reached) == []
    assert set(coverage.own_branches()) <= reached


def test_the_page_counts_as_many():
    page = (ROOT / "docs" / "CONFORMANCE.md").read_text(encoding="utf-8")
    assert f"| {len(CALLS)} calls of the {len(OPS)} ops and of the six steps" in page
    assert f" finds {len(all_branches())} branches" in page


def test_branches_are_well_formed():
    sections = set(
        re.findall(r"^#{2,3} (\d+(?:\.\d+)?) ", (ROOT / "SPEC.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert len({branch.name for branch in all_branches()}) == len(all_branches()) > 400
    assert {branch.section for branch in all_branches()} <= sections
    assert len(all_branches()) == 785  # a case that no input may reach any more would go unnoticed
    steps = {"cut_windows", "merge_scores", "class_map", "pixel_map", "resize", "center_crop"}  # of SPEC.md, section 7
    assert {branch.op for branch in all_branches()} == set(EXAMS) == {*OPS, *steps}


def test_every_branch_is_missed_by_some_call():
    """A predicate that is always true would say nothing."""
    by_op: dict[str, list[set[str]]] = {}
    for (op, _, _), found in zip(CALLS, found_by_call(), strict=True):
        by_op.setdefault(op, []).append({branch.name for branch, yes in found.items() if yes})
    always = [b.name for b in all_branches() if len(by_op[b.op]) > 1 and all(b.name in found for found in by_op[b.op])]
    assert set(always) <= ALWAYS, sorted(set(always) - ALWAYS)


ALWAYS = {
    "shiftmax.exp-top",  # every row has a largest element
    f"{SOFTMAX}.q-zero",
    *("exp_weights.t-zero", "exp_weights.uint8-highest"),
    *("sigmoid_gelu.exp-half-floor", "sigmoid_gelu.exp-sixteenth-floor"),
    "concat.unequal",
    *("merge_scores.row-1", "merge_scores.column-1", "pixel_map.row-1", "pixel_map.column-1"),
    *("class_map.clear", "class_map.first", "class_map.negative"),
}
"""Branches that every op case of a pack happens to reach."""


def requantization(product: int, shift: int, out: str = "int8") -> list[str]:
    """Branches of a linear op of one element whose accumulator is `product` and whose scale is 2^-shift."""
    params = {"weight": np.zeros((1, 1), np.int8), "bias": np.array([product], np.int32)}
    params |= {"mult": np.array([1], np.int32), "shift": np.array([shift], np.int8)}
    return coverage.reached(Call("linear", (np.zeros((1, 1), np.int8),), params, {"out": out}))


@pytest.mark.parametrize(
    ("product", "shift", "expected"),
    [
        (3, 1, "tie-positive"),
        (-3, 1, "tie-negative"),
        (5, 2, "down"),
        (7, 2, "up"),
        (-7, 2, "down-negative"),
        (-5, 2, "up-negative"),
        (4, 2, "exact"),
        (254, 1, "highest"),
        (255, 1, "saturates-high"),
        (-256, 1, "lowest"),
        (-257, 1, "lowest"),
        (-258, 1, "saturates-low"),
    ],
)
def test_roundings_are_told_apart(product: int, shift: int, expected: str):
    found = {name.removeprefix("linear.int8-") for name in requantization(product, shift) if "int8-" in name}
    assert expected in found
    roundings = {"tie-positive", "tie-negative", "down", "up", "exact", "down-negative", "up-negative"}
    if expected in roundings:
        same_direction = {expected, expected.removesuffix("-negative")}
        assert found & roundings <= same_direction


def test_no_branch_of_int16_in_an_int8_call():
    assert not any("int16" in name for name in requantization(3, 1))


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ([5, 5, 5], {"root-zero"}),
        ([0, 1], {"root-exact", "mean-tie"}),
        ([-1, 0], {"root-exact", "mean-tie", "mean-tie-negative"}),
        ([0, 0, 0, 4], {"root-between", "row"}),
    ],
)
def test_branches_of_a_row_of_layernorm(row: list[int], names: set[str]):
    params = {"mult": np.ones(len(row), np.int32), "bias": np.zeros(len(row), np.int64)}
    call = Call("layernorm", (np.array([row], np.int16),), params, {"shift": 3, "out": "int8"})
    found = {name.removeprefix("layernorm.") for name in coverage.reached(call)}
    mine = {"root-zero", "root-exact", "root-between", "root-below", "mean-tie", "mean-tie-negative"}
    assert found & mine == names & mine


def test_a_branch_that_nothing_reaches_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = replace(EXAMS["upsample_nearest"], inputs=lambda _: iter(EXAMS["upsample_nearest"].calls()[:1]))
    monkeypatch.setattr(vectors, "EXAMS", {**EXAMS, "upsample_nearest": first})
    model = ROOT / "golden" / "models" / "intseg.safetensors"  # no such op
    with pytest.raises(MismatchError, match=r"upsample_nearest\.same"):
        vectors.make_pack(api.load(model))
    assert cli.main(["vectors", "-o", str(tmp_path / "pack"), "-w", str(model)]) == 1
    assert "not reached" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


# Op cases


@pytest.mark.parametrize("op", OPS)
def test_a_graph_could_have_every_case(op: str):
    for name, _, call in CALLS:
        if name == op:
            assert all(x.dtype.name in allowed for x, allowed in zip(call.inputs, OPS[op].inputs, strict=True))
            assert {role: p.dtype.name for role, p in call.params.items()} == dict(OPS[op].params)
            assert set(call.attrs) | set(OPS[op].optional) == set(OPS[op].attrs)
            assert all(value in OPS[op].attrs[attr] for attr, value in call.attrs.items())
            value = OPS[op].check([Value(x.dtype.name, x.shape) for x in call.inputs], call.params, call.attrs)
            found = RUN[op](*call.inputs, **call.params, **call.attrs)
            assert (value.dtype, value.shape) == (found.dtype.name, found.shape)


@pytest.mark.parametrize("backend", [name for name in ("numba",) if backends.has_numba()])
def test_backends_agree_on_the_steps_around_the_graph(backend: str):
    fast, slow = vectors.table(backend), vectors.table("numpy")
    for op, i, call in CALLS:
        if op not in OPS:
            assert_equal(vectors.run_call(call, fast), vectors.run_call(call, slow), f"{op} case {i}")


def test_numbers_are_the_same_one_by_one_and_at_once():
    """And those of the plain recurrence: packs and golden vectors hang on them."""
    state, expected = 7, []
    for _ in range(1500):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        expected.append(-100 + ((state >> 32) * 201 >> 32))
    one = Numbers(7)
    assert [one.within(-100, 100) for _ in expected] == expected
    assert Numbers(7).array("int16", 1500, low=-100, high=100).tolist() == expected
    wide = Numbers(7).array("int64", 5000)
    assert (wide < -(2**62)).any()
    assert (wide > 2**62).any()


@pytest.mark.parametrize("op", OPS)
def test_an_exam_without_a_draw_gives_valid_calls(op: str):
    """What a new op has until somebody writes one."""
    for seed in range(3):
        call = replace(EXAMS[op], draw=None).any_call(Numbers(seed))
        OPS[op].check([Value(x.dtype.name, x.shape) for x in call.inputs], call.params, call.attrs)
        assert_equal(vectors.run_call(call, RUN), naive.evaluate(op, call.inputs, call.params, call.attrs), op)


# Packs


def test_the_same_bytes_again():
    again = vectors.make_pack(api.load(MODEL))
    assert again.files == pack().files
    assert again.digest == pack().digest


@pytest.mark.skipif(not backends.has_numba(), reason="numba is not installed")
def test_the_same_bytes_on_every_backend():
    assert vectors.make_pack(api.load(MODEL), "numba").files == pack().files


def test_coverage_report():
    report = json.loads(pack().files["coverage.json"])["branches"]
    assert [entry["name"] for entry in report] == [branch.name for branch in all_branches()]
    assert all(entry["count"] >= len(entry["ops"]) > 0 for entry in report)
    assert sum(bool(entry["images"]) for entry in report) > 100  # the model itself reaches many


def test_files_are_listed_and_integers():
    runner = json.loads(pack().files["runner.json"])
    assert set(runner["files"]) == set(pack().files) - {"runner.json"}
    for name, data in pack().files.items():
        if name.endswith(".safetensors"):
            assert all(x.dtype.kind in "iu" and x.size for x in safetensors.numpy.load(data).values()), name


def test_another_implementation_can_follow_the_runner(tmp_path: Path):
    """Only runner.json, the files it names and the oracle: the digest comes out as stated there."""
    vectors.write_pack(pack(), tmp_path / "pack")
    runner = json.loads((tmp_path / "pack" / "runner.json").read_text())
    digest = hashlib.sha256()

    def add(name: str, sha256: str) -> None:
        digest.update(f"{name} {sha256}\n".encode())

    def sha256(x: np.ndarray) -> str:
        return hashlib.sha256(f"{x.dtype.name} {list(x.shape)}\n".encode() + x.tobytes()).hexdigest()

    for entry in runner["ops"]:
        tensors, attrs = read(tmp_path / "pack" / entry["file"])
        assert len(attrs) == entry["cases"]
        for i, attributes in enumerate(attrs):
            expected = tensors[f"case{i}.expected"]
            if entry["op"] in OPS:
                inputs = [tensors[f"case{i}.in{j}"] for j in range(len(OPS[entry["op"]].inputs))]
                params = {role: tensors[f"case{i}.param.{role}"] for role in OPS[entry["op"]].params}
                assert_equal(naive.evaluate(entry["op"], inputs, params, attributes), expected)
            add(f"ops/{entry['op']}/{i}", sha256(expected))
    for entry in runner["images"]:
        tensors, _ = read(tmp_path / "pack" / entry["file"])
        for key in sorted(set(tensors) - {"image"}):
            add(f"images/{entry['name']}/{key}", sha256(tensors[key]))
        for node, found in entry["nodes"].items():
            add(f"images/{entry['name']}/nodes/{node}", found)
    assert digest.hexdigest() == runner["digest"]


def read(path: Path) -> tuple[dict[str, np.ndarray], list[dict[str, int | str]]]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = header.get("__metadata__", {}).get("intseg", '{"attrs": []}')
    return safetensors.numpy.load(data), json.loads(text)["attrs"]


def test_images_and_nodes_are_those_of_the_definition():
    graph = store.loads(pack().files["model.safetensors"])
    runner = json.loads(pack().files["runner.json"])
    entry = next(entry for entry in runner["images"] if entry["name"] == "noise")
    tensors = safetensors.numpy.load(pack().files[entry["file"]])
    found: list[tuple[str, str]] = []
    scores = execute(
        graph, tensors["image"], RUN, lambda node, value: found.append((node.name, vectors.array_sha256(value)))
    )
    assert found == list(entry["nodes"].items())
    assert_equal(scores, tensors["window0.scores"])
    result = api.run(tensors["image"], api.load(MODEL), "numpy")
    assert_equal(result.scores, tensors["merged"])
    assert_equal(result.labels, tensors["labels"])


def test_images_cover_the_sizes():
    info = api.load(MODEL).info
    shapes = {name: image.shape[:2] for name, image in vectors.corner_images(info).items()}
    assert shapes["pixel"] == (1, 1)
    assert all(side < window for side, window in zip(shapes["smaller"], info.window, strict=True))
    assert all(side > window for side, window in zip(shapes["overlap"], info.window, strict=True))
    assert shapes["noise"] == info.window


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["vectors", "-o", str(tmp_path / "pack"), "-w", str(MODEL)]
    assert cli.main([*argv, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["reached"] == summary["branches"] == len(all_branches())
    assert summary["digest"] == pack().digest
    found = {
        path.relative_to(tmp_path / "pack").as_posix() for path in (tmp_path / "pack").rglob("*") if path.is_file()
    }
    assert found == set(pack().files)


# What is refused


def occupied(folder: Path) -> Path:
    (folder / "pack").mkdir()
    (folder / "pack" / "mine").write_text("keep")
    return folder / "pack"


def file(folder: Path) -> Path:
    (folder / "pack").write_text("keep")
    return folder / "pack"


@pytest.mark.parametrize("target", [occupied, file, lambda folder: folder / "no" / "pack"])
def test_a_folder_that_cannot_be_new(
    target: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = target(tmp_path)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(InputError):
        vectors.write_pack(pack(), path)
    assert cli.main(["vectors", "-o", str(path), "-w", str(MODEL)]) == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_an_empty_folder_is_used(tmp_path: Path):
    (tmp_path / "pack").mkdir()
    vectors.write_pack(pack(), tmp_path / "pack")
    assert (tmp_path / "pack" / "runner.json").is_file()


def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors, "create", full)
    with pytest.raises(InputError, match="No space left"):
        vectors.write_pack(pack(), tmp_path / "pack")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "code"), [(["-w", "no.safetensors"], 4), (["-w", __file__], 3), (["--backend", "gpu"], 2)]
)
def test_bad_model_or_backend(argv: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["vectors", "-o", str(tmp_path / "pack"), *argv]) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
