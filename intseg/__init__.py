"""Integer-only inference for vision-transformer segmentation and classification, bit-exact on every machine.

>>> import intseg
>>> result = intseg.run("street.png")                                           # doctest: +SKIP
>>> result.labels.shape, result.save("street_labels.png")                       # doctest: +SKIP

Importing this package loads nothing; NumPy, Pillow, Numba and the bundled model are loaded on first use.
"""

from typing import TYPE_CHECKING

from intseg._version import __version__

if TYPE_CHECKING:
    from intseg.api import ClassResult, Model, Result, load, run, trace

__all__ = ["ClassResult", "Model", "Result", "__version__", "load", "run", "trace"]


def __getattr__(name: str) -> object:
    """The public names, from `intseg.api` when one is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'intseg' has no attribute {name!r}")
    try:
        from intseg import api
    except ImportError as error:
        from intseg.errors import missing_part

        raise ImportError(missing_part(error) or str(error), name=error.name) from None

    value: object = getattr(api, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
