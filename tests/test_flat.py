"""The flat form: every byte as golden/reader/README.md describes it, and the command that writes it."""

from __future__ import annotations

import hashlib
import re
import struct
from functools import cache
from pathlib import Path

import graphs
import numpy as np
import pytest

from intseg import store
from intseg.cli import main as cli
from intseg.conformance import flat
from intseg.errors import InputError, ModelError
from intseg.exam import EXAMS
from intseg.graph import Graph
from intseg.ops import OPS

SPEC = (Path(__file__).parent.parent / "SPEC.md").read_text(encoding="utf-8")
README = (Path(__file__).parent.parent / "golden" / "reader" / "README.md").read_text(encoding="utf-8")
CODES = {1: "<i1", 2: "<u1", 3: "<i2", 5: "<i4", 6: "<i8"}


def fields(title: str) -> dict[str, tuple[int, str]]:
    """Content -> (byte, type) of a table of the README."""
    table = README.split(f"### {title}")[1].split("###")[0]
    found = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \|$", table, re.MULTILINE)
    return {re.split("[:,;]", content)[0]: (int(byte), kind) for byte, kind, content in found if "_" not in kind}


def get(data: bytes, table: dict[str, tuple[int, str]], name: str, start: int = 0) -> tuple[int, ...]:
    """The integers of a field, where the README says it is."""
    byte, kind = table[name]
    count, _, word = kind.rpartition(" ")
    return struct.unpack_from(f"<{count}{'i' if word == 'i32' else 'I'}", data, start + byte)


HEADER = fields("Header")


@cache
def tiny() -> tuple[Graph, bytes]:
    """A graph and its file."""
    graph = graphs.tiny()
    return graph, flat.flatten(graph, bytes(range(32)))


def names_of_tensors() -> list[str]:
    graph, _ = tiny()
    return sorted(set(graph.tensors) - {"scale", "pos.scale"})


def text(offset: int) -> str:
    """The text at an offset, where the header says that texts are."""
    _, data = tiny()
    (texts,), (size,) = get(data, HEADER, "offset of the texts"), get(data, HEADER, "size of the texts")
    assert 0 <= offset < size
    return data[texts + offset :].split(b"\0", 1)[0].decode()


def test_the_header_is_as_the_readme_says():
    (graph, data), header = tiny(), HEADER
    assert data[:8] == b"INTSEGFL"
    assert get(data, header, "version") == (1,)
    assert get(data, header, "size of the file") == (len(data),)
    assert data[16:48] == hashlib.sha256(data[48:]).digest()
    assert data[128:160] == bytes(range(32))
    assert data[160:192] == bytes(32)

    info = graph.info
    assert get(data, header, "window") == info.window
    assert get(data, header, "stride") == info.stride
    assert get(data, header, "patch") == (info.patch,)
    assert get(data, header, "upsample") == (0,)
    assert data[116:120] == bytes((*info.pad, 0))
    assert text(*get(data, header, "name of the model")) == info.name
    assert text(*get(data, header, "recipe")) == info.recipe
    assert get(data, header, "number of classes") == (3,)
    (names,), (palette,) = get(data, header, "offset of the class names"), get(data, header, "offset of the palette")
    assert tuple(map(text, struct.unpack_from("<3I", data, names))) == info.classes
    assert data[palette : palette + 12] == b"".join(bytes((*colour, 0)) for colour in info.palette)


def test_the_tensors_are_as_the_readme_says():
    (graph, data), header, tensor = tiny(), HEADER, fields("Tensor record")
    (count,), (start,) = get(data, header, "number of tensors"), get(data, header, "offset of the tensor records")
    tensors = []
    for place in range(start, start + count * 32, 32):
        (code,), (rank,) = get(data, tensor, "dtype (not UINT16)", place), get(data, tensor, "number of axes", place)
        shape = get(data, tensor, "shape", place)
        assert shape[rank:] == (0,) * (4 - rank)
        (offset,) = get(data, tensor, "offset of the elements", place)
        assert offset % 64 == 0
        tensors.append(text(*get(data, tensor, "name", place)))
        array = np.frombuffer(data, CODES[code], int(np.prod(shape[:rank])), offset).reshape(shape[:rank])
        assert array.dtype.name == graph.tensors[tensors[-1]].dtype.name
        assert np.array_equal(array, graph.tensors[tensors[-1]])
    assert tensors == names_of_tensors()


def test_the_nodes_are_as_the_readme_says():
    (graph, data), header, node, tensors = tiny(), HEADER, fields("Node record"), names_of_tensors()
    (count,), (start,) = get(data, header, "number of nodes"), get(data, header, "offset of the node records")
    assert count == len(graph.nodes)
    references = {"image": 0} | {n.name: i for i, n in enumerate(graph.nodes, 1)}
    references |= {name: 2**31 + i for i, name in enumerate(tensors)}
    words = {"int8": 1, "int16": 3, "paper": 0, "normalized": 1}
    for expected, place in zip(graph.nodes, range(start, start + count * 96, 96), strict=True):
        assert get(data, node, "op", place) == (OPS[expected.op].number,)
        assert text(*get(data, node, "name", place)) == expected.name
        assert get(data, node, "dtype of the output", place) == ({"int8": 1, "int16": 3}[expected.dtype],)
        rank = len(expected.shape)
        assert get(data, node, "number of axes", place) == (rank,)
        assert get(data, node, "shape", place) == expected.shape + (0,) * (4 - rank)
        inputs = [references[name] for name in expected.inputs]
        assert list(get(data, node, "inputs", place)) == inputs + [2**32 - 1] * (2 - len(inputs))
        params, attributes = row(expected.op)
        indices = [tensors.index(expected.params[role]) for role in params]
        assert list(get(data, node, "params", place)) == indices + [2**32 - 1] * (4 - len(indices))
        values = [words.get(v, v) for v in (expected.attrs.get(name, 0) for name in attributes)]
        assert list(get(data, node, "attributes", place)) == values + [0] * (8 - len(values))
    assert graph.nodes[get(data, header, "index of the output node")[0]].name == graph.output


def row(op: str) -> tuple[list[str], list[str]]:
    """Params and attributes of an op, from the README's table."""
    found = re.search(rf"^\| (\d+) \| {op} \| (.*?) ?\| (.*?) ?\|$", README, re.MULTILINE)
    assert found
    assert int(found[1]) == OPS[op].number
    return [name for name in found[2].split(", ") if name], [name for name in found[3].split(", ") if name]


def test_the_number_of_an_op_is_that_of_spec_and_of_its_section():
    table = SPEC.split("There an op is a number")[1].split("`format` is")[0]
    assert {op: int(number) for number, op in re.findall(r"\| (\d+) \| (\w+)", table)} == {
        op: OPS[op].number for op in OPS
    }
    assert [EXAMS[op].section for op in OPS] == [f"4.{op.number}" for op in OPS.values()]


@pytest.mark.parametrize("op", OPS)
def test_the_order_of_params_and_attributes_is_that_of_spec(op: str):
    spec = (Path(__file__).parent.parent / "SPEC.md").read_text(encoding="utf-8")
    section = re.search(rf"^### 4\.\d+ {op}\n(.*?)^##", spec, re.MULTILINE | re.DOTALL)
    assert section
    kinds = re.findall(r"^\| `(\w+)` \| (param|attr)\b", section[1], re.MULTILINE)
    assert row(op) == tuple([name for name, kind in kinds if kind == wanted] for wanted in ("param", "attr"))


def test_the_command_writes_it_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights, target = tmp_path / "tiny.safetensors", tmp_path / "tiny.flat"
    store.save(graphs.tiny(), weights)
    assert cli.main(["flatten", str(weights), "-o", str(target)]) == 0
    digest = hashlib.sha256(weights.read_bytes()).digest()
    assert target.read_bytes() == flat.flatten(graphs.tiny(), digest)
    assert capsys.readouterr().out == f"wrote {target}: {target.stat().st_size:,} bytes\n"


def test_mistakes_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="cannot read"):
        flat.write(tmp_path / "none.safetensors", tmp_path / "x.flat")
    monkeypatch.setattr(flat, "MAX_FILE", 1000)
    with pytest.raises(ModelError, match=r"the flat form takes \d+ bytes, expected at most 1000"):
        flat.flatten(graphs.tiny())
