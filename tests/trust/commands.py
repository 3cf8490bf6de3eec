#!/usr/bin/env python3
"""Every command on models that the random graphs are: it works, or says in one line why not. Never a traceback.

    python tests/trust/commands.py --random 20 --adversarial 20     so many graphs of either family; counts by ending
    python tests/trust/commands.py --only "adversarial 7:6"         one graph

Every other graph has windows that overlap and are summed in pixels. Exit code 1 where a command ends otherwise than it
may.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import random_graphs
from PIL import Image

from intseg import store
from intseg.cli import main as cli
from intseg.graph import Graph

ENDINGS = (0, 3, 4)
"""Done, a model that is refused, an input that is. The others would be this program's fault."""

LINES = (
    "inspect w.safetensors",
    "inspect w.safetensors --by op --json --svg g.svg --dot g.dot",
    "prove w.safetensors",
    "prove w.safetensors --by node --json",
    "infer a.png -w w.safetensors -o labels.png",
    "infer a.png b.png -w w.safetensors -o out --json --force",
    "eval --images photos --labels truth -w w.safetensors --json",
    "report a.png -w w.safetensors -o r.html",
    "quant-report w.safetensors a.png",
    "quant-report w.safetensors a.png --json",
    "card w.safetensors -o card --force",
    "trace a.png -w w.safetensors --registers -o t.safetensors",
    "diff t.safetensors t.safetensors -w w.safetensors --json",
    "diff a.png t.safetensors -w w.safetensors --html d.html --minimize m.safetensors",
    "dump t.safetensors --format hex -o hex",
    "dump w.safetensors --format npz -o npz",
    "dump w.safetensors --format flat -o w.flat",
    "dump a.png -w w.safetensors --node NODE --case case --format mem",
    "profile a.png -w w.safetensors --repeat 1 --trace p.json",
    "truth-table gelu_table -w w.safetensors -o table.csv",
    "vectors -w w.safetensors -o pack",
    "verify pack --backend numpy",
    "export w.safetensors -o w.onnx",
    "export w.safetensors -o qdq.onnx --form qdq",
    "export w.safetensors -o tosa --form tosa",
    "verify --onnx w.onnx -w w.safetensors",
    "infer c.png -w w.safetensors -o c_labels.png --overlay c_over.png",
)

ONCE = ("doctor --json", "completion bash")
"""Commands that no model changes."""


def overlapping(graph: Graph) -> Graph:
    """The same graph, its windows half a window apart and summed in pixels."""
    stride = tuple((n + 1) // 2 for n in graph.info.window)
    return dataclasses.replace(graph, info=dataclasses.replace(graph.info, stride=stride, merge="pixel"))


def write(case: random_graphs.Case, graph: Graph, folder: Path) -> None:
    """The model, an image of a window, a smaller one, a larger one, and labels."""
    store.save(graph, folder / "w.safetensors")
    for name in ("photos", "truth"):
        (folder / name).mkdir()
    Image.fromarray(case.image).save(folder / "a.png")
    Image.fromarray(case.image[: case.size[0], : case.size[1]]).save(folder / "b.png")
    Image.fromarray(np.concatenate([case.image, case.other])).save(folder / "c.png")
    Image.fromarray(case.image).save(folder / "photos" / "a.png")
    Image.fromarray(np.zeros(case.image.shape[:2], np.uint8)).save(folder / "truth" / "a.png")


def endings(case: random_graphs.Case, graph: Graph) -> Iterator[tuple[str, int, str]]:
    """Command line, exit code and the last line of standard error of every command, in the working folder."""
    write(case, graph, Path())
    for line in LINES:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(line.replace("NODE", graph.nodes[-1].name).split())
        yield line, code, (errors.getvalue().splitlines() or [""])[-1]


def is_wrong(line: str, code: int) -> bool:
    """Whether a command ended otherwise than it may; a table of an op needs a model that has it, ONNX its package."""
    onnx = "onnxruntime" if line.startswith("verify --onnx") else "onnx" if line.startswith("export") else ""
    lacks = line.startswith("truth-table") or (onnx and not importlib.util.find_spec(onnx))
    return code not in ENDINGS and not (lacks and code == 2)


def campaign(names: list[str]) -> tuple[Counter[int], list[tuple[str, str, int, str]]]:
    """Every command on every graph of these names: how often each ending, and what should not have been."""
    counts: Counter[int] = Counter()
    wrong = []
    for i, name in enumerate(names):
        case = random_graphs.parse(name)
        graph = overlapping(case.graph) if i % 2 else case.graph
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for line, code, error in endings(case, graph):
                counts[code] += 1
                if is_wrong(line, code):
                    wrong.append((f"{name} {graph.info.merge}", line, code, error))
                    print(*wrong[-1], sep=" | ", flush=True)
    return counts, wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Every command on random graphs.")
    parser.add_argument("--random", type=int, default=20, metavar="N", help="graphs of the family random (20)")
    parser.add_argument("--adversarial", type=int, default=20, metavar="N", help="of the family adversarial (20)")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only", metavar="NAME", help='one graph, such as "adversarial 7:6"')
    args = parser.parse_args(argv)
    counted = zip(random_graphs.FAMILIES, (args.random, args.adversarial), strict=True)
    names = [f"{family} {args.seed}:{i}" for family, number in counted for i in range(number)]
    names = [args.only] if args.only else names
    warnings.simplefilter("ignore")
    start = time.monotonic()
    counts, wrong = campaign(names)
    seconds = time.monotonic() - start
    print(f"{sum(counts.values())} commands on {len(names)} graphs in {seconds:.0f} s")
    print(", ".join(f"exit code {code}: {count}" for code, count in sorted(counts.items())))
    print(f"{len(wrong)} ended otherwise than they may")
    print(json.dumps({"graphs": len(names), "endings": counts, "wrong": len(wrong), "seconds": round(seconds)}))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
