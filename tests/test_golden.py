"""golden/ replayed: every node of every window as the PyTorch twin had it, on every backend. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from compare import assert_equal
from numpy.typing import NDArray

import intseg
from intseg import api, backends
from intseg.executor import execute
from intseg.graph import Graph, Node
from intseg.images import decode as pictures
from intseg.ops import OPS
from intseg.windows import cut_windows, tile

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
MANIFEST = json.loads((GOLDEN / "MANIFEST.json").read_text(encoding="utf-8"))
FILES: dict[str, dict[str, str | int]] = MANIFEST["files"]
TRACES = sorted(name for name in FILES if name.startswith("traces/"))
BACKENDS = tuple(name for name in backends.names() if name != "numba" or backends.has_numba())
RECIPES = {"i-vit", "paper", "paper-aligned", "intseg"}

Array = NDArray[np.signedinteger]


@cache
def tensors(name: str) -> dict[str, Array]:
    """The tensors of a file of golden/."""
    loaded: dict[str, Array] = safetensors.numpy.load((GOLDEN / name).read_bytes())
    return loaded


def parts(trace: str) -> tuple[intseg.api.Model, Path, dict[str, Array]]:
    """Model, image and expected tensors of a trace `traces/<model>.<image>.safetensors`."""
    model, image, _ = Path(trace).name.split(".")
    return intseg.load(GOLDEN / "models" / f"{model}.safetensors"), GOLDEN / "images" / f"{image}.png", tensors(trace)


def windows(trace: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Number and pixels of every window, which must lie where the trace says."""
    model, image, expected = parts(trace)
    cut = list(cut_windows(pictures.decode(image, model.info.pad).rgb, model.info))
    assert_equal(np.array([corner for corner, _ in cut], np.int32), expected["corners"], "corners of the windows")
    return ((i, window) for i, (_, window) in enumerate(cut))


# ---------------------------------------------------------------------------------------------------------------------
# Replay
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trace", TRACES)
def test_every_node_of_every_window(trace: str, backend: str) -> None:
    model, _, expected = parts(trace)
    table, seen = backends.table(backend), {"corners", "merged", "labels"}

    def check(i: int, node: Node, value: Array) -> None:
        key = f"window{i}.{node.name}"
        assert_equal(value, expected[key], f"{backend}, {trace}, {key} ({node.op})")
        seen.add(key)

    for i, window in windows(trace):
        execute(model.graph, window, table, partial(check, i))
    assert seen == set(expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trace", TRACES)
def test_compiled_scores_of_every_window(trace: str, backend: str) -> None:
    model, _, expected = parts(trace)
    forward = backends.compile(model.graph, backend, 1)
    for i, window in windows(trace):
        assert_equal(forward(window), expected[f"window{i}.{model.graph.output}"], f"{backend}, {trace}, window {i}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trace", TRACES)
def test_merged_scores_and_labels_of_the_image(trace: str, backend: str) -> None:
    model, image, expected = parts(trace)
    result = intseg.run(image, model, backend, threads=2)
    assert_equal(result.scores, expected["merged"], f"{backend}, {trace}, scores")
    assert_equal(result.labels, expected["labels"], f"{backend}, {trace}, labels")


def test_trace_gives_the_same_nodes() -> None:
    trace = "traces/intseg.odd.safetensors"
    model, image, expected = parts(trace)
    for i, (corner, outputs) in enumerate(api.trace(image, model)):
        assert corner == tuple(expected["corners"][i])
        for node, value in outputs.items():
            assert_equal(value, expected[f"window{i}.{node}"], node)


def test_one_changed_weight_is_noticed() -> None:
    """The canary: a replay that could not fail would pass here."""
    model, _, expected = parts("traces/intseg.small.safetensors")
    name = "encoder.blocks.0.attn.qkv.bias"
    bias = model.graph.tensors[name].copy()
    bias += np.int32(1) << 13
    graph = Graph(model.graph.nodes, {**model.graph.tensors, name: bias}, model.graph.output, model.info)
    (_, window), *_ = windows("traces/intseg.small.safetensors")
    found = {}
    execute(graph, window, backends.table("numpy"), lambda node, value: found.update({node.name: value}))
    assert_equal(found["encoder.blocks.0.norm1"], expected["window0.encoder.blocks.0.norm1"])
    with pytest.raises(AssertionError, match="differ"):
        assert_equal(found["encoder.blocks.0.attn.qkv"], expected["window0.encoder.blocks.0.attn.qkv"])


# ---------------------------------------------------------------------------------------------------------------------
# What the vectors cover
# ---------------------------------------------------------------------------------------------------------------------


def test_every_recipe_has_a_model_and_full_traces() -> None:
    models = {Path(name).stem: intseg.load(GOLDEN / name) for name in FILES if name.startswith("models/")}
    assert {name for name in RECIPES if models[name].info.recipe == name} == RECIPES
    assert {model.info.upsample for model in models.values()} == {"nearest", "bilinear"}
    for name in models:
        assert any(trace.startswith(f"traces/{name}.") for trace in TRACES), name


def test_every_op_of_a_graph_occurs() -> None:
    used = {node.op for name in FILES if name.startswith("models/") for node in intseg.load(GOLDEN / name).graph.nodes}
    assert used == set(OPS) - {"upsample_nearest", "upsample_bilinear", "argmax"}


def test_recipes_differ() -> None:
    traces = [tensors(f"traces/{name}.odd.safetensors") for name in ("i-vit", "paper", "intseg")]
    for key in ("window0.encoder.blocks.0.mlp.act", "window1.decoder.blocks.0.mlp.act"):
        assert len({trace[key].tobytes() for trace in traces}) == 3, key


def test_images_are_what_their_names_say() -> None:
    info = intseg.load(GOLDEN / "models" / "intseg.safetensors").info
    sizes, counts = {}, {}
    for name in ("odd", "small", "wide"):
        rgb = pictures.decode(GOLDEN / "images" / f"{name}.png", info.pad).rgb
        sizes[name], counts[name] = rgb.shape[:2], len(tile(info, *rgb.shape[:2]).corners())
    assert all(side % info.patch for side in sizes["odd"])
    assert all(side < window for side, window in zip(sizes["small"], info.window, strict=True))
    assert counts["small"] == 1
    assert counts["wide"] > counts["odd"] > 1


@pytest.mark.parametrize("trace", TRACES)
def test_traces_are_worth_replaying(trace: str) -> None:
    """More than one class, values that vary, and few of them at the limits."""
    expected = tensors(trace)
    assert expected["labels"].size == 1 or len(np.unique(expected["labels"])) > 1
    for name, value in expected.items():
        if name.startswith("window"):
            assert len(np.unique(value)) > 2, name


# ---------------------------------------------------------------------------------------------------------------------
# The manifest
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FILES))
def test_manifest_says_what_the_file_is(name: str) -> None:
    data, entry = (GOLDEN / name).read_bytes(), FILES[name]
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])
    if "kept" in entry:
        assert name.startswith("images/")
    else:
        assert (GOLDEN.parent / str(entry["generator"])).is_file()
        assert type(entry["seed"]) is int


def test_every_file_is_listed() -> None:
    """Left out: what `intseg infer` writes beside the example image, and the hardware and C examples."""
    found = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file()}
    found = {name for name in found if not name.endswith(("_labels.png", "_overlay.png"))}
    found = {name for name in found if not name.startswith(("rtl/", "c/", "reader/"))}
    assert found == set(FILES) | {"MANIFEST.json", "README.md"}


def test_golden_is_small() -> None:
    """But for the photo of README.md."""
    sizes = {name: int(entry["size"]) for name, entry in FILES.items()}
    assert sizes.pop("images/leuven.png") < 300_000
    assert sum(sizes.values()) < 3_900_000


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".safetensors")))
def test_all_tensors_are_integers(name: str) -> None:
    for key, array in tensors(name).items():
        assert array.dtype.kind in "iu", key
        assert array.size, key


def test_manifest_names_versions() -> None:
    assert set(MANIFEST["versions"]) == {"intseg", "numpy", "python", "torch"}
