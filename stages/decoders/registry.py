"""Every model family by name, with all that is known of it. No torch here, because a plan asks.

A new family is one entry here, with what sets it apart from llama, and one class in `stages.decoders.modeling_pruned`.
The class is in another file because that file travels alone, in checkpoints. A test demands one for every family, with
the same norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stages.common.choices import lookup
from stages.decoders.family import Family, Gguf, Names, StandIn

PRUNED_PREFIX = "pruned_"
"""Begins the `model_type` of a checkpoint whose layers differ in shape; the family it was cut from follows."""

_AS_LLAMA = Gguf(architecture="llama", differing="deci", llama_order=True)
"""For every family that computes what llama does. deci is the same, with sizes of its own for each layer."""

_ATTENTION_CAP, _FINAL_CAP = "attn_logit_softcapping", "final_logit_softcapping"

_GEMMA2 = Family(
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    norm_offset=1.0,
    scaled_embedding=True,
    defaults={"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
    gguf=Gguf(
        architecture="gemma2",
        activation="gelu_pytorch_tanh",
        numbers={_ATTENTION_CAP: _ATTENTION_CAP, _FINAL_CAP: _FINAL_CAP},
        wants=(_ATTENTION_CAP, _FINAL_CAP),
        windows=2,
        largest=46,  # the 27B model
    ),
)

FAMILIES: dict[str, Family] = {
    "llama": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        # LlamaConfig refuses a hidden size that is no multiple of the number of heads, whatever head_dim says.
        stand_in=StandIn(
            family="mistral",
            unknown=("attention_bias", "mlp_bias", "pretraining_tp"),
            fixed={"sliding_window": None},
            called="a mistral without sliding window",
        ),
        gguf=_AS_LLAMA,
    ),
    "mistral": Family(defaults={"num_key_value_heads": 8}, gguf=_AS_LLAMA),
    "qwen2": Family(qkv_bias=True, defaults={"num_key_value_heads": 32}, gguf=_AS_LLAMA),
    "qwen3": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        head_norms="each",
        defaults={"num_key_value_heads": 32, "head_dim": 128},
        gguf=Gguf(architecture="qwen3"),
    ),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(
        _GEMMA2,
        head_norms="each",
        gguf=Gguf(
            architecture="gemma3",
            activation="gelu_pytorch_tanh",
            numbers={_FINAL_CAP: _FINAL_CAP},
            ignores=(_ATTENTION_CAP,),
            windows=6,
            largest=62,  # the 27B model
        ),
    ),
    "phi3": Family(
        names=Names(query="qkv_proj", key="qkv_proj", value="qkv_proj", gate="gate_up_proj", up="gate_up_proj"),
        gguf=_AS_LLAMA,
    ),
    "olmo2": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        attention_norms=("post_attention_layernorm",),
        mlp_norms=("post_feedforward_layernorm",),
        head_norms="all",
        gguf=Gguf(architecture="olmo2", filling_heads=True, tied_head=False),
    ),
    "granite": Family(
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        gguf=Gguf(
            architecture="granite",
            llama_order=True,
            numbers={
                "embedding_scale": "embedding_multiplier",
                "attention.scale": "attention_multiplier",
                "residual_scale": "residual_multiplier",
                "logit_scale": "logits_scaling",
            },
        ),
    ),
}


def family_name(config: Mapping[str, Any]) -> str:
    """Return the family of a `config.json`: its `model_type`, without the prefix for layers that differ."""
    return str(config.get("model_type", "")).removeprefix(PRUNED_PREFIX)


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the record of a `config.json`'s family.

    Raises:
        UserError: the family is not known. The message names the known ones.
    """
    return lookup("model family (model_type in config.json)", family_name(config), FAMILIES)
