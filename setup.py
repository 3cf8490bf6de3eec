"""What setup.cfg cannot say: permissions in the wheel that do not depend on the umask, links of an index page."""

import os
import re
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

os.umask(0o022)

HOME = ""
"""Where the repository is published, such as https://host/owner/intseg/blob/main/: links of README.md start there."""


def long_description() -> str:
    """README.md for an index page, where links into the repository lead nowhere by themselves: absolute, or text."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if not HOME:
        text = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n\n?", "", text, flags=re.MULTILINE)
        return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
    return re.sub(r"\]\((?!https?:)([^)]*)\)", rf"]({HOME}\1)", text)


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


setup(long_description=long_description(), cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
