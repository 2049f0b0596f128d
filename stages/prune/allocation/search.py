"""`prune.allocation=searched`: heads, channels and sub-layers compete by the loss that their removal costs.

Three steps, all on the calibration text:

1. The losses, in nats a token, of every layer's groups of each kind, in the order in which the criterion would remove
   them (`stages.prune.statistics.curvature`: one forward and backward pass for all of them). The surgeon's scores are
   these losses already. Those of attention count `ATTENTION` times.
2. The cheapest allocations that meet the budget, by `shapes` (`stages.prune.allocation.drafts`).
3. The trials: the `search.trials` allocations of lowest predicted loss are tried. The model computes as if it were so
   cut (and compensated, where that is asked for). Its own loss on `search.sequences` sequences decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.decoders.anatomy import LayerAnatomy, decoder_layers
from stages.decoders.shapes import DecoderShape
from stages.prune.allocation.budget import Budget
from stages.prune.allocation.drafts import DRAFTS, Losses
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.allocation.ranking import ladders_of, predicted_loss
from stages.prune.compensation import fitted_layers
from stages.prune.config import FITTED, PruneConfig
from stages.prune.groups import Scores, Selection, selection_of
from stages.prune.memory.sizes import TRIAL_FIT
from stages.prune.statistics.activations import outputs
from stages.prune.statistics.curvature import TOGETHER, Elimination, Removal, losses_in_order
from stages.prune.statistics.gradients import LayerwiseLoss
from stages.prune.statistics.layerwise import Layerwise
from stages.prune.statistics.second_moments import SecondMoments, moments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = 1.5
"""Factor on the losses of heads, queries and attentions. A loss is that of one layer, with all other layers whole. For
attention this says too little. Of 1, 1.5, 2, 3 and 5, 1.5 and 2 were best at 20, 30 and 50 % on text of other kinds
than the calibration's (docs/pruning.md)."""


@dataclass(frozen=True, slots=True)
class Trial:
    """An allocation, the rise of the loss predicted for it, and the model's own loss when so cut; nats a token."""

    plan: PrunePlan
    named: str
    selection: Selection
    predicted: float
    loss: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the trial's entry in `pruning.json`."""
        return {"allocation": self.named, "predicted": self.predicted, "loss": self.loss}


def searched(
    model: PreTrainedModel,
    scores: Scores,
    ids_BT: Tensor,
    config: PruneConfig,
    budget: Budget,
    before: DecoderShape,
    *,
    cumulative: bool,
) -> tuple[PrunePlan, Selection, list[dict[str, Any]]]:
    """Return the best allocation that was tried, the groups that it keeps, and the record of all trials.

    Args:
        model: the live model of shape `before`; it is left as it was.
        scores: the scores that order the groups.
        ids_BT: the calibration tokens.
        config: kinds of group, compensation, and the limits of the search.
        budget: the budget.
        before: the shape that is cut.
        cumulative: whether the scores are `Losses` already.
    """
    losses = _weighed(scores.numbers() if cumulative else group_losses(model, scores, ids_BT, config))
    plans = DRAFTS[config.shapes](budget, before, config, losses)
    # Ladders of all kinds and without limits, because a plan may have emptied what `ladders_of` would leave in place.
    every = replace(config, granularity=_all_kinds(losses), shapes="free")
    ladders = ladders_of(losses, before, every, cumulative=True, limit=False)
    drafts = [
        Trial(plan, named, selection_of(scores, plan.dense.layers, plan.layers), predicted_loss(ladders, plan))
        for named, plan in plans
    ]
    # Reversed, so that of drafts with equal shapes the first one stays.
    distinct = {draft.plan.layers: draft for draft in reversed(drafts)}.values()
    drafts = sorted(distinct, key=lambda trial: trial.predicted)[: config.search.trials]
    tried = _tried(model, drafts, ids_BT, config)
    best = min(tried, key=lambda trial: trial.loss if trial.loss is not None else float("inf"))
    return best.plan, best.selection, [trial.record() for trial in tried]


def group_losses(model: PreTrainedModel, scores: Scores, ids_BT: Tensor, config: PruneConfig) -> Losses:
    """Return the loss once each group is gone, when groups go in the order of `scores`."""
    layers = [layer for layer in decoder_layers(model) if layer.index in scores.layers]
    maps = [(layer, output.linear, output in layer.attention) for layer in layers for output in outputs(layer)]
    found: Losses = {layer.index: {} for layer in layers}
    sweep = moments(
        model, [linear for _, linear, _ in maps], ids_BT, seed=config.seed, curvature=config.calibration.curvature
    )
    with torch.no_grad():
        for position, own in sweep:
            layer, linear, attention = maps[position]
            kinds = scores.layers[layer.index]
            found[layer.index] |= _map_losses(layer, linear.weight, own, kinds, attention, config)
            del own  # or the next layers' moments would be gathered beside these
    return found


def _weighed(losses: Losses) -> Losses:
    """Return `losses` with those of attention times `ATTENTION`, and with those of whole layers, which are sums."""
    factors = {"heads": ATTENTION, "queries": ATTENTION, "attention": ATTENTION, "channels": 1.0, "mlp": 1.0}
    found = {}
    for index, kinds in losses.items():
        own = {kind: [factors[kind] * loss for loss in each] for kind, each in kinds.items() if kind != "layers"}
        found[index] = own | {"layers": [sum(own[kind][0] for kind in ("attention", "mlp") if kind in own)]}
    return found


def _map_losses(
    layer: LayerAnatomy,
    weight_RC: Tensor,
    own: SecondMoments,
    scores: Mapping[str, Tensor],
    attention: bool,
    config: PruneConfig,
) -> dict[str, list[float]]:
    """Return the losses of all kinds of group that are inputs of one output projection."""
    removal = Elimination if config.compensate in FITTED else Removal
    width = weight_RC.shape[1]
    found: dict[str, list[float]] = {}
    # `size` is the number of adjacent inputs that a group has: a key/value head has those of all its query heads.
    for kind, size in (("heads", width // max(1, layer.shape.kv_heads)), ("queries", layer.head_dim), ("channels", 1)):
        # Channels are inputs of the MLP's projection, the other kinds of the attention's.
        if kind not in scores or attention != (kind != "channels"):
            continue
        sets = _sets(kind, scores[kind], layer)
        columns = [(torch.tensor(s)[:, None] * size + torch.arange(size)).flatten() for s in sets]
        gone = losses_in_order([c.to(weight_RC.device) for c in columns], removal(weight_RC, own))
        climbed = list(accumulate(gone, max))  # without adjustment, removing more can cost less
        losses = [0.0] * len(scores[kind])
        for members, start, end in zip(sets, climbed, climbed[1:], strict=False):
            for place, group in enumerate(members):
                together = kind == "queries"  # one of each key/value head in a step: none is gone before the others
                # The loss is known of the whole set of channels, and is spread evenly over its members.
                losses[group] = end if together else start + (end - start) * (place + 1) / len(members)
        found[kind] = losses
    # With every input gone nothing is left to adjust, whatever the compensation. The maximum keeps a sub-layer from
    # being said to cost less than the groups inside it.
    whole = Removal(weight_RC, own).remove(torch.arange(width, device=weight_RC.device))
    whole = max([whole, *(max(losses) for losses in found.values())])
    return {**found, "attention" if attention else "mlp": [whole]}


def _sets(kind: str, scores: Tensor, layer: LayerAnatomy) -> list[list[int]]:
    """Return the sets of groups that are removed together, lowest scores first."""
    order: list[int] = torch.argsort(scores, stable=True).tolist()
    if kind == "channels":
        return [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
    if kind == "heads":
        return [[group] for group in order]
    each = layer.shape.heads // layer.shape.kv_heads
    groups = [[query for query in order if query // each == group] for group in range(layer.shape.kv_heads)]
    return [list(queries) for queries in zip(*groups, strict=True)]


def _tried(model: PreTrainedModel, drafts: Sequence[Trial], ids_BT: Tensor, config: PruneConfig) -> list[Trial]:
    """Return each trial with the model's loss when the model computes as if it were so cut.

    The trials go through the layers side by side, so the fitted weights of one layer and one trial exist at a time.
    """
    judges = ids_BT[: config.search.sequences]
    # Fitted on text that does not judge, where there is enough of it.
    fitted_on = ids_BT[len(judges) :][:TRIAL_FIT] if len(ids_BT) >= 2 * len(judges) else ids_BT
    run = Layerwise(model, judges)
    losses = [LayerwiseLoss(run) for _ in drafts]
    selections = [draft.selection for draft in drafts]
    for layer, number, values in fitted_layers(model, selections, fitted_on, config.compensate):
        with _in_place(values):
            losses[number].through(layer)
    return [replace(draft, loss=loss.value()) for draft, loss in zip(drafts, losses, strict=True)]


@contextmanager
def _in_place(values: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Let parameters have other values within the block, and their own values afterwards."""
    # `data` is exchanged and not overwritten, so the dense weights need no copy.
    held = {parameter: parameter.data for parameter in values}
    for parameter, value in values.items():
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in held.items():
            parameter.data = value


def _all_kinds(losses: Losses) -> list[str]:
    return sorted({kind for kinds in losses.values() for kind in kinds})
