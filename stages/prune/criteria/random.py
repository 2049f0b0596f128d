"""Random: every group is as likely to go as any other of its kind. A criterion has to beat this floor.

The draw of a layer depends on the seed and on the layer's index alone, not on the other layers that are pruned. Each
kind of group is drawn by itself, so the score of a layer does not depend on the draws of its heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.prune.config import PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
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

    from stages.prune.groups import Scores

    scores = {}
    for layer in layers:
        # All kinds are drawn, in this order, whichever are asked for: a kind's draws must not depend on that choice.
        counts = {"heads": layer.shape.kv_heads, "channels": layer.shape.mlp, "queries": layer.shape.heads}
        counts |= {"attention": int(bool(layer.attention)), "mlp": int(bool(layer.mlp)), "layers": 1}
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + layer.index) % 2**63)
        draws = {kind: torch.rand(count, generator=generator, dtype=torch.float64) for kind, count in counts.items()}
        scores[layer.index] = {kind: draw for kind, draw in draws.items() if len(draw)}
    if "hidden" not in config.granularity:
        return Scores(scores)
    generator = torch.Generator().manual_seed((config.seed * 1_000_003 + 1_000_002) % 2**63)
    return Scores(scores, torch.rand(model.config.hidden_size, generator=generator, dtype=torch.float64))
