"""What decides how a model is pruned. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GRANULARITIES = ("heads", "queries", "channels", "hidden", "attention", "mlp", "layers")
"""The kinds of group that can go; `stages.prune.groups` says what each is."""
DEPTH = ("layers", "attention", "mlp")
"""Those that are a layer or a sub-layer."""
ALLOCATIONS = ("paper", "uniform", "global", "searched")
COMPENSATIONS = ("none", "bias", "least_squares")
BUDGETS = ("parameters", "macs")
OFFLOADS = ("none", "layer")
SCOPES = {"layer": "uniform", "global": "global"}
"""The field's word for where groups are ranked, and the allocation that it means."""


@dataclass(kw_only=True, slots=True)
class Calibration:
    """Text that data-driven criteria look at."""

    sequences: int = 10
    """Number of sequences (LLM-Pruner: 10)."""
    length: int = 64
    """Tokens in each sequence (LLM-Pruner: 64)."""
    data: str | None = None
    """Data set that it comes from (commonsense, passages); null takes the recovery's."""


@dataclass(kw_only=True, slots=True)
class Search:
    """What `allocation=searched` may spend, and on what."""

    trials: int = 3
    """Allocations that are tried on the model itself; the predicted best ones."""
    sequences: int = 16
    """Calibration sequences that each trial's loss is measured on: one forward pass over these a trial."""
    uniform: bool = False
    """Only allocations by which every layer ends with the same shape, so that the stock architecture takes it."""


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """Common to every criterion; a criterion with options of its own subclasses this in its file."""

    method: str = "none"
    """Name in `stages.prune.criteria.CRITERIA`, or "none" / "sheared" where nothing is cut."""
    ratio: float | None = None
    """Share of all parameters (embeddings included) to remove, in [0, 1); hit within 0.005. Null takes the run's."""
    budget: str = "parameters"
    """What `ratio` is a share of: parameters, or macs (multiply-accumulates a token)."""
    megabytes: float | None = None
    """Size of the weights to arrive at, in MB (10⁶ bytes) of the precision they are stored in. Replaces `ratio`."""
    channel_ratio: float | None = None
    """LLM-Pruner's own ratio: share of heads and of MLP channels to remove in each pruned layer. Replaces `ratio`."""
    layer_ratios: list[float] | None = None
    """The same for each layer by itself, one share a layer. Replaces `ratio`."""
    layers: str = "all"
    """Layers to prune: "all", or "4-27", "0,2,5-7" (zero-based, inclusive); the others keep their shape."""
    granularity: list[str] = field(default_factory=lambda: ["heads", "channels"])
    """Kinds of group that may go: heads, queries, channels, hidden, attention, mlp, layers."""
    allocation: str = "uniform"
    """How much goes where: paper (as the criterion's paper does), uniform (every layer alike), global (groups of all
    layers ranked together), searched (by what each cut costs the calibration loss)."""
    scope: str | None = None
    """Another word for the allocation: layer (uniform) or global."""
    search: Search = field(default_factory=Search)
    round_to: int = 1
    """Kept MLP and hidden channels are multiples of this (64 or 128 for fast kernels)."""
    max_per_layer: float = 0.9
    """Largest share of one layer's heads, and of its channels, that a ranking across layers may remove, in (0, 1]."""
    steps: int = 1
    """Prune in this many equal steps, scoring again before each."""
    compensate: str = "none"
    """Change the attention's and the MLP's output projections to make up for what is gone, without training: none, bias
    (FLAP's) or least_squares."""
    again: bool = False
    """Cut a model further that comes pruned; without it such a model is left as it is."""
    offload: str = "none"
    """layer: hold one layer's weights in memory at a time (for criteria without gradients), or none."""
    calibration: Calibration = field(default_factory=Calibration)
    calibration_ids: Any = None
    """Token ids to calibrate on, a list of lists with one list a sequence, in place of rows from the data. On the
    command line a JSON file; the plan reads it, so that its content and not its path enters the key."""
    dtype: str = "float32"
    """Precision of the scores' forward and backward passes: float32 or bfloat16."""
    seed: int = 0
