"""The arithmetic of the two roads' courses: who is how good when. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean

from benchmarks.road_plan import BESIDE, JUDGED
from stages.evaluate.perplexity import LARGEST
from stages.stage import JSON

NAMED = ("time_to_stock_quality_ratio", "log_perplexity_recovered", "passages_perplexity")
"""The figures of a ratio that stand at the top of the result, with the ratio in their name."""


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement on a road: tokens of training, seconds since the dense model was there, and held-out text.

    Attributes:
        tokens: tokens of training.
        seconds: seconds since the beginning of the road.
        nats: nats a token, the mean over the kinds of text that count.
        passages: perplexity of Wikipedia's passages.
    """

    tokens: int
    seconds: float
    nats: float
    passages: float

    @property
    def perplexity(self) -> float:
        """The geometric mean of the perplexities of the kinds of text that count."""
        return exp(min(self.nats, LARGEST))

    def record(self) -> JSON:
        """Return the point for the record."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "perplexity": self.perplexity,
            "passages_perplexity": self.passages,
        }


def point(texts: JSON, tokens: int = 0, seconds: float = 0.0) -> Point:
    """Return the measurement `texts`, {kind of text: its totals}, as a point."""
    return Point(tokens, seconds, mean_nats(texts, JUDGED), texts[BESIDE]["perplexity"])


def mean_nats(texts: JSON, kinds: Sequence[str]) -> float:
    """Return the mean over `kinds` of nats a token, each kind counting once."""
    return fmean(texts[kind]["nll"] / texts[kind]["tokens"] for kind in kinds)


def averaged(rounds: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the means over rounds, whose points are after the same tokens."""
    return [
        Point(
            tokens=points[0].tokens,
            seconds=fmean(found.seconds for found in points),
            nats=fmean(found.nats for found in points),
            passages=fmean(found.passages for found in points),
        )
        for points in zip(*rounds, strict=True)
    ]


def best_of(course: Sequence[Point]) -> Point:
    """Return the first of the points with the lowest held-out perplexity."""
    return min(course, key=lambda found: found.nats)


def reaching(course: Sequence[Point], nats: float) -> Point | None:
    """Return the first point that is measured to be as good as `nats`, without interpolation; None where none is."""
    return next((found for found in course if found.nats <= nats), None)


def after(course: Sequence[Point], seconds: float) -> Point | None:
    """Return the best that a road has after `seconds`; None before its cut is made."""
    there = [found for found in course if found.seconds <= seconds]
    return best_of(there) if there else None


def compare(dense: Point, stock: Sequence[Point], ours: Sequence[Point]) -> JSON:
    """Return the figures of one ratio. Each road's first point is its cut."""
    goal = best_of(stock)
    reached = reaching(ours, goal.nats)
    moments = sorted({ours[0].seconds, ours[-1].seconds, goal.seconds, stock[-1].seconds})
    return {
        "time_to_stock_quality_ratio": None if reached is None else reached.seconds / goal.seconds,
        "log_perplexity_recovered": ours[-1].nats - dense.nats,
        "passages_perplexity": {
            "dense": dense.passages,
            "stock_cut": stock[0].passages,
            "stock_best": goal.passages,
            "ours_cut": ours[0].passages,
            "ours_recovered": ours[-1].passages,
        },
        "stock_best": goal.record(),
        "ours_as_good": None if reached is None else reached.record(),
        "cut_is_enough": reached is ours[0],
        "equal_seconds": [_together(seconds, after(stock, seconds), after(ours, seconds)) for seconds in moments],
        "stock": [found.record() for found in stock],
        "ours": [found.record() for found in ours],
    }


def _together(seconds: float, stock: Point | None, ours: Point | None) -> JSON:
    found = {"stock": stock, "ours": ours}
    return {"seconds": seconds} | {name: None if at is None else at.perplexity for name, at in found.items()}


def table(percent: str, dense: Point, stock: Sequence[Point], ours: Sequence[Point]) -> str:
    """Return the table of one ratio, and the sentences below it."""
    goal = best_of(stock)
    reached = reaching(ours, goal.nats)
    rows = [
        ("dense model", dense),
        ("stock: cut", stock[0]),
        ("stock: best", goal),
        ("stock: end", stock[-1]),
        ("ours: cut", ours[0]),
        *([("ours: as good", reached)] if reached else []),
        ("ours: end", ours[-1]),
    ]
    head = f"{f'{percent} % removed':16}{'seconds':>9}{'tokens':>9}{'held-out':>11}{'x dense':>9}{'passages':>11}"
    lines = [
        f"{name:16}{at.seconds:9.0f}{at.tokens:9}{at.perplexity:11.2f}"
        f"{exp(min(at.nats - dense.nats, LARGEST)):9.2f}{at.passages:11.2f}"
        for name, at in rows
    ]
    found = compare(dense, stock, ours)
    minutes = [
        f"after {at['seconds'] / 60:5.1f} minutes: stock {_shown(at['stock'])}, ours {_shown(at['ours'])}"
        for at in found["equal_seconds"]
    ]
    return "\n".join(["", head, *lines, *minutes, _verdict(found)])


def _shown(perplexity: float | None) -> str:
    return "has no model yet" if perplexity is None else f"{perplexity:.2f}"


def _verdict(found: JSON) -> str:
    ratio = found["time_to_stock_quality_ratio"]
    if ratio is None:
        return "ours is never measured to be as good as the stock road at its best"
    cut = "our cut alone is enough" if found["cut_is_enough"] else "our cut alone is not enough"
    return f"ours is as good as the stock road at its best in {ratio:.2f} of its time; {cut}"
