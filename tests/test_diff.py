"""The workbench finds the first wrong node and says why: faults of the test's own making, each in one node.

A fault is a function of this file put in place of one call of an op in a second execution; nothing of the product knows
of it. What that execution gives is written by the safetensors library, without metadata, as a stranger's would be.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from faults import (
    B0,
    B1,
    FAULTS,
    Array,
    floor,
    linear,
    part,
)
from tiny_model import tiny_graph

from intseg import api, store
from intseg.arith.variant import DEFINITION, Variant
from intseg.cli import main as cli
from intseg.errors import InputError, IntsegError, UsageError
from intseg.executor import execute
from intseg.graph import Graph, Node
from intseg.images import decode as pictures
from intseg.ops import RUN
from intseg.reports import diff_text
from intseg.windows import cut_windows
from intseg.workbench import cause, diff, dump, sides
from intseg.workbench import trace as traces
from intseg.workbench.diff import Settings
from intseg.workbench.mistakes import Hypothesis, catalogue, combine
from intseg.workbench.registers import evaluate
from intseg.workbench.search import explain

GOLDEN = Path(__file__).parent.parent / "golden"

MADE_HERE = ("tiny", "clamp", "i0")


def large_sums() -> Graph:
    """The tiny graph with residuals that leave INT16 before they are summed."""
    graph = tiny_graph()
    nodes = tuple(
        dataclasses.replace(n, attrs={"mult_a": 5, "shift_a": 1, "mult_b": 7, "shift_b": 1})
        if n.name == "add_attn"
        else n
        for n in graph.nodes
    )
    tensors = dict(graph.tensors)
    tensors["pos_embed"] = np.clip(tensors["pos_embed"].astype(np.int32) * 8, -32768, 32767).astype(np.int16)
    tensors["proj.shift"] = np.full_like(tensors["proj.shift"], 1)
    tensors["proj.mult"] = np.full_like(tensors["proj.mult"], 3)
    return dataclasses.replace(graph, nodes=nodes, tensors=tensors)


def i0_by_floor() -> Graph:
    """The tiny graph with a GELU behind its second norm; 1 / S = 10.66 of its input and I_0 = 10."""
    graph = tiny_graph()
    norm, head = graph.node("norm2"), graph.node("head")
    attrs = {"i0": 10, "k_inter": 23, "lam": 6, "int_div_kind": "normalized", "k_out": 8, "mult": 1, "shift": 7}
    gelu = Node("gelu", "sigmoid_gelu", ("norm2",), {}, attrs, "int8", norm.shape)
    changed = {
        "norm2": (dataclasses.replace(norm, scale="norm2.scale"), gelu),
        "head": (dataclasses.replace(head, inputs=("gelu",)),),
    }
    nodes = tuple(one for n in graph.nodes for one in changed.get(n.name, (n,)))
    tensors = {**graph.tensors, "norm2.scale": np.array([3 << 20, 0, 25], np.int32).reshape(3, 1, 1)}
    return dataclasses.replace(graph, nodes=nodes, tensors=tensors)


@dataclass(frozen=True)
class Subject:
    """A model, an image of one window, its golden trace."""

    weights: Path
    model: api.Model
    window: Array
    trace: Path


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Subject]:
    folder = tmp_path_factory.mktemp("golden")
    store.save(tiny_graph(), folder / "tiny.safetensors")
    store.save(large_sums(), folder / "clamp.safetensors")
    store.save(i0_by_floor(), folder / "i0.safetensors")
    files = {name: folder / f"{name}.safetensors" for name in MADE_HERE}
    files |= {name: GOLDEN / "models" / f"{name}.safetensors" for name in ("intseg", "i-vit")}
    result = {}
    for name, path in files.items():
        model = api.load(path)
        image = np.random.default_rng(3).integers(0, 256, (*model.info.window, 3), np.uint8)
        if name not in MADE_HERE:
            image = pictures.decode(GOLDEN / "images" / "odd.png", model.info.pad).rgb
        _, window = next(iter(cut_windows(image, model.info)))
        traces.write(folder / f"{name}.trace", window, model, with_registers=True)
        result[name] = Subject(path, model, window, folder / f"{name}.trace")
    return result


def execution(subject: Subject, node: str = "", faulty: Callable[..., Array] | None = None) -> dict[str, Array]:
    """Every intermediate by tensor name; the call of `node` is `faulty`."""
    graph = subject.model.graph
    values: dict[str, Array] = {}
    order = iter(graph.nodes)

    def run(name: str, *inputs: Array, **kwargs: Any) -> Array:
        return (faulty if next(order).name == node and faulty else RUN[name])(*inputs, **kwargs)

    table = {name: part(run, name) for name in RUN}
    execute(graph, subject.window, table, lambda n, value: values.__setitem__(f"window0.{n.name}", value))
    return {name: np.ascontiguousarray(value) for name, value in values.items()}


def compare(subject: Subject, arrays: Mapping[str, Array], folder: Path, **settings: Any) -> diff.Report:
    path = folder / "other.safetensors"
    safetensors.numpy.save_file(dict(arrays), path)
    golden = sides.open_golden(subject.trace, str(subject.weights))
    return diff.compare(golden, sides.open_other(path, golden), Settings(**settings))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_at_its_node_and_named(subjects: Mapping[str, Subject], tmp_path: Path, name: str):
    fault = FAULTS[name]
    report = compare(subjects[fault.model], execution(subjects[fault.model], fault.node, fault.run), tmp_path)
    assert report.first is not None, "the fault changes nothing on this image"
    assert report.first.node == fault.node
    assert report.explanation is not None
    assert any(fault.cause in name for name in report.explanation.names()[:2]), report.explanation


def test_the_faults_cover_what_the_workbench_promises():
    words = " ".join(fault.cause for fault in FAULTS.values())
    for word in (
        *("half to even", "half away", "toward zero", "floor", "double", "wraps", "32-bit rec", "31-bit rec", "8-bit"),
        *("I_0", "unsigned", "transposed", "(1,0,2)", "endianness", "bias", "off by one", "INT16", "INT32"),
        *("gemmlowp", "channel 0", "modulo 32", "pairs", "not cleared", "last 16", "twice", "ReLU"),
        *("DSP packing", "-128 times", "first 16 terms", "first 16 channels", "tiles of 8 x 8", "sign", "other axis"),
    ):
        assert word in words
    assert len(FAULTS) >= 20


@pytest.mark.parametrize("model", ["intseg", "i-vit"])
def test_one_wrong_bit_is_found_at_any_node(subjects: Mapping[str, Subject], tmp_path: Path, model: str):
    subject = subjects[model]
    right = execution(subject)
    source = np.random.default_rng(1)
    for node in subject.model.graph.nodes[::3]:
        wrong = dict(right)
        array = wrong[f"window0.{node.name}"].copy()
        at = tuple(int(source.integers(n)) for n in array.shape)
        array[at] ^= 1 << int(source.integers(7))
        wrong[f"window0.{node.name}"] = array
        report = compare(subject, wrong, tmp_path, seconds=0.02)
        assert report.first is not None
        assert (report.first.node, report.first.index, report.first.count) == (node.name, at, 1)
        assert (report.first.expected, report.first.found) == (right[f"window0.{node.name}"][at], array[at])
        assert report.explanation is None or not report.explanation.matches


def test_the_real_value_and_the_histogram(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["intseg"]
    arrays = execution(subject)
    name = f"window0.{B0}attn.q"  # a node that only moves values: its scale is that of the product before it
    arrays[name] = arrays[name].copy()
    arrays[name][1, 2, 3:6] ^= np.array([1, 1, 4], np.int8)
    first = compare(subject, arrays, tmp_path, seconds=0.1).first
    assert first is not None
    graph = subject.model.graph
    mult, offset, shift = graph.tensors[graph.node(f"{B0}attn.qkv").scale or ""][:, 0, 16 + 3].tolist()
    assert first.reals[0] == math.ldexp(first.expected * mult + offset, -shift)
    assert first.reals[1] == math.ldexp(first.found * mult + offset, -shift)
    assert sum(count for _, count in first.histogram) == first.count == 3
    assert "axis 0 only at 1" in first.pattern
    assert "axis 2 only 3..5" in first.pattern


def test_a_register_is_named_where_both_sides_have_it(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    file = traces.TensorFile(subject.trace)
    arrays = {name: file.read(name) for name in file.names()}
    for name in ("qkv--acc", "qkv--product", "qkv--rounded", "qkv"):
        arrays[f"window0.{name}"] = arrays[f"window0.{name}"].copy()
        arrays[f"window0.{name}"][3, 4] += 1
    first = compare(subject, arrays, tmp_path, seconds=0.1).first
    assert first is not None
    assert first.register is not None
    assert first.register[:2] == ("acc", (3, 4))


def test_tolerance(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    arrays = execution(subject)
    arrays["window0.head"] = arrays["window0.head"] + np.int16(2)
    assert compare(subject, arrays, tmp_path, lsb=2).equal
    assert not compare(subject, arrays, tmp_path, lsb=1, seconds=0.05).equal


def test_an_unexplained_difference_names_what_explains_a_part(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    arrays = execution(subject, "proj", part(linear, rounding=floor))
    arrays["window0.proj"][0, 0] += 100
    report = compare(subject, arrays, tmp_path, seconds=0.5)
    assert report.explanation is not None
    assert not report.explanation.matches
    best, share = report.explanation.partial[0]
    assert best.name == "round down (floor)"
    assert 0.5 < share < 1
    assert any("% of the wrong elements" in line for line in diff_text.lines(report))


def test_every_hypothesis_can_be_computed(subjects: Mapping[str, Subject]):
    """On every op of three models: nothing but the refusals that the search expects."""
    seen = set()
    for name in ("intseg", "i-vit", "tiny"):
        golden = sides.open_golden(subjects[name].trace, str(subjects[name].weights))
        for node in subjects[name].model.graph.nodes:
            if node.op in seen:
                continue
            seen.add(node.op)
            case = cause.call_of(golden, 0, node)
            assert case is not None
            wrong = evaluate(case).astype(np.int64) + 10**6
            for explanation in (explain(case, wrong, 60, pairs=False), explain(case, wrong, 0.1)):
                assert not explanation.matches
            assert len({h.variant for h in catalogue(case)}) == len(catalogue(case))
    assert len(seen) > 12


def test_mistakes_combine_only_where_they_change_different_things():
    even, wraps = Hypothesis("a", Variant(rounding="half_even")), Hypothesis("b", Variant(overflow="wrap"))
    bias, weight = (Hypothesis("c", Variant(operands=((role, "zero"),))) for role in ("bias", "weight"))
    assert combine([even, wraps]) == Variant(rounding="half_even", overflow="wrap")
    assert combine([even, Hypothesis("d", Variant(rounding="floor"))]) is None
    assert combine([bias, weight]) == Variant(operands=(("bias", "zero"), ("weight", "zero")))
    assert combine([bias, bias]) is None
    assert combine([]) == DEFINITION


@pytest.mark.parametrize("kind", dump.FORMATS)
def test_a_dumped_folder_is_compared(subjects: Mapping[str, Subject], tmp_path: Path, kind: str):
    subject = subjects["tiny"]
    arrays = execution(subject, "qkv", part(linear, bias_factor=0))
    safetensors.numpy.save_file(arrays, tmp_path / "other.safetensors")
    dump.write_folder(tmp_path / "other.safetensors", tmp_path / "d", kind)
    golden = sides.open_golden(subject.trace, str(subject.weights))
    report = diff.compare(golden, sides.open_other(tmp_path / "d", golden))
    assert report.first is not None
    assert report.first.node == "qkv"
    assert report.explanation is not None
    assert report.explanation.names()[0] == "bias missing"


def test_one_tensor_npy_npz_hex(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    arrays = execution(subject, "qkv", part(linear, bias_factor=0))
    wrong = arrays["window0.qkv"]
    np.save(tmp_path / "qkv.npy", wrong)
    np.save(tmp_path / "x.npy", wrong.astype(np.float32))
    np.savez(tmp_path / "some.npz", qkv=wrong)
    (tmp_path / "qkv.hex").write_text("".join(f"{int(v) & 255:02x}\n" for v in wrong.ravel()))
    (tmp_path / "qkv.bin").write_bytes(wrong.tobytes())
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "window0.qkv.npy", wrong)
    golden = sides.open_golden(subject.trace, str(subject.weights))
    for name in ("qkv.npy", "x.npy", "some.npz", "qkv.hex", "qkv.bin", "folder"):
        other = sides.open_other(tmp_path / name, golden, "qkv" if name == "x.npy" else None)
        report = diff.compare(golden, other)
        assert report.explanation is not None, name
        assert report.explanation.names()[0] == "bias missing", name
    with pytest.raises(UsageError, match="--node"):
        sides.open_other(tmp_path / "x.npy", golden)


def test_golden_traces_of_the_twin_are_read(tmp_path: Path):
    golden = sides.open_golden(
        GOLDEN / "traces" / "intseg.wide.safetensors", str(GOLDEN / "models" / "intseg.safetensors")
    )
    model = api.load(GOLDEN / "models" / "intseg.safetensors")
    traces.write(tmp_path / "mine.safetensors", GOLDEN / "images" / "wide.png", model)
    report = diff.compare(golden, sides.open_other(tmp_path / "mine.safetensors", golden))
    assert report.equal
    assert report.compared == 6 * len(model.graph.nodes) + 2
    with pytest.raises(UsageError, match="-w"):
        sides.open_golden(GOLDEN / "traces" / "intseg.wide.safetensors", None)


def test_the_earliest_of_several_differences_counts(tmp_path: Path):
    """Windows one after the other, in each the order of execution, not that of the names."""
    weights, path = GOLDEN / "models" / "intseg.safetensors", GOLDEN / "traces" / "intseg.odd.safetensors"
    golden = sides.open_golden(path, str(weights))
    arrays = safetensors.numpy.load_file(path)
    for name, first in (
        ("merged", ("merged", -1)),
        ("window1.decoder.proj_dec", ("decoder.proj_dec", 1)),
        ("window1.quantize_input", ("quantize_input", 1)),
        ("window0.scores", ("scores", 0)) if "window0.scores" in arrays else ("labels", ("quantize_input", 1)),
        (f"window0.{B1}mlp.act", (f"{B1}mlp.act", 0)),
        (f"window0.{B1}add1", (f"{B1}add1", 0)),
        ("window0.patchify", ("patchify", 0)),
    ):
        arrays[name] = arrays[name] ^ 1
        safetensors.numpy.save_file(arrays, tmp_path / "other.safetensors")
        report = diff.compare(golden, sides.open_other(tmp_path / "other.safetensors", golden), Settings(seconds=0.05))
        assert report.first is not None
        assert (report.first.node, report.first.window) == first
        assert report.explanation is None or not report.explanation.matches


def test_an_image_is_traced_when_it_is_the_golden_side(tmp_path: Path):
    weights, image = GOLDEN / "models" / "intseg.safetensors", GOLDEN / "images" / "small.png"
    golden = sides.open_golden(image, str(weights))
    other = sides.open_other(GOLDEN / "traces" / "intseg.small.safetensors", golden)
    assert diff.compare(golden, other).equal


def test_whole_floats_are_compared_and_said(subjects: Mapping[str, Subject], tmp_path: Path):
    subject = subjects["tiny"]
    arrays = {name: x.astype(np.float32) for name, x in execution(subject).items()}
    report = compare(subject, arrays, tmp_path)
    assert report.equal
    assert "float32" in report.notes[0]
    arrays["window0.qkv"][0, 0] = 300
    first = compare(subject, arrays, tmp_path, seconds=0.1).first
    assert first is not None
    assert first.found == 300


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_wider_integers_and_a_batch_of_one_are_compared_by_value(
    subjects: Mapping[str, Subject], tmp_path: Path, dtype: str
):
    subject = subjects["tiny"]
    arrays = {name: x.astype(dtype)[None] for name, x in execution(subject).items()}
    report = compare(subject, arrays, tmp_path)
    assert report.equal
    assert "batch axis of 1" in report.notes[0]
    assert f"are {dtype}; all values" in report.notes[1]
    arrays["window0.qkv"][0, 0, 0] = 300
    first = compare(subject, arrays, tmp_path, seconds=0.1).first
    assert first is not None
    assert (first.node, first.found) == ("qkv", 300)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.view(np.uint8), "is uint8 with values to 2.., expected int8"),
        (lambda a: a.astype(np.uint64) | 2**63, "is uint64 with values to"),
        (lambda a: a[None, None], "has shape"),
        (lambda a: a[:-1], "has shape"),
        (lambda a: a.T, "has shape"),
        (lambda a: a.astype(np.float32) + 0.5, "expected integers"),
        (lambda a: np.where(a == a.max(), np.nan, a), "nan"),
        (lambda a: np.where(a == a.max(), np.inf, a), "inf"),
        (lambda a: a.astype(np.float64) * 2.0**60, "expected integers"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    subjects: Mapping[str, Subject], tmp_path: Path, change: Callable[[Array], Array], words: str
):
    arrays = execution(subjects["tiny"])
    arrays["window0.qkv"] = np.ascontiguousarray(change(arrays["window0.qkv"]))
    with pytest.raises(InputError, match=words) as error:
        compare(subjects["tiny"], arrays, tmp_path)
    assert "window0.qkv" in str(error.value)


def test_missing_nodes_need_partial(subjects: Mapping[str, Subject], tmp_path: Path):
    arrays = execution(subjects["tiny"], "qkv", part(linear, bias_factor=0))
    del arrays["window0.norm1"]
    with pytest.raises(InputError, match=r"window0\.norm1.*--partial"):
        compare(subjects["tiny"], arrays, tmp_path)
    report = compare(subjects["tiny"], arrays, tmp_path, partial=True)
    assert report.first is not None
    assert report.first.node == "qkv"
    assert any("directly before qkv (norm1)" in note for note in report.notes)
    with pytest.raises(InputError, match="lacks"):
        compare(subjects["tiny"], {"x": np.zeros(1, np.int8)}, tmp_path, partial=True)


@pytest.mark.parametrize(
    "name", ["unsigned shift, LayerNorm", "8-bit Shiftmax", "missing bias, LayerNorm", "I_0 by floor"]
)
def test_a_fault_in_a_node_that_the_other_side_does_not_show(
    subjects: Mapping[str, Subject], tmp_path: Path, name: str
):
    """Only residuals and the scores are seen: the node and the cause are named all the same."""
    fault = FAULTS[name]
    subject = subjects[fault.model]
    arrays = execution(subject, fault.node, fault.run)
    seen = {
        n: x for n, x in arrays.items() if n.endswith(("add1", "add2")) or n == f"window0.{subject.model.graph.output}"
    }
    report = compare(subject, seen, tmp_path, partial=True)
    assert report.first is not None
    assert report.first.node != fault.node
    assert report.explanation is not None
    assert report.explanation.node == fault.node
    assert any(fault.cause in name for name in report.explanation.names()[:2])
    assert any(f"unseen node {fault.node}" in line for line in diff_text.lines(report))


def test_another_model_image_or_format_is_refused(subjects: Mapping[str, Subject], tmp_path: Path):
    tiny = subjects["tiny"]
    golden = sides.open_golden(tiny.trace, str(tiny.weights))
    with pytest.raises(UsageError, match="another model"):
        diff.compare(golden, sides.open_other(subjects["intseg"].trace, golden))
    traces.write(tmp_path / "t.safetensors", 255 - tiny.window, tiny.model)
    with pytest.raises(UsageError, match="another image"):
        diff.compare(golden, sides.open_other(tmp_path / "t.safetensors", golden))
    with pytest.raises(UsageError, match="is a trace of the model"):
        sides.open_golden(tiny.trace, str(subjects["intseg"].weights))
    file = traces.TensorFile(tiny.trace)
    for change, kind in (({"format": 2}, "format"), ({"kind": "model"}, "not a trace")):
        with traces.Writer(tmp_path / "n.safetensors", {**(file.metadata or {}), **change}, file.names()) as writer:
            for name in file.names():
                writer.put(name, file.read(name))
        with pytest.raises(IntsegError, match=kind):
            sides.open_golden(tmp_path / "n.safetensors", str(tiny.weights))


def test_a_golden_trace_that_is_wrong_itself_is_said(subjects: Mapping[str, Subject], tmp_path: Path):
    tiny = subjects["tiny"]
    file = traces.TensorFile(tiny.trace)
    with traces.Writer(tmp_path / "bad.safetensors", file.metadata, file.names()) as writer:
        for name in file.names():
            writer.put(name, file.read(name) + (1 if name == "window0.qkv" else 0))
    golden = sides.open_golden(tmp_path / "bad.safetensors", str(tiny.weights))
    report = diff.compare(golden, sides.open_other(tiny.trace, golden))
    assert report.explanation is None
    assert any("does not follow the definition at qkv" in note for note in report.notes)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("qkv.npy", b"hello"),
        ("qkv.npy", b"PK\x03\x04 no zip"),
        ("a.npz", b"PK\x03\x04 no zip"),
        ("a.npz", b""),
        ("qkv.hex", b"zz"),
        ("qkv.hex", b"\xff\xfe"),
        ("qkv.bin", b"1"),
        ("t.safetensors", b"\0" * 100),
    ],
)
def test_files_that_are_something_else(subjects: Mapping[str, Subject], tmp_path: Path, name: str, data: bytes):
    golden = sides.open_golden(subjects["tiny"].trace, str(subjects["tiny"].weights))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name.replace(".", "[.]")):
        sides.open_other(tmp_path / name, golden)


def test_big_endian_arrays_are_the_same_numbers(subjects: Mapping[str, Subject], tmp_path: Path):
    arrays = execution(subjects["tiny"])
    np.savez(tmp_path / "a.npz", **{name: x.astype(x.dtype.newbyteorder(">")) for name, x in arrays.items()})
    golden = sides.open_golden(subjects["tiny"].trace, str(subjects["tiny"].weights))
    assert diff.compare(golden, sides.open_other(tmp_path / "a.npz", golden)).equal


@pytest.fixture
def files(subjects: Mapping[str, Subject], tmp_path: Path) -> list[str]:
    subject = subjects["tiny"]
    safetensors.numpy.save_file(execution(subject, "qkv", part(linear, bias_factor=0)), tmp_path / "other.safetensors")
    return [str(subject.trace), str(tmp_path / "other.safetensors"), "-w", str(subject.weights)]


def test_the_command_prints_all_and_exits_with_1(files: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["diff", *files]) == 1
    out = capsys.readouterr().out
    for words in ("node qkv (linear)", "first index [", "expected", "found", "0x", "elements differ", "bias missing"):
        assert words in out
    assert cli.main(["diff", files[0], files[0], *files[2:]]) == 0
    assert "equal:" in capsys.readouterr().out


def test_json(files: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["diff", *files, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"]["node"] == "qkv"
    assert found["cause"]["exact"][0] == ["bias missing"]
    assert found["first"]["expected"]["decimal"] != found["first"]["found"]["decimal"]
    assert {entry["tensor"] for entry in found["others"]} >= {"window0.q"}


def test_without_the_model_the_node_is_found_but_no_cause(files: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(["diff", *files[:2]]) == 1
    out = capsys.readouterr().out
    assert "node qkv" in out
    assert "cause:" not in out
    assert "-w" in out


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["diff", "GOLDEN", "no.safetensors"], 4),
        (["diff", "no.safetensors", "GOLDEN"], 4),
        (["diff", "GOLDEN", "GOLDEN", "-w", "no"], 4),
        (["diff", "GOLDEN", "GOLDEN", "--lsb", "-1"], 2),
        (["diff", "GOLDEN", "TEXT"], 4),
        (["diff", "GOLDEN", "EMPTY"], 4),
        (["diff", "GOLDEN", "GOLDEN", "--html", "no/where.html"], 4),
    ],
)
def test_bad_command_lines(
    subjects: Mapping[str, Subject], tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int
):
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty").mkdir()
    names = {
        "GOLDEN": str(subjects["tiny"].trace),
        "TEXT": str(tmp_path / "text.safetensors"),
        "EMPTY": str(tmp_path / "empty"),
    }
    assert cli.main([names.get(word, word) for word in argv]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
