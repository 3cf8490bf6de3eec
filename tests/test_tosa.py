"""`intseg export --form tosa`: the files compute what the nodes do, by an evaluator written from TOSA's pseudocode.

TOSA's own reference model runs the same files in `tests/trust/compare_tosa.py`; its package holds NumPy back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intseg
from intseg.arith import limits
from intseg.arith.bounds import Bounds
from intseg.arith.interval import Interval
from intseg.cli import main as cli
from intseg.conformance import vectors
from intseg.errors import ModelError
from intseg.export import tosa
from intseg.export.tosa_block import Block, CannotError
from intseg.export.tosa_machine import TosaMachine
from intseg.ops import OPS, RUN, Call
from tests.trust.compare_tosa import as_tosa, raw, signed, traced

MODELS = Path(__file__).parents[1] / "golden" / "models"

Values = list[Any]
WIDE = np.int64


def rescale(x: Any, mult: Any, shift: Any, zero: Any, to: Any, flags: dict[str, Any]) -> Any:
    """RESCALE, scale32, SINGLE_ROUND: apply_scale_32 demands a shift of 2 to 62 and a value below 2^(shift - 1)."""
    assert flags["scale32"]
    assert flags["rounding_mode"] == "SINGLE_ROUND"
    assert flags["per_channel"] == (mult.size > 1)
    value, m, s = (v.astype(WIDE) for v in (x, mult, shift))
    assert ((s >= 2) & (s <= 62) & (m >= 0)).all()
    assert ((value >= -(WIDE(1) << (s - 1))) & (value < WIDE(1) << (s - 1))).all()
    found = (value * m + (WIDE(1) << (s - 1))) >> s
    assert (zero, to) == (0, 0)
    return np.clip(found, np.iinfo(to.dtype).min, np.iinfo(to.dtype).max).astype(to.dtype)


def part(x: Any, start: Any, size: Any) -> Any:
    return x[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]


def fits(x: Any) -> Any:
    """INT32 arithmetic must not overflow."""
    assert ((x >= -(2**31)) & (x < 2**31)).all()
    return x.astype(np.int32)


def shift_right(x: Any, n: Any, rounded: bool) -> Any:
    """Adds the last bit that is shifted out, if `rounded`."""
    assert ((n >= 0) & (n <= 31)).all()
    return (x >> n) + (rounded & (n > 0) & ((x >> np.maximum(n - 1, 0)) & 1 == 1)).astype(x.dtype)


def shift_left(x: Any, n: Any) -> Any:
    assert ((n >= 0) & (n <= 31)).all()
    return fits(x.astype(WIDE) << n)


def divide(a: Any, b: Any) -> Any:
    """Truncates."""
    assert (b != 0).all()
    return (np.sign(a) * np.sign(b) * (abs(a.astype(WIDE)) // abs(b.astype(WIDE)))).astype(np.int32)


def reduce_sum(x: Any, axis: int) -> Any:
    """In any order: no partial sum may overflow."""
    fits(abs(x.astype(WIDE)).sum(axis=axis))
    return x.sum(axis=axis, keepdims=True).astype(np.int32)


def multiply(a: Any, b: Any, shift: Any) -> Any:
    assert shift == 0
    return fits(a.astype(WIDE) * b)


def leading_zeros(x: Any) -> Any:
    return np.array([32 - (int(v) & 0xFFFFFFFF).bit_length() for v in x.ravel()], np.int32).reshape(x.shape)


OPERATORS: dict[str, Callable[[Values, dict[str, Any]], Any]] = {
    "RESHAPE": lambda v, a: v[0].reshape(v[1]),
    "TRANSPOSE": lambda v, a: v[0].transpose(a["perms"]),
    "SLICE": lambda v, a: part(*v),
    "CONCAT": lambda v, a: np.concatenate(v, axis=a["axis"]),
    "IDENTITY": lambda v, a: v[0],
    "MATMUL": lambda v, a: fits(v[0].astype(WIDE) @ v[1].astype(WIDE)),
    "RESCALE": lambda v, a: rescale(v[0], v[1], v[2], v[3][0], v[4][0], a),
    "ADD": lambda v, a: fits(v[0].astype(WIDE) + v[1]),
    "SUB": lambda v, a: fits(v[0].astype(WIDE) - v[1]),
    "MUL": lambda v, a: multiply(*v),
    "INTDIV": lambda v, a: divide(*v),
    "MAXIMUM": lambda v, a: np.maximum(*v),
    "MINIMUM": lambda v, a: np.minimum(*v),
    "BITWISE_AND": lambda v, a: v[0] & v[1],
    "ARITHMETIC_RIGHT_SHIFT": lambda v, a: shift_right(*v, a["round"]),
    "LOGICAL_LEFT_SHIFT": lambda v, a: shift_left(*v),
    "CLZ": lambda v, a: leading_zeros(v[0]),
    "EQUAL": lambda v, a: v[0] == v[1],
    "GREATER_EQUAL": lambda v, a: v[0] >= v[1],
    "SELECT": lambda v, a: np.where(*v),
    "CLAMP": lambda v, a: np.clip(
        v[0], *(np.array(a[n], np.uint8).view(v[0].dtype)[0] for n in ("min_val", "max_val"))
    ),
    "TABLE": lambda v, a: v[1][v[0].astype(WIDE) + 128],
    "GATHER": lambda v, a: np.take_along_axis(v[0], v[1][..., None], axis=1),
    "REDUCE_MAX": lambda v, a: v[0].max(axis=a["axis"], keepdims=True),
    "REDUCE_MIN": lambda v, a: v[0].min(axis=a["axis"], keepdims=True),
    "REDUCE_SUM": lambda v, a: reduce_sum(v[0], a["axis"]),
    "ARGMAX": lambda v, a: v[0].argmax(axis=a["axis"]).astype(np.int32),
}


_ANY = (np.int8, np.int16, np.int32)
_MOVED = ("TRANSPOSE", "SLICE", "CONCAT", "IDENTITY", "GATHER", "CAST", "RESCALE")
TAKES = dict.fromkeys(_MOVED, _ANY) | {
    "CONST": _ANY,
    "SELECT": (np.bool_,),
    "ARGMAX": (np.int8, np.int16),
    "CLAMP": (np.int8, np.int16),
}
TAKES |= {"TABLE": (np.int8,), "MATMUL": (np.int8,), "RESHAPE": (*_ANY, np.bool_)}
"""Types of the first operand in PRO-INT with EXT-INT16, where they are others than INT32."""


def evaluate(made: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file. Every tensor has the type and the shape that the file states."""
    (block,) = made["regions"][0]["blocks"]
    stated = {t["name"]: t for t in block["tensors"]}
    shapes = {s["name"]: np.array(s["data"], np.uint8).view("<i8") for s in block["shapes"]}
    assert len(stated) == len(block["tensors"])
    values: dict[str, Any] = {name: inputs[name] for name in block["inputs"]}
    for operator in block["operators"]:
        (out,) = operator["outputs"]
        operands = [values.get(name, shapes.get(name)) for name in operator["inputs"]]
        if operator["op"] == "CONST_SHAPE":
            continue
        dtype, shape = stated[out]["type"].lower(), stated[out]["shape"]
        assert all(x.dtype in TAKES.get(operator["op"], (np.int32,)) for x in operands[:1] if isinstance(x, np.ndarray))
        if operator["op"] == "CONST":
            found = np.array(stated[out]["data"], np.uint8).view(dtype).reshape(shape)
        elif operator["op"] == "CAST":
            found = operands[0].astype(dtype)
            assert (found == operands[0]).all()
        else:
            found = OPERATORS[operator["op"]](operands, operator["attribute"])
        assert (found.dtype, list(found.shape)) == (dtype, shape), operator
        values[out] = found
    assert {*block["outputs"]} <= values.keys()
    return values


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.safetensors")), ids=lambda path: path.stem)
def test_the_whole_and_its_nodes(path: Path) -> None:
    """Every node in the file of the whole graph; of the files of nodes one of each op."""
    graph = intseg.load(path).graph
    image = np.random.default_rng(1).integers(0, 256, (*graph.info.window, 3)).astype(np.uint8)
    values, made = traced(graph, image), tosa.nodes(graph)
    given = as_tosa(graph, values)
    found = evaluate(tosa.model_file(graph, labels=True), {"image": given["image"]})
    for node in graph.nodes:
        assert (found[node.name] == given[node.name]).all(), node.name
    assert (found["labels"] == given["labels"]).all()
    for node in {node.op: node for node in graph.nodes}.values():
        file = made[node.name]
        assert isinstance(file, dict), file
        assert (evaluate(json.loads(json.dumps(file)), given)[node.name] == given[node.name]).all(), node.name


def written(call: Call) -> dict[str, Any] | str:
    """A call of an op as a file, for every input of its type that the certificate lets pass, else for its own."""
    for whole in (True, False):
        block, bounds = Block(), Bounds("node", call.op)
        machine = TosaMachine(block, bounds)
        ends = [limits(x.dtype.name) if whole else (int(x.min()), int(x.max())) for x in call.inputs]
        known = [Interval(*end, shape=x.shape) for end, x in zip(ends, call.inputs, strict=True)]
        try:
            cells = [block.tensor(f"input_{i}", x.dtype.name, x.shape) for i, x in enumerate(call.inputs)]
            triples = zip(cells, call.inputs, known, strict=True)
            inputs = [machine.given(cell, x.dtype.name, k) for cell, x, k in triples]
            OPS[call.op].define(bounds, *known, **call.params, **call.attrs)
            result = OPS[call.op].define(machine, *inputs, **call.params, **call.attrs).cell
        except ModelError:
            continue
        except CannotError as error:
            return str(error)
        block.operator("IDENTITY", [result], str(result.dtype), result.shape, name="result")
        return block.file([cell.name for cell in cells], ["result"])
    raise AssertionError("neither")


@pytest.mark.parametrize(
    ("mult", "shift", "ends", "scale"),
    [
        (5, 8, (-128, 127), (5, 8)),
        (5, 8, (-129, 0), None),
        (5, 8, (0, 128), None),
        (2**30 - 1, 1, (-2, 1), (2**31 - 2, 2)),
        (2**30, 1, (-1, 0), None),
    ],
)
def test_a_rescale_takes_what_its_pseudocode_takes(mult: int, shift: int, ends: tuple[int, int], scale: Any) -> None:
    machine = TosaMachine(Block(), Bounds("node", "add"))
    x = machine.given(machine.block.tensor("x", "int32", (3,)), "int32", Interval(*ends, shape=(3,)))
    found = machine._scale(x, mult, shift)
    assert (found if found is None else tuple(int(n) for (n,) in found)) == scale


@pytest.mark.parametrize("op", OPS)
def test_an_op_gives_the_same_bits(op: str) -> None:
    """The cases of a conformance pack, which reach every branch."""
    calls = [call for call in vectors.op_cases()[op] if all(x.size < 3000 for x in call.inputs)]
    assert calls
    ran = 0
    for call in calls[:: max(len(calls) // 12, 1)]:
        made = written(call)
        if isinstance(made, str):
            continue
        given = {f"input_{i}": raw(x) if op == "quantize_input" else signed(x) for i, x in enumerate(call.inputs)}
        wanted = RUN[op](*call.inputs, **call.params, **call.attrs)
        assert (evaluate(made, given)["result"] == (wanted if op == "argmax" else signed(wanted))).all()
        ran += 1
    assert ran, made


def test_the_command_writes_a_file_a_node_and_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tosa"
    graph = intseg.load(MODELS / "intseg.safetensors").graph
    assert cli.main(["export", str(MODELS / "intseg.safetensors"), "-o", str(folder), "--form", "tosa"]) == 0
    assert "67 of 67 nodes" in capsys.readouterr().out
    entries = json.loads((folder / "map.json").read_text(encoding="utf-8"))["nodes"]
    assert len(entries) == 67
    for labels, file in (
        (False, json.loads((folder / "model.json").read_text())),
        (True, tosa.model_file(graph, True)),
    ):
        assert file["regions"][0]["blocks"][0]["outputs"] == [graph.output, *["labels"] * labels]
    files = {p.name for p in folder.iterdir()}
    assert files == {"map.json", "model.json", *(e["file"] for e in entries)}
