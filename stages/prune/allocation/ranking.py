"""Allocation by competition: groups of different layers and kinds compete (allocation=global and searched). No torch.

Every layer has ladders. A ladder is the layer's groups of one kind in the order in which they would go, with the loss
once so many of them are gone. The allocation takes the cheapest next stretch of any ladder, again and again, until the
budget is met. Cheapest means the least loss for each parameter (or each multiply-accumulate) saved.

A stretch may be longer than one group. Where the loss of a ladder does not grow evenly, the average over the stretch
counts. So a dear step that opens the way to cheap steps is found (the lower convex hull of the ladder).
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from stages.decoders.shapes import DecoderShape, LayerShape
from stages.prune.allocation.budget import TOLERANCE, Budget, layers_of
from stages.prune.allocation.limits import may_go, most_gone, without, without_sublayer
from stages.prune.allocation.outcome import PrunePlan, planned
from stages.prune.config import DEPTH, PruneConfig


@dataclass(frozen=True, slots=True)
class Ladder:
    """The groups of one kind in one layer, cheapest first.

    Attributes:
        layer: the layer's index.
        kind: heads, queries (one of each key/value head at a time), channels, attention, mlp or layers.
        counts: the number of groups that are gone at each step, from 0 on.
        losses: the loss at each step; never falling.
    """

    layer: int
    kind: str
    counts: Sequence[int]
    losses: Sequence[float]

    def up_to(self, most: int) -> Ladder:
        """Return the part of the ladder on which at most `most` groups are gone."""
        steps = bisect_right(self.counts, most)
        return replace(self, counts=self.counts[:steps], losses=self.losses[:steps])


INSIDE = {
    "attention": ("heads", "queries"),
    "mlp": ("channels",),
    "layers": ("heads", "queries", "channels", "attention", "mlp"),
}
"""The kinds of group inside a layer or sub-layer: they go with it, so losses paid for them are not paid again."""


@dataclass(slots=True)
class _Layer:
    """The groups of each kind that one layer has lost so far, and the loss paid for them."""

    dense: LayerShape
    gone: dict[str, int] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)

    def loss(self, ladder: Ladder, to: int) -> float:
        """Return the additional loss of climbing to a step of a ladder."""
        spent = sum(self.lost.get(kind, 0.0) for kind in (ladder.kind, *INSIDE.get(ladder.kind, ())))
        # Heads and queries are scored apart, so together they may have cost more than their whole sub-layer is said to
        # cost. The rest of the sub-layer is then free, and never a gain.
        return max(0.0, ladder.losses[to] - spent)

    def climb(self, ladder: Ladder, to: int) -> None:
        """Remove the groups up to a step of a ladder."""
        self.lost[ladder.kind] = self.lost.get(ladder.kind, 0.0) + self.loss(ladder, to)
        self.gone[ladder.kind] = ladder.counts[to]

    def shape(self, ladder: Ladder | None = None, to: int = 0) -> LayerShape | None:
        """Return the shape that is left now, or that would be left at a step of a ladder."""
        gone = self.gone if ladder is None else self.gone | {ladder.kind: ladder.counts[to]}
        left: LayerShape | None = without(
            self.dense, gone.get("heads", 0), gone.get("queries", 0), gone.get("channels", 0)
        )
        for kind in DEPTH:
            if gone.get(kind) and left is not None:
                left = without_sublayer(left, kind)
        return left


def allocate(
    ladders: Sequence[Ladder],
    budget: Budget,
    before: DecoderShape,
    *,
    per_size: bool = True,
    begun: Sequence[Ladder] = (),
) -> tuple[LayerShape | None, ...]:
    """Return every layer's shape after the cheapest stretches have gone, as near to `budget` as a step allows.

    Args:
        ladders: the ladders of the layers that may lose something; all are climbed where they save too little together.
        budget: the budget.
        before: the shape that is cut.
        per_size: whether a loss is divided by the size that it saves; else by the number of groups, so that scores are
            compared as they are, one group with another.
        begun: ladders whose groups are gone before anything competes, up to the top of each.
    """
    climb = _Climb(budget, before, per_size)
    for ladder in begun:
        climb.begin(ladder)
    # First only stretches that end within the tolerance of the budget: a cheap coarse step (a sub-layer) would jump far
    # beyond a budget that finer steps can meet.
    climb.run(ladders, TOLERANCE * budget.size(budget.dense))
    # Nothing finer is left. Now a coarse step may go beyond the budget, if that ends nearer to it than stopping here.
    climb.run(ladders, math.inf)
    return tuple(layer.shape() for layer in climb.layers)


class _Climb:
    """The state of a climb: the groups that every layer has lost, and the size of the model.

    Attributes:
        size: parameters or multiply-accumulates that are left.
        goal: the size at which the budget is met.
    """

    def __init__(self, budget: Budget, before: DecoderShape, per_size: bool) -> None:
        self.budget, self.before, self.per_size = budget, before, per_size
        self.layers = [_Layer(layer) for layer in before.layers]
        self.size = budget.size(before)
        self.goal = budget.size(budget.dense) * (1 - budget.ratio)

    def begin(self, ladder: Ladder) -> None:
        """Climb to the top of a ladder, whatever it costs and saves."""
        top = len(ladder.counts) - 1
        self.size -= self._saved(ladder, top)
        self.layers[ladder.layer].climb(ladder, top)

    def run(self, ladders: Iterable[Ladder], beyond: float) -> None:
        """Take the cheapest stretch again and again until the goal is reached.

        A stretch must not end further beyond the goal than `beyond`, nor further than the goal is away now. A stretch
        that would is shortened, if it can be.
        """
        pool, heap = list(ladders), list[tuple[float, int]]()
        by_layer: dict[int, list[int]] = {}

        def offer(number: int) -> None:
            if (stretch := self._cheapest(pool[number])) is not None:
                heapq.heappush(heap, (stretch[0], number))

        for number, ladder in enumerate(pool):
            by_layer.setdefault(ladder.layer, []).append(number)
            offer(number)
        while self.size > self.goal and heap:
            slope, number = heapq.heappop(heap)
            ladder, stretch = pool[number], self._cheapest(pool[number])
            if stretch is None:
                continue
            # Entries of the heap grow stale: with each query head gone, for example, a key/value head saves less. A
            # stretch that has become dearer goes back with its new slope, and is met again in its turn.
            if stretch[0] > slope:
                heapq.heappush(heap, (stretch[0], number))
                continue
            if self._take(ladder, stretch[1], min(beyond, self.size - self.goal)):
                # Only a whole layer or sub-layer can become cheaper, by losses already paid for the groups inside it.
                # It would wait too deep in the heap, so it is offered anew.
                for other in by_layer[ladder.layer]:
                    if other == number or pool[other].kind in DEPTH:
                        offer(other)
            else:
                # One step less may fit. For the rest of this run the ladder ends there: the goal only comes nearer.
                pool[number] = ladder.up_to(ladder.counts[stretch[1] - 1])
                offer(number)

    def _take(self, ladder: Ladder, to: int, beyond: float) -> bool:
        """Climb to a step of a ladder and return True.

        Return False, and climb nowhere, where that ends too far beyond the goal or leaves no layer.
        """
        layer = self.layers[ladder.layer]
        size = self.size - self._saved(ladder, to)
        last = layer.shape(ladder, to) is None and not any(other.shape() for other in self.layers if other is not layer)
        if self.goal - size > beyond or last:
            return False
        layer.climb(ladder, to)
        self.size = size
        return True

    def _saved(self, ladder: Ladder, to: int) -> int:
        """Return the size that climbing to a step of a ladder saves."""
        layer = self.layers[ladder.layer]
        now, then = layer.shape(), layer.shape(ladder, to)
        return self.budget.layer_size(self.before, now) - self.budget.layer_size(self.before, then)

    def _cheapest(self, ladder: Ladder) -> tuple[float, int] | None:
        """Return the slope of a ladder's cheapest next stretch and the step at which it ends; None at the ladder's top.

        The slope is the loss divided by the size saved, or by the number of groups.
        """
        layer, best = self.layers[ladder.layer], None
        at = bisect_right(ladder.counts, layer.gone.get(ladder.kind, 0)) - 1
        # The losses of channels, many and small, grow evenly: looking further than the next would find nothing.
        furthest = at + 1 if ladder.kind == "channels" else len(ladder.losses) - 1
        for to in range(at + 1, min(furthest, len(ladder.losses) - 1) + 1):
            # Groups of a sub-layer that is gone already save nothing, and have no slope.
            if (saved := self._saved(ladder, to)) > 0:
                slope = layer.loss(ladder, to) / (saved if self.per_size else ladder.counts[to] - ladder.counts[at])
                if best is None or slope < best[0]:
                    best = (slope, to)
        return best


def ladders_of(
    scores: Mapping[int, Mapping[str, Sequence[float]]],
    before: DecoderShape,
    config: PruneConfig,
    *,
    cumulative: bool = False,
    limit: bool = True,
) -> list[Ladder]:
    """Return the ladders of all layers that may lose something.

    Args:
        scores: by layer, by kind of group, one number a group.
        before: the shape that is cut.
        config: layers, kinds, `round_to` and `max_per_layer`.
        cumulative: whether a score is the loss of all groups up to and with this one, and not of this one alone.
        limit: whether ladders stop where a layer keeps one group, and at `max_per_layer`.
    """
    found = []
    for index in layers_of(config, len(before.layers)):
        if index in scores:
            ladders = _layer_ladders(index, before.layers[index], scores[index], config, cumulative)
            found += [_limited(ladder, before.layers[index], config) for ladder in ladders] if limit else ladders
    return found


def predicted_loss(ladders: Iterable[Ladder], plan: PrunePlan) -> float:
    """Return the loss of `plan` by the ladders, added up over kinds and layers."""
    total = 0.0
    for ladder in ladders:
        old, new = plan.dense.layers[ladder.layer], plan.layers[ladder.layer] or LayerShape(0, 0, 0)
        each = new.heads // new.kv_heads if new.kv_heads else 0
        # Where a sub-layer is gone whole, its own ladder has the loss, and those of the groups inside count nothing.
        gone = {
            "heads": (old.kv_heads - new.kv_heads) * bool(new.kv_heads),
            "queries": (old.heads // max(1, old.kv_heads) - each) * bool(new.kv_heads),
            "channels": (old.mlp - new.mlp) * bool(new.mlp),
            "attention": int(bool(old.heads) and not new.heads),
            "mlp": int(bool(old.mlp) and not new.mlp),
            "layers": 0,  # its attention and its MLP are counted
        }
        total += ladder.up_to(gone[ladder.kind]).losses[-1]
    return total


def _layer_ladders(
    index: int, shape: LayerShape, scores: Mapping[str, Sequence[float]], config: PruneConfig, cumulative: bool
) -> list[Ladder]:
    kinds = set(config.granularity) & set(scores)
    depth = [kind for kind in DEPTH if kind in kinds and may_go(config, index, kind)]
    ladders = [Ladder(index, kind, (0, 1), (0.0, float(scores[kind][0]))) for kind in depth]
    if "heads" in kinds and shape.kv_heads > 1:
        ladders.append(_ladder(index, "heads", sorted(scores["heads"]), 1, cumulative))
    if "queries" in kinds and shape.heads > shape.kv_heads:
        ladders.append(_ladder(index, "queries", _rounds(scores["queries"], shape, cumulative), 1, cumulative))
    if "channels" in kinds and shape.mlp > config.multiple:
        ladders.append(_ladder(index, "channels", sorted(scores["channels"]), config.multiple, cumulative))
    return ladders


def _ladder(layer: int, kind: str, ordered: Sequence[float], multiple: int, cumulative: bool) -> Ladder:
    """Return the ladder of groups with these scores, whose steps leave multiples of `multiple`."""
    lost = [0.0, *(ordered if cumulative else accumulate(ordered))]
    of = len(ordered)
    # The first step takes the remainder, after which the number of groups that stay is a multiple.
    counts = sorted({0, *range(of % multiple, of + 1, multiple)})
    return Ladder(layer, kind, counts, [lost[count] for count in counts])


def _rounds(scores: Sequence[float], shape: LayerShape, cumulative: bool) -> list[float]:
    """Return the scores of the rounds in which each key/value head loses its next cheapest query head."""
    each = shape.heads // shape.kv_heads
    groups = [sorted(scores[start : start + each]) for start in range(0, shape.heads, each)]
    # A cumulative score has the losses of all that went before in it: the highest one is that of the whole round.
    return [max(values) if cumulative else sum(values) for values in zip(*groups, strict=True)]


def _limited(ladder: Ladder, shape: LayerShape, config: PruneConfig) -> Ladder:
    """Return the ladder up to the last step that leaves a group, and at least the share that `max_per_layer` leaves."""
    if ladder.kind in DEPTH:
        return ladder
    return ladder.up_to(most_gone(shape, ladder.kind, config, config.max_per_layer))


def ranked_plan(ladders: Sequence[Ladder], budget: Budget, before: DecoderShape, *, per_size: bool = True) -> PrunePlan:
    """Return the plan that `allocate` gives.

    Raises:
        UserError: nothing would go.
    """
    return planned(budget, before, allocate(ladders, budget, before, per_size=per_size))
