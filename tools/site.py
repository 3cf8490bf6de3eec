"""A hook of mkdocs.yml: the pages beside docs/ belong to the site too, README.md as its start."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

PAGES = {"README.md": "index.md"} | {
    name: name for name in ("SPEC.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff")
}
PAGES |= {f"{folder}/README.md": f"folders/{folder}.md" for folder in ("intseg", "kernels", "tools", "tests")}
"""What lies beside docs/, and its name in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them; links into docs/ lead to where its pages are in the site."""
    for name, there in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, there, content=_moved(text)))
    return files


def _moved(text: str) -> str:
    return re.sub(r"\]\((\w+)/README\.md\)", r"](folders/\1.md)", re.sub(r"\]\(docs/", "](", text))
