"""From a budget to the shape of every layer, as far as shapes alone decide. No torch here: a plan solves this.

Owns the solver for layers that all end alike, and LLM-Pruner's own ratio. Which heads, channels and layers go is
decided by scores (`stages.prune.criteria`); how much goes where when that depends on them is `stages.prune.ranking`.

The rule of `allocation=uniform`. Every pruned layer loses about the same share of its heads as of its MLP channels.
Heads go in whole key/value groups (or as many queries of each), so their share moves in coarse steps; for each step the
MLP channels that make up the remainder follow from the ratio. Of the steps that come within `TOLERANCE`, the one wins
whose share of heads is nearest to its share of MLP channels from below: heads are rounded down, as they are fewer
parameters and dearer to lose. (Measured on SmolLM2-135M, 3 groups a layer, nats a token of held-out rows with
LLM-Pruner's scores, from 3.00: at ratio 0.2 no group 3.64, one 5.02, two 9.70; at ratio 0.5 none 8.59, one 7.42, two
11.40.) LLM-Pruner's own rule, `paper` for most criteria, takes the nearest share from above too. Layers or sub-layers
that may go whole go first, as many as the budget has room for, and the others make up the remainder.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.plan import TOLERANCE, Budget, Layers, PrunePlan, check_share, parse_layers, shape_left
from stages.shapes import DecoderShape, LayerShape

DEPTH = ("layers", "attention", "mlp")
"""Kinds of group that are a layer or a sub-layer."""
Ranked = TypeVar("Ranked")


@dataclass(frozen=True)
class _Step:
    """A candidate: the shares of heads and of channels that go, and what is left."""

    heads: float
    channels: float
    layers: Layers
    hidden: int
    achieved: float


def by_channel_ratio(shape: DecoderShape, config: PruneConfig) -> PrunePlan:
    """Return the plan of `channel_ratio` or `layer_ratios`, rounded the way LLM-Pruner rounds.

    In each layer the same share of heads and of MLP channels goes. The kept size is truncated, `int(size · (1 −
    ratio))` with a head counted as head_dim rows, and the removed rows are truncated to whole heads. With grouped-query
    attention the heads are key/value groups. Its own code fails where that rounds to no head, or to all: here none
    goes, or one stays, and a remark says so.

    Raises:
        UserError: a share is out of its range, or there are not as many as layers.
    """
    targets, remarks = list(shape.layers), []
    for index, ratio in enumerate(_channel_ratios(shape, config)):
        old = shape.layers[index]
        rows = old.kv_heads * shape.head_dim
        groups = (rows - int(rows * (1 - ratio))) // shape.head_dim
        targets[index] = without(old, groups, 0, old.mlp - int(old.mlp * (1 - ratio)))
        if ratio and groups == 0:
            remarks.append(
                f"a channel ratio of {ratio:g} rounds to none of {old.kv_heads} key/value groups: all heads stay"
            )
        if groups == old.kv_heads:
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
    chosen = set(parse_layers(config.layers, len(shape.layers)))
    return [ratio if index in chosen else 0.0 for index in range(len(shape.layers))]


def alike(
    budget: Budget, before: DecoderShape, config: PruneConfig, *, nearest: bool = False, gone: Sequence[int] = ()
) -> PrunePlan:
    """Return the plan by which every pruned layer of `before` loses the same shares; the module says which.

    Args:
        budget: what to arrive at.
        before: the shape that is cut: the dense one, or what earlier steps left of it.
        config: layers, kinds of group and rounding.
        nearest: LLM-Pruner's rule: the share of heads may be above that of the channels.
        gone: for kinds of whole layers or sub-layers: the layers in the order in which they go, or none while no
            score is known (the plan then takes the last ones, whose shape is the others').

    Raises:
        UserError: the ratio can't be reached with these layers and kinds.
    """
    layers = parse_layers(config.layers, len(before.layers))
    targets, remarks = _without_depth(budget, before, layers, config, gone)
    if not (budget.removed(shape_left(before, targets)) < budget.ratio and set(config.granularity) - set(DEPTH)):
        return _plan(budget, before, targets, before.hidden, remarks, layers, config)
    steps = _candidates(budget, before, targets, layers, config)
    near = [step for step in steps if abs(step.achieved - budget.ratio) <= TOLERANCE]
    if near and {"heads", "queries"} & set(config.granularity) and _elastic(config):
        best = min(near, key=lambda s: (not nearest and s.heads > s.channels, abs(s.heads - s.channels)))
    else:
        best = min(steps, key=lambda step: (round(abs(step.achieved - budget.ratio), 9), step.heads))
    if abs(best.heads - best.channels) > 0.02 and _elastic(config) and {"heads", "queries"} & set(config.granularity):
        remarks.append(
            f"heads go in steps: {best.heads:.1%} of the heads go, and {best.channels:.1%} of the "
            f"{' and '.join(_elastic(config))} channels make up the remainder"
        )
    return _plan(budget, before, best.layers, best.hidden, remarks, layers, config)


def shared_plans(budget: Budget, before: DecoderShape, config: PruneConfig) -> list[PrunePlan]:
    """Return every plan within the budget by which all pruned layers of `before` end with the same shape.

    Raises:
        UserError: there is none.
    """
    layers = parse_layers(config.layers, len(before.layers))
    steps = _candidates(budget, before, before.layers, layers, config)
    near = [step for step in steps if abs(step.achieved - budget.ratio) <= TOLERANCE]
    nearest = min(steps, key=lambda step: abs(step.achieved - budget.ratio))
    return [_plan(budget, before, s.layers, s.hidden, (), layers, config) for s in near or [nearest]]


def _elastic(config: PruneConfig) -> list[str]:
    """Return the kinds that go one by one and make up a remainder."""
    return [
        {"channels": "MLP", "hidden": "hidden"}[kind] for kind in ("channels", "hidden") if kind in config.granularity
    ]


def _plan(
    budget: Budget,
    before: DecoderShape,
    targets: Layers,
    hidden: int,
    remarks: Sequence[str],
    layers: Sequence[int],
    config: PruneConfig,
) -> PrunePlan:
    """Return the plan, with a remark where it misses the ratio by the size of what can go.

    Raises:
        UserError: it misses it by more than that, or would remove nothing.
    """
    remarks = list(remarks)
    left = shape_left(before, targets, hidden)
    achieved = budget.removed(left)
    if not budget.near(left):
        most = _most(budget, before, layers, config)
        if budget.ratio > most + TOLERANCE or budget.size(left) == budget.size(before):
            raise UserError(_unreachable(budget, before, layers, most, achieved, config))
        remarks.append(f"{budget.asked} is missed by the size of what can go: {achieved:.2%} of it is the nearest")
    return PrunePlan(dense=before, layers=tuple(targets), hidden=hidden, requested=budget.ratio, remarks=tuple(remarks))


def _without_depth(
    budget: Budget, before: DecoderShape, layers: Sequence[int], config: PruneConfig, gone: Sequence[int]
) -> tuple[list[LayerShape | None], list[str]]:
    """Return the layers with as many gone as the budget has room for; the nearest number where nothing else may go."""
    targets: list[LayerShape | None] = list(before.layers)
    kinds = [kind for kind in DEPTH if kind in config.granularity]
    if not kinds:
        return targets, []
    kind, count = kinds[0], 0
    order = list(gone) or list(reversed(layers))
    fills = bool(set(config.granularity) - set(DEPTH))
    for index in order[: len(before.layers) - 1 if kind == "layers" else None]:
        after = list(targets)
        after[index] = without_sublayer(before.layers[index], kind)
        old, new = (budget.removed(shape_left(before, t)) for t in (targets, after))
        if new > budget.ratio + (0 if fills else max(0.0, budget.ratio - old)):
            break
        targets, count = after, count + 1
    named = {"layers": "whole layers", "attention": "attentions", "mlp": "MLPs"}[kind]
    return targets, [f"{count} {named} go" + ("" if gone else "; scores decide which")]


def without_sublayer(layer: LayerShape, kind: str) -> LayerShape | None:
    """Return `layer` without its attention, its MLP, or not at all."""
    left = {"layers": (0, 0, 0), "attention": (0, 0, layer.mlp), "mlp": (layer.heads, layer.kv_heads, 0)}[kind]
    return LayerShape(*left) if any(left) else None


def _candidates(
    budget: Budget, before: DecoderShape, targets: Layers, layers: Sequence[int], config: PruneConfig
) -> list[_Step]:
    """Return, for each number of key/value groups and queries that may go, the channels that bring it nearest."""
    kinds = set(config.granularity)
    cut = [layer for index in layers if (layer := targets[index]) is not None]
    most_groups = max((layer.kv_heads for layer in cut), default=0)
    most_each = max((layer.heads // layer.kv_heads for layer in cut if layer.kv_heads), default=0)
    fine = max([layer.mlp for layer in cut] if "channels" in kinds else [before.hidden], default=0)
    steps = []

    def step(groups: int, queries: int, count: int) -> _Step:
        after = list(targets)
        for index in layers:
            if (old := targets[index]) is None:
                continue
            channels = _scaled(count, fine, old.mlp) if "channels" in kinds else 0
            channels = old.mlp - _rounded(old.mlp - channels, old.mlp, config.round_to)
            after[index] = without(old, _scaled(groups, most_groups, old.kv_heads), queries, channels)
        lost = _scaled(count, fine, before.hidden) if "hidden" in kinds else 0
        hidden = _rounded(before.hidden - lost, before.hidden, config.round_to)
        left = shape_left(before, after, hidden)
        heads = 1 - (1 - groups / (most_groups or 1)) * (1 - queries / (most_each or 1))
        return _Step(heads, count / (fine or 1), after, hidden, budget.removed(left))

    for groups in range(max(1, most_groups) if "heads" in kinds else 1):
        for queries in range(max(1, most_each) if "queries" in kinds else 1):
            if not _elastic(config):
                steps.append(step(groups, queries, 0))
                continue

            def achieved(count: int, groups: int = groups, queries: int = queries) -> float:
                return step(groups, queries, count).achieved

            above = bisect_left(range(fine), budget.ratio, key=achieved)
            around = [step(groups, queries, n) for n in (above - 1, above) if 0 <= n < fine]
            steps.append(min(around, key=lambda step: abs(step.achieved - budget.ratio)))
    return steps


def without(layer: LayerShape, groups: int, queries: int, channels: int) -> LayerShape:
    """Return `layer` with so many key/value groups, queries of each group and channels less; one of each stays."""
    if not layer.kv_heads:
        return LayerShape(0, 0, max(1, layer.mlp - channels))
    kv_heads = max(1, layer.kv_heads - groups)
    each = max(1, layer.heads // layer.kv_heads - queries)
    return LayerShape(each * kv_heads, kv_heads, max(1, layer.mlp - channels) if layer.mlp else 0)


def _rounded(kept: int, size: int, multiple: int) -> int:
    """Return the multiple nearest to `kept`, at least one and at most `size`; all where nothing goes."""
    if kept == size or multiple == 1:
        return kept
    return min(max(1, round(kept / multiple)) * multiple, size)


def _scaled(count: int, of: int, size: int) -> int:
    """Return the nearest whole number to `count / of` of `size`; `count` itself where layers are alike."""
    return (2 * count * size + of) // (2 * of) if of else 0


def _most(budget: Budget, before: DecoderShape, layers: Sequence[int], config: PruneConfig) -> float:
    """Return the largest share that these layers and kinds can give up."""
    kinds, targets = set(config.granularity), list[LayerShape | None](before.layers)
    for index in layers:
        old = before.layers[index]
        each = old.heads // old.kv_heads if old.kv_heads else 0
        left: LayerShape | None = without(
            old,
            old.kv_heads if "heads" in kinds else 0,
            each if "queries" in kinds else 0,
            old.mlp - config.round_to if "channels" in kinds else 0,
        )
        for kind in kinds & set(DEPTH):
            left = None if left is None else without_sublayer(left, kind)
        targets[index] = left
    if all(layer is None for layer in targets):
        targets[0] = min(before.layers, key=before.layer_parameters)
    hidden = config.round_to if "hidden" in kinds else before.hidden
    return budget.removed(shape_left(before, targets, hidden))


def _unreachable(
    budget: Budget, before: DecoderShape, layers: Sequence[int], most: float, nearest: float, config: PruneConfig
) -> str:
    """Return why the ratio can't be reached, and what can be asked instead."""
    if budget.ratio <= most + TOLERANCE:
        return (
            f"{budget.asked} is less than the smallest cut of {', '.join(config.granularity)}, alike in {len(layers)} "
            "layers: nothing would go. Ask for more, or let finer groups go (prune.granularity=[channels])."
        )
    total = before.parameters()
    protected = sum(before.layer_parameters(layer) for i, layer in enumerate(before.layers) if i not in set(layers))
    stays = f"embeddings are {before.embedding_parameters() / total:.1%} of the {total:,} parameters"
    stays += f", protected layers {protected / total:.1%}" if protected else ""
    return (
        f"{budget.asked} is more than can go: {stays}, and one of each kind of group stays in each layer. With "
        f"prune.granularity=[{','.join(config.granularity)}] at most {most:.4f} can be removed"
        + ("; or protect fewer layers with prune.layers=." if protected else ".")
    )
