"""Properties that hold for every value: of command lines, keys, allocations and statistics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from helpers.configurations import configuration, planned
from pipeline.planning.build import build_graph
from pipeline.planning.graph import Graph
from pipeline.schema.overrides import check_arguments, groups
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.prune.allocation.allocate import plan_shapes
from stages.prune.allocation.budget import budget_of
from stages.prune.criteria.magnitude import MagnitudeConfig
from stages.prune.groups import Scores, with_sublayers
from stages.report.statistics import difference, paired, score_intervals

SOME = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(SOME, max_examples=150, derandomize=False)

DECISIVE: dict[str, tuple[str, str, str]] = {
    "ratio": ("0.2", "0.3", "prune"),
    "seed": ("0", "1", "recover"),
    "prune.calibration.sequences": ("4", "5", "prune"),
    "prune.reduction": ("sum", "first", "prune"),
    "adapter.rank": ("8", "16", "recover"),
    "recover.tokens": ("1000", "2000", "recover"),
    "recover.learning_rate": ("0.001", "0.002", "recover"),
    "data.validation_rows": ("8", "16", "data"),
    "evaluate.limit": ("5", "6", "report"),
}
"""Options that decide a result: two values, and a role whose key they are in."""
IDLE = {"runtime.threads": "2", "tracker": "none", "runtime.checkpoint_seconds": "7", "action": "plan"}
"""Options that decide none."""
NUMBERS = ("0", "-1", "1", "2", "1.5", "0.99", "0.0001", "1000000", "1e308", "nan", "inf", str(2**63))
WORDS = ("null", "true", "''", "[]", "{}", "[1,2]", "{a: 1}", "x", "'a b'", "${ratio}", "${y}", "\\$", "é", "../x")
ODD = st.sampled_from([*NUMBERS, *WORDS])
"""Values that fit few options."""


def graph_of(chosen: dict[str, str]) -> Graph:
    return build_graph(configuration(*(f"{name}={value}" for name, value in chosen.items())))


def keys(graph: Graph) -> dict[str, str]:
    return {role: node.key for role, node in graph.roles.items()}


@SOME
@given(st.data())
def test_the_order_of_options_and_what_decides_nothing_make_no_other_key(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(DECISIVE)), unique=True, max_size=4))
    chosen = {name: data.draw(st.sampled_from(DECISIVE[name][:2])) for name in names}
    more = {name: IDLE[name] for name in data.draw(st.lists(st.sampled_from(sorted(IDLE)), unique=True))}
    other = dict(data.draw(st.permutations(list((chosen | more).items()))))
    # The number of threads is in the key of the measured cost, and so in what rests on it.
    without = {"cost", "report"} if "runtime.threads" in more else set()
    one, two = (keys(graph_of(words)) for words in (chosen, other))
    assert {r: k for r, k in one.items() if r not in without} == {r: k for r, k in two.items() if r not in without}


@pytest.mark.parametrize("name", DECISIVE)
def test_another_value_of_an_option_that_decides_is_another_key(name: str) -> None:
    first, second, role = DECISIVE[name]
    assert keys(graph_of({name: first}))[role] != keys(graph_of({name: second}))[role]


def option_names() -> list[str]:
    """Return the dotted names of the default configuration's options, with the groups."""

    def under(value: Any, prefix: str) -> list[str]:
        if not hasattr(value, "__dataclass_fields__"):
            return [prefix]
        return [n for f in value.__dataclass_fields__ for n in under(getattr(value, f), f"{prefix}.{f}".lstrip("."))]

    ours = ("runtime.artifact_root", "runtime.cache")
    return [name for name in under(configuration(), "") if name not in ours]


def tried(data: st.DataObject, names: list[str]) -> None:
    """Plan a random command line: a result or one error."""
    words = [
        f"{group}={data.draw(st.sampled_from(options))}"
        for group, options in sorted(groups().items())
        if group not in ("experiment", "model") and data.draw(st.booleans())
    ]
    words += [f"{data.draw(st.sampled_from(names))}={data.draw(ODD)}" for _ in range(data.draw(st.integers(1, 3)))]
    try:
        check_arguments(words)
        planned(*words)
    except UserError as error:
        event(str(error)[:20])


@SOME
@given(st.data())
def test_random_overrides_end_in_a_plan_or_one_error(data: st.DataObject) -> None:
    tried(data, option_names())


@pytest.mark.faults
@MANY
@given(st.data())
def test_many_random_overrides_end_in_a_plan_or_one_error(data: st.DataObject) -> None:
    tried(data, option_names())


SHAPE = DecoderShape(
    family="llama", hidden=64, head_dim=8, vocabulary=96, tied=True, layers=(LayerShape(8, 4, 160),) * 6
)


def random_scores(seed: int) -> Scores:
    draw = torch.Generator().manual_seed(seed)
    layers = {
        index: with_sublayers(
            {
                name: torch.rand(count, generator=draw, dtype=torch.float64)
                for name, count in (("heads", layer.kv_heads), ("queries", layer.heads), ("channels", layer.mlp))
            }
        )
        for index, layer in enumerate(SHAPE.layers)
    }
    return Scores(layers, torch.rand(SHAPE.hidden, generator=draw, dtype=torch.float64))


@settings(SOME, max_examples=60)
@given(
    ratio=st.floats(0.02, 0.6),
    allocation=st.sampled_from(["uniform", "global"]),
    kinds=st.sampled_from([["channels"], ["heads", "channels"], ["queries", "channels"]]),
    layers=st.sampled_from(["all", "1-5", "0,2,4"]),
    most=st.floats(0.5, 1.0),
    seed=st.integers(0, 99),
)
def test_an_allocation_keeps_its_budget_and_every_limit(
    ratio: float, allocation: str, kinds: list[str], layers: str, most: float, seed: int
) -> None:
    config = MagnitudeConfig(ratio=ratio, allocation=allocation, granularity=kinds, layers=layers, max_per_layer=most)
    try:
        plan = plan_shapes(SHAPE, config, random_scores(seed))
    except UserError as error:
        assert "At most" in str(error)  # noqa: PT017
        return
    goal = budget_of(SHAPE, config)
    assert abs(goal.removed(plan.pruned) - ratio) <= 0.005
    open_layers = {"all": range(6), "1-5": range(1, 6), "0,2,4": (0, 2, 4)}[layers]
    for index, (old, new) in enumerate(zip(SHAPE.layers, plan.layers, strict=True)):
        assert index in open_layers or new == old, "protected"
        assert 1 <= new.kv_heads <= old.kv_heads
        assert 1 <= new.mlp <= old.mlp
        if allocation == "global":
            assert old.mlp - new.mlp <= math.ceil(most * old.mlp)


@settings(SOME, max_examples=60)
@given(st.data())
def test_intervals_hold_the_estimate_and_swapping_flips_the_sign(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 80))
    values = st.lists(st.floats(-50, 50), min_size=count, max_size=count)
    totals_MN = np.array([data.draw(values), data.draw(values)])
    weights_N = np.array(data.draw(st.lists(st.floats(0.5, 9), min_size=count, max_size=count)))
    scored = paired(("a", "b"), totals_MN, weights_N, resamples=200, seed=[data.draw(st.integers(0, 9))])
    for name, score in zip(scored.models, scored.score_M, strict=True):
        low, high = score_intervals(scored)[name]
        assert low <= score + 1e-9
        assert score <= high + 1e-9
    forth, back = difference(scored, "a", "b"), difference(scored, "b", "a")
    assert forth["value"] == -back["value"]
    assert forth["interval"] == [-end for end in reversed(back["interval"])]
