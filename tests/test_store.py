"""The weights file: what is written is read back, byte for byte, and every malformed file is one kind of error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import safetensors.numpy
from compare import assert_equal
from graphs import tiny, with_attr, with_element, with_info, with_node, with_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from intseg import packing, store
from intseg.errors import InputError, ModelError
from intseg.graph import Graph

DTYPES = {"I8": "int8", "U8": "uint8", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def read(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A reader written from SPEC.md section 6 alone: the JSON document and the tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size].decode("utf-8"))
    document = json.loads(header.pop("__metadata__")["intseg"])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        body = data[8 + size + begin : 8 + size + end]
        tensors[name] = np.frombuffer(body, DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return document, tensors


def write(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def canonical(document: Any) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the digest that belongs to it."""
    rest = {key: value for key, value in document.items() if key != "graph_sha256"}
    return rest | {"graph_sha256": hashlib.sha256(canonical(rest).encode()).hexdigest()}


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_text(text: str) -> bytes:
    """The tiny file with another text under the metadata key."""
    header, body = split(store.dumps(tiny()))
    header["__metadata__"]["intseg"] = text
    return write(header, body)


def with_document(change: Callable[[dict[str, Any]], object], sealed: bool = True) -> bytes:
    """The tiny file with a changed JSON document and, unless told otherwise, a right digest."""
    document, _ = read(store.dumps(tiny()))
    change(document)
    return with_text(canonical(seal(document) if sealed else document))


def with_header(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The tiny file with a changed safetensors header."""
    header, body = split(store.dumps(tiny()))
    change(header)
    return write(header, body)


def refuse(data: bytes, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        store.loads(data)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


# Writing and reading


def test_round_trip():
    graph = tiny()
    again = store.loads(store.dumps(graph))
    assert again.nodes == graph.nodes
    assert again.info == graph.info
    assert again.output == graph.output
    assert set(again.tensors) == set(graph.tensors)
    for name, array in graph.tensors.items():
        assert_equal(again.tensors[name], array, name)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_packed_tensor_is_what_the_oracle_unpacks(bits: int):
    """In the file ceil(n bits / 8) bytes; the digest is that of these; back it is the tensor."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    weight = np.random.default_rng(bits).integers(low, high + 1, (3, 4), np.int8)
    weight[0, :2] = low, high
    graph = with_tensor(tiny(), "head.weight", weight)
    graph = dataclasses.replace(graph, packed={"head.weight": bits})
    data = store.dumps(graph)
    document, tensors = read(data)
    assert document["packed"] == {"head.weight": {"bits": bits, "shape": [3, 4]}}
    stored = tensors["head.weight"]
    assert (stored.dtype, stored.nbytes) == (np.uint8, -(-12 * bits // 8))
    assert naive.unpack(stored.tolist(), 12, bits) == weight.ravel().tolist()
    assert document["tensors_sha256"] == store.tensors_sha256(tensors)
    again = store.loads(data)
    assert_equal(again.tensors["head.weight"], weight)
    assert again.packed == graph.packed
    assert store.dumps(again) == data


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 17, 64, 65])
def test_packing_any_number_of_elements(count: int):
    for bits in range(2, 9):
        values = np.random.default_rng(count).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count, np.int8)
        stream = packing.pack(values, bits)
        assert naive.unpack(stream.tolist(), count, bits) == values.tolist()
        assert_equal(packing.unpack(stream, (count,), bits), values)


def packed_file(packed: Any, stream: np.ndarray) -> bytes:
    """The tiny file with another `packed`, or none, and these bytes in place of the weight of its head."""
    document, tensors = read(store.dumps(tiny()))
    tensors["head.weight"] = stream
    document |= {"tensors_sha256": store.tensors_sha256(tensors)} | ({} if packed is None else {"packed": packed})
    return safetensors.numpy.save(tensors, metadata={"intseg": canonical(seal(document))})


def packed_weight(entry: Any, *stream: int, dtype: str = "uint8") -> bytes:
    """Twelve elements of 3 bits are 36 bits in 5 bytes."""
    return packed_file({"head.weight": entry}, np.array(stream or (7, 0, 0, 0, 15), dtype))


def test_wrong_packed_tensors():
    right = {"bits": 3, "shape": [3, 4]}
    assert store.loads(packed_weight(right)).tensors["head.weight"].ravel().tolist() == [-1, *[0] * 9, -4, -1]
    for bits in (1, 9, 0, -3, 2**40):
        refuse(packed_weight({"bits": bits, "shape": [3, 4]}), "'head.weight'", f"{bits} bits, expected 2 to 8")
    refuse(packed_weight(right, 7, 0, 0, 0, 16), "last byte is 16, expected its high 4 bits to be zero")
    refuse(packed_weight(right, 7, 0, 0, 0), "uint8 [4], expected uint8 [5] for 12 elements of 3 bits")
    refuse(packed_weight(right, 7, 0, 0, 0, 15, 0), "uint8 [6], expected uint8 [5]")
    refuse(packed_weight(right, dtype="int8"), "int8 [5], expected uint8 [5]")
    refuse(packed_weight({"bits": 3, "shape": [3, 2**41]}), "shape", "below 2^40")
    refuse(packed_weight({"bits": 3, "shape": [4, 3]}), "node 'head'", "weight has shape [4, 3]")
    refuse(packed_weight({"bits": True, "shape": [3, 4]}), "bits is True, expected int")
    refuse(packed_weight({"bits": 3}), "lacks shape")
    refuse(packed_weight([3, 4]), "expected an object with keys bits, shape")
    refuse(
        with_document(lambda d: d.update(packed={"none": {"bits": 3, "shape": [1]}})), "'none'", "is not in the file"
    )
    refuse(with_document(lambda d: d.update(packed=[])), "packed is [], expected dict")
    refuse(packed_file(None, np.zeros(5, np.uint8)), "parameter weight is uint8, expected int8")


def test_a_packed_tensor_that_does_not_fit_is_not_written(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    for packed, words in (
        ({"head.weight": 4}, ["expected int8 in [-8, 7] for 4 bits", "give it more"]),
        ({"head.weight": 9}, ["packed in 9 bits, expected 2 to 8"]),
        ({"head.bias": 8}, ["'head.bias' is int32"]),
        ({"none": 8}, ["'none'", "does not hold"]),
    ):
        with pytest.raises(ModelError) as error:
            store.save(dataclasses.replace(tiny(), packed=packed), path)
        assert all(word in str(error.value) for word in words)
        assert not path.exists()


def test_saving_twice_gives_the_same_bytes(tmp_path: Path):
    """Also when tensors and dictionaries were filled in another order."""
    first = store.save(tiny(), tmp_path / "a.safetensors")
    graph = tiny()
    turned = dataclasses.replace(graph, tensors=dict(reversed(graph.tensors.items())))
    turned = with_node(turned, "qkv", params=dict(reversed(graph.node("qkv").params.items())))
    turned = with_node(turned, "attn", attrs=dict(reversed(graph.node("attn").attrs.items())))
    second = store.save(turned, tmp_path / "b.safetensors")
    assert first == second == (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert store.dumps(store.loads(first)) == first


def test_memory_layout_and_byte_order_do_not_matter():
    graph = tiny()
    weight = np.asfortranarray(graph.tensors["qkv.weight"])
    assert store.dumps(with_tensor(graph, "qkv.weight", weight)) == store.dumps(graph)
    assert store.tensors_sha256({"a": np.array([1, -2], ">i4")}) == store.tensors_sha256(
        {"a": np.array([1, -2], "<i4")}
    )


def test_an_independent_reader_gets_the_same():
    data = store.dumps(tiny())
    document, tensors = read(data)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.name} [{', '.join(map(str, array.shape))}]\n".encode("ascii"))
        digest.update(array.tobytes())
        assert_equal(array.astype(array.dtype.newbyteorder("=")), tiny().tensors[name], name)
    assert document["tensors_sha256"] == digest.hexdigest()
    assert document == seal(document)
    assert sorted(document) == ["format", "graph_sha256", "info", "nodes", "output", "tensors_sha256"]
    assert document["format"] == 1
    header, _ = split(data)
    assert header["__metadata__"] == {"intseg": canonical(document)}
    assert header["__metadata__"]["intseg"].isascii()
    assert [entry["name"] for entry in document["nodes"]] == [n.name for n in tiny().nodes]


def test_the_file_may_name_tensors_in_any_order_and_have_white_space():
    header, body = split(store.dumps(tiny()))
    document = json.loads(header["__metadata__"]["intseg"])
    header["__metadata__"]["intseg"] = json.dumps(document, indent=1)
    text = json.dumps(dict(reversed(header.items())), indent=2).encode() + b"   "
    text += b" " * (-len(text) % 8)
    assert store.loads(write(text, body)).nodes == tiny().nodes


def test_load_reads_what_save_wrote(tmp_path: Path):
    path = tmp_path / "tiny.safetensors"
    store.save(tiny(), path)
    assert store.load(path).nodes == tiny().nodes
    assert store.load(str(path)).info.classes == ("road", "sky", "ä")


# Refusing to write


@pytest.mark.parametrize(
    "graph",
    [
        with_node(tiny(), "embed", op="conv"),
        with_element(tiny(), "embed.shift", 63),
        with_info(tiny(), patch=0),
        with_tensor(tiny(), "spare", np.zeros(1, np.int8)),
        with_tensor(tiny(), "pos", np.zeros((5, 4), np.float32)),
        with_tensor(tiny(), "pos", np.zeros((5, 4), np.uint16)),
        with_attr(tiny(), "patches", patch=4.0),
        with_attr(tiny(), "patches", patch=True),
        with_node(tiny(), "patches", name="pat ches"),
        with_node(tiny(), "merged", name="x" * 201),
    ],
    ids=lambda _: "graph",
)
def test_an_invalid_graph_is_not_written(graph: Graph, tmp_path: Path):
    with pytest.raises(ModelError):
        store.save(graph, tmp_path / "bad.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(tmp_path: Path):
    """As good as a folder that cannot be written, for root too."""
    parent = tmp_path / "file"
    parent.write_bytes(b"kept")
    with pytest.raises(InputError, match=r"cannot write.*choose a folder"):
        store.save(tiny(), parent / "a.safetensors")
    assert parent.read_bytes() == b"kept"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_file_mode_follows_the_umask(tmp_path: Path):
    old = os.umask(0o027)
    try:
        store.save(tiny(), tmp_path / "a")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)


# Refusing to read: the path


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(InputError, match="cannot read weights: No such file"):
        store.load(tmp_path / "none")
    with pytest.raises(InputError, match="cannot read weights"):
        store.load(tmp_path)


def test_a_message_names_the_file(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / "x"))):
        store.load(tmp_path / "x")


def test_a_huge_file_is_not_read(tmp_path: Path):
    """A sparse file: nothing is allocated."""
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**32 + 1)
    with pytest.raises(InputError, match=f"{2**32 + 1} bytes, expected at most {2**32}"):
        store.load(tmp_path / "x")


# Refusing to read: the container


def test_every_truncation_is_refused():
    data = store.dumps(tiny())
    for size in [*range(40), *range(40, len(data), 97), len(data) - 1]:
        refuse(data[:size])


def test_extra_bytes_are_refused():
    refuse(store.dumps(tiny()) + b"\0", "damaged")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_every_damaged_byte_is_refused(position: int, flip: int):
    """The two digests cover all bytes but those of the header outside the document, and these are checked one by one.

    What survives (white space, the order of keys) must mean the same graph.
    """
    data = bytearray(store.dumps(tiny()))
    data[position % len(data)] ^= flip
    try:
        graph = store.loads(bytes(data))
    except ModelError:
        return
    assert store.dumps(graph) == store.dumps(tiny())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda b: write(b, b"")))
def test_random_bytes_are_refused(data: bytes):
    refuse(data)


@pytest.mark.parametrize("size", [2**24 + 1, 2**63, 2**64 - 1])
def test_header_sizes(size: int):
    refuse(struct.pack("<Q", size) + b"{}" * 10, f"header of {size} bytes")


@pytest.mark.parametrize(
    "text", [b"[]", b"{}", b"null", b"1", b'"x"', b"{", b"\xff", b"[" * 5000, b'{"__metadata__":[]}']
)
def test_headers_that_are_no_header(text: bytes):
    refuse(write(text, b""))


def test_another_programs_file():
    refuse(write({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "intseg convert")
    refuse(write({"__metadata__": {"format": "pt"}}, b""), "no 'intseg' metadata")
    refuse(write({"__metadata__": {"intseg": 1}}, b""), "no 'intseg' metadata")


def test_a_second_metadata_key():
    refuse(with_header(lambda header: header["__metadata__"].update(format="np")))


def test_duplicate_keys():
    data = store.dumps(tiny())
    header, body = split(data)
    entry = json.dumps(header["pos"])
    text = json.dumps(header).encode()[:-1] + f', "pos": {entry}}}'.encode()
    refuse(write(text, body), "'pos' appears twice")
    document = header["__metadata__"]["intseg"]
    refuse(with_text(document[:-1] + ',"format":1}'), "'format' appears twice")
    refuse(with_text(document.replace('"patch":4', '"patch":4,"patch":4', 1)), "'patch' appears twice")


@pytest.mark.parametrize(
    "dtype", ["F32", "F16", "BF16", "F64", "BOOL", "U16", "U32", "U64", "F8_E4M3", "i8", 1, None, []]
)
def test_tensor_dtypes(dtype: Any):
    def change(header: dict[str, Any]) -> None:
        header["pos"]["dtype"] = dtype

    refuse(with_header(change), "'pos'")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", ".x", "-x", "ä", "x" * 201, "a\n"])
def test_tensor_names(name: str):
    def change(header: dict[str, Any]) -> None:
        header[name] = header.pop("pos")

    refuse(with_header(change), "tensor name")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([2**62], "'pos'"),
        ([2**31, 2**31, 2**31, 2**31], "'pos'"),
        ([2**39, 0], "'pos'"),
        ([5, 5], "lies at"),
        ([5, 4, 1, 1, 1], "axes"),
        ([-5, -4], "'pos'"),
        ([5.0, 4], ""),
        ([True, 20], "'pos'"),
        ("54", "'pos'"),
        (None, "'pos'"),
        ([[5], 4], "'pos'"),
    ],
)
def test_tensor_shapes(shape: Any, words: str):
    def change(header: dict[str, Any]) -> None:
        header["pos"]["shape"] = shape

    refuse(with_header(change), words)


@pytest.mark.parametrize(
    "offsets",
    [[0, 40], [0, 0], [10**6, 10**6 + 40], [-40, 0], [2**62, 2**62 + 40], [40], [], None, "x", [1, 2, 3], [None, 1]],
)
def test_tensor_offsets(offsets: Any):
    def change(header: dict[str, Any]) -> None:
        header["pos"]["data_offsets"] = offsets

    refuse(with_header(change))


@pytest.mark.parametrize("entry", [None, 1, [], {}, {"dtype": "I8", "shape": [1]}])
def test_tensor_entries(entry: Any):
    refuse(with_header(lambda header: header.update(pos=entry)), "malformed")


def test_overlapping_tensors():
    def change(header: dict[str, Any]) -> None:
        header["pos.copy"] = dict(header["pos"])

    refuse(with_header(change), "lies at")


def test_a_changed_tensor():
    data = bytearray(store.dumps(tiny()))
    data[-1] ^= 1
    refuse(bytes(data), "tensors do not match their sha256", "download or export")


# Refusing to read: the document


def test_a_changed_document():
    def change(document: dict[str, Any]) -> None:
        document["info"]["pad"][0] = 0

    refuse(with_document(change, sealed=False), "graph does not match its sha256")
    assert store.loads(with_document(change)).info.pad == (0, 116, 104)


@pytest.mark.parametrize("text", ["", "{", "1 2", "nul", "'x'"])
def test_a_document_that_is_not_json(text: str):
    refuse(with_text(text), "not JSON")


@pytest.mark.parametrize("text", ["1", "[]", "null", '"x"'])
def test_a_document_that_is_no_object(text: str):
    refuse(with_text(text), "not a JSON object")


@pytest.mark.parametrize("number", ["1.0", "1e0", "0.5", "-0.0", "NaN", "Infinity", "-Infinity"])
def test_floats_in_the_document(number: str):
    text = canonical(read(store.dumps(tiny()))[0]).replace('"patch":4', f'"patch":{number}', 1)
    refuse(with_text(text), "integers only")


@pytest.mark.parametrize(
    ("version", "advice"),
    [(2, "update intseg"), (10**19, "update intseg"), (0, "export"), (-1, "export"), ("1", "export"), (True, "export")],
)
def test_format_versions(version: Any, advice: str):
    refuse(with_document(lambda document: document.update(format=version)), f"{version!r}, expected 1", advice)


def test_no_format_version():
    refuse(with_document(lambda document: document.pop("format")), "None, expected 1")


@pytest.mark.parametrize("key", ["info", "nodes", "output", "tensors_sha256"])
def test_missing_keys(key: str):
    refuse(with_document(lambda document: document.pop(key)), "sha256" if key[0] == "t" else f"metadata lacks {key}")
    refuse(with_document(lambda document: document["info"].pop("patch")), "info lacks patch")
    refuse(with_document(lambda document: document["nodes"][0].pop("op")), "lacks op")
    refuse(with_document(lambda document: document["info"].update(window=[8])), "window is [8], expected a list of 2")
    refuse(
        with_document(lambda document: document["info"]["classes"].__setitem__(1, 7)), "classes[1] is 7, expected str"
    )
    refuse(with_document(lambda document: document["nodes"][1]["attrs"].update(patch=True)), "attrs['patch'] is True")
    refuse(with_document(lambda document: document["info"]["palette"].__setitem__(1, [1])), "palette[1] is [1]")


def test_extra_keys():
    refuse(with_document(lambda document: document.update(extra=1)), "extra")
    refuse(with_document(lambda document: document["info"].update(extra=1)), "info")
    refuse(with_document(lambda document: document["nodes"][0].update(extra=1)), "node")


@pytest.mark.parametrize("key", ["info", "nodes", "output"])
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [1], [[]], {"a": 1}])
def test_values_of_the_wrong_type(key: str, value: Any):
    if key != "output" or value != "x":
        refuse(with_document(lambda document: document.update({key: value})))
    else:
        refuse(with_document(lambda document: document.update({key: value})), "output 'x' is not a node")


WRONG = [None, True, 1, "x", [], {}, [None], ["x", 1], {"a": []}, {"a": None}, {"a": True}]


@pytest.mark.parametrize("field", ["name", "op", "inputs", "params", "attrs", "dtype", "shape", "scale"])
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_node_fields(field: str, value: Any):
    """Every wrong value in a field of the node `embed` is refused, and so is the missing field."""
    index = [n.name for n in tiny().nodes].index("embed")
    if (field, value) != ("scale", None):
        refuse(with_document(lambda document: document["nodes"][index].update({field: value})))
    refuse(with_document(lambda document: document["nodes"][index].pop(field)))


@pytest.mark.parametrize(
    "field", ["classes", "palette", "window", "stride", "patch", "pad", "upsample", "name", "recipe", "source"]
)
@pytest.mark.parametrize("value", [None, True, 1, "x", [], {}, [None], ["x", 1], [[1, 2]], [1, 2, 3, 4]], ids=repr)
def test_info_fields(field: str, value: Any):
    if not (field in ("name", "recipe", "source") and value == "x"):
        refuse(with_document(lambda document: document["info"].update({field: value})))
    refuse(with_document(lambda document: document["info"].pop(field)))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "x" * 201])
def test_node_names(name: str):
    refuse(with_document(lambda document: document["nodes"][0].update(name=name)), "letters")


@pytest.mark.parametrize("digest", [None, "", "0" * 64, 1])
def test_digests(digest: Any):
    refuse(with_document(lambda document: document.update(tensors_sha256=digest)), "tensors do not match")
    document, _ = read(store.dumps(tiny()))
    refuse(with_text(canonical(document | {"graph_sha256": digest})), "graph does not match")


def test_huge_integers_in_the_document():
    document, _ = read(store.dumps(tiny()))
    text = canonical(document).replace('"patch":4', '"patch":' + "9" * 5000, 1)
    refuse(with_text(text))
    refuse(with_document(lambda document: document["info"].update(patch=10**100)), "64 bits")


def test_a_loaded_graph_is_validated():
    refuse(with_document(lambda document: document["nodes"][1]["attrs"].update(patch=3)), "node 'patches'", "3 x 3")


def test_every_dtype_of_the_format_is_read():
    assert {key: np.dtype(name).itemsize for key, name in DTYPES.items()} == store.DTYPES
    assert {array.dtype.name for array in tiny().tensors.values()} >= {"int8", "int16", "int32", "int64"}


def test_arrays_of_the_other_byte_order() -> None:
    """The digest is of little-endian bytes whatever memory holds; what the library reads is taken as such."""
    graph = tiny()
    swapped = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in graph.tensors.items()}
    assert store.tensors_sha256(swapped) == store.tensors_sha256(graph.tensors)
    for name, array in store.from_file({"a": np.array([1, -2], "<i4"), "b": np.array([3], "int8")}).items():
        assert array.dtype == array.dtype.newbyteorder("=")
        assert array.flags.writeable
        assert array.tolist() == {"a": [1, -2], "b": [3]}[name]
    big = np.frombuffer(np.array([1, 256], "<u2").tobytes(), ">u2")  # as a big-endian machine's library reads it
    assert store.from_file({"a": big})["a"].tolist() == [1, 256]


def test_what_section_6_says_of_headers_and_text() -> None:
    """White space around the header, escapes of canonical JSON, a tensor called `image`, nodes without a scale."""
    graph = tiny()
    data = store.dumps(graph)
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size].rstrip(), data[8 + size :]
    for before, after in ((b"", b""), (b" ", b""), (b"\n\t", b"\r\n  ")):
        text = before + header + after
        assert store.loads(len(text).to_bytes(8, "little") + text + rest).nodes == graph.nodes
    assert store._canonical({"a": '"\\/\x7f\x08\u00e9\U0001f600'}) == r'{"a":"\"\\/\u007f\b\u00e9\ud83d\ude00"}'
    first = graph.nodes[0]
    role, name = next(iter(first.params.items()))
    nodes = (dataclasses.replace(first, params={**first.params, role: "image"}, scale=None), *graph.nodes[1:])
    kept = {"image" if key == name else key: array for key, array in graph.tensors.items() if key != first.scale}
    assert store.loads(store.dumps(dataclasses.replace(graph, nodes=nodes, tensors=kept))).nodes == nodes
