"""What is scored and kept: key/value groups and MLP channels, and how scores of weights become scores of groups.

A group of attention is one key/value head with the adjacent query heads it serves: their rows of q, k and v and their
columns of o. A group of the MLP is one channel: its row of gate and of up and its column of down. Removing a group
changes no other one. This file names no criterion.

Shape legend: D rows of one head (head_dim), K key/value heads, Q query heads, C channels, M matrices of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.anatomy import LayerAnatomy, Projection
from stages.shapes import LayerShape


@dataclass(frozen=True, slots=True)
class GroupScores:
    """How much each group of one layer matters: more is dearer; float64, on the CPU."""

    heads_K: Tensor
    mlp_C: Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept indices of one layer, into the model that is cut, ascending."""

    heads: list[int]
    """Query heads."""
    kv_heads: list[int]
    mlp: list[int]


def slice_sums(projection: Projection, values: Tensor) -> Tensor:
    """Return the sum of `values` (shaped as the weight) over each row or column that belongs to a group, in float64."""
    return values.sum(1 - projection.axis, dtype=torch.float64).cpu()


def fold_queries(projection: Projection, layer: LayerAnatomy, scores: Tensor) -> Tensor:
    """Return `scores` of a projection's slices with the query heads of each key/value head summed: [Q·D] → [K·D].

    Query heads of one group are adjacent, so they are the middle axis of [K, Q/K, D]. (LLM-Pruner's own code sums the
    first axis of [Q/K, K·D], which adds up heads of different groups; the two agree where Q = K.)
    """
    if not projection.per_query_head:
        return scores
    return scores.view(layer.shape.kv_heads, -1, layer.head_dim).sum(1).flatten()


def sum_heads(scores_KD: Tensor, layer: LayerAnatomy) -> Tensor:
    """Return the score of each key/value group from the scores of its rows: [K·D] → [K]."""
    return scores_KD.view(layer.shape.kv_heads, layer.head_dim).sum(1)


def select(scores: GroupScores, target: LayerShape, dense: LayerShape) -> Kept:
    """Return one layer's groups with the highest scores, as many as `target` has; of equals the later ones stay."""
    kv_heads = _highest(scores.heads_K, target.kv_heads)
    each = dense.heads // dense.kv_heads
    heads = [group * each + query for group in kv_heads for query in range(each)]
    return Kept(heads, kv_heads, _highest(scores.mlp_C, target.mlp))


def keep_all(shape: LayerShape) -> Kept:
    """Return the selection that removes nothing."""
    return Kept(list(range(shape.heads)), list(range(shape.kv_heads)), list(range(shape.mlp)))


def non_finite(layers: Sequence[LayerAnatomy], scores: Sequence[GroupScores]) -> list[int]:
    """Return the indices of the layers with a score that is infinite or not a number."""
    return [
        layer.index
        for layer, score in zip(layers, scores, strict=True)
        if not (score.heads_K.isfinite().all() and score.mlp_C.isfinite().all())
    ]


def _highest(scores: Tensor, count: int) -> list[int]:
    order: list[int] = torch.argsort(scores, stable=True).tolist()
    return sorted(order[len(order) - count :])
