"""Cutting a group is the same as zeroing it; `test_families` has every family and kind of group."""

from __future__ import annotations

import copy

import pytest
import torch

from helpers.decoders import decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.decoders.shapes import LayerShape
from stages.prune.groups import Kept, Selection, keep_all
from stages.prune.surgery import cut

KEPT = [
    Kept([2, 3, 4, 5], [1, 2], [0, 3, 4, 11, 39]),
    keep_all(LayerShape(6, 3, 40)),
    Kept([0, 1], [0], list(range(1, 40, 2))),
]


def zeroed(model: torch.nn.Module) -> torch.nn.Module:
    """The dense model with the removed groups' outputs switched off: their columns of o and down."""
    model = copy.deepcopy(model)
    for layer, keep in zip(decoder_layers(model), KEPT, strict=True):
        heads = [head for head in range(layer.shape.heads) if head not in keep.heads]
        output, down = layer.attention[-1].linear.weight.data, layer.mlp[-1].linear.weight.data
        for head in heads:
            output[:, head * layer.head_dim : (head + 1) * layer.head_dim] = 0
        down[:, [channel for channel in range(layer.shape.mlp) if channel not in keep.mlp]] = 0
    return model


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 16}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": 6}),
    ],
)
def test_cutting_equals_zeroing_the_removed_groups(family: str, options: dict[str, int]) -> None:
    model, ids = decoder(family, **options), token_ids()
    with torch.no_grad():
        expected = zeroed(model)(ids).logits
        cut(model, Selection(KEPT))
        found = model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_keeping_everything_changes_no_bit() -> None:
    model, ids = decoder(), token_ids()
    with torch.no_grad():
        before = model(ids).logits
        cut(model, Selection([keep_all(LayerShape(6, 3, 40))] * 3))
        assert torch.equal(model(ids).logits, before)


def test_what_the_config_says_layer_by_layer_stays_with_the_layers_that_are_left() -> None:
    model = decoder()
    model.config.no_rope_layers, model.config.layer_types = [1, 0, 1], ["full", "sliding", "full"]
    model.config.eos_token_id = [2, 3, 4]
    cut(model, Selection([keep_all(LayerShape(6, 3, 40)), None, keep_all(LayerShape(6, 3, 40))]))
    assert (model.config.no_rope_layers, model.config.layer_types) == ([1, 1], ["full", "full"])
    assert model.config.eos_token_id == [2, 3, 4], "a list of another kind, which happens to be as long"
