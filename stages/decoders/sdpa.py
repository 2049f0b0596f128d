"""torch's scaled dot-product attention (SDPA), kept to the kernels that serve this project on CUDA.

Shapes: B batch, H query heads, K key/value heads, T queries, S keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    mask_TS: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return attention [B, H, T, D] under a mask of what is seen, or causal attention where there is none."""
    times = query_BHTD.shape[1] // key_BKSD.shape[1]
    # Besides flash, which takes no mask and no float32, torch's only CUDA kernel for grouped heads is the plain one: it
    # holds all weights of attention, in float32.
    if times > 1 and query_BHTD.device.type == "cuda":
        key_BKSD, value_BKSD = (repeated(part, times) for part in (key_BKSD, value_BKSD))
        times = 1
    return scaled_dot_product_attention(
        query_BHTD,
        key_BKSD,
        value_BKSD,
        attn_mask=mask_TS,
        dropout_p=dropout,
        is_causal=mask_TS is None,
        scale=scaling,
        enable_gqa=times > 1,
    )


def repeated(heads_BKSD: Tensor, times: int) -> Tensor:
    """Return each key/value head `times` times in a row, as its query heads need it: [B, K × times, S, D]."""
    return heads_BKSD.repeat_interleave(times, dim=1)


@contextmanager
def without_plans(device: torch.device | str) -> Iterator[None]:
    """Keep SDPA from cuDNN while the block runs on CUDA; the kernels are chosen in the forward pass.

    cuDNN builds a plan for every new shape and stride, which takes up to a second, and keeps all of them in memory that
    torch's allocator does not know. Lengths of text are nearly always new. Elsewhere cuDNN serves well, and torch's
    switch is the whole process's. So the switch is set for the block alone.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
