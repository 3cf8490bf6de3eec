"""What one machine gives, run as a program by machines.py, under an emulator or not: JSON lines on standard output.

    python tests/trust/machine_run.py numpy,numba numba     backends; those that segment the street
    python tests/trust/machine_run.py numpy numba short     golden folder and street only

Every line has a name and the seconds of processor time it took; results have a digest. Needs the package and the golden
folder beside it, nothing else. The parent gives an empty INTSEG_CACHE_DIR: every kernel is compiled here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from intseg import api, models, store  # noqa: E402
from intseg.cli import main as cli  # noqa: E402
from intseg.conformance import verify  # noqa: E402

GOLDEN = ROOT / "golden"
MODEL = str(GOLDEN / "models" / "weights.safetensors")
FORMATS = ("npy", "npz", "json", "bin", "hex", "mem", "coe", "c")
INSTRUCTIONS = ("vpdpbusd", "vpmaddwd", "pmaddwd", "sdot", "smmla", "smlal", "smull")
"""Of dot products and of what stands for them, in the order in which they are looked for."""

_started = time.process_time()


def say(name: str, **found: object) -> None:
    """One line for the parent, with the processor time since the last one."""
    global _started
    now = time.process_time()
    print(json.dumps({"name": name, **found, "seconds": round(now - _started, 2)}), flush=True)
    _started = now


def facts(numba: bool) -> dict[str, Any]:
    """What this machine is, and what Numba takes it for."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "byteorder": sys.byteorder,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if numba:
        from intseg.kernels import _isa

        found |= {
            "numba": importlib.metadata.version("numba"),
            "target": _isa.current_target()[1],
            "isa": _isa.select().name,
        }
    return found


def assembly() -> dict[str, int]:
    """How often the matrix products of this process hold each instruction."""
    from intseg.kernels import _jit

    kernels = [_jit.REGISTRY[name] for name in ("linear.linear", "mean_attention.attention")]
    text = "\n".join(kernel.assembly() for kernel in kernels)
    counts = {word: len(re.findall(rf"^\s+{word}\b", text, re.M)) for word in INSTRUCTIONS}
    return {word: count for word, count in counts.items() if count}


def folder_digest(folder: Path) -> str:
    """Of names and bytes of all files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def command(*words: str) -> None:
    """A command of intseg in this process, its output kept back."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = cli.main(words)
    if code:
        raise SystemExit(f"intseg {' '.join(words)}: exit code {code}\n{out.getvalue()}")


def write_files(folder: Path) -> None:
    """What can be written in bytes: traces, dumps of every format, big-endian words, a flat model, tables, weights."""
    trace = str(folder / "trace.safetensors")
    command(
        "trace", str(GOLDEN / "images" / "small.png"), "-w", MODEL, "--registers", "--backend", "numpy", "-o", trace
    )
    for name in FORMATS:
        command("dump", trace, "--format", name, "--tensors", "*attn*", "-o", str(folder / name))
    command("dump", trace, "--format", "bin", "--endian", "big", "--tensors", "*norm*", "-o", str(folder / "big"))
    command("dump", "--read", str(folder / "npy"), "-o", str(folder / "read.safetensors"))
    command("dump", MODEL, "--format", "flat", "-o", str(folder / "flat.bin"))
    for kind in ("npz", "csv", "hex"):
        arguments = ("--mult", "1431655765", "--shift", "33", "--out", "int8")
        command("truth-table", "requantize", *arguments, "-o", str(folder / f"table.{kind}"))
    for name in models.names():
        store.save(api.load(name).graph, folder / f"{name}.safetensors")


def replay(name: str, folder: Path, backend: str) -> None:
    """Say the digest of a folder of vectors on one backend."""
    report = verify.verify(folder, (backend,))
    say(f"{name} {backend}", digest=report.digest, compared=sum(report.counts.values()), wrong=report.mismatch or "")


def files_and_vectors(folder: Path, names: Sequence[str]) -> None:
    """Say the digests of what is written, and of a conformance pack on every backend."""
    written, pack = folder / "written", folder / "pack"
    written.mkdir()
    write_files(written)
    say("files", digest=folder_digest(written))
    command("vectors", "-w", MODEL, "--backend", names[-1], "-o", str(pack))
    say("vectors written", digest=folder_digest(pack))
    for backend in names:
        replay("vectors", pack, backend)


def main(words: Sequence[str]) -> None:
    """Say everything."""
    names, street = (word.split(",") for word in words[:2])
    say("facts", **facts("numba" in street))
    for backend in names:
        replay("golden", GOLDEN, backend)
    if words[2:] != ["short"]:
        with tempfile.TemporaryDirectory() as temporary:
            files_and_vectors(Path(temporary), names)
    for name, backend in itertools.product(models.names(), street):
        labels = api.run(GOLDEN / "images" / "street.png", api.load(name), backend, 1).labels
        say(f"street {name} {backend}", digest=hashlib.sha256(labels.tobytes()).hexdigest())
    if "numba" in street:
        say("assembly", instructions=assembly())
    say("end")


if __name__ == "__main__":
    main(sys.argv[1:])
