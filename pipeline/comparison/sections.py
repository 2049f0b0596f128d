"""The pictures of the comparison, each with its legend, its choices, a note on what it shows, and its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.comparison import costs, curves, kept, ranks, ratios, tables
from pipeline.comparison.legend import BROKEN, DASHES, Control, Entry, entry
from pipeline.comparison.lines import Line
from pipeline.comparison.run import Run
from pipeline.comparison.scores import QUALITY
from stages.report.blocks import Table
from stages.report.palette import SERIES, css
from stages.stage import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A picture of one or more charts.

    Attributes:
        kind: what it is called on the command line.
        title: its heading.
        note: what it shows.
        draw: returns (title, chart) of each chart. Drawing loads Altair.
        entries: its legend; empty where it needs none.
        controls: the choices that a reader has.
        numbers: what it draws, as a table; None where the table of runs has it.
    """

    kind: str
    title: str
    note: str
    draw: Callable[[], list[tuple[str, Any]]]
    entries: Sequence[Entry] = field(default_factory=tuple)
    controls: Sequence[Control] = field(default_factory=tuple)
    numbers: Table | None = None


RATES = {
    "shared": "Test perplexity, one rate for all",
    "tuned": "Test perplexity, each at its own rate",
    "rate": "The rate found",
}
"""What each chart of ranks shows."""
KINDS = ("curves", "ranks", "ratios", "costs", "kept")


def sections(groups: Sequence[Sequence[Run]], lines: Sequence[Line]) -> Iterator[Section]:
    """Yield the sections that the runs have numbers for."""
    every = [run for group in groups for run in group]
    yield from _curves(lines)
    yield from _ranks(every)
    yield from _ratios(every)
    yield from _costs(lines, groups)
    yield from _kept(lines)


def _curves(lines: Sequence[Line]) -> Iterator[Section]:
    points = curves.points(lines)
    if not points:
        return
    drawn = {point["line"] for point in points}
    entries = [entry(line.number, line.label) for line in lines if line.number in drawn]
    measures = [measure for measure in curves.MEASURES if any(point["measure"] == measure for point in points)]
    over = {"tokens trained on": "tokens", "minutes": "minutes"}
    timed = any("minutes" in point for point in points)
    controls = [
        Control(parameter="measure", label="Show", options={measure: measure for measure in measures}),
        Control(parameter="over", label="over", options=over if timed else {"tokens trained on": "tokens"}),
    ]
    note = "Scores of rows held out from the recovery data. A band reaches from the lowest seed to the highest. "
    note += "Curves of other data are of other rows: compare them by the table. Minutes are a recovery's seconds, "
    note += "shared out by tokens."
    yield Section(
        kind="curves",
        title="Recovery curves",
        note=note,
        draw=lambda: [("", _charts().curves(points, entries, controls))],
        entries=entries,
        controls=controls,
    )


def _ranks(every: Sequence[Run]) -> Iterator[Section]:
    for report, cells in ranks.sweeps(every):
        points = ranks.points(cells)
        names = list(dict.fromkeys(point["adapter"] for point in points))
        entries = [entry(place, name) for place, name in enumerate(names)]
        placed = [_beside(point, names) for point in points]
        yield Section(
            kind="ranks",
            title=f"Rank against score: {ranks.title(report)}",
            note=ranks.note(report),
            draw=partial(_drawn_ranks, placed, entries),
            entries=entries,
            numbers=ranks.table(cells),
        )


def _drawn_ranks(points: Sequence[JSON], entries: Sequence[Entry]) -> list[tuple[str, Any]]:
    shown = [at for at in RATES if any(point["at"] == at for point in points)]
    return [(RATES[at], _charts().ranks(points, entries, at)) for at in shown]


def _drawn_ratios(points: Sequence[JSON], entries: Sequence[Entry], dense: float | None) -> list[tuple[str, Any]]:
    return [("Held-out perplexity", _charts().ratios(points, entries, dense))]


def _beside(point: JSON, names: Sequence[str]) -> JSON:
    """Return the point with its line, slightly beside its rank, so that whiskers don't hide each other."""
    place = names.index(point["adapter"])
    shift = 2 ** (0.12 * (place - (len(names) - 1) / 2))
    return {**point, "line": place, "name": point["adapter"], "place": shift * point["rank"]}


def _ratios(every: Sequence[Run]) -> Iterator[Section]:
    for group in ratios.judged_alike(run.report for run in every):
        cuts = ratios.prunings(group)
        entries: list[Entry] = []
        points: list[JSON] = []
        for name, colour, dash, models in _ratio_lines(cuts):
            number = len(entries)
            entries.append(Entry(number=number, name=name, colour=colour, dash=dash))
            for point in models.values():
                low, high = point.interval or (point.perplexity, point.perplexity)
                at = {"line": number, "name": name, "removed": 100 * point.removed}
                points.append(at | {"value": point.perplexity, "low": low, "high": high})
        if len({round(point["removed"]) for point in points}) < 2:
            continue
        yield Section(
            kind="ratios",
            title=f"Ratio against score: {group[0]['model']}",
            note=ratios.note(group),
            draw=partial(_drawn_ratios, points, entries, ratios.dense(group)),
            entries=entries,
            numbers=ratios.table(group),
        )


def _ratio_lines(cuts: Sequence[ratios.Pruning]) -> Iterator[tuple[str, str, Sequence[int], ratios.Models]]:
    """Yield (name, colour, dash, models) of each line. Several ways of pruning have a colour each, else recoveries."""
    for place, cut in enumerate(cuts):
        colour = SERIES[place % len(SERIES)] if len(cuts) > 1 else css("muted")
        yield f"{cut.name}, before recovery", colour, BROKEN, cut.pruned
        for turn, (name, models) in enumerate(cut.recovered.items()):
            if len(cuts) > 1:
                yield name, colour, DASHES[turn % len(DASHES)], models
            else:
                yield name, SERIES[turn % len(SERIES)], DASHES[turn // len(SERIES) % len(DASHES)], models


def _costs(lines: Sequence[Line], groups: Sequence[Sequence[Run]]) -> Iterator[Section]:
    points = costs.points(lines, groups)
    shown = [cost for cost in costs.COSTS if len({p["x"] for p in points if p["cost"] == cost}) > 1]
    if not shown:
        return
    drawn = {point["line"] for point in points}
    entries = [entry(line.number, line.label) for line in lines if line.number in drawn]
    measures = [score.name for score in QUALITY if any(point["measure"] == score.name for point in points)]
    judged = {heading: place for place, heading in enumerate(tables.headings(groups))}
    judged = {name: place for name, place in judged.items() if any(point["group"] == place for point in points)}
    drawn_of = Counter(point["group"] for point in points if point["measure"] == measures[0])
    judged = dict(sorted(judged.items(), key=lambda one: -drawn_of[one[1]]))
    controls = [Control(parameter="measure", label="Show", options={name: name for name in measures})]
    controls.append(Control(parameter="group", label="of runs", options=judged))
    note = "The last model of every run, with 95 % intervals. The dotted line is the Pareto front: no other run is at "
    note += "least as good in both. Times and memory are of runs that were measured on one machine in one "
    note += "way. A time is a multiple of the dense model's, which was measured by turns with it."
    yield Section(
        kind="costs",
        title="Score against cost",
        note=note,
        draw=lambda: [("", _charts().costs(points, entries, controls, cost)) for cost in shown],
        entries=entries,
        controls=controls,
    )


def _kept(lines: Sequence[Line]) -> Iterator[Section]:
    cells = kept.cells(lines)
    if all(cell["share"] == 1 for cell in cells):
        return
    yield Section(
        kind="kept",
        title="What was cut",
        note="What each layer kept of the dense model's: the fuller the cell, the more. A row is a pruned model.",
        draw=lambda: [(f"{part.capitalize()} kept, by layer", _charts().kept(cells, part)) for part in kept.PARTS],
        numbers=kept.table(lines),
    )


def _charts() -> Any:
    """Return the module that draws. It loads Altair, which takes a second."""
    from pipeline.comparison import charts

    return charts
