"""ZipLM (Kurtic, Frantar, Alistarh 2023, arXiv 2302.04089): a group scores by its layer's output error without it.

A group enters the residual stream through its inputs S of an output projection W (o of the attention, down of the MLP).
With X the projection's inputs over all calibration tokens, removing them and fitting the other weights leaves the error

    min ‖W' X − W X‖² = tr(W_S [H⁻¹]_SS⁻¹ W_Sᵀ),     H = X Xᵀ,     W' without weights on S

by Optimal Brain Surgeon. Groups leave one after the other, each time the cheapest, and H⁻¹ of the inputs that are left
follows by elimination (`stages.prune.statistics.curvature`, with gradients of one scale for all outputs). So this is
the surgeon's criterion without the Fisher information of the outputs. Only forward passes.

A score is the error of the projection once the group is gone, as a share of ‖W X‖². It is 1 for the whole sub-layer.
So sub-layers of all layers are on one scale, and `prune.allocation=paper` ranks groups of all layers and kinds by
error for each parameter (or multiply-accumulate) that they save. `prune.compensate=least_squares` gives the weights W'.

Differences from the paper: its levels of all layers are chosen by a search over weights of these errors, against a
table of measured run times. Here all errors count alike, against the budget; `prune.allocation=searched` measures
allocations on the model. 16 channels leave at a time, not one. Layers are scored on the inputs that the dense model
gives them. The paper prunes in many steps with training between them; here it is one shot (`prune.steps` for more,
without training).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.prune.config import Calibration, PruneConfig
from stages.prune.criteria.surgeon import sublayer_losses, with_layer
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.prune.groups import Scores


@dataclass(kw_only=True, slots=True)
class ZipLMConfig(PruneConfig):
    """ZipLM has no options beyond the common ones; heads, channels and whole sub-layers go, as in the paper."""

    method: str = "ziplm"
    granularity: list[str] = field(default_factory=lambda: ["heads", "channels", "attention", "mlp"])
    calibration: Calibration = field(default_factory=lambda: Calibration(sequences=64, length=256))


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: ZipLMConfig,
    resident: Resident = always,
) -> Scores:
    """Return the relative error of a sub-layer's output once each group of `layers` is gone, cheapest first."""
    import torch

    from stages.prune.groups import Scores
    from stages.prune.statistics.activations import InputProducts, calibrated, gathered
    from stages.prune.statistics.second_moments import SecondMoments

    scores: dict[int, dict[str, Tensor]] = {layer.index: {} for layer in layers}
    decoder = calibrated(model, ids_BT, resident)
    with torch.no_grad():
        for layer, inputs in gathered(decoder, layers, InputProducts, "activations"):
            for output, given in inputs:
                outputs = output.linear.out_features
                own = SecondMoments(given.mean_CC, torch.eye(outputs, device=given.products_CC.device))
                attention = output in layer.attention
                losses = sublayer_losses(layer, own, attention=attention, kinds=config.granularity)
                whole = losses["attention" if attention else "mlp"].clamp(min=torch.finfo(torch.float64).tiny)
                scores[layer.index] |= {kind: values / whole for kind, values in losses.items()}
    return Scores({index: with_layer(kinds) for index, kinds in scores.items()})
