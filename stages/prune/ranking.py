"""How much goes where, when groups of different layers and kinds compete: allocation=global and searched. No torch.

Every layer has ladders: its groups of one kind in the order in which they would go, with what has been lost when so
many of them are gone. The allocation takes the cheapest next stretch of any ladder, loss for each parameter (or each
multiply-accumulate) saved, until the budget is met. A stretch may be longer than one group: where a ladder's loss does
not grow evenly, what counts is the average over the stretch, so a step that is dear by itself and opens the way to
cheap ones is found (the lower convex hull of the ladder).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stages.errors import UserError
from stages.prune.config import PruneConfig
from stages.prune.plan import Budget, PrunePlan, parse_layers
from stages.prune.uniform import DEPTH, without, without_sublayer
from stages.shapes import DecoderShape, LayerShape


@dataclass(frozen=True, slots=True)
class Ladder:
    """The groups of one kind in one layer, cheapest first.

    Attributes:
        layer: the layer's index.
        kind: heads, queries (one of each key/value head at a time), channels, attention, mlp or layers.
        losses: what is lost with 0, 1, 2, … groups gone; never falling.
        each: groups that go in one step.
    """

    layer: int
    kind: str
    losses: Sequence[float]
    each: int = 1


INSIDE = {
    "attention": ("heads", "queries"),
    "mlp": ("channels",),
    "layers": ("heads", "queries", "channels", *DEPTH[1:]),
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

    def shape(self) -> LayerShape | None:
        """Return what is left."""
        left: LayerShape | None = without(
            self.dense, self.gone.get("heads", 0), self.gone.get("queries", 0), self.gone.get("channels", 0)
        )
        for kind in DEPTH:
            if self.gone.get(kind) and left is not None:
                left = without_sublayer(left, kind)
        return left


def allocate(
    ladders: Iterable[Ladder], budget: Budget, before: DecoderShape, *, per_size: bool = True, partial: bool = False
) -> tuple[LayerShape | None, ...]:
    """Return what every layer becomes when the cheapest stretches go until `budget` is met, as near as a step allows.

    Args:
        ladders: those of the layers that may lose something.
        budget: what to arrive at.
        before: the shape that is cut.
        per_size: weigh a loss against what it saves; else losses are compared as they are, one group with another.
        partial: fall short of the budget where all ladders together do not save enough.

    Raises:
        UserError: all ladders together do not save enough.
    """
    layers = [_Layer(layer) for layer in before.layers]
    fixed = budget.size(before) - sum(budget.layer_size(before, layer) for layer in before.layers)
    sizes = [budget.layer_size(before, layer) for layer in before.layers]
    goal = budget.size(budget.dense) * (1 - budget.ratio)
    pool = list(ladders)
    climbed = [0] * len(pool)
    heap: list[tuple[float, int]] = []

    def cheapest(number: int) -> tuple[float, int] | None:
        return _cheapest(pool[number], climbed[number], layers[pool[number].layer], budget, before, per_size)

    def offer(number: int) -> None:
        if (stretch := cheapest(number)) is not None:
            heapq.heappush(heap, (stretch[0], number))

    by_layer: dict[int, list[int]] = {}
    for number, ladder in enumerate(pool):
        by_layer.setdefault(ladder.layer, []).append(number)
        offer(number)
    total, passed = fixed + sum(sizes), False
    while total > goal and heap:
        slope, number = heapq.heappop(heap)
        stretch = cheapest(number)
        if stretch is None:
            continue
        if stretch[0] > slope:  # what the layer has lost since changes what this saves
            heapq.heappush(heap, (stretch[0], number))
            continue
        ladder, to = pool[number], stretch[1]
        layer, held = layers[ladder.layer], dict(layers[ladder.layer].gone)
        layer.gone[ladder.kind] = to * ladder.each
        size = budget.layer_size(before, layer.shape())
        after = total - sizes[ladder.layer] + size
        if after < goal and goal - after > total - goal:  # beyond the goal by more than what is missing now
            layer.gone, passed = held, True
            continue
        total, sizes[ladder.layer], climbed[number] = after, size, to
        layer.lost[ladder.kind] = layer.lost.get(ladder.kind, 0.0) + layer.loss(ladder, to)
        for other in by_layer[ladder.layer]:
            if other == number or pool[other].kind in DEPTH:
                offer(other)
    shapes = tuple(layer.shape() for layer in layers)
    if not (partial or passed) and total > goal and (total - goal) > 0.005 * budget.size(budget.dense):
        most = 1 - total / budget.size(budget.dense)
        raise UserError(
            f"{budget.asked} is more than can go: at most {most:.4f} with these layers, kinds of group and "
            "prune.max_per_layer."
        )
    return shapes


def _cheapest(
    ladder: Ladder, at: int, layer: _Layer, budget: Budget, before: DecoderShape, per_size: bool
) -> tuple[float, int] | None:
    """Return (loss for what it saves, where it ends) of the best stretch of a ladder from `at` on, None at its top."""
    best = None
    held = dict(layer.gone)
    size = budget.layer_size(before, layer.shape())
    # The losses of channels, many and small, grow evenly: looking further than the next would find nothing.
    furthest = at + 1 if ladder.kind == "channels" else len(ladder.losses) - 1
    for to in range(at + 1, min(furthest, len(ladder.losses) - 1) + 1):
        layer.gone = {**held, ladder.kind: to * ladder.each}
        saved = (size - budget.layer_size(before, layer.shape())) if per_size else (to - at) * ladder.each
        if saved > 0:
            slope = layer.loss(ladder, to) / saved
            if best is None or slope < best[0]:
                best = (slope, to)
    layer.gone = held
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

    Raises:
        UserError: hidden channels are asked for, which have no layer.
    """
    kinds = set(config.granularity)
    if "hidden" in kinds:
        raise UserError(
            "hidden channels go through all layers at once, so they can't compete with the groups of a layer: use "
            "prune.allocation=uniform with prune.granularity=[hidden]."
        )
    if not 0 < config.max_per_layer <= 1:
        raise UserError(f"prune.max_per_layer={config.max_per_layer:g} must be above 0 and at most 1.")
    found = []
    for index in parse_layers(config.layers, len(before.layers)):
        if index in scores:
            ladders = _layer_ladders(index, before.layers[index], scores[index], config, kinds, cumulative)
            found += [_limited(ladder, before.layers[index], config) for ladder in ladders] if limit else ladders
    return found


def predicted_loss(ladders: Iterable[Ladder], plan: PrunePlan) -> float:
    """Return what the ladders say that `plan` loses, kinds and layers added up."""
    total = 0.0
    for ladder in ladders:
        old, new = plan.dense.layers[ladder.layer], plan.layers[ladder.layer] or LayerShape(0, 0, 0)
        each = new.heads // new.kv_heads if new.kv_heads else 0
        steps = {
            "heads": (old.kv_heads - new.kv_heads) * bool(new.kv_heads),
            "queries": (old.heads // max(1, old.kv_heads) - each) * bool(new.kv_heads),
            "channels": (old.mlp - new.mlp) // ladder.each * bool(new.mlp),
            "attention": int(bool(old.heads) and not new.heads),
            "mlp": int(bool(old.mlp) and not new.mlp),
            "layers": 0,  # its attention and its MLP are counted
        }
        total += ladder.losses[min(steps[ladder.kind], len(ladder.losses) - 1)]
    return total


def _layer_ladders(
    index: int,
    shape: LayerShape,
    scores: Mapping[str, Sequence[float]],
    config: PruneConfig,
    kinds: set[str],
    cumulative: bool,
) -> list[Ladder]:
    ladders = []
    for kind in sorted(kinds & set(DEPTH)):
        if kind in scores:
            ladders.append(Ladder(index, kind, [0.0, float(scores[kind][0])]))
    if "heads" in kinds and shape.kv_heads > 1:
        ladders.append(Ladder(index, "heads", _climb(sorted(scores["heads"]), 1, cumulative)))
    if "queries" in kinds and shape.kv_heads and shape.heads > shape.kv_heads:
        ladders.append(Ladder(index, "queries", _climb(_rounds(scores["queries"], shape, cumulative), 1, cumulative)))
    if "channels" in kinds and shape.mlp > config.round_to:
        each = config.round_to
        ladders.append(Ladder(index, "channels", _climb(sorted(scores["channels"]), each, cumulative), each))
    return ladders


def _climb(ordered: Sequence[float], each: int, cumulative: bool) -> list[float]:
    """Return what is lost with 0, 1, 2, … times `each` groups gone."""
    losses, total = [0.0], 0.0
    for start in range(0, len(ordered) - each + 1, each):
        part = [float(value) for value in ordered[start : start + each]]
        total = part[-1] if cumulative else total + sum(part)
        losses.append(total)
    return losses


def _rounds(scores: Sequence[float], shape: LayerShape, cumulative: bool) -> list[float]:
    """Return the scores of the rounds in which each key/value head loses its next cheapest query head."""
    each = shape.heads // shape.kv_heads
    groups = [sorted(scores[start : start + each]) for start in range(0, shape.heads, each)]
    return [max(values) if cumulative else sum(values) for values in zip(*groups, strict=True)]


def _limited(ladder: Ladder, shape: LayerShape, config: PruneConfig) -> Ladder:
    """Return the ladder up to where the layer keeps one group, and no less than `max_per_layer` leaves it."""
    if ladder.kind in DEPTH:
        return ladder
    of = {"heads": shape.kv_heads, "queries": shape.heads // max(1, shape.kv_heads), "channels": shape.mlp}[ladder.kind]
    most = min(int(config.max_per_layer * of), of - (config.round_to if ladder.kind == "channels" else 1))
    return Ladder(ladder.layer, ladder.kind, ladder.losses[: most // ladder.each + 1], ladder.each)


def ranked_plan(
    ladders: Iterable[Ladder], budget: Budget, before: DecoderShape, *, per_size: bool = True, partial: bool = False
) -> PrunePlan:
    """Return the plan that `allocate` gives."""
    layers = allocate(ladders, budget, before, per_size=per_size, partial=partial)
    plan = PrunePlan(dense=before, layers=layers, hidden=before.hidden, requested=budget.ratio)
    if budget.near(plan.pruned):
        return plan
    achieved = budget.removed(plan.pruned)
    remark = f"{budget.asked} is missed by the size of what can go: {achieved:.2%} of it is the nearest"
    return PrunePlan(dense=before, layers=layers, hidden=before.hidden, requested=budget.ratio, remarks=(remark,))
