"""Numba kernels: the ops of `intseg.ops`, fast, with the same bits. Installed and imported as `intseg.kernels` only.

The kernels import nothing but NumPy, Numba and llvmlite; every constant reaches them as an argument.
"""

if __name__ != "intseg.kernels":
    raise ImportError("this folder is the package intseg.kernels: import it under that name")
