"""Everything that the bench of one node needs, as a folder: inputs, parameters, attributes and the expected result."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from intseg.errors import InputError, UsageError, suggest
from intseg.workbench.cause import call_of
from intseg.workbench.dump import Options, write_folder
from intseg.workbench.trace import Trace, Writer


def write_case(
    golden: Trace, node: str, window: int, folder: str | os.PathLike[str], kind: str, options: Options
) -> int:
    """Dump the call that a node is in a window. Returns how many tensors: in0, in1, ..., param.<role>, expected.

    kind, options  as of `dump.write_folder`; the manifest's "source" has op, node, window and attributes
    Raises UsageError for a node or a window that is not there, InputError for a trace that lacks an input.
    """
    if golden.model is None:
        raise UsageError("a case needs the model; give it with -w")
    known = {found.name: found for found in golden.model.graph.nodes}
    if node not in known:
        raise UsageError(f"no node is called {node!r}{suggest(node, known)}; intseg inspect lists them")
    if window not in golden.windows:
        raise UsageError(f"window {window} is not traced, expected {golden.windows[0]} to {golden.windows[-1]}")
    call, expected = call_of(golden, window, known[node]), golden.value(window, node)
    if call is None or expected is None:
        raise InputError(f"{golden.file.path}: lacks the result or an input of {node}; trace all nodes")
    tensors = {f"in{i}": x for i, x in enumerate(call.inputs)}
    tensors |= {f"param.{role}": p for role, p in call.params.items()}
    tensors["expected"] = expected
    metadata: dict[str, Any] = {"op": call.op, "node": node, "window": window, "attrs": dict(call.attrs)}
    bits = golden.model.graph.packed
    packed = {
        f"param.{role}": {"bits": bits[name], "shape": list(call.params[role].shape)}
        for role, name in known[node].params.items()
        if name in bits
    }
    metadata |= {"packed": packed} if packed else {}
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "case.safetensors"
        with Writer(path, metadata, list(tensors)) as writer:
            for name, array in tensors.items():
                writer.put(name, array)
        return write_folder(path, folder, kind, options)
