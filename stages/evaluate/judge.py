"""Asking a model the questions of a task, and keeping what each answer was worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from math import isfinite, log
from typing import TYPE_CHECKING

from stages.errors import UserError
from stages.scoring.encoding import Query
from stages.scoring.scorer import Scorer
from stages.tasks.definitions import Document
from stages.stage import JSON

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

Answer = tuple[float, bool]
"""Log-likelihood of a choice in nats, and whether greedy decoding would give it."""


def judge(
    scorer: Scorer, task: ConfigurableTask, asked: Sequence[Document], advance: Callable[[int], object] = int
) -> list[JSON]:
    """Return one row a document, enough for paired statistics between models.

    Keys: doc (its index), gold, loglikelihoods and lengths (UTF-8 bytes) of the choices, acc and acc_norm as lm-eval
    scores them (acc_norm null where its task has none), bits (−log2 of the right answer's probability) and bytes
    (the right answer's length), truncated (whether a context was cut to fit the model).

    Raises:
        UserError: a log-likelihood is not finite.
    """
    queries = scorer.encoder.queries([request for document in asked for request in document.requests])
    answered = iter(zip(queries, scorer.score(queries, advance), strict=True))
    return [
        _row(task, index, document, list(islice(answered, len(document.requests))))
        for index, document in enumerate(asked)
    ]


def _row(task: ConfigurableTask, index: int, document: Document, answered: Sequence[tuple[Query, Answer]]) -> JSON:
    loglikelihoods = [loglikelihood for _, (loglikelihood, _) in answered]
    if not all(map(isfinite, loglikelihoods)):
        raise UserError(
            f"document {index} of task '{task.config.task}' has a log-likelihood that is not finite. "
            "Check the weights, or evaluate with evaluate.dtype=float32."
        )
    scores = task.process_results(document.doc, [answer for _, answer in answered])
    return {
        "doc": index,
        "gold": document.gold,
        "loglikelihoods": loglikelihoods,
        "lengths": document.lengths,
        "acc": scores["acc"],
        "acc_norm": scores.get("acc_norm"),
        "bits": -loglikelihoods[document.gold] / log(2),
        "bytes": document.lengths[document.gold],
        "truncated": any(query.truncated for query, _ in answered),
    }
