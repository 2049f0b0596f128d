"""What decides a report. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What the report is of; the numbers come from the artifacts it is given."""

    model: str
    prune: str
    adapter: str
    data: str
    reference: str
    """What "recovered" is measured against: "dense", "dense_recovered" (the dense model after the same recovery), or
    "none" where no dense model can be had."""
    ratio: float | None
    """Share of all parameters asked for; None where `channel_ratio` rules."""
    channel_ratio: float | None
    trained_tasks: list[str] = field(default_factory=list)
    """Judged tasks whose train split is in the recovery data: their scores mix recovery with task fitting."""
    configuration: dict[str, Any] = field(default_factory=dict)
    """The configs of the stages it reports on, as they entered their keys."""
    resamples: int = 2000
    """Bootstrap resamples over documents."""
    seed: int = 0
