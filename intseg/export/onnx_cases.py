"""The op cases of a conformance pack as ONNX node tests: any backend can be judged by them, without intseg."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import numpy_helper

from intseg import files
from intseg.conformance import vectors
from intseg.export import onnx_model
from intseg.ops import OPS, RUN, Call

MOST = 2**20
"""Elements of an operand of a case that is written: the largest ones only show that sums do not overflow."""


def cases() -> Iterator[tuple[str, Call]]:
    """Names and calls, as `onnx.backend.test` names folders."""
    found = vectors.op_cases()
    for op in OPS:
        for i, call in enumerate(found[op]):
            if max(x.size for x in (*call.inputs, *call.params.values())) <= MOST:
                yield f"test_{op}_{i}", call


def files_of(call: Call) -> dict[str, bytes]:
    """model.onnx, and in test_data_set_0 its operands and its result by the definition."""
    inputs = [(x.dtype.name, x.shape) for x in call.inputs]
    params = {role: (x.dtype.name, x.shape) for role, x in call.params.items()}
    made = onnx_model.op_model(call.op, inputs, params, call.attrs)
    result = RUN[call.op](*call.inputs, **call.params, **call.attrs)
    found = {"model.onnx": made.SerializeToString(deterministic=True)}
    operands = zip([x.name for x in made.graph.input], (*call.inputs, *call.params.values()), strict=True)
    for i, (name, array) in enumerate(operands):
        found[f"input_{i}.pb"] = numpy_helper.from_array(array, name).SerializeToString(deterministic=True)
    found["output_0.pb"] = numpy_helper.from_array(result, "result").SerializeToString(deterministic=True)
    return found


def write(folder: Path) -> int:
    """All of them into a new folder. Returns how many."""
    number = 0
    with files.new_folder(folder) as made:
        for name, call in cases():
            data = made / name / "test_data_set_0"
            data.mkdir(parents=True)
            for file, content in files_of(call).items():
                with files.create((data.parent if file == "model.onnx" else data) / file) as out:
                    out.write(content)
            number += 1
    return number
