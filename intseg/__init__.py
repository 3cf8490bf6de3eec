"""Integer-only inference for vision-transformer segmentation, bit-exact on every machine.

>>> import intseg
>>> result = intseg.run("street.png")                                           # doctest: +SKIP
>>> result.labels.shape, result.save("street_labels.png")                       # doctest: +SKIP

Importing this package loads NumPy and safetensors only; Pillow, Numba and the bundled model are loaded on first use.
"""

from intseg._version import __version__
from intseg.api import Model, Result, load, run, trace

__all__ = ["Model", "Result", "__version__", "load", "run", "trace"]
