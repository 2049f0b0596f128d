"""Wanda-sp and FLAP against their definitions, on what a plain forward pass gives the output projections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.decoders import decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.errors import UserError
from stages.prune.criteria.flap import METRICS, FLAPConfig, check
from stages.prune.criteria.flap import score as flap
from stages.prune.criteria.wanda import WandaConfig
from stages.prune.criteria.wanda import score as wanda


def given_and_weights(model: PreTrainedModel, ids: Tensor, index: int) -> list[tuple[Tensor, Tensor]]:
    """Return (inputs [tokens, features], weight) of a layer's o_proj and down_proj, in float64."""
    layer, found = model.model.layers[index], []
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        handle = linear.register_forward_pre_hook(lambda linear, given: found.append((given[0], linear.weight)))
        with torch.no_grad():
            model(ids, use_cache=False)
        handle.remove()
    return [(given.flatten(0, 1).double(), weight.detach().double()) for given, weight in found]


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
def test_wanda_is_the_norm_of_a_feature_times_the_weights_of_its_column(family: str) -> None:
    model, ids = decoder(family), token_ids()
    scores = wanda(model, decoder_layers(model), ids, WandaConfig()).layers
    for index, found in scores.items():
        attention, mlp = (x.norm(dim=0) * w.abs().sum(0) for x, w in given_and_weights(model, ids, index))
        torch.testing.assert_close(found["channels"], mlp, rtol=1e-5, atol=0)
        torch.testing.assert_close(found["queries"], attention.view(6, 8).sum(1), rtol=1e-5, atol=0)
        torch.testing.assert_close(found["heads"], attention.view(3, 16).sum(1), rtol=1e-5, atol=0)
        torch.testing.assert_close(found["layers"], (attention.sum() + mlp.sum()).view(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_flap_is_the_standardised_fluctuation_of_a_feature_times_its_column(family: str, metric: str) -> None:
    model, ids = decoder(family), token_ids()
    scores = flap(model, decoder_layers(model), ids, FLAPConfig(metric=metric)).layers
    expected = []
    for index in range(3):
        standardised = []
        for power, (x, w) in zip((2, 1), given_and_weights(model, ids, index), strict=True):
            column = {
                "ifv": x.var(0),
                "wifv": x.var(0) * w.square().sum(0),
                "wifn": (w.abs() * x.square().sum(0).sqrt()).mean(0),
            }[metric] ** power
            standardised.append((column - column.mean()) / column.std())
        attention, mlp = standardised
        kinds = {"heads": attention.view(3, 16).mean(1), "queries": attention.view(6, 8).mean(1), "channels": mlp}
        expected.append(kinds)
    lowest = min(float(values.min()) for kinds in expected for values in kinds.values())
    for index, kinds in enumerate(expected):
        for kind, values in kinds.items():
            torch.testing.assert_close(scores[index][kind], values - lowest, rtol=1e-4, atol=1e-5)


def test_flap_puts_layers_and_modules_of_different_scale_on_one() -> None:
    model, ids = decoder(), token_ids()
    before = flap(model, decoder_layers(model), ids, FLAPConfig()).layers
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight *= 100
    after = flap(model, decoder_layers(model), ids, FLAPConfig()).layers
    for kind in ("heads", "channels"):
        torch.testing.assert_close(after[2][kind], before[2][kind], rtol=1e-4, atol=1e-6)


def test_a_feature_that_does_not_vary_is_the_first_to_go_under_flap_and_not_under_wanda() -> None:
    model, ids = decoder("phi3"), token_ids()
    layer = decoder_layers(model)[0]
    layer.mlp[2].linear.register_forward_pre_hook(
        lambda _, given: given[0].index_fill(-1, torch.tensor([7]), 100.0)  # a large constant
    )
    fluctuation = flap(model, [layer], ids, FLAPConfig()).layers[0]["channels"]
    assert int(fluctuation.argmin()) == 7
    assert int(wanda(model, [layer], ids, WandaConfig()).layers[0]["channels"].argmax()) == 7


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match=r"prune\.metric 'wifw', did you mean"):
        check(FLAPConfig(metric="wifw"))
