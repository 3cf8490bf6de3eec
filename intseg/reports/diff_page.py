"""A comparison as one HTML file that opens offline: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from intseg.reports.diff_text import hexadecimal
from intseg.reports.markup import escape
from intseg.workbench.diff import Difference, Report
from intseg.workbench.search import Explanation

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
td.n { text-align: right; font-family: ui-monospace, monospace; white-space: nowrap; }
.bar { background: #c0392b; height: .8rem; display: inline-block; min-width: 2px; }
.ok { color: #1e7e34; } .bad { color: #c0392b; } code { font-family: ui-monospace, monospace; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } td, th { border-color: #444; } }
"""

_MAX_OTHERS = 200


def page(report: Report, golden: str, other: str) -> str:
    """The report as an HTML document; `golden` and `other` are the names of what was compared."""
    title = "equal" if report.first is None else f"first difference at {report.first.node}"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>\n{_STYLE}</style></head><body>",
        f'<h1 class="{"ok" if report.equal else "bad"}">{escape(title.capitalize())}</h1>',
        f"<p><code>{escape(golden)}</code> (golden) against <code>{escape(other)}</code>: "
        f"{report.compared} tensors compared.</p>",
        *(f"<p>Note: {escape(note)}.</p>" for note in report.notes),
    ]
    if report.first is not None:
        parts += [*_first(report.first), *_cause(report.explanation), *_others(report)]
    return "\n".join([*parts, "</body></html>", ""])


def _row(*cells: object, numbers: bool = True) -> str:
    kind = ' class="n"' if numbers else ""
    return f"<tr><td>{escape(cells[0])}</td>" + "".join(f"<td{kind}>{escape(c)}</td>" for c in cells[1:]) + "</tr>"


def _first(first: Difference) -> Iterator[str]:
    where = f"Window {first.window}, node " if first.window >= 0 else ""
    yield f"<h2>{where}<code>{escape(first.node)}</code>{f' ({escape(first.op)})' if first.op else ''}</h2>"
    yield f"<p>{escape(first.dtype)} {list(first.shape)}. {first.count} of {first.size} elements differ, "
    yield f"by at most {first.largest}: {escape(first.pattern)}. First index {list(first.index)}:</p>"
    yield "<table><tr><th></th><th>decimal</th><th>hex</th><th>real</th></tr>"
    for word, value, real in (("expected", first.expected, first.reals[0]), ("found", first.found, first.reals[1])):
        yield _row(word, value, hexadecimal(value, first.dtype), "" if real is None else f"{real:.9g}")
    yield "</table>"
    if first.register:
        name, at, expected, found = first.register
        yield f"<p>First register that differs: <code>{escape(name)}</code> at {list(at)}, expected {expected}, "
        yield f"found {found}.</p>"
    yield "<h2>Differences, found minus expected</h2><table>"
    widest = max(count for _, count in first.histogram)
    for label, count in first.histogram:
        bar = f'<span class="bar" style="width:{max(1, 100 * count // widest) / 5:.1f}rem"></span>'
        yield f'<tr><td class="n">{escape(label)}</td><td class="n">{count}</td><td>{bar}</td></tr>'
    yield "</table>"


def _cause(found: Explanation | None) -> Iterator[str]:
    if found is None:
        return
    yield "<h2>Cause</h2>"
    if found.matches:
        where = f"the unseen node <code>{escape(found.node)}</code>" if found.node else "the node"
        yield f"<p>Recomputing {where} from the golden inputs reproduces the other side exactly with</p><ol>"
        yield from (f"<li>{escape(name)}</li>" for name in found.names())
        yield "</ol>"
        return
    searched = "" if found.complete else "; the time was up before all pairs were tried"
    yield f"<p>None of {found.tried} hypotheses and pairs reproduces the other side exactly{searched}.</p>"
    if found.partial:
        yield "<table><tr><th>hypothesis</th><th>of the wrong elements</th></tr>"
        yield from (_row(one.name, f"{100 * share:.1f} %") for one, share in found.partial)
        yield "</table>"


def _others(report: Report) -> Iterator[str]:
    if not report.others:
        return
    yield f"<h2>{len(report.others)} more tensors differ after it</h2><table>"
    yield from (_row(name, count) for name, count in report.others[:_MAX_OTHERS])
    yield "</table>"
    if len(report.others) > _MAX_OTHERS:
        yield f"<p>... and {len(report.others) - _MAX_OTHERS} more.</p>"
