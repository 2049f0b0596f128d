"""Held-out perplexity by how much was removed: for each way of pruning, before and after recovery.

A line is a way of pruning, or a recovery of its models. Runs of a line differ in nothing but how much was removed, and
in seeds. Runs without a recovery (adapter=none) are points of the way of pruning alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.comparison.lines import told_apart
from pipeline.comparison.runs import adapter_of, grouped, without_seeds
from pipeline.planning.keys import flatten
from pipeline.schema.written import written
from stages.prune.criteria.registry import CRITERIA
from stages.report import wording as w
from stages.report.blocks import Cell, Table
from stages.report.sections.cells import valued
from stages.report.verdict import label
from stages.stage import JSON

COLUMNS = ("recipe", "removed", "pruned", "recovered", "over dense")
AMOUNTS = ("ratio", "megabytes", "channel_ratio", "layer_ratios", "steps")
"""Options of pruning that say how much goes, or are settled by that."""
BEST = "best"
SETTLED = ("dtype", "seed", "steps", "calibration.data")
"""Options of `prune=best` that a plan replaces by what they mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model at one size.

    Attributes:
        removed: share of the dense model's parameters that was removed.
        perplexity: perplexity of held-out text.
        interval: its two ends, where there is one.
    """

    removed: float
    perplexity: float
    interval: tuple[float, float] | None = None


Models = Mapping[float, Point]
"""The models of a line by the ratio that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """One way of pruning at several sizes, and the recoveries of its models.

    Attributes:
        name: what it is called.
        pruned: its models before any recovery.
        recovered: by the name of each recovery, its models.
    """

    name: str
    pruned: Models
    recovered: Mapping[str, Models]


def judged_alike(found: Iterable[JSON]) -> list[list[JSON]]:
    """Return the reports that can be drawn, in groups of one dense model judged on one choice of text; largest first.

    Left out are runs whose text was not judged by kinds, and those that removed no parameters.
    """
    drawn = [r for r in found if r["params"]["ratio_achieved"] and (r["texts"] or {}).get("mean")]
    return sorted(grouped(drawn, _judged), key=lambda group: -len(group))


def prunings(group: Sequence[JSON]) -> list[Pruning]:
    """Return the ways of pruning among reports that were judged alike, by name, each with its recoveries."""
    cuts = told_apart([(_cut_name(report), _cut(report), report) for report in group])
    return [Pruning(name=name, pruned=_models(runs, "pruned"), recovered=_recovered(name, runs)) for name, runs in cuts]


def table(group: Sequence[JSON]) -> Table:
    """Return one row a recovery and size, and one for each size of which there is no recovery."""
    known = dense(group)
    return Table(COLUMNS, [row for pruning in prunings(group) for row in _rows_of(pruning, known)])


def note(group: Sequence[JSON]) -> str:
    """Return which text was judged, and what a row is."""
    texts = group[0]["texts"]
    over = texts["mean"]["over"]
    kinds = w.listing([label(texts, kind) for kind in over])
    counts = [w.count(texts["kinds"][kind]["documents"]) for kind in over]
    documents = f"{counts[0]} documents of each" if len(set(counts)) == 1 else f"{w.listing(counts)} documents"
    return (
        f"Perplexity of held-out text ({kinds}; {documents}): the geometric mean over kinds that nothing was "
        f"fitted to, with 95{w.PERCENT} intervals over documents. Dense: {w.perplexity(dense(group))}. Runs that "
        "differ only in seeds are one row: their geometric mean, with the lowest and highest end of their intervals."
    )


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
    return {name: _models(own, "recovered") for name, own in told_apart(lines)}


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


def _rows_of(pruning: Pruning, known: float | None) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = [
        _row(name, pruning.pruned.get(asked), point, known)
        for name, models in pruning.recovered.items()
        for asked, point in models.items()
    ]
    done = {asked for models in pruning.recovered.values() for asked in models}
    alone = [point for asked, point in pruning.pruned.items() if asked not in done]
    return rows + [_row(pruning.name, point, None, known) for point in alone]


def _row(name: str, pruned: Point | None, recovered: Point | None, known: float | None) -> Sequence[Cell]:
    last = recovered or pruned
    assert last is not None, "a row is of a model"
    over = w.times(last.perplexity / known if known else None)
    return [name, w.percent(last.removed), _cell(pruned), _cell(recovered), over]


def _cell(point: Point | None) -> Cell:
    return w.DASH if point is None else valued(point.perplexity, list(point.interval or ()) or None, w.perplexity)


def dense(group: Iterable[JSON]) -> float | None:
    """Return the dense model's perplexity, where a report has it."""
    return next((report["texts"]["mean"]["dense"] for report in group if "dense" in report["texts"]["mean"]), None)
