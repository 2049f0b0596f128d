"""The solver: the ratio is hit, or the reason is said."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.shapes import LLAMA_7B, SMOLLM2
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.allocate import plan_shapes
from stages.prune.allocation.budget import TOLERANCE, parse_layers
from stages.prune.criteria.llmpruner import LLMPrunerConfig
from stages.prune.criteria.magnitude import MagnitudeConfig

SMALL, LARGE = DecoderShape.from_config(SMOLLM2), DecoderShape.from_config(LLAMA_7B)


@given(ratio=st.floats(0, 0.72), large=st.booleans())
@settings(deadline=None, max_examples=40)
def test_any_reachable_ratio_is_hit_with_one_shape_for_every_layer(ratio: float, large: bool) -> None:
    plan = plan_shapes(LARGE if large else SMALL, MagnitudeConfig(ratio=ratio, allocation="uniform"))
    assert abs(plan.achieved - ratio) <= TOLERANCE
    assert plan.pruned.uniform
    layer = plan.pruned.layers[0]
    assert layer.heads * plan.dense.layers[0].kv_heads == layer.kv_heads * plan.dense.layers[0].heads


@pytest.mark.parametrize(("ratio", "heads"), [(0.1, 9), (0.2, 9), (0.3, 6), (0.5, 6), (0.65, 3)])
def test_heads_go_in_whole_groups_rounded_down_from_the_share_of_the_channels(ratio: float, heads: int) -> None:
    plan = plan_shapes(SMALL, MagnitudeConfig(ratio=ratio, allocation="uniform"))
    assert plan.pruned.layers[0].heads == heads
    assert plan.pruned.layers[0].kv_heads == heads // 3
    assert any("heads go in steps" in remark for remark in plan.remarks)


def test_on_a_tie_fewer_heads_go() -> None:
    # Attention (2 groups of 24 parameters) weighs as much as the MLP (8 channels of 6). Half of either can go: no head
    # and 1/2 of the channels, or 1/2 of the heads and no channel. Both shares differ by 1/2.
    shape = DecoderShape(family="llama", hidden=2, head_dim=3, vocabulary=2, tied=True, layers=(LayerShape(2, 2, 8),))
    plan = plan_shapes(shape, MagnitudeConfig(ratio=24 / shape.parameters()))
    assert plan.pruned.layers == (LayerShape(2, 2, 4),)


def test_llm_pruners_own_ratio_gives_its_published_size() -> None:
    plan = plan_shapes(LARGE, LLMPrunerConfig(channel_ratio=0.25))
    assert plan.parameters_after == 5_422_977_024
    assert plan.pruned.layers[3] == plan.pruned.layers[30] == LayerShape(32, 32, 11008)
    assert set(plan.pruned.layers[4:30]) == {LayerShape(24, 24, 8256)}
    assert plan.requested is None


def test_protected_layers_keep_their_shape_and_the_ratio_still_holds_for_all_parameters() -> None:
    plan = plan_shapes(SMALL, MagnitudeConfig(ratio=0.2, layers="4-27"))
    changed = [i for i in range(30) if plan.pruned.layers[i] != plan.dense.layers[i]]
    assert changed == list(range(4, 28))
    assert abs(plan.achieved - 0.2) <= TOLERANCE


def test_ratio_zero_keeps_everything() -> None:
    assert plan_shapes(SMALL, MagnitudeConfig(ratio=0.0)).pruned == SMALL


def test_layers_that_differ_already_lose_the_same_share() -> None:
    mixed = SMALL.with_layers([LayerShape(9, 3, 1536)] * 15 + [LayerShape(3, 1, 768)] * 15)
    plan = plan_shapes(mixed, MagnitudeConfig(ratio=0.3))
    assert abs(plan.achieved - 0.3) <= TOLERANCE
    first, last = plan.pruned.layers[0], plan.pruned.layers[-1]
    assert abs(first.mlp / 1536 - last.mlp / 768) < 0.01


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="at least 0 and less than 1"):
        plan_shapes(SMALL, MagnitudeConfig(ratio=ratio))
    with pytest.raises(UserError, match=r"prune\.channel_ratio"):
        plan_shapes(SMALL, MagnitudeConfig(channel_ratio=ratio))


def test_a_ratio_beyond_what_may_go_says_what_stays_and_what_can_be_asked() -> None:
    with pytest.raises(UserError, match=r"embeddings are 21\.0%.*At most 0\.7231"):
        plan_shapes(SMALL, MagnitudeConfig(ratio=0.9, layers="all"))
    with pytest.raises(UserError, match=r"protected layers 34\.2%.*At most 0\.4098.*prune\.layers"):
        plan_shapes(SMALL, MagnitudeConfig(ratio=0.6, layers="4-20"))
    with pytest.raises(UserError, match=r"protected layers 15\.8%.*prune\.layers=all protects none"):
        plan_shapes(SMALL, MagnitudeConfig(ratio=0.6))


def test_a_ratio_between_two_steps_gives_the_nearest_and_says_so() -> None:
    plan = plan_shapes(SMALL, MagnitudeConfig(ratio=0.2, granularity=["layers"]))
    assert len(plan.pruned.layers) == 22
    assert any("ratio=0.2 lies between two steps of what can go: 21.05% of the parameters" in r for r in plan.remarks)
    with pytest.raises(UserError, match=r"ratio=0\.01 is less than half of the smallest cut.*granularity"):
        plan_shapes(SMALL, MagnitudeConfig(ratio=0.01, granularity=["layers"]))


def test_a_channel_ratio_that_rounds_to_no_group_says_so() -> None:
    plan = plan_shapes(SMALL, MagnitudeConfig(channel_ratio=0.2, layers="all"))
    assert plan.pruned.layers[0] == LayerShape(9, 3, 1228)
    assert any("rounds to none of 3" in remark for remark in plan.remarks)


@pytest.mark.parametrize(
    ("text", "layers"), [("all", list(range(30))), ("4-6", [4, 5, 6]), ("0, 2,5-7", [0, 2, 5, 6, 7]), ("29", [29])]
)
def test_layers_are_read(text: str, layers: list[int]) -> None:
    assert parse_layers(text, 30) == layers


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "7-4", "4-30", "1;2", "1-2-3"])
def test_layers_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"prune\.layers="):
        parse_layers(text, 30)


def test_the_printed_plan_has_every_layer_and_the_totals() -> None:
    text = plan_shapes(SMALL, MagnitudeConfig(channel_ratio=0.4, layers="4-27")).table()
    for part in (
        "0-3",
        "4-27",
        "28-29",
        "9 → 6",
        "3 → 2",
        "134,515,008 → 1",
        "multiply-accumulates a token",
        "removed",
    ):
        assert part in text
