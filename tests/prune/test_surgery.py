"""Cutting a group is the same as zeroing it."""

from __future__ import annotations

import copy

import pytest
import torch

from stages.anatomy import decoder_layers
from stages.checkpoint import count_parameters
from stages.prune.groups import Kept, Selection, keep_all
from stages.prune.surgery import cut
from stages.shapes import DecoderShape, LayerShape
from tests.decoders import decoder, token_ids

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


def test_a_cut_model_has_the_parameters_that_its_shape_counts() -> None:
    model = decoder(attention_bias=True)
    shape = DecoderShape.from_config(model.config.to_dict())
    cut(model, Selection(KEPT))
    layers = [LayerShape(len(k.heads), len(k.kv_heads), len(k.mlp)) for k in KEPT]
    assert count_parameters(model) == shape.with_layers(layers).parameters()
    assert [layer.shape for layer in decoder_layers(model)] == layers


def test_keeping_everything_changes_no_bit() -> None:
    model, ids = decoder(), token_ids()
    with torch.no_grad():
        before = model(ids).logits
        cut(model, Selection([keep_all(LayerShape(6, 3, 40))] * 3))
        assert torch.equal(model(ids).logits, before)


def test_gradients_flow_through_a_cut_model() -> None:
    model, ids = decoder(), token_ids()
    cut(model, Selection(KEPT))
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
