"""The bundled models: every *.safetensors file in this folder, by its name without the ending.

NAME.json beside it is what `intseg eval -w NAME --root CamVid --json` printed.
"""

from __future__ import annotations

from pathlib import Path

from intseg.errors import ModelError

DEFAULT = "camvid-tiny"
"""The model that `intseg.run` uses when none is named."""

MEASURED = "CamVid val"
"""The data set of the measurements."""

_SUFFIX = ".safetensors"


def _folder() -> Path:
    import importlib.resources  # costs as much as half of the package, and most calls name a file

    return Path(str(importlib.resources.files(__name__)))


def names() -> tuple[str, ...]:
    """Names of the models that this installation holds, the default first."""
    found = sorted(file.name.removesuffix(_SUFFIX) for file in _folder().glob(f"*{_SUFFIX}"))
    return tuple(sorted(found, key=lambda name: name != DEFAULT))


def path(name: str) -> Path:
    """The file of a bundled model. Raises ModelError if there is none of this name."""
    if name not in names():
        raise ModelError(
            f"no bundled model {name!r}, expected {' or '.join(names()) or 'one, but none is installed'}; "
            "install intseg again, or give a weights file"
        )
    return _folder() / f"{name}{_SUFFIX}"
