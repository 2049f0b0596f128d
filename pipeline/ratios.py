"""`python -m pipeline.ratios [artifact_root=DIR] [output=FILE.svg]`: held-out perplexity by how much was removed.

The command reads the reports of a store. It prints one Markdown table for each dense model and choice of held-out text,
and draws the first. A line is a way of pruning, or a recovery of its models. Runs of a line differ in nothing but how
much was removed, and in seeds. Runs without a recovery (adapter=none) are points of the way of pruning alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.compare import adapter_of
from pipeline.console.options import show
from pipeline.planning.keys import differences, flatten
from pipeline.recoveries import reports, without_seeds
from pipeline.schema.written import written
from stages.common.files import write_text
from stages.errors import UserError
from stages.prune.criteria.registry import CRITERIA
from stages.report import wording as w
from stages.report.blocks import Cell, Heading, Page, Paragraph, Table, markdown
from stages.report.ratio_figure import Point, Pruning, ratios_svg
from stages.report.sections.cells import valued
from stages.report.verdict import label
from stages.stage import JSON

COLUMNS = ("recipe", "removed", "pruned", "recovered", "over dense")
AMOUNTS = ("ratio", "megabytes", "channel_ratio", "layer_ratios", "steps")
"""Options of pruning that say how much goes, or are settled by that."""
BEST = "best"
SETTLED = ("dtype", "seed", "steps", "calibration.data")
"""Options of `prune=best` that a plan replaces by what they mean."""

Models = dict[float, Point]
"""The models of a line by the ratio that was asked for."""


def judged_alike(found: Iterable[JSON]) -> list[list[JSON]]:
    """Return the reports that can be drawn, in groups of one dense model judged on one choice of text; largest first.

    Left out are runs whose text was not judged by kinds, and those that removed no parameters.

    Raises:
        UserError: there is none.
    """
    groups: dict[Hashable, list[JSON]] = {}
    for report in found:
        if report["params"]["ratio_achieved"] and (report["texts"] or {}).get("mean"):
            groups.setdefault(_judged(report), []).append(report)
    if not groups:
        raise UserError(
            "no run in this store removed parameters and was judged on held-out text. Make one with: make recover; "
            "if they are kept elsewhere, name the store: artifact_root=DIR."
        )
    return sorted(groups.values(), key=lambda group: -len(group))


def prunings(group: Sequence[JSON]) -> list[Pruning]:
    """Return the ways of pruning among reports that were judged alike, by name, each with its recoveries."""
    cuts = _told_apart([(_cut_name(report), _cut(report), report) for report in group])
    return [Pruning(name=name, pruned=_models(runs, "pruned"), recovered=_recovered(name, runs)) for name, runs in cuts]


def page(group: Sequence[JSON]) -> Page:
    """Return the table of reports that were judged alike, under a title and over a note on what was judged."""
    texts, dense = group[0]["texts"], _dense(group)
    over = texts["mean"]["over"]
    kinds = w.listing([label(texts, kind) for kind in over])
    counts = [w.count(texts["kinds"][kind]["documents"]) for kind in over]
    documents = f"{counts[0]} documents of each" if len(set(counts)) == 1 else f"{w.listing(counts)} documents"
    rows = [row for pruning in prunings(group) for row in _rows_of(pruning, dense)]
    note = (
        f"Perplexity of held-out text ({kinds}; {documents}): the geometric mean over kinds that nothing was "
        f"fitted to, with 95{w.PERCENT} intervals over documents. Dense: {w.perplexity(dense)}. Runs that differ only "
        "in seeds are one row: their geometric mean, with the lowest and the highest end of their intervals."
    )
    title = f"{group[0]['model']} by how much was removed"
    return Page(title, [Heading(title, 3), Table(COLUMNS, rows), Paragraph(note, "note")])


def _judged(report: JSON) -> Hashable:
    texts = report["texts"]
    kinds = [texts["kinds"][kind] for kind in texts["mean"]["over"]]
    read = [(kind["label"], kind["sha256"], kind["documents"]) for kind in kinds]
    return (report["model"], json.dumps(report["configuration"].get("model"), sort_keys=True), *read)


def _cut(report: JSON) -> JSON:
    """Return what decides the pruned model, but for how much goes and for seeds."""
    configuration = without_seeds(report["configuration"])
    prune = {name: value for name, value in configuration.get("prune", {}).items() if name not in AMOUNTS}
    criterion = CRITERIA.get(report["prune"])
    if criterion is not None and not criterion.reads_text:
        return {"prune": prune}
    return {"prune": prune, "calibration": _rows(configuration, "calibration") or _rows(configuration, "data")}


def _recovery(report: JSON) -> JSON:
    """Return what decides the recovery of a pruned model, but for seeds."""
    configuration = without_seeds(report["configuration"])
    return {**configuration.get("recover", {}), "data": _rows(configuration, "data")}


def _rows(configuration: JSON, role: str) -> JSON:
    """Return the configurations of the rows of a role and of the data sets that they come from."""
    return {
        name.removeprefix(role).removeprefix("-") or "all": value
        for name, value in configuration.items()
        if name == role or name.startswith(f"{role}-")
    }


def _cut_name(report: JSON) -> str:
    given = flatten(report["configuration"].get("prune", {}))
    best = {name: value for name, value in flatten(written("prune", BEST)).items() if name not in SETTLED}
    return f"prune={BEST if best.items() <= given.items() else report['prune']}"


def _recovered(cut: str, runs: Sequence[JSON]) -> dict[str, Models]:
    recovered = [report for report in runs if "recovered" in report["texts"]["mean"]]
    names = [f"{cut}, {adapter_of(report)}, data={report['data']}" for report in recovered]
    lines = [(name, _recovery(report), report) for name, report in zip(names, recovered, strict=True)]
    return {name: _models(own, "recovered") for name, own in _told_apart(lines)}


def _told_apart(runs: Sequence[tuple[str, JSON, JSON]]) -> list[tuple[str, list[JSON]]]:
    """Return (name, reports) of each line, from (name, settings, report) of each run, in the order of names.

    A line has one name and one choice of settings. Lines of one name get the settings in which they differ added to it.
    """
    lines: dict[str, dict[str, tuple[JSON, list[JSON]]]] = {}
    for name, settings, report in runs:
        own = lines.setdefault(name, {}).setdefault(json.dumps(settings, sort_keys=True), (settings, []))
        own[1].append(report)
    found = []
    for name, alike in sorted(lines.items()):
        first = next(iter(alike.values()))[0]
        apart = {field for settings, _ in alike.values() for field in differences(first, settings)}
        for settings, reports_ in alike.values():
            said = _said(flatten(settings), sorted(apart))
            found.append((f"{name} ({said})" if said else name, reports_))
    return found


def _said(settings: Mapping[str, Any], fields: Iterable[str]) -> str:
    return ", ".join(f"{field}={json.dumps(settings.get(field))}" for field in fields)


def _models(runs: Iterable[JSON], model: str) -> Models:
    """Return the points of a line. Runs that were asked for the same ratio are one point."""
    sizes: dict[float, dict[str, JSON]] = {}
    for report in runs:
        params, figures = report["params"], report["texts"]["mean"]
        if model in figures:
            asked = params["ratio_requested"] or round(params["ratio_achieved"], 3)
            # A run that was reported twice counts once.
            sizes.setdefault(asked, {})[json.dumps(report["configuration"], sort_keys=True)] = report
    return {asked: _point(list(own.values()), model) for asked, own in sorted(sizes.items())}


def _point(runs: Sequence[JSON], model: str) -> Point:
    figures = [report["texts"]["mean"] for report in runs]
    ends = [own["intervals"][model] for own in figures if own.get("intervals")]
    return Point(
        removed=fmean(report["params"]["ratio_achieved"] for report in runs),
        perplexity=math.exp(fmean(math.log(own[model]) for own in figures)),
        interval=(min(low for low, _ in ends), max(high for _, high in ends)) if ends else None,
    )


def _rows_of(pruning: Pruning, dense: float | None) -> list[Sequence[Cell]]:
    """Return one row a recovery and size, and one for each size of which there is no recovery."""
    rows: list[Sequence[Cell]] = [
        _row(name, pruning.pruned.get(asked), point, dense)
        for name, models in pruning.recovered.items()
        for asked, point in models.items()
    ]
    done = {asked for models in pruning.recovered.values() for asked in models}
    alone = [point for asked, point in pruning.pruned.items() if asked not in done]
    return rows + [_row(pruning.name, point, None, dense) for point in alone]


def _row(name: str, pruned: Point | None, recovered: Point | None, dense: float | None) -> Sequence[Cell]:
    last = recovered or pruned
    assert last is not None, "a row is of a model"
    over = w.times(last.perplexity / dense if dense else None)
    return [name, w.percent(last.removed), _cell(pruned), _cell(recovered), over]


def _cell(point: Point | None) -> Cell:
    return w.DASH if point is None else valued(point.perplexity, list(point.interval or ()) or None, w.perplexity)


def _dense(group: Iterable[JSON]) -> float | None:
    return next((report["texts"]["mean"]["dense"] for report in group if "dense" in report["texts"]["mean"]), None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and draw the first."""
    show("pipeline.ratios", arguments, "outputs/ratios.svg", _show)


def _show(root: Path, output: Path) -> None:
    groups = judged_alike(report for _, report in reports(root))
    print("\n".join(markdown(page(group)) for group in groups))
    write_text(output, ratios_svg(prunings(groups[0]), _dense(groups[0])))


if __name__ == "__main__":
    main()
