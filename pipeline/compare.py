"""`python -m pipeline.compare [KEY… | experiment=NAME | everything]`: the runs of a store side by side, on one page.

The page is one HTML file that opens offline. `format=md`, `csv` and `json` give the same as text: on the terminal, or
in `output=FILE`. `format=svg chart=ranks` gives one picture of the page. `format=cells output=DIR` keeps one JSON file
a run, and `artifact_root=DIR` reads such a folder like a store. Runs are chosen by the beginning of a report's key or
name, or by the experiment whose runs they are; by default all of the store are taken.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pipeline.comparison import cells, tables
from pipeline.comparison.choice import chosen
from pipeline.comparison.findings import findings
from pipeline.comparison.lines import Line, lines, of_group
from pipeline.comparison.published import HEADING, published
from pipeline.comparison.run import Run
from pipeline.comparison.runs import runs
from pipeline.comparison.sections import KINDS, sections
from pipeline.console.ending import status_of
from pipeline.console.lines import say
from pipeline.console.options import split
from pipeline.engine.store import DEFAULT, VARIABLE, Store
from stages.common.choices import nearest
from stages.common.files import users_path, write_text
from stages.errors import UserError
from stages.report.blocks import Block, Heading, Page, Paragraph, markdown

FORMATS = ("html", "md", "csv", "json", "svg", "cells")
OPTIONS = ("artifact_root", "output", "format", "chart")
USAGE = (
    "python -m pipeline.compare [KEY… | experiment=NAME | everything] [artifact_root=DIR] [output=FILE] "
    f"[format={'|'.join(FORMATS)}] [chart={'|'.join(KINDS)}]"
)

Groups = Sequence[Sequence[Run]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or print the comparison in another format."""
    if status := status_of(lambda: _compare(sys.argv[1:] if arguments is None else arguments)):
        raise SystemExit(status)


def _compare(arguments: Sequence[str]) -> None:
    words, options = split(arguments, OPTIONS)
    wanted = chosen(words, OPTIONS, USAGE)
    form, chart = options.get("format", "html"), options.get("chart", KINDS[0])
    for name, value, there in (("format", form, FORMATS), ("chart", chart, KINDS)):
        if value not in there:
            raise UserError(f"{name}={value}: there is none{nearest(value, there)}. Known: {', '.join(there)}.")
    root = Store.at(options.get("artifact_root", os.environ.get(VARIABLE, DEFAULT))).root
    groups = runs(root, wanted)
    known = lines(groups)
    output = options.get("output", "outputs/compare.html" if form == "html" else "")
    file = users_path(output) if output else None
    if form == "html":
        assert file is not None, "a page has a file"
        from pipeline.comparison.page import html  # Altair, only where a chart is drawn

        write_text(file, html(groups, known, root, file))
        say(_terminal(groups, known))
    elif form == "cells":
        if file is None:
            raise UserError("format=cells writes one file a run. Name their folder: output=DIR.")
        say(f"{len(cells.write(file, groups))} cells")
    else:
        text = _text(form, chart, groups, known)
        if file is None:
            say(text, end="")
            return
        write_text(file, text)
    say(str(file))


def _text(form: str, chart: str, groups: Groups, known: Sequence[Line]) -> str:
    if form == "csv":
        return tables.as_csv(groups)
    if form == "json":
        return tables.as_json(groups)
    if form == "md":
        return markdown(_page(groups, known))
    from pipeline.comparison.charts import svg

    section = next((one for one in sections(groups, known) if one.kind == chart), None)
    if section is None:
        raise UserError(f"chart={chart}: these runs have no numbers for it. `format=html` draws what there is.")
    shown = " ".join(next(iter(control.options)) for control in section.controls[:1]) or section.title
    drawn = section.draw()
    return svg([chart for _, chart in drawn], [title or shown for title, _ in drawn])


def _page(groups: Groups, known: Sequence[Line]) -> Page:
    """Return the comparison without its charts: the sentences, the tables of runs and the numbers of each picture."""
    blocks: list[Block] = [Heading(tables.TITLE, 1)]
    for group, heading in zip(groups, tables.headings(groups), strict=True):
        blocks += [Heading(heading), *map(Paragraph, findings(of_group(known, group)))]
        blocks.append(tables.table(group, tables.apart(groups)))
        if rows := published(group):
            blocks += [Heading(HEADING, 3), rows]
    same = tables.in_common(groups)
    blocks += [Paragraph(same)] if same else []
    seeds = tables.over_seeds(known)
    if seeds:
        blocks += [Heading("Over seeds: mean ± standard deviation"), seeds]
    for section in sections(groups, known):
        if section.numbers:
            blocks += [Heading(section.title), section.numbers, Paragraph(section.note)]
    return Page(tables.TITLE, blocks)


def _terminal(groups: Groups, known: Sequence[Line]) -> str:
    shown = tables.apart(groups)
    parts = [
        "\n".join([heading, *findings(of_group(known, group)), "", tables.text(tables.table(group, shown))])
        for group, heading in zip(groups, tables.headings(groups), strict=True)
    ]
    seeds = tables.over_seeds(known)
    parts += [f"Over seeds: mean ± standard deviation\n{tables.text(seeds)}"] if seeds else []
    return "\n\n".join([*parts, *filter(None, [tables.in_common(groups)]), ""])


if __name__ == "__main__":
    main()
