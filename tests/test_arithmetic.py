"""docs/ARITHMETIC.md tells the truth: its examples run, its pictures are what the ops draw, its links exist."""

from __future__ import annotations

import doctest
import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from intseg.tools import make_docs

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TEXT = (DOCS / "ARITHMETIC.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawn_once() -> Iterator[None]:
    """One drawing is compared with the files, written and compared again. Needs matplotlib."""
    pytest.importorskip("matplotlib")
    from intseg.tools import pictures

    with pytest.MonkeyPatch.context() as patch:
        for name, draw in pictures.PICTURES.items():
            patch.setitem(pictures.PICTURES, name, functools.cache(draw))
        yield


def test_the_examples_give_what_they_say() -> None:
    example = doctest.DocTestParser().get_doctest(TEXT, {}, "ARITHMETIC.md", None, 0)
    assert len(example.examples) > 10
    found = doctest.DocTestRunner(verbose=False).run(example)
    assert found.failed == 0


@pytest.mark.usefixtures("drawn_once")
def test_the_pictures_are_what_the_ops_draw() -> None:
    assert make_docs.main(["--check", "pictures"]) == 0
    for name in make_docs.pictures():
        ElementTree.parse(DOCS / name)
        assert f"({name})" in TEXT
    # Those of the results are drawn and compared by tools/measure/report.py.
    files = [file.name for file in (DOCS / "pictures").iterdir() if not file.name.startswith("results_")]
    assert {f"pictures/{name}" for name in files} == set(make_docs.pictures())


@pytest.mark.usefixtures("drawn_once")
def test_a_changed_picture_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_docs, "DOCS", tmp_path)
    assert make_docs.main(["--check", "pictures"]) == 1
    assert make_docs.main(["pictures"]) == 0
    assert make_docs.main(["--check", "pictures"]) == 0
    (tmp_path / "pictures" / "gelu.svg").write_text("other", encoding="utf-8")
    capsys.readouterr()
    assert make_docs.main(["--check", "pictures"]) == 1
    assert capsys.readouterr().out.count("\n") == 1


def test_the_references_name_every_command_and_function() -> None:
    import intseg
    from intseg.cli import main as cli

    pages = make_docs.cli_page(), make_docs.api_page()
    assert all(f"## intseg {command.name}\n" in pages[0] for command in cli.COMMANDS)
    assert all(f"### intseg.{name}\n" in pages[1] for name in intseg.__all__ if not name.startswith("_"))
    assert not re.search(r"/(home|root|tmp)/", "".join(pages))
    assert "'road=7,\\*=0' (\\* is not counted)" in pages[0], "emphasis would swallow the stars"


def test_links_lead_somewhere() -> None:
    prose = re.sub(r"^    .*$", "", TEXT, flags=re.MULTILINE)
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in target]
    assert targets
    assert [target for target in targets if not (DOCS / target).exists()] == []
