"""`intseg quant-report`: the swaps against a naive run, a damaged layer is found, tables, JSON, bad input."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits
from tiny_model import tiny_graph

from intseg import api, store
from intseg.cli import main as cli
from intseg.errors import InputError, UsageError
from intseg.exam import real
from intseg.exam._real import gelu
from intseg.executor import execute
from intseg.graph import Graph, Node
from intseg.images.labels import Labelling
from intseg.ops import RUN
from intseg.reports import quantization as quant_report
from intseg.reports import quantization_text, swaps
from intseg.reports.quantization import Source
from intseg.reports.swaps import Variant
from intseg.windows import cut_windows
from intseg.workbench import trace

Capture = pytest.CaptureFixture[str]


def picture(seed: int = 0, height: int = 40, width: int = 45) -> np.ndarray:
    """Smooth random pixels uint8 [height, width, 3]: two windows of a tiny model along each axis."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def fitted(**info: Any) -> Graph:
    """A tiny model whose linear layers and products fill their ranges without leaving them, as calibration would."""
    graph = tiny_graph(**info)
    window = next(iter(cut_windows(picture(), graph.info)))[1]
    values: dict[str, Any] = {"image": window}
    for node in graph.nodes:
        if node.op in ("linear", "matmul"):
            for shift in range(1, 30):
                tensor = np.full_like(graph.tensors[f"{node.name}.shift"], shift)
                graph = graphs.with_tensor(graph, f"{node.name}.shift", tensor)
                inputs, params = graph.arguments(node, values)
                result = RUN[node.op](*inputs, **params, **node.attrs)
                if np.abs(result.astype(int)).max() < np.iinfo(node.dtype).max * 0.9:
                    break
        inputs, params = graph.arguments(node, values)
        values[node.name] = RUN[node.op](*inputs, **params, **node.attrs)
    return graph


def damaged(graph: Graph, factor_bits: int = 5) -> Graph:
    """The range of `proj` 2^factor_bits times too narrow: it saturates, what it stands for is the same."""
    graph = graphs.with_tensor(graph, "proj.mult", graph.tensors["proj.mult"] << factor_bits)
    return graphs.with_attr(graph, "add_attn", shift_b=int(graph.node("add_attn").attrs["shift_b"]) + factor_bits)


@pytest.fixture(scope="module")
def good() -> Graph:
    return fitted(upsample="bilinear")


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    Image.fromarray(picture()).save(tmp_path / "shot.png")
    return tmp_path / "shot.png"


def measure(graph: Graph, shot: Path, **options: Any) -> quant_report.QuantReport:
    model = api.Model(graph, "0" * 64, Path("tiny.safetensors"))
    return quant_report.measure([Source(shot)], model, backend="numpy", **options)


def row(report: quant_report.QuantReport, group: str, name: str) -> quant_report.Row:
    return next(found for found in report.rows[group] if found.name == name)


# ------------------------------------------------------------------------------------------------------------- swaps


def naive(graph: Graph, window: np.ndarray, swapped: str, base: str) -> np.ndarray:
    """All nodes, in one plain loop."""
    values: dict[str, Any] = {"image": window, **graph.tensors}
    dtypes = {node.name: node.dtype for node in graph.nodes}
    for node in graph.nodes:
        params = {role: graph.tensors[name] for role, name in node.params.items()}
        inputs = [values[name] for name in node.inputs]
        floats = [x if name == "image" else x.astype(np.float32) for name, x in zip(node.inputs, inputs, strict=True)]
        exact = real.REAL[node.op](*floats, **params, **node.attrs)
        if base == "real":
            if node.name == swapped:
                near = [
                    real.on_grid(x, dtypes[name]) if name in dtypes else x
                    for name, x in zip(node.inputs, inputs, strict=True)
                ]
                on_near = [
                    x if name == "image" else x.astype(np.float32) for name, x in zip(node.inputs, near, strict=True)
                ]
                wrong = RUN[node.op](*near, **params, **node.attrs)
                exact = exact + (wrong - real.REAL[node.op](*on_near, **params, **node.attrs))
            values[node.name] = exact
        else:
            values[node.name] = RUN[node.op](*inputs, **params, **node.attrs)
            if node.name == swapped:
                values[node.name] = real.on_grid(exact, node.dtype)
    return values[graph.output]


@pytest.mark.parametrize("name", ["quantize_input", "patch_embed", "add_pos", "qkv", "scores", "softmax", "head"])
@pytest.mark.parametrize("base", ["real", "integer"])
def test_a_swap_is_what_a_plain_loop_computes(good: Graph, name: str, base: str) -> None:
    window = next(iter(cut_windows(picture(), good.info)))[1]
    variant = Variant(base, ((name, "integer" if base == "real" else "real"),), "bilinear")
    runner = quant_report._Runner(good, "numpy", [variant, swaps.REFERENCE, swaps.INTEGER])
    found = runner.run(window)
    assert (found[variant.scored] == naive(good, window, name, base)).all()
    assert (found[swaps.REFERENCE.scored] == naive(good, window, "", "real")).all()
    assert (found[swaps.INTEGER.scored] == naive(good, window, "", "integer")).all()


def test_many_swaps_do_not_disturb_each_other(good: Graph) -> None:
    """One runner with every variant of a report gives for each what it gives alone."""
    window = next(iter(cut_windows(picture(), good.info)))[1]
    pairs = quant_report._pairs(swaps.questions(good, per_node=True))
    variants = [variant for pair in pairs for variant in pair]
    together = quant_report._Runner(good, "numpy", variants).run(window)
    assert len(together) > 20
    for variant in list(together)[::5]:
        alone = quant_report._Runner(good, "numpy", [variant]).run(window)
        assert (alone[variant] == together[variant]).all()


@pytest.mark.parametrize("name", ["LayerNorm", "softmax", "residual add"])
def test_cost_and_gain_are_their_formulas(good: Graph, tmp_path: Path, name: str) -> None:
    """On an image of one window, from the scores alone."""
    pixels = picture(4, *good.info.window)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    found = row(measure(good, tmp_path / "one.png"), "kinds", name)
    names = [node.name for node in good.nodes if swaps.KINDS.get(node.op) == name]
    changed = {
        base: Variant(base, tuple((node, mode) for node in names), "")
        for base, mode in (("real", "integer"), ("integer", "real"))
    }
    bases = {"real": swaps.REFERENCE.scored, "integer": swaps.INTEGER.scored}
    scores = quant_report._Runner(good, "numpy", [*changed.values(), *bases.values()]).run(pixels)
    exact = scores[bases["real"]].astype(float)

    def error(variant: Variant) -> float:
        return float(np.sqrt(((scores[variant] - exact) ** 2).sum() / (exact**2).sum()))

    def labels(variant: Variant) -> np.ndarray:
        return real.class_map(scores[variant].astype(float), "bilinear", good.info.patch, *good.info.window)

    def apart(variant: Variant) -> float:
        return float((labels(variant) != labels(bases["real"])).mean())

    assert found.in_real
    assert found.in_integer
    assert found.in_real.scores == pytest.approx(error(changed["real"]))
    assert found.in_real.pixels == pytest.approx(apart(changed["real"]))
    assert found.in_real.scores > 0
    assert found.in_integer.scores == pytest.approx(error(bases["integer"]) - error(changed["integer"]))
    assert found.in_integer.pixels == pytest.approx(apart(bases["integer"]) - apart(changed["integer"]), abs=2e-3)


def test_the_modes_are_their_formulas(good: Graph) -> None:
    loud = graphs.with_tensor(good, "norm1.mult", good.tensors["norm1.mult"] * 8)
    runner = quant_report._Runner(loud, "numpy", [])
    random, node = np.random.default_rng(3), loud.node("norm1")
    x = random.normal(0, 9000, loud.node(node.inputs[0]).shape).astype(np.float32)
    params = {role: loud.tensors[name] for role, name in node.params.items()}
    exact = real.REAL["layernorm"](x, **params, **node.attrs)
    found = {
        mode: runner._in_real(node, mode, {node.inputs[0]: x})
        for mode in ("rounding", "saturation", "approximation", "integer", "channels")
    }
    assert (found["rounding"] == np.floor(exact + np.float32(0.5))).all()
    assert np.abs(exact).max() > 128  # there is something to saturate
    assert (found["saturation"] == np.clip(exact, -128, 127)).all()
    near = np.clip(np.floor(x + 0.5), -32768, 32767).astype(np.int16)
    integer = RUN["layernorm"](near, **params, **node.attrs)
    ideal = real.REAL["layernorm"](near.astype(np.float32), **params, **node.attrs)
    assert (found["integer"] == exact + (integer - ideal)).all()
    assert (found["approximation"] == exact + (integer - np.clip(np.floor(ideal + 0.5), -128, 127))).all()
    step = np.ptp(exact, axis=0) / 255
    assert (np.abs(found["channels"] - exact) <= step * 0.51).all()
    assert all(len(np.unique(column)) <= 256 for column in found["channels"].T)
    assert np.allclose(found["channels"].max(axis=0), exact.max(axis=0))


def test_an_exact_node_has_no_error() -> None:
    """A node that is exact has no SQNR: a table of zeros."""
    graph = tiny_graph(upsample="bilinear")
    exact = quant_report._Runner(graph, "numpy", [swaps.REFERENCE, swaps.INTEGER])
    graph.tensors["quantize_input.table"][:] = 0
    found = exact.seen["quantize_input"]
    exact.run(np.zeros((*graph.info.window, 3), np.uint8))
    stats = found.stats()
    assert (stats.local_db, stats.end_db, stats.low, stats.high, stats.saturated) == (None, None, 0, 0, 0.0)


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_damaged_layer_is_ranked_first_and_a_sound_one_is_not(good: Graph, shot: Path) -> None:
    sound, broken = measure(good, shot, per_node=True), measure(damaged(good), shot, per_node=True)
    assert broken.rows["nodes"][0].name == broken.rows["layers"][0].name == "proj"
    assert broken.rows["approximations"][0].name == "saturation"
    assert sound.rows["nodes"][0].name != "proj"
    assert sound.rows["approximations"][0].name != "saturation"
    costs = [row(report, "nodes", "proj").in_real for report in (sound, broken)]
    assert costs[0]
    assert costs[1]
    assert costs[1].scores > 10 * costs[0].scores
    stats = [next(node for node in report.nodes if node.name == "proj") for report in (sound, broken)]
    assert stats[0].saturated < 0.01 < stats[1].saturated
    assert stats[0].local_db > 40 > 15 > stats[1].local_db  # type: ignore[operator]
    assert broken.score_error > sound.score_error


def test_a_coarse_range_is_found_too(good: Graph, shot: Path) -> None:
    """The other way: of 8 bits 3 are used. Nothing saturates, the rounding is large."""
    shift = (good.tensors["mix.shift"] + 5).astype(np.int8)
    coarse = graphs.with_tensor(good, "mix.shift", shift)
    coarse = graphs.with_tensor(coarse, "proj.mult", coarse.tensors["proj.mult"] << 5)
    report = measure(coarse, shot, per_node=True)
    assert report.rows["nodes"][0].name == "mix"
    assert measure(good, shot, per_node=True).rows["nodes"][0].name != "mix"
    found = next(node for node in report.nodes if node.name == "mix")
    assert found.used < 0.1
    assert found.saturated == 0


def test_weights_that_were_cut_off_are_named(good: Graph, shot: Path) -> None:
    numbers = np.random.default_rng(4)
    real_weights = numbers.standard_normal((12, 64))
    for bits, most, least in ((8, 127, 0.04), (4, 7, 0.03), (3, 3, 0.005)):
        steps = np.abs(real_weights).max(axis=1, keepdims=True) / most
        whole, half = (np.clip(np.round(k * real_weights / steps), -most, most).astype(np.int8) for k in (1, 2))
        assert quant_report.cut_off(whole, f"int{bits}") == 0
        assert quant_report.cut_off(half, f"int{bits}") > least
    assert not any("cut off" in note for note in measure(good, shot).notes)
    weight = np.clip(3 * good.tensors["proj.weight"].astype(int), -127, 127).astype(np.int8)
    report = measure(graphs.with_tensor(good, "proj.weight", weight), shot)
    (note,) = [note for note in report.notes if "cut off" in note]
    assert "1 layer, most in proj" in note


def test_the_guess_of_the_weights_rounding_is_of_its_size(good: Graph, shot: Path) -> None:
    """Weights of four times the step: rounded to it, they move the scores as far as the guess says."""
    weights = {name for node in good.nodes if node.op == "linear" for name in [node.params["weight"]]}
    coarse, fine = dict(good.tensors), dict(good.tensors)
    for name in weights:
        fine[name] = good.tensors[name].astype(np.int16)
        coarse[name] = np.clip((fine[name] + 2 >> 2) << 2, -127, 127).astype(np.int8)
    window = next(iter(cut_windows(picture(), good.info)))[1]
    ends = [real.run(replace(good, tensors=tensors), window, {}) for tensors in (coarse, fine)]
    moved = np.sqrt(np.square(ends[0] - ends[1]).sum() / np.square(ends[1]).sum())
    guess = row(measure(good, shot), "approximations", "rounding of weights, a guess").in_real
    assert guess is not None
    assert 0.5 < moved / (4 * guess.scores) < 2


def _keep(values: dict[str, Any], node: Node, value: Any) -> None:
    values[node.name] = value


def test_what_a_gelu_cuts_is_judged_behind_it(shot: Path) -> None:
    model = api.load(Path(__file__).parents[1] / "golden" / "models" / "intseg.safetensors")
    graph, name = model.graph, "encoder.blocks.0.mlp.fc1"
    scale, signal, noise = trace.scales(graph)[name], 0.0, 0.0
    for _, window in cut_windows(np.asarray(Image.open(shot)), model.info):
        values: dict[str, Any] = {}
        execute(graph, window, RUN, functools.partial(_keep, values))
        inputs, params = graph.arguments(graph.node(name), values)
        exact = real.REAL["linear"](*real.as_float(inputs, np.float64), **params, **graph.node(name).attrs)
        seen, wanted = (gelu(real.dequantize(scale, x)) for x in (values[name], exact))
        signal, noise = signal + np.square(wanted).sum(), noise + np.square(seen - wanted).sum()
    report = quant_report.measure([Source(shot)], model, backend="numpy")
    found = {node.name: node.local_db for node in report.nodes}
    assert found[name] == pytest.approx(10 * np.log10(signal / noise), abs=0.01)


def test_scales_give_steps_and_contradictions(good: Graph, shot: Path) -> None:
    step = np.array([3, 0, 7], np.int32).reshape(3, 1, 1)
    scaled = good
    for name, tensor in (("add_pos", step), ("proj", step), ("add_attn", step)):
        scaled = graphs.with_tensor(scaled, f"{name}.scale", tensor)
        scaled = graphs.with_node(scaled, name, scale=f"{name}.scale")
    report = measure(scaled, shot)
    assert next(node for node in report.nodes if node.name == "proj").step == (3 / 128, 3 / 128)
    assert len(report.notes) == 2  # both branches are halved: mult 1, shift 1
    assert all("add_attn" in note and "0.5" in note for note in report.notes)
    sound = graphs.with_attr(scaled, "add_attn", **graphs.IDENTITY)
    assert measure(sound, shot).notes == ()


def test_the_bundled_models_do_not_contradict_themselves() -> None:
    for name in ("camvid-tiny", "camvid-tiny-paper"):
        graph = api.load(name).graph
        assert list(quant_report.contradictions(graph, quant_report.scales_of(graph))) == []


# ---------------------------------------------------------------------------------------------------------- questions


def test_what_is_asked_of_the_bundled_models() -> None:
    asked = {
        name: {question.name for question in swaps.questions(api.load(name).graph)}
        for name in ("camvid-tiny", "camvid-tiny-paper")
    }
    paper = {"Shiftmax for softmax", "ShiftGELU for GELU", "nearest for bilinear", "dropped L2 norm"}
    assert paper <= asked["camvid-tiny-paper"]
    assert not paper & asked["camvid-tiny"]
    assert {"table for exponentials", "table for GELU", "L2 norm"} <= asked["camvid-tiny"]


def test_the_dropped_l2norm_is_seen() -> None:
    assert swaps.dropped_norm(api.load("camvid-tiny-paper").graph) == "decoder.masks"
    assert swaps.dropped_norm(api.load("camvid-tiny").graph) is None
    assert swaps.dropped_norm(tiny_graph()) is None


def test_a_restored_l2norm_is_the_formula() -> None:
    graph = api.load("camvid-tiny-paper").graph
    runner = quant_report._Runner(graph, "numpy", [])
    node = graph.node("decoder.masks")
    random = np.random.default_rng(0)
    values = {name: random.integers(-100, 100, graph.node(name).shape).astype(np.int8) for name in node.inputs}
    a, b = (x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in values.values())
    found = runner._unit_product(node, values)
    assert np.allclose(found / np.abs(found).max(), (a @ b.T) / np.abs(a @ b.T).max(), atol=1e-6)
    assert np.abs(runner._in_integer(node, "unit rows", values)).max() == 32767


def test_nearest_is_a_row_of_its_own(shot: Path) -> None:
    report = measure(fitted(upsample="nearest"), shot)
    found = row(report, "approximations", "nearest for bilinear")
    assert found.in_real is not None
    assert found.in_real.pixels > 0
    assert found.in_real.scores == 0
    assert found == row(report, "kinds", "nearest for bilinear")


# --------------------------------------------------------------------------------------------------------------- labels


def test_labels_that_are_the_models_own(good: Graph, shot: Path, tmp_path: Path) -> None:
    model = api.Model(good, "0" * 64, Path("tiny.safetensors"))
    labels = api.run(shot, model, "numpy").labels.copy()
    labels[:3] = 255
    Image.fromarray(labels).save(tmp_path / "truth.png")
    sources = [Source(shot, tmp_path / "truth.png")]
    report = quant_report.measure(sources, model, labelling=Labelling((255,)), backend="numpy")
    assert report.integer == (100.0, 100.0)
    assert report.real is not None
    assert report.real[1] <= 100
    for rows in report.rows.values():
        for found in rows:
            for effect in filter(None, (found.in_real, found.in_integer)):
                assert effect.miou is not None
            if found.in_integer:
                assert found.in_integer.aacc is not None
                assert found.in_integer.aacc <= 0  # nothing can be better than its own labels


def test_offset_labels_count_alike(good: Graph, shot: Path, tmp_path: Path) -> None:
    model = api.Model(good, "0" * 64, Path("tiny.safetensors"))
    Image.fromarray(api.run(shot, model, "numpy").labels + 1).save(tmp_path / "truth.png")
    sources = [Source(shot, tmp_path / "truth.png")]
    report = quant_report.measure(sources, model, labelling=Labelling((0,), 1), backend="numpy")
    assert report.integer == (100.0, 100.0)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def weights(good: Graph, tmp_path: Path) -> Path:
    store.save(good, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_the_tables(weights: Path, shot: Path, capsys: Capture) -> None:
    assert cli.main(["quant-report", str(weights), "--backend", "numpy", str(shot), "--per-node"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == ""
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("tiny (recipe random): 1 image, 4 windows, ")
    assert lines[0].endswith(" s")
    for title in ("approximation", "kind of op", "layer", "node"):
        start = next(i for i, line in enumerate(lines) if line.split("  ")[1:2] == [title])
        assert "cost px" in lines[start]
    assert cli.main(["quant-report", str(weights), str(shot), "--backend", "numpy"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < len(lines)


def test_the_bundled_names_fit_the_width() -> None:
    """The longest names there are, with the widest numbers."""
    longest = "INT8 if channels had own ranges"
    assert longest in {question.name for question in swaps.questions(tiny_graph())}
    stats = quant_report.NodeStats("encoder.blocks.11.attn.softmax", "linear", "linear", "int16", (0.00012, 0.00034))
    stats = replace(stats, low=-32768, high=32767, used=1.0, saturated=1.0, local_db=120.3, end_db=120.3)
    assert max(map(len, quantization_text.table(quantization_text._node_cells([stats])))) <= 100
    effect = quant_report.Effect(1.0, -1.0, -10.0, -10.0)
    rows = [quant_report.Row(name, 300, effect, effect) for name in ("encoder.blocks.11.attn.softmax", longest)]
    assert max(map(len, quantization_text._cost_table(rows, "approximation", True))) <= 100


def test_json(weights: Path, shot: Path, tmp_path: Path, capsys: Capture) -> None:
    Image.fromarray(np.zeros((40, 45), np.uint8)).save(tmp_path / "truth.png")
    arguments = ["quant-report", str(weights), str(shot), "--labels", str(tmp_path / "truth.png")]
    assert cli.main([*arguments, "--backend", "numpy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        *("model", "images", "windows", "pixels", "seconds", "changed", "score_error"),
        *("real", "integer", "nodes", "rows", "notes", "decoded"),
    }
    assert (found["images"], found["windows"], found["pixels"]) == (1, 4, 40 * 45)
    assert set(found["rows"]) == {"kinds", "layers", "approximations"}
    for rows in found["rows"].values():
        assert all(set(entry) == {"name", "nodes", "in_real", "in_integer"} for entry in rows)
        costs = [(entry["in_real"]["pixels"], entry["in_real"]["scores"]) for entry in rows]
        assert costs == sorted(costs, reverse=True)
        assert all(set(entry["in_real"]) == {"pixels", "scores", "miou", "aacc"} for entry in rows)
    keys = {"name", "op", "kind", "dtype", "step", "low", "high", "used", "saturated", "local_db", "end_db"}
    keys |= {"outlier", "cut"}
    assert all(set(node) == keys for node in found["nodes"])
    assert {node["kind"] for node in found["nodes"]} <= {entry["name"] for entry in found["rows"]["kinds"]}


def test_numbers_do_not_depend_on_threads(good: Graph, shot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float sums have one order: every BLAS works on one thread, and has its own number back afterwards."""

    def threads() -> set[int]:
        return {entry["num_threads"] for entry in threadpool_info() if entry["user_api"] == "blas"}

    if not threads():
        pytest.skip("no BLAS that threadpoolctl knows")
    inside: list[set[int]] = []
    found, run = [], quant_report._Runner.run

    def watched(*arguments: Any) -> Any:
        inside.append(threads())
        return run(*arguments)

    monkeypatch.setattr(quant_report._Runner, "run", watched)
    for wanted in (1, 2):
        with threadpool_limits(wanted, "blas"):
            report = quantization_text.as_json(measure(good, shot))
            assert threads() == {wanted}
        found.append({key: value for key, value in report.items() if key != "seconds"})
    assert found[0] == found[1]
    assert inside
    assert all(numbers == {1} for numbers in inside)


def test_a_data_set(good: Graph, tmp_path: Path, capsys: Capture) -> None:
    graph = fitted(n_cls=11, upsample="nearest")
    store.save(graph, tmp_path / "w.safetensors")
    for name in ("a", "b"):
        for folder, pixels in (("val", picture()), ("valannot", np.full((40, 45), 11, np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = pixels if folder == "val" else np.where(np.arange(45) < 20, pixels, 3).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    arguments = ["quant-report", str(tmp_path / "w.safetensors"), "--root", str(tmp_path), "--backend", "numpy"]
    assert cli.main([*arguments, "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 image, 4 windows" in printed
    assert "mIoU" in printed


BAD: dict[str, tuple[list[str], int, str]] = {
    "no image": ([], 2, "no image"),
    "images and root": (["{shot}", "--root", "{folder}"], 2, "--root"),
    "labels with root": (["--root", "{folder}", "--labels", "{shot}"], 2, "--root"),
    "too few labels": (["{shot}", "{shot}", "--labels", "{truth}"], 2, "1 label images for 2"),
    "no such image": (["{folder}/none.png"], 4, "none.png"),
    "no such labels": (["{shot}", "--labels", "{folder}/none.png"], 4, "none.png"),
    "labels of another size": (["{shot}", "--labels", "{small}"], 4, "small.png: labels are 4 x 3"),
    "a label too high": (["{shot}", "--labels", "{high}"], 4, "label 200 in 1800 pixels, expected 0 to 4"),
    "classes of the layout": (["--root", "{folder}"], 2, "needs 11"),
    "no such split": (["--root", "{folder}", "--split", "test"], 4, "no such folder"),
    "limit": (["{shot}", "--limit", "0"], 2, "from 1 to"),
    "option": (["{shot}", "--per-nod3"], 2, "--per-nod3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, weights: Path, shot: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments, code, words = BAD[name]
    for file, pixels in (("small", (3, 4, 0)), ("high", (40, 45, 200)), ("truth", (40, 45, 0))):
        Image.fromarray(np.full(pixels[:2], pixels[2], np.uint8)).save(tmp_path / f"{file}.png")
    for folder in ("val", "valannot"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / "a.png")
    names = {file: str(tmp_path / f"{file}.png") for file in ("small", "high", "truth")}
    filled = [argument.format(shot=shot, folder=tmp_path, **names) for argument in arguments]
    assert cli.main(["quant-report", str(weights), *filled, "--backend", "numpy"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err


def test_bad_calls(good: Graph, shot: Path) -> None:
    with pytest.raises(UsageError, match="no image"):
        quant_report.measure([])
    with pytest.raises(UsageError, match="some images only"):
        quant_report.measure([Source(shot), Source(shot, shot)])
    with pytest.raises(InputError, match="none"):
        measure(good, Path("none.png"))
