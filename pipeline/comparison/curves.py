"""Recovery curves to overlay: one a line, the mean over its seeds with the band from the lowest to the highest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from pipeline.comparison.lines import Line
from pipeline.comparison.run import Run
from stages.common.questions import questions_behind, telling
from stages.stage import JSON

MEASURES: dict[str, tuple[str, Callable[[float], float]]] = {
    "validation loss (nats a token)": ("validation_loss", float),
    "validation perplexity": ("validation_loss", math.exp),
    "bits per byte of answers": ("curve_bits_per_byte", float),
    "task score (%)": ("curve_accuracy", lambda share: 100 * share),
}
"""What a curve may show: the field of a point of the history, and how it is written."""


def points(lines: Sequence[Line]) -> list[JSON]:
    """Return {"line", "name", "measure", "tokens", "minutes", "value", "low", "high"} of every point to draw.

    A point lies at the mean of its seeds' tokens. The minutes are the tokens' share of the recovery's seconds, because
    a history has no times: a recovery trains at one speed. They are absent where the artifact does not say its seconds.
    """
    return [point for line in lines for measure in MEASURES for point in _points(line, measure)]


def _points(line: Line, measure: str) -> list[JSON]:
    field, write = MEASURES[measure]
    own = [(run, _curve(run, field)) for run in line.runs]
    drawn = [(run, curve) for run, curve in own if len(curve) > 1]
    found = []
    for step in zip(*(curve for _, curve in drawn), strict=False):
        values = [write(min(value, 700.0)) for _, value in step]
        minutes = [_minutes(run, tokens, curve[-1][0]) for (run, curve), (tokens, _) in zip(drawn, step, strict=True)]
        point = {"line": line.number, "name": line.label, "measure": measure, "tokens": fmean(at for at, _ in step)}
        point |= {"value": fmean(values), "low": min(values), "high": max(values)}
        known = [value for value in minutes if value is not None]
        found.append(point | ({"minutes": fmean(known)} if len(known) == len(minutes) else {}))
    return found


def _minutes(run: Run, tokens: float, of: float) -> float | None:
    return None if run.seconds is None or not of else run.seconds / 60 * tokens / of


def _curve(run: Run, field: str) -> list[tuple[float, float]]:
    """Return (tokens, value) where the run has the value, and where enough questions stand behind it."""
    questions = questions_behind(run.report["training"])
    told = [telling(point, questions) for point in run.report["curve"]]
    return [(point["tokens"], point[field]) for point in told if point.get(field) is not None]
