"""What llama.cpp's `llama` and `deci` compute, as Hugging Face has it: config fields, and the weights by their names.

transformers reads such files too, but leaves some of a header at its own defaults: biases, scaled positions, and layers
that differ in shape (which `deci` has) get lost without a word. Here they are read, or refused. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stages.common.checks import short
from stages.decoders.gguf_header import Header
from stages.decoders.shapes import DecoderShape
from stages.errors import UserError

ARCHITECTURES = ("llama", "deci")
FACTORS = "rope_freqs.weight"
"""The tensor by which rotary frequencies are divided, of Llama 3's scaling."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight is in the file: its tensor there, its shape, and the heads whose rows are in llama's order."""

    tensor: str
    shape: tuple[int, ...]
    heads: int = 0


def config_fields(header: Header) -> dict[str, Any]:
    """Return the fields of config.json, with `layer_shapes` where layers differ.

    Raises:
        UserError: a field is missing or impossible, or the file has what no known family computes.
    """
    count = _whole(header, "block_count", most=len(header.tensors))
    hidden = _whole(header, "embedding_length")
    heads = _by_layer(header, "attention.head_count", count)
    kv_heads = _by_layer(header, "attention.head_count_kv", count) if _has(header, "attention.head_count_kv") else heads
    mlp = _by_layer(header, "feed_forward_length", count)
    widest = max(range(count), key=lambda index: heads[index])
    if not heads[widest]:
        raise _refused(header, "no layer has attention")
    size = header.number("attention.key_length") or header.number("rope.dimension_count") or hidden // heads[widest]
    embedding = header.tensors.get("token_embd.weight")
    fields: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": count,
        "num_attention_heads": heads[widest],
        "num_key_value_heads": kv_heads[widest],
        "intermediate_size": max(1, *mlp),
        "head_dim": size,
        "vocab_size": 0 if embedding is None else embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "max_position_embeddings": _whole(header, "context_length"),
        "rms_norm_eps": _real(header, "attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(header),
        "bos_token_id": _token(header, "bos"),
        "eos_token_id": _token(header, "eos"),
        "pad_token_id": _token(header, "padding"),
    }
    if header.number("rope.dimension_count") not in (None, size):
        raise _refused(header, "only a part of each head is turned by its position")
    shapes = [list(layer) for layer in zip(heads, kv_heads, mlp, strict=True)]
    if any(layer != shapes[0] for layer in shapes):
        fields["layer_shapes"] = shapes
    return fields | _biases(header)


def places(header: Header, shape: DecoderShape) -> dict[str, Place]:
    """Return where each weight of a decoder of `shape` is in the file, by Hugging Face's names.

    Raises:
        UserError: a tensor is missing, has another shape, or is one that no such decoder has.
    """
    found = dict(_places(shape))
    for name, place in found.items():
        stored = header.tensors.get(place.tensor)
        if stored is None:
            raise _refused(header, f"{place.tensor} ({name}) is missing")
        if stored.shape != place.shape:
            raise _refused(header, f"{place.tensor} has the shape {list(stored.shape)} and not {list(place.shape)}")
    unknown = header.tensors.keys() - {place.tensor for place in found.values()} - {FACTORS}
    if unknown:
        raise _refused(header, f"no known family has {short(min(unknown))}, one of {len(unknown)} such tensors")
    return found


def _places(shape: DecoderShape) -> Iterator[tuple[str, Place]]:
    hidden = shape.hidden
    yield "model.embed_tokens.weight", Place("token_embd.weight", (shape.vocabulary, hidden))
    if not shape.tied:
        yield "lm_head.weight", Place("output.weight", (shape.vocabulary, hidden))
    yield "model.norm.weight", Place("output_norm.weight", (hidden,))
    for index, layer in enumerate(shape.layers):
        queries, keys = layer.heads * shape.head_dim, layer.kv_heads * shape.head_dim
        ours, theirs = f"model.layers.{index}", f"blk.{index}"
        o_bias, down_bias = shape.o_bias or shape.output_bias, shape.mlp_bias or shape.output_bias
        maps = (
            [
                ("self_attn.q_proj", "attn_q", (queries, hidden), shape.qkv_bias, layer.heads),
                ("self_attn.k_proj", "attn_k", (keys, hidden), shape.qkv_bias, layer.kv_heads),
                ("self_attn.v_proj", "attn_v", (keys, hidden), shape.qkv_bias, 0),
                ("self_attn.o_proj", "attn_output", (hidden, queries), o_bias, 0),
            ]
            if layer.heads
            else []
        )
        maps += (
            [
                ("mlp.gate_proj", "ffn_gate", (layer.mlp, hidden), shape.mlp_bias, 0),
                ("mlp.up_proj", "ffn_up", (layer.mlp, hidden), shape.mlp_bias, 0),
                ("mlp.down_proj", "ffn_down", (hidden, layer.mlp), down_bias, 0),
            ]
            if layer.mlp
            else []
        )
        for name, tensor, size, biased, heads in maps:
            yield f"{ours}.{name}.weight", Place(f"{theirs}.{tensor}.weight", size, heads)
            if biased:
                yield f"{ours}.{name}.bias", Place(f"{theirs}.{tensor}.bias", size[:1], heads)
        if layer.heads:
            yield f"{ours}.input_layernorm.weight", Place(f"{theirs}.attn_norm.weight", (hidden,))
        if layer.mlp:
            yield f"{ours}.post_attention_layernorm.weight", Place(f"{theirs}.ffn_norm.weight", (hidden,))


def _biases(header: Header) -> dict[str, Any]:
    """Return the model type, and which of its biases the file has."""
    q, o, up, down = (
        any(name.endswith(f".{part}.bias") for name in header.tensors)
        for part in ("attn_q", "attn_output", "ffn_up", "ffn_down")
    )
    match (q, o, up, down):
        case (False, True, False, True):
            return {"model_type": "llama", "output_bias": True}
        case (True, False, False, False):
            return {"model_type": "qwen2"}
        case (True, True, False, True):
            # A qwen2 whose outputs got biases, or a llama with biases in its attention: the two compute the same.
            return {"model_type": "qwen2", "output_bias": True}
        case (_, _, _, _) if q == o and up == down:
            return {"model_type": "llama", "attention_bias": q, "mlp_bias": up}
    raise _refused(header, "its matrices have biases that no known family has")


def _rope(header: Header) -> dict[str, Any]:
    theta = _real(header, "rope.freq_base") if _has(header, "rope.freq_base") else 10000.0
    kind = header.number("rope.scaling.type") or "none"
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": _real(header, "rope.scaling.factor")}
    if kind != "none":
        raise _refused(header, f"rotary positions scaled by '{short(kind)}' are not read")
    return {"rope_type": "default", "rope_theta": theta}


def _token(header: Header, role: str) -> int | None:
    """Return the number of a special token; None where the file has none."""
    value = header.fields.get(f"tokenizer.ggml.{role}_token_id")
    if value is not None and (type(value) is not int or value < 0):
        raise _refused(header, f"{role}_token_id is {short(value)} and must be a whole number")
    return value


def _has(header: Header, name: str) -> bool:
    return header.number(name) is not None


def _whole(header: Header, name: str, most: int = 2**31 - 1) -> int:
    value = header.number(name)
    if type(value) is not int or not 1 <= value <= most:
        raise _refused(header, f"{name} is {short(value)} and must be a whole number from 1 to {most:,}")
    return value


def _real(header: Header, name: str) -> float:
    value = header.number(name)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise _refused(header, f"{name} is {short(value)} and must be a number above 0")
    return float(value)


def _by_layer(header: Header, name: str, count: int) -> list[int]:
    """Return a field that is one number for all layers, or one for each."""
    value = header.number(name)
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count or not all(type(number) is int and 0 <= number < 2**31 for number in values):
        raise _refused(header, f"{name} is {short(value)} and must be a whole number, or one for each layer")
    return values


def _refused(header: Header, problem: str) -> UserError:
    return UserError(
        f"{header.path} can't be read as a {header.architecture} of llama.cpp: {problem}. "
        "Take the checkpoint that the file was made from, as a directory with safetensors."
    )
