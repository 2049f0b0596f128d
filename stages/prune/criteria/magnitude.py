"""Magnitude: a group matters as much as its weights are large. No data is read.

The score of a group is the norm of all its weights together, Σ |w| (l1) or √(Σ w²) (l2). Groups are ranked within their
layer. The usual baseline; LLM-Pruner (arXiv 2305.11627) reports it as L1 and L2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.methods import lookup
from stages.prune.config import PruneConfig
from stages.prune.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.anatomy import LayerAnatomy
    from stages.prune.groups import Scores


@dataclass(kw_only=True, slots=True)
class MagnitudeConfig(PruneConfig):
    """Options of the magnitude criterion."""

    method: str = "magnitude"
    norm: str = "l2"
    """Norm of a group's weights: l1 or l2."""


def check(config: MagnitudeConfig) -> None:
    """Raise UserError for an unknown norm."""
    lookup("prune.norm", config.norm, {"l1": 1, "l2": 2})


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids: Tensor | None,
    config: MagnitudeConfig,
    resident: Resident = always,
) -> Scores:
    """Return the norm of every group of `layers`; `ids` are not read."""
    import torch

    from stages.prune.groups import Scores, fold_queries, slice_sums, sum_heads, with_sublayers

    check(config)
    power = 1 if config.norm == "l1" else 2
    scores = {}
    with torch.no_grad():
        for layer in layers:
            rows = {
                projection.name: fold_queries(
                    projection, layer, slice_sums(projection, projection.linear.weight.float().abs() ** power)
                )
                for projection in layer.projections
            }
            heads_K = sum_heads(torch.stack([rows[p.name] for p in layer.attention]).sum(0), layer)
            mlp_C = torch.stack([rows[p.name] for p in layer.mlp]).sum(0)
            kinds = {"heads": heads_K ** (1 / power), "channels": mlp_C ** (1 / power)}
            scores[layer.index] = with_sublayers(kinds)
    return Scores(scores)
