"""Statistics of activations against the same taken in one piece."""

from __future__ import annotations

import pytest
import torch

from helpers.decoders import decoder, token_ids
from stages.decoders.anatomy import decoder_layers
from stages.prune.statistics.activations import Moments, cosine_distance, input_moments, outputs, silenced
from stages.prune.statistics.layerwise import Layerwise


def test_moments_taken_piece_by_piece_are_those_of_the_whole() -> None:
    values = torch.randn(7, 11, 5, generator=torch.Generator().manual_seed(0)) * 3 + 100
    moments = Moments()
    for part in torch.split(values, [1, 4, 2]):
        moments.add(part)
    whole = values.flatten(0, 1).double()
    assert moments.tokens == 77
    torch.testing.assert_close(moments.mean_F, whole.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.variance_F, whole.var(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(moments.squares_F, whole.square().sum(0), rtol=1e-6, atol=0)


def test_moments_are_of_every_token_and_taken_in_float32_whatever_the_precision() -> None:
    model = decoder().bfloat16()
    ids = token_ids(sequences=90, length=32)  # more than pass a layer at once
    layers = decoder_layers(model)[1:]
    seen: dict[str, torch.Tensor] = {}
    for layer in layers:
        for output in outputs(layer):
            key = f"{layer.index}/{output.name}"
            output.linear.register_forward_pre_hook(lambda _, given, key=key: seen.update({key: given[0].double()}))
    with torch.no_grad():
        model(ids, use_cache=False)
    whole = dict(seen)
    found = {
        f"{layer.index}/{output.name}": given
        for layer, pairs in input_moments(Layerwise(model, ids), layers)
        for output, given in pairs
    }
    assert list(found) == ["1/o_proj", "1/down_proj", "2/o_proj", "2/down_proj"]
    for key, moments in found.items():
        assert moments.tokens == 90 * 32
        expected = whole[key].flatten(0, 1).square().sum(0)
        torch.testing.assert_close(moments.squares_F, expected, rtol=1e-2, atol=1e-3 * float(expected.mean()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "granite"])
def test_a_silenced_layer_gives_what_it_is_given(family: str) -> None:
    decoder_of_layers = Layerwise(model := decoder(family), token_ids())
    hidden_BTH = decoder_of_layers.embedded()
    with silenced(decoder_layers(model)[0].projections):
        assert torch.equal(decoder_of_layers.run(0, hidden_BTH), hidden_BTH)
    assert not torch.equal(decoder_of_layers.run(0, hidden_BTH), hidden_BTH)


def test_cosine_distance_is_0_for_one_direction_1_for_right_angles_and_2_for_opposites() -> None:
    states = torch.eye(4).view(2, 2, 4).bfloat16()
    assert cosine_distance(states, 3 * states) == pytest.approx(0, abs=1e-6)
    assert cosine_distance(states, states.roll(1, -1)) == pytest.approx(1)
    assert cosine_distance(states, -states) == pytest.approx(2)
