"""What a model holds: counts checked against the arrays themselves, drawings that are well formed for any names."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import graphs
import numpy as np
import pytest
import safetensors.numpy

import intseg
from intseg import api, store
from intseg.cli import main as cli
from intseg.errors import UsageError
from intseg.executor import execute
from intseg.graph import IMAGE
from intseg.ops import RUN
from intseg.reports import graph_drawing as drawing
from intseg.reports import inspect as inspect_model
from intseg.reports.markup import number

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "golden" / "models" / "intseg.safetensors"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def tiny(tmp_path: Path) -> api.Model:
    """The hand-made graph as a file."""
    store.save(graphs.tiny(), tmp_path / "w.safetensors")
    return intseg.load(tmp_path / "w.safetensors")


# --------------------------------------------------------------------------------------------------------- counts


def test_macs_are_counted_by_hand(tiny: api.Model) -> None:
    found = {row.name: row.macs for row in inspect_model.rows(tiny.graph) if row.macs}
    assert found == {
        "embed": 4 * 4 * 48,
        "qkv": 5 * 12 * 4,
        "qk": 2 * 5 * 5 * 2,
        "av": 2 * 5 * 2 * 5,
        "head": 4 * 3 * 4,
    }


def test_a_row_says_what_a_node_reads_and_writes(tiny: api.Model) -> None:
    rows = {row.name: row for row in inspect_model.rows(tiny.graph)}
    assert rows["input"].inputs == ("uint8 [8, 8, 3]",)
    assert (rows["tokens"].inputs, rows["tokens"].output) == (("int16 [1, 4]", "int16 [4, 4]"), "int16 [5, 4]")
    assert (rows["tokens"].parameters, rows["tokens"].parameter_bytes) == (4, 8)
    embed = rows["embed"]
    assert (embed.parameters, embed.parameter_bytes) == (4 * 48 + 4 * 3, 4 * 48 + 4 * (4 + 4 + 1))
    assert embed.output_bytes == 4 * 4 * 2


def test_totals_count_every_byte_once(tiny: api.Model) -> None:
    found = inspect_model.totals(tiny.graph)
    assert found.parameter_bytes + found.scale_bytes == sum(t.nbytes for t in tiny.graph.tensors.values())
    assert found.scale_bytes == sum(tiny.graph.tensors[name].nbytes for name in ("scale", "pos.scale"))
    assert found.parameters == sum(entry["elements"] for entry in found.precision.values())
    assert list(found.precision) == ["int8", "int16", "int32", "int64"]


def test_fewer_bits_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    """Of the golden model with mixed bits: size, BitOps and traffic from the file and the nodes alone."""
    model = intseg.load(ROOT / "golden" / "models" / "bits.safetensors")
    graph, rows = model.graph, {row.name: row for row in inspect_model.rows(model.graph)}
    found = inspect_model.totals(graph)
    stored = store.from_file(safetensors.numpy.load(model.path.read_bytes()))
    scales = {node.scale for node in graph.nodes}
    assert found.parameter_bytes == sum(array.nbytes for name, array in stored.items() if name not in scales)
    bits = {f"{name}.weight": row.bits[1] for name, row in rows.items() if row.op == "linear"}
    assert {name: n for name, n in bits.items() if n < 8} == dict(graph.packed)
    assert set(graph.packed.values()) == {2, 3, 4, 5, 6, 7}
    fc2 = rows["encoder.blocks.0.mlp.fc2"]
    table = graph.tensors["encoder.blocks.0.mlp.act.table"]
    assert fc2.bits[0] == max(4, max(int(table.max()), ~int(table.min())).bit_length() + 1) < 8
    assert fc2.bitops == fc2.macs * fc2.bits[0] * fc2.bits[1]
    norm, qkv = graph.node("encoder.blocks.0.norm1"), rows["encoder.blocks.0.attn.qkv"]
    assert qkv.bits[0] == int(str(norm.attrs["out"]).removeprefix("int"))
    assert found.bitops == sum(row.bitops for row in rows.values())
    moved = (
        8 * 3 * math.prod(graph.info.window)
    )  # the image; then every output, once written and as often as it is read
    for node in graph.nodes:
        readers = sum(later.inputs.count(node.name) for later in graph.nodes)
        kind = re.match(r"u?int(\d+)", rows[node.name].output)
        assert kind
        moved += math.prod(node.shape) * int(kind[1]) * (1 + readers)
    assert found.traffic_bits == moved + 8 * found.parameter_bytes


def test_the_peak_is_what_the_executor_holds() -> None:
    graph = graphs.tiny()
    alive: dict[str, int] = {IMAGE: 8 * 8 * 3}
    peak = 0

    def keep(node: inspect_model.Node, value: np.ndarray) -> None:
        nonlocal peak
        alive[node.name] = value.nbytes
        peak = max(peak, sum(alive.values()))
        position = graph.nodes.index(node)
        for name in list(alive):
            if not any(name in later.inputs for later in graph.nodes[position + 1 :]) and name != graph.output:
                del alive[name]

    execute(graph, graphs.image(), RUN, keep)
    assert inspect_model.totals(graph).peak_bytes == peak


@pytest.mark.parametrize("by", ["block", "op"])
def test_groups_add_up_to_the_nodes(by: str) -> None:
    rows = inspect_model.rows(intseg.load(SMALL).graph)
    groups = inspect_model.grouped(rows, by)
    assert len(groups) < len(rows)
    for column in ("parameters", "parameter_bytes", "macs", "bitops", "output_bytes"):
        assert sum(getattr(row, column) for row in groups) == sum(getattr(row, column) for row in rows)
    assert inspect_model.grouped(rows, "node") == rows
    with pytest.raises(UsageError, match="expected node, block, op"):
        inspect_model.grouped(rows, "colour")


# ------------------------------------------------------------------------------------------------------- drawings


def names_in(svg: str) -> list[str]:
    texts = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return [text.text or "" for text in texts]


def test_equal_blocks_are_drawn_once() -> None:
    model = intseg.load()
    texts = names_in(drawing.svg(model))
    assert texts.count("encoder.blocks.0 to 11") == 1
    assert texts.count("12 blocks of 16 nodes") == 1
    assert texts.count("attn.softmax") == 2  # once for the encoder, once for the decoder
    single = {node.name for node in model.graph.nodes if "blocks" not in node.name}
    assert single <= set(texts)


def test_different_blocks_stay_apart() -> None:
    graph = intseg.load(SMALL).graph
    blocks = [run for run in drawing._runs(graph) if "blocks" in run[0]]
    assert all(len(run) > 1 for run in blocks[:1])
    name = blocks[0][-1]
    nodes = tuple(dataclasses.replace(n, op="sigmoid_gelu") if n.name == f"{name}.mlp.act" else n for n in graph.nodes)
    changed = drawing._runs(dataclasses.replace(graph, nodes=nodes))
    assert [name] in changed


def test_boxes_do_not_overlap_and_edges_meet_them() -> None:
    graph = intseg.load(SMALL).graph
    panel = drawing._overview(graph, drawing._runs(graph))
    sizes = {name: drawing._size(box) for name, box in panel.boxes.items()}
    order = drawing._topological(list(sizes), panel.edges)
    layout = drawing.layered({name: sizes[name] for name in order}, panel.edges)
    boxes = [(*layout.centres[name], *sizes[name]) for name in order]
    for i, (x, y, width, height) in enumerate(boxes):
        assert x - width / 2 > -0.01
        assert x + width / 2 <= layout.width + 0.01
        for x2, y2, width2, height2 in boxes[i + 1 :]:
            assert abs(x - x2) >= (width + width2) / 2 - 0.01 or abs(y - y2) >= (height + height2) / 2 - 0.01
    for (source, target), route in layout.routes.items():
        assert route[0][1] == pytest.approx(layout.centres[source][1] + sizes[source][1] / 2)
        assert route[-1][1] == pytest.approx(layout.centres[target][1] - sizes[target][1] / 2)
        assert all(a[1] <= b[1] for a, b in itertools.pairwise(route))


def test_the_order_of_layers_uncrosses_edges() -> None:
    boxes = dict.fromkeys("abcd", (10.0, 10.0))
    layout = drawing.layered(boxes, [("a", "d"), ("b", "c")])
    assert (layout.centres["a"][0] < layout.centres["b"][0]) == (layout.centres["d"][0] < layout.centres["c"][0])


def test_hostile_names_are_text(tiny: api.Model) -> None:
    info = dataclasses.replace(tiny.info, name='</title><script>x</script>"\x01', classes=("&", "<", '"'))
    graph = dataclasses.replace(tiny.graph, info=info)
    hostile = dataclasses.replace(tiny, graph=graph)
    svg = drawing.svg(hostile)
    root = ElementTree.fromstring(svg)
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    assert r'</title><script>x</script>"\x01' in names_in(svg)
    assert "\x01" not in "".join(inspect_model.lines(hostile))


def test_dot_has_every_node_and_edge(tiny: api.Model) -> None:
    text = drawing.dot(tiny.graph)
    edges = re.findall(r'^  "(.*)" -> "(.*)";$', text, re.MULTILINE)
    assert set(edges) == {(name, node.name) for node in tiny.graph.nodes for name in node.inputs}
    assert all(f'"{node.name}" [label=' in text for node in tiny.graph.nodes)
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (-0.001, "0"), (2.456, "2.46"), (100.0, "100"), (1e7, "10000000")]
)
def test_coordinates_are_short(value: float, text: str) -> None:
    assert number(value) == text


# ------------------------------------------------------------------------------------------------ the command line


def test_the_table_has_a_line_for_every_node(tiny: api.Model, capsys: Capture) -> None:
    assert cli.main(["inspect", str(tiny.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any("blocks" in line for line in lines)
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["name", "op"])
    rows = lines[head + 1 : head + 1 + len(tiny.graph.nodes)]
    assert [tuple(row.split()[:2]) for row in rows] == [(node.name, node.op) for node in tiny.graph.nodes]
    assert cli.main(["inspect"]) == 0
    lines_of_bundled = capsys.readouterr().out.splitlines()
    assert max(map(len, lines_of_bundled)) <= 80
    assert lines_of_bundled.count("  encoder.blocks.11") == 1
    assert any(line.split()[:1] == ["int64"] for line in lines)
    assert lines[-1].split() == ["file", f"{tiny.path.stat().st_size:,}", "100.0%"]


def test_json_is_one_object_with_the_same_numbers(tiny: api.Model, capsys: Capture) -> None:
    assert cli.main(["inspect", str(tiny.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["sha256"] == tiny.sha256
    assert [node["name"] for node in found["nodes"]] == [node.name for node in tiny.graph.nodes]
    assert sum(node["macs"] for node in found["nodes"]) == found["totals"]["macs"]
    for node, entry in zip(tiny.graph.nodes, found["nodes"], strict=True):
        assert entry["output_bytes"] == math.prod(node.shape) * np.dtype(node.dtype).itemsize
        assert entry["reads"] == list(node.inputs)


def test_drawings_are_written(tiny: api.Model, tmp_path: Path, capsys: Capture) -> None:
    dot, svg = tmp_path / "g.dot", tmp_path / "g.svg"
    assert cli.main(["inspect", str(tiny.path), "--by", "op", "--dot", str(dot), "--svg", str(svg)]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {dot}\nwrote {svg}\n")
    assert dot.read_text(encoding="utf-8") == drawing.dot(tiny.graph)
    ElementTree.parse(svg)


def test_what_goes_wrong_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"12345678901")
    cases = {(str(tmp_path / "bad.safetensors"),): 3, (str(tmp_path / "none"),): 4, ("--by", "colour"): 2}
    cases[("--svg", str(tmp_path / "no" / "g.svg"))] = 4
    cases[("--svg", str(tmp_path / "bad.safetensors"))] = 2
    for arguments, code in cases.items():
        assert cli.main(["inspect", *arguments]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "golden" / "models").glob("*.safetensors")), ids=lambda path: path.stem)
def test_no_line_is_wider_than_a_terminal(path: Path) -> None:
    """Names, dtypes and bits of every kind of node: blanks between columns give way."""
    assert max(map(len, inspect_model.lines(api.load(path)))) <= 80
