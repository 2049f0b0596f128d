"""Prefix tuning: Optimizing Continuous Prompts for Generation (arXiv 2101.00190), in the form for a causal model.

    attention(q, [P_k; K], [P_v; V])        P_k, P_v: trained keys and values of each layer, P virtual tokens

Every token sees them, whatever its document. They start as the activations of P tokens drawn from the vocabulary, which
the paper finds better than random numbers (its section 7.4). Ten virtual tokens are LLM-Adapters' (arXiv 2304.01933).

Deviation: the keys and values are trained themselves, not through the paper's MLP. The paper drops that MLP after
training. It is PEFT's `prefix_projection`, which is off by default.

A prefix can't be merged: it is keys and values that belong to no token, and no weight produces them. PEFT's format has
one number of key/value heads, the one in the model's config.json. So layers that were pruned to different numbers can't
have a prefix.

torch and PEFT are imported inside the functions, because a plan reads the dictionary of adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.adapters.adapter import Adapter, no_rates
from stages.adapters.config import AdapterConfig
from stages.adapters.low_rank import BASE
from stages.common.checks import require
from stages.common.files import write_json
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


@dataclass(kw_only=True, slots=True)
class PrefixConfig(AdapterConfig):
    """Keys and values before those of the text."""

    virtual_tokens: int = 10
    """Number of keys and values of each head of a layer; at least 1. More of them train more parameters, and cost every
    token more attention."""


def check_prefix(config: PrefixConfig) -> None:
    """Raise a `UserError` for an option outside its range."""
    require(config.virtual_tokens >= 1, "adapter.virtual_tokens", "at least 1", config.virtual_tokens)


def check_shape(config: PrefixConfig, shape: DecoderShape, told: int | None = None) -> None:
    """Raise a `UserError` unless all layers have the same number of key/value heads, the one in config.json.

    `told` is the number in config.json; None where it has none.
    """
    counts = {layer.kv_heads for layer in shape.layers} | ({told} if told is not None else set())
    if len(counts) > 1:
        raise UserError(
            f"adapter=prefix: the layers have {', '.join(map(str, sorted(counts)))} key/value heads, and PEFT's format "
            "of a prefix holds one number, that of the unpruned model where layers differ in shape. Choose another "
            "adapter (adapter=rora), or prune so that every layer keeps the same key/value heads."
        )


def attach(model: PreTrainedModel, config: PrefixConfig, masked: Collection[str] = ()) -> PreTrainedModel:
    """Put a prefix before what every layer of `model` attends to; returns `model`.

    Raises:
        UserError: PEFT's format can't hold the prefix, or the model's positions or windows allow none.
    """
    import torch

    from stages.adapters.prefix_attention import activations, add_prefix

    fields = model.config.to_dict()
    check_shape(config, DecoderShape.from_config(fields), fields.get("num_key_value_heads"))
    # Drawn on the processor, so that a GPU starts from the same tokens.
    ids_P = torch.randint(fields["vocab_size"], (config.virtual_tokens,)).to(model.device)
    add_prefix(model, activations(model, ids_P))
    return model


def save(adapted: Module, directory: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json in PEFT's format, with no path of this machine.

    In PEFT's format a virtual token is one row: keys of the first layer, its values, keys of the second layer, …
    """
    import torch
    from peft import PrefixTuningConfig
    from safetensors.torch import save_file

    from stages.adapters.prefix_attention import prefixes

    found = prefixes(adapted)
    parts = [part.detach().transpose(0, 1).flatten(1) for prefix in found for part in (prefix.keys, prefix.values)]
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {"prompt_embeddings": torch.cat(parts, dim=1).cpu().contiguous()}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    heads, virtual, head_dim = found[0].keys.shape
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=virtual,
        num_layers=len(found),
        token_dim=heads * head_dim,
        num_attention_heads=heads,
        num_transformer_submodules=1,
        encoder_hidden_size=heads * head_dim,
        base_model_name_or_path=BASE,
        inference_mode=True,
    ).to_dict()
    write_json(directory / "adapter_config.json", dict(sorted(config.items())))


def load(base: PreTrainedModel, directory: Path, masked: Collection[str] = ()) -> None:
    """Put the prefix in `directory`, in PEFT's format, before what `base` attends to, in the precision of `base`.

    Raises:
        UserError: the prefix is of another model.
    """
    from safetensors.torch import load_file

    from stages.adapters.prefix_attention import add_prefix

    shape = DecoderShape.from_config(base.config.to_dict())
    layers, heads = len(shape.layers), shape.layers[0].kv_heads
    rows = load_file(directory / "adapter_model.safetensors")["prompt_embeddings"].to(base.device, base.dtype)
    if rows.shape[1] != 2 * layers * heads * shape.head_dim:
        raise UserError(f"{directory} holds the adapter of another model. Give the model that it was trained on.")
    parts = rows.view(len(rows), 2 * layers, heads, shape.head_dim).permute(1, 2, 0, 3).contiguous()
    add_prefix(base, list(zip(parts[::2], parts[1::2], strict=True)))


def parameters(config: PrefixConfig, shape: DecoderShape) -> int:
    """Return the numbers of all keys and values."""
    return sum(2 * config.virtual_tokens * layer.kv_heads * shape.head_dim for layer in shape.layers)


def _facts(config: Any) -> Mapping[str, Any]:
    return {"unmergeable": "keys and values that no token makes are in no weight"}


PREFIX = Adapter(
    config=PrefixConfig,
    check=check_prefix,
    label=lambda config: f"v{config.virtual_tokens}",
    sizes=lambda config: {"virtual tokens": config.virtual_tokens},
    facts=_facts,
    attach=attach,
    rates=no_rates,
    save=save,
    load=load,
    merge=None,
    leaves_base=lambda config: True,
    fits=check_shape,
    parameters=parameters,
)
