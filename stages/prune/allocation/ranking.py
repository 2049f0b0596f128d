"""How much goes where, when groups of different layers and kinds compete: allocation=global and searched. No torch.

Every layer has ladders: its groups of one kind in the order in which they would go, with what has been lost when so
many of them are gone. The allocation takes the cheapest next stretch of any ladder, loss for each parameter (or each
multiply-accumulate) saved, until the budget is met. A stretch may be longer than one group: where a ladder's loss does
not grow evenly, what counts is the average over the stretch, so a step that is dear by itself and opens the way to
cheap ones is found (the lower convex hull of the ladder).
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from stages.decoders.shapes import DecoderShape, LayerShape
from stages.prune.allocation.limits import most_gone, without, without_sublayer
from stages.prune.allocation.plan import TOLERANCE, Budget, PrunePlan, parse_layers, planned
from stages.prune.config import DEPTH, PruneConfig


@dataclass(frozen=True, slots=True)
class Ladder:
    """The groups of one kind in one layer, cheapest first.

    Attributes:
        layer: the layer's index.
        kind: heads, queries (one of each key/value head at a time), channels, attention, mlp or layers.
        counts: how many groups are gone at each step, from 0 on.
        losses: what is lost by then; never falling.
    """

    layer: int
    kind: str
    counts: Sequence[int]
    losses: Sequence[float]

    def up_to(self, most: int) -> Ladder:
        """Return the part of it by which at most so many groups go."""
        steps = bisect_right(self.counts, most)
        return replace(self, counts=self.counts[:steps], losses=self.losses[:steps])


INSIDE = {
    "attention": ("heads", "queries"),
    "mlp": ("channels",),
    "layers": ("heads", "queries", "channels", "attention", "mlp"),
}
"""What a layer or sub-layer takes with it, and has been lost already when it goes."""


@dataclass(slots=True)
class _Layer:
    """What has gone of one layer so far: groups of each kind, and what was lost with them."""

    dense: LayerShape
    gone: dict[str, int] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)

    def loss(self, ladder: Ladder, to: int) -> float:
        """Return what is lost by climbing on to a step of a ladder."""
        spent = sum(self.lost.get(kind, 0.0) for kind in (ladder.kind, *INSIDE.get(ladder.kind, ())))
        return max(0.0, ladder.losses[to] - spent)

    def climb(self, ladder: Ladder, to: int) -> None:
        """Let the groups up to a step of a ladder go."""
        self.lost[ladder.kind] = self.lost.get(ladder.kind, 0.0) + self.loss(ladder, to)
        self.gone[ladder.kind] = ladder.counts[to]

    def shape(self, ladder: Ladder | None = None, to: int = 0) -> LayerShape | None:
        """Return what is left, or would be at a step of a ladder."""
        gone = self.gone if ladder is None else self.gone | {ladder.kind: ladder.counts[to]}
        left: LayerShape | None = without(
            self.dense, gone.get("heads", 0), gone.get("queries", 0), gone.get("channels", 0)
        )
        for kind in DEPTH:
            if gone.get(kind) and left is not None:
                left = without_sublayer(left, kind)
        return left


def allocate(
    ladders: Sequence[Ladder], budget: Budget, before: DecoderShape, *, per_size: bool = True
) -> tuple[LayerShape | None, ...]:
    """Return what every layer becomes when the cheapest stretches go until `budget` is met, as near as a step allows.

    Args:
        ladders: those of the layers that may lose something; where all of them save too little, all are climbed.
        budget: what to arrive at.
        before: the shape that is cut.
        per_size: weigh a loss against what it saves; else losses are compared as they are, one group with another.
    """
    climb = _Climb(budget, before, per_size)
    climb.run(ladders, TOLERANCE * budget.size(budget.dense))
    climb.run(ladders, math.inf)  # nothing finer is left
    return tuple(layer.shape() for layer in climb.layers)


class _Climb:
    """Ladders being climbed: what every layer has lost, and what the model weighs."""

    def __init__(self, budget: Budget, before: DecoderShape, per_size: bool) -> None:
        self.budget, self.before, self.per_size = budget, before, per_size
        self.layers = [_Layer(layer) for layer in before.layers]
        self.size = budget.size(before)
        self.goal = budget.size(budget.dense) * (1 - budget.ratio)

    def run(self, ladders: Iterable[Ladder], beyond: float) -> None:
        """Take the cheapest stretch again and again until the goal is reached.

        One that would lead further beyond the goal than `beyond`, or than the goal is away now, is taken in part if it
        can be.
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
            if stretch[0] > slope:  # what the layer has lost since changes what this saves
                heapq.heappush(heap, (stretch[0], number))
                continue
            if self._take(ladder, stretch[1], min(beyond, self.size - self.goal)):
                for other in by_layer[ladder.layer]:
                    if other == number or pool[other].kind in DEPTH:
                        offer(other)
            else:
                pool[number] = ladder.up_to(ladder.counts[stretch[1] - 1])
                offer(number)

    def _take(self, ladder: Ladder, to: int, beyond: float) -> bool:
        """Climb to a step of a ladder, unless that leads too far beyond the goal or leaves no layer."""
        layer = self.layers[ladder.layer]
        size = self.size - self._saved(ladder, to)
        last = layer.shape(ladder, to) is None and not any(other.shape() for other in self.layers if other is not layer)
        if self.goal - size > beyond or last:
            return False
        layer.climb(ladder, to)
        self.size = size
        return True

    def _saved(self, ladder: Ladder, to: int) -> int:
        """Return what the model loses in size by climbing to a step of a ladder."""
        layer = self.layers[ladder.layer]
        now, then = layer.shape(), layer.shape(ladder, to)
        return self.budget.layer_size(self.before, now) - self.budget.layer_size(self.before, then)

    def _cheapest(self, ladder: Ladder) -> tuple[float, int] | None:
        """Return (loss for what it saves, where it ends) of a ladder's best next stretch, None at its top."""
        layer, best = self.layers[ladder.layer], None
        at = bisect_right(ladder.counts, layer.gone.get(ladder.kind, 0)) - 1
        # The losses of channels, many and small, grow evenly: looking further than the next would find nothing.
        furthest = at + 1 if ladder.kind == "channels" else len(ladder.losses) - 1
        for to in range(at + 1, min(furthest, len(ladder.losses) - 1) + 1):
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
        cumulative: whether a score is what has been lost once that group is gone, and not the loss of it alone.
        limit: stop where a layer keeps one group, and where `max_per_layer` says.
    """
    found = []
    for index in parse_layers(config.layers, len(before.layers)):
        if index in scores:
            ladders = _layer_ladders(index, before.layers[index], scores[index], config, cumulative)
            found += [_limited(ladder, before.layers[index], config) for ladder in ladders] if limit else ladders
    return found


def predicted_loss(ladders: Iterable[Ladder], plan: PrunePlan) -> float:
    """Return what the ladders say that `plan` loses, kinds and layers added up."""
    total = 0.0
    for ladder in ladders:
        old, new = plan.dense.layers[ladder.layer], plan.layers[ladder.layer] or LayerShape(0, 0, 0)
        each = new.heads // new.kv_heads if new.kv_heads else 0
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
    ladders = [Ladder(index, kind, (0, 1), (0.0, float(scores[kind][0]))) for kind in DEPTH if kind in kinds]
    if "heads" in kinds and shape.kv_heads > 1:
        ladders.append(_ladder(index, "heads", sorted(scores["heads"]), 1, cumulative))
    if "queries" in kinds and shape.heads > shape.kv_heads:
        ladders.append(_ladder(index, "queries", _rounds(scores["queries"], shape, cumulative), 1, cumulative))
    if "channels" in kinds and shape.mlp > config.round_to:
        ladders.append(_ladder(index, "channels", sorted(scores["channels"]), config.round_to, cumulative))
    return ladders


def _ladder(layer: int, kind: str, ordered: Sequence[float], multiple: int, cumulative: bool) -> Ladder:
    """Return the ladder of groups with these scores, whose steps leave multiples of `multiple`."""
    lost = [0.0, *(ordered if cumulative else accumulate(ordered))]
    of = len(ordered)
    counts = sorted({0, *range(of % multiple, of + 1, multiple)})
    return Ladder(layer, kind, counts, [lost[count] for count in counts])


def _rounds(scores: Sequence[float], shape: LayerShape, cumulative: bool) -> list[float]:
    """Return the scores of the rounds in which each key/value head loses its next cheapest query head."""
    each = shape.heads // shape.kv_heads
    groups = [sorted(scores[start : start + each]) for start in range(0, shape.heads, each)]
    return [max(values) if cumulative else sum(values) for values in zip(*groups, strict=True)]


def _limited(ladder: Ladder, shape: LayerShape, config: PruneConfig) -> Ladder:
    """Return the ladder up to where the layer keeps one group, and no less than `max_per_layer` leaves it."""
    if ladder.kind in DEPTH:
        return ladder
    return ladder.up_to(most_gone(shape, ladder.kind, config, config.max_per_layer))


def ranked_plan(ladders: Sequence[Ladder], budget: Budget, before: DecoderShape, *, per_size: bool = True) -> PrunePlan:
    """Return the plan that `allocate` gives.

    Raises:
        UserError: nothing would go.
    """
    return planned(budget, before, allocate(ladders, budget, before, per_size=per_size))
