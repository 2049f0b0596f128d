"""Attention within sequences of any lengths that lie end to end, by one kernel call and without a mask.

`kernel_for` is the one place that decides whether there is such a kernel: torch's flash attention for variable lengths
on CUDA. Where there is none, callers go sequence by sequence, as they always do on a processor.

Shapes: T queries, S keys, N sequences, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from stages.rows.bounds import Bounds

log = logging.getLogger(__name__)

Window = tuple[int, int]
"""How many keys before and after its own place a query sees; -1 is all. A sequence's last query is at its last key."""
CAUSAL: Window = (-1, 0)
EVERYTHING: Window = (-1, -1)
Call = Callable[[Tensor, Tensor, Tensor, Bounds, Window, float], Tensor]
"""Maps (q [T, H, D], k [S, K, D], v [S, K, D], bounds, window, scaling) to attention's output, [T, H, D]."""
LARGEST_HEAD = 256
"""The largest head size of flash attention."""
UNEVEN_HEAD = 192
"""Head sizes above it are padded to the largest: consumer cards have no backward pass for those between."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """Attention over variable lengths on one kind of device."""

    call: Call
    dtypes: frozenset[torch.dtype]
    """The precisions that it computes in."""
    lacking: Callable[[torch.device], str | None] = lambda device: None
    """Returns what a device lacks to run it, in words; None where nothing is missing."""

    def __call__(
        self,
        query_THD: Tensor,
        key_SKD: Tensor,
        value_SKD: Tensor,
        bounds: Bounds,
        window: Window = CAUSAL,
        scaling: float | None = None,
    ) -> Tensor:
        """Return attention within each sequence, [T, H, D], in the precision that SDPA would compute in."""
        size = query_THD.shape[-1]
        # Kernels of torch's own ops are not among what autocast casts, as SDPA is.
        dtype = precision(query_THD.device, query_THD.dtype)
        q_THD, k_SKD, v_SKD = (part.to(dtype) for part in (query_THD, key_SKD, value_SKD))
        scaling = size**-0.5 if scaling is None else scaling
        if padded(size) == size:
            return self.call(q_THD, k_SKD, v_SKD, bounds, window, scaling)
        # Zeros add nothing to a product of query and key, and the outputs for them are cut off.
        q_THD, k_SKD, v_SKD = (pad(part, (0, padded(size) - size)) for part in (q_THD, k_SKD, v_SKD))
        return self.call(q_THD, k_SKD, v_SKD, bounds, window, scaling)[..., :size]


def padded(size: int) -> int:
    """Return the head size that a kernel is given for heads of `size`."""
    return LARGEST_HEAD if size > UNEVEN_HEAD else -(-size // 8) * 8


def precision(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which attention computes on numbers of `dtype`: autocast's, where that is on."""
    kind = device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if casts else dtype


def kernel_for(device: torch.device, dtype: torch.dtype, head_size: int, *, dropout: float = 0.0) -> Kernel | None:
    """Return the kernel for such heads, None where attention goes sequence by sequence; the log says why, once."""
    kernel = KERNELS.get(device.type)
    if kernel is None:
        return None
    reason = _refusal(kernel, device, precision(device, dtype), head_size, dropout)
    if reason is None:
        return kernel
    _say(device.type, reason)
    return None


def _refusal(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_size: int, dropout: float) -> str | None:
    if dtype not in kernel.dtypes:
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    if dropout:
        return "it has no dropout"
    if head_size > LARGEST_HEAD:
        return f"a head has {head_size} numbers, and it takes {LARGEST_HEAD} at most"
    return kernel.lacking(device)


@cache
def _say(device: str, reason: str) -> None:
    log.warning(
        "Attention on %s goes document by document, without its kernel for variable lengths: %s.", device, reason
    )


@cache
def _lacking(device: torch.device) -> str | None:
    """Return what a CUDA device, or this build of torch, lacks to run `_flash`."""
    options = _options()
    if not {"window_size", "scale"} <= options.keys():
        return f"torch {torch.__version__} has no such kernel with window and scale, which came with torch 2.11"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch has no flash attention"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    return None


@cache
def _options() -> Mapping[str, Any]:
    """Return the parameters of torch's function, by name; none where this torch does not have it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return {}
    return signature(varlen_attn).parameters


def _flash(q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor, bounds: Bounds, window: Window, scaling: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # The kernel takes grouped heads as they are. Newer versions of torch want to be told.
    told: dict[str, Any] = {"enable_gqa": q_THD.shape[1] != k_SKD.shape[1]} if "enable_gqa" in _options() else {}
    out_THD: Any = varlen_attn(
        q_THD,
        k_SKD,
        v_SKD,
        bounds.queries_N,
        bounds.keys_N,
        bounds.longest_queries,
        bounds.longest_keys,
        scale=scaling,
        window_size=window,
        **told,
    )
    attended_THD: Tensor = out_THD
    return attended_THD


KERNELS: dict[str, Kernel] = {"cuda": Kernel(_flash, frozenset({torch.bfloat16, torch.float16}), _lacking)}
"""The kernel of each kind of device that has one."""
