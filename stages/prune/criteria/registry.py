"""Every criterion by name. No torch here: a plan and the command line read the options.

A criterion is one file. It has the options, a subclass of `PruneConfig`, and one function

    score(model, layers, ids, config, resident) -> Scores

that scores each group of each given layer, for at least the kinds in `config.granularity` that the layer has. `ids` are
the calibration tokens [sequences, tokens], or None for a criterion that reads none. `resident(index)` holds a layer's
weights in memory (`stages.prune.memory.resident`). A criterion without gradients reads and runs weights only within it.

Adding a criterion takes that file, a line here, and a YAML file in `conf/prune/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.common.choices import lookup
from stages.errors import UserError
from stages.prune.config import DEPTH, GRANULARITIES, PruneConfig
from stages.prune.criteria import (
    block_influence,
    flap,
    hywia,
    llmpruner,
    magnitude,
    perplexity,
    random,
    surgeon,
    two_stage,
    wanda,
    ziplm,
)
from stages.prune.memory.resident import Resident

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.decoders.shapes import DecoderShape
    from stages.prune.allocation.budget import Budget
    from stages.prune.allocation.outcome import PrunePlan
    from stages.prune.groups import Scores, Selection

Score = Callable[["PreTrainedModel", "Sequence[LayerAnatomy]", "Tensor | None", Any, Resident], "Scores"]
BLOCKS = ("heads", "queries", "channels", "attention", "mlp", "layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAllocation:
    """An allocation that a criterion's paper has for itself, and that looks at the model while it chooses."""

    kinds: tuple[str, ...]
    """The kinds of group that it chooses on the model, without a score."""
    plan: Callable[[Budget, DecoderShape, Any], PrunePlan]
    """Gives the plan from shapes alone: how much of each kind goes, before it is known which."""
    choose: Callable[..., tuple[PrunePlan, Selection, dict[str, Any]]]
    """choose(model, scores, ids, config, budget, before, resident) gives the plan, the groups that stay, and what the
    record says of the choice. It leaves the model as it was."""
    tried: Callable[[Any, int], float] = lambda config, layers: 0.0
    """tried(config, layers) gives the tokens that pass through a model of so many layers meanwhile, for a plan's guess
    of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A way to rank groups."""

    config: type[PruneConfig]
    """The dataclass of its options."""
    score: Score
    reads_text: bool
    """Whether it reads calibration tokens."""
    needs_gradients: bool = False
    """Whether it runs backward, for which the whole model has to be in memory."""
    granularities: tuple[str, ...] = (*BLOCKS, "hidden")
    """The kinds of group that it can score, or choose in an allocation of its own."""
    paper: str = "equal"
    """The meaning of `allocation=paper` for it:
    uniform  every layer ends with the same shape
    equal    the same share of the heads and of the channels of each layer that is touched, as LLM-Pruner does
    global   the groups of all layers and kinds in one ranking by score, the lowest go (FLAP)
    depth    whole layers (or sub-layers), the lowest go
    own      an allocation of the criterion's own, in the field `own`
    """
    own: OwnAllocation | None = None
    protected: tuple[int, int] = (0, 0)
    """Of 32 layers, the first and the last that `allocation=paper` leaves as they are, unless `prune.layers` says
    otherwise; in proportion for other depths."""
    cumulative: bool = False
    """Whether a score is the loss of all groups up to and with this one, and not of this one alone."""
    in_nats: bool = False
    """Whether a cumulative score is the model's loss in nats a token, after compensation by least squares."""
    tried: Callable[[Any, int], float] = lambda config, layers: 0.0
    """tried(config, layers) gives the tokens that pass through a model of so many layers beyond one pass over the text,
    where it tries layers one by one; for a plan's guess of the time."""
    check_options: Callable[[Any], None] = lambda config: None
    """Raises a `UserError` where an option of its own is outside its range."""

    def check(self, config: PruneConfig) -> None:
        """Raise a `UserError` where an option is outside its range; called before anything is loaded."""
        for kind in config.granularity:
            lookup("prune.granularity", kind, dict.fromkeys(GRANULARITIES))
            if kind not in self.granularities:
                raise UserError(
                    f"prune={config.method} can't score {kind}, which prune.granularity asks for. It scores "
                    f"{', '.join(self.granularities)}; other criteria score {kind}: {', '.join(scoring(kind))}."
                )
        self.check_options(config)


CRITERIA: dict[str, Criterion] = {
    "llmpruner": Criterion(
        config=llmpruner.LLMPrunerConfig,
        score=llmpruner.score,
        reads_text=True,
        needs_gradients=True,
        protected=llmpruner.PROTECTED,
        check_options=llmpruner.check,
    ),
    "hywia": Criterion(
        config=hywia.HyWIAConfig,
        score=hywia.score,
        reads_text=True,
        needs_gradients=True,
        protected=llmpruner.PROTECTED,
        check_options=hywia.check,
    ),
    "wanda": Criterion(config=wanda.WandaConfig, score=wanda.score, reads_text=True, granularities=BLOCKS),
    "flap": Criterion(
        config=flap.FLAPConfig,
        score=flap.score,
        reads_text=True,
        granularities=("heads", "queries", "channels"),
        paper="global",
        check_options=flap.check,
    ),
    "block_influence": Criterion(
        config=block_influence.BlockInfluenceConfig,
        score=block_influence.score,
        reads_text=True,
        granularities=DEPTH,
        paper="depth",
    ),
    "perplexity": Criterion(
        config=perplexity.PerplexityConfig,
        score=perplexity.score,
        reads_text=True,
        granularities=DEPTH,
        paper="depth",
        tried=perplexity.tried,
    ),
    "surgeon": Criterion(
        config=surgeon.SurgeonConfig,
        score=surgeon.score,
        reads_text=True,
        needs_gradients=True,
        granularities=BLOCKS,
        paper="global",
        cumulative=True,
        in_nats=True,
    ),
    "ziplm": Criterion(
        config=ziplm.ZipLMConfig,
        score=ziplm.score,
        reads_text=True,
        granularities=BLOCKS,
        paper="global",
        cumulative=True,
    ),
    "2ssp": Criterion(
        config=two_stage.TwoStageConfig,
        score=two_stage.score,
        reads_text=True,
        granularities=("channels", "attention"),
        paper="own",
        own=OwnAllocation(kinds=("attention",), plan=two_stage.plan, choose=two_stage.choose, tried=two_stage.tried),
        check_options=two_stage.check,
    ),
    # As LLM-Pruner's paper has them for comparison: its recipe with other scores.
    "magnitude": Criterion(
        config=magnitude.MagnitudeConfig,
        score=magnitude.score,
        reads_text=False,
        protected=llmpruner.PROTECTED,
        check_options=magnitude.check,
    ),
    "random": Criterion(
        config=random.RandomConfig, score=random.score, reads_text=False, protected=llmpruner.PROTECTED
    ),
}


def scoring(kind: str) -> list[str]:
    """Return the names of the criteria that can score groups of `kind`."""
    return [name for name, criterion in CRITERIA.items() if kind in criterion.granularities]
