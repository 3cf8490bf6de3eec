"""What `intseg export --form tosa` writes, run by TOSA's reference model: every node on its own tensors, the whole.

pip install tosa-tools                  (in an environment of its own: it holds NumPy back)
python tests/trust/compare_tosa.py --reference .../bin/tosa_reference_model camvid-tiny golden/models/*.safetensors
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
from intseg.windows import class_map

Array = NDArray[np.generic]


def run(reference: Path, file: Path, given: dict[str, Array], place: Path) -> dict[str, Array]:
    """The results of one graph by the reference model."""
    graph = json.loads(file.read_text(encoding="utf-8"))["regions"][0]["blocks"][0]
    for i, name in enumerate(graph["inputs"]):
        np.save(place / f"input_{i}.npy", given[name])
    out = {name: place / f"output_{i}.npy" for i, name in enumerate(graph["outputs"])}
    for path in out.values():
        path.unlink(missing_ok=True)
    arguments = {
        "tosa_file": file,
        "flatbuffer_dir": place,
        "output_dir": place,
        "operator_fbs": reference.parent / "tosa.fbs",
        "ifm_name": ",".join(graph["inputs"]),
        "ifm_file": ",".join(f"input_{i}.npy" for i in range(len(graph["inputs"]))),
        "ofm_name": ",".join(out),
        "ofm_file": ",".join(path.name for path in out.values()),
        "tosa_level": "EIGHTK",
    }
    command = [str(reference), *(f"--{name}={value}" for name, value in arguments.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not all(path.exists() for path in out.values()):
        raise SystemExit(f"{file.name}: the reference model says {(done.stderr or done.stdout)[-500:]}")
    return {name: np.load(path) for name, path in out.items()}


def raw(x: Array) -> Array:
    """Bytes as INT8 of the same bits."""
    return x.view(np.int8) if x.dtype == np.uint8 else x


def signed(x: Array) -> Array:
    """Bytes without sign less 128."""
    return (x ^ np.uint8(128)).view(np.int8) if x.dtype == np.uint8 else x


def as_tosa(graph: Graph, values: dict[str, Array]) -> dict[str, Array]:
    """Inputs and results of the files by name."""
    scores = values[graph.output]
    found = {"image": raw(values["image"]), **graph.tensors, tosa.LABELS: labels(graph, scores)}
    return found | {n.name: values[n.name] if n.op == "argmax" else signed(values[n.name]) for n in graph.nodes}


def labels(graph: Graph, scores: Array) -> Array:
    """Of one window, or the class."""
    info = graph.info
    if info.classifies:
        return scores.argmax(keepdims=True)
    return class_map(scores, info.upsample, info.patch, *info.window)


def traced(graph: Graph, image: Array) -> dict[str, Array]:
    """The image and every node's result by the definition."""
    values = {"image": image}

    def keep(node: Node, x: Array) -> None:
        values[node.name] = x

    execute(graph, image, RUN, keep)
    return values


def compare(graph: Graph, values: dict[str, Array], reference: Path) -> tuple[Counter[str], Counter[str], int]:
    """Files that ran and nodes refused by op, and elements that differ; the whole gives scores and labels."""
    ran, refused, wrong = Counter[str](), Counter[str](), 0
    given = as_tosa(graph, values)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "nodes")
        tosa.write(graph, folder, labels=True)
        entries = json.loads((folder / tosa.MAP).read_text(encoding="utf-8"))["nodes"]
        refused.update(entry["op"] for entry in entries if "cannot" in entry)
        files = [(entry["op"], entry["file"]) for entry in entries if "file" in entry]
        for op, file in [*files, *([] if refused else [("whole", tosa.MODEL)])]:
            for node, found in run(reference, folder / file, given, Path(name)).items():
                differ = int((found.reshape(given[node].shape) != given[node]).sum())
                if differ:
                    print(f"{file}: {node}: {differ} of {found.size} elements differ")
                wrong += differ
            ran[op] += 1
    return ran, refused, wrong


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
        ran, refused, differ = compare(model.graph, traced(model.graph, image), options.reference)
        ops = ", ".join(f"{op} {count}" for op, count in sorted(ran.items()))
        rest = f"; not in TOSA: {dict(refused)}" if refused else ""
        print(f"{name}: {ran.total()} files run, {differ} elements differ ({ops}){rest}", flush=True)
        wrong += differ
    return 4 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
