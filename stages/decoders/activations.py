"""Bytes of activations for each token, from a layer's shape. Estimates of memory read them. No torch here."""

from __future__ import annotations

from stages.decoders.shapes import LayerShape


def forward_bytes(layer: LayerShape, head_dim: int, *, hidden: int, each: int) -> int:
    """Return the bytes that one layer needs at its peak for each token without backward, beside its input.

    The peak is in the attention, with the residual stream and q, k and v before and after their rotation, or in the
    MLP, with the stream before and after its norm and three times the channels.
    """
    heads = (layer.heads + layer.kv_heads) * head_dim
    return each * (2 * hidden + 3 * max(heads, layer.mlp))
