"""What removing inputs costs: second moments against autograd, losses against the formula solved directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.decoders import decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.prune.criteria.surgeon import SurgeonConfig, score
from stages.prune.statistics import curvature, second_moments
from stages.prune.statistics.activations import outputs
from stages.prune.statistics.curvature import DAMPING, Elimination, Removal, losses_in_order
from stages.prune.statistics.second_moments import SecondMoments, moments

ORDER = [[3], [0, 7], [1, 2, 9], [4], [5, 6, 8]]
GONE = [[column for columns in ORDER[:count] for column in columns] for count in range(len(ORDER) + 1)]


def random_map() -> tuple[Tensor, SecondMoments]:
    """Return a weight [6, 10] and the second moments of correlated inputs and gradients."""
    draw = torch.Generator().manual_seed(0)
    weight_RC, inputs, gradients, mix = (
        torch.randn(*s, generator=draw) for s in ((6, 10), (40, 10), (40, 6), (10, 10))
    )
    inputs = inputs @ mix
    return weight_RC, SecondMoments(inputs.T @ inputs / 40, gradients.T @ gradients / 40)


def cost(change_RC: Tensor, inputs_CC: Tensor, own: SecondMoments) -> float:
    """Return ½ tr(B ΔW A ΔWᵀ)."""
    return float(0.5 * torch.trace(own.gradients_RR.double() @ change_RC @ inputs_CC @ change_RC.T))


def damped(own: SecondMoments) -> Tensor:
    inputs_CC = own.inputs_CC.double()
    return inputs_CC + DAMPING * inputs_CC.diagonal().mean() * torch.eye(len(inputs_CC))


def least_cost(weight_RC: Tensor, own: SecondMoments, gone: Sequence[int]) -> float:
    """Return the least cost of having no weight on the inputs `gone`: least squares over those that stay."""
    inputs_CC, weight_RC = damped(own), weight_RC.double()
    stay = [column for column in range(weight_RC.shape[1]) if column not in gone]
    change_RC = -weight_RC.clone()
    change_RC[:, stay] = torch.linalg.solve(inputs_CC[stay][:, stay], inputs_CC[stay] @ weight_RC.T).T
    change_RC[:, stay] -= weight_RC[:, stay]
    return cost(change_RC, inputs_CC, own)


def test_what_elimination_costs_is_the_least_that_the_others_can_make_it() -> None:
    weight_RC, own = random_map()
    losses = losses_in_order([torch.tensor(columns) for columns in ORDER], Elimination(weight_RC, own))
    expected = [least_cost(weight_RC, own, gone) for gone in GONE]
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert losses[-1] == pytest.approx(cost(weight_RC.double(), damped(own), own), rel=1e-4), "the whole map"


def test_what_removal_costs_is_that_of_the_weights_that_are_gone() -> None:
    weight_RC, own = random_map()
    losses = losses_in_order([torch.tensor(columns) for columns in ORDER], Removal(weight_RC, own))
    for gone, loss in zip(GONE, losses, strict=True):
        gone_RC = torch.zeros_like(weight_RC, dtype=torch.float64)
        gone_RC[:, gone] = weight_RC[:, gone].double()
        assert loss == pytest.approx(cost(gone_RC, own.inputs_CC.double(), own), rel=1e-4, abs=1e-6)


def test_the_cheapest_block_goes_first_and_scores_are_what_is_lost_by_then() -> None:
    weight_RC, own = random_map()
    found = curvature.block_losses(weight_RC, own, [range(5)], 2).tolist()
    gone: list[int] = []
    for block in sorted(range(5), key=found.__getitem__):
        costs = {b: least_cost(weight_RC, own, [*gone, 2 * b, 2 * b + 1]) for b in range(5) if 2 * b not in gone}
        assert costs[block] == pytest.approx(min(costs.values()), rel=1e-4)
        gone += [2 * block, 2 * block + 1]
        assert found[block] == pytest.approx(costs[block], rel=1e-4)


def test_in_rounds_every_set_of_blocks_loses_one() -> None:
    weight_RC, own = random_map()
    first, second, third, fourth = curvature.block_losses(weight_RC[:, :8], _part(own, 8), [(0, 1), (2, 3)], 2).tolist()
    assert min(first, second) == min(third, fourth)
    assert max(first, second) == max(third, fourth)


def test_channels_that_go_together_share_their_exact_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "TOGETHER", 4)
    weight_RC, own = random_map()
    found = curvature.channel_losses(weight_RC, own)
    order = torch.argsort(found).tolist()
    for count in (4, 8, 10):
        assert float(found[order[count - 1]]) == pytest.approx(least_cost(weight_RC, own, order[:count]), rel=1e-4)


def _part(own: SecondMoments, size: int) -> SecondMoments:
    return SecondMoments(own.inputs_CC[:size, :size], own.gradients_RR)


def in_order(model: PreTrainedModel, maps: list[nn.Linear], ids_BT: Tensor, **options: Any) -> list[SecondMoments]:
    """Return the moments in the order of `maps`."""
    found = dict(moments(model, maps, ids_BT, seed=7, **options))
    return [found[position] for position in range(len(maps))]


@pytest.mark.parametrize(("family", "memory"), [("qwen3", 2**32), ("qwen3", 1), ("granite", 2**32)])
def test_second_moments_are_those_of_plain_autograd(family: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_moments, "MEMORY", memory)  # however many runs of layers that takes
    model, ids_BT = decoder(family), token_ids()
    maps = [output.linear for layer in decoder_layers(model) for output in outputs(layer)]
    found = in_order(model, maps, ids_BT)

    given, given_back = {}, {}
    for linear in maps:
        linear.register_forward_pre_hook(lambda m, inputs: given.update({m: inputs[0].flatten(0, 1)}))
        linear.register_full_backward_hook(lambda m, _, outer: given_back.update({m: outer[0].flatten(0, 1)}))
    logits = model(ids_BT).logits.flatten(0, 1)
    drawn = torch.rand(len(logits), 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    answers = (logits.double().softmax(-1).cumsum(-1) < drawn).sum(-1)
    F.cross_entropy(logits, answers, reduction="sum").backward()
    for linear, own in zip(maps, found, strict=True):
        inputs, gradients = given[linear].detach(), given_back[linear]
        torch.testing.assert_close(own.inputs_CC, inputs.T @ inputs / ids_BT.numel())
        torch.testing.assert_close(own.gradients_RR, gradients.T @ gradients / ids_BT.numel())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("length", "counted"), [(24, 1), (24, 3), (600, 2)])
def test_inputs_are_of_all_sequences_and_gradients_of_the_first_ones(length: int, counted: int) -> None:
    model, ids_BT = decoder(max_position_embeddings=1024), token_ids(length=length)
    maps = [output.linear for layer in decoder_layers(model) for output in outputs(layer)]
    found, of_all, of_first = (
        in_order(model, maps, ids, curvature=count)
        for ids, count in ((ids_BT, counted), (ids_BT, None), (ids_BT[:counted], None))
    )
    for own, every, first in zip(found, of_all, of_first, strict=True):
        torch.testing.assert_close(own.inputs_CC, every.inputs_CC)
        torch.testing.assert_close(own.gradients_RR, first.gradients_RR)
        assert not torch.allclose(own.gradients_RR, every.gradients_RR, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [24, 600])
def test_moments_are_the_same_however_many_layers_are_in_memory(
    length: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder("gemma2", num_hidden_layers=5, max_position_embeddings=1024).to(dtype)
    maps = [output.linear for layer in decoder_layers(model)[1:4] for output in outputs(layer)]
    ids_BT, whole = token_ids(5, length), None
    for memory, graph in ((2**32, 2**31), (40_000, 2**31), (2**32, 1), (1, 1)):
        monkeypatch.setattr(second_moments, "MEMORY", memory)
        monkeypatch.setattr(second_moments, "GRAPH", graph)
        found = in_order(model, maps, ids_BT, curvature=3)
        whole = whole or found
        for own, other in zip(found, whole, strict=True):
            assert torch.equal(own.inputs_CC, other.inputs_CC)
            assert torch.equal(own.gradients_RR, other.gradients_RR)


def test_a_surgeons_scores_are_what_a_sub_layer_has_lost_and_those_of_a_layer_their_sum() -> None:
    model = decoder()
    layers = decoder_layers(model)
    scores = score(model, layers, token_ids(), SurgeonConfig(granularity=["heads", "queries", "channels"])).layers
    for kinds in scores.values():
        assert float(kinds["attention"]) == pytest.approx(float(kinds["heads"].max()))
        assert float(kinds["attention"]) == pytest.approx(float(kinds["queries"].max()), rel=1e-3)
        assert float(kinds["mlp"]) == float(kinds["channels"].max())
        assert float(kinds["layers"]) == pytest.approx(float(kinds["attention"] + kinds["mlp"]))
        assert all(bool((values > 0).all()) for values in kinds.values())


def test_a_loss_is_predicted_to_the_order_of_what_it_is() -> None:
    """The prediction is of second order: the damage of a small cut lies near it, over many tokens."""
    model, ids_BT = decoder(initializer_range=0.02), token_ids(64, 64)
    layer = decoder_layers(model)[0]
    weight_RC = layer.mlp[-1].linear.weight
    ((_, own),) = moments(model, [layer.mlp[-1].linear], ids_BT, seed=0)
    gone = torch.arange(20)
    predicted = Removal(weight_RC, own).remove(gone)
    with torch.no_grad():
        plain = model(ids_BT).logits.log_softmax(-1)
        weight_RC[:, gone] = 0
        cut = model(ids_BT).logits.log_softmax(-1)
    divergence = float((plain.exp() * (plain - cut)).sum(-1).mean())
    assert predicted == pytest.approx(divergence, rel=0.25)
