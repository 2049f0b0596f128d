"""Counting from config.json alone: equal to what transformers builds, to the last parameter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stages.checkpoint import count_parameters, cut_config
from stages.errors import UserError
from stages.modeling_pruned import PrunedLlamaForCausalLM
from stages.shapes import DecoderShape, LayerShape
from tests.decoders import decoder, token_ids

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 16}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"num_key_value_heads": 6}),
        ("mistral", {}),
        ("mistral", {"head_dim": 4, "num_attention_heads": 9}),
    ],
)
def test_parameters_equal_those_of_the_real_model(family: str, options: dict[str, int], tied: bool) -> None:
    model = decoder(family, tie_word_embeddings=tied, **options)
    assert DecoderShape.from_config(model.config.to_dict()).parameters() == count_parameters(model)


def test_layers_of_differing_shape_are_counted_each() -> None:
    dense = decoder()
    layers = [LayerShape(6, 3, 40), LayerShape(2, 1, 7), LayerShape(4, 2, 19)]
    shape = DecoderShape.from_config(dense.config.to_dict()).with_layers(layers)
    config, _ = cut_config(dense.config, shape)
    assert DecoderShape.from_config(config.to_dict()) == shape
    assert shape.parameters() == count_parameters(PrunedLlamaForCausalLM(config))


def test_known_models_have_their_published_sizes() -> None:
    assert DecoderShape.from_config(SMOLLM2).parameters() == 134_515_008
    assert DecoderShape.from_config(LLAMA_7B).parameters() == 6_738_415_616


@pytest.mark.parametrize("options", [{}, {"head_dim": 16, "tie_word_embeddings": True}])
def test_multiply_accumulates_equal_those_that_torch_counts(options: dict[str, int]) -> None:
    model, tokens = decoder(**options), 24
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(token_ids(1, tokens))
    # torch also counts the outer product of positions and rotary frequencies.
    rotary = tokens * model.config.head_dim // 2
    counted = counter.get_total_flops() // 2 - rotary
    assert DecoderShape.from_config(model.config.to_dict()).multiply_accumulates(tokens) * tokens == counted


def test_an_unknown_family_is_an_error_that_names_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'lama', did you mean 'llama'\? Known: gemma2, .*, qwen3"):
        DecoderShape.from_config(SMOLLM2 | {"model_type": "lama"})
    with pytest.raises(UserError, match="Known: gemma2, gemma3_text, llama"):
        DecoderShape.from_config({"hidden_size": 5})


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", None), ("vocab_size", "49152"), ("num_hidden_layers", 0), ("head_dim", 1.5)]
)
def test_a_missing_or_impossible_field_is_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        DecoderShape.from_config(SMOLLM2 | {field: value})


def test_heads_that_cannot_share_key_value_heads_are_refused() -> None:
    with pytest.raises(UserError, match="9 query heads can't share 4 key/value heads"):
        DecoderShape.from_config(SMOLLM2 | {"num_key_value_heads": 4})
