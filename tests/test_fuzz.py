"""tests/trust/fuzz.py: spoiled files by the thousand leave nothing but IntsegErrors, and planted bugs are found."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import fuzz as tool
import numpy as np
import pytest
from graphs import tiny, with_info, with_node
from hostile import weights
from hostile.cases import KINDS, drawn
from hostile.graphs import graphs
from hostile.images import image_bases
from hostile.packs import pack_bases
from hostile.plants import PLANTS as ALL_PLANTS
from hostile.spoil import joined, split, spoil_header
from hostile.traces import dump_bases, table_bases, trace_parts
from PIL import Image

from intseg import api, store
from intseg.batch import compare, journal, sources
from intseg.cli import main as cli
from intseg.conformance import verify
from intseg.errors import MAX_MESSAGE, InputError, IntsegError, ModelError
from intseg.graph import MAX_NODES, Graph, Node, validate
from intseg.images import labels as label_images
from intseg.images import overlay as overlays
from intseg.reports import card
from intseg.workbench import dump, sides
from intseg.workbench import trace as traces

ROOT = Path(__file__).parent.parent
FUZZ = ROOT / "tests" / "trust" / "fuzz.py"


def fuzz(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a run. The limit is CPU time, and generous: this machine may be slow."""
    command = [sys.executable, str(FUZZ), "--json", "--limit", "10", "--shrink", "0.2", "--out", str(folder / "out")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_spoiled_files_are_read_or_refused(tmp_path: Path):
    code, found = fuzz(tmp_path, "--count", "4000", "--seed", "1")
    assert not found["failures"], found["failures"]
    assert code == 0
    kinds: Counter[str] = Counter()
    reached: Counter[tuple[str, str, str]] = Counter()
    for kind, outcome, stage, count in found["stages"]:
        kinds[kind] += count
        reached[kind, outcome, stage] += count
    assert set(kinds) == set(KINDS)
    assert sum(kinds.values()) + found["same"] == 4000
    # The mutations go deep: every check of weights refuses some, and some run.
    for stage in ("header", "metadata", "graph validation"):
        assert reached["weights", "refused", stage] > 30
    assert reached["weights", "accepted", "accepted and run"] > 20
    for kind in kinds:
        assert sum(count for (k, outcome, _), count in reached.items() if k == kind and outcome == "accepted"), kind


def test_a_file_counts_once(tmp_path: Path):
    """Contents that were read before are told from new ones, of whatever worker."""
    code, found = fuzz(tmp_path, "--count", "3000", "--seed", "2", "--kind", "text", "--recycle", "1500")
    assert code == 0
    texts = Counter(repr(drawn(2, i, ("text",)).files()) for i in range(3000))
    assert found["files"] + found["same"] == 3000
    assert abs(found["files"] - len(texts)) < 5  # what is nested to Python's limit depends on the depth of the stack
    assert len(texts) < 2900


def test_a_seed_is_always_the_same_files():
    kinds = tuple(KINDS)
    first = [drawn(3, i, kinds).files() for i in range(150)]
    for base in (image_bases, dump_bases, table_bases, pack_bases, graphs, weights._documents, trace_parts):
        base.cache_clear()
    assert [drawn(3, i, kinds).files() for i in range(150)] == first
    assert [drawn(4, i, kinds).files() for i in range(150)] != first


PLANTS = {
    "weights": {"exception": ("weights", "KeyError"), "bits": ("weights", "Disagreement")},
    "the rest": {
        "message": ("dump", "BadMessage"),
        "hang": ("text", "Hang"),
        "memory": ("dump", "MemoryError"),
        "path": ("folder", "/etc/passwd"),
        "pickle": ("cache", "pickle.find_class"),
    },
}
"""What breaks the readers in one run: no plant hides another. The kind where it is noticed, and a word of how."""


@pytest.mark.parametrize("group", PLANTS)
def test_planted_bugs_are_found(group: str, tmp_path: Path):
    """An exception, different bits, a message, a loop, an allocation, a path, an unpickled class: each is noticed."""
    plants = PLANTS[group]
    options = [word for name in plants for word in ("--plant", name)]
    options += [word for kind, _ in plants.values() for word in ("--kind", kind)]
    code, found = fuzz(tmp_path, "--count", "250", "--seed", "5", "--limit", "0.4", "--shrink", "0.2", *options)
    assert code == 1
    assert found["files"] + found["same"] == 250
    smaller = Counter[str]()
    for plant, (kind, word) in plants.items():
        mine = [f for f in found["failures"] if f["kind"] == kind and word in f["key"] + f["error"]]
        assert mine, (plant, found["failures"])
        for failure in mine:
            whole, less = (_size(Path(failure["folder"]) / name) for name in ("files", "smaller"))
            assert 0 <= less <= whole
            smaller[plant] += less < whole
    assert group == "weights" or smaller["pickle"]  # its reads are quick: there is time to make the file smaller


def _size(folder: Path) -> int:
    assert folder.is_dir()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_every_plant_is_looked_for():
    assert {name for plants in PLANTS.values() for name in plants} | {"crash", "unbuilt"} == set(ALL_PLANTS)


def test_a_crash_is_found(tmp_path: Path):
    """A worker that dies is a failure; what it had counted stays, and the files after it are read."""
    code, found = fuzz(tmp_path, "--count", "60", "--seed", "8", "--plant", "crash", "--kind", "trace")
    assert code == 1
    assert [failure["key"] for failure in found["failures"]] == ["trace crash -6"]
    assert found["files"] + found["same"] == 60
    assert sum(count for *_, count in found["stages"]) == found["files"]
    assert found["failures"][0]["index"] > 0  # files of the worker that died are among the 60


def test_a_file_that_cannot_be_made_is_found(tmp_path: Path):
    """A slip of the fuzzer itself is a failure and not the end of the campaign."""
    code, found = fuzz(tmp_path, "--count", "60", "--plant", "unbuilt", "--kind", "folder")
    assert code == 1
    assert found["files"] + found["same"] == 60
    (failure,) = found["failures"]
    assert failure["error"] == "ZeroDivisionError: a mutation that cannot be made"
    assert (Path(failure["folder"]) / "failure.json").is_file()


def test_the_table_of_the_page_is_that_of_the_counts() -> None:
    page = (ROOT / "docs" / "TRUST.md").read_text(encoding="utf-8")
    for line in "\n".join(tool.table(*tool.summed([ROOT / "docs" / "fuzz.json"]))).splitlines():
        assert line in page


def test_campaigns_are_summed() -> None:
    path = ROOT / "docs" / "fuzz.json"
    (one, seconds), (two, both) = tool.summed([path]), tool.summed([path, path])
    assert (two.files, two.same, both) == (2 * one.files, 2 * one.same, 2 * seconds)
    assert two.stages == Counter({key: 2 * n for key, n in one.stages.items()})
    assert (two.memory, two.slowest) == (one.memory, one.slowest)


KEPT = """
import gc, sys, tempfile, weakref
from pathlib import Path
sys.path[:0] = sys.argv[1:]
import guard
from intseg.errors import IntsegError

class Decoded: ...

kept = []

def read(place, files):
    decoded = Decoded()
    kept.append(weakref.ref(decoded))
    raise IntsegError("no")

guard.KINDS["record"] = type("Kind", (), {"held": True, "stages": (), "read": staticmethod(read)})
gc.disable()
found = guard.Guard(Path(tempfile.mkdtemp()), 60, 0).read("record", {})
assert found == ("read", "refused", None), found
assert kept[0]() is None
"""


def test_what_a_refused_file_held_is_gone_before_the_next() -> None:
    """Or the next one meets a limit of memory that it did not reach."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT, str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "trust")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_node_whose_op_is_no_text_is_spoiled():
    for op in ({}, [], None, 3):
        for seed in range(200):
            document = {"nodes": [{"name": "a", "op": op, "attrs": {"out": "int8"}, "inputs": ["a"], "shape": [1]}]}
            weights._spoil_node(document, Random(seed))


def test_a_header_spoiled_twice():
    """A change of the header on top of one that left no dictionary, or an entry that is none."""
    for header in ({}, {"a": 5}, {"a": None, "b": []}, {"__metadata__": {}}, {"a": "x", "__metadata__": 3}):
        for seed in range(300):
            spoil_header(json.loads(json.dumps(header)), Random(seed))


# ------------------------------------------------------------------------------------------- what the campaign found


@pytest.mark.parametrize("blank", "\x1c\x1f\x85\u2003")
def test_blanks_around_numbers(blank: str):
    """Python's int() takes fewer characters for blanks than strip(): a ValueError left the label map."""
    assert label_images.stored_values(("a",), mapping=f"{blank}a{blank}={blank}7{blank}").tolist() == [7]
    assert dump._axes(f"1{blank},{blank}0", 2) == (1, 0)


DEEP = "[" * 990 + "]" * 990


@pytest.mark.parametrize("text", [DEEP, '{"a": ' + DEEP + "}", "[1e999]", "NaN"], ids=lambda t: "text")
def test_documents_nested_too_deeply(text: str, tmp_path: Path):
    """Every reader of JSON: RecursionError and ValueError escaped."""
    store.save(tiny(), tmp_path / "model.safetensors")
    model = api.load(tmp_path / "model.safetensors")
    for name in ("config.json", "manifest.json", "runner.json", "map.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "journal").write_text(f"{text}\n")
    header = json.dumps({"__metadata__": {"intseg": text}}).encode()
    (tmp_path / "trace").write_bytes(len(header).to_bytes(8, "little") + header)
    reads: list[Callable[[], object]] = [
        lambda: dump.open_folder(tmp_path),
        lambda: verify.verify(tmp_path),
        lambda: label_images.stored_values(("a",), mapping=str(tmp_path / "map.json")),
        lambda: compare.read_earlier(tmp_path / "map.json", ("a",)),
        lambda: card._read_metrics(model, str(tmp_path / "map.json")),
        lambda: traces.TensorFile(tmp_path / "trace"),
        lambda: store.load(tmp_path / "trace"),
        lambda: dump._decode(text.encode(), "json", "int8", (1,), dump.Options()),
    ]
    for read in reads:
        with pytest.raises(IntsegError):
            read()
    (tmp_path / "journal").write_text(f'{{"intseg batch": {journal.FORMAT}}}\n{text}\n')
    assert journal.read(tmp_path / "journal", "batch")[1] == {}


def test_a_journal_line_that_cannot_be_written_again(tmp_path: Path):
    """Numbers beyond a double were taken over, and failed when the record was written."""
    with journal.Journal(tmp_path / "j", "batch", {}) as book:
        book.add("a.png", {})
    with (tmp_path / "j").open("a") as file:
        file.write(f'{{"of": "{book.mark}", "item": "b.png", "record": {{"ms": 1e999}}}}\n')
    assert set(journal.read(tmp_path / "j", "batch")[1]) == {"a.png"}


def npy(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + body


@pytest.mark.parametrize(
    "data",
    [
        npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }"),
        npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (4,), }", bytes(7)),
        npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (-4,), }", bytes(8)),
        npy(b"{'descr': ('<i2', (9999999,)), 'fortran_order': False, 'shape': (1,), }", bytes(2)),
        npy(b"{'descr': 'O', 'fortran_order': False, 'shape': (1,), }", bytes(8)),
        npy(b"(" * 5000),
        npy(b"{'a': " * 100),
        npy(b"9" * 9000),
        b"",
    ],
    ids=lambda _: "npy",
)
def test_npy_headers_that_lie(data: bytes):
    """np.load allocates what the header claims, and raises TokenError, OverflowError, MemoryError."""
    with pytest.raises(InputError):
        dump.read_npy(data)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_numbers(order: str, tmp_path: Path):
    array = np.asarray(np.arange(12).reshape(3, 4), np.int16, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    found = dump.read_npy((tmp_path / "a.npy").read_bytes())
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


def test_an_npz_that_grows(tmp_path: Path):
    """A kilobyte that holds a megabyte is refused before it is unpacked, and so is a packing nobody asked for."""
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**20, np.int8))
    with pytest.raises(InputError, match="expected at most 8"):
        dump.read_npz(tmp_path / "a.npz", {"a": 8})
    assert dump.read_npz(tmp_path / "a.npz", {}) == {}
    assert dump.read_npz(tmp_path / "a.npz", {"a": 2**20})["a"].size == 2**20
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.rindex(b"PK\x01\x02") + 20  # the packed size in the directory
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match="more than the file"):
        dump.read_npz(tmp_path / "a.npz", {"a": 2**20})
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", b"")
    with pytest.raises(InputError, match="unknown way"):
        dump.read_npz(tmp_path / "b.npz", {"a": 8})


def dumped(folder: Path, kind: str = "hex") -> dict[str, Any]:
    """A dump of one tensor; its manifest."""
    with traces.Writer(folder / "t", None, ["a"]) as writer:
        writer.put("a", np.arange(12, dtype=np.int8).reshape(3, 4))
    dump.write_folder(folder / "t", folder / "d", kind)
    found: dict[str, Any] = json.loads((folder / "d" / "manifest.json").read_text())
    return found


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("options", {"width": 8.0}),
        ("options", {"per_word": True}),
        ("options", {"order": 5}),
        ("options", {"order": "9" * 5000}),
        ("options", {"order": "0,0"}),
        ("options", {"tile": [1]}),
        ("options", {"tile": "12"}),
        ("options", {"tile": [2**40, 2**40]}),
        ("options", {"\0": 1}),
        ("entry", {"file": ".."}),
        ("entry", {"file": "a\0b"}),
        ("entry", {"file": "\ud800"}),
        ("entry", {"file": "/etc/passwd"}),
        ("entry", {"shape": {}}),
        ("entry", {"shape": [1] * 70}),
        ("entry", {"shape": [0, 2**70]}),
    ],
    ids=lambda v: str(v)[:30].encode("ascii", "backslashreplace").decode().replace("\0", "0"),
)
def test_manifests_of_dumps(part: str, change: dict[str, Any], tmp_path: Path):
    document = dumped(tmp_path)
    (document["options"] if part == "options" else document["tensors"]["a"]).update(change)
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        dump.read_folder(tmp_path / "d", tmp_path / "back")
    assert str(caught.value).isprintable()


def test_words_that_are_not_written_out():
    """Two bytes of text may stand for one word of any size: not for a megabit."""
    options = dump.Options(width=1024, per_word=1024)
    with pytest.raises(InputError, match="digits are missing"):
        dump._decode(b"0 " * 100, "hex", "int8", (100 * 1024,), options)


def test_a_palette_line_of_blanks_takes_no_time(tmp_path: Path):
    """A regular expression tried every blank with every other: minutes for 30,000 of them."""
    (tmp_path / "p.txt").write_text("a" + " " * 200_000 + "b\n")
    with pytest.raises(InputError, match="line 1"):
        overlays.palette(str(tmp_path / "p.txt"), ("a",), ((0, 0, 0),))
    (tmp_path / "p.txt").write_text("x" * 50_000 + " 1 2 3\n")
    with pytest.raises(InputError, match="no class") as caught:
        overlays.palette(str(tmp_path / "p.txt"), ("a",), ((0, 0, 0),))
    assert len(str(caught.value)) < 500


def test_a_list_with_a_null_byte(tmp_path: Path):
    (tmp_path / "l.txt").write_bytes(b"a\0b.png\n")
    with pytest.raises(InputError, match="not a text file"):
        sources.find_sources([f"@{tmp_path / 'l.txt'}"])


def test_a_trace_that_does_not_fit_its_model(tmp_path: Path):
    """Shapes, dtypes and scales of a golden trace were believed until something failed."""
    store.save(tiny(), tmp_path / "m")
    model = api.load(tmp_path / "m")
    traces.write(tmp_path / "t", np.zeros((8, 8, 3), np.uint8), model)
    file = traces.TensorFile(tmp_path / "t")
    held = {name: file.read(name) for name in file.names()}
    for name, array in (
        ("window0.norm", held["window0.norm"][:2]),
        ("window0.norm", held["window0.norm"].astype(np.int16)),
        ("window0.norm", held["window0.norm"].astype(np.float32)),
        ("window0.image", held["window0.image"][:2]),
        ("scale.embed", np.ones((2, 1, 1), np.int32)),
        ("scale.embed", np.ones((3, 1, 1), np.int64)),
        ("merged", held["merged"].astype(np.float32)),
    ):
        with traces.Writer(tmp_path / "bad", file.metadata, list(held)) as writer:
            for key, value in held.items():
                writer.put(key, array if key == name else value)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            sides.open_golden(tmp_path / "bad", str(tmp_path / "m"))
    assert traces.real(np.array([1, 0, -(2**31) + 1], np.int32).reshape(3, 1), (0,), 5) is None


def test_text_of_a_model():
    long = with_info(tiny(), name="x" * 1001)
    with pytest.raises(ModelError, match="1001 characters"):
        validate(long)
    with pytest.raises(ModelError, match="surrogate"):
        validate(with_info(tiny(), classes=("a", "b", "\ud800")))


def test_messages_are_one_short_line():
    evil = "\x1b]0;title\x07\x9b2J\u202e\rroad\n"
    named = [with_info(tiny(), **{key: evil}) for key in ("name", "source", "recipe")]
    named.append(with_info(tiny(), classes=tuple(f"{evil}{i}" for i in range(3))))
    for graph in (with_node(tiny(), "embed", op="a\nb\x1b[2J"), with_node(tiny(), "embed", op="x" * 10**6), *named):
        with pytest.raises(ModelError) as caught:
            validate(graph)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= MAX_MESSAGE


@pytest.mark.parametrize("command", ["infer", "eval", "inspect", "profile", "batch"])
def test_names_in_a_model_move_no_cursor(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Names of a model, and of files, went to the terminal as they were: a title, a line deleted, text hidden."""
    evil = "\u2028\u202e\u2066road\u2029"  # control characters are refused: test_messages_are_one_short_line
    classes = tuple(f"{evil}{i}" for i in range(3))
    graph = with_info(tiny(), name=evil, source=evil, recipe=evil, classes=classes)
    store.save(graph, tmp_path / "m.safetensors")
    image = tmp_path / "a\x1b[2J.png"
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for path in (image, tmp_path / "images" / "b\x1b[2J.png", tmp_path / "labels" / "b\x1b[2J.png"):
        Image.fromarray(np.zeros((8, 8) if "labels" in str(path) else (8, 8, 3), np.uint8)).save(path)
    (tmp_path / "images" / "broken\x1b[2J.png").write_bytes(b"")
    weights, backend = ["-w", str(tmp_path / "m.safetensors")], ["--backend", "numpy"]
    words = {
        "infer": ["infer", str(image), *weights, *backend],
        "eval": ["eval", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels"), *weights],
        "inspect": ["inspect", weights[1]],
        "profile": ["profile", str(image), *weights, *backend],
        "batch": ["infer", str(tmp_path / "images"), *weights, *backend, "-o", str(tmp_path / "out")],
    }[command]
    if command == "eval":
        (tmp_path / "images" / "broken\x1b[2J.png").unlink()
        words += backend
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code == (4 if command == "batch" else 0), err
    assert "road" in out or "broken" in err
    for line in (out + err).split("\n"):
        assert line.isprintable(), line


def test_limits_of_a_graph():
    """Valid axes alone allow 2^48 elements and years of work."""
    graph = tiny()
    copies = tuple(Node(f"n{i}", "patchify", ("input",), {}, {"patch": 4}, "int8", (4, 48)) for i in range(MAX_NODES))
    with pytest.raises(ModelError, match=f"expected at most {MAX_NODES}"):
        validate(Graph((*graph.nodes, *copies), graph.tensors, graph.output, graph.info))
    last, nodes = "scores", list(graph.nodes)
    for i in range(3):
        shape = (2 * 64 ** (i + 1), 2 * 64 ** (i + 1), 3)
        nodes.append(Node(f"up{i}", "upsample_nearest", (last,), {}, {"factor": 64}, "int16", shape))
        last = f"up{i}"
    with pytest.raises(ModelError, match=r"up2.*2\^30 elements"):
        validate(Graph(tuple(nodes), graph.tensors, graph.output, graph.info))
    wide = nodes[: len(graph.nodes) + 2]
    count = math.ceil(2**44 / (8192 * 8192 * 3))
    assert count > MAX_NODES  # the work limit needs products, here the sum of elements stays below it
    validate(Graph(tuple(wide), graph.tensors, graph.output, graph.info))


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        ("upsample_nearest", "factor", 10**9),
        ("upsample_bilinear", "row_stop", 2**40),
        ("linear", "out", "float32"),
        ("matmul", "transpose_b", 2),
        ("class_map", "height", 2**40),
        ("class_map", "upsample", "cubic"),
        ("merge_scores", "height", 60_000),
        ("cut_windows", "patch", 0),
        ("shiftmax", "i0", 0),
    ],
)
def test_attributes_of_op_cases(op: str, name: str, value: int | str):
    """Kernels do not check what they are given: a pack does before it runs them."""
    files = next(files for files in pack_bases() if f"ops/{op}.safetensors" in files)
    header, body = split(files[f"ops/{op}.safetensors"])
    document = json.loads(header["__metadata__"]["intseg"])
    document["attrs"][0][name] = value
    header["__metadata__"]["intseg"] = json.dumps(document)
    with pytest.raises(InputError, match="not a file of op cases"):
        verify.read_op_file(Path("x"), joined(header, body))


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"file": []}},
        {"files": {"a": 5}},
        {"digest": 3},
        {"ops": [{"op": "linear", "file": "model.safetensors", "cases": 0}] * 2},
        {"files": {"a\0b": "0"}},
        {"files": {"\ud800": "0"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_lists_of_packs(change: dict[str, Any], tmp_path: Path):
    files = pack_bases()[0]
    document = json.loads(files["runner.json"]) | change
    for name, data in {**files, "runner.json": json.dumps(document).encode()}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError):
        verify.verify(tmp_path, ("numpy",))


def test_a_golden_folder_with_an_odd_name(tmp_path: Path):
    files = pack_bases()[-1]
    document = json.loads(files["MANIFEST.json"])
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "x").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    document["files"]["traces/x"] = {"sha256": empty}
    for name, data in {**files, "MANIFEST.json": json.dumps(document).encode()}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="no name of a trace"):
        verify.verify(tmp_path, ("numpy",))
