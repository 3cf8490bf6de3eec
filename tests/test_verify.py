"""`intseg verify`: golden folder, conformance packs and self-test pass; every damage and fault is noticed."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from intseg import api, backends, models
from intseg.cli import main as cli
from intseg.conformance import truth_table, vectors, verify
from intseg.errors import InputError
from intseg.exam import EXAMS

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "golden"
MODEL = GOLDEN / "models" / "intseg.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "pack"
    vectors.write_pack(vectors.make_pack(api.load(MODEL)), folder)
    return folder


@pytest.fixture
def pack(written: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(written, tmp_path / "pack")
    return tmp_path / "pack"


def change(folder: Path, name: str, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change tensors of a file of a pack, and its sha256 in runner.json, so that only the values are wrong."""
    path = folder / name
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors = safetensors.numpy.load(data)
    edit(tensors)
    path.write_bytes(safetensors.numpy.save(tensors, metadata=header.get("__metadata__")))
    rehash(folder, name)


def rehash(folder: Path, name: str) -> None:
    runner = json.loads((folder / "runner.json").read_text())
    runner["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "runner.json").write_text(json.dumps(runner))


# What passes


@functools.cache
def of_golden(backend: str) -> verify.Report:
    return verify.verify(GOLDEN, (backend,))


@pytest.mark.parametrize("backend", verify.installed_backends())
def test_golden(backend: str):
    report = of_golden(backend)
    assert report.ok, report.mismatch
    assert report.counts["ops"] > 400
    assert report.counts["traces"] > 2000


def test_golden_is_compared_completely():
    """As many comparisons as there are tensors in the traces, and the compiled scores of every window."""
    report = of_golden("numpy")
    expected = 0
    for path in (GOLDEN / "traces").iterdir():
        tensors = safetensors.numpy.load(path.read_bytes())
        expected += len(tensors) - 1 + len(tensors["corners"])
    assert report.counts["traces"] == expected


def test_backends_give_one_digest(written: Path):
    digests = {verify.verify(written, (name,)).digest for name in verify.installed_backends()}
    assert digests == {json.loads((written / "runner.json").read_text())["digest"]}
    assert len({of_golden(name).digest for name in verify.installed_backends()}) == 1


def test_self_test():
    report = verify.verify(None, ("numpy",))
    assert report.ok, report.mismatch
    assert set(report.counts) == {"ops", "tables", "models"}
    assert not report.notes


def test_self_test_knows_the_bundled_models():
    missing = [name for name in models.names() if api.load(name).sha256[:16] not in verify.MODELS]
    assert not missing, (
        f"MODELS in intseg/conformance/verify.py lacks {missing}: print intseg.conformance.verify.references()[1]"
    )


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test without its slow part."""
    monkeypatch.setattr(models, "names", lambda: ())


@pytest.mark.usefixtures("no_models")
def test_references_are_those_of_the_definition():
    found, _ = verify.references()
    known = {f"ops/{op}": exam.digest for op, exam in EXAMS.items()}
    known |= {f"tables/{name}": sha256 for name, _, sha256 in truth_table.self_test_tables()}
    assert found == known, "print intseg.conformance.verify.references()[0] and put the digests in the exams"


@pytest.mark.parametrize("folder", ["golden", "golden/ops", "."])
def test_the_golden_folder_is_found(folder: str):
    assert verify.find_golden(ROOT / folder) == GOLDEN


def test_no_golden_folder_is_found_elsewhere(tmp_path: Path):
    assert verify.find_golden(tmp_path) is None


# What fails


def test_one_wrong_expected_bit_of_an_op(pack: Path, capsys: pytest.CaptureFixture[str]):
    def flip(tensors: dict[str, np.ndarray]) -> None:
        tensors["case3.expected"].flat[5] ^= 1

    change(pack, "ops/linear.safetensors", flip)
    assert cli.main(["verify", str(pack)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "numpy: ops/linear/3: [" in error
    assert f"{len(verify.installed_backends())} results differ" in error


@pytest.mark.parametrize("name", ["merged", "labels", "window1.scores", "corners"])
def test_one_wrong_expected_value_of_an_image(pack: Path, name: str):
    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].flat[-1] += 1

    change(pack, "images/overlap.safetensors", add)
    report = verify.verify(pack, ("numpy",))
    assert report.mismatch is not None
    assert f"images/overlap/{name}" in report.mismatch
    assert report.failed == 1


def test_a_wrong_node_digest(pack: Path):
    runner = json.loads((pack / "runner.json").read_text())
    nodes = runner["images"][0]["nodes"]
    node = list(nodes)[7]
    nodes[node] = "0" * 64
    (pack / "runner.json").write_text(json.dumps(runner))
    report = verify.verify(pack, ("numpy",))
    assert f"nodes/{node}" in str(report.mismatch)


def test_a_wrong_digest_of_the_pack(pack: Path):
    runner = json.loads((pack / "runner.json").read_text())
    (pack / "runner.json").write_text(json.dumps(runner | {"digest": "0" * 64}))
    assert "digest" in str(verify.verify(pack, ("numpy",)).mismatch)


@pytest.mark.parametrize("edit", [lambda t: t.pop("merged"), lambda t: t.update(extra=np.zeros(1, np.int32))])
def test_missing_and_unknown_results(pack: Path, edit: Callable[[dict[str, np.ndarray]], Any]):
    change(pack, "images/noise.safetensors", edit)
    assert not verify.verify(pack, ("numpy",)).ok


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("op", ["shiftmax", "layernorm", "argmax"])
def test_a_wrong_backend_is_named(written: Path, op: str, monkeypatch: pytest.MonkeyPatch):
    table = backends.table("numpy")

    def wrong(*inputs: np.ndarray, **arguments: Any) -> np.ndarray:
        result = table[op](*inputs, **arguments).copy()
        result.flat[0] ^= 1
        return result

    monkeypatch.setattr(backends, "table", lambda name: {**table, op: wrong})
    for folder in (written, GOLDEN, None):
        report = verify.verify(folder, ("numpy",))
        assert f"numpy: ops/{op}" in str(report.mismatch)


@pytest.mark.usefixtures("no_models")
def test_a_wrong_truth_table_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(truth_table, "_TABLES", {"isqrt": (("isqrt", {"high": 4095}, "0" * 64),)})
    assert "tables/isqrt" in str(verify.verify(None, ("numpy",)).mismatch)


def test_an_unknown_model_is_compared_between_backends_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "names", lambda: ("stranger",))
    monkeypatch.setattr(models, "path", lambda name: MODEL)
    report = verify.verify(None)
    assert report.ok
    assert len(report.notes) == 1


def test_nothing_compared_is_not_ok(pack: Path, capsys: pytest.CaptureFixture[str]):
    runner = json.loads((pack / "runner.json").read_text())
    empty = hashlib.sha256().hexdigest()
    (pack / "runner.json").write_text(json.dumps(runner | {"ops": [], "images": [], "digest": empty}))
    assert cli.main(["verify", str(pack)]) == 1


# What cannot be used


def truncate(folder: Path) -> None:
    path = folder / "ops" / "add.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def truncate_and_list(folder: Path) -> None:
    truncate(folder)
    rehash(folder, "ops/add.safetensors")


def escape(folder: Path) -> None:
    text = (folder / "runner.json").read_text().replace('"ops/add.safetensors"', '"../add.safetensors"')
    (folder / "runner.json").write_text(text)


def floats(folder: Path) -> None:
    change(folder, "ops/add.safetensors", lambda tensors: tensors.update({"case0.in0": np.zeros((1, 1), np.float32)}))


def other_shape(folder: Path) -> None:
    change(folder, "ops/add.safetensors", lambda tensors: tensors.update({"case0.in0": np.zeros((9, 1), np.int16)}))


def forget(folder: Path) -> None:
    change(folder, "ops/add.safetensors", lambda tensors: tensors.pop("case0.in1"))


def edit_runner(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        runner = json.loads((folder / "runner.json").read_text())
        (folder / "runner.json").write_text(json.dumps(runner | fields))

    return edit


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "damaged or edited"),
    "truncated and listed": (truncate_and_list, "not a safetensors file"),
    "missing file": (lambda folder: (folder / "ops" / "add.safetensors").unlink(), "cannot read"),
    "no runner": (lambda folder: (folder / "runner.json").unlink(), "neither runner.json nor MANIFEST.json"),
    "not JSON": (lambda folder: (folder / "runner.json").write_text("{"), "is not JSON"),
    "a list": (lambda folder: (folder / "runner.json").write_text("[]"), "is not a JSON object"),
    "path outside": (escape, "expected a path inside the folder"),
    "floats": (floats, "expected integers only"),
    "other shape": (other_shape, "not a file of op cases"),
    "missing tensor": (forget, "not a file of op cases"),
    "other format": (edit_runner(format=2), "expected 1"),
    "no ops": (edit_runner(ops=3), "malformed"),
    "ops without a file": (edit_runner(ops=[{"op": "add"}]), "malformed"),
    "unlisted file": (edit_runner(ops=[{"op": "add", "file": "ops/none", "cases": 1}]), "does not list it"),
    "wrong count": (edit_runner(ops=[{"op": "add", "file": "ops/add.safetensors", "cases": 1}]), "says 1"),
    "unlisted model": (edit_runner(model={"file": "other"}), "does not list it"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_pack_is_one_line(pack: Path, name: str, capsys: pytest.CaptureFixture[str]):
    damage, text = DAMAGES[name]
    damage(pack)
    assert cli.main(["verify", str(pack), "--backend", "numpy"]) == InputError.exit_code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("intseg: ")]
    assert len(lines) == 1
    assert text in lines[0]


def test_a_damaged_golden_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(GOLDEN, tmp_path / "golden")
    (tmp_path / "golden" / "ops" / "add.safetensors").write_bytes(b"x")
    assert cli.main(["verify", str(tmp_path / "golden")]) == 4
    assert "add.safetensors: sha256" in capsys.readouterr().err
    (tmp_path / "golden" / "MANIFEST.json").write_text("{}")
    assert cli.main(["verify", str(tmp_path / "golden")]) == 4


@pytest.mark.parametrize("folder", ["", "no/such", __file__])
def test_not_a_folder(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["verify", folder]) == 4
    assert "neither" in capsys.readouterr().err


def test_json(written: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["verify", str(written), "--json", "--backend", "numpy"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["backends"] == ["numpy"]
    assert len(report["digest"]) == 64
