"""Passes of an evaluation that do not fit in memory are run again with half as much at a time.

How is in `stages.inference.fitting`; this file has the remedies of an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from stages.common import memory
from stages.inference import fitting
from stages.inference.fitting import Advance

if TYPE_CHECKING:
    from stages.inference.encoding import Query
    from stages.inference.scorer import Answer, Scorer

REMEDY = "Free some of it, or judge with evaluate.dtype=bfloat16 or shorter evaluate.corpus_lengths."
explained = partial(memory.explained, REMEDY)
"""Turns running out of memory in the block into a `UserError` with the remedies."""
with_fewer_tokens = partial(fitting.with_fewer_tokens, remedy=REMEDY)
"""Returns what the work returns once the scorer runs few enough tokens at a time."""


def scored(scorer: Scorer, queries: Sequence[Query], advance: Advance = int) -> list[Answer]:
    """Return `scorer.score`, with as many tokens at a time as fit.

    Raises:
        UserError: even few tokens do not fit.
    """
    return with_fewer_tokens(scorer, partial(scorer.score, queries), advance)
