"""Random and adversarial graphs: every backend, fused and not, on 1 to 3 threads, gives what the definition gives.

The quick form of `./check matrix`, in this process. Planted changes of kernels show that it sees them.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import SOFTMAX

from intseg import store
from intseg.exam import EXAMS
from intseg.graph import validate
from intseg.ops import OPS

pytest.importorskip("numba")
TOOLS = Path(__file__).resolve().parent / "trust"
COUNTS = 140, 60


def load_tool(name: str) -> Any:
    """A module of tools/, which import each other by name."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


random_graphs, matrix = load_tool("random_graphs"), load_tool("matrix")


@pytest.fixture(scope="module")
def known() -> list[Any]:
    """Cases with the digests of the definition."""
    return [matrix.defined(case) for case in random_graphs.cases(*COUNTS)]


def test_all_modes_give_the_same_bits(known: list[Any]) -> None:
    cells = matrix.run_modes(iter(known), matrix.MODES)
    assert [cell.first for cell in cells if cell.differences] == []
    assert {cell.cases for cell in cells} == {sum(COUNTS)}
    assert len({cell.results for cell in cells}) == 1
    assert len({cell.nodes for cell in cells if cell.nodes}) == 1
    nodes = sum(len(case.graph.nodes) + 1 for case, _ in known)
    assert [cell.values for cell in cells[:2]] == [nodes, nodes]
    assert all(cell.values > nodes // 2 for cell in cells)


def test_graphs_cover_every_op_and_pattern(known: list[Any]) -> None:
    from intseg.plan.plan import Plan

    graphs = [case.graph for case, _ in known]
    assert {node.op for graph in graphs for node in graph.nodes} == set(OPS)
    for op, definition in OPS.items():
        for name, choice in definition.attrs.items():
            if isinstance(choice, tuple):
                found = {node.attrs.get(name) for graph in graphs for node in graph.nodes if node.op == op}
                assert found - {None} == set(choice), f"{op}: {name}"
                assert (None in found) == (name in definition.optional)
    assert {bits for graph in graphs for bits in graph.packed.values()} == set(range(2, 9))
    steps: Counter[str] = Counter()
    for graph in graphs:
        for segment in Plan(graph, 1).segments:
            steps.update(step.op for step in segment.steps)
            steps["rows for two threads"] += (segment.extent or 0) > 64
            steps["attention for two threads"] += any(s.op == "attention" for s in segment.steps) and (
                (segment.extent or 0) > 64
            )
    assert steps["attention"] > 20
    softmaxes = [op for op in OPS if EXAMS[op].kind == "softmax"]
    assert min(steps[op] for op in (*softmaxes, "quantize_input")) > 2  # where nothing is fused
    assert min(steps["rows for two threads"], steps["attention for two threads"]) > 5


def test_graphs_load_from_a_file_and_are_small(known: list[Any]) -> None:
    for case, _ in known[::10]:
        data = store.dumps(case.graph)
        assert len(data) < random_graphs.MAX_BYTES + 30_000
        validate(store.loads(data))


def test_a_name_gives_the_same_graph_again(known: list[Any]) -> None:
    for case, expected in known[::40]:
        assert matrix.defined(random_graphs.parse(case.name))[1] == expected
    assert known[0][1]["graph"] != known[1][1]["graph"]


@pytest.mark.parametrize("module", ["linear", "layernorm", "add", "attention"])
def test_a_planted_change_is_found(module: str, known: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from intseg.plan.steps import ATTENTIONS

    kernels = importlib.import_module(f"intseg.kernels.{module}")
    fused = ATTENTIONS[SOFTMAX]
    kernel = fused.kernel if module == "attention" else getattr(kernels, module)
    out = [*inspect.signature(kernel.py_func).parameters].index("out")

    def planted(*args: Any) -> None:
        kernel(*args)
        rows = args[out]
        if rows.shape[1] > 2 and args[out + 1] == 0:
            rows[0, 0] ^= np.int8(1)

    if module == "attention":
        monkeypatch.setitem(ATTENTIONS, SOFTMAX, dataclasses.replace(fused, kernel=planted))
    else:
        monkeypatch.setattr(kernels, module, planted)
    cells = matrix.run_modes(iter(known[:30]), ["fused 1"])
    assert cells[0].differences > 0
    assert "expected" in cells[0].first


def test_a_difference_ends_with_status_1() -> None:
    def outcome(results: str, differences: int = 0) -> Any:
        cell = matrix.Cell("fused 2", 1, 5, results, "n", differences, "random 0:1, add.3" if differences else "")
        report = {"cells": [vars(cell)], "cpu_s": 1.0, "target": "t"}
        return matrix.Outcome(matrix.settings()[0], report)

    options = matrix.argparse.Namespace(graphs=1, adversarial=0, seed=0)
    assert matrix.summary([outcome("a"), outcome("a")], options)[1]
    assert not matrix.summary([outcome("a"), outcome("b")], options)[1]
    lines, well = matrix.summary([outcome("a"), outcome("a", 2)], options)
    assert not well
    assert lines[0] == "DIFFERS: host, fused 2: random 0:1, add.3 (2 values in all)"
    failed = matrix.Outcome(matrix.settings()[1], failed="killed")
    assert not matrix.summary([outcome("a"), failed], options)[1]


def test_settings_the_machine_lacks_are_named() -> None:
    setting = matrix.Setting("nowhere", "target", ("no-such-feature",))
    assert matrix.missing(setting) == "this CPU lacks no-such-feature"
    assert "not run: this CPU lacks" in matrix.row(matrix.Outcome(setting, not_run=matrix.missing(setting)))
    assert matrix.missing(matrix.Setting("far", "target", machine="vax")).startswith("needs vax")


def test_the_lowest_versions_are_those_of_the_package() -> None:
    found = matrix.lowest()
    assert set(found) == {"numpy", "numba", "pillow", "safetensors", "tqdm", "threadpoolctl"}
