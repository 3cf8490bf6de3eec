"""CONTRIBUTING's "Add an op" is true: a section, two files, an oracle, and everything knows the op.

The op goes into a copy of the package and nothing else changes there. Then a model with it is validated, saved, proved,
traced with registers and packed, an implementation that does it wrong is found out, and its truth table is made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

OP = '''"""square_half: x^2, requantized, halved by a floor."""

from intseg.arith import Machine

from ._op import MULT, SHIFT, Op, Value


def square_half(m: Machine, x, *, mult: int, shift: int):
    x = m.widen(x)
    square = m.keep("square", m.claim(x * x, low=0, why="a square"), 32)
    return m.requantize(m.keep("half", m.floor_shift(square, 1), 32), mult, shift, "int8")


def check(inputs, params, attrs) -> Value:
    return Value("int8", inputs[0].shape)


OPS = {"square_half": Op(24, square_half, (("int8",),), check, attrs={"mult": MULT, "shift": SHIFT})}
'''

EXAM = '''"""square_half."""

import numpy as np

from ._draw import SCALES, call
from ._exam import Branch, Exam, Mistake, Unit, every_int8


def _inputs(numbers):
    every = np.arange(-128, 128, dtype=np.int8)[:, None]
    for mult, shift in (*SCALES, (1, 7), (1, 3)):
        yield call("square_half", every, mult=mult, shift=shift)


EXAMS = (
    Exam(
        "square_half",
        inputs=_inputs,
        kind="square",
        branches=(Branch("odd", "odd x: the floor of the half matters", lambda f: f["in0"] % 2 == 1),),
        mistakes=(Mistake("sign", "the sign of x kept", {"square": lambda v, m: v * np.sign(m.call.inputs[0])}),),
        worst=lambda at: [([np.arange(at.inputs[0].low, at.inputs[0].high + 1).astype(np.int8)[:, None]], {})],
        units=(Unit("square_half", {"mult": 1, "shift": 7}, every_int8("square_half"), ()),),
    ),
)
'''

SECTION = """    >>> import numpy as np
    >>> from intseg.ops import RUN
    >>> RUN["square_half"](np.array([[-128, -3, 0, 3, 127]], "int8"), mult=1, shift=7).tolist()
    [[64, 0, 0, 0, 63]]
"""

ORACLE = """
def square_half(x, *, mult, shift):
    return min(max((x * x // 2 * mult + 2 ** (shift - 1)) // 2**shift, -128), 127)
"""

SCRIPT = """
import contextlib, doctest, io, json, sys
import numpy as np, safetensors.numpy
from PIL import Image
from intseg import api, store
from intseg.arith.variant import Variant
from intseg.build import GraphBuilder
from intseg.cli import main as cli
from intseg.conformance import truth_table, vectors
from intseg.exam import EXAMS
from intseg.graph import IMAGE, ModelInfo, validate
from intseg.ops import OPS, RUN, Call
from intseg.workbench.registers import evaluate


def run(*argv, code=0):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*argv, "--json"]) == code, (argv, out.getvalue())
    return json.loads(out.getvalue())


exec(open("oracle.py").read())
x = np.arange(-128, 128, dtype=np.int8)
assert RUN["square_half"](x, mult=3, shift=9).tolist() == [square_half(int(v), mult=3, shift=9) for v in x]
assert doctest.testfile("section.md", module_relative=False).failed == 0
assert list(OPS)[-1] == "square_half"

info = ModelInfo("toy", "intseg", ("a", "b", "c"), ((0, 0, 0),) * 3, (8, 8), (8, 8), 2, (0, 0, 0), "nearest", "")
b = GraphBuilder(info)
table = b.tensor("table", np.tile(np.arange(-128, 128), (3, 1)).astype(np.int8))
b.node("pixels", "quantize_input", IMAGE, table=table)
b.node("patches", "patchify", "pixels", patch=2)
b.node("squares", "square_half", "patches", mult=1, shift=7)
weight = np.random.default_rng(0).integers(-128, 128, (3, 12)).astype(np.int8)
scale = {"mult": np.full(3, 2**30, np.int32), "shift": np.full(3, 32, np.int8)}
b.node("head", "linear", "squares", weight=weight, bias=np.zeros(3, np.int32), **scale, out="int16")
b.node("scores", "to_grid", "head", height=4, width=4)
graph = b.graph("scores")
validate(graph)
assert store.loads(store.dumps(graph)).nodes == graph.nodes
store.save(graph, "toy.safetensors")

proof = next(node for node in run("prove", "toy.safetensors")["nodes"] if node["name"] == "squares")
bounds = {register["name"]: register for register in proof["registers"]}
assert list(bounds) == ["square", "half", "product", "rounding", "rounded", "result"]
assert (bounds["square"]["low"], bounds["square"]["high"], bounds["square"]["witness"]) == (0, 16384, 16384)

pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
Image.fromarray(pixels).save("toy.png")
run("trace", "toy.png", "-w", "toy.safetensors", "-o", "golden.safetensors", "--registers")
values = safetensors.numpy.load_file("golden.safetensors")
patches = values["window0.patches"]
assert np.array_equal(values["window0.squares--half"], patches.astype(int) ** 2 >> 1)

calls = {"floor": Variant(rounding="floor"), "sign": Variant(quirk="sign")}
words = {"floor": "round down (floor)", "sign": "the sign of x kept"}
for name, variant in calls.items():
    wrong = evaluate(Call("square_half", [patches], {}, {"mult": 1, "shift": 7}), variant)
    np.savez(f"{name}.npz", **{"window0.squares": wrong})
    found = run("diff", "golden.safetensors", f"{name}.npz", "-w", "toy.safetensors", "--partial", code=1)
    assert words[name] in json.dumps(found), found

kept = {node.op for node in graph.nodes} | {"cut_windows", "merge_scores", "class_map"}
for op in EXAMS.keys() - kept:
    del EXAMS[op]  # the other cases are the same as without the new op
pack = vectors.make_pack(api.load("toy.safetensors"))
reached = {row["name"]: row["count"] for row in pack.coverage if row["name"].startswith("square_half.")}
assert "square_half.odd" in reached and "square_half.int8-tie-positive" in reached and all(reached.values()), reached
assert "square_half.int8-tie-negative" not in reached  # a square is never negative
assert "ops/square_half.safetensors" in pack.files

table = truth_table.make("square_half", {})
assert table.columns["result"].tolist() == [square_half(v, mult=1, shift=7) for v in range(-128, 128)]
print("all of it")
"""


def test_an_op_is_two_files_a_section_and_an_oracle(tmp_path: Path) -> None:
    package = tmp_path / "intseg"
    shutil.copytree(ROOT / "intseg", package, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__", "tools"))
    before = {path: path.read_bytes() for path in package.rglob("*.py")}
    (package / "ops" / "square_half.py").write_text(OP)
    (package / "exam" / "square_half.py").write_text(EXAM)
    changed = [path for path in package.rglob("*.py") if before.get(path) != path.read_bytes()]
    assert len(changed) == 2
    (tmp_path / "section.md").write_text(SECTION)
    (tmp_path / "oracle.py").write_text(ORACLE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.stdout.endswith("all of it\n"), done.stdout + done.stderr
