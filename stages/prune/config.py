"""Options of pruning that all criteria share. No torch here: a plan reads these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.common.later import LATER

GRANULARITIES = ("heads", "queries", "channels", "hidden", "attention", "mlp", "layers")
"""The kinds of group that can be removed; `stages.prune.groups` describes each."""
DEPTH = ("layers", "attention", "mlp")
"""The kinds of group that are a whole layer or sub-layer."""
ALLOCATIONS = ("paper", "uniform", "global", "searched")
SHAPES = ("free", "alike", "served")
COMPENSATIONS = ("none", "bias", "least_squares", "sequential")
FITTED = ("least_squares", "sequential")
"""The compensations that fit weights by least squares; losses are then those after a fit."""
BUDGETS = ("parameters", "macs")
OFFLOADS = ("none", "layer")
SCOPES = {"layer": "uniform", "global": "global"}
"""The literature's word for the scope of a ranking, and the allocation that it means."""
RENAMED = {"prune.search.uniform": "prune.shapes=alike (or free)"}
"""Options that have another name now, for the error that names it."""


@dataclass(kw_only=True, slots=True)
class Calibration:
    """The text that data-driven criteria read."""

    sequences: int = 10
    """Number of sequences (LLM-Pruner: 10)."""
    length: int = 64
    """Tokens in each sequence (LLM-Pruner: 64)."""
    data: str | None = None
    """Data set that the text comes from (commonsense, passages); null takes the recovery's data."""
    curvature: int = 64
    """Number of sequences, the first ones, whose gradients give the Fisher information of the surgeon and of
    allocation=searched. The inputs of maps are read from all sequences, which costs a third as much."""


@dataclass(kw_only=True, slots=True)
class Search:
    """Limits of the search of `allocation=searched`."""

    trials: int = 3
    """Number of allocations that are tried on the model itself: those with the lowest predicted loss."""
    sequences: int = 16
    """Calibration sequences that each trial's loss is measured on. A trial is one forward pass over them."""


@dataclass(kw_only=True, slots=True)
class PruneConfig:
    """Options common to every criterion; a criterion with options of its own subclasses this in its file."""

    method: str = "none"
    """Name in `stages.prune.criteria.CRITERIA`, or "none" / "sheared" where nothing is cut."""
    ratio: float | None = None
    """Share of all parameters (embeddings included) to remove, in [0, 1); met within 0.005. Null: the run's ratio."""
    budget: str = "parameters"
    """The quantity that `ratio` is a share of: parameters, or macs (multiply-accumulates a token)."""
    megabytes: float | None = None
    """Size of the pruned weights, in MB (10⁶ bytes) at the precision they are stored in. Replaces `ratio`."""
    channel_ratio: float | None = None
    """LLM-Pruner's own ratio: share of heads and of MLP channels to remove in each pruned layer. Replaces `ratio`."""
    layer_ratios: list[float] | None = None
    """The channel ratio of each layer, one share a layer. Replaces `ratio`."""
    layers: str | None = None
    """Layers to prune: "all", or "4-27", "0,2,5-7" (zero-based, inclusive); the others keep their shape. Null: with
    allocation=paper the layers that the criterion's paper prunes (of llmpruner 4-29 of 32), else all."""
    granularity: list[str] = field(default_factory=lambda: ["heads", "channels"])
    """Kinds of group that may be removed: heads, queries, channels, hidden, attention, mlp, layers."""
    allocation: str = "paper"
    """How the budget is shared out: paper (as the criterion's paper does), uniform (every layer alike), global (groups
    of all layers ranked together), searched (by the calibration loss that each cut costs)."""
    shapes: str = "free"
    """The shapes that layers may end with: free (each layer its own), alike (allocation=searched tries only shapes that
    all layers share, which the stock architecture takes), or served (each layer its own as far as vLLM, SGLang and
    TensorRT-LLM read it: heads go in all layers alike, and the first layer keeps its attention)."""
    serve: str = field(default="vllm", metadata=LATER)
    """The server that shapes=served and export=decilm are for: vllm, sglang or tensorrt. The last two read MLP widths
    that are multiples of 256."""
    scope: str | None = None
    """Another name for the allocation: layer (uniform) or global."""
    search: Search = field(default_factory=Search)
    round_to: int | None = None
    """The numbers of kept MLP and hidden channels are multiples of this. Null: 64 for MLP channels of wide layers,
    which fast kernels want, else 1 (`stages.prune.allocation.rounding`)."""
    max_per_layer: float = 0.9
    """Largest share of one layer's heads, and of its channels, that a ranking across layers may remove, in (0, 1]."""
    steps: int = 1
    """Number of equal steps in which the budget is removed; groups are scored again before each step. 0: one, or two
    where 40 % or more of the size goes."""
    compensate: str = "none"
    """How the weights that stay make up for the cut, without training: none, bias (FLAP's), least_squares (output
    projections, on the dense model's inputs) or sequential (all maps, on the already cut layers' inputs)."""
    again: bool = False
    """Whether a model that comes pruned is cut further; otherwise pruning it is an error."""
    offload: str = "none"
    """layer: one layer's weights are in memory at a time (for criteria without gradients); none: all are."""
    calibration: Calibration = field(default_factory=Calibration)
    calibration_ids: Any = None
    """Token ids to calibrate on in place of rows from the data: a list of lists, one list a sequence. On the command
    line it is a JSON file. The plan reads the file, so that its content and not its path enters the key."""
    dtype: str = "float32"
    """Precision of the scores' forward and backward passes: float32 or bfloat16."""
    seed: int = 0
    """Seed of what a criterion draws; the command's own `seed` unless set."""
    like: str | None = field(default=None, metadata=LATER)
    """An earlier cut to make again on this model: the key of a pruned artifact, a directory or a pruning.json. Nothing
    is scored then. The model must have the shape of the one that was cut; compensate is fitted anew."""

    @property
    def multiple(self) -> int:
        """The multiple that channels are rounded to: `round_to`, and 1 until that is settled."""
        return 1 if self.round_to is None else self.round_to
