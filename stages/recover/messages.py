"""The messages between a worker and the process that started it: job, points of the curve, log, result, failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stages.errors import Diverged, UserError
from stages.recover.config import RecoverStageConfig
from stages.recover.workers import Workers
from stages.stage import JSON, Context

Work = Callable[[RecoverStageConfig, Mapping[str, Path], Context, Workers], JSON]


@dataclass(frozen=True, slots=True)
class Job:
    """The work that a worker is given, and its place among the workers."""

    work: Work
    config: RecoverStageConfig
    inputs: Mapping[str, Path]
    context: Context
    rank: int
    port: int
    """Port of the store on this machine through which the workers find each other."""
    threads: int


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the curve."""

    point: JSON


@dataclass(frozen=True, slots=True)
class Said:
    """A record of the leader's log."""

    name: str
    level: int
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of the leader's work."""

    summary: JSON


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


def send(connection: Connection, message: Any) -> None:
    """Send to the process that started this one, if it is still there."""
    with suppress(OSError):
        connection.send(message)
