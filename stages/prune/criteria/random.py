"""Random: every group is as likely to go as any other. The floor that a criterion has to beat.

A layer's draw depends on the seed and on the layer's index alone, not on which other layers are pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.prune.config import PruneConfig
from stages.prune.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.anatomy import LayerAnatomy
    from stages.prune.groups import Scores


@dataclass(kw_only=True, slots=True)
class RandomConfig(PruneConfig):
    """The random criterion has no options beyond the seed."""

    method: str = "random"


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids: Tensor | None,
    config: RandomConfig,
    resident: Resident = always,
) -> Scores:
    """Return uniform draws for every group of `layers`; neither weights nor `ids` are read."""
    import torch

    from stages.prune.groups import Scores, with_sublayers

    scores = {}
    for layer in layers:
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + layer.index) % 2**63)
        heads_K = torch.rand(layer.shape.kv_heads, generator=generator, dtype=torch.float64)
        mlp_C = torch.rand(layer.shape.mlp, generator=generator, dtype=torch.float64)
        scores[layer.index] = with_sublayers({"heads": heads_K, "channels": mlp_C})
    return Scores(scores)
