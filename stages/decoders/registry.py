"""Every model family by name, with all that is known of it. No torch here: a plan asks.

Adding a family is one entry here, for what sets it apart from llama, and one class in
`stages.decoders.modeling_pruned`. That class stands apart because its file travels alone, in checkpoints; a test
demands one of every family, with the same norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stages.common.choices import lookup
from stages.decoders.family import Family, Gguf, Names, StandIn

PRUNED_PREFIX = "pruned_"
"""`model_type` of a checkpoint whose layers differ in shape: this, then the family it was cut from."""

_AS_LLAMA = Gguf(architecture="llama", differing="deci", llama_order=True)
"""Whatever computes what a llama does: deci is the same with head counts and feed-forward lengths of each layer."""

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
        windows=True,
        largest=46,
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
            windows=True,
            largest=62,
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
    """Return the family of a `config.json`: its `model_type`, or for differing layers the family they were cut from."""
    return str(config.get("model_type", "")).removeprefix(PRUNED_PREFIX)


def family_of(config: Mapping[str, Any]) -> Family:
    """Return what is known of the family of a `config.json`.

    Raises:
        UserError: the family is not known; the known ones are named.
    """
    return lookup("model family (model_type in config.json)", family_name(config), FAMILIES)
