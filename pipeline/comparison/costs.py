"""Scores against what a model costs: its parameters, the time it takes to write a token, its peak memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.comparison.columns import latency, measured, parameters
from pipeline.comparison.findings import machine
from pipeline.comparison.lines import Line
from pipeline.comparison.run import Run
from pipeline.comparison.runs import grouped
from pipeline.comparison.scores import QUALITY, Score
from stages.stage import JSON

COSTS: dict[str, Callable[[Run], float | None]] = {
    "parameters (millions)": lambda run: _scaled(parameters(run), 1e-6),
    "time a token (× dense)": lambda run: latency(run).get("decode_ratio"),
    "peak memory (MB)": lambda run: _scaled(measured(run).get("peak_memory_bytes"), 1e-6),
}


def points(lines: Sequence[Line], groups: Sequence[Sequence[Run]]) -> list[JSON]:
    """Return {"line", "name", "run", "group", "measure", "cost", "x", "y", "low", "high", "front"} of every run.

    `front` says whether no other run of the group is at least as good in both and better in one (Pareto). Times and
    memory are compared only between runs that were measured alike: the most runs of a group that were.
    """
    line_of = {run.number: line for line in lines for run in line.runs}
    found = []
    for place, group in enumerate(groups):
        for score in QUALITY:
            for cost, read in COSTS.items():
                alike = group if cost.startswith("parameters") else _measured_alike(group)
                own = [(run, point) for run in alike if (point := _point(run, score, read))]
                common = {"group": place, "measure": score.name, "cost": cost}
                for run, point in own:
                    line = line_of[run.number]
                    told = {"line": line.number, "name": line.label, "run": run.number}
                    found.append(told | common | point | {"front": _in_front(point, own, score)})
    return found


def _measured_alike(group: Sequence[Run]) -> list[Run]:
    """Return the most runs of the group whose cost was measured on one machine in one way."""
    return max(grouped((run for run in group if measured(run)), machine), key=len, default=[])


def _point(run: Run, score: Score, read: Callable[[Run], float | None]) -> JSON | None:
    found, cost = score.last(run), read(run)
    if found is None or cost is None:
        return None
    scale = 100 if score.better > 0 else 1
    low, high = found.interval or (found.value, found.value)
    return {"x": cost, "y": scale * found.value, "low": scale * low, "high": scale * high}


def _in_front(point: JSON, own: Sequence[tuple[Run, JSON]], score: Score) -> bool:
    mine = (point["x"], -score.better * point["y"])
    others = [(other["x"], -score.better * other["y"]) for _, other in own]
    return not any(x <= mine[0] and y <= mine[1] and (x, y) != mine for x, y in others)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
