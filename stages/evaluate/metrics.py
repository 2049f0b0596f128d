"""Scores from documents: means, standard errors, chance floors, bits per byte. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum, sqrt
from typing import Any

from stages.stage import JSON


def summarise(rows: Sequence[JSON]) -> JSON:
    """Return the scores of one task from its documents.

    - chance is the mean over documents of 1 / number of choices; null where an answer is free.
    - bits_per_byte is the bits of all right answers over their bytes.
    - acc_norm and its error are there where every document has one.
    - unparsed is the share of written answers in which nothing could be read (they count as wrong); null where choices
      are weighed.
    - truncated counts the documents whose context was cut.
    """
    scores: JSON = {"chance": _chance(rows), "unparsed": unparsed(rows)}
    for metric in ("acc", "acc_norm"):
        values = _known(row[metric] for row in rows)
        scores[metric] = mean(values) if values else None
        scores[f"{metric}_stderr"] = standard_error(values) if values else None
    bits, size = _known(row["bits"] for row in rows), sum(_known(row["bytes"] for row in rows) or [])
    scores["bits_per_byte"] = fsum(bits) / size if bits and size else None
    return scores | {"n": len(rows), "truncated": sum(row["truncated"] for row in rows)}


def average(tasks: Sequence[JSON]) -> JSON:
    """Return the unweighted mean of each score over the tasks that have it.

    acc_stderr is the standard error of the mean of independent tasks.
    """
    scores: JSON = {"tasks": len(tasks)}
    for metric in ("acc", "acc_norm", "bits_per_byte", "chance"):
        scores[metric] = mean([task[metric] for task in tasks if task[metric] is not None])
    errors = _known(task["acc_stderr"] for task in tasks)
    scores["acc_stderr"] = sqrt(fsum(error**2 for error in errors)) / len(errors) if errors else None
    return scores | {"acc_norm_tasks": sum(task["acc_norm"] is not None for task in tasks)}


def _chance(rows: Sequence[JSON]) -> float | None:
    """Return the score of guessing. A row has its number of choices, or a log-likelihood for each choice."""
    choices = _known(row.get("choices") or len(row.get("loglikelihoods") or ()) or None for row in rows)
    return mean([1 / count for count in choices]) if choices and min(choices) > 1 else None


def unparsed(rows: Sequence[JSON]) -> float | None:
    """Return the share of written answers in which nothing could be read; None where no answer was written."""
    answers = _known(row.get("answer") for row in rows)
    return mean([float(not answer) for answer in answers]) if answers else None


def _known(values: Iterable[Any]) -> list[Any] | None:
    """Return the values, or None where any is missing."""
    found = list(values)
    return None if None in found else found


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None for no values."""
    return fsum(values) / len(values) if values else None


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean from the sample variance, as in lm-eval; None for fewer than two values."""
    if len(values) < 2:
        return None
    center = fsum(values) / len(values)
    return sqrt(fsum((value - center) ** 2 for value in values) / (len(values) - 1) / len(values))
