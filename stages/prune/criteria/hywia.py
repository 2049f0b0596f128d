"""HyWIA: fine-grained and coarse-grained importance, fused group by group (Liu et al. 2024, arXiv 2403.10799).

The paper estimates LLM-Pruner's groups twice from the same gradients: by their single weights (fine-grained) and by
their vectors of weights (coarse-grained). An attention mechanism then blends the two. The paper's equations were not
available to us. The fusion below is our reading of its abstract, and not the authors' formula.

With the group's slices s, rows or columns of its matrices,

    fine    F = Σ_s Σ |w·g|        LLM-Pruner's param_first
    coarse  C = Σ_s |Σ w·g|        LLM-Pruner's vectorize

Each is divided by its mean over the groups of its kind in the layer, so that the two can be compared: F̂ and Ĉ. A
softmax over the two scores of a group is its attention. The fused score is the mean of the two under that attention:

    α = softmax([F̂ + p, Ĉ] / τ)          score = (α₁ F̂ + α₂ Ĉ) · mean F

So the fused score lies between the two scores, nearer to the higher one. τ (`temperature`) → 0 takes the larger score,
τ → ∞ their mean. p (`prefer_fine`) → ∞ takes F, p → −∞ takes C. The score is in F's unit, so layers compare as they do
under LLM-Pruner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.criteria.llmpruner import expanded, merge_hidden
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.prune.groups import Scores

FINE, COARSE = "param_first", "vectorize"


@dataclass(kw_only=True, slots=True)
class HyWIAConfig(PruneConfig):
    """Options of HyWIA's fusion."""

    method: str = "hywia"
    temperature: float = 1.0
    """Temperature of the softmax, above 0, in means of a score: near 0 takes the larger score, far above 1 the mean."""
    prefer_fine: float = 0.0
    """Added to the fine-grained score before the softmax, in means of a score. A large value takes the fine-grained
    score alone; a value far below 0 takes the coarse-grained score alone."""


def check(config: HyWIAConfig) -> None:
    """Raise a `UserError` for a temperature or a preference outside its range."""
    if not 0 < config.temperature < math.inf:
        raise UserError(f"prune.temperature is {config.temperature}: a finite number above 0 is needed (1 is usual).")
    if math.isnan(config.prefer_fine) or math.isinf(config.prefer_fine):
        raise UserError(f"prune.prefer_fine is {config.prefer_fine}: a finite number is needed (0 prefers neither).")


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: HyWIAConfig,
    resident: Resident = always,
) -> Scores:
    """Return the fused score of every group of `layers`, from the calibration tokens `ids_BT`."""
    from stages.prune.groups import Scores, with_sublayers
    from stages.prune.statistics.slices import group_scores

    check(config)
    found = expanded(model, layers, ids_BT, config.granularity, [FINE, COARSE])
    scores = {}
    for layer in layers:
        if layer.index in found[FINE].layers:
            fine, coarse = (group_scores(layer, found[grain].layers[layer.index]) for grain in (FINE, COARSE))
            kinds = [kind for kind in ("heads", "queries", "channels") if kind in fine]
            scores[layer.index] = with_sublayers({kind: fuse(fine[kind], coarse[kind], config) for kind in kinds})
    hidden = [merge_hidden(found[grain].hidden, "sum") for grain in (FINE, COARSE)]
    return Scores(scores, None if hidden[0] is None or hidden[1] is None else fuse(hidden[0], hidden[1], config))


def fuse(fine_N: Tensor, coarse_N: Tensor, config: HyWIAConfig) -> Tensor:
    """Return the fused scores [N] of the groups of one kind in one layer, in the unit of the fine-grained scores."""
    import torch

    unit = fine_N.mean()
    # Not below 1e-300, because all scores of a layer may be zero.
    relative_2N = torch.stack([scores / scores.mean().clamp(min=1e-300) for scores in (fine_N, coarse_N)])
    preference_21 = torch.tensor([[config.prefer_fine], [0.0]], dtype=torch.float64)
    attention_2N = torch.softmax((relative_2N + preference_21) / config.temperature, 0)
    return (attention_2N * relative_2N).sum(0) * unit
