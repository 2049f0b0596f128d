"""The comparison as one HTML page that opens offline: sentences, charts, the table of runs.

The page is the reports' skeleton (`stages/report/page.html`) with more style and a script. Everything that comes from
a configuration is escaped: as HTML in the markup, and as JSON in which no tag can begin in the charts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.comparison import charts, tables
from pipeline.comparison.columns import BEST, NOISE, Column, alike, columns
from pipeline.comparison.findings import DOUBTS, findings
from pipeline.comparison.legend import Control, Entry
from pipeline.comparison.lines import Line, of_group
from pipeline.comparison.published import HEADING, published
from pipeline.comparison.run import Run
from pipeline.comparison.scores import TOO_FEW
from pipeline.comparison.sections import Section, sections
from stages.report import wording as w
from stages.report.blocks import Folded, Heading, Paragraph, html_cell, html_of, skeleton
from stages.stage import JSON

CHOICES = range(2, 25)
"""How many values a column of words has that gets a filter of its own."""
NOTE = (
    "Scores are of the last model of a run, recovered or pruned, with 95 % intervals over documents. Perplexity is the "
    "mean over the kinds of text that nothing was fitted to. What is within noise of the best run is grey, and marked "
    f"{NOISE}: such a difference is taken from both runs' differences from the dense model. Recovered and retained are "
    "measured against the reference, with the report's own intervals. Test perplexity is of rows held out from the "
    "recovery data. Tables of other headings were judged in other ways: don't compare across them."
)


def html(groups: Sequence[Sequence[Run]], lines: Sequence[Line], root: Path, output: Path) -> str:
    """Return the page. Links to the runs' reports are relative to `output`, where they can be."""
    drawn = list(sections(groups, lines))
    specifications: list[JSON] = []
    body = [*_opening(groups, lines, root), *(_section(section, specifications) for section in drawn)]
    body += [*_results(groups, lines, output), *_scripts(specifications)]
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return skeleton(tables.TITLE, "\n".join(body), kind="broad", head=f"<style>\n{style}</style>")


def warning(groups: Sequence[Sequence[Run]]) -> list[Paragraph]:
    """Return a caution on the runs that trained on judged tasks, where there are any."""
    warned = [str(run.number) for group in groups for run in group if run.report["caution"]]
    if not warned:
        return []
    fitted = "trained on train splits of judged tasks: their accuracy and bits per byte mix recovery with task fitting."
    return [Paragraph(f"Run{'s' if len(warned) > 1 else ''} {w.listing(warned)} {fitted}", "caution")]


def _opening(groups: Sequence[Sequence[Run]], lines: Sequence[Line], root: Path) -> Iterator[str]:
    count = sum(map(len, groups))
    # The store's name, and not its path: the page may be shown to others.
    runs = f"{w.count(count)} run{'s' if count > 1 else ''} of the store {root.name}"
    yield html_of([Heading(tables.TITLE, 1), Paragraph(runs, "note")])
    told = zip(tables.headings(groups), (findings(of_group(lines, group)) for group in groups), strict=True)
    found = [(heading, sentences) for heading, sentences in told if sentences]
    if not found:
        return
    yield html_of([Heading("What separates")])
    for heading, sentences in found:
        if len(groups) > 1:
            yield html_of([Heading(heading, 3)])
        items = (f'<li class="{_doubt(sentence)}">{escape(sentence)}</li>' for sentence in sentences)
        yield f'<ul class="findings">{"".join(items)}</ul>'


def _doubt(sentence: str) -> str:
    return "doubt" if sentence.startswith(DOUBTS) else "clear"


def _section(section: Section, specifications: list[JSON]) -> str:
    """Return a section's markup, and add its charts to the page's specifications."""
    figures = []
    for title, chart in section.draw():
        description = escape(". ".join(filter(None, (section.title, title, "The numbers are in a table on this page"))))
        head = f"<h3>{escape(title)}</h3>" if title else ""
        place = len(specifications)
        specifications.append(charts.specification(chart, description))
        figures.append(f'<figure>{head}<div class="chart" data-chart="{place}"></div></figure>')
    parts = [
        f"<h2>{escape(section.title)}</h2>",
        _controls(section.controls),
        _legend(section.entries),
        f'<div class="panels">{"".join(figures)}</div>',
        html_of([Paragraph(section.note, "note")]),
        html_of([Folded("The numbers", section.numbers)]) if section.numbers else "",
    ]
    return f'<section class="charts {section.kind}">{"".join(parts)}</section>'


def _controls(controls: Sequence[Control]) -> str:
    told = "".join(_control(control) for control in controls)
    return f'<div class="choices">{told}</div>' if told else ""


def _control(control: Control) -> str:
    if len(control.options) == 1:
        return f"<label>{escape(control.label)} {escape(next(iter(control.options)))}</label>"
    options = "".join(f"<option>{escape(name)}</option>" for name in control.options)
    values = escape(json.dumps(list(control.options.values())))
    return (
        f'<label>{escape(control.label)} <select data-parameter="{control.parameter}" data-values="{values}">'
        f"{options}</select></label>"
    )


def _legend(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-line="{entry.number}">'
        f'<svg viewBox="0 0 26 10" aria-hidden="true"><line x1="0" x2="26" y1="5" y2="5" stroke="{entry.colour}" '
        f'stroke-width="3" stroke-dasharray="{_dashes(entry)}"/></svg>{escape(entry.name)}</button>'
        for entry in entries
    )
    every = '<button type="button" class="all">all or none</button>' if len(entries) > 2 else ""
    return f'<div class="legend" role="group" aria-label="Shown in the chart" tabindex="0">{buttons}{every}</div>'


def _dashes(entry: Entry) -> str:
    return " ".join(map(str, entry.dash)) if entry.dash[1] else "none"


def _results(groups: Sequence[Sequence[Run]], lines: Sequence[Line], output: Path) -> Iterator[str]:
    shown = columns(groups)
    every = [run for group in groups for run in group]
    same = {column.name for column in shown if alike(column, every)}
    yield f'<section class="results"><h2>Every run</h2>{_tools(shown, every, bool(same))}'
    if same:
        yield html_of([Paragraph(tables.in_common(groups), "note")])
    for group, heading in zip(groups, tables.headings(groups), strict=True):
        yield html_of([Heading(heading, 3)])
        yield f'<div class="wide runs" tabindex="0" role="region" aria-label="{escape(heading)}"><table class="folded">'
        yield f"<thead><tr>{_heads(shown, same)}</tr></thead><tbody>"
        yield from (_row(run, shown, same, output) for run in group)
        yield "</tbody></table></div>"
        if rows := published(group):
            yield html_of([Heading(HEADING, 3), rows])
    yield html_of([Paragraph(NOTE, "note"), *warning(groups)])
    seeds = tables.over_seeds(lines)
    if seeds:
        note = "Runs that differ in nothing but their seeds: mean ± standard deviation between the runs."
        yield html_of([Heading("Over seeds", 3), seeds, Paragraph(note, "note")])
    yield "</section>"


def _tools(shown: Sequence[Column], every: Sequence[Run], folds: bool) -> str:
    """Return the search field and the filters, which the script shows."""
    filters = []
    for place, column in enumerate(shown, start=1):
        values = sorted({str(value) for run in every if (value := column.value(run)) is not None})
        if column.setting and column.words and len(values) in CHOICES:
            options = "".join(f"<option>{escape(value)}</option>" for value in ("any", *values))
            filters.append(f'<label>{escape(column.name)} <select data-column="{place}">{options}</select></label>')
    fold = '<label><input type="checkbox"> columns that are alike in all runs</label>' if folds else ""
    fields = ['<label>Search <input type="search" autocomplete="off"></label>', *filters, fold]
    return f'<form class="tools" role="search" hidden>{"".join(fields)}<output role="status"></output></form>'


def _heads(shown: Sequence[Column], same: set[str]) -> str:
    heads = [("run", "words"), *((column.name, _kind(column, same)) for column in shown)]
    return "".join(
        f'<th scope="col" class="{kind}"><button type="button">{escape(name)}</button></th>' for name, kind in heads
    )


def _kind(column: Column, same: set[str]) -> str:
    return f"{'words' if column.words else 'number'}{' alike' if column.name in same else ''}"


def _row(run: Run, shown: Sequence[Column], same: set[str], output: Path) -> str:
    number = str(run.number)
    if (run.directory / "report.html").is_file():
        target = escape(_link(run.directory / "report.html", output))
        number = f'<a href="{target}" aria-label="Report of run {run.number}">{run.number}</a>'
    cells = "".join(_cell(run, column, same) for column in shown)
    return f'<tr><th scope="row" class="number" data-value="{run.number}">{number}</th>{cells}</tr>'


def _cell(run: Run, column: Column, same: set[str]) -> str:
    cell, value = column.cell(run), column.value(run)
    remark = cell[1] if column.score and isinstance(cell, tuple) else ""
    stands = " noise" if remark.startswith((NOISE, TOO_FEW)) else " best" if remark.startswith(BEST) else ""
    data = "" if value is None else f' data-value="{escape(str(value))}"'
    return f'<td class="{_kind(column, same)}{stands}"{data}>{html_cell(cell)}</td>'


def _link(target: Path, output: Path) -> str:
    """Return where a report lies from the page, so that both can be moved together."""
    return quote(Path(os.path.relpath(target, output.parent)).as_posix())


def _scripts(specifications: Sequence[JSON]) -> Iterator[str]:
    behaviour = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    yield "<noscript><p>The charts need JavaScript. All numbers are in the tables.</p></noscript>"
    drawn = _safe_json({"charts": specifications, "config": charts.CONFIG})
    yield f'<script type="application/json" id="charts">{drawn}</script>'
    yield f"<script>{_safe_script(charts.script())}</script>"
    yield f"<script>{_safe_script(behaviour)}</script>"


def _safe_json(value: Any) -> str:
    """Return JSON that can stand in a script element: no tag and no comment can begin in it."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e")


def _safe_script(code: str) -> str:
    """Return a script with no end tag and no comment's beginning in it."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")
