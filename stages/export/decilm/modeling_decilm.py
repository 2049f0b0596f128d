"""A llama whose layers differ in shape, in the DeciLM format, for transformers.

A copy of this file lies in exported directories, so that they load with nothing but transformers:

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

Servers do not run it. They have code of their own for the format.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM

from stages.export.decilm.configuration_decilm import DeciLMConfig


class NoMLP(nn.Module):
    """In the place of an MLP that is not there: adds nothing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return zeros [batch, tokens, hidden size]."""
        return torch.zeros_like(hidden_states)


# Derived from the other because transformers searches this text: where a class named for attention derives from
# nn.Module, it refuses to change the attention implementation.
class NoAttention(NoMLP):
    """In the place of an attention that is not there: adds nothing. The first layer, which counts tokens, has one."""

    def forward(self, hidden_states: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        """Return zeros [batch, tokens, hidden size] and no attention weights."""
        return super().forward(hidden_states), None


class DeciLMForCausalLM(LlamaForCausalLM):
    """A llama with the attentions and MLPs that `block_configs` tells."""

    config_class = DeciLMConfig
    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for index, (layer, block) in enumerate(zip(self.model.layers, config.block_configs, strict=True)):
            self._set_attention(layer, index, block.attention, config)
            self._set_mlp(layer, block.ffn, config)
        self.post_init()

    def _set_attention(self, layer: Any, index: int, attention: Any, config: Any) -> None:
        if attention.no_op:
            layer.self_attn, layer.input_layernorm = NoAttention(), nn.Identity()
            return
        own = copy.copy(config)
        own.num_key_value_heads = config.num_attention_heads // attention.n_heads_in_group
        own.attention_bias = config.qkv_bias
        layer.self_attn = type(layer.self_attn)(own, layer_idx=index)
        layer.self_attn.config = config  # an attention implementation chosen later reaches every layer
        if config.attention_bias != config.qkv_bias:
            output = layer.self_attn.o_proj
            layer.self_attn.o_proj = nn.Linear(output.in_features, output.out_features, bias=config.attention_bias)

    def _set_mlp(self, layer: Any, ffn: Any, config: Any) -> None:
        if ffn.no_op:
            layer.mlp, layer.post_attention_layernorm = NoMLP(), nn.Identity()
            return
        own = copy.copy(config)
        own.intermediate_size = ffn.intermediate_size
        layer.mlp = type(layer.mlp)(own)
        layer.mlp.config = config
