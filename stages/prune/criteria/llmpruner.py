"""LLM-Pruner's block-wise Taylor criterion (Ma, Fang, Wang 2023, arXiv 2305.11627).

A group matters as much as the loss is expected to change when its weights become zero. With w a weight, g its gradient
of the calibration loss and a = Σ_j g_j² / n the diagonal of the Fisher information from the gradients of single
samples j, each row (of q, k, v, gate, up) or column (of o, down) that belongs to a group scores

    vectorize     |Σ w·g|
    param_first   Σ |w·g|
    param_second  Σ |w·a·w|
    param_mix     Σ |w·g − ½ w·a·w|

and `reduction` merges the scores of a group's matrices row by row: their sum, mean, max, product, or the first, which
is that of the root (q or gate). A head is worth the sum of its rows. Groups are ranked within their layer.

Where this differs from its code: sums are taken in float64; with grouped-query attention the query heads of a key/value
head are summed with it (its code folds them in an order that mixes groups); calibration rows come from the recovery
data, not from BookCorpus; gradients are reduced one matrix at a time, not kept (but for param_mix, whose two terms meet
inside the absolute value, so that a is kept: one more copy of the projections).

Shape legend: D rows of one head, K key/value heads, C channels, B sequences, T tokens.
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

    from stages.anatomy import LayerAnatomy, Projection
    from stages.prune.groups import Scores

TAYLOR = ("vectorize", "param_first", "param_second", "param_mix")
REDUCTIONS = ("sum", "mean", "max", "prod", "first")


@dataclass(kw_only=True, slots=True)
class LLMPrunerConfig(PruneConfig):
    """Options of LLM-Pruner's Taylor criterion."""

    method: str = "llmpruner"
    taylor: str = "param_first"
    """Which expansion of the loss: vectorize, param_first, param_second or param_mix."""
    reduction: str = "sum"
    """How the scores of a group's matrices are merged: sum, mean, max, prod or first."""


def check(config: LLMPrunerConfig) -> None:
    """Raise UserError for an unknown expansion or reduction."""
    lookup("prune.taylor", config.taylor, dict.fromkeys(TAYLOR))
    lookup("prune.reduction", config.reduction, dict.fromkeys(REDUCTIONS))


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: LLMPrunerConfig,
    resident: Resident = always,
) -> Scores:
    """Return the Taylor score of every group of `layers`, from the calibration tokens `ids_BT`."""
    from stages.prune.groups import Scores, sum_heads, with_sublayers

    rows = row_scores(model, layers, ids_BT, config)
    return Scores(
        {
            layer.index: with_sublayers({"heads": sum_heads(heads_KD, layer), "channels": mlp_C})
            for layer, (heads_KD, mlp_C) in zip(layers, rows, strict=True)
        }
    )


def row_scores(
    model: PreTrainedModel, layers: Sequence[LayerAnatomy], ids_BT: Tensor | None, config: LLMPrunerConfig
) -> list[tuple[Tensor, Tensor]]:
    """Return for each layer the merged scores of the rows of its heads [K·D] and of its channels [C]."""
    from stages.prune.groups import fold_queries

    if ids_BT is None:
        raise ValueError("the Taylor criterion needs calibration tokens")
    check(config)
    projections = [(layer, projection) for layer in layers for projection in layer.projections]
    slices = _slice_scores(model, [projection for _, projection in projections], ids_BT, config.taylor)
    folded = {
        (layer.index, projection.name): fold_queries(projection, layer, scores)
        for (layer, projection), scores in zip(projections, slices, strict=True)
    }

    def merged(layer: LayerAnatomy, group: Sequence[Projection]) -> Tensor:
        return _merge([folded[layer.index, projection.name] for projection in group], config.reduction)

    return [(merged(layer, layer.attention), merged(layer, layer.mlp)) for layer in layers]


def _slice_scores(
    model: PreTrainedModel, projections: Sequence[Projection], ids_BT: Tensor, taylor: str
) -> list[Tensor]:
    """Return the score of each row or column of each projection, before matrices are merged; float64."""
    import torch

    from stages.prune.gradients import stream_gradients
    from stages.prune.groups import slice_sums

    weights = [projection.linear.weight for projection in projections]
    scores = [torch.zeros(w.shape[p.axis], dtype=torch.float64) for p, w in zip(projections, weights, strict=True)]
    fisher = [torch.zeros_like(w, dtype=torch.float32) for w in weights] if taylor == "param_mix" else []

    def first_order(position: int, gradient: Tensor) -> None:
        salience = weights[position].detach().float() * gradient.float()
        if taylor == "param_mix":
            salience -= 0.5 * weights[position].detach().float() ** 2 * fisher[position]
        values = salience if taylor == "vectorize" else salience.abs()
        scores[position] += slice_sums(projections[position], values).abs()

    def second_order(position: int, gradient: Tensor) -> None:
        squared = gradient.float() ** 2 / len(ids_BT)
        if taylor == "param_mix":
            fisher[position] += squared
        else:  # every term is positive, so samples can be summed after the absolute value
            scores[position] += slice_sums(projections[position], weights[position].detach().float() ** 2 * squared)

    if taylor in ("param_second", "param_mix"):
        for sample_T in ids_BT:
            stream_gradients(model, weights, sample_T[None], second_order)
    if taylor != "param_second":
        stream_gradients(model, weights, ids_BT, first_order)
    return scores


def _merge(scores: list[Tensor], reduction: str) -> Tensor:
    """Return the scores of a group's matrices merged, element by element."""
    import torch

    stacked = torch.stack(scores)
    if reduction == "sum":
        return stacked.sum(0)
    if reduction == "mean":
        return stacked.mean(0)
    if reduction == "max":
        return stacked.amax(0)
    if reduction == "prod":
        return stacked.prod(0)
    return stacked[0]
