"""Scores of groups from scores of slices: rows and columns of a layer are merged to heads, channels and sub-layers.

Shape legend: D rows of one head (head_dim), K key/value heads, Q query heads, C MLP channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.decoders.anatomy import Projection, decoder_anatomy
from stages.prune.groups import fold_queries, sum_heads, with_sublayers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy

Merge = Callable[[Sequence[Tensor]], Tensor]
"""Merges the scores of a group's matrices into one vector, slice by slice."""


def total(scores: Sequence[Tensor]) -> Tensor:
    """Return the sum of the scores of a group's matrices."""
    return torch.stack(list(scores)).sum(0)


def merged_slices(layer: LayerAnatomy, slices: Mapping[str, Tensor], merge: Merge) -> dict[str, Tensor]:
    """Return by kind of group the merged scores of its slices: "heads" [K·D], "queries" [Q·D], "channels" [C].

    `slices` has the scores of the rows or columns of some of the layer's projections, by name. A kind that the layer
    lacks is left out, because its attention or its MLP may be gone.
    """
    attention = [projection for projection in layer.attention if projection.name in slices]
    found = {
        "heads": [fold_queries(projection, layer, slices[projection.name]) for projection in attention],
        "queries": [slices[projection.name] for projection in attention if projection.per_query_head],
        "channels": [slices[projection.name] for projection in layer.mlp if projection.name in slices],
    }
    return {kind: merge(scores) for kind, scores in found.items() if scores}


def group_scores(layer: LayerAnatomy, slices: Mapping[str, Tensor], merge: Merge = total) -> dict[str, Tensor]:
    """Return one layer's scores by kind: of a head the sum of its slices, of a sub-layer the sum of its groups."""
    return with_sublayers(
        {
            kind: scores if kind == "channels" else sum_heads(scores, layer)
            for kind, scores in merged_slices(layer, slices, merge).items()
        }
    )


def hidden_slices(model: PreTrainedModel) -> list[Projection]:
    """Return every matrix and every norm's weight with its axis along the hidden channels; the embedding comes first.

    Biases are left out, as in the other kinds of group.
    """
    places = decoder_anatomy(model).hidden
    return [Projection(place.name, place.module, place.axis) for place in places if place.parameter == "weight"]  # type: ignore[arg-type]
