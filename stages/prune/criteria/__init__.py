"""Every criterion by name. No torch here: a plan and the command line read the options.

A criterion is one file: its options, a subclass of `PruneConfig`, and one function

    score(model, layers, ids, config) -> Scores

that says how much each group of each given layer matters, for the kinds in `config.granularity`. `ids` are the
calibration tokens [sequences, tokens], or None for a criterion that reads none. Adding one is that file, a line here,
and a YAML file in `conf/prune/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.prune.config import PruneConfig
from stages.prune.criteria import llmpruner, magnitude, random

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.anatomy import LayerAnatomy
    from stages.prune.groups import Scores

Score = Callable[["PreTrainedModel", "Sequence[LayerAnatomy]", "Tensor | None", Any], "Scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """How groups are ranked."""

    config: type[PruneConfig]
    """Its options."""
    score: Score
    reads_text: bool
    """Whether it looks at calibration tokens."""
    granularities: tuple[str, ...] = ("heads", "channels", "attention", "mlp", "layers")
    """Kinds of group it can score."""
    check: Callable[[Any], None] = lambda config: None
    """Raises UserError where an option of its own can't be right; called before anything is loaded."""


CRITERIA: dict[str, Criterion] = {
    "llmpruner": Criterion(
        config=llmpruner.LLMPrunerConfig, score=llmpruner.score, reads_text=True, check=llmpruner.check
    ),
    "magnitude": Criterion(
        config=magnitude.MagnitudeConfig, score=magnitude.score, reads_text=False, check=magnitude.check
    ),
    "random": Criterion(config=random.RandomConfig, score=random.score, reads_text=False),
}
