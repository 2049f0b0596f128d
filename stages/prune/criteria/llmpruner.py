"""LLM-Pruner's Taylor criterion (Ma, Fang, Wang 2023, arXiv 2305.11627), for blocks and for hidden channels.

A group scores by the expected change of the loss when its weights become zero. Let w be a weight and g its gradient of
the calibration loss. a = Σ_j g_j² / n is the diagonal of the Fisher information from the gradients of single samples j.
Each row (of q, k, v, gate, up) or column (of o, down) that belongs to a group scores

    vectorize     |Σ w·g|
    param_first   Σ |w·g|
    param_second  Σ |w·a·w|
    param_mix     Σ |w·g − ½ w·a·w|

`reduction` merges the scores of a group's matrices slice by slice: their sum, mean, max, product, or the first. The
first is the score of the root (q or gate). A head scores the sum of its slices. A single query head has rows of q and
columns of o. An attention, an MLP or a layer scores the sum of its groups.

A hidden channel (the paper's "channel" strategy) has a row or a column in every matrix of every layer, a weight in
every norm and a column of the embeddings. All are merged alike. Tied embeddings count once, with the gradient of both
uses. Here the first is the embedding, and the product is its n-th root, which ranks the same (a product of hundreds of
factors would be zero).

Differences from the paper's code: sums over blocks are taken in float64. With grouped-query attention the query heads
of a key/value head are summed with it; the code folds them in an order that mixes groups. Calibration rows come from
the recovery data, not from BookCorpus. Biases are not scored, there as here.

Shape legend: D rows of one head, K key/value heads, C channels, H hidden channels, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from stages.common.choices import lookup
from stages.prune.config import PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.prune.groups import Scores

PROTECTED = (4, 2)
"""Of 32 layers, the first and the last that the paper's recipe leaves as they are: it prunes layers 4-29."""
TAYLOR = ("vectorize", "param_first", "param_second", "param_mix")


@dataclass(kw_only=True, slots=True)
class LLMPrunerConfig(PruneConfig):
    """Options of LLM-Pruner's Taylor criterion."""

    method: str = "llmpruner"
    taylor: str = "param_first"
    """The expansion of the loss: vectorize, param_first, param_second or param_mix."""
    reduction: str = "sum"
    """The way to merge the scores of a group's matrices: sum, mean, max, prod or first."""


def check(config: LLMPrunerConfig) -> None:
    """Raise UserError for an unknown expansion or reduction."""
    lookup("prune.taylor", config.taylor, dict.fromkeys(TAYLOR))
    lookup("prune.reduction", config.reduction, MERGES)


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: LLMPrunerConfig,
    resident: Resident = always,
) -> Scores:
    """Return the Taylor score of every group of `layers`, from the calibration tokens `ids_BT`."""
    from stages.prune.groups import Scores
    from stages.prune.statistics.slices import group_scores

    check(config)
    found = expanded(model, layers, ids_BT, config.granularity, [config.taylor])[config.taylor]
    merge = MERGES[config.reduction]
    scored = [layer for layer in layers if layer.index in found.layers]
    return Scores(
        {layer.index: group_scores(layer, found.layers[layer.index], merge) for layer in scored},
        merge_hidden(found.hidden, config.reduction),
    )


@dataclass(frozen=True, slots=True)
class Expanded:
    """The slices' scores of one expansion, before matrices are merged; float64.

    Attributes:
        layers: by layer index and name of the projection; empty where only hidden channels are asked for.
        hidden: one vector [H] a parameter; empty where hidden channels are not asked for.
    """

    layers: Mapping[int, Mapping[str, Tensor]]
    hidden: Sequence[Tensor]


def expanded(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    granularity: Collection[str],
    expansions: Sequence[str],
) -> dict[str, Expanded]:
    """Return the slices' scores of each expansion, all from the same gradients."""
    from stages.prune.statistics.slices import hidden_slices
    from stages.prune.statistics.taylor import slice_scores

    if ids_BT is None:
        raise ValueError("a Taylor expansion needs calibration tokens")
    blocks = [] if set(granularity) == {"hidden"} else list(layers)
    hidden = hidden_slices(model) if "hidden" in granularity else []
    projections = [projection for layer in blocks for projection in layer.projections]
    scores = slice_scores(model, [*projections, *hidden], ids_BT, expansions)

    # Scores come in the order of the projections that were asked for: layer by layer, then the hidden channels.
    def sorted_out(vectors: Sequence[Tensor]) -> Expanded:
        following = iter(vectors)
        by_layer = {layer.index: {p.name: next(following) for p in layer.projections} for layer in blocks}
        return Expanded(by_layer, list(following))

    return {expansion: sorted_out(vectors) for expansion, vectors in scores.items()}


def merge_hidden(vectors: Sequence[Tensor], reduction: str) -> Tensor | None:
    """Return the hidden channels' scores [H] merged over all parameters, or None where there are none."""
    if not vectors:
        return None
    if reduction == "prod":
        # The n-th root of the product, by logarithms, since the product itself would underflow.
        return MERGES["mean"]([vector.log() for vector in vectors]).exp()
    return MERGES[reduction](vectors)


MERGES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": lambda scores: sum(scores[1:], scores[0]),
    "mean": lambda scores: sum(scores[1:], scores[0]) / len(scores),
    "max": lambda scores: reduce(lambda one, other: one.maximum(other), scores),
    "prod": lambda scores: reduce(lambda one, other: one * other, scores),
    "first": lambda scores: scores[0],
}
"""The ways to merge the scores of a group's matrices into one, slice by slice; the first score is the root's."""
