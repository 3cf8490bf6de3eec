"""Permissions in the wheel that do not depend on the umask of who builds it; everything else is in setup.cfg."""

import os
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

os.umask(0o022)


class BuildPy(build_py):
    """Modules that everybody may read."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in self.get_outputs():
                os.chmod(file, 0o644)


class BdistWheel(bdist_wheel):
    """Metadata and license that everybody may read."""

    def write_wheelfile(self, wheelfile_base: str, *args: Any, **options: Any) -> None:
        super().write_wheelfile(wheelfile_base, *args, **options)
        for path in Path(wheelfile_base).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
