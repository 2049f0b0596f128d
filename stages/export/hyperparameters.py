"""Fields of a GGUF file's header that llama.cpp computes with, from the Hugging Face config.

Keys and meanings are from the GGUF specification and llama.cpp's src/models/*.cpp. A model that llama.cpp would compute
otherwise than transformers is refused, with one exception, which is reported. llama.cpp has no sliding window for
llamas, so the context length written is the window's. Within it, the two compute the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.decoders.shapes import DecoderShape
from stages.errors import UserError
from stages.export.architectures import Target

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


def hyperparameters(config: PreTrainedConfig, shape: DecoderShape, target: Target) -> dict[str, Any]:
    """Return the header's fields without the architecture's prefix, such as {"block_count": 30, …}.

    Raises:
        UserError: llama.cpp would compute something else than transformers.
    """
    _check_computation(config, shape, target)
    heads, kv_heads, mlp = ([getattr(layer, name) for layer in target.layers] for name in ("heads", "kv_heads", "mlp"))
    fields: dict[str, Any] = {
        "block_count": len(target.layers),
        "context_length": context_length(config, target),
        "embedding_length": shape.hidden,
        "feed_forward_length": mlp[0] if target.uniform else mlp,
        "attention.head_count": heads[0] if target.uniform else heads,
        "attention.head_count_kv": kv_heads[0] if target.uniform else kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.vocabulary,
    }
    return (
        fields | _rope(config, target) | (_windows(config) if target.rules.windows else {}) | _numbers(config, target)
    )


def context_length(config: PreTrainedConfig, target: Target) -> int:
    """Return the number of positions in which llama.cpp and transformers compute the same."""
    window = getattr(config, "sliding_window", None)
    if not window or target.rules.windows:
        return int(config.max_position_embeddings)
    return min(int(config.max_position_embeddings), int(window))


def remarks(config: PreTrainedConfig, target: Target) -> list[str]:
    """Return what a user of the file should know, as sentences."""
    written = context_length(config, target)
    if written == config.max_position_embeddings:
        return []
    return [
        f"llama.cpp has no sliding window for this architecture: the context length is the window's, {written} tokens"
    ]


def rope_factors(config: PreTrainedConfig) -> Tensor | None:
    """Return the divisors of the rotary frequencies in llama.cpp, [head_dim / 2], for Llama 3's scaling; else None."""
    if _scaling(config).get("rope_type") != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    exponents = torch.arange(0, 2 * len(scaled), 2, dtype=torch.float64) / (2 * len(scaled))
    plain = float(_scaling(config)["rope_theta"]) ** -exponents
    factors: Tensor = plain / scaled.double()
    return factors.float()


def _scaling(config: PreTrainedConfig, kind: str = "full_attention") -> dict[str, Any]:
    """Return the rotary embedding's parameters: those of one kind of layer, where kinds differ."""
    parameters: dict[str, Any] = config.rope_parameters
    nested: dict[str, Any] = parameters.get(kind, parameters)
    return nested


def _rope(config: PreTrainedConfig, target: Target) -> dict[str, Any]:
    rope = _scaling(config)
    kind = rope.get("rope_type", "default")
    allowed = {"default", "linear"} | ({"llama3"} if target.rules.llama_order else set())
    if kind not in allowed:
        raise UserError(
            f"export=gguf: rotary embeddings of type '{kind}' can't be written for llama.cpp's {target.architecture}. "
            f"Known: {', '.join(sorted(allowed))}. Publish the Hugging Face directory instead: export=hf."
        )
    fields: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    if kind == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if "sliding_attention" in config.rope_parameters:
        local = _scaling(config, "sliding_attention")
        _require(local.get("rope_type", "default") == "default", "scaled rotary embeddings in sliding windows")
        fields["rope.freq_base_swa"] = float(local["rope_theta"])
    return fields


def _windows(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "attention.sliding_window": int(config.sliding_window),
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
    }


def _numbers(config: PreTrainedConfig, target: Target) -> dict[str, Any]:
    """Return the factors and caps that the architecture reads and that are set."""
    values = {key: getattr(config, name, None) for key, name in target.rules.numbers.items()}
    return {key: float(value) for key, value in values.items() if value is not None}


def _check_computation(config: PreTrainedConfig, shape: DecoderShape, target: Target) -> None:
    """Raise where the architecture computes something else than the config describes."""
    name, rules = target.architecture, target.rules
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    _require(activation == rules.activation, f"the activation '{activation}' in {name}")
    partial = _scaling(config).get("partial_rotary_factor", 1.0)
    _require(partial == 1.0, f"rotary embeddings of a part ({partial}) of each head")
    # llama.cpp knows the family's largest model by its number of layers, and scales its queries in another way.
    if rules.largest is not None:
        per_head = shape.hidden // target.layers[0].heads if len(target.layers) == rules.largest else shape.head_dim
        scalar = config.query_pre_attn_scalar
        _require(scalar == per_head, f"queries scaled by {scalar}^-1/2 in a {name} of this shape, but {per_head}^-1/2")
    _require(not getattr(config, "use_bidirectional_attention", None), "attention in both directions")
    if rules.windows:
        places = [index for index, kind in enumerate(config.layer_types) if kind != "sliding_attention"]
        _require(
            places == list(range(rules.windows - 1, len(config.layer_types), rules.windows)),
            f"a {name} in which the layers without a sliding window are others than one of every {rules.windows}, as "
            "where whole layers were removed",
        )
    for field in rules.wants:
        _require(bool(getattr(config, field)), f"a {name} without {field}")
    for field in rules.ignores:
        _require(not getattr(config, field), f"a {name} with {field}")


def _require(fulfilled: bool, what: str) -> None:
    if not fulfilled:
        raise UserError(
            f"export=gguf: llama.cpp can't compute {what}. Publish the Hugging Face directory instead: export=hf."
        )
