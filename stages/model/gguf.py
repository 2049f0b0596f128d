"""A GGUF file, converted to an ordinary float32 model directory.

Files of llama.cpp's `llama` and `deci` are read here. Those of other architectures are read by transformers, and what
it leaves at its own defaults is taken from the header.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from stages.common.files import read_json, write_json
from stages.common.progress import barless, others_quiet, progress
from stages.decoders.architecture import MODELLING_FILE, PRUNED_MODELS, config_class, cut_config
from stages.decoders.gguf_header import Header, read_header
from stages.decoders.gguf_llama import ARCHITECTURES, FACTORS, Place, config_fields, places
from stages.decoders.gguf_weights import halved, read_tensor
from stages.decoders.registry import FAMILIES
from stages.decoders.shapes import DecoderShape, shape_in
from stages.errors import UserError
from stages.model.gguf_tokenizer import tokenizer_in
from stages.stage import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LLAMA3 = ({"factor": 8.0}, {"factor": 32.0})
"""Scalings of rotary frequencies that published models have: Llama 3.1 and 3.2."""
LLAMA3_REST = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WHOLE = 0.99
"""The least share of a model's parameters that a file holds."""
TOKENIZER_FIELDS = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")


def from_file(file: Path, target: Path) -> JSON:
    """Write the model and tokenizer of a GGUF file to the directory `target`, in float32; return its license.

    Raises:
        UserError: the file contradicts itself, or nothing here reads its architecture.
    """
    header = read_header(file)
    if header.architecture in ARCHITECTURES:
        _llama(header, target)
    else:
        _other(header, target)
    license_ = header.fields.get("general.license")
    return {"license": license_} if isinstance(license_, str) else {}


def _llama(header: Header, target: Path) -> None:
    fields = config_fields(header)
    shape = DecoderShape.from_config(fields)
    found, tokenizer = places(header, shape), tokenizer_in(header)
    if FACTORS in header.tensors:
        fields["rope_parameters"] = _scaled(header, fields, shape)
    # What the class would refuse of the heads is settled by the shape.
    own = {name: value for name, value in fields.items() if name not in ("model_type", "layer_shapes", "output_bias")}
    config, _ = cut_config(
        config_class(shape.family)(**own | {"num_attention_heads": 1, "num_key_value_heads": 1}), shape
    )
    target.mkdir(parents=True, exist_ok=True)
    config.dtype = torch.float32
    with others_quiet():
        save_torch_state_dict(dict(_weights(header, found)), target, metadata={"format": "pt"})
        config.save_pretrained(target)
    if config.model_type in PRUNED_MODELS:
        shutil.copyfile(MODELLING_FILE, target / MODELLING_FILE.name)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, config, target)


def _weights(header: Header, found: dict[str, Place]) -> Iterator[tuple[str, Tensor]]:
    with progress("dequantising", total=len(found), unit="tensor") as bar:
        for name, place in found.items():
            tensor = read_tensor(header.path, header.tensors[place.tensor])
            yield name, halved(tensor, place.heads) if place.heads else tensor
            bar.update()


def _scaled(header: Header, fields: JSON, shape: DecoderShape) -> JSON:
    """Return the parameters of Llama 3's scaling whose factors are the file's."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    told = read_tensor(header.path, header.tensors[FACTORS])
    theta = fields["rope_parameters"]["rope_theta"]
    plain = theta ** -(torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim)
    for own in LLAMA3:
        rope = {"rope_type": "llama3", "rope_theta": theta, **own, **LLAMA3_REST}
        config = config_class("llama")(
            head_dim=shape.head_dim, rope_parameters=rope, max_position_embeddings=fields["max_position_embeddings"]
        )
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        if told.shape == scaled.shape and torch.allclose(plain / scaled.double(), told.double(), rtol=1e-3):
            return rope
    raise UserError(
        f"{header.path} scales rotary frequencies ({FACTORS}) as neither Llama 3.1 nor 3.2 does, and the file does not "
        "say how. Take the checkpoint that it was made from, as a directory with safetensors."
    )


def _other(header: Header, target: Path) -> None:
    """Convert a file of another architecture by transformers, which must know it."""
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if header.architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        known = ", ".join(sorted({*ARCHITECTURES, *GGUF_SUPPORTED_ARCHITECTURES}))
        raise UserError(f"{header.path} is of llama.cpp's architecture '{header.architecture}'. Read are: {known}.")
    count = header.number("block_count")
    if type(count) is not int or not 1 <= count <= len(header.tensors):
        raise UserError(f"{header.path} tells of {count} layers in {len(header.tensors)} tensors. Fetch it again.")
    try:
        config = AutoConfig.from_pretrained(header.path.parent, gguf_file=header.path.name)
        _completed(config, header)
        shape = shape_in(config.to_dict())
        # Checked before anything makes room for the weights.
        if shape is not None and header.parameters < WHOLE * shape.parameters():
            raise UserError(
                f"{header.path} tells of {shape.parameters():,} parameters and holds {header.parameters:,}. "
                "Fetch it again."
            )
        tokenizer = tokenizer_in(header)
        _converted(header.path, config, target)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, config, target)
    except (UserError, MemoryError, OSError):
        raise
    # transformers takes a header's fields as they are, so a wrong one may fail anywhere.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{header.path} can't be read by transformers: {type(error).__name__}: {reason} Fetch it again, or take "
            "the checkpoint that it was made from."
        ) from error


def _completed(config: Any, header: Header) -> None:
    """Set what transformers leaves at its defaults to what the header says."""
    names = {"attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
    names |= {"attention.sliding_window": "sliding_window"}
    family = FAMILIES.get(config.model_type)
    names |= {} if family is None or family.gguf is None else family.gguf.numbers
    for key, field in names.items():
        value = header.number(key)
        if value is not None and hasattr(config, field):
            setattr(config, field, value)
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = config.head_dim
        # llama.cpp knows the family's largest model by its number of layers, and scales its queries in another way.
        if family is not None and family.gguf is not None and config.num_hidden_layers == family.gguf.largest:
            config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None:
        config.vocab_size = embedding.shape[0]
    sliding = header.number("attention.sliding_window_pattern")
    if isinstance(sliding, list) and getattr(config, "layer_types", None):
        config.layer_types = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    _turned(config, header)


def _turned(config: Any, header: Header) -> None:
    """Set the rotary parameters to what the header says; those of sliding windows are apart in some families."""
    rope = config.rope_parameters
    local, rope = rope.get("sliding_attention"), rope.get("full_attention", rope)
    for parameters, key in ((rope, "rope.freq_base"), (local, "rope.freq_base_swa")):
        if parameters is not None and header.number(key) is not None:
            parameters["rope_theta"] = float(header.number(key))
    kind = header.number("rope.scaling.type")
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": float(header.number("rope.scaling.factor"))}
    elif kind not in (None, "none") or FACTORS in header.tensors:
        raise UserError(
            f"{header.path} scales rotary positions in a way that is not read for a {header.architecture}. Take the "
            "checkpoint that it was made from, as a directory with safetensors."
        )


def _converted(file: Path, config: Any, target: Path) -> None:
    """Write the model of a GGUF file, which has this configuration, to the directory `target`."""
    from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

    # The model parses the whole file anew, in seconds.
    with others_quiet(), barless(modeling_gguf_pytorch_utils):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=torch.float32
        )
    _clear_quantisation(model)
    with others_quiet():
        model.save_pretrained(target)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any, target: Path) -> None:
    """Write `tokenizer`, whose model has this configuration, to the directory `target`."""
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    _make_portable(target / "tokenizer_config.json")


def _make_portable(path: Path) -> None:
    """Name the tokenizer's class as transformers 4 knows it too, and drop what only describes this conversion."""
    written = read_json(path)
    kept = {name: written[name] for name in TOKENIZER_FIELDS if written.get(name) is not None}
    write_json(path, kept | {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"})


def _clear_quantisation(model: PreTrainedModel) -> None:
    """Remove the marks of quantisation, for which save_pretrained would refuse the dequantised model."""
    model.hf_quantizer = None
    for owner, name in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False
