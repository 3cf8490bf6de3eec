"""One cell of the exactness matrix, run as a program: digests of every node and facts about the emitted code, as JSON.

The target is Numba's (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES); an argument forces a slower instruction path by name. The
parent gives an empty INTSEG_CACHE_DIR, so that every kernel is compiled here.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from typing import Any

import numpy as np
from graphs import SOFTMAX

from intseg import backends
from intseg.executor import execute
from intseg.kernels import _isa

FLOAT = re.compile(
    r"\b(half|bfloat|float|double|x86_fp80|fp128|fadd|fmul|fdiv|fsub|fcmp|fptosi|sitofp|uitofp|fptoui)\b"
)


def digest(value: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()


def float_lines(ir: str) -> list[str]:
    """Lines of instructions that mention a floating-point type or instruction; names and metadata do not count."""
    bodies = re.findall(r"^define [^\n]*\n(.*?)^}", ir, re.M | re.S)
    lines = (line.split(", !")[0] for body in bodies for line in body.splitlines())
    return [line for line in lines if FLOAT.search(re.sub(r'[@%]"[^"]*"|[@%][\w.$-]+', "", line))]


def main(path: str) -> None:
    if path:
        forced = {isa.name: isa for isa in (_isa._GENERIC, _isa._SSE2, _isa._DOTPROD, _isa._I8MM)}[path]
        _isa.choose = lambda target: forced  # type: ignore[assignment]
        _isa.select.cache_clear()
    from intseg.kernels import _jit
    from intseg.plan.plan import Plan
    from intseg.tools.measure import bench

    shape = bench.Shape(64, 2, 1, image=112, classes=11, decoder_layers=1)
    digests: dict[str, dict[str, str]] = {"unfused": {}}
    graph = bench.RandomGraph(shape).build()
    image = np.random.default_rng(1).integers(0, 256, (shape.image, shape.image, 3)).astype(np.uint8)
    note = digests["unfused"]
    execute(graph, image, backends.table("numba"), lambda node, value: note.update({node.name: digest(value)}))
    for threads in (1, 2, 3):
        seen = digests[f"fused {threads}"] = {}

        def on_output(name: str, value: Any, seen: dict[str, str] = seen) -> None:
            seen[name] = digest(value)

        scores = Plan(graph, threads)(image, on_output)
        seen[graph.output] = digest(scores)
        labels = backends.class_map(scores.astype(np.int32), "bilinear", 16, 110, 109, "numba", threads)
        seen["labels"] = digest(labels)
    backends.warmup()  # what this model does not run is compiled too: the code of every kernel is looked at
    names = ("linear.linear", f"{SOFTMAX}.attention", "mean_attention.attention", "layernorm.layernorm")
    kernels = [_jit.REGISTRY[name] for name in names]
    text = "\n".join(kernel.assembly() for kernel in kernels)
    called = re.compile(r"llvm\.x86\.(?!atomic)[a-z0-9]+\.[a-z0-9.]+")
    words = ("vpdpbusd", "vpdpwssd", "vpmaddwd", "pmaddwd", "zmm", "ymm", "vpermi2b")
    floats = {name: float_lines(kernel.llvm())[:3] for name, kernel in _jit.REGISTRY.items() if kernel._compiled}
    print(
        json.dumps(
            {
                "isa": _isa.select().name,
                "target": _isa.current_target()[1],
                "digests": digests,
                "assembly": {word: len(re.findall(rf"\b{word}|%{word}", text)) for word in words},
                "intrinsics": sorted({name for kernel in kernels for name in called.findall(kernel.llvm())}),
                "kernels": sorted(floats),
                "floats": {name: lines for name, lines in floats.items() if lines},
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
