"""Models whose layers are spread over cards. Cards are stood in for by the processor and by the meta device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from helpers.decoders import decoder, token_ids
from stages.decoders.spread import places, spread


def test_cards_hold_about_as_much_each_and_layers_stay_in_order() -> None:
    assert places([1] * 8, 0, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert places([1] * 8, 4, 3) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert places([1] * 3, 0, 1) == [0, 0, 0]


def test_layers_are_on_their_cards_and_all_else_on_the_first() -> None:
    model = spread(decoder(), ["cpu", "meta"])
    kinds = [next(layer.parameters()).device.type for layer in model.model.layers]
    assert kinds == sorted(kinds)
    assert set(kinds) == {"cpu", "meta"}
    assert {model.lm_head.weight.device.type, model.model.norm.weight.device.type, model.device.type} == {"cpu"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_spread_model_computes_what_it_did_forward_and_backward(family: str) -> None:
    whole = decoder(family)
    apart = spread(copy.deepcopy(whole), ["cpu", "cpu"])
    ids_BT = token_ids(2, 12)
    for model in (whole, apart):
        model(ids_BT, labels=ids_BT).loss.backward()
    assert_close(apart(ids_BT).logits, whole(ids_BT).logits)
    for ours, theirs in zip(apart.parameters(), whole.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


def test_what_a_layer_is_given_and_gives_goes_from_card_to_card() -> None:
    model = spread(decoder(), ["cpu", "meta"])
    layer = model.model.layers[-1]
    hidden_BTH = torch.zeros(1, 4, 48)
    seen: list[str] = []
    layer.self_attn.q_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0].device.type))
    # A tensor of the meta device has no values to bring back, which is as far as it can go here.
    with pytest.raises(NotImplementedError, match="meta"):
        layer(hidden_BTH, position_embeddings=(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)))
    assert seen == ["meta"]
