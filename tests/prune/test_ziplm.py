"""ZipLM against brute force: at each step every group that is left is tried, and least squares are solved anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.decoders import decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.prune.criteria.ziplm import ZipLMConfig, score
from stages.prune.statistics.curvature import DAMPING, TOGETHER

IDS = token_ids(8, 32)


def maps(family: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weight and damped second moments of layer 1's output projections, o first, from a plain forward pass."""
    model, given = decoder(family), dict[int, Tensor]()
    layer = model.model.layers[1]
    linears = (layer.self_attn.o_proj, layer.mlp.down_proj)
    for place, linear in enumerate(linears):
        linear.register_forward_pre_hook(
            lambda _, inputs, place=place: given.update({place: inputs[0].flatten(0, 1).double()})
        )
    with torch.no_grad():
        model(IDS, use_cache=False)
    found = []
    for place, linear in enumerate(linears):
        moments_CC = given[place].T @ given[place] / IDS.numel()
        moments_CC += DAMPING * moments_CC.diagonal().mean() * torch.eye(len(moments_CC))
        found += [linear.weight.detach().double(), moments_CC]
    return tuple(found)  # type: ignore[return-value]


def error(weight_RC: Tensor, moments_CC: Tensor, gone: list[int]) -> float:
    """Return the least E‖W' x − W x‖² of a W' without weights on the inputs `gone`, as a share of E‖W x‖²."""
    stay = [column for column in range(weight_RC.shape[1]) if column not in gone]
    change_RC = -weight_RC.clone()
    if stay:
        change_RC[:, stay] += torch.linalg.solve(moments_CC[stay][:, stay], moments_CC[stay] @ weight_RC.T).T
    return float((change_RC @ moments_CC * change_RC).sum() / (weight_RC @ moments_CC * weight_RC).sum())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_head_that_leaves_next_is_the_cheapest_of_all_and_scores_what_is_lost_by_then(family: str) -> None:
    model = decoder(family)
    found = score(model, decoder_layers(model), IDS, ZipLMConfig()).layers[1]["heads"]
    weight_RC, moments_CC, _, _ = maps(family)
    width, gone = weight_RC.shape[1] // 3, list[int]()
    left = {0, 1, 2}
    for head in torch.argsort(found).tolist():
        tried = {h: error(weight_RC, moments_CC, [*gone, *range(h * width, (h + 1) * width)]) for h in left}
        assert head == min(tried, key=lambda h: tried[h])
        assert float(found[head]) == pytest.approx(tried[head], rel=1e-3)
        left.remove(head)
        gone += range(head * width, (head + 1) * width)


def test_channels_that_leave_together_are_the_cheapest_and_score_their_exact_error() -> None:
    model = decoder()
    found = score(model, decoder_layers(model), IDS, ZipLMConfig()).layers[1]["channels"]
    _, _, weight_RC, moments_CC = maps("llama")
    order = torch.argsort(found).tolist()
    alone = {channel: error(weight_RC, moments_CC, [channel]) for channel in range(40)}
    assert set(order[:TOGETHER]) == set(sorted(alone, key=lambda channel: alone[channel])[:TOGETHER])
    for count in (TOGETHER, 2 * TOGETHER, 40):
        assert float(found[order[count - 1]]) == pytest.approx(error(weight_RC, moments_CC, order[:count]), rel=1e-3)


def test_a_whole_sub_layer_is_all_of_its_output_and_a_layer_both() -> None:
    model = decoder()
    layers = score(model, decoder_layers(model), IDS, ZipLMConfig(granularity=["queries", "channels"])).layers
    for kinds in layers.values():
        assert float(kinds["attention"]) == float(kinds["mlp"]) == 1.0
        assert float(kinds["layers"]) == 2.0
        assert float(kinds["queries"].max()) == pytest.approx(1.0, rel=1e-3)


def test_what_has_no_weights_costs_nothing() -> None:
    model = decoder()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    scores = score(model, decoder_layers(model), IDS, ZipLMConfig()).layers
    assert float(scores[0]["mlp"]) == 0.0
    assert float(scores[1]["mlp"]) == 1.0
