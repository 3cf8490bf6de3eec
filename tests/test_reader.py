"""The independent reader in C gives the engine's integers; with a fault in it, it does not; bad files it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest

from intseg.conformance import flat
from intseg.graph import Graph

sys.path.insert(0, str(Path(__file__).parent / "trust"))

import compare_reader
from compare_reader import Job

pytestmark = pytest.mark.skipif(compare_reader.compiler() is None, reason="no C compiler is installed")

MUTANTS = {
    "rsr rounds down": ("x + ((int64_t)1 << (c - 1))", "x + ((int64_t)1 << (c - 1)) - 1"),
    "shifts truncate": ("~(~x >> n)", "-(-x >> n)"),
    "mean rounds down": ("2 * sum + (int64_t)depth,", "2 * sum,"),
    "square root one too large": ("(r + bit) * (r + bit) <= v", "(r + bit) * (r + bit) <= v + 2 * r"),
    "reciprocal of 2^45": ("((int64_t)1 << 46) - 1", "((int64_t)1 << 45) - 1"),
    "paper reciprocal of 2^31": ("asr((LIMIT31 - 1) / d * n", "asr(LIMIT31 / d * n"),
    "binary 1.0110": ("x + asr(x, 1) - asr(x, 4)", "x + asr(x, 1) - asr(x, 3)"),
    "binary 1.1010": ("asr(x, 1) + asr(x, 3) + asr(x, 4)", "asr(x, 1) + asr(x, 3)"),
    "no quadratic": ("a1 - asr(a2 * f, 15)", "a1 - asr(a2 * f, 16)"),
    "last of equal scores": ("x[j] > x[best]", "x[j] >= x[best]"),
    "bilinear from the corner": ("2 * (int64_t)i + 1 - (int64_t)factor", "2 * (int64_t)i + 2 - (int64_t)factor"),
    "windows not weighed": ("common / a.weights[i]", "1"),
    "last window twice": ("start + window < a.padded", "start + window <= a.padded"),
    "padding is black": (": m->pad[c];", ": 0;"),
    "packed weights without sign": ("return u >> (bits - 1) ? u - ((int64_t)1 << bits) : u;", "return u;"),
    "packed bits from the next byte missing": ("if (low + (uint64_t)bits > 8)", "if (low + (uint64_t)bits > 16)"),
    "always saturated at 8 bits": ("(type > I64 ? type / 16 :", "(type > I64 ? 8 :"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compare_reader.build(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the sanitizers where the compiler has them: an error ends the program with another code than 0 or 2."""
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        return compare_reader.build(folder, compare_reader.SANITIZE)
    except subprocess.CalledProcessError:  # the compiler has no sanitizers
        return compare_reader.build(folder)


def nearly(graph: Graph) -> Job:
    """A tiny model on an image that needs padding and overlapping windows."""
    return Job("tiny", graph, np.random.default_rng(3).integers(0, 256, (21, 19, 3), dtype=np.uint8))


def by_pixel(upsample: str, **changes: Any) -> Job:
    """A tiny model whose windows lie between patches."""
    graph = graphs.tiny()
    info = dataclasses.replace(graph.info, **{"merge": "pixel", "upsample": upsample, "stride": (5, 7)} | changes)
    return nearly(dataclasses.replace(graph, info=info))


def tied() -> Graph:
    """Every score is 0."""
    graph = graphs.tiny()
    for name in ("head.weight", "head.bias"):
        graph = graphs.with_tensor(graph, name, np.zeros_like(graph.tensors[name]))
    return graph


@cache
def small_jobs() -> list[tuple[Job, list[str]]]:
    """Jobs that together find every mutant, the cheapest first, with what the engine gives."""
    jobs = [nearly(graphs.tiny()), nearly(tied()), *compare_reader.golden_jobs()]
    return [(job, compare_reader.expected(job)[0]) for job in jobs]


def test_golden_models_on_golden_images(program: Path):
    count = 0
    for job in compare_reader.golden_jobs():
        found, problem = compare_reader.difference(program, job)
        assert not problem
        count += found
    assert count > 2000


def test_bundled_models_on_the_example(program: Path):
    for job in compare_reader.bundled_jobs():
        found, problem = compare_reader.difference(program, job)
        assert not problem
        assert found > 200


def test_random_graphs_and_every_op(sanitized: Path):
    ops = set()
    ours = [nearly(graphs.tiny()), by_pixel("bilinear"), by_pixel("nearest")]
    ours += [by_pixel(how, working_size=size) for how in ("nearest", "bilinear") for size in ((8, 40), (33, 36))]
    ours += [by_pixel(how, merge="grid", stride=(4, 8), working_size=(11, 14)) for how in ("nearest", "bilinear")]
    for job in [*ours, *compare_reader.random_jobs(24)]:
        assert not compare_reader.difference(sanitized, job)[1]
        ops |= {node.op for node in job.graph.nodes}
    assert len(ops) == 22


def test_labels_of_more_than_256_classes(program: Path):
    graph = many_classes(300)
    job = nearly(graph)
    assert compare_reader.difference(program, job)[1] == ""
    assert compare_reader.run(program, job)[1].dtype.itemsize == 2


def many_classes(count: int) -> Graph:
    graph = graphs.tiny()
    source = np.random.default_rng(5)
    kinds = {"weight": ((count, 4), "int8", -128, 128), "bias": ((count,), "int32", -1000, 1000)}
    for role, (shape, dtype, low, high) in kinds.items():
        graph = graphs.with_tensor(graph, f"head.{role}", source.integers(low, high, shape).astype(dtype))
    graph = graphs.with_tensor(graph, "head.mult", np.full(count, 2**30, np.int32))
    graph = graphs.with_tensor(graph, "head.shift", np.full(count, 29, np.int8))
    graph = graphs.with_node(graphs.with_node(graph, "head", shape=(4, count)), "scores", shape=(2, 2, count))
    return graphs.with_info(
        graph, classes=tuple(f"class {i}" for i in range(count)), palette=((1, 2, 3),) * count, upsample="bilinear"
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_differs(name: str, tmp_path: Path):
    old, new = MUTANTS[name]
    source = compare_reader.SOURCE.read_text(encoding="utf-8")
    assert source.count(old) == 1
    mutant = compare_reader.build(tmp_path, ("-O0", "-Wno-error"), source.replace(old, new))
    assert any(compare_reader.run(mutant, job)[0] != lines for job, lines in small_jobs())


def refusal(program: Path, data: bytes, image: bytes) -> str:
    """The reader's one line about a bad file; the code is 2 and nothing is run."""
    (program.parent / "bad.flat").write_bytes(data)
    (program.parent / "bad.ppm").write_bytes(image)
    command = [str(program), "bad.flat", "bad.ppm"]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, timeout=600, check=False)
    assert done.returncode == 2, done.stderr.decode(errors="replace")
    assert done.stdout == b""
    line = done.stderr.decode(errors="replace")
    assert line.startswith("reader: ")
    assert line.count("\n") == 1
    return line


def sealed(data: bytes) -> bytes:
    """With the size and the digest that belong to the bytes, so that nothing but the content is wrong."""
    data = data[:12] + struct.pack("<I", len(data)) + data[16:]
    return data[:16] + hashlib.sha256(data[48:]).digest() + data[48:]


IMAGE = compare_reader.ppm(np.zeros((8, 8, 3), np.uint8))


def test_truncated_and_damaged_files_are_refused(sanitized: Path):
    data = flat.flatten(graphs.tiny())
    for size in (0, 1, 7, 8, 47, 191, 192, len(data) // 2, len(data) - 1):
        refusal(sanitized, data[:size], IMAGE)
    assert "truncated" in refusal(sanitized, data + b"\0", IMAGE)
    source = random.Random(0)
    for _ in range(15):
        place = source.randrange(len(data))
        refusal(sanitized, data[:place] + bytes([data[place] ^ 1 << source.randrange(8)]) + data[place + 1 :], IMAGE)


HEADER_FIELDS = (8, 48, 52, 56, 64, 68, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 120)


@pytest.mark.parametrize("byte", HEADER_FIELDS)
def test_a_bad_header_of_the_right_digest_is_refused(sanitized: Path, byte: int):
    data = flat.flatten(graphs.tiny())
    for value in (2**32 - 1, 2**31, len(data) + 64):
        refusal(sanitized, sealed(data[:byte] + struct.pack("<I", value) + data[byte + 4 :]), IMAGE)


def test_random_damage_of_the_right_digest_never_breaks_the_reader(sanitized: Path):
    """Records at random: refused with one line, or a valid graph that runs; never a sanitizer's report or a crash."""
    data = flat.flatten(graphs.tiny())
    nodes, tensors, texts = struct.unpack_from("<3I", data, 64)
    node_count, tensor_count = struct.unpack_from("<2I", data, 48)
    places = [*range(nodes, nodes + 96 * node_count, 4), *range(tensors, tensors + 32 * tensor_count, 4), texts]
    source, refused = random.Random(1), 0
    for _ in range(60):
        place = source.choice(places)
        value = source.choice([0, 1, 2, 3, 5, 63, 64, 65535, 65536, 2**30, 2**31 - 1, 2**31, 2**32 - 1])
        spoiled = sealed(data[:place] + struct.pack("<I", value) + data[place + 4 :])
        (sanitized.parent / "bad.flat").write_bytes(spoiled)
        (sanitized.parent / "bad.ppm").write_bytes(IMAGE)
        command = [str(sanitized), "bad.flat", "bad.ppm"]
        done = subprocess.run(command, cwd=sanitized.parent, capture_output=True, timeout=600, check=False)
        assert done.returncode in (0, 2), (place, value, done.stderr.decode(errors="replace"))
        assert done.stderr.count(b"\n") == (1 if done.returncode else 0)
        refused += done.returncode == 2
    assert 30 < refused < 60


OVERFLOWS = {
    "linear": ("embed.bias", 2**31 - 1),
    "layernorm": ("norm.bias", 2**61),
    "matmul": ("av.shift", 0),
}


@pytest.mark.parametrize("op", OVERFLOWS)
def test_what_may_overflow_is_refused(sanitized: Path, op: str):
    name, value = OVERFLOWS[op]
    spoiled = flat.flatten(graphs.with_element(graphs.tiny(), name, value))
    assert "node " in refusal(sanitized, spoiled, IMAGE)


BAD_IMAGES = {
    "empty": b"",
    "ascii": b"P3\n1 1\n255\n0 0 0\n",
    "16 bits": b"P6\n1 1\n65535\n" + bytes(6),
    "no size": b"P6\n",
    "comment without end": b"P6\n# nothing",
    "huge": b"P6\n65535 65535\n255\n" + bytes(3),
    "seven digits": b"P6\n1000001 1\n255\n" + bytes(3),
    "zero": b"P6\n0 1\n255\n",
    "short": IMAGE[:-1],
    "long": IMAGE + b"\0",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused(sanitized: Path, name: str):
    refusal(sanitized, flat.flatten(graphs.tiny()), BAD_IMAGES[name])


def test_a_comment_in_the_header_is_skipped(program: Path):
    job = nearly(graphs.tiny())
    lines, _ = compare_reader.run(program, job)
    commented = b"P6 # by hand\n19\t21 #x\n255\n" + job.rgb.tobytes()
    (program.parent / "image.ppm").write_bytes(commented)
    done = subprocess.run(
        [str(program), "model.flat", "image.ppm"], cwd=program.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == lines
