"""What a checkpoint file holds: tensors under one of many keys and prefixes, beside things that nobody has to read.

Nothing in a file is executed. Tensors, containers and plain numbers are read as PyTorch's own `weights_only` reads
them; of everything else (argparse.Namespace, NumPy scalars, mmsegmentation's message_hub, ...) a stand-in is made.
"""

from __future__ import annotations

import pickle
import types
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch._weights_only_unpickler import _get_allowed_globals

from intseg import files
from intseg.errors import InputError
from intseg.tools.twin.config import CheckpointError
from intseg.tools.twin.names import State

KEYS: Final = ("model", "state_dict", "model_state_dict", "model_ema", "ema_state_dict", "state_dict_ema", "student")
"""Where the tensors may be, the first that is there; `teacher` and what optimizers keep are never taken."""

PREFIXES: Final = ("module.", "_orig_mod.", "model.")
"""Of wrappers (DistributedDataParallel, torch.compile, Lightning), in any order and number."""

COUNTERS: Final = ("n_averaged", "steps", "num_updates", "num_batches_tracked")
"""Numbers that are kept among the tensors (of stochastic weight averaging, of moving averages, of batch norms)."""

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Unread:
    """Stands for an object of a class that is not read: takes whatever a pickle does to it."""

    names: tuple[str, ...] = ()

    def __new__(cls, *args: object, **kwargs: object) -> Unread:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> Unread:
        return self

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...

    def add(self, value: object) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Calls only what `weights_only` may call."""

    def find_class(self, module: str, name: str) -> Any:
        known = _get_allowed_globals().get(f"{module}.{name}")
        return type(name, (Unread,), {"names": (f"{module}.{name}",)}) if known is None else known


_READER = types.SimpleNamespace(
    __name__="stand-ins", Unpickler=_Unpickler, load=lambda stream, **options: _Unpickler(stream, **options).load()
)
"""What torch.load takes for the module pickle."""


def read_file(file: Path) -> object:
    """What torch.save wrote, or the tensors of a .safetensors file by name. Raises CheckpointError."""
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        with files.opened(file, "", "give a checkpoint.pth") as stream:
            try:
                return torch.load(stream, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                if "GLOBAL" not in str(error) and "instruction" not in str(error):
                    raise
            stream.seek(0)
            return torch.load(stream, map_location="cpu", weights_only=False, pickle_module=_READER)
    except InputError as error:
        raise CheckpointError(str(error)) from None
    except Exception as error:  # bad bytes raise RuntimeError, UnpicklingError, EOFError, OSError, KeyError, ...
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(
            f"{file}: not a complete PyTorch checkpoint ({reason}); download it again, or save it with torch.save"
        ) from None


def _read_safetensors(file: Path) -> object:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            ours = "intseg" in (opened.metadata() or {})
        found = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error}); download it again") from None
    if ours:
        raise CheckpointError(
            f"{file}: holds integer weights, expected a float checkpoint; run it with intseg infer -w"
        )
    return found


def state_of(raw: object, key: str | None, notes: list[str]) -> dict[str, Any] | str:
    """The names and values that `raw` keeps its parameters under, without prefixes and counters.

    key     which of several dictionaries of them
    notes   receives which was taken where there are several, and the classes that were not read
    Returns in words what was found instead where there is none.
    """
    if isinstance(raw, Unread):
        return f"the Python object {raw.names[0]}"
    if not isinstance(raw, dict):
        return f"a {type(raw).__name__}"
    there = [name for name in KEYS if isinstance(raw.get(name), dict)]
    if key is not None and not isinstance(raw.get(key), dict):
        return f"no {key} (its dictionaries: {', '.join(there) or 'none'})"
    chosen = key or next(iter(there), None)
    if unread := sorted({value.names[0] for value in raw.values() if isinstance(value, Unread)}):
        if chosen is None and len(unread) == len(raw):
            return f"the Python object {unread[0]}"
        notes.append(f"not read: {', '.join(unread)}")
    if len(there) > 1:
        notes.append(f"parameters = {chosen}: {', '.join(there)} are there (--state)")
    state = {str(name): value for name, value in (raw if chosen is None else raw[chosen]).items()}
    return unwrapped({name: value for name, value in state.items() if name.split(".")[-1] not in COUNTERS})


def unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Without the prefixes that all names share."""
    while state and (found := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)):
        state = {name.removeprefix(found): value for name, value in state.items()}
    return state


def require_floats(state: dict[str, Any], file: Path) -> State:
    """Every value is a tensor of floats. Raises CheckpointError."""
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.dtype not in FLOATS:
            found = value.names[0] if isinstance(value, Unread) else type(value).__name__
            found = str(value.dtype) if isinstance(value, Tensor) else found
            raise CheckpointError(f"{file}: {name} is {found}, expected a float tensor; save the float model again")
    return state


def few(names: list[str], limit: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
