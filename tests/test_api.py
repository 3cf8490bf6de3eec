"""load, run, trace: files, windows, results."""

from __future__ import annotations

import concurrent.futures
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_graph

import intseg
from intseg import backends, models, store
from intseg.errors import InputError, ModelError, UsageError
from intseg.executor import execute
from intseg.ops import RUN

BACKENDS = backends.names()
SIZES = [(1, 1), (7, 50), (24, 32), (23, 33), (40, 32), (24, 57), (61, 83)]


def random_image(height: int, width: int) -> Any:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module", params=["nearest", "bilinear"])
def weights(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    store.save(tiny_graph(upsample=request.param), path)
    return path


def expected(image: Any, graph: Any) -> tuple[Any, Any]:
    """Scores and labels by the formula, cell by cell and pixel by pixel."""
    info, patch = graph.info, graph.info.patch
    height, width = image.shape[:2]
    padded_size = [max((n + patch - 1) // patch * patch, w) for n, w in zip((height, width), info.window, strict=True)]
    padded = np.array(info.pad, np.uint8) * np.ones((*padded_size, 1), np.uint8)
    padded[:height, :width] = image
    origins = []
    for size, window, stride in zip(padded_size, info.window, info.stride, strict=True):
        axis, start = [], 0
        while start + window < size:
            axis.append(start)
            start += stride
        origins.append([*axis, size - window])
    cells = [
        [[o // patch for o in axis if o <= c * patch < o + window] for c in range(size // patch)]
        for axis, window, size in zip(origins, info.window, padded_size, strict=True)
    ]
    common = [int(np.lcm.reduce([len(found) for found in axis])) for axis in cells]
    window_scores = {
        (y // patch, x // patch): execute(
            graph, padded[y : y + info.window[0], x : x + info.window[1]].copy(), RUN
        ).astype(int)
        for y in origins[0]
        for x in origins[1]
    }
    scores = np.zeros((len(cells[0]), len(cells[1]), len(info.classes)), int)
    for y, tops in enumerate(cells[0]):
        for x, lefts in enumerate(cells[1]):
            total = sum(window_scores[t, le][y - t, x - le] for t in tops for le in lefts)
            scores[y, x] = total * (common[0] // len(tops)) * (common[1] // len(lefts))
    return scores, expected_labels(scores, info, height, width)


def expected_labels(scores: Any, info: Any, height: int, width: int) -> Any:
    if info.upsample == "nearest":
        return np.array(
            [[scores[y // info.patch, x // info.patch].argmax() for x in range(width)] for y in range(height)]
        )
    full = RUN["upsample_bilinear"](
        scores.astype(np.int32), factor=info.patch, row_start=0, row_stop=scores.shape[0] * info.patch
    )
    return full.argmax(axis=-1)[:height, :width]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_run_follows_the_window_formula(weights: Path, size: tuple[int, int], backend: str) -> None:
    image = random_image(*size)
    result = intseg.run(image, weights, backend)
    scores, labels = expected(image, intseg.load(weights).graph)
    assert result.scores.dtype == np.int32
    assert np.array_equal(result.scores, scores)
    assert result.labels.dtype == np.uint8
    assert np.array_equal(result.labels, labels)
    assert result.backend == backend


def test_the_test_model_finds_several_classes_and_depends_on_the_window(weights: Path) -> None:
    image = random_image(61, 83)
    assert len(intseg.run(image, weights, "numpy").shares()) >= 3
    corner = intseg.run(image[:24, :32], weights, "numpy").scores
    assert not np.array_equal(corner, intseg.run(image, weights, "numpy").scores[:3, :4])


def test_three_overlapping_windows(tmp_path: Path) -> None:
    graph = tiny_graph(window=(32, 32), stride=(16, 16))
    store.save(graph, tmp_path / "w.safetensors")
    image = random_image(72, 33)
    result = intseg.run(image, tmp_path / "w.safetensors", "numpy")
    assert np.array_equal(result.scores, expected(image, graph)[0])


def test_more_than_256_classes(tmp_path: Path) -> None:
    store.save(tiny_graph(n_cls=300), tmp_path / "w.safetensors")
    result = intseg.run(random_image(40, 40), tmp_path / "w.safetensors", "numpy")
    assert result.labels.dtype == np.uint16
    result.save(tmp_path / "labels.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.png")), result.labels)
    assert result.overlay().size == (40, 40)


def test_result(weights: Path, tmp_path: Path) -> None:
    image = random_image(40, 57)
    result = intseg.run(image, weights, "numpy")
    assert np.array_equal(result.image, image)
    assert result.classes == tuple(f"class {i}" for i in range(5))
    assert len(result.palette) == 5
    counts = result.counts()
    assert counts == {name: n for i, name in enumerate(result.classes) if (n := int((result.labels == i).sum()))}
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert sum(result.shares().values()) == pytest.approx(1)
    assert "57 x 40" in repr(result)
    assert "tiny" in repr(result)
    result.save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as labels:
        assert labels.mode == "P"
        assert np.array_equal(np.asarray(labels), result.labels)
    assert result.overlay(0.0).tobytes() == image.tobytes()
    assert result.overlay(legend=True).height > 40
    result.save_overlay(tmp_path / "overlay.jpg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labels.png", "overlay.jpg"]


def test_save_refuses_other_formats_and_missing_folders(weights: Path, tmp_path: Path) -> None:
    result = intseg.run(random_image(3, 3), weights, "numpy")
    with pytest.raises(UsageError, match="png"):
        result.save(tmp_path / "labels.jpg")
    with pytest.raises(UsageError, match="rename"):
        result.save_overlay(tmp_path / "overlay")
    with pytest.raises(InputError, match="cannot write"):
        result.save(tmp_path / "none" / "labels.png")
    assert list(tmp_path.iterdir()) == []


def test_path_pillow_image_and_array_give_the_same(weights: Path, tmp_path: Path) -> None:
    image = random_image(30, 40)
    Image.fromarray(image).save(tmp_path / "image.png")
    first, *others = (
        intseg.run(source, weights, "numpy") for source in (image, Image.fromarray(image), tmp_path / "image.png")
    )
    assert all(np.array_equal(first.scores, other.scores) for other in others)


def test_trace_shows_every_node_of_every_window(weights: Path) -> None:
    image = random_image(40, 57)
    model = intseg.load(weights)
    windows = list(intseg.trace(image, model))
    assert [corner for corner, _ in windows] == [(0, 0), (0, 24), (0, 32), (16, 0), (16, 24), (16, 32)]
    for (top, left), outputs in windows:
        assert list(outputs) == [node.name for node in model.graph.nodes]
        window = outputs["quantize_input"]
        table = model.graph.tensors["quantize_input.table"]
        assert window[0, 0, 0] == table[0, image[top, left, 0]]
    assert len({id(outputs) for _, outputs in windows}) == 6


def test_trace_refuses_bad_arguments_at_once(weights: Path) -> None:
    with pytest.raises(InputError):
        intseg.trace("none.png", weights)


def test_models_and_backends_are_remembered(weights: Path, tmp_path: Path) -> None:
    model = intseg.load(weights)
    assert intseg.load(str(weights)) is model
    assert intseg.load(model) is model
    assert model.compiled("numpy") is model.compiled("numpy")
    path = tmp_path / "w.safetensors"
    store.save(tiny_graph(seed=1), path)
    before = intseg.load(path)
    store.save(tiny_graph(seed=2), path)
    assert intseg.load(path).sha256 != before.sha256
    for seed in range(8):  # old models are forgotten, not wrong
        store.save(tiny_graph(seed=seed), path)
        assert np.array_equal(intseg.load(path).graph.tensors["pos_embed"], tiny_graph(seed=seed).tensors["pos_embed"])
    assert "tiny" in repr(model)
    assert model.sha256[:12] in repr(model)


def test_threads_may_run_at_once(weights: Path) -> None:
    images = [random_image(30 + i, 40) for i in range(6)]
    alone = [intseg.run(image, weights, "numpy").labels for image in images]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: intseg.run(image, weights, "numpy").labels, images))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_bad_weights(tmp_path: Path, weights: Path) -> None:
    good = weights.read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"hello, world",
        "cut": good[:-3],
        "pickle": b"PK\3\4" + b"\0" * 99,
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=str(tmp_path / name)):
            intseg.load(tmp_path / name)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot read weights"):
            intseg.load(path)


def test_bad_backend_and_threads(weights: Path) -> None:
    with pytest.raises(UsageError, match="backend"):
        intseg.run(random_image(2, 2), weights, "cuda")
    with pytest.raises(UsageError, match="threads"):
        intseg.run(random_image(2, 2), weights, "numpy", threads=0)


def test_bundled_names(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_folder", lambda: tmp_path)
    assert models.names() == ()
    with pytest.raises(ModelError, match="none is installed"):
        intseg.load()
    for name in ("a-model", "camvid-tiny", "camvid-tiny-paper"):
        shutil.copy(weights, tmp_path / f"{name}.safetensors")
    assert models.names() == ("camvid-tiny", "a-model", "camvid-tiny-paper")
    assert intseg.load().path == tmp_path / "camvid-tiny.safetensors"
    assert intseg.load("a-model").path == tmp_path / "a-model.safetensors"
    with pytest.raises(InputError, match="intseg models"):
        intseg.load("b-model")


def test_the_bundled_models_are_valid() -> None:
    for name in models.names():
        assert intseg.load(name).info.name


def test_import_is_light() -> None:
    heavy = ("numba", "torch", "PIL", "tqdm", "scipy", "argparse", "multiprocessing")
    script = f"import sys, intseg; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
