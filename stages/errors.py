"""The errors that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or a condition that the user can mend. The message says what, where and the remedy.

    The command line prints it without a traceback and exits with status 1.
    """


class Diverged(UserError):
    """A training whose loss or gradient is not finite. A search for a learning rate counts it as a result.

    Attributes:
        step: the optimizer step in which it happened, counted from 1.
        tokens: the number of tokens trained on before that step.
    """

    def __init__(self, message: str, *, step: int, tokens: int) -> None:
        super().__init__(message)
        self.step, self.tokens = step, tokens
