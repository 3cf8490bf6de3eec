"""The twin and the engine agree on every intermediate: what the exporter writes is what the twin computes."""

import copy
import dataclasses
import functools
import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import assert_equal
from configs import NO_DECODER, SMALL
from graphs import SOFTMAX
from torch import Tensor
from twins import info_of, integers, noisy

import intseg
from intseg import store
from intseg.executor import execute
from intseg.graph import Graph, Node
from intseg.ops import MOVERS, RUN
from intseg.tools import make_golden
from intseg.tools.twin import recipe
from intseg.tools.twin.act import Act
from intseg.tools.twin.calibrate import calibrate
from intseg.tools.twin.config import SegmenterConfig
from intseg.tools.twin.export import export
from intseg.tools.twin.model import FakeQuantSegmenter
from intseg.tools.twin.recipe import Recipe
from intseg.tools.twin.segmenter import random_segmenter

MASK = dataclasses.replace(SMALL, patch=16, dec_layers=2)


def variant(**changes: object) -> SegmenterConfig:
    return dataclasses.replace(MASK, **changes)


CONFIGS = {
    "mask": MASK,
    "linear": variant(decoder="linear", **NO_DECODER),
    "distilled": variant(distilled=True, normalization="deit", n_layers=1),
    "distilled-linear": variant(distilled=True, normalization="deit", decoder="linear", **NO_DECODER),
    "patch8": variant(patch=8, window=(24, 32), stride=(16, 16), image_size=(32, 32), n_layers=1, dec_layers=1),
    "patch32": variant(patch=32, window=(32, 96), stride=(32, 64), image_size=(64, 64), n_layers=1, dec_layers=1),
    "one-patch": variant(window=(16, 16), stride=(16, 16), n_layers=1, dec_layers=1),
    "tall": variant(window=(80, 16), stride=(48, 16), n_layers=1, dec_layers=1),
    "one-head": variant(d_model=64, n_heads=1, d_decoder=32, dec_heads=1, n_layers=1, dec_layers=1),
    "one-class": variant(n_cls=1, n_layers=1, dec_layers=1),
    "two-classes-no-blocks": variant(n_cls=2, dec_layers=0, dec_mlp_dim=0),
    "other-numerics": variant(norm_eps=1e-6, pos_mode="bicubic", window=(48, 32), stride=(32, 16), n_layers=1),
}
NAMED = recipe.RECIPES
RECIPES = {
    **NAMED,
    "sigmoid": dataclasses.replace(NAMED["intseg"], gelu="sigmoid_gelu", lam=6, k_inter=23),
    "sigmoid-paper": dataclasses.replace(NAMED["paper"], gelu="sigmoid_gelu"),
    "intseg-dropped": dataclasses.replace(NAMED["intseg"], cosine=False),
    "paper-kept": dataclasses.replace(NAMED["paper"], cosine=True),
    "paper-bilinear": dataclasses.replace(NAMED["paper"], upsample="bilinear"),
    "intseg-nearest": dataclasses.replace(NAMED["intseg"], upsample="nearest"),
    SOFTMAX: dataclasses.replace(NAMED["paper"], softmax=SOFTMAX, int_div="normalized"),
    "shiftmax-normalized": dataclasses.replace(NAMED["i-vit"], int_div="normalized"),
    "shiftmax-table": dataclasses.replace(NAMED["intseg"], softmax="shiftmax", int_div="paper"),
    "intseg-ema": dataclasses.replace(NAMED["intseg"], ranges="ema"),
    "paper-fit": dataclasses.replace(NAMED["paper"], ranges="fit"),
    "lambda64": dataclasses.replace(NAMED["paper"], lam=64, k_inter=15),
}


def windows(config: SegmenterConfig, count: int, seed: int = 0) -> Tensor:
    """The first is black, the second white."""
    images = noisy(count, seed, config)
    images[0], images[1 % count] = 0, 255
    return images


def build(
    config: SegmenterConfig, recipe: Recipe, seed: int = 0, pairs: Sequence[tuple[int, int]] = ()
) -> FakeQuantSegmenter:
    """A calibrated twin of a random model, in evaluation mode: a copy of the one that was built with the same."""
    return copy.deepcopy(built(config, recipe, seed, tuple(pairs)))


@functools.cache
def built(
    config: SegmenterConfig, recipe: Recipe, seed: int = 0, pairs: Sequence[tuple[int, int]] = ()
) -> FakeQuantSegmenter:
    """As `build`, but nobody may change it."""
    model = random_segmenter(config, seed)
    twin = FakeQuantSegmenter(model, config.window, recipe)
    if pairs:
        twin.set_bits(make_golden.mixed_bits(twin, pairs))
    calibrate(twin, model, [windows(config, 2, 11)[1:], windows(config, 3, 12)[2:]])
    return twin.eval()


def exported(twin: FakeQuantSegmenter) -> bytes:
    return store.dumps(export(twin, info_of(twin)))


def assert_agree(twin: FakeQuantSegmenter, graph: Graph, images: Tensor) -> int:
    """Every node of every window, both ways; returns how many were compared."""
    found = integers(twin, images)
    assert set(found) == {node.name for node in graph.nodes}
    compared = 0

    def check(i: int, node: Node, value: np.ndarray) -> None:
        nonlocal compared
        wide = found[node.name][i].numpy()
        expected = wide.astype(value.dtype)
        assert np.array_equal(expected, wide), f"{node.name}: the twin leaves the range of {value.dtype}"
        assert_equal(value, expected, f"window {i}, {node.name} ({node.op})")
        compared += 1

    for i, image in enumerate(images.numpy()):
        execute(graph, image, RUN, functools.partial(check, i))
    assert compared == len(images) * len(graph.nodes)
    return compared


# ---------------------------------------------------------------------------------------------------------------------
# Every node
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_agrees_on_every_node(recipe: str) -> None:
    twin = build(MASK, RECIPES[recipe])
    assert_agree(twin, store.loads(exported(twin)), windows(MASK, 4, 1))


@pytest.mark.parametrize("recipe", RECIPES)
def test_fewer_bits_agree_on_every_node(recipe: str) -> None:
    """Weights of 2 to 8 bits, packed in the file, activations of 4 to 8."""
    pairs = [(weight, activation) for activation in (4, 5, 6, 7, 8) for weight in (2, 3, 4, 5, 6, 7, 8)]
    twin = build(MASK, RECIPES[recipe], pairs=random.Random(recipe).sample(pairs, len(pairs)))
    data = exported(twin)
    graph = store.loads(data)
    linears = twin.linears()
    assert graph.packed == {f"{name}.weight": int(x.bits) for name, x in linears.items() if int(x.bits) < 8}
    outs = {node.attrs.get("out", "int8") for node in graph.nodes}
    assert {"int4", "int5", "int6", "int7", "int8", "int16"} == outs
    assert store.dumps(dataclasses.replace(graph)) == data
    assert_agree(twin, graph, windows(MASK, 4, 1))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("recipe", NAMED)
def test_every_model_agrees_on_every_node(config: str, recipe: str) -> None:
    twin = build(CONFIGS[config], NAMED[recipe], seed=3)
    assert_agree(twin, store.loads(exported(twin)), windows(CONFIGS[config], 3, 2))


@pytest.mark.parametrize("recipe", [*NAMED, "sigmoid"])
def test_saturated_models_agree(recipe: str) -> None:
    """Ranges four times too narrow: saturation everywhere is not where anyone looks, and it has to be the same."""
    twin = build(MASK, RECIPES[recipe])
    for act in twin.modules():
        if isinstance(act, Act) and act.bits == 16:
            act.scale.mul_(0.25)
    images = windows(MASK, 3, 4)
    found = integers(twin, images)
    assert float((found["encoder.pos_add"].abs() >= 32767).double().mean()) > 0.01
    assert_agree(twin, store.loads(exported(twin)), images)


def test_one_changed_integer_is_noticed() -> None:
    """The canary of the comparison."""
    twin = build(MASK, NAMED["intseg"])
    graph = store.loads(exported(twin))
    with torch.no_grad():
        twin.encoder.blocks[1].fc1.bias[7] += 10 * twin.encoder.blocks[1].fc1.bias.abs().max()
    with pytest.raises(AssertionError, match=r"encoder\.blocks\.1\.mlp\.fc1"):
        assert_agree(twin, graph, windows(MASK, 1, 5))


# ---------------------------------------------------------------------------------------------------------------------
# Whole images
# ---------------------------------------------------------------------------------------------------------------------


def whole_image(twin: FakeQuantSegmenter, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """With PyTorch: sums of the scores, number of windows per cell, and labels, of an image of any size."""
    info = info_of(twin)
    patch, sizes = info.patch, []
    for size, window, stride in zip(pixels.shape[:2], info.window, info.stride, strict=True):
        padded = max(window, -(-size // patch) * patch)
        starts = [s for s in range(0, padded, stride) if s + window < padded] + [padded - window]
        sizes.append((padded, starts))
    (height, tops), (width, lefts) = sizes
    image = torch.tensor(info.pad, dtype=torch.uint8).expand(height, width, 3).clone()
    image[: pixels.shape[0], : pixels.shape[1]] = torch.from_numpy(pixels)
    total = torch.zeros(height // patch, width // patch, len(info.classes), dtype=torch.float64)
    count = torch.zeros(height // patch, width // patch, 1, dtype=torch.float64)
    for top in tops:
        for left in lefts:
            crop = image[top : top + info.window[0], left : left + info.window[1]]
            with torch.no_grad():
                scores = twin(crop[None]).q[0]
            y, x = top // patch, left // patch
            total[y : y + scores.shape[0], x : x + scores.shape[1]] += scores
            count[y : y + scores.shape[0], x : x + scores.shape[1]] += 1
    multiple = math.lcm(*(int(n) for n in count.flatten()))
    mean = total * (multiple / count)  # an exact integer
    if info.upsample == "bilinear":  # weights are multiples of 1 / (2 patch), a power of two: exact
        mean = torch.nn.functional.interpolate(
            mean.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", align_corners=False
        )[0].permute(1, 2, 0)
        labels = mean.numpy().argmax(-1)
    else:
        labels = np.kron(mean.numpy().argmax(-1), np.ones((patch, patch), int))
    return total.numpy(), count.numpy(), labels[: pixels.shape[0], : pixels.shape[1]].astype(np.uint8)


SIZES = [(1, 1), (7, 50), (32, 48), (33, 47), (75, 130)]


@pytest.mark.parametrize("name", ["mask", "linear", "distilled", "patch8"])
@pytest.mark.parametrize("recipe", ["paper", "intseg", "paper-bilinear", "intseg-nearest"])
def test_images_of_any_size(name: str, recipe: str, tmp_path: Path) -> None:
    twin = build(CONFIGS[name], RECIPES[recipe], seed=4)
    path = tmp_path / "model.safetensors"
    store.save(export(twin, info_of(twin)), path)
    model, random = intseg.load(path), np.random.default_rng(5)
    for height, width in SIZES:
        low = np.repeat(np.repeat(random.integers(0, 200, (height // 16 + 1, width // 16 + 1, 3)), 16, 0), 16, 1)
        pixels = (low[:height, :width] + random.integers(0, 56, (height, width, 3))).astype(np.uint8)
        total, count, labels = whole_image(twin, pixels)
        result = intseg.run(pixels, model, "numpy")
        assert result.scores.shape == total.shape
        factor = result.scores.astype(np.int64) * count.astype(np.int64)
        lcm = math.lcm(*{int(n) for n in count[:, 0].ravel()}) * math.lcm(*{int(n) for n in count[0].ravel()})
        lcm //= int(count[0, 0, 0])
        assert np.array_equal(factor, total.astype(np.int64) * lcm), (height, width)
        assert_equal(result.labels, labels, f"labels of {height} x {width}")


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_exports_are_the_same_bytes(recipe: str) -> None:
    twin = build(MASK, RECIPES[recipe])
    data = exported(twin)
    assert exported(twin) == data
    assert exported(built.__wrapped__(MASK, RECIPES[recipe])) == data
    assert store.dumps(store.loads(data)) == data


@pytest.mark.parametrize("config", ["mask", "linear", "distilled"])
@pytest.mark.parametrize("recipe", [*NAMED, "sigmoid"])
def test_state_through_a_file_exports_the_same_bytes(config: str, recipe: str, tmp_path: Path) -> None:
    twin = build(CONFIGS[config], RECIPES[recipe])
    torch.save(twin.state_dict(), tmp_path / "twin.pth")
    fresh = FakeQuantSegmenter(random_segmenter(CONFIGS[config], 99), twin.window, RECIPES[recipe]).eval()
    fresh.load_state_dict(torch.load(tmp_path / "twin.pth", weights_only=True))
    assert exported(fresh) == exported(twin)


@pytest.mark.parametrize("recipe", [*NAMED, "sigmoid"])
def test_training_then_export_agrees(recipe: str) -> None:
    twin = build(MASK, RECIPES[recipe]).train()
    images = windows(MASK, 2, 7)
    before = exported(twin)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (twin(images).real ** 2).mean().backward()
        optimizer.step()
    after = exported(twin.eval())
    assert after != before
    assert_agree(twin, store.loads(after), images)


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_tensors_are_integers_and_scales_explain(recipe: str) -> None:
    """Every node that computes says what its integers mean, close to what the twin says; movers do not."""
    twin = build(MASK, RECIPES[recipe])
    graph, acts = store.loads(exported(twin)), twin.acts()
    assert all(array.dtype.kind in "iu" for array in graph.tensors.values())
    for node in graph.nodes:
        assert (node.scale is None) == (node.op in MOVERS), node.name
        if node.name not in acts or node.scale is None:
            continue
        mult, offset, shift = graph.tensors[node.scale].astype(np.float64)
        act = acts[node.name]
        limit = 2 ** (act.bits - 1)
        for q in (-limit, 0, limit - 1):
            real = act.dequantize(torch.tensor(q)).numpy()
            stored = ((q * mult + offset) * 2.0**-shift).reshape(-1)
            slack = 2.0**-13 * limit * act.scale.numpy() + 2.0**-20
            assert np.all(np.abs(stored - real) <= slack), node.name


def test_what_does_not_fit_is_refused() -> None:
    twin = build(MASK, NAMED["intseg"])
    twin.encoder.norm_act.scale.fill_(2.0**-70)  # gamma and beta leave every shift
    with pytest.raises(ValueError, match=r"layernorm|too large|do not fit"):
        exported(twin)


# ---------------------------------------------------------------------------------------------------------------------
# The golden generator's own comparison
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def golden(tmp_path: Path) -> tuple[Path, Path]:
    """A copy of golden/, and one more in the place of freshly made files."""
    ours, fresh = tmp_path / "golden", tmp_path / "fresh"
    shutil.copytree(make_golden.GOLDEN, ours)
    shutil.copytree(make_golden.GOLDEN, fresh, ignore=shutil.ignore_patterns("images", "MANIFEST.json", "README.md"))
    return ours, fresh


def test_golden_files_are_compared(golden: tuple[Path, Path]) -> None:
    ours, fresh = golden
    assert list(make_golden.differences(ours, fresh)) == []
    trace = "traces/paper.small.safetensors"
    data = bytearray((fresh / trace).read_bytes())
    data[-1] ^= 1
    (fresh / trace).write_bytes(data)
    (ours / "models" / "new.safetensors").write_bytes(b"")
    (ours / "ops" / "add.safetensors").unlink()
    (ours / "images" / "odd.png").write_bytes((ours / "images" / "small.png").read_bytes())
    assert list(make_golden.differences(ours, fresh)) == [
        "images/odd.png: sha256 is not that of MANIFEST.json",
        "models/new.safetensors: is not made by this script",
        "ops/add.safetensors: is missing",
        f"{trace}: differs from what this script makes",
    ]


def test_golden_manifest_is_compared(golden: tuple[Path, Path]) -> None:
    ours, fresh = golden
    manifest = json.loads((ours / "MANIFEST.json").read_text())
    manifest["files"]["models/paper.safetensors"]["sha256"] = "0" * 64
    del manifest["files"]["models/linear.safetensors"]
    (ours / "MANIFEST.json").write_text(json.dumps(manifest))
    assert list(make_golden.differences(ours, fresh)) == [
        "models/linear.safetensors: is not in MANIFEST.json",
        "models/paper.safetensors: sha256 is not that of MANIFEST.json",
    ]
    (ours / "MANIFEST.json").write_text("{")
    (complaint,) = make_golden.differences(ours, fresh)
    assert complaint.startswith("MANIFEST.json")


def test_golden_check_names_the_first_difference(
    golden: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, fresh = golden
    monkeypatch.setattr(make_golden, "GOLDEN", ours)
    monkeypatch.setattr(make_golden, "write", lambda folder: shutil.copytree(fresh, folder, dirs_exist_ok=True))
    assert make_golden.main(["--check"]) == 0
    assert capsys.readouterr() == ("", "")
    for name in ("traces/intseg.odd.safetensors", "ops/add.safetensors"):
        (fresh / name).write_bytes((fresh / name).read_bytes()[:-1] + b"?")
    assert make_golden.main(["--check"]) == 1
    assert capsys.readouterr().err == "make_golden.py: ops/add.safetensors: differs from what this script makes\n"
