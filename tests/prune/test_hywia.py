"""HyWIA's fusion, which is our reading of the paper, and how it stands to LLM-Pruner on the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.decoders import decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.decoders.checkpoint import load_model
from stages.errors import UserError
from stages.prune.criteria.hywia import HyWIAConfig, check, fuse, score
from stages.prune.criteria.llmpruner import LLMPrunerConfig
from stages.prune.criteria.llmpruner import score as llmpruner

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "llmpruner"
KINDS = ("heads", "queries", "channels")


def draws(seed: int, count: int = 50) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_unit_of(fine: Tensor, coarse: Tensor) -> Tensor:
    return coarse * fine.mean() / coarse.mean()


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_the_fused_score_is_a_convex_combination_of_the_two_on_one_scale(temperature: float) -> None:
    fine, coarse = draws(0), 1e-3 * draws(1)
    fused, other = fuse(fine, coarse, HyWIAConfig(temperature=temperature)), in_unit_of(fine, coarse)
    assert bool(((torch.minimum(fine, other) <= fused + 1e-12) & (fused <= torch.maximum(fine, other) + 1e-12)).all())
    weight = torch.softmax(torch.stack([fine, other]) / fine.mean() / temperature, 0)
    torch.testing.assert_close(fused, weight[0] * fine + weight[1] * other)


def test_a_strong_preference_leaves_one_of_the_two() -> None:
    fine, coarse = draws(0), 1e-3 * draws(1)
    torch.testing.assert_close(fuse(fine, coarse, HyWIAConfig(prefer_fine=1e4)), fine)
    torch.testing.assert_close(fuse(fine, coarse, HyWIAConfig(prefer_fine=-1e4)), in_unit_of(fine, coarse))


def test_the_temperature_goes_from_the_larger_score_to_the_mean() -> None:
    fine, coarse = draws(0), 1e-3 * draws(1)
    other = in_unit_of(fine, coarse)
    cold, hot = (fuse(fine, coarse, HyWIAConfig(temperature=value)) for value in (1e-6, 1e6))
    torch.testing.assert_close(cold, torch.maximum(fine, other))
    torch.testing.assert_close(hot, (fine + other) / 2, rtol=1e-5, atol=0)


def test_groups_without_any_gradient_score_zero() -> None:
    zeros = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(fuse(zeros, zeros, HyWIAConfig()), zeros)


def test_both_scores_are_llm_pruners_and_come_from_one_gradient_pass() -> None:
    model, ids = decoder("phi3"), token_ids()
    layers, granularity = decoder_layers(model), [*KINDS, "hidden"]
    passes: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    fine = llmpruner(model, layers, ids, LLMPrunerConfig(granularity=granularity))
    once = len(passes)
    found = score(model, layers, ids, HyWIAConfig(granularity=granularity))
    assert len(passes) == 2 * once
    coarse = llmpruner(model, layers, ids, LLMPrunerConfig(granularity=granularity, taylor="vectorize"))
    for index, kinds in found.layers.items():
        for kind in KINDS:
            torch.testing.assert_close(
                kinds[kind], fuse(fine.layers[index][kind], coarse.layers[index][kind], HyWIAConfig())
            )
        torch.testing.assert_close(kinds["layers"], kinds["heads"].sum().view(1) + kinds["channels"].sum())
    assert found.hidden_H is not None
    assert fine.hidden_H is not None
    assert coarse.hidden_H is not None
    torch.testing.assert_close(found.hidden_H, fuse(fine.hidden_H, coarse.hidden_H, HyWIAConfig()))


def test_against_llm_pruner_on_the_golden_model_it_ranks_between_its_two_assessments() -> None:
    model = load_model(GOLDEN, dtype="float32")
    ids = torch.tensor(json.loads((GOLDEN / "calibration_ids.json").read_text()))
    layers = decoder_layers(model)[1:5]
    fused = score(model, layers, ids, HyWIAConfig()).layers
    fine, coarse = (
        llmpruner(model, layers, ids, LLMPrunerConfig(taylor=name)).layers for name in ("param_first", "vectorize")
    )

    def shared(one: Tensor, other: Tensor) -> float:
        """Return the share of the cheapest quarter that two scores have in common."""
        count = len(one) // 4
        cheapest = (set(scores.argsort()[:count].tolist()) for scores in (one, other))
        return len(set.intersection(*cheapest)) / count

    for index, kinds in fused.items():
        apart = shared(fine[index]["channels"], coarse[index]["channels"])
        to_fine = shared(kinds["channels"], fine[index]["channels"])
        to_coarse = shared(kinds["channels"], coarse[index]["channels"])
        assert apart < min(to_fine, to_coarse)
        assert max(to_fine, to_coarse) < 1


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.0), ("temperature", -1.0), ("prefer_fine", float("nan"))]
)
def test_a_temperature_or_preference_that_is_no_such_number_is_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"prune\.{field} is "):
        check(HyWIAConfig(**{field: value}))
