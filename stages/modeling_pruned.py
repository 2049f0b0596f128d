"""Decoders whose layers differ in heads and MLP channels, as structured pruning leaves them.

A copy of this file lies in checkpoints of such models, so that they load with nothing but transformers:

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

`layer_shapes` in `config.json` has [query heads, key/value heads, MLP channels] for each layer; the stock fields keep
the dense model's sizes. All computation is the stock architecture's: only the sizes of the projections differ.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM


class PrunedForCausalLM:
    """A stock decoder whose attention and MLP modules are built anew, each layer in its own shape."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        for index, (layer, shape) in enumerate(zip(self.model.layers, config.layer_shapes, strict=True)):  # type: ignore[attr-defined]
            local = copy.copy(config)
            local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = shape
            layer.self_attn = type(layer.self_attn)(local, layer_idx=index)
            layer.mlp = type(layer.mlp)(local)
            # The attention implementation is looked up on the shared configuration, where it can be changed later.
            layer.self_attn.config = layer.mlp.config = config
        self.post_init()  # type: ignore[attr-defined]


class PrunedLlamaConfig(LlamaConfig):
    """Llama with one shape a layer."""

    model_type = "pruned_llama"
    layer_shapes: list[list[int]] | None = None


class PrunedLlamaForCausalLM(PrunedForCausalLM, LlamaForCausalLM):
    """Llama with one shape a layer."""

    config_class = PrunedLlamaConfig
    config: PrunedLlamaConfig


class PrunedMistralConfig(MistralConfig):
    """Mistral with one shape a layer."""

    model_type = "pruned_mistral"
    layer_shapes: list[list[int]] | None = None


class PrunedMistralForCausalLM(PrunedForCausalLM, MistralForCausalLM):
    """Mistral with one shape a layer."""

    config_class = PrunedMistralConfig
    config: PrunedMistralConfig
