"""The loop: nodes in order, every output seen, dead values freed, results equal to the oracle's."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import naive
import numpy as np
import pytest
from compare import assert_equal
from graphs import image, node, tiny

import intseg.ops
from intseg import backends
from intseg.executor import execute
from intseg.graph import Graph, validate

BACKENDS = {name: backends.table(name) for name in backends.names()}
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_backend
@pytest.mark.parametrize("seed", range(3))
def test_the_graph_equals_the_oracle_node_by_node(backend: str, seed: int):
    graph = tiny()
    values: dict[str, np.ndarray] = {"image": image(seed)}

    def check(entry, actual):
        inputs = [values[name] if name in values else graph.tensors[name] for name in entry.inputs]
        params = {role: graph.tensors[name] for role, name in entry.params.items()}
        values[entry.name] = naive.evaluate(entry.op, inputs, params, dict(entry.attrs))
        assert_equal(actual, values[entry.name], entry.name)
        assert (actual.dtype.name, actual.shape) == (entry.dtype, entry.shape)

    result = execute(graph, values["image"], BACKENDS[backend], check)
    assert_equal(result, values["scores"])
    assert len(np.unique(result)) > 4, "the example has become trivial"


def test_on_node_sees_every_node_in_order():
    graph = tiny()
    seen = []
    execute(graph, image(), intseg.ops.RUN, lambda entry, value: seen.append(entry.name))
    assert seen == [entry.name for entry in graph.nodes]


def test_on_node_is_optional_and_changes_nothing():
    graph = tiny()
    with_hook = execute(graph, image(), intseg.ops.RUN, lambda entry, value: None)
    assert_equal(execute(graph, image(), intseg.ops.RUN), with_hook)


def test_dead_values_are_freed():
    """When a node runs, only what a later node or itself reads is alive."""
    graph = tiny()
    alive: dict[str, weakref.ref] = {}

    def copying(run):
        return lambda *inputs, **rest: run(*inputs, **rest).copy()  # a view would keep its base alive

    def look(entry, value):
        gc.collect()
        alive[entry.name] = weakref.ref(value)
        index = graph.nodes.index(entry)
        before = {name for name, last in graph.last_use.items() if last < index}
        assert not [name for name in before & set(alive) if alive[name]() is not None], entry.name

    gc.collect()
    gc.freeze()  # a process that ran other tests holds millions of objects, and they are not what is looked for
    try:
        execute(graph, image(), {name: copying(run) for name, run in intseg.ops.RUN.items()}, look)
    finally:
        gc.unfreeze()


def test_a_node_nobody_reads_is_run_and_freed():
    graph = tiny()
    spare = node("spare", "merge_heads", "av", "int8 5 4")
    graph = dataclasses.replace(graph, nodes=(*graph.nodes, spare))
    validate(graph)
    seen = []
    result = execute(graph, image(), intseg.ops.RUN, lambda entry, value: seen.append(entry.name))
    assert seen[-1] == "spare"
    assert_equal(result, execute(tiny(), image(), intseg.ops.RUN))


def test_a_value_may_be_read_twice_by_one_node():
    graph = tiny()
    extra = node("double", "concat", "spatial spatial", "int8 8 4")
    graph = dataclasses.replace(graph, nodes=(*graph.nodes, extra))
    validate(graph)
    seen = {}
    execute(graph, image(), intseg.ops.RUN, lambda entry, value: seen.update({entry.name: value}))
    assert_equal(seen["double"], np.concatenate([seen["spatial"]] * 2))


def test_inputs_are_left_alone():
    graph, x = tiny(), image()
    x.flags.writeable = False
    for array in graph.tensors.values():
        array.flags.writeable = False
    execute(graph, x, intseg.ops.RUN)


def test_the_table_that_is_passed_is_the_one_that_runs():
    calls = []

    def spy(name, run):
        return lambda *inputs, **rest: (calls.append(name), run(*inputs, **rest))[1]

    graph = tiny()
    execute(graph, image(), {name: spy(name, run) for name, run in intseg.ops.RUN.items()})
    assert calls == [entry.op for entry in graph.nodes]


def test_an_output_in_the_middle_survives_to_the_end():
    graph = tiny()
    values = {}
    execute(graph, image(), intseg.ops.RUN, lambda entry, value: values.update({entry.name: value}))
    middle = Graph(graph.nodes, graph.tensors, "qkv", graph.info)
    assert_equal(execute(middle, image(), intseg.ops.RUN), values["qkv"])
