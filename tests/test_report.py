"""The report page: what it says, that it loads nothing, how it behaves in a browser, with keys, in both themes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_graph

import intseg
from intseg import api, store
from intseg.cli import main as cli
from intseg.reports import markup
from intseg.reports import page as report

HOSTILE = (
    '<script>document.title="x"</script>',
    '"><img src=x onerror=alert(1)>',
    "a & b\u202e\u2066\u200b",
    "'--><b>",
    "ok",
)
ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> api.Model:
    """A small model whose names are markup."""
    graph = tiny_graph(3)
    info = dataclasses.replace(graph.info, name="</title><script>alert(2)</script>", classes=HOSTILE)
    path = tmp_path_factory.mktemp("model") / "w.safetensors"
    store.save(dataclasses.replace(graph, info=info), path)
    return intseg.load(path)


@pytest.fixture(scope="module")
def looks(model: api.Model, tmp_path_factory: pytest.TempPathFactory) -> list[report.Look]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / name for name in ('<b onmouseover="x">&.png', "plain.png")]
    for seed, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 57, 3), np.uint8)).save(path)
    return [report.look(path, model, "numpy") for path in paths]


@pytest.fixture(scope="module")
def page(model: api.Model, looks: list[report.Look]) -> str:
    return report.page(model, looks).decode()


class Elements(HTMLParser):
    """Tags with their attributes, and that they are closed in order."""

    VOID = frozenset({"meta", "img", "input", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# ------------------------------------------------------------------------------------------------------- the facts


def test_margins_are_best_minus_second_best(page: str, looks: list[report.Look]) -> None:
    scores = np.array([[[5, -3, 4], [7, 7, 1]]], np.int32)
    assert report.margins(scores).tolist() == [[1, 0]]
    assert report.margins(scores[..., :1]).tolist() == [[0, 0]]
    for (_, attributes), look in zip(
        [found for found in Elements(page).found if "data-cells" in found[1]], looks, strict=True
    ):
        columns, *numbers = map(int, str(attributes["data-cells"]).split(","))
        best, second, margin = np.array(numbers).reshape(-1, columns, 3).transpose(2, 0, 1)
        ordered = np.sort(look.cells, axis=-1)
        assert np.array_equal(best, look.cells.argmax(-1))
        assert np.array_equal(np.take_along_axis(look.cells, second[..., None], -1)[..., 0], ordered[..., -2])
        assert np.array_equal(margin, ordered[..., -1] - ordered[..., -2])


def test_layers_are_the_ranges_of_the_trace(looks: list[report.Look], model: api.Model) -> None:
    windows = [outputs for _, outputs in api.trace(looks[0].result.image, model)]
    assert len(windows) > 1
    assert {layer.name for layer in looks[0].layers} <= set(windows[0])
    for layer in looks[0].layers:
        values = np.concatenate([outputs[layer.name].ravel() for outputs in windows])
        limits = np.iinfo(values.dtype)
        assert (layer.low, layer.high, layer.dtype) == (values.min(), values.max(), values.dtype.name)
        assert layer.share_low == (values == limits.min).mean()
        assert layer.share_high == (values == limits.max).mean()
    assert any(layer.share_high > 0 for layer in looks[0].layers)


def test_the_page_says_what_was_found(page: str, looks: list[report.Look]) -> None:
    result = looks[0].result
    for array in (result.image, result.scores, result.labels):
        assert hashlib.sha256(array.tobytes()).hexdigest() in page
    for count in result.counts().values():
        assert f">{count:,}<" in page
    assert result.model.sha256 in page
    assert all(layer.name in page for layer in looks[0].layers)


# -------------------------------------------------------------------------------------------------------- the page


def test_names_are_text_wherever_they_appear(page: str) -> None:
    elements = Elements(page)
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", page)
    assert "&lt;b onmouseover=&quot;x&quot;&gt;&amp;.png" in page


def test_nothing_in_a_name_moves_what_is_near_it() -> None:
    """Directions, C1 controls, joiners, private and unassigned characters are written out; letters are not."""
    for character in "\x00\x1b\x85\x9b\u202e\u2066\u200b\u2028\ue000\ufeff\U000e0001\ud800":
        assert character not in markup.escape(f"a{character}b")
    assert markup.escape("Fußgänger 歩行者 <é>") == "Fußgänger 歩行者 &lt;é&gt;"


def test_a_file_name_that_is_no_text_is_written(looks: list[report.Look], model: api.Model) -> None:
    odd = dataclasses.replace(looks[0], name="caf\udce9.png")
    assert r"caf\udce9.png" in report.page(model, [odd]).decode("utf-8")


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    for tag, attributes in Elements(page).found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_ids_are_unique_and_references_lead_somewhere(page: str) -> None:
    attributes = [found for _, found in Elements(page).found]
    names = [found["id"] for found in attributes if "id" in found]
    assert len(set(names)) == len(names)
    for found in attributes:
        for key in ("aria-labelledby", "aria-describedby", "for"):
            assert found.get(key) is None or found[key] in names
        assert not (found.get("href") or "#main").startswith("#") or (found.get("href") or "#main")[1:] in names


def test_every_picture_has_a_text(page: str) -> None:
    for tag, attributes in Elements(page).found:
        if tag == "img":
            assert attributes.get("alt")
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_writes_one_page(tmp_path: Path, model: api.Model, capsys: Capture) -> None:
    Image.new("L", (9, 5)).save(tmp_path / "a.png")
    out = tmp_path / "r.html"
    arguments = ["report", str(tmp_path / "a.png"), "-w", str(model.path), "--backend", "numpy", "-o", str(out)]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"wrote {out}: 1 image, ")
    assert "three channels are equal" in out.read_text(encoding="utf-8")
    full = len(out.read_bytes())
    assert cli.main([*arguments, "--no-layers"]) == 0
    assert len(out.read_bytes()) < full


def test_a_bad_image_leaves_no_page(tmp_path: Path, model: api.Model, capsys: Capture) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    out = tmp_path / "r.html"
    assert cli.main(["report", str(tmp_path / "bad.png"), "-w", str(model.path), "-o", str(out)]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not out.exists()


def test_a_page_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["report", "none.png", "-o", str(tmp_path / "no" / "r.html")]) == 4
    assert "no folder" in capsys.readouterr().err


def test_a_page_never_replaces_an_image(tmp_path: Path, capsys: Capture) -> None:
    Image.new("L", (9, 5)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert cli.main(["report", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.png")]) == 2
    assert "written as .html or .htm" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


# ------------------------------------------------------------------------------------------------------ in a browser

in_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    with browser.Browser() as found:
        yield found


@pytest.fixture
def shown(chromium: browser.Browser, page: str, tmp_path: Path) -> browser.Browser:
    """The page, opened; its pictures answer to keys and pointer once they are decoded, and say so by a class."""
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    chromium.theme("light")
    chromium.width(1100)
    chromium.open(path)
    chromium.until("!document.querySelector('.image:not(.seen)')")
    return chromium


@in_browser
def test_it_opens_without_complaint_or_request(shown: browser.Browser) -> None:
    assert shown.complaints() == []
    assert [url.rpartition("/")[2] for url in shown.requests()] == ["report.html"]
    assert shown.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert shown.evaluate("document.title").startswith("</title><script>alert(2)</script>: 2 images")
    assert shown.evaluate("document.querySelector('tbody th').textContent").strip() in (
        *HOSTILE,
        r"a & b\u202e\u2066\u200b",
    )


@in_browser
def test_the_browser_would_refuse_to_load_something(shown: browser.Browser) -> None:
    """The canary of the test before: its checks see a request and the policy's refusal."""
    shown.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://localhost:9/x.png'}))")
    shown.until_told("Content Security Policy")


@in_browser
def test_the_keyboard_reaches_everything_in_order(shown: browser.Browser) -> None:
    order = []
    for _ in range(60):
        shown.press("Tab", 9)
        order.append(shown.evaluate("(e => e.id || e.className || e.hash || e.tagName)(document.activeElement)"))
        if order[-1] == "BODY":
            break
    assert order[:5] == ["skip", "#image-1", "#image-2", "stack", "opacity-1"]
    assert order.index("opacity-2") > order.index("SUMMARY") > order.index("opacity-1")
    visible = "(e => e.getBoundingClientRect())(document.querySelector('.skip')).left < 0"
    assert shown.evaluate(visible)


@in_browser
def test_the_slider_moves_with_the_arrow_keys(shown: browser.Browser) -> None:
    shown.evaluate("slider = document.getElementById('opacity-1')")
    shown.evaluate("slider.value = 50, slider.dispatchEvent(new Event('input')), slider.focus()")
    shown.press("ArrowRight", 39)
    opacity = "getComputedStyle(document.getElementById('classes-{}')).opacity"
    assert shown.evaluate(opacity.format(1)) == "0.55"
    assert shown.evaluate(opacity.format(2)) == "0.5"
    assert shown.evaluate("document.getElementById('opacity-value-1').textContent") == "55 %"
    shown.press("End", 35)
    assert shown.evaluate(opacity.format(1)) == "1"


@in_browser
def test_the_cross_tells_class_and_scores(shown: browser.Browser, looks: list[report.Look]) -> None:
    """From the middle one patch to the right and one up, then a pixel down: what is said there is what was found."""
    result = looks[0].result
    height, width = result.labels.shape
    patch, y, x = result.model.info.patch, height // 2, width // 2
    shown.evaluate("document.querySelector('.stack[tabindex]').focus()")
    shown.press("ArrowRight", 39)
    shown.press("ArrowUp", 38)
    x, y = min(x + patch, width - 1), y - patch
    scores = looks[0].cells[y // patch, x // patch]
    margin = int(np.sort(scores)[-1] - np.sort(scores)[-2])
    said = shown.evaluate("document.getElementById('under-1').textContent")
    assert said.startswith(f"x {x}, y {y}: ")
    assert f"cell [{y // patch}, {x // patch}]" in said
    assert f", {margin:,} above " in said
    names = "JSON.parse(document.querySelector('.image').dataset.names)"
    assert shown.evaluate(f"{names}[{result.labels[y, x]}]") in said
    shown.evaluate("document.querySelector('.stack').dispatchEvent(new PointerEvent('pointermove', {clientX: -9}))")
    assert shown.evaluate("document.getElementById('under-1').textContent").startswith("x 0, y ")


@in_browser
def test_a_class_can_be_hidden(shown: browser.Browser, looks: list[report.Look]) -> None:
    seen = """(async () => { const map = document.querySelector('.classes'); await map.decode();
      const canvas = new OffscreenCanvas(map.naturalWidth, map.naturalHeight), drawn = canvas.getContext('2d');
      drawn.drawImage(map, 0, 0);
      const pixels = drawn.getImageData(0, 0, canvas.width, canvas.height).data;
      return pixels.filter((_, i) => i % 4 === 3 && pixels[i]).length; })()"""
    labels = looks[0].result.labels
    largest = int(np.bincount(labels.ravel()).argmax())
    assert shown.evaluate(seen) == labels.size
    shown.evaluate(f"document.querySelector('[data-class=\"{largest}\"]').click()")
    assert shown.evaluate(seen) == int((labels != largest).sum())
    shown.evaluate("document.querySelector('[data-show=\"\"]').click()")
    assert shown.evaluate(seen) == 0
    shown.evaluate("document.querySelector('[data-show=\"1\"]').click()")
    assert shown.evaluate(seen) == labels.size


@in_browser
def test_a_screen_reader_finds_landmarks_names_and_headings(shown: browser.Browser) -> None:
    nodes = [node for node in shown.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles = [node["role"]["value"] for node in nodes]
    assert {"banner", "navigation", "main", "contentinfo"} <= set(roles)
    for node in nodes:
        if node["role"]["value"] in ("slider", "image", "link", "region", "table", "navigation", "DisclosureTriangle"):
            assert node["name"]["value"].strip(), node
    sliders = [node for node in nodes if node["role"]["value"] == "slider"]
    assert [node["name"]["value"] for node in sliders] == ["Opacity of the classes"] * 2
    levels = [p["value"]["value"] for n in nodes for p in n.get("properties", ()) if p["name"] == "level"]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@in_browser
def test_text_has_contrast_in_both_themes(shown: browser.Browser) -> None:
    grounds = []
    for theme in ("light", "dark"):
        shown.theme(theme)
        found: list[tuple[str, float]] = shown.evaluate(browser.CONTRASTS)
        assert {"text", "TD", "DD", "A", "H1", "P"} <= {tag for tag, _ in found}
        assert [entry for entry in found if entry[1] < 4.5] == []
        grounds.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]


@in_browser
@pytest.mark.parametrize("width", [320, 390, 700, 1600])
def test_the_page_never_scrolls_sideways_and_cuts_no_number(shown: browser.Browser, width: int) -> None:
    shown.width(width)
    shown.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert shown.evaluate("document.scrollingElement.scrollWidth") <= width
    assert shown.evaluate(browser.CUT) == []


@in_browser
def test_the_numbers_open_with_a_key(shown: browser.Browser) -> None:
    shown.evaluate("document.querySelector('summary').focus()")
    shown.press("Enter", 13)
    assert shown.evaluate("document.querySelector('details').open")
    assert shown.evaluate("document.querySelectorAll('details[open] tbody tr').length") > 5


@in_browser
def test_the_drawing_of_a_graph_opens(chromium: browser.Browser, tmp_path: Path) -> None:
    from intseg.reports import graph_drawing

    path = tmp_path / "graph.svg"
    path.write_text(graph_drawing.svg(intseg.load()), encoding="utf-8")
    chromium.open(path)
    assert chromium.complaints() == []
    overlaps: Any = chromium.evaluate(
        """[...document.querySelectorAll('g[class]')].filter(g => {
             const box = g.querySelector('rect').getBBox();
             return [...g.querySelectorAll('text')].some(t => t.getBBox().width > box.width); }).length"""
    )
    assert overlaps == 0
