"""Paired bootstrap over documents and McNemar's exact test: how far models differ, and how certain that is.

Every model is judged on the same documents. A resample draws documents (within their task) and takes all models' scores
on that draw, so whatever is hard for every model cancels out of a difference. Intervals are the central 95 % of the
draws, widened for few documents. A single accuracy has Wilson's interval, which also holds at 0 and 1, where all draws
are alike.

Shapes: M models, N units (documents of one task, passages, or windows), B resamples, K tasks.
Nothing here knows of files, tasks or reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import UserError

Array = NDArray[np.float64]

LEVEL = 0.95
QUANTILE = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""How many standard errors a normal interval reaches to each side: 1.96."""
MINIMUM_UNITS = 6
"""With fewer documents an interval is shown, but nothing is concluded from it. The bootstrap is then too certain, and
even if all of five documents agreed, a sign test would not reach 95 %."""
CHUNK = 4_000_000
"""Indices that are drawn at a time, which bounds the memory of resampling ten thousand documents."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Scores of M models on one set of units, with B paired resamples of them.

    Attributes:
        models: the models' names, in the order of the first axis.
        score_M: the scores on the units themselves.
        error_M: their standard errors; not a number where there is only one unit.
        ends_M2: the two ends of each model's own 95 % interval.
        draws_MB: the scores on each resample. Column b is one draw of units for all models.
        units: the number of units that the scores rest on.
    """

    models: tuple[str, ...]
    score_M: Array
    error_M: Array
    ends_M2: Array
    draws_MB: Array
    units: int


def paired(models: Sequence[str], totals_MN: Array, weights_N: Array, *, resamples: int, seed: Sequence[int]) -> Paired:
    """Return the scores Σ totals / Σ weights of each model, on the units and on `resamples` draws of them.

    Accuracy is hits over ones, bits per byte is bits over bytes, log perplexity is nats over tokens. The standard error
    is that of a ratio of sums, linearised. For hits over ones it equals lm-eval's, from the sample variance.

    Raises:
        UserError: there are no units, or the shapes do not match.
    """
    count = weights_N.shape[0]
    if count == 0 or totals_MN.shape != (len(models), count):
        raise UserError(
            f"cannot compare {len(models)} models on scores of shape {totals_MN.shape} with {count} weights: "
            "each model needs one score for each of at least one document."
        )
    score_M = totals_MN.sum(axis=1) / weights_N.sum()
    # Squared residuals of a ratio: total − score × weight for each unit.
    squares_M = ((totals_MN - score_M[:, None] * weights_N) ** 2).sum(axis=1)
    error_M = np.sqrt(squares_M * count / (count - 1)) / weights_N.sum() if count > 1 else np.full(len(models), np.nan)
    generator = np.random.default_rng(list(seed))
    draws_MB = np.empty((len(models), resamples))
    step = max(1, CHUNK // count)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        times_BN = _drawn(generator, stop - start, count)
        draws_MB[:, start:stop] = np.einsum("mn,bn->mb", totals_MN, times_BN) / np.einsum(
            "n,bn->b", weights_N, times_BN
        )
    # Of units that are right or wrong with equal weights, the score is a plain share, for which Wilson's interval is.
    accuracy = (weights_N == 1).all() and np.isin(totals_MN, (0, 1)).all()
    ends_M2 = _wilson(score_M, count) if accuracy else np.array([interval(draws_B, count) for draws_B in draws_MB])
    return Paired(tuple(models), score_M, error_M, ends_M2, draws_MB, count)


def _drawn(generator: np.random.Generator, resamples: int, units: int) -> Array:
    """Return how often each unit is in each resample, (resamples, units)."""
    chosen_BN = generator.integers(units, size=(resamples, units))
    # Each resample counts in bins of its own, so one bincount serves them all.
    chosen_BN += units * np.arange(resamples)[:, None]
    return np.bincount(chosen_BN.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float64)


def mean(groups: Sequence[Paired]) -> Paired:
    """Return the unweighted mean over tasks, as the papers average. Resamples of different tasks are independent.

    The mean's interval adds the squares of the distances from each task's score to its ends (Newcombe, Statistics in
    Medicine 17:857, 1998; Zou and Donner, 27:1693, 2008). Tasks at 0 or 1 therefore count with the width they have. The
    mean claims no more documents than its smallest task has, because a bootstrap of one document has no width.
    """
    score_M = np.mean([group.score_M for group in groups], axis=0)
    apart_KM2 = np.array([group.ends_M2 - group.score_M[:, None] for group in groups])
    apart_M2 = np.sqrt((apart_KM2**2).sum(axis=0)) / len(groups)
    return Paired(
        groups[0].models,
        score_M,
        np.sqrt(np.sum([group.error_M**2 for group in groups], axis=0)) / len(groups),
        score_M[:, None] + apart_M2 * [-1, 1],
        np.mean([group.draws_MB for group in groups], axis=0),
        min(group.units for group in groups),
    )


def above_chance(scores: Paired, chance: float) -> Paired:
    """Return (score − chance) / (1 − chance): 0 is guessing, 1 is all right. `chance` must be below 1."""
    room = 1 - chance
    shifted_M, shifted_M2, shifted_MB = (
        (values - chance) / room for values in (scores.score_M, scores.ends_M2, scores.draws_MB)
    )
    return Paired(scores.models, shifted_M, scores.error_M / room, shifted_M2, shifted_MB, scores.units)


def interval(draws_B: Array, units: int) -> list[float]:
    """Return the central 95 % of the draws as [low, high], widened for few units.

    Both ends are draws, with as many draws below the one as above the other. Infinite tails therefore stay outside,
    and the interval of the negative is the mirrored interval. A plain percentile interval of n units is too narrow by
    √((n − 1)/n), and because it takes the normal's quantile for t's. The tails cut off here are smaller by as much (the
    expanded percentile interval of Hesterberg, The American Statistician 69:371, 2015).
    """
    ordered_B = np.sort(draws_B)
    cut = round(_tail(units) * (len(ordered_B) - 1))
    return [float(ordered_B[cut]), float(ordered_B[len(ordered_B) - 1 - cut])]


def _tail(units: int) -> float:
    """Return Φ(−t √(n/(n−1))), t the quantile of Student's t with n − 1 degrees of freedom, as a series in 1/(n−1)."""
    if units < 2:
        return 0.0
    free, z = units - 1, QUANTILE
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return NormalDist().cdf(-t * (units / free) ** 0.5)


def _wilson(share_M: Array, units: int) -> Array:
    """Return Wilson's score interval of each share of `units` (J. Am. Stat. Assoc. 22:209, 1927)."""
    squared = QUANTILE**2 / units
    center_M = (share_M + squared / 2) / (1 + squared)
    half_M = np.sqrt(share_M * (1 - share_M) * squared + squared**2 / 4) / (1 + squared)
    return np.stack([center_M - half_M, center_M + half_M], axis=1)


def score_intervals(scores: Paired) -> dict[str, list[float]]:
    """Return each model's own interval, {model: [low, high]}."""
    return {model: ends_2.tolist() for model, ends_2 in zip(scores.models, scores.ends_M2, strict=True)}


def mcnemar(one_N: Array, other_N: Array) -> dict[str, Any] | None:
    """Return McNemar's exact test of two models on the same documents; None where a score is neither right nor wrong.

    {"only_one", "only_other", "p"}: the numbers of documents that only one of the two has right, and a two-sided
    probability. It is that of a split at least as uneven, if each such document falls to either side like a fair coin:
    2 · P(X ≤ min) for the binomial, at most 1.
    """
    if not (np.isin(one_N, (0, 1)).all() and np.isin(other_N, (0, 1)).all()):
        return None
    only_one, only_other = int((one_N > other_N).sum()), int((other_N > one_N).sum())
    discordant = only_one + only_other
    # Σ C(discordant, k) for k up to the smaller count, in whole numbers: exact however many documents there are.
    term = ways = 1
    for right in range(min(only_one, only_other)):
        term = term * (discordant - right) // (right + 1)
        ways += term
    return {"only_one": only_one, "only_other": only_other, "p": min(1.0, 2 * ways / 2**discordant)}


def difference(scores: Paired, one: str, other: str, hits_MN: Array | None = None) -> dict[str, Any]:
    """Return {"value", "interval", "clear"} of one − other. It is clear when the interval excludes 0.

    With `hits_MN`, the documents' scores behind an accuracy, there is also "mcnemar". A difference is then clear only
    if the exact test finds it too, at the same level and in the same direction.
    """
    value, draws_B = _minus(scores, one, other)
    low, high = interval(draws_B, scores.units)
    clear = scores.units >= MINIMUM_UNITS and (low > 0 or high < 0)
    found: dict[str, Any] = {"value": value, "interval": [low, high], "clear": clear}
    if hits_MN is None:
        return found
    test = mcnemar(hits_MN[scores.models.index(one)], hits_MN[scores.models.index(other)])
    if test is not None:
        ahead = test["only_one"] - test["only_other"]
        found["clear"] = clear and test["p"] < 1 - LEVEL and ahead * value > 0
    return found | {"mcnemar": test}


def retained(scores: Paired, *, reference: str, recovered: str, floor: str = "0") -> dict[str, Any]:
    """Return {"value", "interval"} of recovered / reference, for scores where more is better and 0 is nothing.

    Where the reference is not clearly above 0 (in words: `floor`), there is no number:
    {"value": None, "interval": None, "reason": why}.
    """
    base, kept = scores.models.index(reference), scores.models.index(recovered)
    if interval(scores.draws_MB[base], scores.units)[0] <= 0:
        return _no_number(f"reference not above {floor}")
    ratio_B = _ratio(scores.draws_MB[kept], scores.draws_MB[base])
    return {"value": float(scores.score_M[kept] / scores.score_M[base]), "interval": interval(ratio_B, scores.units)}


def share(
    scores: Paired,
    *,
    reference: str,
    pruned: str,
    recovered: str,
    higher_is_better: bool,
    hits_MN: Array | None = None,
) -> dict[str, Any]:
    """Return {"value", "interval"} of (recovered − pruned) / (reference − pruned), the part of the loss that came back.

    Where the loss is within noise there is no number but a reason: a ratio to nothing means nothing.
    """
    sign = 1.0 if higher_is_better else -1.0
    loss = difference(scores, reference, pruned, hits_MN)
    if not loss["clear"]:
        few = scores.units < MINIMUM_UNITS
        return _no_number(f"fewer than {MINIMUM_UNITS} documents" if few else "loss within noise")
    if sign * loss["value"] <= 0:
        return _no_number("no loss: the pruned model is the better one")
    gain, gain_B = _minus(scores, recovered, pruned)
    _, loss_B = _minus(scores, reference, pruned)
    return {"value": gain / loss["value"], "interval": interval(_ratio(sign * gain_B, sign * loss_B), scores.units)}


def _ratio(part_B: Array, whole_B: Array) -> Array:
    """Return part / whole. On draws where the whole is not above 0, it is infinite with the part's sign.

    A whole whose interval is above 0 has fewer such draws than a tail holds, so the ratio's interval is finite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole_B > 0, part_B / whole_B, np.copysign(np.inf, part_B))


def _minus(scores: Paired, one: str, other: str) -> tuple[float, Array]:
    a, b = scores.models.index(one), scores.models.index(other)
    return float(scores.score_M[a] - scores.score_M[b]), scores.draws_MB[a] - scores.draws_MB[b]


def _no_number(reason: str) -> dict[str, Any]:
    return {"value": None, "interval": None, "reason": reason}
