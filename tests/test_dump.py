"""Dumps: every format gives back every tensor exactly, and whatever is damaged is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from compare import assert_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from intseg import store
from intseg.errors import InputError, UsageError
from intseg.workbench import dump, memory_files
from intseg.workbench.dump import FORMATS, PACKED, Options
from intseg.workbench.trace import TensorFile, Writer

LIMITS = {name: np.iinfo(name) for name in ("int8", "uint8", "int16", "uint16", "int32", "int64")}


def tensors() -> dict[str, np.ndarray]:
    """Every dtype with its ends; zero, one and many elements; ranks 0 to 4."""
    source = np.random.default_rng(5)
    result: dict[str, np.ndarray] = {"scalar": np.array(-7, np.int16), "none": np.zeros((0,), np.int8)}
    result |= {"empty": np.zeros((3, 0, 2), np.int32), "one": np.array([[-128]], np.int8)}
    for name, limit in LIMITS.items():
        ends = np.array([limit.min, limit.max, 0, 1], name)
        result[f"ends.{name}"] = ends
        result[f"many.{name}"] = source.integers(limit.min, limit.max, (2, 3, 5, 7), name, endpoint=True)
    return result


def save(path: Path, arrays: dict[str, np.ndarray], metadata: dict | None = None) -> Path:
    with Writer(path, metadata, list(arrays)) as writer:
        for name, array in arrays.items():
            writer.put(name, array)
    return path


def round_trip(folder: Path, arrays: dict[str, np.ndarray], kind: str, options: Options | None = None) -> None:
    source = save(folder / "in.safetensors", arrays)
    shutil.rmtree(folder / "dump", ignore_errors=True)
    assert dump.write_folder(source, folder / "dump", kind, options) == len(arrays)
    assert dump.read_folder(folder / "dump", folder / "out.safetensors") == len(arrays)
    back = TensorFile(folder / "out.safetensors")
    assert set(back.names()) == set(arrays)
    for name, array in arrays.items():
        assert_equal(back.read(name), array, name)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_back_every_dtype_and_shape(tmp_path: Path, kind: str):
    round_trip(tmp_path, tensors(), kind)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("options", [{"per_word": 3}, {"per_word": 7, "width": 9}, {"width": 13}, {"width": 61}])
def test_words_of_any_width(tmp_path: Path, kind: str, endian: str, options: dict):
    small = {n: a for n, a in tensors().items() if a.dtype.itemsize == 1}
    if kind == "c" and options.get("per_word", 1) * options.get("width", 8) > 64:
        options = {"per_word": 7, "width": 9}
    round_trip(tmp_path, small, kind, Options(endian=endian, **options))


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 11, 24, 33, 65, 100])
def test_odd_widths_hold_what_fits(tmp_path: Path, width: int):
    top = 2 ** (min(width, 33) - 1)
    arrays = {"signed": np.array([-top, 0, top - 1, -1], np.int64), "unsigned": np.array([0, 1, 1, 0], np.uint8)}
    for kind in ("hex", "mem", "bin", "coe"):
        for per_word in (1, 3):
            round_trip(tmp_path, arrays, kind, Options(width=width, per_word=per_word))


@pytest.mark.parametrize("order", ["C", "F", "2,0,1,3", "3,2,1,0"])
@pytest.mark.parametrize("tile", [None, (2, 4), (16, 16), (1, 3)])
def test_order_and_tiles(tmp_path: Path, order: str, tile: tuple[int, int] | None):
    arrays = {n: a for n, a in tensors().items() if n.startswith("many")} | {"no": np.zeros((2, 0, 3, 1), np.int8)}
    round_trip(tmp_path, arrays, "hex", Options(order=order, tile=tile))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=0, max_size=4),
    st.integers(1, 5),
    st.sampled_from(["little", "big"]),
    st.sampled_from(["C", "F"]),
    st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(8, 70),
)
def test_packing_is_reversible(shape, per_word, endian, order, tile, width):
    array = np.random.default_rng(1).integers(-128, 128, shape, np.int8)
    options = Options(width, per_word, endian, order, tile)
    flat = dump.arrange(array, options)
    assert flat.size == dump.stored_count(array.shape, options)
    words = np.concatenate([*dump.pack(flat, options), np.zeros((0, -(-width * per_word // 8)), np.uint8)])
    assert_equal(dump.restore(dump.unpack(words, "int8", flat.size, options), shape, options), array)


def test_the_text_is_what_verilog_and_c_read(tmp_path: Path):
    source = save(tmp_path / "in.safetensors", {"a.b": np.array([[-1, 2, 3], [4, 5, -128]], np.int8)})
    expected = {
        ("hex", Options()): "ff\n02\n03\n04\n05\n80\n",
        ("hex", Options(per_word=2)): "02ff\n0403\n8005\n",
        ("hex", Options(per_word=2, endian="big")): "ff02\n0304\n0580\n",
        ("hex", Options(width=9)): "1ff\n002\n003\n004\n005\n180\n",
        ("hex", Options(order="F")): "ff\n04\n02\n05\n03\n80\n",
        ("hex", Options(tile=(2, 2))): "ff\n02\n04\n05\n03\n00\n80\n00\n",
        ("mem", Options(per_word=2)): "0000001011111111\n0000010000000011\n1000000000000101\n",
        ("coe", Options(per_word=6)): "memory_initialization_radix=16;\nmemory_initialization_vector=\n8005040302ff;\n",
        ("mif", Options(per_word=3)): "WIDTH=24;\nDEPTH=2;\nADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\n"
        "CONTENT BEGIN\n0 : 0302ff;\n1 : 800504;\nEND;\n",
        ("ihex", Options(per_word=3)): ":030000000302FFF9\n:0300010080050473\n:00000001FF\n",
        ("bin", Options(width=16)): b"\xff\xff\x02\0\x03\0\x04\0\x05\0\x80\xff",
        ("bin", Options(width=16, endian="big")): b"\xff\xff\0\x02\0\x03\0\x04\0\x05\xff\x80",
    }
    for i, ((kind, options), text) in enumerate(expected.items()):
        dump.write_folder(source, tmp_path / f"d{i}", kind, options)
        content = (tmp_path / f"d{i}" / f"a.b.{'hex' if kind == 'ihex' else kind}").read_bytes()
        assert content == (text if isinstance(text, bytes) else text.encode()), (kind, options)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_headers_compile(tmp_path: Path):
    arrays = {n: a for n, a in tensors().items() if n.startswith("ends")} | {"0none": np.zeros((0,), np.int8)}
    dump.write_folder(save(tmp_path / "in.safetensors", arrays), tmp_path / "h", "c")
    lines = [f'#include "{name}.h"' for name in arrays]
    lines += ["#include <stdio.h>", "int main(void) {"]
    for name in arrays:
        label = memory_files.c_name(name)
        lines.append(f'for (int i = 0; i < {label}_LENGTH; i++) printf("%lld ", (long long){label}[i]);')
    (tmp_path / "h" / "main.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run(["cc", "-Wall", "-Werror", "-o", "main", "main.c"], cwd=tmp_path / "h", check=True)
    out = subprocess.run(["./main"], cwd=tmp_path / "h", check=True, capture_output=True, text=True).stdout
    assert [int(v) for v in out.split()] == [int(v) for array in arrays.values() for v in array]


def test_manifest_says_what_a_reader_needs(tmp_path: Path):
    array = np.array([[1, -2]], np.int16)
    scale = np.array([[[3]], [[0]], [[8]]], np.int32)
    source = save(tmp_path / "in.safetensors", {"window0.x": array, "scale.x": scale}, {"kind": "trace"})
    dump.write_folder(source, tmp_path / "d", "hex", Options(per_word=2), "window0.*")
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert manifest["kind"] == "hex"
    assert manifest["options"] == {"width": 0, "per_word": 2, "endian": "little", "order": "C", "tile": None}
    assert manifest["source"] == {"kind": "trace"}
    entry = manifest["tensors"]["window0.x"]
    assert entry["scale"] == {"mult": [[3]], "offset": [[0]], "shift": [[8]]}
    assert (entry["width"], entry["word_bits"], entry["words"], entry["shape"]) == (16, 32, 1, [1, 2])
    assert entry["sha256"] == dump.sha256(array)
    dump.read_folder(tmp_path / "d", tmp_path / "out.safetensors")
    assert TensorFile(tmp_path / "out.safetensors").metadata == {"kind": "trace"}


# Bad input


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = save(tmp_path / "in.safetensors", {"x": np.arange(-4, 4, dtype=np.int8)})
    dump.write_folder(source, tmp_path / "d", "hex", Options(per_word=2))
    return tmp_path / "d"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fdfc\nfffe\n0100\n", "3 words, expected 4"),
        ("fdfc\nfffe\n0100\n0302\n0504\n", "5 words, expected 4"),
        ("fdfc\nfffe\n0100\n03\n0302\n", "expected 4"),
        ("fdfc\nfffe\n0100\n00302\n", "another word width"),
        ("fdfc\nfffe\n0100\n03xx\n", "x and z"),
        ("fdfc\nfffe\n0100\n03g2\n", "digits"),
        ("@0 fdfc\n@2 fffe\n0100\n0302\n", "no words for addresses 0x1 to 0x1"),
        ("@4 fdfc\nfffe\n@5 0100\n0302\n", "address 0x5 is given twice"),
        ("@zz fdfc\nfffe\n0100\n0302\n", "address '@zz'"),
        ("fdfc\nfffe\n0100\n0402\n", "sha256"),
        ("", "0 words"),
        ("\u00e4", "other characters"),
    ],
)
def test_damaged_text_is_refused(folder: Path, text: str, words: str):
    (folder / "x.hex").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        dump.read_folder(folder, folder.parent / "out.safetensors")
    assert not (folder.parent / "out.safetensors").exists()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["d", "in.safetensors"]


def test_comments_and_underscores_are_read(folder: Path):
    (folder / "x.hex").write_text("// from the bench\nfd_fc fffe /* two */ 0100\n302\n")
    assert dump.read_folder(folder, folder.parent / "out.safetensors") == 1


EQUAL = {
    "hex": [
        "@0\nfdfc\nfffe\n0100\n0302\n",
        "@00000100 fdfc fffe\n@1_02 0100 0302",
        "@2 0100 0302 @0 FDFC FFFE",
        "@0\n",
    ],
    "mem": ["@0 1111110111111100 1111111111111110\n@2 100000000 1100000010"],
    "coe": [
        "memory_initialization_radix = 16;\nmemory_initialization_vector =\nfdfc fffe\n100\n302;\n",
        "; from the vendor\nMEMORY_INITIALIZATION_RADIX=16;\nMEMORY_INITIALIZATION_VECTOR=fdfc, fffe 100,302 ;",
        "memory_initialization_radix=10;\nmemory_initialization_vector=65020, -2, 256, 770;",
        "memory_initialization_radix=2;\nmemory_initialization_vector=1111110111111100,1111111111111110,100000000,1100000010;",
    ],
    "mif": [
        "WIDTH=16;\nDEPTH=4;\nADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\nCONTENT BEGIN\n"
        "0: FDFC FFFE;\n2 : 100;\n3:302;\nEND;\n",
        "-- DEPTH=9;\ndepth = 4; % four % width = 16;\naddress_radix=uns; data_radix=dec;\ncontent\nbegin\n"
        "[0..1] : -516 -2;\n2 : 256 770;\nend;",
    ],
    "ihex": [
        ":02000000FDFC05\n:02000100FFFE00\n:020002000100FB\n:020003000302F6\n:00000001FF\n",
        ":020000040000FA\r\n:08000000fdfcfffe01000302fc\r\n:00000001ff\r\n",
    ],
}
"""Other ways to write the words fdfc fffe 0100 0302."""


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in EQUAL.items() for text in texts])
def test_files_of_other_tools_are_read(kind: str, text: str):
    empty = text == "@0\n"
    expected = np.arange(-4, 4 if not empty else -4, dtype=np.int8)
    assert_equal(dump._decode(text.encode(), kind, "int8", expected.shape, Options(per_word=2)), expected, text)


MIF = "WIDTH=16;DEPTH=4;ADDRESS_RADIX=HEX;DATA_RADIX=HEX;CONTENT BEGIN {};END;"


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("mif", MIF.format("[0..1] : fdfc fffe; 3 : 302"), "no words for addresses 0x2 to 0x2"),
        ("mif", MIF.format("[0..3] : fdfc fffe; 3 : 302"), "address 0x3 is given twice"),
        ("mif", MIF.format("[0..4] : fdfc"), "inside of 4 words"),
        ("mif", MIF.format("2 : 0 0"), "no words for addresses 0x0 to 0x1"),
        ("mif", MIF.format("0 = 1"), "expected address : words"),
        ("mif", MIF.format("[0..3] : 1").replace("DEPTH=4", "DEPTH=5"), "DEPTH 5, WIDTH 16, expected 4 and 16"),
        ("mif", MIF.format("[0..3] : 1").replace("HEX", "ROMAN"), "radixes ROMAN"),
        ("mif", MIF.format("[0..3] : 1FFFF"), "another word width"),
        ("mif", "0 : 1;", "not a MIF file"),
        ("ihex", ":02000000FDFC06\n:00000001FF\n", "line 1 has the checksum 06, expected 05"),
        ("ihex", ":02000000FDFC05\n:02000100FFFE00\n:020002000100FB\n:020003000302F6\n", "truncated"),
        ("ihex", ":03000000FDFC05", "line 1 has 2 bytes, its record says 3"),
        ("ihex", ":02000000FDFC05\n:02000200FFFEFF\n:00000001FF\n", "no words for addresses 0x1 to 0x1"),
        ("ihex", ":01000000FD02\n:00000001FF\n", "expected words of 2"),
        ("ihex", "fdfc\n", "expected a record of Intel HEX"),
        ("ihex", ":00000001FF\n:02000000FDFC05\n", "follows the record that ends the file"),
        ("coe", "memory_initialization_radix=7;\nmemory_initialization_vector=1;", "radix 2, 10 or 16"),
    ],
)
def test_memory_files_that_lack_something_are_refused(kind: str, text: str, words: str):
    with pytest.raises(InputError, match=words):
        dump._decode(text.encode(), kind, "int8", (8,), Options(per_word=2))


def test_a_memory_of_more_than_65536_words_has_its_addresses(tmp_path: Path):
    round_trip(tmp_path, {"x": np.arange(70_000).astype(np.int8)}, "ihex")
    assert ":020000040001F9\n" in (tmp_path / "dump" / "x.hex").read_text()


def test_a_short_mif_does_not_ask_for_much():
    text = MIF.format("[0..fffffff] : 0").replace("DEPTH=4", "DEPTH=268435456").replace("WIDTH=16", "WIDTH=8")
    with pytest.raises(InputError, match="digits are missing"):
        dump._decode(text.encode(), "mif", "int8", (2**28,), Options())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"kind": "xml"},
        {"tensors": {"x": {}}},
        {"options": {"width": 5}},
        {"source": 3},
        {"tensors": {"x": {"file": "../x.hex", "dtype": "int8", "shape": [8], "sha256": ""}}},
        {"tensors": {"x": {"file": "x.hex", "dtype": "int8", "shape": [-8], "sha256": ""}}},
        {"tensors": {"x": {"file": "x.hex", "dtype": "float32", "shape": [8], "sha256": ""}}},
    ],
)
def test_a_bad_manifest_is_refused(folder: Path, change: dict):
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | change))
    with pytest.raises(InputError, match="manifest"):
        dump.read_folder(folder, folder.parent / "out.safetensors")


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_manifest_that_is_none_is_refused(folder: Path, content: str):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="manifest"):
        dump.open_folder(folder)


def test_a_missing_file_is_named(folder: Path):
    (folder / "x.hex").unlink()
    with pytest.raises(InputError, match=r"x\.hex"):
        dump.read_folder(folder, folder.parent / "out.safetensors")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("npy", Options(width=9)),
        ("json", Options(order="F")),
        ("hex", Options(width=3)),
        ("hex", Options(width=-1)),
        ("hex", Options(per_word=0)),
        ("hex", Options(endian="middle")),
        ("hex", Options(order="1,0")),
        ("hex", Options(tile=(0, 2))),
        ("c", Options(per_word=9)),
        ("ihex", Options(per_word=256)),
        ("vhdl", Options()),
    ],
)
def test_options_that_do_not_fit_write_nothing(tmp_path: Path, kind: str, options: Options):
    source = save(tmp_path / "in.safetensors", {"x": np.arange(-8, 8, dtype=np.int8)})
    with pytest.raises(UsageError):
        dump.write_folder(source, tmp_path / "d", kind, options)
    assert [p.name for p in tmp_path.iterdir()] == ["in.safetensors"]


def test_an_unknown_tensor_and_a_full_folder_are_refused(tmp_path: Path):
    source = save(tmp_path / "in.safetensors", {"x": np.arange(3, dtype=np.int8)})
    with pytest.raises(UsageError, match="no tensor"):
        dump.write_folder(source, tmp_path / "d", "hex", pattern="y*")
    with pytest.raises(InputError, match="not an empty folder"):
        dump.write_folder(source, tmp_path, "hex")
    with pytest.raises(InputError, match="cannot write"):
        dump.write_folder(source, tmp_path / "no" / "d", "hex")


@pytest.mark.parametrize("per_word", [1, 8])
@pytest.mark.parametrize("kind", ["hex", "bin", "coe", "c"])
def test_packed_tensors_have_words_of_their_own_bits(tmp_path: Path, kind: str, per_word: int):
    """Weights of 2 to 7 bits, one a word or eight; back they are packed again, byte for byte."""
    source = Path(__file__).parent.parent / "golden" / "models" / "bits.safetensors"
    graph = store.load(source)
    folder = tmp_path / "out"
    dump.write_folder(source, folder, kind, dump.Options(per_word=per_word), ",".join(graph.packed))
    opened = dump.open_folder(folder)
    assert {opened.tensors[name]["width"] for name in graph.packed} == {2, 3, 4, 5, 6, 7}
    for name, bits in graph.packed.items():
        assert opened.tensors[name]["word_bits"] == bits * per_word
        assert_equal(opened.read(name, check=True), graph.tensors[name], name)
    if kind == "hex":
        name, bits = next((name, bits) for name, bits in graph.packed.items() if bits == 3)
        first = graph.tensors[name].ravel()[:per_word].tolist()
        word = sum(value % 8 << 3 * i for i, value in enumerate(first))
        assert (folder / f"{name}.hex").read_text().split()[0] == f"{word:0{-(-3 * per_word // 4)}x}"
    dump.read_folder(folder, tmp_path / "again.safetensors")
    again, file = TensorFile(tmp_path / "again.safetensors"), TensorFile(source)
    for name in graph.packed:
        assert again.entries[name].dtype == "uint8"
        assert_equal(again.read(name), file.read(name), name)
