"""The messages between a worker and the process that started it: job, points of the curve, log, result.

A failure is told as any worker's is (`stages.processes.failure`), and a worker's peak memory as it is kept
(`stages.common.machine.Peak`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.recover.workers import Workers
from stages.stage import JSON, Context

Work = Callable[[Any, Mapping[str, Path], Context, Workers], JSON]
"""Maps (config, inputs, context, workers) to the result; all workers do it together."""


@dataclass(frozen=True, slots=True)
class Job:
    """The work that a worker is given, and its place among the workers."""

    work: Work
    config: Any
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
