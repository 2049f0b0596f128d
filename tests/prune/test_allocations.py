"""Every granularity and allocation reaches its budget or says why not, and options that exclude each other say so."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.allocate import check_options, for_scores, foreseen, notes, plan_shapes
from stages.prune.allocation.budget import budget_of
from stages.prune.config import DEPTH, Search
from stages.prune.criteria.magnitude import MagnitudeConfig
from stages.prune.criteria.registry import CRITERIA
from stages.prune.groups import Scores, with_sublayers

SHAPE = DecoderShape(
    family="llama", hidden=64, head_dim=8, vocabulary=96, tied=True, layers=(LayerShape(8, 4, 160),) * 6
)
BLOCKS = ["heads", "channels", "attention", "mlp"]
GRANULARITIES = [
    ["channels"],
    ["heads", "channels"],
    ["queries", "channels"],
    ["heads", "queries", "channels"],
    ["layers"],
    ["attention"],
    ["mlp"],
    ["layers", "heads", "channels"],
    ["mlp", "channels"],
    ["heads", "channels", "attention", "mlp"],
    ["hidden"],
    ["heads", "channels", "hidden"],
]
BUDGETS: list[dict[str, Any]] = [{"ratio": 0.15}, {"ratio": 0.2, "budget": "macs"}, {"megabytes": 0.85}]


def scores(shape: DecoderShape = SHAPE, seed: int = 0) -> Scores:
    """Return random scores of every group."""
    draw = torch.Generator().manual_seed(seed)

    def of(count: int) -> torch.Tensor:
        return torch.rand(count, generator=draw, dtype=torch.float64)

    layers = {
        index: with_sublayers({"heads": of(layer.kv_heads), "queries": of(layer.heads), "channels": of(layer.mlp)})
        for index, layer in enumerate(shape.layers)
    }
    return Scores(layers, of(shape.hidden))


@pytest.mark.parametrize("allocation", ["uniform", "paper", "global"])
@pytest.mark.parametrize("kinds", GRANULARITIES, ids="+".join)
def test_a_budget_is_reached_or_the_plan_says_why_not(kinds: list[str], allocation: str) -> None:
    for budget in BUDGETS:
        config = MagnitudeConfig(granularity=kinds, allocation=allocation, layers="1-5", **budget)
        try:
            check_options(config)
        except UserError:
            assert "hidden" in kinds or len(set(kinds) & set(DEPTH)) > 1
            return
        plan, goal = plan_shapes(SHAPE, config, scores()), budget_of(SHAPE, config)
        near = abs(goal.removed(plan.pruned) - goal.ratio) <= 0.005
        assert near != any("lies between two steps" in remark for remark in plan.remarks)
        assert near or not {"channels"} <= set(kinds), "channels go one by one"
        assert plan.layers[0] == SHAPE.layers[0], "protected"


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_channels_that_stay_are_a_multiple_whatever_the_layer_has(allocation: str) -> None:
    uneven = SHAPE.with_layers([LayerShape(8, 4, 152), LayerShape(8, 4, 96)] * 3)
    config = MagnitudeConfig(ratio=0.3, allocation=allocation, round_to=16)
    plan = plan_shapes(uneven, config, scores(uneven))
    changed = [new.mlp for old, new in zip(uneven.layers, plan.pruned.layers, strict=True) if new.mlp != old.mlp]
    assert changed
    assert all(channels % 16 == 0 for channels in changed)


def test_a_ranking_across_layers_empties_none_and_stops_at_its_share() -> None:
    found = scores()
    worthless = {kind: values * 1e-6 for kind, values in found.layers[2].items()}
    layers = Scores({**found.layers, 2: worthless})
    for share, kv_heads, channels in ((1.0, 1, 1), (0.5, 2, 80)):
        config = MagnitudeConfig(ratio=0.2, allocation="global", max_per_layer=share)
        assert plan_shapes(SHAPE, config, layers).layers[2] == LayerShape(2 * kv_heads, kv_heads, channels)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_one_layer_stays(allocation: str) -> None:
    config = MagnitudeConfig(ratio=0.815, granularity=["layers"], allocation=allocation)
    assert len(plan_shapes(SHAPE, config, scores()).pruned.layers) == 1


@pytest.mark.parametrize("allocation", ["global", "searched", "uniform"])
def test_what_cannot_be_reached_is_known_before_anything_is_scored(allocation: str) -> None:
    with pytest.raises(UserError, match=r"embeddings are .* protected layers .* At most 0\.\d+ can be removed with"):
        foreseen(SHAPE, MagnitudeConfig(ratio=0.8, allocation=allocation, layers="2-5"))


def test_each_layer_loses_its_own_share_of_what_may_go() -> None:
    shares = [0.0, 0.25, 0.5, 0.0, 0.25, 0.5]
    plan = plan_shapes(SHAPE, MagnitudeConfig(layer_ratios=shares))
    assert [layer.mlp for layer in plan.pruned.layers] == [160, 120, 80, 160, 120, 80]
    assert [layer.kv_heads for layer in plan.pruned.layers] == [4, 3, 2, 4, 3, 2]
    plan = plan_shapes(SHAPE, MagnitudeConfig(layer_ratios=shares, granularity=["channels"]))
    assert {(layer.heads, layer.kv_heads) for layer in plan.pruned.layers} == {(8, 4)}
    for wrong in ([0.5] * 5, [0.5] * 5 + [1.0]):
        with pytest.raises(UserError, match=r"prune\.layer_ratios"):
            plan_shapes(SHAPE, MagnitudeConfig(layer_ratios=wrong))


def test_a_scope_is_another_word_for_an_allocation() -> None:
    for scope, allocation in (("global", "global"), ("layer", "uniform")):
        one = plan_shapes(SHAPE, MagnitudeConfig(ratio=0.3, scope=scope), scores())
        assert one == plan_shapes(SHAPE, MagnitudeConfig(ratio=0.3, allocation=allocation), scores())


def test_megabytes_are_those_of_the_stored_precision() -> None:
    config = MagnitudeConfig(megabytes=0.4)
    assert budget_of(SHAPE, config, "bfloat16").ratio == pytest.approx(1 - 0.2e6 / SHAPE.parameters())
    assert budget_of(SHAPE, config, "float32").ratio == pytest.approx(1 - 0.1e6 / SHAPE.parameters())
    with pytest.raises(UserError, match=r"prune\.megabytes=10 .* at most the model's own 1\.1 MB"):
        budget_of(SHAPE, MagnitudeConfig(megabytes=10))


CONFLICTS: list[tuple[dict[str, Any], str]] = [
    ({"channel_ratio": 0.2, "layer_ratios": [0.2]}, "channel_ratio and prune.layer_ratios both say how much"),
    ({"channel_ratio": 0.2, "megabytes": 3.0}, "channel_ratio and prune.megabytes both"),
    ({"channel_ratio": 0.2, "steps": 2}, "prune.steps=2 to decide"),
    ({"channel_ratio": 0.2, "scope": "global"}, "prune.allocation=global to decide"),
    ({"channel_ratio": 0.2, "round_to": 64}, "prune.round_to=64 to decide"),
    ({"channel_ratio": 0.2, "budget": "macs"}, "prune.budget=macs to decide"),
    ({"channel_ratio": 0.2, "granularity": ["layers"]}, "lets others go"),
    ({"layer_ratios": [0.2], "layers": "1-2"}, "prune.layers=1-2 to decide"),
    ({"scope": "layer", "allocation": "searched"}, "prune.scope=layer means prune.allocation=uniform"),
    ({"scope": "globl"}, "did you mean 'global'"),
    ({"granularity": ["hidden"], "scope": "global"}, "hidden channels go through all layers at once"),
    ({"granularity": ["hidden"], "compensate": "bias"}, "hidden channels go through all layers at once"),
    ({"granularity": ["attention", "mlp"]}, "compete with each other. Use prune.allocation=global"),
    ({"granularity": []}, "prune.granularity is empty"),
    ({"allocation": "searched", "shapes": "alike", "layers": "1-2"}, "prune.shapes=alike wants every layer"),
    ({"shapes": "alike"}, "prune.shapes=alike is about what prune.allocation=searched tries"),
    ({"shapes": "alik"}, "did you mean 'alike'"),
    ({"scope": "global", "allocation": "uniform"}, "prune.scope=global means prune.allocation=global"),
    ({"allocation": "searched", "search": Search(trials=0)}, "prune.search.trials=0 must be at least 1"),
    ({"max_per_layer": 0.0}, "prune.max_per_layer=0 must be above 0"),
    ({"round_to": 0}, "prune.round_to=0 must be at least 1"),
]


@pytest.mark.parametrize(("options", "message"), CONFLICTS, ids=[message[:40] for _, message in CONFLICTS])
def test_options_that_exclude_each_other_give_one_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_options(MagnitudeConfig(**options))
    assert message in str(raised.value)


def test_two_kinds_of_depth_need_a_ranking_even_where_the_paper_goes_by_depth() -> None:
    config = CRITERIA["block_influence"].config(granularity=["attention", "mlp"], allocation="paper")
    with pytest.raises(UserError, match="compete with each other"):
        check_options(config)


def layers_left(name: str, count: int, **options: Any) -> list[int]:
    """Return the layers that keep their shape when criterion `name` cuts a model of `count` layers."""
    shape = SHAPE.with_layers(SHAPE.layers[:1] * count)
    plan = plan_shapes(shape, CRITERIA[name].config(**{"ratio": 0.1} | options), scores(shape))
    return [index for index, (old, new) in enumerate(zip(shape.layers, plan.layers, strict=True)) if old == new]


@pytest.mark.parametrize("name", ["llmpruner", "hywia", "magnitude", "random"])
def test_llmpruners_recipe_leaves_four_first_and_two_last_layers_of_32_in_proportion(name: str) -> None:
    first_and_last = {32: (4, 2), 30: (4, 2), 40: (5, 3), 24: (3, 2), 16: (2, 1), 6: (1, 0), 3: (0, 0)}
    for count, (first, last) in first_and_last.items():
        assert layers_left(name, count) == [*range(first), *range(count - last, count)], count


def test_layers_that_are_named_win_over_the_papers_and_other_allocations_take_all() -> None:
    assert layers_left("llmpruner", 32, layers="all") == []
    assert layers_left("llmpruner", 32, layers="1-30") == [0, 31]
    assert layers_left("llmpruner", 32, allocation="uniform") == []
    assert layers_left("llmpruner", 32, scope="layer") == []
    assert layers_left("wanda", 32) == []
    plan = plan_shapes(SHAPE, CRITERIA["llmpruner"].config(ratio=0.2, granularity=["hidden"]), scores())
    assert plan.hidden < SHAPE.hidden, "a recipe for heads and channels protects no layer of the hidden channels"
    assert len(layers_left("llmpruner", 32, layer_ratios=[0.5] * 32)) == 0


def test_a_plan_says_when_loading_takes_the_modelling_file_and_what_avoids_it() -> None:
    def said(name: str, **options: Any) -> str:
        config = CRITERIA[name].config(**{"ratio": 0.2} | options)
        return "\n".join(notes(config, plan_shapes(SHAPE, config, scores())))

    assert "layers differ in shape: the model loads with trust_remote_code=True" in said("llmpruner")
    assert "prune.allocation=uniform in all layers avoids that" in said("llmpruner")
    assert "in all layers and prune.granularity=[heads,channels] avoids that" in said("surgeon", granularity=BLOCKS)
    assert "in all layers and prune.granularity=[channels] avoids that" in said("2ssp", ratio=0.5)
    assert "loads anywhere; llmpruner's own allocation is prune.allocation=paper" in said(
        "llmpruner", allocation="uniform"
    )
    assert said("wanda") == "", "a stock shape, as its paper has it"


def test_all_layers_are_scored_whatever_the_paper_protects_so_that_allocations_share_the_scores() -> None:
    configs = [CRITERIA["llmpruner"].config(ratio=0.2, allocation=way) for way in ("paper", "uniform", "global")]
    assert len({repr(for_scores(config)) for config in configs}) == 1
    assert for_scores(configs[0]).layers == "all"


@pytest.mark.parametrize(("name", "allocation"), product(CRITERIA, ["uniform", "paper", "global", "searched"]))
def test_a_plan_is_foreseen_wherever_scores_have_no_say(name: str, allocation: str) -> None:
    kinds = ["layers"] if "channels" not in CRITERIA[name].granularities else ["heads", "channels"]
    config = CRITERIA[name].config(ratio=0.3, allocation=allocation, granularity=kinds)
    by_scores = allocation in ("global", "searched") or (allocation == "paper" and CRITERIA[name].paper == "global")
    assert (foreseen(SHAPE, config) is None) == by_scores
