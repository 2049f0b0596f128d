"""Optimal Brain Surgeon for heads and channels, under a Kronecker-factored Fisher information (LLM Surgeon, 2024).

A group enters the residual stream through its inputs of an output projection (o of the attention, down of the MLP). It
scores by the expected rise of the loss when these inputs go and the projection's other weights make up for them as well
as they can: ½ tr(B W_S [A⁻¹]_SS⁻¹ W_Sᵀ) (van der Ouderaa et al., arXiv 2312.17244, eq. 9). A and B are from
`stages.prune.statistics.curvature`.

Groups leave one after the other, each time the cheapest. A score is the loss in that sub-layer once the group is gone,
in nats a token. So scores of all layers and kinds are on one scale, can be ranked together, and say what a cut will
cost.

Differences from the paper: of each group only the output projection's side is scored (its q, k, v or gate, up rows go
with it). 16 channels leave at a time. The default is one shot (`prune.steps` for more). Adjusting the weights is
`prune.compensate=least_squares`.

Shape legend: K key/value heads, Q query heads, D rows of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.prune.config import Calibration, PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.prune.groups import Scores
    from stages.prune.statistics.curvature import SecondMoments


@dataclass(kw_only=True, slots=True)
class SurgeonConfig(PruneConfig):
    """The surgeon has no options beyond the common ones, and reads more text by default than the others."""

    method: str = "surgeon"
    calibration: Calibration = field(default_factory=lambda: Calibration(sequences=64, length=256))


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: SurgeonConfig,
    resident: Resident = always,
) -> Scores:
    """Return the loss once each group of `layers` is gone, in nats a token, from the calibration tokens `ids_BT`."""
    import torch

    from stages.prune.groups import Scores
    from stages.prune.statistics.curvature import moments

    if ids_BT is None:
        raise ValueError("the surgeon needs calibration tokens")
    parts = [(layer, part) for layer in layers for part in (layer.attention, layer.mlp) if part]
    found: dict[int, dict[str, Tensor]] = {layer.index: {} for layer in layers}
    # The last projection of an attention (o) and of an MLP (down) writes into the residual stream.
    sweep = moments(model, [part[-1].linear for _, part in parts], ids_BT, seed=config.seed)
    with torch.no_grad():
        for (layer, part), own in zip(parts, sweep, strict=True):
            found[layer.index] |= _attention(layer, own, config) if part is layer.attention else _mlp(layer, own)
    for kinds in found.values():
        whole = [kinds[name] for name in ("attention", "mlp") if name in kinds]
        kinds["layers"] = torch.stack(whole).sum(0) if whole else torch.zeros(1, dtype=torch.float64)
    return Scores(found)


def _attention(layer: LayerAnatomy, own: SecondMoments, config: SurgeonConfig) -> dict[str, Tensor]:
    from stages.prune.statistics.curvature import block_losses

    weight, shape = layer.attention[-1].weight, layer.shape
    each = shape.heads // shape.kv_heads
    heads_K = block_losses(weight, own, [range(shape.kv_heads)], each * layer.head_dim)
    # The head that goes last has the loss of all heads, which is the attention's.
    kinds = {"heads": heads_K, "attention": heads_K.max().view(1)}
    if "queries" in config.granularity:
        groups = [range(first, first + each) for first in range(0, shape.heads, each)]
        kinds["queries"] = block_losses(weight, own, groups, layer.head_dim)
    return kinds


def _mlp(layer: LayerAnatomy, own: SecondMoments) -> dict[str, Tensor]:
    from stages.prune.statistics.curvature import channel_losses

    channels_C = channel_losses(layer.mlp[-1].weight, own)
    return {"channels": channels_C, "mlp": channels_C.max().view(1)}
