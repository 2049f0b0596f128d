"""What every adapter's options begin with. No torch here: a plan reads this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class AdapterConfig:
    """Common to every adapter; each subclasses this in its file with options of its own."""

    name: str = "none"
    """Name in `stages.adapters.registry`, or "none" where nothing is recovered."""
