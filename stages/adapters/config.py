"""Options that every adapter has. No torch here: a plan reads this."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class AdapterConfig:
    """Options common to every adapter; each adapter subclasses this in its file with options of its own."""

    name: str = "none"
    """Name in `stages.adapters.registry`, or "none" where nothing is recovered."""
