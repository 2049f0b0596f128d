"""Block influence and perplexity against their definitions, on whole layers and on sub-layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from helpers.decoders import decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.prune.criteria.block_influence import BlockInfluenceConfig
from stages.prune.criteria.block_influence import score as block_influence
from stages.prune.criteria.perplexity import PerplexityConfig
from stages.prune.criteria.perplexity import score as perplexity

DEPTH = ["layers", "attention", "mlp"]
BEFORE_MLP = {"llama": "post_attention_layernorm", "gemma2": "pre_feedforward_layernorm", "olmo2": "mlp"}
BEFORE_MLP["granite"] = BEFORE_MLP["llama"]
"""The module that is given the residual stream between a layer's attention and its MLP."""


def first_inputs(model: PreTrainedModel, ids: Tensor, *names: str) -> list[Tensor]:
    """Return what each named module is given by a plain forward pass, in float64."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: found.update({name: given[0].double()})
        )
        for name in names
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


@pytest.mark.parametrize("family", BEFORE_MLP)
def test_block_influence_is_one_minus_the_cosine_of_what_goes_in_and_what_comes_out(family: str) -> None:
    model, ids = decoder(family), token_ids()
    scores = block_influence(model, decoder_layers(model), ids, BlockInfluenceConfig(granularity=DEPTH)).layers
    followers = ["model.layers.1", "model.layers.2", "model.norm"]
    for index, follower in enumerate(followers):
        here = f"model.layers.{index}"
        before, between, behind = first_inputs(model, ids, here, f"{here}.{BEFORE_MLP[family]}", follower)
        pairs = {"layers": (before, behind), "attention": (before, between), "mlp": (between, behind)}
        for kind, (one, other) in pairs.items():
            cosine = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))
            assert float(scores[index][kind]) == pytest.approx(1 - float(cosine.mean()), rel=1e-4)


def loss(model: PreTrainedModel, ids: Tensor) -> float:
    with torch.no_grad():
        return float(model(ids, labels=ids, use_cache=False).loss)


@pytest.mark.parametrize("family", ["llama", "olmo2", "phi3", "granite"])
def test_perplexity_is_the_rise_of_the_loss_without_a_layer_or_sub_layer(family: str) -> None:
    ids = token_ids(sequences=5)
    model = decoder(family)
    scores = perplexity(model, decoder_layers(model), ids, PerplexityConfig(granularity=DEPTH)).layers
    dense = loss(model, ids)
    for index in range(3):
        for kind, silent in (("attention", [0]), ("mlp", [1]), ("layers", [0, 1])):
            without = decoder(family)
            layer = without.model.layers[index]
            for part in silent:
                torch.nn.init.zeros_((layer.self_attn.o_proj, layer.mlp.down_proj)[part].weight)
            assert float(scores[index][kind]) == pytest.approx(loss(without, ids) - dense, abs=1e-5)


def test_perplexity_ranks_layers_as_the_model_without_them_does() -> None:
    model, ids = decoder(num_hidden_layers=5), token_ids()
    scores = perplexity(model, decoder_layers(model), ids, PerplexityConfig()).layers
    losses = []
    for index in range(5):
        shorter = decoder(num_hidden_layers=5)
        del shorter.model.layers[index]
        shorter.config.num_hidden_layers = 4
        losses.append(loss(shorter, ids))
    found = torch.cat([scores[index]["layers"] for index in range(5)])
    torch.testing.assert_close(found + loss(model, ids), torch.tensor(losses).double(), rtol=0, atol=1e-5)


def test_scores_of_some_layers_are_those_among_all() -> None:
    model, ids = decoder(), token_ids()
    layers = decoder_layers(model)
    for score, config in ((block_influence, BlockInfluenceConfig()), (perplexity, PerplexityConfig())):
        every, alone = score(model, layers, ids, config).layers, score(model, layers[2:], ids, config).layers
        assert list(alone) == [2]
        assert torch.equal(alone[2]["layers"], every[2]["layers"])
        assert list(every[0]) == ["layers"]
