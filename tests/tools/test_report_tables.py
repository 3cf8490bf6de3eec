"""tools/measure: what the tables say is what an independent computation says."""

import dataclasses
import itertools
import json
import math
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import CAMVID as CONFIG
from patterns import write_set
from torch.nn import functional as F

from intseg import api
from intseg.batch import datasets, evaluate
from intseg.cli import main as cli
from intseg.errors import UsageError
from intseg.images import decode as image
from intseg.images.labels import Labelling
from intseg.reports import inspect as inspect_model
from intseg.tools import convert
from intseg.tools.measure import bench, experiments, figures, report
from intseg.tools.measure.experiment import activations, choices, quantized, sizes
from intseg.tools.measure.experiment.subject import Subject
from intseg.tools.measure.tables.markdown import significant
from intseg.tools.measure.tables.results import PAPER_TRAFFIC, Results, miou
from intseg.tools.measure.tables.sizes import formula
from intseg.tools.twin import calibrate
from intseg.tools.twin.checkpoint import load_checkpoint, save_checkpoint
from intseg.tools.twin.gelu import QGelu
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.segmenter import random_segmenter

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    """The picture of the same numbers is drawn once; that it is the same bytes again, the committed pictures say."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("matrices", "bars", "fronts", "speed"):
            patch.setattr(figures, name, remembered(getattr(figures, name)))
        yield


def remembered(draw: Callable[..., str]) -> Callable[..., str]:
    drawn: dict[bytes, str] = {}

    def again(*numbers: Any) -> str:
        key = pickle.dumps(numbers)
        if key not in drawn:
            drawn[key] = draw(*numbers)
        return drawn[key]

    return again


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set in CamVid's layout and a checkpoint in its folder "checkpoint"."""
    root = tmp_path_factory.mktemp("data")
    save_checkpoint(random_segmenter(CONFIG, 3), root / "checkpoint")
    write_set(root, "train", range(3), 40, 56)
    write_set(root, "val", range(5, 8), 40, 56)
    return root


def run(data: Path, output: Path, *arguments: str) -> int:
    common = ["--root", str(data), "--checkpoint", f"tiny={data / 'checkpoint'}", "-o", str(output)]
    fast = ["--backend", "numpy", "--qat-steps", "0", "--samples", "1", "--recipes", "intseg"]
    return experiments.main([*arguments, *common, *fast, "--parts", "uniform", "lrp", "activations"])


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like docs/ with the results of every experiment, and a QAT model."""
    docs = tmp_path_factory.mktemp("docs")
    model = data / "trained.safetensors"
    options = ["--recipe", "paper", "--calibrate", str(data / "train"), "-q"]
    assert convert.main([str(data / "checkpoint"), "-o", str(model), *options]) == 0
    assert run(data, docs / "results", "all", "--qat", f"paper={model}", "--sizes", "tiny") == 0
    return docs


def load(docs: Path, name: str) -> Any:
    document = json.loads((docs / "results" / name).read_text())
    return document["results"]


def converted(data: Path, file: Path, *options: str) -> api.Model:
    """What tools/convert.py makes of the checkpoint and the first training image."""
    common = ["-o", str(file), "--calibrate", str(data / "train" / "0.png"), "-q"]
    assert convert.main([str(data / "checkpoint"), *common, *options]) == 0
    return api.load(file)


def counted(data: Path, model: api.Model) -> list[list[int]]:
    pairs = datasets.find_pairs(data / "val", data / "valannot")
    return evaluate.evaluate(pairs, model, backend="numpy", labelling=Labelling(ignore=(11,))).confusion.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "up", "cosine"),
    [("intseg", "nearest", "drop"), ("paper", "bilinear", "keep"), ("paper", "nearest", "keep")],
)
def test_table_2_counts_what_eval_counts(
    data: Path, results: Path, tmp_path: Path, recipe: str, up: str, cosine: str
) -> None:
    model = converted(data, tmp_path / "m.safetensors", "--recipe", recipe, "--upsample", up, "--l2norm", cosine)
    words = {"keep": "L2", "drop": "no L2"}[cosine]
    row = load(results, "upsampling_tiny.json")["rows"][recipe][f"{up}, {words}"]
    assert row["confusion"] == counted(data, model)
    assert row["pixels"] == 3 * 40 * 56
    floats = load(results, "upsampling_tiny.json")["rows"]["float"]
    assert floats["bilinear, L2"]["same_as_float"] == 3 * 40 * 56
    reference = [float_prediction(data, f"val/{seed}") for seed in (5, 6, 7)]
    labels = [api.run(data / "val" / f"{seed}.png", model, "numpy").labels for seed in (5, 6, 7)]
    equal = sum(int((a == b).sum()) for a, b in zip(reference, labels, strict=True))
    assert row["same_as_float"] == equal


def float_prediction(data: Path, name: str) -> Any:
    """As rstrudel/segmenter's inference: the last window flush with the edge, each upsampled, the mean, argmax."""
    model = load_checkpoint(data / "checkpoint")
    info = convert.model_info(CONFIG, RECIPES["intseg"], "", dict.fromkeys(map(str, range(11)), (0, 0, 0)))
    rgb = image.decode(data / f"{name}.png", info.pad).rgb
    total, count = torch.zeros((11, 40, 56), dtype=torch.float64), torch.zeros((40, 56))
    tops, lefts = ([*range(0, size - 32, step), size - 32] for size, step in zip((40, 56), info.stride, strict=True))
    for top, left in itertools.product(tops, lefts):
        window = torch.from_numpy(rgb[None, top : top + 32, left : left + 32].copy())
        with torch.no_grad():
            scores = model.forward_scores(calibrate.normalise(window, CONFIG)).double()
        pixels = F.interpolate(scores.permute(0, 3, 1, 2), scale_factor=8, mode="bilinear", align_corners=False)[0]
        total[:, top : top + 32, left : left + 32] += pixels
        count[top : top + 32, left : left + 32] += 1
    return (total / count).argmax(0).numpy()


def test_ptq_and_qat_rows_are_those_of_the_written_models(data: Path, results: Path, tmp_path: Path) -> None:
    (row,) = load(results, "ptq_tiny.json")["rows"]
    model = converted(data, tmp_path / "m.safetensors")
    assert (row["recipe"], row["images"]) == ("intseg", 1)
    assert row["confusion"] == counted(data, model)
    assert row["cost"]["cpu_seconds"] > 0
    assert row["cost"]["peak_bytes"] > 50e6
    trained = load(results, "qat_tiny.json")["rows"]
    assert list(trained) == ["paper"]
    assert trained["paper"]["confusion"] == counted(data, api.load(data / "trained.safetensors"))


def test_simplifications_go_from_intseg_to_paper(data: Path, results: Path, tmp_path: Path) -> None:
    found = load(results, "simplifications_tiny.json")
    ends = converted(data, tmp_path / "a.safetensors"), converted(data, tmp_path / "b.safetensors", "--recipe", "paper")
    assert found["alone"]["intseg"]["confusion"] == counted(data, ends[0])
    assert found["together"]["EMA min/max ranges"]["confusion"] == counted(data, ends[1])
    near = converted(data, tmp_path / "c.safetensors", "--upsample", "nearest", "--l2norm", "drop")
    assert found["together"]["no L2 norm"]["confusion"] == counted(data, near)
    floats = load(results, "upsampling_tiny.json")["rows"]["float"]
    assert found["in float"]["no L2 norm"] == floats["bilinear, no L2"]
    assert set(choices.IN_FLOAT) <= set(found["in float"])
    assert found["in float"]["lambda-ShiftGELU"] != found["in float"]["table, fitted ranges"]


def test_calibrations_are_counted_on_images_that_they_did_not_see(
    data: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load(results, "calibration_tiny.json")
    assert list(found["ways"]) == list(choices.CALIBRATIONS)
    assert found["images"] == 2  # of three, one calibrates
    root = tmp_path / "data"
    shutil.copytree(data, root)
    write_set(root, "train", range(8, 12), 40, 56)
    monkeypatch.setattr(choices, "CALIBRATIONS", {w: o for w, o in choices.CALIBRATIONS.items() if not o})
    assert run(root, tmp_path, "calibration") == 0
    found = json.loads((tmp_path / "calibration_tiny.json").read_text())["results"]
    names = ["0", "1", "10", "11", "2", "8", "9"]
    starts = [names[0], names[2], names[4]]
    judged = [name for name in names if name not in starts]
    assert found["images"] == len(judged) == 4
    model = converted(root, tmp_path / "m.safetensors")
    labels = {name: api.run(root / "train" / f"{name}.png", model, "numpy").labels for name in judged}
    same = sum(int((float_prediction(root, f"train/{name}") == labels[name]).sum()) for name in judged)
    first = found["ways"]["estimator chosen per node, biases corrected"][0]
    assert first == {"same": same, "pixels": 4 * 40 * 56}
    assert sum(found["chosen"][0].values()) == 3 * 4 + 2  # 3 blocks with 4 nodes each, and 2 norms


def test_recipes_that_are_left_out_of_the_steps_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = dict(choices.STEPS)
    del steps["Shiftmax"]
    monkeypatch.setattr(choices, "STEPS", steps)
    subject: Any = type("Subject", (), {"memo": staticmethod(lambda key, work: {})})
    with pytest.raises(UsageError, match="complete them"):
        choices.simplifications(subject)


# ---------------------------------------------------------------------------------------------------------------------
# Table 1
# ---------------------------------------------------------------------------------------------------------------------


def test_errors_of_the_operators_against_the_fake_quant_layers(data: Path, results: Path) -> None:
    """The same errors from the twin's own integers and from a loop over windows of the float model's blocks."""
    found = load(results, "activations_tiny.json")["checkpoint"]
    model = load_checkpoint(data / "checkpoint")
    info = convert.model_info(CONFIG, RECIPES["intseg"], "", dict.fromkeys(map(str, range(11)), (0, 0, 0)))
    twins = {}
    for name in ("paper", "intseg"):
        twins[name] = FakeQuantSegmenter(model, info.window, RECIPES[name])
        calibrate.calibrate(twins[name], model, [convert.windows(data / "train" / "0.png", info)])
    inputs: dict[str, list[torch.Tensor]] = {}

    def keep(node: str, value: torch.Tensor) -> None:
        inputs.setdefault(node, []).append(value)

    with torch.no_grad(), calibrate.tapped(model, keep):
        for seed in (5, 6, 7):
            model.forward_scores(calibrate.normalise(convert.windows(data / "val" / f"{seed}.png", info), CONFIG))
    block, name = twins["paper"].encoder.blocks[1], "encoder.blocks.1"
    x = torch.cat(inputs[f"{name}.mlp.fc1"])
    found_gelu = found["gelu"][name]
    for variant, lam in (("ShiftGELU", 1), ("lambda-ShiftGELU", 6)):
        layer = QGelu(dataclasses.replace(RECIPES["paper"], lam=lam), block.fc1_act, block.gelu_act)
        error = block.gelu_act.dequantize(layer.exact(block.fc1_act.quantize(x))) - F.gelu(x)
        assert found_gelu["rmse"][variant] == pytest.approx(float((error**2).mean().sqrt()))
    ours = twins["intseg"].encoder.blocks[1]
    error = ours.gelu_act.dequantize(ours.gelu.exact(ours.fc1_act.quantize(x))) - F.gelu(x)
    assert found_gelu["rmse"]["table, fitted ranges"] == pytest.approx(float((error**2).mean().sqrt()))
    assert found_gelu["largest_input"] == pytest.approx(float(x.abs().max()))
    logits = torch.cat(inputs[f"{name}.attn.scores"])
    for variant, layer in (("Shiftmax", block.attn.softmax), ("exp_weights", ours.attn.softmax)):
        q = (
            torch.floor(logits / torch.as_tensor(layer.unit()).reshape(-1, 1, 1) + 0.5)
            .clamp(-(2**15), 2**15 - 1)
            .long()
        )
        p = layer.shares(layer.exact(q))
        error = (p - logits.softmax(-1)).double()
        assert found["softmax"][name]["rmse"][variant] == pytest.approx(float((error**2).mean().sqrt()), rel=1e-5)
        assert found["softmax"][name]["row_sum"][variant] == pytest.approx(float(p.double().sum(-1).mean()))
    assert list(found["gelu"]) == ["encoder.blocks.0", "encoder.blocks.1", "decoder.blocks.0"]


def test_long_tailed_networks_are_almost_the_same_function() -> None:
    model = random_segmenter(CONFIG, 3)
    changed = activations.long_tailed(model, 8)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    largest = [0.0, 0.0]
    for i, which in enumerate((model, changed)):

        def receive(node: str, value: torch.Tensor, i: int = i) -> None:
            if node.endswith("mlp.fc1"):
                largest[i] = max(largest[i], float(value.abs().max()))

        with torch.no_grad(), calibrate.tapped(which, receive):
            which.forward_scores(x)
    assert largest[1] > 2 * largest[0]
    with torch.no_grad():
        a, b = model.forward_scores(x), changed.forward_scores(x)
    assert not torch.equal(a, b)
    assert float((a.argmax(-1) == b.argmax(-1)).double().mean()) > 0.8


# ---------------------------------------------------------------------------------------------------------------------
# Tables 5 to 7
# ---------------------------------------------------------------------------------------------------------------------


def test_measured_sees_memory_time_and_failure(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\nx = bytearray(b'x') * 300_000_000\ny = sum(range(10**7))\ntime.sleep(0.3)\n")
    ballast = bytearray(b"x") * 500_000_000  # memory of this process must not count
    found = quantized.measured([script])
    assert len(ballast) == 500_000_000
    assert 300e6 < found["peak_bytes"] < 450e6
    assert found["seconds"] > 0.3
    assert found["cpu_seconds"] > 0.05
    script.write_text("raise SystemExit('no such thing')")
    with pytest.raises(UsageError, match=r"script\.py: no such thing"):
        quantized.measured([script])


def test_the_cost_of_a_training_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def measured(command: list[Any]) -> dict[str, Any]:
        commands.append(cli._parse(["qat", *(str(word) for word in command[1:])]))
        return {"cpu_seconds": 5.0 + 2 * commands[-1].steps, "peak_bytes": 10**9}

    monkeypatch.setattr(quantized, "measured", measured)
    options = experiments.parser().parse_args(["ptq", "--root", str(data), "--qat-steps", "4"])
    subject = Subject("tiny", data / "checkpoint", options)
    assert quantized._training_cost(subject) == {"batch": 8, "cpu_seconds_per_step": 2.0, "peak_bytes": 10**9}
    assert [command.steps for command in commands] == [1, 5]
    assert commands[0].root == str(data)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_mac_counts_are_those_of_the_graph(name: str) -> None:
    shape = dataclasses.replace(bench.SHAPES[name], image=64, classes=7)
    graph = bench.RandomGraph(shape).build()
    linear = sum(inspect_model.macs(graph, node) for node in graph.nodes if node.op == "linear")
    products = sum(inspect_model.macs(graph, node) for node in graph.nodes if node.op in ("matmul", "weighted_mean"))
    assert sizes.mac_counts(shape) == (linear, products)


def test_the_formula_gives_the_papers_table_7() -> None:
    for name, printed in PAPER_TRAFFIC.items():
        linear, products = sizes.mac_counts(dataclasses.replace(bench.SHAPES[name], image=512))
        entry = {"linear_macs": linear, "product_macs": products}
        assert formula(entry, sizes.PAPER_BITS) == pytest.approx(printed, rel=0.006)


def test_traffic_of_a_graph() -> None:
    shape = bench.Shape(64, 2, 1, image=64, decoder_layers=0, classes=5)
    graph = bench.RandomGraph(shape).build()
    found = sizes.traffic(graph)
    assert found["weights"] == sum(array.nbytes for array in graph.tensors.values())
    assert found["macs"] == sum(inspect_model.macs(graph, node) for node in graph.nodes)
    rows = inspect_model.rows(graph)
    written = sum(row.output_bytes for row in rows)
    swallowed = sum(row.output_bytes for row in rows if row.name.rpartition(".")[2] in ("scores", "softmax", "context"))
    assert found["node_by_node"] > written
    assert found["written"] < written - swallowed + 5 * 64 * 17 + 64 * 64 * 3  # packed keys, values; the image
    assert found["read"] + found["written"] + found["weights"] < found["node_by_node"]
    assert found["workspace"] < found["written"]


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_files_say_what_they_are_and_nothing_of_the_machine(data: Path, results: Path) -> None:
    files = sorted((results / "results").iterdir())
    parts = [
        "activations_tiny",
        "bits_tiny",
        "calibration_tiny",
        "ptq_tiny",
        "qat_tiny",
        "simplifications_tiny",
        "sizes",
        "upsampling_tiny",
    ]
    assert [file.name for file in files] == [f"{part}.json" for part in parts]
    for file in files:
        text = file.read_text()
        assert str(data) not in text
        assert "/" not in json.loads(text)["command"].replace("tools/measure/experiments.py", "")
    command = json.loads(files[4].read_text())["command"]
    assert command.endswith("--checkpoint tiny=checkpoint --qat tiny:paper=trained.safetensors")


def test_what_is_there_is_not_measured_again(data: Path, results: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(results / "results", tmp_path / "results")
    file = tmp_path / "results" / "upsampling_tiny.json"
    before = file.stat().st_mtime_ns
    assert run(data, tmp_path / "results", "upsampling") == 0
    assert "up to date" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    assert run(data, tmp_path / "results", "upsampling", "--limit", "1") == 0
    assert json.loads(file.read_text())["images"] == 1


def test_an_experiment_that_was_ended_continues(
    data: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked = []
    measure = choices._both_upsamplings

    def dying(subject: Any, recipe: str, cosine: str) -> Any:
        if len(worked) == 3:
            raise KeyboardInterrupt
        worked.append((recipe, cosine))
        return measure(subject, recipe, cosine)

    monkeypatch.setattr(choices, "_both_upsamplings", dying)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, "upsampling")
    worked.clear()
    assert run(data, tmp_path, "upsampling") == 0
    assert worked == [("paper", "drop")]
    assert [file.name for file in tmp_path.iterdir()] == ["upsampling_tiny.json"]
    whole = (results / "results" / "upsampling_tiny.json").read_bytes()
    assert (tmp_path / "upsampling_tiny.json").read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ptq"], 2, "needs --root"),
        (["ptq", "--root", "{}", "--checkpoint", "x"], 2, "expected NAME=PATH"),
        (["ptq", "--root", "{}", "--checkpoint", "x={}/none"], 4, "no such file or folder"),
        (["ptq", "--root", "{}", "--checkpoint", "x={}/val/5.png"], 3, "5.png"),
        (["ptq", "--root", "{}/val", "--checkpoint", "x={}/checkpoint"], 4, "no such folder"),
        (["qat", "--root", "{}", "--checkpoint", "x={}/checkpoint", "--qat", "y:paper=a"], 2, "expected NAME:RECIPE"),
        (["qat", "--root", "{}", "--checkpoint", "x={}/checkpoint", "--qat", "best=a"], 2, "expected NAME:RECIPE"),
        (["qat", "--root", "{}", "--checkpoint", "x={}/checkpoint", "--qat", "paper=a"], 4, "no such file"),
    ],
)
def test_bad_arguments(
    data: Path, tmp_path: Path, capsys: Capture, arguments: list[str], code: int, words: str
) -> None:
    filled = [argument.format(data, data) for argument in arguments]
    assert experiments.main([*filled, "-o", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_qat_model_of_another_recipe_is_refused(data: Path, results: Path, tmp_path: Path, capsys: Capture) -> None:
    model = data / "trained.safetensors"
    assert run(data, tmp_path, "qat", "--qat", f"intseg={model}") == 2
    assert "recipe is paper, expected intseg" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_qat_rows_of_few_bits_stand_beside_them_with_their_costs(data: Path, tmp_path: Path) -> None:
    file = converted(data, tmp_path / "w4.safetensors", "--uniform", "w4a8")
    both = ["--qat", f"intseg={data / 'other.safetensors'}", "--qat", f"intseg+w4a8={tmp_path / 'w4.safetensors'}"]
    converted(data, data / "other.safetensors")
    assert run(data, tmp_path, "qat", *both) == 0
    document = json.loads((tmp_path / "qat_tiny.json").read_text())
    assert document["command"].endswith("--qat tiny:intseg=other.safetensors --qat tiny:intseg+w4a8=w4.safetensors")
    assert "bits" not in document["results"]["rows"]["intseg"]
    row = document["results"]["rows"]["intseg+w4a8"]
    linear = [found for found in inspect_model.rows(file.graph) if found.op == "linear"]
    assert row["bits"] == [4] * len(linear)
    assert row["size"] == 4 * sum(file.graph.tensors[name].size for name in file.graph.packed)
    assert row["bitops"] == 32 * sum(found.macs for found in linear)


def test_qat_rows_of_other_recipes_stay(data: Path, results: Path, tmp_path: Path) -> None:
    model = converted(data, data / "other.safetensors")
    shutil.copy(results / "results" / "qat_tiny.json", tmp_path)
    assert run(data, tmp_path, "qat", "--qat", f"intseg={data / 'other.safetensors'}") == 0
    document = json.loads((tmp_path / "qat_tiny.json").read_text())
    assert document["command"].endswith("--qat tiny:paper=model.safetensors --qat tiny:intseg=other.safetensors")
    rows = document["results"]["rows"]
    assert rows["paper"] == load(results, "qat_tiny.json")["rows"]["paper"]
    assert rows["intseg"]["confusion"] == counted(data, model)
    assert run(data, tmp_path, "qat", "--qat", f"intseg={data / 'other.safetensors'}", "--limit", "1") == 0
    assert list(json.loads((tmp_path / "qat_tiny.json").read_text())["results"]["rows"]) == ["intseg"]


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def test_the_committed_page_is_what_the_committed_results_give(capsys: Capture) -> None:
    assert report.main(["--check"]) == 0, capsys.readouterr().out


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results with their page and pictures."""
    docs = tmp_path_factory.mktemp("written")
    shutil.copytree(results / "results", docs / "results")
    assert report.main(["--docs", str(docs)]) == 0
    return docs


@pytest.fixture
def docs(written: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_the_check_sees_every_change(docs: Path, capsys: Capture) -> None:
    check = ["--check", "--docs", str(docs)]
    assert report.main(check) == 0
    files = [docs / "RESULTS.md", *(docs / "pictures").iterdir()]
    for file in files:
        file.write_text(file.read_text().replace("0", "1", 1))
    (docs / "pictures" / "results_old.svg").write_text("")
    assert report.main(check) == 1
    out = capsys.readouterr().out
    assert [file.name for file in [*files, Path("results_old.svg")] if file.name not in out] == []
    assert len(out.splitlines()) == len(files) + 1
    assert report.main(check[1:]) == 0
    assert report.main(check) == 0
    file = docs / "results" / "ptq_tiny.json"
    document = json.loads(file.read_text())
    confusion = np.array(document["results"]["rows"][0]["confusion"])
    row, column = np.unravel_index(confusion.argmax(), confusion.shape)
    confusion[row, [column, column - 1]] += np.array([-1, 1]) * (confusion[row, column] // 2)
    document["results"]["rows"][0]["confusion"] = confusion.tolist()
    file.write_text(json.dumps(document))
    assert report.main(check) == 1
    assert "RESULTS.md" in capsys.readouterr().out


def test_numbers_on_the_page_are_those_of_the_results(docs: Path) -> None:
    page = (docs / "RESULTS.md").read_text()
    (row,) = load(docs, "ptq_tiny.json")["rows"]
    matrix = np.array(row["confusion"])
    unions = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    mean = 100 * np.mean([r / u for r, u in zip(matrix.diagonal(), unions, strict=True) if u])
    accuracy = 100 * matrix.trace() / matrix.sum()
    equal = 100 * row["same_as_float"] / row["pixels"]
    base = miou(load(docs, "ptq_tiny.json")["float"]["bilinear, L2"])
    assert f"| PTQ | 1 | intseg | {mean:.2f} | {mean - base:+.2f} | {accuracy:.2f} | {equal:.2f} |" in page
    assert f"| float | - | bilinear, L2 norm | {base:.2f} |  |" in page
    errors = load(docs, "activations_tiny.json")["checkpoint"]["gelu"].values()
    square = sum(entry["rmse"]["ShiftGELU"] ** 2 * entry["elements"] for entry in errors)
    overall = math.sqrt(square / sum(entry["elements"] for entry in errors))
    first = page[page.index("## Table 1") : page.index("## Table 2")]
    line, _ = (line for line in first.splitlines() if line.startswith("| tiny |"))  # GELU, softmax
    assert line.split(" | ")[2] == significant(overall)
    assert all(len(line) <= 120 or line[0] in "|!`p" for line in page.splitlines() if line)


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert report.main(["--docs", str(tmp_path)]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.count("Not measured: no checkpoint at all.") == 7
    assert page.count("## ") == 12
    assert not (tmp_path / "pictures").exists()


def test_checkpoints_without_an_experiment_are_named(docs: Path) -> None:
    """The project's own come first, in their order."""
    for name in ("bundled", "another"):
        document = json.loads((docs / "results" / "ptq_tiny.json").read_text())
        document["checkpoint"]["name"] = name
        (docs / "results" / f"ptq_{name}.json").write_text(json.dumps(document))
    assert Results(docs / "results").names == ["tiny", "bundled", "another"]
    assert report.main(["--docs", str(docs)]) == 0
    page = (docs / "RESULTS.md").read_text()
    assert page.count("Not measured: bundled, another.") == 5  # Tables 1 and 2, simplifications, calibration, bits
    assert page.count("| bundled | S | recipe |") == 1


def test_latencies_come_from_the_bench(docs: Path) -> None:
    entry = {"intseg_ms": 80.61, "numpy_ms": None, "peers_ms": {"ort fp32": 584.04}}
    found = {"machine": {"cpu": "A CPU", "path": "vnni", "torch": "2"}, "results": {"tiny": {"1": entry}}}
    small = {"intseg_ms": 214.0, "peers_ms": {"ort dynamic int8": 745.3}}
    found["results"]["small"] = {"1": small}
    (docs / "results" / "bench.json").write_text(json.dumps(found))
    assert report.main(["--docs", str(docs)]) == 0
    page = (docs / "RESULTS.md").read_text()
    assert "| intseg, numba | 80.6 | 214.0 |" in page
    assert "| ONNX Runtime FP32 | 584.0 | not measured |" in page
    assert "| ONNX Runtime dynamic INT8 | not measured | 745.3 |" in page
    assert "Not measured in that run: PyTorch FP32, ONNX Runtime static QDQ INT8, OpenVINO FP32," in page
    assert "On A CPU (vnni)" in page


def test_a_bench_of_one_model_keeps_the_others_of_the_same_machine(tmp_path: Path) -> None:
    file, here = tmp_path / "bench.json", {"cpu": "a"}
    new = {"machine": here, "results": {"base": {"2": 1}}, "sweep": {}}
    assert bench._with_earlier(new, file) == new
    old = {"machine": here, "results": {"tiny": {"1": 2}}, "sweep": {"tiny": 4}, "cold_start_s": 5}
    file.write_text(json.dumps({**old, "results": {**old["results"], "base": {"1": 3, "2": 6}}}))
    expected = {**old, "results": {"tiny": {"1": 2}, "base": {"1": 3, "2": 1}}}
    assert bench._with_earlier(new, file) == expected
    assert bench._with_earlier({**new, "machine": {"cpu": "b"}}, file)["results"] == {"base": {"2": 1}}


@pytest.mark.parametrize("content", ["{", "[]", '{"experiment": "other"}'])
def test_a_file_that_is_no_result_is_named(docs: Path, capsys: Capture, content: str) -> None:
    (docs / "results" / "new.json").write_text(content)
    assert report.main(["--docs", str(docs)]) == 4
    error = capsys.readouterr().err
    assert "new.json" in error
    assert len(error.splitlines()) == 1


def test_significant() -> None:
    values = {0.0: "0.00", 0.012345: "0.0123", 1.5: "1.50", 123.4: "123", 5231.0: "5231", -0.5: "-0.500"}
    assert {value: significant(value) for value in values} == values


def test_the_command_line_imports_no_torch_for_the_page() -> None:
    import subprocess

    code = "import sys; from intseg.tools.measure import report; print('torch' in sys.modules)"
    root = Path(report.__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
