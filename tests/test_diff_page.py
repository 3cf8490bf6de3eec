"""The page of a comparison: the cause first, then where in tensor, network and classes; in a browser, both themes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from tiny_model import tiny_graph

import intseg
from intseg import store
from intseg.cli import main as cli
from intseg.reports import diff_page, diff_view
from intseg.workbench import diff, sides
from intseg.workbench import trace as traces

Array = Any
NODE = "qkv"


def floor(x: Array, *, weight: Array, bias: Array, mult: Array, shift: Array, **_: Any) -> Array:
    """A linear op that rounds down."""
    y = (x.astype(np.int64) @ weight.astype(np.int64).T + bias) * mult.astype(np.int64) >> shift
    return np.clip(y, -128, 127).astype(np.int8)


@dataclass(frozen=True)
class Case:
    """An image, a model, its golden trace, and what comes out where `qkv` rounds down."""

    image: Array
    model: intseg.Model
    golden: Path
    found: Mapping[str, Array]

    def view(self, found: Mapping[str, Array], seconds: float = diff.SECONDS) -> tuple[diff.Report, diff_view.View]:
        golden = traces.open_trace(self.golden, str(self.model.path))
        other = sides.Arrays(found)
        report = diff.compare(golden, other, diff.Settings(seconds=seconds))
        return report, diff_view.view(report, golden, other)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    store.save(tiny_graph(4), folder / "w.safetensors")
    model = intseg.load(folder / "w.safetensors")
    image = np.random.default_rng(7).integers(0, 256, (40, 56, 3), np.uint8)
    traces.write(folder / "golden.safetensors", image, model)
    found = {
        f"window{i}.{name}": value
        for i, (_, outputs) in enumerate(intseg.trace(image, model, ops={NODE: floor}))
        for name, value in outputs.items()
    }
    return Case(image, model, folder / "golden.safetensors", found)


def test_shares_of_the_network_are_those_of_the_arrays(case: Case) -> None:
    report, view = case.view(case.found)
    golden = traces.open_trace(case.golden, str(case.model.path))
    assert [node.name for node in view.nodes] == [node.name for node in case.model.graph.nodes]
    for node in view.nodes:
        pairs = [(golden.file.read(f"window{w}.{node.name}"), case.found[f"window{w}.{node.name}"]) for w in (0, 1)]
        assert node.size >= sum(a.size for a, _ in pairs)
        assert node.wrong >= sum(int((a != b).sum()) for a, b in pairs)
    assert report.first is not None
    assert {node.name for node in view.nodes if node.wrong} >= {NODE}
    first = next(node.name for node in view.nodes if node.wrong)
    assert first == NODE == report.first.node


def test_the_map_of_the_tensor_holds_every_wrong_element_once(case: Case) -> None:
    report, view = case.view(case.found)
    assert report.first is not None
    assert view.spread is not None
    key = f"window{report.first.window}.{NODE}"
    wrong = traces.open_trace(case.golden, str(case.model.path)).file.read(key) != case.found[key]
    assert view.spread.matrix == wrong.shape
    assert np.array_equal(view.spread.cells, wrong)  # small enough that a cell is an element
    assert [at for at, _, _ in view.spread.listed] == [tuple(map(int, at)) for at in np.argwhere(wrong)[:24]]
    large = np.random.default_rng(1).random((257, 1000)) < 0.01
    cells = diff_view._cells(large)
    assert cells.shape == (64, 96)
    assert cells[0, 0] == large[:4, :10].mean()
    assert cells[-1, -1] == large[252:, 989:].mean()


def test_classes_follow_from_what_is_shown(case: Case) -> None:
    """All nodes, or the faulty one only: the same labels as running with the faulty op."""
    ops = {NODE: lambda *args, **params: ~floor(*args, **params)}
    wanted = intseg.run(case.image, case.model, ops=ops).labels
    assert not np.array_equal(wanted, intseg.run(case.image, case.model, backend="numpy").labels)
    traced = [outputs for _, outputs in intseg.trace(case.image, case.model, ops=ops)]
    every = {f"window{i}.{name}": value for i, outputs in enumerate(traced) for name, value in outputs.items()}
    for found in (every, {name: value for name, value in every.items() if name.endswith(f".{NODE}")}):
        _, view = case.view(found, 0.1)  # no mistake is the cause
        assert view.maps is not None
        assert view.maps.derived
        assert np.array_equal(view.maps.other, wanted)
    _, view = case.view({**case.found, "labels": wanted * 0}, 0.1)
    assert view.maps is not None
    assert not view.maps.derived
    assert not view.maps.other.any()


def test_numbers_outside_of_their_dtype_lead_to_no_classes(case: Case) -> None:
    key = f"window0.{NODE}"
    report, view = case.view({key: case.found[key].astype(np.float64) + 1000}, 0.1)
    assert view.maps is None
    assert "What becomes" not in diff_page.page(report, view, "a", "b")


def test_the_cause_leads_and_the_rest_is_folded(case: Case) -> None:
    page = diff_page.page(*case.view(case.found), "golden & co", "<other>")
    parts = ("Cause: round down (floor)", "First wrong element", "Where in the tensor", "Where in the network")
    places = [page.index(part) for part in (*parts, "What becomes of the classes", "<details>")]
    assert places == sorted(places)
    assert "golden &amp; co" in page
    assert "&lt;other&gt;" in page
    assert not re.search(r"https?:|<script|@import|url\(", page)
    assert all(source.startswith("data:image/") for source in re.findall('src="([^"]*)"', page))


def test_the_command_writes_it(case: Case, tmp_path: Path) -> None:
    np.savez(tmp_path / "found.npz", **case.found)
    out = tmp_path / "r.html"
    weights = str(case.model.path)
    assert cli.main(["diff", str(case.golden), str(tmp_path / "found.npz"), "-w", weights, "--html", str(out)]) == 1
    assert "Cause: round down" in out.read_text()
    assert cli.main(["diff", str(case.golden), str(case.golden), "-w", weights, "--html", str(out)]) == 0
    assert ">Equal</h1>" in out.read_text()


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def shown(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    path = tmp_path_factory.mktemp("page") / "diff.html"
    path.write_text(diff_page.page(*case.view(case.found), "golden", "other"), encoding="utf-8")
    with browser.Browser() as found:
        found.open(path)
        found.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        yield found


@pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")
def test_it_reads_well_on_every_screen(shown: browser.Browser) -> None:
    assert shown.complaints() == []
    assert [url.rpartition("/")[2] for url in shown.requests()] == ["diff.html"]
    for theme in ("light", "dark"):
        shown.theme(theme)
        found: list[tuple[str, float]] = shown.evaluate(browser.CONTRASTS)
        assert {"TD", "H1", "H2", "P", "SPAN"} <= {tag for tag, _ in found}
        assert [entry for entry in found if entry[1] < 4.5] == []
    for width in (320, 390, 700, 1600):
        shown.width(width)
        assert shown.evaluate("document.scrollingElement.scrollWidth") <= width
        assert shown.evaluate(browser.CUT) == []
