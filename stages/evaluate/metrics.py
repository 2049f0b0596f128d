"""From documents to scores: means, standard errors, chance floors, bits per byte. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt
from typing import Any

from stages.stage import JSON


def summarise(rows: Sequence[JSON]) -> JSON:
    """Return the scores of one task from its documents.

    chance is the mean over documents of one over the number of choices; bits_per_byte is the bits of all right answers
    over their bytes (null where they have none); acc_norm and its error are null where lm-eval defines none; truncated
    counts the documents whose context was cut.
    """
    normalised = None not in (row["acc_norm"] for row in rows)
    size = sum(row["bytes"] for row in rows)
    scores: JSON = {"chance": mean([1 / len(row["loglikelihoods"]) for row in rows])}
    for metric in ("acc", "acc_norm"):
        values = [row[metric] for row in rows] if normalised or metric == "acc" else None
        scores[metric] = mean(values) if values else None
        scores[f"{metric}_stderr"] = standard_error(values) if values else None
    scores["bits_per_byte"] = fsum(row["bits"] for row in rows) / size if size else None
    return scores | {"n": len(rows), "truncated": sum(row["truncated"] for row in rows)}


def average(tasks: Sequence[JSON]) -> JSON:
    """Return the unweighted mean over tasks of each score; for acc_norm over the tasks that have it.

    acc_stderr is that of the mean of independent tasks.
    """
    scores: JSON = {"tasks": len(tasks)}
    for metric in ("acc", "acc_norm", "bits_per_byte", "chance"):
        scores[metric] = mean([task[metric] for task in tasks if task[metric] is not None])
    errors: list[Any] = [task["acc_stderr"] for task in tasks]
    known = errors and None not in errors
    scores["acc_stderr"] = sqrt(fsum(error**2 for error in errors)) / len(errors) if known else None
    return scores | {"acc_norm_tasks": sum(task["acc_norm"] is not None for task in tasks)}


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None of nothing."""
    return fsum(values) / len(values) if values else None


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean from the sample variance, as lm-eval takes it; None below two values."""
    if len(values) < 2:
        return None
    center = fsum(values) / len(values)
    return sqrt(fsum((value - center) ** 2 for value in values) / (len(values) - 1) / len(values))
