"""Block influence (ShortGPT, Men et al. 2024, arXiv 2403.03853): a layer scores by how far it turns its input.

With X_i the residual stream before layer i and X_{i+1} behind it, the paper's

    BI_i = 1 − E_t [ X_{i,t} · X_{i+1,t} / (‖X_{i,t}‖ ‖X_{i+1,t}‖) ]

is the mean over the calibration tokens t. The layers with the lowest scores are removed whole, all at once. The
criterion only runs forward.

Sub-layers are scored by the same measure around the attention alone and around the MLP alone. The stream between the
two is the layer's output when its MLP gives zeros. That extension is ours. The paper's stream is that of a model
without a norm behind the last layer. Here too the last layer's output is taken before the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.prune.config import PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.prune.groups import Scores


@dataclass(kw_only=True, slots=True)
class BlockInfluenceConfig(PruneConfig):
    """Block influence has no options of its own; it scores layers, attention and mlp."""

    method: str = "block_influence"
    granularity: list[str] = field(default_factory=lambda: ["layers"])


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: BlockInfluenceConfig,
    resident: Resident = always,
) -> Scores:
    """Return the block influence of each of `layers`, and of its sub-layers if they are asked for, on the tokens."""
    import torch

    from stages.prune.groups import Scores
    from stages.prune.statistics.activations import calibrated, cosine_distance, silenced, walk

    decoder = calibrated(model, ids_BT, resident)
    scores = {}
    for layer, before_BTH, behind_BTH in walk(decoder, layers, "block influence"):
        distances = {"layers": cosine_distance(before_BTH, behind_BTH)}
        if {"attention", "mlp"} & set(config.granularity):
            with silenced(layer.mlp):
                between_BTH = decoder.run(layer.index, before_BTH)
            if layer.attention:
                distances["attention"] = cosine_distance(before_BTH, between_BTH)
            if layer.mlp:
                distances["mlp"] = cosine_distance(between_BTH, behind_BTH)
        scores[layer.index] = {
            kind: torch.tensor([distance], dtype=torch.float64) for kind, distance in distances.items()
        }
    return Scores(scores)
