"""MLP channels of wide layers stay in multiples that fast kernels want, within the budget; all else stays as it was."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.configurations import configuration
from pipeline.planning.build import build_graph
from pipeline.planning.preview import preview
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.prune.allocation.allocate import foreseen, notes, settled
from stages.prune.allocation.budget import TOLERANCE, budget_of
from stages.prune.allocation.outcome import PrunePlan
from stages.prune.allocation.ranking import ladders_of, ranked_plan
from stages.prune.allocation.rounding import ALIGNED, WIDE
from stages.prune.allocation.uniform import shared_plans
from stages.prune.criteria.registry import CRITERIA

LLAMA_7B = DecoderShape(
    family="llama", hidden=4096, head_dim=128, vocabulary=32000, tied=False, layers=(LayerShape(32, 32, 11008),) * 32
)
LLAMA3_8B = DecoderShape(
    family="llama", hidden=4096, head_dim=128, vocabulary=128256, tied=False, layers=(LayerShape(32, 8, 14336),) * 32
)
NARROW = DecoderShape(
    family="llama", hidden=576, head_dim=64, vocabulary=49152, tied=True, layers=(LayerShape(9, 3, 1536),) * 30
)


def plan(shape: DecoderShape, name: str = "wanda", **options: Any) -> PrunePlan:
    found = foreseen(shape, CRITERIA[name].config(**{"ratio": 0.2} | options))
    assert found is not None
    return found


def multiples(plan: PrunePlan) -> set[int]:
    return {layer.mlp % ALIGNED for layer in plan.pruned.layers}


@pytest.mark.parametrize("shape", [LLAMA_7B, LLAMA3_8B], ids=["7B", "8B"])
@pytest.mark.parametrize("name", ["wanda", "llmpruner", "2ssp"])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5])
def test_wide_layers_end_aligned_and_the_budget_is_met(name: str, ratio: float, shape: DecoderShape) -> None:
    found = plan(shape, name, ratio=ratio)
    assert multiples(found) == {0}
    assert abs(found.achieved - ratio) <= TOLERANCE
    if (name, ratio, shape) == ("wanda", 0.2, LLAMA_7B):
        assert multiples(plan(shape, name, round_to=1)) != {0}, "or there would be nothing to round"


def test_the_narrowest_layers_that_are_rounded_meet_the_budget_too() -> None:
    layer = LayerShape(8, 8, WIDE)
    shape = DecoderShape(family="llama", hidden=512, head_dim=64, vocabulary=32000, tied=True, layers=(layer,) * 12)
    for ratio in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
        found = plan(shape, granularity=["channels"], ratio=ratio)
        assert multiples(found) == {0}
        assert abs(found.achieved - ratio) <= TOLERANCE


def test_a_given_multiple_wins_and_narrow_layers_and_llmpruners_own_ratio_keep_every_number() -> None:
    assert {layer.mlp % 128 for layer in plan(LLAMA_7B, round_to=128).pruned.layers} == {0}
    unrounded = [
        (LLAMA_7B, {"round_to": 1}),
        (LLAMA_7B, {"ratio": None, "channel_ratio": 0.21}),
        (LLAMA_7B, {"ratio": None, "layer_ratios": [0.21] * 32}),
        (LLAMA_7B, {"granularity": ["channels", "hidden"], "allocation": "uniform"}),
        (NARROW, {}),
    ]
    for shape, options in unrounded:
        config = CRITERIA["wanda" if "hidden" not in str(options) else "magnitude"].config(**{"ratio": 0.2} | options)
        assert settled(config, shape).round_to == 1, options


def test_rankings_and_shapes_alike_leave_aligned_channels() -> None:
    config = settled(CRITERIA["surgeon"].config(ratio=0.2, granularity=["heads", "queries", "channels"]), LLAMA_7B)
    budget = budget_of(LLAMA_7B, config)
    alike = shared_plans(budget, LLAMA_7B, config)
    assert len(alike) > 1
    assert all(multiples(found) == {0} for found in alike)
    scores = {
        index: {"heads": [float(h + index) for h in range(32)], "channels": [float(c % 97) for c in range(11008)]}
        for index in range(32)
    }
    ranked = ranked_plan(ladders_of(scores, LLAMA_7B, config), budget, LLAMA_7B)
    assert multiples(ranked) == {0}
    assert abs(ranked.achieved - 0.2) <= TOLERANCE


def test_the_plan_says_what_rounding_costs() -> None:
    config = settled(CRITERIA["wanda"].config(ratio=0.2), LLAMA_7B)
    found = plan(LLAMA_7B)
    fewer = round(0.8 * LLAMA_7B.parameters()) - found.parameters_after
    assert f"multiples of 64: {fewer:,} parameters fewer stay than asked" in notes(config, found)[0]
    assert not notes(settled(CRITERIA["wanda"].config(ratio=0.2), NARROW), plan(NARROW))


def test_the_settled_multiple_is_in_the_key_and_scores_are_shared() -> None:
    unset, aligned, exact = (
        build_graph(configuration("model=llama-7b", "prune=wanda", *more))
        for more in ([], ["prune.round_to=64"], ["prune.round_to=1"])
    )
    assert unset.roles["prune"].config.round_to == 64
    assert unset.roles["prune"].key == aligned.roles["prune"].key != exact.roles["prune"].key
    assert unset.roles["scores"].key == exact.roles["scores"].key
    small = build_graph(configuration("prune=wanda"))
    assert small.roles["prune"].key == build_graph(configuration("prune=wanda", "prune.round_to=1")).roles["prune"].key


def test_what_is_foreseen_is_what_the_key_says() -> None:
    config = configuration("model=llama-7b", "prune=wanda")
    found = preview(config, build_graph(config), None)
    assert found is not None
    assert multiples(found) == {0}
