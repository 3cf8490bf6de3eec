"""What a simulator reads and leaves behind: the case of a node, and folders of files without a manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intseg.errors import InputError, UsageError
from intseg.ops import RUN
from intseg.workbench import case, diff, dump, sides

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def golden() -> sides.Trace:
    """The definition's trace."""
    return sides.open_golden(GOLDEN / "images" / "small.png", str(GOLDEN / "models" / "intseg.safetensors"))


def words(array: np.ndarray, bits: int) -> str:
    """One element a line, in two's complement of some bits."""
    return "".join(f"{int(x) & ((1 << bits) - 1):x}\n" for x in array.reshape(-1))


@pytest.mark.parametrize("bits", [0, 32])
def test_a_folder_of_bare_files_is_compared_as_far_as_it_goes(golden: sides.Trace, tmp_path: Path, bits: int) -> None:
    first, second = "encoder.blocks.0.norm1", "encoder.blocks.0.attn.qkv"
    values = {name: golden.file.read(f"window0.{name}").copy() for name in (first, second)}
    values[second].flat[7] ^= 1
    for name, array in values.items():
        own = 8 * array.dtype.itemsize
        padded = array.view(f"uint{own}") if bits else array  # a simulator may fill up with zeros, not with the sign
        (tmp_path / f"{name}.hex").write_text(words(padded, bits or own))
    np.save(tmp_path / "window0.encoder.tokens.npy", golden.file.read("window0.encoder.tokens"))
    (tmp_path / "weights.hex").write_text("00\n")
    other = sides.open_other(tmp_path, golden, words=sides.Words(bits, bits > 0))
    report = diff.compare(golden, other, diff.Settings(seconds=0.1))  # no mistake is the cause
    assert report.first is not None
    assert (report.first.node, report.first.count, report.compared) == (second, 1, 3)
    assert any("weights.hex" in note for note in report.notes)
    assert any("are missing on the other side" in note for note in report.notes)


def test_a_folder_without_a_name_that_is_known_says_what_names_are(golden: sides.Trace, tmp_path: Path) -> None:
    for name in ("", "softmax.hex"):
        if name:
            (tmp_path / name).write_text("00\n")
        with pytest.raises(
            InputError, match=r"named like nodes \(found .*such as quantize_input\.hex|such as input\.hex"
        ):
            sides.open_other(tmp_path, golden)
    (tmp_path / "encoder.blocks.0.norm1.hex").write_text("1ff\n")
    with pytest.raises(InputError, match=r"norm1\.hex: "):
        sides.open_other(tmp_path, golden)


def test_the_case_of_a_node_is_all_that_its_bench_needs(golden: sides.Trace, tmp_path: Path) -> None:
    assert golden.model is not None
    for node in golden.model.graph.nodes[:12]:
        folder = tmp_path / node.name
        count = case.write_case(golden, node.name, 0, folder, "hex", dump.Options())
        found = dump.open_folder(folder)
        about = found.metadata or {}
        inputs = [found.read(f"in{i}") for i in range(len(node.inputs))]
        params = {name.removeprefix("param."): found.read(name) for name in found.tensors if name.startswith("param.")}
        assert count == len(inputs) + len(params) + 1
        assert np.array_equal(RUN[about["op"]](*inputs, **params, **about["attrs"]), found.read("expected"))
    with pytest.raises(UsageError, match=r"did you mean encoder\.blocks\.0\.norm2\?"):
        case.write_case(golden, "encoder.blocks.0.norm", 0, tmp_path / "x", "hex", dump.Options())
    with pytest.raises(UsageError, match="window 9 is not traced"):
        case.write_case(golden, "encoder.tokens", 9, tmp_path / "x", "hex", dump.Options())
