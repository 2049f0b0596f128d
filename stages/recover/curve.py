"""A point of the recovery curve: the scores of a few held-out rows, the same rows in every recovery on this data.

The validation loss is taken on each row as a whole. A row that carries choices, the responses that could have been
given, is a question as well. Its choices branch off from it in one prefix tree, so each choice costs only its own few
tokens.

The training loop decides when a point is due. Measuring a point changes neither random numbers nor gradients nor
weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from stages.errors import UserError
from stages.inference.encoding import Query
from stages.inference.scorer import Scorer
from stages.recover.asking import asking
from stages.recover.config import RecoverConfig
from stages.rows.packing import Document, encode, take
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Question:
    """The responses that could have been given to a row, the right one's index, and a query for each."""

    choices: list[str]
    gold: int
    queries: list[Query]


class Curve:
    """Held-out rows, and the model that scores them again and again while it is trained.

    Attributes:
        documents: the first rows that together reach `config.validation_tokens`, or all rows where they have fewer.
        questions: the rows among them that have choices.
        labels: number of tokens that the validation loss is taken on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[JSON],
        *,
        config: RecoverConfig,
        dtype: str,
    ) -> None:
        """Take the rows to score from the beginning of `rows`, of which any prefix is a fair mixture.

        Args:
            model: attends within documents (`use_packed_attention`) and has its adapter.
            tokenizer: the model's tokenizer.
            rows: prompt, response, task and, where there are any, choices, as the data stage writes them.
            config: how many tokens are scored, and on which the loss is taken.
            dtype: precision of the computation, "float32" or "bfloat16".

        Raises:
            UserError: there are no rows, or the scorer can't run this model.
        """
        if not rows:
            raise UserError("the recovery data holds no validation rows. Set data.validation_rows above 0.")
        tokenise = partial(encode, tokenizer=tokenizer, length=config.sequence_length)
        everything = config.loss == "all"
        self.documents = take((tokenise([row], label_prompts=everything)[0] for row in rows), config.validation_tokens)
        self.questions = [
            _question(row, tokenise(_branches(row), label_prompts=False), tokenizer.eos_token_id)
            for row in rows[: len(self.documents)]
            if row.get("choices")
        ]
        self.labels = sum(document.labels for document in self.documents)
        self._queries = [_query(document) for document in self.documents if document.labels]
        self._asked = [*self._queries, *(query for question in self.questions for query in question.queries)]
        self._model, self._dtype = model, dtype
        self._batch_tokens = config.micro_batch_tokens
        with asking(model, dtype):
            # Not the scorer's fast decoder, which keeps copies of weights: these may change under it.
            self._scorer = Scorer(model, tokenizer, batch_tokens=config.micro_batch_tokens, flat=False)

    def point(self, batch_tokens: int | None = None) -> JSON:
        """Return the validation loss in nats a labelled token, its perplexity, and the results of the questions.

        `batch_tokens` tokens are scored at a time, or without it as many as a micro-batch has.

        curve_accuracy is the share of questions whose likeliest choice is the response. curve_bits_per_byte is the bits
        of all responses divided by their bytes in UTF-8. Both are left out where no row has choices. Few questions say
        little, so readers show a score only where there are enough (`stages.common.questions`).
        """
        self._scorer.limit(batch_tokens or self._batch_tokens)
        with asking(self._model, self._dtype):
            nats = iter([nats for nats, _ in self._scorer.score(self._asked)])
        loss = -math.fsum(islice(nats, len(self._queries))) / max(self.labels, 1)
        # exp(709.8) is the largest float; a loss that has exploded must still give a number.
        point = {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
        if not self.questions:
            return point
        answered = [(question, list(islice(nats, len(question.choices)))) for question in self.questions]
        return point | {"curve_accuracy": _accuracy(answered), "curve_bits_per_byte": _bits_per_byte(answered)}


Answered = Sequence[tuple[Question, list[float]]]
"""Questions with the log-likelihood of each choice, in nats."""


def _accuracy(answered: Answered) -> float:
    # Compared by text and not by index, because two choices may be the same text.
    right = [
        question.choices[max(range(len(nats)), key=nats.__getitem__)] == question.choices[question.gold]
        for question, nats in answered
    ]
    return sum(right) / len(right)


def _bits_per_byte(answered: Answered) -> float:
    size = sum(len(question.choices[question.gold].encode()) for question, _ in answered)
    return -math.fsum(nats[question.gold] for question, nats in answered) / math.log(2) / size


def _branches(row: JSON) -> list[JSON]:
    return [{**row, "response": choice} for choice in row["choices"]]


def _question(row: JSON, branches: Sequence[Document], end: int | None) -> Question:
    queries = []
    for branch in branches:
        # The end-of-text token tells no response from another, and its bits belong to no response.
        ids = branch.ids[:-1] if branch.ids[-1] == end else branch.ids
        queries.append(Query(inputs=ids[:-1], targets=ids[branch.first_label :], truncated=branch.cut))
    return Question(row["choices"], row["choices"].index(row["response"]), queries)


def _query(document: Document) -> Query:
    first = max(document.first_label, 1)
    return Query(inputs=document.ids[:-1], targets=document.ids[first:], truncated=document.cut)
