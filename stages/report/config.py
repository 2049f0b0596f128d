"""Options that decide a report. No torch here, because a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """The subject of a report. Its numbers come from the input artifacts."""

    model: str
    prune: str
    adapter: str
    data: str
    reference: str
    """The model that "recovered" is measured against: "dense", "dense_recovered" (the dense model after the same
    recovery), or "none" where there is no dense model."""
    ratio: float | None
    """Requested share of all parameters; None where `channel_ratio` decides."""
    channel_ratio: float | None
    trained_tasks: list[str] = field(default_factory=list)
    """Judged tasks whose train splits are in the recovery data. Their scores mix recovery with task fitting."""
    resembles: dict[str, list[str]] = field(default_factory=dict)
    """Kinds of held-out text whose like is read, by what reads it: "calibration" and "recovery". The perplexity of
    these kinds flatters the model, so they are left out of the mean."""
    configuration: dict[str, Any] = field(default_factory=dict)
    """Configs of the stages that the report is on, as they entered their keys."""
    resamples: int = 2000
    """Bootstrap resamples over documents."""
    seed: int = 0
