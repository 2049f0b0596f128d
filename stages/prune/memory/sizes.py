"""Sizes that decide how much of the work of pruning is in memory at once, in bytes, tokens and numbers. No torch here.

The code that does the work and the estimate of its memory (`.estimate`) both read them here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.decoders.shapes import DecoderShape, LayerShape

GRAPH = 2**31
"""Bytes of activations that are kept for backward at once; at least those of one layer."""
BATCH_TOKENS = 2048
"""Tokens that pass a layer together where there is no backward; at least one sequence."""
CURVATURE_TOKENS = 1024
"""Tokens of one forward and backward pass for second moments, at least one sequence; their logits exist at once."""
MOMENTS = 2**32
"""Bytes of second moments that are gathered at once; at least those of one layer."""
LOGITS = 2**22
"""Logits that exist at once elsewhere (16 MiB in float32); at least those of one sequence."""
LOSS = 10
"""Number of calibration sequences, the first ones, whose loss is recorded before and after the cut."""
TRIAL_FIT = 64
"""Largest number of sequences that a trial of an allocation is fitted on. It shows which is better, and is not kept."""
BLOCK = 2**20
"""Numbers of a gradient that exist at once on a processor: about as many as its caches hold, at least one row."""
DEVICE_BLOCK = 2**24
"""Numbers of a gradient that exist at once on a GPU, which wants larger products."""
PRODUCT = 2**20
"""Numbers of a weight that are in float32 at once where products with bfloat16 are made in it; at least one row."""


def runs_of(sizes: Sequence[int], most: int) -> list[range]:
    """Return all positions of `sizes` in runs of neighbours whose sizes add up to at most `most`; at least one each."""
    starts, held = [0], 0
    for position, size in enumerate(sizes):
        if held and held + size > most:
            starts.append(position)
            held = 0
        held += size
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def graph_bytes(layer: LayerShape, head_dim: int, *, hidden: int, each: int, inputs: bool = False) -> int:
    """Return the bytes of activations that backward through one layer needs for each token, no weight being trained.

    They are the inputs of two norms in float32; q, k, v and the attention's output; and the MLP's gate before and after
    its activation, and up. With `inputs` those of all maps are kept too. `each` is the bytes of one number.
    """
    attention, mlp = 2 * (layer.heads + layer.kv_heads) * head_dim, 3 * layer.mlp
    read = 2 * hidden + layer.mlp if inputs else 0  # what the norms give, and what down is given
    return 8 * hidden + each * (attention + mlp + read)


def cast_forward_bytes(layer: LayerShape, *, hidden: int, each: int) -> int:
    """Return `forward_bytes` where products are made in float32 (`stages.prune.statistics.products`).

    The peak is in the MLP's up or down: the map's input is there in float32 too, and its product with a block.
    """
    up = each * (2 * hidden + 2 * layer.mlp) + 4 * (hidden + min(layer.mlp, max(1, PRODUCT // hidden)))
    down = each * (2 * hidden + layer.mlp) + 4 * (layer.mlp + min(hidden, max(1, PRODUCT // max(1, layer.mlp))))
    return max(up, down)


def moment_bytes(shape: DecoderShape, layer: LayerShape) -> int:
    """Return the bytes of the second moments of a layer's output projections, in float32."""
    return sum(4 * (width**2 + shape.hidden**2) for width in output_widths(shape, layer))


def output_widths(shape: DecoderShape, layer: LayerShape) -> list[int]:
    """Return the inputs of a layer's output projections: o of the attention and down of the MLP, where they are."""
    return [width for width in (layer.heads * shape.head_dim, layer.mlp) if width]
