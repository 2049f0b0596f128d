"""The inputs that share a scale in a compressed matrix, and what a server will say to the shape. No torch here.

vLLM's kernel for 4-bit weights (Marlin) takes groups of 32, 64 or 128 inputs or whole rows, inputs in multiples of 128
and outputs in multiples of 64 (vllm/model_executor/layers/quantization/utils/marlin_utils.py). Where a model has
others, vLLM had no kernel for bfloat16 before pull request 43731 of May 2026, and takes a slower one since.
vLLM makes room for inputs by whole words of 32 bits, and compressed-tensors rounds the words of a row up. So a width
that 8 does not divide can't be loaded there at all (compressed_tensors_wNa16.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stages.decoders.shapes import DecoderShape

GROUPS = (128, 64, 32)
"""Inputs that may share a scale, the usual number first."""
INPUTS, OUTPUTS = 128, 64
"""What the kernel's inputs and outputs are multiples of."""
PACKED = 8
"""4-bit values in a word."""
WHOLE_ROW = 0


def group_of(scheme: str, inputs: int) -> int:
    """Return how many of a matrix's inputs share a scale; 0 where all inputs of a row do.

    A group never reaches beyond a row, so a width that 32 does not divide has one scale for each row.
    """
    if scheme != "w4a16":
        return WHOLE_ROW
    return next((size for size in GROUPS if inputs % size == 0), WHOLE_ROW)


def remarks(scheme: str, shape: DecoderShape) -> list[str]:
    """Return what a user should know of a compressed model of `shape`, as sentences."""
    return list(_remarks(scheme, shape))


def _remarks(scheme: str, shape: DecoderShape) -> Iterator[str]:
    if shape.beyond_stock:
        yield (
            "layers differ in shape, so transformers loads it with trust_remote_code=True, and vLLM has no class of "
            "its own for it (prune.shapes=alike gives all layers one shape)"
        )
    if scheme != "w4a16":
        return
    widths = {shape.hidden} | {width for layer in shape.layers for width in (layer.heads * shape.head_dim, layer.mlp)}
    if broken := _others(widths, PACKED):
        yield (
            f"vLLM can't load 4-bit weights of widths that {PACKED} does not divide, and this model has {broken} "
            f"(prune.round_to={INPUTS} rounds channels; export.scheme=fp8 has no such rule)"
        )
    if odd := _others(widths, INPUTS):
        yield (
            f"vLLM's fast kernel for 4-bit weights wants widths in multiples of {INPUTS}, and this model has {odd} "
            f"(prune.round_to={INPUTS} rounds channels); before pull request 43731 of May 2026 vLLM has no other for "
            "bfloat16"
        )


def _others(widths: Iterable[int], multiple: int) -> str:
    """Return the smallest of the widths that `multiple` does not divide, in words; empty without one."""
    odd = sorted(width for width in widths if width % multiple)
    return f"{', '.join(map(str, odd[:4]))}{' …' if len(odd) > 4 else ''}"
