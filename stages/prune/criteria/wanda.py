"""Wanda-sp: a group scores by its output weights times the norms of the inputs that they multiply. Only forward passes.

Wanda (Sun et al. 2023, arXiv 2306.11695, equation 1) scores a weight by |W_ij| · ‖X_j‖₂, with ‖X_j‖₂ the norm of the
input feature j over all calibration tokens. Its structured form is the baseline of FLAP (An et al. 2023, arXiv
2312.11983). It takes the output projections (o of the attention, down of the MLP), and adds the scores up over a
column:

    S_j = ‖X_j‖₂ · Σ_i |W_ij|

A head scores the sum of its columns, with grouped queries those of all its query heads. Groups are ranked within their
layer, heads and channels each by themselves.

Differences from the baseline's code: columns are summed, not averaged, over rows, and tokens are summed, not averaged,
over sequences. Neither changes a ranking within a layer. Every layer is scored on the inputs that the dense model gives
it, not on those from the already pruned layers before it (prune.steps=… scores again on the way).
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
class WandaConfig(PruneConfig):
    """Wanda-sp has no options of its own."""

    method: str = "wanda"


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: WandaConfig,
    resident: Resident = always,
) -> Scores:
    """Return the sum of weights times input norms of every group of `layers`, from the calibration tokens `ids_BT`."""
    from stages.prune.groups import Scores, slice_sums
    from stages.prune.statistics.activations import calibrated, input_moments
    from stages.prune.statistics.slices import group_scores

    scores = {}
    for layer, moments in input_moments(calibrated(model, ids_BT, resident), layers):
        slices = {
            output.name: slice_sums(output, output.weight.detach().float().abs()) * given.squares_F.sqrt()
            for output, given in moments
        }
        scores[layer.index] = group_scores(layer, slices)
    return Scores(scores)
