"""A Ray cluster of two nodes gives the bytes of one process, whatever dies."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_graph

import intseg
import intseg.ray
from intseg import api, store
from intseg.batch import cluster as machines
from intseg.batch import infer as batch
from intseg.cli import infer as cli_infer
from intseg.cli import main as cli
from intseg.errors import InputError

ROOT = Path(__file__).parent.parent
RUN = ["-w", "w.safetensors", "--backend", "numpy"]
COUNT = 24


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: weights w.safetensors, images in val, their labels in valannot."""
    monkeypatch.chdir(tmp_path)
    store.save(tiny_graph(n_cls=11), "w.safetensors")
    for place in ("val", "valannot"):
        Path(place).mkdir()
    for i in range(COUNT):
        random = np.random.default_rng(i)
        Image.fromarray(random.integers(0, 256, (20, 24 + i, 3), np.uint8)).save(f"val/{i:02}.png")
        Image.fromarray(random.integers(0, 12, (20, 24 + i), np.uint8)).save(f"valannot/{i:02}.png")
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a core each, on this machine."""
    pytest.importorskip("ray", reason="needs pip install 'intseg[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
        patch.setenv("CLUSTER_OF", str(os.getpid()))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # nor is anything sent
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def infer(*arguments: str) -> int:
    return cli.main(["infer", "val", *RUN, "--overlay", *arguments])


def contents(where: str) -> dict[str, bytes]:
    """All files of a folder, the journal too; records without their times."""
    found = {file.name: file.read_bytes() for file in Path(where).iterdir()}
    records = [{**json.loads(line), "ms": 0} for line in found.pop("all.jsonl").splitlines()]
    return found | {"records": json.dumps(records).encode()}


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert infer("-o", "out", "--ray") == 2
    error = capsys.readouterr().err
    assert "pip install 'intseg[ray]'" in error
    assert len(error.splitlines()) == 1
    for wrong in (["--ship"], ["--ray", "--jobs", "2"]):
        assert infer("-o", "out", *wrong) == 2
    assert not Path("out").exists()


def test_a_folder_that_another_machine_lacks_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere: No such file .*expected a file system that all share; give --ship"):
        machines._enter("nowhere")


@pytest.mark.parametrize("ship", [[], ["--ship"]])
def test_infer(cluster: Any, ship: list[str]) -> None:
    Path("val/03.png").write_text("no image", encoding="utf-8")
    assert infer("-o", "one", "--jsonl", "one/all.jsonl") == 4
    assert infer("-o", "out", "--jsonl", "out/all.jsonl", "--ray", cluster.address, *ship) == 4
    assert contents("out") == contents("one")
    journal = Path("out", batch.JOURNAL)
    journal.write_bytes(journal.read_bytes()[:3000])
    assert infer("-o", "out", "--jsonl", "out/all.jsonl", "--ray", cluster.address, *ship, "--resume") == 4
    assert contents("out") == contents("one")


@pytest.mark.parametrize("ship", [[], ["--ship"]])
def test_eval(cluster: Any, ship: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", "--root", ".", *RUN, "--json", "--resume"]
    assert cli.main([*arguments, "one.jsonl"]) == 0
    whole = capsys.readouterr().out
    assert cli.main([*arguments, "out.jsonl", "--ray", cluster.address, *ship]) == 0
    assert capsys.readouterr().out == whole
    assert Path("out.jsonl").read_bytes() == Path("one.jsonl").read_bytes()


def kill_working(count: int, lost: list[int], over: threading.Event) -> None:
    """Kill processes of this test's cluster, and of no other, while they work on an image."""
    ours = f"CLUSTER_OF={os.getpid()}\0".encode()
    while len(lost) < count and not over.wait(0.002):
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                works = entry.read_bytes().startswith(b"ray::_work") and ours in (entry.parent / "environ").read_bytes()
                if works and int(entry.parent.name) not in lost:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    lost.append(int(entry.parent.name))
                    break


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_lost_workers_and_a_lost_node(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(COUNT):
        random = np.random.default_rng(i)
        Image.fromarray(random.integers(0, 256, (120, 160, 3), np.uint8)).save(f"val/{i:02}.png")
    extra = cluster.add_node(num_cpus=1)

    def bar(found: Iterator[batch.Outcome], total: int) -> Iterable[batch.Outcome]:
        for i, outcome in enumerate(found):
            yield outcome
            if i == 12:
                cluster.remove_node(extra, allow_graceful=False)

    assert infer("-o", "one", "--jsonl", "one/all.jsonl", "--resume") == 0
    monkeypatch.setattr(cli_infer, "_bar", bar)
    lost: list[int] = []
    over = threading.Event()
    killer = threading.Thread(target=kill_working, args=(3, lost, over))
    killer.start()
    try:
        assert infer("-o", "out", "--jsonl", "out/all.jsonl", "--ray", cluster.address, "--resume") == 0
    finally:
        over.set()
        killer.join()
    assert lost
    assert contents("out") == contents("one")
    names = [
        json.loads(line)["item"] for line in Path("out", batch.JOURNAL).read_text(encoding="utf-8").splitlines()[1:]
    ]
    assert names == [f"val/{i:02}.png" for i in range(COUNT)]


def test_a_model_travels_with_its_file() -> None:
    model = api.load("w.safetensors")
    data = pickle.dumps(api.Carried(model))
    os.rename("w.safetensors", "gone")
    found = pickle.loads(data)
    assert (found.sha256, found.graph.info) == (model.sha256, model.graph.info)
    with pytest.raises(InputError):
        api.Carried(model)


def test_the_segmenter_of_pipelines() -> None:
    segmenter = intseg.ray.Segmenter("w.safetensors", backend="numpy")
    files = [Path(f"val/{i:02}.png").read_bytes() for i in (0, 1)]
    arrays = np.empty(2, object)
    for i in (0, 1):
        arrays[i] = np.asarray(Image.open(f"val/{i:02}.png"))
    for column in (np.array(files, object), arrays):
        found = segmenter({"image": column, "id": np.array([7, 8])})
        for i in (0, 1):
            result = intseg.run(f"val/{i:02}.png", "w.safetensors", "numpy")
            assert np.array_equal(found["labels"][i], result.labels)
            assert found["labels_sha256"][i] == batch.labels_sha256(result.labels)
            assert found["shares"][i].sum() == pytest.approx(1)
            assert dict(zip(result.classes, found["shares"][i], strict=True)) | result.shares() == {
                name: found["shares"][i][result.classes.index(name)] for name in result.classes
            }
        assert found["id"].tolist() == [7, 8]
    with pytest.raises(InputError, match="no column 'image'"):
        segmenter({"bytes": np.array(files, object)})


def test_the_example_of_the_documentation(cluster: Any) -> None:
    """In a process of its own: Ray Data leaves a thread behind that formats tracebacks, each an `ast.parse`, and where
    two threads are inside of one, CPython 3.11 raises "AST constructor recursion depth mismatch" in either."""
    pytest.importorskip("pyarrow")
    text = (ROOT / "docs" / "CLUSTER.md").read_text().split("```python\n")[1].split("```")[0]
    os.rename("val", "photos")
    for file in sorted(Path("photos").iterdir())[4:]:
        file.unlink()
    begin = f"import ray\nray.init(address={cluster.address!r})\n"
    code = begin + text.replace('"photos"', repr(os.path.abspath("photos")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if ".png (" in line]
    assert len(lines) == 4
    for line in lines:
        result = intseg.run(line.split()[0], "camvid-tiny")
        assert line.endswith(f"{result.labels.shape} {batch.labels_sha256(result.labels)[:12]}")
