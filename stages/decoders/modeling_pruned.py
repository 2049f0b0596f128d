"""Decoders whose layers differ in shape, as structured pruning leaves them.

A copy of this file lies in checkpoints of such models, so that they load with nothing but transformers:

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

Two fields of `config.json` say what differs from the stock architecture, whose computation all of this is:

    layer_shapes  [query heads, key/value heads, MLP channels] for each layer. A layer without heads has no attention,
                  one without channels no MLP; what is not there has no norms either, and adds nothing.
    output_bias   whether the output projections of attention and MLP have a bias, in families without one.

`num_attention_heads`, `num_key_value_heads` and `intermediate_size` keep the sizes of the model that was pruned.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


class LayerConfig:
    """A model's configuration as one layer sees it: sizes of its own, everything else read from and set on the model's.

    So an attention implementation chosen later reaches every layer.
    """

    def __init__(self, shared: Any, **sizes: int) -> None:
        self.__dict__.update(sizes, shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # how to copy is not the model's to say
            raise AttributeError(name)
        return getattr(object.__getattribute__(self, "shared"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.shared, name, value)


class NoMLP(nn.Module):
    """In the place of a removed MLP: adds nothing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return zeros [batch, tokens, hidden size]."""
        return torch.zeros_like(hidden_states)


# Derived from the other because transformers searches this text: where a class named for attention derives from
# nn.Module, it refuses to change the attention implementation.
class NoAttention(NoMLP):
    """In the place of a removed attention: adds nothing, and lets the cache count the tokens."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, past_key_values: Any = None, **unused: Any
    ) -> tuple[torch.Tensor, None]:
        """Return zeros [batch, tokens, hidden size] and no attention weights."""
        if past_key_values is not None:
            # A cache asks some layer how many tokens it holds, and takes tensors without elements for none.
            number_a_token = hidden_states[:, None, :, :1]
            past_key_values.update(number_a_token, number_a_token, self.layer_idx)
        return super().forward(hidden_states), None


def remove_attention(layer: Any, norms: tuple[str, ...]) -> None:
    """Take the attention and its norms out of a decoder layer."""
    layer.self_attn = NoAttention(layer.self_attn.layer_idx)
    for norm in norms:
        setattr(layer, norm, nn.Identity())


def remove_mlp(layer: Any, norms: tuple[str, ...]) -> None:
    """Take the MLP and its norms out of a decoder layer."""
    layer.mlp = NoMLP()
    for norm in norms:
        setattr(layer, norm, nn.Identity())


def set_heads(attention: Any, config: Any, heads: int, kv_heads: int) -> None:
    """Tell an attention module how many heads it has; `config` is the model's."""
    attention.config = LayerConfig(config, num_attention_heads=heads, num_key_value_heads=kv_heads)
    attention.num_key_value_groups = heads // kv_heads
    if hasattr(attention, "num_key_value_heads"):
        attention.num_key_value_heads = kv_heads


class PrunedConfig:
    """What the configuration of every family gets."""

    layer_shapes: list[list[int]] | None = None
    output_bias: bool = False

    def validate(self) -> None:
        """Accept any sizes: stock checks of heads against the hidden size know nothing of these layers."""


class PrunedForCausalLM:
    """A stock decoder whose attention and MLP modules are built anew, each layer in its own shape."""

    attention_norms: tuple[str, ...] = ("input_layernorm",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    config_class: Any
    _auto_class = "AutoModelForCausalLM"  # so `save_pretrained` copies this file beside the weights

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        for index, (layer, shape) in enumerate(zip(self.model.layers, config.layer_shapes, strict=True)):  # type: ignore[attr-defined]
            self._build(layer, index, config, *shape)
        self.post_init()  # type: ignore[attr-defined]

    def _build(self, layer: Any, index: int, config: Any, heads: int, kv_heads: int, channels: int) -> None:
        local = copy.copy(config)
        local.num_attention_heads, local.num_key_value_heads, local.intermediate_size = heads, kv_heads, channels
        if heads:
            layer.self_attn = type(layer.self_attn)(local, layer_idx=index)
            set_heads(layer.self_attn, config, heads, kv_heads)
        else:
            remove_attention(layer, self.attention_norms)
        if channels:
            layer.mlp = type(layer.mlp)(local)
            layer.mlp.config = config
        else:
            remove_mlp(layer, self.mlp_norms)
        if config.output_bias:
            for module, name in ((layer.self_attn, "o_proj"), (layer.mlp, "down_proj")):
                if linear := getattr(module, name, None):
                    setattr(module, name, nn.Linear(linear.in_features, linear.out_features))


class PrunedLlamaConfig(PrunedConfig, LlamaConfig):
    """Llama with a shape for each layer."""

    model_type = "pruned_llama"


class PrunedLlamaForCausalLM(PrunedForCausalLM, LlamaForCausalLM):
    """Llama with a shape for each layer."""

    config_class = PrunedLlamaConfig


class PrunedMistralConfig(PrunedConfig, MistralConfig):
    """Mistral with a shape for each layer."""

    model_type = "pruned_mistral"


class PrunedMistralForCausalLM(PrunedForCausalLM, MistralForCausalLM):
    """Mistral with a shape for each layer."""

    config_class = PrunedMistralConfig


class PrunedQwen2Config(PrunedConfig, Qwen2Config):
    """Qwen2 with a shape for each layer."""

    model_type = "pruned_qwen2"


class PrunedQwen2ForCausalLM(PrunedForCausalLM, Qwen2ForCausalLM):
    """Qwen2 with a shape for each layer."""

    config_class = PrunedQwen2Config


class PrunedQwen3Config(PrunedConfig, Qwen3Config):
    """Qwen3 with a shape for each layer."""

    model_type = "pruned_qwen3"


class PrunedQwen3ForCausalLM(PrunedForCausalLM, Qwen3ForCausalLM):
    """Qwen3 with a shape for each layer."""

    config_class = PrunedQwen3Config


class PrunedGemma2Config(PrunedConfig, Gemma2Config):
    """Gemma 2 with a shape for each layer."""

    model_type = "pruned_gemma2"


class PrunedGemma2ForCausalLM(PrunedForCausalLM, Gemma2ForCausalLM):
    """Gemma 2 with a shape for each layer."""

    config_class = PrunedGemma2Config
    attention_norms = ("input_layernorm", "post_attention_layernorm")
    mlp_norms = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


class PrunedGemma3TextConfig(PrunedConfig, Gemma3TextConfig):
    """Gemma 3, the text model, with a shape for each layer."""

    model_type = "pruned_gemma3_text"


class PrunedGemma3ForCausalLM(PrunedForCausalLM, Gemma3ForCausalLM):
    """Gemma 3, the text model, with a shape for each layer."""

    config_class = PrunedGemma3TextConfig
    attention_norms = PrunedGemma2ForCausalLM.attention_norms
    mlp_norms = PrunedGemma2ForCausalLM.mlp_norms


class PrunedPhi3Config(PrunedConfig, Phi3Config):
    """Phi-3 with a shape for each layer."""

    model_type = "pruned_phi3"


class PrunedPhi3ForCausalLM(PrunedForCausalLM, Phi3ForCausalLM):
    """Phi-3 with a shape for each layer."""

    config_class = PrunedPhi3Config


class PrunedOlmo2Config(PrunedConfig, Olmo2Config):
    """OLMo 2 with a shape for each layer."""

    model_type = "pruned_olmo2"


class PrunedOlmo2ForCausalLM(PrunedForCausalLM, Olmo2ForCausalLM):
    """OLMo 2 with a shape for each layer."""

    config_class = PrunedOlmo2Config
    attention_norms = ("post_attention_layernorm",)
    mlp_norms = ("post_feedforward_layernorm",)


class PrunedGraniteConfig(PrunedConfig, GraniteConfig):
    """Granite with a shape for each layer."""

    model_type = "pruned_granite"


class PrunedGraniteForCausalLM(PrunedForCausalLM, GraniteForCausalLM):
    """Granite with a shape for each layer."""

    config_class = PrunedGraniteConfig
