"""A model directory written as DeciLM: config.json, the code that reads it, tokenizer, and the weights as they are.

The weights need no change. DeciLM has llama's names, and this project leaves out the weights of absent parts as DeciLM
does. So they are linked, not copied, where the file system has links.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.files import COMPANIONS, read_json, write_json, write_text
from stages.decoders.architecture import PRUNED_MODELS, config_class
from stages.decoders.checkpoint import has_tokenizer, load_tokenizer, stored_dtype, write_tokenizer
from stages.decoders.decilm import BY_FACTOR, ffn_mult, unserved
from stages.decoders.shapes import DecoderShape, LayerShape
from stages.errors import UserError
from stages.export.decilm import configuration_decilm, modeling_decilm
from stages.export.decilm.rules import broken
from stages.export.place import place
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CODE = (Path(configuration_decilm.__file__), Path(modeling_decilm.__file__))
"""The files of code that an exported directory carries."""
COPIED = (
    *("vocab_size", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("hidden_act", "rms_norm_eps", "initializer_range", "attention_dropout", "use_cache"),
)
"""Fields of a llama's configuration that mean the same in DeciLM's."""
TOKENIZER = tuple(name for name in COMPANIONS if name not in ("pruning.json", "generation_config.json"))
"""The files of a tokenizer."""


def write(model: Path, output: Path, *, server: str) -> JSON:
    """Write the model in the directory `model` to `output` as DeciLM for `server`, and return a summary.

    Raises:
        UserError: DeciLM can't say the model, or what was written breaks a rule of its readers.
    """
    stored = read_json(model / "config.json")
    shape = DecoderShape.from_config(stored)
    if reason := unserved(shape, server):
        raise UserError(f"export=decilm: {reason}.")
    config = config_class(str(stored["model_type"])).from_dict(stored)
    fields = config_fields(config, shape, server) | dict.fromkeys(("dtype", "torch_dtype"), stored_dtype(model))
    write_json(output / "config.json", fields)
    for path in CODE:
        write_text(output / path.name, travelling(path.read_text(encoding="utf-8")))
    weights = sorted(path.name for path in model.glob("*.safetensors*"))
    for name in weights:
        place(model / name, output / name)
    files = ["config.json", *(path.name for path in CODE), *weights]
    if problem := broken(output, server):
        raise UserError(f"export=decilm: the directory breaks a rule of its readers. {problem}.")
    files += _write_companions(model, output, rewritten=stored["model_type"] in PRUNED_MODELS)
    return {"server": server, "files": files, "remarks": remarks(config, shape, fields["max_position_embeddings"])}


def config_fields(config: PreTrainedConfig, shape: DecoderShape, server: str) -> JSON:
    """Return config.json, but for the precision. `config` and `shape` are the model's.

    Raises:
        UserError: DeciLM's readers would compute something else.
    """
    there = [layer for layer in shape.layers if layer.heads]
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {
            "AutoConfig": f"{CODE[0].stem}.DeciLMConfig",
            "AutoModelForCausalLM": f"{CODE[1].stem}.DeciLMForCausalLM",
        },
        **{name: getattr(config, name) for name in COPIED},
        **_rotary(config),
        "hidden_size": shape.hidden,
        "head_dim": shape.head_dim,
        "num_hidden_layers": len(shape.layers),
        "num_attention_heads": there[0].heads,
        # The largest ones. Readers take each layer's own, but for buffers of which there is one for all layers.
        "num_key_value_heads": max(layer.kv_heads for layer in there),
        "intermediate_size": max([1, *(layer.mlp for layer in shape.layers)]),
        "max_position_embeddings": _positions(config),
        "qkv_bias": shape.qkv_bias,
        "attention_bias": shape.o_bias,
        "mlp_bias": shape.mlp_bias,
        "block_configs": [_block(layer, shape.hidden, server) for layer in shape.layers],
    }


def travelling(code: str) -> str:
    """Return code of this package as it reads beside an exported model, where imports among it are relative."""
    return code.replace(f"from {__package__}.", "from .")


def remarks(config: PreTrainedConfig, shape: DecoderShape, positions: int) -> list[str]:
    """Return what a user of the directory should know, as sentences without a full stop."""
    cards = tensor_parallel(shape)
    numbers = ", ".join(map(str, cards))
    found = [f"tensor parallelism takes {numbers} GPUs" if len(cards) > 1 else "tensor parallelism takes 1 GPU only"]
    found[0] += ", because heads and MLP widths have to be shared out evenly"
    if positions < config.max_position_embeddings:
        found.append(f"there is no sliding window in DeciLM: the context length is the window's, {positions:,} tokens")
    return found


def tensor_parallel(shape: DecoderShape) -> list[int]:
    """Return the numbers of GPUs, up to the number of query heads, over which every layer can be shared out evenly."""
    layers = [layer for layer in shape.layers if layer.heads]
    widths = [layer.mlp for layer in shape.layers]
    return [
        count
        for count in range(1, layers[0].heads + 1)
        if layers[0].heads % count == 0
        # Fewer key/value heads than GPUs are copied, each to as many GPUs as share it.
        and all(layer.kv_heads % count == 0 or count % layer.kv_heads == 0 for layer in layers)
        and all(width % count == 0 for width in widths)
    ]


def _block(layer: LayerShape, hidden: int, server: str) -> JSON:
    """Return one layer's record. No `ffn_mult` unless `server` needs it, because vLLM uses any that is there."""
    attention: JSON = {"no_op": not layer.heads, "replace_with_linear": False}
    attention["n_heads_in_group"] = layer.heads // layer.kv_heads if layer.heads else None
    ffn: JSON = {"no_op": not layer.mlp, "replace_with_linear": False}
    ffn["intermediate_size"] = layer.mlp or None
    if server in BY_FACTOR:
        ffn["ffn_mult"] = ffn_mult(layer.mlp, hidden) if layer.mlp else None
    return {"attention": attention, "ffn": ffn}


def _rotary(config: PreTrainedConfig) -> JSON:
    """Return the rotary embedding in the spelling that every reader's version of transformers takes."""
    parameters: dict[str, Any] = dict(config.rope_parameters)
    theta, kind = float(parameters.pop("rope_theta")), parameters.get("rope_type", "default")
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" and len(parameters) <= 1 else parameters}


def _positions(config: PreTrainedConfig) -> int:
    """Return the number of positions in which a model without a sliding window computes the same."""
    window = getattr(config, "sliding_window", None)
    return min(int(config.max_position_embeddings), int(window or config.max_position_embeddings))


def _write_companions(model: Path, output: Path, *, rewritten: bool) -> list[str]:
    """Write the tokenizer and the other small files that belong to the weights of `model`, and return their names.

    Beside another architecture, transformers may read a tokenizer's files by another class. A `rewritten` tokenizer
    was saved for that.
    """
    own = has_tokenizer(model) and not rewritten
    for name in COMPANIONS:
        if (model / name).is_file() and not (own and name in TOKENIZER):
            place(model / name, output / name)
    if own:
        for name in TOKENIZER:
            (output / name).unlink(missing_ok=True)
        write_tokenizer(load_tokenizer(model), output)
    return [name for name in COMPANIONS if (output / name).is_file()]
