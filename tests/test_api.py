"""load, run, trace: files, windows, results."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_graph

import intseg
from intseg import backends, models, store
from intseg.errors import InputError, MismatchError, ModelError, UsageError
from intseg.executor import execute
from intseg.ops import RUN

ROOT = Path(__file__).resolve().parents[1]
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


def test_bad_backend(weights: Path) -> None:
    with pytest.raises(UsageError, match="backend"):
        intseg.run(random_image(2, 2), weights, "cuda")


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
    with pytest.raises(InputError, match="intseg inspect --list"):
        intseg.load("b-model")


def test_the_bundled_models_are_valid() -> None:
    for name in models.names():
        assert intseg.load(name).info.name


# -------------------------------------------------------------------------------------- folders, many images, notebooks


def model_folder(weights: Path, folder: Path, config: Any = None) -> Path:
    """A folder as on the Hugging Face hub, with a config.json if one is given."""
    folder.mkdir()
    shutil.copy(weights, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_a_model_folder_names_the_classes(weights: Path, tmp_path: Path) -> None:
    plain = intseg.load(model_folder(weights, tmp_path / "plain"))
    assert plain.info.classes == intseg.load(weights).info.classes
    names = {str(i): f"thing {i}" for i in reversed(range(5))}
    named = intseg.load(model_folder(weights, tmp_path / "named", {"id2label": names, "image_size": 0.5}))
    assert named.info.classes == tuple(f"thing {i}" for i in range(5))
    assert named.sha256 == plain.sha256
    assert named.path == tmp_path / "named" / "model.safetensors"
    image = random_image(30, 40)
    assert np.array_equal(intseg.run(image, named, "numpy").labels, intseg.run(image, plain, "numpy").labels)
    assert pickle.loads(pickle.dumps(named)).info.classes == named.info.classes


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("{", "not JSON"),
        ({"id2label": {"0": "a"}}, "names 1 classes"),
        ({"id2label": {"1": "a"}}, "id2label is"),
        ({"id2label": ["a"]}, "id2label is"),
        ({"id2label": {str(i): i for i in range(5)}}, "id2label is"),
        ({"id2label": {str(i): "same" for i in range(5)}}, "config.json"),
    ],
)
def test_a_bad_config_is_refused(weights: Path, tmp_path: Path, config: Any, word: str) -> None:
    with pytest.raises(ModelError, match=word):
        intseg.load(model_folder(weights, tmp_path / "model", config))


def test_a_model_folder_without_the_usual_name(weights: Path, tmp_path: Path) -> None:
    folder = model_folder(weights, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    assert intseg.load(folder).path.name == "mine.safetensors"
    shutil.copy(weights, folder / "other.safetensors")
    with pytest.raises(InputError, match=r"2 \.safetensors"):
        intseg.load(folder)


def test_a_mistyped_bundled_name() -> None:
    with pytest.raises(InputError, match=r"did you mean camvid-tiny\?"):
        intseg.load("camvid-tinny")


def test_a_model_is_pickled_by_its_file(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    shutil.copy(weights, path)
    model = intseg.load(path)
    data = pickle.dumps(model)
    assert len(data) < 2000
    assert pickle.loads(data) is model
    store.save(tiny_graph(seed=77), path)
    with pytest.raises(MismatchError, match="changed"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(InputError, match="cannot read weights"):
        pickle.loads(data)


def test_several_images_are_taken_one_by_one(weights: Path, tmp_path: Path) -> None:
    images = [random_image(20 + i, 40) for i in range(3)]
    alone = [intseg.run(image, weights, "numpy").labels for image in images]
    taken: list[int] = []

    def generator() -> Iterator[Any]:
        for i, image in enumerate(images):
            taken.append(i)
            yield image

    for several in (images, tuple(images), iter(images)):
        found = [result.labels for result in intseg.run(several, weights, "numpy")]
        assert all(np.array_equal(a, b) for a, b in zip(found, alone, strict=True))
    results = intseg.run(generator(), weights, "numpy")
    assert taken == []
    assert np.array_equal(next(results).labels, alone[0])
    assert taken == [0]
    with pytest.raises(UsageError):
        intseg.run(images, weights, "cuda")
    results = intseg.run([images[0], "none.png"], weights, "numpy")
    next(results)
    with pytest.raises(InputError, match=r"image 1: none\.png"):
        next(results)
    assert list(intseg.run([], weights, "numpy")) == []


def test_bytes_of_a_file_are_an_image(weights: Path, tmp_path: Path) -> None:
    Image.fromarray(random_image(30, 40)).save(tmp_path / "image.png")
    result = intseg.run((tmp_path / "image.png").read_bytes(), weights, "numpy")
    assert np.array_equal(result.image, random_image(30, 40))


def test_an_open_file_is_one_image(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(random_image(24, 32)).save(path)
    whole = intseg.run(path, weights).labels
    with path.open("rb") as file:
        assert np.array_equal(intseg.run(file, weights).labels, whole)
    assert np.array_equal(intseg.run(io.BytesIO(path.read_bytes()), weights).labels, whole)
    (tmp_path / "b.png").write_bytes(b"no image")
    with (tmp_path / "b.png").open("rb") as file, pytest.raises(InputError, match=r"b\.png: not an image"):
        intseg.run(file, weights)
    with path.open(encoding="latin-1") as text, pytest.raises(InputError, match=r"a\.png: opened as text.*mode 'rb'"):
        intseg.run(text, weights)  # type: ignore[call-overload]


def test_a_backend_compiles_its_own_code(weights: Path) -> None:
    graph = intseg.load(weights).graph
    assert backends.compile(graph, "numpy").func is backends._run_numpy  # type: ignore[attr-defined]
    if backends.has_numba():
        assert type(backends.compile(graph, "numba", 1)).__name__ == "Plan"


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**20])
def test_threads_have_a_range(weights: Path, threads: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 1024"):
        intseg.run(random_image(24, 32), weights, "numpy", threads)


_FORK = """
import os, signal, sys, threading
import numpy as np
from PIL import Image
import intseg
from intseg import backends, model
from intseg.images import decode

def stay():
    inside.set()
    leave.wait(0.3)

def hold(where):
    if where == "decoding":
        decode.guarded("x", stay)
    elif where == "loading":
        with model._lock:
            stay()
    else:
        kernel = _jit.kernel("int64(int64)")(lambda x: x)
        with kernel._lock, _jit.numba.core.compiler_lock.global_compiler_lock:
            stay()

for where in ["decoding", "loading", "compiling"]:
    if where == "compiling":
        if not backends.has_numba():
            continue
        from intseg.kernels import _jit
    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=[where])
    thread.start()
    inside.wait()
    child = os.fork()
    if not child:
        signal.alarm(300)
        if where == "compiling":
            [kernel._lock.acquire() for kernel in _jit.REGISTRY.values()]
            _jit.numba.core.compiler_lock.global_compiler_lock.acquire()
        else:
            intseg.run(*sys.argv[1:], "numpy")
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{where}: {code}")
    leave.set()
    thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_while_a_thread_is_inside_does_not_hang(tmp_path: Path) -> None:
    store.save(tiny_graph(), tmp_path / "tiny.safetensors")
    Image.fromarray(random_image(24, 32)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", _FORK, tmp_path / "a.png", tmp_path / "tiny.safetensors"]
    done = subprocess.run(command, cwd=ROOT, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pillow_and_hugging_face_views(weights: Path) -> None:
    result = intseg.run(random_image(40, 57), weights, "numpy")
    picture = result.to_pil()
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), result.labels)
    entries = result.to_hf()
    assert [entry["label"] for entry in entries] == [name for name in result.classes if name in result.counts()]
    for entry in entries:
        assert list(entry) == ["score", "label", "mask"]
        assert entry["score"] is None
        assert (entry["mask"].mode, entry["mask"].size) == ("L", (57, 40))
        index = result.classes.index(entry["label"])
        assert np.array_equal(np.asarray(entry["mask"]), np.where(result.labels == index, 255, 0))


def test_a_notebook_shows_the_overlay(weights: Path, tmp_path: Path) -> None:
    result = intseg.run(random_image(40, 57), weights, "numpy")
    result.save_overlay(tmp_path / "overlay.png")
    png = result._repr_png_()
    assert png == (tmp_path / "overlay.png").read_bytes()
    page = result._repr_html_()
    assert base64.b64encode(png).decode() in page
    assert "57 x 40" in page
    assert "http" not in page


def test_saving_with_other_colours_and_values(weights: Path, tmp_path: Path) -> None:
    result = intseg.run(random_image(40, 57), weights, "numpy")
    colours = [(i, 0, 255 - i) for i in range(5)]
    result.save(tmp_path / "l.png", palette=colours, values=np.array([3, 3, 9, 9, 0], np.uint16))
    with Image.open(tmp_path / "l.png") as labels:
        assert np.array_equal(np.asarray(labels), np.array([3, 3, 9, 9, 0])[result.labels])
        first = np.array([0, 0, 2, 2, 4])[result.labels]  # classes that share a value share the first one's colour
        assert np.array_equal(np.asarray(labels.convert("RGB")), np.array(colours, np.uint8)[first])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_model_in_several_threads(weights: Path, backend: str) -> None:
    images = [random_image(30 + i, 60) for i in range(8)]
    model = intseg.load(weights)
    alone = [intseg.run(image, model, backend, threads=1).labels for image in images]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: intseg.run(image, model, backend, threads=1).labels, images))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_the_package_has_its_public_names_only() -> None:
    assert set(intseg.__all__) <= set(dir(intseg))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        intseg.nothing  # noqa: B018


# ---------------------------------------------------------------------------------------------------------- own ops


def test_an_op_of_ones_own_stands_in_for_one_op_or_one_node(weights: Path) -> None:
    image = np.random.default_rng(3).integers(0, 256, (21, 30, 3), np.uint8)
    expected = intseg.run(image, weights, "numpy")
    called: list[int] = []

    def mine(x: np.ndarray, **arguments: object) -> np.ndarray:
        called.append(1)
        return RUN["layernorm"](x, **arguments)

    assert np.array_equal(intseg.run(image, weights, "numpy", ops={"layernorm": mine}).scores, expected.scores)
    graph = intseg.load(weights).graph
    norms = [node for node in graph.nodes if node.op == "layernorm"]
    windows = sum(1 for _ in intseg.trace(image, weights))
    assert len(called) == len(norms) * windows > 0

    def off(x: np.ndarray, **arguments: object) -> np.ndarray:
        return RUN["layernorm"](x, **arguments) ^ 1

    for (_, right), (_, wrong) in zip(
        intseg.trace(image, weights), intseg.trace(image, weights, ops={norms[0].name: off}), strict=True
    ):
        assert list(wrong) == [node.name for node in graph.nodes]
        assert np.array_equal(wrong[norms[0].name], right[norms[0].name] ^ 1)
    assert isinstance(next(intseg.run([image], weights, "numpy", ops={"layernorm": off})), intseg.Result)


@pytest.mark.parametrize(
    ("ops", "words"),
    [
        ({"layernrm": abs}, r"'layernrm' \(did you mean layernorm\?\)"),
        ({"layernorm": lambda x, **_: x[:-1]}, r"node \S+: your layernorm gives int16 \[\d+, \d+\], expected int"),
        ({"layernorm": lambda x, **_: None}, "gives NoneType"),
        ({"layernorm": lambda x, **_: x.tolist()}, "gives list"),
    ],
)
def test_what_ones_own_op_may_not_give(weights: Path, ops: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        intseg.run(np.zeros((9, 9, 3), np.uint8), weights, "numpy", ops=ops)
