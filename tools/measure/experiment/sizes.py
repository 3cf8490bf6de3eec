"""Tables 6 and 7: sizes and memory traffic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from intseg.graph import Graph, validate
from intseg.plan.plan import Plan
from intseg.reports import inspect as inspect_model
from intseg.tools.measure import bench
from intseg.tools.measure.bench_bits import narrowed
from intseg.tools.measure.experiment.memo import Document
from intseg.tools.twin.config import config_for
from intseg.tools.twin.segmenter import Segmenter

PAPER_BITS = {"fp32": 80, "int8 linear": 20, "int8 attention": 50}
"""Bits per multiply-accumulate, without any reuse, that give the paper's Table 7."""


def mac_counts(shape: bench.Shape) -> tuple[int, int]:
    """Multiply-accumulates of the linear layers and of the products of two activations, for one window."""
    patches = (shape.image // shape.patch) ** 2
    encoder, decoder, width = patches + 1, patches + shape.classes, shape.width
    linear = patches * 3 * shape.patch**2 * width + 12 * width**2 * encoder * shape.layers
    linear += (2 * patches + shape.classes) * width**2 + 12 * width**2 * decoder * shape.decoder_layers
    products = 2 * width * (encoder**2 * shape.layers + decoder**2 * shape.decoder_layers)
    return linear, products + patches * shape.classes * width


def traffic(graph: Graph) -> Document:
    """Bytes that the fused plan of a graph moves for one window: every weight once, every buffer read and written.

    Intermediates that a step keeps to itself (a strip of attention) do not count: they fit the scratch of a thread.
    """
    compiled = Plan(graph, 1)
    sizes = {name: inspect_model.stored_bytes(graph, name) for name in graph.tensors}
    steps = [step for segment in compiled.segments for step in segment.steps]
    sizes |= {buffer.name: buffer.nbytes for step in steps for buffer in step.outputs}
    views = {node.name: np.dtype(node.dtype).itemsize * int(np.prod(node.shape)) for node in graph.nodes}
    read = sum(sizes.get(name) or views[name] for step in steps for name in (*step.local, *step.whole))
    totals = inspect_model.totals(graph)
    return {
        "weights": totals.parameter_bytes,
        "read": read,
        "written": sum(buffer.nbytes for step in steps for buffer in step.outputs),
        "workspace": compiled.workspace_bytes,
        "scratch": max(step.scratch for step in steps),
        "node_by_node": totals.traffic_bits // 8,
        "macs": totals.macs,
    }


def _counted(graph: Graph) -> Document:
    """BitOps of a window, bits moved node by node and bytes of parameters, each as many bits as it has."""
    validate(graph)
    found = inspect_model.totals(graph)
    return {"bitops": found.bitops, "moved": found.traffic_bits, "bytes": found.parameter_bytes}


def sizes(names: Sequence[str]) -> Document:
    """Parameters, file sizes and traffic of the published sizes at 512 x 512 with 150 classes."""
    found = {}
    for name in names:
        shape = dataclasses.replace(bench.SHAPES[name], image=512, cosine=True)
        with torch.device("meta"):
            model = Segmenter(config_for(name, n_cls=shape.classes, image_size=(shape.image, shape.image)))
        graph = bench.RandomGraph(shape).build()
        validate(graph)
        linear, products = mac_counts(shape)
        found[name] = {
            "float_bytes": 4 * sum(p.numel() for p in model.parameters()),
            "integer_bytes": inspect_model.totals(graph).parameter_bytes,
            "linear_macs": linear,
            "product_macs": products,
            "traffic": traffic(graph),
            "bits": {f"w{w}a{a}": _counted(narrowed(graph, w, a)) for w, a in ((8, 8), (4, 8), (4, 4))},
        }
        print(f"  {name}: {(linear + products) / 1e9:.2f} GMAC", flush=True)
    return {"image": 512, "classes": 150, "bits_per_mac": PAPER_BITS, "sizes": found}
