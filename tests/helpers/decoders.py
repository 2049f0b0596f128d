"""Tiny decoders of every family, built from a config with a seed, for the tests that need a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

WINDOW = {"sliding_window": 6, "max_window_layers": 1}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 6}
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.3}
GRANITE |= {"residual_multiplier": 0.4, "logits_scaling": 1.7}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8, "use_sliding_window": True, **WINDOW}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", GEMMA),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA | {"sliding_window_pattern": 2}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", GRANITE),
}
"""Configuration class, model class and what this family's config needs beside the sizes."""


def decoder(family: str = "llama", **options: Any) -> PreTrainedModel:
    """Return a decoder of 3 layers, 6 query heads on 3 key/value heads and 40 MLP channels, unless told otherwise."""
    config_class, model_class, own = KINDS[family]
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
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**fields | own | options)
        model: PreTrainedModel = getattr(transformers, model_class)(config)
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
