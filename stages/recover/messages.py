"""What a worker and the process that started it say to each other: the job, points of the curve, how it ended."""

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
    """What a worker is told to do."""

    work: Work
    config: RecoverStageConfig
    inputs: Mapping[str, Path]
    context: Context
    rank: int
    port: int
    """Of the store on this machine through which the workers find each other."""
    threads: int


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the curve."""

    point: JSON


@dataclass(frozen=True, slots=True)
class Said:
    """What the leader's log says."""

    name: str
    level: int
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """What the leader's work returned."""

    summary: JSON


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker's error: what a user reads, or a traceback."""

    message: str
    at: float
    """Seconds on the machine's clock."""
    meant_for_users: bool
    diverged: tuple[int, int] | None = None
    """Step and tokens, of a loss that is not finite."""

    def error(self, rank: int) -> Exception:
        """Return what is to be raised."""
        if self.diverged is not None:
            return Diverged(self.message, step=self.diverged[0], tokens=self.diverged[1])
        if self.meant_for_users:
            return UserError(self.message)
        return RuntimeError(f"worker {rank} failed:\n{self.message}")


def as_failure(error: BaseException, traceback: str) -> Failed:
    """Return what a worker says of an error that it raised."""
    diverged = (error.step, error.tokens) if isinstance(error, Diverged) else None
    meant = isinstance(error, UserError)
    return Failed(str(error) if meant else traceback, time.monotonic(), meant, diverged)


def send(connection: Connection, message: Any) -> None:
    """Send to the process that started us, if it is there."""
    with suppress(OSError):
        connection.send(message)
