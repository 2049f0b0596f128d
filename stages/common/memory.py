"""Running out of memory: the errors that mean it, and work that is tried again with fewer tokens at a time.

torch is imported at the top, so a plan does not import this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.errors import UserError

SIGNS = (
    "can't allocate memory",  # torch's allocator on a processor
    "out of memory",
    "bad_alloc",
    "could not create a memory",  # oneDNN
    "ALLOC_FAILED",  # cuBLAS and cuDNN, whose workspaces torch's allocator does not serve
)
"""Parts of the message of a `RuntimeError` that means that memory has run out."""
QUOTED = 120
"""Characters of such a message that are passed on."""
LEAST = 16
"""The fewest tokens at a time that are tried; where these fail, their number is not the cause."""


class OutOfMemory(Exception):
    """A pass with `tokens` tokens at a time needed more memory than there is; `alone`: it had a single document."""

    def __init__(self, reason: str, *, tokens: int, alone: bool) -> None:
        super().__init__(reason)
        self.tokens, self.alone = tokens, alone

    def halved(self, remedy: str, alone: str = "") -> int:
        """Return how many tokens to try next.

        Raises:
            UserError: fewer tokens would not help, and `remedy` may; or one document alone does not fit, and `alone`
                may help.
        """
        if self.alone:
            raise UserError(f"a single document of {self.tokens:,} tokens does not fit in memory ({self}). {alone}")
        if self.tokens < 2 * LEAST:
            raise UserError(f"even {self.tokens} tokens at a time do not fit in memory ({self}). {remedy}")
        return self.tokens // 2


def ran_out(error: BaseException) -> bool:
    """Return whether `error` says that there is no memory left, on a processor or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def noticed(*, tokens: int, alone: bool = False) -> Iterator[None]:
    """Turn running out of memory in the block into an `OutOfMemory` with the number of tokens that ran at a time."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(_reason(error), tokens=tokens, alone=alone) from error


@contextmanager
def explained(remedy: str) -> Iterator[None]:
    """Turn running out of memory in the block into a `UserError` with the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise UserError(f"there is not enough memory ({_reason(error)}). {remedy}") from error


def _reason(error: BaseException) -> str:
    """Return the part about memory of the first line of `error`, at most `QUOTED` characters."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line[max(line.find("DefaultCPUAllocator"), 0) :][:QUOTED].rstrip(". ")
