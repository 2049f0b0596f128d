"""Running out of memory: how it is told from other errors, what is tried next, and what the user is told in the end.

The global batch stays what it was: a step that does not fit is taken again in more and smaller micro-batches, which
changes nothing but rounding (and which inputs a dropout drops).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.common.machine import return_freed_memory
from stages.errors import UserError

SIGNS = (
    "can't allocate memory",  # torch's allocator on a processor
    "out of memory",
    "bad_alloc",
    "could not create a memory",  # oneDNN
    "ALLOC_FAILED",  # cuBLAS and cuDNN, whose workspaces torch's allocator does not serve
)
"""What a `RuntimeError` says where it means that memory has run out."""
QUOTED = 120
"""Characters of such a message that are passed on."""
LEAST = 16
"""Tokens of the smallest micro-batch that is tried; what fails below it is not the micro-batch's fault."""


class OutOfMemory(Exception):
    """What was run with `tokens` tokens at a time needs more memory than there is; `alone`: it was one document."""

    def __init__(self, reason: str, *, tokens: int, alone: bool) -> None:
        super().__init__(reason)
        self.tokens, self.alone = tokens, alone

    def halved(self) -> int:
        """Return how many tokens to try next.

        Raises:
            UserError: one document alone does not fit, or fewer tokens would not help.
        """
        if self.alone:
            raise UserError(
                f"a single document of {self.tokens:,} tokens does not fit in memory ({self}). Lower "
                "recover.sequence_length, or set recover.gradient_checkpointing=true: about a third more time."
            )
        if self.tokens < 2 * LEAST:
            raise UserError(f"even {self.tokens} tokens at a time do not fit in memory ({self}). {REMEDY}")
        return self.tokens // 2


REMEDY = (
    "Free some of it, train fewer parameters (adapter.rank, adapter.targets), or set recover.gradient_checkpointing="
    "true, a smaller recover.micro_batch_tokens or a shorter recover.sequence_length."
)


def ran_out(error: BaseException) -> bool:
    """Return whether `error` says that there is no memory left, on a processor or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def noticed(*, tokens: int, alone: bool = False) -> Iterator[None]:
    """Turn running out of memory in the block into an `OutOfMemory` that says how much was run at a time."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(_reason(error), tokens=tokens, alone=alone) from error


@contextmanager
def explained() -> Iterator[None]:
    """Turn running out of memory in the block into one error with the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise UserError(f"there is not enough memory ({_reason(error)}). {REMEDY}") from error


def release() -> None:
    """Give back what a failed pass held; call it when its exception, whose traceback holds tensors, is gone."""
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reason(error: BaseException) -> str:
    """Return the first line of `error` from where it speaks of memory, at most `QUOTED` characters of it."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line[max(line.find("DefaultCPUAllocator"), 0) :][:QUOTED].rstrip(". ")
