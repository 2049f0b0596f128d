"""Passes of an evaluation that do not fit in memory are run again with half as much at a time.

A scorer is given half the tokens, and a writer half the prompts. What was halved stays so for the rest of the
evaluation. That affects only rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from stages.common import memory
from stages.common.machine import release_memory
from stages.errors import UserError

if TYPE_CHECKING:
    from stages.inference.encoding import Query
    from stages.inference.scorer import Answer, Scorer

log = logging.getLogger(__name__)

Advance = Callable[[int], object]
"""Is told how many more answers are done; fewer than none where they have to be given again."""
Done = TypeVar("Done")
Prompt = TypeVar("Prompt")
SAID = "%d %s at a time do not fit in memory (%s): going on with %d."
REMEDY = "Free some of it, or judge with evaluate.dtype=bfloat16 or shorter evaluate.corpus_lengths."
explained = partial(memory.explained, REMEDY)
"""Turns running out of memory in the block into a `UserError` with the remedies."""


def scored(scorer: Scorer, queries: Sequence[Query], advance: Advance = int) -> list[Answer]:
    """Return `scorer.score`, with as many tokens at a time as fit.

    Raises:
        UserError: even few tokens do not fit.
    """
    return with_fewer_tokens(scorer, partial(scorer.score, queries), advance)


def with_fewer_tokens(scorer: Scorer, work: Callable[[Advance], Done], advance: Advance = int) -> Done:
    """Return what `work` returns once `scorer` runs few enough tokens at a time.

    Raises:
        UserError: even few tokens do not fit.
    """
    while True:
        counted = _Counted(advance)
        try:
            with memory.noticed(tokens=scorer.batch_tokens):
                return work(counted)
        except memory.OutOfMemory as error:
            scorer.limit(tokens := error.halved(REMEDY))
            log.warning(SAID, error.tokens, "tokens", error, tokens)
        # Behind the `except` block, whose error holds the tensors of the failed pass.
        release_memory()
        counted.undo()


@dataclass(slots=True)
class InParts:
    """Prompts that are continued as many at a time as fit.

    Attributes:
        most: prompts at a time; None: all that are given.
    """

    most: int | None = None

    def __call__(
        self, write: Callable[[Sequence[Prompt], Advance], list[Done]], prompts: Sequence[Prompt], advance: Advance
    ) -> list[Done]:
        """Return what `write` returns for `prompts`, in their order.

        Raises:
            UserError: a single prompt does not fit.
        """
        written: list[Done] = []
        while len(written) < len(prompts):
            part = prompts[len(written) :][: self.most]
            counted = _Counted(advance)
            try:
                with memory.noticed(tokens=len(part)):
                    written += write(part, counted)
                continue
            except memory.OutOfMemory as error:
                if len(part) == 1:
                    raise UserError(f"a single prompt does not fit in memory ({error}). {REMEDY}") from error
                self.most = len(part) // 2
                log.warning(SAID, len(part), "prompts", error, self.most)
            release_memory()
            counted.undo()
        return written


class _Counted:
    """What was advanced, so that it can be taken back."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.done = advance, 0

    def __call__(self, more: int) -> None:
        self.done += more
        self.advance(more)

    def undo(self) -> None:
        self.advance(-self.done)
