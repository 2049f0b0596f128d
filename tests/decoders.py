"""Tiny decoders, built from a config with a seed, for the tests that need a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

KINDS: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}


def decoder(family: str = "llama", **options: Any) -> PreTrainedModel:
    """Return a decoder of 3 layers, 6 query heads on 3 key/value heads and 40 MLP channels, unless told otherwise."""
    fields: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "pad_token_id": 0,
    }
    config_class, model_class = KINDS[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(**fields | options))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def saved(model: PreTrainedModel, artifact: Path) -> Path:
    """Save `model` as a stage's artifact would hold it; returns the artifact."""
    model.save_pretrained(artifact / "model")
    return artifact


def token_ids(sequences: int = 4, length: int = 24, vocabulary: int = 96, seed: int = 1) -> torch.Tensor:
    """Return random token ids."""
    return torch.randint(1, vocabulary, (sequences, length), generator=torch.Generator().manual_seed(seed))
