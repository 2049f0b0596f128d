"""What decides how a model is pruned. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class Calibration:
    """Text that data-driven criteria look at."""

    sequences: int = 10
    """Number of sequences (LLM-Pruner: 10)."""
    length: int = 64
    """Tokens in each sequence (LLM-Pruner: 64)."""


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """Common to every criterion; a criterion with options of its own subclasses this in its file."""

    method: str = "none"
    """Name in `stages.prune.criteria.CRITERIA`, or "none" / "sheared" where nothing is cut."""
    ratio: float = 0.0
    """Share of all parameters (embeddings included) to remove, in [0, 1); hit within 0.005."""
    channel_ratio: float | None = None
    """LLM-Pruner's own ratio: share of heads and of MLP channels to remove in each pruned layer. Replaces `ratio`."""
    layers: str = "all"
    """Layers to prune: "all", or "4-27", "0,2,5-7" (zero-based, inclusive); the others keep their shape."""
    calibration: Calibration = field(default_factory=Calibration)
    calibration_ids: Any = None
    """Token ids to calibrate on, a list of lists with one list a sequence, in place of rows from the data. On the
    command line a JSON file; the plan reads it, so that its content and not its path enters the key."""
    dtype: str = "float32"
    """Precision of the scores' forward and backward passes: float32 or bfloat16."""
    seed: int = 0
