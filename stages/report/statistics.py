"""Paired bootstrap over documents: what pruning lost, what recovery brought back, and how sure that is.

Every model is judged on the same documents, so a resample draws documents (within their task) and takes all models'
scores on that draw: what is hard for every model cancels out of a difference. Percentile intervals at 95 %.

Shapes: M models, N units (documents of one task, or passages), B resamples.
Nothing here knows of files, tasks or reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import UserError

Array = NDArray[np.float64]

LEVEL = 0.95
MINIMUM_UNITS = 6
"""With fewer documents an interval is shown but nothing is concluded from it: the bootstrap is too sure of itself, and
even if all of five agreed, a sign test would not reach 95 %."""
CHUNK = 4_000_000
"""Indices drawn at a time, which bounds the memory of resampling ten thousand documents."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Scores of M models on one set of units, with B paired resamples of them.

    Attributes:
        models: the models' names, in the order of the first axis.
        score_M: the scores on the units themselves.
        draws_MB: the scores on each resample; column b is one draw of units for all models.
        units: how many units the scores rest on.
    """

    models: tuple[str, ...]
    score_M: Array
    draws_MB: Array
    units: int


def paired(models: Sequence[str], totals_MN: Array, weights_N: Array, *, resamples: int, seed: Sequence[int]) -> Paired:
    """Return the scores Σ totals / Σ weights of each model, on the units and on `resamples` draws of them.

    Accuracy is hits over ones, bits per byte is bits over bytes, log perplexity is nats over tokens.

    Raises:
        UserError: there are no units, or the shapes do not match.
    """
    count = weights_N.shape[0]
    if count == 0 or totals_MN.shape != (len(models), count):
        raise UserError(
            f"cannot compare {len(models)} models on scores of shape {totals_MN.shape} with {count} weights: "
            "each model needs one score for each of at least one document."
        )
    generator = np.random.default_rng(list(seed))
    draws_MB = np.empty((len(models), resamples))
    step = max(1, CHUNK // count)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        chosen_BN = generator.integers(count, size=(stop - start, count))
        draws_MB[:, start:stop] = totals_MN[:, chosen_BN].sum(axis=2) / weights_N[chosen_BN].sum(axis=1)
    return Paired(tuple(models), totals_MN.sum(axis=1) / weights_N.sum(), draws_MB, count)


def mean(groups: Sequence[Paired]) -> Paired:
    """Return the unweighted mean over tasks, as the papers average; resamples of different tasks are independent.

    It claims no more documents than its smallest task has: a bootstrap of one document has no width.
    """
    return Paired(
        groups[0].models,
        np.mean([group.score_M for group in groups], axis=0),
        np.mean([group.draws_MB for group in groups], axis=0),
        min(group.units for group in groups),
    )


def interval(draws_B: Array) -> list[float]:
    """Return the central 95 % of the draws as [low, high]; both ends are draws, so infinite tails stay outside."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws_B, [tail, 1 - tail], method="nearest")
    return [float(low), float(high)]


def score_intervals(scores: Paired) -> dict[str, list[float]]:
    """Return each model's own interval, {model: [low, high]}."""
    return {model: interval(draws_B) for model, draws_B in zip(scores.models, scores.draws_MB, strict=True)}


def difference(scores: Paired, one: str, other: str) -> dict[str, Any]:
    """Return {"value", "interval", "clear"} of one − other; clear when the interval leaves 0 out."""
    value, draws_B = _minus(scores, one, other)
    low, high = interval(draws_B)
    enough = scores.units >= MINIMUM_UNITS
    return {"value": value, "interval": [low, high], "clear": enough and (low > 0 or high < 0)}


def retained(scores: Paired, *, dense: str, recovered: str) -> dict[str, Any]:
    """Return {"value", "interval"} of recovered / dense, for scores where more is better and 0 is nothing.

    Where the dense model scores nothing there is no number: {"value": None, "interval": None, "reason": why}.
    """
    base, kept = scores.models.index(dense), scores.models.index(recovered)
    if scores.score_M[base] <= 0:
        return _no_number(f"{dense} scores 0")
    with np.errstate(divide="ignore", invalid="ignore"):
        draws_B = scores.draws_MB[kept] / scores.draws_MB[base]
    if not np.isfinite(draws_B).all():
        return _no_number(f"{dense} near 0")
    return {"value": float(scores.score_M[kept] / scores.score_M[base]), "interval": interval(draws_B)}


def share(scores: Paired, *, dense: str, pruned: str, recovered: str, higher_is_better: bool) -> dict[str, Any]:
    """Return {"value", "interval"} of (recovered − pruned) / (dense − pruned), the part of the loss that came back.

    No number, with the reason, where the loss is within noise: a ratio to nothing means nothing. Resamples without a
    loss count as an infinite share of their gain's sign; a clear loss leaves fewer of them than a tail holds, so
    the interval is finite exactly where a number is given.
    """
    sign = 1.0 if higher_is_better else -1.0
    loss = difference(scores, dense, pruned)
    if not loss["clear"]:
        few = scores.units < MINIMUM_UNITS
        return _no_number(f"fewer than {MINIMUM_UNITS} documents" if few else "loss within noise")
    if sign * loss["value"] <= 0:
        return _no_number(f"no loss: {pruned} is better than {dense}")
    gain, gain_B = _minus(scores, recovered, pruned)
    _, loss_B = _minus(scores, dense, pruned)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_B = np.where(sign * loss_B > 0, gain_B / loss_B, np.copysign(np.inf, sign * gain_B))
    return {"value": gain / loss["value"], "interval": interval(share_B)}


def _minus(scores: Paired, one: str, other: str) -> tuple[float, Array]:
    a, b = scores.models.index(one), scores.models.index(other)
    return float(scores.score_M[a] - scores.score_M[b]), scores.draws_MB[a] - scores.draws_MB[b]


def _no_number(reason: str) -> dict[str, Any]:
    return {"value": None, "interval": None, "reason": reason}
