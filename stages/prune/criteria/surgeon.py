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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.prune.config import Calibration, PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.prune.groups import Scores
    from stages.prune.statistics.second_moments import SecondMoments


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
    from stages.prune.statistics.second_moments import moments

    if ids_BT is None:
        raise ValueError("the surgeon needs calibration tokens")
    parts = [(layer, part) for layer in layers for part in (layer.attention, layer.mlp) if part]
    found: dict[int, dict[str, Tensor]] = {layer.index: {} for layer in layers}
    # The last projection of an attention (o) and of an MLP (down) writes into the residual stream.
    sweep = moments(
        model, [part[-1].linear for _, part in parts], ids_BT, seed=config.seed, curvature=config.calibration.curvature
    )
    with torch.no_grad():
        for position, own in sweep:
            layer, part = parts[position]
            found[layer.index] |= sublayer_losses(
                layer, own, attention=part is layer.attention, kinds=config.granularity
            )
            del own  # or the next layers' moments would be gathered beside these
    return Scores({index: with_layer(kinds) for index, kinds in found.items()})


def sublayer_losses(
    layer: LayerAnatomy, own: SecondMoments, *, attention: bool, kinds: Collection[str]
) -> dict[str, Tensor]:
    """Return by kind of group the loss in an attention or an MLP once each group is gone, and that of the sub-layer.

    Args:
        layer: the layer.
        own: the second moments of the sub-layer's output projection.
        attention: whether the sub-layer is the attention, and not the MLP.
        kinds: the kinds of group that are asked for; single query heads are scored only where these name them.
    """
    return _attention(layer, own, kinds) if attention else _mlp(layer, own)


def with_layer(kinds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one layer's scores, completed by that of the whole layer: the sum over its sub-layers."""
    import torch

    whole = [kinds[name] for name in ("attention", "mlp") if name in kinds]
    return {**kinds, "layers": torch.stack(whole).sum(0) if whole else torch.zeros(1, dtype=torch.float64)}


def _attention(layer: LayerAnatomy, own: SecondMoments, kinds: Collection[str]) -> dict[str, Tensor]:
    from stages.prune.statistics.curvature import block_losses

    weight, shape = layer.attention[-1].weight, layer.shape
    each = shape.heads // shape.kv_heads
    heads_K = block_losses(weight, own, [range(shape.kv_heads)], each * layer.head_dim)
    # The head that goes last has the loss of all heads, which is the attention's.
    losses = {"heads": heads_K, "attention": heads_K.max().view(1)}
    if "queries" in kinds:
        groups = [range(first, first + each) for first in range(0, shape.heads, each)]
        losses["queries"] = block_losses(weight, own, groups, layer.head_dim)
    return losses


def _mlp(layer: LayerAnatomy, own: SecondMoments) -> dict[str, Tensor]:
    from stages.prune.statistics.curvature import channel_losses

    channels_C = channel_losses(layer.mlp[-1].weight, own)
    return {"channels": channels_C, "mlp": channels_C.max().view(1)}
