"""`intseg export --form tosa`: every file computes what the node does, by an evaluator written from TOSA's pseudocode.

TOSA's own reference model runs the same files in `tests/trust/compare_tosa.py`; its package holds NumPy back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intseg
from intseg.cli import main as cli
from intseg.export import tosa
from tests.trust.compare_tosa import expected, traced

MODELS = Path(__file__).parents[1] / "golden" / "models"

Values = list[Any]


def rescale(x: Any, mult: Any, shift: Any, zero: Any, to: Any, flags: dict[str, Any]) -> Any:
    """RESCALE, scale32, SINGLE_ROUND: apply_scale_32 demands a shift of 2 to 62 and a value below 2^(shift - 1)."""
    assert flags["scale32"]
    assert flags["rounding_mode"] == "SINGLE_ROUND"
    assert flags["per_channel"] == (mult.size > 1)
    value, m, s = (v.astype(np.int64) for v in (x, mult, shift))
    assert ((s >= 2) & (s <= 62) & (m >= 0)).all()
    assert ((value >= -(np.int64(1) << (s - 1))) & (value < np.int64(1) << (s - 1))).all()
    found = (value * m + (np.int64(1) << (s - 1))) >> s
    assert (zero, to) == (0, 0)
    return np.clip(found, np.iinfo(to.dtype).min, np.iinfo(to.dtype).max).astype(to.dtype)


def part(x: Any, start: Any, size: Any) -> Any:
    return x[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]


def fits(x: Any) -> Any:
    """INT32 arithmetic must not overflow."""
    assert (abs(x) < 2**31).all()
    return x.astype(np.int32)


WIDE = np.int64
OPERATORS: dict[str, Callable[[Values, dict[str, Any]], Any]] = {
    "RESHAPE": lambda v, a: v[0].reshape(v[1]),
    "TRANSPOSE": lambda v, a: v[0].transpose(a["perms"]),
    "SLICE": lambda v, a: part(*v),
    "CONCAT": lambda v, a: np.concatenate(v, axis=a["axis"]),
    "TILE": lambda v, a: np.tile(v[0], v[1]),
    "MATMUL": lambda v, a: fits(v[0].astype(WIDE) @ v[1].astype(WIDE)),
    "RESCALE": lambda v, a: rescale(v[0], v[1], v[2], v[3][0], v[4][0], a),
    "ADD": lambda v, a: fits(v[0].astype(WIDE) + v[1]),
    "SUB": lambda v, a: fits(v[0].astype(WIDE) - v[1]),
    "MAXIMUM": lambda v, a: np.maximum(*v),
    "MINIMUM": lambda v, a: np.minimum(*v),
    "ARITHMETIC_RIGHT_SHIFT": lambda v, a: v[0] >> v[1],
    "CLAMP": lambda v, a: np.clip(
        v[0], *(np.array(a[n], np.uint8).view(v[0].dtype)[0] for n in ("min_val", "max_val"))
    ),
    "TABLE": lambda v, a: v[1][v[0].astype(WIDE) + 128],
    "GATHER": lambda v, a: np.take_along_axis(v[0], v[1][..., None], axis=1),
    "REDUCE_MAX": lambda v, a: v[0].max(axis=a["axis"], keepdims=True),
    "ARGMAX": lambda v, a: v[0].argmax(axis=a["axis"]).astype(np.int32),
}


def evaluate(made: dict[str, Any], inputs: list[Any]) -> Any:
    """The result of a file. Every tensor has the type and the shape that the file states."""
    (block,) = made["regions"][0]["blocks"]
    stated = {t["name"]: t for t in block["tensors"]}
    shapes = {s["name"]: np.array(s["data"], np.uint8).view("<i8") for s in block["shapes"]}
    values: dict[str, Any] = {}
    for name, x in zip(block["inputs"], inputs, strict=True):
        values[name] = x.view(np.int8) if x.dtype == np.uint8 else x
    for operator in block["operators"]:
        (out,) = operator["outputs"]
        operands = [values.get(name, shapes.get(name)) for name in operator["inputs"]]
        if operator["op"] == "CONST_SHAPE":
            continue
        dtype, shape = stated[out]["type"].lower(), stated[out]["shape"]
        if operator["op"] == "CONST":
            found = np.array(stated[out]["data"], np.uint8).view(dtype).reshape(shape)
        elif operator["op"] == "CAST":
            found = operands[0].astype(dtype)
            assert (found == operands[0]).all()
        else:
            found = OPERATORS[operator["op"]](operands, operator["attribute"])
        assert (found.dtype, list(found.shape)) == (dtype, shape), operator
        values[out] = found
    return values[block["outputs"][0]]


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.safetensors")), ids=lambda path: path.stem)
def test_every_file_computes_its_node(path: Path) -> None:
    graph = intseg.load(path).graph
    image = np.random.default_rng(1).integers(0, 256, (*graph.info.window, 3)).astype(np.uint8)
    values, made = traced(graph, image), tosa.nodes(graph)
    ran = set()
    for node in graph.nodes:
        found = made[node.name]
        if isinstance(found, str):
            assert found
            continue
        inputs = [values[x] if x in values else graph.tensors[x] for x in node.inputs]
        result = evaluate(json.loads(json.dumps(found)), inputs)
        assert (result == expected(node, values)).all(), node.name
        ran.add(node.op)
    assert {"linear", "quantize_input", "patchify", "add"} <= ran
    assert "layernorm" not in ran


def test_the_command_writes_a_file_a_node_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tosa"
    assert cli.main(["export", str(MODELS / "intseg.safetensors"), "-o", str(folder), "--form", "tosa"]) == 0
    text = capsys.readouterr().out
    assert "50 of 67 nodes" in text
    assert "9 nodes of layernorm: " in text
    entries = json.loads((folder / "map.json").read_text(encoding="utf-8"))["nodes"]
    assert len(entries) == 67
    assert {e["file"] for e in entries if "file" in e} == {p.name for p in folder.iterdir()} - {"map.json"}


def test_registers_beyond_int32_and_values_beyond_a_shift_are_refused() -> None:
    machine = tosa.TosaMachine({"wide": (0, 2**31), "low": (-(2**19) - 1, 5), "fits": (-(2**19), 5)})
    x = machine.tensor("x", "int32", (2,))
    with pytest.raises(tosa.CannotError, match=r"register wide reaches \[0, 2147483648\], beyond INT32"):
        machine.keep("wide", x, 64)
    with pytest.raises(tosa.CannotError, match=r"\[-524289, 5\] at a shift of 20"):
        machine.rescale(machine.keep("low", x, 32), 2**30, 20, "int8")
    assert machine.rescale(machine.keep("fits", x, 32), 2**30, 20, "int8").dtype == "int8"
