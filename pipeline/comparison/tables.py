"""The table of runs, and its spellings for programs: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from statistics import mean, stdev

from pipeline.comparison.columns import SETTINGS, SHARES, Column, alike, columns
from pipeline.comparison.lines import Line, ranges
from pipeline.comparison.run import Run
from pipeline.comparison.scores import SCORES
from stages.report import wording as w
from stages.report.blocks import Cell, Table
from stages.report.sections.protocol import brief

TITLE = "Runs side by side"


def table(group: Sequence[Run], shown: Sequence[Column]) -> Table:
    """Return the shown columns of the runs of a group, one row a run."""
    rows = [[str(run.number), *(column.cell(run) for column in shown)] for run in group]
    words = [place for place, column in enumerate(shown, start=1) if column.words]
    return Table(["run", *(column.name for column in shown)], rows, words=words)


def apart(groups: Sequence[Sequence[Run]]) -> list[Column]:
    """Return the columns that set the runs apart, and all results."""
    every = [run for group in groups for run in group]
    return [column for column in columns(groups) if not alike(column, every)]


def in_common(groups: Sequence[Sequence[Run]]) -> str:
    """Return the choices that are the same in all runs as a sentence; empty where there are none."""
    every = [run for group in groups for run in group]
    same = [(column.name, column.cell(every[0])) for column in columns(groups) if alike(column, every)]
    return f"Alike in all runs: {'; '.join(f'{name} {cell}' for name, cell in same)}." if same else ""


def heading(group: Sequence[Run]) -> str:
    """Return how a group was judged: the protocol, the tasks by name and the examples shown."""
    report = group[0].report
    protocol, tasks, shots = brief(report)
    if not report["protocol"]:
        return "Not judged"
    labels = [task["label"] for task in report["tasks"].values()]
    named = f" ({', '.join(labels)})" if len(labels) > 1 else ""
    examples = "" if shots == w.DASH else ", zero-shot" if shots == "0" else f", {shots} shots"
    return f"Judged by {protocol}, {tasks}{named}{examples}"


def headings(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return each group's heading, with its runs' numbers where there are several groups.

    Groups that differ in their tokens, or rows, alone have their models' names too.
    """
    if len(groups) == 1:
        return [heading(groups[0])]
    told = [heading(group) for group in groups]
    models = [w.listing(list(dict.fromkeys(run.report["model"] for run in group))) for group in groups]
    named = {one: {own for said, own in zip(told, models, strict=True) if said == one} for one in told}
    return [
        f"{said}{f', {own}' if len(named[said]) > 1 else ''}: {ranges_of(group)}"
        for said, own, group in zip(told, models, groups, strict=True)
    ]


def ranges_of(group: Sequence[Run]) -> str:
    """Return "run 3" or "runs 1–4"."""
    return f"run{'s' if len(group) > 1 else ''} {ranges([run.number for run in group])}"


def over_seeds(lines: Sequence[Line]) -> Table | None:
    """Return mean ± standard deviation of the runs that differ in nothing but seeds; None without such runs."""
    several = [line for line in lines if len(line.runs) > 1]
    if not several:
        return None
    settings = [column for column in SETTINGS if column.name not in ("seed", "tokens")]
    heads = ["runs", *(column.name for column in settings), "judged by", "seeds"]
    results = [*(score.name for score in SCORES), *(column.name for column in SHARES)]
    words = [place for place, column in enumerate(settings, start=1) if column.words] + [len(settings) + 1]
    return Table([*heads, *results], [_over_seeds(line, settings) for line in several], words=words)


def _over_seeds(line: Line, settings: Sequence[Column]) -> list[Cell]:
    numbers = w.listing([str(run.number) for run in line.runs])
    judged = " ".join(part for part in brief(line.runs[0].report) if part != w.DASH)
    row: list[Cell] = [numbers, *(column.cell(line.runs[0]) for column in settings), judged, str(len(line.runs))]
    for score in SCORES:
        found = [estimate.value for run in line.runs if (estimate := score.last(run))]
        row.append(_spread(found, len(line.runs), score.write))
    for column in SHARES:
        shares = [float(value) for run in line.runs if (value := column.value(run)) is not None]
        row.append(_spread(shares, len(line.runs), lambda value: w.percent(value, digits=0)))
    return row


def _spread(known: Sequence[float], of: int, write: w.Write) -> Cell:
    """Return mean ± standard deviation. Where some runs lack the number, return how many have it."""
    if len(known) < of:
        return (w.DASH, f"{len(known)} of {of} runs") if known else w.DASH
    return f"{write(mean(known))} ± {w.bare(write(stdev(known)))}"


def text(table: Table) -> str:
    """Return a table as aligned text for a terminal."""
    cells = [[cell if isinstance(cell, str) else " ".join(filter(None, cell)) for cell in row] for row in table.rows]
    rows = [list(table.columns), *cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = ["<" if place in (0, *table.words) else ">" for place in range(len(widths))]
    formats = [f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True)]
    return "\n".join("  ".join(map(str.format, formats, row)).rstrip() for row in rows)


def records(groups: Sequence[Sequence[Run]]) -> list[dict[str, object]]:
    """Return a flat record a run: its values as numbers, each score with the ends of its interval.

    "judged" numbers the ways of judging. Scores of runs that have other numbers there can't be compared.
    """
    shown = columns(groups)
    found = []
    for place, group in enumerate(groups, start=1):
        for run in group:
            record: dict[str, object] = {
                "run": run.number,
                "judged": place,
                "judged by": heading(group).removeprefix("Judged by "),
            }
            for column in shown:
                record[column.name] = column.value(run)
                if column.score:
                    estimate = column.score.last(run)
                    ends = estimate.interval if estimate and estimate.interval else (None, None)
                    record |= {f"{column.name}, low": ends[0], f"{column.name}, high": ends[1]}
            found.append(record)
    return found


def as_csv(groups: Sequence[Sequence[Run]]) -> str:
    """Return the records as CSV with a head. A missing value is empty."""
    found = records(groups)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def as_json(groups: Sequence[Sequence[Run]]) -> str:
    """Return the records as a JSON array."""
    return json.dumps(records(groups), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
