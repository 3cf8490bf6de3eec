"""How helpers compile: as parts of kernels, optimized and made machine code with the kernel that holds them only.

Numba gives every function a library of its own, optimizes it, makes machine code of it, links it into its callers and
optimizes it with them again, at each level of calls. Helpers are never called but in kernels: all of that is wasted, a
quarter of the time of compiling.
"""

from __future__ import annotations

from typing import Any

from numba.core import codegen, compiler

_Library: Any = codegen.JITCodeLibrary
_Compiler: Any = compiler.Compiler


class _Part(_Library):  # type: ignore[misc]
    """The code of a helper, to be linked only: no address, so nowhere to set an environment; see `set_environments`."""

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    @property
    def codegen(self) -> Any:
        """What Numba asks to set the environment."""
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Nothing: of a kernel's own, Numba asks the code generator."""


class Compiler(_Compiler):  # type: ignore[misc]
    """Compiles to a `_Part`."""

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *others: Any) -> None:
        super().__init__(typingctx, targetctx, library or _Part(targetctx.codegen(), "part of a kernel"), *others)


def set_environments(result: Any) -> None:
    """Give a compiled kernel what its helpers need to raise exceptions; Numba does so for one from the cache."""
    for environment in result._find_referenced_environments():
        result.library.codegen.set_env(environment.env_name, environment)
