"""Passes of a scorer or a generator that do not fit in memory are run again with half as much at a time.

A scorer is given half the tokens, and a generator half the prompts. What was halved stays so for the next passes. That
affects only rounding. The caller brings the remedy that an error names where nothing is left to halve.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from stages.common import memory
from stages.common.machine import release_memory
from stages.errors import UserError

if TYPE_CHECKING:
    from stages.inference.generator import Generator, Ids, Sampling, Written
    from stages.inference.scorer import Scorer

log = logging.getLogger(__name__)

Advance = Callable[[int], object]
"""Is told how many more answers are done; fewer than none where they have to be given again."""
Done = TypeVar("Done")
Prompt = TypeVar("Prompt")
SAID = "%d %s at a time do not fit in memory (%s): going on with %d."


def with_fewer_tokens(scorer: Scorer, work: Callable[[Advance], Done], advance: Advance = int, *, remedy: str) -> Done:
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
            scorer.limit(tokens := error.halved(remedy))
            log.warning(SAID, error.tokens, "tokens", error, tokens)
        # Behind the `except` block, whose error holds the tensors of the failed pass.
        release_memory()
        counted.undo()


@dataclass(slots=True)
class InParts:
    """Prompts that are continued as many at a time as fit.

    Attributes:
        remedy: what may help where a single prompt does not fit.
        most: prompts at a time; None: all that are given.
    """

    remedy: str
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
                    raise UserError(f"a single prompt does not fit in memory ({error}). {self.remedy}") from error
                self.most = len(part) // 2
                log.warning(SAID, len(part), "prompts", error, self.most)
            release_memory()
            counted.undo()
        return written


def continued(
    generator: Generator,
    in_parts: InParts,
    contexts: Sequence[Ids],
    *,
    sampling: Sampling | None = None,
    advance: Advance = int,
    **options: Any,
) -> list[Written]:
    """Return `generator.continuations` of `contexts`, as many at a time as fit; `options` are its other arguments.

    Raises:
        UserError: a single context does not fit.
    """

    def write(places: Sequence[int], done: Advance) -> list[Written]:
        drawn = sampling and replace(sampling, seeds=[sampling.seeds[place] for place in places])
        return generator.continuations([contexts[place] for place in places], sampling=drawn, advance=done, **options)

    return in_parts(write, range(len(contexts)), advance)


class _Counted:
    """What was advanced, so that it can be taken back."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.done = advance, 0

    def __call__(self, more: int) -> None:
        self.done += more
        self.advance(more)

    def undo(self) -> None:
        self.advance(-self.done)
