"""2SSP (Sandri, Cunegatti, Iacca 2025, arXiv 2501.17771): MLP channels by their norm, then whole attentions one by one.

Stage one. A channel scores by the norm of its output, the input of the down projection: the l2 norm over the tokens of
a sequence, averaged over the calibration sequences. Every layer loses the same number of channels.

Stage two. Attentions leave whole, one after the other. Each time the one goes without which the model, from which the
channels have gone, has the lowest perplexity on a few calibration sequences (`attention_sequences`).

The number of attentions that go in L layers is (equation 5)

    N = round(L · s^(M / (α A))),     α = 1.5

with s the share of the layers that is removed, and A and M the sizes of one attention and one MLP. So few attentions go
at a small s. Channels make up the remainder. This is `prune.allocation=paper`. With other allocations only the channels
are ranked (`prune.granularity=[channels]`).

Differences from the paper's code: the budget is a share of all parameters (or of multiply-accumulates) and is met by
the nearest number of channels; s is what that share is of the layers. A sub-layer goes with its norm, which A, M and s
count. Where N attentions are more than the budget, fewer go, and where too few channels are left, more go; the code
gives up. Its calibration text is C4: 32 sequences of 2,048 tokens for stage one, the first of them for stage two. The
default here is 64 × 256 tokens, and as many for stage two as there (8 × 256). Its own settings are
`prune.calibration.sequences=32 prune.calibration.length=2048 prune.attention_sequences=1`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stages.common.checks import require
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.budget import Budget, layers_of
from stages.prune.allocation.limits import may_go, without_sublayer
from stages.prune.allocation.outcome import PrunePlan, planned, shape_left
from stages.prune.allocation.uniform import with_fewer_channels
from stages.prune.config import Calibration, PruneConfig
from stages.prune.memory.resident import Resident, always

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.decoders.anatomy import LayerAnatomy
    from stages.prune.groups import Scores, Selection


@dataclass(kw_only=True, slots=True)
class TwoStageConfig(PruneConfig):
    """Options of 2SSP."""

    method: str = "2ssp"
    granularity: list[str] = field(default_factory=lambda: ["channels", "attention"])
    alpha: float = 1.5
    """α, above 0: a larger one lets more attentions go, and fewer channels."""
    attention_sequences: int = 8
    """Number of calibration sequences, from the first on, on which attentions are chosen. Every attention that goes
    takes about half as many forward passes over them as there are layers."""
    calibration: Calibration = field(default_factory=lambda: Calibration(sequences=64, length=256))


def check(config: TwoStageConfig) -> None:
    """Raise a `UserError` for an option outside its range, or where attentions would need a score of their own."""
    require(config.alpha > 0, "prune.alpha", "above 0", config.alpha)
    require(config.attention_sequences >= 1, "prune.attention_sequences", "at least 1", config.attention_sequences)
    if "channels" not in config.granularity:
        raise UserError(
            f"prune=2ssp removes channels first, and prune.granularity={config.granularity} lets none go. Leave "
            "channels in it; prune=perplexity prune.granularity=[attention] removes attentions alone."
        )
    if "attention" in config.granularity and (config.allocation != "paper" or config.scope is not None):
        raise UserError(
            "prune=2ssp chooses attentions one by one on the model, and gives them no score that another allocation "
            "could rank: use prune.allocation=paper, or rank channels alone with prune.granularity=[channels]."
        )


def tried(config: TwoStageConfig, layers: int) -> float:
    """Return the tokens that pass through the model while attentions are chosen, about a share `ratio` of them."""
    gone = (config.ratio or 0.0) * layers if "attention" in config.granularity else 0.0
    return gone * layers / 2 * config.attention_sequences * config.calibration.length


def score(
    model: PreTrainedModel,
    layers: Sequence[LayerAnatomy],
    ids_BT: Tensor | None,
    config: TwoStageConfig,
    resident: Resident = always,
) -> Scores:
    """Return the mean norm of what every MLP channel of `layers` passes on, from the calibration tokens `ids_BT`."""
    from stages.prune.groups import Scores
    from stages.prune.statistics.activations import SequenceNorms, calibrated, gathered

    scores: dict[int, dict[str, Tensor]] = {}
    for layer, norms in gathered(calibrated(model, ids_BT, resident), layers, SequenceNorms, "activations"):
        scores[layer.index] = {}
        for output, own in norms:
            if output in layer.mlp:
                scores[layer.index]["channels"] = own.mean_F
    return Scores(scores)


def plan(budget: Budget, before: DecoderShape, config: TwoStageConfig, gone: Sequence[int] | None = None) -> PrunePlan:
    """Return the plan of both stages.

    Args:
        budget: the budget.
        before: the shape that is cut: the dense shape, or the shape that earlier steps left.
        config: layers, kinds of group, rounding and α.
        gone: the layers that lose their attention. None while they are not chosen: the plan then takes the last ones,
            as many as equation 5 says.

    Raises:
        UserError: nothing would go.
    """
    chosen = gone is not None
    gone = _last_layers(budget, before, config) if gone is None else gone
    remark = f"{len(gone)} attentions go" + ("" if chosen else ", chosen on the model by perplexity")
    return planned(budget, before, _cut(budget, before, config, gone), remarks=[remark] if gone else [])


def _last_layers(budget: Budget, before: DecoderShape, config: TwoStageConfig) -> list[int]:
    """Return the last layers with an attention, as many as equation 5 says and the budget allows."""
    if "attention" not in config.granularity:
        return []
    layers = [index for index in layers_of(config, len(before.layers)) if may_go(config, index, "attention")]
    there = [index for index in layers if before.layers[index].heads]
    went = sum(bool(old.heads and not now.heads) for old, now in zip(budget.dense.layers, before.layers, strict=True))
    # A start and not a negative index: the last none would be all of them.
    start = len(there) - min(max(0, attentions(budget, config) - went), len(there))
    while start < len(there) and budget.removed(shape_left(before, _silent(before, there[start:]))) > budget.ratio:
        start += 1
    while start and _too_large(budget, shape_left(before, _cut(budget, before, config, there[start:]))):
        start -= 1
    return there[start:]


def attentions(budget: Budget, config: TwoStageConfig) -> int:
    """Return the number of attentions that go from the dense model by equation 5 of the paper."""
    dense = budget.dense
    layers = [dense.layers[index] for index in layers_of(config, len(dense.layers))]
    layers = [layer for layer in layers if layer.heads and layer.mlp]
    sizes = {
        kind: sum(
            budget.layer_size(dense, layer) - budget.layer_size(dense, without_sublayer(layer, kind))
            for layer in layers
        )
        for kind in ("attention", "mlp")
    }
    if not sizes["attention"]:
        return 0
    share = min(1.0, budget.ratio * budget.size(dense) / sum(budget.layer_size(dense, layer) for layer in layers))
    return round(len(layers) * math.pow(share, sizes["mlp"] / sizes["attention"] / config.alpha))


def choose(
    model: PreTrainedModel,
    scores: Scores,
    ids_BT: Tensor,
    config: TwoStageConfig,
    budget: Budget,
    before: DecoderShape,
    resident: Resident = always,
) -> tuple[PrunePlan, Selection, dict[str, Any]]:
    """Return the plan, the groups that stay, and the attentions that went with the loss after each, in nats a token.

    Args:
        model: the live model of shape `before`; it is left as it was.
        scores: the scores of its channels.
        ids_BT: the calibration tokens.
        config: the options.
        budget: the budget.
        before: the shape that is cut.
        resident: holds a layer's weights in memory.
    """
    from stages.prune.groups import selection_of

    foreseen = plan(budget, before, config)
    first = [replace(old, mlp=new.mlp if new else 0) for old, new in zip(before.layers, foreseen.layers, strict=True)]
    count = sum(
        bool(old.heads) and not (new and new.heads) for old, new in zip(before.layers, foreseen.layers, strict=True)
    )
    steps = _second_stage(model, selection_of(scores, before.layers, first), ids_BT, config, count, resident)
    final = plan(budget, before, config, gone=[step["layer"] for step in steps])
    return final, selection_of(scores, before.layers, final.layers), {"second_stage": steps}


def _second_stage(
    model: PreTrainedModel, kept: Selection, ids_BT: Tensor, config: TwoStageConfig, count: int, resident: Resident
) -> list[dict[str, Any]]:
    """Return the `count` attentions that go from `model` without the channels that are not `kept`, in order."""
    from stages.common.progress import progress
    from stages.decoders.anatomy import decoder_layers
    from stages.prune.statistics.activations import calibrated, silenced, without_inputs

    layers, found = decoder_layers(model), list[dict[str, Any]]()
    able = [index for index in layers_of(config, len(layers)) if may_go(config, index, "attention")]
    left = {index: layers[index] for index in able if layers[index].attention}
    with ExitStack() as stack, progress("choosing attentions", total=count, unit="attention") as bar:
        for layer, keep in zip(layers, kept.layers, strict=True):
            if layer.mlp and keep is not None:
                lost = sorted(set(range(layer.shape.mlp)) - set(keep.mlp))
                stack.enter_context(without_inputs(layer.mlp[-1], lost))
        decoder = calibrated(model, ids_BT[: config.attention_sequences], resident)
        for _ in range(count):
            losses = _losses_without(decoder, left)
            index = min(losses, key=lambda index: losses[index] if math.isfinite(losses[index]) else math.inf)
            found.append({"layer": index, "loss": losses[index]})
            stack.enter_context(silenced(left.pop(index).attention))
            bar.update()
    return found


def _losses_without(decoder: Any, layers: dict[int, LayerAnatomy]) -> dict[int, float]:
    """Return by layer the mean loss of the model without that layer's attention, in nats a token."""
    from stages.prune.statistics.activations import silenced

    before_BTH, reached, losses = decoder.embedded(), 0, dict[int, float]()
    for index, layer in layers.items():
        for passed in range(reached, index):
            before_BTH = decoder.run(passed, before_BTH)
        reached = index
        with silenced(layer.attention):
            behind_BTH = decoder.run(index, before_BTH)
        losses[index] = float(decoder.losses(decoder.run_from(index + 1, behind_BTH)).double().mean())
    return losses


def _silent(before: DecoderShape, gone: Sequence[int]) -> list[LayerShape | None]:
    """Return the layers of `before`, those in `gone` without their attention."""
    return [without_sublayer(old, "attention") if i in gone else old for i, old in enumerate(before.layers)]


def _cut(budget: Budget, before: DecoderShape, config: PruneConfig, gone: Sequence[int]) -> Sequence[LayerShape | None]:
    """Return the layers of `before`, those in `gone` without their attention, and all with fewer channels."""
    return with_fewer_channels(budget, before, _silent(before, gone), config)


def _too_large(budget: Budget, left: DecoderShape) -> bool:
    return not budget.near(left) and budget.removed(left) < budget.ratio
