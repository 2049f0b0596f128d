"""Scores, differences and shares as cells of a table."""

from __future__ import annotations

from stages.report import wording as w
from stages.report.blocks import Cell
from stages.stage import JSON


def score(entry: JSON, model: str, key: str, write: w.Write, *, error: bool = False) -> Cell:
    """Return a model's score with its interval and, where `error` asks for it, its standard error."""
    scores = entry.get(model) or {}
    spread = w.plusminus(scores.get(f"{key}_stderr"), write) if error else ""
    return valued(scores.get(key), scores.get(f"{key}_interval"), write, spread)


def valued(value: float | None, interval: list[float] | None, write: w.Write, remark: str = "") -> Cell:
    """Return a value with a remark and its interval."""
    return (write(value), " ".join(filter(None, (remark, w.span(interval, write)))))


def difference(effect: JSON | None, write: w.Write) -> Cell:
    """Return a difference, starred where it is clear, with its interval and McNemar's p."""
    if not effect:
        return w.DASH
    star = "*" if effect["clear"] else ""
    test = effect.get("mcnemar")
    remark = f"{w.span(effect['interval'], write)}{', ' + w.chances(test['p']) if test else ''}"
    return (f"{w.signed(effect['value'], write)}{star}", remark)


def share(effect: JSON | None) -> Cell:
    """Return a share with its interval, or the reason why it is missing."""
    if not effect:
        return w.DASH
    if effect["value"] is None:
        return (w.DASH, effect["reason"])
    return valued(effect["value"], effect["interval"], lambda end: w.percent(end, digits=0))


def names(models: list[str]) -> list[str]:
    """Return the models' names as column heads."""
    return [w.NAMES.get(model, model) for model in models]
