"""The one error a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or a condition the user can mend: the message says what, where and the remedy.

    The command line prints it without a traceback and exits with status 1.
    """
