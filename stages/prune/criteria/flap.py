"""FLAP (An et al. 2023, arXiv 2312.11983): a group scores by the fluctuation of its inputs. Only forward passes.

If an input feature of an output projection (o of the attention, down of the MLP) were constant, its column of weights
would add the same vector to every token. A bias could take the place of that column. So a column scores by how far its
feature fluctuates, times the weights that multiply the feature. With X_j the feature j over all calibration tokens,
`metric` is

    wifv  Var(X_j) · ‖W_:,j‖²              the paper's: weighted input feature variance
    ifv   Var(X_j)                         input feature variance
    wifn  ‖X_j‖₂ · mean_i |W_ij|           weighted input feature norm, which is Wanda's

The scale of these scores differs by layer and by module. The paper's adaptive structure therefore standardises them
within each layer's attention and MLP, Ŝ = (S − mean S) / std S. It takes the mean over the columns of a head, and ranks
heads and channels of all layers together. The lowest go until enough parameters are gone; a head counts as its many
parameters.

The scores returned are these, on one scale for heads, query heads and channels of all layers. All are shifted alike so
that the lowest is 0. `prune.allocation=paper` ranks them as the paper does; `uniform` is the paper's UL-UM.
`prune.compensate=bias` adds the bias that replaces the mean of the removed inputs.

The attention's S are squared first. The paper's text does not say so, but its code does, and its results come from that
code. The few columns with large scores then raise the standard deviation, and heads move to the middle of the ranking.
Without the square three times as many heads of SmolLM2-135M went at ratio 0.2, and perplexity was ten times as high.

Differences from the paper's code: the variance is that of all tokens (in the code, a running mean makes the first
sequence count less). With grouped queries a head is a key/value head with its query heads.

Shape legend: K key/value heads, Q query heads, F input features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.common.choices import lookup
from stages.prune.config import PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy, Projection
    from stages.prune.groups import Scores
    from stages.prune.statistics.activations import Moments

METRICS = ("wifv", "ifv", "wifn")


@dataclass(kw_only=True, slots=True)
class FLAPConfig(PruneConfig):
    """Options of FLAP's criterion."""

    method: str = "flap"
    metric: str = "wifv"
    """The measure of fluctuation: wifv (weighted input feature variance), ifv (without the weights) or wifn (norm)."""


def check(config: FLAPConfig) -> None:
    """Raise UserError for an unknown metric."""
    lookup("prune.metric", config.metric, dict.fromkeys(METRICS))


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: FLAPConfig,
    resident: Resident = always,
) -> Scores:
    """Return the standardised fluctuation of every group of `layers`, from the calibration tokens `ids_BT`."""
    from stages.prune.groups import Scores
    from stages.prune.statistics.activations import calibrated, input_moments

    check(config)
    scores: dict[int, dict[str, Tensor]] = {}
    for layer, moments in input_moments(calibrated(model, ids_BT, resident), layers):
        found = scores[layer.index] = {}
        for output, given in moments:
            columns_F = fluctuation(output, given, config.metric)
            columns_F = standardised(columns_F**2 if output.per_query_head else columns_F)
            if output.per_query_head:
                found["heads"] = columns_F.view(layer.shape.kv_heads, -1).mean(1)
                found["queries"] = columns_F.view(layer.shape.heads, -1).mean(1)
            else:
                found["channels"] = columns_F
    lowest = min((float(values.min()) for kinds in scores.values() for values in kinds.values()), default=0.0)
    return Scores({index: {kind: values - lowest for kind, values in kinds.items()} for index, kinds in scores.items()})


def fluctuation(output: Projection, given: Moments, metric: str) -> Tensor:
    """Return the score [F] of each column of an output projection whose inputs had the moments `given`."""
    from stages.prune.groups import slice_sums

    weight = output.weight.detach().float()
    if metric == "ifv":
        return given.variance_F
    if metric == "wifv":
        return given.variance_F * slice_sums(output, weight**2)
    return given.squares_F.sqrt() * slice_sums(output, weight.abs()) / len(weight)


def standardised(scores_F: Tensor) -> Tensor:
    """Return `scores_F` with mean 0 and standard deviation 1, or zeros where all are alike."""
    deviation = scores_F.std()
    return (scores_F - scores_F.mean()) / deviation if deviation > 0 else scores_F - scores_F.mean()
