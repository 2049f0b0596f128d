"""Adapters by rank, at a shared rate and at the rate found for each: the figure of the RoRA paper, with tuned rates.

A sweep is a set of recoveries that differ in adapter, rank, seed and rate alone, as `experiment=rank_sweep` leaves
them. Every figure is of test rows, and no rate was chosen by them. A killed sweep can be read as far as it came.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from pipeline.comparison.run import Run
from pipeline.comparison.runs import made_by
from stages.report import wording as w
from stages.report.blocks import Cell, Table
from stages.stage import JSON

COLUMNS = ("adapter", "rank", "seeds", "shared rate: test perplexity", "tuned: test perplexity", "rates found")
COMMON = ("alpha", "dropout", "targets")
"""Options of an adapter in which the cells of one sweep must agree. Name and rank are what the sweep varies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One seed of an adapter at a rank: test perplexity at the shared and at the tuned rate, and the tuned rate.

    A perplexity is infinite where the recovery diverged. It is None where the rate was not tuned, or the shared rate
    was not tried.
    """

    shared: float | None
    tuned: float | None
    rate: float | None


Cells = dict[tuple[str, int], dict[int, Outcome]]
"""{(adapter, rank): {seed: outcome}}."""


def sweeps(found: Sequence[Run]) -> list[tuple[JSON, Cells]]:
    """Return the sweeps among the runs, largest first: one report of each, and its cells by adapter and rank."""
    reports: dict[str, JSON] = {}
    groups: dict[str, Cells] = {}
    for run in found:
        recover, training = run.report["configuration"].get("recover", {}), run.report["training"]
        if "rank" not in recover.get("adapter", {}) or "recover" not in recover or not training.get("test"):
            continue
        key = _but_for_cell(run.report)
        reports.setdefault(key, run.report)
        adapter, seed = recover["adapter"], recover.get("seed", 0)
        cell = groups.setdefault(key, {}).setdefault((adapter["name"], adapter["rank"]), {})
        cell[seed] = _merged(cell.get(seed), outcome(training, recover["recover"]["tokens"]))
    swept = sorted((key for key, cells in groups.items() if len(cells) > 1), key=lambda key: -len(groups[key]))
    return [(reports[key], dict(sorted(groups[key].items()))) for key in swept]


def outcome(training: JSON, tokens: int) -> Outcome:
    """Return what a recovery.json of a recovery of `tokens` says of its test rows.

    A trial at the shared rate counts where it had the recovery's own budget, or where its rate was found.
    """
    tuning, reached = training.get("tuning"), training["test"]["perplexity"]
    if not tuning:
        return Outcome(shared=reached, tuned=None, rate=None)
    tried = {
        entry["learning_rate"]: float("inf") if entry["diverged"] else entry["test"]["perplexity"]
        for entry in tuning["trials"]
    }
    whole = tuning["budget"] == tokens
    shared = tried[tuning["shared"]] if whole else reached if tuning["chosen"] == tuning["shared"] else None
    return Outcome(shared=shared, tuned=reached, rate=tuning["chosen"])


def table(cells: Cells) -> Table:
    """Return one row for each adapter and rank: the mean over seeds ± half the range from lowest to highest seed."""
    return Table(COLUMNS, [_row(*key, list(seeds.values())) for key, seeds in cells.items()])


def points(cells: Cells) -> list[JSON]:
    """Return what is drawn: {"adapter", "rank", "at": shared|tuned|rate, "value", "low", "high", "seeds"}."""
    drawn = []
    for (adapter, rank), seeds in cells.items():
        for at, values in zip(("shared", "tuned", "rate"), _columns(list(seeds.values())), strict=True):
            if values and max(values) < float("inf"):
                ends = {"value": mean(values), "low": min(values), "high": max(values), "seeds": len(values)}
                drawn.append({"adapter": adapter, "rank": rank, "at": at, **ends})
    return drawn


def title(report: JSON) -> str:
    """Return the pruned model that a sweep recovered."""
    return f"{report['model']}, pruned by {report['prune']} by {w.percent(report['params']['ratio_achieved'])}"


def note(report: JSON) -> str:
    """Return what a sweep's figures are of."""
    recover, training = report["configuration"]["recover"], report["training"]
    tuning = training.get("tuning")
    tried = ""
    if tuning:
        short = tuning["budget"] < recover["recover"]["tokens"]
        by = f" by trials of {w.count(tuning['budget'])} tokens" if short else ""
        tried = f"; tuned: the best of {len(tuning['trials'])} rates on validation rows{by}"
    labels = "the responses" if recover["recover"]["loss"] == "response" else "all tokens"
    return (
        f"{w.count(recover['recover']['tokens'])} tokens of {report['data']} each. Perplexity of {labels} of "
        f"{training['test']['rows']} test rows, which no rate was chosen by: mean over seeds ± half the way from the "
        f"lowest seed to the highest. Shared rate: {recover['recover']['learning_rate']:g}{tried}."
    )


def _row(adapter: str, rank: int, seeds: Sequence[Outcome]) -> list[Cell]:
    shared, tuned, rates = _columns(seeds)
    found = ", ".join(f"{rate:g}" for rate in sorted(set(rates))) or w.DASH
    return [adapter, str(rank), str(len(seeds)), _spread(shared), _spread(tuned), found]


def _columns(seeds: Sequence[Outcome]) -> tuple[list[float], list[float], list[float]]:
    shared, tuned, rates = ([getattr(seed, name) for seed in seeds] for name in ("shared", "tuned", "rate"))
    return tuple([value for value in column if value is not None] for column in (shared, tuned, rates))  # type: ignore[return-value]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return w.DASH
    if max(values) == float("inf"):
        return "diverged"
    half = (max(values) - min(values)) / 2
    return w.perplexity(mean(values)) + (f" ± {half:.2g}" if len(values) > 1 else "")


def _merged(one: Outcome | None, other: Outcome) -> Outcome:
    """Return the outcome of a cell that may have been run twice: tuned, and at the shared rate."""
    if one is None:
        return other
    tuned = other if other.tuned is not None else one
    shared = one.shared if one.shared is not None else other.shared
    return Outcome(shared=shared, tuned=tuned.tuned, rate=tuned.rate)


def _but_for_cell(report: JSON) -> str:
    """Return what all cells of a sweep share: the pruned model, the rows and how the model was trained.

    A model that was pruned by other calibration text is another.
    """
    upstream = made_by(report["configuration"])
    recover = upstream.pop("recover")
    adapter = {name: recover["adapter"].get(name) for name in COMMON}
    return json.dumps([report["prune"], upstream, adapter, recover["recover"], recover.get("dtype")], sort_keys=True)
