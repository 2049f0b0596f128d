"""Magnitude: a group scores by the norm of its weights. No data is read.

The score is the norm of all the group's weights together, Σ |w| (l1) or √(Σ w²) (l2). The weights are its rows and
columns, and for hidden channels those of norms and embeddings too (tied ones once). This is the usual baseline.
LLM-Pruner (arXiv 2305.11627) reports it as L1 and L2, with the same share of heads and of channels in each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from stages.common.choices import lookup
from stages.prune.config import PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy, Projection
    from stages.prune.groups import Scores

POWERS = {"l1": 1, "l2": 2}


@dataclass(kw_only=True, slots=True)
class MagnitudeConfig(PruneConfig):
    """Options of the magnitude criterion."""

    method: str = "magnitude"
    norm: str = "l2"
    """Norm of a group's weights: l1 or l2."""


def check(config: MagnitudeConfig) -> None:
    """Raise UserError for an unknown norm."""
    lookup("prune.norm", config.norm, POWERS)


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids: Tensor | None,
    config: MagnitudeConfig,
    resident: Resident = always,
) -> Scores:
    """Return the norm of every group of `layers`; `ids` are not read."""
    from stages.decoders.anatomy import decoder_layers
    from stages.prune.groups import Scores, slice_sums
    from stages.prune.statistics.slices import group_scores, hidden_slices, total

    check(config)
    power = POWERS[config.norm]

    def sums(projection: Projection) -> Tensor:
        return slice_sums(projection, projection.weight.detach().float().abs() ** power)

    scores = {}
    for layer in layers:
        with resident(layer.index):
            groups = group_scores(layer, {projection.name: sums(projection) for projection in layer.projections})
        # The root is taken last, since powers add up over a group's slices and norms do not.
        scores[layer.index] = {kind: values ** (1 / power) for kind, values in groups.items()}
    if "hidden" not in config.granularity:
        return Scores(scores)
    owners = {module: layer.index for layer in decoder_layers(model) for module in layer.module.modules()}
    hidden = []
    # A layer's places follow each other, so each layer is held in memory once.
    for index, places in groupby(hidden_slices(model), lambda place: owners.get(place.linear)):
        with nullcontext() if index is None else resident(index):
            hidden += [sums(place) for place in places]
    return Scores(scores, total(hidden) ** (1 / power))
