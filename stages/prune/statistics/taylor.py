"""Taylor expansions of the loss in the weights, summed over the rows or columns that belong to groups.

Let w be a weight and g its gradient of the calibration loss. a = Σ_j g_j² / n is the diagonal of the Fisher information
from the gradients of the n single sequences. The score of a row or column is (LLM-Pruner, arXiv 2305.11627)

    vectorize     |Σ w·g|
    param_first   Σ |w·g|
    param_second  Σ |w·a·w|
    param_mix     Σ |w·g − ½ w·a·w|

All of them come from one forward and one backward pass over all sequences, and no gradient is stored. Blocks of rows
are made from the factors that `.gradients` hands over, each sequence's by itself where a is asked for. Blocks are in
float32, sums over blocks in float64.

Shape legend: R rows and C columns of a weight, S sequences kept apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.prune.memory.sizes import BLOCK, DEVICE_BLOCK
from stages.prune.statistics.factors import Gradient
from stages.prune.statistics.gradients import stream_gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import Projection

EXPANSIONS = ("vectorize", "param_first", "param_second", "param_mix")

Side = tuple[int, int, int | None]
"""The axis of the weight that scores lie along; and for sums over rows, the first row and their number (None: all)."""


def slice_scores(
    model: PreTrainedModel, projections: Sequence[Projection], ids_BT: Tensor, expansions: Iterable[str]
) -> dict[str, list[Tensor]]:
    """Return for each expansion the score of every row or column of each projection, float64 on the CPU.

    Projections may share a weight: its rows and its columns, parts of a fused map, or tied embeddings, whose gradient
    is that of both uses. The model is left as it was.
    """
    expansions = tuple(expansions)
    weights = list({id(p.linear.weight): p.linear.weight for p in projections}.values())
    position = {id(weight): index for index, weight in enumerate(weights)}
    sides: list[dict[Side, dict[str, Tensor]]] = [{} for _ in weights]
    for projection in projections:
        weight = projection.linear.weight
        zeros = torch.zeros(weight.shape[projection.axis], dtype=torch.float64, device=weight.device)
        sides[position[id(weight)]][_side(projection)] = {name: zeros.clone() for name in expansions}

    def visit(index: int, gradient: Gradient) -> None:
        weight = weights[index].detach()
        apart = any(name in expansions for name in ("param_second", "param_mix"))
        size = BLOCK if weight.device.type == "cpu" else DEVICE_BLOCK
        for rows, gradient_SRC in gradient.blocks(weight, size, apart=apart):
            terms = _terms(weight[rows].float().view(len(gradient_SRC[0]), -1), gradient_SRC, expansions)
            for side, sums in sides[index].items():
                for name, values_RC in terms.items():
                    _add(sums[name], side, rows, values_RC)

    stream_gradients(model, weights, ids_BT, visit)
    return {
        name: [_own(p, sides[position[id(p.linear.weight)]][_side(p)][name]) for p in projections]
        for name in expansions
    }


def _terms(weight_RC: Tensor, gradient_SRC: Tensor, expansions: Sequence[str]) -> dict[str, Tensor]:
    """Return the terms that each expansion sums up; they overwrite the memory of the gradient."""
    terms = {}
    first = gradient_SRC.sum(0).mul_(weight_RC) if set(expansions) != {"param_second"} else None
    if first is not None:
        terms = {"vectorize": first, "param_first": first.abs() if "param_first" in expansions else first}
    if "param_second" in expansions or "param_mix" in expansions:
        # The mean loss gives sequence j the part g_j / n of the gradient, so that a = n Σ (g_j / n)².
        second = gradient_SRC.square_().sum(0).mul_(len(gradient_SRC)).mul_(weight_RC.square())
        terms["param_second"] = second
        if first is not None:
            terms["param_mix"] = torch.sub(first, second, alpha=0.5).abs_()
    return {name: terms[name] for name in expansions}


def _side(projection: Projection) -> Side:
    return (1, projection.start, projection.size) if projection.axis else (0, 0, None)


def _add(sums: Tensor, side: Side, rows: slice | Tensor, values_RC: Tensor) -> None:
    """Add a block's terms to the sums over one side of the weight."""
    axis, start, size = side
    if axis == 0:
        sums[rows] += values_RC.sum(1)
    elif size is None or not isinstance(rows, slice):
        sums += values_RC.sum(0)
    else:  # only the part of the block that is the projection's own
        sums += values_RC[max(start - rows.start, 0) : max(start + size - rows.start, 0)].sum(0)


def _own(projection: Projection, sums: Tensor) -> Tensor:
    """Return the score of each of the projection's own rows or columns."""
    return (projection.part(sums) if projection.axis == 0 else sums).abs().cpu()
