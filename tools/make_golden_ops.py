"""Golden vectors of the ops: golden/ops/<op>.safetensors, expected values from the oracle in tests/naive.py.

    python tools/make_golden_ops.py [--check]

No expected value comes from the code it judges: the oracle computes on plain Python integers. The operands of a file
stay what they are; those of an op that has no file yet are the calls of its exam, those of a new type of result are
added, and a file that is deleted is made of them again. --check compares instead of writing. Format: tensors
`case{i}.in{j}`, `case{i}.param.{role}`, `case{i}.expected`, and one metadata key `intseg` with canonical JSON
{"attrs": [...], "op": ..., "seed": ...}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from intseg.exam import EXAMS
from intseg.files import write_atomically
from intseg.ops import OPS, Call

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "golden" / "ops"
sys.path.insert(0, str(ROOT / "tests"))
import naive  # noqa: E402

SEED = 20250
"""Of the numbers that the first operands were drawn with; files of later ops say it too."""


def calls(op: str) -> Iterator[Call]:
    """The calls whose operands the op's file holds."""
    path = FOLDER / f"{op}.safetensors"
    if not path.exists():
        yield from EXAMS[op].calls()
        return
    with safetensors.safe_open(path, "np") as file:
        attributes = json.loads(file.metadata()["intseg"])["attrs"]
    tensors = safetensors.numpy.load_file(path)
    held = {attrs.get("out") for attrs in attributes}
    for i, attrs in enumerate(attributes):
        inputs = [tensors[f"case{i}.in{j}"] for j in range(len(OPS[op].inputs))]
        yield Call(op, inputs, {role: tensors[f"case{i}.param.{role}"] for role in OPS[op].params}, attrs)
    yield from (call for call in EXAMS[op].calls() if call.attrs.get("out") not in held)


def make(op: str) -> bytes:
    """The file of one op. Refuses weak vectors: in a third of the cases at least, results must take three values."""
    tensors: dict[str, np.ndarray] = {}
    attributes = []
    varied = 0
    for i, call in enumerate(calls(op)):
        expected = naive.evaluate(op, call.inputs, call.params, call.attrs)
        tensors |= {f"case{i}.in{j}": x for j, x in enumerate(call.inputs)}
        tensors |= {f"case{i}.param.{role}": p for role, p in call.params.items()}
        tensors[f"case{i}.expected"] = expected
        attributes.append(call.attrs)
        varied += len(np.unique(expected)) > 2
    if 3 * varied < len(attributes):
        raise SystemExit(f"{op}: only {varied} of {len(attributes)} cases have more than two different results")
    text = json.dumps({"attrs": attributes, "op": op, "seed": SEED}, sort_keys=True, separators=(",", ":"))
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    data: bytes = safetensors.numpy.save(contiguous, metadata={"intseg": text})
    return data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    different = []
    for op in OPS:
        data, path = make(op), FOLDER / f"{op}.safetensors"
        if arguments.check and (not path.exists() or path.read_bytes() != data):
            different.append(op)
        elif not arguments.check:
            write_atomically(path, data)
    strangers = sorted({p.stem for p in FOLDER.glob("*.safetensors")} - set(OPS))
    total = sum(p.stat().st_size for p in FOLDER.glob("*.safetensors"))
    print(f"{len(OPS)} ops, {total} bytes, different: {different or 'none'}, unknown files: {strangers or 'none'}")
    return 1 if different or strangers else 0


if __name__ == "__main__":
    raise SystemExit(main())
