"""The shapes that DeciLM can say, the format in which vLLM, SGLang and TensorRT-LLM read layers that differ. No torch.

DeciLM (`model_type: nemotron-nas`) has a record for each layer: whether it has an attention, how many query heads share
a key/value head, whether it has an MLP, and how wide that is. The number of query heads is one for the whole model.
Where each rule comes from is in `stages.export.decilm.rules`, which checks a written directory.
"""

from __future__ import annotations

from stages.decoders.shapes import DecoderShape

SERVERS = ("vllm", "sglang", "tensorrt")
"""The servers that read the format."""
BY_FACTOR = ("sglang", "tensorrt")
"""The servers that compute an MLP's width from `ffn_mult`. vLLM reads the width itself."""
TILE = 256
"""The multiple to which a width that comes from `ffn_mult` is rounded up."""
FAMILIES = ("llama", "mistral", "qwen2")
"""The families whose layers compute what DeciLM's do."""


def width_multiple(server: str) -> int:
    """Return the multiple of which every MLP width has to be, for `server` to read it."""
    return TILE if server in BY_FACTOR else 1


def ffn_mult(width: int, hidden: int) -> float:
    """Return the factor from which a server computes `width`, a multiple of `TILE`."""
    return 3 * width / (2 * hidden)


def width_from(factor: float, hidden: int) -> int:
    """Return the MLP width that a server computes from `ffn_mult`: two thirds of it in hidden sizes, rounded up."""
    width = int(2 * factor * hidden / 3)
    return -(-width // TILE) * TILE


def unserved(shape: DecoderShape, server: str) -> str:
    """Return why DeciLM can't say `shape` for `server`, with the remedy; empty where it can."""
    return _family(shape) or _heads(shape, server) or _widths(shape, server) or _biases(shape, server)


def _family(shape: DecoderShape) -> str:
    if shape.family in FAMILIES:
        return ""
    return (
        f"DeciLM's layers compute what a llama's do, and a {shape.family}'s compute something else. Known: "
        f"{', '.join(FAMILIES)}. Publish the Hugging Face directory (export=hf) or a GGUF file (export=gguf)"
    )


def _heads(shape: DecoderShape, server: str) -> str:
    there = [layer for layer in shape.layers if layer.heads]
    if not shape.layers[0].heads:
        return (
            "DeciLM's readers start the residual stream in the first layer's attention, and this first layer has none. "
            "Prune with prune.shapes=served, which leaves it there"
        )
    heads = sorted({layer.heads for layer in there})
    if len(heads) > 1:
        return (
            f"DeciLM has one number of query heads for all layers, and these have {_listed(heads)}. Leave heads and "
            "queries out of prune.granularity, cut them in all layers alike (prune.layers=all), or let a search do so "
            "(prune.allocation=searched prune.shapes=served)"
        )
    kv_heads = sorted({layer.kv_heads for layer in there})
    if server == "sglang" and len(kv_heads) > 1:
        return (
            f"SGLang takes one number of key/value heads for all layers, and these have {_listed(kv_heads)}. Serve "
            "the model with vLLM or TensorRT-LLM (prune.serve=vllm, tensorrt)"
        )
    return ""


def _widths(shape: DecoderShape, server: str) -> str:
    multiple = width_multiple(server)
    odd = sorted({layer.mlp for layer in shape.layers if layer.mlp % multiple})
    if not odd:
        return ""
    return (
        f"prune.serve={server} computes MLP widths in multiples of {multiple}, and these layers have {_listed(odd)}. "
        "Prune with prune.shapes=served where the dense model's own width is such a multiple, or serve with "
        "prune.serve=vllm, which takes any width"
    )


def _biases(shape: DecoderShape, server: str) -> str:
    if shape.output_bias and not (shape.o_bias and shape.mlp_bias):
        return (
            "DeciLM has one flag for the biases of an MLP's three maps, and compensation gave one of them a bias. Use "
            "another compensation: prune.compensate=none, least_squares or sequential"
        )
    if server == "tensorrt" and (shape.qkv_bias or shape.o_bias or shape.mlp_bias):
        return "TensorRT-LLM's DeciLM has no biases, and this model has some. Serve it with prune.serve=vllm"
    if server == "sglang" and (shape.mlp_bias or shape.qkv_bias != shape.o_bias):
        return (
            "SGLang's DeciLM has a bias on all four maps of an attention or on none, and never in an MLP. This model's "
            "are others: serve it with prune.serve=vllm"
        )
    return ""


def _listed(numbers: list[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers[:4]) + (", …" if len(numbers) > 4 else "")
