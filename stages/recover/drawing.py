"""The documents of each step: steps share the budget evenly, and each draws until the run has reached its share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from stages.recover.checkpoints import Progress
from stages.recover.config import RecoverConfig
from stages.rows.packing import Document, take, tokens_of
from stages.rows.tokens import Tokenised


@dataclass(frozen=True, slots=True)
class Drawn:
    """The documents that were drawn for a step."""

    documents: list[Document]
    tokens: int
    """Their tokens, prompts included."""
    beyond: float
    """What they have of the tokens that were asked for; above 1, because a step ends with a whole document."""


def steps(stream: Tokenised, config: RecoverConfig, progress: Progress) -> Iterator[Drawn]:
    """Yield the documents of each step after `progress`, up to the end of the budget.

    They follow from the rows and the budget alone. So a step may be drawn before the one ahead of it has been taken.
    """
    documents = stream.documents(progress.documents)
    step, tokens, count = progress.step, progress.tokens, math.ceil(config.tokens / config.batch_tokens)
    while tokens < config.tokens:
        step += 1
        asked = config.tokens * min(step, count) // count - tokens
        drawn = take(documents, asked)
        size = tokens_of(drawn)
        yield Drawn(drawn, size, size / asked)
        tokens += size
