"""Running out of memory in a recovery: smaller micro-batches are tried, and the error at the end names the remedies.

The global batch stays as it was. A step that does not fit is taken again in more and smaller micro-batches. That
affects only rounding (and the inputs that a dropout drops). Which errors mean it: `stages.common.memory`. What is
foreseen before anything is loaded: `.estimate`.
"""

from __future__ import annotations

from functools import partial

from stages.common import memory
from stages.common.memory import OutOfMemory, noticed

__all__ = ["OutOfMemory", "explained", "halved", "noticed"]

REMEDY = (
    "Free some of it, train fewer parameters (adapter.rank, adapter.targets), or set recover.base=nf4, "
    "recover.gradient_checkpointing=true, a smaller recover.micro_batch_tokens or a shorter recover.sequence_length."
)
ALONE = "Lower recover.sequence_length, or set recover.gradient_checkpointing=true: about a third more time."
explained = partial(memory.explained, REMEDY)
"""Turns running out of memory in the block into a `UserError` with the remedies."""


def halved(error: OutOfMemory) -> int:
    """Return how many tokens to try next.

    Raises:
        UserError: one document alone does not fit, or fewer tokens would not help.
    """
    return error.halved(REMEDY, ALONE)
