"""A worker's failure, as it is told to the process that started the worker."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from stages.errors import Diverged, UserError


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker's error: a message for the user, or a traceback."""

    message: str
    at: float
    """Seconds on the machine's monotonic clock, which all processes share."""
    meant_for_users: bool
    diverged: tuple[int, int] | None = None
    """Step and tokens of a loss that is not finite; else None."""

    def error(self, rank: int) -> Exception:
        """Return the error to raise in the process that started the workers."""
        if self.diverged is not None:
            return Diverged(self.message, step=self.diverged[0], tokens=self.diverged[1])
        if self.meant_for_users:
            return UserError(self.message)
        return RuntimeError(f"worker {rank} failed:\n{self.message}")


def as_failure(error: BaseException, traceback: str) -> Failed:
    """Return the message for an error that a worker raised."""
    diverged = (error.step, error.tokens) if isinstance(error, Diverged) else None
    meant = isinstance(error, UserError)
    return Failed(str(error) if meant else traceback, time.monotonic(), meant, diverged)


def ended_outside(rank: int, status: int | None, remedy: str) -> Failed:
    """Return the failure of a worker that something else ended, which comes before all failures that it caused."""
    return Failed(
        f"worker {rank} was ended from outside (status {status}), as the system does when memory runs out. {remedy}",
        at=0.0,
        meant_for_users=True,
    )


def send(connection: Connection, message: Any) -> None:
    """Send to the process that started this one, if it is still there."""
    with suppress(OSError):
        connection.send(message)
