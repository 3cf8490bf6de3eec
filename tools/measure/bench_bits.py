#!/usr/bin/env python3
"""Files of fewer bits beside INT8: bytes against the sum of weights times bits, and the time to load them.

    python tools/measure/bench_bits.py                     base size, random weights
    python tools/measure/bench_bits.py --size small --runs 9

Every weight of a linear layer gets the same bits; all is one graph otherwise. Loads of all files take turns; printed is
the median of the processor's time, which other work on the machine does not count in, and what it is of INT8's.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from intseg import store
from intseg.graph import Graph
from intseg.ops import OPS
from intseg.reports.table import table
from intseg.tools.measure import bench

BITS = (8, 7, 6, 5, 4, 3, 2)


def narrowed(graph: Graph, weights: int, activations: int = 8) -> Graph:
    """The graph with weights of linear layers in so many bits, packed unless these are 8, and INT8 activations too."""
    names = [node.params["weight"] for node in graph.nodes if node.op == "linear"]
    tables = [node.params["table"] for node in graph.nodes if "table" in node.params and node.dtype == "int8"]
    tensors = dict(graph.tensors) | {name: graph.tensors[name] >> np.int8(8 - weights) for name in names}
    tensors |= {name: graph.tensors[name] >> np.int8(8 - activations) for name in tables}
    nodes = [
        dataclasses.replace(node, attrs={**node.attrs, "out": f"int{activations}"})
        if activations < 8 and node.dtype == "int8" and "out" in OPS[node.op].attrs
        else node
        for node in graph.nodes
    ]
    packed = dict.fromkeys(names, weights) if weights < 8 else {}
    return dataclasses.replace(graph, nodes=tuple(nodes), tensors=tensors, packed=packed)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; status 1 where a file is more than 2 % larger than its weights times bits and the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(bench.SHAPES), default="base", help="of the model (base)")
    parser.add_argument("--runs", type=int, default=5, help="loads of every file (5)")
    args = parser.parse_args(argv)
    graph = bench.RandomGraph(dataclasses.replace(bench.SHAPES[args.size], image=512)).build()
    count = sum(graph.tensors[node.params["weight"]].size for node in graph.nodes if node.op == "linear")
    rest = sum(tensor.nbytes for tensor in graph.tensors.values()) - count
    with tempfile.TemporaryDirectory() as folder:
        files = {bits: Path(folder) / f"w{bits}.safetensors" for bits in BITS}
        sizes = {bits: len(store.save(narrowed(graph, bits), path)) for bits, path in files.items()}
        seconds: dict[int, list[float]] = {bits: [] for bits in BITS}
        for _ in range(args.runs):
            for bits, path in files.items():
                start = time.process_time()
                store.load(path)
                seconds[bits].append(time.process_time() - start)
    median = {bits: statistics.median(found) for bits, found in seconds.items()}
    cells = [("weights", "file MB", "weights x bits MB", "others MB", "file / both", "load, CPU ms", "of INT8")]
    for bits in BITS:
        packed = count * bits / 8
        cells.append(
            (
                f"{bits} bits",
                *(f"{n / 1e6:.2f}" for n in (sizes[bits], packed, rest)),
                f"{sizes[bits] / (packed + rest):.4f}",
                f"{1000 * median[bits]:.0f}",
                f"{median[bits] / median[8]:.2f}",
            )
        )
    print(f"{args.size}, {count:,} weights in linear layers, {args.runs} loads of every file in turn")
    print("\n".join(table(cells, gap=2)))
    return int(any(sizes[bits] > 1.02 * (count * bits / 8 + rest) for bits in BITS))


if __name__ == "__main__":
    sys.exit(main())
