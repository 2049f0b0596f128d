"""Groups of all layers and kinds in competition: the cheapest allocation is found."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from stages.decoders.shapes import DecoderShape, LayerShape
from stages.prune.allocation.budget import Budget
from stages.prune.allocation.limits import without
from stages.prune.allocation.outcome import planned, shape_left
from stages.prune.allocation.ranking import Ladder, allocate, predicted_loss

# An MLP channel and a key/value head with its one query head weigh 12 and 16 parameters, a fraction of the tolerance.
SHAPE = DecoderShape(
    family="llama", hidden=4, head_dim=1, vocabulary=2000, tied=True, layers=(LayerShape(3, 3, 4),) * 3
)
LADDERS = [
    Ladder(0, "channels", range(5), (0.0, 0.1, 0.3, 0.9, 2.0)),
    Ladder(1, "channels", range(5), (0.0, 0.5, 1.1, 1.8, 2.6)),
    Ladder(2, "channels", range(5), (0.0, 0.05, 0.1, 3.0, 9.0)),
    Ladder(0, "heads", range(3), (0.0, 2.0, 2.1)),
    Ladder(1, "heads", range(3), (0.0, 0.2, 4.0)),
    Ladder(2, "heads", range(3), (0.0, 0.9, 1.0)),
]
LADDERS = [ladder.up_to(3) for ladder in LADDERS]


def losses_by_brute_force(size: int) -> float:
    """Return the least predicted loss of all allocations that leave at most `size` parameters."""
    found = []
    for gone in itertools.product(*(range(len(ladder.counts)) for ladder in LADDERS)):
        layers = [without(SHAPE.layers[i], gone[3 + i], 0, gone[i]) for i in range(3)]
        if SHAPE.with_layers(layers).parameters() <= size:
            found.append(sum(ladder.losses[step] for ladder, step in zip(LADDERS, gone, strict=True)))
    return min(found)


def test_what_goes_is_the_cheapest_there_is_at_its_size() -> None:
    total, checked = SHAPE.parameters(), set()
    for ratio in (0.0015 * step for step in range(1, 16)):
        budget = Budget(SHAPE, ratio)
        plan = planned(replace(budget, step=True), SHAPE, allocate(LADDERS, budget, SHAPE))
        size = plan.pruned.parameters()
        # Where the last stretch was too long a shorter one was taken; elsewhere nothing cheaper exists.
        if total - size >= ratio * total and size not in checked:
            checked.add(size)
            assert predicted_loss(LADDERS, plan) == pytest.approx(losses_by_brute_force(size))
    assert len(checked) >= 5


def test_a_dear_step_that_opens_the_way_to_a_cheap_one_is_found() -> None:
    # Layer 2's second head costs next to nothing once the first, dearer than any channel here, has gone.
    ladders = [
        Ladder(0, "channels", range(4), (0.0, 0.6, 1.3, 2.1)),
        Ladder(2, "heads", range(3), (0.0, 0.9, 0.91)),
    ]
    layers = allocate(ladders, Budget(SHAPE, 32 / SHAPE.parameters()), SHAPE)
    assert layers[2] == LayerShape(1, 1, 4)
    assert layers[0] == SHAPE.layers[0]


def test_a_stretch_that_is_too_long_is_taken_in_part() -> None:
    ladders = [Ladder(2, "heads", range(3), (0.0, 0.9, 0.91))]
    layers = allocate(ladders, Budget(SHAPE, 14 / SHAPE.parameters()), SHAPE)
    assert layers[2] == LayerShape(2, 2, 4)


def test_a_sublayer_takes_its_groups_with_it_and_their_loss_is_not_counted_twice() -> None:
    ladders = [
        Ladder(0, "heads", range(3), (0.0, 0.1, 0.2)),
        Ladder(0, "attention", (0, 1), (0.0, 0.3)),
        Ladder(1, "channels", range(4), (0.0, 5.0, 11.0, 18.0)),
    ]
    attention = SHAPE.attention_parameters(SHAPE.layers[0])
    layers = allocate(ladders, Budget(SHAPE, attention / SHAPE.parameters()), SHAPE)
    assert layers == (LayerShape(0, 0, 4), *SHAPE.layers[1:])


def test_predicted_losses_of_kinds_and_layers_add_up() -> None:
    ladders = [
        *LADDERS,
        Ladder(0, "attention", (0, 1), (0.0, 7.0)),
        Ladder(2, "attention", (0, 1), (0.0, 30.0)),
        Ladder(2, "mlp", (0, 1), (0.0, 50.0)),
        Ladder(2, "layers", (0, 1), (0.0, 80.0)),
    ]
    layers = (LayerShape(0, 0, 2), LayerShape(2, 2, 1), None)
    plan = planned(Budget(SHAPE, 0.5), SHAPE, layers)
    assert plan.pruned == shape_left(SHAPE, layers)
    assert predicted_loss(ladders, plan) == pytest.approx(7.0 + 0.3 + 0.2 + 1.8 + 30.0 + 50.0)


def test_a_cheap_coarse_step_does_not_miss_a_budget_that_finer_ones_meet() -> None:
    shape = replace(SHAPE, hidden=16, vocabulary=10, layers=(LayerShape(1, 1, 40),) * 3)
    channels = [Ladder(index, "channels", range(40), [float(count) for count in range(40)]) for index in range(3)]
    whole = Ladder(0, "mlp", (0, 1), (0.0, 1e-3))
    budget = Budget(shape, 0.2)
    assert budget.near(shape_left(shape, allocate([*channels, whole], budget, shape)))
    alone = allocate([whole], budget, shape)
    assert alone[0] == LayerShape(1, 1, 0), "where nothing finer is there the nearest step is taken"
