"""The architecture and the configuration that a pruned shape is saved as.

It is a stock architecture where one takes the shape, else a class of this project's own (`.modeling_pruned`), whose
file then travels beside the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from stages.decoders import modeling_pruned
from stages.decoders.registry import FAMILIES, PRUNED_PREFIX
from stages.decoders.shapes import DecoderShape
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODELLING_FILE = Path(modeling_pruned.__file__)
"""The file that is copied into checkpoints whose layers differ in shape."""
PRUNED_MODELS: dict[str, Any] = {
    model.config_class.model_type: model for model in modeling_pruned.PrunedForCausalLM.__subclasses__()
}
"""The classes of that file, by `model_type`."""
NOT_COPIED = {
    "model_type",
    "architectures",
    "auto_map",
    "layer_shapes",
    "output_bias",
    "transformers_version",
    "_name_or_path",
}
"""Fields of the dense model's configuration that say nothing about the cut one."""


def config_class(model_type: str) -> Any:
    """Return the configuration class of a `model_type`: a stock one, or one of this project's for differing layers."""
    model = PRUNED_MODELS.get(model_type)
    return CONFIG_MAPPING[model_type] if model is None else model.config_class


def cut_config(dense: PreTrainedConfig, shape: DecoderShape) -> tuple[PreTrainedConfig, str]:
    """Return the configuration that a model of `dense`, cut to `shape`, is saved with, and the reason for it.

    The architecture is the family's stock one. Where that refuses the shape, it is another stock one that computes the
    same to the bit. Where there is none, it is the family's class in `.modeling_pruned`.
    """
    fields = {name: value for name, value in dense.to_dict().items() if name not in NOT_COPIED}
    # head_dim is written out, because configs derive it from the hidden size and the number of heads, which change.
    fields |= {"head_dim": shape.head_dim, "hidden_size": shape.hidden, "num_hidden_layers": len(shape.layers)}
    needs = shape.beyond_stock
    if not needs:
        layer = shape.layers[0]
        fields_of_layer = {"num_attention_heads": layer.heads, "num_key_value_heads": layer.kv_heads}
        fields_of_layer["intermediate_size"] = layer.mlp
        try:
            return _stock_config(shape.family, fields | fields_of_layer), "the stock architecture takes this shape"
        except (StrictDataclassError, ValueError):
            needs = f"{config_class(shape.family).__name__} refuses {layer.heads} heads at hidden size {shape.hidden}"
        # A stand-in has no biases.
        other = FAMILIES[shape.family].stand_in
        if other is not None and not (shape.qkv_bias or shape.o_bias or shape.mlp_bias):
            known = {name: value for name, value in fields.items() if name not in other.unknown}
            config = _stock_config(other.family, known | fields_of_layer | dict(other.fixed))
            return config, f"{needs}; {other.called} computes the same"
    return _pruned_config(fields, shape), f"{needs}; loads with trust_remote_code=True"


def _stock_config(family: str, fields: dict[str, Any]) -> PreTrainedConfig:
    config: PreTrainedConfig = config_class(family)(**fields)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    return config


def _pruned_config(fields: dict[str, Any], shape: DecoderShape) -> PreTrainedConfig:
    model_class, stem = PRUNED_MODELS[PRUNED_PREFIX + shape.family], MODELLING_FILE.stem
    shapes = [[layer.heads, layer.kv_heads, layer.mlp] for layer in shape.layers]
    config: PreTrainedConfig = model_class.config_class(**fields, layer_shapes=shapes, output_bias=shape.output_bias)
    config.architectures = [model_class.__name__]
    config.auto_map = {
        "AutoConfig": f"{stem}.{type(config).__name__}",
        "AutoModelForCausalLM": f"{stem}.{model_class.__name__}",
    }
    return config


def cut_to(model: PreTrainedModel, shape: DecoderShape, dtype: str) -> tuple[PreTrainedConfig, JSON]:
    """Return the configuration of `model` cut to `shape` in `dtype`, and the record of its architecture."""
    config, reason = cut_config(model.config, shape)
    config.dtype = DTYPES[dtype]
    return config, {"model_type": config.model_type, "reason": reason}
