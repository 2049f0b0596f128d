"""The interface of trackers: what one is opened with, what it is given, and when it ends. A silent one is here too.

A tracker follows one run of the pipeline. The curve arrives while a recovery is built. What was found arrives at the
end, for each job that the run had. Whatever a tracker does wrong becomes one warning, and never stops a recovery.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

log = logging.getLogger("pipeline")

PRUNE, RECOVER = "prune", "recover"
JOBS = (RECOVER, PRUNE)
"""The jobs that are tracked, each as one run of the tracker. They are roles of the pipeline's graph."""
TOKENS = "recover/tokens"
ID_DIGITS = 16
"""Hex digits of a stage's key that identify a tracker's run, as in an artifact's directory."""


class Mode(Enum):
    """Whether W&B sends anything. Only `online` does."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    """Where the recovery's curve is followed. Nothing here enters a key."""

    name: str = "none"
    """wandb, trackio or none."""
    project: str = "prune-recover"
    """Name under which all runs stand, in W&B and trackio alike."""
    group: str | None = None
    """Name under which runs are grouped; null takes what was pruned and by how much."""
    entity: str | None = None
    """W&B's user or team that an online run belongs to; null is the account's own."""
    mode: Mode = Mode.offline
    """W&B's: offline writes files below `directory` and sends nothing. online needs an account. disabled writes
    nothing."""
    directory: str = "."
    """Where the tracker makes its `wandb/` or `trackio/` directory, relative to the working directory."""
    files: bool = False
    """Whether W&B also gets the run directory's report files."""
    model: bool = False
    """Whether W&B also gets the weights: of a recovery its model (or its adapter), of a pruning the pruned model."""
    system: bool = False
    """Whether use of processor, memory and GPU is recorded too, and what machine it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One job as a tracker names it.

    Attributes:
        name: the artifact's label.
        group: names the pruned model.
        key: the artifact's key.
        configuration: the configurations that decide the job, by role.
    """

    name: str
    group: str
    key: str
    configuration: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The run's id with the tracker. It comes from the key, so a job that is done again goes on in its own run."""
        return self.key[:ID_DIGITS]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of plain values: numbers, words or None."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a job has found.

    Attributes:
        figures: the main figures, by name.
        tables: by name.
        manifest: the manifest of the job's artifact, and None where there is none.
        model: the directory of the weights.
        files: the report's files.
    """

    figures: Mapping[str, float]
    tables: Mapping[str, Table] = field(default_factory=dict)
    manifest: Path | None = None
    model: Path | None = None
    files: Sequence[Path] = ()

    def digest(self, *more: Any) -> str:
        """Return the SHA-256 of the figures, the tables and `more`."""
        tables = {name: [table.columns, table.rows] for name, table in self.tables.items()}
        return hashlib.sha256(
            json.dumps([dict(self.figures), tables, *more], sort_keys=True, default=str).encode()
        ).hexdigest()


class Tracker:
    """A tracker that does nothing, as `tracker=none` gives it, and the interface of the others."""

    def log(self, point: Mapping[str, Any]) -> None:
        """Take one point of the curve as it appears: a flat dictionary of numbers, with "tokens" among them."""

    def replay(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Take a finished recovery's whole curve. Points that were logged live are not repeated.

        To read `points` may fail: a tracker iterates over them in an attempt.
        """

    def conclude(self, find: Callable[[str], Findings]) -> None:
        """Take what each job has found. What the tracker already holds is not repeated.

        `find` returns a job's findings, or fails: a tracker calls it in an attempt.
        """

    def close(self, *, failed: bool = False) -> str:
        """Finish, however the run ended, and return where to look, in one line; "" where nothing was tracked."""
        return ""


class Curve:
    """The points of a curve in their order, each once, and how many of them were sent."""

    def __init__(self) -> None:
        self._points: dict[str, dict[str, Any]] = {}
        self._sent = 0

    def take_all(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Keep each point that was not taken before."""
        for point in points:
            self.take(point)

    def take(self, point: Mapping[str, Any]) -> None:
        """Keep the point unless it was taken before: a replay repeats what was logged live."""
        mark = json.dumps(point, sort_keys=True)
        self._points.setdefault(mark, {f"{RECOVER}/{name}": value for name, value in point.items()})

    def send(self, log: Callable[[dict[str, Any], int], None]) -> None:
        """Call `log` with each point that was not sent, and with its place in the curve.

        A resumed recovery gives its curve again from the beginning, so a place always means the same point.
        """
        for place, point in enumerate(list(self._points.values())[self._sent :], start=self._sent):
            log(point, place)
            self._sent = place + 1

    def rewind(self) -> None:
        """Have all points sent again."""
        self._sent = 0

    def marks(self) -> list[str]:
        """Return what identifies the points."""
        return sorted(self._points)

    def __len__(self) -> int:
        return len(self._points)


@contextmanager
def following(tracker: Tracker) -> Iterator[Tracker]:
    """Give the tracker to the block and finish it after, as a failed run where an exception passes through."""
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        if line := tracker.close(failed=failed):
            log.info("%s", line)


class Attempts:
    """Runs a tracker's actions until one fails: the failure is one warning, and nothing is tried after it."""

    def __init__(self, name: str) -> None:
        self.name, self.over = name, False

    def __call__(self, action: Callable[[], None]) -> bool:
        """Return whether `action` succeeded. It may raise anything, and no error of it may stop a recovery."""
        if self.over:
            return False
        try:
            action()
        except Exception as error:
            self.over = True
            log.warning("%s failed (%s); the run goes on without it.", self.name, first_line(error))
            return False
        return True


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
