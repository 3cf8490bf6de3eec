"""Bugs to find: the proof that a failure would be noticed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hostile.cases import KINDS
from hostile.kind import Files
from intseg import backends, errors, model, store
from intseg.graph import Graph, Node
from intseg.images import overlay as overlays
from intseg.kernels import _jit
from intseg.ops import Array
from intseg.workbench import dump
from intseg.workbench import trace as traces


def _plant_exception() -> None:
    real = store._node_from_json

    def planted(entry: Any) -> Node:
        if isinstance(entry, dict) and type(entry.get("shape")) is list and 0 in entry["shape"]:
            raise KeyError("shape")
        return real(entry)

    store._node_from_json = planted


def _plant_message() -> None:
    real = dump.read_npy

    def planted(data: bytes) -> Array:
        try:
            return real(data)
        except errors.InputError as error:
            raise errors.InputError(f"{error}: {data[:100].decode('latin-1')}") from None

    errors.one_line = lambda text: text
    dump.read_npy = planted


def _plant_hang() -> None:
    real = overlays._colour_lines

    def planted(path: Path) -> Iterator[Any]:
        while b"sky" not in path.read_bytes():
            pass
        return real(path)

    overlays._colour_lines = planted


def _plant_memory() -> None:
    real = dump._decode_json

    def planted(data: bytes, dtype: str, shape: Sequence[int]) -> Array:
        np.empty(math.prod(shape) * 2**28, np.int64)
        return real(data, dtype, shape)

    dump._decode_json = planted


def _plant_path() -> None:
    real = model._configured_names

    def planted(path: Path) -> tuple[str, ...] | None:
        names = real(path)
        if names and len("".join(names)) > 3:
            Path("/etc/passwd").read_bytes()
        return names

    model._configured_names = planted


def _plant_pickle() -> None:
    _jit._unwrap = lambda data: data[48:]


def _plant_bits() -> None:
    real = backends.compile

    def planted(graph: Graph, backend: str, threads: int | None = None) -> backends.Forward:
        forward = real(graph, backend, threads)
        return lambda image: forward(image) + np.int16(graph.tensors["head.bias"][0] == 0)

    backends.compile = planted


def _plant_crash() -> None:
    real = traces._entry

    def planted(name: str, value: Any) -> Any:
        if len(value["shape"]) > 4:
            os.abort()
        return real(name, value)

    traces._entry = planted


def _plant_unbuilt() -> None:
    kind = KINDS["folder"]
    real = kind.build

    def planted(base: int, steps: Sequence[int]) -> Files:
        if steps and steps[0] % 10 == 0:
            raise ZeroDivisionError("a mutation that cannot be made")
        return real(base, steps)

    kind.build = planted  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    name.removeprefix("_plant_"): function for name, function in globals().items() if name.startswith("_plant_")
}
"""Functions that break a reader of this process."""
