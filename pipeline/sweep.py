"""`python -m pipeline.sweep [artifact_root=DIR] [output=FILE.svg]`: adapters by rank, at a shared rate and tuned.

The command reads the recoveries that `experiment=rank_sweep` left in a store, or any sweep over adapter, adapter.rank
and recover.seed. It prints one Markdown table for each set of recoveries that differ in nothing else, and draws the
first. Every figure is of test rows, and no rate was chosen by them. A killed sweep can be read as far as it came.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from pipeline.console.options import show
from pipeline.recoveries import Recovery, recoveries
from stages.common.files import write_text
from stages.errors import UserError
from stages.report import wording as w
from stages.report.blocks import Cell, Heading, Page, Paragraph, Table, markdown
from stages.stage import JSON

if TYPE_CHECKING:
    from stages.report.rank_figure import Ranked

RUN = "python -m pipeline -m experiment=rank_sweep"
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


def sweeps(found: Sequence[Recovery]) -> list[tuple[JSON, Cells]]:
    """Return the sweeps among the recoveries, largest first: one report of each, and its cells by adapter and rank.

    Raises:
        UserError: no two recoveries differ in adapter or rank alone.
    """
    reports: dict[str, JSON] = {}
    groups: dict[str, Cells] = {}
    for one in found:
        recover = one.report["configuration"]["recover"]
        if "rank" not in recover["adapter"] or not one.report["training"].get("test"):
            continue
        key = _but_for_cell(one.report)
        reports.setdefault(key, one.report)
        cell = groups.setdefault(key, {}).setdefault((recover["adapter"]["name"], recover["adapter"]["rank"]), {})
        cell[recover["seed"]] = _merged(cell.get(recover["seed"]), outcome(one.report["training"]))
    swept = sorted((key for key, cells in groups.items() if len(cells) > 1), key=lambda key: -len(groups[key]))
    if not swept:
        raise UserError(f"no two recoveries differ in adapter or rank alone: there is no sweep to read. Run one: {RUN}")
    return [(reports[key], dict(sorted(groups[key].items()))) for key in swept]


def outcome(training: JSON) -> Outcome:
    """Return what a recovery.json says of its test rows."""
    tuning = training.get("tuning")
    if not tuning:
        return Outcome(shared=training["test"]["perplexity"], tuned=None, rate=None)
    tried = {
        entry["learning_rate"]: float("inf") if entry["diverged"] else entry["test"]["perplexity"]
        for entry in tuning["trials"]
    }
    return Outcome(shared=tried[tuning["shared"]], tuned=tried[tuning["chosen"]], rate=tuning["chosen"])


def table(cells: Cells) -> Table:
    """Return one row for each adapter and rank: the mean over seeds ± half the range from lowest to highest seed."""
    return Table(COLUMNS, [_row(*key, list(seeds.values())) for key, seeds in cells.items()])


def ranked(cells: Cells) -> dict[str, list[Ranked]]:
    """Return the points to draw, by adapter."""
    from stages.report.rank_figure import Ranked  # matplotlib, only where a picture is drawn

    drawn: dict[str, list[Ranked]] = {}
    for (adapter, rank), seeds in cells.items():
        shared, tuned, rates = _columns(list(seeds.values()))
        drawn.setdefault(adapter, []).append(Ranked(rank=rank, shared=shared, tuned=tuned, rates=rates))
    return drawn


def page(report: JSON, cells: Cells) -> Page:
    """Return the table of a sweep, under a title and over a note that say what was swept."""
    recover, training = report["configuration"]["recover"], report["training"]
    title = f"{report['model']}, pruned by {report['prune']} by {w.percent(report['params']['ratio_achieved'])}"
    tuning = training.get("tuning")
    tried = f"; tuned: the best of {len(tuning['trials'])} rates on validation rows" if tuning else ""
    labels = "the responses" if recover["recover"]["loss"] == "response" else "all tokens"
    note = (
        f"{w.count(recover['recover']['tokens'])} tokens of {report['data']} each. Perplexity of {labels} of "
        f"{training['test']['rows']} test rows, which no rate was chosen by: mean over seeds ± half the way from the "
        f"lowest seed to the highest. Shared rate: {recover['recover']['learning_rate']:g}{tried}."
    )
    return Page(title, [Heading(title, 3), table(cells), Paragraph(note, "note")])


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
    """Return the outcome of a cell that may have been run twice, tuned and not. The tuned run holds both rates."""
    if one is None:
        return other
    return other if other.tuned is not None else one


def _but_for_cell(report: JSON) -> str:
    """Return what all cells of a sweep share: the pruned model, the rows and how the model was trained."""
    configuration = report["configuration"]
    upstream = {role: configuration.get(role) for role in ("model", "data", "prune")}
    recover = configuration["recover"]
    adapter = {name: recover["adapter"].get(name) for name in COMMON}
    return json.dumps([report["prune"], upstream, adapter, recover["recover"], recover["dtype"]], sort_keys=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and draw the first sweep."""
    show("pipeline.sweep", arguments, "outputs/rank_sweep.svg", _show)


def _show(root: Path, output: Path) -> None:
    found = sweeps([one for group in recoveries(root) for one in group])
    print("\n".join(markdown(page(*sweep)) for sweep in found))
    from stages.report.rank_figure import ranks_svg

    write_text(output, ranks_svg(ranked(found[0][1])))


if __name__ == "__main__":
    main()
