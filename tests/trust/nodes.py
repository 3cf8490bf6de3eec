"""A Ray cluster of two nodes, on this machine, against one process: bytes, losses, rate, memory.

    python tests/trust/nodes.py all --images 2000     what docs/TRUST.md states
    python tests/trust/nodes.py rate                  tasks a second that one driver hands out and takes back

losses   workers killed by SIGKILL ten times while they work, one node removed in the middle; then the driver killed and
         the run resumed: outputs, errors.jsonl, records and journal must equal those of --jobs 1, and the journal must
         name every image once
rate     images a second of --ray and of --jobs 2, one after the other, after both have started
memory   resident memory of the driver after a tenth of the images and after all
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_model import tiny_graph  # noqa: E402

from intseg import store  # noqa: E402
from intseg.batch import cluster as clusters  # noqa: E402
from intseg.batch.executors import Task  # noqa: E402

JOURNAL = ".intseg-journal.jsonl"
DRIVER = """\
import json, sys
from intseg.cli import infer, main
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024
def bar(quiet):
    def wrap(found, total):
        import time
        for i, outcome in enumerate(found):
            if i in (0, total // 10, total - 1):
                print(json.dumps([i, time.time(), resident()]), file=sys.stderr, flush=True)
            yield outcome
    return wrap
infer._bar = bar
if __name__ == "__main__":
    sys.exit(main.main(sys.argv[1:]))
"""


def environment() -> dict[str, str]:
    """Of every process: this checkout, one thread a worker."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def make_images(folder: Path, count: int, size: int) -> None:
    """`count` images of different pixels, one of them broken."""
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size // 16, size // 16, 3), np.uint8)
        Image.fromarray(pixels).resize((size + i % 32, size), Image.Resampling.BICUBIC).save(folder / f"{i:05}.png")
    (folder / "00007.png").write_bytes(b"no image")


def command(out: str, weights: str, *more: str) -> list[str]:
    """The batch under test."""
    return ["driver.py", "infer", "images", "-w", weights, "-o", out, "--jsonl", f"{out}/all.jsonl", *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    """A driver of its own."""
    return subprocess.Popen([sys.executable, *words], env=environment(), stderr=subprocess.PIPE, text=True)


def finish(driver: subprocess.Popen[str]) -> list[Any]:
    """[image, time, MiB] at three points of a run; raises for another exit code than that of one broken image."""
    _, said = driver.communicate()
    if driver.returncode != 4:
        raise SystemExit(f"exit code {driver.returncode}: {said[-2000:]}")
    return [json.loads(line) for line in said.splitlines() if line.startswith("[")]


def contents(folder: str) -> dict[str, str]:
    """sha256 of every file; records without their times."""
    found = {}
    for file in sorted(Path(folder).iterdir()):
        data = file.read_bytes()
        if file.name == "all.jsonl":
            data = json.dumps([{**json.loads(line), "ms": 0} for line in data.splitlines()]).encode()
        found[file.name] = hashlib.sha256(data).hexdigest()
    return found


def compare(name: str, found: str, whole: str, count: int) -> None:
    """Say whether two folders are equal, and that the journal names every image once."""
    ours, theirs = contents(found), contents(whole)
    differing = sorted(key for key in set(ours) | set(theirs) if ours.get(key) != theirs.get(key))
    items = [json.loads(line)["item"] for line in Path(found, JOURNAL).read_text(encoding="utf-8").splitlines()[1:]]
    once = len(items) == len(set(items)) == count - 1
    print(f"{name}: {len(theirs)} files, {len(differing)} differ {differing[:3]}; every image once: {once}", flush=True)
    if differing or not once:
        raise SystemExit(1)


@contextlib.contextmanager
def cluster(cores: int = 1) -> Iterator[Any]:
    """Two nodes of one core each, or one of so many cores."""
    from ray.cluster_utils import Cluster

    os.environ.update(environment())
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False})
    if cores == 1:
        nodes.add_node(num_cpus=1)
    try:
        yield nodes
    finally:
        nodes.shutdown()


def kill_working(count: int, lost: list[int], over: threading.Event, pause: float) -> None:
    """Kill processes of Ray while they work on an image, `pause` seconds apart."""
    while len(lost) < count and not over.wait(0.001):
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if entry.read_bytes().startswith(b"ray::_work") and int(entry.parent.name) not in lost:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    lost.append(int(entry.parent.name))
                    over.wait(pause)
                    break


def wait_for(out: str, files: int, driver: subprocess.Popen[str]) -> None:
    """Until so many label images are there."""
    while driver.poll() is None:
        with contextlib.suppress(OSError):
            if sum(name.endswith("_labels.png") for name in os.listdir(out)) >= files:
                return
        time.sleep(0.05)


def losses(count: int, weights: str) -> None:
    """Everything that may die, dies."""
    finish(start(command("one", weights)))
    with cluster() as nodes:
        ray = ["--ray", nodes.address]
        begin = time.time()
        points = finish(start(command("ray", weights, *ray)))
        compare(f"no loss ({time.time() - begin:.0f} s)", "ray", "one", count)
        early, late = points[1][2], points[2][2]
        about = f"{early} MiB after {points[1][0]} images, {late} after {points[2][0]}"
        print(f"driver memory: {about}: {late / early - 1:+.1%}", flush=True)
        lost: list[int] = []
        over = threading.Event()
        killer = threading.Thread(target=kill_working, args=(10, lost, over, 0.5))
        driver = start(command("lossy", weights, *ray))
        wait_for("lossy", count // 20, driver)
        extra = nodes.add_node(num_cpus=1)
        killer.start()
        wait_for("lossy", count // 2, driver)
        nodes.remove_node(extra, allow_graceful=False)
        finish(driver)
        over.set()
        killer.join()
        compare(f"{len(lost)} workers killed, a node removed", "lossy", "one", count)
        driver = start(command("killed", weights, *ray))
        wait_for("killed", count // 2, driver)
        driver.kill()
        driver.wait()
        done = len(Path("killed", JOURNAL).read_bytes().splitlines()) - 1
        finish(start(command("killed", weights, *ray, "--resume")))
        compare(f"driver killed after {done} images and resumed", "killed", "one", count)
        finish(start(command("shipped", weights, *ray, "--ship")))
        compare("--ship", "shipped", "one", count)


def speed(count: int, weights: str) -> None:
    """Images a second between the first and the last on the same two cores, twice each, in turns."""
    with cluster(2) as nodes:
        rates: dict[str, list[float]] = {}
        for i in (1, 2):
            for name, more in (("--ray", ["--ray", nodes.address]), ("--jobs 2", ["--jobs", "2"])):
                points = finish(start(command(f"{name.strip('-').replace(' ', '')}{i}", weights, *more)))
                (first, begin, _), (last, end, _) = points[1], points[2]
                rates.setdefault(name, []).append((last - first) / (end - begin))
    shown = ", ".join(f"{name} {' and '.join(f'{rate:.1f}' for rate in found)}" for name, found in rates.items())
    ratio = max(rates["--ray"]) / max(rates["--jobs 2"])
    print(f"images a second, {weights}: {shown}; best against best {ratio:.0%}")


def nothing() -> Any:
    """A worker that does nothing."""
    return functools.partial(max, 0)


def rate(tasks: int) -> None:
    """Tasks a second that one driver hands out and takes back, with a worker on each of two nodes."""
    os.environ.update(environment())
    with cluster() as nodes:
        executor = clusters.Ray(nodes.address)
        executor.jobs *= 32  # as many are ahead as 64 cores have: the driver never waits
        task: Task[int, int] = Task(nothing)
        sum(executor.run(task, range(500)))
        begin, used = time.perf_counter(), time.process_time()
        sum(executor.run(task, range(tasks)))
        wall, own = time.perf_counter() - begin, time.process_time() - used
        print(f"{tasks} empty tasks: {tasks / wall:.0f} a second, {own / tasks * 1e6:.0f} us of the driver's time each")
        executor._ray.shutdown()


def main() -> None:
    """Run the experiment in a temporary folder."""
    parser = argparse.ArgumentParser(description="A Ray cluster of two nodes against one process.")
    parser.add_argument("what", choices=("all", "losses", "speed", "rate"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--tasks", type=int, default=5000)
    args = parser.parse_args()
    if args.what == "rate":
        rate(args.tasks)
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("driver.py").write_text(DRIVER, encoding="utf-8")
        store.save(tiny_graph(n_cls=11), "tiny.safetensors")
        if args.what in ("all", "losses"):
            make_images(Path("images"), args.images, 64)
            losses(args.images, "tiny.safetensors")
        if args.what in ("all", "speed"):
            if Path("images").exists():
                os.rename("images", "small")
            make_images(Path("images"), max(60, args.images // 10), 256)
            speed(args.images, "camvid-tiny")


if __name__ == "__main__":
    main()
