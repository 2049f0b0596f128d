"""Counting from config.json alone: equal to what transformers builds, to the last parameter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.decoders import KINDS, decoder, token_ids
from helpers.shapes import LLAMA_7B, SMOLLM2
from stages.decoders.architecture import cut_config
from stages.decoders.checkpoint import count_parameters
from stages.decoders.modeling_pruned import PrunedLlamaForCausalLM
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError

PUBLISHED = {
    134_515_008: SMOLLM2,
    6_738_415_616: LLAMA_7B,
    494_032_768: {  # Qwen2-0.5B
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    596_049_920: {  # Qwen3-0.6B
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    2_614_341_888: {  # Gemma 2 2B, whose file does not say that embeddings are tied
        "model_type": "gemma2",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 256000,
    },
    999_885_952: {  # Gemma 3 1B
        "model_type": "gemma3_text",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "vocab_size": 262144,
    },
    3_821_079_552: {  # Phi-3-mini
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32064,
    },
    1_484_916_736: {  # OLMo 2 1B
        "model_type": "olmo2",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "vocab_size": 100352,
    },
}
"""By published parameter count, the fields of config.json that decide it."""
BIASED = dict.fromkeys(("llama", "granite"), ("attention_bias", "mlp_bias"))
BIASED |= dict.fromkeys(("qwen3", "olmo2"), ("attention_bias",))


@pytest.mark.parametrize("options", [{}, {"head_dim": 16}, {"num_key_value_heads": 6, "tie_word_embeddings": True}])
@pytest.mark.parametrize("family", KINDS)
def test_parameters_equal_those_of_the_real_model(family: str, options: dict[str, int]) -> None:
    for bias in (None, *BIASED.get(family, ())):
        model = decoder(family, **options, **({bias: True} if bias else {}))
        assert DecoderShape.from_config(model.config.to_dict()).parameters() == count_parameters(model)


def test_layers_of_differing_shape_are_counted_each() -> None:
    dense = decoder()
    layers = [LayerShape(6, 3, 40), LayerShape(2, 1, 7), LayerShape(4, 2, 19)]
    shape = DecoderShape.from_config(dense.config.to_dict()).with_layers(layers)
    config, _ = cut_config(dense.config, shape)
    assert DecoderShape.from_config(config.to_dict()) == shape
    assert shape.parameters() == count_parameters(PrunedLlamaForCausalLM(config))


@pytest.mark.parametrize("parameters", PUBLISHED)
def test_known_models_have_their_published_sizes(parameters: int) -> None:
    assert DecoderShape.from_config(PUBLISHED[parameters]).parameters() == parameters


@pytest.mark.parametrize("family", KINDS)
def test_multiply_accumulates_equal_those_that_torch_counts(family: str) -> None:
    model, tokens = decoder(family, head_dim=16), 24
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(token_ids(1, tokens))
    # torch also counts the outer products of positions and rotary frequencies, of which gemma 3 has two.
    rotary = tokens * model.config.head_dim // 2 * (2 if family == "gemma3_text" else 1)
    counted = counter.get_total_flops() // 2 - rotary
    assert DecoderShape.from_config(model.config.to_dict()).multiply_accumulates(tokens) * tokens == counted


def test_an_unknown_family_is_an_error_that_names_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'lama', did you mean 'llama'\? Known: gemma2, .*, qwen3"):
        DecoderShape.from_config(SMOLLM2 | {"model_type": "lama"})
    with pytest.raises(UserError, match="Known: gemma2, gemma3_text, granite, llama"):
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
