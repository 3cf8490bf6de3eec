"""Classifiers in timm's names: read, converted, equal to their twin in every node, and what cannot be read."""

import copy
import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from compare import assert_equal
from configs import NO_DECODER, SMALL
from patterns import pattern
from PIL import Image

import intseg
from intseg import store
from intseg.exam import real
from intseg.executor import execute
from intseg.ops import RUN
from intseg.tools import convert, qat
from intseg.tools.measure import classify_bits
from intseg.tools.twin import fit
from intseg.tools.twin.calibrate import calibrate, share_weights
from intseg.tools.twin.classifier import Classifier, is_classifier, load_classifier, random_classifier
from intseg.tools.twin.config import CheckpointError
from intseg.tools.twin.export import export
from intseg.tools.twin.model import QBlock, twin_of
from intseg.tools.twin.onnx_import import load_onnx
from intseg.tools.twin.recipe import RECIPES
from intseg.tools.twin.samples import normalise
from intseg.workbench import trace

torch.set_num_threads(1)

PLAIN = dataclasses.replace(
    SMALL,
    image_size=(32, 32),
    window=(32, 32),
    stride=(32, 32),
    decoder="linear",
    norm_eps=1e-6,
    im_size=35,
    **NO_DECODER,
)
DISTILLED = dataclasses.replace(PLAIN, distilled=True, normalization="deit")
CONFIGS = {"plain": PLAIN, "distilled": DISTILLED}


def saved(model: Classifier, folder: Path, **config: object) -> Path:
    """As timm writes it: tensors without `encoder.`, and config.json."""
    folder.mkdir(exist_ok=True)
    state = {name.removeprefix("encoder."): value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    stated = {"mean": list(model.config.mean), "std": list(model.config.std), "crop_pct": 0.9, **config}
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": stated}))
    return folder


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_checkpoint_is_read(config: object, tmp_path: Path) -> None:
    model = random_classifier(config, 1)
    found = load_classifier(saved(model, tmp_path / "ck"), {"n_heads": 2})
    assert found.config == config
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(x), model(x))
        assert found(x).shape == (2, 5)
    assert not found.info.notes[1:]  # the square position embedding


def test_logits_are_those_of_the_tokens(tmp_path: Path) -> None:
    model = random_classifier(DISTILLED, 2)
    with torch.no_grad():
        x = torch.randn(1, 3, 32, 32)
        tokens = model.encoder(x)[0]
        wanted = (model.head(tokens[0]) + model.head_dist(tokens[1])) / 2
        assert torch.allclose(model(x)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("recipe", ["intseg", "paper", "i-vit"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_engine_and_twin_agree_on_every_node(config: object, recipe: str) -> None:
    model = random_classifier(config, 3)
    batches = [torch.from_numpy(pattern(i, 32, 32)[0])[None] for i in range(2)]
    twin = twin_of(model, (32, 32), RECIPES[recipe])
    calibrate(twin, model, batches)
    named = {f"class {i}": (i, i, i) for i in range(5)}
    graph = store.loads(store.dumps(export(twin, convert.class_info(config, RECIPES[recipe], "x", named))))
    nodes: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        logits = twin.eval()(batches[1], nodes.__setitem__)
    seen = []

    def compare(node: object, value: np.ndarray) -> None:
        seen.append(node.name)
        assert_equal(value, nodes[node.name][0].numpy().astype(value.dtype), node.name)

    found = execute(graph, batches[1][0].numpy(), RUN, compare)
    assert set(seen) == set(nodes)
    assert np.array_equal(found, logits.q[0].numpy())
    scale = graph.tensors[graph.node("logits").scale]
    reals = np.ldexp(found * scale[0].astype(float) + scale[1], -scale[2])
    assert np.abs(reals - logits.real[0].numpy()).max() < 1e-4 * np.abs(reals).max()


def test_a_unit_that_reaches_far_is_divided() -> None:
    model = random_classifier(dataclasses.replace(PLAIN, mlp_dim=96), 4)
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.mlp.fc1.weight[7] *= 60
    batches = [torch.from_numpy(pattern(i, 32, 32)[0])[None] for i in range(2)]
    twin, kept = twin_of(model, (32, 32), RECIPES["intseg"]), copy.deepcopy(model.state_dict())
    share_weights(twin, model)
    chosen = calibrate(twin, model, batches)
    divided = [n for n, block in enumerate(twin.encoder.blocks) if block.fc1.units is not None]
    assert divided
    assert all("divided" in chosen[f"encoder.blocks.{n}.mlp.act"] for n in divided)
    for n in divided:
        block = twin.encoder.blocks[n]
        assert isinstance(block, QBlock)
        assert int((block.fc1.units == 7).sum()) > 1
        x = torch.linspace(-3, 60, 400, dtype=torch.float64)[:, None].expand(-1, 96)[:, block.fc1.units]
        y = block.gelu_act.dequantize(block.gelu.integers()["table"][block.fc1_act.quantize(x) + 128])
        total = y[:, block.fc1.units == 7].sum(1)
        assert float((total - torch.nn.functional.gelu(x[:, 0])).abs().max()) < 3
    named = {f"class {i}": (i, i, i) for i in range(5)}
    graph = export(twin.eval(), convert.class_info(PLAIN, RECIPES["intseg"], "x", named))
    owners = real.owners_of(graph, graph.node(f"encoder.blocks.{divided[0]}.mlp.fc1"))
    assert owners is not None
    assert np.array_equal(owners[owners != np.arange(96)], [7] * int((owners == 7).sum() - 1))
    scale = graph.tensors[graph.node("logits").scale]
    with torch.no_grad():
        wanted = model(normalise(batches[1], PLAIN))[0].numpy()
    exact = real.dequantize(scale, real.run(graph, batches[1][0].numpy(), trace.scales(graph), np.float64))
    assert np.abs(exact - wanted).max() < 0.05 * np.abs(wanted).max()  # the parts are one unit in real arithmetic too
    again = calibrate(twin, model, batches)
    assert again == chosen
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())


def test_ramps_cover_what_lies_above_the_table() -> None:
    ramps = fit._ramps(12.0, 230.0)
    assert ramps[0][0] == 12.0
    assert all(start - 3 * size >= 3 - 1e-9 for start, size in ramps)
    ends = [start + 12 * size for start, size in ramps]
    assert ends[:-1] == [start for start, _ in ramps[1:]]
    assert ends[-1] >= 229.9


def test_convert_and_infer(tmp_path: Path) -> None:
    source = saved(random_classifier(DISTILLED, 5), tmp_path / "ck", interpolation="bicubic")
    Image.fromarray(pattern(0, 40, 50)[0]).save(tmp_path / "photo.png")
    target = tmp_path / "w.safetensors"
    line = [str(source), "-o", str(target), "--calibrate", str(tmp_path / "photo.png"), "-q", "--heads", "2"]
    assert convert.main(line) == 0
    found = intseg.load(target)
    assert found.info.classifies
    assert found.info.working_size == (35, 16384)
    assert len(intseg.run(tmp_path / "photo.png", found, "numpy").top()) == 5
    assert convert.main([*line, "--upsample", "nearest"]) == 2


def test_a_classifier_of_few_bits_is_trained_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, image = saved(random_classifier(DISTILLED, 5), tmp_path / "ck"), pattern(0, 40, 50)[0]
    Image.fromarray(image).save(tmp_path / "photo.png")
    line = [str(source), "-o", str(tmp_path / "run"), "--calibrate", str(tmp_path / "photo.png"), "--uniform", "w3a8"]
    assert qat.main([*line, "--steps", "2", "--lr", "1e-2", "--batch", "2"]) == 0
    twin = twin_of(load_classifier(source), (32, 32), RECIPES["intseg"])
    twin.load_state_dict(torch.load(tmp_path / "run" / "twin.pth", weights_only=True)["model"])
    found, window = intseg.load(tmp_path / "run" / "model.safetensors"), image[:32, :32]
    with torch.no_grad():
        expected = twin.eval()(torch.from_numpy(window.copy())[None]).q[0]
    assert found.info.classifies
    assert set(found.graph.packed.values()) == {3}
    assert execute(found.graph, window, RUN).ravel().tolist() == expected.tolist()
    assert qat.main([*line, "--root", str(tmp_path)]) == 2
    assert "--root has labels of pixels; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_float_onnx_file_of_a_classifier(config: object, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    model = random_classifier(config, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(1, 3, 32, 32),), tmp_path / "m.onnx", dynamo=False, opset_version=17)
    found = load_onnx(tmp_path / "m.onnx")
    assert isinstance(found, Classifier)
    assert found.config == config
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
        assert found.state_dict()[name].stride() == value.stride(), name


@pytest.mark.parametrize(
    ("name", "words"), [("fc_norm.weight", "mean of all tokens"), ("blocks.0.ls1.gamma", "layer scale")]
)
def test_what_is_no_plain_vit_is_refused(name: str, words: str, tmp_path: Path) -> None:
    folder = saved(random_classifier(PLAIN, 7), tmp_path / "ck")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({**state, name: torch.ones(32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_classifier(folder)
    del state["head.weight"]
    safetensors.torch.save_file(state, folder / "model.safetensors")
    assert not is_classifier(folder)


def test_few_bits_are_counted_on_images_that_do_not_calibrate(tmp_path: Path) -> None:
    folder = saved(random_classifier(dataclasses.replace(PLAIN, n_cls=1000), 1), tmp_path / "ck")
    (tmp_path / "set" / "images").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(pattern(i, 40, 44)[0]).save(tmp_path / "set" / "images" / f"{i}.png")
    (tmp_path / "set" / "labels.txt").write_text("".join(f"{i}.png {i}\n" for i in range(4)))
    common = ["--name", "small", "--root", str(tmp_path / "set"), "--docs", str(tmp_path / "docs")]
    assert classify_bits.main([str(folder), *common, "--parts", "uniform"]) == 0
    document = json.loads((tmp_path / "docs" / "results" / "bits_small.json").read_text())
    assert document["command"].endswith("--root set --parts uniform")
    assert document["images"] == 3
    rows = document["results"]["rows"]
    assert set(rows) == {f"uniform, {b}" for b in (2, 3, 4, 6, 8)}
    file, images = tmp_path / "w2.safetensors", [tmp_path / "set" / "images" / f"{i}.png" for i in range(4)]
    options = ["--calibrate", str(images[0]), "--uniform", "w2a8", "-q", "-o", str(file)]
    assert convert.main([str(folder), *options]) == 0
    model = load_classifier(folder)
    seen = torch.cat([convert.windows(image, intseg.load(file).info) for image in images[1:]])
    floats = model(normalise(seen, model.config)).argmax(1).tolist()
    labels = [intseg.run(image, file).label for image in images[1:]]
    assert rows["uniform, 2"]["same"] == sum(a == b for a, b in zip(floats, labels, strict=True))
    assert document["results"]["float"]["same"] == 3
    file, photographs = tmp_path / "docs" / "results" / "bits_small.json", tmp_path / "photographs"
    document["results"]["rows"]["uniform, 2"]["top5"] = 77  # what is there is kept
    file.write_text(json.dumps(document))
    photographs.mkdir()
    Image.fromarray(pattern(9, 40, 44)[0]).save(photographs / "9.png")
    assert classify_bits.main([str(folder), *common, "--parts", "uniform", "--judge", str(photographs)]) == 0
    found = json.loads(file.read_text())
    assert found["command"].endswith("--parts uniform --judge photographs")
    assert found["results"]["rows"]["uniform, 2"]["top5"] == 77
    assert all(row["photographs"] == 1 for row in found["results"]["effort"].values())
    best = min(classify_bits.EFFORTS, key=lambda name: float(found["results"]["effort"][name]["kl"]))
    chosen = {**found["results"]["rows"]["chosen, 4"]}
    uniform = found["results"]["rows"]["uniform, 4"]
    assert chosen == uniform if best == "as above" else chosen["bits"] == uniform["bits"]
