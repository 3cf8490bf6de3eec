"""Every node that `intseg export --form tosa` can say, run by TOSA's reference model on the node's own tensors.

pip install tosa-tools                  (in an environment of its own: it holds NumPy back)
python tests/trust/compare_tosa.py --reference .../bin/tosa_reference_model camvid-tiny golden/weights/tiny.safetensors
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import intseg
from intseg.executor import execute
from intseg.export import tosa
from intseg.graph import Graph, Node
from intseg.ops import RUN

Array = NDArray[np.generic]


def run(reference: Path, file: Path, inputs: list[Array], place: Path) -> Array:
    """The result of one graph by the reference model."""
    graph = json.loads(file.read_text(encoding="utf-8"))["regions"][0]["blocks"][0]
    for i, x in enumerate(inputs):
        np.save(place / f"input_{i}.npy", x.view(np.int8) if x.dtype == np.uint8 else x)
    out = place / "out.npy"
    out.unlink(missing_ok=True)
    names = [f"input_{i}" for i in range(len(inputs))]
    arguments = {
        "tosa_file": file,
        "flatbuffer_dir": place,
        "output_dir": place,
        "operator_fbs": reference.parent / "tosa.fbs",
        "ifm_name": ",".join(names),
        "ifm_file": ",".join(f"{name}.npy" for name in names),
        "ofm_name": graph["outputs"][0],
        "ofm_file": out.name,
        "tosa_level": "NONE",
    }
    command = [str(reference), *(f"--{name}={value}" for name, value in arguments.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        raise SystemExit(f"{file.name}: the reference model says {(done.stderr or done.stdout)[-500:]}")
    return np.load(out)


def expected(node: Node, values: dict[str, Array]) -> Array:
    """The traced result; bytes without sign are less 128 in TOSA."""
    found = values[node.name]
    return found.astype(np.int64) - 128 if node.op != "argmax" and found.dtype == np.uint8 else found


def traced(graph: Graph, image: Array) -> dict[str, Array]:
    """The image and every node's result by the definition."""
    values = {"image": image}

    def keep(node: Node, x: Array) -> None:
        values[node.name] = x

    execute(graph, image, RUN, keep)
    return values


def compare(graph: Graph, values: dict[str, Array], reference: Path) -> tuple[Counter[str], Counter[str], int]:
    """Nodes compared and refused by op, and elements that differ."""
    compared, refused, wrong = Counter[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "nodes")
        tosa.write(graph, folder)
        for entry in json.loads((folder / "map.json").read_text(encoding="utf-8"))["nodes"]:
            node = graph.node(entry["node"])
            if "cannot" in entry:
                refused[node.op] += 1
                continue
            inputs = [values[x] if x in values else graph.tensors[x] for x in node.inputs]
            found = run(reference, folder / entry["file"], inputs, Path(name))
            differ = int((found.reshape(node.shape) != expected(node, values)).sum())
            if differ:
                print(f"{node.name} ({node.op}): {differ} of {found.size} elements differ")
            compared[node.op] += 1
            wrong += differ
    return compared, refused, wrong


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a model; 4 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="weights files, or names of bundled models")
    parser.add_argument("--reference", required=True, type=Path, help="the program tosa_reference_model")
    options = parser.parse_args(arguments)
    wrong = 0
    for name in options.models:
        model = intseg.load(name)
        height, width = model.graph.info.window
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        compared, refused, differ = compare(model.graph, traced(model.graph, image), options.reference)
        ops = ", ".join(f"{op} {count}" for op, count in sorted(compared.items()))
        rest = ", ".join(f"{op} {count}" for op, count in sorted(refused.items()))
        total = compared.total() + refused.total()
        print(f"{name}: {compared.total()} of {total} nodes run, {differ} elements differ ({ops}); not in TOSA: {rest}")
        wrong += differ
    return 4 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
