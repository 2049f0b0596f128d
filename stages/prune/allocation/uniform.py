"""The shape of every layer from a budget, as far as shapes alone decide. No torch here: a plan solves this.

This file owns the solver for layers that all end alike, and LLM-Pruner's own ratio. Scores (`stages.prune.criteria`)
decide which heads, channels and layers go. Where the amount depends on scores too, `.ranking` shares it out.

The rule of `allocation=uniform`: every pruned layer loses about the same share of its heads as of its MLP channels.
Heads go in whole key/value groups (or as many queries of each), so their share moves in coarse steps. For each step the
MLP channels that make up the remainder follow from the ratio. Among the steps within `TOLERANCE`, the solver takes the
one whose share of heads is nearest to its share of MLP channels from below. Heads are rounded down because they are
fewer parameters and dearer to lose. (Measured on SmolLM2-135M, 3 groups a layer, nats a token of held-out rows with
LLM-Pruner's scores, from 3.00: at ratio 0.2 no group 3.64, one 5.02, two 9.70; at ratio 0.5 none 8.59, one 7.42, two
11.40.)

LLM-Pruner's own rule, which is `paper` for most criteria, takes the nearest share from above too. Layers or sub-layers
that may go whole go first, as many as the budget has room for. The other kinds make up the remainder.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.budget import TOLERANCE, Budget, check_share, layers_of
from stages.prune.allocation.limits import may_go, without, without_sublayer
from stages.prune.allocation.outcome import Layers, PrunePlan, planned, shape_left
from stages.prune.config import DEPTH, PruneConfig

ELASTIC = {"channels": "MLP", "hidden": "hidden"}
"""Kinds of group of which there are so many that they can make up a remainder, with their names in remarks."""


@dataclass(frozen=True)
class _Step:
    """A candidate: the shares of heads and of channels that go, the shape that is left, and the achieved share."""

    heads: float
    channels: float
    layers: Layers
    hidden: int
    achieved: float


def by_channel_ratio(shape: DecoderShape, config: PruneConfig) -> PrunePlan:
    """Return the plan of `channel_ratio` or `layer_ratios`, rounded the way LLM-Pruner rounds.

    In each layer the same share of heads and of MLP channels goes, where these may go. The kept size is truncated:
    `int(size · (1 − ratio))`, with a head counted as head_dim rows. The removed rows are truncated to whole heads. With
    grouped-query attention the heads are key/value groups.

    LLM-Pruner's code fails where that rounds to no head, or to all heads. Here no head goes, or one stays, and a remark
    says so.

    Raises:
        UserError: a share is out of its range, or the number of shares is not that of the layers.
    """
    targets, remarks = list(shape.layers), []
    heads, mlp = ("heads" in config.granularity, "channels" in config.granularity)
    for index, ratio in enumerate(_channel_ratios(shape, config)):
        old = shape.layers[index]
        rows = old.kv_heads * shape.head_dim * heads  # none where heads may not go
        groups = (rows - int(rows * (1 - ratio))) // shape.head_dim
        targets[index] = without(old, groups, 0, (old.mlp - int(old.mlp * (1 - ratio))) * mlp)
        if ratio and rows and groups == 0:
            remarks.append(
                f"a channel ratio of {ratio:g} rounds to none of {old.kv_heads} key/value groups: all heads stay"
            )
        if rows and groups == old.kv_heads:
            remarks.append(f"a channel ratio of {ratio:g} would remove all {old.kv_heads} key/value groups: one stays")
    return PrunePlan(
        dense=shape,
        layers=tuple(targets),
        hidden=shape.hidden,
        requested=None,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _channel_ratios(shape: DecoderShape, config: PruneConfig) -> list[float]:
    """Return the share of heads and channels that each layer loses."""
    if config.layer_ratios is not None:
        for index, ratio in enumerate(config.layer_ratios):
            check_share(f"prune.layer_ratios[{index}]", ratio)
        if len(config.layer_ratios) != len(shape.layers):
            raise UserError(
                f"prune.layer_ratios has {len(config.layer_ratios)} shares and the model {len(shape.layers)} layers: "
                "give one a layer, 0 where nothing goes."
            )
        return list(config.layer_ratios)
    ratio = config.channel_ratio or 0.0
    check_share("prune.channel_ratio", ratio)
    chosen = set(layers_of(config, len(shape.layers)))
    return [ratio if index in chosen else 0.0 for index in range(len(shape.layers))]


def alike(
    budget: Budget, before: DecoderShape, config: PruneConfig, *, nearest: bool = False, gone: Sequence[int] = ()
) -> PrunePlan:
    """Return the plan by which every pruned layer of `before` loses the same shares, by the rule in the module.

    Args:
        budget: the budget.
        before: the shape that is cut: the dense shape, or the shape that earlier steps left.
        config: layers, kinds of group and rounding.
        nearest: LLM-Pruner's rule: the share of heads may be above that of the channels.
        gone: the layers that are removed or lose their sub-layer, in this order; for kinds that are whole layers or
            sub-layers. Empty while no score is known: the plan then takes the last layers, which have the same shape.

    Raises:
        UserError: nothing would go.
    """
    kinds = set(config.granularity)
    targets, remarks = _without_depth(budget, before, config, gone)
    if not kinds - set(DEPTH) or budget.removed(shape_left(before, targets)) >= budget.ratio:
        return planned(budget, before, targets, remarks=remarks)
    steps = _candidates(budget, before, targets, config)
    near = _near(steps, budget)
    elastic = [name for kind, name in ELASTIC.items() if kind in kinds]
    if not (elastic and kinds & {"heads", "queries"}):
        best = min(near, key=lambda step: (round(abs(step.achieved - budget.ratio), 9), step.heads))
        return planned(budget, before, best.layers, best.hidden, remarks)
    # False sorts before True: a share of heads above that of the channels is only taken where no other step is near.
    best = min(near, key=lambda s: (not nearest and s.heads > s.channels, abs(s.heads - s.channels)))
    if abs(best.heads - best.channels) > 0.02:
        remarks.append(
            f"heads go in steps: {best.heads:.1%} of the heads go, and {best.channels:.1%} of the "
            f"{' and '.join(elastic)} channels make up the remainder"
        )
    return planned(budget, before, best.layers, best.hidden, remarks)


def shared_plans(budget: Budget, before: DecoderShape, config: PruneConfig) -> list[PrunePlan]:
    """Return every plan within the budget that lets all pruned layers of `before` lose the same; else the nearest one.

    Raises:
        UserError: nothing would go.
    """
    steps = _near(_candidates(budget, before, before.layers, config), budget)
    return [planned(budget, before, step.layers, step.hidden) for step in steps]


def with_fewer_channels(
    budget: Budget, before: DecoderShape, targets: Layers, config: PruneConfig
) -> Sequence[LayerShape | None]:
    """Return `targets` where each pruned layer has lost the same share of its channels, nearest to the budget.

    Args:
        budget: the budget.
        before: the shape that is cut.
        targets: the layers of `before`, from which whole sub-layers may have gone.
        config: layers and rounding.
    """
    (step,) = _candidates(budget, before, targets, replace(config, granularity=["channels"]))
    return step.layers


def _near(steps: Sequence[_Step], budget: Budget) -> list[_Step]:
    """Return the candidates within the budget; where there are none, the nearest one."""
    # Rounded, so that of candidates equally far away the one with fewer heads gone wins, whatever the last bits say.
    nearest = min(steps, key=lambda step: (round(abs(step.achieved - budget.ratio), 9), step.heads))
    return [step for step in steps if abs(step.achieved - budget.ratio) <= TOLERANCE] or [nearest]


def _without_depth(
    budget: Budget, before: DecoderShape, config: PruneConfig, gone: Sequence[int]
) -> tuple[list[LayerShape | None], list[str]]:
    """Return the layers after as many have gone as the budget has room for, and a remark that names their number.

    Where no other kind of group may go, the number is the one nearest to the budget, from above too.
    """
    targets: list[LayerShape | None] = list(before.layers)
    kinds = [kind for kind in DEPTH if kind in config.granularity]
    if not kinds:
        return targets, []
    kind, count = kinds[0], 0
    order = list(gone) or [i for i in layers_of(config, len(before.layers))[::-1] if may_go(config, i, kind)]
    fills = bool(set(config.granularity) - set(DEPTH))
    for index in order[: len(before.layers) - 1 if kind == "layers" else None]:
        after = list(targets)
        after[index] = without_sublayer(before.layers[index], kind)
        old, new = (budget.removed(shape_left(before, t)) for t in (targets, after))
        # Where other kinds fill up the remainder, the budget must not be passed. Else the nearer side of it is taken.
        if new > budget.ratio + (0 if fills else max(0.0, budget.ratio - old)):
            break
        targets, count = after, count + 1
    named = {"layers": "whole layers", "attention": "attentions", "mlp": "MLPs"}[kind]
    return targets, [f"{count} {named} go" + ("" if gone else "; scores decide which")]


def _candidates(budget: Budget, before: DecoderShape, targets: Layers, config: PruneConfig) -> list[_Step]:
    """Return a candidate for each number of key/value groups and of queries that may go.

    Each candidate removes the number of channels that brings it nearest to the budget.
    """
    kinds, layers = set(config.granularity), layers_of(config, len(before.layers))
    cut = [layer for index in layers if (layer := targets[index]) is not None]
    most_groups = max((layer.kv_heads for layer in cut), default=0)
    most_each = max((layer.heads // layer.kv_heads for layer in cut if layer.kv_heads), default=0)
    fine = max((layer.mlp for layer in cut), default=0) if "channels" in kinds else 0
    fine = max(fine, before.hidden) if "hidden" in kinds else fine

    def step(groups: int, queries: int, count: int) -> _Step:
        after = list(targets)
        for index in layers:
            if (old := targets[index]) is None:
                continue
            channels = _scaled(count, fine, old.mlp) if "channels" in kinds else 0
            channels = old.mlp - _rounded(old.mlp - channels, old.mlp, config.multiple)
            after[index] = without(old, _scaled(groups, most_groups, old.kv_heads), queries, channels)
        lost = _scaled(count, fine, before.hidden) if "hidden" in kinds else 0
        hidden = _rounded(before.hidden - lost, before.hidden, config.multiple)
        left = shape_left(before, after, hidden)
        # Query heads that go: those of the groups that go, and of the other groups the queries that go.
        heads = 1 - (1 - groups / (most_groups or 1)) * (1 - queries / (most_each or 1))
        return _Step(heads, count / (fine or 1), after, hidden, budget.removed(left))

    def nearest(groups: int, queries: int) -> _Step:
        # More channels never remove less, so the place where the budget is passed can be found by bisection.
        above = bisect_left(range(fine), budget.ratio, key=lambda count: step(groups, queries, count).achieved)
        around = [step(groups, queries, count) for count in (above - 1, above) if 0 <= count < max(1, fine)]
        return min(around, key=lambda step: abs(step.achieved - budget.ratio))

    numbers = (
        range(max(1, most_groups) if "heads" in kinds else 1),
        range(max(1, most_each) if "queries" in kinds else 1),
    )
    return [nearest(groups, queries) for groups, queries in product(*numbers)]


def _rounded(kept: int, size: int, multiple: int) -> int:
    """Return the multiple nearest to `kept`, at least one multiple and at most `size`; `size` where nothing goes."""
    if kept == size or multiple == 1:
        return kept
    return min(max(1, round(kept / multiple)) * multiple, size)


def _scaled(count: int, of: int, size: int) -> int:
    """Return the whole number nearest to `count / of` of `size`; `count` itself where layers are alike."""
    # In integers: a quotient of floats might round a half differently.
    return (2 * count * size + of) // (2 * of) if of else 0
