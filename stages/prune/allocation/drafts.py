"""The allocations that `prune.allocation=searched` looks at, by `prune.shapes`, each with its name. No torch here.

free    the cheapest allocation of the kinds of group that are asked for, and of some subsets of these kinds
alike   every shape that all layers can share
served  for every number of query heads that all layers can share, the cheapest allocation of the other kinds; and that
        of channels alone
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from stages.decoders.shapes import DecoderShape, LayerShape
from stages.prune.allocation.budget import Budget, layers_of
from stages.prune.allocation.outcome import PrunePlan, planned, shape_left
from stages.prune.allocation.ranking import Ladder, allocate, ladders_of
from stages.prune.allocation.served import HEADS
from stages.prune.allocation.uniform import shared_plans
from stages.prune.config import DEPTH, PruneConfig

Losses = dict[int, dict[str, list[float]]]
"""By layer, by kind of group: the loss once that group and all groups before it are gone, in nats a token."""
Drafts = Iterator[tuple[str, PrunePlan]]


def free(budget: Budget, before: DecoderShape, config: PruneConfig, losses: Losses) -> Drafts:
    """Yield the cheapest allocation of the kinds of group that are asked for, and of some subsets of these kinds."""
    asked = tuple(config.granularity)
    without: list[tuple[str, ...]] = [(), DEPTH, ("heads", "queries", "attention"), ("queries",)]
    subsets = [tuple(kind for kind in asked if kind not in left_out) for left_out in without]
    for kinds in dict.fromkeys(subset for subset in subsets if subset):
        ladders = ladders_of(losses, before, replace(config, granularity=list(kinds)), cumulative=True)
        layers = allocate(ladders, budget, before)
        # A subset may be too small to meet the budget. All the kinds together always give a plan.
        if kinds == asked or budget.near(shape_left(before, layers)):
            yield f"{', '.join(kinds)} in competition", planned(budget, before, layers)


def alike(budget: Budget, before: DecoderShape, config: PruneConfig, losses: Losses) -> Drafts:
    """Yield every shape that all layers can share within the budget. Losses play no part."""
    for plan in shared_plans(budget, before, config):
        layer = plan.pruned.layers[0]
        yield f"every layer {layer.heads} heads on {layer.kv_heads} and {layer.mlp} channels", plan


def served(budget: Budget, before: DecoderShape, config: PruneConfig, losses: Losses) -> Drafts:
    """Yield, for every number of query heads that all layers can share, the cheapest allocation of the other kinds.

    With all heads there, that of the kinds inside sub-layers alone is looked at too. Those within the budget are
    yielded, or the nearest one where none is.
    """
    ladders = ladders_of(losses, before, config, cumulative=True)
    rest = tuple(kind for kind in config.granularity if kind not in HEADS)
    flat = tuple(kind for kind in rest if kind not in DEPTH)
    begun = [(rest, gone) for gone in _heads_gone_alike(ladders, before, config)]
    begun += [(flat, [])] if flat not in ((), rest) else []
    found: list[tuple[str, tuple[LayerShape | None, ...]]] = []
    for kinds, gone in begun:
        own = [ladder for ladder in ladders if ladder.kind in kinds]
        found.append((_named(kinds, gone), allocate(own, budget, before, begun=gone)))
    near = [draft for draft in found if budget.near(shape_left(before, draft[1]))]
    far = min(found, key=lambda draft: abs(budget.removed(shape_left(before, draft[1])) - budget.ratio))
    for name, layers in near or [far]:
        yield name, planned(budget, before, layers)


def _heads_gone_alike(ladders: Sequence[Ladder], before: DecoderShape, config: PruneConfig) -> Iterator[list[Ladder]]:
    """Yield the ladders of heads and queries up to each number that can go in all layers; first none of them."""
    every = len(layers_of(config, len(before.layers))) == len(before.layers)
    by_kind = [[ladder for ladder in ladders if ladder.kind == kind and every] for kind in HEADS]
    most = [min((len(ladder.counts) for ladder in own), default=1) for own in by_kind]
    for counts in product(*map(range, most)):
        yield [ladder.up_to(count) for own, count in zip(by_kind, counts, strict=True) if count for ladder in own]


def _named(kinds: Sequence[str], begun: Sequence[Ladder]) -> str:
    """Return the name of a draft in which heads have gone alike before the other kinds competed."""
    gone = {ladder.kind: ladder.counts[-1] for ladder in begun}
    words = {"heads": "key/value heads", "queries": "queries of each key/value head"}
    parts = [f"{count} {words[kind]} fewer in every layer" for kind, count in gone.items()]
    return "; ".join([*parts, *([f"{', '.join(kinds)} in competition"] if kinds else [])])


DRAFTS = {"free": free, "alike": alike, "served": served}
