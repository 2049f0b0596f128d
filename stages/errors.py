"""The errors a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or a condition the user can mend: the message says what, where and the remedy.

    The command line prints it without a traceback and exits with status 1.
    """


class Diverged(UserError):
    """A training whose loss or gradient is not finite: of a search for a learning rate a result, else an error.

    Attributes:
        step: the optimizer step it happened in, from 1.
        tokens: that were trained on before it.
    """

    def __init__(self, message: str, *, step: int, tokens: int) -> None:
        super().__init__(message)
        self.step, self.tokens = step, tokens
