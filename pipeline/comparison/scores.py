"""Scores of a run's last model, and whether two runs' scores lie apart, from their reports alone.

Two runs that were judged on the same documents beside the same dense model are compared by their differences from it,
which leaves out what is hard for all models. The interval of such a comparison is made of the two differences' own
intervals, by the squares of the distances to their ends (Zou and Donner, Statistics in Medicine 27:1693, 2008), as if
the two were independent. They share their documents, so this interval is wider than a paired one would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from pipeline.comparison.run import Run
from stages.report import wording as w
from stages.report.statistics import MINIMUM_UNITS
from stages.stage import JSON

Interval = Sequence[float]
TOO_FEW = "too few documents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score with its 95 % interval, and its difference from the dense model's with the interval of that.

    Attributes:
        value: the score.
        interval: its ends; None where it has no interval.
        effect: the difference on the scale on which scores are compared; None without a dense model.
        documents: how many documents a task, or a kind of text, has at least.
    """

    value: float
    interval: Interval | None
    effect: tuple[float, Interval] | None
    documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score that runs are compared by.

    Attributes:
        name: the column, and the name in sentences.
        better: 1 where more is better, −1 where less is.
        write: writes the score.
        of: returns a model's score in a report ("pruned", "recovered", "dense"); None where it was not measured.
        logarithmic: whether scores are compared by their logarithms.
        judged: returns what a score is of, in a report, where that is more than what runs of a group share.
    """

    name: str
    better: int
    write: w.Write
    of: Callable[[JSON, str], Estimate | None]
    logarithmic: bool = False
    judged: Callable[[JSON], Hashable] = lambda report: ()

    def last(self, run: Run) -> Estimate | None:
        """Return the score of the run's last model."""
        return self.of(run.report, run.last)

    def apart(self, one: Run, other: Run) -> int:
        """Return 1 where `one` is clearly better than `other`, −1 where it is clearly worse, 0 where neither is."""
        mine, theirs = self.last(one), self.last(other)
        if not mine or not theirs or min(mine.documents, theirs.documents) < MINIMUM_UNITS:
            return 0
        beside = self._one_dense(one, other) and mine.effect and theirs.effect
        ours, others = (mine.effect, theirs.effect) if beside else (self._own(mine), self._own(theirs))
        if ours is None or others is None:
            return 0
        (first, (low, high)), (second, (other_low, other_high)) = ours, others
        difference = first - second
        below = math.hypot(first - low, other_high - second)
        above = math.hypot(high - first, second - other_low)
        sign = 1 if difference - below > 0 else -1 if difference + above < 0 else 0
        return sign * self.better

    def _one_dense(self, one: Run, other: Run) -> bool:
        dense = [self.of(run.report, "dense") for run in (one, other)]
        return None not in dense and len({found.value for found in dense if found}) == 1

    def _own(self, found: Estimate) -> tuple[float, Interval] | None:
        if found.interval is None:
            return None
        scale: Callable[[float], float] = math.log if self.logarithmic else float
        return scale(found.value), [scale(end) for end in found.interval]


def _of_text(figures: Callable[[JSON], JSON | None]) -> Callable[[JSON, str], Estimate | None]:
    def of(report: JSON, model: str) -> Estimate | None:
        found = figures(report["texts"] or {"kinds": {}, "mean": None})
        if not found or found.get(model) is None or found.get("per", "token") != "token":
            return None
        kinds = report["texts"]["kinds"]
        over = [kinds[kind] for kind in found.get("over", ())] or [found]
        return Estimate(
            value=found[model],
            interval=(found.get("intervals") or {}).get(model),
            effect=_effect(found.get("log"), model),
            documents=min(kind["documents"] for kind in over),
        )

    return of


def _of_tasks(score: str, effects: str) -> Callable[[JSON, str], Estimate | None]:
    def of(report: JSON, model: str) -> Estimate | None:
        average = report["mean"] or {}
        if model not in average or average[model].get(score) is None:
            return None
        sizes = [task[model]["n"] for task in report["tasks"].values()]
        own = average[model]
        effect = _effect(average.get(effects), model)
        return Estimate(value=own[score], interval=own.get(f"{score}_interval"), effect=effect, documents=min(sizes))

    return of


def _repeated(report: JSON, model: str) -> Estimate | None:
    found = report.get("generation") or {}  # an earlier version's report has none
    if model not in found:
        return None
    own, effect = found[model], _effect(found.get("repeated"), model)
    prompts = found.get("prompts", MINIMUM_UNITS)
    return Estimate(value=own["repeated"], interval=own.get("repeated_interval"), effect=effect, documents=prompts)


def _effect(effects: JSON | None, model: str) -> tuple[float, Interval] | None:
    found = (effects or {}).get(f"{model}_minus_dense")
    return (found["value"], found["interval"]) if found and found["interval"] else None


TEXT = Score(
    name="held-out perplexity",
    better=-1,
    write=w.perplexity,
    of=_of_text(lambda texts: texts["mean"]),
    logarithmic=True,
)
"""Held-out text that nothing was fitted to, the mean over its kinds."""
WIKIPEDIA = Score(
    name="Wikipedia perplexity",
    better=-1,
    write=w.perplexity,
    of=_of_text(lambda texts: texts["kinds"].get("wikipedia")),
    logarithmic=True,
)
BITS = Score(name="bits per byte", better=-1, write=w.bits, of=_of_tasks("bits_per_byte", "bits_per_byte"))
ACCURACY = Score(name="accuracy", better=1, write=w.percent, of=_of_tasks("acc", "accuracy"))
REPEATED = Score(
    name="repeated 4-grams",
    better=-1,
    write=w.percent,
    of=_repeated,
    judged=lambda report: tuple((report.get("generation") or {}).get(name) for name in ("prompts", "new_tokens")),
)
"""Longer continuations repeat more of themselves, so those of other lengths are not compared."""

SCORES = (TEXT, WIKIPEDIA, BITS, ACCURACY, REPEATED)
"""Every score that has a column."""
QUALITY = (TEXT, BITS, ACCURACY)
"""The scores that sentences and pictures take."""


def best_of(score: Score, group: Sequence[Run]) -> Run | None:
    """Return the run with the best value of a score; None where fewer than two runs have it."""
    found = [(estimate.value, run) for run in group if (estimate := score.last(run))]
    return max(found, key=lambda one: score.better * one[0])[1] if len(found) > 1 else None
