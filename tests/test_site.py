"""The docs site: every link followed, in both themes, on a telephone, and searched as a folder of files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest

pytest.importorskip("material", reason="the extra [docs] is not installed")

ROOT = Path(__file__).resolve().parents[1]

SEARCH = """
new Promise(done => {
  document.querySelector("[data-md-toggle=search]").click();
  const field = document.querySelector("[data-md-component=search-query]");
  const found = document.querySelector("[data-md-component=search-result]");
  const again = setInterval(() => {
    field.value = "shiftmax";
    field.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
    if (/\\d+ matching/.test(found.innerText)) { clearInterval(again); done(found.innerText); }
  }, 200);
})
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Browser]:
    if browser.find() is None:
        pytest.skip("no Chromium is installed")
    with browser.Browser() as opened:
        yield opened


def test_every_page_is_there(site: Path) -> None:
    written = {path.stem for path in site.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "README"} <= written
    assert (site / "folders" / "kernels.html").is_file()
    assert {"index", "SPEC", "SECURITY", "CONTRIBUTING", "CHANGELOG"} <= written
    assert "golden model" in (site / "index.html").read_text(encoding="utf-8")


def test_search_works_in_a_folder_and_nothing_is_loaded_from_elsewhere(site: Path, page: browser.Browser) -> None:
    page.width(1280)
    page.open(site / "index.html")
    assert "RESULTS" in page.evaluate(
        f"{SEARCH}.then(() => [...document.querySelectorAll('a')].map(a => a.href).join())"
    )
    assert [url for url in page.requests() if not url.startswith("file:")] == []
    assert page.complaints() == []


@pytest.mark.parametrize("name", ["index", "RESULTS", "SPEC"])
def test_pages_follow_the_theme_and_fit_a_telephone(site: Path, page: browser.Browser, name: str) -> None:
    page.width(390)
    grounds = []
    for theme in ("light", "dark"):
        page.theme(theme)
        page.open(site / f"{name}.html")
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert (
            page.evaluate("[...document.images].filter(i => i.getBoundingClientRect().right > innerWidth).length") == 0
        )
    assert grounds == ["rgb(255, 255, 255)", "rgb(30, 33, 41)"]
